// Element-wise operators (elementwise.cu), for the kernels that are made of them.
#pragma once

#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"

namespace sinter::cuda {

// y += x, for T float or double.
template <class T> void accumulate(LaunchSite site, int64_t n, const T* x, T* y);

}  // namespace sinter::cuda
