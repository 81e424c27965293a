#include "tests/reference/oracle_norm.h"
#include "tests/support/compiled.h"
#include "tests/support/gradient_check.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

using oracle::Norm;
using oracle::Normalized;

int64_t behind(const Sizes& shape, size_t first) {
  int64_t n = 1;
  for (size_t d = first; d < shape.size(); ++d) n *= shape[d];
  return n;
}

// x (n, groups, channels, inner), a statistic for each (n, group) or, with `batch`, for each
// channel.
Norm norm_of(const Sizes& shape, const Sizes& weight, int64_t groups, int64_t channels,
             int64_t inner, bool batch) {
  Norm n{noise(shape, 1), noise(weight, 2), noise(weight, 3), noise(shape, 4)};
  const int64_t all = groups * channels * inner;
  for (int64_t i = 0; i < count(shape); ++i) {
    const int64_t channel = i % all / inner, group = channel / channels;
    n.channel.push_back(static_cast<size_t>(channel));
    n.statistic.push_back(static_cast<size_t>(batch ? channel : i / all * groups + group));
  }
  n.statistics =
      static_cast<size_t>(batch ? groups * channels : (all > 0 ? count(shape) / all : 0) * groups);
  return n;
}
Norm batch_of(const Sizes& shape) {
  return norm_of(shape, {shape[1]}, 1, shape[1], behind(shape, 2), true);
}

// With weight and bias, or without.
void check_norm(
    const char* name, Norm n, Device device, const std::string& how,
    const std::function<Tensor(const Tensor& x, const Tensor& weight, const Tensor& bias)>& f) {
  const double terms = static_cast<double>(n.x.v.size());
  for (const bool affine : {true, false}) {
    if (!affine) {
      n.weight = filled(n.weight.shape, 1);
      n.bias = filled(n.bias.shape);
    }
    const Normalized r = oracle::normalize(n);
    OpCase c{name,
             {n.x},
             [&](const std::vector<Tensor>& t) {
               return t.size() > 1 ? f(t[0], t[1], t[2]) : f(t[0], {}, {});
             },
             r.y,
             n.dy,
             {r.dx}};
    c.y_terms = 16;
    c.terms = {64};
    if (affine) {
      c.inputs.insert(c.inputs.end(), {n.weight, n.bias});
      c.grads.insert(c.grads.end(), {r.dweight, r.dbias});
      c.terms.insert(c.terms.end(), {terms, terms});
    }
    c.how = how;
    check_op(c, device);
  }
}

void check_batch_norm(Device device, const Sizes& shape) {
  const Norm n = batch_of(shape);
  const std::string how = Shape(shape).str();
  check_norm("batch_norm", n, device, how, [](const Tensor& x, const Tensor& w, const Tensor& b) {
    return batch_norm(x, {}, {}, w, b, {.training = true});
  });
  Norm given = n;
  const Array mean = noise({shape[1]}, 5);
  Array var = noise({shape[1]}, 6);
  for (double& v : var.v) v = static_cast<float>(v + 1.5);
  given.mean = mean.v;
  given.var = var.v;
  check_norm("batch_norm, eval", given, device, how,
             [&](const Tensor& x, const Tensor& w, const Tensor& b) {
               return batch_norm(x, tensor(mean, x.options()), tensor(var, x.options()), w, b);
             });
}

// Every shape of batch normalization's kernels: columns, short planes, packs, long planes, slices.
const std::vector<Sizes> kBatchShapes = {
    {2, 1},         {3, 5},          {300, 7},        {129, 33},       {1030, 2},
    {2, 1, 1},      {1, 3, 2},       {4, 3, 5},       {9, 40, 15},     {3, 2, 16},
    {3, 2, 31},     {3, 2, 32},      {2, 3, 33},      {5, 3, 7, 7},    {4, 6, 8, 8},
    {2, 3, 17, 19}, {1, 2, 1, 9001}, {3, 1, 64, 130}, {2, 2, 2, 3, 4}, {70, 2, 12, 12}};

}  // namespace

