// What the parts of the CUDA runtime share: devices, streams, memory.
//
// The registries are reached from destructors of threads and of static objects, in any order, and
// are therefore never destroyed; at exit the driver frees what they hold.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels_cuda/runtime/check.cuh"
#include "kernels_cuda/runtime/stream.cuh"
#include "sinter/runtime.h"

namespace sinter::cuda {

struct Pool;

// A piece of memory from the driver, cut into blocks from the front.
struct Chunk {
  char* base;
  size_t bytes;
  Pool* pool;  // where its blocks go when they are freed
  size_t used = 0;
  int live_blocks = 0;
};

// Free blocks, handed out again in the stream's order, and the chunk that new small ones are cut
// from. A stream has one; each lane of a captured graph has another, since its replays write to the
// blocks that it used however often they were freed and reused while it was captured.
struct Pool {
  std::unordered_map<size_t, std::vector<void*>> free;  // by size class
  Chunk* open = nullptr;
  // No chunk of it may go back to the driver: a graph's, from its capture on; a stream's while it
  // is captured and cannot be waited for.
  bool pinned = false;
};

struct Block {
  size_t bytes;
  Chunk* chunk;
};

// A stream of a thread, and what is its own. When the thread ends, the stream waits for the next
// thread that asks for one, with its memory: nothing leaks, blocks that outlive the thread stay
// valid, and the order that makes their reuse safe still holds.
struct Stream {
  cudaStream_t stream = nullptr;
  volatile Fault* fault = nullptr;  // host address
  StreamResources resources{};
  Pool own;
  Pool* pool = &own;  // a graph's while it carries a lane of one that is captured

  std::vector<Stream*> lanes;  // beside this one, for graphs captured by its thread
};

// A freed block that work on other streams than its pool's may still use, and that work's ends.
struct Lent {
  struct Use {
    Stream* stream;
    cudaEvent_t end = nullptr;  // not recorded yet: the stream was captured
  };
  void* p;
  std::vector<Use> uses;
};

struct DeviceState {
  std::mutex mutex;
  bool verified = false;
  std::atomic<int> architecture{0};  // compiled_architecture; 0: not known yet
  std::unordered_map<cudaStream_t, std::unique_ptr<Stream>> streams;
  std::vector<Stream*> idle;
  std::map<const void*, Block> blocks;  // live and free
  std::vector<std::unique_ptr<Chunk>> chunks;
  std::deque<Lent> lent;  // in the order they were freed in
  std::vector<cudaEvent_t> idle_events;
  CudaMemory memory;
};

// Makes a device current within a scope.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    SINTER_CUDA_CHECK(cudaGetDevice(&previous_));
    if (previous_ != device) SINTER_CUDA_CHECK(cudaSetDevice(device));
  }
  ~CurrentDevice() { static_cast<void>(cudaSetDevice(previous_)); }  // it was current before
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

// ---- device.cu ----------------------------------------------------------------------------------

int device_count() noexcept;
void require_device(int device);  // throws DeviceError unless there is one of this number
DeviceState& device_state(int device);
std::string why_unusable(int device);  // empty if this build's kernels run on the current device

// ---- stream.cu ----------------------------------------------------------------------------------

// The record of ctx.stream; a stream that the caller made gets one here. ctx's mutex is held.
Stream& stream_of(DeviceState& device, const Cuda& ctx);
// Makes streams for so many further lanes of graphs captured on `stream`; not while it captures,
// when memory can neither be had nor cleared. device.mutex is held and the device current.
void add_lanes(DeviceState& device, Stream& stream, size_t lanes);
inline bool is_captured(const Stream& stream) { return stream.pool != &stream.own; }

// ---- graph.cu -----------------------------------------------------------------------------------

// Throws GraphError, naming `what`, if this thread captures a graph.
void refuse_in_capture(const char* what);

}  // namespace sinter::cuda
