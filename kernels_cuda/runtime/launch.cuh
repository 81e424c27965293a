// How kernels are launched: on the context's stream, checked, and named in the error.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/base/detail.h"
#include "kernels_cuda/runtime/check.cuh"
#include "sinter/operand.h"
#include "sinter/runtime.h"

namespace sinter::cuda {

// An operator and the extents that matter, formatted only if its launch fails.
struct Operation {
  const char* name;
  int rank;
  int64_t extent[4] = {};

  template <class... Extents> Operation(const char* name, Extents... extents)
      : name(name), rank(sizeof...(extents)), extent{static_cast<int64_t>(extents)...} {}

  std::string text() const {
    std::string out = str(name, " (");
    for (int d = 0; d < rank; ++d) out += str(d ? ", " : "", extent[d]);
    return out + ")";
  }
};

// A context and the place in the source where it was passed to launch.
struct LaunchSite {
  const Cuda& ctx;
  const char* file;
  int line;

  LaunchSite(const Cuda& ctx, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : ctx(ctx), file(file), line(line) {}
};

// Whether the array at p is there before a kernel that is launched next, by launch_early, begins,
// so that it may be read before wait_for_earlier(): nothing that the kernel will have to wait for
// writes to it. Known only while a graph is captured (detail::CudaGraph); false otherwise.
bool settled(const void* p);
void note_launch();  // for settled: of a kernel that the next one waits for

// What kernel parameters hold with every driver; since CUDA 12.1 some drivers let them hold more.
inline constexpr size_t kParameterBytes = 4096;
template <class... Params> inline constexpr bool fits_parameters = (((sizeof(Params) + 7) / 8 * 8) +
                                                                    ... + 0) <= kParameterBytes;

// Lets `kernel` have all the dynamic shared memory that the device gives a block, beside its static
// one. Always all: what one launch asks for is a setting of the kernel, which another thread may
// launch with less meanwhile.
void allow_shared_memory(const void* kernel, int device);
int most_dynamic_shared(const void* kernel, int device);  // bytes
// So much dynamic shared memory, with 16 KB of static one, a block has without that.
inline constexpr size_t kUnaskedSharedBytes = 32 << 10;

template <class... Params, class... Args> void launch(LaunchSite site, const Operation& operation,
                                                      dim3 grid, dim3 block, size_t shared_bytes,
                                                      void (*kernel)(Params...), Args... args) {
  static_assert(fits_parameters<Params...>);
  if (shared_bytes > kUnaskedSharedBytes)
    allow_shared_memory(reinterpret_cast<const void*>(kernel), site.ctx.device);
  kernel<<<grid, block, shared_bytes, site.ctx.stream>>>(args...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw_cuda_error(error, site.file, site.line, "launching " + operation.text());
  note_launch();
}

// What the code that this build has for `device` was compiled for, 90 for compute capability 9.0:
// __CUDA_ARCH__ / 10 as its kernels saw it. What they have only from some architecture on is there
// if this says so, whatever the device could do: the driver compiles PTX of an older one for a
// newer device, with the older one's branches. The same for all files of a build.
int compiled_architecture(int device);

// Programmatic dependent launch (compute capability 9.0): a kernel that is launched by launch_early
// gets its blocks placed while the one before it on the stream still runs, and begins with
// wait_for_earlier(), in every thread, before it touches memory that is not settled(). That hides a
// launch's latency, some microsecond, which is most of what a small kernel costs, and the way of
// what it needs into shared memory.
//   Where kernels take long and others run beside them on branches, what is placed early is only in
// their way: `early` says whether to.
//   Once past the wait a kernel lets the next one be placed, so a kernel and all before it are over
// when the second behind it begins: what is placed early never waits for more than one kernel.
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
// Code for an older architecture does not wait.
inline bool launches_early(int device) { return compiled_architecture(device) >= 90; }
// Asks for as much shared memory as a multiprocessor can set aside of its L1 cache, whatever the
// kernel needs itself. A multiprocessor changes that division only when nothing runs on it: a
// kernel that asks for another one than its predecessor's would be placed behind it, not early.
void prefer_shared_memory(const void* kernel, int device);

struct Placement {
  unsigned cluster = 1;  // blocks of a cluster, which divide the grid; 1: no clusters
  bool early = true;
};
template <class... Params, class... Args>
void launch_early(LaunchSite site, const Operation& operation, dim3 grid, dim3 block,
                  size_t shared_bytes, Placement placement, void (*kernel)(Params...),
                  Args... args) {
  static_assert(fits_parameters<Params...>);
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = site.ctx.stream;
  config.attrs = attributes;
  const bool can_be_early = launches_early(site.ctx.device);
  if (can_be_early) prefer_shared_memory(reinterpret_cast<const void*>(kernel), site.ctx.device);
  if (shared_bytes > kUnaskedSharedBytes)
    allow_shared_memory(reinterpret_cast<const void*>(kernel), site.ctx.device);
  if (placement.early && can_be_early) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (placement.cluster > 1) {
    cudaLaunchAttribute& clusters = attributes[config.numAttrs++];
    clusters.id = cudaLaunchAttributeClusterDimension;
    clusters.val.clusterDim.x = placement.cluster;
    clusters.val.clusterDim.y = clusters.val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  if (error != cudaSuccess)
    throw_cuda_error(error, site.file, site.line, "launching " + operation.text());
  note_launch();
}

// Up to so many images or rows the kernels of a layer are brief on any GPU that launches early.
inline constexpr int64_t kBriefBatch = 256;

inline constexpr int kThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// For kernels that visit [0, n) in a grid-stride loop and take n first. The cap keeps the grid
// legal for any n; it is far above what fills a GPU.
template <class N, class... Params, class... Args>
void launch_1d(LaunchSite site, const char* name, int64_t n, void (*kernel)(N, Params...),
               Args... args) {
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 1 << 16));
  launch(site, {name, n}, blocks, kThreads, 0, kernel, static_cast<N>(n), args...);
}

// for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>())
template <class Index> __device__ Index thread_index() {
  return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
}
template <class Index> __device__ Index thread_count() {
  return static_cast<Index>(gridDim.x) * blockDim.x;
}

// Calls f(Index{}) with the narrowest index type that spans n elements plus one grid stride: a
// 64-bit division costs several times a 32-bit one, and decoding an index is mostly divisions.
template <class F> void with_index(int64_t n, const F& f) {
  if (n < (int64_t{1} << 31))
    f(uint32_t{});
  else
    f(int64_t{});
}

// The block's dynamic shared memory.
template <class T> __device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char sinter_dynamic_shared[];
  return reinterpret_cast<T*>(sinter_dynamic_shared);
}

}  // namespace sinter::cuda
