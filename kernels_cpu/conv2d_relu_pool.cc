// Convolution, ReLU and 2 x 2 max-pooling. The convolutions are those of conv2d.cc, into scratch
// memory; what is fused is the rest, one pass each way instead of two. Values and gradients equal
// those of the three operators one by one to the bit.
#include "simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "conv2d_relu_pool.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "sinter/kernels.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// A row of `count` (>= kLanes) windows, whose rows begin at `top` and `bottom`; the last vector
// overlaps the one before it instead of leaving a remainder.
template <int kLanes, class T>
HWY_ATTR void pool_row(int count, const T* top, const T* bottom, T* y, uint8_t* choice) {
  const hn::CappedTag<T, kLanes> d;
  // The choice, in lanes as wide as T: int32_t, or double, which converts to int32_t in one step.
  using Wide = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, double>;
  const hn::Rebind<Wide, decltype(d)> dw;
  const hn::Rebind<int32_t, decltype(d)> di;
  const hn::Rebind<uint8_t, decltype(d)> db;
  for (int j = 0; j < count; j += kLanes) {
    const int at = std::min(j, count - kLanes);
    auto v0 = hn::Zero(d), v1 = v0, v2 = v0, v3 = v0;
    hn::LoadInterleaved2(d, top + 2 * at, v0, v1);
    hn::LoadInterleaved2(d, bottom + 2 * at, v2, v3);
    auto best = hn::Zero(d);
    auto taken = hn::Zero(dw);
    // A value that is greater, or the first NaN. The start is the ReLU's 0: with no value above it
    // the first window element stands, as its ReLU is a maximum.
    const auto meet = [&](auto v, int which) HWY_ATTR {
      const auto take = hn::AndNot(hn::Le(v, best), hn::Eq(best, best));
      best = hn::IfThenElse(take, v, best);
      taken =
          hn::IfThenElse(hn::RebindMask(dw, take), hn::Set(dw, static_cast<Wide>(which)), taken);
    };
    meet(v0, 0);
    meet(v1, 1);
    meet(v2, 2);
    meet(v3, 3);
    hn::StoreU(best, d, y + at);
    if constexpr (std::is_same_v<Wide, int32_t>) {
      hn::StoreU(hn::DemoteTo(db, taken), db, choice + at);
    } else {
      hn::StoreU(hn::DemoteTo(db, hn::DemoteTo(di, taken)), db, choice + at);
    }
  }
}

// The same with the widest vectors that `count` fills; returns how many windows it has done, all or
// none.
template <class T> int pool_row(int count, const T* top, const T* bottom, T* y, uint8_t* choice) {
  constexpr int kWide = static_cast<int>(hn::MaxLanes(hn::ScalableTag<T>()));
  constexpr int kNarrow = std::min<int>(16 / sizeof(T), kWide);
  constexpr int kMiddle = std::max(kNarrow, kWide / 2);
  if (count < kNarrow) return 0;
  if (count >= kWide) {
    pool_row<kWide>(count, top, bottom, y, choice);
  } else if (count >= kMiddle) {
    pool_row<kMiddle>(count, top, bottom, y, choice);
  } else {
    pool_row<kNarrow>(count, top, bottom, y, choice);
  }
  return count;
}

int PoolRowFloat(int count, const float* top, const float* bottom, float* y, uint8_t* choice) {
  return pool_row(count, top, bottom, y, choice);
}
int PoolRowDouble(int count, const double* top, const double* bottom, double* y, uint8_t* choice) {
  return pool_row(count, top, bottom, y, choice);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(PoolRowFloat);
HWY_EXPORT(PoolRowDouble);

int pool_row(int count, const float* top, const float* bottom, float* y, uint8_t* choice) {
  return HWY_DYNAMIC_DISPATCH(PoolRowFloat)(count, top, bottom, y, choice);
}
int pool_row(int count, const double* top, const double* bottom, double* y, uint8_t* choice) {
  return HWY_DYNAMIC_DISPATCH(PoolRowDouble)(count, top, bottom, y, choice);
}

// Calls f(plane) for every image and output channel.
template <class F> void each_plane(const Conv2dShape& g, const F& f) {
  parallel_ranges(int64_t{g.n} * g.o, items_per_grain(int64_t{g.oh} * g.ow),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t plane = begin; plane < end; ++plane) f(plane);
                  });
}

}  // namespace

template <class T> bool conv2d_relu_pool_fits(const Cpu&, const Conv2dShape& g) {
  return g.oh >= 2 && g.ow >= 2;
}

template <class T> void conv2d_relu_pool_forward(const Cpu& ctx, const Conv2dShape& g, const T* x,
                                                 const T* weight, const T* b, T* y,
                                                 uint8_t* choice) {
  const int64_t plane_size = int64_t{g.oh} * g.ow;
  const Scratch<T> z(int64_t{g.n} * g.o * plane_size);
  conv2d_forward(ctx, g, x, weight, b, z.get());
  const int ph = g.oh / 2, pw = g.ow / 2;
  each_plane(g, [&](int64_t plane) {
    for (int i = 0; i < ph; ++i) {
      const T* top = z.get() + plane * plane_size + int64_t{2 * i} * g.ow;
      const T* bottom = top + g.ow;
      const int64_t out = (plane * ph + i) * pw;
      for (int j = pool_row(pw, top, bottom, y + out, choice + out); j < pw; ++j) {
        const T window[4] = {top[2 * j], top[2 * j + 1], bottom[2 * j], bottom[2 * j + 1]};
        T best = 0;
        uint8_t taken = 0;
        for (uint8_t k = 0; k < 4; ++k) {
          if (window[k] <= best || best != best) continue;
          best = window[k];
          taken = k;
        }
        y[out + j] = best;
        choice[out + j] = taken;
      }
    }
  });
}

template <class T> void conv2d_relu_pool_backward(const Cpu& ctx, const Conv2dShape& g, const T* x,
                                                  const T* weight, const T* y,
                                                  const uint8_t* choice, const T* dy, T* dx,
                                                  T* dweight, T* db) {
  const int64_t plane_size = int64_t{g.oh} * g.ow;
  const Scratch<T> dz(int64_t{g.n} * g.o * plane_size);
  const int ph = g.oh / 2, pw = g.ow / 2;
  each_plane(g, [&](int64_t plane) {
    T* to = dz.get() + plane * plane_size;
    std::fill_n(to, plane_size, T(0));
    for (int i = 0; i < ph; ++i) {
      for (int j = 0; j < pw; ++j) {
        const int64_t at = (plane * ph + i) * pw + j;
        const int row = 2 * i + choice[at] / 2, column = 2 * j + choice[at] % 2;
        const T d = dy[at];  // read always, so that the choice below is no branch
        to[int64_t{row} * g.ow + column] = y[at] > 0 ? d : T(0);
      }
    }
  });
  if (dx) conv2d_backward_data(ctx, g, static_cast<const T*>(dz.get()), weight, dx);
  if (dweight || db) {
    conv2d_backward_weights(ctx, g, x, static_cast<const T*>(dz.get()), dweight, db);
  }
}

#define SINTER_INSTANTIATE(T)                                                                 \
  template bool conv2d_relu_pool_fits<T>(const Cpu&, const Conv2dShape&);                     \
  template void conv2d_relu_pool_forward(const Cpu&, const Conv2dShape&, const T*, const T*,  \
                                         const T*, T*, uint8_t*);                             \
  template void conv2d_relu_pool_backward(const Cpu&, const Conv2dShape&, const T*, const T*, \
                                          const T*, const uint8_t*, const T*, T*, T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
#endif  // HWY_ONCE
