#include <atomic>
#include <thread>

#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

double value(const Tensor& t) { return t.item<double>(); }

Tensor scalar_leaf(double v, Device device, DType dtype = kFloat64) {
  return leaf({{}, {v}}, {dtype, device});
}

// A user's operator: y = x^3, with a factor that makes its derivative wrong unless it is 3.
Tensor cube(const Tensor& x, double factor = 3) {
  Tensor y;
  {
    const no_grad guard;
    y = x * x * x;
  }
  return record("cube", y, {x}, [x = Saved(x), factor](const Tensor& dy) -> Grads {
    return {dy * x.get() * x.get() * factor};
  });
}

}  // namespace

DEVICE_TEST("autograd: a reused tensor collects from every use", "[autograd]") {
  const Tensor x = scalar_leaf(3, device);
  const Tensor y = x * x * x + x;  // 3 x^2 + 1
  y.backward();
  CHECK(value(x.grad()) == 28);
  const Tensor z = scalar_leaf(5, device);
  (z + z).backward();
  CHECK(value(z.grad()) == 2);
}

DEVICE_TEST("autograd: diamonds", "[autograd]") {
  // A graph walked depth first, or without waiting for all uses, counts the shared part wrongly.
  const Tensor x = scalar_leaf(2, device);
  const Tensor a = x * 3.0;    // 6
  const Tensor b = a + 1.0;    // 7
  const Tensor c = a * b;      // 42
  const Tensor d = c + a * b;  // 84
  const Tensor e = d * a;      // 2 a^2 (a + 1): 6 a^2 + 4 a, times 3
  e.backward();
  CHECK(value(x.grad()) == 3 * (6 * 36 + 4 * 6));
  // Two paths of very different length.
  const Tensor u = scalar_leaf(1.5, device);
  Tensor longer = u;
  for (int i = 0; i < 50; ++i) longer = longer + u * 1.0;
  (longer * u).backward();  // 51 u^2
  CHECK(value(u.grad()) == 2 * 51 * 1.5);
  // 2^60 paths through 60 diamonds: one visit a node.
  const Tensor w = scalar_leaf(1, device);
  Tensor doubled = w;
  for (int i = 0; i < 60; ++i) doubled = doubled + doubled;
  doubled.backward();
  CHECK(value(w.grad()) == std::ldexp(1.0, 60));
}

DEVICE_TEST("autograd: whoever holds a leaf's gradient sees it grow", "[autograd]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  sum(x * 2.0).backward();
  const Tensor held = x.grad(), view = held.narrow(0, 1, 1), copy = held.clone();
  const uint64_t version = held.version();
  sum(x * 3.0).backward();
  CHECK(held.to_vector<double>() == std::vector<double>{5, 5});
  CHECK(view.item<double>() == 5);
  CHECK(copy.to_vector<double>() == std::vector<double>{2, 2});
  CHECK(held.version() > version);
  // One that somebody else gave is the leaf's own.
  const Tensor given = tensor({{2}, {1, 1}}, options), dy = tensor({{2}, {4, 8}}, options);
  x.set_grad(given);
  x.backward(dy);
  CHECK(given.to_vector<double>() == std::vector<double>{5, 9});
  // But not the gradient that the pass starts from.
  x.set_grad({});
  x.backward(dy);
  x.backward(dy);
  CHECK(x.grad().to_vector<double>() == std::vector<double>{8, 16});
  CHECK(dy.to_vector<double>() == std::vector<double>{4, 8});
}

DEVICE_TEST("autograd: leaves accumulate over backward passes", "[autograd]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const Tensor x = leaf({{2}, {1, 2}}, {dtype, device});
    CHECK(!x.grad().defined());
    sum(x * x).backward();
    check_close("accumulated", x.grad(), {{2}, {2, 4}}, 0);
    const Tensor held = x.grad();
    sum(x * 3.0).backward();
    check_close("accumulated", x.grad(), {{2}, {5, 7}}, 0);
    x.set_grad({});
    CHECK(!x.grad().defined());
    sum(x).backward();
    check_close("accumulated", x.grad(), {{2}, {1, 1}}, 0);
    x.set_grad(full({2}, 10, {dtype, device}));
    sum(x).backward();
    check_close("accumulated", x.grad(), {{2}, {11, 11}}, 0);
  }
}

