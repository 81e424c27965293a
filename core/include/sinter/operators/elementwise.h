// Element-wise operators and movement of data.
#pragma once

#include <iosfwd>
#include <vector>

#include "sinter/operators/elementwise_table.h"
#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// Reads x at sum(index[d] * stride[d]) for every index below `shape`, in row-major order. Strides
// are in elements; 0 repeats x along that dimension, negative ones go backwards. Rank 0 is one
// element.
struct Strided {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};
  bool operator==(const Strided&) const = default;
  void each(auto&& f) const { f("shape", shape, rank), f("stride", stride, rank); }
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

// y = an operator of the table (elementwise_table.h) on a, b and c, which broadcast to y's shape;
// or, with `gradient` 0, 1 or 2, y = the gradient of operand a, b or c, from the operands, the
// result and its gradient dy, of which those are there that the table says it reads. An operand
// that is not there is a number. y may be one of what has its shape.
//   Any dtypes that the table allows, all the same but for bools that are so by the operator's
//   kind.
// Gradients are floating.
struct Map {
  static constexpr const char* name = "map";
  Element kind = Element::kAdd;
  int gradient = -1;
  double number[3] = {};
  In a, b, c, result, dy;
  Out y;
  const char* title() const { return gradient < 0 ? info(kind).forward : info(kind).backward; }
  void each(auto&& f) {
    f("kind", kind), f("gradient", gradient);
    f("number_a", number[0]), f("number_b", number[1]), f("number_c", number[2]);
    f("a", a), f("b", b), f("c", c), f("result", result), f("dy", dy), f("y", y);
  }
};
// Whether operand k (of a, b, c, result and dy) is read.
constexpr bool reads(Element kind, int gradient, int k) {
  if (gradient < 0) return k < info(kind).operands;
  return k == 4 || (info(kind).reads[gradient] >> k & 1) != 0;
}
// The dtype of the arithmetic: that of every operand and of y but for bools.
inline DType arithmetic_of(const Map& o) {
  if (info(o.kind).types != element::kTest) return o.y.dtype;
  return o.a.buffer != 0 ? o.a.dtype : o.b.dtype;
}
constexpr DType operand_dtype(Element kind, int k, DType arithmetic) {
  return k == 0 && info(kind).types == element::kSelect ? kBool : arithmetic;
}

// Those that are emitted and looked for by name.
inline Map map(Element kind, const In& a, const Out& y) {
  return {kind, -1, {}, a, {}, {}, {}, {}, y};
}
inline Map map(Element kind, const In& a, const In& b, const Out& y) {
  return {kind, -1, {}, a, b, {}, {}, {}, y};
}
// factor * x.
inline Map scale(double factor, const In& x, const Out& y) {
  return {Element::kMul, -1, {0, factor, 0}, x, {}, {}, {}, {}, y};
}
inline Map relu_backward(const In& y, const In& dy, const Out& dx) {
  return {Element::kRelu, 0, {}, {}, {}, {}, y, dy, dx};
}
inline bool is_forward(const Map* map, Element kind) {
  return map != nullptr && map->kind == kind && map->gradient < 0;
}
inline bool is_relu(const Map* map) { return is_forward(map, Element::kRelu); }
inline bool is_relu_backward(const Map* map) {
  return map != nullptr && map->kind == Element::kRelu && map->gradient == 0;
}

// Several operators of the table in one pass, each as Map does it, to the bit. Values are numbered:
// the inputs first, then the steps' results. All results have one shape, to which the inputs
// broadcast.
struct ChainStep {
  Element kind = Element::kAdd;
  int8_t gradient = -1;
  int8_t from[5] = {-1, -1, -1, -1, -1};  // a, b, c, result, dy; -1: a number, or not read
  int8_t to = -1;                         // which of the outputs it is written to; -1: none
  DType dtype = kFloat32;                 // of the arithmetic
  double number[3] = {};
  bool operator==(const ChainStep& other) const;
};
std::ostream& operator<<(std::ostream& out, const ChainStep& step);
inline constexpr int kMaxChainSteps = 12, kMaxChainInputs = 8, kMaxChainOutputs = 6;
// Arithmetic is of one floating dtype, or of bools that are compared or chosen from.
struct MapChain {
  static constexpr const char* name = "map_chain";
  std::vector<ChainStep> steps;
  std::vector<In> x;
  std::vector<Out> y;
  void each(auto&& f) { f("steps", steps), f("x", x), f("y", y); }
};

// y += x.
struct Accumulate {
  static constexpr const char* name = "accumulate";
  In x;
  InOut y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

}  // namespace op

SINTER_OPERATOR(Fill);
SINTER_OPERATOR(Cast);
SINTER_OPERATOR(Copy);
SINTER_OPERATOR(Map);
SINTER_OPERATOR(MapChain);
SINTER_OPERATOR(Accumulate);

}  // namespace sinter
