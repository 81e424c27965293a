#include "sinter/nn/module.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <ostream>
#include <unordered_map>
#include <unordered_set>

#include "core/autograd/leaf_use.h"
#include "core/base/detail.h"
#include "core/io/file.h"
#include "core/nn/children.h"
#include "core/program/recorder.h"

namespace sinter {
namespace {

// A visit of modules within modules, under way on this thread: one that lists itself, or one that
// holds it, would have no end.
class Visit {
 public:
  explicit Visit(const ModuleBase& module) {
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
  void module(const std::string& name, ModuleBase& child) override {
    const Visit visit(child);
    Walk walk(on_tensor_, prefix_ + name + ".");
    child.visit(walk);
  }

 private:
  OnTensor on_tensor_;
  std::string prefix_;
};

template <class OnTensor> void walk(ModuleBase& module, OnTensor on_tensor) {
  Walk<OnTensor> visitor(on_tensor, "");
  module.visit(visitor);
}

}  // namespace

// ---- calls --------------------------------------------------------------------------------------

namespace {

// Calls f(name, child) for the children of a module, in their order, until f returns true.
template <class F> bool any_child(ModuleBase& module, const F& f) {
  const Visit visit(module);
  class Children : public Visitor {
   public:
    explicit Children(const F& f) : f_(f) {}
    void parameter(const std::string&, Tensor&) override {}
    void buffer(const std::string&, Tensor&) override {}
    void module(const std::string& name, ModuleBase& child) override {
      found = found || f_(name, child);
    }
    bool found = false;

   private:
    const F& f_;
  } children(f);
  module.visit(children);
  return children.found;
}

}  // namespace

bool lists(ModuleBase& module, const void* wanted, std::string* path) {
  return any_child(module, [&](const std::string& name, ModuleBase& child) {
    const bool found = &child == wanted || lists(child, wanted, path);
    if (found && path != nullptr) *path = path->empty() ? name : name + "." + *path;
    return found;
  });
}

namespace {

bool has_tensors(ModuleBase& module) {
  bool found = false;
  walk(module, [&](const std::string&, Tensor&, bool) { found = true; });
  return found;
}

}  // namespace

// A forward under way on this thread. The outermost one watches for parameters that nobody lists.
class ForwardCall : private LeafWatch {
 public:
  // apart: as if it were the outermost.
  ForwardCall(ModuleBase& module, std::span<const Tensor* const> inputs, bool apart)
      : module_(module),
        inputs_(inputs),
        outer_(innermost),
        outermost_(apart || outer_ == nullptr) {
    if (!outermost_) unlisted_ = !require_listed(outer_->module_, module);
    if (outermost_) watch_before_ = exchange_leaf_watch(this);
    innermost = this;
    if (Recorder* const recorder = Recorder::of_this_thread()) {
      origin_.emplace(origin(*recorder));
      const std::shared_ptr<ModuleBase::State>& state = module.state_.shared;
      recorder->asked_version({state, &state->version});
    }
  }
  ~ForwardCall() override {
    if (outermost_) exchange_leaf_watch(watch_before_);
    innermost = outer_;
  }
  ForwardCall(const ForwardCall&) = delete;
  ForwardCall& operator=(const ForwardCall&) = delete;

