#include "sinter/optim.h"

#include "sinter/dispatch.h"
#include "slice_sum.h"

namespace sinter {

Optimizer::Optimizer(const char* name, std::vector<Tensor> params, double lr)
    : params_(std::move(params)), lr_(lr) {
  require<ValueError>(!params_.empty(), name, ": expected at least one parameter");
  for (const Tensor& p : params_) {
    require<GradError>(p.defined() && p.requires_grad() && p.is_leaf(), name,
                       ": expected leaves that require grad");
    require<DtypeError>(p.dtype() == params_[0].dtype(), name, ": expected one dtype, got ",
                        params_[0].dtype(), " and ", p.dtype());
    require<DeviceError>(p.device() == params_[0].device(), name, ": expected one device, got ",
                         params_[0].device(), " and ", p.device());
  }
  const Device device = params_[0].device();
  lr_device_ = full({}, lr, {kFloat64, device});
  step_device_ = zeros({}, {kInt64, device});
}

void Optimizer::zero_grad() {
  for (const Tensor& p : params_) p.set_grad({});
}

void Optimizer::set_lr(double lr) {
  require<ValueError>(lr >= 0, "set_lr: expected lr >= 0, got ", lr);
  lr_ = lr;
  lr_device_.fill_(lr);
}

int64_t Optimizer::steps() const { return step_device_.item<int64_t>(); }

void Optimizer::load_state_dict(const NamedTensors& state) {
  copy_state("load_state_dict", state_dict(), state);
}

namespace {

void check_rate(const char* name, const char* what, double value) {
  require<ValueError>(value >= 0, name, ": expected ", what, " >= 0, got ", value);
}

std::vector<Tensor> zeros_like(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(zeros(t.shape(), t.options()));
  return result;
}

void add_named(NamedTensors& state, const std::vector<Tensor>& tensors, const char* name) {
  for (size_t i = 0; i < tensors.size(); ++i) state.emplace_back(str(i, ".", name), tensors[i]);
}

}  // namespace

Adam::Adam(std::vector<Tensor> params, const AdamOptions& options)
    : Optimizer("Adam", std::move(params), options.lr), options_(options) {
  check_rate("Adam", "lr", options.lr);
  check_rate("Adam", "eps", options.eps);
  check_rate("Adam", "weight_decay", options.weight_decay);
  for (double beta : {options.beta1, options.beta2}) {
    require<ValueError>(beta >= 0 && beta < 1, "Adam: expected betas in [0, 1), got ", beta);
  }
  m_ = zeros_like(params_);
  v_ = zeros_like(params_);
}

void Adam::step() {
  const AdamConfig config{options_.beta1, options_.beta2, options_.eps, options_.weight_decay,
                          options_.decoupled};
  dispatch("Adam", params_[0], [&]<class T>(const auto& ctx) {
    std::vector<AdamSlot<T>> slots;
    for (size_t i = 0; i < params_.size(); ++i) {
      const Tensor grad = params_[i].grad();
      if (!grad.defined()) continue;
      AdamSlot<T> slot{grad.numel(), params_[i].data<T>(), nullptr, m_[i].data<T>(),
                       v_[i].data<T>()};
      if (const SliceSum* sum = grad.origin<SliceSum>()) {
        slot.g = sum->slices.data<const T>() + sum->first;
        slot.slices = sum->slices.size(0);
        slot.g_stride = sum->slices.size(1);
      } else {
        slot.g = grad.data<const T>();
      }
      slots.push_back(slot);
      params_[i].bump_version();
    }
    adam_step(ctx, config, std::span<const AdamSlot<T>>(slots), lr_device_.data<const double>(),
              step_device_.data<int64_t>());
  });
}

NamedTensors Adam::state_dict() const {
  NamedTensors state{{"step", step_device_}};
  add_named(state, m_, "exp_avg");
  add_named(state, v_, "exp_avg_sq");
  return state;
}

SGD::SGD(std::vector<Tensor> params, const SGDOptions& options)
    : Optimizer("SGD", std::move(params), options.lr), options_(options) {
  check_rate("SGD", "lr", options.lr);
  check_rate("SGD", "momentum", options.momentum);
  check_rate("SGD", "weight_decay", options.weight_decay);
  require<ValueError>(!options.nesterov || (options.momentum > 0 && options.dampening == 0),
                      "SGD: expected momentum > 0 and dampening = 0 for nesterov, got ",
                      options.momentum, " and ", options.dampening);
  if (options.momentum > 0) m_ = zeros_like(params_);
}

void SGD::step() {
  const SgdConfig config{options_.momentum, options_.dampening, options_.weight_decay,
                         options_.nesterov};
  dispatch("SGD", params_[0], [&]<class T>(const auto& ctx) {
    std::vector<SgdSlot<T>> slots;
    for (size_t i = 0; i < params_.size(); ++i) {
      const Tensor grad = params_[i].grad();
      if (!grad.defined()) continue;
      slots.push_back({grad.numel(), params_[i].data<T>(), grad.data<const T>(),
                       m_.empty() ? nullptr : m_[i].data<T>()});
      params_[i].bump_version();
    }
    sgd_step(ctx, config, std::span<const SgdSlot<T>>(slots), lr_device_.data<const double>(),
             step_device_.data<int64_t>());
  });
}

NamedTensors SGD::state_dict() const {
  NamedTensors state{{"step", step_device_}};
  add_named(state, m_, "momentum_buffer");
  return state;
}

}  // namespace sinter
