#include "kernels_cpu/reduce_lanes.h"

#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/reduce_lanes.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>
// Behind highway.h.
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <bool kLargest, class T>
HWY_ATTR void best_of_rows(const T* x, int64_t stride, int64_t rows, T* best) {
  const hn::CappedTag<T, kLaneGroup> d;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(d)), kVectors = kLaneGroup / kLanes;
  hn::Vec<decltype(d)> b[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) b[v] = hn::LoadU(d, best + v * kLanes);
  for (int64_t k = 0; k < rows; ++k) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const auto a = hn::LoadU(d, x + k * stride + v * kLanes);
      // Better, or the first NaN.
      const auto stays = kLargest ? hn::Le(a, b[v]) : hn::Ge(a, b[v]);
      b[v] = hn::IfThenElse(hn::AndNot(stays, hn::Eq(b[v], b[v])), a, b[v]);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) hn::StoreU(b[v], d, best + v * kLanes);
}

template <class T> HWY_ATTR void moments_of_rows(const T* x, int64_t stride, int64_t rows,
                                                 const double* shift, double* sum,
                                                 double* squares) {
  const hn::CappedTag<double, kLaneGroup> d;
  const hn::Rebind<T, decltype(d)> dt;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(d)), kVectors = kLaneGroup / kLanes;
  hn::Vec<decltype(d)> s[kVectors], q[kVectors], off[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) {
    off[v] = hn::LoadU(d, shift + v * kLanes);
    s[v] = hn::LoadU(d, sum + v * kLanes);
    q[v] = hn::LoadU(d, squares + v * kLanes);
  }
  for (int64_t k = 0; k < rows; ++k) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const auto loaded = hn::LoadU(dt, x + k * stride + v * kLanes);
      auto a = hn::Zero(d);
      if constexpr (std::is_same_v<T, float>) {
        a = hn::PromoteTo(d, loaded);
      } else {
        a = loaded;
      }
      a = hn::Sub(a, off[v]);
      s[v] = hn::Add(s[v], a);
      q[v] = hn::MulAdd(a, a, q[v]);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    hn::StoreU(s[v], d, sum + v * kLanes);
    hn::StoreU(q[v], d, squares + v * kLanes);
  }
}

// exp(v - largest) for v <= largest: 1 for equal ones, infinite or not; a NaN stays one, of which
// Highway makes 0.
template <class D> HWY_ATTR hn::Vec<D> power(D d, hn::Vec<D> v, hn::Vec<D> largest) {
  const auto e = hn::IfThenElse(hn::Eq(v, largest), hn::Zero(d), hn::Sub(v, largest));
  return hn::IfThenElse(hn::Eq(e, e), hn::Exp(d, e), e);
}

template <class T>
HWY_ATTR void powers_of_rows(const T* x, int64_t stride, int64_t rows, T* largest, double* sum) {
  const hn::CappedTag<T, kLaneGroup> d;
  constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(d)), kVectors = kLaneGroup / kLanes;
  // Rows that share one look at the largest: what was added up is scaled once for all of them.
  constexpr int64_t kRows = 16;
  for (int64_t begin = 0; begin < rows; begin += kRows) {
    const int64_t end = std::min(rows, begin + kRows);
    T scale[kLaneGroup], block[kLaneGroup];
    for (int64_t v = 0; v < kVectors; ++v) {
      const T* column = x + v * kLanes;
      const auto before = hn::LoadU(d, largest + v * kLanes);
      auto most = before, added = hn::Zero(d);
      for (int64_t k = begin; k < end; ++k) most = hn::Max(hn::LoadU(d, column + k * stride), most);
      for (int64_t k = begin; k < end; ++k) {
        added = hn::Add(added, power(d, hn::LoadU(d, column + k * stride), most));
      }
      hn::StoreU(power(d, before, most), d, scale + v * kLanes);
      hn::StoreU(added, d, block + v * kLanes);
      hn::StoreU(most, d, largest + v * kLanes);
    }
    for (int64_t c = 0; c < kLaneGroup; ++c) {
      sum[c] = sum[c] * static_cast<double>(scale[c]) + static_cast<double>(block[c]);
    }
  }
}

void PowersFloat(const float* x, int64_t stride, int64_t rows, float* largest, double* sum) {
  powers_of_rows(x, stride, rows, largest, sum);
}
void PowersDouble(const double* x, int64_t stride, int64_t rows, double* largest, double* sum) {
  powers_of_rows(x, stride, rows, largest, sum);
}
void BestFloat(bool largest, const float* x, int64_t stride, int64_t rows, float* best) {
  largest ? best_of_rows<true>(x, stride, rows, best) : best_of_rows<false>(x, stride, rows, best);
}
void BestDouble(bool largest, const double* x, int64_t stride, int64_t rows, double* best) {
  largest ? best_of_rows<true>(x, stride, rows, best) : best_of_rows<false>(x, stride, rows, best);
}
void MomentsFloat(const float* x, int64_t stride, int64_t rows, const double* shift, double* sum,
                  double* squares) {
  moments_of_rows(x, stride, rows, shift, sum, squares);
}
void MomentsDouble(const double* x, int64_t stride, int64_t rows, const double* shift, double* sum,
                   double* squares) {
  moments_of_rows(x, stride, rows, shift, sum, squares);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {

HWY_EXPORT(BestFloat);
HWY_EXPORT(BestDouble);
HWY_EXPORT(MomentsFloat);
HWY_EXPORT(MomentsDouble);
HWY_EXPORT(PowersFloat);
HWY_EXPORT(PowersDouble);

template <>
void best_of_rows(bool largest, const float* x, int64_t stride, int64_t rows, float* best) {
  HWY_DYNAMIC_DISPATCH(BestFloat)(largest, x, stride, rows, best);
}
template <>
void best_of_rows(bool largest, const double* x, int64_t stride, int64_t rows, double* best) {
  HWY_DYNAMIC_DISPATCH(BestDouble)(largest, x, stride, rows, best);
}
template <> void moments_of_rows(const float* x, int64_t stride, int64_t rows, const double* shift,
                                 double* sum, double* squares) {
  HWY_DYNAMIC_DISPATCH(MomentsFloat)(x, stride, rows, shift, sum, squares);
}
template <> void moments_of_rows(const double* x, int64_t stride, int64_t rows, const double* shift,
                                 double* sum, double* squares) {
  HWY_DYNAMIC_DISPATCH(MomentsDouble)(x, stride, rows, shift, sum, squares);
}

template <>
void powers_of_rows(const float* x, int64_t stride, int64_t rows, float* largest, double* sum) {
  HWY_DYNAMIC_DISPATCH(PowersFloat)(x, stride, rows, largest, sum);
}
template <>
void powers_of_rows(const double* x, int64_t stride, int64_t rows, double* largest, double* sum) {
  HWY_DYNAMIC_DISPATCH(PowersDouble)(x, stride, rows, largest, sum);
}

}  // namespace sinter
#endif  // HWY_ONCE
