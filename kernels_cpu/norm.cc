// Normalization. Sums are taken in double, in blocks of a size that depends on the geometry alone,
// and the blocks are merged in order; everything else is one multiplication and addition after
// another, bound by memory.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/norm.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/norm.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// ---- sums ---------------------------------------------------------------------------------------

using Doubles = hn::ScalableTag<double>;
using DoubleVector = hn::Vec<Doubles>;

HWY_ATTR inline DoubleVector load(const double* p) { return hn::LoadU(Doubles(), p); }
HWY_ATTR inline DoubleVector load(const float* p) {
  return hn::PromoteTo(Doubles(), hn::LoadU(hn::Rebind<float, Doubles>(), p));
}

// Two sums of a run.
struct Pair2 {
  double a = 0, b = 0;
};

// Sums of x - shift and of its square. Four vectors of each are under way, which hides the latency
// of additions.
template <class T> HWY_ATTR Pair2 sums_about(const T* x, int64_t n, double shift) {
  const Doubles d;
  const auto k = static_cast<int64_t>(hn::Lanes(d));
  const auto s = hn::Set(d, shift);
  auto a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  int64_t i = 0;
  for (; i + 4 * k <= n; i += 4 * k) {
    const auto v0 = hn::Sub(load(x + i), s), v1 = hn::Sub(load(x + i + k), s);
    const auto v2 = hn::Sub(load(x + i + 2 * k), s), v3 = hn::Sub(load(x + i + 3 * k), s);
    a0 = hn::Add(a0, v0), a1 = hn::Add(a1, v1), a2 = hn::Add(a2, v2), a3 = hn::Add(a3, v3);
    b0 = hn::MulAdd(v0, v0, b0), b1 = hn::MulAdd(v1, v1, b1);
    b2 = hn::MulAdd(v2, v2, b2), b3 = hn::MulAdd(v3, v3, b3);
  }
  for (; i + k <= n; i += k) {
    const auto v = hn::Sub(load(x + i), s);
    a0 = hn::Add(a0, v);
    b0 = hn::MulAdd(v, v, b0);
  }
  Pair2 sums{hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)))),
             hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(b0, b1), hn::Add(b2, b3))))};
  for (; i < n; ++i) {
    const double v = static_cast<double>(x[i]) - shift;
    sums.a += v;
    sums.b += v * v;
  }
  return sums;
}

// Sums of g = dy * w and of g * (x - mean); w = 1 where null.
template <bool kWeighted, class T>
HWY_ATTR Pair2 gradient_sums(const T* dy, const T* x, const T* w, int64_t n, double mean) {
  const Doubles d;
  const auto k = static_cast<int64_t>(hn::Lanes(d));
  const auto m = hn::Set(d, mean);
  auto a0 = hn::Zero(d), a1 = a0, b0 = a0, b1 = a0;
  int64_t i = 0;
  for (; i + 2 * k <= n; i += 2 * k) {
    auto g0 = load(dy + i), g1 = load(dy + i + k);
    if constexpr (kWeighted) g0 = hn::Mul(g0, load(w + i)), g1 = hn::Mul(g1, load(w + i + k));
    a0 = hn::Add(a0, g0), a1 = hn::Add(a1, g1);
    b0 = hn::MulAdd(g0, hn::Sub(load(x + i), m), b0);
    b1 = hn::MulAdd(g1, hn::Sub(load(x + i + k), m), b1);
  }
  Pair2 sums{hn::GetLane(hn::SumOfLanes(d, hn::Add(a0, a1))),
             hn::GetLane(hn::SumOfLanes(d, hn::Add(b0, b1)))};
  for (; i < n; ++i) {
    double g = static_cast<double>(dy[i]);
    if constexpr (kWeighted) g *= static_cast<double>(w[i]);
    sums.a += g;
    sums.b += g * (static_cast<double>(x[i]) - mean);
  }
  return sums;
}

// Of `count` values: their mean, and the sum of squares of what they are off it.
struct Moments {
  double count = 0, mean = 0, m2 = 0;
};

// From sums about `shift`.
Moments moments_of(int64_t count, double shift, Pair2 sums) {
  const auto n = static_cast<double>(count);
  const double off = sums.a / n, m2 = sums.b - sums.a * off;
  return {n, shift + off, m2 < 0 ? 0 : m2};  // below 0 by rounding alone; a NaN stays
}

