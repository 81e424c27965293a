// sinter::gradcheck finds wrong derivatives, and only those.
#include <sinter/emit.h>
#include <sinter/gradcheck.h>
#include <sinter/sinter.h>

#include "core/base/detail.h"
#include "tests/support/values.h"

using namespace sinter;
using namespace sinter::test;

namespace {

using Function = std::function<Tensor(const std::vector<Tensor>&)>;

constexpr bool kModes[] = {false, true};  // GradcheckOptions::full

Tensor input(const Array& a, Device device) { return tensor(a, {kFloat64, device}); }

// x^3 as a user would write it, with its derivative 3 x^2 passed through `spoil`.
Tensor cube(const Tensor& x, const std::function<Tensor(const Tensor&)>& spoil) {
  return record("cube", (x * x * x).detach(), {x}, [x = Saved(x), spoil](const Tensor& dy) {
    return Grads{spoil(dy * 3.0 * x.get() * x.get())};
  });
}

// t with `delta` added to one element.
Tensor nudged(const Tensor& t, size_t index, double delta) {
  std::vector<double> values = t.to_vector<double>();
  values[index] += delta;
  return from_vector(values, t.shape(), t.device());
}

}  // namespace

DEVICE_TEST("gradcheck: right derivatives pass in both modes", "[gradcheck]") {
  const std::vector<Tensor> images = {input(ramp({2, 3, 6, 5}, 1), device),
                                      input(noise({4, 3, 3, 2}, 2), device),
                                      input(noise({4}, 3), device)};
  for (const bool full : kModes) {
    const GradcheckResult result = gradcheck(
        [](const std::vector<Tensor>& in) {
          return log_softmax(flatten(max_pool2d(relu(conv2d(in[0], in[1], in[2])), 2), 1));
        },
        images, {.full = full});
    INFO(result.str());
    CHECK(result.ok);
    CHECK(result.kinks <= 2);
    CHECK(result.checked + result.kinks == (full ? 180 + 72 + 4 : 9));
    CHECK(result.unchecked == -1);
    CHECK(result.share <= 1);
    CHECK(result.input >= 0);
  }
  // The magnitudes that rounding scales with: a large result, and large inputs.
  for (const double scale : {1e-6, 1.0, 1e6, 1e12}) {
    for (const bool full : kModes) {
      const GradcheckResult result = gradcheck(
          [scale](const std::vector<Tensor>& in) { return sum(in[0] / in[1]) * scale + scale; },
          {images[0] * scale, (images[0] * images[0] + 1.0) * scale},
          {.full = full, .step = 1e-5 * std::min(1.0, scale)});
      INFO("scale " << scale << ": " << result.str());
      CHECK(result.ok);
      CHECK(result.kinks == 0);
    }
  }
}

DEVICE_TEST("gradcheck: a scaled derivative is caught", "[gradcheck]") {
  const Tensor x = input(ramp({3, 7}, 4), device);
  for (const bool full : kModes) {
    for (const double factor : {1.00001, 0.0, -1.0, 1e9}) {
      const GradcheckResult result = gradcheck(
          [&](const std::vector<Tensor>& in) {
            return cube(in[0], [&](const Tensor& dx) { return dx * factor; });
          },
          {x}, {.full = full});
      INFO(result.str());
      CHECK_FALSE(result.ok);
      CHECK(result.share > 1);
      CHECK(result.kinks == 0);
      CHECK(result.input == 0);
      REQUIRE(result.index >= 0);
      // The value named is the weight, between 0.5 and 1.5, times 3 x^2.
      const double at = x.to_vector<double>()[static_cast<size_t>(result.index)];
      const double weight = std::abs(result.numeric) / (3 * at * at);
      CHECK(weight > 0.4999);
      CHECK(weight < 1.5001);
      CHECK(std::abs(result.analytic - factor * result.numeric) <=
            1e-5 * std::abs(factor * result.numeric));
    }
    const GradcheckResult right = gradcheck(
        [](const std::vector<Tensor>& in) {
          return cube(in[0], [](const Tensor& dx) { return dx; });
        },
        {x}, {.full = full});
    INFO(right.str());
    CHECK(right.ok);  // a user's own operator, right
  }
}

