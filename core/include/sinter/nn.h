// Modules: layers with parameters, and networks made of them. Names, defaults and state_dict keys
// are PyTorch's.
#pragma once

#include <atomic>
#include <functional>
#include <iosfwd>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "sinter/ops.h"

namespace sinter {

class Module;

// Called with every member of a module that has one of the three roles.
class Visitor {
 public:
  virtual ~Visitor() = default;
  // Trained; in the state dict. Requires grad unless it was set not to.
  virtual void parameter(const std::string& name, Tensor& tensor) = 0;
  // In the state dict, not trained.
  virtual void buffer(const std::string& name, Tensor& tensor) = 0;
  virtual void module(const std::string& name, Module& child) = 0;
};

// The base of layers and networks. A network derives from it, holds its layers as plain members,
// lists them in visit and combines them in forward. A copy of a module shares its tensors, as
// copies of tensors do; clone (below) makes one with tensors of its own.
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
class Module {
 public:
  virtual ~Module() = default;
  virtual Tensor forward(const Tensor& x) = 0;
  // forward. Networks call their children this way: an error on the way says which module it came
  // from, by the names of visit ("features.3.conv2").
  //   What forward uses and visit forgot would silently not be trained, moved, saved or put into
  // eval mode. So a module called inside the forward of another that lists neither it nor a module
  // it is part of throws ValueError naming both, if it has tensors or asks whether it is training;
  // likewise, while operators are recorded, a leaf that requires grad and is neither x nor listed
  // by any module.
  Tensor operator()(const Tensor& x);
  // The same for a network that another one uses in its forward without owning it, such as the
  // teacher of a distillation: called as if no other module were running.
  Tensor call_apart(const Tensor& x);
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
  Module& to(Device device);
  Module& to(DType dtype);
  // Of every parameter: false freezes the module, so that backward passes and optimizers leave it
  // alone.
  Module& set_requires_grad(bool value = true);
  // Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();
  // Mode of layers that behave differently in training; reaches children.
  void train(bool on = true);
  void eval() { train(false); }
  bool is_training() const;

  // How operator<< prints a module: its type without namespaces, and between the brackets behind it
  // what it was made with ("3, 6, kernel_size=(5, 5), stride=(1, 1)").
  virtual std::string type_name() const;
  virtual std::string extra_repr() const { return {}; }

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
  Tensor call(const Tensor& x, bool apart);
  static LoadOptions strictly() { return {}; }
  // Its own for every module; shared with programs that were recorded in this mode.
  struct Mode {
    Mode() = default;
    Mode(const Mode& other) : training(std::make_shared<bool>(*other.training)) {}
    Mode& operator=(const Mode& other) {
      *training = *other.training;
      return *this;
    }
    std::shared_ptr<bool> training = std::make_shared<bool>(true);
  };
  Mode mode_;
  Serial serial_;
  KnownParent known_parent_;
};
// As PyTorch prints modules: the type, what it was made with, and its children, indented.
std::ostream& operator<<(std::ostream& out, const Module& module);

// For clone: gives every tensor of `copy`, a copy of `original`, a storage of its own; tensors that
// were one stay one.
void own_tensors(Module& copy, const Module& original);
// For clone and append of a module that is known by the type of its base: a copy would be the base.
[[noreturn]] void refuse_to_slice(const char* op, const Module& module);
// A module of the same kind, with its own tensors of the same values, on the same devices. What the
// original ties stays tied inside the clone. Throws ValueError if a copy of the module shares
// layers with it, as one that holds them by pointer does: layers must be members, or in a
// Sequential.
template <class M> M clone(const M& module) {
  static_assert(std::is_base_of_v<Module, M> && !std::is_same_v<Module, M>,
                "clone: expected a layer or a network by its own type");
  if (typeid(module) != typeid(M)) refuse_to_slice("clone", module);
  M copy(module);
  own_tensors(copy, module);
  return copy;
}

// weight: (out, in / groups, kernel), bias: (out), both drawn from U(-b, b), b = 1 / sqrt(fan in),
// as PyTorch does (He et al. 2015 with a = sqrt(5)).
class Conv2d : public Module {
 public:
  struct Options {
    Pair stride = 1, padding = 0, dilation = 1;
    int groups = 1;
    bool bias = true;
  };
  Conv2d(int in_channels, int out_channels, Pair kernel_size,
         const Options& options = default_options());
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;
  std::string extra_repr() const override;
  const Conv2dOptions& options() const { return options_; }

