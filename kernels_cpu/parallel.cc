// A team of threads for every thread that calls parallel_for.
//
// The caller publishes a job, a number of chunks, and works through them itself; helpers that are
// there in time take chunks too. The caller waits for the chunks that a helper has begun, never for
// one that has not: a helper without a core, on a busy machine, costs the work it does not do and
// nothing else. (A barrier of all threads, as at the end of an OpenMP region, costs a time slice of
// the scheduler at every region then.)
#include "parallel.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace sinter {
namespace {

using Chunk = void (*)(const void* context, int64_t chunk);

// Waiting: a spell in the processor, since the next job is usually microseconds away; then with the
// core offered to others at every turn; then asleep.
constexpr auto kSpin = std::chrono::microseconds(20), kYield = std::chrono::microseconds(200);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until ready() or until kYield is over; returns ready().
template <class F> bool wait_awake(const F& ready, bool forever) {
  using Clock = std::chrono::steady_clock;
  constexpr int kTurns = 16;  // between looks at the clock, which takes as long as a pause
  for (int i = 0; i < kTurns; ++i) {
    if (ready()) return true;
    pause();
  }
  const auto begin = Clock::now();
  for (auto waited = Clock::duration::zero(); forever || waited < kYield;
       waited = Clock::now() - begin) {
    for (int i = 0; i < kTurns; ++i) {
      if (ready()) return true;
      pause();
    }
    if (waited > kSpin) std::this_thread::yield();
  }
  return false;
}

thread_local bool in_region = false;

class Team {
 public:
  static constexpr int64_t kMostChunks = int64_t{1} << 30;

  ~Team() { resize(0); }

  // Calls f(context, i) for i < count, on this thread and `helpers` others.
  void run(int helpers, uint32_t count, Chunk f, const void* context) {
    if (helpers != wanted_) resize(helpers);
    // No chunk of the last job is left, so nobody reads these.
    f_.store(f, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    failed_.store(false, std::memory_order_relaxed);
    open_.store((++job_ << 32) + kNone + count);  // in one order with sleepers_: a helper sees the
                                                  // job, or is seen asleep
    if (sleepers_.load() > 0) {
      { const std::lock_guard lock(mutex_); }
      wake_.notify_all();
    }
    const uint32_t own = take_chunks();
    if (own < count) {
      wait_awake([&] { return done_.load(std::memory_order_acquire) + own == count; }, true);
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  // The low half of open_ when no chunk is left. It goes below that by one for every thread that
  // looks for another chunk in vain, and stays far from 0.
  static constexpr uint64_t kNone = uint64_t{1} << 31;

  // Runs chunks until none is left; returns how many.
  uint32_t take_chunks() {
    for (uint32_t taken = 0;;) {
      // An addition, not an exchange that could fail: with many threads at it, each of them has the
      // cache line once for a chunk.
      const uint64_t left = open_.fetch_sub(1, std::memory_order_acq_rel) & 0xffffffff;
      if (left <= kNone) return taken;
      // Of the chunk's job, which may be a later one than the caller saw, and stay so until the
      // chunk is done.
      const int64_t chunk =
          count_.load(std::memory_order_relaxed) - static_cast<int64_t>(left - kNone);
      run_chunk(f_.load(std::memory_order_relaxed), context_.load(std::memory_order_relaxed),
                chunk);
      ++taken;
      if (left == kNone + 1) return taken;
    }
  }

  void run_chunk(Chunk f, const void* context, int64_t chunk) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      f(context, chunk);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  void help() {
    in_region = true;
    uint64_t seen = 0;
    const auto new_job = [&] {
      return open_.load(std::memory_order_acquire) >> 32 != seen ||
             stop_.load(std::memory_order_relaxed);
    };
    for (;;) {
      if (!wait_awake(new_job, false)) {
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return open_.load() >> 32 != seen || stop_.load(); });
        sleepers_.fetch_sub(1);
      }
      if (stop_.load(std::memory_order_relaxed)) return;
      // Before the chunks: if a next job comes meanwhile, it is looked at in its turn.
      seen = open_.load(std::memory_order_acquire) >> 32;
      const uint32_t taken = take_chunks();
      // What the chunks wrote is the caller's with this.
      if (taken > 0) done_.fetch_add(taken, std::memory_order_release);
    }
  }

  void resize(int helpers) {
    if (!threads_.empty()) {
      {
        const std::lock_guard lock(mutex_);
        stop_.store(true);
      }
      wake_.notify_all();
      for (std::thread& t : threads_) t.join();
      stop_.store(false);
      threads_.clear();
    }
    wanted_ = helpers;
    try {
      while (static_cast<int>(threads_.size()) < helpers) threads_.emplace_back([this] { help(); });
    } catch (const std::system_error&) {
      // No more threads are to be had; those that are there do.
    }
  }

  // The number of the job, and below it kNone and how many of its chunks nobody has taken.
  alignas(64) std::atomic<uint64_t> open_{kNone};
  std::atomic<Chunk> f_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<uint32_t> count_{0};
  alignas(64) std::atomic<uint32_t> done_{0};  // chunks that helpers have run
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // written by whoever set failed_
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
  uint64_t job_ = 0;
  int wanted_ = 0;
};

// This thread's team. A process forked from one with a team has the team's memory and none of its
// threads: it does without, and leaves the memory alone.
class OwnTeam {
 public:
  ~OwnTeam() {
    if (process_ == getpid()) delete team_;
  }

