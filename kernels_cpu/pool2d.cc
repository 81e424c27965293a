// Max and average pooling, parallel over the (n, c) planes; a plane's work is in order.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/pool2d.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/pool2d.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Row i of a plane of maxima, whose windows' first row is `first` and meets rows [r_begin, r_end)
// of the plane at `in`, kLanes (<= g.ow) outputs at a time; the last vector overlaps the one before
// it instead of leaving a remainder. Without padding at the sides, and with a stride of 1, or of 2
// and kw >= 2.
template <int kLanes, class T, class Code> HWY_ATTR void max_row(const Pool2dShape& g, int first,
                                                                 int r_begin, int r_end,
                                                                 const T* in, T* y, Code* choice) {
  const hn::CappedTag<T, kLanes> d;
  // Codes, in lanes as wide as T: int32_t, or double, which converts to int32_t in one step.
  using Wide = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, double>;
  const hn::Rebind<Wide, decltype(d)> dw;
  const hn::Rebind<int32_t, decltype(d)> di;
  const hn::Rebind<Code, decltype(d)> dc;
  for (int j = 0; j < g.ow; j += kLanes) {
    const int at = std::min(j, g.ow - kLanes);
    auto best = hn::Zero(d);
    auto taken = hn::Zero(dw);
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
        const auto here = hn::Set(dw, static_cast<Wide>((r - first) * g.kw + c));
        if (r == r_begin && c == 0) {
          best = v;
          taken = here;
        } else {
          // Greater, or the first NaN.
          const auto take = hn::AndNot(hn::Le(v, best), hn::Eq(best, best));
          best = hn::IfThenElse(take, v, best);
          taken = hn::IfThenElse(hn::RebindMask(dw, take), here, taken);
        }
      }
    }
    hn::StoreU(best, d, y + at);
    const auto code = [&]() HWY_ATTR {
      if constexpr (std::is_same_v<Wide, int32_t>) {
        return taken;
      } else {
        return hn::DemoteTo(di, taken);
      }
    }();
    if constexpr (std::is_same_v<Code, int32_t>) {
      hn::StoreU(code, dc, choice + at);
    } else {
      hn::StoreU(hn::DemoteTo(dc, code), dc, choice + at);
    }
  }
}

// The same with the widest vectors that g.ow fills; false, with nothing done, if there is none.
template <class T, class Code> bool max_row(const Pool2dShape& g, int first, int r_begin, int r_end,
                                            const T* in, T* y, Code* choice) {
  constexpr int kWide = static_cast<int>(hn::MaxLanes(hn::ScalableTag<T>()));
  constexpr int kNarrow = std::min<int>(16 / sizeof(T), kWide);
  constexpr int kMiddle = std::max(kNarrow, kWide / 2);
  const bool contiguous = g.pad_w == 0 && (g.stride_w == 1 || (g.stride_w == 2 && g.kw >= 2));
  if (!contiguous || g.ow < kNarrow) return false;
  if (g.ow >= kWide) {
    max_row<kWide>(g, first, r_begin, r_end, in, y, choice);
  } else if (g.ow >= kMiddle) {
    max_row<kMiddle>(g, first, r_begin, r_end, in, y, choice);
  } else {
    max_row<kNarrow>(g, first, r_begin, r_end, in, y, choice);
  }
  return true;
}

bool MaxRowFloat(const Pool2dShape& g, int first, int r_begin, int r_end, const float* in, float* y,
                 uint8_t* choice) {
  return max_row(g, first, r_begin, r_end, in, y, choice);
}
bool MaxRowFloatWide(const Pool2dShape& g, int first, int r_begin, int r_end, const float* in,
                     float* y, int32_t* choice) {
  return max_row(g, first, r_begin, r_end, in, y, choice);
}
bool MaxRowDouble(const Pool2dShape& g, int first, int r_begin, int r_end, const double* in,
                  double* y, uint8_t* choice) {
  return max_row(g, first, r_begin, r_end, in, y, choice);
}
bool MaxRowDoubleWide(const Pool2dShape& g, int first, int r_begin, int r_end, const double* in,
                      double* y, int32_t* choice) {
  return max_row(g, first, r_begin, r_end, in, y, choice);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(MaxRowFloat);
HWY_EXPORT(MaxRowFloatWide);
HWY_EXPORT(MaxRowDouble);
HWY_EXPORT(MaxRowDoubleWide);

bool max_row(const Pool2dShape& g, int first, int r_begin, int r_end, const float* in, float* y,
             uint8_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowFloat)(g, first, r_begin, r_end, in, y, choice);
}
bool max_row(const Pool2dShape& g, int first, int r_begin, int r_end, const float* in, float* y,
             int32_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowFloatWide)(g, first, r_begin, r_end, in, y, choice);
}
bool max_row(const Pool2dShape& g, int first, int r_begin, int r_end, const double* in, double* y,
             uint8_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowDouble)(g, first, r_begin, r_end, in, y, choice);
}
bool max_row(const Pool2dShape& g, int first, int r_begin, int r_end, const double* in, double* y,
             int32_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowDoubleWide)(g, first, r_begin, r_end, in, y, choice);
}