DEVICE_TEST("gradcheck: a transposed derivative is caught", "[gradcheck]") {
  // A X with the gradient A dY in place of A^T dY: right for a symmetric A only.
  const auto product = [](const std::vector<Tensor>& in) {
    return record("product", matmul(in[0], in[1]).detach(), in,
                  [a = Saved(in[0]), b = Saved(in[1])](const Tensor& dy) {
                    return Grads{matmul(dy, permute(b.get(), {1, 0})), matmul(a.get(), dy)};
                  });
  };
  const Tensor x = input(noise({4, 3}, 6), device);
  const Tensor a = input(noise({4, 4}, 5), device);
  const Tensor symmetric = a + permute(a, {1, 0});
  for (const bool full : kModes) {
    const GradcheckResult wrong = gradcheck(product, {a, x}, {.full = full});
    INFO(wrong.str());
    CHECK_FALSE(wrong.ok);
    CHECK(wrong.input == 1);
    CHECK(wrong.index >= 0);
    CHECK(gradcheck(product, {symmetric, x}, {.full = full}).ok);
  }
}

DEVICE_TEST("gradcheck: one wrong element among many is caught and named", "[gradcheck]") {
  const Tensor x = input(ramp({5, 67}, 7), device), scale = input(ramp({67}, 8), device);
  for (const bool full : kModes) {
    for (const size_t index : {size_t{0}, size_t{123}, size_t{334}}) {
      for (const double delta : {1e-4, -0.5, std::numeric_limits<double>::quiet_NaN(),
                                 std::numeric_limits<double>::infinity()}) {
        const GradcheckResult result = gradcheck(
            [&](const std::vector<Tensor>& in) {
              return in[0] *
                     cube(in[1], [&](const Tensor& dx) { return nudged(dx, index, delta); });
            },
            {scale, x}, {.full = full});
        INFO("element " << index << " off by " << delta << ": " << result.str());
        CHECK_FALSE(result.ok);
        CHECK_FALSE(result.share <= 1);
        CHECK(result.input == 1);
        CHECK(result.index == static_cast<int64_t>(index));
        CHECK(std::isfinite(result.numeric));
        if (std::isfinite(delta)) CHECK(std::abs(result.analytic - result.numeric - delta) < 1e-6);
        const std::string text = result.str();
        CHECK(text.rfind("WRONG", 0) == 0);
        CHECK(text.find(str("input 1 element ", index, ", analytic ")) != std::string::npos);
      }
    }
  }
}

DEVICE_TEST("gradcheck: a small derivative is not hidden by large ones", "[gradcheck]") {
  // y = (1e8 a, b): b's derivative is off by a thousandth, far below the rounding of a's part.
  const auto f = [](const std::vector<Tensor>& in) {
    const Tensor b = cube(in[1], [](const Tensor& dx) { return dx * 1.001; });
    return in[0] * 1e8 + b * input(Array{{3}, {1, 0, 0}}, in[0].device());
  };
  const std::vector<Tensor> inputs = {input(Array{{3}, {0, 1, -2}}, device),
                                      input(Array{{1}, {0.7}}, device)};
  for (const bool full : kModes) {
    const GradcheckResult result = gradcheck(f, inputs, {.full = full});
    INFO(result.str());
    CHECK_FALSE(result.ok);
    CHECK(result.input == 1);
    CHECK(result.index == 0);
  }
}

DEVICE_TEST("gradcheck: kinks are set aside and are no errors", "[gradcheck]") {
  Array at_zero = ramp({40}, 9);
  at_zero.v[17] = 0;
  const auto f = [](const std::vector<Tensor>& in) { return relu(in[0]) * in[0] + relu(in[0]); };
  for (const bool full : kModes) {
    const GradcheckResult result = gradcheck(f, {input(at_zero, device)}, {.full = full});
    INFO(result.str());
    CHECK(result.ok);
    if (full) {
      CHECK(result.kinks == 1);
      CHECK(result.checked == 39);
    } else {  // directions drawn anew leave the zero out, sooner or later
      CHECK(result.checked + result.kinks == 3);
      CHECK(result.checked >= 1);
    }
  }
  // Near zero, but not at it: a smaller step tells.
  at_zero.v[17] = 2e-6;
  const GradcheckResult near = gradcheck(f, {input(at_zero, device)}, {.full = true});
  INFO(near.str());
  CHECK(near.ok);
  CHECK(near.kinks == 0);
  CHECK(near.checked == 40);

  // Two of four elements of a window tie for the maximum.
  const Tensor tie = input({{1, 1, 2, 4}, {1, 3, 0.5, 0.25, 3, 2, 0.125, 0.75}}, device);
  const GradcheckResult pooled = gradcheck(
      [](const std::vector<Tensor>& in) { return max_pool2d(in[0], 2); }, {tie}, {.full = true});
  INFO(pooled.str());
  CHECK(pooled.ok);
  CHECK(pooled.kinks == 2);
  CHECK(pooled.checked == 6);

  // An error among kinks is an error.
  at_zero.v[17] = 0;
  for (const bool full : kModes) {
    const GradcheckResult wrong = gradcheck(
        [](const std::vector<Tensor>& in) {
          return relu(in[0]) + cube(in[0], [](const Tensor& dx) { return nudged(dx, 5, 0.01); });
        },
        {input(at_zero, device)}, {.full = full, .directions = 8});
    INFO(wrong.str());
    CHECK_FALSE(wrong.ok);
    CHECK(wrong.index == 5);
    CHECK(wrong.kinks >= (full ? 1 : 0));
  }
}

