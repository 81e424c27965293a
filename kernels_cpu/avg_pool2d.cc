// Average pooling, parallel over the (n, c) planes: sums down the columns of a row of windows, then
// across, loops that the compiler makes vectors of.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/avg_pool2d.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>

#include "core/backend/pool2d_windows.h"
#include "kernels_cpu/runtime/parallel.h"

#ifndef SINTER_AVG_POOL2D_TASK
#define SINTER_AVG_POOL2D_TASK
namespace sinter {
namespace {

template <class T> struct AvgPoolTask {
  const op::Pool2dShape& g;
  bool count_pad;
  int divisor;
  int begin, end;  // columns of a padded row that windows meet and x has
  T* line;         // a row of x with its padding, as far as windows reach
  T* counts;       // of each column of windows: what its sums are divided by, but for the rows
  T* shares;       // a row of results
  const PoolWindow* across;
};

}  // namespace
}  // namespace sinter
#endif

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

template <class T> T rows_counted(const AvgPoolTask<T>& t, const PoolWindow& down) {
  if (t.divisor != 0) return 1;
  return static_cast<T>(pool_counted(rows(t.g), down, t.count_pad));
}

// y = the means over one plane.
template <class T> HWY_ATTR void forward(const AvgPoolTask<T>& t, const T* x, T* HWY_RESTRICT y) {
  const Pool2dShape& g = t.g;
  T* HWY_RESTRICT line = t.line;
  const T* HWY_RESTRICT counts = t.counts;
  const int n = t.end - t.begin;
  for (int i = 0; i < g.oh; ++i, y += g.ow) {
    const PoolWindow down = pool_window(rows(g), i);
    T* HWY_RESTRICT inside = line + t.begin;
    for (int r = down.begin; r < down.end; ++r) {
      const T* HWY_RESTRICT row = x + int64_t{r} * g.w;
      if (r == down.begin) {
        std::copy_n(row, n, inside);
      } else {
        for (int c = 0; c < n; ++c) inside[c] += row[c];
      }
    }
    if (g.adaptive) {
      for (int j = 0; j < g.ow; ++j) {
        T total = 0;
        for (int c = t.across[j].begin; c < t.across[j].end; ++c) total += line[c];
        y[j] = total;
      }
    } else if (g.stride_w == 1) {
      std::copy_n(line, g.ow, y);
      for (int c = 1; c < g.kw; ++c)
        for (int j = 0; j < g.ow; ++j) y[j] += line[j + c];
    } else {
      for (int j = 0; j < g.ow; ++j) {
        const T* from = line + j * g.stride_w;
        T total = from[0];
        for (int c = 1; c < g.kw; ++c) total += from[c];
        y[j] = total;
      }
    }
    const T counted = rows_counted(t, down);
    for (int j = 0; j < g.ow; ++j) y[j] /= counted * counts[j];
  }
}

// dx of one plane.
template <class T>
HWY_ATTR void backward(const AvgPoolTask<T>& t, const T* HWY_RESTRICT dy, T* dx) {
  const Pool2dShape& g = t.g;
  T* HWY_RESTRICT line = t.line;
  T* HWY_RESTRICT shares = t.shares;
  const T* HWY_RESTRICT counts = t.counts;
  const int n = t.end - t.begin;
  const int reach = g.adaptive ? g.w : (g.ow - 1) * g.stride_w + g.kw;
  std::fill_n(dx, int64_t{g.h} * g.w, T(0));
  for (int i = 0; i < g.oh; ++i, dy += g.ow) {
    const PoolWindow down = pool_window(rows(g), i);
    const T counted = rows_counted(t, down);
    for (int j = 0; j < g.ow; ++j) shares[j] = dy[j] / (counted * counts[j]);
    std::fill_n(line, reach, T(0));
    if (g.adaptive) {
      for (int j = 0; j < g.ow; ++j)
        for (int c = t.across[j].begin; c < t.across[j].end; ++c) line[c] += shares[j];
    } else if (g.stride_w == 1) {
      for (int c = 0; c < g.kw; ++c)
        for (int j = 0; j < g.ow; ++j) line[j + c] += shares[j];
    } else {
      for (int j = 0; j < g.ow; ++j) {
        T* to = line + j * g.stride_w;
        for (int c = 0; c < g.kw; ++c) to[c] += shares[j];
      }
    }
    const T* HWY_RESTRICT inside = line + t.begin;
    for (int r = down.begin; r < down.end; ++r) {
      T* HWY_RESTRICT row = dx + int64_t{r} * g.w;
      for (int c = 0; c < n; ++c) row[c] += inside[c];
    }
  }
}

