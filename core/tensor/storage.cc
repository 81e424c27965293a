#include "core/tensor/storage.h"

#include <algorithm>

#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "sinter/check.h"
#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"

namespace sinter {

namespace {

std::atomic<int64_t> live_storage_count{0};
std::atomic<uint64_t> numbers{0};

}  // namespace

int64_t live_storages() { return live_storage_count.load(std::memory_order_relaxed); }

Storage::Storage(Device device, size_t bytes, Virtual)
    : bytes(bytes), device(device), number(++numbers) {
  live_storage_count.fetch_add(1, std::memory_order_relaxed);
}

Storage::Storage(Device device, size_t bytes) : Storage(device, bytes, Virtual()) {
  allocate_own();
}

Storage::~Storage() {
  free_own();
  live_storage_count.fetch_sub(1, std::memory_order_relaxed);
}

void Storage::free_own() {
  if (owner != nullptr || data == nullptr) return;
  if constexpr (cuda_built()) {
    if (device.is_cuda()) return detail::deallocate(cuda_, data, bytes, users_);
  }
  detail::deallocate(Cpu{}, data, bytes);
}

void Storage::allocate_own() {
  free_own();
  data = nullptr;
  with_context(device, [&](const auto& ctx) {
    data = detail::allocate(ctx, bytes);
    if constexpr (std::is_same_v<std::decay_t<decltype(ctx)>, Cuda>) {
      cuda_ = ctx;
      owner_stream_ = cuda_stream(device.index);
    }
  });
  owner = nullptr;
}

void Storage::point_to(void* address, std::shared_ptr<void> its_owner) {
  free_own();
  data = address;
  owner = std::move(its_owner);
}

std::byte* Storage::use() {
  if (data == nullptr) {
    throw GraphError(
        "this array was made while a program was recorded, and has no values: what keeps it must "
        "be "
        "made outside of the compiled function, or returned by it");
  }
  if (device.is_cuda()) note_user();
  return static_cast<std::byte*>(data);
}

void Storage::note_user() {
  if constexpr (cuda_built()) {
    CUstream_st* const stream = cuda_stream(device.index);
    if (stream == owner_stream_ || stream == last_user_.load(std::memory_order_relaxed)) return;
    const std::lock_guard lock(mutex_);
    if (std::find(users_.begin(), users_.end(), stream) == users_.end()) users_.push_back(stream);
    last_user_.store(stream, std::memory_order_relaxed);
  }
}

}  // namespace sinter
