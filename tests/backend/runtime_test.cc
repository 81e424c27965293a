#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <locale>
#include <memory>
#include <sstream>
#include <thread>

#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "kernels_cpu/runtime/parallel.h"
#include "tests/support/temp_dir.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

// What a training step does to memory: every operator, forward and backward, and an update.
struct Step {
  explicit Step(Device device)
      : x(tensor(noise({8, 3, 14, 13}, 1), {kFloat32, device})),
        labels(zeros({8}, {kInt64, device})) {
    net.to(device);
    optimizer = std::make_unique<Adam>(net.parameters());
  }
  void operator()() {
    const Tensor loss = cross_entropy(mean(net(x), {2}) * 2.0 + 1.0, labels);
    optimizer->zero_grad();
    loss.backward();
    optimizer->step();
  }
  struct Net : Module {
    Conv2d conv{3, 8, 3, {.padding = 1}};
    Linear fc{336, 10};
    Tensor forward(const Tensor& in) override {
      const Tensor h = avg_pool2d(max_pool2d(relu(conv(in)), 2), 1);
      return fc(flatten(h, 1)).reshape({8, 10, 1});
    }
    void visit(Visitor& v) override {
      v.module("conv", conv);
      v.module("fc", fc);
    }
  } net;
  Tensor x, labels;
  std::unique_ptr<Optimizer> optimizer;
};

}  // namespace

TEST_CASE("runtime: threads", "[runtime]") {
  const int before = num_threads();
  CHECK(before >= 1);
  set_num_threads(3);
  CHECK(num_threads() == 3);
  check_throws<ValueError>([] { set_num_threads(0); }, {"set_num_threads", "0"});
  check_throws<ValueError>([] { set_num_threads(-2); }, {"set_num_threads", "-2"});
  check_throws<ValueError>([] { set_num_threads(100000); }, {"100000", "1 to 1024"});
  check_throws<ValueError>([] { set_num_threads(kMaxThreads + 1); }, {"1025"});
  CHECK(num_threads() == 3);
  // Process-wide, and harmless while other threads work.
  std::thread other([] { CHECK_NOTHROW(relu(ones({100000})).to_vector<float>()); });
  other.join();
  set_num_threads(before);
}

TEST_CASE("runtime: as many threads as there may be", "[runtime]") {
  const Threads set(kMaxThreads);
  const Tensor x = ones({1 << 21});
  CHECK(sum(relu(x)).item<double>() == 1 << 21);
  CHECK(same_bits(matmul(ones({300, 200}), ones({200, 300})), full({300, 300}, 200)));
}

