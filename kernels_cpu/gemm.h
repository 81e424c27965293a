// Matrix products for the other kernels of this room. Behind these two functions stands OpenBLAS
// or Eigen; no other file knows which.
#pragma once

#include <cstdint>

#include "sinter/operators/linear.h"

namespace sinter {

// C = op(A) op(B), or C += op(A) op(B) with `accumulate`, on the calling thread. op(A) is (m, k),
// op(B) is (k, n); ta: A is stored (k, m); tb: B is stored (n, k). ld*: elements from row to row.
// relu: C becomes the ReLU of that.
template <class T> void serial_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T* a,
                                    int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                    bool accumulate, bool relu = false);

// op::Gemm over parallel tiles; with `accumulate` it adds to C. relu: as above.
template <class T> void parallel_gemm(const op::GemmShape& g, const T* a, const T* b, T* c,
                                      bool accumulate, bool relu = false);

}  // namespace sinter
