// Threads and memory of the CPU backend.
#include "sinter/runtime.h"

#include <array>
#include <atomic>
#include <bit>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

#include "sinter/check.h"

namespace sinter {
namespace {

// Cores in the affinity mask: what taskset, a container's cpuset or a batch system left us.
int available_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? static_cast<int>(n) : 1;
}

std::atomic<int>& threads() {
  static std::atomic<int> n{available_cores()};
  return n;
}

std::atomic<ConvAlgo> chosen_conv_algo{ConvAlgo::kAuto};
std::atomic<bool> tf32_allowed{false};

// In ConvAlgo's order.
constexpr std::array kConvAlgoNames = {"auto",          "naive",       "direct",  "im2col",
                                       "implicit-gemm", "tensor-core", "winograd"};

constexpr size_t kAlignment = 64;  // a cache line and an AVX-512 vector

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kReuse = false;  // hand blocks straight back, so that a stale pointer is seen
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr bool kReuse = false;
#else
constexpr bool kReuse = true;
#endif
#else
constexpr bool kReuse = true;
#endif

// Blocks come in size classes, four to each power of two, so at most a fifth of a block is unused.
struct SizeClass {
  int index;
  size_t bytes;
};
SizeClass size_class(size_t bytes) {
  constexpr size_t kSmallest = 256;
  if (bytes <= kSmallest) return {0, kSmallest};
  const int exponent = std::bit_width(bytes - 1) - 1;  // 2^exponent < bytes <= 2^(exponent + 1)
  const size_t step = size_t{1} << (exponent - 2);
  const size_t steps = (bytes - 1) / step + 1;  // 5, 6, 7 or 8
  return {4 * (exponent - 8) + static_cast<int>(steps) - 4, steps * step};
}

// Freed blocks, one stack a class. What is kept is bounded by twice the most that was ever in use:
// a training step, whose classes peak at different times, fits; what an earlier phase left behind
// is given back when a new phase needs the room.
class BlockCache {
 public:
  void* take(const SizeClass& c) {
    const std::lock_guard lock(mutex_);
    in_use_ += c.bytes;
    peak_ = std::max(peak_, in_use_);
    auto& stack = free_[c.index];
    if (stack.empty()) return nullptr;
    void* p = stack.back();
    stack.pop_back();
    kept_ -= c.bytes;
    return p;
  }

  // Throws bad_alloc if the list of blocks cannot grow; the block is then still the caller's.
  void give(const SizeClass& c, void* p) {
    const std::lock_guard lock(mutex_);
    in_use_ -= c.bytes;
    if (kept_ + c.bytes > 2 * peak_) trim();
    free_[c.index].push_back(p);
    kept_ += c.bytes;
  }

  void forget(const SizeClass& c) {
    const std::lock_guard lock(mutex_);
    in_use_ -= c.bytes;
  }

  void release() {
    const std::lock_guard lock(mutex_);
    trim();
  }

 private:
  void trim() {
    for (auto& stack : free_) {
      for (void* p : stack) ::operator delete (p, std::align_val_t{kAlignment});
      stack.clear();
    }
    kept_ = 0;
  }

  std::mutex mutex_;
  std::array<std::vector<void*>, 4 * 56 + 5> free_;
  size_t in_use_ = 0, peak_ = 0, kept_ = 0;
};

// Never destroyed: tensors in static storage may outlive any order of destruction we could choose.
BlockCache& cache() {
  static BlockCache* c = new BlockCache;
  return *c;
}

}  // namespace

void set_num_threads(int n) {
  require<ValueError>(n >= 1, "set_num_threads: ", n, ", expected at least 1");
  threads().store(n, std::memory_order_relaxed);
}

int num_threads() { return threads().load(std::memory_order_relaxed); }

void set_conv_algo(ConvAlgo algo) { chosen_conv_algo.store(algo, std::memory_order_relaxed); }
ConvAlgo conv_algo() { return chosen_conv_algo.load(std::memory_order_relaxed); }

const char* name(ConvAlgo algo) { return kConvAlgoNames[static_cast<size_t>(algo)]; }

ConvAlgo conv_algo_named(const std::string& name) {
  std::string names;
  for (size_t i = 0; i < kConvAlgoNames.size(); ++i) {
    if (name == kConvAlgoNames[i]) return static_cast<ConvAlgo>(i);
    names += str(i > 0 ? ", " : "", kConvAlgoNames[i]);
  }
  throw ValueError(str("conv_algo_named: expected one of ", names, ", got '", name, "'"));
}

void set_allow_tf32(bool allow) { tf32_allowed.store(allow, std::memory_order_relaxed); }
bool allow_tf32() { return tf32_allowed.load(std::memory_order_relaxed); }

void* allocate(const Cpu&, size_t bytes) {
  constexpr size_t kLargest = size_t{1} << 62;
  const auto fail = [&] {
    throw OutOfMemoryError(str("out of host memory: cannot allocate ", bytes, " bytes"));
  };
  if (bytes > kLargest) fail();
  const SizeClass c = size_class(bytes);
  if (void* p = cache().take(c)) return p;
  constexpr std::align_val_t kAlign{kAlignment};
  void* p = ::operator new(c.bytes, kAlign, std::nothrow);
  if (p == nullptr) {
    cache().release();
    p = ::operator new(c.bytes, kAlign, std::nothrow);
  }
  if (p == nullptr) {
    cache().forget(c);
    fail();
  }
  return p;
}

void deallocate(const Cpu&, void* p, size_t bytes) noexcept {
  if (p == nullptr) return;
  const SizeClass c = size_class(bytes);
  if constexpr (kReuse) {
    try {
      cache().give(c, p);
      return;
    } catch (const std::bad_alloc&) {
      // No room to remember the block: let it go.
    }
  } else {
    cache().forget(c);
  }
  ::operator delete (p, std::align_val_t{kAlignment});
}

}  // namespace sinter
