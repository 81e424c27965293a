// Elements chosen by indices. Gradients sort the indices, equal ones in their order, and add up
// what belongs to each in that order.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels_cuda/move.cuh"
#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/runtime/stream.cuh"
#include "sinter/operators/indexing.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
constexpr int64_t kMostBlocks = 4096;

FaultCode fault_of(Indexing by) {
  constexpr FaultCode kCodes[] = {FaultCode::kIndexSelectIndex, FaultCode::kEmbeddingIndex,
                                  FaultCode::kGatherIndex, FaultCode::kOneHotIndex};
  return kCodes[static_cast<int>(by)];
}

// Where a kernel's threads tell of indices out of range: the first of all is the fault.
struct Check {
  FaultCode code;
  int64_t limit;
  const int64_t* index;
  int64_t* of_block;
  StreamResources stream;

  __device__ bool valid(int64_t value) const { return 0 <= value && value < limit; }
  // By all threads at the end of a kernel of kThreads threads a block; bad: the first place that
  // this thread knows of, or kNone.
  __device__ void report(int64_t bad) const {
    bad = group_reduce<kThreads>(bad, Min{});
    if (threadIdx.x == 0) of_block[blockIdx.x] = bad;
    if (!last_block(stream.ticket, gridDim.x)) return;
    bad = kNone;
    for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads)
      bad = Min{}(bad,
                  static_cast<int64_t>(__ldcg(reinterpret_cast<const long long*>(&of_block[b]))));
    bad = group_reduce<kThreads>(bad, Min{});
    if (threadIdx.x == 0 && bad != kNone) record_fault(stream.fault, code, bad, index[bad], limit);
  }
};

// y[i] = x at the place that the index at source.place(i) tells; 0 for one out of range.
template <class U, class Index, class Source> __global__ void __launch_bounds__(kThreads)
    indexed_move_kernel(Index n, Source source, Check check, const U* __restrict__ x,
                        U* __restrict__ y) {
  constexpr Index kBlock = kThreads * kMovesAtOnce;
  int64_t bad = kNone;
  for (Index first = blockIdx.x * kBlock + threadIdx.x; first < n; first += gridDim.x * kBlock) {
    U v[kMovesAtOnce];
#pragma unroll
    for (int k = 0; k < kMovesAtOnce; ++k) {
      const Index i = first + k * kThreads;
      v[k] = U{};
      if (i >= n) continue;
      const int64_t place = source.place(i), value = check.index[place];
      if (check.valid(value))
        v[k] = x[source.at(i, value)];
      else
        bad = Min{}(bad, place);
    }
#pragma unroll
    for (int k = 0; k < kMovesAtOnce; ++k) {
      const Index i = first + k * kThreads;
      if (i < n) y[i] = v[k];
    }
  }
  check.report(bad);
}

template <class U, class Make> void indexed_move(LaunchSite site, const char* name, Indexing by,
                                                 int64_t n, int64_t limit, const In& index,
                                                 const Make& make, const void* x, void* y) {
  if (n == 0) return;
  with_index(n, [&]<class Index>(Index) {
    const auto source = make(Index{});
    const auto blocks = std::min<int64_t>(ceil_div(n, kThreads * kMovesAtOnce), kMostBlocks);
    const Scratch<int64_t> of_block(site.ctx, blocks);
    const Check check{fault_of(by), limit, index.data<int64_t>(), of_block.data(),
                      stream_resources(site.ctx)};
    launch(site, {name, n}, static_cast<unsigned>(blocks), kThreads, 0,
           indexed_move_kernel<U, Index, std::decay_t<decltype(source)>>, static_cast<Index>(n),
           source, check, static_cast<const U*>(x), static_cast<U*>(y));
  });
}

// Rows of `inner` units; k indices.
template <class Index> struct SelectSource {
  Divider<Index> inner, k;
  int64_t n;

  __device__ int64_t place(Index i) const {
    const Index row = inner.quotient(i);
    return static_cast<int64_t>(row - k.quotient(row) * k.d);
  }
  __device__ int64_t at(Index i, int64_t value) const {
    const Index row = inner.quotient(i);
    const auto outer = static_cast<int64_t>(k.quotient(row));
    return (outer * n + value) * static_cast<int64_t>(inner.d) +
           static_cast<int64_t>(i - row * inner.d);
  }
};

template <class Index> struct GatherSource {
  GatherLines g;
  Loop<1> lines;

  __device__ int64_t place(Index i) const { return static_cast<int64_t>(i); }
  __device__ int64_t at(Index i, int64_t value) const {
    const Index inner = static_cast<Index>(g.index.inner);
    const Index row = i / inner, outer = row / static_cast<Index>(g.index.n);
    int64_t line[1];
    lines.offsets(static_cast<Index>(outer * inner + (i - row * inner)), line);
    return line[0] + value * g.step;
  }
};

__global__ void __launch_bounds__(kThreads)
    one_hot_kernel(int64_t n, int64_t classes, Check check, int64_t* __restrict__ y) {
  int64_t bad = kNone;
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) {
    const int64_t row = i / classes, value = check.index[row];
    y[i] = value == i - row * classes ? 1 : 0;
    if (!check.valid(value)) bad = Min{}(bad, row);
  }
  check.report(bad);
}