TEST_CASE("runtime: the quota of processor time that control groups leave", "[runtime]") {
  const TempDir dir;
  const std::filesystem::path root = dir / "cgroup", own = dir / "self";
  const auto write = [](const std::filesystem::path& file, const std::string& text) {
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  };
  const auto quota = [&](const std::string& membership) {
    write(own, membership);
    return cgroup_quota(own, root);
  };
  CHECK(cgroup_quota(dir / "none", root) == 0);
  CHECK(quota("0::/\n") == 0);  // nothing is mounted

  // Version 2.
  write(root / "cpu.max", "max 100000\n");
  CHECK(quota("0::/\n") == 0);
  CHECK(quota("0::/nowhere/at/all\n") == 0);
  write(root / "a/cpu.max", "250000 100000\n");
  write(root / "a/b/cpu.max", "max 100000\n");
  write(root / "a/b/c/cpu.max", "400000 100000\n");
  CHECK(quota("0::/a/b/c\n") == 2.5);
  CHECK(quota("0::/a/b\n") == 2.5);
  CHECK(quota("0::/a/missing\n") == 2.5);
  CHECK(quota("0::/other\n") == 0);
  write(root / "a/b/c/cpu.max", "10000 100000\n");
  CHECK(quota("0::/a/b/c\n") == 0.1);
  // A container's root is its own group; a path outside it says nothing.
  write(root / "cpu.max", "150000 50000\n");
  CHECK(quota("0::/docker/0123\n") == 3);
  CHECK(quota("0::/../sibling\n") == 3);
  CHECK(quota("0::/\n") == 3);
  for (const char* text : {"", "max", "100000", "-1 100000", "100000 0", "0 100000", "x 1", "\n"}) {
    write(root / "cpu.max", text);
    INFO(text);
    CHECK(quota("0::/\n") == 0);
  }

  // Version 1, and both.
  write(root / "cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  write(root / "cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  const std::string both = "12:memory:/job\n4:cpuset:/job\n3:cpu,cpuacct:/job\n0::/a\n";
  CHECK(quota("3:cpu,cpuacct:/job\n") == 0);
  CHECK(quota(both) == 2.5);
  write(root / "cpu,cpuacct/job/cpu.cfs_quota_us", "125000\n");
  CHECK(quota("3:cpu,cpuacct:/job\n") == 1.25);
  CHECK(quota("3:cpu,cpuacct:/job/inner\n") == 1.25);
  CHECK(quota(both) == 1.25);
  CHECK(quota("4:cpuset:/job\n1:name=systemd:/job\n") == 0);
}

TEST_CASE("runtime: the default number of threads keeps to the limits", "[runtime]") {
  const CpuLimits limits = cpu_limits();
  CHECK(limits.cores >= 1);
  CHECK(limits.quota >= 0);
}

// The BLAS's own functions, where it is OpenBLAS.
template <class F> F* blas_function(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
}

TEST_CASE("runtime: OpenBLAS's threads are the program's", "[runtime]") {
  const auto get = blas_function<int()>("openblas_get_num_threads");
  const auto put = blas_function<void(int)>("openblas_set_num_threads");
  if (get == nullptr || put == nullptr) {
    CHECK(blas_info().name.find("OpenBLAS") == std::string::npos);
    return;
  }
  const int before = get();
  struct Product {
    int64_t m, k, n;
  };
  for (const Product& p : {Product{300, 700, 500},
                           {1, 3000, 2000},
                           {2000, 3000, 1},
                           {64, 400, 120},
                           {6, 75, 5000},
                           {577, 65, 577},
                           {1, 100000, 1},
                           {40, 30000, 3}}) {
    for (const DType dtype : {kFloat32, kFloat64}) {
      INFO(p.m << " x " << p.k << " x " << p.n << ", " << name(dtype));
      const auto product = [&](bool ta, bool tb) {
        const Tensor a = tensor(noise(ta ? Sizes{p.k, p.m} : Sizes{p.m, p.k}, 1), {dtype});
        const Tensor b = tensor(noise(tb ? Sizes{p.n, p.k} : Sizes{p.k, p.n}, 2), {dtype});
        return matmul(ta ? permute(a, {1, 0}) : a, tb ? permute(b, {1, 0}) : b);
      };
      for (const bool ta : {false, true}) {
        for (const bool tb : {false, true}) {
          put(1);
          const Tensor one = product(ta, tb);
          CHECK(get() == 1);
          put(4);
          const Tensor four = product(ta, tb);
          CHECK(get() == 4);
          CHECK(same_bits(one, four));
        }
      }
    }
  }
  // Changed while products are under way.
  const Tensor a = tensor(noise({200, 300}, 1)), b = tensor(noise({300, 250}, 2));
  const Tensor expected = matmul(a, b);
  std::atomic<bool> done{false};
  std::thread other([&] {
    for (int i = 0; !done; ++i) put(1 + i % 4);
  });
  bool same = true;
  for (int i = 0; i < 50; ++i) same = same && same_bits(matmul(a, b), expected);
  done = true;
  other.join();
  CHECK(same);
  put(before);
}

TEST_CASE("runtime: names do not follow the program's locale", "[runtime]") {
  struct Grouped : std::numpunct<char> {
    char do_thousands_sep() const override { return '.'; }
    char do_decimal_point() const override { return ','; }
    std::string do_grouping() const override { return "\3"; }
  };
  struct Global {
    std::locale before = std::locale::global(std::locale(std::locale::classic(), new Grouped));
    ~Global() { std::locale::global(before); }
  } const global;
  std::ostringstream as_the_program;
  as_the_program << 1234.5;
  REQUIRE(as_the_program.str() == "1.234,5");

  CHECK(str(1234567, " ", 0.5, " ", size_t{1000}) == "1234567 0.5 1000");
  CHECK(Shape({1000, 2000}).str() == "(1000, 2000)");
  CHECK(str(Shape({1000, 2000})) == "(1000, 2000)");
  CHECK(Device::parse("cuda:1000").str() == "cuda:1000");
  check_throws<ShapeError>([] { matmul(ones({1000, 2}), ones({3000, 1})); }, {"(1000, 2)"});
  Sequential net;
  for (int i = 0; i < 1002; ++i) net.append(Linear(1, 1));
  SGD optimizer(net.parameters(), {.momentum = 0.5});
  sum(net(ones({1, 1}))).backward();
  optimizer.step();
  const TempDir dir;
  for (const NamedTensors& state : {net.state_dict(), optimizer.state_dict()}) {
    save_safetensors(dir / "state", state);
    const NamedTensors loaded = load_safetensors(dir / "state").tensors;
    CHECK(loaded.size() == state.size());
    int thousands = 0;
    for (const auto& [key, value] : loaded) {
      INFO(key);
      CHECK(key.find("1.0") == std::string::npos);
      thousands += key.find("1001") != std::string::npos;
    }
    CHECK(thousands > 0);
  }
}

TEST_CASE("runtime: kernels called from many threads at once", "[runtime]") {
  const Tensor x = tensor(noise({16, 3, 20, 21}, 1)), w = tensor(noise({8, 3, 3, 3}, 2));
  const Tensor alone = conv2d(x, w);
  std::vector<Tensor> results(6);
  std::vector<std::thread> threads;
  for (Tensor& result : results)
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) result = conv2d(x, w);
    });
  for (std::thread& thread : threads) thread.join();
  for (const Tensor& result : results) CHECK(same_bits(result, alone));
}

