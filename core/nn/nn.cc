#include "sinter/nn.h"

#include <cxxabi.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <ostream>
#include <unordered_map>
#include <unordered_set>

#include "core/autograd/leaf_use.h"
#include "core/base/detail.h"
#include "core/nn/repr.h"
#include "core/program/recorder.h"
#include "sinter/random.h"

namespace sinter {
namespace {

// A visit of modules within modules, under way on this thread: one that lists itself, or one that
// holds it, would have no end.
class Visit {
 public:
  explicit Visit(const Module& module) {
    if (depth >= 1000) {
      throw ValueError(str(module.type_name(),
                           ": modules within modules, a thousand deep: does one list itself?"));
    }
    ++depth;
  }
  ~Visit() { --depth; }
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;

 private:
  static thread_local int depth;
};
thread_local int Visit::depth = 0;

// Calls on_tensor(full name, tensor, is parameter) for every tensor of a module and its children.
template <class OnTensor> class Walk : public Visitor {
 public:
  Walk(OnTensor on_tensor, std::string prefix)
      : on_tensor_(on_tensor), prefix_(std::move(prefix)) {}
  void parameter(const std::string& name, Tensor& tensor) override {
    if (tensor.defined()) on_tensor_(prefix_ + name, tensor, true);
  }
  void buffer(const std::string& name, Tensor& tensor) override {
    if (tensor.defined()) on_tensor_(prefix_ + name, tensor, false);
  }
  void module(const std::string& name, Module& child) override {
    const Visit visit(child);
    Walk walk(on_tensor_, prefix_ + name + ".");
    child.visit(walk);
  }

 private:
  OnTensor on_tensor_;
  std::string prefix_;
};

template <class OnTensor> void walk(Module& module, OnTensor on_tensor) {
  Walk<OnTensor> visitor(on_tensor, "");
  module.visit(visitor);
}

// A parameter drawn from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
Tensor parameter(const Shape& shape, int64_t fan_in) {
  Tensor t = empty(shape);
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0;
  uniform_(t, -bound, bound);
  return t.set_requires_grad();
}

}  // namespace

// ---- calls --------------------------------------------------------------------------------------

namespace {

// Calls f(name, child) for the children of a module, in their order, until f returns true.
template <class F> bool any_child(Module& module, const F& f) {
  const Visit visit(module);
  class Children : public Visitor {
   public:
    explicit Children(const F& f) : f_(f) {}
    void parameter(const std::string&, Tensor&) override {}
    void buffer(const std::string&, Tensor&) override {}
    void module(const std::string& name, Module& child) override {
      found = found || f_(name, child);
    }
    bool found = false;

   private:
    const F& f_;
  } children(f);
  module.visit(children);
  return children.found;
}

// Whether `wanted` is among the children of a module, theirs, and so on; and by which names.
bool lists(Module& module, const void* wanted, std::string* path = nullptr) {
  return any_child(module, [&](const std::string& name, Module& child) {
    const bool found = &child == wanted || lists(child, wanted, path);
    if (found && path != nullptr) *path = path->empty() ? name : name + "." + *path;
    return found;
  });
}

bool has_tensors(Module& module) {
  bool found = false;
  walk(module, [&](const std::string&, Tensor&, bool) { found = true; });
  return found;
}

}  // namespace

// A forward under way on this thread. The outermost one watches for parameters that nobody lists.
class ForwardCall : private LeafWatch {
 public:
  // apart: as if it were the outermost.
  ForwardCall(Module& module, const Tensor& x, bool apart)
      : module_(module), x_(x), outer_(innermost), outermost_(apart || outer_ == nullptr) {
    if (!outermost_) unlisted_ = !require_listed(outer_->module_, module);
    if (outermost_) watch_before_ = exchange_leaf_watch(this);
    innermost = this;
    if (Recorder* const recorder = Recorder::of_this_thread()) origin_.emplace(origin(*recorder));
  }
  ~ForwardCall() override {
    if (outermost_) exchange_leaf_watch(watch_before_);
    innermost = outer_;
  }
  ForwardCall(const ForwardCall&) = delete;
  ForwardCall& operator=(const ForwardCall&) = delete;

