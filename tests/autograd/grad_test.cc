// grad() and hooks of tensors.
#include "tests/support/compiled.h"

namespace sinter::test {
namespace {

using Values = std::vector<double>;
Values of(const Tensor& t) { return t.to_vector<double>(); }

}  // namespace

DEVICE_TEST("grad: of leaves and results in between", "[autograd]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor x = leaf({{2}, {1, 2}}, options), w = leaf({{2}, {3, 4}}, options);
    const Tensor h = x * w, y = sum(h * h);  // dy/dh = 2 h, dy/dx = 2 h w
    const std::vector<Tensor> g = grad(y, {h, x}, {.retain_graph = true});
    CHECK(of(g[0]) == Values{6, 16});
    CHECK(of(g[1]) == Values{18, 64});
    CHECK(of(grad(y, {y}, {.retain_graph = true})[0]) == Values{1});
    // The same tensor twice; and nothing was added up.
    const std::vector<Tensor> twice = grad(y, {w, w}, {.retain_graph = true});
    CHECK(of(twice[0]) == Values{6, 32});
    CHECK(of(twice[1]) == Values{6, 32});
    CHECK((!x.grad().defined() && !w.grad().defined() && !g[0].requires_grad()));
    y.backward();
    CHECK(of(x.grad()) == Values{18, 64});
  }
}

DEVICE_TEST("grad: several outputs and their weights", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  const Tensor a = x * 3.0, b = sum(x * x);
  const std::vector<Tensor> g =
      grad({a, b}, {x}, {.grad_outputs = {tensor({{2}, {1, 10}}, options), {}}});
  CHECK(of(g[0]) == Values{3 + 2, 30 + 4});
  // Results are tensors of their own, whatever a derivative hands on.
  const Tensor u = leaf({{2}, {1, 1}}, options), v = leaf({{2}, {1, 1}}, options);
  const Tensor dy = ones({2}, options);
  const std::vector<Tensor> both = grad(u + v, {u, v}, {.grad_outputs = {dy}});
  both[0].fill_(7);
  CHECK(of(both[1]) == Values{1, 1});
  CHECK(of(dy) == Values{1, 1});
}

DEVICE_TEST("grad: only what lies between is computed and freed", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{}, {2}}, options), w = leaf({{}, {3}}, options);
  int calls = 0;
  const auto counted = [&](const Tensor& t) {
    return record("counted", t.detach().clone(), {t}, [&](const Tensor& dy) {
      ++calls;
      return Grads{dy};
    });
  };
  const Tensor h = counted(x), y = h * w;
  CHECK(of(grad(y, {w}, {.retain_graph = true})[0]) == Values{2});
  CHECK(of(grad(y, {h}, {.retain_graph = true})[0]) == Values{3});
  CHECK(calls == 0);
  CHECK(of(grad(y, {x})[0]) == Values{3});
  CHECK(calls == 1);
  check_throws<GradError>([&] { grad(y, {x}); }, {"freed", "mul"});
  check_throws<GradError>([&] { grad(h * x, {x}); }, {"freed", "counted"});
  CHECK(of(grad(h * w, {h})[0]) == Values{3});  // what lies before h does not matter
  const int64_t nodes = live_nodes();
  grad(x * x, {x});
  CHECK(live_nodes() == nodes);
}

DEVICE_TEST("grad: errors name the tensor", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options), other = leaf({{3}, {1, 2, 3}}, options);
  const Tensor y = sum(x);
  check_throws<GradError>(
      [&] {
        grad(y, {x, other}, {.retain_graph = true});
      },
      {"input 1", "(3,)", "allow_unused"});
  const std::vector<Tensor> g = grad(y, {other, x}, {.retain_graph = true, .allow_unused = true});
  CHECK(!g[0].defined());
  CHECK(of(g[1]) == Values{1, 1});
  check_throws<GradError>([&] { grad(y, {x.detach()}); }, {"input 0", "(2,)", "require grad"});
  check_throws<GradError>([&] { grad(ones({1}, options), {x}); }, {"output 0", "require grad"});
  check_throws<GradError>([&] { grad(y, {Tensor()}); }, {"input 0", "undefined"});
  check_throws<GradError>([&] { grad(x * 2.0, {x}); }, {"grad", "one element", "(2,)"});
  check_throws<GradError>([&] { grad(y, {x}, {.grad_outputs = {ones({2}, options)}}); }, {"(2,)"});
  check_throws<ValueError>([&] { grad(y, {x}, {.grad_outputs = {y, y}}); }, {"grad_outputs", "2"});
  check_throws<ValueError>([&] { grad(y, {}); }, {"grad", "inputs"});
}