// Chan, Golub and LeVeque 1983.
void merge(Moments& a, const Moments& b) {
  if (b.count == 0) return;
  if (a.count == 0) {
    a = b;
    return;
  }
  const double count = a.count + b.count, off = b.mean - a.mean;
  a.mean += off * (b.count / count);
  a.m2 += b.m2 + off * off * (a.count * b.count / count);
  a.count = count;
}

// ---- element by element -------------------------------------------------------------------------

// A mean as the sum of two numbers of T, so that x - high - low has no rounding but of the result.
template <class T> struct Split {
  T high, low;
  explicit Split(double mean)
      : high(static_cast<T>(mean)),
        low(std::isfinite(mean) ? static_cast<T>(mean - static_cast<double>(high)) : T(0)) {}
};

template <class T>
void normalize(const T* HWY_RESTRICT x, int64_t n, Split<T> m, T a, T b, T* HWY_RESTRICT y) {
  for (int64_t i = 0; i < n; ++i) y[i] = ((x[i] - m.high) - m.low) * a + b;
}

// dx = p dy + q (x - mean) + r.
template <class T> void apply(const T* HWY_RESTRICT dy, const T* HWY_RESTRICT x, int64_t n,
                              Split<T> m, T p, T q, T r, T* HWY_RESTRICT dx) {
  for (int64_t i = 0; i < n; ++i) dx[i] = p * dy[i] + (q * ((x[i] - m.high) - m.low) + r);
}

// ---- batch normalization ------------------------------------------------------------------------

// Elements of a channel that are summed before the merge.
constexpr int64_t kBlock = 8192;
// Planes below so many elements are not run through by themselves: an image is a row of c * l
// columns then, and columns are summed over blocks of kRows rows, kColumns side by side.
constexpr int64_t kSmallPlane = 16, kRows = 128, kColumns = 512;

// What a channel's elements are in, by f(offset, count) for each run of elements [begin, end) of
// n * l.
template <class F>
void each_run(const BatchNormShape& g, int64_t c, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = begin; i < end;) {
    const int64_t at = i % g.l, count = std::min(g.l - at, end - i);
    f((i / g.l * g.c + c) * g.l + at, count);
    i += count;
  }
}

// of_channel[c] = the blocks of channel c, block(c, begin, end), merged in order.
template <class R, class Block, class Merge>
void reduce_planes(const BatchNormShape& g, const Block& block, const Merge& merge, R* of_channel) {
  const int64_t count = g.n * g.l, blocks = (count + kBlock - 1) / kBlock;
  const Scratch<R> partial(g.c * blocks);
  parallel_ranges(g.c * blocks, items_per_grain(std::min(kBlock, count)),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t first = i % blocks * kBlock;
                      partial.get()[i] = block(i / blocks, first, std::min(count, first + kBlock));
                    }
                  });
  for (int64_t c = 0; c < g.c; ++c) {
    of_channel[c] = R{};
    for (int64_t b = 0; b < blocks; ++b) merge(of_channel[c], partial.get()[c * blocks + b]);
  }
}

// The same for small planes: block(first row, rows, first column, columns, results).
template <class R, class Block, class Merge>
void reduce_columns(const BatchNormShape& g, const Block& block, const Merge& merge,
                    R* of_channel) {
  const int64_t width = g.c * g.l, blocks = (g.n + kRows - 1) / kRows;
  const int64_t tiles = (width + kColumns - 1) / kColumns;
  const Scratch<R> partial(blocks * width);
  parallel_ranges(blocks * tiles, items_per_grain(std::min(kRows, g.n) * std::min(kColumns, width)),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) {
                      const int64_t row = i / tiles * kRows, column = i % tiles * kColumns;
                      block(row, std::min(kRows, g.n - row), column,
                            std::min(kColumns, width - column),
                            partial.get() + i / tiles * width + column);
                    }
                  });
  for (int64_t c = 0; c < g.c; ++c) {
    of_channel[c] = R{};
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t l = 0; l < g.l; ++l)
        merge(of_channel[c], partial.get()[b * width + c * g.l + l]);
  }
}

template <class T> void column_moments(const T* HWY_RESTRICT x, int64_t stride, int64_t rows,
                                       int64_t columns, Moments* result) {
  double a[kColumns] = {}, b[kColumns] = {};
  for (int64_t r = 1; r < rows; ++r) {
    const T* HWY_RESTRICT row = x + r * stride;
    for (int64_t j = 0; j < columns; ++j) {
      const double v = static_cast<double>(row[j]) - static_cast<double>(x[j]);
      a[j] += v;
      b[j] += v * v;
    }
  }
  for (int64_t j = 0; j < columns; ++j)
    result[j] = moments_of(rows, static_cast<double>(x[j]), {a[j], b[j]});
}

