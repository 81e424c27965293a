// Normalization, in passes over the data that memory bounds: one that takes sums, in double, and
// one that applies them. Sums are cut into slices by the geometry alone, and the slices are added
// in order by a warp an output.
#include <cmath>
#include <cstdint>

#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/runtime/stream.cuh"
#include "sinter/operators/norm.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- parts --------------------------------------------------------------------------------------

template <class T, int kPack> struct alignas(sizeof(T) * kPack) Pack { T v[kPack]; };
template <class T> constexpr int kWide = 16 / sizeof(T);

template <class... T> bool aligned(const T*... p) {
  return (... && (reinterpret_cast<uintptr_t>(p) % 16 == 0));
}

struct Pair2 {
  double a, b;
};
template <int kGroup> __device__ Pair2 group_sum(Pair2 p) {
  const double a = group_reduce<kGroup>(p.a, Sum{});
  return {a, group_reduce<kGroup>(p.b, Sum{})};
}

// Of `count` values: their mean, and the sum of squares of what they are off it.
struct Moments {
  double count, mean, m2;
};
// From sums of x - shift and of its square.
__device__ Moments moments_of(double count, double shift, Pair2 sums) {
  const double off = sums.a / count, m2 = sums.b - sums.a * off;
  return {count, shift + off, m2 < 0 ? 0 : m2};  // below 0 by rounding alone; a NaN stays
}
// Chan, Golub and LeVeque 1983.
__device__ Moments merged(const Moments& a, const Moments& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const double count = a.count + b.count, off = b.mean - a.mean;
  return {count, a.mean + off * (b.count / count),
          a.m2 + b.m2 + off * off * (a.count * b.count / count)};
}

// A mean as the sum of two numbers of T, so that x - high - low has no rounding but of the result.
template <class T> struct Split {
  T high, low;
  __device__ explicit Split(double mean)
      : high(static_cast<T>(mean)),
        low(isfinite(mean) ? static_cast<T>(mean - static_cast<double>(high)) : T(0)) {}
  __device__ T off(T x) const { return (x - high) - low; }
};

template <class T> __device__ T element(const T* x, int64_t i, T otherwise) {
  return x == nullptr ? otherwise : x[i];
}

// What slices left for the outputs, `per` neighbours of each in each of `blocks` rows of `width`.
struct Partials {
  int64_t blocks, width, per;
  __device__ int64_t count() const { return blocks * per; }
  __device__ int64_t at(int64_t output, int64_t i) const {
    return i / per * width + output * per + i % per;
  }
};

// ---- sums of planes -----------------------------------------------------------------------------

// Calls f(offset) for this thread's packs among [begin, end) of channel c's.
template <int kPack, class F> __device__ void each_of_channel(const BatchNormShape& g, int64_t c,
                                                              int64_t begin, int64_t end, F f) {
  // The place is stepped along: divisions would cost more than the sums.
  const int64_t plane = g.l / kPack, step_n = kThreads / plane, step_l = kThreads % plane;
  int64_t i = begin + threadIdx.x, n = i / plane, l = i % plane;
  for (; i < end; i += kThreads) {
    f(((n * g.c + c) * plane + l) * kPack);
    n += step_n;
    l += step_l;
    if (l >= plane) {
      l -= plane;
      ++n;
    }
  }
}

// A block a slice of a channel. partial: (c, slices).
template <class T, int kPack> __global__ void __launch_bounds__(kThreads)
    plane_moments_kernel(BatchNormShape g, int64_t slices, int64_t slice, const T* x,
                         Moments* partial) {
  const int64_t c = blockIdx.x / slices, begin = blockIdx.x % slices * slice;
  const int64_t end = min(begin + slice, g.n * g.l / kPack), plane = g.l / kPack;
  if (begin >= end) {
    if (threadIdx.x == 0) partial[blockIdx.x] = {};
    return;
  }
  const auto shift =
      static_cast<double>(x[((begin / plane * g.c + c) * plane + begin % plane) * kPack]);
  Pair2 sums{};
  each_of_channel<kPack>(g, c, begin, end, [&](int64_t at) {
    const auto v = *reinterpret_cast<const Pack<T, kPack>*>(x + at);
#pragma unroll
    for (int q = 0; q < kPack; ++q) {
      const double d = static_cast<double>(v.v[q]) - shift;
      sums.a += d;
      sums.b += d * d;
    }
  });
  sums = group_sum<kThreads>(sums);
  if (threadIdx.x == 0)
    partial[blockIdx.x] = moments_of(static_cast<double>((end - begin) * kPack), shift, sums);
}

