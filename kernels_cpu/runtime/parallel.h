// Threads and scratch memory of the CPU kernels.
//
// Work is cut into chunks by the geometry alone and each chunk computes the same numbers whoever
// runs it, so results do not depend on the number of threads or on the schedule.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "core/backend/memory.h"
#include "sinter/operand.h"
#include "sinter/runtime.h"

namespace sinter {

// Elements below which a chunk of light element-wise work is not worth waking a thread for.
inline constexpr int64_t kGrain = 16384;

// parallel_for without the template, in parallel.cc: the only place that wakes threads.
void run_chunks(int64_t count, void (*f)(const void* context, int64_t chunk), const void* context);

// Calls f(i) once for every i < count, on up to num_threads() threads, and returns when all are
// done. The first exception stops the chunks not yet begun and is rethrown here. Inside another
// parallel_for it runs serially.
template <class F> void parallel_for(int64_t count, const F& f) {
  run_chunks(
      count, [](const void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, &f);
}

// Calls f(begin, end) for consecutive ranges of at most `grain` that cover [0, n).
template <class F> void parallel_ranges(int64_t n, int64_t grain, const F& f) {
  parallel_for((n + grain - 1) / grain,
               [&](int64_t chunk) { f(chunk * grain, std::min(n, (chunk + 1) * grain)); });
}

// How many items of `work` elements each make up a range worth a chunk.
inline int64_t items_per_grain(int64_t work) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work));
}

// Gives the blocks that allocate() would reuse back to the C library.
void release_cached_memory(const Cpu&);

// The least quota of processor time, in cores, of a process's control groups and those above them;
// 0: no limit. membership: its /proc/self/cgroup; root: where the groups are mounted, of version 1,
// 2 or both. What cannot be read sets no limit.
double cgroup_quota(const std::filesystem::path& membership, const std::filesystem::path& root);

// Uninitialized memory that lives as long as the object, from the cache behind allocate().
template <class T> class Scratch {
 public:
  explicit Scratch(int64_t n)
      : bytes_(static_cast<size_t>(n) * sizeof(T)),
        data_(static_cast<T*>(detail::allocate(Cpu{}, bytes_))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { detail::deallocate(Cpu{}, data_, bytes_); }

  T* get() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

// The same for the time of a chunk, from a block that the thread keeps: threads that allocate at
// once would wait for each other. Given back in the opposite order.
void* take_local(size_t bytes);
void give_local(void* p, size_t bytes) noexcept;
template <class T> class LocalScratch {
 public:
  explicit LocalScratch(int64_t n)
      : bytes_((static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64),
        data_(static_cast<T*>(take_local(bytes_))) {}
  LocalScratch(const LocalScratch&) = delete;
  LocalScratch& operator=(const LocalScratch&) = delete;
  ~LocalScratch() { give_local(data_, bytes_); }

  T* get() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

}  // namespace sinter
