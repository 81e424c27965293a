// Linear layers one after another, which programs run as one operator, against an oracle.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/detail.h"
#include "tests/reference/oracle.h"
#include "tests/support/compiled.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

using app::mlp;
using app::Mode;

// A stack of layers with inputs, an upstream gradient and what an oracle says of it.
struct Stack {
  Sizes widths;
  bool relu_last = false;
  Array x, dy, y;
  std::vector<Array> w, b, dw, db;  // an empty b[l] is no bias
  Array dx;
  double least = std::numeric_limits<double>::infinity();  // |value| in front of a ReLU

  size_t layers() const { return w.size(); }
};

void add_bias(Array& y, const Array& b) {
  for (size_t i = 0; i < y.v.size() && !b.v.empty(); ++i) y.v[i] += b.v[i % b.v.size()];
}

// Fills in y and the gradients.
void solve(Stack& s) {
  std::vector<Array> h = {s.x};
  const auto has_relu = [&](size_t l) { return l + 1 < s.layers() || s.relu_last; };
  for (size_t l = 0; l < s.layers(); ++l) {
    Array y = oracle::product(h.back(), oracle::transposed(s.w[l]));
    add_bias(y, s.b[l]);
    if (has_relu(l)) {
      for (double value : y.v) s.least = std::min(s.least, std::abs(value));
      y = oracle::map(y, [](double value) { return value > 0 ? value : 0; });
    }
    h.push_back(y);
  }
  s.y = h.back();
  s.dw.resize(s.layers());
  s.db.resize(s.layers());
  Array dz = s.dy;
  for (size_t l = s.layers(); l-- > 0;) {
    for (size_t i = 0; i < dz.v.size() && has_relu(l); ++i)
      if (h[l + 1].v[i] <= 0) dz.v[i] = 0;
    s.dw[l] = oracle::product(oracle::transposed(dz), h[l]);
    s.db[l] = oracle::sum(dz, {0});
    s.db[l].shape = {s.widths[l + 1]};
    dz = oracle::product(dz, s.w[l]);
  }
  s.dx = dz;
}

// About `fan` of a row's elements are 1 or, more rarely, -1, so that few ReLUs are closed to every
// row; the others are 0. Sums of products of such numbers are
// small integers, which float32 holds exactly: the order of additions makes no difference, a ReLU
// sees the same sign, and results must be equal.
Array sparse_signs(const Sizes& shape, double fan, uint64_t seed) {
  Array a = filled(shape);
  Random random(seed);
  const double share = std::min(0.7, fan / static_cast<double>(shape.back()));
  for (double& value : a.v) {
    const double u = random.uniform();
    value = u < 0.6 * share ? 1 : u < share ? -1 : 0;
  }
  return a;
}

Stack integer_stack(int64_t n, const Sizes& widths, double fan, bool relu_last, bool bias = true) {
  Stack s;
  s.widths = widths;
  s.relu_last = relu_last;
  s.x = sparse_signs({n, widths.front()}, fan, 1);
  s.dy = sparse_signs({n, widths.back()}, fan, 2);
  for (size_t l = 0; l + 1 < widths.size(); ++l) {
    s.w.push_back(sparse_signs({widths[l + 1], widths[l]}, fan, 3 + 2 * l));
    s.b.push_back(bias ? sparse_signs({widths[l + 1]}, 1e9, 4 + 2 * l) : Array{});
  }
  solve(s);
  return s;
}

Tensor run(const std::vector<Tensor>& in, const Stack& s) {
  std::vector<Tensor> weights, biases;
  size_t next = 1;
  for (size_t l = 0; l < s.layers(); ++l) {
    weights.push_back(in[next++]);
    biases.push_back(s.b[l].v.empty() ? Tensor() : in[next++]);
  }
  return mlp(in[0], weights, biases, s.relu_last);
}

// Makes y and the gradients of x, weights and biases.
Work work(const std::vector<Tensor>& in, const Stack& s) {
  return [in, &s, dy = tensor(s.dy, in[0].options())] {
    drop_gradients(in);
    const Tensor y = run(in, s);
    y.backward(dy);
    Results all = gradients_of(in);
    all.insert(all.begin(), y);
    return all;
  };
}

// As a case for check_op; gradients in the order of the inputs.
OpCase op_case(const Stack& s, double terms) {
  OpCase c{"mlp", {s.x}, [&s](const auto& in) { return run(in, s); }, s.y, s.dy, {s.dx}};
  for (size_t l = 0; l < s.layers(); ++l) {
    c.inputs.push_back(s.w[l]);
    c.grads.push_back(s.dw[l]);
    if (s.b[l].v.empty()) continue;
    c.inputs.push_back(s.b[l]);
    c.grads.push_back(s.db[l]);
  }
  c.y_terms = terms;
  c.terms.assign(c.inputs.size(), terms);
  return c;
}

