// Layers with parameters, and networks made of them (nn/module.h). Names, defaults and state_dict
// keys are PyTorch's.
#pragma once

#include <string>

#include "sinter/nn/module.h"
#include "sinter/nn/sequential.h"

namespace sinter {

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

}  // namespace sinter

#include "sinter/nn/activation.h"
#include "sinter/nn/dropout.h"
#include "sinter/nn/norm.h"
#include "sinter/nn/pool.h"
