// Every CUDA call is checked; a failure is a CudaError that says where, which and what was
// attempted:
//   kernels_cuda/conv2d.cu:88: cudaErrorInvalidConfiguration launching conv2d_forward (64, 6, 28,
//   28)
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <string>

#include "core/base/detail.h"
#include "sinter/check.h"

namespace sinter::cuda {

// The path from this room on, whatever directory the build ran in.
inline const char* path_in_repository(const char* file) {
  const char* found = std::strstr(file, "kernels_cuda/");
  return found ? found : file;
}

[[noreturn]] inline void throw_cuda_error(cudaError_t error, const char* file, int line,
                                          const std::string& doing) {
  cudaGetLastError();  // or the next launch would report this error again
  throw CudaError(str(path_in_repository(file), ":", line, ": ", cudaGetErrorName(error), " ",
                      doing, ": ", cudaGetErrorString(error)));
}

}  // namespace sinter::cuda

#define SINTER_CUDA_CHECK(call)                                                             \
  do {                                                                                      \
    const cudaError_t sinter_error = (call);                                                \
    if (sinter_error != cudaSuccess)                                                        \
      ::sinter::cuda::throw_cuda_error(sinter_error, __FILE__, __LINE__, "calling " #call); \
  } while (false)
