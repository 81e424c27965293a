// The functions that the table of element-wise operators (elementwise_table.h) is written in, of
// one element each, on a host and on a device. Operators choose T; integers wrap around, as
// unsigned ones do.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "sinter/philox.h"  // SINTER_HD

namespace sinter::element {

template <class T> inline constexpr bool is_real = std::is_floating_point_v<T>;

// ---- arithmetic of every dtype ------------------------------------------------------------------

// Integers of T, in which nothing overflows.
template <class T> using Wrapping =
    std::make_unsigned_t<std::conditional_t<std::is_same_v<T, bool>, uint8_t, T>>;

template <class T> SINTER_HD inline T add(T a, T b) {
  if constexpr (is_real<T>)
    return a + b;
  else
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
}
template <class T> SINTER_HD inline T sub(T a, T b) {
  if constexpr (is_real<T>)
    return a - b;
  else
    return static_cast<T>(static_cast<Wrapping<T>>(a) - static_cast<Wrapping<T>>(b));
}
template <class T> SINTER_HD inline T mul(T a, T b) {
  if constexpr (is_real<T>)
    return a * b;
  else
    return static_cast<T>(static_cast<Wrapping<T>>(a) * static_cast<Wrapping<T>>(b));
}
template <class T> SINTER_HD inline T neg(T a) {
  if constexpr (is_real<T>)
    return -a;
  else
    return sub(T(0), a);
}
template <class T> SINTER_HD inline T abs(T a) {
  if constexpr (is_real<T>)
    return std::fabs(a);
  else
    return std::is_signed_v<T> && a < T(0) ? neg(a) : a;
}
template <class T> SINTER_HD inline T sign(T a) {  // of a NaN 0, as PyTorch has it
  if constexpr (std::is_unsigned_v<T>)
    return T(a != T(0));
  else
    return T(int(a > T(0)) - int(a < T(0)));
}
// A NaN is the less as well as the greater.
template <class T> SINTER_HD inline T minimum(T a, T b) { return a != a || a < b ? a : b; }
template <class T> SINTER_HD inline T maximum(T a, T b) { return a != a || a > b ? a : b; }

// a / b rounded to an integer, of integers: towards 0 or, with `down`, towards -infinity. Division
// by 0 gives 0.
template <class T> SINTER_HD inline T quotient(T a, T b, bool down) {
  if (b == T(0)) return T(0);
  if constexpr (std::is_signed_v<T>) {
    if (b == T(-1)) return neg(a);  // the least number has no positive counterpart
    const T q = T(a / b), rest = T(a % b);
    return T(q - T(down && rest != T(0) && (rest < T(0)) != (b < T(0))));
  } else {
    return T(a / b);
  }
}
template <class T> SINTER_HD inline T trunc_div(T a, T b) {
  if constexpr (is_real<T>)
    return std::trunc(a / b);
  else
    return quotient(a, b, false);
}
// As Python's //: with the exact remainder, so that 1 // 0.1 is 9.
template <class T> SINTER_HD inline T floor_div(T a, T b) {
  if constexpr (is_real<T>) {
    if (b == T(0)) return a / b;
    T rest = std::fmod(a, b);
    T whole = (a - rest) / b;
    if (rest != T(0) && (b < T(0)) != (rest < T(0))) whole -= T(1);
    if (whole == T(0)) return std::copysign(T(0), a / b);
    const T q = std::floor(whole);
    return whole - q > T(0.5) ? q + T(1) : q;
  } else {
    return quotient(a, b, true);
  }
}

template <class T> SINTER_HD inline bool isnan(T a) { return a != a; }
template <class T> SINTER_HD inline bool isinf(T a) {
  if constexpr (is_real<T>)
    return std::fabs(a) == std::numeric_limits<T>::infinity();
  else
    return false;
}
template <class T> SINTER_HD inline bool isfinite(T a) {
  if constexpr (is_real<T>)
    return std::fabs(a) < std::numeric_limits<T>::infinity();
  else
    return true;
}

// ---- functions of real numbers ------------------------------------------------------------------

using std::ceil;
using std::cos;
using std::erf;
using std::exp;
using std::expm1;
using std::floor;
using std::log;
using std::log1p;
using std::rint;
using std::sin;
using std::sqrt;
using std::tanh;
using std::trunc;

template <class T> SINTER_HD inline T pow(T a, T b) {
  if constexpr (is_real<T>) {
    return std::pow(a, b);
  } else if constexpr (std::is_signed_v<T>) {
    if (b < T(0)) {  // the fraction's integer part
      if (a == T(1)) return T(1);
      return a == T(-1) ? (b % T(2) == T(0) ? T(1) : T(-1)) : T(0);
    }
    T result = T(1);
    for (; b != T(0); b = T(b / 2), a = mul(a, a))
      if (b % T(2) != T(0)) result = mul(result, a);
    return result;
  } else {
    T result = T(1);
    for (; b != T(0); b = T(b >> 1), a = mul(a, a))
      if ((b & T(1)) != T(0)) result = mul(result, a);
    return result;
  }
}

template <class T> SINTER_HD inline T sigmoid(T a) { return T(1) / (T(1) + exp(-a)); }

// The standard normal distribution up to a, and its density there.
template <class T> SINTER_HD inline T normal_cdf(T a) {
  return T(0.5) * (T(1) + erf(a * T(0.70710678118654752440)));
}
template <class T> SINTER_HD inline T normal_pdf(T a) {
  return T(0.39894228040143267794) * exp(T(-0.5) * a * a);
}
// tanh(sqrt(2 / pi) (a + 0.044715 a^3)), and its derivative given that. Beyond 64 the former is 1
// or -1, and a^3 must not overflow, which times the derivative's 0 would be a NaN.
template <class T> SINTER_HD inline T gelu_tanh_inner(T a) {
  return tanh(T(0.79788456080286535588) * (a + T(0.044715) * a * a * a));
}
template <class T> SINTER_HD inline T gelu_tanh_slope(T a, T inner) {
  const T z = a > T(64) ? T(64) : a < T(-64) ? T(-64) : a;
  const T slope = T(0.79788456080286535588) * (T(1) + T(3 * 0.044715) * z * z);
  return T(0.5) * (T(1) + inner) + T(0.5) * z * (T(1) - inner * inner) * slope;
}

// A number of the host as a T: the nearest that T holds, a fraction cut off; a bool is whether it
// is not 0.
template <class T> inline T number(double x) {
  if constexpr (is_real<T> || std::is_same_v<T, bool>) {
    return static_cast<T>(x);
  } else {
    using Limits = std::numeric_limits<T>;
    if (!(x > static_cast<double>(Limits::lowest()))) return x == x ? Limits::lowest() : T(0);
    if (x >= static_cast<double>(Limits::max())) return Limits::max();
    return static_cast<T>(x);
  }
}

}  // namespace sinter::element