DEVICE_TEST("autograd: an upstream gradient is not changed and not kept", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  Tensor dy = tensor({{2}, {3, 4}}, options);
  // The gradient of the leaf could be dy itself: then the second pass must not add into it, nor may
  // a later change of dy be seen in it.
  const Tensor first = leaf({{2}, {1, 2}}, options);
  Tensor passing = dy.clone();
  first.backward(passing);
  passing.fill_(0);
  CHECK(first.grad().to_vector<double>() == std::vector<double>{3, 4});
  x.backward(dy);
  x.reshape({2}).backward(dy);
  (x + x).backward(dy);
  CHECK(dy.to_vector<double>() == std::vector<double>{3, 4});
  CHECK(x.grad().to_vector<double>() == std::vector<double>{12, 16});
  dy.fill_(0);
  CHECK(x.grad().to_vector<double>() == std::vector<double>{12, 16});
  // Two leaves that were handed the same gradient do not share it.
  const Tensor a = leaf({{2}, {0, 0}}, options), b = leaf({{2}, {0, 0}}, options);
  const Tensor one = ones({2}, options);
  (a + b).backward(one);
  sum(a).backward();
  CHECK(a.grad().to_vector<double>() == std::vector<double>{2, 2});
  CHECK(b.grad().to_vector<double>() == std::vector<double>{1, 1});
  CHECK(one.to_vector<double>() == std::vector<double>{1, 1});
}

DEVICE_TEST("autograd: a second pass needs retain_graph", "[autograd]") {
  const Tensor x = scalar_leaf(3, device);
  const Tensor y = x * x;
  y.backward(/*retain_graph=*/true);
  CHECK(value(x.grad()) == 6);
  y.backward(/*retain_graph=*/true);
  CHECK(value(x.grad()) == 12);
  y.backward();
  CHECK(value(x.grad()) == 18);
  check_throws<GradError>([&] { y.backward(); }, {"retain_graph"});
  CHECK(value(x.grad()) == 18);
  // A freed part of a larger graph.
  const Tensor shared = x * 2.0, p = shared * shared, q = shared + 1.0;
  p.backward();
  check_throws<GradError>([&] { q.backward(); }, {"retain_graph"});
  // And the leaf itself is never freed.
  x.set_grad({});
  (x * x).backward();
  CHECK(value(x.grad()) == 6);
}

DEVICE_TEST("autograd: no_grad stops recording in its scope", "[autograd]") {
  const Tensor x = scalar_leaf(3, device);
  CHECK(grad_enabled());
  {
    const no_grad outer;
    CHECK(!grad_enabled());
    {
      const no_grad inner;
      CHECK(!grad_enabled());
    }
    CHECK(!grad_enabled());
    CHECK(!(x * x).requires_grad());
    CHECK(!recording({&x}));
  }
  CHECK(grad_enabled());
  CHECK(recording({&x}));
  CHECK((x * x).requires_grad());
  try {
    const no_grad guard;
    throw 1;
  } catch (int) {
  }
  CHECK(grad_enabled());
  // Of this thread only.
  const no_grad guard;
  bool other = false;
  std::thread([&] { other = grad_enabled(); }).join();
  CHECK(other);
}

DEVICE_TEST("autograd: leaves and results", "[autograd]") {
  Tensor x = ones({2}, {kFloat32, device});
  CHECK(x.is_leaf());
  CHECK(!x.requires_grad());
  x.set_requires_grad();
  CHECK(x.is_leaf());
  CHECK(x.requires_grad());
  Tensor y = x * 2.0;
  CHECK(!y.is_leaf());
  CHECK(y.requires_grad());
  CHECK(!y.detach().requires_grad());
  CHECK(y.detach().raw() == y.raw());
  check_throws<GradError>([&] { y.set_requires_grad(false); }, {});
  const Tensor copy = x;
  sum(copy * 2.0).backward();
  CHECK(x.grad().defined());  // copies share the gradient
  x.set_requires_grad(false);
  CHECK(!x.requires_grad());
  CHECK(!(x * 2.0).requires_grad());
  Tensor labels = zeros({2}, {kInt64, device});
  check_throws<DtypeError>([&] { labels.set_requires_grad(); }, {"int64"});
}