DEVICE_TEST("batch_norm: shapes", "[norm]") {
  for (const Sizes& shape : kBatchShapes) check_batch_norm(device, shape);
}

DEVICE_TEST("batch_norm: by hand", "[norm]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor x = tensor({{4, 1}, {1, 2, 3, 4}}, options);
    const Tensor mean = ones({1}, options), var = ones({1}, options);
    const Tensor count = zeros({}, {kInt64, device});
    const Tensor y = batch_norm(x, mean, var, {}, {}, {.training = true, .eps = 0, .count = count});
    const double s = std::sqrt(1.25);
    check_close("batch_norm: y", y, {{4, 1}, {-1.5 / s, -0.5 / s, 0.5 / s, 1.5 / s}}, 4);
    check_close("batch_norm: running mean", mean, {{1}, {0.9 + 0.25}}, 1);
    check_close("batch_norm: running variance", var, {{1}, {0.9 + 0.1 * 5 / 3}}, 1);
    CHECK(count.item<int64_t>() == 1);
    // In eval mode nothing changes.
    batch_norm(x, mean, var, {}, {}, {.count = count});
    check_close("batch_norm: running mean", mean, {{1}, {0.9 + 0.25}}, 1);
    CHECK(count.item<int64_t>() == 1);
  }
}

DEVICE_TEST("batch_norm: averages of all batches", "[norm]") {
  const TensorOptions options{kFloat64, device};
  const Tensor mean = zeros({3}, options), var = ones({3}, options);
  const Tensor count = zeros({}, {kInt64, device});
  std::vector<double> means(3), vars(3);
  for (int batch = 0; batch < 4; ++batch) {
    const Array x = noise({5, 3, 9}, static_cast<uint64_t>(batch));
    Norm n = batch_of(x.shape);
    n.x = x;
    const Normalized r = oracle::normalize(n);
    for (size_t c = 0; c < 3; ++c) {
      means[c] += r.mean[c] / 4;
      vars[c] += r.var[c] * 45 / 44 / 4;
    }
    batch_norm(tensor(x, options), mean, var, {}, {},
               {.training = true, .momentum = {}, .count = count});
  }
  CHECK(count.item<int64_t>() == 4);
  check_close("batch_norm: average mean", mean, {{3}, means}, 8);
  check_close("batch_norm: average variance", var, {{3}, vars}, 8);
}

DEVICE_TEST("batch_norm: a large mean costs no precision", "[norm]") {
  for (const Sizes& shape : {Sizes{64, 3}, {8, 3, 40}}) {
    Norm n = batch_of(shape);
    for (double& v : n.x.v) v = static_cast<float>(v + 10000);
    check_norm("batch_norm, far from 0", n, device, Shape(shape).str(),
               [](const Tensor& x, const Tensor& w, const Tensor& b) {
                 return batch_norm(x, {}, {}, w, b, {.training = true});
               });
  }
  const Tensor same = full({6, 2, 50}, 12345.678f, {kFloat32, device});
  for (double v : batch_norm(same, {}, {}, {}, {}, {.training = true}).to_vector<double>())
    CHECK(std::abs(v) <= 1e-3);
}

DEVICE_TEST("batch_norm: nothing to normalize", "[norm]") {
  const TensorOptions options{kFloat32, device};
  for (const Shape& shape : {Shape{0, 3}, Shape{0, 3, 40}, Shape{2, 3, 0}, Shape{2, 0, 40}}) {
    const Tensor x = zeros(shape, options).set_requires_grad();
    const Shape by_channel{shape[1]};
    const Tensor w = ones(by_channel, options).set_requires_grad();
    const Tensor mean = full(by_channel, 3, options), var = full(by_channel, 4, options);
    const Tensor y = batch_norm(x, mean, var, w, {}, {.training = true});
    CHECK(y.shape() == shape);
    y.sum().backward();
    for (double v : w.grad().to_vector<double>()) CHECK(v == 0);
    for (double v : mean.to_vector<double>()) CHECK(v == 3);
    for (double v : var.to_vector<double>()) CHECK(v == 4);
  }
}

