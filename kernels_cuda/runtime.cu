// Devices, streams, memory, copies and faults: the CUDA part of runtime.h.
//
// The registries below are reached from destructors of threads and of static objects, in any order,
// and are therefore never destroyed; at exit the driver frees what they hold.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "check.cuh"
#include "launch.cuh"
#include "scratch.cuh"
#include "sinter/runtime.h"
#include "stream.cuh"

#ifndef SINTER_CUDA_BUILT_ARCHITECTURES
#error "CMakeLists.txt defines SINTER_CUDA_BUILT_ARCHITECTURES"
#endif

namespace sinter {
namespace cuda {
namespace {

// ---- memory: data -------------------------------------------------------------------------------

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

constexpr size_t kMinBlock = 512;                   // keeps every block aligned for any access
constexpr size_t kLargestShared = size_t{1} << 20;  // larger blocks have chunks of their own
constexpr size_t kChunk = size_t{8} << 20;

// The size class of a request: 8 classes a doubling, so that at most an eighth is unused.
size_t block_bytes(size_t bytes) {
  if (bytes >> 60) return bytes;  // no such memory; the driver says so
  size_t step = kMinBlock;
  while (bytes > 16 * step) step *= 2;
  return std::max((bytes + step - 1) / step * step, kMinBlock);
}

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

// What this thread captures.
struct Capture {
  bool active = false;
  // Of the task whose work is being captured: memory that work which it does not fully wait for may
  // still write to, and memory that it writes to itself.
  std::span<const std::span<const std::byte>> pending, own;
  bool launched = false;  // a kernel of it
};
thread_local Capture capture;  // without a destructor: later ones of the thread may ask for it

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

// ---- devices ------------------------------------------------------------------------------------

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

__global__ void probe_kernel() {}

// Empty if this build's kernels run on the current device, else why not.
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

// ---- streams ------------------------------------------------------------------------------------

// Adopts `stream`, made by this file or by a caller. device.mutex is held and the device current.
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

// Makes streams for so many further lanes of graphs captured on `stream`; not while it captures,
// when memory can neither be had nor cleared. device.mutex is held and the device current.
void add_lanes(DeviceState& device, Stream& stream, size_t lanes) {
  while (stream.lanes.size() < lanes) {
    cudaStream_t made = make_stream(Urgency::kLow);
    Stream& lane = add_stream(device, made);
    lane.resources.fault = stream.resources.fault;
    SINTER_CUDA_CHECK(cudaStreamSynchronize(made));  // its ticket is 0
    stream.lanes.push_back(&lane);
  }
}

// The record of ctx.stream; a stream that the caller made gets one here. ctx's mutex is held.
Stream& stream_of(DeviceState& device, const Cuda& ctx) {
  const auto found = device.streams.find(ctx.stream);
  if (found != device.streams.end()) return *found->second;
  const CurrentDevice current(ctx.device);
  return add_stream(device, ctx.stream);
}

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

// ---- memory: the allocator ----------------------------------------------------------------------

bool is_captured(const Stream& stream) { return stream.pool != &stream.own; }

// Makes a block free for the next that asks. device.mutex is held.
void put_back(DeviceState& device, void* p) {
  const Block& block = device.blocks.at(p);
  block.chunk->pool->free[block.bytes].push_back(p);
  --block.chunk->live_blocks;
}

// A freed block. device.mutex is held.
void give_back(DeviceState& device, void* p) {
  put_back(device, p);
  device.memory.in_use -= device.blocks.at(p).bytes;
}

// The end of what is on the stream now, unless that cannot be told yet. device.mutex is held and
// the device current.
void mark_end(DeviceState& device, Lent::Use& use) {
  if (use.end != nullptr || is_captured(*use.stream)) return;
  cudaEvent_t event = nullptr;
  if (device.idle_events.empty()) {
    SINTER_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    device.idle_events.push_back(event);
  }
  event = device.idle_events.back();
  SINTER_CUDA_CHECK(cudaEventRecord(event, use.stream->stream));
  device.idle_events.pop_back();
  use.end = event;
}

// A freed block that goes back when the work that is now on the streams of `uses` is over.
// device.mutex is held.
void lend(DeviceState& device, int index, void* p, std::vector<Lent::Use> uses) {
  const CurrentDevice current(index);
  device.lent.push_back({p, std::move(uses)});
  device.memory.in_use -= device.blocks.at(p).bytes;
  for (Lent::Use& use : device.lent.back().uses) mark_end(device, use);
}

// Puts back what was lent, in order, up to the first block that is still in use. device.mutex is
// held.
void take_back(DeviceState& device, int index) {
  if (device.lent.empty()) return;
  const CurrentDevice current(index);
  const UnrestrictedCalls unrestricted;
  for (; !device.lent.empty(); device.lent.pop_front()) {
    Lent& lent = device.lent.front();
    for (; !lent.uses.empty(); lent.uses.pop_back()) {
      Lent::Use& use = lent.uses.back();
      mark_end(device, use);
      if (use.end == nullptr) return;
      const cudaError_t error = cudaEventQuery(use.end);
      if (error == cudaErrorNotReady) {
        cudaGetLastError();
        return;
      }
      SINTER_CUDA_CHECK(error);
      device.idle_events.push_back(use.end);
    }
    put_back(device, lent.p);
  }
}

// Waits for all work of the current device but that of streams that are captured, by this thread or
// another: neither they nor a device that has one can be waited for.
void wait_for_streams(DeviceState& device) {
  const auto captured = [](const auto& entry) { return is_captured(*entry.second); };
  if (std::none_of(device.streams.begin(), device.streams.end(), captured)) {
    SINTER_CUDA_CHECK(cudaDeviceSynchronize());
    return;
  }
  for (const auto& entry : device.streams)
    if (!captured(entry)) SINTER_CUDA_CHECK(cudaStreamSynchronize(entry.first));
}

// Gives every chunk without a live block back to the driver. device.mutex is held and the device
// current.
void release_chunks(DeviceState& device, int index) {
  const UnrestrictedCalls unrestricted;
  const auto unused = [](const Chunk* chunk) {
    return chunk->live_blocks == 0 && !chunk->pool->pinned;
  };
  if (device.lent.empty() && std::none_of(device.chunks.begin(), device.chunks.end(),
                                          [&](const auto& chunk) { return unused(chunk.get()); }))
    return;
  wait_for_streams(device);  // work that still uses freed blocks must be over
  take_back(device, index);
  for (auto& [key, stream] : device.streams) {
    for (auto& [bytes, list] : stream->own.free)
      std::erase_if(list, [&](void* p) { return unused(device.blocks.at(p).chunk); });
    if (stream->own.open && unused(stream->own.open)) stream->own.open = nullptr;
  }
  std::erase_if(device.blocks, [&](const auto& entry) { return unused(entry.second.chunk); });
  cudaError_t error = cudaSuccess;
  std::erase_if(device.chunks, [&](const std::unique_ptr<Chunk>& chunk) {
    if (!unused(chunk.get())) return false;
    ++device.memory.driver_calls;
    device.memory.reserved -= chunk->bytes;
    const cudaError_t freed = cudaFree(chunk->base);
    if (freed != cudaSuccess) error = freed;
    return true;
  });
  SINTER_CUDA_CHECK(error);
}

std::string megabytes(size_t bytes) {
  const size_t tenths = bytes / 104858 + (bytes % 104858 != 0);
  return str(tenths / 10, ".", tenths % 10, " MiB");
}

// `wanted` bytes from the driver, which gets what is cached back if it has no more, or else
// `bytes`; `wanted` becomes what came. `asked` is what the message speaks of. device.mutex is held.
void* driver_malloc(DeviceState& device, int index, size_t& wanted, size_t bytes, size_t asked) {
  const CurrentDevice current(index);
  const UnrestrictedCalls unrestricted;
  void* p = nullptr;
  ++device.memory.driver_calls;
  cudaError_t error = cudaMalloc(&p, wanted);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    release_chunks(device, index);
    wanted = bytes;
    ++device.memory.driver_calls;
    error = cudaMalloc(&p, wanted);
  }
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    SINTER_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    throw OutOfMemoryError(str("cuda:", index, ": no memory for ", asked,
                               " bytes: ", megabytes(device.memory.in_use), " in use here, ",
                               megabytes(free_bytes), " free of ", megabytes(total_bytes),
                               "; use a smaller batch (--batch-size)"));
  }
  SINTER_CUDA_CHECK(error);
  return p;
}

// A new chunk that holds `bytes`, the size class of `asked`, or, for small blocks, more.
Chunk* add_chunk(DeviceState& device, int index, Pool& pool, size_t bytes, size_t asked) {
  auto chunk = std::make_unique<Chunk>();
  device.chunks.reserve(device.chunks.size() + 1);
  size_t chunk_bytes = bytes <= kLargestShared ? kChunk : bytes;
  void* base = driver_malloc(device, index, chunk_bytes, bytes, asked);
  *chunk = {static_cast<char*>(base), chunk_bytes, &pool};
  device.chunks.push_back(std::move(chunk));
  device.memory.reserved += chunk_bytes;
  return device.chunks.back().get();
}

// ---- small copies -------------------------------------------------------------------------------

// Host values that travel as a kernel's parameter: the caller's memory is free at once, without the
// wait that a copy from pageable memory may cost.
struct Parcel {
  static constexpr size_t kBytes = 256;
  unsigned char bytes[kBytes];
};

__global__ void unpack_kernel(int n, Parcel parcel, unsigned char* dst) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) dst[i] = parcel.bytes[i];
}

