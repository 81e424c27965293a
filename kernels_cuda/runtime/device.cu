// Devices, and what kernels are told of them.
#include <array>

#include "core/base/detail.h"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/state.cuh"

#ifndef SINTER_CUDA_BUILT_ARCHITECTURES
#error "CMakeLists.txt defines SINTER_CUDA_BUILT_ARCHITECTURES"
#endif

namespace sinter {
namespace cuda {
namespace {

struct Probe {
  cudaError_t error = cudaSuccess;
  int devices = 0;
  int driver = 0;
};

const Probe& probe() noexcept {
  static const Probe result = [] {
    Probe p;
    if (cudaDriverGetVersion(&p.driver) != cudaSuccess) p.driver = 0;
    p.error = cudaGetDeviceCount(&p.devices);
    if (p.error != cudaSuccess) p.devices = 0;
    cudaGetLastError();
    return p;
  }();
  return result;
}

std::string version_text(int version) { return str(version / 1000, ".", version % 1000 / 10); }

__global__ void probe_kernel() {}

}  // namespace

int device_count() noexcept { return probe().devices; }

void require_device(int device) {
  if (0 <= device && device < probe().devices) return;
  if (probe().devices == 0) throw DeviceError(str("cuda:", device, ": ", cuda_unavailable()));
  throw DeviceError(str("cuda:", device, ": there ", probe().devices == 1 ? "is " : "are ",
                        probe().devices, " CUDA device", probe().devices == 1 ? "" : "s",
                        ", numbered from 0"));
}

DeviceState& device_state(int device) {
  static auto& devices = *new std::deque<DeviceState>(static_cast<size_t>(probe().devices));
  return devices[static_cast<size_t>(device)];
}

std::string why_unusable(int device) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (error == cudaSuccess) return "";
  cudaGetLastError();
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction &&
      error != cudaErrorUnsupportedPtxVersion)
    return str(cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  int major = 0, minor = 0;
  SINTER_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  SINTER_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  return str("the device is sm_", major, minor, ", and this build holds code for ",
             cuda_built_architectures(),
             error == cudaErrorUnsupportedPtxVersion
                 ? " in a PTX version newer than the driver; update the driver or reconfigure"
                 : "; reconfigure",
             " with -DSINTER_CUDA_ARCHITECTURES=", major, minor);
}

int compiled_architecture(int device) {
  std::atomic<int>& known = device_state(device).architecture;
  int answer = known.load(std::memory_order_relaxed);
  if (answer == 0) {
    const CurrentDevice current(device);
    cudaFuncAttributes attributes{};
    SINTER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, probe_kernel));
    // Not binaryVersion: that is what the driver, or ptxas, made of it for the device.
    answer = attributes.ptxVersion;
    known.store(answer, std::memory_order_relaxed);
  }
  return answer;
}

namespace {

// Kernels and the devices they were set up on, the last ones. One a thread: a call costs as much as
// a launch, and all threads ask for the same. Without a destructor: later ones of the thread ask.
class Asked {
 public:
  template <class F> void once(const void* kernel, int device, const F& ask) {
    for (const Asks& a : done_) {
      if (a.kernel == kernel && a.device == device) return;
    }
    ask();
    done_[count_++ % done_.size()] = {kernel, device};
  }

 private:
  struct Asks {
    const void* kernel;
    int device;
  };
  std::array<Asks, 64> done_{};
  size_t count_ = 0;
};

}  // namespace

void prefer_shared_memory(const void* kernel, int device) {
  thread_local Asked asked;
  asked.once(kernel, device, [&] {
    SINTER_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                           cudaSharedmemCarveoutMaxShared));
  });
}

void allow_shared_memory(const void* kernel, int device) {
  thread_local Asked asked;
  asked.once(kernel, device, [&] {
    SINTER_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           most_dynamic_shared(kernel, device)));
  });
}

int most_dynamic_shared(const void* kernel, int device) {
  int block_bytes = 0;
  SINTER_CUDA_CHECK(
      cudaDeviceGetAttribute(&block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  cudaFuncAttributes attributes{};
  SINTER_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  return block_bytes - static_cast<int>(attributes.sharedSizeBytes);
}

}  // namespace cuda

using namespace cuda;

int cuda_device_count() noexcept { return probe().devices; }

int cuda_driver_version() noexcept { return probe().driver; }

int cuda_toolkit_version() noexcept { return CUDART_VERSION; }

std::string cuda_built_architectures() { return SINTER_CUDA_BUILT_ARCHITECTURES; }

std::string cuda_unavailable() {
  const Probe& p = probe();
  if (p.devices > 0) return "";
  if (p.driver == 0) return "no NVIDIA driver was found; install one, or use the CPU";
  if (p.error == cudaErrorInsufficientDriver)
    return str("the NVIDIA driver supports CUDA ", version_text(p.driver),
               ", and this build needs ", version_text(CUDART_VERSION),
               "; update the driver, or build with an older CUDA toolkit");
  if (p.error == cudaErrorNoDevice || p.error == cudaSuccess)
    return "the NVIDIA driver shows no device; check nvidia-smi and CUDA_VISIBLE_DEVICES";
  return str("the NVIDIA driver does not work (", cudaGetErrorName(p.error), ": ",
             cudaGetErrorString(p.error), "); check nvidia-smi");
}

CudaDeviceInfo cuda_device_info(int device) {
  require_device(device);
  cudaDeviceProp properties{};
  SINTER_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  CudaDeviceInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.total_bytes = properties.totalGlobalMem;
  const CurrentDevice current(device);
  size_t total = 0;
  SINTER_CUDA_CHECK(cudaMemGetInfo(&info.free_bytes, &total));
  info.usable = why_unusable(device);
  if (info.usable.empty()) info.compiled_for = compiled_architecture(device);
  return info;
}

}  // namespace sinter
