#include <sinter/emit.h>

#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

using app::away_from_zero;
using app::Binary;
using app::binary_op;
using app::kBinary;

void check_binary(Device device, const Sizes& a_shape, const Sizes& b_shape) {
  for (const Binary& binary : kBinary) check_op(app::binary_case(binary, a_shape, b_shape), device);
}

}  // namespace

DEVICE_TEST("relu: hand-computed case and the kink", "[elementwise]") {
  // The gradient at 0, of either sign, is 0.
  const Array x{{2, 3}, {-1, 0, 2, 0.5, -0.0, -3}}, dy{{2, 3}, {1, 2, 3, 4, 5, 6}};
  check_op({"relu",
            {x},
            [](const std::vector<Tensor>& in) { return relu(in[0]); },
            {{2, 3}, {0, 0, 2, 0.5, 0, 0}},
            dy,
            {{{2, 3}, {0, 0, 3, 4, 0, 0}}},
            0,
            {0}},
           device);
}

DEVICE_TEST("relu: shapes", "[elementwise]") {
  for (const Sizes& shape : {Sizes{},
                             {1},
                             {3},
                             {255},
                             {256},
                             {257},
                             {1023},
                             {1025},
                             {5, 6, 28, 28},
                             {1, 2, 3, 4, 5, 1, 2, 3},
                             {100003},
                             {0, 3}}) {
    check_op(app::relu_case(shape), device);
  }
}

DEVICE_TEST("relu: NaN and infinity", "[elementwise]") {
  const double inf = std::numeric_limits<double>::infinity();
  for (DType dtype : {kFloat32, kFloat64}) {
    Array x = filled({37}, std::nan(""));
    x.v[1] = inf;
    x.v[35] = -inf;
    const std::vector<double> y = relu(tensor(x, {dtype, device})).to_vector<double>();
    for (size_t i = 0; i < y.size(); ++i)
      if (i == 1)
        CHECK(y[i] == inf);
      else if (i == 35)
        CHECK(y[i] == 0);
      else
        CHECK(std::isnan(y[i]));
  }
}

// As in PyTorch: the gradient is 0 where the result is, not where it is above 0.
DEVICE_TEST("relu: a NaN passes the gradient on", "[elementwise]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (size_t n : {3, 37}) {
      Array x = filled({static_cast<int64_t>(n)}, -1), dx = filled(x.shape);
      x.v[0] = std::nan("");
      x.v[1] = -0.0;
      x.v[n - 1] = 2;
      dx.v[0] = dx.v[n - 1] = 1;
      const Tensor t = leaf(x, {dtype, device});
      const Tensor y = relu(t);
      CHECK(std::isnan(y.to_vector<double>()[0]));
      y.backward(ones(y.shape(), y.options()));
      check_close("relu: gradient 0", t.grad(), dx, 0);
    }
}

DEVICE_TEST("relu: gradient check", "[elementwise]") {
  check_gradient(device, {ramp({3, 5, 7}, 1)},
                 [](const std::vector<Tensor>& in) { return relu(in[0]); });
}

DEVICE_TEST("relu: errors", "[elementwise]") {
  check_throws<DtypeError>([&] { relu(zeros({2}, {kBool, device})); }, {"relu", "bool"});
  check_throws<Error>([&] { relu(Tensor()); }, {"relu"});
}

DEVICE_TEST("binary: hand-computed case", "[elementwise]") {
  const Array a{{2, 1}, {6, -8}}, b{{3}, {1, 2, 4}}, dy{{2, 3}, {1, 1, 1, 2, 2, 2}};
  const Array expected[] = {{{2, 3}, {7, 8, 10, -7, -6, -4}},
                            {{2, 3}, {5, 4, 2, -9, -10, -12}},
                            {{2, 3}, {6, 12, 24, -8, -16, -32}},
                            {{2, 3}, {6, 3, 1.5, -8, -4, -2}}};
  const std::vector<Array> grads[] = {{{{2, 1}, {3, 6}}, {{3}, {3, 3, 3}}},
                                      {{{2, 1}, {3, 6}}, {{3}, {-3, -3, -3}}},
                                      {{{2, 1}, {7, 14}}, {{3}, {-10, -10, -10}}},
                                      {{{2, 1}, {1.75, 3.5}}, {{3}, {10, 2.5, 0.625}}}};
  for (size_t i = 0; i < 4; ++i)
    check_op({kBinary[i].name, {a, b}, binary_op(kBinary[i]), expected[i], dy, grads[i], 0, {0, 0}},
             device);
}

DEVICE_TEST("binary: broadcasting", "[elementwise]") {
  check_binary(device, {}, {});
  check_binary(device, {1}, {});
  check_binary(device, {257}, {257});
  check_binary(device, {1025}, {1});
  check_binary(device, {1}, {1025});
  check_binary(device, {3, 5}, {5});
  check_binary(device, {5}, {3, 5});
  check_binary(device, {3, 1}, {1, 5});
  check_binary(device, {3, 1}, {3, 5});
  check_binary(device, {2, 3, 4, 5}, {3, 1, 1});
  check_binary(device, {2, 3, 4, 5}, {1, 3, 1, 5});
  check_binary(device, {2, 1, 4, 1}, {3, 1, 5});
  check_binary(device, {1, 1, 1}, {2, 3, 4});
  check_binary(device, {2, 1, 2, 1, 2, 1, 2, 1}, {1, 3, 1, 2, 1, 3, 1, 2});
  check_binary(device, {259, 3}, {259, 1});
  check_binary(device, {3, 1031}, {1031});
  check_binary(device, {2, 0, 3}, {1, 3});
}

