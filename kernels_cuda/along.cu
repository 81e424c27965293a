// What goes along one dimension: cumulative sums and order.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/backend/reductions.h"
#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "sinter/operators/reduce.h"

namespace sinter {
namespace cuda {
namespace {

// Of element (outer, j, inner), row being outer * inner's extent + inner.
__device__ inline int64_t along(const op::AlongShape& g, int64_t row, int64_t j) {
  return (row / g.inner * g.n + j) * g.inner + row % g.inner;
}

// A thread a row: many rows side by side.
template <class T, class Y> __global__ void __launch_bounds__(kThreads)
    cumsum_columns(int64_t rows, op::AlongShape g, bool reverse, const T* __restrict__ x,
                   Y* __restrict__ y) {
  for (int64_t row = thread_index<int64_t>(); row < rows; row += thread_count<int64_t>()) {
    const int64_t step = reverse ? -g.inner : g.inner;
    int64_t at = along(g, row, reverse ? g.n - 1 : 0);
    reductions::Total<T> total = 0;
#pragma unroll 8
    for (int64_t j = 0; j < g.n; ++j, at += step) {
      total += static_cast<reductions::Total<T>>(x[at]);
      y[at] = static_cast<Y>(total);
    }
  }
}

// The sum of the values of the block's threads before this one; `all` gets the sum of all.
template <class A> __device__ A block_prefix(A value, A& all) {
  __shared__ A of_warp[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int offset = 1; offset < 32; offset *= 2) {
    const A lower = __shfl_up_sync(0xffffffffu, value, offset);
    if (lane >= offset) value += lower;
  }
  // Not value - own: that would make a NaN of an infinity.
  const A lower = __shfl_up_sync(0xffffffffu, value, 1);
  __syncthreads();  // readers of an earlier call are done
  if (lane == 31) of_warp[warp] = value;
  __syncthreads();
  A before = 0;
  all = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w == warp) before = all;
    all += of_warp[w];
  }
  return lane > 0 ? before + lower : before;
}

constexpr int kScanItems = 4;                         // neighbours that a thread adds up
constexpr int64_t kScanTile = kThreads * kScanItems;  // elements a block scans at once
constexpr int64_t kScanChunk = 16 * kScanTile;        // elements that one block goes through

// totals: (rows, chunks), the sum of each chunk. A block a chunk.
template <class T> __global__ void __launch_bounds__(kThreads)
    chunk_totals(int64_t chunks, op::AlongShape g, bool reverse, const T* __restrict__ x,
                 reductions::Total<T>* totals) {
  using A = reductions::Total<T>;
  const int64_t row = blockIdx.x / chunks, begin = blockIdx.x % chunks * kScanChunk;
  const int64_t end = min(begin + kScanChunk, g.n);
  A total = 0;
#pragma unroll 4
  for (int64_t j = begin + threadIdx.x; j < end; j += kThreads)
    total += static_cast<A>(x[along(g, row, reverse ? g.n - 1 - j : j)]);
  total = group_reduce<kThreads>(total, Sum{});
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

// A block a chunk of a row, which begins with the sum of the chunks before it.
template <class T, class Y> __global__ void __launch_bounds__(kThreads)
    cumsum_chunks(int64_t chunks, op::AlongShape g, bool reverse, const T* __restrict__ x,
                  const reductions::Total<T>* totals, Y* __restrict__ y) {
  using A = reductions::Total<T>;
  const int64_t row = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  A before = 0;
  if (chunk > 0) {
    for (int64_t c = threadIdx.x; c < chunk; c += kThreads) before += totals[row * chunks + c];
    before = group_reduce<kThreads>(before, Sum{});
  }
  const int64_t end = min((chunk + 1) * kScanChunk, g.n);
  for (int64_t tile = chunk * kScanChunk; tile < end; tile += kScanTile) {
    const int64_t first = tile + threadIdx.x * kScanItems;
    A v[kScanItems];
#pragma unroll
    for (int q = 0; q < kScanItems; ++q) {
      const int64_t j = first + q;
      v[q] = j < end ? static_cast<A>(x[along(g, row, reverse ? g.n - 1 - j : j)]) : A(0);
      if (q > 0) v[q] += v[q - 1];
    }
    A all;
    const A lower = before + block_prefix(v[kScanItems - 1], all);
#pragma unroll
    for (int q = 0; q < kScanItems; ++q) {
      const int64_t j = first + q;
      if (j < end) y[along(g, row, reverse ? g.n - 1 - j : j)] = static_cast<Y>(lower + v[q]);
    }
    before += all;
  }
}

template <class T, class Y>
void cumsum(const Cuda& ctx, const op::AlongShape& g, bool reverse, const T* x, Y* y) {
  const int64_t rows = g.outer * g.inner;
  if (rows * g.n == 0) return;
  // Rows beside each other: a thread each, if they fill the GPU or are short.
  if (g.n <= 16 || (g.inner > 1 && (rows >= 8192 || g.n <= 256)))
    return launch_1d(ctx, "cumsum", rows, cumsum_columns<T, Y>, g, reverse, x, y);
  const int64_t chunks = ceil_div(g.n, kScanChunk);
  const Scratch<reductions::Total<T>> totals(ctx, chunks > 1 ? rows * chunks : 0);
  const auto blocks = static_cast<unsigned>(rows * chunks);
  if (chunks > 1)
    launch(ctx, {"cumsum", rows, g.n}, blocks, kThreads, 0, chunk_totals<T>, chunks, g, reverse, x,
           totals.data());
  launch(ctx, {"cumsum", rows, g.n}, blocks, kThreads, 0, cumsum_chunks<T, Y>, chunks, g, reverse,
         x, static_cast<const reductions::Total<T>*>(totals.data()), y);
}

constexpr int kSortTile = 2048;  // elements that a block sorts in shared memory

template <class T> struct Ranked {
  T value;
  int64_t index;
};

// Sorts elements [tile * kSortTile, …) of a row, a block a tile, by a bitonic network over `size`
// places (a power of two), and keeps the first `keep`. In one tile they are the result; of several,
// kept: (rows, tiles, keep), which merge_tiles goes on with.
template <class T> __global__ void __launch_bounds__(kThreads)
    sort_tiles(int64_t tiles, op::AlongShape g, int64_t k, int size, int keep, bool descending,
               const T* __restrict__ x, T* values, int64_t* index, Ranked<T>* kept) {
  __shared__ T value[kSortTile];
  __shared__ int place[kSortTile];
  const int64_t row = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t first = tile * kSortTile;
  const int count = static_cast<int>(min(static_cast<int64_t>(kSortTile), g.n - first));
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    value[i] = i < count ? x[along(g, row, first + i)] : T(0);
    place[i] = i;
  }
  // What fills up the network goes behind all elements.
  const auto before = [&](int a, int b) {
    if (place[a] >= count || place[b] >= count) return place[a] < place[b];
    return reductions::precedes(descending, value[a], place[a], value[b], place[b]);
  };
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int t = threadIdx.x; t < size / 2; t += blockDim.x) {
        const int low = 2 * t - (t & (step - 1)), high = low + step;
        const bool ascending = (low & run) == 0;
        if (before(high, low) != ascending) continue;
        const T v = value[low];
        value[low] = value[high];
        value[high] = v;
        const int p = place[low];
        place[low] = place[high];
        place[high] = p;
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < min(keep, count); i += blockDim.x) {
    if (kept != nullptr) {
      kept[(row * tiles + tile) * keep + i] = {value[i], first + place[i]};
    } else {
      const int64_t at = (row / g.inner * k + i) * g.inner + row % g.inner;
      values[at] = value[i];
      index[at] = place[i];
    }
  }
}

