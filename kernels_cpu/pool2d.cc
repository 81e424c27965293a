// Max and average pooling, parallel over the (n, c) planes; a plane's work is in order.
#include "simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pool2d.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "sinter/operators.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Row i of a plane of maxima, from rows [r_begin, r_end) of the plane at `in`, kLanes (<= g.ow)
// outputs at a time; the last vector overlaps the one before it instead of leaving a remainder.
// Without padding at the sides, and with a stride of 1, or of 2 and kw >= 2.
template <int kLanes, class T> HWY_ATTR void max_row(const Pool2dShape& g, int r_begin, int r_end,
                                                     const T* in, T* y, int32_t* argmax) {
  const hn::CappedTag<T, kLanes> d;
  // Offsets, in lanes as wide as T: int32_t, or double, which converts to int32_t in one step.
  using Offset = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, double>;
  const hn::Rebind<Offset, decltype(d)> di;
  for (int j = 0; j < g.ow; j += kLanes) {
    const int at = std::min(j, g.ow - kLanes);
    const auto column = hn::Mul(hn::Iota(di, static_cast<Offset>(at)),
                                hn::Set(di, static_cast<Offset>(g.stride_w)));
    auto best = hn::Zero(d);
    auto index = hn::Zero(di);
    for (int r = r_begin; r < r_end; ++r) {
      const T* row = in + r * g.w + at * g.stride_w;
      for (int c = 0; c < g.kw; ++c) {
        auto v = hn::Zero(d);
        if (g.stride_w == 1) {
          v = hn::LoadU(d, row + c);
        } else {
          // Every second element. The odd ones from c - 1 on, so as not to read past the window.
          auto even = v, odd = v;
          hn::LoadInterleaved2(d, row + std::max(c - 1, 0), even, odd);
          v = c == 0 ? even : odd;
        }
        const auto here = hn::Add(column, hn::Set(di, static_cast<Offset>(r * g.w + c)));
        if (r == r_begin && c == 0) {
          best = v;
          index = here;
        } else {
          // Greater, or the first NaN.
          const auto take = hn::AndNot(hn::Le(v, best), hn::Eq(best, best));
          best = hn::IfThenElse(take, v, best);
          index = hn::IfThenElse(hn::RebindMask(di, take), here, index);
        }
      }
    }
    hn::StoreU(best, d, y + at);
    if constexpr (std::is_same_v<Offset, int32_t>) {
      hn::StoreU(index, di, argmax + at);
    } else {
      const hn::Rebind<int32_t, decltype(di)> narrow;
      hn::StoreU(hn::DemoteTo(narrow, index), narrow, argmax + at);
    }
  }
}

// The same with the widest vectors that g.ow fills; false, with nothing done, if there is none.
template <class T>
bool max_row(const Pool2dShape& g, int r_begin, int r_end, const T* in, T* y, int32_t* argmax) {
  constexpr int kWide = static_cast<int>(hn::MaxLanes(hn::ScalableTag<T>()));
  constexpr int kNarrow = std::min<int>(16 / sizeof(T), kWide);
  constexpr int kMiddle = std::max(kNarrow, kWide / 2);
  const bool contiguous = g.pad_w == 0 && (g.stride_w == 1 || (g.stride_w == 2 && g.kw >= 2));
  if (!contiguous || g.ow < kNarrow) return false;
  if (g.ow >= kWide) {
    max_row<kWide>(g, r_begin, r_end, in, y, argmax);
  } else if (g.ow >= kMiddle) {
    max_row<kMiddle>(g, r_begin, r_end, in, y, argmax);
  } else {
    max_row<kNarrow>(g, r_begin, r_end, in, y, argmax);
  }
  return true;
}

bool MaxRowFloat(const Pool2dShape& g, int r_begin, int r_end, const float* in, float* y,
                 int32_t* argmax) {
  return max_row(g, r_begin, r_end, in, y, argmax);
}
bool MaxRowDouble(const Pool2dShape& g, int r_begin, int r_end, const double* in, double* y,
                  int32_t* argmax) {
  return max_row(g, r_begin, r_end, in, y, argmax);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(MaxRowFloat);
HWY_EXPORT(MaxRowDouble);

bool max_row(const Pool2dShape& g, int r_begin, int r_end, const float* in, float* y,
             int32_t* argmax) {
  return HWY_DYNAMIC_DISPATCH(MaxRowFloat)(g, r_begin, r_end, in, y, argmax);
}
bool max_row(const Pool2dShape& g, int r_begin, int r_end, const double* in, double* y,
             int32_t* argmax) {
  return HWY_DYNAMIC_DISPATCH(MaxRowDouble)(g, r_begin, r_end, in, y, argmax);
}

template <class F> void each_plane(const Pool2dShape& g, const F& f) {
  const int64_t planes = static_cast<int64_t>(g.n) * g.c;
  const int64_t work = std::max(int64_t{g.h} * g.w, int64_t{g.oh} * g.ow * g.kh * g.kw);
  parallel_ranges(planes, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) f(plane);
  });
}