std::string text(const Sizes& widths) {
  std::string out;
  for (int64_t width : widths) out += str(out.empty() ? "" : ", ", width);
  return out;
}

void check_exact(Device device, int64_t n, const Sizes& widths, double fan) {
  for (bool relu_last : {false, true}) {
    const Stack s = integer_stack(n, widths, fan, relu_last, !relu_last);
    INFO("n " << n << ", widths " << text(widths) << ", relu_last " << relu_last);
    double largest = 0;
    for (const auto* arrays : {&s.dw, &s.db})
      for (const Array& a : *arrays)
        for (double value : a.v) largest = std::max(largest, std::abs(value));
    for (const Array& a : {s.y, s.dx})
      for (double value : a.v) largest = std::max(largest, std::abs(value));
    if (n > 1 && *std::min_element(widths.begin(), widths.end()) > 3) REQUIRE(largest > 0);
    REQUIRE(largest < (1 << 20));  // float32 holds integers to 2^24; partial sums may be larger
    check_op(op_case(s, 0), device);
    if (device.is_cuda()) continue;
    std::vector<Tensor> in;
    for (const Array& a : op_case(s, 0).inputs) in.push_back(leaf(a));
    const auto operators = operators_of(work(in, s));
    INFO(test::text(operators));
    int64_t weights = 0;
    for (const Array& w : s.w) weights += count(w.shape);
    const auto layers = static_cast<int64_t>(s.layers());
    if (layers > 1 && layers <= op::kMaxMlpLayers && weights <= 200000) {
      CHECK(count(operators, "mlp_forward") == 1);
      CHECK(count(operators, "mlp_backward_chain") == 1);
      CHECK(count(operators, "mlp_backward_weights") == 1);
      CHECK(count(operators, "linear_forward") == 0);
      CHECK(count(operators, "linear_backward_data") == 0);
      CHECK(count(operators, "linear_backward_weights") == 0);
      CHECK(count(operators, "relu_forward") == 0);
      CHECK(count(operators, "relu_backward") == relu_last);
    } else if (layers == 1) {
      CHECK(count(operators, "linear_forward") == 1);
    }
  }
}

}  // namespace

DEVICE_TEST("mlp: hand-computed case", "[mlp]") {
  Stack s;
  s.widths = {2, 2, 1};
  s.x = {{2, 2}, {1, 2, -1, 3}};
  s.w = {{{2, 2}, {1, 1, -2, 1}}, {{1, 2}, {2, -3}}};
  s.b = {{{2}, {0, 0.5}}, {{1}, {10}}};
  s.dy = {{2, 1}, {1, -1}};
  // In front of the ReLU: (3, 0.5), (2, 5.5).
  s.y = {{2, 1}, {14.5, -2.5}};
  s.dx = {{2, 2}, {8, -1, -8, 1}};
  s.dw = {{{2, 2}, {4, -2, -6, 3}}, {{1, 2}, {1, -5}}};
  s.db = {{{2}, {0, 0}}, {{1}, {0}}};
  check_op(op_case(s, 0), device);
  Stack solved = s;
  solve(solved);
  CHECK(solved.dw[0].v == s.dw[0].v);  // the oracle is right too
  CHECK(solved.dx.v == s.dx.v);
}

DEVICE_TEST("mlp: exact on integers", "[mlp]") {
  for (int64_t n : {1, 3, 64, 150}) check_exact(device, n, {400, 120, 84, 10}, 16);
  if (!under_sanitizer()) check_exact(device, 1000, {400, 120, 84, 10}, 16);
  for (int64_t n : {1, 5, 70}) {
    if (n == 5 && under_sanitizer()) continue;
    check_exact(device, n, {400, 10}, 16);  // one layer
    check_exact(device, n, {1, 1}, 1);
    check_exact(device, n, {7, 1, 33}, 8);
    check_exact(device, n, {257, 33, 1, 7, 1}, 8);
    check_exact(device, n, {33, 257, 7}, 8);
    check_exact(device, n, {5, 6, 7, 8, 9, 10, 11, 12, 13}, 3);      // eight layers
    check_exact(device, n, {64, 64, 1, 64, 2, 64, 64, 3, 64}, 2.5);  // most blocks of some idle
  }
  check_exact(device, 130, {1500, 64, 10}, 16);  // a long row: a few at a time, several times
  check_exact(device, under_sanitizer() ? 300 : 3000, {17, 19, 5}, 8);
  // No fused kernel on a GPU.
  check_exact(device, 9, {600, 700, 3}, 16);
  check_exact(device, 9, {5, 6, 7, 8, 9, 10, 11, 12, 13, 14}, 3);
}

