// Reductions of any kind over any subset of dimensions, and their gradients: kernels over what
// core/backend/reductions.h says is added up and finished. An operator's are compiled where it
// runs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/backend/reductions.h"
#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"

namespace sinter::cuda {

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

}  // namespace sinter::cuda
