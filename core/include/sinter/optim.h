// Optimizers, after the papers' equations and with PyTorch's defaults.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// Updates parameters in place from their gradients. A parameter without a gradient, or frozen, is
// left alone; each counts its own updates, so that one whose first gradient comes late is corrected
// for as if the others began then. Given twice, a tensor is updated once. All parameters share one
// device and one floating dtype; when a module moves them (Module::to), the state follows at the
// next step. Learning rate and step counts live on that device, so that an update can be captured
// in a CUDA graph and replayed.
//   Throws ValueError for no parameters, GradError for one that is no leaf or not floating,
// DtypeError or DeviceError if they differ in either (step() too), ValueError for two that share
// memory without being one tensor.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // One update. Does not wait for the device.
  virtual void step() = 0;
  // Drops the gradients, so that the next backward pass writes instead of adding.
  void zero_grad();
  void set_lr(double lr);
  double lr() const { return lr_; }
  // Updates done of the parameter that had most; waits for the device.
  int64_t steps() const;
  // Everything but the parameters and the options (lr among them): for each parameter i "i.name"
  // tensors, and "step", the updates of each. Copies in; throws ValueError or ShapeError if the
  // keys or shapes differ.
  virtual NamedTensors state_dict() const = 0;
  void load_state_dict(const NamedTensors& state);

 protected:
  Optimizer(const char* name, std::vector<Tensor> params, double lr);
  // At the beginning of step(): whether the parameters still are like each other, and `state`, one
  // tensor for each, like them. Moves it there if not.
  void follow_parameters(std::initializer_list<std::vector<Tensor>*> state);
  // Calls f(i, gradient) for the parameters to update.
  template <class F> void each_gradient(const F& f) const {
    for (size_t i = 0; i < params_.size(); ++i) {
      const Tensor grad = params_[i].requires_grad() ? params_[i].grad() : Tensor();
      if (grad.defined()) f(i, grad);
    }
  }
  std::vector<Tensor> params_;
  Tensor lr_device_, steps_;  // one float64; an int64 for each parameter

 private:
  void check_alike() const;
  const char* name_;
  double lr_;
};

struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  std::optional<double> weight_decay = std::nullopt;  // unset: 0, of AdamW 0.01
  bool decoupled = false;                             // AdamW
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
  friend class AdamW;
  Adam(const char* name, std::vector<Tensor> params, const AdamOptions& options);
  AdamOptions options_;
  std::vector<Tensor> m_, v_;
};
// Adam with decoupled weight decay, 0.01 unless set.
class AdamW : public Adam {
 public:
  explicit AdamW(std::vector<Tensor> params, const AdamOptions& options = {});
};

struct SGDOptions {
  double lr = 1e-3, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
};
// Stochastic gradient descent; momentum and Nesterov's variant as Sutskever et al., ICML 2013, in
// PyTorch's form. Throws ValueError for negative values, and for nesterov without momentum or with
// dampening.
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
