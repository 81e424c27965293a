// Sums of floating elements over any subset of dimensions.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/sum.cuh"
#include "sinter/operators/reduce.h"

namespace sinter {
namespace cuda {
namespace {

// A block owns kColumns outputs and one slice of the reduced elements. kColumns = 32: neighbouring
// lanes own neighbouring outputs (sums down columns). kColumns = 1: the whole block reads one
// output's elements (sums along rows). Either way lanes read neighbouring addresses.
//   y: (slices, n)
template <class T, class Index, int kColumns> __global__ void __launch_bounds__(kThreads)
    sum_kernel(Index n, Loop<1> kept, Loop<1> reduced, Index slice_size, double factor, const T* x,
               T* y) {
  constexpr int kRows = kThreads / kColumns;
  __shared__ T sums[kThreads];
  const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  const Index i = static_cast<Index>(blockIdx.x) * kColumns + column;

  // Four running sums, added as a tree: four loads in flight, and less rounding than one sum.
  // Blocks of kBlock terms of each go to a total in double, which so rounds no more than a block.
  constexpr int kBlock = 32;
  double total = 0;
  if (i < n) {
    int64_t base[1];
    kept.offsets(i, base);
    const Index begin = static_cast<Index>(blockIdx.y) * slice_size;
    const Index end = min(begin + slice_size, static_cast<Index>(reduced.count));
    for (Index j = begin + row; j < end;) {
      T a[4] = {};
      for (int term = 0; term < kBlock && j < end; ++term, j += 4 * kRows) {
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          if (j + q * kRows < end) {
            int64_t at[1];
            reduced.offsets(static_cast<Index>(j + q * kRows), at);
            a[q] += x[base[0] + at[0]];
          }
        }
      }
      total += static_cast<double>((a[0] + a[1]) + (a[2] + a[3]));
    }
  }
  sums[threadIdx.x] = static_cast<T>(total);
  for (int half = kRows / 2; half > 0; half /= 2) {
    __syncthreads();
    if (row < half) sums[threadIdx.x] += sums[threadIdx.x + half * kColumns];
  }
  if (row == 0 && i < n)
    y[static_cast<int64_t>(blockIdx.y) * n + i] = static_cast<T>(factor * sums[column]);
}

template <class T> void launch_sum(LaunchSite site, const Loop<1>& kept, const Loop<1>& reduced,
                                   bool columns, int64_t slices, double factor, const T* x, T* y) {
  const int64_t tiles = columns ? ceil_div(kept.count, 32) : kept.count;
  const int64_t slice_size = ceil_div(reduced.count, slices);
  with_index(std::max(kept.count, reduced.count), [&](auto zero) {
    using Index = decltype(zero);
    launch(site, {"sum", kept.count, reduced.count},
           dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(slices)), kThreads, 0,
           columns ? sum_kernel<T, Index, 32> : sum_kernel<T, Index, 1>,
           static_cast<Index>(kept.count), kept, reduced, static_cast<Index>(slice_size), factor, x,
           y);
  });
}

// As sum_slices says. Eight threads share a column, then add up as a tree.
template <class T> __global__ void __launch_bounds__(kThreads)
    sum_slices_kernel(int slices, int64_t stride, int64_t n, int64_t n_rest, const T* partial, T* y,
                      T* rest) {
  __shared__ T sums[8][32];
  wait_for_earlier();
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  T sum = 0;
  if (i < n + n_rest) {
#pragma unroll 8
    for (int s = part; s < slices; s += 8) sum += partial[s * stride + i];
  }
  sums[part][lane] = sum;
  for (int half = 4; half > 0; half /= 2) {
    __syncthreads();
    if (part < half) sums[part][lane] += sums[part + half][lane];
  }
  if (part != 0 || i >= n + n_rest) return;
  if (i < n) {
    if (y) y[i] = sums[0][lane];
  } else if (rest) {
    rest[i - n] = sums[0][lane];
  }
}

}  // namespace

template <class T> void sum(LaunchSite site, const op::Strided& over_kept,
                            const op::Strided& over_reduced, double factor, const T* x, T* y) {
  const Loop<1> kept = loop_over(over_kept), reduced = loop_over(over_reduced);
  const int64_t n = kept.count;
  if (n == 0) return;

  // Short sums go down columns even when their elements are adjacent: a block each would idle.
  const bool columns = reduced.count <= 64 || (n >= 32 && kept.stride[0][kept.rank - 1] == 1);
  const int64_t rows = columns ? kThreads / 32 : kThreads;
  const int64_t tiles = columns ? ceil_div(n, 32) : n;
  // Few outputs with long sums are split into slices until some 512 blocks have work; a thread
  // keeps at least 16 elements. The second pass adds the slices.
  const int64_t slices =
      std::clamp<int64_t>(std::min(512 / tiles, reduced.count / (16 * rows)), 1, 512);
  if (slices == 1) {
    launch_sum(site, kept, reduced, columns, 1, factor, x, y);
    return;
  }
  const Scratch<T> partial(site.ctx, slices * n);
  launch_sum(site, kept, reduced, columns, slices, 1.0, x, partial.data());
  Loop<1> outputs, over_slices;
  outputs.append(n, {1});
  over_slices.append(slices, {n});
  launch_sum(site, outputs, over_slices, n >= 32, 1, factor, static_cast<const T*>(partial.data()),
             y);
}

template <class T> void sum_slices(LaunchSite site, const char* name, int64_t slices,
                                   int64_t stride, int64_t n, int64_t n_rest, const T* partial,
                                   T* y, T* rest) {
  launch_early(site, {name, slices, n, n_rest}, static_cast<unsigned>(ceil_div(n + n_rest, 32)),
               kThreads, 0, {.early = false}, sum_slices_kernel<T>, static_cast<int>(slices),
               stride, n, n_rest, partial, y, rest);
}

#define SINTER_INSTANTIATE(T)                                                                     \
  template void sum(LaunchSite, const op::Strided&, const op::Strided&, double, const T*, T*);    \
  template void sum_slices(LaunchSite, const char*, int64_t, int64_t, int64_t, int64_t, const T*, \
                           T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace cuda

void run(const Cuda& ctx, const op::Sum& o) {
  with_floating(o.x, [&]<class T>() {
    cuda::sum(ctx, o.kept, o.reduced, o.factor, o.x.data<T>(), o.y.data<T>());
  });
}

void run(const Cuda& ctx, const op::SumSlices& o) {
  with_floating(o.partial, [&]<class T>() {
    cuda::sum_slices(ctx, "sum_slices", o.partial.shape[0], o.partial.shape[1], o.y.numel(), 0,
                     o.partial.data<T>() + o.first, o.y.data<T>(), static_cast<T*>(nullptr));
  });
}

}  // namespace sinter