DEVICE_TEST("autograd: inputs that need no gradient get none", "[autograd]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf({{2, 2}, {1, 2, 3, 4}}, options), c = ones({2, 2}, options);
  const Tensor y = sum(matmul(x, c) * c + c);
  y.backward();
  CHECK(x.grad().shape() == Shape{2, 2});
  CHECK(!c.grad().defined());
  CHECK(!(c * c).requires_grad());
  // A detour through detach is no path.
  const Tensor z = leaf({{2, 2}, {1, 2, 3, 4}}, options);
  sum(z.detach() * z).backward();
  check_close("detached", z.grad(), {{2, 2}, {1, 2, 3, 4}}, 0);
}

DEVICE_TEST("autograd: misuse of backward is an error", "[autograd]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf(noise({2, 3}, 1), options);
  const Tensor y = x * 2.0;
  check_throws<GradError>([&] { y.backward(); }, {"(2, 3)"});
  check_throws<Error>([&] { y.backward(ones({3, 2}, options)); }, {"(2, 3)", "(3, 2)"});
  check_throws<Error>(
      [&] {
        y.backward(ones({2, 3}, {kFloat64, device}));
      },
      {"float32", "float64"});
  check_throws<GradError>([&] { ones({1}, options).backward(); }, {});
  check_throws<Error>([&] { Tensor().backward(); }, {});
  if (device.is_cuda()) check_throws<Error>([&] { y.backward(ones({2, 3})); }, {"cuda", "cpu"});
  // None of it consumed the graph.
  y.backward(ones({2, 3}, options));
  check_close("gradient", x.grad(), filled({2, 3}, 2), 0);
  // A gradient set by hand must fit too.
  check_throws<Error>([&] { x.set_grad(ones({3, 2}, options)); }, {"(2, 3)", "(3, 2)"});
  check_throws<Error>([&] { x.set_grad(ones({2, 3}, {kInt64, device})); }, {"int64"});
}

DEVICE_TEST("autograd: one element of any rank starts a backward pass", "[autograd]") {
  const Tensor x = leaf({{1, 1}, {3}}, {kFloat32, device});
  (x * x).backward();
  check_close("gradient", x.grad(), {{1, 1}, {6}}, 0);
  x.backward();  // a leaf is its own derivative
  check_close("gradient", x.grad(), {{1, 1}, {7}}, 0);
}

DEVICE_TEST("autograd: what backward saved must not change in between", "[autograd]") {
  const TensorOptions options{kFloat32, device};
  Tensor c = ones({2}, options);
  const Tensor x = leaf({{2}, {1, 2}}, options);
  const Tensor y = sum(x * c);
  c.fill_(5);
  check_throws<GradError>([&] { y.backward(); }, {"in place"});
  CHECK(!x.grad().defined());
  // Through a view as well.
  Tensor d = ones({4}, options);
  const Tensor z = sum(x * d.narrow(0, 0, 2));
  d.narrow(0, 2, 2).fill_(3);
  check_throws<GradError>([&] { z.backward(); }, {"in place"});
  // What was not saved may change.
  Tensor e = ones({2}, options);
  const Tensor w = sum(x + e);
  e.fill_(9);
  w.backward();
  check_close("gradient", x.grad(), filled({2}, 1), 0);
}

DEVICE_TEST("autograd: a user's operator", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{3}, {1, 2, -3}}, options);
  const Tensor y = cube(x * 1.0) + x;
  CHECK(y.requires_grad());
  y.backward(tensor({{3}, {1, 10, 100}}, options));
  check_close("cube", x.grad(), {{3}, {4, 130, 2800}}, 0);
  CHECK(!cube(ones({3}, options)).requires_grad());
  check_gradient(device, {noise({3, 2}, 1)},
                 [](const std::vector<Tensor>& in) { return cube(in[0]); });
}

