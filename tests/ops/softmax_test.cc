#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

using Labels = std::vector<int64_t>;

Tensor labels_tensor(const Labels& labels, Device device) {
  return from_vector(labels, {static_cast<int64_t>(labels.size())}, device);
}

using app::random_labels;

void check_log_softmax(Device device, const Sizes& shape, int dim) {
  check_op(app::log_softmax_case(shape, dim), device);
}

void check_cross_entropy(Device device, int64_t n, int64_t classes, double smoothing,
                         Reduction reduction) {
  check_op(app::cross_entropy_case(n, classes, smoothing, reduction), device);
}

}  // namespace

DEVICE_TEST("log_softmax: hand-computed case", "[softmax]") {
  // Odds 1 : 3, whatever is added to a row.
  const double third = std::log(3.0);
  const Array x{{2, 2}, {0, third, 5 + third, 5}}, dy{{2, 2}, {1, 0, 1, 1}};
  const Array y{{2, 2}, {std::log(0.25), std::log(0.75), std::log(0.75), std::log(0.25)}};
  check_op({"log_softmax",
            {x},
            [](const std::vector<Tensor>& in) { return log_softmax(in[0]); },
            y,
            dy,
            {{{2, 2}, {0.75, -0.75, -0.5, 0.5}}},
            8,
            {8}},
           device);
}

DEVICE_TEST("log_softmax: shapes and dimensions", "[softmax]") {
  check_log_softmax(device, {1}, 0);
  check_log_softmax(device, {1, 1}, 1);
  check_log_softmax(device, {64, 10}, -1);
  check_log_softmax(device, {64, 10}, 0);
  check_log_softmax(device, {3, 4, 5, 6}, 0);
  check_log_softmax(device, {3, 4, 5, 6}, 1);
  check_log_softmax(device, {3, 4, 5, 6}, -2);
  check_log_softmax(device, {3, 4, 5, 6}, 3);
  for (int64_t c : {2, 31, 33, 257, 1000, 1025, 2053}) {
    check_log_softmax(device, {3, c}, 1);
    check_log_softmax(device, {c, 3}, 0);
    check_log_softmax(device, {c, 3}, 1);
    check_log_softmax(device, {2, c, 3}, 1);
  }
  check_log_softmax(device, {9001, 10}, 1);
  check_log_softmax(device, {2, 5003}, 1);
}

DEVICE_TEST("log_softmax: large inputs do not overflow", "[softmax]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const Tensor x = leaf({{2, 3}, {1e30, 0, -1e30, -1e4, -1e4, -1e4}}, {dtype, device});
    const Tensor y = log_softmax(x);
    const std::vector<double> values = y.to_vector<double>();
    CHECK(values[0] == 0);
    CHECK(std::abs(values[1] / -1e30 - 1) < 1e-6);
    CHECK(std::abs(values[2] / -2e30 - 1) < 1e-6);
    for (size_t i = 3; i < 6; ++i) CHECK(std::abs(values[i] + std::log(3.0)) < 1e-6);
    y.backward(ones({2, 3}, {dtype, device}));
    check_close("log_softmax: gradient 0", x.grad(), {{2, 3}, {-2, 1, 1, 0, 0, 0}}, 4);
    // A class that cannot occur, and a NaN that spoils its own row only.
    const double inf = std::numeric_limits<double>::infinity();
    const Tensor odd = tensor({{2, 2}, {-inf, 1, std::nan(""), 1}}, {dtype, device});
    const std::vector<double> z = log_softmax(odd).to_vector<double>();
    CHECK(z[0] == -inf);
    CHECK(z[1] == 0);
    CHECK(std::isnan(z[2]));
    CHECK(std::isnan(z[3]));
  }
}

