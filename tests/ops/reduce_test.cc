#include <hwy/targets.h>

#include "tests/reference/oracle_reduce.h"
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
    if (is_mean) check_throws<DtypeError>([&] { f(x.to(kInt64), {}, false); }, {op, "int64"});
    check_throws<Error>([&] { f(Tensor(), {}, false); }, {op});
  }
}

// ---- reductions of every kind -------------------------------------------------------------------

DEVICE_TEST("reduce: every kind over every subset of dimensions", "[reduce]") {
  for (const app::ReductionOracle& r : app::reduction_oracles())
    for (int mask = 0; mask < 16; ++mask) {
      std::vector<int> dims;
      for (int d = 0; d < 4; ++d)
        if ((mask >> d & 1) != 0) dims.push_back(d % 2 == 0 ? d : d - 4);
      check_op(app::reduction_case(r, {3, 4, 2, 5}, dims, mask % 2 == 0), device);
    }
}

DEVICE_TEST("reduce: every kind in shapes of every kind", "[reduce]") {
  for (const app::ReductionOracle& r : app::reduction_oracles()) {
    check_op(app::reduction_case(r, {2}, {}, false), device);
    check_op(app::reduction_case(r, {33, 70}, {0}, false), device);
    check_op(app::reduction_case(r, {5, 1025}, {1}, true), device);
    check_op(app::reduction_case(r, {1025, 5}, {0}, false), device);
    check_op(app::reduction_case(r, {4100, 70}, {1}, false), device);  // many rows
    check_op(app::reduction_case(r, {2, 33, 40}, {1}, false), device);
    check_op(app::reduction_case(r, {40, 3, 33}, {0, 2}, false), device);
    check_op(app::reduction_case(r, {40001}, {}, false), device);  // cut for several threads
    check_op(app::reduction_case(r, {40001, 2}, {0}, false), device);
  }
}

DEVICE_TEST("reduce: along a dimension", "[reduce]") {
  for (const app::AlongOracle& a : app::along_oracles()) {
    check_op(app::along_case(a, {1}, 0), device);
    check_op(app::along_case(a, {3, 1, 2}, 1), device);
    for (int dim = -4; dim < 4; ++dim) check_op(app::along_case(a, {3, 4, 5, 6}, dim), device);
    for (const int64_t n : {2, 16, 17, 31, 33, 255, 257, 1025, 2047, 2049, 8193}) {
      check_op(app::along_case(a, {3, n}, 1), device);
      check_op(app::along_case(a, {n, 3}, 0), device);
      check_op(app::along_case(a, {n, 3}, 1), device);
      check_op(app::along_case(a, {2, n, 3}, 1), device);
    }
    check_op(app::along_case(a, {17, 40, 70}, 1), device);
  }
}

DEVICE_TEST("cumsum: rows of several chunks", "[reduce]") {
  for (const app::AlongOracle& a : app::along_oracles())
    if (a.name == "cumsum") {
      check_op(app::along_case(a, {2, 40003}, 1), device);
      check_op(app::along_case(a, {40003, 2}, 0), device);
    }
}

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Values and gradient (of ones) of f at x; a NaN is equal to a NaN.
void check_at(Device device, const Op& f, const Array& x, const std::vector<double>& y,
              const std::vector<double>& dx) {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const Tensor t = leaf(x, {dtype, device});
    const Tensor actual = f({t});
    const std::vector<double> values = actual.to_vector<double>();
    actual.backward(ones_like(actual));
    const std::vector<double> gradient = t.grad().to_vector<double>();
    const double tolerance = 8 * epsilon(dtype);
    const auto near = [&](const std::vector<double>& a, const std::vector<double>& b) {
      bool ok = a.size() == b.size();
      for (size_t i = 0; ok && i < a.size(); ++i)
        ok = same(a[i], b[i]) || std::abs(a[i] - b[i]) <= tolerance * std::abs(b[i]);
      return ok;
    };
    INFO(dtype << ' ' << actual << ' ' << t.grad());
    CHECK(near(values, y));
    CHECK(near(gradient, dx));
  }
}