// ---- gradients ----------------------------------------------------------------------------------

template <class T> Operand array(T* p, int64_t n) {
  Operand array;
  array.address = p;
  array.shape = {n};
  array.dtype = DTypeOf<T>::value;
  return array;
}

// Indices along a dimension in ascending order, equal ones in theirs, and where they stood.
struct Sorted {
  Sorted(const Cuda& ctx, const AlongShape& g, const In& index)
      : n(g.outer * g.n * g.inner), keys(ctx, n), places(ctx, n) {
    run(ctx, Sort{g, g.n, false, index, Out{array(keys.data(), n)}, Out{array(places.data(), n)}});
  }
  int64_t n;
  Scratch<int64_t> keys, places;
};

// Beyond so many equal indices a block adds up, not a thread.
constexpr int64_t kShort = 64;

// dx of the indices that stand at most kShort times: a thread a sum, at the first of them.
template <class T, class Index> __global__ void __launch_bounds__(kThreads)
    add_short_runs(Index total, AlongShape g, int64_t k, int64_t skip,
                   const int64_t* __restrict__ keys, const int64_t* __restrict__ places,
                   const T* __restrict__ dy, T* __restrict__ dx) {
  const Index inner = static_cast<Index>(g.inner);
  for (Index i = thread_index<Index>(); i < total; i += thread_count<Index>()) {
    const Index row = i / inner, outer = row / static_cast<Index>(k);
    const auto p = static_cast<int64_t>(row - outer * static_cast<Index>(k));
    const int64_t key = keys[p];
    if (key < 0 || key >= g.n || key == skip || (p > 0 && keys[p - 1] == key)) continue;
    if (p + kShort < k && keys[p + kShort] == key) continue;
    const auto column = static_cast<int64_t>(i - row * inner);
    const T* from = dy + static_cast<int64_t>(outer) * k * g.inner + column;
    T sum = 0;
    for (int64_t q = p; q < k && keys[q] == key; ++q) sum += from[places[q] * g.inner];
    dx[(static_cast<int64_t>(outer) * g.n + key) * g.inner + column] = sum;
  }
}

constexpr int kColumns = 32, kAdders = 16;

// dx of the others. At most one run of so many begins in a stretch of kShort indices: a block for
// each stretch and some columns, whose adders take every kAdders-th term.
template <class T> __global__ void __launch_bounds__(kColumns* kAdders)
    add_long_runs(int64_t blocks, int64_t stretches, AlongShape g, int64_t k, int64_t skip,
                  const int64_t* __restrict__ keys, const int64_t* __restrict__ places,
                  const T* __restrict__ dy, T* __restrict__ dx) {
  __shared__ T part[kAdders][kColumns + 1];
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    // The last index of the stretch, if its run is long and begins here.
    const int64_t first = block % stretches * kShort, last = first + kShort - 1;
    if (last + 1 >= k) continue;
    const int64_t key = keys[last];
    if (key < 0 || key >= g.n || key == skip || (first > 0 && keys[first - 1] == key)) continue;
    int64_t begin = last;
    while (begin > first && keys[begin - 1] == key) --begin;
    if (begin + kShort >= k || keys[begin + kShort] != key) continue;
    const int64_t column = block / stretches * kColumns + threadIdx.x;
    const int64_t outer = column / g.inner, c = column % g.inner;
    T sum = 0;
    if (outer < g.outer) {
      const T* from = dy + outer * k * g.inner + c;
#pragma unroll 4
      for (int64_t q = begin + threadIdx.y; q < k; q += kAdders) {
        if (keys[q] != key) break;
        sum += from[places[q] * g.inner];
      }
    }
    part[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && outer < g.outer) {
      for (int a = 1; a < kAdders; ++a) sum += part[a][threadIdx.x];
      dx[(outer * g.n + key) * g.inner + c] = sum;
    }
    __syncthreads();
  }
}

template <class T> void index_select_backward(const Cuda& ctx, const IndexSelectBackward& o) {
  const AlongShape& g = o.g;
  const int64_t k = o.index.numel(), total = g.outer * k * g.inner;
  if (total == 0) return;
  const Sorted sorted(ctx, {1, k, 1}, o.index);
  const int64_t *keys = sorted.keys.data(), *places = sorted.places.data();
  with_index(total, [&]<class Index>(Index) {
    launch_1d(ctx, "index_select_backward", total, add_short_runs<T, Index>, g, k, o.skip, keys,
              places, o.dy.data<T>(), o.dx.data<T>());
  });
  if (k <= kShort) return;
  const int64_t stretches = ceil_div(k, kShort);
  const int64_t blocks = stretches * ceil_div(g.outer * g.inner, kColumns);
  launch(ctx, {"index_select_backward", k, g.inner},
         static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)), dim3(kColumns, kAdders), 0,
         add_long_runs<T>, blocks, stretches, g, k, o.skip, keys, places, o.dy.data<T>(),
         o.dx.data<T>());
}