template <class T> void batch_moments(const BatchNormShape& g, const T* x, Moments* of_channel) {
  if (g.l >= kSmallPlane) {
    return reduce_planes<Moments>(
        g,
        [&](int64_t c, int64_t begin, int64_t end) {
          Pair2 sums;
          double shift = 0;
          bool first = true;
          each_run(g, c, begin, end, [&](int64_t at, int64_t count) {
            if (first) shift = static_cast<double>(x[at]);
            first = false;
            const Pair2 run = sums_about(x + at, count, shift);
            sums.a += run.a;
            sums.b += run.b;
          });
          return moments_of(end - begin, shift, sums);
        },
        merge, of_channel);
  }
  reduce_columns<Moments>(
      g,
      [&](int64_t row, int64_t rows, int64_t column, int64_t columns, Moments* result) {
        const int64_t width = g.c * g.l;
        column_moments(x + row * width + column, width, rows, columns, result);
      },
      merge, of_channel);
}

// Sums of dy and of dy * (x - mean).
template <class T> void batch_sums(const BatchNormShape& g, const T* x, const T* dy,
                                   const double* mean, Pair2* of_channel) {
  const auto add = [](Pair2& to, const Pair2& from) {
    to.a += from.a;
    to.b += from.b;
  };
  if (g.l >= kSmallPlane) {
    return reduce_planes<Pair2>(
        g,
        [&](int64_t c, int64_t begin, int64_t end) {
          Pair2 sums;
          each_run(g, c, begin, end, [&](int64_t at, int64_t count) {
            add(sums, gradient_sums<false, T>(dy + at, x + at, nullptr, count, mean[c]));
          });
          return sums;
        },
        add, of_channel);
  }
  const int64_t width = g.c * g.l;
  reduce_columns<Pair2>(
      g,
      [&](int64_t row, int64_t rows, int64_t column, int64_t columns, Pair2* result) {
        double a[kColumns] = {}, b[kColumns] = {}, m[kColumns];
        for (int64_t j = 0; j < columns; ++j) m[j] = mean[(column + j) / g.l];
        for (int64_t r = row; r < row + rows; ++r) {
          const T* HWY_RESTRICT xr = x + r * width + column;
          const T* HWY_RESTRICT dyr = dy + r * width + column;
          for (int64_t j = 0; j < columns; ++j) {
            const double v = static_cast<double>(dyr[j]);
            a[j] += v;
            b[j] += v * (static_cast<double>(xr[j]) - m[j]);
          }
        }
        for (int64_t j = 0; j < columns; ++j) result[j] = {a[j], b[j]};
      },
      add, of_channel);
}

template <class T> T element(const Operand& x, int64_t i, double otherwise) {
  return x.address == nullptr ? static_cast<T>(otherwise) : static_cast<const T*>(x.address)[i];
}

// f(first row, end) over the rows of an image, f(plane) over planes that are not small.
template <class Rows, class Plane>
void each_part(const BatchNormShape& g, const Rows& rows, const Plane& plane) {
  if (g.l < kSmallPlane) {
    parallel_ranges(g.n, items_per_grain(g.c * g.l), rows);
  } else {
    parallel_ranges(g.n * g.c, items_per_grain(g.l), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) plane(i);
    });
  }
}

