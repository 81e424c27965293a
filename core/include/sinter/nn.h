// Modules: layers with parameters, and networks made of them. Names, defaults and state_dict keys
// are PyTorch's.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sinter/ops.h"

namespace sinter {

class Module;

// Called with every member of a module that has one of the three roles.
class Visitor {
 public:
  virtual ~Visitor() = default;
  virtual void parameter(const std::string& name,
                         Tensor& tensor) = 0;  // trained; in the state dict
  virtual void buffer(const std::string& name,
                      Tensor& tensor) = 0;  // in the state dict, not trained
  virtual void module(const std::string& name, Module& child) = 0;
};

// The base of layers and networks. A network derives from it, holds its layers as plain members,
// lists them in visit and combines them in forward:
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
  Tensor operator()(const Tensor& x);
  // Hands every parameter, buffer and child to v, in PyTorch's registration order. Undefined
  // tensors (no bias) are left out by the callers' side.
  virtual void visit(Visitor& v) { (void)v; }

  // Depth first, names joined by dots ("features.0.weight"). The tensors share storage with the
  // module's.
  NamedTensors named_parameters();
  std::vector<Tensor> parameters();
  NamedTensors named_buffers();
  // Parameters and buffers, detached.
  NamedTensors state_dict();
  // Copies values in, converting dtype and device. Throws ValueError naming every missing and every
  // unexpected key, ShapeError naming a key whose shape differs; the module is unchanged then.
  void load_state_dict(const NamedTensors& state);

  // Moves parameters and buffers. Parameters stay leaves; gradients are dropped. Make the optimizer
  // afterwards.
  Module& to(Device device);
  Module& to(DType dtype);
  // Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();
  // Mode of layers that behave differently in training; reaches children.
  void train(bool on = true);
  void eval() { train(false); }
  bool is_training() const { return training_; }

 private:
  bool training_ = true;
};

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

  Tensor weight, bias;
};

class ReLU : public Module {
 public:
  Tensor forward(const Tensor& x) override { return relu(x); }
};

class MaxPool2d : public Module {
 public:
  explicit MaxPool2d(Pair kernel_size, Pair stride = 0, Pair padding = 0)
      : kernel_(kernel_size), options_{stride, padding} {}
  Tensor forward(const Tensor& x) override { return max_pool2d(x, kernel_, options_); }
  // Windows of 2 x 2 side by side, which a convolution's kernel can make on the way.
  bool is_2x2() const;

 private:
  Pair kernel_;
  Pool2dOptions options_;
};

class AvgPool2d : public Module {
 public:
  explicit AvgPool2d(Pair kernel_size, Pair stride = 0, Pair padding = 0)
      : kernel_(kernel_size), options_{stride, padding} {}
  Tensor forward(const Tensor& x) override { return avg_pool2d(x, kernel_, options_); }

 private:
  Pair kernel_;
  Pool2dOptions options_;
};

class Flatten : public Module {
 public:
  explicit Flatten(int first = 1, int last = -1) : first_(first), last_(last) {}
  Tensor forward(const Tensor& x) override { return flatten(x, first_, last_); }

 private:
  int first_, last_;
};

// Modules one after another. Neighbours that a fused operator computes in one pass (fused.h) are
// handed to it: a Conv2d, ReLU and MaxPool2d(2); Linear layers with ReLU between them. Layers of
// derived classes are left as they are.
Tensor run_sequence(const Tensor& x, std::span<Module* const> modules);

// run_sequence as a module; children are named "0", "1", …
class Sequential : public Module {
 public:
  template <class... Layers> explicit Sequential(Layers&&... layers) {
    (append(std::forward<Layers>(layers)), ...);
  }
  template <class Layer> Sequential& append(Layer&& layer) {
    children_.push_back(std::make_shared<std::decay_t<Layer>>(std::forward<Layer>(layer)));
    return *this;
  }
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;
  size_t size() const { return children_.size(); }
  Module& operator[](size_t i) { return *children_.at(i); }

 private:
  std::vector<std::shared_ptr<Module>> children_;
};

}  // namespace sinter