  // Before `parent` uses `child`, in whatever way. False for one that is not listed and need not
  // be, as long as it does not ask for its mode: it has no tensors.
  static bool require_listed(Module& parent, Module& child) {
    Module::KnownParent& known = child.known_parent_;
    const uint64_t id = parent.serial_.number;
    if (known.lists.load(std::memory_order_relaxed) == id) return true;
    if (known.forgets.load(std::memory_order_relaxed) == id) return false;
    if (&parent == &child || lists(parent, &child)) {
      known.lists.store(id, std::memory_order_relaxed);
      return true;
    }
    if (has_tensors(child)) refuse(parent, child);
    known.forgets.store(id, std::memory_order_relaxed);
    return false;
  }

  // Of a module that asks for its mode.
  static void require_mode(const Module& module) {
    if (innermost != nullptr && innermost->unlisted_ && &innermost->module_ == &module)
      refuse(innermost->outer_->module_, module);
  }

 private:
  [[noreturn]] static void refuse(const Module& parent, const Module& child) {
    throw ValueError(str(parent.type_name(), ": its forward calls ", child.type_name(),
                         ", which its visit does not list: it would not be trained, moved, saved "
                         "or put into eval mode; add v.module(\"…\", …) to the visit of ",
                         parent.type_name(), ", or use call_apart if it is to stay outside"));
  }

  void unlisted(const char* op, const Tensor& leaf) override {
    if (leaf.is(x_)) return;
    (void)module_.named_parameters();  // marks what it finds as listed
    if (leaf.listed()) return;
    const std::string user = innermost->module_.type_name();
    throw ValueError(str(user, ": its forward hands ", op, " a tensor of shape ", leaf.shape(),
                         " that requires grad and that no visit lists: it would not be trained, "
                         "moved or saved; add v.parameter(\"…\", …) to the visit of ",
                         user, ", or detach() it if it is to stay outside"));
  }

  // Of what this module emits: its path from the outermost one.
  Origin origin(const Recorder& recorder) const {
    if (outermost_) return {std::make_shared<std::string>(), nullptr};
    std::string path;
    if (!lists(outer_->module_, &module_, &path)) path = module_.type_name();
    const std::shared_ptr<const std::string>& outer = recorder.origin.module;
    if (outer != nullptr && !outer->empty()) path = *outer + "." + path;
    return {std::make_shared<std::string>(path), nullptr};
  }

