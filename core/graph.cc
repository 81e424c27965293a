#include "sinter/graph.h"

#include <utility>

#include "sinter/dispatch.h"

namespace sinter {

#ifdef SINTER_WITH_CUDA
struct Graph::Impl {
  CudaGraph graph;
};
struct branch_guard::Impl {
  Branch branch;
};
#else
struct Graph::Impl {};
struct branch_guard::Impl {};
#endif

Graph::Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
Graph::~Graph() = default;

Graph Graph::capture(Device device, const std::function<void()>& work) {
  require<DeviceError>(device.is_cuda(), "Graph::capture: expected a CUDA device, got ", device,
                       "; call the function itself on the CPU");
  require_usable(device);
  Graph result;
#ifdef SINTER_WITH_CUDA
  // What was put off before is computed once, what is put off in the graph at every replay.
  compute_deferred();
  result.impl_ = std::make_unique<Impl>(Impl{CudaGraph::capture(device.index, [&work] {
    work();
    compute_deferred();
  })});
#else
  (void)work;  // require_usable has thrown
#endif
  return result;
}

void Graph::replay() {
  require<GraphError>(impl_ != nullptr, "Graph::replay: nothing was captured");
#ifdef SINTER_WITH_CUDA
  impl_->graph.replay();
#endif
}

int64_t Graph::nodes() const {
#ifdef SINTER_WITH_CUDA
  if (impl_) return impl_->graph.nodes();
#endif
  return 0;
}

branch_guard::branch_guard(Device device) {
#ifdef SINTER_WITH_CUDA
  if (device.is_cuda() && capturing()) impl_.reset(new Impl{Branch(cuda_context(device.index))});
#else
  (void)device;
#endif
}
branch_guard::~branch_guard() = default;

void join(Device device) {
  dispatch_device(device, [](const auto& ctx) { join_branches(ctx); });
}

}  // namespace sinter
