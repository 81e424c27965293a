// The functions that the table of element-wise operators (elementwise_table.h) is written in, of
// one element each, on a host and on a device. Operators choose T; integers wrap around, as
// unsigned ones do.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

// Inlined always, so that a loop over them becomes vectors of the instruction set that it is
// compiled for.
#if defined(__CUDACC__)
#define SINTER_ELEMENT_FUNCTION __host__ __device__ __forceinline__
#else
#define SINTER_ELEMENT_FUNCTION [[gnu::always_inline]] inline
#endif

namespace sinter::element {

template <class T> inline constexpr bool is_real = std::is_floating_point_v<T>;

// ---- arithmetic of every dtype ------------------------------------------------------------------

// Integers of T, in which nothing overflows.
template <class T> using Wrapping =
    std::make_unsigned_t<std::conditional_t<std::is_same_v<T, bool>, uint8_t, T>>;

template <class T> SINTER_ELEMENT_FUNCTION T add(T a, T b) {
  if constexpr (is_real<T>)
    return a + b;
  else
    return static_cast<T>(static_cast<Wrapping<T>>(a) + static_cast<Wrapping<T>>(b));
}
template <class T> SINTER_ELEMENT_FUNCTION T sub(T a, T b) {
  if constexpr (is_real<T>)
    return a - b;
  else
    return static_cast<T>(static_cast<Wrapping<T>>(a) - static_cast<Wrapping<T>>(b));
}
template <class T> SINTER_ELEMENT_FUNCTION T mul(T a, T b) {
  if constexpr (is_real<T>)
    return a * b;
  else
    return static_cast<T>(static_cast<Wrapping<T>>(a) * static_cast<Wrapping<T>>(b));
}
template <class T> SINTER_ELEMENT_FUNCTION T neg(T a) {
  if constexpr (is_real<T>)
    return -a;
  else
    return sub(T(0), a);
}
template <class T> SINTER_ELEMENT_FUNCTION T abs(T a) {
  if constexpr (is_real<T>)
    return std::fabs(a);
  else
    return std::is_signed_v<T> && a < T(0) ? neg(a) : a;
}
template <class T> SINTER_ELEMENT_FUNCTION T sign(T a) {  // of a NaN 0, as PyTorch has it
  if constexpr (std::is_unsigned_v<T>)
    return T(a != T(0));
  else
    return T(int(a > T(0)) - int(a < T(0)));
}
// -0 becomes 0 on a host and stays on a device, as in the kernels there that apply it to what they
// store: whether a ReLU is one with another operator shows in no bit.
template <class T> SINTER_ELEMENT_FUNCTION T relu(T a) {
  if constexpr (!std::is_signed_v<T>) {
    return a;
  } else {
#if defined(__CUDA_ARCH__)
    return a < T(0) ? T(0) : a;
#else
    return a <= T(0) ? T(0) : a;
#endif
  }
}
// A NaN is the less as well as the greater.
template <class T> SINTER_ELEMENT_FUNCTION T minimum(T a, T b) { return a != a || a < b ? a : b; }
template <class T> SINTER_ELEMENT_FUNCTION T maximum(T a, T b) { return a != a || a > b ? a : b; }

// a / b rounded to an integer, of integers: towards 0 or, with `down`, towards -infinity. Division
// by 0 gives 0.
template <class T> SINTER_ELEMENT_FUNCTION T quotient(T a, T b, bool down) {
  if (b == T(0)) return T(0);
  if constexpr (std::is_signed_v<T>) {
    if (b == T(-1)) return neg(a);  // the least number has no positive counterpart
    const T q = T(a / b), rest = T(a % b);
    return T(q - T(down && rest != T(0) && (rest < T(0)) != (b < T(0))));
  } else {
    return T(a / b);
  }
}
template <class T> SINTER_ELEMENT_FUNCTION T trunc_div(T a, T b) {
  if constexpr (is_real<T>)
    return std::trunc(a / b);
  else
    return quotient(a, b, false);
}
// As Python's //: with the exact remainder, so that 1 // 0.1 is 9.
template <class T> SINTER_ELEMENT_FUNCTION T floor_div(T a, T b) {
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

template <class T> SINTER_ELEMENT_FUNCTION bool isnan(T a) { return a != a; }
template <class T> SINTER_ELEMENT_FUNCTION bool isinf(T a) {
  if constexpr (is_real<T>)
    return std::fabs(a) == std::numeric_limits<T>::infinity();
  else
    return false;
}
template <class T> SINTER_ELEMENT_FUNCTION bool isfinite(T a) {
  if constexpr (is_real<T>)
    return std::fabs(a) < std::numeric_limits<T>::infinity();
  else
    return true;
}

// ---- functions of real numbers ------------------------------------------------------------------

using std::ceil;
using std::cos;
using std::floor;
using std::rint;
using std::sin;
using std::sqrt;
using std::trunc;

// On a host, of float32: without branches or calls, so that they become vectors, and without fused
// multiply-adds, so that they have the same bits on every machine. Right to 2 units in the last
// place (erf and tanh 3). float64 and devices have their libraries' functions.
namespace single {

// 2^k of k in [-126, 127].
SINTER_ELEMENT_FUNCTION float power_of_2(int32_t k) {
  return std::bit_cast<float>(static_cast<uint32_t>(k + 127) << 23);
}

// a = k log(2) + rest with |rest| <= log(2) / 2, for |a| < 2^15. log(2) in two parts, of which the
// first times k is exact.
struct Reduced {
  int32_t k;
  float rest;
};
SINTER_ELEMENT_FUNCTION Reduced reduce(float a) {
  // Added, this leaves no fraction, and the integer in the last bits: no conversion, which would
  // not be defined for a NaN.
  constexpr float kRound = 12582912.F;  // 1.5 * 2^23
  const float shifted = a * 1.44269504F + kRound;
  const float k = shifted - kRound;
  const auto bits = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound);
  return {static_cast<int32_t>(bits), (a - k * 0.693359375F) - k * -2.12194440e-4F};
}

// (exp(r) - 1 - r) / r^2, by its series.
SINTER_ELEMENT_FUNCTION float exp_tail(float r) {
  float p = 1.F / 5040;
  p = p * r + 1.F / 720;
  p = p * r + 1.F / 120;
  p = p * r + 1.F / 24;
  p = p * r + 1.F / 6;
  return p * r + 0.5F;
}

SINTER_ELEMENT_FUNCTION float exp(float a) {
  // Beyond these it is infinite, or 0. A NaN stays.
  const float x = a > 90.F ? 90.F : a < -105.F ? -105.F : a;
  const Reduced r = reduce(x);
  const float p = 1.F + (r.rest + r.rest * r.rest * exp_tail(r.rest));
  // In two steps, since results reach beyond the exponents that 2^k has. Of a NaN k is anything.
  const int32_t k = r.k < -152 ? -152 : r.k > 130 ? 130 : r.k, half = k >> 1;
  return p * power_of_2(half) * power_of_2(k - half);
}

SINTER_ELEMENT_FUNCTION float expm1(float a) {
  const float x = a > 90.F ? 90.F : a < -30.F ? -30.F : a;
  const Reduced r = reduce(x);
  const float p = r.rest + r.rest * r.rest * exp_tail(r.rest);  // exp(rest) - 1
  // 2^k p + (2^k - 1), as two times its half.
  const int32_t k = r.k < -44 ? -44 : r.k > 128 ? 128 : r.k;
  const float scale = power_of_2(k - 1);
  const float y = (scale * p + (scale - 0.5F)) * 2.F;
  return a > 89.F ? std::numeric_limits<float>::infinity() : a == 0.F ? a : y;
}

SINTER_ELEMENT_FUNCTION float log(float a) {
  const bool is_small = a < std::numeric_limits<float>::min();
  const float x = is_small ? a * 33554432.F : a;  // 2^25, for numbers below the normal ones
  // x = 2^k m, m in [sqrt(1/2), sqrt(2)).
  const uint32_t bits = std::bit_cast<uint32_t>(x) - 0x3F3504F3U;
  const auto k = static_cast<float>((static_cast<int32_t>(bits) >> 23) - (is_small ? 25 : 0));
  const float f = std::bit_cast<float>((bits & 0x007FFFFFU) + 0x3F3504F3U) - 1.F;
  // log(1 + f) = f - f^2/2 + s (f^2/2 + tail), with s = f / (2 + f) and the series of the inverse
  // hyperbolic tangent.
  const float s = f / (2.F + f), z = s * s, square = 0.5F * f * f;
  float tail = 2.F / 11;
  tail = tail * z + 2.F / 9;
  tail = tail * z + 2.F / 7;
  tail = tail * z + 2.F / 5;
  tail = (tail * z + 2.F / 3) * z;
  const float y = k * 0.693359375F - ((square - (s * (square + tail) + k * -2.12194440e-4F)) - f);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return a > 0.F ? (a == kInfinity ? a : y)
                 : (a == 0.F ? -kInfinity : std::numeric_limits<float>::quiet_NaN());
}

SINTER_ELEMENT_FUNCTION float log1p(float a) {
  // What rounding takes from 1 + a, the derivative of log brings back; of -1 and infinity it is
  // none.
  const float u = 1.F + a, y = log(u), lost = (a - (u - 1.F)) / u;
  return a == 0.F ? a : lost == lost ? y + lost : y;
}

SINTER_ELEMENT_FUNCTION float tanh(float a) {
  const float size = std::fabs(a), x = size > 10.F ? 10.F : size;  // 1 from there on
  const float t = expm1(2.F * x);
  return std::copysign(t / (t + 2.F), a);
}

// Polynomials through Chebyshev points: of erf(x) / x in x^2 up to 1, of -log(1 - erf(x)) up to 4,
// from where on erf is 1.
SINTER_ELEMENT_FUNCTION float erf(float a) {
  const float size = std::fabs(a), x = size > 4.F ? 4.F : size, z = x * x;
  float p = 7.88249710667486e-05F;
  p = p * z + -0.000801885499196538F;
  p = p * z + 0.0051893119426174895F;
  p = p * z + -0.02685432879604287F;
  p = p * z + 0.11283597463487706F;
  p = p * z + -0.37612626903580443F;
  p = p * z + 1.1283791658815026F;
  float q = 1.3309390389412172e-05F;
  q = q * x + -0.00031757203459967037F;
  q = q * x + 0.0034368675979085748F;
  q = q * x + -0.02262198592543337F;
  q = q * x + 0.10331898003706583F;
  q = q * x + 0.6390933194961196F;
  q = q * x + 1.1259259493273077F;
  q = q * x + 0.0007569686241593893F;
  return std::copysign(x < 1.F ? x * p : 1.F - exp(-q), a);
}

}  // namespace single

#if defined(__CUDA_ARCH__)
#define SINTER_REAL_FUNCTION(name) using std::name;
#else
#define SINTER_REAL_FUNCTION(name)                         \
  template <class T> SINTER_ELEMENT_FUNCTION T name(T a) { \
    if constexpr (std::is_same_v<T, float>)                \
      return single::name(a);                              \
    else                                                   \
      return std::name(a);                                 \
  }
#endif
SINTER_REAL_FUNCTION(exp)
SINTER_REAL_FUNCTION(expm1)
SINTER_REAL_FUNCTION(log)
SINTER_REAL_FUNCTION(log1p)
SINTER_REAL_FUNCTION(tanh)
SINTER_REAL_FUNCTION(erf)
#undef SINTER_REAL_FUNCTION

template <class T> SINTER_ELEMENT_FUNCTION T pow(T a, T b) {
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

template <class T> SINTER_ELEMENT_FUNCTION T sigmoid(T a) { return T(1) / (T(1) + exp(-a)); }

// The standard normal distribution up to a, and its density there.
template <class T> SINTER_ELEMENT_FUNCTION T normal_cdf(T a) {
  return T(0.5) * (T(1) + erf(a * T(0.70710678118654752440)));
}
template <class T> SINTER_ELEMENT_FUNCTION T normal_pdf(T a) {
  return T(0.39894228040143267794) * exp(T(-0.5) * a * a);
}
// tanh(sqrt(2 / pi) (a + 0.044715 a^3)), and its derivative given that. Beyond 64 the former is 1
// or -1, and a^3 must not overflow, which times the derivative's 0 would be a NaN.
template <class T> SINTER_ELEMENT_FUNCTION T gelu_tanh_inner(T a) {
  return tanh(T(0.79788456080286535588) * (a + T(0.044715) * a * a * a));
}
template <class T> SINTER_ELEMENT_FUNCTION T gelu_tanh_slope(T a, T inner) {
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
