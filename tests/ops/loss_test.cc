// Losses beyond softmax_test's cross-entropy of plain labels.
#include <sinter/ops.h>

#include <cmath>
#include <limits>

#include "tests/reference/oracle_loss.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

constexpr Reduction kReductions[] = {Reduction::kMean, Reduction::kSum, Reduction::kNone};
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Tensor labels_like(const std::vector<int64_t>& labels, const Sizes& x, Device device) {
  Sizes shape = x;
  shape.erase(shape.begin() + 1);
  return from_vector(labels, Shape(shape), device);
}

// Labels of all classes, every `every`-th of them ignored.
std::vector<int64_t> some_labels(const Sizes& x, int64_t ignore, int64_t every) {
  std::vector<int64_t> labels = app::random_labels(count(x) / x[1], x[1], 2);
  for (size_t i = 0; i < labels.size(); ++i)
    if (i % static_cast<size_t>(every) == 0) labels[i] = ignore;
  return labels;
}

void check_label_loss(Device device, const Sizes& shape, const std::vector<int64_t>& labels,
                      const oracle::LabelLoss& p) {
  const Array x = oracle::map(noise(shape, 1), [](double v) { return 3 * v - 2; });
  Sizes terms = shape;
  terms.erase(terms.begin() + 1);
  const Array dy = noise(p.reduction == Reduction::kNone ? terms : Sizes{}, 3);
  const auto [y, dx] = oracle::label_loss(x, labels, p, dy);
  const double positions = static_cast<double>(count(terms));
  const auto c = static_cast<double>(shape[1]);
  const auto op = [&](const std::vector<Tensor>& in) {
    Tensor weight;
    if (!p.weight.empty()) weight = from_vector(p.weight, {shape[1]}, device).to(in[0].dtype());
    const Tensor l = labels_like(labels, shape, device);
    if (p.of_log_p)
      return nll_loss(in[0], l,
                      {.weight = weight, .ignore_index = p.ignore_index, .reduction = p.reduction});
    return cross_entropy(in[0], l,
                         {.reduction = p.reduction,
                          .label_smoothing = p.smoothing,
                          .weight = weight,
                          .ignore_index = p.ignore_index});
  };
  INFO("x " << Shape(shape) << ", smoothing " << p.smoothing << ", weights " << p.weight.size()
            << ", ignored " << p.ignore_index << ", " << name(p.reduction));
  check_op({p.of_log_p ? "nll_loss" : "cross_entropy",
            {x},
            op,
            y,
            dy,
            {dx},
            (p.reduction == Reduction::kNone ? 1 : positions) + 4 * c + 8,
            {4 * c + 16}},
           device);
}

}  // namespace

DEVICE_TEST("cross_entropy: ignored labels and weights by hand", "[loss]") {
  // Odds 1 : 3 in favour of the second class; log 4 and log 4/3 against each.
  const Tensor x = tensor({{3, 2}, {0, std::log(3.0), 0, std::log(3.0), 7, 9}}, {kFloat64, device});
  const Tensor labels = from_vector<int64_t>({0, 1, -100}, {3}, device);
  const Tensor weight = tensor({{2}, {3, 1}}, {kFloat64, device});
  const double of_0 = std::log(4.0), of_1 = std::log(4.0 / 3);
  check_close("cross_entropy", cross_entropy(x, labels), {{}, {(of_0 + of_1) / 2}}, 8);
  check_close("cross_entropy", cross_entropy(x, labels, {.weight = weight}),
              {{}, {(3 * of_0 + of_1) / 4}}, 8);
  check_close("cross_entropy", cross_entropy(x, labels, {.reduction = Reduction::kNone}),
              {{3}, {of_0, of_1, 0}}, 8);
  const Tensor one = tensor({{2}, {0, std::log(3.0)}}, {kFloat64, device});  // a single row
  check_close("cross_entropy", cross_entropy(one, from_vector<int64_t>({1}, {}, device)),
              {{}, {of_1}}, 8);
}

