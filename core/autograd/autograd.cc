#include "sinter/autograd.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/autograd/leaf_use.h"
#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/program/recorder.h"
#include "core/tensor/tensor_impl.h"
#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"
#include "sinter/ops.h"

namespace sinter {

// A step of the graph: an operator with the nodes of its inputs, or a leaf that collects a
// gradient. Edges point from results to inputs only, and closures hold no nodes (Saved), so there
// are no cycles.
class Node : public std::enable_shared_from_this<Node> {
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
  std::shared_ptr<const std::string> module;  // its path, of one made in a recording
  bool freed = false;
  struct Hooks {
    std::vector<std::shared_ptr<const std::function<Tensor(const Tensor&)>>> list;
    uint64_t version = 0;  // counts changes
  };
  std::unique_ptr<Hooks> hooks;  // null as long as there never was one
  // Leaves only:
  Tensor get_grad();
  void set_grad(const Tensor& gradient);
  Tensor grad;
  bool frozen = false;  // collects none: its tensor does not require grad for now

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

// A recording hears of both.
Tensor Node::get_grad() {
  if (Recorder* const recorder = Recorder::of_this_thread())
    recorder->asked_gradient(shared_from_this(), grad);
  return grad;
}
void Node::set_grad(const Tensor& gradient) {
  if (Recorder* const recorder = Recorder::of_this_thread())
    recorder->sets_gradient(shared_from_this(), grad);
  grad = gradient;
}

void release_node(Node& node) {
  node.freed = true;
  node.backward = nullptr;
  node.inputs.clear();
}
uint64_t hooks_version(const Node& node) { return node.hooks ? node.hooks->version : 0; }
Tensor gradient_of(const Node& leaf) { return leaf.grad; }
void set_gradient_of(Node& leaf, const Tensor& gradient) { leaf.grad = gradient; }

namespace {

thread_local bool grad_mode = true;
thread_local bool anomaly_mode = false;
thread_local LeafWatch* leaf_watch = nullptr;

// Throws AnomalyError if t has a NaN or an infinity; `what` says what t is.
template <class... What> void check_finite(const Tensor& t, const What&... what) {
  if (!t.defined() || !is_floating(t.dtype())) return;
  const std::vector<double> values = t.to_vector<double>();
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    throw AnomalyError(
        str("anomaly: ", what..., " of shape ", t.shape(), " has ", values[i], " at element ", i));
  }
}

const char* describe(const Node& node) { return node.is_leaf() ? "a leaf" : node.op; }

// The nodes that `roots` depend on, each after everything it depends on: a depth-first search with
// a stack of its own, since graphs may be deeper than the call stack.
std::vector<Node*> topological_order(const std::vector<Node*>& roots) {
  std::vector<Node*> order;
  std::unordered_set<Node*> visited;
  std::vector<std::pair<Node*, size_t>> stack;  // a node and its next input to look at
  for (Node* root : roots) {
    if (visited.insert(root).second) stack.emplace_back(root, 0);
    while (!stack.empty()) {
      auto& [node, next] = stack.back();
      if (next == node->inputs.size()) {
        order.push_back(node);
        stack.pop_back();
        continue;
      }
      Node* input = node->inputs[next++].get();
      if (input != nullptr && visited.insert(input).second) stack.emplace_back(input, 0);
    }
  }
  return order;
}

// The sum of the gradients that reach a node. The first may be somebody else's too: a backward
// function may have handed the same tensor to several inputs.
struct GradientSum {
  Tensor value;
  bool is_own = false;

