// Normalization.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// Statistics are taken in double about a number of the data, in blocks, which are merged in double
// (Chan, Golub and LeVeque 1983): neither a large mean nor many elements cost precision. They stay
// float64 operands, of which kernels in float take the mean as a sum of two floats: x - mean is
// right to float's rounding of x - mean, not of x.

// x: (n, c, l).
struct BatchNormShape {
  int64_t n = 0, c = 0, l = 0;
  bool operator==(const BatchNormShape&) const = default;
  void each(auto&& f) const { f("n", n), f("c", c), f("l", l); }
};
// y = (x - mean) * rstd * weight + bias, by channel, rstd = 1 / sqrt(var + eps).
//   training: mean and (biased) var are x's. The running statistics, where there, become (1 - m) *
//   running + m * x's, with the variance unbiased; m is `momentum`, or with `cumulative` 1 / count.
//   count, int64, is incremented first. Without elements (n * l = 0) they stay as they are.
//   else: mean and var are the running ones, which stay.
// weight, bias, running_mean, running_var, count: (c), one count, each optional.
// mean, rstd: (c), float64, of what was subtracted and multiplied by.
struct BatchNormForward {
  static constexpr const char* name = "batch_norm_forward";
  BatchNormShape g;
  bool training = false, cumulative = false;
  double momentum = 0, eps = 0;
  In x, weight, bias;
  InOut running_mean, running_var, count;
  Out y, mean, rstd;
  void each(auto&& f) {
    f("g", g), f("training", training), f("cumulative", cumulative), f("momentum", momentum);
    f("eps", eps), f("x", x), f("weight", weight), f("bias", bias);
    f("running_mean", running_mean), f("running_var", running_var), f("count", count);
    f("y", y), f("mean", mean), f("rstd", rstd);
  }
};
// With z = (x - mean) * rstd and sums over n and l:
//   dweight = sum(dy z)   dbias = sum(dy)
//   training: dx = weight * rstd * (dy - mean(dy) - z mean(dy z)); else weight * rstd * dy.
struct BatchNormBackward {
  static constexpr const char* name = "batch_norm_backward";
  BatchNormShape g;
  bool training = false;
  In x, dy, weight, mean, rstd;
  OptionalOut dx, dweight, dbias;
  void each(auto&& f) {
    f("g", g), f("training", training), f("x", x), f("dy", dy), f("weight", weight);
    f("mean", mean), f("rstd", rstd), f("dx", dx), f("dweight", dweight), f("dbias", dbias);
  }
};

// x: (n, groups, channels, inner), normalized over the last two: layer normalization has one group
// and inner = 1. weight, bias: (groups, channels), optional.
struct RowNormShape {
  int64_t n = 0, groups = 1, channels = 0, inner = 1;
  bool centred = true;  // else mean = 0 and var = mean(x^2)
  bool operator==(const RowNormShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("groups", groups), f("channels", channels), f("inner", inner);
    f("centred", centred);
  }
  constexpr int64_t rows() const { return n * groups; }
  constexpr int64_t row() const { return channels * inner; }
};
// mean, rstd: (n, groups), float64.
struct RowNormForward {
  static constexpr const char* name = "row_norm_forward";
  RowNormShape g;
  double eps = 0;
  In x, weight, bias;
  Out y, mean, rstd;
  void each(auto&& f) {
    f("g", g), f("eps", eps), f("x", x), f("weight", weight), f("bias", bias);
    f("y", y), f("mean", mean), f("rstd", rstd);
  }
};
// With z = (x - mean) * rstd and d = dy * weight: dx = rstd * (d - mean(d) - z mean(d z)), without
// mean(d) unless centred; dweight = sum(dy z) and dbias = sum(dy) over n and inner.
struct RowNormBackward {
  static constexpr const char* name = "row_norm_backward";
  RowNormShape g;
  In x, dy, weight, mean, rstd;
  OptionalOut dx, dweight, dbias;
  void each(auto&& f) {
    f("g", g), f("x", x), f("dy", dy), f("weight", weight), f("mean", mean), f("rstd", rstd);
    f("dx", dx), f("dweight", dweight), f("dbias", dbias);
  }
};

}  // namespace op

SINTER_OPERATOR(BatchNormForward);
SINTER_OPERATOR(BatchNormBackward);
SINTER_OPERATOR(RowNormForward);
SINTER_OPERATOR(RowNormBackward);

}  // namespace sinter
