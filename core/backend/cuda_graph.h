// Work of a CUDA device that is captured once and replayed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "sinter/shape.h"

namespace sinter::detail {

// A part of a graph: work that is enqueued on one of several lanes.
struct GraphTask {
  int lane = 0;                           // whose scratch memory it takes; lane 0 is the urgent one
  std::vector<int> after;                 // earlier tasks that it waits for; that of its lane too
  std::function<void(const Cuda&)> work;  // enqueues
  std::vector<std::span<const std::byte>> writes;  // memory; what shares a block with it, too
};
// Work captured once and replayed with a single call.
class CudaGraph {
 public:
  // Calls the tasks' work, in their order, on streams of this thread that record it instead of
  // doing it. Scratch memory that it takes stays the graph's until it is destroyed. Throws what a
  // task throws, GraphError or CudaError; nothing is left half captured then.
  static CudaGraph capture(int device, std::span<const GraphTask> tasks);
  CudaGraph();
  CudaGraph(CudaGraph&&) noexcept;
  CudaGraph& operator=(CudaGraph&&) noexcept;
  ~CudaGraph();
  void replay();  // enqueues; from the thread that captured it, else GraphError
  int64_t nodes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sinter::detail
