// GpuTimer of profile.h: two events around the work, behind a kernel that waits.
#include "kernels_cuda/runtime/check.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/profile.h"

namespace sinter {

namespace cuda {
namespace {

// While it waits the host launches several kernels.
constexpr int64_t kWaitCycles = 250'000;

__global__ void wait_kernel(int64_t cycles) {
  const int64_t start = clock64();
  while (clock64() - start < cycles) {
  }
}

}  // namespace
}  // namespace cuda

struct GpuTimer::Impl {
  Cuda ctx;
  cudaEvent_t begin = nullptr, end = nullptr;
  ~Impl() {
    for (cudaEvent_t event : {begin, end})
      if (event != nullptr) cudaEventDestroy(event);
  }
};

GpuTimer::GpuTimer(const Cuda& ctx) : impl_(std::make_unique<Impl>()) {
  impl_->ctx = ctx;
  SINTER_CUDA_CHECK(cudaEventCreate(&impl_->begin));
  SINTER_CUDA_CHECK(cudaEventCreate(&impl_->end));
}
GpuTimer::~GpuTimer() = default;
GpuTimer::GpuTimer(GpuTimer&&) noexcept = default;

void GpuTimer::start() {
  cuda::launch(impl_->ctx, "timer", 1, 1, 0, cuda::wait_kernel, cuda::kWaitCycles);
  SINTER_CUDA_CHECK(cudaEventRecord(impl_->begin, impl_->ctx.stream));
}

double GpuTimer::stop() {
  SINTER_CUDA_CHECK(cudaEventRecord(impl_->end, impl_->ctx.stream));
  SINTER_CUDA_CHECK(cudaEventSynchronize(impl_->end));
  float milliseconds = 0;
  SINTER_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, impl_->begin, impl_->end));
  return 1000. * milliseconds;
}

}  // namespace sinter