// The part of window `i` that lies inside [0, extent).
struct Window {
  int begin, end;
};
Window window(int i, int stride, int pad, int kernel, int extent) {
  const int first = i * stride - pad;
  return {std::max(first, 0), std::min(first + kernel, extent)};
}

template <class T>
void max_pool2d_forward(const Pool2dShape& g, const T* x, T* y, int32_t* argmax) {
  each_plane(g, [&](int64_t plane) {
    const T* in = x + plane * g.h * g.w;
    int64_t out = plane * g.oh * g.ow;
    for (int i = 0; i < g.oh; ++i) {
      const Window rows = window(i, g.stride_h, g.pad_h, g.kh, g.h);
      if (max_row(g, rows.begin, rows.end, in, y + out, argmax + out)) {
        out += g.ow;
        continue;
      }
      for (int j = 0; j < g.ow; ++j, ++out) {
        const Window cols = window(j, g.stride_w, g.pad_w, g.kw, g.w);
        int32_t at = rows.begin * g.w + cols.begin;
        T best = in[at];
        for (int r = rows.begin; r < rows.end; ++r) {
          for (int c = cols.begin; c < cols.end; ++c) {
            const T v = in[r * g.w + c];
            // Greater, or the first NaN.
            if (!(v <= best) && best == best) {
              best = v;
              at = r * g.w + c;
            }
          }
        }
        y[out] = best;
        argmax[out] = at;
      }
    }
  });
}

template <class T>
void max_pool2d_backward(const Pool2dShape& g, const T* dy, const int32_t* argmax, T* dx) {
  const int64_t outputs = int64_t{g.oh} * g.ow;
  each_plane(g, [&](int64_t plane) {
    T* d = dx + plane * g.h * g.w;
    std::fill_n(d, int64_t{g.h} * g.w, T(0));
    for (int64_t i = plane * outputs; i < (plane + 1) * outputs; ++i) d[argmax[i]] += dy[i];
  });
}

template <class T> void avg_pool2d_forward(const Pool2dShape& g, const T* x, T* y) {
  const T factor = T(1) / static_cast<T>(g.kh * g.kw);
  each_plane(g, [&](int64_t plane) {
    const T* in = x + plane * g.h * g.w;
    T* out = y + plane * g.oh * g.ow;
    for (int i = 0; i < g.oh; ++i) {
      const Window rows = window(i, g.stride_h, g.pad_h, g.kh, g.h);
      for (int j = 0; j < g.ow; ++j) {
        const Window cols = window(j, g.stride_w, g.pad_w, g.kw, g.w);
        T total = 0;
        for (int r = rows.begin; r < rows.end; ++r) {
          for (int c = cols.begin; c < cols.end; ++c) total += in[r * g.w + c];
        }
        *out++ = total * factor;
      }
    }
  });
}

template <class T> void avg_pool2d_backward(const Pool2dShape& g, const T* dy, T* dx) {
  const T factor = T(1) / static_cast<T>(g.kh * g.kw);
  each_plane(g, [&](int64_t plane) {
    T* d = dx + plane * g.h * g.w;
    const T* out = dy + plane * g.oh * g.ow;
    std::fill_n(d, int64_t{g.h} * g.w, T(0));
    for (int i = 0; i < g.oh; ++i) {
      const Window rows = window(i, g.stride_h, g.pad_h, g.kh, g.h);
      for (int j = 0; j < g.ow; ++j) {
        const Window cols = window(j, g.stride_w, g.pad_w, g.kw, g.w);
        const T share = *out++ * factor;
        for (int r = rows.begin; r < rows.end; ++r) {
          for (int c = cols.begin; c < cols.end; ++c) d[r * g.w + c] += share;
        }
      }
    }
  });
}

}  // namespace

void run(const Cpu&, const MaxPool2dForward& o) {
  with_floating(o.x, [&]<class T>() {
    max_pool2d_forward(o.g, o.x.data<T>(), o.y.data<T>(), o.argmax.data<int32_t>());
  });
}

void run(const Cpu&, const MaxPool2dBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    max_pool2d_backward(o.g, o.dy.data<T>(), o.argmax.data<int32_t>(), o.dx.data<T>());
  });
}

void run(const Cpu&, const AvgPool2dForward& o) {
  with_floating(o.x, [&]<class T>() { avg_pool2d_forward(o.g, o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const AvgPool2dBackward& o) {
  with_floating(o.dy, [&]<class T>() { avg_pool2d_backward(o.g, o.dy.data<T>(), o.dx.data<T>()); });
}

}  // namespace sinter
#endif  // HWY_ONCE