Op over(Tensor (*f)(const Tensor&, const Dims&, bool), int dim) {
  return [=](const std::vector<Tensor>& in) { return f(in[0], dim, false); };
}

}  // namespace

DEVICE_TEST("extrema: ties and NaN", "[reduce]") {
  const Array x{{3, 3}, {kNan, 1, kNan, 2, 2, 1, -1, -1, -1}};
  const double third = 1.0 / 3;
  check_at(device, over(amax, 1), x, {kNan, 2, -1},
           {kNan, kNan, kNan, 0.5, 0.5, 0, third, third, third});
  check_at(device, over(amin, 1), x, {kNan, 1, -1},
           {kNan, kNan, kNan, 0, 0, 1, third, third, third});
  const Op largest = [](const std::vector<Tensor>& in) { return max(in[0]); };
  const Op smallest = [](const std::vector<Tensor>& in) { return min(in[0]); };
  check_at(device, largest, x, {kNan}, {0.5, 0, 0.5, 0, 0, 0, 0, 0, 0});
  check_at(device, smallest, x, {kNan}, {0.5, 0, 0.5, 0, 0, 0, 0, 0, 0});
  check_at(device, largest, {{4}, {3, 1, 3, 0}}, {3}, {0.5, 0, 0.5, 0});
  check_at(device, largest, {{3}, {-kInf, -kInf, -kInf}}, {-kInf}, {third, third, third});
  // Over a dimension the first of equal ones, or the first NaN, is chosen.
  const Op first = [](const std::vector<Tensor>& in) { return max(in[0], 1).values; };
  check_at(device, first, x, {kNan, 2, -1}, {1, 0, 0, 1, 0, 0, 1, 0, 0});
  for (const DType dtype : {kFloat32, kFloat64}) {
    const Tensor t = tensor(x, {dtype, device});
    CHECK(max(t, 1).indices.to_vector<int64_t>() == std::vector<int64_t>{0, 0, 0});
    CHECK(min(t, 1).indices.to_vector<int64_t>() == std::vector<int64_t>{0, 2, 0});
    CHECK(argmax(t).item<int64_t>() == 0);
    CHECK(argmax(t, 0).to_vector<int64_t>() == std::vector<int64_t>{0, 1, 0});
    CHECK(argmin(t, -1, true).shape() == Shape{3, 1});
  }
}

DEVICE_TEST("extrema: of every dtype", "[reduce]") {
  for (const DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8}) {
    const Tensor x = tensor({{2, 3}, {3, 250, 1, 7, 7, 0}}).to(device).to(dtype);
    CHECK(amax(x).item<int64_t>() == 250);
    CHECK(amin(x, 1).to_vector<int64_t>() == std::vector<int64_t>{1, 0});
    CHECK(max(x, 1).values.dtype() == dtype);
    CHECK(argmax(x, 1).to_vector<int64_t>() == std::vector<int64_t>{1, 0});
    CHECK(argmax(x).item<int64_t>() == 1);
    CHECK(argmin(x).item<int64_t>() == 5);
    CHECK(sort(x).values.to_vector<int64_t>() == std::vector<int64_t>{1, 3, 250, 0, 7, 7});
  }
  const Tensor negative = from_vector(std::vector<int32_t>{-5, -2, -9}, {3}, device);
  CHECK(max(negative).item<int64_t>() == -2);
  CHECK(argmin(negative).item<int64_t>() == 2);
}