DEVICE_TEST("binary: gradient check", "[elementwise]") {
  for (const Binary& binary : kBinary) {
    check_gradient(device, {noise({2, 3, 4}, 1), away_from_zero({3, 1}, 2)}, binary_op(binary));
    check_gradient(device, {away_from_zero({5}, 1)},  // both operands one tensor
                   [&](const std::vector<Tensor>& in) { return binary.op(in[0], in[0]); });
  }
}

DEVICE_TEST("binary: one operand without gradient", "[elementwise]") {
  const TensorOptions options{kFloat32, device};
  for (const Binary& binary : kBinary)
    for (int with : {0, 1}) {
      Tensor a = ones({2, 3}, options), b = ones({3}, options);
      (with == 0 ? a : b).set_requires_grad();
      sum(binary.op(a, b)).backward();
      CHECK(a.grad().defined() == (with == 0));
      CHECK(b.grad().defined() == (with == 1));
    }
}

DEVICE_TEST("binary: operators are the functions", "[elementwise]") {
  const Tensor a = tensor(noise({4, 3}, 1), {kFloat32, device});
  const Tensor b = tensor(away_from_zero({3}, 2), {kFloat32, device});
  CHECK(same_bits(a + b, add(a, b)));
  CHECK(same_bits(a - b, sub(a, b)));
  CHECK(same_bits(a * b, mul(a, b)));
  CHECK(same_bits(a / b, div(a, b)));
}

DEVICE_TEST("binary: errors name the operator and the shapes", "[elementwise]") {
  const TensorOptions options{kFloat32, device};
  const Tensor a = zeros({2, 3}, options);
  for (const Binary& binary : kBinary) {
    const std::string op = binary.name;
    check_throws<ShapeError>(
        [&] {
          binary.op(a, zeros({2, 4}, options));
        },
        {op, "(2, 3)", "(2, 4)"});
    check_throws<ShapeError>([&] { binary.op(a, zeros({2}, options)); }, {op, "(2, 3)", "(2,)"});
    check_throws<DtypeError>([&] { binary.op(a, a.to(kFloat64)); }, {op, "float32", "float64"});
    check_throws<Error>([&] { binary.op(a, Tensor()); }, {op});
    check_throws<Error>([&] { binary.op(Tensor(), a); }, {op});
    if (device.is_cuda())
      check_throws<DeviceError>([&] { binary.op(a, a.to(kCpu)); }, {op, "cuda", "cpu"});
  }
}

DEVICE_TEST("scalars: values and gradients", "[elementwise]") {
  struct Scalar {
    const char* name;
    Tensor (*op)(const Tensor&);
    double (*value)(double);
    double slope;
  };
  // Numbers that float32 holds exactly, so that one rounding is all there is.
  const Scalar scalars[] = {
      {"x + 2.5", [](const Tensor& x) { return x + 2.5; }, [](double v) { return v + 2.5; }, 1},
      {"2.5 + x", [](const Tensor& x) { return 2.5 + x; }, [](double v) { return v + 2.5; }, 1},
      {"x - 2.5", [](const Tensor& x) { return x - 2.5; }, [](double v) { return v - 2.5; }, 1},
      {"x * -3", [](const Tensor& x) { return x * -3.0; }, [](double v) { return v * -3; }, -3},
      {"-3 * x", [](const Tensor& x) { return -3.0 * x; }, [](double v) { return v * -3; }, -3},
      {"x / 3", [](const Tensor& x) { return x / 3.0; }, [](double v) { return v / 3; }, 1.0 / 3},
      {"-x", [](const Tensor& x) { return -x; }, [](double v) { return -v; }, -1},
  };
  for (const Scalar& scalar : scalars)
    for (const Sizes& shape : {Sizes{}, {1}, {3, 5}, {1027}, {0}}) {
      const Array x = noise(shape, 1), dy = noise(shape, 2);
      const Op op = [&](const std::vector<Tensor>& in) { return scalar.op(in[0]); };
      check_op({scalar.name,
                {x},
                op,
                oracle::map(x, scalar.value),
                dy,
                {oracle::map(dy, [&](double v) { return v * scalar.slope; })},
                1,
                {1}},
               device);
    }
  check_throws<DtypeError>([&] { -zeros({2}, {kBool, device}); }, {"neg", "bool"});
}

DEVICE_TEST("kernels: accumulate and scale in place", "[elementwise]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (int64_t n : {1, 3, 255, 257, 1025, 70001}) {
      const Array a = noise({n}, 1), b = noise({n}, 2);
      const Tensor x = tensor(a, {dtype, device}), y = tensor(b, {dtype, device});
      emit(op::Accumulate{in(x), inout(y)});
      emit(op::scale(-0.5, in(x), out(x)));
      Array total = a;
      for (size_t i = 0; i < total.v.size(); ++i) total.v[i] += b.v[i];
      check_close("accumulate", y, total, 1);
      check_close("scale", x, oracle::map(a, [](double v) { return -0.5 * v; }), 0);
    }
}

}  // namespace sinter::test
