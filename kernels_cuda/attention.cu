// Scaled dot-product attention: a block has 64 queries, or keys, and goes through all keys, or
// queries, 64 at a time; tiles of scores are in registers and shared memory alone. For either dtype
// and any depth; float32 of usual depths goes to tensor cores (attention_tensor.cu).
#include <algorithm>

#include "kernels_cuda/attention.cuh"
#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// A tile is kSide x kSide, a thread's part of it 4 x 4: rows y(), y() + 16, … and columns alike.
// Products take kSlice of their depth at a time.
constexpr int kSide = 64, kSlice = 16, kSteps = 4, kApart = 16;
static_assert(kThreads == kApart * kApart && kSide == kSteps * kApart);

template <class T> using Part = T[kSteps][kSteps];
// One more than a multiple of the banks: rows and columns are free of conflicts.
template <class T> struct Memory {
  T a[kSlice][kSide + 1], b[kSlice][kSide + 1];
  T weights[kSide][kSide + 1];
};

__device__ int row_of(int i) { return static_cast<int>(threadIdx.x) / kApart + i * kApart; }
__device__ int column_of(int j) { return static_cast<int>(threadIdx.x) % kApart + j * kApart; }

// slice[k][row] = from(row, k). Neighbouring threads read neighbouring k, or rows without kDeep.
template <bool kDeep, class T, class From>
__device__ void load_slice(int depth, From from, T (&slice)[kSlice][kSide + 1]) {
  for (int n = threadIdx.x; n < kSlice * kSide; n += kThreads) {
    const int k = kDeep ? n % kSlice : n / kSide, row = kDeep ? n / kSlice : n % kSide;
    slice[k][row] = k < depth ? from(row, k) : T(0);
  }
}

// sum(row, column) += the sum over k < depth of a(row, k) b(column, k). The memory's slices, and
// its weights once this returns, may be written by any thread.
template <bool kDeepB, class T, class A, class B>
__device__ void multiply(int64_t depth, A a, B b, Memory<T>& memory, Part<T>& sum) {
  for (int64_t first = 0; first < depth; first += kSlice) {
    const int count = static_cast<int>(depth - first < kSlice ? depth - first : kSlice);
    __syncthreads();  // weights are written, the slices before are read
    load_slice<true>(
        count, [&](int row, int k) { return a(row, first + k); }, memory.a);
    load_slice<kDeepB>(
        count, [&](int row, int k) { return b(row, first + k); }, memory.b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kSlice; ++k) {
      T left[kSteps], right[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        left[i] = memory.a[k][row_of(i)];
        right[i] = memory.b[k][column_of(i)];
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
#pragma unroll
        for (int j = 0; j < kSteps; ++j) sum[i][j] += left[i] * right[j];
    }
  }
}

// Element (first + row, k) of a (rows, depth) matrix, 0 below its last row.
template <class T> struct Rows {
  const T* x;
  int64_t first, rows, depth;
  __device__ T operator()(int row, int64_t k) const {
    return first + row < rows ? x[(first + row) * depth + k] : T(0);
  }
};
// Element (first + k, column + row) of a (…, columns) matrix, 0 behind its last column: a product's
// right operand, whose rows it goes down.
template <class T> struct Columns {
  const T* x;
  int64_t first, columns, column;
  __device__ T operator()(int row, int64_t k) const {
    return column + row < columns ? x[(first + k) * columns + column + row] : T(0);
  }
};
template <class T> struct Weights {
  const Memory<T>& memory;
  __device__ T operator()(int row, int64_t k) const { return memory.weights[row][k]; }
};

template <class T, class F> __device__ void each_element(F f) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i)
#pragma unroll
    for (int j = 0; j < kSteps; ++j) f(i, j);
}

// What a block works on: chunk `chunk` of kSide columns of the result, rows from `first` on, of a
// head. Later rows, which have more keys under a causal mask, come first.
struct Place {
  int64_t head, first;
  int64_t column;
};
__device__ Place place(int64_t length, int64_t chunks) {
  const int64_t blocks = (length + kSide - 1) / kSide, block = blockIdx.x;
  const int64_t at = block / chunks;
  return {at / blocks, (blocks - 1 - at % blocks) * kSide, block % chunks * kSide};
}