DEVICE_TEST("reduce: integers and truth values", "[reduce]") {
  const Tensor x = from_vector(std::vector<int32_t>{1 << 30, 1 << 30, 1 << 30, -3}, {2, 2}, device);
  CHECK(sum(x).dtype() == kInt64);
  CHECK(sum(x).item<int64_t>() == 3 * (int64_t{1} << 30) - 3);
  CHECK(sum(x, 0).to_vector<int64_t>() ==
        std::vector<int64_t>{int64_t{1} << 31, (int64_t{1} << 30) - 3});
  CHECK(prod(x, 1).to_vector<int64_t>() ==
        std::vector<int64_t>{int64_t{1} << 60, -3 * (int64_t{1} << 30)});
  CHECK(cumsum(x, 1).to_vector<int64_t>() ==
        std::vector<int64_t>{1 << 30, int64_t{1} << 31, 1 << 30, (1 << 30) - 3});
  CHECK(sum(x.to(kUInt8)).item<int64_t>() == 253);
  const Tensor truth = tensor({{2, 2}, {1, 0, 1, 1}}).to(device).to(kBool);
  CHECK(sum(truth).dtype() == kInt64);
  CHECK(sum(truth).item<int64_t>() == 3);
  CHECK(cumsum(truth, 0).to_vector<int64_t>() == std::vector<int64_t>{1, 0, 2, 1});
  CHECK(all(truth, 1).dtype() == kBool);
  CHECK(all(truth, 1).to_vector<int64_t>() == std::vector<int64_t>{0, 1});
  CHECK(any(truth, {0, 1}).item<bool>());
  CHECK_FALSE(all(truth).item<bool>());
  CHECK(all(truth.to(kUInt8)).dtype() == kUInt8);
  const Tensor odd = tensor({{3}, {0, -0.0, kNan}}, {kFloat32, device});
  CHECK(any(odd).item<bool>());
  CHECK_FALSE(any(odd.narrow(0, 0, 2)).item<bool>());
  CHECK(all(odd.narrow(0, 2, 1)).item<bool>());
  CHECK(all(zeros({0}, {kFloat32, device})).item<bool>());
  CHECK_FALSE(any(zeros({0}, {kFloat32, device})).item<bool>());
  CHECK(all(ones({70000}, {kFloat32, device})).item<bool>());
}

DEVICE_TEST("prod: zeros", "[reduce]") {
  check_at(device, over(prod, 1), {{4, 3}, {0, 2, 3, 0, 0, 3, 2, -3, 4, 0, 0, 0}}, {0, 0, -24, 0},
           {6, 0, 0, 0, 0, 0, -12, 8, -6, 0, 0, 0});
}

DEVICE_TEST("var: few elements and large means", "[reduce]") {
  const auto spread = [](const VarOptions& options) -> Op {
    return [options](const std::vector<Tensor>& in) { return var(in[0], 1, options); };
  };
  check_at(device, spread({}), {{2, 1}, {1, 2}}, {kNan, kNan}, {kNan, kNan});
  check_at(device, spread({.correction = 0}), {{2, 1}, {1, 2}}, {0, 0}, {0, 0});
  check_at(device, spread({.correction = 3}), {{1, 2}, {1, 2}}, {kInf}, {1, -1});
  check_at(device, [](const std::vector<Tensor>& in) { return sinter::std(in[0], 1); },
           {{2, 3}, {1, 1, 1, 1, 2, 3}}, {0, 1}, {0, 0, 0, -0.5, 0, 0.5});
  // A mean that squares would drown in.
  for (const DType dtype : {kFloat32, kFloat64}) {
    Array x = filled({1, 1000}, 1 << 20);
    for (size_t i = 0; i < 1000; ++i) x.v[i] += static_cast<double>(i % 2);
    const VarMean both = var_mean(tensor(x, {dtype, device}), 1, {.correction = 0});
    CHECK(both.var.item<double>() == 0.25);
    CHECK(both.mean.item<double>() ==
          static_cast<double>(dtype == kFloat32 ? (1 << 20) + 0.5F : (1 << 20) + 0.5));
  }
}

