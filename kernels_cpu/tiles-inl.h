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

#include <type_traits>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class T> using Vec = hn::ScalableTag<T>;
template <class T> constexpr int kLanes = static_cast<int>(hn::MaxLanes(Vec<T>()));

// max(v, 0); a NaN stays a NaN.
template <class D, class V = hn::Vec<D>> HWY_INLINE HWY_ATTR V relu_of(D d, V v) {
  return hn::IfThenZeroElse(hn::Le(v, hn::Zero(d)), v);
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
