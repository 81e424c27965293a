// The CPU kernels' threads.
#include "kernels_cpu/runtime/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/values.h"

namespace sinter::test {
namespace {

// Whether every chunk below `count` ran once.
bool each_once(int64_t count) {
  std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
  parallel_for(count, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
  for (const auto& n : runs) {
    if (n != 1) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("parallel: every chunk runs once", "[parallel]") {
  for (int threads : {1, 2, 3, 8, 2, 16}) {
    const Threads set(threads);
    INFO(threads << " threads");
    for (int64_t count : {0, 1, 2, 3, 7, 64, 1000}) CHECK(each_once(count));
    bool all = true;  // many jobs in a row: helpers may still be busy with the one before
    for (int job = 0; job < 3000; ++job) all = all && each_once(job % 5);
    CHECK(all);
  }
}

TEST_CASE("parallel: helpers that fell asleep are woken", "[parallel]") {
  const Threads set(3);
  for (int job = 0; job < 20; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    // Two chunks that wait for each other need two threads.
    std::atomic<int> here{0};
    parallel_for(2, [&](int64_t) {
      ++here;
      while (here < 2) std::this_thread::yield();
    });
    CHECK(here == 2);
  }
}

TEST_CASE("parallel: others take over the chunks of a thread that is held up", "[parallel]") {
  for (int threads : {2, 3, 8}) {
    const Threads set(threads);
    std::atomic<int> others{0};
    parallel_for(40, [&](int64_t i) {
      // Chunk 0 ends behind those that lie after it in its thread's range.
      if (i > 0)
        ++others;
      else
        while (others < 39) std::this_thread::yield();
    });
    CHECK(others == 39);
  }
}

TEST_CASE("parallel: what chunks wrote is seen afterwards", "[parallel]") {
  const Threads set(4);
  std::vector<int64_t> values(257);
  for (int64_t job = 0; job < 500; ++job) {
    parallel_for(257, [&](int64_t i) { values[static_cast<size_t>(i)] += i * job; });
  }
  bool right = true;
  for (int64_t i = 0; i < 257; ++i) right = right && values[static_cast<size_t>(i)] == i * 124750;
  CHECK(right);
}

TEST_CASE("parallel: inside a chunk it runs serially", "[parallel]") {
  const Threads set(4);
  std::atomic<int> elsewhere{0}, runs{0};
  parallel_for(8, [&](int64_t) {
    const std::thread::id here = std::this_thread::get_id();
    parallel_for(8, [&](int64_t) {
      ++runs;
      elsewhere += std::this_thread::get_id() != here;
    });
  });
  CHECK(runs == 64);
  CHECK(elsewhere == 0);
}

TEST_CASE("parallel: an exception reaches the caller, and the next job is whole", "[parallel]") {
  for (int threads : {1, 4}) {
    const Threads set(threads);
    for (int job = 0; job < 50; ++job) {
      CHECK_THROWS_AS(parallel_for(20,
                                   [&](int64_t i) {
                                     if (i == job % 20) throw std::runtime_error("chunk");
                                   }),
                      std::runtime_error);
      CHECK(each_once(20));
    }
  }
}

TEST_CASE("parallel: callers side by side do not disturb each other", "[parallel]") {
  const Threads set(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 300; ++job) wrong += !each_once(1 + job % 9);
    });
  }
  for (std::thread& t : callers) t.join();
  CHECK(wrong == 0);
}

TEST_CASE("parallel: a forked process goes on alone", "[parallel]") {
  const Threads set(3);
  REQUIRE(each_once(30));
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(each_once(30) && each_once(3) ? 0 : 1);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

}  // namespace sinter::test