// Rounding as small as linear's: no lower precision inside.
DEVICE_TEST("mlp: noise", "[mlp]") {
  for (int64_t n : {1, 16, 130}) {
    for (const Sizes& widths : {Sizes{400, 120, 84, 10}, {33, 257, 7}, {20, 20, 20, 20, 20}}) {
      Stack s;
      s.widths = widths;
      s.x = noise({n, widths.front()}, 21);
      s.dy = noise({n, widths.back()}, 22);
      double terms = 0;
      for (size_t l = 0; l + 1 < widths.size(); ++l) {
        s.w.push_back(noise({widths[l + 1], widths[l]}, 23 + 2 * l));
        for (double& value : s.w[l].v)  // keeps the values' size from layer to layer
          value = static_cast<float>(value * std::sqrt(3 / static_cast<double>(widths[l])));
        s.b.push_back(noise({widths[l + 1]}, 24 + 2 * l));
        terms += static_cast<double>(widths[l] + widths[l + 1]);
      }
      solve(s);
      INFO("n " << n << ", widths " << text(widths));
      REQUIRE(s.least > 2e-6);  // rounding turns no ReLU on or off
      check_op(op_case(s, terms + static_cast<double>(n)), device);
    }
  }
}

DEVICE_TEST("mlp: leading dimensions and unaligned arrays", "[mlp]") {
  const Stack s = integer_stack(24, {8, 12, 4}, 6, false);
  const auto shifted = [&](const Array& a, DType dtype) {
    Array longer{{count(a.shape) + 1}, {99}};
    longer.v.insert(longer.v.end(), a.v.begin(), a.v.end());
    return reshape(narrow(tensor(longer, {dtype, device}), 0, 1, count(a.shape)), Shape(a.shape));
  };
  for (const Mode mode : app::kModes)
    for (DType dtype : {kFloat32, kFloat64}) {
      std::vector<Tensor> in;
      for (const Array& a : op_case(s, 0).inputs) {
        in.push_back(shifted(a, dtype).detach());
        in.back().set_requires_grad();
      }
      const Tensor dy = reshape(shifted(s.dy, dtype), {2, 3, 4, 4});
      const Results all = run_as(mode, [&] {
        drop_gradients(in);
        std::vector<Tensor> shaped = in;
        shaped[0] = reshape(in[0], {2, 3, 4, 8});
        const Tensor y = run(shaped, s);
        y.backward(dy);
        return Results{y, in[0].grad(), in[1].grad(), in[4].grad()};
      });
      CHECK(all[0].shape() == Shape{2, 3, 4, 4});
      check_close("mlp: y", reshape(all[0], {24, 4}), s.y, 0);
      check_close("mlp: dx", all[1], s.dx, 0);
      check_close("mlp: dw", all[2], s.dw[0], 0);
      check_close("mlp: db", all[3], s.db[1], 0);
    }
  // A vector.
  const Stack one = integer_stack(1, {8, 12, 4}, 6, false);
  OpCase c = op_case(one, 0);
  c.inputs[0].shape = c.grads[0].shape = {8};
  c.y.shape = c.dy.shape = {4};
  check_op(c, device);
}

DEVICE_TEST("mlp: only the gradients asked for", "[mlp]") {
  const Stack s = integer_stack(9, {6, 5, 4, 3}, 4, true);
  const OpCase c = op_case(s, 0);
  for (int mask = 1; mask < 1 << c.inputs.size(); ++mask) {
    std::vector<Tensor> in;
    for (size_t i = 0; i < c.inputs.size(); ++i) {
      in.push_back(tensor(c.inputs[i], {kFloat32, device}));
      if ((mask >> i & 1) != 0) in.back().set_requires_grad();
    }
    const Results all = compiled(work(in, s));
    for (size_t i = 0; i < in.size(); ++i) {
      INFO("mask " << mask << ", input " << i);
      CHECK(all[i + 1].defined() == ((mask >> i & 1) != 0));
      if (all[i + 1].defined()) check_close("mlp: gradient", all[i + 1], c.grads[i], 0);
    }
  }
}

DEVICE_TEST("mlp: no rows", "[mlp]") {
  const Stack s = integer_stack(0, {6, 5, 3}, 4, false);
  const OpCase c = op_case(s, 0);
  check_op(c, device);
  CHECK(c.grads[1].v == std::vector<double>(30, 0));
}