// Sums of dy and of dy * (x - mean), likewise.
template <class T, int kPack> __global__ void __launch_bounds__(kThreads)
    plane_sums_kernel(BatchNormShape g, int64_t slices, int64_t slice, const T* x, const T* dy,
                      const double* mean, Pair2* partial) {
  const int64_t c = blockIdx.x / slices, begin = blockIdx.x % slices * slice;
  const int64_t end = min(begin + slice, g.n * g.l / kPack);
  const double m = mean[c];
  Pair2 sums{};
  each_of_channel<kPack>(g, c, begin, end, [&](int64_t at) {
    const auto v = *reinterpret_cast<const Pack<T, kPack>*>(x + at);
    const auto d = *reinterpret_cast<const Pack<T, kPack>*>(dy + at);
#pragma unroll
    for (int q = 0; q < kPack; ++q) {
      sums.a += static_cast<double>(d.v[q]);
      sums.b += static_cast<double>(d.v[q]) * (static_cast<double>(v.v[q]) - m);
    }
  });
  sums = group_sum<kThreads>(sums);
  if (threadIdx.x == 0) partial[blockIdx.x] = sums;
}

// ---- sums of columns ----------------------------------------------------------------------------

// Small planes, and rows: (n, width) is summed down its columns, 32 of them and a slice of rows a
// block.
constexpr int kColumns = 32, kRows = kThreads / kColumns;

struct ColumnPlace {
  int64_t column, begin, end;
  int row;
  __device__ ColumnPlace(int64_t n, int64_t slice)
      : column(static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x % kColumns),
        begin(blockIdx.y * slice),
        end(min(begin + slice, n)),
        row(static_cast<int>(threadIdx.x) / kColumns) {}
};

// The sums of the block's threads of each column, in order, in the threads of row 0.
__device__ Pair2 column_sum(Pair2 own) {
  __shared__ Pair2 sums[kRows][kColumns];
  const int row = threadIdx.x / kColumns, column = threadIdx.x % kColumns;
  sums[row][column] = own;
  __syncthreads();
  if (row == 0) {
    for (int r = 1; r < kRows; ++r) {
      own.a += sums[r][column].a;
      own.b += sums[r][column].b;
    }
  }
  return own;
}

// partial: (slices, width).
template <class T> __global__ void __launch_bounds__(kThreads)
    column_moments_kernel(int64_t n, int64_t width, int64_t slice, const T* x, Moments* partial) {
  const ColumnPlace at(n, slice);
  const bool inside = at.column < width && at.begin < at.end;
  double shift = 0;
  Pair2 sums{};
  if (inside) {
    shift = static_cast<double>(x[at.begin * width + at.column]);
    for (int64_t r = at.begin + at.row; r < at.end; r += kRows) {
      const double d = static_cast<double>(x[r * width + at.column]) - shift;
      sums.a += d;
      sums.b += d * d;
    }
  }
  sums = column_sum(sums);
  if (at.row != 0 || at.column >= width) return;
  partial[blockIdx.y * width + at.column] =
      inside ? moments_of(static_cast<double>(at.end - at.begin), shift, sums) : Moments{};
}

// Sums of dy and of dy * (x - mean), times rstd where that is not null. Row r's column j has the
// statistics r * groups + j / per.
template <class T> __global__ void __launch_bounds__(kThreads)
    column_sums_kernel(int64_t n, int64_t width, int64_t slice, int64_t groups, int64_t per,
                       const T* x, const T* dy, const double* mean, const double* rstd,
                       Pair2* partial) {
  const ColumnPlace at(n, slice);
  Pair2 sums{};
  if (at.column < width) {
    const int64_t group = at.column / per;
    for (int64_t r = at.begin + at.row; r < at.end; r += kRows) {
      const int64_t s = r * groups + group;
      const auto d = static_cast<double>(dy[r * width + at.column]);
      const double off = static_cast<double>(x[r * width + at.column]) - mean[s];
      sums.a += d;
      sums.b += d * (rstd == nullptr ? off : off * rstd[s]);
    }
  }
  sums = column_sum(sums);
  if (at.row == 0 && at.column < width) partial[blockIdx.y * width + at.column] = sums;
}

// ---- sums to statistics and gradients -----------------------------------------------------------

// A warp an output.
__device__ int64_t warp_index() { return thread_index<int64_t>() / 32; }
constexpr int kWarps = kThreads / 32;

template <class T> struct Running {
  T *mean, *var;
  int64_t* count;
  bool cumulative;
  double momentum;
};