void refuse_in_capture(const char* what) {
  if (!capture.active) return;
  throw GraphError(str(what,
                       " cannot be captured in a graph: it waits for the device or reads host "
                       "memory, which a replay would not; move it out of the captured function"));
}

}  // namespace

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

UnrestrictedCalls::UnrestrictedCalls() : mode_(cudaStreamCaptureModeRelaxed) {
  SINTER_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode_));
}
UnrestrictedCalls::~UnrestrictedCalls() {
  static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_));  // nothing is waited for
}

void* permanent_memory(const Cuda& ctx, size_t bytes) {
  DeviceState& device = device_state(ctx.device);
  const std::lock_guard lock(device.mutex);
  return driver_malloc(device, ctx.device, bytes, bytes, bytes);
}

StreamResources stream_resources(const Cuda& ctx) {
  DeviceState& device = device_state(ctx.device);
  const std::lock_guard lock(device.mutex);
  return stream_of(device, ctx).resources;
}

}  // namespace cuda

using namespace cuda;

// ---- devices ------------------------------------------------------------------------------------

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

Cuda cuda_context(int device) {
  Stream* stream = thread_stream(device);
  if (stream == nullptr) require_device(device);
  SINTER_CUDA_CHECK(cudaSetDevice(device));
  if (stream == nullptr) {
    if (thread_streams == nullptr) {
      thread_streams = new std::vector<Stream*>(static_cast<size_t>(probe().devices));
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

// ---- memory -------------------------------------------------------------------------------------

void* allocate(const Cuda& ctx, size_t asked) {
  DeviceState& device = device_state(ctx.device);
  const std::lock_guard lock(device.mutex);
  take_back(device, ctx.device);
  Pool& pool = *stream_of(device, ctx).pool;
  const size_t bytes = block_bytes(asked);

  std::vector<void*>& free = pool.free[bytes];
  void* p = nullptr;
  if (!free.empty()) {
    p = free.back();
    free.pop_back();
  } else {
    const bool shares = bytes <= kLargestShared;
    Chunk* chunk = shares ? pool.open : nullptr;
    if (chunk == nullptr || chunk->bytes - chunk->used < bytes) {
      chunk = add_chunk(device, ctx.device, pool, bytes, asked);
      if (shares) pool.open = chunk;
    }
    p = chunk->base + chunk->used;
    device.blocks.emplace(p, Block{bytes, chunk});
    chunk->used += bytes;
  }
  ++device.blocks.at(p).chunk->live_blocks;
  device.memory.in_use += bytes;
  device.memory.peak_in_use = std::max(device.memory.peak_in_use, device.memory.in_use);
  return p;
}

void deallocate(const Cuda& ctx, void* p, size_t, std::span<CUstream_st* const> others) noexcept {
  if (p == nullptr) return;
  try {
    DeviceState& device = device_state(ctx.device);
    const std::lock_guard lock(device.mutex);
    if (others.empty()) {
      give_back(device, p);
      return;
    }
    std::vector<Lent::Use> uses;
    for (CUstream_st* other : others) uses.push_back({&stream_of(device, {ctx.device, other})});
    lend(device, ctx.device, p, std::move(uses));
  } catch (const std::exception&) {
    // Without host memory for the list entry, or with a driver that is gone, the block stays in
    // use.
  }
}

void release_cached_memory(int device) {
  require_device(device);
  const CurrentDevice current(device);
  DeviceState& state = device_state(device);
  const std::lock_guard lock(state.mutex);
  release_chunks(state, device);
}

CudaMemory cuda_memory(int device) {
  require_device(device);
  DeviceState& state = device_state(device);
  const std::lock_guard lock(state.mutex);
  return state.memory;
}

// ---- synchronization and copies -----------------------------------------------------------------

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
  switch (fault.code) {
    case FaultCode::kNone:
      return;
    case FaultCode::kCrossEntropyLabel:
      throw ValueError(str("cross_entropy: labels[", fault.index, "] = ", fault.value,
                           ", expected 0 <= label < ", fault.limit));
  }
}

void copy_from_host(const Cuda& ctx, void* dst, const void* src, size_t bytes) {
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

void copy_to_host(const Cuda& ctx, void* dst, const void* src, size_t bytes) {
  refuse_in_capture("waiting for the device (item, to_vector, a copy to the CPU)");
  if (bytes > 0)
    SINTER_CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, ctx.stream));
  synchronize(ctx);
}

void copy_on_device(const Cuda& ctx, void* dst, const void* src, size_t bytes) {
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

void copy_across(const Cuda& to, void* dst, const Cuda& from, const void* src, size_t bytes) {
  if (bytes == 0) return;
  if (to.device == from.device && to.stream == from.stream) {
    copy_on_device(to, dst, src, bytes);
    return;
  }
  refuse_in_capture("a copy between devices or threads");
  order(from, to);
  {
    const CurrentDevice current(to.device);
    if (to.device == from.device) {
      copy_on_device(to, dst, src, bytes);
    } else {
      enable_peer_access(to.device, from.device);
      SINTER_CUDA_CHECK(cudaMemcpyPeerAsync(dst, to.device, src, from.device, bytes, to.stream));
    }
  }
  order(to, from);
}

// ---- graphs -------------------------------------------------------------------------------------

namespace cuda {

void note_launch() { capture.launched = true; }

bool settled(const void* p) {
  if (!capture.active) return false;
  const auto* byte = static_cast<const std::byte*>(p);
  const auto holds = [byte](std::span<const std::byte> part) {
    return part.data() <= byte && byte < part.data() + part.size();
  };
  // A second kernel of the task follows the first, which follows all that was pending.
  const auto& writes = capture.launched ? capture.own : capture.pending;
  return std::none_of(writes.begin(), writes.end(), holds);
}

namespace {

// What the graph kept goes to the stream it ran on. device.mutex is held.
void merge_pool(DeviceState& device, Pool& from, Stream& stream) {
  for (auto& [bytes, list] : from.free) {
    auto& to = stream.own.free[bytes];
    to.insert(to.end(), list.begin(), list.end());
  }
  for (const auto& chunk : device.chunks)
    if (chunk->pool == &from) chunk->pool = &stream.own;
}

}  // namespace
}  // namespace cuda

struct CudaGraph::Impl {
  int device = 0;
  std::vector<Stream*> streams;  // one a lane
  std::vector<std::unique_ptr<Pool>> pools;
  cudaGraphExec_t exec = nullptr;
  int64_t nodes = 0;

  ~Impl() {
    // A replay under way is finished first. What could fail is the process, at its end.
    if (exec != nullptr) static_cast<void>(cudaGraphExecDestroy(exec));
    if (streams.empty()) return;
    try {
      DeviceState& state = device_state(device);
      const std::lock_guard lock(state.mutex);
      for (size_t lane = 0; lane < streams.size(); ++lane)
        merge_pool(state, *pools[lane], *streams[0]);
    } catch (const std::exception&) {
      for (auto& pool : pools) static_cast<void>(pool.release());  // blocks may still point to it
    }
  }

  // Ends the capture in whatever state it is: nullptr if it failed.
  cudaError_t stop(cudaGraph_t* graph) noexcept {
    const cudaError_t error = cudaStreamEndCapture(streams[0]->stream, graph);
    if (error != cudaSuccess) {
      cudaGetLastError();
      *graph = nullptr;
    }
    const std::lock_guard lock(device_state(device).mutex);
    for (Stream* stream : streams) {
      stream->pool = &stream->own;
      stream->own.pinned = false;
    }
    cuda::capture = {};
    return error;
  }
};

CudaGraph::CudaGraph() = default;
CudaGraph::CudaGraph(CudaGraph&&) noexcept = default;
CudaGraph& CudaGraph::operator=(CudaGraph&&) noexcept = default;
CudaGraph::~CudaGraph() = default;
int64_t CudaGraph::nodes() const { return impl_ ? impl_->nodes : 0; }

namespace {

class Event {
 public:
  Event() { SINTER_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }  // kept until waits for it are over
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Stream& stream) { SINTER_CUDA_CHECK(cudaEventRecord(event_, stream.stream)); }
  void hold(const Stream& stream) { SINTER_CUDA_CHECK(cudaStreamWaitEvent(stream.stream, event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

// Captures the tasks' work on the streams of their lanes, which all begin and end with the first.
void capture_tasks(int device, std::span<const GraphTask> tasks, std::span<Stream* const> streams) {
  std::vector<bool> is_awaited(tasks.size());
  for (const GraphTask& task : tasks)
    for (const int other : task.after) is_awaited[static_cast<size_t>(other)] = true;
  std::vector<std::unique_ptr<Event>> ends(tasks.size());
  std::vector<int> last(streams.size(), -1);
  Event begin;
  begin.record(*streams[0]);
  std::vector<std::span<const std::byte>> pending;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const GraphTask& task = tasks[i];
    const auto lane = static_cast<size_t>(task.lane);
    const Stream& stream = *streams[lane];
    pending.clear();
    const auto follow = [&](int other) {
      const auto& writes = tasks[static_cast<size_t>(other)].writes;
      pending.insert(pending.end(), writes.begin(), writes.end());
    };
    if (last[lane] >= 0)
      follow(last[lane]);
    else if (lane > 0 && task.after.empty())
      begin.hold(stream);
    for (const int other : task.after) {
      ends[static_cast<size_t>(other)]->hold(stream);
      follow(other);
    }
    cuda::capture.pending = pending;
    cuda::capture.own = task.writes;
    cuda::capture.launched = false;
    task.work({device, stream.stream});
    if (is_awaited[i]) (ends[i] = std::make_unique<Event>())->record(stream);
    last[lane] = static_cast<int>(i);
  }
  for (size_t lane = 1; lane < streams.size(); ++lane) {
    if (last[lane] < 0) continue;
    Event end;
    end.record(*streams[lane]);
    end.hold(*streams[0]);
  }
}

}  // namespace

CudaGraph CudaGraph::capture(int device, std::span<const GraphTask> tasks) {
  if (cuda::capture.active) throw GraphError("a graph is being captured by this thread already");
  const Cuda ctx = cuda_context(device);
  CudaGraph graph;
  graph.impl_ = std::make_unique<Impl>();
  Impl& impl = *graph.impl_;
  impl.device = device;
  int lanes = 1;
  for (const GraphTask& task : tasks) lanes = std::max(lanes, task.lane + 1);
  {
    DeviceState& state = device_state(device);
    const std::lock_guard lock(state.mutex);
    Stream& stream = stream_of(state, ctx);
    add_lanes(state, stream, static_cast<size_t>(lanes) - 1);
    // Other threads go on as they are: only this one's calls are restricted.
    SINTER_CUDA_CHECK(cudaStreamBeginCapture(ctx.stream, cudaStreamCaptureModeThreadLocal));
    impl.streams.push_back(&stream);
    impl.streams.insert(impl.streams.end(), stream.lanes.begin(),
                        stream.lanes.begin() + (lanes - 1));
    for (Stream* of_lane : impl.streams) {
      impl.pools.push_back(std::make_unique<Pool>());
      impl.pools.back()->pinned = true;
      of_lane->pool = impl.pools.back().get();
      of_lane->own.pinned = true;
    }
    cuda::capture.active = true;
  }
  cudaGraph_t captured = nullptr;
  try {
    capture_tasks(device, tasks, impl.streams);
  } catch (...) {
    static_cast<void>(impl.stop(&captured));
    if (captured != nullptr) static_cast<void>(cudaGraphDestroy(captured));  // the other is thrown
    throw;
  }
  cudaError_t error = impl.stop(&captured);
  if (error != cudaSuccess) throw_cuda_error(error, __FILE__, __LINE__, "capturing a graph");
  size_t nodes = 0;
  error = cudaGraphGetNodes(captured, nullptr, &nodes);
  impl.nodes = static_cast<int64_t>(nodes);
  if (error == cudaSuccess)
    error = cudaGraphInstantiate(&impl.exec, captured, cudaGraphInstantiateFlagUseNodePriority);
  const cudaError_t destroyed = cudaGraphDestroy(captured);
  if (error != cudaSuccess) throw_cuda_error(error, __FILE__, __LINE__, "instantiating a graph");
  SINTER_CUDA_CHECK(destroyed);
  SINTER_CUDA_CHECK(cudaGraphUpload(impl.exec, ctx.stream));
  return graph;
}

void CudaGraph::replay() {
  if (!impl_) throw GraphError("replay: an empty graph");
  refuse_in_capture("the replay of a graph");
  const Cuda ctx = cuda_context(impl_->device);
  if (ctx.stream != impl_->streams[0]->stream)
    throw GraphError(
        "replay: expected the thread that captured the graph, whose stream it runs on");
  SINTER_CUDA_CHECK(cudaGraphLaunch(impl_->exec, ctx.stream));
}

}  // namespace sinter
