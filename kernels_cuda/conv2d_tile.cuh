// What the kernels of convolutions share.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace sinter::cuda {

inline constexpr int kSharedBytes = 48 << 10;  // what a block gets on every GPU without asking
inline constexpr int kEnoughBlocks = 128;      // about one for each SM of a large GPU

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Adjacent values moved in one instruction.
template <class T> struct alignas(2 * sizeof(T)) Pair { T v[2]; };
template <class T> struct alignas(16) Quad { T v[4]; };

// ---- second stage of the weights' gradients -----------------------------------------------------

// partial: (slices, stride), of which the first n + n_bias columns are added up over the slices,
// into dweight (n) and db (n_bias), each nullable. Eight threads share a column, then add up as a
// tree.
template <class T> __global__ void __launch_bounds__(kThreads)
    sum_slices_kernel(int slices, int64_t stride, int64_t n, int64_t n_bias, const T* partial,
                      T* dweight, T* db) {
  __shared__ T sums[8][32];
  wait_for_earlier();
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  T sum = 0;
  if (i < n + n_bias) {
#pragma unroll 8
    for (int s = part; s < slices; s += 8) sum += partial[s * stride + i];
  }
  sums[part][lane] = sum;
  for (int half = 4; half > 0; half /= 2) {
    __syncthreads();
    if (part < half) sums[part][lane] += sums[part + half][lane];
  }
  if (part != 0 || i >= n + n_bias) return;
  if (i < n) {
    if (dweight) dweight[i] = sums[0][lane];
  } else if (db) {
    db[i - n] = sums[0][lane];
  }
}

template <class T> void launch_sum_slices(const Cuda& ctx, int64_t slices, int64_t stride,
                                          int64_t n, int64_t n_bias, const T* partial, T* dweight,
                                          T* db) {
  launch_early(ctx, {"conv2d_backward_weights", slices, n, n_bias},
               static_cast<unsigned>(ceil_div(n + n_bias, 32)), kThreads, 0, {.early = false},
               sum_slices_kernel<T>, static_cast<int>(slices), stride, n, n_bias, partial, dweight,
               db);
}

}  // namespace sinter::cuda
