// Memory, streams and launches of a GPU where threads meet, and copies within a tensor.
#include <sinter/emit.h>
#include <sinter/program.h>

#include <future>
#include <numeric>
#include <thread>

#include "core/backend/cuda_graph.h"
#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "tests/support/values.h"

namespace sinter::test {
DEVICE_TEST("runtime: copies within a tensor go as if the source had been read first",
            "[runtime]") {
  for (int64_t n : {3, 1000, 1 << 20}) {
    std::vector<int32_t> ramp(static_cast<size_t>(n));
    std::iota(ramp.begin(), ramp.end(), 0);
    for (int64_t distance : {int64_t{1}, n / 3, n - 1}) {
      const auto rest = static_cast<size_t>(n - distance);
      Tensor up = from_vector(ramp, {n}, device), down = up.clone(), still = up.clone();
      up.narrow(0, distance, n - distance).copy_(up.narrow(0, 0, n - distance));
      down.narrow(0, 0, n - distance).copy_(down.narrow(0, distance, n - distance));
      still.copy_(still);
      std::vector<int32_t> moved_up = ramp, moved_down = ramp;
      std::copy_n(ramp.begin(), rest, moved_up.begin() + distance);
      std::copy_n(ramp.begin() + distance, rest, moved_down.begin());
      INFO(n << " elements, moved by " << distance);
      CHECK((up.to_vector<int32_t>() == moved_up));
      CHECK((down.to_vector<int32_t>() == moved_down));
      CHECK((still.to_vector<int32_t>() == ramp));
    }
  }
}

#ifdef SINTER_WITH_CUDA

namespace {

bool all_equal(const std::vector<float>& values, float expected) {
  return std::all_of(values.begin(), values.end(), [&](float v) { return v == expected; });
}

constexpr int64_t kElements = 1 << 20;

// Work that takes some tenths of a second, so that what is enqueued behind it comes late.
void keep_busy(Device device) {
  Tensor x = ones({int64_t{1} << 26}, {kFloat32, device});
  for (int i = 0; i < (under_sanitizer() ? 20 : 400); ++i) x = x + 1.0;
}

enum class Frees { kOwner, kReader, kOwnerWhenReaderHasEnded };

// A tensor of this thread's is read by another's late work, and its block asked for again before.
void check_not_reused_early(Device device, Frees frees) {
  Tensor shared = full({kElements}, 1, {kFloat32, device});
  synchronize(device);
  Tensor result;
  std::promise<void> enqueued, overwritten;
  std::thread reader([&] {
    keep_busy(device);
    result = shared * 2.0;
    if (frees == Frees::kReader) shared = Tensor();
    enqueued.set_value();
    if (frees == Frees::kOwnerWhenReaderHasEnded) return;
    overwritten.get_future().wait();
    synchronize(device);
  });
  enqueued.get_future().wait();
  if (frees == Frees::kOwnerWhenReaderHasEnded) reader.join();
  shared = Tensor();
  // As many as might be the block that was freed.
  std::vector<Tensor> others;
  for (int i = 0; i < 4; ++i) others.push_back(full({kElements}, 5, {kFloat32, device}));
  synchronize(device);
  if (frees == Frees::kOwnerWhenReaderHasEnded) {
    reader = std::thread([&] { synchronize(device); });  // with the stream of the one that ended
  } else {
    overwritten.set_value();
  }
  reader.join();
  CHECK(all_equal(result.to_vector<float>(), 2));
  for (const Tensor& other : others) CHECK(all_equal(other.to_vector<float>(), 5));
}

}  // namespace

CUDA_TEST("runtime: a block that another thread reads is not reused before", "[runtime]") {
  check_not_reused_early(device, Frees::kOwner);
}
CUDA_TEST("runtime: a block that another thread reads and frees is not reused before",
          "[runtime]") {
  check_not_reused_early(device, Frees::kReader);
}
CUDA_TEST("runtime: a block that a thread which has ended reads is not reused before",
          "[runtime]") {
  check_not_reused_early(device, Frees::kOwnerWhenReaderHasEnded);
}

CUDA_TEST("runtime: blocks that go from thread to thread are used again", "[runtime]") {
  const CudaMemory before = cuda_memory(device.index);
  constexpr size_t kBlock = kElements * sizeof(float), kTimes = 30;
  for (size_t i = 0; i < kTimes; ++i) {
    Tensor shared = full({kElements}, 1, {kFloat32, device});
    synchronize(device);
    float total = 0;
    std::thread([&] { total = sum(shared).item<float>(); }).join();
    CHECK(total == kElements);
    shared = Tensor();
    CHECK(cuda_memory(device.index).in_use == before.in_use);
  }
  // Mostly at once: that the reader is done takes a moment to be seen.
  CHECK(cuda_memory(device.index).reserved <= before.reserved + kTimes / 2 * kBlock);
  synchronize(device);
  release_cached_memory(device.index);
  CHECK(cuda_memory(device.index).reserved <= before.reserved + kBlock);
}

CUDA_TEST("runtime: threads launch one kernel with more and with less shared memory", "[runtime]") {
  struct Layer {
    explicit Layer(int64_t size, Device device)
        : x(leaf(noise({2, 3, size, size}, 1), {kFloat32, device})),
          w(leaf(noise({4, 3, 5, 5}, 2), {kFloat32, device})),
          b(leaf(noise({4}, 3), {kFloat32, device})) {}
    std::vector<Tensor> gradients() const {
      for (const Tensor& t : {x, w, b}) t.set_grad({});
      sum(app::conv2d_relu_pool(x, w, b, {.padding = 2})).backward();
      return {x.grad(), w.grad(), b.grad()};
    }
    Tensor x, w, b;
  };
  // Both more than the 48 KB that need not be asked for: images of a block's in shared memory.
  const std::vector<Layer> layers = {Layer(48, device), Layer(64, device)};
  const op::Conv2dShape larger{.n = 2,
                               .c = 3,
                               .h = 64,
                               .w = 64,
                               .o = 4,
                               .kh = 5,
                               .kw = 5,
                               .pad_h = 2,
                               .pad_w = 2,
                               .oh = 64,
                               .ow = 64};
  if (cuda_device_info(device.index).major >= 8)
    CHECK(conv2d_relu_pool_fits(cuda_context(device.index), larger, kFloat32));
  std::vector<std::vector<Tensor>> alone;
  for (const Layer& layer : layers) {
    auto program = compile([&] { return layer.gradients(); });
    alone.push_back(program());
  }
  synchronize(device);
  std::vector<std::string> failures(layers.size());
  std::vector<std::thread> threads;
  for (size_t k = 0; k < layers.size(); ++k)
    threads.emplace_back([&, k] {
      try {
        auto program = compile([&] { return layers[k].gradients(); });
        for (int i = 0; i < (under_sanitizer() ? 10 : 200) && failures[k].empty(); ++i) {
          const std::vector<Tensor> now = program();
          for (size_t g = 0; g < now.size(); ++g)
            if (!same_bits(now[g], alone[k][g])) failures[k] = "another result";
        }
      } catch (const Error& e) {
        failures[k] = e.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& failure : failures) CHECK(failure.empty());
}

namespace {

// y = alpha * x as a part of a graph.
detail::GraphTask scale_task(double alpha, const Tensor& x, const Tensor& y) {
  op::Map scale = op::scale(alpha, in(x), out(y));
  each_operand(scale, bind_operand);
  detail::GraphTask task;
  task.work = [scale](const Cuda& ctx) { run(ctx, scale); };
  task.writes.push_back(std::as_bytes(std::span(y.data<float>(), kElements)));
  return task;
}

detail::GraphTask task_of(std::function<void(const Cuda&)> work) {
  detail::GraphTask task;
  task.work = std::move(work);
  return task;
}

}  // namespace

CUDA_TEST("runtime: tasks of a graph wait for those that they come after", "[runtime]") {
  // Lanes 0 and 1 in turn, each reading what the other made, and a lane beside them.
  constexpr int kTasks = 12;
  const Tensor x = tensor(noise({kElements}, 1), {kFloat32, device});
  std::vector<Tensor> made(kTasks);
  for (Tensor& t : made) t = zeros({kElements}, {kFloat32, device});
  const Tensor beside = zeros({kElements}, {kFloat32, device});
  std::vector<detail::GraphTask> tasks;
  for (int i = 0; i < kTasks; ++i) {
    const auto k = static_cast<size_t>(i);
    tasks.push_back(scale_task(2, i == 0 ? x : made[k - 1], made[k]));
    tasks[k].lane = i % 2;
    if (i > 0) tasks[k].after = {i - 1};
  }
  tasks.push_back(scale_task(3, made[1], beside));
  tasks.back().lane = 2;
  tasks.back().after = {1};
  detail::CudaGraph graph = detail::CudaGraph::capture(device.index, tasks);
  CHECK(graph.nodes() >= kTasks + 1);
  CHECK(all_equal(made.back().to_vector<float>(), 0));  // capturing has computed nothing
  for (int i = 0; i < 5; ++i) {
    for (const Tensor& t : made) Tensor(t).fill_(0);
    Tensor(beside).fill_(0);
    graph.replay();
    CHECK(same_bits(made.back(), x * 4096.0));
    CHECK(same_bits(beside, (x * 4.0) * 3.0));
  }
}

CUDA_TEST("runtime: a graph refuses what a replay could not repeat", "[runtime]") {
  const Tensor x = ones({kElements}, {kFloat32, device});
  const Tensor y = zeros({kElements}, {kFloat32, device});
  const auto check_refused = [&](const std::function<void(const Cuda&)>& work,
                                 const std::vector<std::string>& parts) {
    const detail::GraphTask tasks[] = {scale_task(2, x, y), task_of(work)};
    check_throws<GraphError>([&] { detail::CudaGraph::capture(device.index, tasks); }, parts);
  };
  std::vector<float> host(kElements, 1.F);
  check_refused([&](const Cuda& ctx) { synchronize(ctx); }, {"waiting for the device", "captured"});
  check_refused(
      [&](const Cuda& ctx) { detail::copy_to_host(ctx, host.data(), x.read(), x.bytes()); },
      {"captured"});
  check_refused(
      [&](const Cuda& ctx) { detail::copy_from_host(ctx, y.raw(), host.data(), y.bytes()); },
      {"host memory"});
  check_refused([&](const Cuda&) { detail::CudaGraph::capture(device.index, {}); }, {"already"});
  // What a task throws, and then the device goes on as if nothing had been.
  const detail::GraphTask failing[] = {scale_task(2, x, y),
                                       task_of([](const Cuda&) { throw ValueError("no"); })};
  check_throws<ValueError>([&] { detail::CudaGraph::capture(device.index, failing); }, {"no"});
  CHECK(all_equal((x + 1.0).to_vector<float>(), 2));
  const detail::GraphTask working[] = {scale_task(2, y, y)};
  detail::CudaGraph graph = detail::CudaGraph::capture(device.index, working);
  Tensor(y).fill_(1);
  for (int i = 0; i < 3; ++i) graph.replay();
  CHECK(all_equal(y.to_vector<float>(), 8));
  std::thread([&] { check_throws<GraphError>([&] { graph.replay(); }, {"thread"}); }).join();
  detail::CudaGraph empty;
  check_throws<GraphError>([&] { empty.replay(); }, {"replay"});
  CHECK(empty.nodes() == 0);
}

CUDA_TEST("runtime: another thread runs out of memory while one captures", "[runtime]") {
  const Tensor x = tensor(noise({kElements}, 1), {kFloat32, device});
  const Tensor y = zeros({kElements}, {kFloat32, device});
  synchronize(device);
  const auto total = static_cast<int64_t>(cuda_device_info(device.index).total_bytes);
  bool refused = false;
  std::string otherwise;
  // Through scratch memory, which is freed at once.
  const detail::GraphTask copy = task_of([&](const Cuda& ctx) {
    void* const scratch = detail::allocate(ctx, x.bytes());
    detail::copy_on_device(ctx, scratch, x.read(), x.bytes());
    detail::copy_on_device(ctx, y.raw(), scratch, x.bytes());
    detail::deallocate(ctx, scratch, x.bytes());
  });
  const detail::GraphTask out_of_memory = task_of([&](const Cuda&) {
    std::thread([&] {
      try {
        empty({total + 1}, {kUInt8, device});
      } catch (const OutOfMemoryError&) {
        refused = true;
      } catch (const Error& e) {
        otherwise = e.what();
      }
    }).join();
  });
  const detail::GraphTask tasks[] = {copy, out_of_memory, copy};
  detail::CudaGraph graph = detail::CudaGraph::capture(device.index, tasks);
  INFO(otherwise);
  CHECK(refused);
  for (int i = 0; i < 3; ++i) {
    // What the driver has to give comes from what it was given back, if it was.
    const Tensor other = full({1 << 22}, 7, {kFloat32, device});
    Tensor(y).fill_(0);
    graph.replay();
    CHECK(same_bits(y, x));
    CHECK(all_equal(other.to_vector<float>(), 7));
  }
}

CUDA_TEST("runtime: what the code for a GPU was compiled for", "[runtime]") {
  const CudaDeviceInfo info = cuda_device_info(device.index);
  CHECK(info.compiled_for >= 75);
  CHECK(info.compiled_for <= 10 * info.major + info.minor);
  const std::string built = cuda_built_architectures();
  INFO("built for " << built << ", runs what was compiled for " << info.compiled_for);
  const bool by_number = built.find_first_of("0123456789") != std::string::npos;  // not 'native'
  CHECK((!by_number || built.find(std::to_string(info.compiled_for)) != std::string::npos));
  // Wide layers, for which tensor cores are chosen where there is code for them.
  for (bool tf32 : {false, true}) {
    const With with(ConvAlgo::kAuto, tf32);
    const Tensor x = ones({8, 64, 8, 8}, {kFloat32, device});
    const Tensor w = ones({64, 64, 1, 1}, {kFloat32, device});
    CHECK(all_equal(conv2d(x, w).to_vector<float>(), 64));
  }
}
#endif

}  // namespace sinter::test
