// Reductions over any subset of dimensions, and what goes along one dimension: cumulative sums and
// order.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/backend/reductions.h"
#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/reduce.cuh"
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

// ---- reductions of any kind ---------------------------------------------------------------------

namespace {

// Merges the accumulators of the kPer threads that share a result; the first of them gets it.
// Threads of a result are kStep apart in the block.
template <class R, int kPer, int kStep>
__device__ void merge_in_block(const R& r, int place, typename R::Acc* of_block) {
  for (int half = kPer / 2; half > 0; half /= 2) {
    __syncthreads();
    if (place < half) r.merge(of_block[threadIdx.x], of_block[threadIdx.x + half * kStep]);
  }
}

// A block owns kThreads / kPer results and one slice of their terms; kPer threads share a result.
// kAlong: neighbouring lanes read neighbouring terms (along rows); else they own neighbouring
// results (down columns). Four loads are in flight.
//   partial: (slices, n), for one slice null: results are finished.
template <class R, class Index, int kPer, bool kAlong> __global__ void __launch_bounds__(kThreads)
    fold_kernel(Index n, Loop<1> kept, Loop<1> terms, Index slice_size,
                const typename R::Term* __restrict__ x, R r, typename R::Acc* partial) {
  using Acc = typename R::Acc;
  constexpr int kResults = kThreads / kPer;
  __shared__ Acc of_block[kThreads];
  const int column = kAlong ? threadIdx.x / kPer : threadIdx.x % kResults;
  const int place = kAlong ? threadIdx.x % kPer : threadIdx.x / kResults;
  const Index i = static_cast<Index>(blockIdx.x) * kResults + column;
  if (i < n) {
    int64_t base[1];
    kept.offsets(i, base);
    const Index begin = static_cast<Index>(blockIdx.y) * slice_size;
    const Index end = min(begin + slice_size, static_cast<Index>(terms.count));
    Acc acc = r.start(x[base[0]]);
    for (Index j = begin + place; j < end; j += 4 * kPer) {
      typename R::Term v[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (j + q * kPer >= end) break;
        int64_t at[1];
        terms.offsets(static_cast<Index>(j + q * kPer), at);
        v[q] = x[base[0] + at[0]];
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (j + q * kPer < end) r.add(acc, v[q], static_cast<int64_t>(j + q * kPer));
      }
    }
    of_block[threadIdx.x] = acc;
  }
  // Whole results are beyond n, so nobody merges what was not written.
  merge_in_block<R, kPer, kAlong ? 1 : kResults>(r, i < n ? place : kPer, of_block);
  if (place != 0 || i >= n) return;
  if (partial == nullptr)
    r.finish(i, of_block[threadIdx.x]);
  else
    partial[static_cast<int64_t>(blockIdx.y) * n + i] = of_block[threadIdx.x];
}

// A block a result.
template <class R> __global__ void __launch_bounds__(kThreads)
    merge_slices(int slices, int64_t n, const typename R::Acc* partial, R r) {
  __shared__ typename R::Acc of_block[kThreads];
  const int64_t i = blockIdx.x;
  const int threads = min(slices, kThreads);
  if (threadIdx.x < threads) {
    typename R::Acc acc = partial[threadIdx.x * n + i];
    for (int s = threadIdx.x + kThreads; s < slices; s += kThreads)
      r.merge(acc, partial[s * n + i]);
    of_block[threadIdx.x] = acc;
  }
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half && threadIdx.x + half < threads)
      r.merge(of_block[threadIdx.x], of_block[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) r.finish(i, of_block[0]);
}

// Of no terms.
template <class R> __global__ void finish_nothing(int64_t n, R r) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    r.finish(i, r.start(typename R::Term(0)));
}

