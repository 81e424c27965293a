// Pooling.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// x: (n, c, h, w)  y: (n, c, oh, ow). Window (i, j) has the rows i * stride_h - pad_h + r * dil_h,
// r < kh, and likewise columns, as far as they lie in x. The framework ensures that each holds at
// least one element of x, that 2 * pad <= kernel, that every extent but n is at least 1, and what
// it ensures of a convolution's; kh * kw is below 2^31.
//   adaptive: window i of oh has the rows from floor(i h / oh) up to ceil((i + 1) h / oh), and
//   likewise columns; kh and kw are the largest window's extents, strides, paddings and dilations
//   mean nothing.
struct Pool2dShape {
  int n = 0, c = 0, h = 0, w = 0;
  int kh = 0, kw = 0, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1;
  int oh = 0, ow = 0;
  bool adaptive = false;
  bool operator==(const Pool2dShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("c", c), f("h", h), f("w", w), f("kh", kh), f("kw", kw);
    f("stride_h", stride_h), f("stride_w", stride_w), f("pad_h", pad_h), f("pad_w", pad_w);
    f("dil_h", dil_h), f("dil_w", dil_w), f("oh", oh), f("ow", ow), f("adaptive", adaptive);
  }
};
// choice[i]: the place r * kw + s in its window of the element chosen for y[i], counted from the
// window's first row and column, which may lie in the padding: the first maximum in row-major
// order; a NaN counts as the maximum. Padding never wins. uint8 where kh * kw <= 256, else int32.
struct MaxPool2dForward {
  static constexpr const char* name = "max_pool2d_forward";
  Pool2dShape g;
  In x;
  Out y, choice;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y), f("choice", choice); }
};
struct MaxPool2dBackward {
  static constexpr const char* name = "max_pool2d_backward";
  Pool2dShape g;
  In dy, choice;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("choice", choice), f("dx", dx); }
};
// f.operator()<Code>(), Code being the element type of `choice`.
template <class F> decltype(auto) with_choice(const Operand& choice, F&& f) {
  if (choice.dtype == kUInt8) return f.template operator()<uint8_t>();
  return f.template operator()<int32_t>();
}
// Where choice points to: row * w + column in the plane, int64.
struct MaxPool2dIndices {
  static constexpr const char* name = "max_pool2d_indices";
  Pool2dShape g;
  In choice;
  Out indices;
  void each(auto&& f) { f("g", g), f("choice", choice), f("indices", indices); }
};
// What a window's sum is divided by: `divisor` if that is not 0, else its elements; with count_pad
// (PyTorch's count_include_pad) those in the padding too. Without dilation.
struct AvgPool2dForward {
  static constexpr const char* name = "avg_pool2d_forward";
  Pool2dShape g;
  bool count_pad;
  int divisor;
  In x;
  Out y;
  void each(auto&& f) {
    f("g", g), f("count_pad", count_pad), f("divisor", divisor), f("x", x), f("y", y);
  }
};
struct AvgPool2dBackward {
  static constexpr const char* name = "avg_pool2d_backward";
  Pool2dShape g;
  bool count_pad;
  int divisor;
  In dy;
  Out dx;
  void each(auto&& f) {
    f("g", g), f("count_pad", count_pad), f("divisor", divisor), f("dy", dy), f("dx", dx);
  }
};

}  // namespace op

SINTER_OPERATOR(MaxPool2dForward);
SINTER_OPERATOR(MaxPool2dBackward);
SINTER_OPERATOR(MaxPool2dIndices);
SINTER_OPERATOR(AvgPool2dForward);
SINTER_OPERATOR(AvgPool2dBackward);

}  // namespace sinter