DEVICE_TEST("gradient check: a wrong derivative is caught", "[autograd]") {
  const auto check = [&](const Op& op) { return gradient_check(device, {noise({3, 2}, 1)}, op); };
  CHECK(check([](const std::vector<Tensor>& in) { return cube(in[0]); }).ok());
  for (double wrong : {2.0, 3.00001, -3.0, 0.0})
    CHECK(!check([&](const std::vector<Tensor>& in) { return cube(in[0], wrong); }).ok());
  // One element of six, by a millionth.
  Array nudge = filled({3, 2}, 1);
  nudge.v[4] += 1e-6;
  CHECK(!check([&](const std::vector<Tensor>& in) {
           return record("scaled", in[0].detach() * 1.0, {in[0]}, [&](const Tensor& dy) -> Grads {
             return {dy * tensor(nudge, {kFloat64, device})};
           });
         }).ok());
  // NaN is not a pass.
  CHECK(!check([&](const std::vector<Tensor>& in) { return cube(in[0], std::nan("")); }).ok());
}

DEVICE_TEST("autograd: a user's derivative is checked", "[autograd]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf({{2}, {1, 2}}, options), z = leaf({{2}, {1, 2}}, options);
  const auto with = [&](const BackwardFn& backward) {
    return sum(record("mine", x.detach() * 1.0, {x, z}, backward));
  };
  for (size_t wrong : {0, 1, 3})
    check_throws<Error>(
        [&] { with([=](const Tensor& dy) { return Grads(wrong, dy); }).backward(); },
        {"mine", std::to_string(wrong), "2"});
  check_throws<Error>(
      [&] { with([](const Tensor& dy) -> Grads {
              return {dy.reshape({2, 1}), dy};
            }).backward(); },
      {"mine", "(2, 1)", "(2,)"});
  check_throws<Error>(
      [&] { with([](const Tensor& dy) -> Grads {
              return {dy.to(kFloat64), dy};
            }).backward(); },
      {"mine", "float64", "float32"});
  // An undefined gradient stands for zero.
  x.set_grad({});
  with([](const Tensor& dy) -> Grads { return {dy, {}}; }).backward();
  check_close("gradient", x.grad(), filled({2}, 1), 0);
}

DEVICE_TEST("autograd: an exception in a backward pass leaves things usable", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  const int64_t nodes = live_nodes(), storages = live_storages();
  {
    const Tensor bad = record("bad", x.detach() * 1.0, {x}, [](const Tensor&) -> Grads {
      throw std::runtime_error("from the user's closure");
    });
    check_throws<std::runtime_error>([&] { sum(bad * 2.0 + bad).backward(); },
                                     {"from the user's closure"});
    CHECK(grad_enabled());
  }
  CHECK(live_nodes() == nodes);
  CHECK(live_storages() == storages);
  x.set_grad({});
  sum(x * x).backward();
  check_close("gradient", x.grad(), {{2}, {2, 4}}, 0);
}

DEVICE_TEST("autograd: a graph 100000 nodes deep", "[autograd]") {
  const int kDepth = under_sanitizer() ? 2000 : 100000;
  const int64_t nodes = live_nodes(), storages = live_storages();
  const auto chain = [&](const Tensor& x) {
    Tensor y = x;
    for (int i = 0; i < kDepth; ++i) y = y + 1.0;
    return y;
  };
  {
    const Tensor x = scalar_leaf(1, device);
    const Tensor y = chain(x);
    CHECK(live_nodes() >= nodes + kDepth);
    y.backward();
    CHECK(value(x.grad()) == 1);
    CHECK(value(y) == kDepth + 1);
  }
  CHECK(live_nodes() == nodes);
  {  // destroyed without a backward pass
    const Tensor y = chain(scalar_leaf(1, device));
    CHECK(y.requires_grad());
  }
  CHECK(live_nodes() == nodes);
  CHECK(live_storages() == storages);
}