template <class T> __device__ void update(T* running, int64_t c, double momentum, double value) {
  if (running != nullptr)
    running[c] =
        static_cast<T>((1 - momentum) * static_cast<double>(running[c]) + momentum * value);
}

// Every block reads the count before it draws its ticket, so the last one may move it.
template <class T> __global__ void __launch_bounds__(kThreads)
    finish_moments_kernel(int64_t channels, Partials p, const Moments* partial, double eps,
                          Running<T> running, double* mean, double* rstd, unsigned* ticket) {
  const int64_t c = warp_index(), lane = threadIdx.x % 32;
  const int64_t batches = running.count != nullptr ? *running.count + 1 : 0;
  if (c < channels) {
    Moments m{};
    for (int64_t i = lane; i < p.count(); i += 32) m = merged(m, partial[p.at(c, i)]);
    for (int offset = 16; offset > 0; offset /= 2) {
      const Moments other{__shfl_down_sync(0xffffffffu, m.count, offset),
                          __shfl_down_sync(0xffffffffu, m.mean, offset),
                          __shfl_down_sync(0xffffffffu, m.m2, offset)};
      m = merged(m, other);
    }
    if (lane == 0) {
      mean[c] = m.mean;
      rstd[c] = 1 / sqrt((m.count > 0 ? m.m2 / m.count : 0) + eps);
      if (m.count > 0) {
        const double momentum =
            running.cumulative ? 1 / static_cast<double>(batches) : running.momentum;
        update(running.mean, c, momentum, m.mean);
        update(running.var, c, momentum, m.m2 / (m.count - 1));
      }
    }
  }
  if (running.count != nullptr && last_block(ticket, gridDim.x) && threadIdx.x == 0)
    *running.count = batches;
}

template <class T> __global__ void use_running_kernel(int64_t channels, double eps,
                                                      const T* running_mean, const T* running_var,
                                                      double* mean, double* rstd) {
  for (int64_t c = thread_index<int64_t>(); c < channels; c += thread_count<int64_t>()) {
    mean[c] = static_cast<double>(running_mean[c]);
    rstd[c] = 1 / sqrt(static_cast<double>(running_var[c]) + eps);
  }
}

// dx = p dy + q (x - mean) + r.
struct Line {
  double q, r;
};

// dweight and dbias, each optional; with `lines` those of batch normalization over `count` values.
// rstd: null if it is in the sums already.
template <class T> __global__ void __launch_bounds__(kThreads)
    finish_sums_kernel(int64_t outputs, Partials p, const Pair2* partial, const double* rstd,
                       const T* weight, double count, T* dweight, T* dbias, Line* lines) {
  const int64_t c = warp_index(), lane = threadIdx.x % 32;
  if (c >= outputs) return;
  Pair2 sums{};
  for (int64_t i = lane; i < p.count(); i += 32) {
    const Pair2 s = partial[p.at(c, i)];
    sums.a += s.a;
    sums.b += s.b;
  }
  sums = group_sum<32>(sums);
  if (lane != 0) return;
  const double dw = rstd == nullptr ? sums.b : sums.b * rstd[c];
  if (dweight != nullptr) dweight[c] = static_cast<T>(dw);
  if (dbias != nullptr) dbias[c] = static_cast<T>(sums.a);
  if (lines == nullptr) return;
  const double by = rstd[c] * static_cast<double>(element(weight, c, T(1))) / count;
  lines[c] = {-by * rstd[c] * dw, -by * sums.a};
}

// ---- element by element -------------------------------------------------------------------------

// Planes of l elements with one weight and one statistic each: plane i has channel i % channels and
// statistic i / per_row, or with per_row = 0 its channel's.
struct Planes {
  int64_t count, l, channels, per_row;
  __device__ int64_t statistic(int64_t i) const {
    return per_row == 0 ? i % channels : i / per_row;
  }
};

// Planes that groups of kGroup threads walk.
template <int kGroup, class F> __device__ void each_plane(const Planes& g, F f) {
  constexpr int kPer = kThreads / kGroup;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPer + threadIdx.x / kGroup; i < g.count;
       i += static_cast<int64_t>(gridDim.x) * kPer)
    f(i, static_cast<int64_t>(threadIdx.x % kGroup));
}