template <class R> void fold(LaunchSite site, const char* name, const op::Strided& over_kept,
                             const op::Strided& over_reduced, const typename R::Term* x,
                             const R& r) {
  using Acc = typename R::Acc;
  const Loop<1> kept = loop_over(over_kept), terms = loop_over(over_reduced);
  const int64_t n = kept.count;
  if (n == 0) return;
  if (terms.count == 0) return launch_1d(site, name, n, finish_nothing<R>, r);

  // Columns: where neighbouring results are neighbours in memory, and their terms are not.
  const bool columns = n >= 32 && kept.stride[0][kept.rank - 1] == 1 &&
                       (terms.rank == 0 || terms.stride[0][terms.rank - 1] != 1);
  // Threads a result: as many as have some eight terms.
  const int per = columns || terms.count <= 64       ? 8
                  : terms.count <= 1024 && n >= 4096 ? 32
                                                     : kThreads;
  const int64_t tiles = ceil_div(n, kThreads / per);
  // As sum: slices until some 512 blocks have work, at least 16 terms a thread.
  const int64_t slices =
      std::clamp<int64_t>(std::min(512 / tiles, terms.count / (16 * int64_t{per})), 1, 512);
  const Scratch<Acc> partial(site.ctx, slices > 1 ? slices * n : 0);
  Acc* const into = slices > 1 ? partial.data() : nullptr;
  with_index(std::max(n, terms.count) + 4 * kThreads, [&](auto zero) {
    using Index = decltype(zero);
    const auto go = [&](auto kernel) {
      launch(site, {name, n, terms.count},
             dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(slices)), kThreads, 0, kernel,
             static_cast<Index>(n), kept, terms, static_cast<Index>(ceil_div(terms.count, slices)),
             x, r, into);
    };
    if (columns)
      go(fold_kernel<R, Index, 8, false>);
    else if (per == 8)
      go(fold_kernel<R, Index, 8, true>);
    else if (per == 32)
      go(fold_kernel<R, Index, 32, true>);
    else
      go(fold_kernel<R, Index, kThreads, true>);
  });
  if (slices > 1)
    launch(site, {name, n, slices}, static_cast<unsigned>(n), kThreads, 0, merge_slices<R>,
           static_cast<int>(slices), n, static_cast<const Acc*>(partial.data()), r);
}

// dx[i] = gradient(i, the result that element i is a term of). kEachItems elements of a thread are
// in flight at once: they are computed before any is stored.
constexpr int kEachItems = 4;
template <class T, class Index, class Gradient> __global__ void __launch_bounds__(kThreads)
    each_kernel(Index n, Loop<1> rows, Gradient gradient, T* __restrict__ dx) {
  constexpr int kTile = kThreads * kEachItems;
  for (Index tile = static_cast<Index>(blockIdx.x) * kTile; tile < n;
       tile += static_cast<Index>(gridDim.x) * kTile) {
    T v[kEachItems];
#pragma unroll
    for (int q = 0; q < kEachItems; ++q) {
      const Index i = tile + q * kThreads + threadIdx.x;
      if (i >= n) break;
      int64_t row[1];
      rows.offsets(i, row);
      v[q] = gradient(static_cast<int64_t>(i), row[0]);
    }
#pragma unroll
    for (int q = 0; q < kEachItems; ++q) {
      const Index i = tile + q * kThreads + threadIdx.x;
      if (i < n) dx[i] = v[q];
    }
  }
}

template <class Op> void fold(const Cuda& ctx, const Op& o) {
  const LaunchSite site(ctx);
  reductions::visit(o, [&](const op::Strided& kept, const op::Strided& reduced, const auto* x,
                           const auto& r) { fold(site, Op::name, kept, reduced, x, r); });
}

template <class Op> void each(const Cuda& ctx, const Op& o) {
  const LaunchSite site(ctx);
  reductions::visit(o, [&]<class Gradient>(const op::Strided& over, const Out& out,
                                           const Gradient& gradient) {
    using T = decltype(gradient(0, 0));
    const int64_t n = out.numel();
    const Loop<1> rows = loop_over(over);
    if (n == 0) return;
    const int64_t blocks = std::min<int64_t>(ceil_div(n, kThreads * kEachItems), 1 << 14);
    with_index(n + blocks * kThreads * kEachItems, [&](auto zero) {
      using Index = decltype(zero);
      launch(site, {Op::name, n}, static_cast<unsigned>(blocks), kThreads, 0,
             each_kernel<T, Index, Gradient>, static_cast<Index>(n), rows, gradient, out.data<T>());
    });
  });
}

// ---- along one dimension ------------------------------------------------------------------------

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

void run(const Cuda& ctx, const op::SumIntegers& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::Prod& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::ProdBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::Extremum& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::ExtremumBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::ArgExtremum& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::Variance& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::VarianceBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::Norm& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::NormBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::LogSumExp& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::LogSumExpBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::AllOrAny& o) { cuda::fold(ctx, o); }

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
