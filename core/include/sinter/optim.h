// Optimizers, after the papers' equations and with PyTorch's defaults.
#pragma once

#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// Updates parameters in place from their gradients. A parameter without a gradient is left alone.
// All parameters share one device and one floating dtype. Learning rate and step count live on that
// device, so that an update can be captured in a CUDA graph and replayed.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // One update. Does not wait for the device.
  virtual void step() = 0;
  // Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();
  void set_lr(double lr);
  double lr() const { return lr_; }
  int64_t steps() const;  // updates done; waits for the device
  // Everything but the parameters: for each parameter i "i.name" tensors, and "step". Copies in;
  // throws ValueError or ShapeError if the keys or shapes differ.
  virtual NamedTensors state_dict() const = 0;
  void load_state_dict(const NamedTensors& state);

 protected:
  Optimizer(const char* name, std::vector<Tensor> params, double lr);
  std::vector<Tensor> params_;
  Tensor lr_device_, step_device_;  // one float64, one int64

 private:
  double lr_;
};

struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decoupled = false;  // AdamW
};
// Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1, with bias
// correction. decoupled: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019,
// algorithm 2. Throws ValueError for lr < 0, betas outside [0, 1), eps < 0 or weight_decay < 0.
class Adam : public Optimizer {
 public:
  explicit Adam(std::vector<Tensor> params, const AdamOptions& options = {});
  void step() override;
  NamedTensors state_dict() const override;

 private:
  AdamOptions options_;
  std::vector<Tensor> m_, v_;
};
// Adam with decoupled weight decay, 0.01 unless set.
class AdamW : public Adam {
 public:
  explicit AdamW(std::vector<Tensor> params, AdamOptions options = {.weight_decay = 0.01})
      : Adam(std::move(params), (options.decoupled = true, options)) {}
};

struct SGDOptions {
  double lr = 1e-3, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
};
// Stochastic gradient descent; momentum and Nesterov's variant as Sutskever et al., ICML 2013, in
// PyTorch's form. Throws ValueError for negative values, and for nesterov without momentum or with
// dampening. Unlike PyTorch, with dampening a parameter whose first gradient comes after the first
// step starts its buffer with (1 - dampening) of it.
class SGD : public Optimizer {
 public:
  explicit SGD(std::vector<Tensor> params, const SGDOptions& options = {});
  void step() override;
  NamedTensors state_dict() const override;

 private:
  SGDOptions options_;
  std::vector<Tensor> m_;
};

}  // namespace sinter