  // Before `parent` uses `child`, in whatever way. False for one that is not listed and need not
  // be, as long as it does not ask for its mode: it has no tensors.
  static bool require_listed(ModuleBase& parent, ModuleBase& child) {
    ModuleBase::KnownParent& known = child.known_parent_;
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
  static void require_mode(const ModuleBase& module) {
    if (innermost != nullptr && innermost->unlisted_ && &innermost->module_ == &module)
      refuse(innermost->outer_->module_, module);
  }

 private:
  [[noreturn]] static void refuse(const ModuleBase& parent, const ModuleBase& child) {
    throw ValueError(str(parent.type_name(), ": its forward calls ", child.type_name(),
                         ", which its visit does not list: it would not be trained, moved, saved "
                         "or put into eval mode; add v.module(\"…\", …) to the visit of ",
                         parent.type_name(), ", or use call_apart if it is to stay outside"));
  }

  void unlisted(const char* op, const Tensor& leaf) override {
    for (const Tensor* input : inputs_)
      if (leaf.is(*input)) return;
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

  ModuleBase& module_;
  std::span<const Tensor* const> inputs_;
  ForwardCall* outer_;
  const bool outermost_;
  bool unlisted_ = false;
  LeafWatch* watch_before_ = nullptr;
  std::optional<OriginScope> origin_;
  static thread_local ForwardCall* innermost;
};
thread_local ForwardCall* ForwardCall::innermost = nullptr;

bool ModuleBase::is_training() const {
  ForwardCall::require_mode(*this);
  if (Recorder* const recorder = Recorder::of_this_thread())
    recorder->asked_mode({state_.shared, &state_.shared->training});
  return state_.shared->training;
}

uint64_t ModuleBase::Serial::next() {
  static std::atomic<uint64_t> numbers{0};
  return ++numbers;
}

Tensor Module::operator()(const Tensor& x) {
  return call(
      false, [this](const Tensor& input) { return forward(input); }, x);
}
Tensor Module::call_apart(const Tensor& x) {
  return call(
      true, [this](const Tensor& input) { return forward(input); }, x);
}

void ModuleBase::within(bool apart, std::span<const Tensor* const> inputs,
                        const std::function<void()>& run) {
  const ForwardCall call(*this, inputs, apart);
  try {
    run();
  } catch (Error& error) {
    // A module does not know its own name: whoever called it looks it up among its children, and
    // only now.
    std::string path;
    if (error.origin() != nullptr && lists(*this, error.origin(), &path)) error.prepend(path);
    error.set_origin(this);
    throw;
  }
}

// ---- hooks --------------------------------------------------------------------------------------

void ModuleBase::run_pre_hooks(std::vector<Tensor>& inputs) {
  const size_t count = inputs.size();
  const auto hooks = state_.shared->pre_hooks;  // one may remove itself
  for (const auto& hook : hooks) {
    (*hook)(*this, inputs);
    require<ValueError>(inputs.size() == count, "a forward pre-hook of ", type_name(),
                        ": expected ", count, " tensors, as there were, got ", inputs.size());
  }
}

void ModuleBase::run_hooks(const std::vector<Tensor>& inputs, Tensor* output) {
  const auto hooks = state_.shared->hooks;
  require<ValueError>(hooks.empty() || output != nullptr, "a forward hook of ", type_name(),
                      ": expected a forward that returns one tensor");
  for (const auto& hook : hooks)
    if (const Tensor replaced = (*hook)(*this, inputs, *output); replaced.defined())
      *output = replaced;
}

namespace {

// A type's name without the namespaces, or the function, that it is declared in.
std::string unqualified(const std::type_info& type) {
  int status = 0;
  char* text = abi::__cxa_demangle(type.name(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : type.name();
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

// Adds a hook to a list of a module's state.
template <class State, class Hook>
HookHandle add_hook(const char* op, const std::shared_ptr<State>& state,
                    std::vector<std::shared_ptr<const Hook>> State::*list, Hook hook) {
  require<ValueError>(hook != nullptr, op, ": expected a function, got null");
  auto own = std::make_shared<const Hook>(std::move(hook));
  (state.get()->*list).push_back(own);
  ++state->version;
  return HookHandle([from = std::weak_ptr(state), wanted = std::weak_ptr(own), list] {
    const auto state = from.lock();
    if (state == nullptr || wanted.expired()) return;
    std::erase(state.get()->*list, wanted.lock());
    ++state->version;
  });
}

}  // namespace

HookHandle ModuleBase::register_forward_pre_hook(ForwardPreHook hook) {
  return add_hook("register_forward_pre_hook", state_.shared, &State::pre_hooks, std::move(hook));
}
HookHandle ModuleBase::register_forward_hook(ForwardHook hook) {
  return add_hook("register_forward_hook", state_.shared, &State::hooks, std::move(hook));
}

// ---- children -----------------------------------------------------------------------------------

std::vector<std::pair<std::string, ModuleBase*>> ModuleBase::named_children() {
  std::vector<std::pair<std::string, ModuleBase*>> result;
  any_child(*this, [&](const std::string& name, ModuleBase& child) {
    result.emplace_back(name, &child);
    return false;
  });
  return result;
}

std::vector<ModuleBase*> ModuleBase::children() {
  std::vector<ModuleBase*> result;
  for (const auto& [name, child] : named_children()) result.push_back(child);
  return result;
}

std::vector<std::pair<std::string, ModuleBase*>> ModuleBase::named_modules() {
  std::vector<std::pair<std::string, ModuleBase*>> result;
  std::unordered_set<const ModuleBase*> seen;
  const auto add = [&](auto&& self, const std::string& path, ModuleBase& module) -> void {
    if (!seen.insert(&module).second) return;
    result.emplace_back(path, &module);
    any_child(module, [&](const std::string& name, ModuleBase& child) {
      self(self, path.empty() ? name : path + "." + name, child);
      return false;
    });
  };
  add(add, "", *this);
  return result;
}

std::vector<ModuleBase*> ModuleBase::modules() {
  std::vector<ModuleBase*> result;
  for (const auto& [path, module] : named_modules()) result.push_back(module);
  return result;
}

ModuleBase::Found ModuleBase::find(const std::string& path) {
  if (path.empty()) return {*this, nullptr, ""};
  std::optional<Found> found;
  // Names may have dots ("layers.0").
  const auto search = [&](auto&& self, ModuleBase& in, const std::string& rest) -> bool {
    return any_child(in, [&](const std::string& name, ModuleBase& child) {
      if (rest == name) found.emplace(Found{child, &in, name});
      return found ||
             (rest.starts_with(name + ".") && self(self, child, rest.substr(name.size() + 1)));
    });
  };
  if (search(search, *this, path)) return *found;
  std::string known;
  for (const auto& [name, child] : named_children()) known += (known.empty() ? "" : ", ") + name;
  throw ValueError(str(type_name(), ": no module ", in_quotes(path), "; its children are ",
                       known.empty() ? "none" : known));
}

void ModuleBase::refuse_submodule(const char* op, const std::string& path,
                                  const std::type_info& wanted) {
  throw ValueError(str(op, ": ", in_quotes(path), " of ", type_name(), " is a ",
                       find(path).module.type_name(), " and no ", unqualified(wanted)));
}

// ---- tensors of a module ------------------------------------------------------------------------

namespace {

// The tensors for which keep(is parameter) holds, each under its first name.
template <class Keep> NamedTensors once_each(ModuleBase& module, const Keep& keep) {
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
template <class Convert> void replace_tensors(ModuleBase& module, const Convert& convert) {
  NamedTensors tensors = once_each(module, [](bool) { return true; });
  std::vector<Tensor> converted;
  for (const auto& [name, tensor] : tensors) converted.push_back(convert(tensor.detach()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (converted[i].place() != tensors[i].second.place()) tensors[i].second.set_data(converted[i]);
  }
}

}  // namespace

NamedTensors ModuleBase::named_parameters() {
  return once_each(*this, [](bool trained) { return trained; });
}

std::vector<Tensor> ModuleBase::parameters() {
  std::vector<Tensor> result;
  for (auto& [name, tensor] : named_parameters()) result.push_back(tensor);
  return result;
}

NamedTensors ModuleBase::named_buffers() {
  return once_each(*this, [](bool trained) { return !trained; });
}

NamedTensors ModuleBase::state_dict() {
  NamedTensors result;
  walk(*this, [&](const std::string& name, Tensor& tensor, bool) {
    result.emplace_back(name, tensor.detach());
  });
  return result;
}

StateKeys ModuleBase::load_state_dict(const NamedTensors& state, const LoadOptions& options) {
  return copy_state("load_state_dict", state_dict(), state, options.strict);
}

ModuleBase& ModuleBase::to(Device device) {
  require_usable(device);
  replace_tensors(*this, [&](const Tensor& tensor) { return tensor.to(device); });
  return *this;
}

ModuleBase& ModuleBase::to(DType dtype) {
  require<DtypeError>(is_floating(dtype), "to: expected float32 or float64 for a module, got ",
                      dtype);
  replace_tensors(*this, [&](const Tensor& tensor) {
    return is_floating(tensor.dtype()) ? tensor.to(dtype) : tensor;
  });
  return *this;
}

ModuleBase& ModuleBase::set_requires_grad(bool value) {
  for (const Tensor& parameter : parameters()) parameter.set_requires_grad(value);
  return *this;
}

void ModuleBase::zero_grad() {
  for (const Tensor& parameter : parameters()) parameter.set_grad({});
}

void ModuleBase::train(bool on) {
  if (Recorder* const recorder = Recorder::of_this_thread())
    recorder->sets_mode({state_.shared, &state_.shared->training});
  state_.shared->training = on;
  any_child(*this, [&](const std::string&, ModuleBase& child) {
    child.train(on);
    return false;
  });
}

namespace detail {

void refuse_to_slice(const char* op, const ModuleBase& module) {
  throw ValueError(str(op, ": expected a module by its own type, got a ", module.type_name(),
                       " by the type of its base, which is what a copy would be"));
}

void own_tensors(ModuleBase& copy, const ModuleBase& original) {
  // visit is for callers that change what it hands out, too.
  auto& from = const_cast<ModuleBase&>(original);
  const auto require_own = [&](auto&& self, ModuleBase& module) -> void {
    any_child(module, [&](const std::string& name, ModuleBase& child) {
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

}  // namespace detail

// ---- printing -----------------------------------------------------------------------------------

std::string ModuleBase::type_name() const { return unqualified(typeid(*this)); }

std::ostream& operator<<(std::ostream& out, const ModuleBase& module) {
  const auto indented = [](const std::string& text) {
    std::string result;
    for (const char c : text) result += c == '\n' ? std::string("\n  ") : std::string(1, c);
    return result;
  };
  std::string children;
  any_child(const_cast<ModuleBase&>(module), [&](const std::string& name, ModuleBase& child) {
    children += str("\n  (", name, "): ", indented(str(child)));
    return false;
  });
  const std::string own = module.extra_repr();
  out << module.type_name() << '(';
  if (children.empty()) return out << own << ')';
  return out << (own.empty() ? "" : "\n  ") << own << children << "\n)";
}

}  // namespace sinter
