// A team of threads for every thread that calls parallel_for.
//
// The caller cuts a job's chunks into one range a thread and works through its own; helpers that
// are there in time do the same. Whoever is through takes chunks from the others' ranges. So the
// same thread gets the same images in one layer after the other, in its own cache, and counts down
// a number that is seldom another's. The caller waits for the chunks that a helper has begun, never
// for one that has not: a helper without a core, on a busy machine, costs the work it does not do
// and nothing else. (A barrier of all threads, as at the end of an OpenMP region, costs a time
// slice of the scheduler at every region then.)
#include "kernels_cpu/runtime/parallel.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
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

  ~Team() { end_threads(); }

  // Calls f(context, i) for i < count, on this thread and `helpers` others.
  void run(int helpers, uint32_t count, Chunk f, const void* context) {
    if (helpers != helpers_) resize(helpers);
    // No chunk of the last job is left, so nobody reads these.
    f_ = f;
    context_ = context;
    count_ = count;
    done_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    failed_.store(false, std::memory_order_relaxed);
    for (uint32_t r = 0; r < ranges(); ++r) {
      const uint32_t chunks = first_of(r + 1) - first_of(r);
      if (chunks > 0) range_[r].left.store(kNone + chunks, std::memory_order_release);
    }
    job_.fetch_add(1);  // in one order with sleepers_: a helper sees the job, or is seen asleep
    if (sleepers_.load() > 0) {
      { const std::lock_guard lock(mutex_); }
      wake_.notify_all();
    }
    const uint32_t own = take_chunks(0);
    if (own < count)
      wait_awake([&] { return done_.load(std::memory_order_acquire) + own == count; }, true);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  // A range without chunks. `left` goes below that by one for every thread that looks for another
  // chunk in vain, and stays far from 0.
  static constexpr uint32_t kNone = uint32_t{1} << 31;
  // kNone and how many chunks of a range nobody has taken. Two lines apart: processors fetch pairs.
  struct alignas(128) Range {
    std::atomic<uint32_t> left{kNone};
  };

  uint32_t ranges() const { return static_cast<uint32_t>(helpers_) + 1; }
  uint32_t first_of(uint32_t range) const {
    return static_cast<uint32_t>(uint64_t{count_} * range / ranges());
  }

  // Runs chunks until none is left, from range `own` first; returns how many.
  uint32_t take_chunks(uint32_t own) {
    uint32_t taken = 0;
    for (uint32_t i = 0; i < ranges(); ++i) {
      const uint32_t r = own + i < ranges() ? own + i : own + i - ranges();
      std::atomic<uint32_t>& left = range_[r].left;
      while (left.load(std::memory_order_relaxed) > kNone) {
        const uint32_t before = left.fetch_sub(1, std::memory_order_acq_rel);
        if (before <= kNone) break;
        // Of the chunk's job, which may be a later one than the caller saw, and stay so until the
        // chunk is done.
        run_chunk(first_of(r + 1) - (before - kNone));
        ++taken;
      }
    }
    return taken;
  }

  void run_chunk(uint32_t chunk) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      f_(context_, chunk);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  void help(uint32_t own) {
    in_region = true;
    uint64_t seen = 0;
    const auto new_job = [&] {
      return job_.load(std::memory_order_acquire) != seen || stop_.load(std::memory_order_relaxed);
    };
    for (;;) {
      if (!wait_awake(new_job, false)) {
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return job_.load() != seen || stop_.load(); });
        sleepers_.fetch_sub(1);
      }
      if (stop_.load(std::memory_order_relaxed)) return;
      // Before the chunks: if a next job comes meanwhile, it is looked at in its turn.
      seen = job_.load(std::memory_order_acquire);
      const uint32_t taken = take_chunks(own);
      // What the chunks wrote is the caller's with this.
      if (taken > 0) done_.fetch_add(taken, std::memory_order_release);
    }
  }

  void end_threads() {
    if (threads_.empty()) return;
    {
      const std::lock_guard lock(mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
    stop_.store(false);
    threads_.clear();
  }

  void resize(int helpers) {
    end_threads();
    range_ = std::make_unique<Range[]>(static_cast<size_t>(helpers) + 1);
    helpers_ = helpers;
    job_.store(0);
    try {
      while (static_cast<int>(threads_.size()) < helpers)
        threads_.emplace_back(
            [this, own = static_cast<uint32_t>(threads_.size()) + 1] { help(own); });
    } catch (const std::exception&) {  // system_error, bad_alloc
      // No more threads are to be had; the others take their chunks.
    }
  }

  // A job, written by the caller while no chunk is left. Who takes a chunk sees what was written
  // before the chunk was there to be taken.
  Chunk f_ = nullptr;
  const void* context_ = nullptr;
  uint32_t count_ = 0;
  std::unique_ptr<Range[]> range_;  // one a thread, the caller's first
  int helpers_ = -1;
  std::vector<std::thread> threads_;
  std::exception_ptr error_;  // written by whoever set failed_
  std::atomic<bool> failed_{false};

  alignas(128) std::atomic<uint64_t> job_{0};  // its number
  std::atomic<bool> stop_{false};
  alignas(128) std::atomic<uint32_t> done_{0};  // chunks that helpers have run
  alignas(128) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Whether this thread has destroyed its team already: objects of the thread, and on the main thread
// static ones, that are destroyed later may still compute.
thread_local bool team_gone = false;

// This thread's team. A process forked from one with a team has the team's memory and none of its
// threads: it does without, and leaves the memory alone.
class OwnTeam {
 public:
  ~OwnTeam() {
    team_gone = true;
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

// What this thread keeps for its chunks: a block as large as they needed at once so far. Without a
// destructor, since objects that are destroyed after the block's owner may still compute.
struct Arena {
  static constexpr size_t kMost = size_t{4} << 20;

  std::byte* block = nullptr;
  size_t size = 0, used = 0, live = 0, wanted = 0;
  bool gone = false;

  void resize(size_t bytes) {
    detail::deallocate(Cpu{}, std::exchange(block, nullptr), std::exchange(size, 0));
    if (bytes == 0) return;
    block = static_cast<std::byte*>(detail::allocate(Cpu{}, bytes));
    size = bytes;
  }
};
thread_local Arena arena;

struct ArenaOwner {
  ~ArenaOwner() {
    arena.resize(0);
    arena.gone = true;
  }
};

}  // namespace

void* take_local(size_t bytes) {
  Arena& a = arena;
  if (a.live == 0 && a.wanted > a.size && !a.gone) {
    thread_local const ArenaOwner owner;
    a.resize(a.wanted);
  }
  const bool fits = a.size - a.used >= bytes;
  void* p = fits ? a.block + a.used : detail::allocate(Cpu{}, bytes);
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
    detail::deallocate(Cpu{}, p, bytes);
  }
}

// ---- regions ------------------------------------------------------------------------------------

void run_chunks(int64_t count, Chunk f, const void* context) {
  const int threads = num_threads();
  if (threads > 1 && count > 1 && count <= Team::kMostChunks && !in_region && !team_gone) {
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
