// Every element-wise operator, one line each: from it come its kernels on both backends, its
// derivative in the graph, its steps in fused chains and its name in what is printed.
//
//   UNARY(kName, name, types, y, reads, da)
//   BINARY(kName, name, types, y, reads, da, reads, db)
//   TERNARY(kName, name, types, y, reads, da, reads, db, reads, dc)
//
// y is an expression in the operands a, b and c, of type T; so are the gradients of each, in
// addition in the result y and in its gradient dy. An operand is a tensor or a number: what other
// libraries call a parameter (leaky_relu's slope) is an operand that has no gradient.
//   types: what T may be, and what y is
//     kReal       float32 and float64
//     kNumber     those and integers
//     kAny        those and bool
//     kTest       any T; y is a bool
//     kSelect     any T, of b, c and y; a is a bool
//   reads: what the gradient's expression reads beside dy, and so what the graph keeps: kA | kY …,
//   or
//     kNothing    dy alone
//     kPass       it is dy itself
//     kNone       no gradient: the operand is not differentiable
//
// Gradients where there is none in the strict sense are PyTorch's: 0 of abs, sign and relu at 0;
// both bounds of clamp pass it; minimum and maximum halve it at a tie; a NaN that was compared
// passes it on.
#pragma once

#include "sinter/operators/elementwise_math.h"

