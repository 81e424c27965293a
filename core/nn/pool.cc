#include "sinter/nn/pool.h"

#include "core/base/detail.h"
#include "core/nn/repr.h"

namespace sinter {

namespace {

std::string pool_repr(Pair kernel, const std::optional<Pair>& stride, Pair padding) {
  return str("kernel_size=", repr(kernel), ", stride=", repr(stride.value_or(kernel)),
             ", padding=", repr(padding));
}

std::string size_repr(Pair size) {
  const auto extent = [](int n) { return n < 0 ? std::string("None") : str(n); };
  return str("output_size=(", extent(size.h), ", ", extent(size.w), ')');
}

}  // namespace

std::string MaxPool2d::extra_repr() const {
  std::string text = pool_repr(kernel_, options_.stride, options_.padding);
  if (options_.dilation.h != 1 || options_.dilation.w != 1)
    text += ", dilation=" + repr(options_.dilation);
  if (options_.ceil_mode) text += ", ceil_mode=True";
  return text;
}
std::string AvgPool2d::extra_repr() const {
  std::string text = pool_repr(kernel_, options_.stride, options_.padding);
  if (options_.ceil_mode) text += ", ceil_mode=True";
  if (!options_.count_include_pad) text += ", count_include_pad=False";
  if (options_.divisor_override) text += str(", divisor_override=", *options_.divisor_override);
  return text;
}
std::string AdaptiveAvgPool2d::extra_repr() const { return size_repr(size_); }
std::string AdaptiveMaxPool2d::extra_repr() const { return size_repr(size_); }

}  // namespace sinter