TEST_CASE("runtime: an error inside a parallel kernel reaches the caller", "[runtime]") {
  const Threads set(4);
  const Tensor logits = zeros({4096, 10});
  for (int64_t place : {0, 1500, 4095}) {
    std::vector<int64_t> labels(4096, 1);
    labels[static_cast<size_t>(place)] = 77;
    check_throws<ValueError>([&] { cross_entropy(logits, from_vector(labels, {4096})); },
                             {"labels[" + std::to_string(place) + "]", "77"});
  }
}

TEST_CASE("runtime: CPU memory is aligned and reused", "[runtime]") {
  for (size_t bytes :
       {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{4097}, size_t{1} << 22}) {
    void* p = detail::allocate(Cpu{}, bytes);
    REQUIRE(p != nullptr);
    CHECK(reinterpret_cast<uintptr_t>(p) % 64 == 0);
    std::memset(p, 1, bytes);
    detail::deallocate(Cpu{}, p, bytes);
    void* again = detail::allocate(Cpu{}, bytes);
#ifndef __SANITIZE_ADDRESS__  // there blocks are not reused, so that a stale pointer is seen
    if (bytes > 0) CHECK(again == p);
#endif
    detail::deallocate(Cpu{}, again, bytes);
  }
  check_throws<OutOfMemoryError>([] { detail::allocate(Cpu{}, size_t{1} << 60); }, {});
  check_throws<OutOfMemoryError>([] { empty({int64_t{1} << 57}); }, {});
  // Handed from thread to thread.
  Tensor made;
  std::thread([&] { made = ones({1000}); }).join();
  CHECK(sum(made).item<double>() == 1000);
}

TEST_CASE("runtime: what the build uses has a name", "[runtime]") {
  CHECK(!blas_info().name.empty());
  CHECK(!simd_target().empty());
  CHECK(cuda_built() == (cuda_missing().find("-DSINTER_CUDA=ON") == std::string::npos));
}

DEVICE_TEST("runtime: a training step leaves no memory behind", "[runtime]") {
  const int64_t nodes = live_nodes(), storages = live_storages();
  {
    Step step(device);
    step();
    const int64_t nodes_now = live_nodes(), storages_now = live_storages();
    for (int i = 0; i < (under_sanitizer() ? 20 : 1000); ++i) {
      step();
      REQUIRE(live_nodes() == nodes_now);
      REQUIRE(live_storages() == storages_now);
    }
  }
  CHECK(live_nodes() == nodes);
  CHECK(live_storages() == storages);
}