DEVICE_TEST("grad: in compiled steps", "[autograd]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const Tensor x = leaf(noise({3, 4}, 1), {dtype, device});
    const Tensor w = leaf(noise({5, 4}, 2), {dtype, device});
    const Tensor b = leaf(noise({5}, 3), {dtype, device});
    check_compiled([&] {
      const Tensor h = relu(linear(x, w, b)), y = sum(h * h);
      return grad(y, {h, w, b, x});
    });
    CHECK(!w.grad().defined());
  }
}

DEVICE_TEST("hooks: a tensor's gradient is read and replaced", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  const Tensor h = x * 2.0;
  std::vector<Values> seen;
  const auto see = [&](const Tensor& g) {
    seen.push_back(of(g));
    CHECK(!grad_enabled());
    return Tensor();
  };
  x.register_hook(see);
  HookHandle halves = x.register_hook([](const Tensor& g) { return g * 0.5; });
  h.register_hook([](const Tensor& g) { return g + 1.0; });
  h.register_hook(see);
  const Tensor y = sum(h * h + h);  // dy/dh = 2 h + 1
  CHECK(of(grad(y, {h}, {.retain_graph = true})[0]) == Values{6, 10});
  CHECK(seen == std::vector<Values>{{6, 10}});
  seen.clear();
  y.backward(/*retain_graph=*/true);
  CHECK(seen == std::vector<Values>{{6, 10}, {12, 20}});
  CHECK(of(x.grad()) == Values{6, 10});
  y.backward(/*retain_graph=*/true);  // of each pass, before it is added
  CHECK(of(x.grad()) == Values{12, 20});
  halves.remove();
  halves.remove();
  x.set_grad({});
  y.backward();
  CHECK(of(x.grad()) == Values{12, 20});
  // One that removes itself; and a handle of a tensor that is gone.
  const Tensor z = leaf({{}, {1}}, options);
  int calls = 0;
  HookHandle once;
  once = z.register_hook([&](const Tensor&) {
    ++calls;
    once.remove();
    return Tensor();
  });
  for (int i = 0; i < 2; ++i) (z * z).backward();
  CHECK(calls == 1);
  {
    Tensor gone = leaf({{}, {1}}, options);
    once = gone.register_hook(see);
  }
  once.remove();
}

DEVICE_TEST("hooks: errors of a tensor's hook", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  check_throws<GradError>([&] { x.detach().register_hook([](const Tensor& g) { return g; }); },
                          {"register_hook", "(2,)", "require grad"});
  check_throws<ValueError>([&] { x.register_hook(nullptr); }, {"register_hook", "null"});
  x.register_hook([](const Tensor& g) { return sum(g); });
  check_throws<GradError>([&] { sum(x).backward(); }, {"hook", "(2,)", "leaf"});
}

DEVICE_TEST("hooks: a compiled step has the operators of a tensor's hooks", "[autograd]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{2}, {1, 2}}, options);
  HookHandle handle = x.register_hook([](const Tensor& g) { return clamp(g, -3, 3); });
  auto step = compile([&] {
    x.set_grad({});
    const Tensor h = x * x;
    h.register_hook([](const Tensor& g) { return g * 2.0; });
    sum(h).backward();
    return x.grad();
  });
  for (int i = 0; i < 3; ++i) CHECK(of(step()) == Values{3, 3});
  CHECK(step.stats().recordings == 2);
  handle.remove();  // which a program hears of
  for (int i = 0; i < 3; ++i) CHECK(of(step()) == Values{4, 8});
  CHECK(step.stats().recordings == 4);
}

}  // namespace sinter::test
