// Register tiles: the vectors they are made of, loops without indices in memory, and work in nearly
// equal parts. For files that foreach_target.h compiles for each instruction set: included by them
// behind foreach_target.h, and so once for each.
#ifndef SINTER_KERNELS_CPU_PARTS
#define SINTER_KERNELS_CPU_PARTS

#include <algorithm>
#include <cstdint>

namespace sinter {
namespace {

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// `total` things in parts of nearly equal size, at most `largest` (but at least one).
struct Parts {
  int total, count;
  Parts(int64_t total, int64_t largest)
      : total(static_cast<int>(total)), count(ceil_div(total, std::max<int64_t>(largest, 1))) {}
  int begin(int part) const { return static_cast<int>(int64_t{total} * part / count); }
  int size(int part) const { return begin(part + 1) - begin(part); }
  int largest() const { return count == 0 ? 0 : ceil_div(total, count); }
};

}  // namespace
}  // namespace sinter
#endif

#if defined(SINTER_KERNELS_CPU_TILES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SINTER_KERNELS_CPU_TILES_INL_H
#undef SINTER_KERNELS_CPU_TILES_INL_H
#else
#define SINTER_KERNELS_CPU_TILES_INL_H
#endif

#include <hwy/highway.h>

#include <limits>
#include <type_traits>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class T> using Vec = hn::ScalableTag<T>;
template <class T> constexpr int kLanes = static_cast<int>(hn::MaxLanes(Vec<T>()));

// act(v, act_limit(d, relu)) = max(v, 0), or v as it is without `relu`; a NaN stays a NaN. Without
// a branch, in whose arms the compiler would add operands of v in different orders: of two NaNs the
// first is the sum.
template <class D> HWY_INLINE HWY_ATTR hn::Vec<D> act_limit(D d, bool relu) {
  using T = hn::TFromD<D>;
  return hn::Set(d, relu ? T(0) : std::numeric_limits<T>::quiet_NaN());  // nothing is below a NaN
}
template <class V> HWY_INLINE HWY_ATTR V act(V v, V limit) {
  return hn::IfThenZeroElse(hn::Le(v, limit), v);
}

// Calls f with std::integral_constant<int, i>, 1 <= i <= kMost.
template <int kMost, class F> void with_constant(int i, const F& f) {
  if constexpr (kMost > 1) {
    if (i < kMost) return with_constant<kMost - 1>(i, f);
  }
  f(std::integral_constant<int, kMost>());
}

// Calls f(std::integral_constant<int, i>()) for i < kCount. A loop would do, but for g++, which
// keeps an array of vectors in memory before and after the loop that works on it unless every index
// is a constant from the beginning.
template <class F, int... kI>
HWY_INLINE HWY_ATTR void each(const F& f, std::integer_sequence<int, kI...>) {
  (f(std::integral_constant<int, kI>()), ...);
}
template <int kCount, class F> HWY_INLINE HWY_ATTR void each(const F& f) {
  each(f, std::make_integer_sequence<int, kCount>());
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#endif
