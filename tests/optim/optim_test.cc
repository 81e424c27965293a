#include <sinter/models.h>

#include <cmath>
#include <limits>
#include <memory>

#include "tests/support/values.h"

namespace sinter::test {
namespace {

using Parameters = std::vector<std::vector<double>>;
using StateDict = std::vector<std::pair<std::string, Tensor>>;

// Shapes with one element, an odd number, and more than a block.
const std::vector<Sizes> kShapes = {{1}, {3, 5}, {257}, {1031, 3}};

std::vector<Tensor> make_parameters(TensorOptions options) {
  std::vector<Tensor> parameters;
  for (size_t i = 0; i < kShapes.size(); ++i)
    parameters.push_back(leaf(noise(kShapes[i], 10 + i), options));
  return parameters;
}

// Gradients of step t, by hand: the optimizer alone is under test.
void set_gradients(const std::vector<Tensor>& parameters, int t) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& p = parameters[i];
    p.set_grad(tensor(noise(kShapes[i], 100 * static_cast<uint64_t>(t) + i), p.options()));
  }
}

using Method = app::OptimizerCase;
using Make = decltype(Method::make);
std::vector<Method> methods() { return app::optimizer_cases(); }

}  // namespace

DEVICE_TEST("optim: steps follow the equations", "[optim]") {
  for (const Method& method : methods())
    for (DType dtype : {kFloat32, kFloat64})
      for (const Comparison& c : app::compare_with_equations(method, {dtype, device})) {
        INFO(c.what);
        check_comparison(method.name, c, {dtype, device});
      }
}

DEVICE_TEST("optim: many parameters and large and empty ones", "[optim]") {
  const TensorOptions options{kFloat32, device};
  for (const Method& method : methods()) {
    std::vector<Tensor> parameters;
    for (int64_t i = 0; i < 140; ++i) parameters.push_back(leaf(noise({i % 5}, 1), options));
    if (method.name == "Adam" || method.name == "SGD, momentum")
      parameters.push_back(leaf(filled({(int64_t{9} << 19) + 1}, 0.5), options));
    const auto optimizer = method.make(parameters);
    std::vector<Array> expected;
    for (const Tensor& p : parameters) {
      expected.push_back(array(p));
      p.set_grad(ones(p.shape(), options));
      for (double& value : expected.back().v) {
        double m = 0, v = 0;
        value = method.update(value, 1, m, v, 1);
      }
    }
    optimizer->step();
    for (size_t i = 0; i < parameters.size(); ++i)
      check_close(method.name, parameters[i], expected[i], 6);
    CHECK(optimizer->steps() == 1);
  }
}

DEVICE_TEST("optim: the first step by hand", "[optim]") {
  const TensorOptions options{kFloat64, device};
  const auto after_one = [&](const Make& make) {
    const Tensor p = leaf({{3}, {1, 2, -4}}, options);
    p.set_grad(tensor({{3}, {0.5, -1000, 1e-3}}, options));
    make({p})->step();
    return p.to_vector<double>();
  };
  const auto near = [](const std::vector<double>& a, const std::vector<double>& b,
                       double tolerance) {
    for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= tolerance);
  };
  // Adam's first step moves each element by lr, whatever its gradient's size, but for eps.
  near(after_one([](const auto& p) { return std::make_unique<Adam>(p, AdamOptions{.lr = 0.1}); }),
       {0.9, 2.1, -4.1}, 1e-5);
  // Decoupled decay shrinks by 1 - lr * decay first; 0.01 unless set.
  near(after_one([](const auto& p) { return std::make_unique<AdamW>(p); }),
       {0.99999 - 0.001, 2 * 0.99999 + 0.001, -4 * 0.99999 - 0.001}, 1e-7);
  near(after_one([](const auto& p) {
         return std::make_unique<AdamW>(p, AdamOptions{.lr = 0.1, .weight_decay = 0.5});
       }),
       {0.85, 2.0, -3.9}, 1e-5);
  near(after_one([](const auto& p) { return std::make_unique<SGD>(p, SGDOptions{.lr = 0.1}); }),
       {0.95, 102, -4.0001}, 1e-12);
  near(after_one([](const auto& p) {
         return std::make_unique<SGD>(
             p, SGDOptions{.lr = 0.1, .momentum = 0.5, .weight_decay = 0.1, .nesterov = true});
       }),
       {1 - 0.15 * 0.6, 2 + 0.15 * 999.8, -4 + 0.15 * 0.399}, 1e-10);
}