DEVICE_TEST("var_mean and std_mean: both have gradients", "[reduce]") {
  for (const std::vector<int>& dims : {std::vector<int>{}, {1}, {0, 2}})
    for (const bool keepdim : {false, true}) {
      check_gradient(device, {noise({3, 4, 5}, 1)}, [&](const std::vector<Tensor>& in) {
        const auto [v, m] = var_mean(in[0], dims, {.correction = 0.5, .keepdim = keepdim});
        return v * 3.0 + m;
      });
      check_gradient(device, {noise({3, 4, 5}, 1)}, [&](const std::vector<Tensor>& in) {
        const auto [s, m] = std_mean(in[0], dims, {.keepdim = keepdim});
        return s * m;
      });
    }
  const Tensor x = tensor(noise({3, 4}, 1), {kFloat32, device});
  CHECK(same_bits(var_mean(x, 1).var, var(x, 1)));
  CHECK(same_bits(std_mean(x, 1).std, sinter::std(x, 1)));
}

DEVICE_TEST("norm: zeros and NaN", "[reduce]") {
  const Array x{{3, 3}, {0, 0, 0, 0, 1, -2, 1, -1, kNan}};
  const auto of = [](double p) -> Op {
    return [p](const std::vector<Tensor>& in) { return norm(in[0], p, 1); };
  };
  const double root = std::sqrt(5.0);
  check_at(device, of(0), x, {0, 2, 3}, {0, 0, 0, 0, 0, 0, 0, 0, 0});
  check_at(device, of(1), x, {0, 3, kNan}, {0, 0, 0, 0, 1, -1, 1, -1, 0});
  check_at(device, of(2), x, {0, root, kNan}, {0, 0, 0, 0, 1 / root, -2 / root, kNan, kNan, kNan});
  check_at(device, of(kInf), x, {0, 2, kNan}, {0, 0, 0, 0, 0, -1, 0, 0, 0});
  check_at(device, of(-kInf), x, {0, 0, kNan}, {0, 0, 0, 0, 0, 0, 0, 0, 0});
  check_at(device, of(-1), x, {0, 0, kNan}, {0, 0, 0, 0, 0, 0, kNan, kNan, kNan});
  check_at(device, of(kInf), {{1, 3}, {2, -2, 1}}, {2}, {0.5, -0.5, 0});
}

DEVICE_TEST("logsumexp: infinities", "[reduce]") {
  const Array x{{6, 2}, {-kInf, -kInf, kInf, 1, kInf, kInf, 1, -kInf, 1, 1, kNan, 1}};
  check_at(device, over(logsumexp, 1), x, {-kInf, kInf, kInf, 1, 1 + std::log(2.0), kNan},
           {kNan, kNan, kNan, 0, kNan, kNan, 1, 0, 0.5, 0.5, kNan, kNan});
}

DEVICE_TEST("logsumexp: large inputs do not overflow", "[reduce]") {
  for (const double large : {1e4, -1e4}) {
    const Tensor y = logsumexp(full({2, 3}, large, {kFloat64, device}), 1);
    for (const double v : y.to_vector<double>()) CHECK(std::abs(v - large - std::log(3.0)) < 1e-11);
  }
}