  Team* get() {
    const pid_t process = getpid();
    if (team_ == nullptr) {
      team_ = new Team;
      process_ = process;
    }
    return process_ == process ? team_ : nullptr;
  }

 private:
  Team* team_ = nullptr;
  pid_t process_ = 0;
};

}  // namespace

// ---- memory of a chunk --------------------------------------------------------------------------

namespace {

// What this thread keeps for its chunks: a block as large as they needed at once so far.
struct Arena {
  static constexpr size_t kMost = size_t{4} << 20;

  std::byte* block = nullptr;
  size_t size = 0, used = 0, live = 0, wanted = 0;

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { deallocate(Cpu{}, block, size); }
};
thread_local Arena arena;

}  // namespace

void* take_local(size_t bytes) {
  Arena& a = arena;
  if (a.live == 0 && a.wanted > a.size) {
    deallocate(Cpu{}, std::exchange(a.block, nullptr), std::exchange(a.size, 0));
    a.block = static_cast<std::byte*>(allocate(Cpu{}, a.wanted));
    a.size = a.wanted;
  }
  const bool fits = a.size - a.used >= bytes;
  void* p = fits ? a.block + a.used : allocate(Cpu{}, bytes);
  if (fits) a.used += bytes;
  a.live += bytes;
  if (a.live <= Arena::kMost) a.wanted = std::max(a.wanted, a.live);
  return p;
}

void give_local(void* p, size_t bytes) noexcept {
  Arena& a = arena;
  a.live -= bytes;
  if (bytes == 0 || (a.block != nullptr && p >= a.block && p < a.block + a.size)) {
    a.used -= bytes;
  } else {
    deallocate(Cpu{}, p, bytes);
  }
}

// ---- regions ------------------------------------------------------------------------------------

void wait_until(bool (*ready)(const void*), const void* context) {
  wait_awake([&] { return ready(context); }, true);
}

void run_chunks(int64_t count, Chunk f, const void* context) {
  const int threads = num_threads();
  if (threads > 1 && count > 1 && count <= Team::kMostChunks && !in_region) {
    thread_local OwnTeam own;
    if (Team* team = own.get(); team != nullptr) {
      struct Region {
        Region() { in_region = true; }
        ~Region() { in_region = false; }
      } const region;
      return team->run(threads - 1, static_cast<uint32_t>(count), f, context);
    }
  }
  for (int64_t i = 0; i < count; ++i) f(context, i);
}

}  // namespace sinter