// An element's rank is its own in its tile plus how many of each other tile come before it, which
// a binary search tells: every element finds its place by itself.
template <class T> __global__ void __launch_bounds__(kThreads)
    merge_tiles(int64_t total, int64_t tiles, op::AlongShape g, int64_t k, int keep,
                bool descending, const Ranked<T>* __restrict__ kept, T* values, int64_t* index) {
  const auto kept_of = [&](int64_t tile) {
    return min(static_cast<int64_t>(keep),
               min(static_cast<int64_t>(kSortTile), g.n - tile * kSortTile));
  };
  for (int64_t e = thread_index<int64_t>(); e < total; e += thread_count<int64_t>()) {
    const int64_t row = e / (tiles * keep), tile = e / keep % tiles;
    int64_t rank = e % keep;
    if (rank >= kept_of(tile)) continue;
    const Ranked<T> me = kept[e];
    for (int64_t other = 0; other < tiles && rank < k; ++other) {
      if (other == tile) continue;
      const Ranked<T>* theirs = kept + (row * tiles + other) * keep;
      int64_t low = 0, high = kept_of(other);
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        const Ranked<T> it = theirs[middle];
        if (reductions::precedes(descending, it.value, it.index, me.value, me.index))
          low = middle + 1;
        else
          high = middle;
      }
      rank += low;
    }
    if (rank >= k) continue;
    const int64_t at = (row / g.inner * k + rank) * g.inner + row % g.inner;
    values[at] = me.value;
    index[at] = me.index;
  }
}

