// Compiled functions (program.h) around whole trainings, threads and memory.
#include <sinter/models.h>
#include <sinter/program.h>

#include <cmath>
#include <limits>
#include <memory>
#include <sstream>
#include <thread>

#include "tests/support/values.h"

namespace sinter::test {
namespace {

constexpr int64_t kBatch = 32;

// A training on batches taken by a position on the device: what a program goes on with.
struct Training {
  explicit Training(Device device, uint64_t seed = 5)
      : batches(synthetic_dataset(6 * kBatch, 10).train.to(device),
                {.batch_size = kBatch, .seed = seed}) {
    manual_seed(seed);
    net = std::make_unique<CifarCnn>();
    net->to(device);
    optimizer = std::make_unique<Adam>(net->parameters());
    loss = empty({}, {kFloat32, device});
  }
  void step(const Batch& batch) {
    const Tensor y = cross_entropy((*net)(batch.x), batch.y);
    optimizer->zero_grad();
    y.backward();
    loss.copy_(y.detach());
    optimizer->step();
  }
  void step() { step(batches.next()); }
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

void check_same_gradients(Module& a, Module& b) {
  const std::vector<Tensor> left = a.parameters(), right = b.parameters();
  REQUIRE(left.size() == right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    INFO(i);
    REQUIRE(left[i].grad().defined());
    CHECK(same_bits(left[i].grad(), right[i].grad()));
  }
}

NamedTensors copies(const NamedTensors& state) {
  NamedTensors result;
  for (const auto& [name, t] : state) result.emplace_back(name, t.clone());
  return result;
}

}  // namespace

DEVICE_TEST("program: compiled steps are the eager ones bit for bit", "[program]") {
  const PassesOff exact("-fuse");
  Training eager(device), compiled(device);
  auto step = compile([&] { compiled.step(); });
  constexpr int kSteps = 12;  // two epochs' worth: the position goes on at the beginning
  for (int i = 0; i < kSteps; ++i) {
    INFO("step " << i);
    eager.step();
    step();
    CHECK(compiled.loss.item<float>() == eager.loss.item<float>());
    check_same_gradients(*eager.net, *compiled.net);
    // What others allocate and write between calls is not the program's memory.
    const Tensor other = full({1 << 18}, i, {kFloat32, device});
    const std::vector<float> values = other.to_vector<float>();
    CHECK(std::all_of(values.begin(), values.end(), [&](float v) { return v == float(i); }));
  }
  check_same_weights(*eager.net, *compiled.net);
  CHECK(compiled.optimizer->steps() == kSteps);
  CHECK(step.stats().recordings == 2);
  CHECK(step.stats().programs == 1);
  CHECK(step.stats().operators > 5);
}

DEVICE_TEST("program: with all passes steps are the eager ones up to rounding", "[program]") {
  Training eager(device), compiled(device), again(device);
  auto step = compile([&] { compiled.step(); });
  auto again_step = compile([&] { again.step(); });
  for (int i = 0; i < 6; ++i) {
    INFO("step " << i);
    eager.step();
    step();
    again_step();
    CHECK(std::abs(compiled.loss.item<double>() - eager.loss.item<double>()) < 1e-3);
    // Fused operators round otherwise.
    const auto a = compiled.net->parameters(), b = eager.net->parameters();
    for (size_t k = 0; i == 0 && k < a.size(); ++k) {
      const std::vector<double> left = a[k].grad().to_vector<double>();
      const std::vector<double> right = b[k].grad().to_vector<double>();
      double largest = 0, off = 0;
      for (size_t e = 0; e < left.size(); ++e) {
        largest = std::max(largest, std::abs(right[e]));
        off = std::max(off, std::abs(left[e] - right[e]));
      }
      INFO("parameter " << k << ": off by " << off << " of " << largest);
      CHECK(off <= 1e-5 * largest);
    }
    CHECK(same_bits(compiled.loss, again.loss));
  }
  check_same_weights(*compiled.net, *again.net);
  check_same_gradients(*compiled.net, *again.net);
}

DEVICE_TEST("program: several steps in one with batches gathered one by one or at once",
            "[program]") {
  const PassesOff exact("-fuse");
  constexpr int kSteps = 4, kCalls = 3;
  for (bool at_once : {false, true}) {
    INFO("at once: " << at_once);
    Training eager(device), compiled(device);
    for (int i = 0; i < kCalls * kSteps; ++i) eager.step();
    auto steps = compile([&] {
      const Batch all = at_once ? compiled.batches.next(kSteps * kBatch) : Batch();
      for (int64_t i = 0; i < kSteps; ++i) {
        if (at_once)
          compiled.step({all.x.narrow(0, i * kBatch, kBatch), all.y.narrow(0, i * kBatch, kBatch)});
        else
          compiled.step();
      }
    });
    for (int i = 0; i < kCalls; ++i) steps();
    check_same_weights(*eager.net, *compiled.net);
    CHECK(same_bits(eager.loss, compiled.loss));
  }
}

DEVICE_TEST("program: a changed learning rate counts at the next call", "[program]") {
  const PassesOff exact("-fuse");
  Training eager(device), compiled(device);
  auto step = compile([&] { compiled.step(); });
  for (double lr : {2e-3, 1e-3, 5e-4, 0.0, 1e-3}) {
    eager.optimizer->set_lr(lr);
    compiled.optimizer->set_lr(lr);
    eager.step();
    step();
  }
  check_same_weights(*eager.net, *compiled.net);
  CHECK(step.stats().recordings == 2);
}

DEVICE_TEST("program: what was there before is read as it is at the call", "[program]") {
  const PassesOff exact("-fuse");
  Training eager(device), compiled(device);
  const NamedTensors weights = copies(eager.net->state_dict());
  const NamedTensors moments = copies(eager.optimizer->state_dict());
  auto step = compile([&] { compiled.step(); });
  for (int i = 0; i < 8; ++i) {
    INFO("step " << i);
    for (Training* t : {&eager, &compiled}) {
      if (i == 3) t->net->load_state_dict(weights);
      if (i == 4) t->optimizer->load_state_dict(moments);
      if (i == 5) t->batches.seek(4);
      if (i == 6) t->batches.start_epoch(9);
      if (i == 7) {
        const no_grad guard;
        t->net->fc3.weight.fill_(0.25);
      }
    }
    eager.step();
    step();
    CHECK(compiled.loss.item<float>() == eager.loss.item<float>());
  }
  check_same_weights(*eager.net, *compiled.net);
  CHECK(step.stats().recordings == 2);
}

DEVICE_TEST("program: shared weights and weights that are results", "[program]") {
  const auto run = [&](bool is_compiled) {
    const Tensor x = tensor(noise({16, 24}, 1), {kFloat32, device});
    const Tensor w = leaf(noise({24, 24}, 2), {kFloat32, device});
    const Tensor b = leaf(noise({24}, 3), {kFloat32, device});
    Tensor out = zeros({24, 24}, {kFloat32, device});
    const auto work = [&] {
      w.set_grad({});
      b.set_grad({});
      const Tensor scaled = w * 0.5;
      const std::vector<Tensor> weights{w, scaled, w}, biases{b, b, Tensor()};
      sum(app::mlp(app::mlp(x, weights, biases), weights, biases, true)).backward();
      out.copy_(w.grad());
    };
    if (!is_compiled) {
      work();
    } else {
      auto compiled = compile(work);
      for (int i = 0; i < 5; ++i) {
        out.fill_(0);
        compiled();
      }
    }
    return out.clone();
  };
  const Tensor eager = run(false);
  check_close("gradient of shared weights", run(true), array(eager), 400);
  const PassesOff exact("-fuse");
  CHECK(same_bits(run(true), eager));
}

DEVICE_TEST("program: a result made beside others is waited for by its readers", "[program]") {
  // Large enough that a reader which does not wait is there first.
  const int64_t n = device.is_cuda() ? 1 << 22 : 1 << 14;
  const Tensor x = tensor(noise({n}, 1), {kFloat32, device});
  Tensor read = zeros({n}, {kFloat32, device}), sums = zeros({2}, {kFloat32, device});
  const auto work = [&] {
    Tensor y = x * 2.0, other = x * 3.0;
    for (int i = 0; i < 10; ++i) {
      y = y + x;  // 12 x
      other = other * x;
    }
    const Tensor z = y * 2.0;  // 24 x, beside other's chain
    read.copy_(z - y);
    sums.narrow(0, 0, 1).copy_(sum(other).reshape({1}));
    sums.narrow(0, 1, 1).copy_(sum(y).reshape({1}));
  };
  work();
  const Tensor expected = read.clone(), expected_sums = sums.clone();
  auto compiled = compile(work);
  for (int i = 0; i < 5; ++i) {
    read.fill_(0);
    sums.fill_(0);
    compiled();
    CHECK(same_bits(read, expected));
    CHECK(same_bits(sums, expected_sums));
  }
}

DEVICE_TEST("program: losses and gradients may be read in it and behind it", "[program]") {
  struct Outputs {
    Tensor scaled, dw;
  };
  const auto outputs = [&] {
    return Outputs{zeros({}, {kFloat32, device}), zeros({6, 3, 5, 5}, {kFloat32, device})};
  };
  const PassesOff exact("-fuse");
  const auto work = [](Training& t, Outputs& out, bool read_in_it) {
    const Batch batch = t.batches.next();
    t.optimizer->zero_grad();
    const Tensor loss = cross_entropy((*t.net)(batch.x), batch.y);
    out.scaled.copy_(loss.detach() * 3.0);
    loss.backward();
    if (read_in_it) out.dw.copy_(t.net->conv1.weight.grad());
  };
  for (bool read_in_it : {true, false}) {
    Training eager(device), compiled(device);
    Outputs of_eager = outputs(), of_compiled = outputs();
    auto step = compile([&] { work(compiled, of_compiled, read_in_it); });
    for (int i = 0; i < 5; ++i) {
      step();
      work(eager, of_eager, read_in_it);
      CHECK(same_bits(of_compiled.scaled, of_eager.scaled));
      CHECK(same_bits(of_compiled.dw, of_eager.dw));
      // Those of this call, whether the program had a use for them or not.
      check_same_gradients(*eager.net, *compiled.net);
    }
  }
}

DEVICE_TEST("program: what is returned keeps its values and a gradient is the last call's",
            "[program]") {
  const Tensor w = leaf(noise({5, 3}, 1), {kFloat32, device});
  auto f = compile([&](const Tensor& x) {
    w.set_grad({});
    const Tensor y = x * w;
    sum(y * y).backward();
    return y;
  });
  std::vector<Tensor> returned, gradients;
  for (int i = 0; i < 5; ++i) {
    returned.push_back(f(full({3}, i, {kFloat32, device})));
    gradients.push_back(w.grad());
  }
  for (int i = 0; i < 5; ++i) CHECK(same_bits(returned[static_cast<size_t>(i)], w.detach() * i));
  const Tensor last = w.detach() * 4.0;
  CHECK(same_bits(gradients[4], (last + last) * 4.0));
  CHECK(same_bits(gradients[3], gradients[4]));
  CHECK(!returned[4].requires_grad());
}

DEVICE_TEST("program: memory goes back when it is destroyed", "[program]") {
  const auto in_use = [&]() -> size_t {
    if constexpr (cuda_built()) {
      if (device.is_cuda()) return cuda_memory(device.index).in_use;
    }
    return 0;
  };
  const auto driver_calls = [&]() -> int64_t {
    if constexpr (cuda_built()) {
      if (device.is_cuda()) return cuda_memory(device.index).driver_calls;
    }
    return 0;
  };
  Training training(device);
  training.step();
  training.step();
  synchronize(device);
  const size_t before = in_use();
  const int64_t storages = live_storages(), nodes = live_nodes();
  {
    auto step = compile([&] { training.step(); });
    for (int i = 0; i < 3; ++i) step();
    synchronize(device);
    if constexpr (cuda_built()) {
      // Takes nothing that the program still writes to.
      if (device.is_cuda()) release_cached_memory(device.index);
    }
    step();
    synchronize(device);
    CHECK(live_nodes() == nodes);
  }
  training.step();
  synchronize(device);
  CHECK(live_storages() == storages);
  CHECK(live_nodes() == nodes);
  CHECK(in_use() == before);
  const auto compile_and_call = [&] {
    auto step = compile([&] { training.step(); });
    for (int i = 0; i < 3; ++i) step();
    synchronize(device);
  };
  compile_and_call();
  const int64_t calls = driver_calls();
  compile_and_call();
  CHECK(driver_calls() <= calls + 2);  // a chunk that is the graph's
  training.step();
  CHECK(live_storages() == storages);
}

DEVICE_TEST("program: what a call could not repeat is refused", "[program]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = ones({4}, options), w = leaf(noise({4}, 1), options);
  w.set_grad(full({4}, 3, options));
  const Tensor gradient = w.grad();
  const auto check_refused = [&](const std::function<void()>& work,
                                 const std::vector<std::string>& parts) {
    for (bool drops_gradient : {false, true}) {
      auto f = compile([&] {
        if (drops_gradient) w.set_grad({});
        sum(w * x).backward();
        work();
      });
      for (int i = 0; i < 2; ++i) {
        check_throws<GraphError>(f, parts);
        // Leaves have the gradients from before.
        CHECK(w.grad().place() == gradient.place());
        CHECK(w.grad().to_vector<float>() == std::vector<float>(4, 3));
        CHECK(f.stats().programs == 0);
      }
    }
  };
  check_refused([&] { x.to_vector<float>(); }, {"to_vector", "recorded"});
  check_refused([&] { (w * x).to_vector<double>(); }, {"to_vector", "recorded"});
  check_refused([&] { sum(x).item<float>(); }, {"item", "recorded"});
  check_refused([&] { x.data<const float>(); }, {"data", "recorded"});
  check_refused([&] { synchronize(device); }, {"waiting for the device", "recorded"});
  if (device.is_cuda()) {
    check_refused([&] { x.to(kCpu); }, {"device"});
    check_refused([&] { zeros({4}).to(device); }, {"device"});
    check_refused([&] { Tensor(x).copy_(zeros({4})); }, {"device"});
    check_refused([&] { zeros({4}); }, {"one device", "cpu", "cuda"});
  }
  // Of a graph that was made before it.
  const Tensor early = sum(w * x);
  check_refused([&] { early.backward(); }, {"backward", "outside"});
  CHECK(early.item<float>() == sum(w).item<float>());

  const Tensor shorter = ones({3}, options);
  auto wrong = compile([&] { matmul(x, shorter); });
  for (int i = 0; i < 2; ++i) check_throws<ShapeError>([&] { wrong(); }, {"matmul"});
  // All goes on as if nothing had been.
  CHECK((x + 1.0).to_vector<float>() == std::vector<float>(4, 2.F));
  Tensor y = zeros({4}, options);
  auto add_one = compile([&] { y.copy_(y + x); });
  for (int i = 0; i < 4; ++i) add_one();
  CHECK(y.to_vector<float>() == std::vector<float>(4, 4.F));
}

DEVICE_TEST("program: values from the host are part of it", "[program]") {
  Tensor y = zeros({2}, {kFloat32, device});
  auto same = compile([&] { y.copy_(y + from_vector<float>({1, 2}, {2}, device)); });
  for (int i = 0; i < 4; ++i) same();
  CHECK(y.to_vector<float>() == std::vector<float>{4, 8});
  CHECK(same.stats().recordings == 2);

  int calls = 0;
  auto others = compile([&] {
    y.copy_(from_vector<float>({static_cast<float>(++calls), 0}, {2}, device));
  });
  for (int i = 1; i <= 3; ++i) {
    others();
    CHECK(y.to_vector<float>() == std::vector<float>{static_cast<float>(i), 0});
  }
  check_throws<GraphError>([&] { others(); }, {"copy", "host"});
  CHECK(y.to_vector<float>() == std::vector<float>{3, 0});
}

TEST_CASE("program: what a kernel throws leaves gradients as before", "[program][cpu]") {
  const Tensor w = leaf(noise({3, 4}, 1), {kFloat32, kCpu});
  w.set_grad(full({3, 4}, 3));
  Tensor labels = from_vector<int64_t>({0, 1, 4}, {3});
  auto step = compile([&] {
    w.set_grad({});
    const Tensor loss = cross_entropy(w, labels);
    loss.backward();
    return loss;
  });
  for (int i = 0; i < 2; ++i) {
    check_throws<ValueError>([&] { step(); }, {"cross_entropy", "4"});
    CHECK(w.grad().to_vector<float>() == std::vector<float>(12, 3));
  }
  labels.fill_(1);
  const Tensor loss = step();
  CHECK(same_bits(loss, cross_entropy(w.detach(), labels)));
}

DEVICE_TEST("program: within another one a compiled function is simply called", "[program]") {
  const Tensor x = tensor(noise({7}, 1), {kFloat32, device});
  auto inner = compile([](const Tensor& t) { return t * 2.0; });
  auto outer = compile([&](const Tensor& t) { return inner(t) + t; });
  for (int i = 0; i < 4; ++i) CHECK(same_bits(outer(x), x * 2.0 + x));
  CHECK(inner.stats().recordings == 0);
  CHECK(outer.stats().recordings == 2);
}

DEVICE_TEST("program: the first matrix products of a thread may be two side by side", "[program]") {
  const Tensor a = tensor(noise({65, 33}, 1), {kFloat32, device});
  const Tensor b = tensor(noise({33, 70}, 2), {kFloat32, device});
  Tensor y = zeros({65, 70}, {kFloat32, device}), z = zeros({65, 70}, {kFloat32, device});
  synchronize(device);
  // On a thread whose streams nobody has multiplied on.
  std::string failure;
  std::thread([&] {
    try {
      auto products = compile([&] {
        y.copy_(matmul(a, b));
        z.copy_(matmul(a, b));
      });
      for (int i = 0; i < 3; ++i) {
        y.fill_(0);
        z.fill_(0);
        products();
      }
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

DEVICE_TEST("program: another thread records one of its own", "[program]") {
  const Tensor x = ones({4}, {kFloat32, device});
  Tensor y = zeros({4}, {kFloat32, device});
  auto add_one = compile([&] { y.copy_(y + x); });
  for (int i = 0; i < 3; ++i) add_one();
  synchronize(device);
  std::string failure;
  std::thread([&] {
    try {
      for (int i = 0; i < 3; ++i) add_one();
      synchronize(device);
    } catch (const Error& e) {
      failure = e.what();
    }
  }).join();
  CHECK(failure.empty());
  add_one();
  CHECK(y.to_vector<float>() == std::vector<float>(4, 7.F));
}

DEVICE_TEST("program: threads record and replay side by side", "[program]") {
  const int calls = under_sanitizer() || !device.is_cuda() ? 5 : 20;
  const auto train = [&](Training& t) {
    auto step = compile([&] { t.step(); });
    for (int i = 0; i < calls; ++i) step();
    synchronize(device);
  };
  Training alone(device, 3), a(device, 3), b(device, 3);
  train(alone);
  std::string failures[2];
  const auto run = [&](Training& t, std::string& failure) {
    try {
      train(t);
    } catch (const Error& e) {
      failure = e.what();
    }
  };
  std::thread one([&] { run(a, failures[0]); }), two([&] { run(b, failures[1]); });
  one.join();
  two.join();
  for (const std::string& failure : failures) CHECK(failure.empty());
  check_same_weights(*alone.net, *a.net);
  check_same_weights(*alone.net, *b.net);
}

// ---- looking at a program -----------------------------------------------------------------------

DEVICE_TEST("program: the check mode names the operator that makes a NaN and its module",
            "[program]") {
  Sequential net(Linear(3, 3), ReLU(), Linear(3, 2));
  net.to(device);
  const Tensor scale = ones({1}, {kFloat32, device});
  auto step = compile([&](const Tensor& x) { return net(x) / scale; }, {.check_finite = true});
  auto unchecked = compile([&](const Tensor& x) { return net(x) / scale; });
  const Tensor x = ones({4, 3}, {kFloat32, device});
  for (int i = 0; i < 3; ++i) CHECK(same_bits(step(x), unchecked(x)));
  // Weights are read by reference, also by a replay.
  const Tensor weight = net.state_dict()[2].second;
  const Tensor before = weight.clone();
  weight.fill_(std::nan(""));
  check_throws<AnomalyError>([&] { step(x); }, {"_forward of 2: ", "nan", "element 0"});
  CHECK(std::isnan(unchecked(x).to_vector<float>()[0]));
  weight.copy_(before);
  scale.fill_(0);
  check_throws<AnomalyError>([&] { step(x); }, {"div_forward", "inf"});
  scale.fill_(1);
  CHECK(same_bits(step(x), unchecked(x)));
}

DEVICE_TEST("program: print shows every operator before and after each pass", "[program]") {
  Sequential net(Linear(3, 2), ReLU());
  net.to(device);
  auto step = compile([&](const Tensor& x) { return net(x); });
  std::ostringstream none, text;
  step.print(none);
  CHECK(none.str() == "no program yet\n");
  step(ones({4, 3}, {kFloat32, device}));
  step.print(text);
  for (const char* part : {"program on ", "recorded: 2 operators",
                           "linear_forward(g=(n=4, in=3, out=2", "x=@", "float32(4, 3)", "module 0",
                           "relu_forward", "module 1", "after dead: 1 operators", "relu=true"}) {
    INFO(text.str());
    CHECK(text.str().find(part) != std::string::npos);
  }
}

// ---- whose values are whose ---------------------------------------------------------------------

DEVICE_TEST("program: results are nobody else's", "[program]") {
  const TensorOptions options{kFloat32, device};
  const auto x = [&](double value) { return full({2}, value, options); };
  const auto first = [](const Tensor& t) { return t.to_vector<float>()[0]; };
  auto twice = compile([](const Tensor& x) { return x * 2.0; });
  Tensor kept;
  for (int i = 0; i < 3; ++i) kept = twice(x(1));
  auto times_kept = compile([&](const Tensor& x) { return x * kept; });
  for (int i = 0; i < 3; ++i) CHECK(first(times_kept(x(1))) == 2);
  const Tensor later = twice(x(50));
  CHECK(first(times_kept(x(1))) == 2);
  CHECK(first(kept) == 2);
  CHECK(first(later) == 100);
  // Of an argument, too.
  auto as_it_is = compile([](const Tensor& x) { return x.reshape({2, 1}); });
  std::vector<Tensor> all;
  for (int i = 0; i < 4; ++i) all.push_back(as_it_is(x(i)));
  for (int i = 0; i < 4; ++i) CHECK(first(all[static_cast<size_t>(i)]) == static_cast<float>(i));
}

DEVICE_TEST("program: an argument that the program writes is as it was", "[program]") {
  const TensorOptions options{kFloat32, device};
  Tensor member = full({2}, 1, options);
  auto step = compile([&](const Tensor& x) {
    member = x * 2.0;
    return member * 1.0 + x;
  });
  float expected = 1;
  for (int i = 0; i < 6; ++i) {
    const Tensor y = step(member);
    CHECK(y.to_vector<float>()[0] == 3 * expected);
    expected *= 2;
    CHECK(member.to_vector<float>()[0] == expected);
  }
  const Tensor w = full({2}, 2, options);
  auto fills = compile([&](const Tensor& x) {
    const Tensor h = x + x;
    w.fill_(-1);
    return relu(h);
  });
  for (int i = 0; i < 4; ++i) {
    w.fill_(2);
    CHECK(fills(w).to_vector<float>()[0] == 4);
  }
}

DEVICE_TEST("program: members follow the program that ran last", "[program]") {
  Tensor member;
  auto times = compile([&](const Tensor& x, int k) { member = x * static_cast<double>(k); });
  const Tensor x = full({2}, 10, {kFloat32, device});
  for (const int k : {1, 1, 2, 2, 1, 1, 2, 1}) {
    times(x, k);
    CHECK(member.to_vector<float>()[0] == static_cast<float>(10 * k));
  }
}

DEVICE_TEST("program: what is returned is part of it", "[program]") {
  int calls = 0;
  auto swaps = compile([&](const Tensor& x) {
    const Tensor a = x * 2.0, b = x * 3.0;
    return calls++ % 2 == 0 ? std::pair(a, b) : std::pair(b, a);
  });
  const Tensor x = ones({2}, {kFloat32, device});
  CHECK(swaps(x).first.to_vector<float>()[0] == 2);
  CHECK(swaps(x).first.to_vector<float>()[0] == 3);
  CHECK(swaps(x).first.to_vector<float>()[0] == 2);
  check_throws<GraphError>([&] { swaps(x); }, {"returns or keeps something else"});
  // And can be compiled once it is the same.
  calls = 0;
  auto then_still = compile([&](const Tensor& x) { return x * static_cast<double>(++calls); });
  for (int i = 0; i < 3; ++i) then_still(x);
  check_throws<GraphError>([&] { then_still(x); }, {"number_b: 3, then 4"});
  for (int i = 0; i < 3; ++i) {
    calls = 6;
    CHECK(then_still(x).to_vector<float>()[0] == 7);
  }
}

TEST_CASE("program: state made in a call that failed has no values", "[program][cpu]") {
  Linear fc(3, 2);
  std::unique_ptr<Adam> adam;
  auto step = compile([&](const Tensor& x, const Tensor& y) {
    const Tensor loss = cross_entropy(fc(x), y);
    if (!adam) adam = std::make_unique<Adam>(fc.parameters());
    loss.backward();
    adam->step();
    adam->zero_grad();
  });
  const Tensor x = ones({1, 3}), good = from_vector(std::vector<int64_t>{1}, {1}),
               bad = from_vector(std::vector<int64_t>{7}, {1});
  check_throws<ValueError>([&] { step(x, bad); }, {"label"});
  check_throws<GraphError>([&] { step(x, good); }, {"has no values"});
  adam = nullptr;
  for (int i = 0; i < 4; ++i) step(x, good);
  CHECK(adam->steps() == 4);
}

DEVICE_TEST("program: numbers as arguments are told apart to the bit", "[program]") {
  auto over = compile([](const Tensor& x, double by) { return x / by; });
  const Tensor x = ones({2}, {kFloat32, device});
  for (int i = 0; i < 3; ++i) over(x, 0.0);
  CHECK(over(x, 0.0).to_vector<float>()[0] == std::numeric_limits<float>::infinity());
  CHECK(over(x, -0.0).to_vector<float>()[0] == -std::numeric_limits<float>::infinity());
  for (int i = 0; i < 4; ++i) over(x, std::nan(""));
  CHECK(over.stats().recordings == 2 + 1 + 2);
}

}  // namespace sinter::test
