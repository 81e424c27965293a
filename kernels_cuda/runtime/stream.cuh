// What a stream owns besides its queue: a place for faults and a ticket counter. And what is had
// beside the streams' work.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "sinter/operand.h"

namespace sinter::cuda {

enum class FaultCode : int32_t {
  kNone,
  kCrossEntropyLabel,
  kNllLossLabel,
  kIndexSelectIndex,
  kEmbeddingIndex,
  kGatherIndex,
  kOneHotIndex
};

// In host memory that the device can write, so that looking at it costs the host nothing once the
// stream is drained.
struct Fault {
  FaultCode code;
  int64_t index, value, limit;
};

struct StreamResources {
  Fault* fault;      // device address
  unsigned* ticket;  // device memory, 0 between kernels; see last_block
};
StreamResources stream_resources(const Cuda& ctx);

// While one lives this thread may also call what is refused while it captures a graph, since it
// might wait for the device (cudaMalloc, cublasCreate): for what is none of the graph's business.
class UnrestrictedCalls {
 public:
  UnrestrictedCalls();
  ~UnrestrictedCalls();
  UnrestrictedCalls(const UnrestrictedCalls&) = delete;
  UnrestrictedCalls& operator=(const UnrestrictedCalls&) = delete;

 private:
  cudaStreamCaptureMode mode_;
};

// Memory for the rest of the process, from the driver, whatever is captured meanwhile. Throws
// OutOfMemoryError as allocate does.
void* permanent_memory(const Cuda& ctx, size_t bytes);

// Called by one thread of a kernel, the one that knows the first offender. An earlier fault that
// nobody has been told of stays.
__device__ inline void record_fault(Fault* fault, FaultCode code, int64_t index, int64_t value,
                                    int64_t limit) {
  volatile Fault* f = fault;
  if (f->code != FaultCode::kNone) return;
  f->index = index;
  f->value = value;
  f->limit = limit;
  f->code = code;
}

}  // namespace sinter::cuda