DEVICE_TEST("reduce: NaN and infinities anywhere in rows and columns", "[reduce]") {
  constexpr int64_t kRows = 5, kLength = 53;
  for (const DType dtype : {kFloat32, kFloat64})
    for (const int64_t place : {0, 3, 15, 16, 40, 52})
      for (const bool down : {false, true}) {
        INFO(dtype << " place " << place << (down ? ", down" : ""));
        // Row 0 is a NaN at its place, rows 1 and 2 infinities, row 3 -infinity alone, row 4 two
        // NaN.
        Array x = noise({kRows, kLength}, 1);
        const auto at = [&](int64_t row, int64_t k) -> double& {
          return x.v[static_cast<size_t>(row * kLength + k)];
        };
        at(0, place) = kNan;
        at(1, place) = kInf;
        at(2, place) = -kInf;
        for (int64_t k = 0; k < kLength; ++k) at(3, k) = -kInf;
        at(4, place) = at(4, 52) = kNan;
        const Tensor rows = tensor(x, {dtype, device});
        const Tensor t = down ? rows.permute({1, 0}) : rows;
        const int dim = down ? 0 : 1;
        const auto values = [](const Tensor& y) { return y.to_vector<double>(); };
        const std::vector<double> largest = values(amax(t, dim)), smallest = values(amin(t, dim));
        CHECK(std::isnan(largest[0]));
        CHECK(std::isnan(smallest[0]));
        CHECK(largest[1] == kInf);
        CHECK(smallest[2] == -kInf);
        CHECK(largest[3] == -kInf);
        CHECK(std::isnan(smallest[4]));
        const std::vector<int64_t> first = argmax(t, dim).to_vector<int64_t>();
        CHECK(first[0] == place);
        CHECK(first[1] == place);
        CHECK(first[3] == 0);
        CHECK(first[4] == place);
        CHECK(argmin(t, dim).to_vector<int64_t>()[2] == place);
        const std::vector<double> log_sum = values(logsumexp(t, dim));
        CHECK(std::isnan(log_sum[0]));
        CHECK(log_sum[1] == kInf);
        CHECK(std::isfinite(log_sum[2]));
        CHECK(log_sum[3] == -kInf);
        CHECK(std::isnan(log_sum[4]));
        for (const double v : values(var(t, dim))) CHECK(std::isnan(v));
        const std::vector<double> size = values(norm(t, 2, dim));
        CHECK(std::isnan(size[0]));
        CHECK(size[1] == kInf);
        CHECK(size[3] == kInf);
        const Tensor p = softmax(t, dim);
        const std::vector<double> sums = values(sum(p, dim));
        CHECK(std::isnan(sums[0]));
        CHECK(std::isnan(sums[1]));
        CHECK(std::abs(sums[2] - 1) < 1e-5);
        CHECK(std::isnan(sums[3]));
      }
}

DEVICE_TEST("cumsum: infinities do not reach back", "[reduce]") {
  Array x = filled({1, 3000}, 1);
  x.v[1501] = kInf;
  const std::vector<double> y = cumsum(tensor(x, {kFloat32, device}), 1).to_vector<double>();
  bool ok = true;
  for (size_t i = 0; i < y.size(); ++i)
    ok = ok && y[i] == (i < 1501 ? static_cast<double>(i + 1) : kInf);
  CHECK(ok);
}

DEVICE_TEST("topk and sort: ties and NaN", "[reduce]") {
  using Places = std::vector<int64_t>;
  for (const DType dtype : {kFloat32, kFloat64}) {
    const Tensor x = tensor({{2, 5}, {2, kNan, 3, kNan, 2, 1, 1, 1, 1, 1}}, {dtype, device});
    CHECK(topk(x, 4).indices.to_vector<int64_t>() == Places{1, 3, 2, 0, 0, 1, 2, 3});
    CHECK(topk(x, 2, -1, false).indices.to_vector<int64_t>() == Places{0, 4, 0, 1});
    CHECK(argsort(x).to_vector<int64_t>() == Places{0, 4, 2, 1, 3, 0, 1, 2, 3, 4});
    CHECK(argsort(x, 0, true).to_vector<int64_t>() == Places{0, 0, 0, 0, 0, 1, 1, 1, 1, 1});
    const auto [values, indices] = topk(x, 0);
    CHECK(values.shape() == Shape{2, 0});
    CHECK(indices.shape() == Shape{2, 0});
  }
  // Ties across the tiles of a long row.
  Array many = filled({6001}, 1);
  for (size_t i = 0; i < many.v.size(); ++i) many.v[i] = static_cast<double>(i % 3);
  const Tensor order = argsort(tensor(many, {kFloat32, device}), 0, true);
  const Places places = order.to_vector<int64_t>();
  bool ok = true;
  for (size_t i = 0; i < places.size(); ++i) {
    const size_t of_two = 2000, of_one = 2000;
    const size_t expected = i < of_two            ? 3 * i + 2
                            : i < of_two + of_one ? 3 * (i - of_two) + 1
                                                  : 3 * (i - of_two - of_one);
    ok = ok && places[i] == static_cast<int64_t>(expected);
  }
  CHECK(ok);
  CHECK(topk(tensor(many, {kFloat32, device}), 3).indices.to_vector<int64_t>() == Places{2, 5, 8});
}