DEVICE_TEST("gradcheck: nothing but kinks is not ok", "[gradcheck]") {
  const Tensor zero = zeros({6}, {kFloat64, device}), one = ones({6}, {kFloat64, device});
  for (const bool full : kModes) {
    const GradcheckResult result =
        gradcheck([](const std::vector<Tensor>& in) { return in[0] + relu(in[1]); }, {one, zero},
                  {.full = full});
    INFO(result.str());
    CHECK_FALSE(result.ok);
    CHECK(result.checked == (full ? 6 : 3));  // of the other input
    CHECK(result.kinks == (full ? 6 : 3));
    CHECK(result.unchecked == 1);
    CHECK(result.str().find("nothing of input 1 could be compared") != std::string::npos);
  }
  // A jump, and oscillations shorter than any step.
  const auto jump = [](const std::vector<Tensor>& in) {
    std::vector<double> y = in[0].to_vector<double>();
    for (double& v : y) v = v > 0 ? 1 : 0;
    return record("jump", from_vector(y, in[0].shape(), in[0].device()), in,
                  [](const Tensor& dy) { return Grads{dy * 0.0}; });
  };
  CHECK_FALSE(gradcheck(jump, {zero}).ok);
  CHECK(gradcheck(jump, {one}).ok);
}

DEVICE_TEST("gradcheck: inputs without elements and unused ones and a finite result",
            "[gradcheck]") {
  const TensorOptions options{kFloat64, device};
  for (const bool full : kModes) {
    // A batch of none: w still has a gradient, zero.
    const GradcheckResult none =
        gradcheck([](const std::vector<Tensor>& in) { return linear(in[0], in[1]); },
                  {zeros({0, 3}, options), ones({2, 3}, options)}, {.full = full});
    INFO(none.str());
    CHECK(none.ok);
    CHECK(none.checked == (full ? 6 : 3));
    CHECK(none.share == 0);

    const GradcheckResult all = gradcheck([](const std::vector<Tensor>& in) { return relu(in[0]); },
                                          {zeros({0}, options)}, {.full = full});
    CHECK(all.ok);
    CHECK(all.checked == 0);
    CHECK(all.input == -1);

    // Undefined counts as zero: right where f ignores the input, wrong where the graph was cut.
    const std::vector<Tensor> two = {ones({5}, options), ones({5}, options)};
    CHECK(gradcheck([](const std::vector<Tensor>& in) { return in[1] * 2.0; }, two, {.full = full})
              .ok);
    const GradcheckResult cut = gradcheck(
        [](const std::vector<Tensor>& in) { return in[0].detach() * in[1]; }, two, {.full = full});
    INFO(cut.str());
    CHECK_FALSE(cut.ok);
    CHECK(cut.input == 0);
    CHECK(cut.analytic == 0);

    const GradcheckResult infinite =
        gradcheck([](const std::vector<Tensor>& in) { return in[0] / (in[0] - 1.0); }, {two[0]},
                  {.full = full});
    INFO(infinite.str());
    CHECK_FALSE(infinite.ok);
  }
}

DEVICE_TEST("gradcheck: of a compiled function", "[gradcheck]") {
  const std::vector<Tensor> images = {input(ramp({2, 3, 6, 6}, 1), device),
                                      input(noise({4, 3, 3, 3}, 2), device),
                                      input(noise({4}, 3), device)};
  for (const bool full : kModes) {
    const GradcheckOptions options{.full = full, .compiled = true};
    const auto net = [](const std::vector<Tensor>& in) {
      return log_softmax(flatten(max_pool2d(relu(conv2d(in[0], in[1], in[2])), 2), 1));
    };
    const GradcheckResult right = gradcheck(net, images, options);
    INFO(right.str());
    CHECK(right.ok);
    CHECK(right.checked + right.kinks == (full ? 216 + 108 + 4 : 9));
    const GradcheckResult wrong = gradcheck(
        [](const std::vector<Tensor>& in) {
          return cube(in[0], [](const Tensor& dx) { return dx * 1.001; });
        },
        {images[0]}, options);
    INFO(wrong.str());
    CHECK_FALSE(wrong.ok);
    // Right but where a program computes it.
    check_throws<ValueError>(
        [&] {
          gradcheck(
              [](const std::vector<Tensor>& in) {
                return in[0] * (recording_program() ? 3.0 : 2.0);
              },
              {ones({2}, {kFloat64, device})}, options);
        },
        {"gradcheck", "compiled", "3 instead of 2", "element 0"});
    CHECK_FALSE(gradcheck(
                    [](const std::vector<Tensor>& in) {
                      return record("doubled", in[0].detach() * 2.0, in, [](const Tensor& dy) {
                        return Grads{dy * (recording_program() ? 3.0 : 2.0)};
                      });
                    },
                    {images[2]}, options)
                    .ok);
  }
}

