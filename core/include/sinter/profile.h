// What ran on the GPUs, and when: every kernel by itself, also inside the replay of a graph.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sinter/runtime.h"

namespace sinter {

// A kernel, copy or fill that a GPU carried out.
struct GpuActivity {
  std::string name;            // of a kernel, demangled; "copy", "fill" for the driver's own
  int64_t start = 0, end = 0;  // nanoseconds of one clock
  std::array<int, 3> grid{}, block{};  // blocks, threads in a block; 0 if not a kernel
  int registers = 0;                   // a thread
  int64_t shared_bytes = 0;            // a block, static and dynamic
  int64_t bytes = 0;                   // copied or filled
  uint32_t stream = 0;
  uint64_t graph_node = 0;  // 0: not from a graph
};

// Defined in builds with CUDA only.
//
// Empty if there is a profiler, else why not and what to do: this build has no CUPTI, or its
// library is not found. Loads the library, which by itself records nothing.
std::string profiler_unavailable();

// Times work on a GPU by itself: a short wait on the stream comes before, during which the host
// enqueues the work, so that what is measured is the device's time and no launching. It includes
// some microsecond between the two marks around the work.
class GpuTimer {
 public:
  explicit GpuTimer(const Cuda& ctx);
  ~GpuTimer();
  GpuTimer(GpuTimer&&) noexcept;
  GpuTimer& operator=(GpuTimer&&) = delete;

  void start();
  double stop();  // microseconds of what was enqueued on ctx.stream since start; waits for it

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Records the activities of all threads and devices while it lives, through NVIDIA's CUPTI, which
// is loaded by the first one. Graphs are to be captured under it: kernels of an earlier one may be
// missing. Recording costs time: a kernel's own is nearly right, the gaps between kernels grow. Not
// thread-safe.
class Profiler {
 public:
  // Throws Error, saying what to do, if profiler_unavailable(), if the driver forbids profiling or
  // if another profiler is active, in this process or around it.
  Profiler();
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  // What finished since the last call, in the order of the starts. Waits for the current device.
  // Throws CudaError if activities were lost.
  std::vector<GpuActivity> take();
};

}  // namespace sinter