DEVICE_TEST("reduce: scalars", "[reduce]") {
  for (const int dim : {0, -1}) {
    const Op ops[] = {[=](const std::vector<Tensor>& in) { return sum(in[0], dim); },
                      [=](const std::vector<Tensor>& in) { return mean(in[0], dim, true); },
                      [=](const std::vector<Tensor>& in) { return prod(in[0], dim); },
                      [=](const std::vector<Tensor>& in) { return amax(in[0], dim, true); },
                      [=](const std::vector<Tensor>& in) { return max(in[0], dim).values; },
                      [=](const std::vector<Tensor>& in) { return min(in[0], dim, true).values; },
                      [=](const std::vector<Tensor>& in) { return norm(in[0], 2, dim); },
                      [=](const std::vector<Tensor>& in) { return logsumexp(in[0], dim); },
                      [=](const std::vector<Tensor>& in) { return cumsum(in[0], dim); },
                      [=](const std::vector<Tensor>& in) { return topk(in[0], 1, dim).values; },
                      [=](const std::vector<Tensor>& in) { return sort(in[0], dim).values; }};
    for (const Op& op : ops) check_at(device, op, {{}, {3}}, {3}, {1});
    CHECK(argmax(tensor({{}, {3}}, {kFloat32, device}), dim).item<int64_t>() == 0);
    check_at(device, [=](const std::vector<Tensor>& in) { return softmax(in[0], dim); }, {{}, {3}},
             {1}, {0});
  }
}

DEVICE_TEST("reduce: of nothing", "[reduce]") {
  const TensorOptions options{kFloat32, device};
  const Tensor none = zeros({3, 0}, options);
  CHECK(prod(none, 1).to_vector<double>() == std::vector<double>{1, 1, 1});
  CHECK(logsumexp(none, 1).to_vector<double>() == std::vector<double>{-kInf, -kInf, -kInf});
  CHECK(norm(none, 2, 1).to_vector<double>() == std::vector<double>{0, 0, 0});
  CHECK(std::isnan(var(none).item<double>()));
  CHECK(std::isnan(var_mean(none).mean.item<double>()));
  CHECK(sum(zeros({0}, {kInt64, device})).item<int64_t>() == 0);
  CHECK(amax(none, 0).shape() == Shape{0});
  CHECK(max(none, 0).indices.shape() == Shape{0});
  CHECK(cumsum(none, 1).shape() == Shape{3, 0});
  CHECK(sort(none).indices.shape() == Shape{3, 0});
  CHECK(topk(none, 2, 0).values.shape() == Shape{2, 0});
  const Tensor leaf_of_none = zeros({3, 0}, options).set_requires_grad();
  (amax(leaf_of_none, 0).sum() + prod(leaf_of_none) + logsumexp(leaf_of_none, 1).sum() +
   cumsum(leaf_of_none, 0).sum() + max(leaf_of_none, 0).values.sum() + norm(leaf_of_none))
      .backward();
  CHECK(leaf_of_none.grad().shape() == Shape{3, 0});
  const auto refused = [&](const char* op, const std::function<void()>& f) {
    check_throws<ShapeError>(f, {op, "(3, 0)"});
  };
  refused("max", [&] { max(none); });
  refused("max", [&] { max(none, 1); });
  refused("min", [&] { min(none, 1); });
  refused("amax", [&] { amax(none, 1); });
  refused("argmax", [&] { argmax(none); });
  refused("argmin", [&] { argmin(none, 1); });
  refused("norm", [&] { norm(none, kInf, 1); });
  refused("norm", [&] { norm(none, -1); });
}

