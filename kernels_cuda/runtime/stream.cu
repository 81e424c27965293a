// Streams: one a thread and device, and those that carry the lanes of its graphs.
#include <exception>
#include <utility>

#include "core/base/detail.h"
#include "kernels_cuda/runtime/state.cuh"

namespace sinter {
namespace cuda {
namespace {

// Adopts `stream`, made here or by a caller. device.mutex is held and the device current.
Stream& add_stream(DeviceState& device, cudaStream_t stream) {
  auto added = std::make_unique<Stream>();
  added->stream = stream;
  void* host = nullptr;
  SINTER_CUDA_CHECK(cudaHostAlloc(&host, sizeof(Fault), cudaHostAllocMapped));
  added->fault = new (host) Fault{};
  void* mapped = nullptr;
  SINTER_CUDA_CHECK(cudaHostGetDevicePointer(&mapped, host, 0));
  added->resources.fault = static_cast<Fault*>(mapped);
  void* ticket = nullptr;
  SINTER_CUDA_CHECK(cudaMalloc(&ticket, sizeof(unsigned)));
  SINTER_CUDA_CHECK(cudaMemsetAsync(ticket, 0, sizeof(unsigned), stream));
  added->resources.ticket = static_cast<unsigned*>(ticket);
  Stream& result = *added;
  device.streams.emplace(stream, std::move(added));
  return result;
}

// A stream's blocks are placed before those of less urgent ones: what a graph's main line waits for
// before what is wanted at the step's end only.
enum class Urgency { kLow, kHigh };
cudaStream_t make_stream(Urgency urgency) {
  int least = 0, greatest = 0;
  SINTER_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  cudaStream_t stream = nullptr;
  // Non-blocking: the legacy default stream would otherwise serialize all threads' streams.
  SINTER_CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                                 urgency == Urgency::kHigh ? greatest : least));
  return stream;
}

}  // namespace

void add_lanes(DeviceState& device, Stream& stream, size_t lanes) {
  while (stream.lanes.size() < lanes) {
    cudaStream_t made = make_stream(Urgency::kLow);
    Stream& lane = add_stream(device, made);
    lane.resources.fault = stream.resources.fault;
    SINTER_CUDA_CHECK(cudaStreamSynchronize(made));  // its ticket is 0
    stream.lanes.push_back(&lane);
  }
}

Stream& stream_of(DeviceState& device, const Cuda& ctx) {
  const auto found = device.streams.find(ctx.stream);
  if (found != device.streams.end()) return *found->second;
  const CurrentDevice current(ctx.device);
  return add_stream(device, ctx.stream);
}

namespace {

// The calling thread's streams, one a device. Null before the first and when the thread, ending,
// has given them back; objects it destroys after that get others, which stay taken.
thread_local std::vector<Stream*>* thread_streams = nullptr;

// Null where the thread has none yet.
Stream* thread_stream(int device) {
  const auto index = static_cast<size_t>(device);
  const bool known = thread_streams != nullptr && device >= 0 && index < thread_streams->size();
  return known ? (*thread_streams)[index] : nullptr;
}

struct ThreadStreamsOwner {
  ~ThreadStreamsOwner() {
    const std::unique_ptr<std::vector<Stream*>> streams(std::exchange(thread_streams, nullptr));
    for (size_t d = 0; d < streams->size(); ++d) {
      if ((*streams)[d] == nullptr) continue;
      try {
        DeviceState& device = device_state(static_cast<int>(d));
        const std::lock_guard lock(device.mutex);
        device.idle.push_back((*streams)[d]);
      } catch (const std::exception&) {
        // Without memory for a list entry the stream stays unused.
      }
    }
  }
};

Stream& take_stream(int index) {
  DeviceState& device = device_state(index);
  const std::lock_guard lock(device.mutex);
  if (!device.verified) {
    const std::string why = why_unusable(index);
    if (!why.empty()) throw DeviceError(str("cuda:", index, " cannot run this build: ", why));
    device.verified = true;
  }
  if (!device.idle.empty()) {
    Stream* stream = device.idle.back();
    SINTER_CUDA_CHECK(cudaStreamSynchronize(stream->stream));
    stream->fault->code = FaultCode::kNone;  // of the thread before
    device.idle.pop_back();
    return *stream;
  }
  return add_stream(device, make_stream(Urgency::kHigh));
}

}  // namespace

UnrestrictedCalls::UnrestrictedCalls() : mode_(cudaStreamCaptureModeRelaxed) {
  SINTER_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_));
}
UnrestrictedCalls::~UnrestrictedCalls() {
  static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_));  // nothing is waited for
}

StreamResources stream_resources(const Cuda& ctx) {
  DeviceState& device = device_state(ctx.device);
  const std::lock_guard lock(device.mutex);
  return stream_of(device, ctx).resources;
}

}  // namespace cuda

using namespace cuda;

Cuda cuda_context(int device) {
  Stream* stream = thread_stream(device);
  if (stream == nullptr) require_device(device);
  SINTER_CUDA_CHECK(cudaSetDevice(device));
  if (stream == nullptr) {
    if (thread_streams == nullptr) {
      thread_streams = new std::vector<Stream*>(static_cast<size_t>(device_count()));
      thread_local const ThreadStreamsOwner owner;
    }
    stream = (*thread_streams)[static_cast<size_t>(device)] = &take_stream(device);
  }
  return {device, stream->stream};
}

CUstream_st* cuda_stream(int device) {
  Stream* const stream = thread_stream(device);
  return stream != nullptr ? stream->stream : cuda_context(device).stream;
}

void synchronize(const Cuda& ctx) {
  refuse_in_capture("waiting for the device (item, to_vector, a copy to the CPU)");
  const cudaError_t error = cudaStreamSynchronize(ctx.stream);
  if (error != cudaSuccess)
    throw_cuda_error(error, __FILE__, __LINE__,
                     str("in work on cuda:", ctx.device,
                         " since the last synchronization (CUDA_LAUNCH_BLOCKING=1 or "
                         "compute-sanitizer tells where)"));
  DeviceState& device = device_state(ctx.device);
  Fault fault;
  {
    const std::lock_guard lock(device.mutex);
    volatile Fault* recorded = stream_of(device, ctx).fault;
    fault = {recorded->code, recorded->index, recorded->value, recorded->limit};
    recorded->code = FaultCode::kNone;
  }
  const auto label = [&](const char* op) {
    throw ValueError(str(op, ": labels[", fault.index, "] = ", fault.value,
                         ", expected 0 <= label < ", fault.limit, " or ignore_index"));
  };
  const auto index = [&](const char* op) {
    throw ValueError(str(op, ": index[", fault.index, "] = ", fault.value,
                         ", expected 0 <= index < ", fault.limit));
  };
  switch (fault.code) {
    case FaultCode::kNone:
      return;
    case FaultCode::kCrossEntropyLabel:
      return label("cross_entropy");
    case FaultCode::kNllLossLabel:
      return label("nll_loss");
    case FaultCode::kIndexSelectIndex:
      return index("index_select");
    case FaultCode::kEmbeddingIndex:
      return index("embedding");
    case FaultCode::kGatherIndex:
      return index("gather");
    case FaultCode::kOneHotIndex:
      return index("one_hot");
  }
}

}  // namespace sinter