template <class T, int kPack, int kGroup> __global__ void __launch_bounds__(kThreads)
    normalize_kernel(Planes g, const T* x, const T* weight, const T* bias, const double* mean,
                     const double* rstd, T* y) {
  each_plane<kGroup>(g, [&](int64_t i, int64_t lane) {
    const int64_t s = g.statistic(i), c = i % g.channels;
    const Split<T> m(mean[s]);
    const T a = static_cast<T>(rstd[s] * static_cast<double>(element(weight, c, T(1))));
    const T b = element(bias, c, T(0));
    const auto* from = reinterpret_cast<const Pack<T, kPack>*>(x + i * g.l);
    auto* to = reinterpret_cast<Pack<T, kPack>*>(y + i * g.l);
    for (int64_t l = lane; l < g.l / kPack; l += kGroup) {
      Pack<T, kPack> v = from[l];
#pragma unroll
      for (int q = 0; q < kPack; ++q) v.v[q] = m.off(v.v[q]) * a + b;
      to[l] = v;
    }
  });
}

// Without lines dx = p dy, and x is not read.
template <class T, int kPack, int kGroup> __global__ void __launch_bounds__(kThreads)
    apply_kernel(Planes g, const T* x, const T* dy, const T* weight, const double* mean,
                 const double* rstd, const Line* lines, T* dx) {
  each_plane<kGroup>(g, [&](int64_t i, int64_t lane) {
    const int64_t s = g.statistic(i), c = i % g.channels;
    const Split<T> m(mean[s]);
    const Line line = lines != nullptr ? lines[s] : Line{};
    const T p = static_cast<T>(rstd[s] * static_cast<double>(element(weight, c, T(1))));
    const T slope = static_cast<T>(line.q), r = static_cast<T>(line.r);
    const auto* from = reinterpret_cast<const Pack<T, kPack>*>(x + i * g.l);
    const auto* above = reinterpret_cast<const Pack<T, kPack>*>(dy + i * g.l);
    auto* to = reinterpret_cast<Pack<T, kPack>*>(dx + i * g.l);
    for (int64_t l = lane; l < g.l / kPack; l += kGroup) {
      Pack<T, kPack> d = above[l];
      if (lines != nullptr) {
        const Pack<T, kPack> v = from[l];
#pragma unroll
        for (int q = 0; q < kPack; ++q) d.v[q] = p * d.v[q] + (slope * m.off(v.v[q]) + r);
      } else {
#pragma unroll
        for (int q = 0; q < kPack; ++q) d.v[q] *= p;
      }
      to[l] = d;
    }
  });
}

// Sums of dy and of dy (x - mean) rstd of each plane.
template <class T, int kGroup> __global__ void __launch_bounds__(kThreads)
    each_plane_sums_kernel(Planes g, const T* x, const T* dy, const double* mean,
                           const double* rstd, Pair2* sums) {
  each_plane<kGroup>(g, [&](int64_t i, int64_t lane) {
    const int64_t s = g.statistic(i);
    Pair2 own{};
    for (int64_t l = lane; l < g.l; l += kGroup) {
      const auto d = static_cast<double>(dy[i * g.l + l]);
      own.a += d;
      own.b += d * (static_cast<double>(x[i * g.l + l]) - mean[s]);
    }
    own = group_sum<kGroup>(own);
    if (lane == 0) sums[i] = {own.a, own.b * rstd[s]};
  });
}

// The lines of groups of channels: a warp a row.
template <class T> __global__ void __launch_bounds__(kThreads)
    row_lines_kernel(RowNormShape g, const Pair2* of_plane, const T* weight, const double* rstd,
                     Line* lines) {
  const int64_t row = warp_index(), lane = threadIdx.x % 32;
  if (row >= g.rows()) return;
  Pair2 sums{};
  for (int64_t k = lane; k < g.channels; k += 32) {
    const Pair2 s = of_plane[row * g.channels + k];
    const auto w = static_cast<double>(element(weight, row % g.groups * g.channels + k, T(1)));
    sums.a += w * s.a;
    sums.b += w * s.b;
  }
  sums = group_sum<32>(sums);
  if (lane != 0) return;
  const double by = rstd[row] / static_cast<double>(g.row());
  lines[row] = {-by * rstd[row] * sums.b, g.centred ? -by * sums.a : 0};
}

// ---- rows ---------------------------------------------------------------------------------------

