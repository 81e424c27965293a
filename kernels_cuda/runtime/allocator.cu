// Memory: blocks from the driver's chunks, handed out again in a stream's order.
#include <algorithm>
#include <exception>
#include <utility>

#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "kernels_cuda/runtime/state.cuh"

namespace sinter {
namespace cuda {
namespace {

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

}  // namespace

void* permanent_memory(const Cuda& ctx, size_t bytes) {
  DeviceState& device = device_state(ctx.device);
  const std::lock_guard lock(device.mutex);
  return driver_malloc(device, ctx.device, bytes, bytes, bytes);
}

}  // namespace cuda

using namespace cuda;

void* detail::allocate(const Cuda& ctx, size_t asked) {
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

void detail::deallocate(const Cuda& ctx, void* p, size_t,
                        std::span<CUstream_st* const> others) noexcept {
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

}  // namespace sinter
