// Reductions within a warp, a block and a grid, each in an order that the geometry fixes.
#pragma once

#include <cuda_runtime.h>

namespace sinter::cuda {

struct Sum {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
// A NaN loses against a number; callers that must keep it do so by other means.
struct Max {
  template <class T> __device__ T operator()(T a, T b) const { return a < b || a != a ? b : a; }
};
struct Min {
  template <class T> __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};

// Every lane gets the result. A butterfly, so that both partners add the same two numbers and all
// lanes agree to the bit.
template <class T, class Op> __device__ T warp_reduce(T value, Op op) {
  for (int offset = 16; offset > 0; offset /= 2)
    value = op(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// Over `kGroup` threads that call it together: a warp (32) or a whole block of that many threads.
// Every thread gets the result.
template <int kGroup, class T, class Op> __device__ T group_reduce(T value, Op op) {
  static_assert(kGroup % 32 == 0);
  value = warp_reduce(value, op);
  if constexpr (kGroup > 32) {
    __shared__ T of_warp[kGroup / 32];
    __syncthreads();  // readers of an earlier call are done
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warp[0];
    for (int warp = 1; warp < kGroup / 32; ++warp) value = op(value, of_warp[warp]);
  }
  return value;
}

// True in every thread of the block that gets here last of `blocks`; it then sees all that the
// others wrote before they got here. `ticket` is 0 before the kernel and after it. This saves the
// second launch of a two-stage reduction; the last block adds the partial results in index order,
// so that which block comes last does not matter.
__device__ inline bool last_block(unsigned* ticket, unsigned blocks) {
  __shared__ bool last;
  __threadfence();  // this thread's writes, before the ticket is drawn
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == blocks - 1;
    if (last) *ticket = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

}  // namespace sinter::cuda