// The mean and the sum of squares about it of a row, by kGroup threads; f(i, pack) gets each pack.
template <class T, int kPack, int kGroup, class F>
__device__ Moments row_moments(const RowNormShape& g, const T* x, F f) {
  const int64_t packs = g.row() / kPack;
  const double shift = g.centred ? static_cast<double>(x[0]) : 0;
  Pair2 sums{};
  for (int64_t i = threadIdx.x % kGroup; i < packs; i += kGroup) {
    const auto v = reinterpret_cast<const Pack<T, kPack>*>(x)[i];
    f(i, v);
#pragma unroll
    for (int q = 0; q < kPack; ++q) {
      const double d = static_cast<double>(v.v[q]) - shift;
      sums.a += d;
      sums.b += d * d;
    }
  }
  sums = group_sum<kGroup>(sums);
  const auto count = static_cast<double>(g.row());
  if (!g.centred) return {count, 0, sums.b};
  return moments_of(count, shift, sums);
}

// Statistics alone, of rows of several planes.
template <class T, int kPack, int kGroup> __global__ void __launch_bounds__(kThreads)
    row_statistics_kernel(RowNormShape g, double eps, const T* x, double* mean, double* rstd) {
  const Planes rows{g.rows(), g.row(), 1, 1};
  each_plane<kGroup>(rows, [&](int64_t row, int64_t lane) {
    const Moments m =
        row_moments<T, kPack, kGroup>(g, x + row * g.row(), [](int64_t, const Pack<T, kPack>&) {});
    if (lane != 0) return;
    mean[row] = m.mean;
    rstd[row] = 1 / sqrt(m.m2 / m.count + eps);
  });
}

// inner = 1. With `kept` a row stays in shared memory between its statistics and its result, each
// pack with the thread that read it.
template <class T, int kPack, int kGroup> __global__ void __launch_bounds__(kThreads)
    row_forward_kernel(RowNormShape g, double eps, bool kept, const T* x, const T* weight,
                       const T* bias, T* y, double* mean, double* rstd) {
  using Packed = Pack<T, kPack>;
  const int64_t size = g.row(), packs = size / kPack;
  Packed* const own = dynamic_shared<Packed>() + threadIdx.x / kGroup * packs;
  const Planes rows{g.rows(), size, 1, 1};
  each_plane<kGroup>(rows, [&](int64_t row, int64_t lane) {
    const Moments m =
        row_moments<T, kPack, kGroup>(g, x + row * size, [&](int64_t i, const Packed& v) {
          if (kept) own[i] = v;
        });
    const double r = 1 / sqrt(m.m2 / m.count + eps);
    if (lane == 0) {
      mean[row] = m.mean;
      rstd[row] = r;
    }
    const Split<T> split(m.mean);
    const T by = static_cast<T>(r);
    const int64_t first = row % g.groups * g.channels;
    for (int64_t i = lane; i < packs; i += kGroup) {
      Packed v = kept ? own[i] : reinterpret_cast<const Packed*>(x + row * size)[i];
#pragma unroll
      for (int q = 0; q < kPack; ++q) {
        v.v[q] = split.off(v.v[q]) * by;
        if (weight != nullptr) v.v[q] *= weight[first + i * kPack + q];
        if (bias != nullptr) v.v[q] += bias[first + i * kPack + q];
      }
      reinterpret_cast<Packed*>(y + row * size)[i] = v;
    }
  });
}

// inner = 1. The second read of a row comes from the cache.
template <class T, int kPack, int kGroup> __global__ void __launch_bounds__(kThreads)
    row_backward_kernel(RowNormShape g, const T* x, const T* dy, const T* weight,
                        const double* mean, const double* rstd, T* dx) {
  using Packed = Pack<T, kPack>;
  const int64_t size = g.row(), packs = size / kPack;
  const Planes rows{g.rows(), size, 1, 1};
  each_plane<kGroup>(rows, [&](int64_t row, int64_t lane) {
    const auto* from = reinterpret_cast<const Packed*>(x + row * size);
    const auto* above = reinterpret_cast<const Packed*>(dy + row * size);
    const T* w = weight != nullptr ? weight + row % g.groups * g.channels : nullptr;
    const double m = mean[row], r = rstd[row];
    Pair2 sums{};
    for (int64_t i = lane; i < packs; i += kGroup) {
      const Packed v = from[i], d = above[i];
#pragma unroll
      for (int q = 0; q < kPack; ++q) {
        double e = static_cast<double>(d.v[q]);
        if (w != nullptr) e *= static_cast<double>(w[i * kPack + q]);
        sums.a += e;
        sums.b += e * (static_cast<double>(v.v[q]) - m);
      }
    }
    sums = group_sum<kGroup>(sums);
    const double by = r / static_cast<double>(size);
    const T slope = static_cast<T>(-by * r * r * sums.b);
    const T constant = static_cast<T>(g.centred ? -by * sums.a : 0), p = static_cast<T>(r);
    const Split<T> split(m);
    for (int64_t i = lane; i < packs; i += kGroup) {
      const Packed v = from[i];
      Packed d = above[i];
#pragma unroll
      for (int q = 0; q < kPack; ++q) {
        if (w != nullptr) d.v[q] *= w[i * kPack + q];
        d.v[q] = p * d.v[q] + (slope * split.off(v.v[q]) + constant);
      }
      reinterpret_cast<Packed*>(dx + row * size)[i] = d;
    }
  });
}

