#include "sinter/optim.h"

#include <algorithm>
#include <unordered_set>

#include "core/base/detail.h"
#include "sinter/emit.h"
#include "sinter/operators/optim.h"

namespace sinter {

Optimizer::Optimizer(const char* name, std::vector<Tensor> params, double lr)
    : name_(name), lr_(lr) {
  require<ValueError>(!params.empty(), name, ": expected at least one parameter");
  std::unordered_set<const void*> seen;
  for (const Tensor& p : params) {
    require<GradError>(p.defined() && p.is_leaf() && is_floating(p.dtype()), name,
                       ": expected leaves of a floating dtype, got ",
                       !p.defined()  ? "an undefined tensor"
                       : p.is_leaf() ? sinter::name(p.dtype())
                                     : "the result of a recorded operator");
    if (seen.insert(p.identity()).second) params_.push_back(p);
  }
  // One that never asked for a gradient is more likely a mistake than frozen.
  require<GradError>(std::any_of(params_.begin(), params_.end(),
                                 [](const Tensor& p) { return p.requires_grad(); }),
                     name, ": expected leaves that require grad, and none does");
  check_alike();
  // Two updates of one place would race with each other.
  std::vector<const Tensor*> sorted;
  for (const Tensor& p : params_)
    if (p.bytes() > 0) sorted.push_back(&p);
  std::sort(sorted.begin(), sorted.end(),
            [&](const Tensor* a, const Tensor* b) { return a->place() < b->place(); });
  for (size_t i = 1; i < sorted.size(); ++i) {
    const auto [storage, start] = sorted[i - 1]->place();
    const auto end = start + static_cast<int64_t>(sorted[i - 1]->bytes());
    require<ValueError>(std::pair(storage, end) <= sorted[i]->place(), name,
                        ": two parameters, of shapes ", sorted[i - 1]->shape(), " and ",
                        sorted[i]->shape(), ", share memory; give one of them");
  }
  const Device device = params_[0].device();
  lr_device_ = full({}, lr, {kFloat64, device});
  steps_ = zeros({static_cast<int64_t>(params_.size())}, {kInt64, device});
}

void Optimizer::check_alike() const {
  for (const Tensor& p : params_) {
    require<DtypeError>(p.dtype() == params_[0].dtype(), name_, ": expected one dtype, got ",
                        params_[0].dtype(), " and ", p.dtype());
    require<DeviceError>(p.device() == params_[0].device(), name_, ": expected one device, got ",
                         params_[0].device(), " and ", p.device());
  }
}

void Optimizer::follow_parameters(std::initializer_list<std::vector<Tensor>*> state) {
  check_alike();
  const Device device = params_[0].device();
  if (steps_.device() != device) {
    lr_device_ = lr_device_.to(device);
    steps_ = steps_.to(device);
  }
  for (std::vector<Tensor>* tensors : state) {
    for (size_t i = 0; i < tensors->size(); ++i) {
      Tensor& t = (*tensors)[i];
      if (t.dtype() != params_[i].dtype()) t = t.to(params_[i].dtype());
      if (t.device() != device) t = t.to(device);
    }
  }
}

void Optimizer::zero_grad() {
  for (const Tensor& p : params_) p.set_grad({});
}

void Optimizer::set_lr(double lr) {
  require<ValueError>(lr >= 0, "set_lr: expected lr >= 0, got ", lr);
  lr_ = lr;
  lr_device_.fill_(lr);
}

int64_t Optimizer::steps() const {
  const std::vector<int64_t> counts = steps_.to_vector<int64_t>();
  return *std::max_element(counts.begin(), counts.end());
}

void Optimizer::load_state_dict(const NamedTensors& state) {
  copy_state("load_state_dict", state_dict(), state);
}

namespace {

void check_rate(const char* name, const char* what, double value) {
  require<ValueError>(value >= 0, name, ": expected ", what, " >= 0, got ", value);
}

std::vector<Tensor> zeros_like(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(sinter::zeros_like(t));
  return result;
}

void add_named(NamedTensors& state, const std::vector<Tensor>& tensors, const char* name) {
  for (size_t i = 0; i < tensors.size(); ++i) state.emplace_back(str(i, ".", name), tensors[i]);
}

}  // namespace

Adam::Adam(std::vector<Tensor> params, const AdamOptions& options)
    : Adam("Adam", std::move(params), options) {}

Adam::Adam(const char* name, std::vector<Tensor> params, const AdamOptions& options)
    : Optimizer(name, std::move(params), options.lr), options_(options) {
  check_rate(name, "lr", options.lr);
  check_rate(name, "eps", options.eps);
  check_rate(name, "weight_decay", options.weight_decay.value_or(0));
  for (double beta : {options.beta1, options.beta2}) {
    require<ValueError>(beta >= 0 && beta < 1, name, ": expected betas in [0, 1), got ", beta);
  }
  m_ = zeros_like(params_);
  v_ = zeros_like(params_);
}

void Adam::step() {
  follow_parameters({&m_, &v_});
  op::AdamStep step;
  step.c = {options_.beta1, options_.beta2, options_.eps, options_.weight_decay.value_or(0),
            options_.decoupled};
  each_gradient([&](size_t i, const Tensor& grad) {
    step.place.push_back(static_cast<int64_t>(i));
    step.g.push_back(in(grad));
    step.p.push_back(inout(params_[i]));
    step.m.push_back(inout(m_[i]));
    step.v.push_back(inout(v_[i]));
  });
  if (step.p.empty()) return;
  step.lr = in(lr_device_);
  step.steps = inout(steps_);
  emit(std::move(step));
}

NamedTensors Adam::state_dict() const {
  NamedTensors state{{"step", steps_}};
  add_named(state, m_, "exp_avg");
  add_named(state, v_, "exp_avg_sq");
  return state;
}

namespace {

AdamOptions decoupled(AdamOptions options) {
  options.decoupled = true;
  if (!options.weight_decay) options.weight_decay = 0.01;
  return options;
}

}  // namespace

AdamW::AdamW(std::vector<Tensor> params, const AdamOptions& options)
    : Adam("AdamW", std::move(params), decoupled(options)) {}

SGD::SGD(std::vector<Tensor> params, const SGDOptions& options)
    : Optimizer("SGD", std::move(params), options.lr), options_(options) {
  check_rate("SGD", "lr", options.lr);
  check_rate("SGD", "momentum", options.momentum);
  check_rate("SGD", "dampening", options.dampening);
  check_rate("SGD", "weight_decay", options.weight_decay);
  require<ValueError>(!options.nesterov || (options.momentum > 0 && options.dampening == 0),
                      "SGD: expected momentum > 0 and dampening = 0 for nesterov, got ",
                      options.momentum, " and ", options.dampening);
  if (options.momentum > 0) m_ = zeros_like(params_);
}

void SGD::step() {
  follow_parameters({&m_});
  op::SgdStep step;
  step.c = {options_.momentum, options_.dampening, options_.weight_decay, options_.nesterov};
  each_gradient([&](size_t i, const Tensor& grad) {
    step.place.push_back(static_cast<int64_t>(i));
    step.g.push_back(in(grad));
    step.p.push_back(inout(params_[i]));
    if (!m_.empty()) step.m.push_back(inout(m_[i]));
  });
  if (step.p.empty()) return;
  step.lr = in(lr_device_);
  step.steps = inout(steps_);
  emit(std::move(step));
}

NamedTensors SGD::state_dict() const {
  NamedTensors state{{"step", steps_}};
  add_named(state, m_, "momentum_buffer");
  return state;
}

}  // namespace sinter
