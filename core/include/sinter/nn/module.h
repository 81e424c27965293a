// Modules: what layers and networks have in common.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "sinter/hook.h"
#include "sinter/ops.h"

namespace sinter {

namespace detail {
class AnyModule;
}

class ModuleBase;

// Called with every member of a module that has one of the three roles.
class Visitor {
 public:
  virtual ~Visitor() = default;
  // Trained; in the state dict. Requires grad unless it was set not to.
  virtual void parameter(const std::string& name, Tensor& tensor) = 0;
  // In the state dict, not trained.
  virtual void buffer(const std::string& name, Tensor& tensor) = 0;
  virtual void module(const std::string& name, ModuleBase& child) = 0;
};

// Around the forward of a module. A pre-hook may change the tensors among the arguments; what a
// hook returns, unless undefined, takes the output's place.
using ForwardPreHook = std::function<void(ModuleBase& module, std::vector<Tensor>& inputs)>;
using ForwardHook = std::function<Tensor(ModuleBase& module, const std::vector<Tensor>& inputs,
                                         const Tensor& output)>;

// What modules are apart from their forward. Networks derive from Module or ModuleOf, below.
class ModuleBase {
 public:
  virtual ~ModuleBase() = default;
  // Hands every parameter, buffer and child to v, in PyTorch's registration order. Undefined
  // tensors (no bias) are left out by the callers' side.
  virtual void visit(Visitor& v) { (void)v; }

  // Depth first, names joined by dots ("features.0.weight"). They are the module's own tensors, not
  // copies of their values. One that is listed twice (tied weights) comes once, under its first
  // name.
  NamedTensors named_parameters();
  std::vector<Tensor> parameters();
  NamedTensors named_buffers();
  // Parameters and buffers, detached: they share storage with the module's, and so follow what
  // training does to it; clone() them for a snapshot. Tied ones come under each of their names.
  NamedTensors state_dict();
  // Copies values in, converting dtype and device. Throws ValueError naming missing and unexpected
  // keys, unless not strict, which copies what both have and returns the others; in either case
  // ShapeError naming a key whose shape differs. The module is unchanged then.
  struct LoadOptions {
    bool strict = true;
  };
  StateKeys load_state_dict(const NamedTensors& state, const LoadOptions& options = strictly());

  // Moves parameters and buffers, all or (if memory runs out) none. They stay the tensors they are:
  // optimizers and tied weights follow. Gradients of what is moved are dropped.
  ModuleBase& to(Device device);
  ModuleBase& to(DType dtype);
  // Of every parameter: false freezes the module, so that backward passes and optimizers leave it
  // alone.
  ModuleBase& set_requires_grad(bool value = true);
  // Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();
  // Mode of layers that behave differently in training; reaches children.
  void train(bool on = true);
  void eval() { train(false); }
  bool is_training() const;

  // Children in the order of visit; and all modules, itself first (as ""), each once and under its
  // path. Those that are members stay where they are, and a Sequential's until they are replaced.
  std::vector<std::pair<std::string, ModuleBase*>> named_children();
  std::vector<ModuleBase*> children();
  std::vector<std::pair<std::string, ModuleBase*>> named_modules();
  std::vector<ModuleBase*> modules();
  // f(module) for all modules, children first.
  template <class F> ModuleBase& apply(F&& f) {
    for (ModuleBase* child : children()) child->apply(f);
    f(*this);
    return *this;
  }
  // The module of a path ("layer1.0"), itself for "". Throws ValueError if there is none, or it is
  // no M.
  template <class M = ModuleBase> M& get_submodule(const std::string& path) {
    M* const found = dynamic_cast<M*>(&find(path).module);
    if (found == nullptr) refuse_submodule("get_submodule", path, typeid(M));
    return *found;
  }
  // Puts `layer` in the place of the module of a path. One in a Sequential may become any Module;
  // a member must be of the layer's type, and is assigned to, as net.fc = Linear(512, 5) does:
  // ValueError otherwise. Parameters, state and compiled steps follow either way; an optimizer has
  // the parameters that it was made with.
  template <class Layer>
  requires std::is_base_of_v<ModuleBase, std::decay_t<Layer>>
  void set_submodule(const std::string& path, Layer&& layer);

  // Around forward when the module is called, in their order, until the handle removes them; copies
  // of the module have its hooks, which the handle does not know. In a compiled step their
  // operators are part of the program. ForwardHook: of a module whose forward returns one tensor.
  HookHandle register_forward_pre_hook(ForwardPreHook hook);
  HookHandle register_forward_hook(ForwardHook hook);

  // How operator<< prints a module: its type without namespaces, and between the brackets behind it
  // what it was made with ("3, 6, kernel_size=(5, 5), stride=(1, 1)").
  virtual std::string type_name() const;
  virtual std::string extra_repr() const { return {}; }

 protected:
  // What a call operator does: f(arguments…), which is forward. Errors on the way get the module's
  // name, and operators of a program its path.
  template <class F, class... Args> auto call(bool apart, const F& f, Args&&... args);
  // Where a container keeps the child of this name, null if it is a member.
  virtual detail::AnyModule* slot(const std::string& name) { return (void)name, nullptr; }
  // To be told when other modules than before are called: compiled steps are recorded anew.
  void changed() { ++state_.shared->version; }