DEVICE_TEST("batch_norm: gradients of what asks for them alone", "[norm]") {
  const TensorOptions options{kFloat64, device};
  const Norm n = batch_of({4, 3, 40});
  const Normalized r = oracle::normalize(n);
  for (int asks = 1; asks < 8; ++asks) {
    const Tensor x = tensor(n.x, options), w = tensor(n.weight, options),
                 b = tensor(n.bias, options);
    if (asks & 1) x.set_requires_grad();
    if (asks & 2) w.set_requires_grad();
    if (asks & 4) b.set_requires_grad();
    batch_norm(x, {}, {}, w, b, {.training = true}).backward(tensor(n.dy, options));
    if (asks & 1) check_close("batch_norm: gradient 0", x.grad(), r.dx, 64);
    if (asks & 2) check_close("batch_norm: gradient 1", w.grad(), r.dweight, 160);
    if (asks & 4) check_close("batch_norm: gradient 2", b.grad(), r.dbias, 160);
  }
}

DEVICE_TEST("norm: gradient check", "[norm]") {
  for (const bool training : {true, false})
    for (const Sizes& shape : {Sizes{4, 3}, {2, 3, 5}, {2, 2, 6, 6}}) {
      const Tensor mean = full({shape[1]}, 0.25, {kFloat64, device}),
                   var = full({shape[1]}, 1.5, {kFloat64, device});
      check_gradient(device, {noise(shape, 1), noise({shape[1]}, 2), noise({shape[1]}, 3)},
                     [&](const std::vector<Tensor>& t) {
                       return training ? batch_norm(t[0], {}, {}, t[1], t[2], {.training = true})
                                       : batch_norm(t[0], mean, var, t[1], t[2]);
                     });
    }
  check_gradient(device, {noise({3, 2, 5}, 1), noise({2, 5}, 2), noise({2, 5}, 3)},
                 [](const std::vector<Tensor>& t) {
                   return layer_norm(t[0], {2, 5}, t[1], t[2]);
                 });
  check_gradient(device, {noise({2, 6, 3, 2}, 1), noise({6}, 2), noise({6}, 3)},
                 [](const std::vector<Tensor>& t) { return group_norm(t[0], 3, t[1], t[2]); });
  check_gradient(device, {noise({3, 7}, 1), noise({7}, 2)},
                 [](const std::vector<Tensor>& t) { return rms_norm(t[0], {7}, t[1]); });
}

DEVICE_TEST("layer_norm and rms_norm: shapes", "[norm]") {
  for (const auto& [shape, dims] : {std::pair<Sizes, size_t>{{3, 5}, 1},
                                    {{7}, 1},
                                    {{2, 3, 4}, 2},
                                    {{2, 3, 4}, 3},
                                    {{300, 33}, 1},
                                    {{5, 64}, 1},
                                    {{2, 3, 768}, 1},
                                    {{3, 1025}, 1},
                                    {{2, 9000}, 1},
                                    {{2, 20004}, 1}}) {
    const Sizes last(shape.end() - static_cast<std::ptrdiff_t>(dims), shape.end());
    Norm n = norm_of(shape, last, 1, count(last), 1, false);
    const std::string how = Shape(shape).str() + " over " + Shape(last).str();
    check_norm("layer_norm", n, device, how,
               [&, last = last](const Tensor& x, const Tensor& w, const Tensor& b) {
                 return layer_norm(x, Shape(last), w, b);
               });
    n.centred = false;
    n.bias = filled(last);
    check_norm("rms_norm", n, device, how,
               [&, last = last](const Tensor& x, const Tensor& w, const Tensor& b) {
                 const Tensor y = rms_norm(x, Shape(last), w, 1e-5);
                 return b.defined() ? y + b : y;
               });
  }
}

