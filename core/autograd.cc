#include "sinter/autograd.h"

#include <atomic>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "sinter/dispatch.h"

namespace sinter {

// A step of the graph: an operator with the nodes of its inputs, or a leaf that collects a
// gradient. Edges point from results to inputs only, and closures hold no nodes (Saved), so there
// are no cycles.
class Node {
 public:
  Node(const char* op, const Tensor& result)
      : op(op), shape(result.shape()), options(result.options()) {
    count.fetch_add(1, std::memory_order_relaxed);
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
  ~Node();

  bool is_leaf() const { return op == nullptr; }

  const char* op;
  Shape shape;  // of the result, and so of its gradient
  TensorOptions options;
  std::vector<std::shared_ptr<Node>> inputs;  // null for inputs that need no gradient
  BackwardFn backward;                        // empty once freed by a backward pass
  std::function<Grads()> backward_one;        // may be empty
  bool freed = false;
  Tensor grad;  // leaves only

  static std::atomic<int64_t> count;
};

std::atomic<int64_t> Node::count{0};
int64_t live_nodes() { return Node::count.load(std::memory_order_relaxed); }

// The last owner of a deep graph would destroy it by recursion, one stack frame or more a node.
// Instead the outermost destructor on this thread empties a work list that the inner ones only add
// to.
Node::~Node() {
  thread_local std::vector<std::shared_ptr<Node>>* pending = nullptr;
  count.fetch_sub(1, std::memory_order_relaxed);
  if (pending != nullptr) {
    for (auto& input : inputs) {
      if (input) pending->push_back(std::move(input));
    }
    return;
  }
  std::vector<std::shared_ptr<Node>> list = std::move(inputs);
  pending = &list;
  while (!list.empty()) {
    const std::shared_ptr<Node> next = std::move(list.back());
    list.pop_back();
  }
  pending = nullptr;
}

namespace {

thread_local bool grad_mode = true;
thread_local bool anomaly_mode = false;

struct Unchecked {
  Unchecked() { anomaly_mode = false; }
  ~Unchecked() { anomaly_mode = true; }
};

// Throws AnomalyError if t has a NaN or an infinity; `what` says what t is.
template <class... What> void check_finite(const Tensor& t, const What&... what) {
  if (!t.defined() || !is_floating(t.dtype())) return;
  const std::vector<double> values = [&] {
    const Unchecked reading;  // the copy to the host is an operator too, and none to be blamed
    return t.to_vector<double>();
  }();
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw AnomalyError(
        str("anomaly: ", what..., " of shape ", t.shape(), " has ", values[i], " at element ", i));
  }
}

const char* describe(const Node& node) { return node.is_leaf() ? "a leaf" : node.op; }

// The nodes that `root` depends on, each after everything it depends on: a depth-first search with
// a stack of its own, since graphs may be deeper than the call stack.
std::vector<Node*> topological_order(Node* root) {
  std::vector<Node*> order;
  std::unordered_map<Node*, bool> visited;
  std::vector<std::pair<Node*, size_t>> stack{{root, 0}};  // a node and its next input to look at
  visited[root] = true;
  while (!stack.empty()) {
    auto& [node, next] = stack.back();
    if (next == node->inputs.size()) {
      order.push_back(node);
      stack.pop_back();
      continue;
    }
    Node* input = node->inputs[next++].get();
    if (input != nullptr && !std::exchange(visited[input], true)) stack.emplace_back(input, 0);
  }
  return order;
}

// sum += term. Writes into sum's storage only if nobody else holds it: a backward function may have
// handed the same tensor to several inputs.
void add_into(Tensor& sum, const Tensor& term) {
  if (!sum.defined()) {
    sum = term;
    return;
  }
  if (sum.shares_storage()) sum = sum.clone();
  dispatch("backward", sum, [&]<class T>(const auto& ctx) {
    accumulate(ctx, sum.numel(), term.data<const T>(), sum.data<T>());
  });
}

void check_grad(const Tensor& grad, const Node& node, const char* op) {
  if (grad.shape() == node.shape && grad.dtype() == node.options.dtype &&
      grad.device() == node.options.device) {
    return;
  }
  throw GradError(str("backward of ", op, ": expected a gradient of shape ", node.shape, ", ",
                      node.options.dtype, " on ", node.options.device, " for ", describe(node),
                      ", got ", grad.shape(), ", ", grad.dtype(), " on ", grad.device()));
}

}  // namespace

bool grad_enabled() { return grad_mode; }
no_grad::no_grad() : before_(std::exchange(grad_mode, false)) {}
no_grad::~no_grad() { grad_mode = before_; }

anomaly_guard::anomaly_guard() : before_(std::exchange(anomaly_mode, true)) {}
anomaly_guard::~anomaly_guard() { anomaly_mode = before_; }
bool anomaly_enabled() { return anomaly_mode; }

bool recording(std::initializer_list<const Tensor*> inputs) {
  if (!grad_mode) return false;
  for (const Tensor* input : inputs) {
    if (input->requires_grad()) return true;
  }
  return false;
}

Tensor record(const char* op, const Tensor& y, const std::vector<Tensor>& inputs,
              BackwardFn backward, std::function<Grads()> backward_one) {
  if (anomaly_mode) check_finite(y, "the result of ", op);
  bool needed = false;
  for (const Tensor& input : inputs) needed = needed || input.requires_grad();
  if (!grad_mode || !needed) return y.requires_grad() ? y.detach() : y;
  require<DtypeError>(is_floating(y.dtype()), op,
                      ": expected a floating result to differentiate, got ", y.dtype());
  auto node = std::make_shared<Node>(op, y);
  node->inputs.reserve(inputs.size());
  for (const Tensor& input : inputs) node->inputs.push_back(input.node());
  node->backward = std::move(backward);
  node->backward_one = std::move(backward_one);
  return y.with_node(std::move(node));
}

std::vector<RecordedOp> recorded_ops(const Tensor& y) {
  std::vector<RecordedOp> ops;
  if (!y.requires_grad()) return ops;
  for (const Node* node : topological_order(y.node().get())) {
    if (node->is_leaf()) continue;
    RecordedOp op{node->op, node->shape, {}};
    for (const auto& input : node->inputs)
      op.inputs.push_back(input ? std::optional(input->shape) : std::nullopt);
    ops.push_back(std::move(op));
  }
  return ops;
}

const Tensor& Saved::get() const {
  require<GradError>(intact(), "backward: a tensor of shape ", tensor_.shape(),
                     " that the derivative needs was changed in place after the forward pass; run "
                     "backward before the change, or change a clone()");
  return tensor_;
}

Tensor& Tensor::set_requires_grad(bool value) {
  require<GradError>(is_leaf(),
                     "set_requires_grad: expected a leaf, got the result of a recorded operator; "
                     "use detach()");
  if (!value) {
    node_ = nullptr;
  } else if (!node_) {
    require<DtypeError>(defined() && is_floating(dtype_),
                        "set_requires_grad: expected float32 or float64, got ",
                        defined() ? name(dtype_) : "an undefined tensor");
    node_ = std::make_shared<Node>(nullptr, *this);
  }
  return *this;
}

bool Tensor::is_leaf() const { return !node_ || node_->is_leaf(); }

Tensor Tensor::grad() const { return node_ ? node_->grad : Tensor(); }

void Tensor::set_grad(const Tensor& grad) const {
  require<GradError>(node_ && node_->is_leaf(), "set_grad: expected a leaf that requires grad");
  if (grad.defined()) check_grad(grad, *node_, "set_grad");
  node_->grad = grad.detach();
}

void Tensor::backward(bool retain_graph) const {
  require<GradError>(defined() && numel() == 1,
                     "backward: expected a tensor of one element, got shape ", shape_,
                     "; pass the gradient with respect to it, or reduce it first");
  check_differentiable();
  run_backward(node_->backward_one ? Tensor() : ones(shape_, options()), retain_graph);
}

void Tensor::backward(const Tensor& gradient, bool retain_graph) const {
  check_differentiable();
  require<GradError>(gradient.defined(), "backward: undefined gradient");
  check_grad(gradient, *node_, "the call");
  run_backward(gradient.detach(), retain_graph);
}

void Tensor::check_differentiable() const {
  require<GradError>(requires_grad(),
                     "backward: this tensor does not require grad: no input of its operators does, "
                     "or they ran under no_grad");
}

void Tensor::run_backward(const Tensor& gradient, bool retain_graph) const {
  const no_grad guard;  // derivatives are not themselves recorded
  const std::vector<Node*> order = topological_order(node_.get());
  std::unordered_map<Node*, Tensor> grads;  // of results, until their node is reached
  grads.reserve(order.size());
  grads[node_.get()] = gradient;
  const auto join = [this] {
    dispatch_device(device(), [](const auto& ctx) { join_branches(ctx); });
  };

  // Freeing a node's edges may drop the last owner of nodes still to come: they are kept until the
  // end.
  std::vector<std::shared_ptr<Node>> kept;
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    Node& node = **it;
    const auto found = grads.find(&node);
    if (found == grads.end()) continue;  // no gradient flows here
    Tensor dy = std::move(found->second);
    grads.erase(found);

    if (node.is_leaf()) {
      // The gradient becomes the leaf's own. One that others can see (a view, the caller's) is
      // copied, since the leaf adds into it later.
      if (node.grad.defined() || dy.shares_storage()) join();
      if (!node.grad.defined() && dy.shares_storage()) dy = dy.clone();
      add_into(node.grad, dy);
      continue;
    }
    require<GradError>(!node.freed, "backward: the graph of ", node.op,
                       " was freed by an earlier backward pass; pass retain_graph = true to the "
                       "first to run a second");
    Grads dx = dy.defined() ? node.backward(dy) : node.backward_one();
    dy = Tensor();
    require<GradError>(dx.size() == node.inputs.size(), "backward of ", node.op, ": expected ",
                       node.inputs.size(), " gradients, one for each input, got ", dx.size());
    for (size_t i = 0; i < dx.size(); ++i) {
      Node* input = node.inputs[i].get();
      if (input == nullptr || !dx[i].defined()) continue;
      check_grad(dx[i], *input, node.op);
      if (anomaly_mode) check_finite(dx[i], "the gradient of ", node.op, " for its input ", i);
      Tensor moved = std::move(dx[i]);
      Tensor& sum = grads[input];
      if (i > 0 && (sum.defined() || !input->is_leaf())) join();
      add_into(sum, moved);
    }
    if (!retain_graph) {
      node.freed = true;
      node.backward = nullptr;
      node.backward_one = nullptr;
      for (auto& input : node.inputs) {
        if (input) kept.push_back(std::move(input));
      }
      node.inputs.clear();
    }
  }
  join();
}

}  // namespace sinter
