// Tensor cores and asynchronous copies, one instruction a function (PTX ISA, "mma" and "cp.async").
// They exist from compute capability 8.0 on; compiled for less, these do nothing, and hosts launch
// no kernel that calls them (compiled_architecture).
#pragma once

#include <cstdint>

namespace sinter::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define SINTER_TENSOR_CORE 1
#else
#define SINTER_TENSOR_CORE 0
#endif

// Copies 4 bytes from global to shared memory, or writes zeros unless `valid`: `from` is not read
// then.
__device__ inline void copy_async(float* to, const float* from, bool valid) {
#if SINTER_TENSOR_CORE
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(from),
               "r"(valid ? 4 : 0));
#endif
}
// 16 bytes, aligned to 16 at both ends, past the first-level cache.
__device__ inline void copy_async_16(float* to, const float* from) {
#if SINTER_TENSOR_CORE
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared), "l"(from));
#endif
}
// The copies since the last commit become one group; wait until at most kLeft groups are on their
// way. A barrier must follow before other threads' copies are read.
__device__ inline void copy_async_commit() {
#if SINTER_TENSOR_CORE
  asm volatile("cp.async.commit_group;\n" ::);
#endif
}
template <int kLeft> __device__ void copy_async_wait() {
#if SINTER_TENSOR_CORE
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft));
#endif
}

// Four matrices of 8 rows of 4 floats from shared memory: lane 8 m + r hands in where row r of
// matrix m begins, aligned to 16 bytes, and gets element (lane / 4, lane % 4) of each.
__device__ inline void load_matrices(const float* row, float (&x)[4]) {
#if SINTER_TENSOR_CORE
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(shared));
#endif
}

// d += a b on a warp: a (16, 8), b (8, 8), d (16, 8), row-major. With g = lane / 4 and t = lane % 4
// a thread holds
//   a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)
//   b: (t, g) (t + 4, g)
//   d: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
// The operands are floats of which sign, exponent and the upper 10 bits of the mantissa are read;
// products are exact and are added with truncation.
__device__ inline void mma_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
#if SINTER_TENSOR_CORE
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

}  // namespace sinter::cuda