DEVICE_TEST("cross_entropy and nll_loss: shapes; ignored labels; weights", "[loss]") {
  // Beyond a warp, a block, what a block of few rows takes, and images.
  const Sizes shapes[] = {{1, 1},    {7, 3},       {65, 10},       {1025, 10}, {5, 33},
                          {3, 2100}, {2, 3, 1, 5}, {3, 5, 17, 31}, {2, 4, 300}};
  for (const Sizes& shape : shapes) {
    std::vector<double> weight;
    for (int64_t k = 0; k < shape[1]; ++k) weight.push_back(0.25 * static_cast<double>(1 + k % 5));
    for (const Reduction reduction : kReductions)
      for (const double smoothing : {0.0, 0.25}) {
        const auto all = app::random_labels(count(shape) / shape[1], shape[1], 2);
        check_label_loss(device, shape, all, {.smoothing = smoothing, .reduction = reduction});
        check_label_loss(device, shape, all,
                         {.smoothing = smoothing, .weight = weight, .reduction = reduction});
        if (count(shape) == 1) continue;  // nothing would be left
        for (const int64_t ignore : {int64_t{-100}, shape[1] / 2}) {
          oracle::LabelLoss p{
              .smoothing = smoothing, .ignore_index = ignore, .reduction = reduction};
          const auto some = some_labels(shape, ignore, 3);
          check_label_loss(device, shape, some, p);
          p.weight = weight;
          check_label_loss(device, shape, some, p);
        }
        if (smoothing > 0) continue;
        check_label_loss(
            device, shape, some_labels(shape, -1, 4),
            {.weight = weight, .ignore_index = -1, .reduction = reduction, .of_log_p = true});
      }
  }
}

DEVICE_TEST("cross_entropy: of ignored labels alone the mean is NaN and its gradient 0", "[loss]") {
  for (const DType dtype : {kFloat32, kFloat64})
    for (const int64_t rows : {4, 2000}) {
      const Tensor x = leaf(noise({rows, 5}, 1), {dtype, device});
      const Tensor labels = full({rows}, -100, {kInt64, device});
      const Tensor loss = cross_entropy(x, labels);
      CHECK(std::isnan(loss.item<double>()));
      loss.backward();
      CHECK(same_bits(x.grad(), zeros(x.shape(), x.options())));
      CHECK(cross_entropy(x, labels, {.reduction = Reduction::kSum}).item<double>() == 0);
    }
}

DEVICE_TEST("cross_entropy: probabilities", "[loss]") {
  const TensorOptions options{kFloat64, device};
  for (const Sizes& shape : {Sizes{4, 3}, Sizes{2, 5, 3, 2}, Sizes{6}}) {
    const Array x = noise(shape, 1),
                q = oracle::map(noise(shape, 2), [](double v) { return v * v; });
    const int dim = shape.size() == 1 ? 0 : 1;
    const int64_t classes = shape[static_cast<size_t>(dim)];
    const Tensor weight = full({classes}, 0.5, options);
    // By log_softmax, which has an oracle of its own.
    const Tensor log_p = log_softmax(tensor(x, options), dim);
    const double positions = static_cast<double>(count(shape) / classes);
    const Tensor expected = sum(log_p * tensor(q, options)) * (-0.5 / positions);
    const Tensor loss = cross_entropy(tensor(x, options), tensor(q, options), {.weight = weight});
    CHECK(std::abs(loss.item<double>() - expected.item<double>()) < 1e-14);
    for (const Reduction reduction : kReductions)
      check_gradient(device, {x, q}, [&](const std::vector<Tensor>& in) {
        return cross_entropy(in[0], in[1],
                             {.reduction = reduction, .label_smoothing = 0.2, .weight = weight});
      });
  }
}

DEVICE_TEST("losses: gradient checks of labels and images", "[loss]") {
  const Tensor labels = from_vector<int64_t>({0, 2, -100, 1, 1, 2}, {2, 3}, device);
  const Tensor weight = tensor({{3}, {0.5, 2, 1}}, {kFloat64, device});
  for (const Reduction reduction : kReductions) {
    check_gradient(device, {noise({2, 3, 3}, 1)}, [&](const std::vector<Tensor>& in) {
      return cross_entropy(in[0], labels,
                           {.reduction = reduction, .label_smoothing = 0.1, .weight = weight});
    });
    check_gradient(device, {noise({2, 3, 3}, 1)}, [&](const std::vector<Tensor>& in) {
      return nll_loss(in[0], labels, {.weight = weight, .reduction = reduction});
    });
  }
}

