// Sums of arrays (reduce.cu), for the kernels that end in them. T is float or double.
#pragma once

#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/elementwise.h"

namespace sinter::cuda {

// As op::Sum.
template <class T> void sum(LaunchSite site, const op::Strided& kept, const op::Strided& reduced,
                            double factor, const T* x, T* y);

// partial: (slices, stride), of which the first n + n_rest columns are added up over the slices,
// into y (n) and rest (n_rest), each nullable.
template <class T> void sum_slices(LaunchSite site, const char* name, int64_t slices,
                                   int64_t stride, int64_t n, int64_t n_rest, const T* partial,
                                   T* y, T* rest);

}  // namespace sinter::cuda