void ForwardFloat(const AvgPoolTask<float>& t, const float* x, float* y) { forward(t, x, y); }
void ForwardDouble(const AvgPoolTask<double>& t, const double* x, double* y) { forward(t, x, y); }
void BackwardFloat(const AvgPoolTask<float>& t, const float* dy, float* dx) { backward(t, dy, dx); }
void BackwardDouble(const AvgPoolTask<double>& t, const double* dy, double* dx) {
  backward(t, dy, dx);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(ForwardFloat);
HWY_EXPORT(ForwardDouble);
HWY_EXPORT(BackwardFloat);
HWY_EXPORT(BackwardDouble);

void forward(const AvgPoolTask<float>& t, const float* x, float* y) {
  HWY_DYNAMIC_DISPATCH(ForwardFloat)(t, x, y);
}
void forward(const AvgPoolTask<double>& t, const double* x, double* y) {
  HWY_DYNAMIC_DISPATCH(ForwardDouble)(t, x, y);
}
void backward(const AvgPoolTask<float>& t, const float* dy, float* dx) {
  HWY_DYNAMIC_DISPATCH(BackwardFloat)(t, dy, dx);
}
void backward(const AvgPoolTask<double>& t, const double* dy, double* dx) {
  HWY_DYNAMIC_DISPATCH(BackwardDouble)(t, dy, dx);
}

// Calls f(task, plane) for each plane.
template <class T, class Operator, class F> void each_plane(const Operator& o, const F& f) {
  const Pool2dShape& g = o.g;
  const int64_t work = std::max(int64_t{g.h} * g.w, int64_t{g.oh} * g.ow * (g.kh + g.kw));
  // Of a padded row.
  const int pad = g.adaptive ? 0 : g.pad_w;
  const int64_t length =
      g.adaptive ? g.w : std::max<int64_t>(int64_t{g.ow - 1} * g.stride_w + g.kw, pad + g.w);
  parallel_ranges(int64_t{g.n} * g.c, items_per_grain(work), [&](int64_t begin, int64_t end) {
    const LocalScratch<PoolWindow> across(g.ow);
    const LocalScratch<T> memory(length + 2 * int64_t{g.ow});
    T *line = memory.get(), *counts = line + length, *shares = counts + g.ow;
    std::fill_n(line, length, T(0));
    for (int j = 0; j < g.ow; ++j) {
      across.get()[j] = pool_window(columns(g), j);
      const int counted = pool_counted(columns(g), across.get()[j], o.count_pad);
      counts[j] = static_cast<T>(o.divisor != 0 ? o.divisor : counted);
    }
    const AvgPoolTask<T> task{g,    o.count_pad, o.divisor, pad,         pad + g.w,
                              line, counts,      shares,    across.get()};
    for (int64_t plane = begin; plane < end; ++plane) f(task, plane);
  });
}

}  // namespace

void run(const Cpu&, const AvgPool2dForward& o) {
  with_floating(o.x, [&]<class T>() {
    each_plane<T>(o, [&](const AvgPoolTask<T>& task, int64_t plane) {
      forward(task, o.x.data<T>() + plane * o.g.h * o.g.w, o.y.data<T>() + plane * o.g.oh * o.g.ow);
    });
  });
}

void run(const Cpu&, const AvgPool2dBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    each_plane<T>(o, [&](const AvgPoolTask<T>& task, int64_t plane) {
      backward(task, o.dy.data<T>() + plane * o.g.oh * o.g.ow,
               o.dx.data<T>() + plane * o.g.h * o.g.w);
    });
  });
}

}  // namespace sinter
#endif  // HWY_ONCE
