// Derivatives against central differences, in float64 on either device.
#pragma once

#include <string>
#include <vector>

#include "core/base/detail.h"
#include "tests/support/values.h"

namespace sinter::test {

struct GradientCheck {
  double worst = 0;   // largest |analytic - numeric|, as a share of the tolerance
  std::string where;  // of the worst: mode, input, element, both values
  bool ok() const { return worst <= 1; }
};

// Compares the backward pass of `op`, eager and compiled, contracted with a random upstream
// gradient, with (L(x + h) - L(x - h)) / 2h for every element of every input.
//
// h = 1e-5 balances truncation (h^2 / 6 of the third derivative, 1e-11) against cancellation
// (2^-52 / h of L, 1e-11 too); the tolerance leaves three digits above both and is five below a
// derivative that is wrong.
inline GradientCheck gradient_check(Device device, const std::vector<Array>& inputs, const Op& op,
                                    uint64_t seed = 1) {
  constexpr double kStep = 1e-5, kTolerance = 1e-8;
  const TensorOptions options{kFloat64, device};

  std::vector<Tensor> leaves;
  for (const Array& a : inputs) leaves.push_back(leaf(a, options));
  const Shape shape = op(leaves).shape();
  const Array dy = noise(Sizes(shape.begin(), shape.end()), seed);
  const Tensor upstream = tensor(dy, options);
  std::vector<std::vector<std::vector<double>>> analytic;  // of each mode and input
  for (const app::Mode mode : app::kModes) {
    const std::vector<Tensor> gradients = app::results(mode, [&] {
      std::vector<Tensor> all;
      for (const Tensor& t : leaves) t.set_grad({});
      op(leaves).backward(upstream);
      for (const Tensor& t : leaves) all.push_back(t.grad());
      return all;
    });
    analytic.emplace_back();
    for (const Tensor& g : gradients) analytic.back().push_back(g.to_vector<double>());
  }

  // The loss is contracted on the host: only `op` itself is under test.
  const auto loss = [&](const std::vector<Array>& at, double* magnitude) {
    const no_grad guard;
    std::vector<Tensor> tensors;
    for (const Array& a : at) tensors.push_back(tensor(a, options));
    const std::vector<double> values = op(tensors).to_vector<double>();
    double total = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      total += values[i] * dy.v[i];
      if (magnitude != nullptr) *magnitude += std::abs(values[i] * dy.v[i]);
    }
    return total;
  };
  double scale = 1;
  loss(inputs, &scale);

  GradientCheck result;
  std::vector<Array> moved = inputs;
  for (size_t k = 0; k < inputs.size(); ++k) {
    for (size_t i = 0; i < moved[k].v.size(); ++i) {
      double& x = moved[k].v[i];
      const double x0 = x;
      x = x0 + kStep;
      const double above = loss(moved, nullptr);
      x = x0 - kStep;
      const double below = loss(moved, nullptr);
      x = x0;
      const double numeric = (above - below) / (2 * kStep);
      for (const app::Mode mode : app::kModes) {
        const double derivative = analytic[static_cast<size_t>(mode)][k][i];
        const double error =
            std::abs(derivative - numeric) / (kTolerance * std::max(scale, std::abs(numeric)));
        if (error <= result.worst) continue;
        result.worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
        result.where = str(app::name(mode), ", input ", k, "[", i, "]: analytic ", derivative,
                           ", numeric ", numeric);
      }
    }
  }
  return result;
}

inline void check_gradient(Device device, const std::vector<Array>& inputs, const Op& op,
                           uint64_t seed = 1) {
  const GradientCheck result = gradient_check(device, inputs, op, seed);
  INFO("gradient check: " << result.where << ", " << result.worst << " of the tolerance");
  CHECK(result.ok());
}

}  // namespace sinter::test