template <class T> void batch_norm_forward(const BatchNormForward& o) {
  const BatchNormShape& g = o.g;
  double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  const int64_t count = g.n * g.l;
  if (o.training) {
    double momentum = o.momentum;
    if (o.count.address != nullptr) {
      const int64_t batches = ++*o.count.data<int64_t>();
      if (o.cumulative) momentum = 1 / static_cast<double>(batches);
    }
    const Scratch<Moments> moments(g.c);
    batch_moments(g, o.x.data<T>(), moments.get());
    const auto update = [&](T* running, double value) {
      *running = static_cast<T>((1 - momentum) * static_cast<double>(*running) + momentum * value);
    };
    for (int64_t c = 0; c < g.c; ++c) {
      const Moments& m = moments.get()[c];
      mean[c] = m.mean;
      rstd[c] = 1 / std::sqrt(m.m2 / static_cast<double>(std::max<int64_t>(count, 1)) + o.eps);
      if (count == 0) continue;
      if (o.running_mean.address != nullptr) update(o.running_mean.data<T>() + c, m.mean);
      if (o.running_var.address != nullptr)
        update(o.running_var.data<T>() + c, m.m2 / static_cast<double>(count - 1));
    }
  } else {
    for (int64_t c = 0; c < g.c; ++c) {
      mean[c] = static_cast<double>(o.running_mean.data<T>()[c]);
      rstd[c] = 1 / std::sqrt(static_cast<double>(o.running_var.data<T>()[c]) + o.eps);
    }
  }
  if (count == 0) return;

  const T* x = o.x.data<T>();
  T* y = o.y.data<T>();
  const int64_t width = g.l < kSmallPlane ? g.c * g.l : 0;
  const Scratch<T> spread(4 * width);
  T *high = spread.get(), *low = high + width, *a = low + width, *b = a + width;
  const auto factor = [&](int64_t c) {
    return static_cast<T>(rstd[c] * static_cast<double>(element<T>(o.weight, c, 1)));
  };
  for (int64_t j = 0; j < width; ++j) {
    const int64_t c = j / g.l;
    const Split<T> m(mean[c]);
    high[j] = m.high, low[j] = m.low, a[j] = factor(c), b[j] = element<T>(o.bias, c, 0);
  }
  each_part(
      g,
      [&](int64_t begin, int64_t end) {
        const T *HWY_RESTRICT h = high, *HWY_RESTRICT l = low, *HWY_RESTRICT f = a,
                              *HWY_RESTRICT s = b;
        for (int64_t n = begin; n < end; ++n) {
          const T* HWY_RESTRICT from = x + n * width;
          T* HWY_RESTRICT to = y + n * width;
          for (int64_t j = 0; j < width; ++j) to[j] = ((from[j] - h[j]) - l[j]) * f[j] + s[j];
        }
      },
      [&](int64_t plane) {
        const int64_t c = plane % g.c;
        normalize(x + plane * g.l, g.l, Split<T>(mean[c]), factor(c), element<T>(o.bias, c, 0),
                  y + plane * g.l);
      });
}

template <class T> void batch_norm_backward(const BatchNormBackward& o) {
  const BatchNormShape& g = o.g;
  const double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  const T *x = o.x.data<T>(), *dy = o.dy.data<T>();
  T *dx = o.dx.data<T>(), *dweight = o.dweight.data<T>(), *dbias = o.dbias.data<T>();
  const Scratch<Pair2> sums(g.c);
  if (dweight != nullptr || dbias != nullptr || o.training) batch_sums(g, x, dy, mean, sums.get());
  for (int64_t c = 0; c < g.c; ++c) {
    if (dweight != nullptr) dweight[c] = static_cast<T>(sums.get()[c].b * rstd[c]);
    if (dbias != nullptr) dbias[c] = static_cast<T>(sums.get()[c].a);
  }
  const auto count = static_cast<double>(g.n * g.l);
  if (dx == nullptr || count == 0) return;

  // dx = p dy + q (x - mean) + r.
  struct Line {
    T p, q, r;
  };
  const auto line = [&](int64_t c) {
    const double p = rstd[c] * static_cast<double>(element<T>(o.weight, c, 1));
    if (!o.training) return Line{static_cast<T>(p), 0, 0};
    const Pair2& s = sums.get()[c];
    return Line{static_cast<T>(p), static_cast<T>(-p * rstd[c] * rstd[c] * s.b / count),
                static_cast<T>(-p * s.a / count)};
  };
  const int64_t width = g.l < kSmallPlane ? g.c * g.l : 0;
  const Scratch<T> spread(5 * width);
  T *high = spread.get(), *low = high + width, *p = low + width, *q = p + width, *r = q + width;
  for (int64_t j = 0; j < width; ++j) {
    const int64_t c = j / g.l;
    const Split<T> m(mean[c]);
    const Line to = line(c);
    high[j] = m.high, low[j] = m.low, p[j] = to.p, q[j] = to.q, r[j] = to.r;
  }
  each_part(
      g,
      [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const T *HWY_RESTRICT from = x + n * width, *HWY_RESTRICT d = dy + n * width;
          T* HWY_RESTRICT to = dx + n * width;
          if (o.training) {
            for (int64_t j = 0; j < width; ++j)
              to[j] = p[j] * d[j] + (q[j] * ((from[j] - high[j]) - low[j]) + r[j]);
          } else {
            for (int64_t j = 0; j < width; ++j) to[j] = p[j] * d[j];
          }
        }
      },
      [&](int64_t plane) {
        const int64_t c = plane % g.c, at = plane * g.l;
        const Line to = line(c);
        if (o.training) {
          apply(dy + at, x + at, g.l, Split<T>(mean[c]), to.p, to.q, to.r, dx + at);
        } else {
          T* HWY_RESTRICT out = dx + at;
          const T* HWY_RESTRICT d = dy + at;
          for (int64_t i = 0; i < g.l; ++i) out[i] = to.p * d[i];
        }
      });
}