DEVICE_TEST("optim: a parameter without a gradient is left alone", "[optim]") {
  for (const Method& method : methods()) {
    INFO(method.name);
    const TensorOptions options{kFloat32, device};
    const Tensor a = leaf(noise({5}, 1), options), b = leaf(noise({7}, 2), options);
    const Tensor a0 = a.detach().clone(), b0 = b.detach().clone();
    const auto optimizer = method.make({a, b});
    b.set_grad(ones({7}, options));
    optimizer->step();
    CHECK(same_bits(a.detach(), a0));
    CHECK(!same_bits(b.detach(), b0));
    optimizer->zero_grad();
    CHECK(!b.grad().defined());
    const Tensor b1 = b.detach().clone();
    optimizer->step();
    CHECK(same_bits(b.detach(), b1));
    a.set_grad(ones({5}, options));
    optimizer->step();
    CHECK(!same_bits(a.detach(), a0));
    CHECK(same_bits(b.detach(), b1));
  }
}

DEVICE_TEST("optim: a step is an in-place change outside the graph", "[optim]") {
  for (const Method& method : methods()) {
    INFO(method.name);
    const Tensor p = leaf({{2}, {1, 2}}, {kFloat32, device});
    const auto optimizer = method.make({p});
    const Tensor loss = sum(p * p);
    p.set_grad(ones({2}, {kFloat32, device}));
    optimizer->step();
    CHECK(p.is_leaf());
    CHECK(p.requires_grad());
    // The loss saved the old values: its derivative would silently be wrong.
    check_throws<GradError>([&] { loss.backward(); }, {"in place"});
  }
}

DEVICE_TEST("optim: the learning rate can change", "[optim]") {
  const TensorOptions options{kFloat64, device};
  const Tensor p = leaf({{1}, {1}}, options);
  SGD optimizer({p}, {.lr = 0.5});
  CHECK(optimizer.lr() == 0.5);
  CHECK(optimizer.steps() == 0);
  p.set_grad(ones({1}, options));
  optimizer.step();
  CHECK(p.item<double>() == 0.5);
  optimizer.set_lr(0.25);
  CHECK(optimizer.lr() == 0.25);
  optimizer.step();
  CHECK(p.item<double>() == 0.25);
  optimizer.set_lr(0);
  optimizer.step();
  CHECK(p.item<double>() == 0.25);
  CHECK(optimizer.steps() == 3);
  check_throws<ValueError>([&] { optimizer.set_lr(-1); }, {"lr"});
  check_throws<ValueError>([&] { optimizer.set_lr(std::nan("")); }, {"lr"});
  CHECK(optimizer.lr() == 0);
}

DEVICE_TEST("optim: gradients that nobody has looked at are the same gradients", "[optim]") {
  // Adam may then take them in the form in which the backward pass left them.
  const auto weights = [&](bool look) {
    manual_seed(3);
    CifarCnn net;
    net.to(kFloat64).to(device);
    Adam adam(net.parameters(), {.lr = 1e-2});
    const Tensor x = tensor(noise({9, 3, 32, 32}, 1), {kFloat64, device});
    const Tensor labels = from_vector(std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8}, {9}, device);
    for (int step = 0; step < 3; ++step) {
      adam.zero_grad();
      cross_entropy(net(x), labels).backward();
      if (look)
        for (const Tensor& p : net.parameters()) (void)p.grad().data<double>();
      adam.step();
    }
    return net.state_dict();
  };
  const NamedTensors looked = weights(true), unseen = weights(false);
  for (size_t i = 0; i < looked.size(); ++i) {
    INFO(looked[i].first);
    const auto a = looked[i].second.to_vector<double>(), b = unseen[i].second.to_vector<double>();
    for (size_t k = 0; k < a.size(); ++k) REQUIRE(std::abs(a[k] - b[k]) <= 1e-9);
  }
}

