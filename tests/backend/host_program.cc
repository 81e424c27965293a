// A program around the library, for what only a process of its own can show: how it ends, and how
// it lives in little memory. It exits with 0 if all is well.
#include <sinter/sinter.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace sinter;

void expect(bool right, const char* when, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s: wrong: %s\n", when, what);
  std::_Exit(1);
}

bool all_are(const Tensor& t, float value) {
  for (const float v : t.to_vector<float>()) {
    if (!(v == value)) return false;
  }
  return true;
}

// Large enough for a team of threads and for their memory; small whole numbers are exact.
void compute(const char* when) {
  const Tensor a = full({200, 150}, 2.0), b = full({150, 300}, 3.0);
  expect(all_are(matmul(a, b), 900), when, "matmul");

  const Tensor x = ones({16, 8, 12, 12}).set_requires_grad(true);
  const Tensor w = ones({32, 8, 3, 3}).set_requires_grad(true);
  const Tensor y = relu(conv2d(x, w));
  expect(all_are(y, 72), when, "conv2d");
  sum(y).backward();
  expect(all_are(w.grad(), 16 * 100), when, "the gradient of conv2d's weights");
  expect(x.grad().to_vector<float>()[0] == 32, when, "the gradient of conv2d's input");

  const Tensor v = ones({4, 100}).set_requires_grad(true);
  SGD step({v}, {.lr = 0.5});
  sum(linear(ones({64, 100}), v)).backward();
  step.step();
  expect(all_are(v, 1 - 32), when, "a step of SGD");
}

struct ComputesAtEnd {
  const char* when;
  Tensor kept = ones({1000});  // freed late, too
  ~ComputesAtEnd() {
    compute(when);
    expect(all_are(kept, 1), when, "a tensor that was kept");
  }
};

// ---- how it ends --------------------------------------------------------------------------------

ComputesAtEnd of_namespace{"static, of a namespace"};

void end_with_objects() {
  set_num_threads(4);
  // Destroyed behind what the kernels keep for the thread, which is made later.
  thread_local ComputesAtEnd before{"thread_local, made before the first kernel"};
  static ComputesAtEnd static_before{"static, made before the first kernel"};
  compute("main");
  thread_local ComputesAtEnd after{"thread_local, made after a kernel"};
  static ComputesAtEnd static_after{"static, made after a kernel"};
  std::thread([] {
    thread_local ComputesAtEnd early{"thread_local of a thread, made before its first kernel"};
    compute("a thread");
    thread_local ComputesAtEnd late{"thread_local of a thread, made after a kernel"};
  }).join();
  std::thread([] {
    thread_local ComputesAtEnd only{"thread_local of a thread without other kernels"};
  }).join();
  // A thread that outlives main, with its team.
  std::thread([] {
    compute("a thread that stays");
    for (;;) pause();
  }).detach();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

void end_with_busy_threads() {
  set_num_threads(2);
  for (int i = 0; i < 2; ++i) {
    std::thread([] {
      for (;;) compute("a thread that goes on");
    }).detach();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
}

// ---- little memory ------------------------------------------------------------------------------

size_t address_space() {
  std::ifstream in("/proc/self/statm");
  size_t pages = 0;
  in >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// In a process of its own, which ends with 0 if it could multiply, and with 3 if it was told that
// there is no memory.
int multiply_within(size_t more_bytes, int threads) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    const rlim_t space = address_space() + more_bytes;
    const rlimit limit{space, space};
    expect(setrlimit(RLIMIT_AS, &limit) == 0, "little memory", "setrlimit");
    set_num_threads(threads);
    try {
      for (int i = 0; i < 3; ++i) compute("little memory");
    } catch (const OutOfMemoryError&) {
      std::_Exit(3);
    }
    std::_Exit(0);
  }
  int status = -1;
  expect(child > 0 && waitpid(child, &status, 0) == child, "little memory", "fork");
  expect(WIFEXITED(status), "little memory", "it hung, or was killed");
  return WEXITSTATUS(status);
}

void multiply_in_little_memory() {
  for (const int threads : {1, 2, 8}) {
    for (const size_t megabytes : {24, 100, 140, 200, 300, 600}) {
      const int code = multiply_within(megabytes << 20, threads);
      expect(code == 0 || code == 3, "little memory", "its exit code");
    }
    expect(multiply_within(size_t{1} << 30, threads) == 0, "1 GB", "not enough to multiply");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 2 ? argv[1] : "";
  if (mode == "objects") end_with_objects();
  if (mode == "busy") end_with_busy_threads();
  if (mode == "memory") multiply_in_little_memory();
  return mode == "objects" || mode == "busy" || mode == "memory" ? 0 : 2;
}