// ---- launchers ----------------------------------------------------------------------------------

template <int kValue> using Constant = std::integral_constant<int, kValue>;

// f(pack, group): elements an access and threads a plane of l elements.
template <class T, class F> void with_shape(bool wide, int64_t l, const F& f) {
  const auto with_group = [&](auto pack) {
    const int64_t packs = l / pack();
    if (packs == 1)
      f(pack, Constant<1>{});
    else if (packs <= 16)
      f(pack, Constant<8>{});
    else if (packs <= 128)
      f(pack, Constant<32>{});
    else
      f(pack, Constant<kThreads>{});
  };
  if (wide && l % kWide<T> == 0)
    with_group(Constant<kWide<T>>{});
  else
    with_group(Constant<1>{});
}
// Of rows, which a warp or a block reduces.
template <class T, class F> void with_row_shape(bool wide, int64_t size, const F& f) {
  const auto with_group = [&](auto pack) {
    if (size <= 1024)
      f(pack, Constant<32>{});
    else
      f(pack, Constant<kThreads>{});
  };
  if (wide && size % kWide<T> == 0)
    with_group(Constant<kWide<T>>{});
  else
    with_group(Constant<1>{});
}

unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(items, per_block), 1 << 16));
}
// A warp each, all at once.
unsigned warp_blocks(int64_t outputs) { return static_cast<unsigned>(ceil_div(outputs, kWarps)); }

template <class T> void normalize(const Cuda& ctx, const char* name, const Planes& g, const T* x,
                                  const T* weight, const T* bias, const double* mean,
                                  const double* rstd, T* y) {
  if (g.count * g.l == 0) return;
  with_shape<T>(aligned(x, y), g.l, [&](auto pack, auto group) {
    launch(ctx, {name, g.count, g.l}, blocks_for(g.count, kThreads / group()), kThreads, 0,
           normalize_kernel<T, pack(), group()>, g, x, weight, bias, mean, rstd, y);
  });
}

template <class T> void apply(const Cuda& ctx, const char* name, const Planes& g, const T* x,
                              const T* dy, const T* weight, const double* mean, const double* rstd,
                              const Line* lines, T* dx) {
  if (g.count * g.l == 0) return;
  with_shape<T>(aligned(x, dy, dx), g.l, [&](auto pack, auto group) {
    launch(ctx, {name, g.count, g.l}, blocks_for(g.count, kThreads / group()), kThreads, 0,
           apply_kernel<T, pack(), group()>, g, x, dy, weight, mean, rstd, lines, dx);
  });
}

// How a channel's sums are cut. Planes of fewer elements than a warp are columns.
constexpr int64_t kSmallPlane = 32;
struct Cut {
  bool columns;
  int64_t slices, slice;  // of packs, or of rows
  Partials partials;

  Cut(const BatchNormShape& g, int64_t pack) : columns(g.l < kSmallPlane) {
    if (g.n * g.c * g.l == 0) {
      set_slices(0, 1);
      partials = {0, 0, 1};
    } else if (columns) {
      set_slices(g.n, std::min(2048 / ceil_div(g.c * g.l, kColumns), g.n / (8 * kRows)));
      partials = {slices, g.c * g.l, g.l};
    } else {
      const int64_t packs = g.n * g.l / pack;
      set_slices(packs, std::min(4096 / g.c, packs / (4 * kThreads)));
      partials = {1, g.c * slices, slices};
    }
  }
  // Rows of `width` columns.
  static Cut of_rows(int64_t n, int64_t width) { return Cut({n, width, 1}, 1); }
  int64_t results() const { return partials.blocks * partials.width; }
  dim3 column_grid() const {
    return dim3(static_cast<unsigned>(ceil_div(partials.width, kColumns)),
                static_cast<unsigned>(slices));
  }

 private:
  void set_slices(int64_t items, int64_t wanted) {
    slices = std::max<int64_t>(1, wanted);
    slice = ceil_div(items, slices);
  }
};

