// Copies: to, from, on and between devices.
#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "core/backend/memory.h"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/runtime/state.cuh"

namespace sinter {
namespace cuda {
namespace {

// Host values that travel as a kernel's parameter: the caller's memory is free at once, without the
// wait that a copy from pageable memory may cost.
struct Parcel {
  static constexpr size_t kBytes = 256;
  unsigned char bytes[kBytes];
};

__global__ void unpack_kernel(int n, Parcel parcel, unsigned char* dst) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) dst[i] = parcel.bytes[i];
}

}  // namespace
}  // namespace cuda

using namespace cuda;

void detail::copy_from_host(const Cuda& ctx, void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return;
  refuse_in_capture("a copy from host memory");
  if (bytes <= Parcel::kBytes) {
    Parcel parcel;
    std::memcpy(parcel.bytes, src, bytes);
    launch(ctx, {"copy_from_host", bytes}, 1, static_cast<unsigned>(Parcel::kBytes), 0,
           unpack_kernel, static_cast<int>(bytes), parcel, static_cast<unsigned char*>(dst));
    return;
  }
  SINTER_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, ctx.stream));
  // From pageable memory the call has staged the data when it returns; from pinned memory it has
  // not.
  cudaPointerAttributes attributes{};
  SINTER_CUDA_CHECK(cudaPointerGetAttributes(&attributes, src));
  if (attributes.type != cudaMemoryTypeUnregistered)
    SINTER_CUDA_CHECK(cudaStreamSynchronize(ctx.stream));
}

void detail::copy_to_host(const Cuda& ctx, void* dst, const void* src, size_t bytes) {
  refuse_in_capture("waiting for the device (item, to_vector, a copy to the CPU)");
  if (bytes > 0)
    SINTER_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, ctx.stream));
  synchronize(ctx);
}

void detail::copy_on_device(const Cuda& ctx, void* dst, const void* src, size_t bytes) {
  if (bytes == 0 || dst == src) return;
  const auto copy = [&](void* to, const void* from) {
    SINTER_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, ctx.stream));
  };
  const auto a = reinterpret_cast<uintptr_t>(dst), b = reinterpret_cast<uintptr_t>(src);
  if (std::max(a, b) - std::min(a, b) >= bytes) return copy(dst, src);
  // A copy by the device goes in any order.
  const Scratch<std::byte> between(ctx, static_cast<int64_t>(bytes));
  copy(between.data(), src);
  copy(dst, between.data());
}

namespace {

// Later work on `waiting` waits for the work that is on `done` now.
void order(const Cuda& done, const Cuda& waiting) {
  cudaEvent_t event = nullptr;
  {
    const CurrentDevice current(done.device);
    SINTER_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
  cudaError_t error = cudaSuccess;
  {
    const CurrentDevice current(done.device);
    error = cudaEventRecord(event, done.stream);
  }
  if (error == cudaSuccess) {
    const CurrentDevice current(waiting.device);
    error = cudaStreamWaitEvent(waiting.stream, event, 0);
  }
  const cudaError_t destroyed = cudaEventDestroy(event);  // kept until the wait is over
  if (error == cudaSuccess) error = destroyed;
  if (error != cudaSuccess) throw_cuda_error(error, __FILE__, __LINE__, "ordering two streams");
}

// Lets `device` reach `peer` directly where the hardware can; copies go through the host otherwise.
void enable_peer_access(int device, int peer) {
  static auto& mutex = *new std::mutex;
  static auto& asked = *new std::set<std::pair<int, int>>;
  const std::lock_guard lock(mutex);
  if (!asked.insert({device, peer}).second) return;
  const CurrentDevice current(device);
  int can = 0;
  SINTER_CUDA_CHECK(cudaDeviceCanAccessPeer(&can, device, peer));
  // Refused: the copy goes through the host. Others of the process may have asked before.
  if (can && cudaDeviceEnablePeerAccess(peer, 0) != cudaSuccess) cudaGetLastError();
}

}  // namespace

void detail::copy_across(const Cuda& to, void* dst, const Cuda& from, const void* src,
                         size_t bytes) {
  if (bytes == 0) return;
  if (to.device == from.device && to.stream == from.stream) {
    detail::copy_on_device(to, dst, src, bytes);
    return;
  }
  refuse_in_capture("a copy between devices or threads");
  order(from, to);
  {
    const CurrentDevice current(to.device);
    if (to.device == from.device) {
      detail::copy_on_device(to, dst, src, bytes);
    } else {
      enable_peer_access(to.device, from.device);
      SINTER_CUDA_CHECK(cudaMemcpyPeerAsync(dst, to.device, src, from.device, bytes, to.stream));
    }
  }
  order(to, from);
}

}  // namespace sinter
