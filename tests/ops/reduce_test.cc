#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

// sum and mean over `dims`, with and without keepdim, against the oracle.
void check_reduce(Device device, const Sizes& shape, const std::vector<int>& dims) {
  for (bool keepdim : {false, true}) {
    check_op(app::sum_case(shape, dims, keepdim), device);
    check_op(app::mean_case(shape, dims, keepdim), device);
  }
}

}  // namespace

DEVICE_TEST("reduce: hand-computed case", "[reduce]") {
  const Array x{{2, 3}, {1, 2, 3, 4, 5, 6}};
  const auto op = [](Tensor (*f)(const Tensor&, const Dims&, bool), const std::vector<int>& dims) {
    return [f, dims](const std::vector<Tensor>& in) { return f(in[0], dims, false); };
  };
  check_op({"sum", {x}, op(sum, {}), {{}, {21}}, {{}, {2}}, {filled({2, 3}, 2)}, 0, {0}}, device);
  check_op({"sum",
            {x},
            op(sum, {0}),
            {{3}, {5, 7, 9}},
            {{3}, {1, 2, 3}},
            {{{2, 3}, {1, 2, 3, 1, 2, 3}}},
            0,
            {0}},
           device);
  check_op({"mean",
            {x},
            op(mean, {-1}),
            {{2}, {2, 5}},
            {{2}, {3, 6}},
            {{{2, 3}, {1, 1, 1, 2, 2, 2}}},
            1,
            {1}},
           device);
}

DEVICE_TEST("reduce: every subset of dimensions", "[reduce]") {
  const Sizes shape = {3, 4, 2, 5};
  for (int mask = 0; mask < 16; ++mask) {
    std::vector<int> dims;
    for (int d = 0; d < 4; ++d)
      if ((mask >> d & 1) != 0) dims.push_back(d % 2 == 0 ? d : d - 4);
    check_reduce(device, shape, dims);
  }
  check_reduce(device, shape, {3, 0});  // in any order
}

DEVICE_TEST("reduce: shapes", "[reduce]") {
  check_reduce(device, {}, {});
  check_reduce(device, {1}, {0});
  check_reduce(device, {1, 1, 1}, {1});
  for (int64_t n : {2, 31, 33, 255, 256, 257, 1023, 1024, 1025, 4099}) {
    check_reduce(device, {n}, {});
    check_reduce(device, {n, 3}, {0});
    check_reduce(device, {3, n}, {0});
    check_reduce(device, {3, n}, {1});
    check_reduce(device, {2, n, 3}, {1});
    check_reduce(device, {n, 2, 3}, {0, 2});
  }
  check_reduce(device, {70001, 3}, {0});
  check_reduce(device, {70001, 3}, {1});
  check_reduce(device, {3, 70001}, {1});
  check_reduce(device, {64, 6, 28, 28}, {0, 2, 3});  // a bias gradient
  check_reduce(device, {2, 1, 3, 1, 2, 2, 1, 3}, {0, 2, 5, 7});
}

DEVICE_TEST("reduce: nothing to add up", "[reduce]") {
  const TensorOptions options{kFloat32, device};
  check_close("sum: y", sum(zeros({0}, options)), {{}, {0}}, 0);
  check_close("sum: y", sum(zeros({3, 0}, options), {1}), filled({3}), 0);
  CHECK(sum(zeros({3, 0}, options), {0}).shape() == Shape{0});
  CHECK(std::isnan(mean(zeros({0}, options)).item<double>()));
}

// Running sums of these equal numbers are wrong by a percent and by a quarter of one.
DEVICE_TEST("reduce: long float32 sums keep their precision", "[reduce]") {
  const int64_t n = (1 << 20) + 3;
  const auto tenth = static_cast<double>(0.1F);
  const auto close = [](double actual, double expected) {
    return std::abs(actual - expected) <= 5e-5 * expected;
  };
  const Tensor x = full({n}, tenth, {kFloat32, device});
  CHECK(close(sum(x).item<double>(), tenth * static_cast<double>(n)));
  CHECK(close(mean(x).item<double>(), tenth));
  const Tensor columns = sum(full({n / 4, 4}, tenth, {kFloat32, device}), {0});
  for (double column : columns.to_vector<double>())
    CHECK(close(column, tenth * static_cast<double>(n / 4)));
  const Tensor pairs = sum(full({1 << 16, 64, 2}, tenth, {kFloat32, device}), {0, 2});
  for (double total : pairs.to_vector<double>()) CHECK(close(total, tenth * (1 << 17)));
}