DEVICE_TEST("reduce: the same bits for any number of threads", "[reduce]") {
  for (const app::ReductionOracle& r : app::reduction_oracles())
    for (const auto& [shape, dims] :
         {std::pair<Shape, std::vector<int>>{{100003}, {}}, {{300, 401}, {0}}, {{300, 401}, {1}}}) {
      const Tensor x = tensor(noise(Sizes(shape.begin(), shape.end()), 1), {kFloat32, device});
      Tensor one;
      {
        const Threads threads(1);
        one = r.op(x, dims, false);
      }
      const Threads threads(3);
      CHECK(same_bits(one, r.op(x, dims, false)));
    }
}

TEST_CASE("reduce: with every instruction set", "[reduce][cpu]") {
  struct Restore {
    ~Restore() { hwy::SetSupportedTargetsForTest(0); }
  } const restore;
  for (int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets);
    INFO("targets " << targets);
    for (const app::ReductionOracle& r : app::reduction_oracles()) {
      check_op(app::reduction_case(r, {40, 300}, {0}, false), kCpu);
      check_op(app::reduction_case(r, {7, 301}, {1}, false), kCpu);
    }
    for (const app::AlongOracle& a : app::along_oracles()) {
      check_op(app::along_case(a, {7, 301}, 1), kCpu);
      check_op(app::along_case(a, {40, 77}, 0), kCpu);
    }
  }
}

DEVICE_TEST("reduce: errors of every kind", "[reduce]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3}, options), whole = zeros({2, 3}, {kInt64, device});
  struct Named {
    const char* name;
    std::function<void(const Tensor&, int)> f;
    bool integers = false;
  };
  const Named all_of_them[] = {{"prod", [](const Tensor& t, int d) { prod(t, d); }, true},
                               {"var", [](const Tensor& t, int d) { var(t, d); }},
                               {"std", [](const Tensor& t, int d) { sinter::std(t, d); }},
                               {"var_mean", [](const Tensor& t, int d) { var_mean(t, d); }},
                               {"max", [](const Tensor& t, int d) { max(t, d); }, true},
                               {"min", [](const Tensor& t, int d) { min(t, d); }, true},
                               {"amax", [](const Tensor& t, int d) { amax(t, d); }, true},
                               {"amin", [](const Tensor& t, int d) { amin(t, d); }, true},
                               {"argmax", [](const Tensor& t, int d) { argmax(t, d); }, true},
                               {"argmin", [](const Tensor& t, int d) { argmin(t, d); }, true},
                               {"norm", [](const Tensor& t, int d) { norm(t, 2, d); }},
                               {"logsumexp", [](const Tensor& t, int d) { logsumexp(t, d); }},
                               {"all", [](const Tensor& t, int d) { all(t, d); }, true},
                               {"any", [](const Tensor& t, int d) { any(t, d); }, true},
                               {"cumsum", [](const Tensor& t, int d) { cumsum(t, d); }, true},
                               {"topk", [](const Tensor& t, int d) { topk(t, 1, d); }, true},
                               {"sort", [](const Tensor& t, int d) { sort(t, d); }, true},
                               {"softmax", [](const Tensor& t, int d) { softmax(t, d); }}};
  for (const Named& named : all_of_them) {
    check_throws<ShapeError>([&] { named.f(x, 2); }, {named.name, "(2, 3)", "2"});
    check_throws<ShapeError>([&] { named.f(zeros({}, options), 1); }, {named.name, "1"});
    check_throws<Error>([&] { named.f(Tensor(), 0); }, {named.name, "undefined"});
    if (!named.integers)
      check_throws<DtypeError>([&] { named.f(whole, 0); }, {named.name, "int64"});
  }
  check_throws<ShapeError>([&] { topk(x, 4); }, {"topk", "(2, 3)", "4"});
  check_throws<ShapeError>([&] { topk(x, -1); }, {"topk", "-1"});
  check_throws<ValueError>([&] { norm(x, std::nan("")); }, {"norm"});
}

}  // namespace sinter::test