DEVICE_TEST("optim: saved state continues bit by bit", "[optim]") {
  for (const Method& method : methods())
    for (DType dtype : {kFloat32, kFloat64}) {
      INFO(method.name << ' ' << dtype);
      const std::vector<Tensor> through = make_parameters({dtype, device});
      const auto optimizer = method.make(through);
      for (int t = 1; t <= 4; ++t) {
        set_gradients(through, t);
        optimizer->step();
      }
      // What a checkpoint holds: copies, on the CPU.
      StateDict state = optimizer->state_dict();
      for (auto& entry : state) entry.second = entry.second.to(kCpu).clone();
      std::vector<Tensor> resumed;
      for (const Tensor& p : through) {
        resumed.push_back(p.detach().clone());
        resumed.back().set_requires_grad();
      }
      const auto other = method.make(resumed);
      other->load_state_dict(state);
      CHECK(other->steps() == 4);
      for (int t = 5; t <= 8; ++t) {
        set_gradients(through, t);
        set_gradients(resumed, t);
        optimizer->step();
        other->step();
      }
      CHECK(other->steps() == 8);
      for (size_t i = 0; i < through.size(); ++i)
        CHECK(same_bits(through[i].detach(), resumed[i].detach()));
    }
}

DEVICE_TEST("optim: state that does not fit is refused and changes nothing", "[optim]") {
  const TensorOptions options{kFloat32, device};
  const Tensor a = leaf(noise({3}, 1), options), b = leaf(noise({2, 2}, 2), options);
  Adam optimizer({a, b});
  a.set_grad(ones({3}, options));
  b.set_grad(ones({2, 2}, options));
  optimizer.step();
  const auto snapshot = [&] {
    std::vector<std::vector<double>> all;
    for (const auto& entry : optimizer.state_dict())
      all.push_back(entry.second.to_vector<double>());
    return all;
  };
  const auto before = snapshot();
  StateDict good = optimizer.state_dict();
  for (auto& entry : good) entry.second = entry.second.clone();
  CHECK(good.size() == 5);
  bool has_step = false;
  for (const auto& entry : good) has_step = has_step || entry.first == "step";
  CHECK(has_step);

  StateDict missing(good.begin() + 1, good.end());
  check_throws<ValueError>([&] { optimizer.load_state_dict(missing); }, {good[0].first});
  StateDict surplus = good;
  surplus.emplace_back("7.m", zeros({1}));
  check_throws<ValueError>([&] { optimizer.load_state_dict(surplus); }, {"7.m"});
  StateDict reshaped = good;
  for (auto& entry : reshaped)
    if (entry.second.shape() == Shape{3}) entry.second = zeros({4});
  check_throws<ShapeError>([&] { optimizer.load_state_dict(reshaped); }, {"(3,)", "(4,)"});
  CHECK(snapshot() == before);
  CHECK(optimizer.steps() == 1);
}

