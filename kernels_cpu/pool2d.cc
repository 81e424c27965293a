// Max pooling, parallel over the (n, c) planes; a plane's work is in order.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/pool2d.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>

#include "core/backend/pool2d_windows.h"
#include "kernels_cpu/runtime/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Maxima [j_begin, j_end), at least kLanes, of a row whose windows have the rows `rows` of the
// plane at `in` and lie inside it from side to side, kLanes at a time; the last vector overlaps the
// one before it instead of leaving a remainder. With a stride of 1, or of 2 and kw >= 2.
template <int kLanes, class T, class Code>
HWY_ATTR void max_row(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end,
                      const T* in, T* y, Code* choice) {
  const hn::CappedTag<T, kLanes> d;
  // Codes, in lanes as wide as T: int32_t, or double, which converts to int32_t in one step.
  using Wide = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, double>;
  const hn::Rebind<Wide, decltype(d)> dw;
  const hn::Rebind<int32_t, decltype(d)> di;
  const hn::Rebind<Code, decltype(d)> dc;
  const int first_code = rows.begin == rows.first ? 0 : (rows.begin - rows.first) / g.dil_h * g.kw;
  for (int j = j_begin; j < j_end; j += kLanes) {
    const int at = std::min(j, j_end - kLanes);
    auto best = hn::Zero(d);
    auto taken = hn::Zero(dw);
    int place = first_code;
    for (int r = rows.begin; r < rows.end; r += g.dil_h) {
      const T* row = in + r * g.w + at * g.stride_w - g.pad_w;
      for (int c = 0; c < g.kw; ++c, ++place) {
        auto v = hn::Zero(d);
        if (g.stride_w == 1) {
          v = hn::LoadU(d, row + c * g.dil_w);
        } else {
          // Every second element. The odd ones from one before on, so as not to read past the
          // window.
          auto even = v, odd = v;
          hn::LoadInterleaved2(d, row + std::max(c * g.dil_w - 1, 0), even, odd);
          v = c == 0 ? even : odd;
        }
        const auto here = hn::Set(dw, static_cast<Wide>(place));
        if (place == first_code) {
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

// The same with the widest vectors that the range fills; false, with nothing done, if there is
// none.
template <class T, class Code> bool max_row(const Pool2dShape& g, const PoolWindow& rows,
                                            int j_begin, int j_end, const T* in, T* y,
                                            Code* choice) {
  constexpr int kWide = static_cast<int>(hn::MaxLanes(hn::ScalableTag<T>()));
  constexpr int kNarrow = std::min<int>(16 / sizeof(T), kWide);
  constexpr int kMiddle = std::max(kNarrow, kWide / 2);
  const int n = j_end - j_begin;
  if (n < kNarrow) return false;
  if (n >= kWide) {
    max_row<kWide>(g, rows, j_begin, j_end, in, y, choice);
  } else if (n >= kMiddle) {
    max_row<kMiddle>(g, rows, j_begin, j_end, in, y, choice);
  } else {
    max_row<kNarrow>(g, rows, j_begin, j_end, in, y, choice);
  }
  return true;
}

bool MaxRowFloat(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end,
                 const float* in, float* y, uint8_t* choice) {
  return max_row(g, rows, j_begin, j_end, in, y, choice);
}
bool MaxRowFloatWide(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end,
                     const float* in, float* y, int32_t* choice) {
  return max_row(g, rows, j_begin, j_end, in, y, choice);
}
bool MaxRowDouble(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end,
                  const double* in, double* y, uint8_t* choice) {
  return max_row(g, rows, j_begin, j_end, in, y, choice);
}
bool MaxRowDoubleWide(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end,
                      const double* in, double* y, int32_t* choice) {
  return max_row(g, rows, j_begin, j_end, in, y, choice);
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

bool max_row(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end, const float* in,
             float* y, uint8_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowFloat)(g, rows, j_begin, j_end, in, y, choice);
}
bool max_row(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end, const float* in,
             float* y, int32_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowFloatWide)(g, rows, j_begin, j_end, in, y, choice);
}
bool max_row(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end, const double* in,
             double* y, uint8_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowDouble)(g, rows, j_begin, j_end, in, y, choice);
}
bool max_row(const Pool2dShape& g, const PoolWindow& rows, int j_begin, int j_end, const double* in,
             double* y, int32_t* choice) {
  return HWY_DYNAMIC_DISPATCH(MaxRowDoubleWide)(g, rows, j_begin, j_end, in, y, choice);
}

template <class F> void each_plane(const Pool2dShape& g, const F& f) {
  const int64_t planes = static_cast<int64_t>(g.n) * g.c;
  const int64_t work = std::max(int64_t{g.h} * g.w, int64_t{g.oh} * g.ow * g.kh * g.kw);
  parallel_ranges(planes, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) f(plane);
  });
}

// Those columns of the results that vectors are made of: windows inside the plane, of strides that
// vectors are read with.
struct Columns {
  int begin, end;
};
Columns inner_columns(const Pool2dShape& g) {
  if (g.adaptive || !(g.stride_w == 1 || (g.stride_w == 2 && g.kw >= 2))) return {0, 0};
  const int begin = std::min((g.pad_w + g.stride_w - 1) / g.stride_w, g.ow);
  const int last = g.w + g.pad_w - (g.kw - 1) * g.dil_w - 1;  // its first column, from the padding
  return {begin, last < 0 ? begin : std::max(begin, std::min(last / g.stride_w + 1, g.ow))};
}

template <class T, class Code>
void max_pool2d_forward(const Pool2dShape& g, const T* x, T* y, Code* choice) {
  const Columns inner = inner_columns(g);
  const PoolAxis across = columns(g);
  each_plane(g, [&](int64_t plane) {
    const T* in = x + plane * g.h * g.w;
    for (int i = 0; i < g.oh; ++i) {
      const PoolWindow down = pool_window(rows(g), i);
      T* to = y + (plane * g.oh + i) * g.ow;
      Code* code = choice + (plane * g.oh + i) * g.ow;
      const bool done = max_row(g, down, inner.begin, inner.end, in, to, code);
      for (int j = 0; j < g.ow; ++j) {
        if (done && j == inner.begin) j = inner.end;
        if (j == g.ow) break;
        const PoolWindow window = pool_window(across, j);
        int row = down.begin, column = window.begin;
        T best = in[row * g.w + column];
        for (int r = down.begin; r < down.end; r += g.dil_h) {
          for (int c = window.begin; c < window.end; c += g.dil_w) {
            const T v = in[r * g.w + c];
            // Greater, or the first NaN.
            if (!(v <= best) && best == best) {
              best = v;
              row = r;
              column = c;
            }
          }
        }
        to[j] = best;
        code[j] = static_cast<Code>((row - down.first) / g.dil_h * g.kw +
                                    (column - window.first) / g.dil_w);
      }
    }
  });
}

// Calls f(plane, i, at) for each result i, `at` being where in the plane its choice lies.
// offset(code): how far that is behind the window's first element.
template <class Code, class Offset, class F> void each_choice(const Pool2dShape& g,
                                                              const Code* choice, int64_t plane,
                                                              const Offset& offset, const F& f) {
  int64_t out = plane * g.oh * g.ow;
  for (int i = 0; i < g.oh; ++i) {
    if (g.adaptive) {
      const int64_t row = int64_t{pool_window(rows(g), i).first} * g.w;
      for (int j = 0; j < g.ow; ++j, ++out)
        f(out, row + pool_window(columns(g), j).first + offset(choice[out]));
      continue;
    }
    int64_t first = int64_t{i * g.stride_h - g.pad_h} * g.w - g.pad_w;
    for (int j = 0; j < g.ow; ++j, ++out, first += g.stride_w) f(out, first + offset(choice[out]));
  }
}

// Calls f(offset) with what each_choice asks for.
template <class Code, class F> void with_offset(const Pool2dShape& g, const F& f) {
  const auto offset = [&](int code) {
    return int64_t{code / g.kw * g.dil_h} * g.w + code % g.kw * g.dil_w;
  };
  if constexpr (std::is_same_v<Code, uint8_t>) {
    int64_t offsets[256];
    for (int code = 0; code < g.kh * g.kw; ++code) offsets[code] = offset(code);
    f([&](uint8_t code) { return offsets[code]; });
  } else {
    f(offset);
  }
}

template <class T, class Code>
void max_pool2d_backward(const Pool2dShape& g, const T* dy, const Code* choice, T* dx) {
  with_offset<Code>(g, [&](const auto& offset) {
    each_plane(g, [&](int64_t plane) {
      T* d = dx + plane * g.h * g.w;
      std::fill_n(d, int64_t{g.h} * g.w, T(0));
      each_choice(g, choice, plane, offset, [&](int64_t i, int64_t at) { d[at] += dy[i]; });
    });
  });
}

template <class Code>
void max_pool2d_indices(const Pool2dShape& g, const Code* choice, int64_t* indices) {
  with_offset<Code>(g, [&](const auto& offset) {
    each_plane(g, [&](int64_t plane) {
      each_choice(g, choice, plane, offset, [&](int64_t i, int64_t at) { indices[i] = at; });
    });
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

void run(const Cpu&, const MaxPool2dIndices& o) {
  with_choice(o.choice, [&]<class Code>() {
    max_pool2d_indices(o.g, o.choice.data<Code>(), o.indices.data<int64_t>());
  });
}

}  // namespace sinter
#endif  // HWY_ONCE