template <class T> void batch_norm_forward(const Cuda& ctx, const BatchNormForward& o) {
  const BatchNormShape& g = o.g;
  const T* x = o.x.data<T>();
  double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  if (o.training) {
    const bool wide = aligned(x) && g.l % kWide<T> == 0;
    const Cut cut(g, wide ? kWide<T> : 1);
    const Scratch<Moments> partial(ctx, cut.results());
    if (cut.results() > 0) {
      if (cut.columns) {
        launch(ctx, {"batch_norm", g.n, g.c, g.l}, cut.column_grid(), kThreads, 0,
               column_moments_kernel<T>, g.n, cut.partials.width, cut.slice, x, partial.data());
      } else {
        launch(ctx, {"batch_norm", g.n, g.c, g.l}, static_cast<unsigned>(cut.results()), kThreads,
               0, wide ? plane_moments_kernel<T, kWide<T>> : plane_moments_kernel<T, 1>, g,
               cut.slices, cut.slice, x, partial.data());
      }
    }
    const Running<T> running{o.running_mean.data<T>(), o.running_var.data<T>(),
                             o.count.data<int64_t>(), o.cumulative, o.momentum};
    launch(ctx, {"batch_norm", g.n, g.c, g.l}, std::max(1u, warp_blocks(g.c)), kThreads, 0,
           finish_moments_kernel<T>, g.c, cut.partials, partial.data(), o.eps, running, mean, rstd,
           stream_resources(ctx).ticket);
  } else {
    launch_1d(ctx, "batch_norm", g.c, use_running_kernel<T>, o.eps,
              static_cast<const T*>(o.running_mean.data<T>()),
              static_cast<const T*>(o.running_var.data<T>()), mean, rstd);
  }
  normalize(ctx, "batch_norm", {g.n * g.c, g.l, g.c, 0}, x, o.weight.data<T>(), o.bias.data<T>(),
            mean, rstd, o.y.data<T>());
}

template <class T> void batch_norm_backward(const Cuda& ctx, const BatchNormBackward& o) {
  const BatchNormShape& g = o.g;
  const T *x = o.x.data<T>(), *dy = o.dy.data<T>(), *weight = o.weight.data<T>();
  const double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  T *dx = o.dx.data<T>(), *dweight = o.dweight.data<T>(), *dbias = o.dbias.data<T>();
  if (g.c == 0) return;
  const Scratch<Line> lines(ctx, g.c);
  const Line* line = o.training ? lines.data() : nullptr;
  if (dweight != nullptr || dbias != nullptr || o.training) {
    const bool wide = aligned(x, dy) && g.l % kWide<T> == 0;
    const Cut cut(g, wide ? kWide<T> : 1);
    const Scratch<Pair2> partial(ctx, cut.results());
    if (cut.results() > 0) {
      if (cut.columns) {
        launch(ctx, {"batch_norm_backward", g.n, g.c, g.l}, cut.column_grid(), kThreads, 0,
               column_sums_kernel<T>, g.n, cut.partials.width, cut.slice, int64_t{0}, g.l, x, dy,
               mean, static_cast<const double*>(nullptr), partial.data());
      } else {
        launch(ctx, {"batch_norm_backward", g.n, g.c, g.l}, static_cast<unsigned>(cut.results()),
               kThreads, 0, wide ? plane_sums_kernel<T, kWide<T>> : plane_sums_kernel<T, 1>, g,
               cut.slices, cut.slice, x, dy, mean, partial.data());
      }
    }
    launch(ctx, {"batch_norm_backward", g.n, g.c, g.l}, warp_blocks(g.c), kThreads, 0,
           finish_sums_kernel<T>, g.c, cut.partials, partial.data(), rstd, weight,
           static_cast<double>(g.n * g.l), dweight, dbias,
           o.training ? lines.data() : static_cast<Line*>(nullptr));
  }
  if (dx == nullptr) return;
  apply(ctx, "batch_norm_backward", {g.n * g.c, g.l, g.c, 0}, x, dy, weight, mean, rstd, line, dx);
}