// However long: what a block of terms rounds, and no more.
DEVICE_TEST("reduce: sums of millions are right to some units in the last place", "[reduce]") {
  const TensorOptions options{kFloat32, device};
  CHECK(sum(ones({10000000}, options)).item<double>() == 1e7);
  const auto third = static_cast<double>(1.0F / 3);
  const auto close = [](const Tensor& actual, double expected) {
    bool ok = true;
    for (double v : actual.to_vector<double>())
      ok = ok && std::abs(v - expected) <= 8 * epsilon(kFloat32) * expected;
    return ok;
  };
  const int64_t n = 6000003;
  const Tensor x = full({n}, third, options);
  CHECK(close(sum(x), third * static_cast<double>(n)));
  CHECK(close(mean(x), third));
  // Down columns, along rows, and strided.
  for (const Shape& shape :
       {Shape{n / 3, 3}, Shape{3, n / 3}, Shape{n / 99, 99}, Shape{99, n / 99}})
    for (int dim = 0; dim < 2; ++dim)
      CHECK(
          close(sum(full(shape, third, options), {dim}), third * static_cast<double>(shape[dim])));
  const Tensor strided = full({n / 300, 50, 6}, third, options);
  CHECK(close(sum(strided, {0, 2}), third * static_cast<double>(n / 300 * 6)));
}

DEVICE_TEST("reduce: the same input gives the same bits", "[reduce]") {
  const Tensor x = tensor(noise({1031, 67}, 1), {kFloat32, device});
  for (const std::vector<int>& dims : {std::vector<int>{}, {0}, {1}})
    for (int run = 0; run < 3; ++run) CHECK(same_bits(sum(x, dims), sum(x, dims)));
}

DEVICE_TEST("reduce: NaN and infinity come through", "[reduce]") {
  Array x = noise({5, 300}, 1);
  x.v[2 * 300 + 299] = std::nan("");
  x.v[4 * 300] = std::numeric_limits<double>::infinity();
  for (DType dtype : {kFloat32, kFloat64}) {
    const std::vector<double> y = sum(tensor(x, {dtype, device}), {1}).to_vector<double>();
    for (size_t i = 0; i < 4; ++i) CHECK(std::isnan(y[i]) == (i == 2));
    CHECK(y[4] == std::numeric_limits<double>::infinity());
  }
}

DEVICE_TEST("reduce: gradient check", "[reduce]") {
  for (const std::vector<int>& dims : {std::vector<int>{}, {1}, {0, -1}}) {
    check_gradient(device, {noise({3, 4, 5}, 1)},
                   [&](const std::vector<Tensor>& in) { return sum(in[0], dims); });
    check_gradient(device, {noise({3, 4, 5}, 1)},
                   [&](const std::vector<Tensor>& in) { return mean(in[0], dims, true); });
  }
}

DEVICE_TEST("reduce: dimensions as a number or a list and as members", "[reduce]") {
  const Tensor x = tensor(noise({2, 3, 4}, 1), {kFloat32, device});
  const std::vector<int> list = {0, -1};
  CHECK(same_bits(sum(x, 1), sum(x, {1})));
  CHECK(sum(x, 0).shape() == Shape{3, 4});
  CHECK(same_bits(sum(x, -1, true), sum(x, {2}, true)));
  CHECK(sum(x, 1, true).shape() == Shape{2, 1, 4});
  CHECK(same_bits(sum(x, {0, -1}), sum(x, list)));
  CHECK(sum(x, {}).rank() == 0);
  CHECK(sum(x, {}, true).shape() == Shape{1, 1, 1});
  CHECK(same_bits(mean(x, 1), mean(x, {1})));
  CHECK(mean(x, {0, 2}, true).shape() == Shape{1, 3, 1});
  CHECK(same_bits(x.sum(), sum(x)));
  CHECK(same_bits(x.sum(1), sum(x, 1)));
  CHECK(same_bits(x.mean({0, 1}, true), mean(x, {0, 1}, true)));
  static_assert(!std::is_constructible_v<Dims, bool>);
}

DEVICE_TEST("reduce: errors", "[reduce]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3}, options);
  using Function = Tensor (*)(const Tensor&, const Dims&, bool);
  for (const bool is_mean : {false, true}) {
    const std::string op = is_mean ? "mean" : "sum";
    const Function f = is_mean ? static_cast<Function>(mean) : static_cast<Function>(sum);
    check_throws<ShapeError>([&] { f(x, {2}, false); }, {op, "(2, 3)", "2"});
    check_throws<ShapeError>([&] { f(x, {-3}, false); }, {op, "(2, 3)", "-3"});
    check_throws<ShapeError>([&] { f(x, {1, -1}, false); }, {op, "(2, 3)"});  // twice the same
    check_throws<DtypeError>([&] { f(x.to(kInt64), {}, false); }, {op, "int64"});
    check_throws<Error>([&] { f(Tensor(), {}, false); }, {op});
  }
}

}  // namespace sinter::test