DEVICE_TEST("log_softmax and cross_entropy: millions of classes keep their digits", "[softmax]") {
  const auto near = [](const Tensor& t, int64_t at, double expected, double ulps) {
    const auto v = t.reshape({t.numel()}).narrow(0, at, 1).item<double>();
    INFO(v << " for " << expected);
    CHECK(std::abs(v - expected) <= ulps * epsilon(kFloat32) * std::abs(expected));
  };
  const int64_t classes = 2000000;
  // exp(0) = 1 beside the largest, exp(-3) elsewhere.
  Array x_values = filled({1, classes}, -3);
  x_values.v[17] = 0;
  const double others = static_cast<double>(classes - 1) * std::exp(-3.0);
  const double log_total = std::log(1 + others);
  for (const Shape& shape : {Shape{1, classes}, Shape{1, classes, 1}, Shape{classes / 2, 2}}) {
    const bool columns = shape.rank() == 2 && shape[1] == 2;
    const Tensor x = full(shape, 1.5, {kFloat32, device}).set_requires_grad();
    const Tensor y = log_softmax(x, columns ? 0 : 1);
    const auto terms = static_cast<double>(columns ? classes / 2 : classes);
    near(y, 0, -std::log(terms), 2);
    y.backward(full(shape, 1.0 / 3, {kFloat32, device}));  // dx = 1 / 3 - 1 / C * C / 3
    for (double v : x.grad().to_vector<double>()) {
      if (std::abs(v) <= 4 * epsilon(kFloat32)) continue;
      CHECK(v == 0);
      break;
    }
  }
  const Tensor x = leaf(x_values, {kFloat32, device});
  near(log_softmax(x), 17, -log_total, 2);
  const Tensor loss = cross_entropy(x, full({1}, 17, {kInt64, device}));
  near(loss, 0, log_total, 2);
  loss.backward();
  near(x.grad(), 17, 1 / (1 + others) - 1, 2);
  near(x.grad(), 18, std::exp(-3.0) / (1 + others), 16);
}

DEVICE_TEST("softmax: large inputs and infinities", "[softmax]") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const Array x{{5, 2}, {-inf, -inf, -inf, 1, inf, 1, nan, 1, 1e4, -1e4}};
  const std::vector<double> y = {nan, nan, 0, 1, nan, nan, nan, nan, 1, 0};
  for (DType dtype : {kFloat32, kFloat64})
    for (int dim : {1, 0}) {
      const Tensor t = leaf(x, {dtype, device});
      const Tensor actual = dim == 1 ? softmax(t) : softmax(t.permute({1, 0}), 0).permute({1, 0});
      const std::vector<double> values = actual.to_vector<double>();
      actual.backward(ones_like(actual));
      const std::vector<double> dx = t.grad().to_vector<double>();
      for (size_t i = 0; i < y.size(); ++i) {
        CHECK((values[i] == y[i] || (std::isnan(values[i]) && std::isnan(y[i]))));
        CHECK((std::isnan(y[i]) ? std::isnan(dx[i]) : dx[i] == 0));
      }
    }
}

DEVICE_TEST("softmax: gradient check", "[softmax]") {
  for (int dim : {0, 1, 2})
    check_gradient(device, {noise({3, 4, 2}, 1)},
                   [&](const std::vector<Tensor>& in) { return softmax(in[0], dim); });
}

DEVICE_TEST("softmax: nothing", "[softmax]") {
  const Tensor x = zeros({5, 0, 0}, {kFloat32, device}).set_requires_grad();
  for (int dim : {0, 1, 2}) {
    CHECK(softmax(x, dim).shape() == x.shape());
    log_softmax(x, dim).sum().backward();
  }
}

DEVICE_TEST("log_softmax: gradient check", "[softmax]") {
  for (int dim : {0, 1, 2})
    check_gradient(device, {noise({3, 4, 2}, 1)},
                   [&](const std::vector<Tensor>& in) { return log_softmax(in[0], dim); });
}

DEVICE_TEST("log_softmax: errors", "[softmax]") {
  const Tensor x = zeros({2, 3}, {kFloat32, device});
  check_throws<ShapeError>([&] { log_softmax(x, 2); }, {"log_softmax", "(2, 3)"});
  check_throws<ShapeError>([&] { log_softmax(x, -3); }, {"log_softmax", "(2, 3)"});
  check_throws<DtypeError>([&] { log_softmax(x.to(kInt32)); }, {"log_softmax", "int32"});
}