DEVICE_TEST("mlp: a NaN stays in its row", "[mlp]") {
  const Stack s = integer_stack(6, {40, 12, 5}, 1e9, true);
  OpCase c = op_case(s, 0);
  c.inputs[0].v[2 * 40 + 7] = std::numeric_limits<double>::quiet_NaN();
  std::vector<Tensor> in;
  for (const Array& a : c.inputs) in.push_back(leaf(a, {kFloat32, device}));
  const auto results = [&](Mode mode) {
    std::vector<std::vector<double>> values;
    for (const Tensor& t : run_as(mode, work(in, s))) values.push_back(t.to_vector<double>());
    return values;
  };
  const auto fused = results(Mode::kCompiled), parts = results(Mode::kEager);
  for (size_t k = 0; k < fused.size(); ++k) {
    REQUIRE(fused[k].size() == parts[k].size());
    for (size_t i = 0; i < fused[k].size(); ++i) {
      INFO("result " << k << ", element " << i << ": " << fused[k][i] << ", " << parts[k][i]);
      CHECK((fused[k][i] == parts[k][i] || (std::isnan(fused[k][i]) && std::isnan(parts[k][i]))));
    }
  }
  for (size_t i = 0; i < 30; ++i) CHECK(std::isnan(fused[0][i]) == (i / 5 == 2));
}

DEVICE_TEST("mlp: a NaN passes its ReLU's gradient on", "[mlp]") {
  // Small stacks, and one whose weights do not fit a cache.
  for (DType dtype : {kFloat32, kFloat64})
    for (const int64_t width : {3, 40, 600})
      for (const bool relu_last : {true, false})
        for (const Mode mode : app::kModes) {
          INFO(dtype << " width " << width << " relu " << relu_last << ' ' << app::name(mode));
          const TensorOptions options{dtype, device};
          Array bias = filled({width}, -1), db = filled({width});
          bias.v[0] = std::nan("");
          bias.v[2] = 2;
          db.v[0] = db.v[2] = 5;
          const std::vector<Tensor> w = {leaf(filled({width, width}), options),
                                         leaf(filled({1, width}, 1), options)};
          const std::vector<Tensor> b = {leaf(bias, options), leaf(filled({1}, 1), options)};
          const Results all = run_as(mode, [&] {
            drop_gradients({w[0], w[1], b[0], b[1]});
            const Tensor y = mlp(zeros({5, width}, options), w, b, relu_last);
            y.backward(ones(y.shape(), options));
            return Results{y, b[0].grad(), b[1].grad()};
          });
          for (double value : all[0].to_vector<double>()) CHECK(std::isnan(value));
          check_close("mlp: gradient of a bias", all[1], db, 0);
          check_close("mlp: gradient of a bias", all[2], filled({1}, 5), 0);

          // Of one layer.
          const Tensor last = leaf(bias, options);
          const Results of_one = run_as(mode, [&] {
            drop_gradients({w[0], last});
            const Tensor z = mlp(zeros({5, width}, options), {w[0]}, {last}, true);
            z.backward(ones(z.shape(), options));
            return Results{last.grad()};
          });
          check_close("mlp: gradient of a bias", of_one[0], db, 0);
        }
}

DEVICE_TEST("mlp: the same bits from run to run", "[mlp]") {
  for (int64_t n : {64, 1000}) {
    Stack s;
    s.widths = {400, 120, 84, 10};
    s.dy = noise({n, 10}, 9);
    std::vector<Tensor> in = {leaf(noise({n, 400}, 1), {kFloat32, device})};
    for (size_t l = 0; l < 3; ++l) {
      s.w.push_back(noise({s.widths[l + 1], s.widths[l]}, 2 + l));
      s.b.push_back(noise({s.widths[l + 1]}, 5 + l));
      in.push_back(leaf(s.w[l], {kFloat32, device}));
      in.push_back(leaf(s.b[l], {kFloat32, device}));
    }
    const Results first = copies(compiled(work(in, s)));
    const Threads set(num_threads() == 1 ? 2 : 1);
    check_same_bits(compiled(work(in, s)), first);
  }
}

DEVICE_TEST("mlp: gradient check", "[mlp]") {
  Stack s = integer_stack(3, {4, 6, 5, 2}, 4, false);
  check_gradient(device,
                 {noise({3, 4}, 1), noise({6, 4}, 2), noise({6}, 3), noise({5, 6}, 4),
                  noise({5}, 5), noise({2, 5}, 6), noise({2}, 7)},
                 [&](const std::vector<Tensor>& in) { return run(in, s); });
  s.relu_last = true;
  s.b[1] = {};
  check_gradient(device,
                 {noise({3, 4}, 1), noise({6, 4}, 2), noise({6}, 3), noise({5, 6}, 4),
                  noise({2, 5}, 6), noise({2}, 7)},
                 [&](const std::vector<Tensor>& in) { return run(in, s); });
}

}  // namespace sinter::test
