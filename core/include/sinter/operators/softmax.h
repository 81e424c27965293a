// Softmax.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// x, y: (outer, classes, inner), normalized over the middle dimension. float terms of a row's sum
// are added in blocks, and the blocks in double.
struct SoftmaxShape {
  int64_t outer = 0, classes = 0, inner = 0;
  bool operator==(const SoftmaxShape&) const = default;
  void each(auto&& f) const { f("outer", outer), f("classes", classes), f("inner", inner); }
};
struct SoftmaxForward {
  static constexpr const char* name = "softmax_forward";
  SoftmaxShape g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};
// dx = y * (dy - sum of y * dy over the classes).
struct SoftmaxBackward {
  static constexpr const char* name = "softmax_backward";
  SoftmaxShape g;
  In y, dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("y", y), f("dy", dy), f("dx", dx); }
};
struct LogSoftmaxForward {
  static constexpr const char* name = "log_softmax_forward";
  SoftmaxShape g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};
// dx = dy - exp(y) * (sum of dy over the classes).
struct LogSoftmaxBackward {
  static constexpr const char* name = "log_softmax_backward";
  SoftmaxShape g;
  In y, dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("y", y), f("dy", dy), f("dx", dx); }
};

}  // namespace op

SINTER_OPERATOR(SoftmaxForward);
SINTER_OPERATOR(SoftmaxBackward);
SINTER_OPERATOR(LogSoftmaxForward);
SINTER_OPERATOR(LogSoftmaxBackward);

}  // namespace sinter