// clang-format off
#define SINTER_ELEMENTWISE(UNARY, BINARY, TERNARY)                                               \
  UNARY(kAbs, abs, kNumber, abs(a), kA, dy * sign(a))                                            \
  UNARY(kNeg, neg, kNumber, neg(a), kNothing, -dy)                                               \
  UNARY(kSign, sign, kAny, sign(a), kNothing, T(0))                                              \
  UNARY(kSquare, square, kNumber, mul(a, a), kA, dy * (T(2) * a))                                \
  UNARY(kReciprocal, reciprocal, kReal, T(1) / a, kY, -dy * (y * y))                             \
  UNARY(kSqrt, sqrt, kReal, sqrt(a), kY, dy / (T(2) * y))                                        \
  UNARY(kRsqrt, rsqrt, kReal, T(1) / sqrt(a), kY, T(-0.5) * dy * (y * y * y))                    \
  UNARY(kExp, exp, kReal, exp(a), kY, dy * y)                                                    \
  UNARY(kExpm1, expm1, kReal, expm1(a), kY, dy * (y + T(1)))                                     \
  UNARY(kLog, log, kReal, log(a), kA, dy / a)                                                    \
  UNARY(kLog1p, log1p, kReal, log1p(a), kA, dy / (a + T(1)))                                     \
  UNARY(kSin, sin, kReal, sin(a), kA, dy * cos(a))                                               \
  UNARY(kCos, cos, kReal, cos(a), kA, dy * -sin(a))                                              \
  UNARY(kTanh, tanh, kReal, tanh(a), kY, dy * (T(1) - y * y))                                    \
  UNARY(kErf, erf, kReal, erf(a), kA, dy * T(1.1283791670955125739) * exp(-a * a))               \
  UNARY(kFloor, floor, kReal, floor(a), kNothing, T(0))                                          \
  UNARY(kCeil, ceil, kReal, ceil(a), kNothing, T(0))                                             \
  UNARY(kRound, round, kReal, rint(a), kNothing, T(0))                                           \
  UNARY(kTrunc, trunc, kReal, trunc(a), kNothing, T(0))                                          \
  UNARY(kSigmoid, sigmoid, kReal, sigmoid(a), kY, dy * (y * (T(1) - y)))                         \
  UNARY(kRelu, relu, kNumber, relu(a), kY, y <= T(0) ? T(0) : dy)                                \
  UNARY(kGelu, gelu, kReal, a * normal_cdf(a), kA, dy * (normal_cdf(a) + a * normal_pdf(a)))     \
  UNARY(kGeluTanh, gelu_tanh, kReal, T(0.5) * a * (T(1) + gelu_tanh_inner(a)),                   \
        kA, dy * gelu_tanh_slope(a, gelu_tanh_inner(a)))                                         \
  UNARY(kSilu, silu, kReal, a / (T(1) + exp(-a)),                                                \
        kA, dy * sigmoid(a) * (T(1) + a * (T(1) - sigmoid(a))))                                  \
  UNARY(kIsnan, isnan, kTest, isnan(a), kNone, dy)                                               \
  UNARY(kIsinf, isinf, kTest, isinf(a), kNone, dy)                                               \
  UNARY(kIsfinite, isfinite, kTest, isfinite(a), kNone, dy)                                      \
  UNARY(kLogicalNot, logical_not, kTest, a == T(0), kNone, dy)                                   \
  BINARY(kAdd, add, kAny, add(a, b), kPass, dy, kPass, dy)                                       \
  BINARY(kSub, sub, kNumber, sub(a, b), kPass, dy, kNothing, -dy)                                \
  BINARY(kMul, mul, kAny, mul(a, b), kB, dy * b, kA, dy * a)                                     \
  BINARY(kDiv, div, kReal, a / b, kB, dy / b, kA | kB, -(dy / b * (a / b)))                      \
  BINARY(kTruncDiv, trunc_div, kNumber, trunc_div(a, b), kNothing, T(0), kNothing, T(0))         \
  BINARY(kFloorDiv, floor_div, kNumber, floor_div(a, b), kNothing, T(0), kNothing, T(0))         \
  BINARY(kPow, pow, kNumber, pow(a, b),                                                          \
         kA | kB, b == T(0) ? T(0) : dy * (b * pow(a, b - T(1))),                                \
         kA | kB | kY, a == T(0) && b >= T(0) ? T(0) : dy * (y * log(a)))                        \
  BINARY(kMinimum, minimum, kAny, minimum(a, b),                                                 \
         kA | kB, a == b ? dy / T(2) : a > b ? T(0) : dy,                                        \
         kA | kB, a == b ? dy / T(2) : b > a ? T(0) : dy)                                        \
  BINARY(kMaximum, maximum, kAny, maximum(a, b),                                                 \
         kA | kB, a == b ? dy / T(2) : a < b ? T(0) : dy,                                        \
         kA | kB, a == b ? dy / T(2) : b < a ? T(0) : dy)                                        \
  BINARY(kAddRelu, add_relu, kReal, relu(a + b),                                                 \
         kY, y <= T(0) ? T(0) : dy, kY, y <= T(0) ? T(0) : dy)                                   \
  BINARY(kLeakyRelu, leaky_relu, kReal, a > T(0) ? a : a * b,                                    \
         kA | kB, a > T(0) ? dy : dy * b, kNone, dy)                                             \
  BINARY(kElu, elu, kReal, a <= T(0) ? b * expm1(a) : a,                                         \
         kA | kB, a <= T(0) ? dy * (b * exp(a)) : dy, kNone, dy)                                 \
  BINARY(kEq, eq, kTest, a == b, kNone, dy, kNone, dy)                                           \
  BINARY(kNe, ne, kTest, a != b, kNone, dy, kNone, dy)                                           \
  BINARY(kLt, lt, kTest, a < b, kNone, dy, kNone, dy)                                            \
  BINARY(kLe, le, kTest, a <= b, kNone, dy, kNone, dy)                                           \
  BINARY(kGt, gt, kTest, a > b, kNone, dy, kNone, dy)                                            \
  BINARY(kGe, ge, kTest, a >= b, kNone, dy, kNone, dy)                                           \
  BINARY(kLogicalAnd, logical_and, kTest, a != T(0) && b != T(0), kNone, dy, kNone, dy)          \
  BINARY(kLogicalOr, logical_or, kTest, a != T(0) || b != T(0), kNone, dy, kNone, dy)            \
  BINARY(kLogicalXor, logical_xor, kTest, (a != T(0)) != (b != T(0)), kNone, dy, kNone, dy)      \
  TERNARY(kAddScaled, add_scaled, kNumber, add(a, mul(c, b)),                                    \
          kPass, dy, kC, dy * c, kNone, dy)                                                      \
  TERNARY(kSoftplus, softplus, kReal, a * b > c ? a : log1p(exp(a * b)) / b,                     \
          kA | kB | kC, a * b > c ? dy : dy * sigmoid(a * b), kNone, dy, kNone, dy)              \
  TERNARY(kClamp, clamp, kNumber, minimum(maximum(a, b), c),                                     \
          kA | kB | kC, a >= b && a <= c ? dy : T(0),                                            \
          kA | kB | kC, b < c && a < b ? dy : T(0),                                              \
          kA | kB | kC, a > c || c < b ? dy : T(0))                                              \
  TERNARY(kWhere, where, kSelect, a != 0 ? b : c,                                                \
          kNone, dy, kA, a != 0 ? dy : T(0), kA, a != 0 ? T(0) : dy)
// clang-format on

