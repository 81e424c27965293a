// Graphs: tasks captured once, and launched by one call.
#include <algorithm>
#include <exception>
#include <utility>

#include "core/backend/cuda_graph.h"
#include "core/base/detail.h"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/state.cuh"

namespace sinter {
namespace cuda {
namespace {

// What this thread captures.
struct Capture {
  bool active = false;
  // Of the task whose work is being captured: memory that work which it does not fully wait for may
  // still write to, and memory that it writes to itself.
  std::span<const std::span<const std::byte>> pending, own;
  bool launched = false;  // a kernel of it
};
thread_local Capture capture;  // without a destructor: later ones of the thread may ask for it

}  // namespace

void refuse_in_capture(const char* what) {
  if (!capture.active) return;
  throw GraphError(str(what,
                       " cannot be captured in a graph: it waits for the device or reads host "
                       "memory, which a replay would not; move it out of the captured function"));
}

void note_launch() { capture.launched = true; }

bool settled(const void* p) {
  if (!capture.active) return false;
  const auto* byte = static_cast<const std::byte*>(p);
  const auto holds = [byte](std::span<const std::byte> part) {
    return part.data() <= byte && byte < part.data() + part.size();
  };
  // A second kernel of the task follows the first, which follows all that was pending.
  const auto& writes = capture.launched ? capture.own : capture.pending;
  return std::none_of(writes.begin(), writes.end(), holds);
}

namespace {

// What the graph kept goes to the stream it ran on. device.mutex is held.
void merge_pool(DeviceState& device, Pool& from, Stream& stream) {
  for (auto& [bytes, list] : from.free) {
    auto& to = stream.own.free[bytes];
    to.insert(to.end(), list.begin(), list.end());
  }
  for (const auto& chunk : device.chunks)
    if (chunk->pool == &from) chunk->pool = &stream.own;
}

}  // namespace
}  // namespace cuda

using namespace cuda;

struct detail::CudaGraph::Impl {
  int device = 0;
  std::vector<Stream*> streams;  // one a lane
  std::vector<std::unique_ptr<Pool>> pools;
  cudaGraphExec_t exec = nullptr;
  int64_t nodes = 0;

  ~Impl() {
    // A replay under way is finished first. What could fail is the process, at its end.
    if (exec != nullptr) static_cast<void>(cudaGraphExecDestroy(exec));
    if (streams.empty()) return;
    try {
      DeviceState& state = device_state(device);
      const std::lock_guard lock(state.mutex);
      for (size_t lane = 0; lane < streams.size(); ++lane)
        merge_pool(state, *pools[lane], *streams[0]);
    } catch (const std::exception&) {
      for (auto& pool : pools) static_cast<void>(pool.release());  // blocks may still point to it
    }
  }

  // Ends the capture in whatever state it is: nullptr if it failed.
  cudaError_t stop(cudaGraph_t* graph) noexcept {
    const cudaError_t error = cudaStreamEndCapture(streams[0]->stream, graph);
    if (error != cudaSuccess) {
      cudaGetLastError();
      *graph = nullptr;
    }
    const std::lock_guard lock(device_state(device).mutex);
    for (Stream* stream : streams) {
      stream->pool = &stream->own;
      stream->own.pinned = false;
    }
    cuda::capture = {};
    return error;
  }
};

detail::CudaGraph::CudaGraph() = default;
detail::CudaGraph::CudaGraph(CudaGraph&&) noexcept = default;
detail::CudaGraph& detail::CudaGraph::operator=(CudaGraph&&) noexcept = default;
detail::CudaGraph::~CudaGraph() = default;
int64_t detail::CudaGraph::nodes() const { return impl_ ? impl_->nodes : 0; }

namespace {

class Event {
 public:
  Event() { SINTER_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }  // kept until waits for it are over
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream) { SINTER_CUDA_CHECK(cudaEventRecord(event_, stream.stream)); }
  void hold(const Stream& stream) { SINTER_CUDA_CHECK(cudaStreamWaitEvent(stream.stream, event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

using Nodes = std::vector<cudaGraphNode_t>;

// The nodes that what is captured next on the stream depends on.
Nodes dependencies(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaGraphNode_t* nodes = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  SINTER_CUDA_CHECK(
      cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &nodes, nullptr, &count));
#else
  SINTER_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, nullptr, &nodes, &count));
#endif
  return Nodes(nodes, nodes + count);
}

void set_dependencies(cudaStream_t stream, Nodes& nodes) {
#if CUDART_VERSION >= 13000
  SINTER_CUDA_CHECK(cudaStreamUpdateCaptureDependencies(stream, nodes.data(), nullptr, nodes.size(),
                                                        cudaStreamSetCaptureDependencies));
#else
  SINTER_CUDA_CHECK(cudaStreamUpdateCaptureDependencies(stream, nodes.data(), nodes.size(),
                                                        cudaStreamSetCaptureDependencies));
#endif
}

// Captures the tasks' work on the streams of their lanes. A task depends on those that it names and
// on no others, as it would on all before it if streams and events were to tell.
void capture_tasks(int device, std::span<const detail::GraphTask> tasks,
                   std::span<Stream* const> streams) {
  {
    Event begin;
    begin.record(*streams[0]);
    for (size_t lane = 1; lane < streams.size(); ++lane) begin.hold(*streams[lane]);
  }
  std::vector<Nodes> ends(tasks.size());
  std::vector<std::span<const std::byte>> pending;
  Nodes nodes;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const detail::GraphTask& task = tasks[i];
    const cudaStream_t stream = streams[static_cast<size_t>(task.lane)]->stream;
    pending.clear();
    nodes.clear();
    for (const int other : task.after) {
      const auto o = static_cast<size_t>(other);
      nodes.insert(nodes.end(), ends[o].begin(), ends[o].end());
      pending.insert(pending.end(), tasks[o].writes.begin(), tasks[o].writes.end());
    }
    set_dependencies(stream, nodes);
    cuda::capture.pending = pending;
    cuda::capture.own = task.writes;
    cuda::capture.launched = false;
    task.work({device, stream});
    ends[i] = dependencies(stream);
  }
  // All of them, so that the graph is over when they are.
  for (size_t lane = 1; lane < streams.size(); ++lane) {
    Event end;
    end.record(*streams[lane]);
    end.hold(*streams[0]);
  }
}

}  // namespace