  Tensor weight, bias;

 private:
  static Options default_options() { return {}; }
  Conv2dOptions options_;
};

// weight: (out, in), bias: (out), drawn as Conv2d's.
class Linear : public Module {
 public:
  Linear(int in_features, int out_features, bool bias = true);
  Tensor forward(const Tensor& x) override { return linear(x, weight, bias); }
  void visit(Visitor& v) override;
  std::string extra_repr() const override;

  Tensor weight, bias;
};

class ReLU : public Module {
 public:
  Tensor forward(const Tensor& x) override { return relu(x); }
};

class Flatten : public Module {
 public:
  explicit Flatten(int first = 1, int last = -1) : first_(first), last_(last) {}
  Tensor forward(const Tensor& x) override { return flatten(x, first_, last_); }
  std::string extra_repr() const override;

 private:
  int first_, last_;
};

// Modules one after another.
Tensor run_sequence(const Tensor& x, std::span<Module* const> modules);

// run_sequence as a module; children are named "0", "1", …. A copy has copies of the children,
// which share their tensors with the originals.
class Sequential : public Module {
 public:
  Sequential() = default;
  // Each a module, which is copied or moved in, or a std::shared_ptr or std::unique_ptr to one.
  template <class... Layers>
  requires(sizeof...(Layers) > 1 || !(std::is_base_of_v<Sequential, std::decay_t<Layers>> ||
                                      ...)) explicit Sequential(Layers&&... layers) {
    (append(std::forward<Layers>(layers)), ...);
  }
  Sequential(const Sequential& other);
  Sequential& operator=(const Sequential& other);
  Sequential(Sequential&&) noexcept = default;
  Sequential& operator=(Sequential&&) noexcept = default;

  template <class Layer>
  requires std::is_base_of_v<Module, std::decay_t<Layer>> Sequential& append(Layer&& layer) {
    if (typeid(layer) != typeid(std::decay_t<Layer>)) refuse_to_slice("append", layer);
    return append(std::make_shared<std::decay_t<Layer>>(std::forward<Layer>(layer)));
  }
  // The module itself. Throws ValueError for null and for one that holds this Sequential.
  template <class Layer>
  requires std::is_base_of_v<Module, Layer> Sequential& append(std::shared_ptr<Layer> layer) {
    std::function<std::shared_ptr<Module>(const Module&)> copy;  // of exactly a Layer
    if constexpr (std::is_copy_constructible_v<Layer> && !std::is_abstract_v<Layer>) {
      copy = [](const Module& from) -> std::shared_ptr<Module> {
        return typeid(from) == typeid(Layer)
                   ? std::make_shared<Layer>(static_cast<const Layer&>(from))
                   : nullptr;
      };
    }
    return add({std::move(layer), std::move(copy)});
  }
  template <class Layer>
  requires std::is_base_of_v<Module, Layer> Sequential& append(std::unique_ptr<Layer> layer) {
    return append(std::shared_ptr<Layer>(std::move(layer)));
  }
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;
  size_t size() const { return children_.size(); }
  Module& operator[](size_t i);  // throws ValueError unless i < size()

 private:
  struct Child {
    std::shared_ptr<Module> module;
    // Copies it; null, or returning null, if it cannot.
    std::function<std::shared_ptr<Module>(const Module&)> copy;
  };
  Sequential& add(Child child);

  std::vector<Child> children_;
};

}  // namespace sinter

#include "sinter/nn/activation.h"
#include "sinter/nn/dropout.h"
#include "sinter/nn/norm.h"
#include "sinter/nn/pool.h"