template <class F> void each_plane(const Pool2dShape& g, const F& f) {
  const int64_t planes = static_cast<int64_t>(g.n) * g.c;
  const int64_t work = std::max(int64_t{g.h} * g.w, int64_t{g.oh} * g.ow * g.kh * g.kw);
  parallel_ranges(planes, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) f(plane);
  });
}

// Window `i` begins at `first` and has the part [begin, end) inside [0, extent).
struct Window {
  int first, begin, end;
};
Window window(int i, int stride, int pad, int kernel, int extent) {
  const int first = i * stride - pad;
  return {first, std::max(first, 0), std::min(first + kernel, extent)};
}

template <class T, class Code>
void max_pool2d_forward(const Pool2dShape& g, const T* x, T* y, Code* choice) {
  each_plane(g, [&](int64_t plane) {
    const T* in = x + plane * g.h * g.w;
    int64_t out = plane * g.oh * g.ow;
    for (int i = 0; i < g.oh; ++i) {
      const Window rows = window(i, g.stride_h, g.pad_h, g.kh, g.h);
      if (max_row(g, rows.first, rows.begin, rows.end, in, y + out, choice + out)) {
        out += g.ow;
        continue;
      }
      for (int j = 0; j < g.ow; ++j, ++out) {
        const Window cols = window(j, g.stride_w, g.pad_w, g.kw, g.w);
        int row = rows.begin, column = cols.begin;
        T best = in[row * g.w + column];
        for (int r = rows.begin; r < rows.end; ++r) {
          for (int c = cols.begin; c < cols.end; ++c) {
            const T v = in[r * g.w + c];
            // Greater, or the first NaN.
            if (!(v <= best) && best == best) {
              best = v;
              row = r;
              column = c;
            }
          }
        }
        y[out] = best;
        choice[out] = static_cast<Code>((row - rows.first) * g.kw + column - cols.first);
      }
    }
  });
}

// offset(code): how far a window's element lies behind its first one in the plane.
template <class T, class Code, class F>
void scatter(const Pool2dShape& g, const T* dy, const Code* choice, const F& offset, T* dx) {
  each_plane(g, [&](int64_t plane) {
    T* d = dx + plane * g.h * g.w;
    std::fill_n(d, int64_t{g.h} * g.w, T(0));
    int64_t out = plane * g.oh * g.ow;
    for (int i = 0; i < g.oh; ++i) {
      int64_t first = int64_t{i * g.stride_h - g.pad_h} * g.w - g.pad_w;
      for (int j = 0; j < g.ow; ++j, ++out, first += g.stride_w) {
        d[first + offset(choice[out])] += dy[out];
      }
    }
  });
}

template <class T, class Code>
void max_pool2d_backward(const Pool2dShape& g, const T* dy, const Code* choice, T* dx) {
  const auto offset = [&](int code) { return int64_t{code / g.kw} * g.w + code % g.kw; };
  if constexpr (std::is_same_v<Code, uint8_t>) {
    int64_t offsets[256];
    for (int code = 0; code < g.kh * g.kw; ++code) offsets[code] = offset(code);
    scatter(
        g, dy, choice, [&](uint8_t code) { return offsets[code]; }, dx);
  } else {
    scatter(g, dy, choice, offset, dx);
  }
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
    with_choice(o.choice, [&]<class Code>() {
      max_pool2d_forward(o.g, o.x.data<T>(), o.y.data<T>(), o.choice.data<Code>());
    });
  });
}

void run(const Cpu&, const MaxPool2dBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    with_choice(o.choice, [&]<class Code>() {
      max_pool2d_backward(o.g, o.dy.data<T>(), o.choice.data<Code>(), o.dx.data<T>());
    });
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