DEVICE_TEST("autograd: graphs and their memory are freed", "[autograd]") {
  const TensorOptions options{kFloat32, device};
  const int64_t nodes = live_nodes(), storages = live_storages();
  {
    const Tensor x = leaf(noise({2, 3, 9, 8}, 1), options),
                 w = leaf(noise({4, 3, 3, 3}, 2), options);
    const Tensor fc = leaf(noise({5, 36}, 3), options);
    const Tensor labels = zeros({2}, {kInt64, device});
    const auto forward = [&] {
      const Tensor h = flatten(max_pool2d(relu(conv2d(x, w)), 2), 1);
      return cross_entropy(linear(h.narrow(0, 0, 2), permute(permute(fc, {1, 0}), {1, 0})), labels);
    };
    const auto grown = [&] { return std::pair(live_nodes(), live_storages()); };
    forward().backward();
    const auto start = grown();  // gradients of the leaves exist from now on
    for (int i = 0; i < 3; ++i) forward().backward();
    CHECK(grown() == start);
    for (int i = 0; i < 3; ++i) forward();  // without a backward pass
    CHECK(grown() == start);
    {
      const Tensor loss = forward();
      const auto whole = grown();
      CHECK(whole.second > start.second);
      loss.backward();
      // The result is held, its graph's intermediate values are not.
      CHECK(live_storages() <= start.second + 1);
    }
    CHECK(grown() == start);
    {
      const Tensor loss = forward();
      loss.backward(/*retain_graph=*/true);
      loss.backward();
    }
    CHECK(grown() == start);
    {
      const no_grad guard;
      forward();
    }
    CHECK(grown() == start);
  }
  CHECK(live_nodes() == nodes);
  CHECK(live_storages() == storages);
}

DEVICE_TEST("autograd: independent graphs on threads", "[autograd]") {
  const auto run = [&](uint64_t seed) {
    const TensorOptions options{kFloat32, device};
    const Tensor w = leaf(noise({6, 5}, seed), options);
    for (int i = 0; i < 20; ++i) {
      const Tensor x = tensor(noise({4, 5}, seed + static_cast<uint64_t>(i)), options);
      sum(relu(linear(x, w)) * 0.5).backward();
    }
    return w.grad().to_vector<double>();
  };
  const int64_t nodes = live_nodes(), storages = live_storages();
  std::vector<std::vector<double>> alone, together(4);
  for (uint64_t seed = 0; seed < 4; ++seed) alone.push_back(run(100 * seed));
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] { together[seed] = run(100 * seed); });
  for (std::thread& thread : threads) thread.join();
  CHECK(together == alone);
  CHECK(live_nodes() == nodes);
  CHECK(live_storages() == storages);
}

DEVICE_TEST("autograd: anomaly_guard names the first operator with a NaN or infinity",
            "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{3}, {1, 0, 2}}, options);
  const Tensor one = full({}, 1, options);
  {  // forward
    const anomaly_guard guard;
    check_throws<AnomalyError>([&] { relu(one / x) * 2.0; },
                               {"the result of div", "(3,)", "inf", "element 1"});
    CHECK(value(sum(x * x)) == 5);
  }
  {  // backward: sqrt-like, finite at 0 with an infinite slope there
    const Tensor y = record("steep", x.detach(), {x},
                            [sx = Saved(x)](const Tensor& dy) { return Grads{dy / sx.get()}; });
    const Tensor loss = sum(y * 3.0);
    const anomaly_guard guard;
    check_throws<AnomalyError>([&] { loss.backward(); }, {"div", "inf", "element 1"});
  }
  {  // the gradient of a user's operator, made without an operator of its own
    const Tensor y = record("steep", x.detach(), {x}, [device](const Tensor&) {
      return Grads{from_vector<double>({1, std::nan(""), 1}, {3}, device)};
    });
    const Tensor loss = sum(y);
    const anomaly_guard guard;
    check_throws<AnomalyError>([&] { loss.backward(); },
                               {"the gradient of steep for its input 0", "nan", "element 1"});
  }
  CHECK(std::isinf(sum(one / x).item<double>()));  // without a guard nothing is checked
}

DEVICE_TEST("autograd: the recorded operators as shapes", "[autograd]") {
  const Tensor w = leaf({{2, 3}, {1, 2, 3, 4, 5, 6}}, {kFloat64, device});
  const Tensor x = zeros({4, 3}, {kFloat64, device});
  CHECK(recorded_ops(x).empty());
  CHECK(recorded_ops(w).empty());
  const Tensor y = linear(x, w);
  const std::vector<RecordedOp> ops = recorded_ops(sum(y * relu(y)));  // y once, though used twice
  REQUIRE(ops.size() == 4);
  CHECK(ops[0].op == std::string("linear"));
  CHECK(ops[0].result == Shape({4, 2}));
  REQUIRE(ops[0].inputs.size() == 3);
  CHECK(!ops[0].inputs[0]);  // x needs no gradient
  CHECK(ops[0].inputs[1] == Shape({2, 3}));
  CHECK(!ops[0].inputs[2]);  // no bias
  CHECK(ops[1].op == std::string("relu"));
  CHECK(ops[2].op == std::string("mul"));
  CHECK(ops[2].inputs == std::vector<std::optional<Shape>>{Shape({4, 2}), Shape({4, 2})});
  CHECK(ops[3].result.rank() == 0);
}