  void add(const Tensor& term) {
    if (!value.defined()) {
      value = term;
    } else if (is_own) {
      emit(op::Accumulate{in(term), inout(value)});
    } else {
      value = sinter::add(value, term);
      is_own = true;
    }
  }
};

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

LeafWatch* exchange_leaf_watch(LeafWatch* watch) { return std::exchange(leaf_watch, watch); }

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

namespace {

std::shared_ptr<Node> make_node(const char* op, const Tensor& result,
                                const std::vector<Tensor>& inputs, BackwardFn backward) {
  require<DtypeError>(is_floating(result.dtype()), op,
                      ": expected a floating result to differentiate, got ", result.dtype());
  auto node = std::make_shared<Node>(op, result);
  node->inputs.reserve(inputs.size());
  for (const Tensor& input : inputs) node->inputs.push_back(input.node());
  node->backward = std::move(backward);
  if (Recorder* const recorder = Recorder::of_this_thread()) {
    node->module = recorder->origin.module;
    recorder->made_node(node);
  }
  return node;
}

void watch(const char* op, const Tensor& input) {
  if (leaf_watch != nullptr && input.requires_grad() && input.is_leaf() && !input.listed())
    leaf_watch->unlisted(op, input);
}

}  // namespace

Tensor record(const char* op, const Tensor& y, const std::vector<Tensor>& inputs,
              BackwardFn backward) {
  if (anomaly_mode) check_finite(y, "the result of ", op);
  bool needed = false;
  for (const Tensor& input : inputs) needed = needed || input.requires_grad();
  // A result is no view, even if it was made by looking at a temporary in another shape.
  if (!grad_mode || !needed) return y.requires_grad() || y.is_view() ? y.detach() : y;
  for (const Tensor& input : inputs) watch(op, input);
  return y.with_node(make_node(op, y, inputs, std::move(backward)));
}

bool collects_gradient(const Tensor& tensor) { return tensor.collects_gradient(); }

// requires_grad, of which no recording hears.
bool Tensor::collects_gradient() const { return impl_->node != nullptr && !impl_->node->frozen; }

bool Tensor::requires_grad_is_set() const { return impl_->node != nullptr; }
bool Tensor::listed() const { return impl_ && impl_->listed.load(std::memory_order_relaxed); }
void Tensor::set_listed() const { impl_->listed.store(true, std::memory_order_relaxed); }

// ---- views and changes in place -----------------------------------------------------------------

namespace {

// A result that is elements [offset, offset + its own) of `from`, and computes nothing.
std::shared_ptr<Node> view_node(const char* op, const Tensor& result, const Tensor& from,
                                int64_t offset) {
  return make_node(op, result, {from}, [shape = from.shape(), offset](const Tensor& dy) {
    if (dy.numel() == shape.numel()) return Grads{dy.reshape(shape)};
    const Tensor dx = zeros(shape, dy.options());
    dx.reshape({-1}).narrow(0, offset, dy.numel()).copy_(dy.reshape({-1}));
    return Grads{dx};
  });
}

}  // namespace

Tensor Tensor::view(const char* op, const Shape& shape, int64_t offset) const {
  Tensor t(std::make_shared<Impl>(
      impl_->storage, impl_->start + offset * static_cast<int64_t>(size_of(impl_->dtype)), shape,
      impl_->dtype));
  t.impl_->base = impl_->base ? impl_->base : impl_;
  t.impl_->offset = impl_->offset + offset;
  t.impl_->made_in_grad_mode = grad_mode && impl_->made_in_grad_mode;
  t.impl_->seen = t.impl_->base->changes.load();
  if (grad_mode && requires_grad()) {
    watch(op, *this);
    t.impl_->node = view_node(op, t, *this, offset);
  }
  return t;
}

const std::shared_ptr<Node>& Tensor::node() const {
  static const std::shared_ptr<Node> none;
  if (Recorder* const recorder = Recorder::of_this_thread(); recorder != nullptr && impl_)
    recorder->asked(*this);
  if (!impl_ || (impl_->node && impl_->node->frozen)) return none;
  Impl& t = *impl_;
  if (t.base && t.base->storage == t.storage && t.made_in_grad_mode &&
      t.seen.load(std::memory_order_acquire) != t.base->changes.load(std::memory_order_acquire)) {
    static std::mutex mutex;  // threads may read the same view
    const std::lock_guard lock(mutex);
    const uint64_t changes = t.base->changes.load();
    if (t.seen.load() != changes) {
      t.node = view_node("view", detach(), Tensor(t.base), t.offset);
      t.seen.store(changes, std::memory_order_release);
    }
  }
  return t.node;
}

// What has the place in the graph: a view's base, as long as it is one.
Tensor Tensor::in_place_base() const {
  const std::shared_ptr<Impl>& base = impl_->base;
  return base && base->storage == impl_->storage ? Tensor(base) : *this;
}

bool Tensor::records_in_place(const char* op, const Tensor& source) const {
  if (!grad_mode) return false;
  const Tensor base = in_place_base();
  // A view of a leaf, even of one that is frozen now, may carry the leaf's node.
  require<GradError>(!base.is_leaf() || !(base.requires_grad() || requires_grad()), op,
                     ": a leaf that requires grad, of shape ", base.shape(),
                     ", cannot be changed in place while operators are recorded; put a no_grad "
                     "around the change, or change detach()");
  if (!is_floating(impl_->dtype) || !(base.requires_grad() || source.requires_grad())) return false;
  require<GradError>(impl_->made_in_grad_mode, op,
                     ": this view was made under no_grad, and so its change in place would be "
                     "hidden from the graph of what it is a view of; change it under no_grad too, "
                     "or make it while operators are recorded");
  return true;
}

void Tensor::record_in_place(const char* op, const Tensor& source) const {
  const Tensor base = in_place_base();
  // What was overwritten has no influence any more; the source has that of its elements.
  base.impl_->node = make_node(
      op, base.detach(), {base, source},
      [offset = base.is(*this) ? 0 : impl_->offset, part = impl_->shape,
       need_base = base.requires_grad(), need_source = source.requires_grad(),
       from = source.defined() ? source.options() : TensorOptions()](const Tensor& dy) {
        const auto changed = [&](const Tensor& t) {
          return t.reshape({-1}).narrow(0, offset, part.numel());
        };
        Grads grads(2);
        if (need_base) {
          grads[0] = part.numel() == dy.numel() ? zeros(dy.shape(), dy.options()) : dy.clone();
          changed(grads[0]).fill_(0);
        }
        if (need_source) grads[1] = changed(dy).reshape(part).to(from.dtype).to(from.device);
        return grads;
      });
  base.impl_->changes.fetch_add(1, std::memory_order_acq_rel);
}

// -------------------------------------------------------------------------------------------------

std::vector<RecordedOp> recorded_ops(const Tensor& y) {
  std::vector<RecordedOp> ops;
  if (!y.requires_grad()) return ops;
  for (const Node* node : topological_order({y.node().get()})) {
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

const Tensor& Tensor::set_requires_grad(bool value) const {
  require<GradError>(is_leaf(),
                     "set_requires_grad: expected a leaf, got the result of a recorded operator; "
                     "use detach()");
  const bool can = defined() && is_floating(dtype());
  if (!value && !can) return *this;
  require<DtypeError>(can, "set_requires_grad: expected float32 or float64, got ",
                      defined() ? name(dtype()) : "an undefined tensor");
  if (!impl_->node) impl_->node = std::make_shared<Node>(nullptr, detach());
  impl_->node->frozen = !value;
  if (value)
    impl_->base = nullptr;  // a leaf of its own now, no longer part of another tensor's graph
  return *this;
}

bool Tensor::is_leaf() const { return !node() || node()->is_leaf(); }

void Tensor::set_data(const Tensor& data) const {
  require<ValueError>(defined() && data.defined(),
                      "set_data: expected two tensors, got an undefined one");
  require<GradError>(is_leaf(), "set_data: expected a leaf, got the result of a recorded operator");
  require<ShapeError>(data.shape() == shape(), "set_data: expected a tensor of shape ", shape(),
                      ", got ", data.shape());
  impl_->storage = data.impl_->storage;
  impl_->start = data.impl_->start;
  impl_->dtype = data.impl_->dtype;
  impl_->base = nullptr;
  if (!impl_->node) return;
  // The same leaf: a graph recorded before, whose gradient is of the old kind, throws.
  impl_->node->options = data.options();
  impl_->node->set_grad({});
}

Tensor Tensor::grad() const {
  return impl_ && impl_->node && is_leaf() ? impl_->node->get_grad() : Tensor();
}

void Tensor::set_grad(const Tensor& grad) const {
  if (!grad.defined() && is_leaf()) {  // also of a leaf that is frozen, or never had one
    if (impl_ && impl_->node) impl_->node->set_grad({});
    return;
  }
  require<GradError>(node() && node()->is_leaf(), "set_grad: expected a leaf that requires grad");
  check_grad(grad, *node(), "set_grad");
  node()->set_grad(grad.detach());
}

// ---- backward passes ----------------------------------------------------------------------------

namespace {

// What a hook makes of a gradient.
Tensor hooked(const Node& node, Tensor dy) {
  const auto hooks = node.hooks->list;  // one may remove itself
  for (const auto& hook : hooks) {
    Tensor replaced = (*hook)(dy);
    if (!replaced.defined()) continue;
    check_grad(replaced, node, "a hook");
    dy = replaced.detach();
  }
  return dy;
}

// The gradient with respect to one node's result, for grad().
using Wanted = std::unordered_map<const Node*, Tensor>;

// From `roots`, each with the gradient of its result, to the leaves, whose gradients add up; or,
// with `wanted`, to these nodes alone, whose gradients it receives.
void run_backward(const std::vector<std::pair<Node*, Tensor>>& roots, bool retain_graph,
                  Wanted* wanted) {
  const no_grad guard;  // derivatives are not themselves recorded
  std::vector<Node*> nodes;
  for (const auto& [node, gradient] : roots) nodes.push_back(node);
  const std::vector<Node*> order = topological_order(nodes);
  std::unordered_set<const Node*> needed;  // of `wanted`: these, and what lies before them
  if (wanted != nullptr) {
    for (const Node* node : order) {
      const bool leads = std::any_of(node->inputs.begin(), node->inputs.end(),
                                     [&](const auto& i) { return needed.contains(i.get()); });
      // What lies before one that was freed is not known.
      if (leads || node->freed || wanted->contains(node)) needed.insert(node);
    }
  }
  const auto is_needed = [&](const Node* node) {
    return node != nullptr && (wanted == nullptr || needed.contains(node));
  };
  std::unordered_map<Node*, GradientSum> grads;  // of results, until their node is reached
  grads.reserve(order.size());
  for (const auto& [node, gradient] : roots) grads[node].add(gradient);
  Recorder* const recorder = Recorder::of_this_thread();

  // Freeing a node's edges may drop the last owner of nodes still to come: they are kept until the
  // end.
  std::vector<std::shared_ptr<Node>> kept;
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    Node& node = **it;
    const auto found = grads.find(&node);
    if (found == grads.end()) continue;  // no gradient flows here
    Tensor dy = std::move(found->second.value);
    grads.erase(found);
    if (!is_needed(&node) || (node.is_leaf() && node.frozen)) continue;
    if (node.hooks) dy = hooked(node, std::move(dy));

    // A gradient that others can see (a view, the caller's) is copied for its owner, a leaf or the
    // caller of grad(), who may change it.
    const auto own = [](const Tensor& t) { return t.shares_storage() ? t.clone() : t; };
    if (wanted != nullptr) {
      const auto w = wanted->find(&node);
      if (w != wanted->end()) w->second = own(dy);
      const bool leads = std::any_of(node.inputs.begin(), node.inputs.end(),
                                     [&](const auto& input) { return is_needed(input.get()); });
      if (!leads && (!node.freed || (w != wanted->end() && wanted->size() == 1))) continue;
    } else if (node.is_leaf()) {
      if (const Tensor grad = node.get_grad(); grad.defined())
        emit(op::Accumulate{in(dy), inout(grad)});
      else
        node.set_grad(own(dy));
      continue;
    }
    require<GradError>(!node.freed, "backward: the graph of ", node.op,
                       " was freed by an earlier backward pass; pass retain_graph = true to the "
                       "first to run a second");
    require<GraphError>(
        recorder == nullptr || recorder->made(&node), "backward of ", node.op,
        ": it was recorded outside of the compiled function, which cannot go "
        "through it again at every call; move its forward pass inside, or detach()");
    const OriginScope origin({node.module, node.op});
    Grads dx = node.backward(dy);
    dy = Tensor();
    require<GradError>(dx.size() == node.inputs.size(), "backward of ", node.op, ": expected ",
                       node.inputs.size(), " gradients, one for each input, got ", dx.size());
    for (size_t i = 0; i < dx.size(); ++i) {
      Node* input = node.inputs[i].get();
      if (!is_needed(input) || !dx[i].defined()) continue;
      check_grad(dx[i], *input, node.op);
      if (anomaly_mode) check_finite(dx[i], "the gradient of ", node.op, " for its input ", i);
      grads[input].add(std::exchange(dx[i], {}));
    }
    if (!retain_graph) {
      node.freed = true;
      node.backward = nullptr;
      for (auto& input : node.inputs) {
        if (input) kept.push_back(std::move(input));
      }
      node.inputs.clear();
    }
  }
}

// Where a pass begins: what it is given for y, or 1.
Tensor first_gradient(const char* op, const Tensor& y, const Tensor& given) {
  if (given.defined()) {
    check_grad(given, *y.node(), "the call");
    return given.detach();
  }
  require<GradError>(y.numel() == 1, op, ": expected a tensor of one element, got shape ",
                     y.shape(), "; pass the gradient with respect to it, or reduce it first");
  return ones(y.shape(), y.options());
}

}  // namespace

void Tensor::backward(bool retain_graph) const {
  require_defined("backward", "the loss", *this);
  const Tensor one = first_gradient("backward", *this, {});
  check_differentiable();
  run_backward({{node().get(), one}}, retain_graph, nullptr);
}

void Tensor::backward(const Tensor& gradient, bool retain_graph) const {
  check_differentiable();
  require<GradError>(gradient.defined(), "backward: undefined gradient");
  run_backward({{node().get(), first_gradient("backward", *this, gradient)}}, retain_graph,
               nullptr);
}

void Tensor::check_differentiable() const {
  require<GradError>(requires_grad(),
                     "backward: this tensor does not require grad: no input of its operators does, "
                     "or they ran under no_grad");
}

std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs,
                         const GradOptions& options) {
  require<ValueError>(!outputs.empty() && !inputs.empty(),
                      "grad: expected outputs and inputs, got ", outputs.size(), " and ",
                      inputs.size());
  require<ValueError>(options.grad_outputs.empty() || options.grad_outputs.size() == outputs.size(),
                      "grad: expected one of grad_outputs for each of ", outputs.size(),
                      " outputs, got ", options.grad_outputs.size());
  const auto require_differentiable = [](const char* which, size_t i, const Tensor& t) {
    require<GradError>(t.defined() && t.requires_grad(), "grad: ", which, ' ', i, ", of shape ",
                       ShapeOf{t}, ", does not require grad");
  };
  std::vector<std::shared_ptr<Node>> owners;  // of roots and inputs, while the graph is freed
  std::vector<std::pair<Node*, Tensor>> roots;
  for (size_t i = 0; i < outputs.size(); ++i) {
    require_differentiable("output", i, outputs[i]);
    const Tensor given = options.grad_outputs.empty() ? Tensor() : options.grad_outputs[i];
    owners.push_back(outputs[i].node());
    roots.emplace_back(owners.back().get(), first_gradient("grad", outputs[i], given));
  }
  Wanted wanted;
  for (size_t i = 0; i < inputs.size(); ++i) {
    require_differentiable("input", i, inputs[i]);
    owners.push_back(inputs[i].node());
    wanted.emplace(owners.back().get(), Tensor());
  }
  run_backward(roots, options.retain_graph, &wanted);
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < inputs.size(); ++i) {
    gradients.push_back(wanted.at(owners[outputs.size() + i].get()));
    require<GradError>(gradients.back().defined() || options.allow_unused, "grad: input ", i,
                       ", of shape ", inputs[i].shape(),
                       ", is not used by the outputs; pass allow_unused = true to get an "
                       "undefined gradient");
  }
  return gradients;
}

HookHandle Tensor::register_hook(std::function<Tensor(const Tensor&)> hook) const {
  require_defined("register_hook", "the tensor", *this);
  require<ValueError>(hook != nullptr, "register_hook: expected a function, got null");
  const std::shared_ptr<Node>& node = this->node();
  require<GradError>(node != nullptr, "register_hook: this tensor, of shape ", shape(),
                     ", does not require grad");
  if (!node->hooks) node->hooks = std::make_unique<Node::Hooks>();
  auto own = std::make_shared<const std::function<Tensor(const Tensor&)>>(std::move(hook));
  node->hooks->list.push_back(own);
  ++node->hooks->version;
  return HookHandle([from = std::weak_ptr(node), wanted = std::weak_ptr(own)] {
    const auto node = from.lock();
    if (node == nullptr) return;
    std::erase(node->hooks->list, wanted.lock());
    ++node->hooks->version;
  });
}

}  // namespace sinter