namespace sinter::element {

enum class Types { kReal, kNumber, kAny, kTest, kSelect };
using enum Types;

// What a gradient reads beside dy, as bits, whose places are those of the operands.
enum Reads : int { kNothing = 0, kA = 1, kB = 2, kC = 4, kY = 8, kPass = 32, kNone = 64 };

// The operators as types. operand k's gradient is gradient<k>.
#define SINTER_ELEMENT(op_name, operands, op_types, value, ra, da, rb, db, rc, dc)                \
  struct op_name {                                                                                \
    static constexpr int kOperands = operands;                                                    \
    static constexpr Types kTypes = op_types;                                                     \
    static constexpr int kReads[3] = {ra, rb, rc};                                                \
    template <class A, class T> SINTER_ELEMENT_FUNCTION static auto of([[maybe_unused]] A a,      \
                                                                       [[maybe_unused]] T b,      \
                                                                       [[maybe_unused]] T c) {    \
      return value;                                                                               \
    }                                                                                             \
    template <int kOperand, class A, class T>                                                     \
    SINTER_ELEMENT_FUNCTION static T gradient([[maybe_unused]] A a, [[maybe_unused]] T b,         \
                                              [[maybe_unused]] T c, [[maybe_unused]] T y, T dy) { \
      if constexpr (kOperand == 0)                                                                \
        return da;                                                                                \
      else if constexpr (kOperand == 1)                                                           \
        return db;                                                                                \
      else                                                                                        \
        return dc;                                                                                \
    }                                                                                             \
  };
#define SINTER_UNARY(op, name, types, y, ra, da) \
  SINTER_ELEMENT(op, 1, types, y, ra, da, kNone, dy, kNone, dy)
#define SINTER_BINARY(op, name, types, y, ra, da, rb, db) \
  SINTER_ELEMENT(op, 2, types, y, ra, da, rb, db, kNone, dy)
#define SINTER_TERNARY(op, name, types, y, ra, da, rb, db, rc, dc) \
  SINTER_ELEMENT(op, 3, types, y, ra, da, rb, db, rc, dc)
namespace table {
SINTER_ELEMENTWISE(SINTER_UNARY, SINTER_BINARY, SINTER_TERNARY)
}  // namespace table
#undef SINTER_UNARY
#undef SINTER_BINARY
#undef SINTER_TERNARY
#undef SINTER_ELEMENT

// Whether operator O has kernels for T, and one for the gradient of an operand.
template <class O, class T>
inline constexpr bool takes = is_real<T> || O::kTypes == kAny || O::kTypes == kTest ||
                              O::kTypes == kSelect ||
                              (O::kTypes == kNumber && !std::is_same_v<T, bool>);
template <class O, int kOperand> inline constexpr bool has_gradient = O::kReads[kOperand] < kPass;

}  // namespace sinter::element

namespace sinter::op {

#define SINTER_KIND(kind, ...) kind,
enum class Element : uint8_t { SINTER_ELEMENTWISE(SINTER_KIND, SINTER_KIND, SINTER_KIND) };
#undef SINTER_KIND

// f.operator()<O>(), O being the type in the table that `kind` stands for.
template <class F> decltype(auto) with_element(Element kind, F&& f) {
  switch (kind) {
#define SINTER_CASE(kind, ...) \
  case Element::kind:          \
    return f.template operator()<element::table::kind>();
    SINTER_ELEMENTWISE(SINTER_CASE, SINTER_CASE, SINTER_CASE)
#undef SINTER_CASE
  }
  __builtin_unreachable();
}

// What is to be known of an operator beside its expressions.
struct ElementInfo {
  const char *name, *forward, *backward;
  int operands;
  element::Types types;
  int reads[3];
};
inline constexpr ElementInfo kElements[] = {
#define SINTER_INFO(kind, name, ...)                                  \
  {#name,                                                             \
   #name "_forward",                                                  \
   #name "_backward",                                                 \
   element::table::kind::kOperands,                                   \
   element::table::kind::kTypes,                                      \
   {element::table::kind::kReads[0], element::table::kind::kReads[1], \
    element::table::kind::kReads[2]}},
    SINTER_ELEMENTWISE(SINTER_INFO, SINTER_INFO, SINTER_INFO)
#undef SINTER_INFO
};
constexpr const ElementInfo& info(Element kind) { return kElements[static_cast<int>(kind)]; }
inline const char* name(Element kind) { return info(kind).name; }

}  // namespace sinter::op
