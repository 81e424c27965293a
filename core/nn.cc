#include "sinter/nn.h"

#include <cmath>
#include <typeinfo>

#include "sinter/fused.h"
#include "sinter/random.h"

namespace sinter {
namespace {

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

Tensor Module::operator()(const Tensor& x) {
  try {
    return forward(x);
  } catch (Error& error) {
    // A module does not know its own name: whoever called it looks it up among its children, and
    // only now.
    if (error.origin() != nullptr) {
      class Find : public Visitor {
       public:
        explicit Find(Error& error) : error_(error) {}
        void parameter(const std::string&, Tensor&) override {}
        void buffer(const std::string&, Tensor&) override {}
        void module(const std::string& name, Module& child) override {
          if (&child == error_.origin()) error_.prepend(name);
        }

       private:
        Error& error_;
      } find(error);
      visit(find);
    }
    error.set_origin(this);
    throw;
  }
}

NamedTensors Module::named_parameters() {
  NamedTensors result;
  walk(*this, [&](const std::string& name, Tensor& tensor, bool trained) {
    if (trained) result.emplace_back(name, tensor);
  });
  return result;
}

std::vector<Tensor> Module::parameters() {
  std::vector<Tensor> result;
  for (auto& [name, tensor] : named_parameters()) result.push_back(tensor);
  return result;
}

NamedTensors Module::named_buffers() {
  NamedTensors result;
  walk(*this, [&](const std::string& name, Tensor& tensor, bool trained) {
    if (!trained) result.emplace_back(name, tensor);
  });
  return result;
}

NamedTensors Module::state_dict() {
  NamedTensors result;
  walk(*this, [&](const std::string& name, Tensor& tensor, bool) {
    result.emplace_back(name, tensor.detach());
  });
  return result;
}

void Module::load_state_dict(const NamedTensors& state) {
  copy_state("load_state_dict", state_dict(), state);
}

Module& Module::to(Device device) {
  require_usable(device);
  walk(*this, [&](const std::string&, Tensor& tensor, bool) {
    tensor = tensor.detach().to(device).set_requires_grad(tensor.requires_grad());
  });
  return *this;
}

Module& Module::to(DType dtype) {
  require<DtypeError>(is_floating(dtype), "to: expected float32 or float64 for a module, got ",
                      dtype);
  walk(*this, [&](const std::string&, Tensor& tensor, bool) {
    if (!is_floating(tensor.dtype())) return;
    tensor = tensor.detach().to(dtype).set_requires_grad(tensor.requires_grad());
  });
  return *this;
}

void Module::zero_grad() {
  for (const Tensor& parameter : parameters()) {
    if (parameter.requires_grad()) parameter.set_grad({});
  }
}

void Module::train(bool on) {
  training_ = on;
  class Children : public Visitor {
   public:
    explicit Children(bool on) : on_(on) {}
    void parameter(const std::string&, Tensor&) override {}
    void buffer(const std::string&, Tensor&) override {}
    void module(const std::string&, Module& child) override { child.train(on_); }

   private:
    bool on_;
  } children(on);
  visit(children);
}

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

bool MaxPool2d::is_2x2() const {
  const Pair stride = options_.stride;
  return kernel_.h == 2 && kernel_.w == 2 && (stride.h == 0 || stride.h == 2) &&
         (stride.w == 0 || stride.w == 2) && options_.padding.h == 0 && options_.padding.w == 0;
}

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

namespace {

// module as exactly M, not as something derived from it that may compute otherwise.
template <class M> M* exactly(Module* module) {
  return typeid(*module) == typeid(M) ? static_cast<M*>(module) : nullptr;
}

// The layers from the front that one fused operator computes, and its result; none if there is no
// such operator.
struct Fused {
  size_t layers = 0;
  Tensor y;
};

Fused fuse_front(const Tensor& x, std::span<Module* const> modules) {
  const auto is_relu = [&](size_t i) {
    return i < modules.size() && exactly<ReLU>(modules[i]) != nullptr;
  };
  if (const auto* conv = exactly<Conv2d>(modules[0])) {
    const auto* pool = is_relu(1) && modules.size() > 2 ? exactly<MaxPool2d>(modules[2]) : nullptr;
    if (pool == nullptr || !pool->is_2x2()) return {};
    return {3, conv2d_relu_pool(x, conv->weight, conv->bias, conv->options())};
  }
  std::vector<Tensor> weights, biases;
  size_t layers = 0;
  bool relu_last = false;
  while (layers < modules.size()) {
    const auto* linear = exactly<Linear>(modules[layers]);
    if (linear == nullptr || (layers > 0 && !relu_last)) break;
    weights.push_back(linear->weight);
    biases.push_back(linear->bias);
    relu_last = is_relu(layers + 1);
    layers += relu_last ? 2 : 1;
  }
  if (layers < 2) return {};
  return {layers, mlp(x, weights, biases, relu_last)};
}

}  // namespace

Tensor run_sequence(const Tensor& x, std::span<Module* const> modules) {
  Tensor y = x;
  while (!modules.empty()) {
    Fused front;
    try {
      if (fusion_enabled()) front = fuse_front(y, modules);
    } catch (const CudaError&) {
      throw;
    } catch (const OutOfMemoryError&) {
      throw;
    } catch (const Error&) {
      // Arguments that do not fit: the layer at fault is named when they run one by one.
    }
    if (front.layers == 0) front = {1, (*modules[0])(y)};
    y = front.y;
    modules = modules.subspan(front.layers);
  }
  return y;
}

Tensor Sequential::forward(const Tensor& x) {
  std::vector<Module*> modules;
  modules.reserve(children_.size());
  for (const auto& child : children_) modules.push_back(child.get());
  return run_sequence(x, modules);
}

void Sequential::visit(Visitor& v) {
  for (size_t i = 0; i < children_.size(); ++i) v.module(std::to_string(i), *children_[i]);
}

}  // namespace sinter
