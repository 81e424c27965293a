#include <cstring>
#include <memory>
#include <thread>

#include "values.h"

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
  CHECK(num_threads() == 3);
  // Process-wide, and harmless while other threads work.
  std::thread other([] { CHECK_NOTHROW(relu(ones({100000})).to_vector<float>()); });
  other.join();
  set_num_threads(before);
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
    void* p = allocate(Cpu{}, bytes);
    REQUIRE(p != nullptr);
    CHECK(reinterpret_cast<uintptr_t>(p) % 64 == 0);
    std::memset(p, 1, bytes);
    deallocate(Cpu{}, p, bytes);
    void* again = allocate(Cpu{}, bytes);
#ifndef __SANITIZE_ADDRESS__  // there blocks are not reused, so that a stale pointer is seen
    if (bytes > 0) CHECK(again == p);
#endif
    deallocate(Cpu{}, again, bytes);
  }
  check_throws<OutOfMemoryError>([] { allocate(Cpu{}, size_t{1} << 60); }, {});
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
