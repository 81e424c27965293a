// Matrix products (gemm.cu), for the kernels that are made of them.
#pragma once

#include "sinter/operators/linear.h"

namespace sinter::cuda {

// op::Gemm for T float or double.
template <class T> void gemm(const Cuda& ctx, const op::GemmShape& g, const T* a, const T* b, T* c);

}  // namespace sinter::cuda