 private:
  friend class ForwardCall;
  // A number of its own for every module, copies too; an address may come again.
  struct Serial {
    Serial() = default;
    Serial(const Serial&) {}
    Serial& operator=(const Serial&) { return *this; }
    static uint64_t next();
    const uint64_t number = next();
  };
  // Modules that called this one; no copy of it.
  struct KnownParent {
    KnownParent() = default;
    KnownParent(const KnownParent&) {}
    KnownParent& operator=(const KnownParent&) { return *this; }
    std::atomic<uint64_t> lists{0};    // is known to list it
    std::atomic<uint64_t> forgets{0};  // does not, and need not, as it has no tensors
  };
  static LoadOptions strictly() { return {}; }
  // Mode and hooks. A module's own, and shared with programs that it was recorded in.
  struct State {
    bool training = true;
    uint64_t version = 0;  // counts changes of hooks, and assignments to the module
    std::vector<std::shared_ptr<const ForwardPreHook>> pre_hooks;
    std::vector<std::shared_ptr<const ForwardHook>> hooks;
  };
  struct OwnState {
    OwnState() = default;
    OwnState(const OwnState& other) : shared(std::make_shared<State>(*other.shared)) {}
    OwnState& operator=(const OwnState& other) {
      const uint64_t version = shared->version + 1;
      *shared = *other.shared;
      shared->version = version;
      return *this;
    }
    std::shared_ptr<State> shared = std::make_shared<State>();
  };
  // A module by its path: itself, the one that lists it, and by which name.
  struct Found {
    ModuleBase& module;
    ModuleBase* parent;
    std::string name;
  };
  Found find(const std::string& path);
  [[noreturn]] void refuse_submodule(const char* op, const std::string& path,
                                     const std::type_info& wanted);
  void within(bool apart, std::span<const Tensor* const> inputs, const std::function<void()>& run);
  void run_pre_hooks(std::vector<Tensor>& inputs);
  void run_hooks(const std::vector<Tensor>& inputs, Tensor* output);  // null: not one tensor

  OwnState state_;
  Serial serial_;
  KnownParent known_parent_;
};
// As PyTorch prints modules: the type, what it was made with, and its children, indented.
std::ostream& operator<<(std::ostream& out, const ModuleBase& module);

// A layer or network that makes one tensor of one. It derives from this, holds its layers as plain
// members, lists them in visit and combines them in forward. A copy of a module shares its tensors,
// as copies of tensors do; clone (below) makes one with tensors of its own.
//
//   struct Net : sinter::Module {
//     sinter::Conv2d conv{3, 8, 3};
//     sinter::Linear fc{8 * 15 * 15, 10};
//     sinter::Tensor forward(const sinter::Tensor& x) override {
//       return fc(flatten(max_pool2d(relu(conv(x)), 2), 1));
//     }
//     void visit(sinter::Visitor& v) override {
//       v.module("conv", conv);
//       v.module("fc", fc);
//     }
//   };
class Module : public ModuleBase {
 public:
  virtual Tensor forward(const Tensor& x) = 0;
  // forward. Networks call their children this way: an error on the way says which module it came
  // from, by the names of visit ("features.3.conv2").
  //   What forward uses and visit forgot would silently not be trained, moved, saved or put into
  // eval mode. So a module called inside the forward of another that lists neither it nor a module
  // it is part of throws ValueError naming both, if it has tensors or asks whether it is training;
  // likewise, while operators are recorded, a leaf that requires grad and is neither an argument
  // nor listed by any module.
  Tensor operator()(const Tensor& x);
  // The same for a network that another one uses in its forward without owning it, such as the
  // teacher of a distillation: called as if no other module were running.
  Tensor call_apart(const Tensor& x);
  // As ModuleBase's, so that what they return can be called.
  Module& to(Device device) { return ModuleBase::to(device), *this; }
  Module& to(DType dtype) { return ModuleBase::to(dtype), *this; }
  Module& set_requires_grad(bool value = true) {
    return ModuleBase::set_requires_grad(value), *this;
  }
};

// The same for a forward of any arguments and result:
//
//   struct Net : sinter::ModuleOf<Net> {
//     sinter::Linear fc{8, 8};
//     sinter::Tensor forward(const sinter::Tensor& x, const sinter::Tensor& mask) {
//       return fc(x) * mask;
//     }
//     void visit(sinter::Visitor& v) override { v.module("fc", fc); }
//   };
//   net(x, mask);
//
// With Base = Module it has a forward of one tensor beside others. Braces as an argument need their
// type's name: attention(q, k, v, AttentionMasks{.is_causal = true}).
template <class Net, class Base = ModuleBase> class ModuleOf : public Base {
 public:
  template <class... Args> auto operator()(Args&&... args) {
    return this->call(false, forward_of_net(), std::forward<Args>(args)...);
  }
  template <class... Args> auto call_apart(Args&&... args) {
    return this->call(true, forward_of_net(), std::forward<Args>(args)...);
  }

 private:
  auto forward_of_net() {
    return [this](auto&&... args) {
      return static_cast<Net&>(*this).forward(std::forward<decltype(args)>(args)...);
    };
  }
};

namespace detail {

// For clone: gives every tensor of `copy`, a copy of `original`, a storage of its own; tensors that
// were one stay one.
void own_tensors(ModuleBase& copy, const ModuleBase& original);
// For clone and append of a module that is known by the type of its base: a copy would be the base.
[[noreturn]] void refuse_to_slice(const char* op, const ModuleBase& module);

// A Module that a container holds, and how to copy it.
class AnyModule {
 public:
  // The module itself.
  template <class Layer>
  requires std::is_base_of_v<Module, Layer>
  explicit AnyModule(std::shared_ptr<Layer> layer) : module(std::move(layer)) {
    if constexpr (std::is_copy_constructible_v<Layer> && !std::is_abstract_v<Layer>) {
      copy_ = [](const Module& from) -> std::shared_ptr<Module> {  // of exactly a Layer
        return typeid(from) == typeid(Layer)
                   ? std::make_shared<Layer>(static_cast<const Layer&>(from))
                   : nullptr;
      };
    }
  }
  // A copy of it, or what it was.
  template <class Layer> static AnyModule of(const char* op, Layer&& layer) {
    if (typeid(layer) != typeid(std::decay_t<Layer>)) refuse_to_slice(op, layer);
    return AnyModule(std::make_shared<std::decay_t<Layer>>(std::forward<Layer>(layer)));
  }
  // Holds null if it has no copy constructor, or is known by its base only.
  AnyModule copy() const {
    AnyModule result(*this);
    result.module = copy_ ? copy_(*module) : nullptr;
    return result;
  }