DEVICE_TEST("optim: parameters that are no leaves or unlike each other are refused", "[optim]") {
  const TensorOptions options{kFloat32, device};
  const Tensor p = leaf(noise({3}, 1), options), q = leaf(noise({3}, 1), {kFloat64, device});
  check_throws<Error>([&] { Adam({zeros({3}, options)}); }, {"Adam", "leaves"});
  check_throws<Error>([&] { Adam({p, q}); }, {"Adam", "float32", "float64"});
  check_throws<Error>([&] { SGD({Tensor()}); }, {"SGD"});
  check_throws<Error>([&] { SGD(std::vector<Tensor>{}); }, {"SGD"});
  if (device.is_cuda())
    check_throws<Error>([&] { SGD({p, leaf(noise({3}, 1))}); }, {"SGD", "cuda", "cpu"});
}

DEVICE_TEST("optim: AdamW decays whatever else is set", "[optim]") {
  const TensorOptions options{kFloat64, device};
  const auto after = [&](const AdamOptions& o) {
    const Tensor p = leaf({{1}, {1}}, options);
    p.set_grad(zeros({1}, options));
    AdamW(std::vector<Tensor>{p}, o).step();
    return p.item<double>();
  };
  CHECK(after({.lr = 0.1}) == 0.999);
  CHECK(after({.lr = 0.1, .eps = 1e-6}) == 0.999);
  CHECK(after({.lr = 0.1, .weight_decay = 0}) == 1);
  CHECK(std::abs(after({}) - 0.99999) <= 1e-15);
  const Tensor p = leaf({{1}, {1}}, options);
  p.set_grad(zeros({1}, options));
  Adam(std::vector<Tensor>{p}, {.lr = 0.1, .decoupled = true}).step();
  CHECK(p.item<double>() == 1);
}

DEVICE_TEST("optim: each parameter counts its own updates", "[optim]") {
  const TensorOptions options{kFloat64, device};
  for (const Method& method : methods()) {
    INFO(method.name);
    // One with a gradient at every step, one from the tenth on: that is its first.
    const Tensor always = leaf({{2}, {1, -1}}, options), late = leaf({{2}, {1, -1}}, options);
    const auto optimizer = method.make({always, late});
    double m = 0, v = 0, expected = 1;
    for (int t = 1; t <= 12; ++t) {
      always.set_grad(ones({2}, options));
      if (t >= 10) {
        late.set_grad(ones({2}, options));
        expected = method.update(expected, 1, m, v, t - 9);
      }
      optimizer->step();
    }
    CHECK(std::abs(late.to_vector<double>()[0] - expected) <= 1e-12);
    CHECK(optimizer->steps() == 12);
    for (const auto& [name, tensor] : optimizer->state_dict())
      if (name == "step") CHECK(tensor.to_vector<int64_t>() == std::vector<int64_t>{12, 3});
  }
  const Tensor first = leaf({{1}, {1}}, options), other = leaf({{1}, {1}}, options);
  Adam adam({first, other}, {.lr = 0.1});
  for (int t = 1; t <= 10; ++t) {
    other.set_grad(ones({1}, options));
    if (t == 10) first.set_grad(ones({1}, options));
    adam.step();
  }
  CHECK(std::abs(first.item<double>() - 0.9) <= 1e-8);
}

DEVICE_TEST("optim: a tensor given twice is updated once", "[optim]") {
  const TensorOptions options{kFloat64, device};
  const Tensor p = leaf({{1}, {1}}, options), copy = p, q = leaf({{1}, {1}}, options);
  SGD sgd({p, q, copy}, {.lr = 1});
  p.set_grad(ones({1}, options));
  sgd.step();
  CHECK(p.item<double>() == 0);
  // Two tensors in one place are two updates of it, at once.
  const Tensor alias = p.detach().set_requires_grad();
  check_throws<ValueError>([&] { SGD({p, q, alias}); }, {"SGD", "share memory"});
  const Tensor all = zeros({4}, options);
  const Tensor a = all.narrow(0, 0, 3).detach().set_requires_grad(),
               b = all.narrow(0, 2, 2).detach().set_requires_grad(),
               c = all.narrow(0, 3, 1).detach().set_requires_grad();
  check_throws<ValueError>([&] { SGD({b, a}); }, {"SGD", "share memory", "(3,)", "(2,)"});
  SGD({a, c});
}

