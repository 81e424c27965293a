// Threads, devices, streams and settings of the two backends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "sinter/build.h"
#include "sinter/conv_algo.h"
#include "sinter/shape.h"

namespace sinter {

// ---- CPU ----------------------------------------------------------------------------------------

// Worker threads of every CPU kernel, the BLAS included (which runs with one thread inside each
// worker, however many the program allows it). Default: the cores this process may run on, of its
// affinity mask and its quota of processor time, which is rounded up. Results do not depend on it.
// Where the system gives fewer threads, those do the work. Throws ValueError unless
// 1 <= n <= kMaxThreads. Process-wide.
constexpr int kMaxThreads = 1024;
void set_num_threads(int n);
int num_threads();

// What this process may use of the machine's processors.
struct CpuLimits {
  int cores = 1;     // in its affinity mask
  double quota = 0;  // cores' worth of time that its control groups leave it; 0: no limit
};
CpuLimits cpu_limits();

struct BlasInfo {
  std::string name;     // "OpenBLAS 0.3.21", "Eigen 3.4.0"
  std::string kernels;  // the core type OpenBLAS chose ("SkylakeX", "Zen", …); empty for Eigen
};
BlasInfo blas_info();
// The instruction set that the direct kernels chose at run time ("AVX3_ZEN4", "AVX2", …).
std::string simd_target();

// ---- both ---------------------------------------------------------------------------------------

// How conv2d is computed from now on, in the whole process (ConvAlgo, operators.h).
void set_conv_algo(ConvAlgo algo);
ConvAlgo conv_algo();
// Throws ValueError listing the names.
ConvAlgo conv_algo_named(const std::string& name);

// Whether CUDA may round the operands of float32 convolutions and matrix products to TF32, which
// has 10 bits of mantissa instead of 23, as torch.backends.cuda.matmul.allow_tf32 and
// torch.backends.cudnn.allow_tf32. Default: false. Process-wide; GPUs before compute capability 8.0
// and float64 ignore it, and so do convolutions of builds whose code for the GPU is older than
// that.
void set_allow_tf32(bool allow);
bool allow_tf32();

// ---- CUDA ---------------------------------------------------------------------------------------
// Declared in every build, so that `if constexpr (cuda_built())` (build.h) may stand before a use;
// a build without CUDA defines cuda_device_count() alone, which is 0.

struct CudaDeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  // What this build's kernels for it were compiled for, 75 for compute capability 7.5: less than
  // the device's where the driver compiles them from PTX. 0 unless they run on it.
  int compiled_for = 0;
  int multiprocessors = 0;
  size_t total_bytes = 0, free_bytes = 0;
  std::string usable;  // empty when kernels run on it, else why not and what to do
};

// Devices the driver shows. Never throws: without a driver or device it is 0 and cuda_unavailable()
// says why and what to do.
int cuda_device_count() noexcept;
std::string cuda_unavailable();
// Throws DeviceError unless 0 <= device < cuda_device_count().
CudaDeviceInfo cuda_device_info(int device);
// "75 80 86 89 90 PTX 90": what this build holds machine code and PTX for.
std::string cuda_built_architectures();
int cuda_driver_version() noexcept;   // 13000 for 13.0; 0 without a driver
int cuda_toolkit_version() noexcept;  // the toolkit this was built with

// The calling thread's stream on `device`, made on first use; makes the device current. Threads
// have streams of their own, so independent trainings run side by side. Throws DeviceError if the
// device cannot run this build's kernels.
Cuda cuda_context(int device);
// Its stream.
CUstream_st* cuda_stream(int device);

// Gives blocks of memory that are kept for reuse back to the driver.
void release_cached_memory(int device);

struct CudaMemory {
  size_t in_use = 0;    // bytes of live blocks
  size_t reserved = 0;  // in_use and what is kept for reuse
  size_t peak_in_use = 0;
  int64_t driver_calls = 0;  // allocations and frees asked of the driver so far
};
CudaMemory cuda_memory(int device);

// Waits for ctx.stream, then throws what went wrong on it since the last call: a CUDA error, or a
// fault a kernel recorded (ValueError: "cross_entropy: labels[17] = 10, expected 0 <= label < 10").
void synchronize(const Cuda& ctx);

}  // namespace sinter
