// Element-wise operators, for the kernels that are made of them.
#pragma once

#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/elementwise.h"

namespace sinter::cuda {

// An operator of the table, whose arithmetic is of type T.
template <class T> void map(LaunchSite site, const op::Map& o);

// y += x, for T float or double.
template <class T> void accumulate(LaunchSite site, int64_t n, const T* x, T* y);

// The operator of the table, whose arithmetic is of T (elementwise_map.cuh).
template <class T> void run_map(LaunchSite site, const op::Map& o);

}  // namespace sinter::cuda