template <class T> void sort(const Cuda& ctx, const op::AlongShape& g, int64_t k, bool descending,
                             const T* x, T* values, int64_t* index) {
  const int64_t rows = g.outer * g.inner;
  if (rows * k == 0) return;
  const int64_t tiles = ceil_div(g.n, kSortTile);
  const int keep = static_cast<int>(std::min<int64_t>(k, kSortTile));
  int size = 2;
  while (size < std::min<int64_t>(g.n, kSortTile)) size *= 2;
  const int64_t total = rows * tiles * keep;
  const Scratch<Ranked<T>> kept(ctx, tiles > 1 ? total : 0);
  launch(ctx, {"sort", rows, g.n}, static_cast<unsigned>(rows * tiles),
         std::clamp(size / 2, 32, kThreads), 0, sort_tiles<T>, tiles, g, k, size, keep, descending,
         x, values, index, tiles > 1 ? kept.data() : nullptr);
  if (tiles > 1)
    launch_1d(ctx, "sort", total, merge_tiles<T>, tiles, g, k, keep, descending,
              static_cast<const Ranked<T>*>(kept.data()), values, index);
}

template <class T> __global__ void zero_kernel(int64_t n, T* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) y[i] = T(0);
}

template <class T> __global__ void __launch_bounds__(kThreads)
    scatter_along_kernel(int64_t total, op::AlongShape g, int64_t k, const T* __restrict__ dy,
                         const int64_t* __restrict__ index, T* dx) {
  for (int64_t i = thread_index<int64_t>(); i < total; i += thread_count<int64_t>()) {
    const int64_t outer = i / (k * g.inner);
    dx[(outer * g.n + index[i]) * g.inner + i % g.inner] = dy[i];
  }
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const op::CumSum& o) {
  with_any(o.x.dtype, [&]<class T>() {
    cuda::cumsum(ctx, o.g, o.reverse, o.x.data<T>(), o.y.data<reductions::Result<T>>());
  });
}

void run(const Cuda& ctx, const op::Sort& o) {
  with_any(o.x.dtype, [&]<class T>() {
    cuda::sort(ctx, o.g, o.k, o.descending, o.x.data<T>(), o.values.data<T>(),
               o.index.data<int64_t>());
  });
}

void run(const Cuda& ctx, const op::ScatterAlong& o) {
  with_floating(o.dy, [&]<class T>() {
    cuda::launch_1d(ctx, "scatter_along", o.dx.numel(), cuda::zero_kernel<T>, o.dx.data<T>());
    cuda::launch_1d(ctx, "scatter_along", o.dy.numel(), cuda::scatter_along_kernel<T>, o.g, o.k,
                    o.dy.data<T>(), o.index.data<int64_t>(), o.dx.data<T>());
  });
}

}  // namespace sinter