DEVICE_TEST("optim: frozen parameters are accepted and left alone", "[optim]") {
  const TensorOptions options{kFloat64, device};
  for (const Method& method : methods()) {
    INFO(method.name);
    const Tensor p = leaf({{1}, {1}}, options), frozen = leaf({{1}, {1}}, options);
    frozen.set_grad(ones({1}, options));
    frozen.set_requires_grad(false);
    const auto optimizer = method.make({frozen, p});
    p.set_grad(ones({1}, options));
    optimizer->step();
    CHECK(frozen.item<double>() == 1);
    CHECK(p.item<double>() != 1);
    frozen.set_requires_grad();
    optimizer->step();
    CHECK(frozen.item<double>() != 1);
  }
}

// 0.9 times a subnormal number of a few bits rounds to itself: without care the moments of a weight
// without gradients would stay subnormal, where a CPU is slow, for ever.
DEVICE_TEST("optim: moments that die away end at 0", "[optim]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const bool single = dtype == kFloat32;
    const double gradient = single ? 1e-30 : 1e-290;  // m becomes subnormal in under 250 steps
    const double smallest =
        single ? std::numeric_limits<float>::min() : std::numeric_limits<double>::min();
    for (const Method& method : methods()) {
      INFO(method.name << " " << dtype);
      if (method.name.find("decay") != std::string::npos) continue;  // decay is a gradient
      const TensorOptions options{dtype, device};
      const Tensor p = leaf(filled({37}, 0.), options);
      const auto optimizer = method.make({p});
      p.set_grad(full({37}, gradient, options));
      optimizer->step();
      p.set_grad(zeros({37}, options));
      for (int t = 0; t < 250; ++t) optimizer->step();
      for (const auto& [name, state] : optimizer->state_dict()) {
        if (state.dtype() != dtype) continue;
        for (const double value : state.to(kFloat64).to_vector<double>())
          CHECK((value == 0 || std::abs(value) >= smallest));
      }
    }
  }
}

TEST_CASE("optim: options out of range are refused", "[optim]") {
  const std::vector<Tensor> p = {leaf(noise({3}, 1))};
  const double nan = std::nan("");
  for (double bad : {-1.0, nan}) {
    check_throws<ValueError>([&] { Adam(p, {.lr = bad}); }, {"Adam", "lr"});
    check_throws<ValueError>([&] { Adam(p, {.eps = bad}); }, {"Adam", "eps"});
    check_throws<ValueError>([&] { Adam(p, {.weight_decay = bad}); }, {"Adam", "weight_decay"});
    check_throws<ValueError>([&] { SGD(p, {.lr = bad}); }, {"SGD", "lr"});
    check_throws<ValueError>([&] { SGD(p, {.momentum = bad}); }, {"SGD", "momentum"});
    check_throws<ValueError>([&] { SGD(p, {.dampening = bad}); }, {"SGD", "dampening"});
    check_throws<ValueError>([&] { SGD(p, {.weight_decay = bad}); }, {"SGD", "weight_decay"});
    check_throws<ValueError>([&] { AdamW(p, {.lr = bad}); }, {"AdamW", "lr"});
  }
  for (double bad : {-0.1, 1.0, nan}) {
    check_throws<ValueError>([&] { Adam(p, {.beta1 = bad}); }, {"Adam", "betas"});
    check_throws<ValueError>([&] { Adam(p, {.beta2 = bad}); }, {"Adam", "betas"});
  }
  check_throws<ValueError>([&] { SGD(p, {.nesterov = true}); }, {"SGD", "nesterov"});
  check_throws<ValueError>([&] { SGD(p, {.momentum = 0.9, .dampening = 0.1, .nesterov = true}); },
                           {"SGD", "nesterov", "dampening"});
}

}  // namespace sinter::test