// ---- changes in place ---------------------------------------------------------------------------

DEVICE_TEST("autograd: copies are one tensor", "[autograd]") {
  const Tensor x = ones({2}, {kFloat64, device});
  const Tensor copy = x;
  CHECK(copy.is(x));
  CHECK(!x.detach().is(x));
  copy.set_requires_grad();
  CHECK(x.requires_grad());
  sum(x * 3.0).backward();
  check_close("dx", copy.grad(), {{2}, {3, 3}}, 0);
  copy.set_requires_grad(false);  // frozen: keeps the gradient it has, collects none
  CHECK(!x.requires_grad());
  CHECK(!(x * 2.0).requires_grad());
  check_close("kept", x.grad(), {{2}, {3, 3}}, 0);
  x.set_requires_grad();
  sum(copy * 2.0).backward();
  check_close("again", x.grad(), {{2}, {5, 5}}, 0);
  x.set_requires_grad(false);
  x.set_grad({});
  CHECK(!copy.grad().defined());
}

DEVICE_TEST("autograd: what is overwritten gets no gradient", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{3}, {1, 2, 3}}, options), w = leaf({{3}, {4, 5, 6}}, options);
  {
    const Tensor y = x * 2.0;
    const Tensor same = y;
    same.fill_(3);
    CHECK(y.requires_grad());
    sum(y).backward();
    check_close("fill_", x.grad(), {{3}, {0, 0, 0}}, 0);
    x.set_grad({});
  }
  {
    const Tensor y = x * 2.0;
    y.copy_(w * w);
    sum(y * 3.0).backward();
    check_close("overwritten", x.grad(), {{3}, {0, 0, 0}}, 0);
    check_close("source", w.grad(), {{3}, {24, 30, 36}}, 0);
    x.set_grad({});
    w.set_grad({});
  }
  {
    // Into a tensor that had no gradient, of another dtype.
    const Tensor z = zeros({3}, {kFloat32, device});
    z.copy_(w);
    CHECK(z.requires_grad());
    CHECK(!z.is_leaf());
    sum(z * z).backward();
    check_close("converted", w.grad(), {{3}, {8, 10, 12}}, 0);
    CHECK(w.grad().dtype() == kFloat64);
    w.set_grad({});
  }
  {
    // What was computed before the change keeps its derivative, unless it saved the values.
    const Tensor y = x * 2.0, before = sum(y);
    y.fill_(0);
    (before + sum(y)).backward();
    check_close("before the change", x.grad(), {{3}, {2, 2, 2}}, 0);
    x.set_grad({});
    const Tensor z = x * 2.0, squared = sum(z * z);
    z.fill_(1);
    check_throws<GradError>([&] { squared.backward(); }, {"in place"});
  }
  // Nothing is recorded of integers, nor under no_grad.
  const Tensor counts = zeros({3}, {kInt64, device});
  counts.copy_(w);
  CHECK(!counts.requires_grad());
  const Tensor random = x * 2.0;
  uniform_(random, 0, 1);
  sum(random).backward();
  check_close("random", x.grad(), {{3}, {0, 0, 0}}, 0);
  normal_(w, 0, 1);  // a leaf's first values
  CHECK(w.is_leaf());
  CHECK(w.requires_grad());
  check_throws<GradError>([&] { normal_(w.narrow(0, 0, 1), 0, 1); }, {"normal_", "leaf"});
  const no_grad guard;
  const Tensor z = zeros({3}, options);
  z.copy_(w);
  CHECK(!z.requires_grad());
}