DEVICE_TEST("losses: element by element, by hand", "[loss]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = tensor({{4}, {0, 1, -2, 3}}, options),
               t = tensor({{4}, {0, 0.5, 1, 3.25}}, options);
  const Reduction none = Reduction::kNone;
  check_close("mse_loss", mse_loss(x, t, none), {{4}, {0, 0.25, 9, 0.0625}}, 1);
  check_close("mse_loss", mse_loss(x, t), {{}, {9.3125 / 4}}, 4);
  check_close("l1_loss", l1_loss(x, t, Reduction::kSum), {{}, {3.75}}, 4);
  check_close("smooth_l1_loss", smooth_l1_loss(x, t, none, 0.5), {{4}, {0, 0.25, 2.75, 0.0625}}, 1);
  check_close("smooth_l1_loss", smooth_l1_loss(x, t, none, 0), {{4}, {0, 0.5, 3, 0.25}}, 1);
  check_close("huber_loss", huber_loss(x, t, none, 0.5), {{4}, {0, 0.125, 1.375, 0.03125}}, 1);
  const double log2 = std::log(2.0), soft1 = std::log1p(std::exp(-1.0));
  const Tensor b = tensor({{3}, {0, 1, -1000}}, options), y = tensor({{3}, {0.25, 1, 0}}, options);
  check_close("binary_cross_entropy_with_logits",
              binary_cross_entropy_with_logits(b, y, {.reduction = none}), {{3}, {log2, soft1, 0}},
              4);
  const Tensor pos = tensor({{3}, {2, 3, 4}}, options), w = tensor({{1}, {0.5}}, options);
  check_close(
      "binary_cross_entropy_with_logits",
      binary_cross_entropy_with_logits(b, y, {.weight = w, .pos_weight = pos, .reduction = none}),
      {{3}, {0.5 * 1.25 * log2, 1.5 * soft1, 0}}, 8);
  const Tensor lp = tensor({{2, 2}, {-1, -2, -3, -4}}, options),
               p = tensor({{2, 2}, {0, 1, 0.5, 0.5}}, options);
  check_close("kl_div", kl_div(lp, p, {.reduction = none}),
              {{2, 2}, {0, 2, 0.5 * (3 - log2), 0.5 * (4 - log2)}}, 4);
  check_close("kl_div", kl_div(lp, p, {.batchmean = true}), {{}, {(2 + 3.5 - log2) / 2}}, 8);
  check_close("kl_div", kl_div(lp, log_softmax(zeros({2, 2}, options)), {.log_target = true}),
              {{}, {(0.5 * (1 + 2 + 3 + 4) - 2 * log2) / 4}}, 8);
}

DEVICE_TEST("losses: sizes beyond a block and of nothing", "[loss]") {
  for (const DType dtype : {kFloat32, kFloat64})
    for (const int64_t n : {1, 255, 4096, 1'100'003}) {
      const Array a = noise({n}, 1), b = noise({n}, 2);
      long double sum = 0;
      for (size_t i = 0; i < a.v.size(); ++i) sum += (a.v[i] - b.v[i]) * (a.v[i] - b.v[i]);
      const Tensor x = leaf(a, {dtype, device}), t = tensor(b, {dtype, device});
      const Tensor loss = mse_loss(x, t);
      check_close("mse_loss", loss, {{}, {static_cast<double>(sum) / static_cast<double>(n)}}, 32);
      loss.backward();
      Array dx = filled({n});
      for (size_t i = 0; i < dx.v.size(); ++i)
        dx.v[i] = 2 * (a.v[i] - b.v[i]) / static_cast<double>(n);
      check_close("mse_loss: gradient", x.grad(), dx, 4);
    }
  const Tensor nothing = zeros({0, 3}, {kFloat32, device});
  CHECK(std::isnan(mse_loss(nothing, nothing).item<double>()));
  CHECK(mse_loss(nothing, nothing, Reduction::kSum).item<double>() == 0);
  CHECK(l1_loss(nothing, nothing, Reduction::kNone).shape() == Shape{0, 3});
}