template <class T> __global__ void __launch_bounds__(kThreads)
    attention_forward_kernel(Attention<T> a, int64_t chunks) {
  Memory<T>& memory = *dynamic_shared<Memory<T>>();
  const AttentionShape& g = a.g;
  const Place at = place(g.l, chunks);
  const AttentionHead h{at.head, mask_offset(g, at.head)};
  const int64_t kv = at.head / g.group;
  const T *q = a.q + at.head * g.l * g.e, *k = a.k + kv * g.s * g.e, *v = a.v + kv * g.s * g.ev;
  const T scale = static_cast<T>(g.scale) * kLog2E<T>;
  const int64_t end = g.causal ? min(g.s, at.first + kSide) : g.s;
  OnlineSum<T> online[kSteps];
  Part<T> y = {};
  for (int64_t first = 0; first < end; first += kSide) {
    Part<T> p = {};
    multiply<true>(g.e, Rows<T>{q, at.first, g.l, g.e}, Rows<T>{k, first, g.s, g.e}, memory, p);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int64_t query = at.first + row_of(i);
      T largest = -std::numeric_limits<T>::infinity();
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        p[i][j] = masked_score(a, h, query, first + column_of(j), p[i][j] * scale);
        largest = p[i][j] > largest ? p[i][j] : largest;
      }
      // A row is 16 neighbouring lanes'.
      for (int lanes = kApart / 2; lanes > 0; lanes /= 2)
        largest = Max{}(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
      const T again = online[i].grow(largest), shift = online[i].shift();
      T sum = 0;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        y[i][j] *= again;
        T weight = exp2(p[i][j] - shift);
        sum += weight;
        if (g.threshold > 0) weight *= dropout_factor(a, h.head, query, first + column_of(j));
        memory.weights[row_of(i)][column_of(j)] = weight;
      }
      for (int lanes = kApart / 2; lanes > 0; lanes /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      online[i].sum += static_cast<double>(sum);
    }
    multiply<false>(min(int64_t{kSide}, g.s - first), Weights<T>{memory},
                    Columns<T>{v, first, g.ev, at.column}, memory, y);
  }
  each_element<T>([&](int i, int j) {
    const int64_t query = at.first + row_of(i), column = at.column + column_of(j);
    if (query >= g.l) return;
    if (column < g.ev) a.y[(h.head * g.l + query) * g.ev + column] = y[i][j] * online[i].factor();
    if (column == 0) a.new_log_sum[h.head * g.l + query] = online[i].log_sum();
  });
}

// p: what dropout leaves of the weight of query i and key j, from the product q k^T. ds: from
// dy v^T.
template <class T> __device__ void weight_and_gradient(const Attention<T>& a,
                                                       const AttentionHead& h, int64_t i, int64_t j,
                                                       T scale, T& p, T& ds) {
  const int64_t row = h.head * a.g.l + (i < a.g.l ? i : 0);
  const T score = masked_score(a, h, i, j, p * scale);
  const T weight = exp2(score - a.log_sum[row] * kLog2E<T>);
  const T factor = a.g.threshold > 0 ? dropout_factor(a, h.head, i, j) : T(1);
  p = weight * factor;
  ds = weight * (ds * factor - a.delta[row]);
}

template <class T> __global__ void __launch_bounds__(kThreads)
    attention_queries_kernel(Attention<T> a, int64_t chunks) {
  Memory<T>& memory = *dynamic_shared<Memory<T>>();
  const AttentionShape& g = a.g;
  const Place at = place(g.l, chunks);
  const AttentionHead h{at.head, mask_offset(g, at.head)};
  const int64_t kv = at.head / g.group;
  const T *q = a.q + at.head * g.l * g.e, *dy = a.dy + at.head * g.l * g.ev;
  const T *k = a.k + kv * g.s * g.e, *v = a.v + kv * g.s * g.ev;
  const T scale = static_cast<T>(g.scale) * kLog2E<T>;
  const bool writes = a.ds != nullptr && at.column == 0;
  const int64_t end = g.causal && !writes ? min(g.s, at.first + kSide) : g.s;
  Part<T> dq = {};
  for (int64_t first = 0; first < end; first += kSide) {
    Part<T> p = {}, ds = {};
    multiply<true>(g.e, Rows<T>{q, at.first, g.l, g.e}, Rows<T>{k, first, g.s, g.e}, memory, p);
    multiply<true>(g.ev, Rows<T>{dy, at.first, g.l, g.ev}, Rows<T>{v, first, g.s, g.ev}, memory,
                   ds);
    each_element<T>([&](int i, int j) {
      const int64_t query = at.first + row_of(i), key = first + column_of(j);
      weight_and_gradient(a, h, query, key, scale, p[i][j], ds[i][j]);
      memory.weights[row_of(i)][column_of(j)] = ds[i][j];
      if (writes && query < g.l && key < g.s) a.ds[(h.head * g.l + query) * g.s + key] = ds[i][j];
    });
    multiply<false>(min(int64_t{kSide}, g.s - first), Weights<T>{memory},
                    Columns<T>{k, first, g.e, at.column}, memory, dq);
  }
  each_element<T>([&](int i, int j) {
    const int64_t query = at.first + row_of(i), column = at.column + column_of(j);
    if (query < g.l && column < g.e)
      a.dq[(h.head * g.l + query) * g.e + column] = dq[i][j] * static_cast<T>(g.scale);
  });
}