DEVICE_TEST("autograd: a view and what it is a view of change together", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2, 3}, {1, 2, 3, 4, 5, 6}}, options);
  const Tensor w = leaf({{3}, {7, 8, 9}}, options),
               c = tensor({{2, 3}, {1, 2, 3, 4, 5, 6}}, options);
  const auto reset = [&] {
    x.set_grad({});
    w.set_grad({});
  };
  {
    const Tensor y = x * 2.0;
    y.narrow(0, 1, 1).reshape({3}).copy_(w);
    sum(y * c).backward();
    check_close("through a view", x.grad(), {{2, 3}, {2, 4, 6, 0, 0, 0}}, 0);
    check_close("its source", w.grad(), {{3}, {4, 5, 6}}, 0);
    reset();
  }
  {
    // Views made before the change, of the part that changes and of another, see it.
    const Tensor y = x * 2.0, row = y.narrow(0, 1, 1), other = y.narrow(0, 0, 1),
                 flat = y.reshape({6});
    flat.narrow(0, 3, 3).copy_(w);
    sum(row * c.narrow(0, 1, 1)).backward(true);
    check_close("changed part", w.grad(), {{3}, {4, 5, 6}}, 0);
    check_close("and x", x.grad(), {{2, 3}, {0, 0, 0, 0, 0, 0}}, 0);
    reset();
    sum(other).backward();
    check_close("the rest", x.grad(), {{2, 3}, {2, 2, 2, 0, 0, 0}}, 0);
    reset();
  }
  {
    const Tensor y = x * 2.0, row = y.narrow(0, 0, 1);
    y.fill_(1);
    sum(row * row).backward();
    check_close("the base changed", x.grad(), {{2, 3}, {0, 0, 0, 0, 0, 0}}, 0);
    reset();
  }
  {
    // Rows written one by one, as a loop gathers results.
    const Tensor all = zeros({2, 3}, options);
    for (int i = 0; i < 2; ++i) all.narrow(0, i, 1).reshape({3}).copy_(w * (i + 1.0));
    sum(all * c).backward();
    check_close("gathered", w.grad(), {{3}, {1 + 8, 2 + 10, 3 + 12}}, 0);
    reset();
  }
  // A detached tensor is outside the graph, and changed as such.
  const Tensor y = x * 2.0;
  y.detach().fill_(5);
  sum(y).backward();
  check_close("detached", x.grad(), {{2, 3}, {2, 2, 2, 2, 2, 2}}, 0);
}

DEVICE_TEST("autograd: leaves change in place only outside the graph", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  check_throws<GradError>([&] { x.fill_(1); }, {"fill_", "leaf", "no_grad"});
  check_throws<GradError>([&] { x.copy_(zeros({2}, options)); }, {"copy_", "leaf"});
  check_throws<GradError>([&] { x.narrow(0, 0, 1).fill_(1); }, {"fill_", "leaf"});
  const auto view_without = [&] {
    const no_grad guard;
    return (x * 1.0).reshape({2, 1});
  };
  CHECK(!view_without().requires_grad());
  const Tensor y = x * 2.0;
  const Tensor hidden = [&] {
    const no_grad guard;
    return y.narrow(0, 0, 1);
  }();
  check_throws<GradError>([&] { hidden.fill_(1); }, {"fill_", "no_grad"});
  CHECK(x.to_vector<double>() == std::vector<double>{1, 2});
  {
    const no_grad guard;
    x.fill_(3);
    x.narrow(0, 1, 1).fill_(4);
    hidden.fill_(1);
  }
  CHECK(x.to_vector<double>() == std::vector<double>{3, 4});
  CHECK(x.is_leaf());
  check_throws<ValueError>([&] { Tensor().fill_(1); }, {"fill_", "undefined"});
  check_throws<ValueError>([&] { Tensor().copy_(x); }, {"copy_", "undefined"});
  check_throws<ValueError>([&] { zeros({2}, options).copy_({}); }, {"copy_", "undefined"});
}