// ---- rows ---------------------------------------------------------------------------------------

template <class T> void row_norm_forward(const RowNormForward& o) {
  const RowNormShape& g = o.g;
  const T *x = o.x.data<T>(), *weight = o.weight.data<T>(), *bias = o.bias.data<T>();
  T* y = o.y.data<T>();
  const int64_t size = g.row();
  parallel_ranges(g.rows(), items_per_grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * size;
      T* to = y + row * size;
      Moments m;
      for (int64_t i = 0; i < size; i += kBlock) {
        const int64_t count = std::min(kBlock, size - i);
        const double shift = g.centred ? static_cast<double>(from[i]) : 0;
        const Pair2 sums = sums_about(from + i, count, shift);
        if (g.centred)
          merge(m, moments_of(count, shift, sums));
        else
          m.m2 += sums.b;
      }
      const double mean = m.mean, rstd = 1 / std::sqrt(m.m2 / static_cast<double>(size) + o.eps);
      o.mean.data<double>()[row] = mean;
      o.rstd.data<double>()[row] = rstd;
      const Split<T> split(mean);
      const int64_t first = row % g.groups * g.channels;
      if (g.inner == 1) {
        const T *HWY_RESTRICT w = weight != nullptr ? weight + first : nullptr,
                              *HWY_RESTRICT b = bias != nullptr ? bias + first : nullptr;
        const T r = static_cast<T>(rstd);
        if (w != nullptr && b != nullptr) {
          for (int64_t i = 0; i < size; ++i)
            to[i] = ((from[i] - split.high) - split.low) * r * w[i] + b[i];
        } else if (w != nullptr) {
          for (int64_t i = 0; i < size; ++i)
            to[i] = ((from[i] - split.high) - split.low) * r * w[i];
        } else if (b != nullptr) {
          for (int64_t i = 0; i < size; ++i)
            to[i] = ((from[i] - split.high) - split.low) * r + b[i];
        } else {
          normalize(from, size, split, r, T(0), to);
        }
      } else {
        for (int64_t k = 0; k < g.channels; ++k) {
          const double factor = rstd * static_cast<double>(element<T>(o.weight, first + k, 1));
          normalize(from + k * g.inner, g.inner, split, static_cast<T>(factor),
                    element<T>(o.bias, first + k, 0), to + k * g.inner);
        }
      }
    }
  });
}

// dx of a row from the sums of g = dy * weight and of g * (x - mean).
struct RowLine {
  double q, r;
  RowLine(const RowNormShape& g, Pair2 sums, double rstd)
      : q(-rstd * rstd * rstd * sums.b / static_cast<double>(g.row())),
        r(g.centred ? -rstd * sums.a / static_cast<double>(g.row()) : 0) {}
};

// inner = 1: a row's gradient, and its terms of the columns' sums, dweight's and dbias's.
template <class T> void row_gradient(const RowNormShape& g, const T* HWY_RESTRICT x,
                                     const T* HWY_RESTRICT dy, const T* HWY_RESTRICT w, double mean,
                                     double rstd, T* HWY_RESTRICT dx, double* HWY_RESTRICT dweight,
                                     double* HWY_RESTRICT dbias) {
  const int64_t size = g.channels;
  if (dx != nullptr) {
    const Pair2 sums = w != nullptr ? gradient_sums<true, T>(dy, x, w, size, mean)
                                    : gradient_sums<false, T>(dy, x, nullptr, size, mean);
    const RowLine to(g, sums, rstd);
    const Split<T> m(mean);
    const T p = static_cast<T>(rstd), q = static_cast<T>(to.q), r = static_cast<T>(to.r);
    if (w != nullptr) {
      for (int64_t i = 0; i < size; ++i)
        dx[i] = p * (dy[i] * w[i]) + (q * ((x[i] - m.high) - m.low) + r);
    } else {
      apply(dy, x, size, m, p, q, r, dx);
    }
  }
  if (dweight != nullptr) {
    for (int64_t i = 0; i < size; ++i)
      dweight[i] += static_cast<double>(dy[i]) * ((static_cast<double>(x[i]) - mean) * rstd);
  }
  if (dbias != nullptr) {
    for (int64_t i = 0; i < size; ++i) dbias[i] += static_cast<double>(dy[i]);
  }
}