// A thread a line: where lines are many or short.
template <class T> __global__ void __launch_bounds__(kThreads)
    gather_backward_lines(int64_t lines, GatherLines g, Loop<1> over,
                          const int64_t* __restrict__ index, const T* __restrict__ dy, T* dx) {
  for (int64_t l = thread_index<int64_t>(); l < lines; l += thread_count<int64_t>()) {
    int64_t line[1];
    over.offsets(l, line);
    int64_t i = l / g.index.inner * g.index.n * g.index.inner + l % g.index.inner;
    for (int64_t k = 0; k < g.index.n; ++k, i += g.index.inner)
      if (index[i] >= 0 && index[i] < g.limit) dx[line[0] + index[i] * g.step] += dy[i];
  }
}

// A thread a sum, at the first of equal indices.
template <class T> __global__ void __launch_bounds__(kThreads)
    gather_backward_runs(int64_t total, GatherLines g, Loop<1> over,
                         const int64_t* __restrict__ keys, const int64_t* __restrict__ places,
                         const T* __restrict__ dy, T* __restrict__ dx) {
  const int64_t inner = g.index.inner, n = g.index.n;
  for (int64_t e = thread_index<int64_t>(); e < total; e += thread_count<int64_t>()) {
    const int64_t outer = e / (n * inner), p = e / inner % n, c = e % inner;
    const int64_t key = keys[e];
    if (key < 0 || key >= g.limit || (p > 0 && keys[e - inner] == key)) continue;
    T sum = 0;
    for (int64_t q = p, at = e; q < n && keys[at] == key; ++q, at += inner)
      sum += dy[(outer * n + places[at]) * inner + c];
    int64_t line[1];
    over.offsets(outer * inner + c, line);
    dx[line[0] + key * g.step] = sum;
  }
}

template <class T> void gather_backward(const Cuda& ctx, const GatherBackward& o) {
  const GatherLines& g = o.g;
  const int64_t lines = g.index.outer * g.index.inner, total = lines * g.index.n;
  if (total == 0) return;
  const Loop<1> over = loop_over(g.lines);
  if (g.index.n <= 64 || lines >= 1 << 14)
    return launch_1d(ctx, "gather_backward", lines, gather_backward_lines<T>, g, over,
                     o.index.data<int64_t>(), o.dy.data<T>(), o.dx.data<T>());
  const Sorted sorted(ctx, g.index, o.index);
  const int64_t *keys = sorted.keys.data(), *places = sorted.places.data();
  launch_1d(ctx, "gather_backward", total, gather_backward_runs<T>, g, over, keys, places,
            o.dy.data<T>(), o.dx.data<T>());
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const IndexSelect& o) {
  const size_t size = size_of(o.x.dtype);
  const int64_t width = cuda::elements_a_unit(
      size, {cuda::address_of(o.x.address), cuda::address_of(o.y.address), size * o.g.inner});
  cuda::with_unit(width * static_cast<int64_t>(size), [&]<class U>(U) {
    cuda::indexed_move<U>(
        ctx, "index_select", o.by, o.y.numel() / width, o.g.n, o.index,
        [&]<class Index>(Index) {
          return cuda::SelectSource<Index>{cuda::Divider<Index>(o.g.inner / width),
                                           cuda::Divider<Index>(o.index.numel()), o.g.n};
        },
        o.x.address, o.y.address);
  });
}

void run(const Cuda& ctx, const IndexSelectBackward& o) {
  run(ctx, Fill{0, o.dx});
  with_floating(o.dy, [&]<class T>() { cuda::index_select_backward<T>(ctx, o); });
}

void run(const Cuda& ctx, const Gather& o) {
  with_any(o.x.dtype, [&]<class T>() {
    cuda::indexed_move<T>(
        ctx, "gather", Indexing::kGather, o.y.numel(), o.g.limit, o.index,
        [&]<class Index>(Index) {
          return cuda::GatherSource<Index>{o.g, cuda::loop_over(o.g.lines)};
        },
        o.x.address, o.y.address);
  });
}

void run(const Cuda& ctx, const GatherBackward& o) {
  run(ctx, Fill{0, o.dx});
  with_floating(o.dy, [&]<class T>() { cuda::gather_backward<T>(ctx, o); });
}

void run(const Cuda& ctx, const OneHot& o) {
  const int64_t n = o.y.numel();
  if (n == 0) return;
  const auto blocks = std::min<int64_t>(cuda::ceil_div(n, cuda::kThreads), cuda::kMostBlocks);
  const cuda::Scratch<int64_t> of_block(ctx, blocks);
  const cuda::Check check{cuda::fault_of(Indexing::kOneHot), o.classes, o.index.data<int64_t>(),
                          of_block.data(), cuda::stream_resources(ctx)};
  cuda::launch(ctx, {"one_hot", n}, static_cast<unsigned>(blocks), cuda::kThreads, 0,
               cuda::one_hot_kernel, n, o.classes, check, o.y.data<int64_t>());
}

}  // namespace sinter