DEVICE_TEST("losses: gradient checks element by element", "[loss]") {
  // Off the kinks at equality and at beta.
  const Array x = ramp({3, 5}, 1),
              t = oracle::map(ramp({3, 5}, 1), [](double v) { return -0.7 * v; });
  using Tensors = std::vector<Tensor>;
  for (const Reduction r : kReductions) {
    const std::vector<Op> ops = {
        [=](const Tensors& in) { return mse_loss(in[0], in[1], r); },
        [=](const Tensors& in) { return l1_loss(in[0], in[1], r); },
        [=](const Tensors& in) { return smooth_l1_loss(in[0], in[1], r, 0.45); },
        [=](const Tensors& in) { return huber_loss(in[0], in[1], r, 0.45); },
        [=](const Tensors& in) {
          return binary_cross_entropy_with_logits(in[0], in[1], {.reduction = r});
        },
        [=](const Tensors& in) {
          return binary_cross_entropy_with_logits(
              in[0], in[1], {.weight = in[1], .pos_weight = in[1], .reduction = r});
        },
        [=](const Tensors& in) {
          return kl_div(in[0], in[1], {.log_target = true, .reduction = r});
        }};
    for (const Op& op : ops) check_gradient(device, {x, t}, op);
    const Array positive = oracle::map(t, [](double v) { return std::abs(v) + 0.1; });
    check_gradient(device, {x, positive},
                   [=](const Tensors& in) { return kl_div(in[0], in[1], {.reduction = r}); });
  }
  // Broadcasting: each operand's gradient has its shape.
  check_gradient(device, {noise({3, 1}, 1), noise({2, 1, 4}, 2)},
                 [](const Tensors& in) { return mse_loss(in[0], in[1]); });
}

DEVICE_TEST("losses: NaN stays; equal values have no gradient", "[loss]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf({{2}, {kNan, 1}}, options), t = tensor({{2}, {1, 1}}, options);
  for (const auto& loss : {l1_loss(x, t, Reduction::kNone), smooth_l1_loss(x, t, Reduction::kNone),
                           huber_loss(x, t, Reduction::kNone), mse_loss(x, t, Reduction::kNone)}) {
    const std::vector<double> y = loss.to_vector<double>();
    CHECK(std::isnan(y[0]));
    CHECK(y[1] == 0);
    x.set_grad({});
    sum(loss).backward();
    const std::vector<double> dx = x.grad().to_vector<double>();
    CHECK(std::isnan(dx[0]));
    CHECK(dx[1] == 0);
  }
}

DEVICE_TEST("losses: errors name the operator and the shapes", "[loss]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({4, 3}, options);
  const Tensor labels = zeros({4}, {kInt64, device});
  check_throws<ShapeError>([&] { cross_entropy(x, labels, {.weight = zeros({4}, options)}); },
                           {"cross_entropy", "weight", "(3,)", "(4,)"});
  check_throws<ShapeError>(
      [&] {
        cross_entropy(zeros({4, 3, 2}, options), labels);
      },
      {"cross_entropy", "(4, 2)", "(4,)"});
  check_throws<ValueError>([&] { cross_entropy(x, x, {.ignore_index = 0}); },
                           {"cross_entropy", "ignore_index", "probabilities"});
  check_throws<ShapeError>(
      [&] {
        nll_loss(x, zeros({3}, {kInt64, device}));
      },
      {"nll_loss", "(4,)", "(3,)"});
  check_throws<DtypeError>([&] { nll_loss(x, zeros({4}, options)); }, {"nll_loss", "int64"});
  check_throws<ValueError>(
      [&] {
        nll_loss(x, full({4}, 3, {kInt64, device}));
        synchronize(device);
      },
      {"nll_loss", "labels[0] = 3", "label < 3"});
  check_throws<ShapeError>(
      [&] {
        mse_loss(x, zeros({4, 2}, options));
      },
      {"mse_loss", "(4, 3)", "(4, 2)"});
  check_throws<ValueError>([&] { smooth_l1_loss(x, x, Reduction::kMean, -1); },
                           {"smooth_l1_loss", "beta", "-1"});
  check_throws<ValueError>([&] { huber_loss(x, x, Reduction::kMean, 0); },
                           {"huber_loss", "delta", "0"});
  check_throws<ShapeError>([&] { binary_cross_entropy_with_logits(x, zeros({4}, options)); },
                           {"binary_cross_entropy_with_logits", "(4, 3)", "(4,)"});
  check_throws<ShapeError>(
      [&] { kl_div(zeros({}, options), zeros({}, options), {.batchmean = true}); },
      {"kl_div", "batchmean"});
}

}  // namespace sinter::test
