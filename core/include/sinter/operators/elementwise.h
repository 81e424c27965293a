// Element-wise operators and movement of data.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// Reads x at sum(index[d] * stride[d]) for every index below `shape`, in row-major order. Strides
// are in elements; 0 repeats x along that dimension. Rank 0 is one element.
struct Strided {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};
  bool operator==(const Strided&) const = default;
  void each(auto&& f) const { f("shape", shape, rank), f("stride", stride, rank); }
};

// Two operands read over one output shape.
struct Broadcast {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride_a[kMaxRank] = {};
  int64_t stride_b[kMaxRank] = {};
  bool operator==(const Broadcast&) const = default;
  void each(auto&& f) const {
    f("shape", shape, rank), f("stride_a", stride_a, rank), f("stride_b", stride_b, rank);
  }
};

// y = value, converted to y's dtype, any.
struct Fill {
  static constexpr const char* name = "fill";
  double value = 0;
  Out y;
  void each(auto&& f) { f("value", value), f("y", y); }
};

// y = x converted element by element. Any two dtypes.
struct Cast {
  static constexpr const char* name = "cast";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

// y = x, of one shape and dtype, any; they may overlap.
struct Copy {
  static constexpr const char* name = "copy";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

// y (of g.shape) = x read through g: permutes and broadcasts. Any dtype.
struct StridedCopy {
  static constexpr const char* name = "strided_copy";
  Strided g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};

// y (of g.shape) = a kind b.
enum class BinaryOp { kAdd, kSub, kMul, kDiv };
struct Binary {
  static constexpr const char* name = "binary";
  BinaryOp kind = BinaryOp::kAdd;
  Broadcast g;
  In a, b;
  Out y;
  void each(auto&& f) { f("kind", kind), f("g", g), f("a", a), f("b", b), f("y", y); }
};

// y = alpha * x.
struct Scale {
  static constexpr const char* name = "scale";
  double alpha = 1;
  In x;
  Out y;
  void each(auto&& f) { f("alpha", alpha), f("x", x), f("y", y); }
};

// y += x.
struct Accumulate {
  static constexpr const char* name = "accumulate";
  In x;
  InOut y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

// y = max(x, 0); a NaN stays a NaN.
struct ReluForward {
  static constexpr const char* name = "relu_forward";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};
// y = max(a + b, 0), all of one shape; a NaN stays a NaN.
struct AddRelu {
  static constexpr const char* name = "add_relu";
  In a, b;
  Out y;
  void each(auto&& f) { f("a", a), f("b", b), f("y", y); }
};
// dx = 0 where y <= 0, else dy: the gradient at 0 is 0, and a NaN passes its gradient on, as in
// PyTorch.
struct ReluBackward {
  static constexpr const char* name = "relu_backward";
  In y, dy;
  Out dx;
  void each(auto&& f) { f("y", y), f("dy", dy), f("dx", dx); }
};

}  // namespace op

SINTER_OPERATOR(Fill);
SINTER_OPERATOR(Cast);
SINTER_OPERATOR(Copy);
SINTER_OPERATOR(StridedCopy);
SINTER_OPERATOR(Binary);
SINTER_OPERATOR(Scale);
SINTER_OPERATOR(Accumulate);
SINTER_OPERATOR(ReluForward);
SINTER_OPERATOR(AddRelu);
SINTER_OPERATOR(ReluBackward);

}  // namespace sinter