detail::CudaGraph detail::CudaGraph::capture(int device, std::span<const detail::GraphTask> tasks) {
  if (cuda::capture.active) throw GraphError("a graph is being captured by this thread already");
  const Cuda ctx = cuda_context(device);
  detail::CudaGraph graph;
  graph.impl_ = std::make_unique<Impl>();
  Impl& impl = *graph.impl_;
  impl.device = device;
  int lanes = 1;
  for (const detail::GraphTask& task : tasks) lanes = std::max(lanes, task.lane + 1);
  {
    DeviceState& state = device_state(device);
    const std::lock_guard lock(state.mutex);
    Stream& stream = stream_of(state, ctx);
    add_lanes(state, stream, static_cast<size_t>(lanes) - 1);
    // Other threads go on as they are: only this one's calls are restricted.
    SINTER_CUDA_CHECK(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeThreadLocal));
    impl.streams.push_back(&stream);
    impl.streams.insert(impl.streams.end(), stream.lanes.begin(),
                        stream.lanes.begin() + (lanes - 1));
    for (Stream* of_lane : impl.streams) {
      impl.pools.push_back(std::make_unique<Pool>());
      impl.pools.back()->pinned = true;
      of_lane->pool = impl.pools.back().get();
      of_lane->own.pinned = true;
    }
    cuda::capture.active = true;
  }
  cudaGraph_t captured = nullptr;
  try {
    capture_tasks(device, tasks, impl.streams);
  } catch (...) {
    static_cast<void>(impl.stop(&captured));
    if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));  // the other is thrown
    throw;
  }
  cudaError_t error = impl.stop(&captured);
  if (error != cudaSuccess) throw_cuda_error(error, __FILE__, __LINE__, "capturing a graph");
  size_t nodes = 0;
  error = cudaGraphGetNodes(captured, nullptr, &nodes);
  impl.nodes = static_cast<int64_t>(nodes);
  if (error == cudaSuccess)
    error = cudaGraphInstantiate(&impl.exec, captured, cudaGraphInstantiateFlagUseNodePriority);
  const cudaError_t destroyed = cudaGraphDestroy(captured);
  if (error != cudaSuccess) throw_cuda_error(error, __FILE__, __LINE__, "instantiating a graph");
  SINTER_CUDA_CHECK(destroyed);
  SINTER_CUDA_CHECK(cudaGraphUpload(impl.exec, ctx.stream));
  return graph;
}

void detail::CudaGraph::replay() {
  if (!impl_) throw GraphError("replay: an empty graph");
  refuse_in_capture("the replay of a graph");
  const Cuda ctx = cuda_context(impl_->device);
  if (ctx.stream != impl_->streams[0]->stream)
    throw GraphError(
        "replay: expected the thread that captured the graph, whose stream it runs on");
  SINTER_CUDA_CHECK(cudaGraphLaunch(impl_->exec, ctx.stream));
}

}  // namespace sinter
