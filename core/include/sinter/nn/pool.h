// Pooling as layers. None has a parameter.
#pragma once

#include <optional>
#include <string>

#include "sinter/nn.h"

namespace sinter {

class MaxPool2d : public Module {
 public:
  explicit MaxPool2d(Pair kernel_size, std::optional<Pair> stride = {}, Pair padding = 0,
                     Pair dilation = 1, bool ceil_mode = false)
      : kernel_(kernel_size), options_{stride, padding, dilation, ceil_mode} {}
  Tensor forward(const Tensor& x) override { return max_pool2d(x, kernel_, options_); }
  std::string extra_repr() const override;

 private:
  Pair kernel_;
  MaxPool2dOptions options_;
};

class AvgPool2d : public Module {
 public:
  explicit AvgPool2d(Pair kernel_size, std::optional<Pair> stride = {}, Pair padding = 0,
                     bool ceil_mode = false, bool count_include_pad = true,
                     std::optional<int> divisor_override = {})
      : kernel_(kernel_size),
        options_{stride, padding, ceil_mode, count_include_pad, divisor_override} {}
  Tensor forward(const Tensor& x) override { return avg_pool2d(x, kernel_, options_); }
  std::string extra_repr() const override;

 private:
  Pair kernel_;
  AvgPool2dOptions options_;
};

class AdaptiveAvgPool2d : public Module {
 public:
  explicit AdaptiveAvgPool2d(Pair output_size) : size_(output_size) {}
  Tensor forward(const Tensor& x) override { return adaptive_avg_pool2d(x, size_); }
  std::string extra_repr() const override;

 private:
  Pair size_;
};

class AdaptiveMaxPool2d : public Module {
 public:
  explicit AdaptiveMaxPool2d(Pair output_size) : size_(output_size) {}
  Tensor forward(const Tensor& x) override { return adaptive_max_pool2d(x, size_); }
  std::string extra_repr() const override;

 private:
  Pair size_;
};

}  // namespace sinter