template <class T> void row_norm_forward(const Cuda& ctx, const RowNormForward& o) {
  const RowNormShape& g = o.g;
  const int64_t size = g.row();
  if (g.rows() * size == 0) return;
  const T *x = o.x.data<T>(), *weight = o.weight.data<T>(), *bias = o.bias.data<T>();
  T* y = o.y.data<T>();
  double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  with_row_shape<T>(aligned(x, y), size, [&](auto pack, auto group) {
    const int64_t per_block = kThreads / group();
    const unsigned blocks = blocks_for(g.rows(), per_block);
    if (g.inner == 1) {
      const size_t bytes = static_cast<size_t>(per_block * size) * sizeof(T);
      const bool kept = bytes <= kUnaskedSharedBytes;
      launch(ctx, {"row_norm", g.rows(), size}, blocks, kThreads, kept ? bytes : 0,
             row_forward_kernel<T, pack(), group()>, g, o.eps, kept, x, weight, bias, y, mean,
             rstd);
    } else {
      launch(ctx, {"row_norm", g.rows(), size}, blocks, kThreads, 0,
             row_statistics_kernel<T, pack(), group()>, g, o.eps, x, mean, rstd);
    }
  });
  if (g.inner == 1) return;
  const int64_t channels = g.groups * g.channels;
  normalize(ctx, "row_norm", {g.n * channels, g.inner, channels, g.channels}, x, weight, bias, mean,
            rstd, y);
}

template <class T> void row_norm_backward(const Cuda& ctx, const RowNormBackward& o) {
  const RowNormShape& g = o.g;
  const T *x = o.x.data<T>(), *dy = o.dy.data<T>(), *weight = o.weight.data<T>();
  const double *mean = o.mean.data<double>(), *rstd = o.rstd.data<double>();
  T *dx = o.dx.data<T>(), *dweight = o.dweight.data<T>(), *dbias = o.dbias.data<T>();
  const int64_t size = g.row(), width = g.groups * g.channels;
  if (width == 0) return;
  const int64_t n = size > 0 ? g.n : 0;  // of samples that have something to add
  const bool sums_needed = dweight != nullptr || dbias != nullptr;
  const auto finish = [&](const Partials& p, const Pair2* partial) {
    launch(ctx, {"row_norm_backward", width}, warp_blocks(width), kThreads, 0,
           finish_sums_kernel<T>, width, p, partial, static_cast<const double*>(nullptr), weight,
           0.0, dweight, dbias, static_cast<Line*>(nullptr));
  };
  if (g.inner == 1) {
    if (dx != nullptr && n > 0) {
      with_row_shape<T>(aligned(x, dy, dx), size, [&](auto pack, auto group) {
        launch(ctx, {"row_norm_backward", g.rows(), size}, blocks_for(g.rows(), kThreads / group()),
               kThreads, 0, row_backward_kernel<T, pack(), group()>, g, x, dy, weight, mean, rstd,
               dx);
      });
    }
    if (!sums_needed) return;
    const Cut cut = Cut::of_rows(n, width);
    const Scratch<Pair2> partial(ctx, cut.results());
    if (n > 0) {
      launch(ctx, {"row_norm_backward", n, width}, cut.column_grid(), kThreads, 0,
             column_sums_kernel<T>, n, width, cut.slice, g.groups, g.channels, x, dy, mean, rstd,
             partial.data());
    }
    finish(cut.partials, partial.data());
    return;
  }
  const Planes planes{n * width, g.inner, width, g.channels};
  const Scratch<Pair2> of_plane(ctx, planes.count);
  if (planes.count > 0) {
    const bool small = g.inner <= 1024;
    launch(ctx, {"row_norm_backward", planes.count, g.inner},
           blocks_for(planes.count, small ? kWarps : 1), kThreads, 0,
           small ? each_plane_sums_kernel<T, 32> : each_plane_sums_kernel<T, kThreads>, planes, x,
           dy, mean, rstd, of_plane.data());
  }
  if (sums_needed) finish({n, width, 1}, of_plane.data());
  if (dx == nullptr || planes.count == 0) return;
  const Scratch<Line> lines(ctx, g.rows());
  launch(ctx, {"row_norm_backward", g.rows(), size}, warp_blocks(g.rows()), kThreads, 0,
         row_lines_kernel<T>, g, of_plane.data(), weight, rstd, lines.data());
  apply(ctx, "row_norm_backward", planes, x, dy, weight, mean, rstd, lines.data(), dx);
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const BatchNormForward& o) {
  with_floating(o.x, [&]<class T>() { cuda::batch_norm_forward<T>(ctx, o); });
}
void run(const Cuda& ctx, const BatchNormBackward& o) {
  with_floating(o.x, [&]<class T>() { cuda::batch_norm_backward<T>(ctx, o); });
}
void run(const Cuda& ctx, const RowNormForward& o) {
  with_floating(o.x, [&]<class T>() { cuda::row_norm_forward<T>(ctx, o); });
}
void run(const Cuda& ctx, const RowNormBackward& o) {
  with_floating(o.x, [&]<class T>() { cuda::row_norm_backward<T>(ctx, o); });
}

}  // namespace sinter