DEVICE_TEST("group_norm and instance_norm: shapes", "[norm]") {
  for (const auto& [shape, groups] : {std::pair<Sizes, int64_t>{{3, 6}, 2},
                                      {{40, 6}, 1},
                                      {{2, 6, 5}, 3},
                                      {{2, 8, 4, 4}, 2},
                                      {{3, 4, 7, 9}, 4},
                                      {{1, 4, 40, 33}, 1},
                                      {{2, 2, 1, 1500}, 2},
                                      {{2, 4, 12, 12}, 2}}) {
    Norm n = norm_of(shape, {shape[1]}, groups, shape[1] / groups, behind(shape, 2), false);
    const std::string how = str(Shape(shape), ", groups ", groups);
    check_norm("group_norm", n, device, how,
               [groups = groups](const Tensor& x, const Tensor& w, const Tensor& b) {
                 return group_norm(x, groups, w, b);
               });
    if (groups == shape[1])
      check_norm(
          "instance_norm", n, device, how,
          [](const Tensor& x, const Tensor& w, const Tensor& b) { return instance_norm(x, w, b); });
  }
}

DEVICE_TEST("norm: rows of nothing and no rows", "[norm]") {
  const TensorOptions options{kFloat32, device};
  for (const auto& [shape, last] : {std::pair<Shape, Shape>{{0, 5}, {5}}, {{3, 0}, {0}}}) {
    const Tensor x = zeros(shape, options).set_requires_grad();
    const Tensor w = ones(last, options).set_requires_grad();
    const Tensor y = layer_norm(x, last, w);
    CHECK(y.shape() == shape);
    y.sum().backward();
    for (double v : w.grad().to_vector<double>()) CHECK(v == 0);
  }
  for (const Shape& shape : {Shape{0, 4, 3}, Shape{2, 4, 0}}) {
    const Tensor x = zeros(shape, options).set_requires_grad();
    const Tensor w = ones({4}, options).set_requires_grad();
    (shape[0] == 0 ? group_norm(x, 2, w) : instance_norm(x, w)).sum().backward();
    for (double v : w.grad().to_vector<double>()) CHECK(v == 0);
  }
}

DEVICE_TEST("norm: results do not depend on the number of threads", "[norm]") {
  const TensorOptions options{kFloat32, device};
  const auto all = [&] {
    Results results;
    for (const Sizes& shape : {Sizes{1000, 70}, {6, 5, 60, 70}}) {
      const Tensor x = leaf(noise(shape, 1), options), w = leaf(noise({shape[1]}, 2), options);
      const Tensor y = batch_norm(x, {}, {}, w, {}, {.training = true});
      const Tensor z = group_norm(y, 5, w);
      z.backward(tensor(noise(shape, 3), options));
      results.insert(results.end(), {y.detach(), z.detach(), x.grad(), w.grad()});
    }
    return results;
  };
  const Results one = [&] {
    const Threads guard(1);
    return all();
  }();
  const Threads guard(3);
  check_same_bits(all(), one);
}

DEVICE_TEST("batch_norm: running statistics in a compiled function", "[norm]") {
  const TensorOptions options{kFloat32, device};
  struct State {
    Tensor mean, var, count;
  };
  const auto fresh = [&] {
    return State{zeros({3}, options), ones({3}, options), zeros({}, {kInt64, device})};
  };
  const State eager = fresh(), other = fresh();
  const auto call = [](const State& s, const Tensor& x) {
    return batch_norm(x, s.mean, s.var, {}, {},
                      {.training = true, .momentum = {}, .count = s.count});
  };
  const Tensor x = zeros({5, 3, 8}, options);
  auto program = compile([&] { return Results{call(other, x)}; });
  for (uint64_t i = 0; i < 5; ++i) {
    x.copy_(tensor(noise({5, 3, 8}, i), options));
    CHECK(same_bits(program()[0], call(eager, x)));
    CHECK(same_bits(eager.mean, other.mean));
    CHECK(same_bits(eager.var, other.var));
    CHECK(other.count.item<int64_t>() == static_cast<int64_t>(i) + 1);
  }
}

