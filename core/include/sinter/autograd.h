// Reverse-mode automatic differentiation over an explicit graph.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// One gradient for each input of an operator; undefined for those that need none.
using Grads = std::vector<Tensor>;
// From the gradient of an operator's result to those of its inputs. dy has the result's shape,
// dtype and device.
using BackwardFn = std::function<Grads(const Tensor& dy)>;

// y, the result of operator `op` on `inputs`, entered into the graph with its derivative: returns a
// copy of y that requires grad if an input does and grad_enabled(), else y itself. A user's own
// operator is made the same way as the built-in ones.
//   The closure must hold what it needs as Saved, never as a Tensor that requires grad: the graph
// would keep itself alive. `op` must outlive the graph (a string literal).
Tensor record(const char* op, const Tensor& y, const std::vector<Tensor>& inputs,
              BackwardFn backward);
// Whether record would enter an operator on `inputs`: the forward pass asks before it computes what
// only the backward pass needs.
bool recording(std::initializer_list<const Tensor*> inputs);

struct GradOptions {
  std::vector<Tensor> grad_outputs = {};  // one an output; undefined or none: 1, of one element
  bool retain_graph = false;
  bool allow_unused = false;
};
// Sum of d(output)/d(input), weighted by grad_outputs, for each of the inputs, which are leaves or
// results of operators: torch.autograd.grad without create_graph, as gradients are outside the
// graph. No tensor's grad() is touched, and only what lies between outputs and inputs is computed
// and, unless retain_graph, freed. Throws GradError naming an output or input that does not require
// grad, or an input that no output depends on, whose gradient is undefined with allow_unused.
std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs,
                         const GradOptions& options = {});
inline std::vector<Tensor> grad(const Tensor& output, const std::vector<Tensor>& inputs,
                                const GradOptions& options = {}) {
  return grad(std::vector<Tensor>{output}, inputs, options);
}

// A tensor kept for the backward pass, outside the graph. get() throws GradError if the storage was
// changed in place in between, since the derivative would silently be wrong.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& tensor)
      : tensor_(tensor.defined() ? tensor.detach() : Tensor()),
        version_(tensor.defined() ? tensor.version() : 0) {}
  const Tensor& get() const;
  bool intact() const { return !tensor_.defined() || tensor_.version() == version_; }
  const Shape& shape() const { return tensor_.shape(); }

 private:
  Tensor tensor_;
  uint64_t version_ = 0;
};

// While one lives, operators of this thread are not recorded.
class no_grad {
 public:
  [[nodiscard]] no_grad();
  ~no_grad();
  no_grad(const no_grad&) = delete;
  no_grad& operator=(const no_grad&) = delete;

 private:
  bool before_;
};
bool grad_enabled();

// While one lives, every operator of this thread is checked, forward and backward: the first that
// produces a NaN or an infinity throws AnomalyError naming it, and on a CUDA device an asynchronous
// failure is thrown at the operator that caused it. For finding an error: it waits for the device
// at every operator.
class anomaly_guard {
 public:
  [[nodiscard]] anomaly_guard();
  ~anomaly_guard();
  anomaly_guard(const anomaly_guard&) = delete;
  anomaly_guard& operator=(const anomaly_guard&) = delete;

 private:
  bool before_;
};

bool anomaly_enabled();

// An operator of the graph, as shapes: what work it stands for.
struct RecordedOp {
  const char* op;
  Shape result;
  std::vector<std::optional<Shape>> inputs;  // empty for one that needs no gradient
};
// The operators that y was computed by, each after those it depends on; none for a leaf.
std::vector<RecordedOp> recorded_ops(const Tensor& y);

// Graph nodes alive in this process: a leak test's yardstick, with live_storages().
int64_t live_nodes();

}  // namespace sinter
