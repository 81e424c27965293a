#include <sinter/graph.h>
#include <sinter/models.h>

#include <memory>
#include <thread>

#include "values.h"

namespace sinter::test {
namespace {

// A training on batches taken by a position on the device: what a graph replays.
struct Training {
  explicit Training(Device device, uint64_t seed = 5)
      : batches(synthetic_dataset(192, 10).train.to(device), {.batch_size = 32, .seed = seed}) {
    manual_seed(seed);
    net = std::make_unique<CifarCnn>();
    net->to(device);
    optimizer = std::make_unique<Adam>(net->parameters());
    loss = empty({}, {kFloat32, device});
  }
  void step() {
    const Batch batch = batches.next();
    const Tensor y = cross_entropy((*net)(batch.x), batch.y);
    optimizer->zero_grad();
    y.backward();
    {
      const branch_guard beside(y.device());
      loss.copy_(y.detach());
    }
    optimizer->step();
    join(y.device());
  }
  Batches batches;
  std::unique_ptr<CifarCnn> net;
  std::unique_ptr<Optimizer> optimizer;
  Tensor loss;
};

void check_same_weights(Module& a, Module& b) {
  const NamedTensors left = a.state_dict(), right = b.state_dict();
  REQUIRE(left.size() == right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    INFO(left[i].first);
    CHECK(same_bits(left[i].second, right[i].second));
  }
}

}  // namespace

CUDA_TEST("graph: replayed steps are the eager ones bit for bit", "[graph]") {
  Training eager(device), replayed(device);
  constexpr int kSteps = 12;  // two epochs' worth: the position goes on at the beginning
  std::vector<float> eager_losses, replayed_losses;
  for (int i = 0; i < kSteps; ++i) {
    eager.step();
    eager_losses.push_back(eager.loss.item<float>());
  }
  replayed.step();
  replayed_losses.push_back(replayed.loss.item<float>());
  Graph graph = Graph::capture(device, [&] { replayed.step(); });
  CHECK(graph.nodes() > 5);
  CHECK(replayed.loss.item<float>() == replayed_losses[0]);  // capturing has computed nothing
  for (int i = 1; i < kSteps; ++i) {
    graph.replay();
    replayed_losses.push_back(replayed.loss.item<float>());
    // What others allocate and write between replays is not the graph's memory.
    const Tensor other = full({1 << 18}, i, {kFloat32, device});
    const std::vector<float> values = other.to_vector<float>();
    CHECK(std::all_of(values.begin(), values.end(), [&](float v) { return v == float(i); }));
  }
  CHECK(eager_losses == replayed_losses);
  check_same_weights(*eager.net, *replayed.net);
  CHECK(replayed.optimizer->steps() == kSteps);
}

CUDA_TEST("graph: several steps in one with the next batch gathered on a branch", "[graph]") {
  Training eager(device), replayed(device);
  for (int i = 0; i < 9; ++i) eager.step();
  replayed.step();
  Graph graph = Graph::capture(device, [&] {
    Batch next = replayed.batches.next();
    for (int i = 0; i < 4; ++i) {
      const Batch batch = next;
      if (i < 3) {
        const branch_guard beside(device);
        next = replayed.batches.next();
      }
      const Tensor loss = cross_entropy((*replayed.net)(batch.x), batch.y);
      replayed.optimizer->zero_grad();
      loss.backward();
      replayed.optimizer->step();
    }
  });
  graph.replay();
  graph.replay();
  check_same_weights(*eager.net, *replayed.net);
}

CUDA_TEST("graph: a changed learning rate counts at the next replay", "[graph]") {
  Training eager(device), replayed(device);
  replayed.step();
  Graph graph = Graph::capture(device, [&] { replayed.step(); });
  eager.step();
  for (double lr : {1e-3, 5e-4, 0.0}) {
    eager.optimizer->set_lr(lr);
    replayed.optimizer->set_lr(lr);
    eager.step();
    graph.replay();
  }
  check_same_weights(*eager.net, *replayed.net);
}

CUDA_TEST("graph: shared weights and weights that are results with branches", "[graph]") {
  // Their gradients meet on the main line, which has to wait for the branches that made them.
  const auto run = [&](bool graphed) {
    const Tensor x = tensor(noise({16, 24}, 1), {kFloat32, device});
    const Tensor w = leaf(noise({24, 24}, 2), {kFloat32, device});
    const Tensor b = leaf(noise({24}, 3), {kFloat32, device});
    Tensor out = zeros({24, 24}, {kFloat32, device});
    const auto work = [&] {
      w.set_grad({});
      b.set_grad({});
      const Tensor scaled = w * 0.5;
      const std::vector<Tensor> weights{w, scaled, w}, biases{b, b, Tensor()};
      sum(mlp(mlp(x, weights, biases), weights, biases, true)).backward();
      out.copy_(w.grad());
    };
    work();
    if (!graphed) return out;
    Graph graph = Graph::capture(device, work);
    out.fill_(0);
    for (int i = 0; i < 3; ++i) graph.replay();
    return out.clone();
  };
  CHECK(same_bits(run(false), run(true)));
}

CUDA_TEST("graph: a result made on a branch is waited for by its readers", "[graph]") {
  // Large enough that a reader which does not wait is there first.
  const Tensor x = tensor(noise({1 << 22}, 1), {kFloat32, device});
  Tensor read = zeros({1 << 22}, {kFloat32, device}), sums = zeros({2}, {kFloat32, device});
  const auto work = [&] {
    Tensor y, z;
    {
      const branch_guard beside(device);
      y = x * 2.0;
      for (int i = 0; i < 10; ++i) y = y + x;  // 12 x
    }
    {
      const branch_guard beside(device);
      z = y * 2.0;  // 24 x, from the other branch
    }
    read.copy_(z - y);
    sums.narrow(0, 1).copy_(sum(y).reshape({1}));
  };
  work();
  const Tensor expected = read.clone(), expected_sums = sums.clone();
  Graph graph = Graph::capture(device, work);
  for (int i = 0; i < 5; ++i) {
    read.fill_(0);
    sums.fill_(0);
    graph.replay();
    CHECK(same_bits(read, expected));
    CHECK(same_bits(sums, expected_sums));
  }
}

CUDA_TEST("graph: losses and gradients may be read in it and behind it", "[graph]") {
  Training eager(device), replayed(device);
  Tensor scaled = zeros({}, {kFloat32, device}), dw = zeros({6, 3, 5, 5}, {kFloat32, device});
  const auto work = [&](Training& t, bool read_in_it) {
    const Batch batch = t.batches.next();
    t.optimizer->zero_grad();
    const Tensor loss = cross_entropy((*t.net)(batch.x), batch.y);
    scaled.copy_(loss.detach() * 3.0);
    loss.backward();
    if (read_in_it) dw.copy_(t.net->conv1.weight.grad());
  };
  for (bool read_in_it : {true, false}) {
    work(replayed, read_in_it);
    work(eager, read_in_it);
    Graph graph = Graph::capture(device, [&] { work(replayed, read_in_it); });
    for (int i = 0; i < 3; ++i) {
      graph.replay();
      const float loss = scaled.item<float>();
      const Tensor of_replay = dw.clone();
      work(eager, read_in_it);
      CHECK(loss == scaled.item<float>());
      CHECK(same_bits(of_replay, dw));
      // Those of this replay, whether the graph had a use for them or not.
      const auto a = replayed.net->parameters(), b = eager.net->parameters();
      for (size_t k = 0; k < a.size(); ++k) CHECK(same_bits(a[k].grad(), b[k].grad()));
    }
  }
}

CUDA_TEST("graph: memory goes back when the graph is destroyed", "[graph]") {
#ifdef SINTER_WITH_CUDA
  Training training(device);
  training.step();
  training.step();
  synchronize(device);
  const size_t before = cuda_memory(0).in_use;
  {
    Graph graph = Graph::capture(device, [&] { training.step(); });
    graph.replay();
    synchronize(device);
    release_cached_memory(0);  // takes nothing that the graph still writes to
    graph.replay();
    synchronize(device);
  }
  training.step();
  CHECK(cuda_memory(0).in_use == before);
  const int64_t calls = cuda_memory(0).driver_calls;
  Graph again = Graph::capture(device, [&] { training.step(); });
  again = Graph::capture(device, [&] { training.step(); });
  again.replay();
  synchronize(device);
  CHECK(cuda_memory(0).driver_calls <= calls + 2);  // a chunk a graph
#endif
}

CUDA_TEST("graph: what a replay could not repeat is refused", "[graph]") {
  const Tensor x = ones({4}, {kFloat32, device});
  Graph graph;
  check_throws<GraphError>([&] { graph = Graph::capture(device, [&] { x.to_vector<float>(); }); },
                           {"waiting for the device", "captured"});
  const std::vector<float> host(1000, 1.F);
  check_throws<GraphError>(
      [&] { graph = Graph::capture(device, [&] { from_vector(host, {1000}, device); }); },
      {"host memory"});
  check_throws<GraphError>(
      [&] {
        graph = Graph::capture(device, [&] { from_vector(std::vector<int64_t>{3}, {1}, device); });
      },
      {"host memory"});
  check_throws<GraphError>(
      [&] { graph = Graph::capture(device, [&] { Graph::capture(device, [] {}); }); }, {"already"});
  check_throws<ShapeError>([&] { graph = Graph::capture(device, [&] { matmul(x, x); }); }, {});
  // The device goes on as if nothing had been.
  CHECK((x + 1.0).to_vector<float>() == std::vector<float>(4, 2.F));
  Tensor y = zeros({4}, {kFloat32, device});
  graph = Graph::capture(device, [&] { y.copy_(y + x); });
  graph.replay();
  graph.replay();
  CHECK(y.to_vector<float>() == std::vector<float>(4, 2.F));
  std::thread([&] { check_throws<GraphError>([&] { graph.replay(); }, {"thread"}); }).join();
}

CUDA_TEST("graph: the first matrix product of all may be one on a branch", "[graph]") {
  const Tensor a = tensor(noise({65, 33}, 1), {kFloat32, device});
  const Tensor b = tensor(noise({33, 70}, 2), {kFloat32, device});
  Tensor y = zeros({65, 70}, {kFloat32, device}), z = zeros({65, 70}, {kFloat32, device});
  synchronize(device);
  // On a thread whose streams nobody has multiplied on.
  std::string failure;
  std::thread([&] {
    try {
      Graph graph = Graph::capture(device, [&] {
        {
          const branch_guard beside(device);
          y.copy_(matmul(a, b));
        }
        z.copy_(matmul(a, b));
        join(device);
      });
      graph.replay();
      synchronize(device);
    } catch (const Error& e) {
      failure = e.what();
    }
  }).join();
  CHECK(failure.empty());
  const Tensor expected = matmul(a, b);
  CHECK(same_bits(y, expected));
  CHECK(same_bits(z, expected));
}

CUDA_TEST("graph: another thread runs out of memory while one captures", "[graph]") {
#ifdef SINTER_WITH_CUDA
  const Tensor x = tensor(noise({1 << 20}, 1), {kFloat32, device});
  Tensor y = zeros({1 << 20}, {kFloat32, device});
  const auto work = [&] { y.copy_((x + 1.0) * 2.0); };  // in blocks that are freed at once
  work();
  const Tensor expected = y.clone();
  synchronize(device);
  const auto total = static_cast<int64_t>(cuda_device_info(device.index).total_bytes);
  bool refused = false;
  std::string otherwise;
  Graph graph = Graph::capture(device, [&] {
    work();
    std::thread([&] {
      try {
        empty({total + 1}, {kUInt8, device});
      } catch (const OutOfMemoryError&) {
        refused = true;
      } catch (const Error& e) {
        otherwise = e.what();
      }
    }).join();
    work();
  });
  INFO(otherwise);
  CHECK(refused);
  for (int i = 0; i < 3; ++i) {
    // What the driver has to give comes from what it was given back, if it was.
    const Tensor other = full({1 << 22}, 7, {kFloat32, device});
    y.fill_(0);
    graph.replay();
    CHECK(same_bits(y, expected));
    const std::vector<float> values = other.to_vector<float>();
    CHECK(std::all_of(values.begin(), values.end(), [](float v) { return v == 7; }));
  }
#endif
}

CUDA_TEST("graph: threads capture and replay side by side", "[graph]") {
  const int replays = under_sanitizer() ? 3 : 20;
  const auto train = [&](uint64_t seed) {
    auto training = std::make_unique<Training>(device, seed);
    training->step();
    Graph graph = Graph::capture(device, [&] { training->step(); });
    for (int i = 0; i < replays; ++i) graph.replay();
    synchronize(device);
    return training;
  };
  // The seeds are drawn from one process-wide generator: one after the other, then at once.
  const auto alone = train(3);
  std::unique_ptr<Training> a(new Training(device, 3)), b(new Training(device, 3));
  const auto go = [&](Training& t) {
    t.step();
    Graph graph = Graph::capture(device, [&] { t.step(); });
    for (int i = 0; i < replays; ++i) graph.replay();
    synchronize(device);
  };
  synchronize(device);
  std::thread one([&] { go(*a); }), two([&] { go(*b); });
  one.join();
  two.join();
  check_same_weights(*alone->net, *a->net);
  check_same_weights(*alone->net, *b->net);
}

TEST_CASE("graph: without a GPU", "[graph]") {
  check_throws<DeviceError>([] { Graph::capture(kCpu, [] {}); }, {"CUDA", "cpu"});
  Graph empty;
  check_throws<GraphError>([&] { empty.replay(); }, {"nothing was captured"});
  CHECK(empty.nodes() == 0);
  { const branch_guard nothing(kCpu); }
  CHECK_NOTHROW(join(kCpu));
}

TEST_CASE("batches: next goes through the epoch as get does", "[data][graph]") {
  Batches batches(synthetic_dataset(40, 10).train, {.batch_size = 16, .seed = 2});
  batches.start_epoch(3);
  const auto equal = [](const Batch& a, const Batch& b) {
    return same_bits(a.x, b.x) && same_bits(a.y, b.y);
  };
  CHECK(equal(batches.next(), batches.get(0)));
  CHECK(equal(batches.next(), batches.get(1)));
  const Batch wrapped = batches.next();  // 8 images are left: 8 from the beginning follow
  CHECK(equal({wrapped.x.narrow(0, 8), wrapped.y.narrow(0, 8)}, batches.get(2)));
  CHECK(same_bits(wrapped.x.narrow(8, 8), batches.get(0).x.narrow(0, 8)));
  batches.seek(1);
  CHECK(equal(batches.next(), batches.get(1)));
  check_throws<ValueError>([&] { batches.seek(3); }, {"seek", "3"});
  check_throws<ValueError>([&] { batches.seek(-1); }, {"seek", "-1"});
}

}  // namespace sinter::test
