// Thread-block clusters: blocks that run at the same time and reach each other's shared memory
// (compute capability 9.0).
//
// A block sends values into a neighbour's memory and tells how many bytes came to a barrier beside
// them; the neighbour waits for the bytes it expects. So nobody waits for a round of the whole
// cluster, nor for the writes to device memory that a fence would include.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sinter::cuda {

// The part of shared memory that names it within the cluster.
__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// This block's number in the cluster.
__device__ inline int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Where block `rank` of the cluster has what this block has at `address`.
__device__ inline uint32_t address_in(uint32_t address, int rank) {
  uint32_t result;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

// All threads of the cluster: arrive, and later wait until everyone has. Relaxed: it tells that all
// are there and have used what they read, and publishes nothing. With release semantics it would
// first wait for this block's writes to device memory.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait;" ::: "memory"); }

// Counts the bytes that arrive in this block, phase after phase. One thread initializes it, before
// cluster_arrive, and opens each phase by expect().
class ByteBarrier {
 public:
  __device__ void init() {
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n"
        "fence.mbarrier_init.release.cluster;" ::"r"(address())
        : "memory");
  }
  // This phase ends when `bytes` have come. Some may have come already.
  __device__ void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()),
                 "r"(bytes)
                 : "memory");
  }
  // Returns once the phase of this parity (0 for the first, 1 for the second, 0 for the third) has
  // ended. What came is in shared memory, so nothing is to be done about stale lines of L1, as
  // acquiring at cluster scope would.
  __device__ void wait(int parity) {
    uint32_t ended;
    do {
      asm volatile(
          "{\n"
          ".reg .pred ended;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
          "selp.u32 %0, 1, 0, ended;\n"
          "}"
          : "=r"(ended)
          : "r"(address()), "r"(parity)
          : "memory");
    } while (ended == 0);
  }
  __device__ uint32_t address() const { return shared_address(&state_); }

 private:
  uint64_t state_;
};

// Writes value to `to` and counts its bytes at `barrier`, both in the same block of the cluster.
__device__ inline void send(uint32_t to, float value, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to),
      "f"(value), "r"(barrier)
      : "memory");
}
__device__ inline void send(uint32_t to, double value, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.f64 [%0], %1, [%2];" ::"r"(to),
      "d"(value), "r"(barrier)
      : "memory");
}

}  // namespace sinter::cuda
