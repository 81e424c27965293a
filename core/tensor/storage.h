// The memory behind tensors. Private to core.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "sinter/runtime.h"
#include "sinter/shape.h"

namespace sinter {

// A block of a device's memory: of its own, or of a program. A virtual one, made while a program is
// recorded, has none.
struct Storage : std::enable_shared_from_this<Storage> {
  Storage(Device device, size_t bytes);
  struct Virtual {};
  Storage(Device device, size_t bytes, Virtual);
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage();

  // Memory of its own, instead of what it has or has not; nothing is copied.
  void allocate_own();
  // Memory that is `owner`'s, instead; null for none.
  void point_to(void* data, std::shared_ptr<void> owner);
  // The address, for work of the calling thread. Throws GraphError if there is no memory.
  std::byte* use();

  void* data = nullptr;
  size_t bytes;
  Device device;
  const uint64_t number;        // never used again
  std::shared_ptr<void> owner;  // null: the block is this storage's own
  std::atomic<uint64_t> version{0};
  std::atomic<int> programs{0};  // that hold it

 private:
  void note_user();

  void free_own();

  Cuda cuda_;  // where its own block was allocated: it goes back to the stream that may reuse it
  // Streams of other threads that were given the address: their work may go on when the last tensor
  // is gone.
  CUstream_st* owner_stream_ = nullptr;
  std::vector<CUstream_st*> users_;
  std::atomic<CUstream_st*> last_user_{nullptr};
  std::mutex mutex_;
};

}  // namespace sinter