  Module& module_;
  const Tensor& x_;
  ForwardCall* outer_;
  const bool outermost_;
  bool unlisted_ = false;
  LeafWatch* watch_before_ = nullptr;
  std::optional<OriginScope> origin_;
  static thread_local ForwardCall* innermost;
};
thread_local ForwardCall* ForwardCall::innermost = nullptr;

bool Module::is_training() const {
  ForwardCall::require_mode(*this);
  if (Recorder* const recorder = Recorder::of_this_thread()) recorder->asked_mode(mode_.training);
  return *mode_.training;
}

uint64_t Module::Serial::next() {
  static std::atomic<uint64_t> numbers{0};
  return ++numbers;
}

Tensor Module::operator()(const Tensor& x) { return call(x, false); }
Tensor Module::call_apart(const Tensor& x) { return call(x, true); }

Tensor Module::call(const Tensor& x, bool apart) {
  const ForwardCall call(*this, x, apart);
  try {
    return forward(x);
  } catch (Error& error) {
    // A module does not know its own name: whoever called it looks it up among its children, and
    // only now.
    std::string path;
    if (error.origin() != nullptr && lists(*this, error.origin(), &path)) error.prepend(path);
    error.set_origin(this);
    throw;
  }
}

// ---- tensors of a module ------------------------------------------------------------------------

namespace {

// The tensors for which keep(is parameter) holds, each under its first name.
template <class Keep> NamedTensors once_each(Module& module, const Keep& keep) {
  NamedTensors result;
  std::unordered_set<const void*> seen;
  walk(module, [&](const std::string& name, Tensor& tensor, bool trained) {
    if (trained) {
      if (!tensor.is_leaf()) {
        throw GradError(str(module.type_name(), ": parameter ", name,
                            " is the result of a recorded operator; assign its detach(), or set "
                            "its values under no_grad"));
      }
      if (!tensor.requires_grad_is_set() && is_floating(tensor.dtype())) tensor.set_requires_grad();
      tensor.set_listed();
    }
    if (keep(trained) && seen.insert(tensor.identity()).second) result.emplace_back(name, tensor);
  });
  return result;
}

// Puts convert(tensor) in the place of every tensor, or of none if one of them throws.
template <class Convert> void replace_tensors(Module& module, const Convert& convert) {
  NamedTensors tensors = once_each(module, [](bool) { return true; });
  std::vector<Tensor> converted;
  for (const auto& [name, tensor] : tensors) converted.push_back(convert(tensor.detach()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (converted[i].place() != tensors[i].second.place()) tensors[i].second.set_data(converted[i]);
  }
}

}  // namespace

NamedTensors Module::named_parameters() {
  return once_each(*this, [](bool trained) { return trained; });
}

std::vector<Tensor> Module::parameters() {
  std::vector<Tensor> result;
  for (auto& [name, tensor] : named_parameters()) result.push_back(tensor);
  return result;
}

NamedTensors Module::named_buffers() {
  return once_each(*this, [](bool trained) { return !trained; });
}

NamedTensors Module::state_dict() {
  NamedTensors result;
  walk(*this, [&](const std::string& name, Tensor& tensor, bool) {
    result.emplace_back(name, tensor.detach());
  });
  return result;
}

StateKeys Module::load_state_dict(const NamedTensors& state, const LoadOptions& options) {
  return copy_state("load_state_dict", state_dict(), state, options.strict);
}

Module& Module::to(Device device) {
  require_usable(device);
  replace_tensors(*this, [&](const Tensor& tensor) { return tensor.to(device); });
  return *this;
}

Module& Module::to(DType dtype) {
  require<DtypeError>(is_floating(dtype), "to: expected float32 or float64 for a module, got ",
                      dtype);
  replace_tensors(*this, [&](const Tensor& tensor) {
    return is_floating(tensor.dtype()) ? tensor.to(dtype) : tensor;
  });
  return *this;
}

Module& Module::set_requires_grad(bool value) {
  for (const Tensor& parameter : parameters()) parameter.set_requires_grad(value);
  return *this;
}

void Module::zero_grad() {
  for (const Tensor& parameter : parameters()) parameter.set_grad({});
}

void Module::train(bool on) {
  if (Recorder* const recorder = Recorder::of_this_thread()) recorder->sets_mode(mode_.training);
  *mode_.training = on;
  any_child(*this, [&](const std::string&, Module& child) {
    child.train(on);
    return false;
  });
}

void refuse_to_slice(const char* op, const Module& module) {
  throw ValueError(str(op, ": expected a module by its own type, got a ", module.type_name(),
                       " by the type of its base, which is what a copy would be"));
}

void own_tensors(Module& copy, const Module& original) {
  // visit is for callers that change what it hands out, too.
  auto& from = const_cast<Module&>(original);
  const auto require_own = [&](auto&& self, Module& module) -> void {
    any_child(module, [&](const std::string& name, Module& child) {
      require<ValueError>(!lists(from, &child), "clone: a copy of ", original.type_name(),
                          " shares the module ", name, " (", child.type_name(),
                          ") with it: hold it as a member or in a Sequential, not by a pointer");
      self(self, child);
      return false;
    });
  };
  require_own(require_own, copy);
  std::unordered_map<const void*, Tensor> owned;  // by the original's, which outlives this
  walk(copy, [&](const std::string&, Tensor& tensor, bool) {
    Tensor& own = owned[tensor.identity()];
    if (!own.defined()) {
      own = tensor.detach().clone();
      if (tensor.requires_grad_is_set()) own.set_requires_grad(tensor.requires_grad());
      owned[own.identity()] = own;  // where the same place is listed twice
    }
    tensor = own;
  });
}

// ---- printing -----------------------------------------------------------------------------------

std::string Module::type_name() const {
  int status = 0;
  char* text = abi::__cxa_demangle(typeid(*this).name(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : typeid(*this).name();
  std::free(text);
  // Without the namespaces, or the function, that it is declared in; template arguments stay.
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i + 1 < name.size(); ++i) {
    depth += (name[i] == '<' || name[i] == '(') - (name[i] == '>' || name[i] == ')');
    if (depth == 0 && name[i] == ':' && name[i + 1] == ':') begin = i + 2;
  }
  return name.substr(begin);
}

std::ostream& operator<<(std::ostream& out, const Module& module) {
  const auto indented = [](const std::string& text) {
    std::string result;
    for (const char c : text) result += c == '\n' ? std::string("\n  ") : std::string(1, c);
    return result;
  };
  std::string children;
  any_child(const_cast<Module&>(module), [&](const std::string& name, Module& child) {
    children += str("\n  (", name, "): ", indented(str(child)));
    return false;
  });
  const std::string own = module.extra_repr();
  out << module.type_name() << '(';
  if (children.empty()) return out << own << ')';
  return out << (own.empty() ? "" : "\n  ") << own << children << "\n)";
}

std::string Conv2d::extra_repr() const {
  const auto different = [](Pair p, int usual) { return p.h != usual || p.w != usual; };
  std::string text = str(weight.size(1) * options_.groups, ", ", weight.size(0), ", kernel_size=",
                         repr({static_cast<int>(weight.size(2)), static_cast<int>(weight.size(3))}),
                         ", stride=", repr(options_.stride));
  if (different(options_.padding, 0)) text += ", padding=" + repr(options_.padding);
  if (different(options_.dilation, 1)) text += ", dilation=" + repr(options_.dilation);
  if (options_.groups != 1) text += str(", groups=", options_.groups);
  if (!bias.defined()) text += ", bias=False";
  return text;
}
std::string Linear::extra_repr() const {
  return str("in_features=", weight.size(1), ", out_features=", weight.size(0),
             ", bias=", bias.defined() ? "True" : "False");
}
std::string Flatten::extra_repr() const { return str("start_dim=", first_, ", end_dim=", last_); }

// ---- layers -------------------------------------------------------------------------------------

Conv2d::Conv2d(int in_channels, int out_channels, Pair kernel_size, const Options& options)
    : options_{options.stride, options.padding, options.dilation, options.groups} {
  require<ValueError>(in_channels >= 1 && out_channels >= 1 && kernel_size.h >= 1 &&
                          kernel_size.w >= 1 && options.groups >= 1 &&
                          in_channels % options.groups == 0 && out_channels % options.groups == 0,
                      "Conv2d: expected positive channels and kernel, and groups dividing the "
                      "channels, got ",
                      in_channels, ", ", out_channels, ", (", kernel_size.h, ", ", kernel_size.w,
                      "), groups = ", options.groups);
  const int64_t c = in_channels / options.groups;
  const int64_t fan_in = c * kernel_size.h * kernel_size.w;
  weight = sinter::parameter({out_channels, c, kernel_size.h, kernel_size.w}, fan_in);
  if (options.bias) bias = sinter::parameter({out_channels}, fan_in);
}

Tensor Conv2d::forward(const Tensor& x) { return conv2d(x, weight, bias, options_); }

void Conv2d::visit(Visitor& v) {
  v.parameter("weight", weight);
  v.parameter("bias", bias);
}

Linear::Linear(int in_features, int out_features, bool with_bias) {
  require<ValueError>(in_features >= 1 && out_features >= 1,
                      "Linear: expected positive features, got ", in_features, " and ",
                      out_features);
  weight = sinter::parameter({out_features, in_features}, in_features);
  if (with_bias) bias = sinter::parameter({out_features}, in_features);
}

void Linear::visit(Visitor& v) {
  v.parameter("weight", weight);
  v.parameter("bias", bias);
}

// ---- sequences ----------------------------------------------------------------------------------

Tensor run_sequence(const Tensor& x, std::span<Module* const> modules) {
  require<ValueError>(std::find(modules.begin(), modules.end(), nullptr) == modules.end(),
                      "run_sequence: expected modules, got null");
  Tensor y = x;
  for (Module* module : modules) y = (*module)(y);
  return y;
}

Sequential::Sequential(const Sequential& other) : Module(other) {
  for (const Child& child : other.children_) {
    std::shared_ptr<Module> copy = child.copy ? child.copy(*child.module) : nullptr;
    require<ValueError>(copy != nullptr, "Sequential: cannot copy child ", children_.size(), ", ",
                        child.module->type_name(),
                        ": it has no copy constructor, or was appended by a pointer to its base");
    children_.push_back({std::move(copy), child.copy});
  }
}

Sequential& Sequential::operator=(const Sequential& other) { return *this = Sequential(other); }

Sequential& Sequential::add(Child child) {
  require<ValueError>(child.module != nullptr, "Sequential: append: expected a module, got null");
  require<ValueError>(child.module.get() != this && !lists(*child.module, this),
                      "Sequential: append: expected another module, got one that holds this one");
  children_.push_back(std::move(child));
  return *this;
}

Module& Sequential::operator[](size_t i) {
  require<ValueError>(i < children_.size(), "Sequential: no child ", i, " among ",
                      children_.size());
  return *children_[i].module;
}

Tensor Sequential::forward(const Tensor& x) {
  std::vector<Module*> modules;
  modules.reserve(children_.size());
  for (const Child& child : children_) modules.push_back(child.module.get());
  return run_sequence(x, modules);
}

void Sequential::visit(Visitor& v) {
  for (size_t i = 0; i < children_.size(); ++i) v.module(std::to_string(i), *children_[i].module);
}

}  // namespace sinter
