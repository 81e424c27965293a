// Element-wise operators, with NumPy's broadcasting: shapes are aligned at the end, and an extent
// of 1 (or a missing one) is repeated. Names, values and gradients are PyTorch's, at the points
// without a gradient too (operators/elementwise_table.h).
//
// Dtypes are PyTorch's as well: of a bool, an integer and a floating operand the later kind
// decides; of two integer dtypes the one that holds both, for int32 with uint8 int32; a number
// decides only if its kind is a later one than the tensors' (int64, float32 then). What has no
// integer result (div, exp, sigmoid, …) computes integers as float32. Not as in PyTorch, float32
// and float64 do not meet: DtypeError, since float64 is slow and mostly a mistake. Integers wrap
// around; numbers beside them are exact up to 2^53.
#pragma once

#include <optional>
#include <string_view>

#include "sinter/operators/elementwise_table.h"
#include "sinter/tensor.h"

namespace sinter {

// From the table, one function an operator:
//   Tensor exp(const Tensor& x);
//   Tensor mul(const Tensor& a, const Tensor& b);      and with a number in the place of either
//   Tensor where(const Tensor& condition, const Term& a, const Term& b);   a where it holds, else b
#define SINTER_UNARY(kind, name, ...) Tensor name(const Tensor& x);
#define SINTER_BINARY(kind, name, ...)           \
  Tensor name(const Tensor& a, const Tensor& b); \
  Tensor name(const Tensor& a, Number b);        \
  Tensor name(Number a, const Tensor& b);
#define SINTER_TERNARY(kind, name, ...) Tensor name(const Tensor& a, const Term& b, const Term& c);
SINTER_ELEMENTWISE(SINTER_UNARY, SINTER_BINARY, SINTER_TERNARY)
#undef SINTER_UNARY
#undef SINTER_BINARY
#undef SINTER_TERNARY

// a + alpha b, a - alpha b.
Tensor add(const Tensor& a, const Term& b, Number alpha);
Tensor sub(const Tensor& a, const Term& b, Number alpha);
// rounding_mode: "trunc" (towards 0) or "floor" (down), of integers an integer, whose quotient by 0
// is 0. ValueError for another.
Tensor div(const Tensor& a, const Term& b, std::string_view rounding_mode);
Tensor floor_divide(const Tensor& a, const Term& b);
// approximate: "none" (x times the normal distribution up to x) or "tanh". ValueError for another.
Tensor gelu(const Tensor& x, std::string_view approximate);
// To that many places after the decimal point, or, below 0, before it; halves to even.
Tensor round(const Tensor& x, int decimals);
Tensor leaky_relu(const Tensor& x);                      // its slope 0.01
Tensor elu(const Tensor& x);                             // its alpha 1
Tensor softplus(const Tensor& x, const Term& beta = 1);  // its threshold 20
// With one bound or both: clamp(x, 0, 1), clamp(x, std::nullopt, limits). A NaN, of a bound too,
// makes a NaN.
Tensor clamp(const Tensor& x, const Term& min);
Tensor clamp(const Tensor& x, std::nullopt_t, const Term& max);
inline Tensor clamp_min(const Tensor& x, const Term& min) { return clamp(x, min); }
inline Tensor clamp_max(const Tensor& x, const Term& max) { return clamp(x, std::nullopt, max); }
// x, and `value` where the bool `mask` holds.
Tensor masked_fill(const Tensor& x, const Tensor& mask, const Term& value);

// Signs are functions of the table.
#define SINTER_SIGN(sign, name)                                                        \
  inline Tensor operator sign(const Tensor& a, const Tensor& b) { return name(a, b); } \
  inline Tensor operator sign(const Tensor& a, Number b) { return name(a, b); }        \
  inline Tensor operator sign(Number a, const Tensor& b) { return name(a, b); }
SINTER_SIGN(+, add)
SINTER_SIGN(-, sub)
SINTER_SIGN(*, mul)
SINTER_SIGN(/, div)
SINTER_SIGN(==, eq)
SINTER_SIGN(!=, ne)
SINTER_SIGN(<, lt)
SINTER_SIGN(<=, le)
SINTER_SIGN(>, gt)
SINTER_SIGN(>=, ge)
#undef SINTER_SIGN
inline Tensor operator-(const Tensor& a) { return neg(a); }

// In place, as Tensor's add_, sub_, mul_ and div_. Return x.
Tensor operator+=(const Tensor& x, const Term& y);
Tensor operator-=(const Tensor& x, const Term& y);
Tensor operator*=(const Tensor& x, const Term& y);
Tensor operator/=(const Tensor& x, const Term& y);

}  // namespace sinter
