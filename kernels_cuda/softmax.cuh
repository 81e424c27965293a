// What the kernels of softmax and of the losses made of it share: a row of classes belongs to a
// warp, or to a whole block when it is long.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"

namespace sinter::cuda {

inline constexpr int64_t kLongRow = 2048;  // 64 elements a lane; beyond, a block a row
inline constexpr int64_t kMaxRowBlocks = 1024;

// The sum of term(k) for k = first, first + step, ... below n. Blocks are added up in double, so
// that a million classes round no more than those of a block; a double addition in 32 costs
// nothing.
template <class T, class F> __device__ T sum_of(int64_t first, int64_t n, int64_t step, F term) {
  constexpr int kBlock = 32;
  double total = 0;
  for (int64_t k = first; k < n;) {
    T block = 0;
    for (int i = 0; i < kBlock && k < n; ++i, k += step) block += term(k);
    total += static_cast<double>(block);
  }
  return static_cast<T>(total);
}

// log of the sum of exp(row[k]); subtracting the maximum keeps exp from overflowing. A NaN in the
// row survives through the sum. Every thread of the group gets all three.
template <class T> struct Normalizer { T max, sum, log_sum; };
template <int kGroup, class T>
__device__ Normalizer<T> normalizer(const T* row, int64_t classes, int lane) {
  T max = -std::numeric_limits<T>::infinity();
  for (int64_t k = lane; k < classes; k += kGroup) max = Max{}(max, row[k]);
  max = group_reduce<kGroup>(max, Max{});
  T sum = sum_of<T>(lane, classes, kGroup, [&](int64_t k) { return exp(row[k] - max); });
  sum = group_reduce<kGroup>(sum, Sum{});
  return {max, sum, log(sum)};
}

// Rows that a block of kThreads handles side by side, and this thread's place among them.
template <int kGroup> struct Rows {
  static constexpr int kPerBlock = kThreads / kGroup;
  __device__ static int64_t first() {
    return static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kGroup;
  }
  __device__ static int64_t step() { return static_cast<int64_t>(gridDim.x) * kPerBlock; }
  __device__ static int lane() { return threadIdx.x % kGroup; }
};

template <int kGroup> unsigned row_blocks(int64_t rows) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div(rows, Rows<kGroup>::kPerBlock), 1, kMaxRowBlocks));
}

}  // namespace sinter::cuda