DEVICE_TEST("cross_entropy: hand-computed case", "[softmax]") {
  const double three = std::log(3.0);
  const Array x{{2, 2}, {0, three, 7, 7}};  // probabilities 1/4, 3/4 and 1/2, 1/2
  const Labels labels = {0, 1};
  const Op mean = [&](const std::vector<Tensor>& in) {
    return cross_entropy(in[0], labels_tensor(labels, device));
  };
  check_op({"cross_entropy",
            {x},
            mean,
            {{}, {(std::log(4.0) + std::log(2.0)) / 2}},
            {{}, {1}},
            {{{2, 2}, {-0.375, 0.375, 0.25, -0.25}}},
            8,
            {8}},
           device);
  const Op sum = [&](const std::vector<Tensor>& in) {
    return cross_entropy(in[0], labels_tensor(labels, device), {.reduction = Reduction::kSum});
  };
  check_op({"cross_entropy",
            {x},
            sum,
            {{}, {std::log(8.0)}},
            {{}, {2}},
            {{{2, 2}, {-1.5, 1.5, 1, -1}}},
            8,
            {8}},
           device);
  // Smoothing 0.5: q = 3/4, 1/4 and 1/4, 3/4.
  const Op smooth = [&](const std::vector<Tensor>& in) {
    return cross_entropy(in[0], labels_tensor(labels, device),
                         {.reduction = Reduction::kSum, .label_smoothing = 0.5});
  };
  check_op({"cross_entropy",
            {x},
            smooth,
            {{}, {std::log(4.0) - 0.25 * three + std::log(2.0)}},
            {{}, {1}},
            {{{2, 2}, {-0.5, 0.5, 0.25, -0.25}}},
            8,
            {8}},
           device);
}

DEVICE_TEST("cross_entropy: shapes and options", "[softmax]") {
  for (Reduction reduction : {Reduction::kMean, Reduction::kSum})
    for (double smoothing : {0.0, 0.1, 1.0}) {
      for (int64_t n : {1, 3, 64, 257, 1025, 9001})
        check_cross_entropy(device, n, 10, smoothing, reduction);
      for (int64_t c : {1, 2, 31, 33, 100, 1025, 2053})
        check_cross_entropy(device, 5, c, smoothing, reduction);
    }
}

DEVICE_TEST("cross_entropy: confident and wrong does not overflow", "[softmax]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const Tensor x = leaf({{2, 2}, {1e4, 0, 0, 1e4}}, {dtype, device});
    const Tensor loss = cross_entropy(x, labels_tensor({1, 1}, device));
    CHECK(loss.item<double>() == 5000);
    loss.backward();
    check_close("cross_entropy: gradient 0", x.grad(), {{2, 2}, {0.5, -0.5, 0, 0}}, 1);
  }
}

DEVICE_TEST("cross_entropy: gradient check", "[softmax]") {
  const Tensor labels = labels_tensor({2, 0, 4}, device);
  for (Reduction reduction : {Reduction::kMean, Reduction::kSum})
    for (double smoothing : {0.0, 0.2})
      check_gradient(device, {noise({3, 5}, 1)}, [&](const std::vector<Tensor>& in) {
        return cross_entropy(in[0], labels, {.reduction = reduction, .label_smoothing = smoothing});
      });
}

DEVICE_TEST("cross_entropy: a label out of range is named", "[softmax]") {
  const Tensor x = zeros({20, 10}, {kFloat32, device});
  for (int64_t wrong : {int64_t{10}, int64_t{-1}, int64_t{1} << 40}) {
    Labels labels(20, 3);
    labels[17] = wrong;
    check_throws<ValueError>(
        [&] {
          cross_entropy(x, labels_tensor(labels, device));
          synchronize(device);
        },
        {"cross_entropy", "labels[17]", std::to_string(wrong), "10"});
    // The device goes on working.
    CHECK(std::abs(cross_entropy(x, labels_tensor(Labels(20, 9), device)).item<double>() -
                   std::log(10.0)) < 1e-6);
  }
}