  std::shared_ptr<Module> module;

 private:
  std::function<std::shared_ptr<Module>(const Module&)> copy_;
};

}  // namespace detail

// A module of the same kind, with its own tensors of the same values, on the same devices. What the
// original ties stays tied inside the clone. Throws ValueError if a copy of the module shares
// layers with it, as one that holds them by pointer does: layers must be members, or in a
// Sequential.
template <class M> M clone(const M& module) {
  static_assert(std::is_base_of_v<ModuleBase, M> && !std::is_abstract_v<M>,
                "clone: expected a layer or a network by its own type");
  if (typeid(module) != typeid(M)) detail::refuse_to_slice("clone", module);
  M copy(module);
  detail::own_tensors(copy, module);
  return copy;
}

// ---- what is generic of the above ---------------------------------------------------------------

template <class F, class... Args> auto ModuleBase::call(bool apart, const F& f, Args&&... args) {
  using Result = std::invoke_result_t<const F&, Args...>;
  std::optional<Result> result;
  std::array<const Tensor*, (0 + ... + std::is_same_v<std::decay_t<Args>, Tensor>)> inputs;
  size_t count = 0;
  const auto add = [&]<class A>(const A& argument) {
    if constexpr (std::is_same_v<A, Tensor>) inputs[count++] = &argument;
  };
  (add(args), ...);
  const auto run = [&] {
    if (state_.shared->pre_hooks.empty() && state_.shared->hooks.empty()) {
      result.emplace(f(std::forward<Args>(args)...));
      return;
    }
    std::vector<Tensor> tensors;
    for (const Tensor* input : inputs) tensors.push_back(*input);
    run_pre_hooks(tensors);
    size_t next = 0;
    const auto argument = [&]<class A>(A& value) -> decltype(auto) {
      if constexpr (std::is_same_v<std::remove_const_t<A>, Tensor>)
        return static_cast<const Tensor&>(tensors[next++]);
      else
        return (value);
    };
    // Braces: from left to right.
    const std::tuple<decltype(argument(args))...> all{argument(args)...};
    result.emplace(std::apply(f, all));
    if constexpr (std::is_same_v<Result, Tensor>)
      run_hooks(tensors, &*result);
    else
      run_hooks(tensors, nullptr);
  };
  within(apart, inputs, std::ref(run));
  return std::move(*result);
}

template <class Layer>
requires std::is_base_of_v<ModuleBase, std::decay_t<Layer>>
void ModuleBase::set_submodule(const std::string& path, Layer&& layer) {
  using L = std::decay_t<Layer>;
  if (typeid(layer) != typeid(L)) detail::refuse_to_slice("set_submodule", layer);
  const Found found = find(path);
  if constexpr (std::is_base_of_v<Module, L>) {
    if (detail::AnyModule* slot = found.parent ? found.parent->slot(found.name) : nullptr) {
      *slot = detail::AnyModule::of("set_submodule", std::forward<Layer>(layer));
      found.parent->changed();
      return;
    }
  }
  if (typeid(found.module) != typeid(L)) refuse_submodule("set_submodule", path, typeid(L));
  static_cast<L&>(found.module) = std::forward<Layer>(layer);
}

}  // namespace sinter