#ifdef SINTER_WITH_CUDA
CUDA_TEST("runtime: after its first run a training step asks nothing of the driver", "[runtime]") {
  Step step(device);
  for (int i = 0; i < 3; ++i) step();
  synchronize(device);
  const CudaMemory before = cuda_memory(device.index);
  for (int i = 0; i < (under_sanitizer() ? 20 : 1000); ++i) step();
  synchronize(device);
  const CudaMemory after = cuda_memory(device.index);
  CHECK(after.driver_calls == before.driver_calls);
  CHECK(after.in_use == before.in_use);
  CHECK(after.reserved == before.reserved);
  CHECK(after.peak_in_use == before.peak_in_use);
}

CUDA_TEST("runtime: device memory is counted and given back", "[runtime]") {
  const size_t in_use = cuda_memory(device.index).in_use;
  {
    const Tensor t = zeros({1 << 20}, {kFloat32, device});
    CHECK(cuda_memory(device.index).in_use >= in_use + (size_t{4} << 20));
    CHECK(cuda_memory(device.index).peak_in_use >= in_use + (size_t{4} << 20));
  }
  CHECK(cuda_memory(device.index).in_use == in_use);
  CHECK(cuda_memory(device.index).reserved >= in_use + (size_t{4} << 20));
  synchronize(device);
  release_cached_memory(device.index);
  CHECK(cuda_memory(device.index).reserved < in_use + (size_t{4} << 20));
}

CUDA_TEST("runtime: more device memory than there is", "[runtime]") {
  const auto total = static_cast<int64_t>(cuda_device_info(device.index).total_bytes);
  check_throws<OutOfMemoryError>(
      [&] {
        empty({total + 1}, {kUInt8, device});
      },
      {std::to_string(total + 1)});
  CHECK(sum(ones({1000}, {kFloat32, device})).item<double>() == 1000);  // it goes on working
}

CUDA_TEST("runtime: a freed block is not written by its next owner too early", "[runtime]") {
  // Each product reads what the previous one wrote, in blocks that change hands without a wait.
  const Tensor x = tensor(noise({512, 512}, 1), {kFloat64, device});
  Tensor y = x;
  for (int i = 0; i < 200; ++i) y = (y + x) - x;
  double worst = 0;
  const std::vector<double> a = x.to_vector<double>(), b = y.to_vector<double>();
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
  CHECK(worst < 1e-12);
}

CUDA_TEST("runtime: threads allocate and free on one GPU", "[runtime]") {
  const size_t in_use = cuda_memory(device.index).in_use;
  std::vector<double> totals(4);
  std::vector<std::thread> threads;
  for (size_t k = 0; k < totals.size(); ++k)
    threads.emplace_back([&, k] {
      for (int64_t i = 1; i <= 200; ++i)
        totals[k] += sum(full({i * 37}, static_cast<double>(k), {kFloat64, device})).item<double>();
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t k = 0; k < totals.size(); ++k)
    CHECK(totals[k] == static_cast<double>(k) * 37 * 200 * 201 / 2);
  CHECK(cuda_memory(device.index).in_use == in_use);
}

TEST_CASE("runtime: the CUDA build describes itself", "[runtime]") {
  CHECK(!cuda_built_architectures().empty());
  CHECK(cuda_toolkit_version() >= 11000);
  if (cuda_device_count() == 0) {
    CHECK(!cuda_unavailable().empty());
    check_throws<DeviceError>([] { cuda_device_info(0); }, {});
  } else {
    const CudaDeviceInfo info = cuda_device_info(0);
    CHECK(!info.name.empty());
    CHECK(info.multiprocessors > 0);
    CHECK(info.total_bytes >= info.free_bytes);
    CHECK(cuda_driver_version() > 0);
  }
  check_throws<DeviceError>([] { cuda_device_info(-1); }, {});
}
#endif

}  // namespace sinter::test