template <class T> __global__ void __launch_bounds__(kThreads)
    attention_keys_kernel(Attention<T> a, int64_t chunks) {
  Memory<T>& memory = *dynamic_shared<Memory<T>>();
  const AttentionShape& g = a.g;
  const Place at = place(g.s, chunks);  // its head is one of k and v
  const T *k = a.k + at.head * g.s * g.e, *v = a.v + at.head * g.s * g.ev;
  const T scale = static_cast<T>(g.scale) * kLog2E<T>;
  Part<T> dk = {}, dv = {};
  for (int64_t head = at.head * g.group; head < (at.head + 1) * g.group; ++head) {
    const AttentionHead h{head, mask_offset(g, head)};
    const T *q = a.q + head * g.l * g.e, *dy = a.dy + head * g.l * g.ev;
    for (int64_t first = g.causal ? at.first : 0; first < g.l; first += kSide) {
      Part<T> p = {}, ds = {};
      multiply<true>(g.e, Rows<T>{k, at.first, g.s, g.e}, Rows<T>{q, first, g.l, g.e}, memory, p);
      multiply<true>(g.ev, Rows<T>{v, at.first, g.s, g.ev}, Rows<T>{dy, first, g.l, g.ev}, memory,
                     ds);
      each_element<T>([&](int i, int j) {
        weight_and_gradient(a, h, first + column_of(j), at.first + row_of(i), scale, p[i][j],
                            ds[i][j]);
        memory.weights[row_of(i)][column_of(j)] = p[i][j];
      });
      const int64_t count = min(int64_t{kSide}, g.l - first);
      multiply<false>(count, Weights<T>{memory}, Columns<T>{dy, first, g.ev, at.column}, memory,
                      dv);
      each_element<T>([&](int i, int j) { memory.weights[row_of(i)][column_of(j)] = ds[i][j]; });
      multiply<false>(count, Weights<T>{memory}, Columns<T>{q, first, g.e, at.column}, memory, dk);
    }
  }
  each_element<T>([&](int i, int j) {
    const int64_t key = at.first + row_of(i), column = at.column + column_of(j);
    if (key >= g.s) return;
    if (column < g.e)
      a.dk[(at.head * g.s + key) * g.e + column] = dk[i][j] * static_cast<T>(g.scale);
    if (column < g.ev) a.dv[(at.head * g.s + key) * g.ev + column] = dv[i][j];
  });
}

// A warp a row.
template <class T>
__global__ void attention_delta_kernel(int64_t rows, int64_t n, const T* y, const T* dy, T* delta) {
  const int lane = threadIdx.x % 32;
  for (int64_t i = thread_index<int64_t>() / 32; i < rows; i += thread_count<int64_t>() / 32) {
    T sum = 0;
    for (int64_t c = lane; c < n; c += 32) sum += y[i * n + c] * dy[i * n + c];
    sum = warp_reduce(sum, Sum{});
    if (lane == 0) delta[i] = sum;
  }
}

// A block for each kSide rows of each of `heads` and each kSide of `columns`, at least one.
template <class T, class Op> void launch_tiles(const Cuda& ctx, const Op& o,
                                               void (*kernel)(Attention<T>, int64_t), int64_t heads,
                                               int64_t length, int64_t columns) {
  const int64_t chunks = std::max<int64_t>(1, ceil_div(columns, kSide));
  const int64_t blocks = heads * ceil_div(length, kSide) * chunks;
  if (blocks == 0) return;
  launch(ctx, {Op::name, o.g.heads, o.g.l, o.g.s, o.g.e}, static_cast<unsigned>(blocks), kThreads,
         sizeof(Memory<T>), kernel, attention_of<T>(o), chunks);
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const AttentionForward& o) {
  if (cuda::tensor_attention(ctx, o)) return;
  with_floating(o.q, [&]<class T>() {
    cuda::launch_tiles<T>(ctx, o, cuda::attention_forward_kernel<T>, o.g.heads, o.g.l, o.g.ev);
  });
}

void run(const Cuda& ctx, const AttentionDelta& o) {
  const int64_t rows = o.delta.numel();
  if (rows == 0) return;
  with_floating(o.y, [&]<class T>() {
    const auto blocks = static_cast<unsigned>(
        std::min<int64_t>(cuda::ceil_div(rows, cuda::kThreads / 32), 1 << 16));
    cuda::launch(ctx, {AttentionDelta::name, rows}, blocks, cuda::kThreads, 0,
                 cuda::attention_delta_kernel<T>, rows, o.y.numel() / rows, o.y.data<T>(),
                 o.dy.data<T>(), o.delta.data<T>());
  });
}

void run(const Cuda& ctx, const AttentionBackwardQueries& o) {
  if (cuda::tensor_attention(ctx, o)) return;
  with_floating(o.q, [&]<class T>() {
    cuda::launch_tiles<T>(ctx, o, cuda::attention_queries_kernel<T>, o.g.heads, o.g.l, o.g.e);
  });
}

void run(const Cuda& ctx, const AttentionBackwardKeys& o) {
  if (cuda::tensor_attention(ctx, o)) return;
  with_floating(o.q, [&]<class T>() {
    cuda::launch_tiles<T>(ctx, o, cuda::attention_keys_kernel<T>, o.g.heads / o.g.group, o.g.s,
                          std::max(o.g.e, o.g.ev));
  });
}

}  // namespace sinter