template <class T> void row_norm_backward(const RowNormBackward& o) {
  const RowNormShape& g = o.g;
  const T *x = o.x.data<T>(), *dy = o.dy.data<T>(), *weight = o.weight.data<T>();
  const double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  T *dx = o.dx.data<T>(), *dweight = o.dweight.data<T>(), *dbias = o.dbias.data<T>();
  const int64_t size = g.row(), width = g.groups * g.channels;
  const int64_t samples = size > 0 ? g.n : 0;  // that have something to add

  // Samples [begin, end) of a block leave the sums of their columns. Blocks are as many as a pair
  // of sums of some thousand rows costs little beside them.
  const int64_t per_block = std::max<int64_t>(16, (samples + 255) / 256);
  const int64_t blocks = (samples + per_block - 1) / per_block;
  const Scratch<double> partial(2 * width * blocks);
  parallel_for(blocks, [&](int64_t block) {
    double* const dw = partial.get() + 2 * width * block;
    double* const db = dw + width;
    std::fill(dw, dw + 2 * width, 0.0);
    for (int64_t n = block * per_block; n < std::min(samples, (block + 1) * per_block); ++n) {
      for (int64_t group = 0; group < g.groups; ++group) {
        const int64_t row = n * g.groups + group, at = row * size, first = group * g.channels;
        if (g.inner == 1) {
          row_gradient(g, x + at, dy + at, weight != nullptr ? weight + first : nullptr, mean[row],
                       rstd[row], dx != nullptr ? dx + at : nullptr,
                       dweight != nullptr ? dw + first : nullptr,
                       dbias != nullptr ? db + first : nullptr);
          continue;
        }
        Pair2 sums;
        for (int64_t k = 0; k < g.channels; ++k) {
          const Pair2 plane = gradient_sums<false, T>(dy + at + k * g.inner, x + at + k * g.inner,
                                                      nullptr, g.inner, mean[row]);
          dw[first + k] += plane.b * rstd[row];
          db[first + k] += plane.a;
          const auto w = static_cast<double>(element<T>(o.weight, first + k, 1));
          sums.a += w * plane.a;
          sums.b += w * plane.b;
        }
        if (dx == nullptr) continue;
        const RowLine to(g, sums, rstd[row]);
        for (int64_t k = 0; k < g.channels; ++k) {
          const double p = rstd[row] * static_cast<double>(element<T>(o.weight, first + k, 1));
          const int64_t plane = at + k * g.inner;
          apply(dy + plane, x + plane, g.inner, Split<T>(mean[row]), static_cast<T>(p),
                static_cast<T>(to.q), static_cast<T>(to.r), dx + plane);
        }
      }
    }
  });
  const auto add_up = [&](T* to, const double* first) {
    if (to == nullptr) return;
    parallel_ranges(width, items_per_grain(blocks), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        double total = 0;
        for (int64_t b = 0; b < blocks; ++b) total += first[2 * width * b + j];
        to[j] = static_cast<T>(total);
      }
    });
  };
  add_up(dweight, partial.get());
  add_up(dbias, partial.get() + width);
}

void BatchForward(const BatchNormForward& o) {
  with_floating(o.x, [&]<class T>() { batch_norm_forward<T>(o); });
}
void BatchBackward(const BatchNormBackward& o) {
  with_floating(o.x, [&]<class T>() { batch_norm_backward<T>(o); });
}
void RowForward(const RowNormForward& o) {
  with_floating(o.x, [&]<class T>() { row_norm_forward<T>(o); });
}
void RowBackward(const RowNormBackward& o) {
  with_floating(o.x, [&]<class T>() { row_norm_backward<T>(o); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(BatchForward);
HWY_EXPORT(BatchBackward);
HWY_EXPORT(RowForward);
HWY_EXPORT(RowBackward);

}  // namespace

void run(const Cpu&, const BatchNormForward& o) { HWY_DYNAMIC_DISPATCH(BatchForward)(o); }
void run(const Cpu&, const BatchNormBackward& o) { HWY_DYNAMIC_DISPATCH(BatchBackward)(o); }
void run(const Cpu&, const RowNormForward& o) { HWY_DYNAMIC_DISPATCH(RowForward)(o); }
void run(const Cpu&, const RowNormBackward& o) { HWY_DYNAMIC_DISPATCH(RowBackward)(o); }

}  // namespace sinter
#endif