CUDA_TEST("cross_entropy: the loss of a label out of range is NaN until someone waits",
          "[softmax]") {
  const Tensor x = zeros({3, 10}, {kFloat32, device});
  const Tensor loss = cross_entropy(x, labels_tensor({1, 10, 2}, device));
  check_throws<ValueError>([&] { synchronize(device); }, {"cross_entropy", "labels[1]"});
  CHECK(std::isnan(loss.item<double>()));  // the fault was thrown once
}

DEVICE_TEST("cross_entropy: errors name the operator and the shapes", "[softmax]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({4, 3}, options), labels = labels_tensor({0, 1, 2, 0}, device);
  check_throws<ShapeError>([&] { cross_entropy(zeros({4}, options), labels); },
                           {"cross_entropy", "(4,)"});
  check_throws<ShapeError>([&] { cross_entropy(x, labels.narrow(0, 0, 3)); },
                           {"cross_entropy", "(4, 3)", "(3,)"});
  check_throws<ShapeError>(
      [&] {
        cross_entropy(x, labels.reshape({4, 1}));
      },
      {"cross_entropy", "(4, 1)"});
  check_throws<DtypeError>([&] { cross_entropy(x, labels.to(kInt32)); },
                           {"cross_entropy", "int32", "int64"});
  check_throws<DtypeError>([&] { cross_entropy(x.to(kInt64), labels); },
                           {"cross_entropy", "int64"});
  for (double smoothing : {-0.1, 1.1, std::nan("")})
    check_throws<ValueError>([&] { cross_entropy(x, labels, {.label_smoothing = smoothing}); },
                             {"cross_entropy", "label_smoothing"});
  if (device.is_cuda())
    check_throws<DeviceError>([&] { cross_entropy(x, labels.to(kCpu)); },
                              {"cross_entropy", "cuda", "cpu"});
}

DEVICE_TEST("add_correct: counts first maxima and adds up", "[softmax]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const Tensor count = zeros({}, {kInt64, device});
    // Right; wrong; a tie whose first is right; a tie whose second is the label; negative values.
    const Array x{{5, 3}, {0, 2, 1, 5, 1, 0, 4, 4, 0, 4, 4, 0, -3, -2, -1}};
    const Tensor logits = tensor(x, {dtype, device});
    add_correct(count, logits, labels_tensor({1, 1, 0, 1, 2}, device));
    CHECK(count.item<int64_t>() == 3);
    add_correct(count, logits, labels_tensor({1, 1, 0, 1, 2}, device));
    CHECK(count.item<int64_t>() == 6);
  }
  for (int64_t n : {1, 255, 257, 1025, 9001})
    for (int64_t classes : {1, 10, 37, 1031}) {
      const Array x = noise({n, classes}, 1);
      const Labels labels = random_labels(n, classes, 2);
      int64_t expected = 0;
      for (int64_t i = 0; i < n; ++i) {
        const auto row = x.v.begin() + i * classes;
        expected += std::max_element(row, row + classes) - row == labels[static_cast<size_t>(i)];
      }
      const Tensor count = zeros({1}, {kInt64, device});
      add_correct(count, tensor(x, {kFloat32, device}), labels_tensor(labels, device));
      INFO("n " << n << " classes " << classes);
      CHECK(count.item<int64_t>() == expected);
    }
}

DEVICE_TEST("add_correct: errors", "[softmax]") {
  const Tensor count = zeros({}, {kInt64, device}), x = zeros({4, 3}, {kFloat32, device});
  const Tensor labels = labels_tensor({0, 1, 2, 0}, device);
  check_throws<ShapeError>([&] { add_correct(count, x, labels.narrow(0, 0, 3)); },
                           {"add_correct", "(4, 3)", "(3,)"});
  check_throws<ShapeError>(
      [&] {
        add_correct(zeros({2}, {kInt64, device}), x, labels);
      },
      {"add_correct", "(2,)"});
  check_throws<DtypeError>([&] { add_correct(count.to(kInt32), x, labels); },
                           {"add_correct", "int32"});
  check_throws<DtypeError>([&] { add_correct(count, x, labels.to(kInt32)); },
                           {"add_correct", "int32"});
}

}  // namespace sinter::test