DEVICE_TEST("autograd: results change in place whatever made them", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor a = leaf({{2, 2}, {1, 2, 3, 4}}, options), b = ones({2, 2}, options);
  const auto check = [&](const char* what, const Tensor& y, const Array& expected) {
    sum(y).backward();
    check_close(what, a.grad(), expected, 0);
    a.set_grad({});
  };
  {
    const Tensor y = matmul(a, b);
    y.fill_(0);
    check("matmul, filled", y, {{2, 2}, {0, 0, 0, 0}});
  }
  {
    const Tensor y = matmul(a, b);
    y.narrow(0, 0, 1).fill_(0);
    check("matmul, a row filled", y, {{2, 2}, {0, 0, 2, 2}});
  }
  {
    const Tensor y = matmul(a, b);
    y.narrow(0, 1, 1) += 1;
    check("matmul, a row moved", y, {{2, 2}, {2, 2, 2, 2}});
  }
  {
    const Tensor h = [&] {
      const no_grad guard;
      return matmul(b, b);
    }();
    h += a;
    check("made under no_grad", h, {{2, 2}, {1, 1, 1, 1}});
  }
  {
    const Tensor y = 1.0 / a;
    y += 1.0;
    check("div", y, {{2, 2}, {-1, -0.25, -1.0 / 9, -1.0 / 16}});
  }
  {
    // A user's own, which looks at a temporary in another shape.
    const Tensor y = record("mine", (a.detach() * 3.0).reshape({4}), {a}, [](const Tensor& dy) {
      return Grads{(dy * 3.0).reshape({2, 2})};
    });
    y.narrow(0, 0, 1).fill_(0);
    check("own", y, {{2, 2}, {0, 3, 3, 3}});
  }
}

DEVICE_TEST("autograd: a frozen leaf collects nothing and stays a leaf", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor p = ones({4}, options).set_requires_grad();
  const Tensor loss = sum(p * 2.0), view = p.narrow(0, 0, 2);
  p.set_requires_grad(false);
  loss.backward();  // of before it was frozen
  CHECK(!p.grad().defined());
  check_throws<GradError>([&] { view.fill_(5); }, {"fill_", "leaf"});
  check_throws<GradError>(
      [&] {
        Tensor v = view;
        v *= 2.0;
      },
      {"*=", "leaf"});
  CHECK(p.is_leaf());
  p.set_requires_grad();
  sum(p).backward();
  check_close("again", p.grad(), {{4}, {1, 1, 1, 1}}, 0);
}

DEVICE_TEST("autograd: set_data", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor p = ones({2}, options).set_requires_grad(), copy = p, view = [&] {
    const no_grad guard;
    return p.narrow(0, 0, 1);
  }();
  sum(p).backward();
  p.set_data(full({2}, 3, options));
  CHECK(copy.to_vector<double>() == std::vector<double>{3, 3});
  CHECK(copy.is_leaf());
  CHECK(copy.requires_grad());
  CHECK(!copy.grad().defined());
  CHECK(view.item<double>() == 1);  // of what was there before
  check_throws<ShapeError>([&] { p.set_data(ones({3}, options)); }, {"set_data", "(2,)", "(3,)"});
  check_throws<GradError>([&] { (p * 1.0).set_data(p); }, {"set_data", "leaf"});
  // A view of what was there before is no part of the graph of what came.
  const Tensor x = zeros({4}, options), w = x.narrow(0, 2, 2);
  x.set_data(ones({4}, options));
  w.copy_(p);
  CHECK(!x.requires_grad());
  CHECK(x.is_leaf());
  sum(w).backward();
  check_close("on its own", p.grad(), {{2}, {1, 1}}, 0);
}

TEST_CASE("autograd: threads may meet a view after a change", "[autograd]") {
  const Tensor x = leaf({{4}, {1, 2, 3, 4}}, {kFloat64, kCpu});
  const Tensor y = x * 2.0, row = y.narrow(0, 1, 2);
  y.fill_(1);
  std::vector<std::thread> threads;
  std::atomic<int> connected = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] { connected += row.requires_grad() && !row.is_leaf(); });
  for (std::thread& t : threads) t.join();
  CHECK(connected == 4);
}

DEVICE_TEST("autograd: anomalies are looked for in results alone", "[autograd]") {
  const anomaly_guard guard;
  // Memory that nothing has written yet: views compute nothing.
  const Tensor slots = full({4}, std::nan(""), {kFloat32, device});
  const Tensor one = slots.narrow(0, 2, 1).reshape({}).flatten();
  one.copy_(ones({1}, {kFloat32, device}));
  CHECK(slots.narrow(0, 2, 1).item<float>() == 1);
  CHECK(std::isnan(slots.to_vector<float>()[0]));  // and reading is no operator
  const Tensor bad = slots.narrow(0, 0, 1);
  check_throws<AnomalyError>([&] { (void)(bad * 1.0); }, {"mul", "nan"});
}

}  // namespace sinter::test
