// Threads and memory of the CPU backend.
#include "sinter/runtime.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cmath>
#include <fstream>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "core/backend/memory.h"
#include "core/base/detail.h"

#ifdef __linux__
#include <sched.h>
#endif

#include "kernels_cpu/runtime/parallel.h"
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

int default_threads() {
  const CpuLimits limits = cpu_limits();
  int n = std::min(limits.cores, kMaxThreads);
  if (limits.quota > 0 && limits.quota < n) n = static_cast<int>(std::ceil(limits.quota));
  return std::max(n, 1);
}

std::atomic<int>& threads() {
  static std::atomic<int> n{default_threads()};
  return n;
}

// The whole numbers that a file of a control group begins with; a word ("max") ends them.
std::vector<int64_t> numbers_in(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  std::vector<int64_t> numbers;
  const char* p = line.data();
  const char* const end = p + line.size();
  for (int64_t n = 0;;) {
    while (p < end && *p == ' ') ++p;
    const auto [rest, error] = std::from_chars(p, end, n);
    if (error != std::errc()) return numbers;
    numbers.push_back(n);
    p = rest;
  }
}

// The quota of one group, or 0.
double quota_of(const std::filesystem::path& group, bool version_1) {
  std::vector<int64_t> numbers = numbers_in(group / (version_1 ? "cpu.cfs_quota_us" : "cpu.max"));
  if (version_1) {
    const std::vector<int64_t> period = numbers_in(group / "cpu.cfs_period_us");
    numbers.insert(numbers.end(), period.begin(), period.end());
  }
  if (numbers.size() < 2 || numbers[0] <= 0 || numbers[1] <= 0) return 0;  // -1: none
  return static_cast<double>(numbers[0]) / static_cast<double>(numbers[1]);
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

double cgroup_quota(const std::filesystem::path& membership, const std::filesystem::path& root) {
  double least = 0;
  std::ifstream in(membership);
  for (std::string line; std::getline(in, line);) {  // "0::/a/b", "4:cpu,cpuacct:/a/b"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_1 = !controllers.empty();
    if (version_1 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    // Where a version's groups are mounted, alone or beside the other's.
    const std::vector<std::string> mounts =
        version_1 ? std::vector<std::string>{"cpu", "cpu,cpuacct", "cpuacct,cpu"}
                  : std::vector<std::string>{"", "unified"};
    for (const std::string& mount : mounts) {
      // A container may see its own group as the root, and a path that leads nowhere.
      std::filesystem::path path = std::filesystem::path(line.substr(second + 1)).relative_path();
      if (path.lexically_normal().string().starts_with("..")) path.clear();
      for (;; path = path.parent_path()) {
        const double quota = quota_of(root / mount / path, version_1);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
        if (path.empty()) break;
      }
    }
  }
  return least;
}

CpuLimits cpu_limits() {
  return {available_cores(), cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup")};
}

void set_num_threads(int n) {
  require<ValueError>(1 <= n && n <= kMaxThreads, "set_num_threads: ", n, ", expected 1 to ",
                      kMaxThreads);
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

void* detail::allocate(const Cpu&, size_t bytes) {
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

void release_cached_memory(const Cpu&) { cache().release(); }

void detail::deallocate(const Cpu&, void* p, size_t bytes) noexcept {
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