DEVICE_TEST("norm: a NaN stays in its channel", "[norm]") {
  const TensorOptions options{kFloat32, device};
  Array x = noise({4, 3, 40}, 1);
  x.v[45] = std::nan("");
  const std::vector<double> y =
      batch_norm(tensor(x, options), {}, {}, {}, {}, {.training = true}).to_vector<double>();
  for (size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i / 40 % 3 == 1));
}

DEVICE_TEST("norm: errors say what was expected and what came", "[norm]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3, 4}, options), three = ones({3}, options), four = ones({4}, options);
  const BatchNormOptions training{.training = true};
  check_throws<ShapeError>([&] { batch_norm({}, three, three); }, {"batch_norm", "undefined"});
  check_throws<ShapeError>([&] { batch_norm(three, three, three); }, {"batch_norm", "(3,)"});
  check_throws<DtypeError>([&] { batch_norm(x.to(kInt64), three, three); }, {"int64"});
  check_throws<ShapeError>([&] { batch_norm(x, four, three); }, {"running_mean", "(3,)", "(4,)"});
  check_throws<ShapeError>([&] { batch_norm(x, three, four); }, {"running_var", "(4,)"});
  check_throws<ShapeError>([&] { batch_norm(x, three, three, four); }, {"weight", "(4,)"});
  check_throws<ShapeError>([&] { batch_norm(x, three, three, {}, four); }, {"bias", "(4,)"});
  check_throws<DtypeError>([&] { batch_norm(x, three, three, three.to(kFloat64)); },
                           {"weight", "float64"});
  check_throws<ValueError>([&] { batch_norm(x, {}, three); }, {"running_mean", "undefined"});
  check_throws<ValueError>(
      [&] {
        batch_norm(zeros({1, 3}, options), {}, {}, {}, {}, training);
      },
      {"more than one value", "(1, 3)"});
  check_throws<ValueError>(
      [&] { batch_norm(x, {}, {}, {}, {}, {.training = true, .momentum = {}}); }, {"momentum"});
  check_throws<DtypeError>(
      [&] { batch_norm(x, {}, {}, {}, {}, {.training = true, .count = three}); }, {"count"});
  const Tensor graded = ones({3}, options).set_requires_grad();
  check_throws<GradError>([&] { batch_norm(x, graded, three, {}, {}, training); },
                          {"running_mean"});
  check_throws<ShapeError>([&] { layer_norm(x, {3}); }, {"layer_norm", "(3,)", "(2, 3, 4)"});
  check_throws<ShapeError>([&] { layer_norm(x, Shape{}); }, {"layer_norm"});
  check_throws<ShapeError>([&] { layer_norm(x, {4}, three); }, {"weight", "(3,)"});
  check_throws<ValueError>([&] { layer_norm({}, {4}); }, {"layer_norm", "undefined"});
  check_throws<ShapeError>([&] { rms_norm(x, {5}); }, {"rms_norm", "(5,)"});
  check_throws<ValueError>([&] { group_norm(x, 2); }, {"group_norm", "(2, 3, 4)", "2"});
  check_throws<ValueError>([&] { group_norm(x, 0); }, {"group_norm", "0"});
  check_throws<ValueError>([&] { group_norm(zeros({1, 3}, options), 3); }, {"more than one"});
  check_throws<ShapeError>([&] { group_norm(three, 3); }, {"group_norm", "(3,)"});
  check_throws<ShapeError>([&] { group_norm(zeros({1, 0, 2}, options), 1); }, {"(1, 0, 2)"});
  check_throws<ShapeError>([&] { group_norm(zeros({1, 2, 0}, options), 1); }, {"(1, 2, 0)"});
  check_throws<ValueError>([&] { instance_norm(zeros({2, 3, 1}, options)); }, {"(2, 3, 1)"});
}

}  // namespace sinter::test
