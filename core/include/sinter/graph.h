// Work on a GPU captured once and replayed: a small network's training step is bound by the host
// calls that launch its kernels, and a replay is one call.
#pragma once

#include <functional>
#include <memory>

#include "sinter/tensor.h"

namespace sinter {

// A captured piece of work (a CUDA graph). What the function reads at every replay it must read
// from device memory that stays where it is: parameters, optimizer state, an ImageSet, a Batches'
// position. Its results are overwritten by the next replay.
//
//   step();                                            // once eagerly: libraries load, caches fill
//   auto graph = sinter::Graph::capture(device, step);
//   for (int i = 0; i < 100; ++i) graph.replay();
//
// Replays compute what eager calls compute, bit for bit.
class Graph {
 public:
  // Calls `work` on this thread, recording its work on `device` instead of doing it. Throws
  // GraphError if the work waits for the device, copies from host memory or does anything else that
  // a replay could not repeat, DeviceError unless `device` is a usable CUDA device, CudaError if
  // the driver refuses, and what `work` throws; the device is as it was then.
  static Graph capture(Device device, const std::function<void()>& work);
  Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;
  ~Graph();
  // Enqueues the work on this thread's stream. Throws GraphError on a thread other than the one
  // that captured it, or if nothing was captured.
  void replay();
  int64_t nodes() const;  // kernels and copies

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// While one lives during a capture, this thread's work on `device` goes to a branch of the graph
// that runs beside what follows the guard. Tensors made under it are waited for when they are read
// elsewhere; what it wrote into others may be used after a backward pass or join(). Outside a
// capture it does nothing.
class branch_guard {
 public:
  [[nodiscard]] explicit branch_guard(Device device);
  ~branch_guard();
  branch_guard(const branch_guard&) = delete;
  branch_guard& operator=(const branch_guard&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};
void join(Device device);

}  // namespace sinter
