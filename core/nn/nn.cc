#include "sinter/nn.h"

#include <cmath>

#include "core/base/detail.h"
#include "core/nn/repr.h"
#include "sinter/random.h"

namespace sinter {
namespace {

// A parameter drawn from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)).
Tensor parameter(const Shape& shape, int64_t fan_in) {
  Tensor t = empty(shape);
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0;
  uniform_(t, -bound, bound);
  return t.set_requires_grad();
}

}  // namespace

std::string Conv2d::extra_repr() const {
  const auto different = [](Pair p, int usual) { return p.h != usual || p.w != usual; };
  std::string text = str(weight.size(1) * options_.groups, ", ", weight.size(0), ", kernel_size=",
                         repr({static_cast<int>(weight.size(2)), static_cast<int>(weight.size(3))}),
                         ", stride=", repr(options_.stride));
  if (different(options_.padding, 0)) text += ", padding=" + repr(options_.padding);
  if (different(options_.dilation, 1)) text += ", dilation=" + repr(options_.dilation);
  if (options_.groups != 1) text += str(", groups=", options_.groups);
  if (!bias.defined()) text += ", bias=False";
  return text;
}
std::string Linear::extra_repr() const {
  return str("in_features=", weight.size(1), ", out_features=", weight.size(0),
             ", bias=", bias.defined() ? "True" : "False");
}
std::string Flatten::extra_repr() const { return str("start_dim=", first_, ", end_dim=", last_); }

// ---- layers -------------------------------------------------------------------------------------

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

}  // namespace sinter