TEST_CASE("gradcheck: the caller's tensors stay as they were", "[gradcheck][cpu]") {
  Tensor x = tensor(ramp({4, 4}, 11), {kFloat64, kCpu}).set_requires_grad();
  const std::vector<double> before = x.to_vector<double>();
  const uint64_t version = x.version();
  const int64_t nodes = live_nodes(), storages = live_storages();
  for (const bool compiled : {false, true})
    CHECK(gradcheck([](const std::vector<Tensor>& in) { return relu(in[0]); }, {x},
                    {.compiled = compiled})
              .ok);
  CHECK(x.to_vector<double>() == before);
  CHECK(x.version() == version);
  CHECK(x.requires_grad());
  CHECK_FALSE(x.grad().defined());
  CHECK(live_nodes() == nodes);
  CHECK(live_storages() == storages);
  // Deterministic in the seed.
  const auto f = [](const std::vector<Tensor>& in) { return in[0] * in[0] * in[0]; };
  CHECK(gradcheck(f, {x}).str() == gradcheck(f, {x}).str());
  CHECK(gradcheck(f, {x}).str() != gradcheck(f, {x}, {.seed = 1}).str());
}

DEVICE_TEST("gradcheck: what it cannot check it says", "[gradcheck]") {
  const Tensor x = ones({2, 3}, {kFloat64, device});
  const Function same = [](const std::vector<Tensor>& in) { return in[0] * 1.0; };
  check_throws<DtypeError>(
      [&] {
        gradcheck(same, {x, ones({2}, {kFloat32, device})});
      },
      {"gradcheck", "float64", "float32", "input 1"});
  check_throws<DtypeError>([&] { gradcheck(same, {Tensor()}); }, {"float64", "undefined"});
  check_throws<ValueError>([&] { gradcheck(same, {}); }, {"at least one input"});
  check_throws<DtypeError>(
      [&] { gradcheck([](const std::vector<Tensor>& in) { return in[0].to(kFloat32); }, {x}); },
      {"float64 result", "float32"});
  check_throws<DtypeError>(
      [&] { gradcheck([](const std::vector<Tensor>&) { return Tensor(); }, {x}); },
      {"float64 result", "undefined"});
  const Tensor elsewhere = leaf(noise({2, 2}, 1), {kFloat64, kCpu});
  check_throws<GradError>(
      [&] { gradcheck([&](const std::vector<Tensor>&) { return elsewhere * 2.0; }, {elsewhere}); },
      {"gradcheck", "arguments"});
  check_throws<GradError>(
      [&] { gradcheck([](const std::vector<Tensor>& in) { return in[0].detach(); }, {x}); },
      {"depends on none of its inputs", "record()"});
  for (const GradcheckOptions& bad :
       {GradcheckOptions{.step = 0}, GradcheckOptions{.step = NAN},
        GradcheckOptions{.directions = 0}, GradcheckOptions{.rtol = -1},
        GradcheckOptions{.atol = NAN}}) {
    check_throws<ValueError>([&] { gradcheck(same, {x}, bad); },
                             {"step > 0", "directions >= 1", "rtol >= 0"});
  }

  for (const int first : {1, 2}) {  // changes between the first two calls, or among the moved ones
    int calls = 0;
    check_throws<ShapeError>(
        [&] {
          gradcheck(
              [&](const std::vector<Tensor>& in) {
                return ++calls > first ? in[0].reshape({3, 2}) * 1.0 : in[0] * 1.0;
              },
              {x});
        },
        {"one shape at every call", "first (2, 3)", "then (3, 2)"});
  }
  double noise = 0;
  check_throws<ValueError>(
      [&] { gradcheck([&](const std::vector<Tensor>& in) { return in[0] + (noise += 1); }, {x}); },
      {"deterministic", "2 and 3", "element 0"});
}
