// Convolutions.
#pragma once

#include "sinter/conv_algo.h"
#include "sinter/operators/operator.h"

namespace sinter {

namespace op {

// Cross-correlation, as every framework's 'convolution'.
//   x: (n, c, h, w)  weight: (o, c / groups, kh, kw)  b: (o)  y: (n, o, oh, ow)
//   oh = (h + 2 pad_h - dil_h (kh - 1) - 1) / stride_h + 1, likewise ow; padding is zeros.
// The framework ensures that every extent is at least 1, that extents, h + 2 pad_h, w + 2 pad_w,
// strides and dilations are below 2^30, and h * w, oh * ow and c / groups * kh * kw below 2^31.
struct Conv2dShape {
  int n = 0, c = 0, h = 0, w = 0;
  int o = 0, kh = 0, kw = 0;
  int stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1, groups = 1;
  int oh = 0, ow = 0;
  ConvAlgo algo = ConvAlgo::kAuto;
  bool tf32 = false;  // as GemmShape's
  bool operator==(const Conv2dShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("c", c), f("h", h), f("w", w), f("o", o), f("kh", kh), f("kw", kw);
    f("stride_h", stride_h), f("stride_w", stride_w), f("pad_h", pad_h), f("pad_w", pad_w);
    f("dil_h", dil_h), f("dil_w", dil_w), f("groups", groups), f("oh", oh), f("ow", ow);
    f("algo", algo), f("tf32", tf32);
  }
};
// relu: y is the ReLU of the convolution, to the bit what the operator relu makes of it. b
// optional.
struct Conv2dForward {
  static constexpr const char* name = "conv2d_forward";
  Conv2dShape g;
  In x, weight, b;
  Out y;
  bool relu = false;
  void each(auto&& f) {
    f("g", g), f("relu", relu), f("x", x), f("weight", weight), f("b", b), f("y", y);
  }
};
struct Conv2dBackwardData {
  static constexpr const char* name = "conv2d_backward_data";
  Conv2dShape g;
  In dy, weight;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("weight", weight), f("dx", dx); }
};
struct Conv2dBackwardWeights {
  static constexpr const char* name = "conv2d_backward_weights";
  Conv2dShape g;
  In x, dy;
  OptionalOut dweight, db;
  void each(auto&& f) { f("g", g), f("x", x), f("dy", dy), f("dweight", dweight), f("db", db); }
};

// See work.h.
double flops(const Conv2dForward& op);
double flops(const Conv2dBackwardData& op);
double flops(const Conv2dBackwardWeights& op);

}  // namespace op

SINTER_OPERATOR(Conv2dForward);
SINTER_OPERATOR(Conv2dBackwardData);
SINTER_OPERATOR(Conv2dBackwardWeights);

}  // namespace sinter
