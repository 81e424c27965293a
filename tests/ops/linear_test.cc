#include <sinter/emit.h>

#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

Tensor linear_op(const std::vector<Tensor>& in) {
  return linear(in[0], in[1], in.size() > 2 ? in[2] : Tensor());
}
Tensor matmul_op(const std::vector<Tensor>& in) { return matmul(in[0], in[1]); }

void check_linear(Device device, const Sizes& leading, int64_t in, int64_t out, bool bias) {
  check_op(app::linear_case(leading, in, out, bias), device);
}

void check_matmul(Device device, const Sizes& a_shape, const Sizes& b_shape) {
  check_op(app::matmul_case(a_shape, b_shape), device);
}

}  // namespace

DEVICE_TEST("linear: hand-computed case", "[linear]") {
  const Array x{{2, 3}, {1, 2, 3, -1, 0, 1}}, w{{2, 3}, {1, 0, -1, 2, 1, 0}}, b{{2}, {10, 20}};
  const Array y{{2, 2}, {8, 24, 8, 18}}, dy{{2, 2}, {1, 2, 3, 4}};
  const Array dx{{2, 3}, {5, 2, -1, 11, 4, -3}}, dw{{2, 3}, {-2, 2, 6, -2, 4, 10}};
  check_op({"linear", {x, w, b}, linear_op, y, dy, {dx, dw, {{2}, {4, 6}}}, 0, {0, 0, 0}}, device);
}

DEVICE_TEST("linear: shapes", "[linear]") {
  for (bool bias : {true, false}) {
    check_linear(device, {1}, 1, 1, bias);
    check_linear(device, {64}, 400, 120, bias);
    check_linear(device, {64}, 120, 84, bias);
    check_linear(device, {64}, 84, 10, bias);
    check_linear(device, {7}, 33, 65, bias);
    check_linear(device, {1}, 1031, 3, bias);
    check_linear(device, {3}, 2, 1027, bias);
    check_linear(device, {1030}, 5, 2, bias);
    check_linear(device, {257}, 1, 259, bias);
    check_linear(device, {}, 6, 5, bias);  // a vector
    check_linear(device, {2, 3, 4}, 5, 7, bias);
  }
}

DEVICE_TEST("linear: every small shape", "[linear]") {
  for (int64_t n : {1, 2, 3, 5, 8, 17})
    for (int64_t in : {1, 2, 7, 16, 31})
      for (int64_t out : {1, 3, 4, 9, 33}) check_linear(device, {n}, in, out, (n + in) % 2 == 0);
}

DEVICE_TEST("linear: only the gradients asked for", "[linear]") {
  const TensorOptions options{kFloat64, device};
  for (int mask = 1; mask < 8; ++mask) {
    std::vector<Tensor> in = {tensor(noise({3, 4}, 1), options), tensor(noise({5, 4}, 2), options),
                              tensor(noise({5}, 3), options)};
    for (int i = 0; i < 3; ++i)
      if ((mask >> i & 1) != 0) in[static_cast<size_t>(i)].set_requires_grad();
    linear_op(in).backward(ones({3, 5}, options));
    for (int i = 0; i < 3; ++i)
      CHECK(in[static_cast<size_t>(i)].grad().defined() == ((mask >> i & 1) != 0));
  }
}

DEVICE_TEST("linear: gradient check", "[linear]") {
  check_gradient(device, {noise({3, 4}, 1), noise({5, 4}, 2), noise({5}, 3)}, linear_op);
  check_gradient(device, {noise({2, 2, 3}, 1), noise({4, 3}, 2)}, linear_op);
}

DEVICE_TEST("linear: errors name the operator and the shapes", "[linear]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3}, options), w = zeros({4, 3}, options);
  check_throws<ShapeError>(
      [&] {
        linear(x, zeros({4, 5}, options));
      },
      {"linear", "(2, 3)", "(4, 5)"});
  check_throws<ShapeError>([&] { linear(x, zeros({1, 4, 3}, options)); }, {"linear", "(1, 4, 3)"});
  check_throws<ShapeError>([&] { linear(zeros({}, options), w); }, {"linear"});
  check_throws<ShapeError>([&] { linear(x, w, zeros({3}, options)); }, {"linear", "(3,)", "(4,)"});
  check_throws<DtypeError>([&] { linear(x, w.to(kFloat64)); }, {"linear", "float32", "float64"});
  check_throws<DtypeError>(
      [&] {
        linear(x, w, zeros({4}, {kFloat64, device}));
      },
      {"linear", "float32", "float64"});
  check_throws<DtypeError>([&] { linear(x.to(kInt32), w.to(kInt32)); }, {"linear", "int32"});
  check_throws<Error>([&] { linear(x, Tensor()); }, {"linear"});
  if (device.is_cuda())
    check_throws<DeviceError>([&] { linear(x.to(kCpu), w); }, {"linear", "cuda", "cpu"});
}

DEVICE_TEST("matmul: hand-computed case", "[matmul]") {
  const Array a{{2, 3}, {1, 2, 3, 4, 5, 6}}, b{{3, 2}, {1, 0, 0, 1, 2, -1}};
  check_op({"matmul",
            {a, b},
            matmul_op,
            {{2, 2}, {7, -1, 16, -1}},
            {{2, 2}, {1, 2, 0, -1}},
            {{{2, 3}, {1, 2, 0, 0, -1, 1}}, {{3, 2}, {1, -2, 2, -1, 3, 0}}},
            0,
            {0, 0}},
           device);
}

DEVICE_TEST("matmul: shapes and broadcasting", "[matmul]") {
  check_matmul(device, {1, 1}, {1, 1});
  check_matmul(device, {65, 129}, {129, 33});
  check_matmul(device, {1, 1025}, {1025, 1});
  check_matmul(device, {1025, 1}, {1, 3});
  check_matmul(device, {2, 1}, {1, 1030});
  check_matmul(device, {3, 2, 4}, {3, 4, 5});
  check_matmul(device, {3, 2, 4}, {4, 5});
  check_matmul(device, {2, 4}, {3, 4, 5});
  check_matmul(device, {3, 1, 2, 4}, {5, 4, 3});
  check_matmul(device, {1, 2, 4}, {3, 4, 5});
  check_matmul(device, {2, 1, 3, 2, 4}, {1, 5, 1, 4, 3});
  check_matmul(device, {67, 3, 2}, {67, 2, 3});  // more matrices than they have elements
  check_matmul(device, {300, 1, 1}, {1, 1, 1});
  check_matmul(device, {70001, 1, 2}, {70001, 2, 1});  // beyond a grid's 65535
  check_matmul(device, {70001, 2, 1}, {1, 2});
}

DEVICE_TEST("matmul: vectors", "[matmul]") {
  // As the matrix with an extent of 1 that the vector stands for.
  const auto check = [&](const Sizes& a, const Sizes& b, const Sizes& y) {
    Sizes left = a, right = b;
    if (a.size() == 1) left.insert(left.begin(), 1);
    if (b.size() == 1) right.push_back(1);
    OpCase c = app::matmul_case(left, right);
    c.inputs[0].shape = c.grads[0].shape = a;
    c.inputs[1].shape = c.grads[1].shape = b;
    c.y.shape = c.dy.shape = y;
    check_op(c, device);
  };
  check({20}, {20}, {});
  check({1}, {1}, {});
  check({0}, {0}, {});
  check({5, 10}, {10}, {5});
  check({10}, {10, 5}, {5});
  check({5, 6, 10}, {10}, {5, 6});
  check({10}, {5, 10, 6}, {5, 6});
  check({2, 3, 4, 7}, {7}, {2, 3, 4});
  check({7}, {2, 3, 7, 5}, {2, 3, 5});
  check({0, 7}, {7}, {0});
  check({7}, {7, 0}, {0});
  check({3, 0}, {0}, {3});
  check({1030}, {1030}, {});
}

DEVICE_TEST("matmul: products of given ranks", "[matmul]") {
  OpCase c = app::matmul_case({5, 7}, {7, 3});
  c.op = [](const std::vector<Tensor>& in) { return mm(in[0], in[1]); };
  check_op(c, device);
  c = app::matmul_case({4, 5, 7}, {4, 7, 3});
  c.op = [](const std::vector<Tensor>& in) { return bmm(in[0], in[1]); };
  check_op(c, device);
  const TensorOptions options{kFloat64, device};
  const Tensor a = tensor(noise({5, 7}, 1), options), b = tensor(noise({7}, 2), options);
  CHECK(same_bits(mv(a, b), matmul(a, b)));
  CHECK(same_bits(dot(b, b), matmul(b, b)));
}

DEVICE_TEST("matmul: a product added to a tensor", "[matmul]") {
  const auto check = [&](const Sizes& x_shape, const Sizes& a, const Sizes& b, double beta,
                         double alpha) {
    OpCase c = app::matmul_case(a, b);
    const Array x = noise(x_shape, 7);
    c.what = a.size() == 2 ? "addmm" : "baddbmm";
    c.how = str("x ", Shape(x_shape), ", ", c.how);
    c.inputs.insert(c.inputs.begin(), x);
    c.op = [=](const std::vector<Tensor>& in) {
      const AddProductOptions o{.beta = beta, .alpha = alpha};
      return a.size() == 2 ? addmm(in[0], in[1], in[2], o) : baddbmm(in[0], in[1], in[2], o);
    };
    for (Array& grad : c.grads) grad = oracle::map(grad, [=](double v) { return alpha * v; });
    Array dx = filled(x_shape);
    oracle::for_each_index(c.y.shape, [&](const Sizes& at) {
      double& y = c.y.v[oracle::offset(c.y.shape, at)];
      y = beta * x.v[oracle::offset(x_shape, at)] + alpha * y;
      dx.v[oracle::offset(x_shape, at)] += beta * c.dy.v[oracle::offset(c.y.shape, at)];
    });
    c.grads.insert(c.grads.begin(), dx);
    c.terms.insert(c.terms.begin(), static_cast<double>(count(c.y.shape)));
    check_op(c, device);
  };
  for (const Sizes& x : {Sizes{2, 5}, {5}, {1}, {}, {2, 1}, {1, 5}}) {
    check(x, {2, 3}, {3, 5}, 1, 1);
    check(x, {2, 3}, {3, 5}, 0.25, -1.5);
    check(x, {2, 0}, {0, 5}, 0.25, 0.5);
    check(x, {4, 2, 3}, {4, 3, 5}, 0.25, 0.5);
  }
  check({}, {0, 5, 5}, {0, 5, 10}, 1, 1);
  const TensorOptions options{kFloat32, device};
  const Tensor nan = full({2, 2}, std::nan(""), options).set_requires_grad();
  const Tensor y =
      addmm(nan, ones({2, 3}, options), ones({3, 2}, options), {.beta = 0, .alpha = 2});
  CHECK(y.to_vector<double>() == std::vector<double>(4, 6));
  sum(y).backward();
  CHECK(nan.grad().to_vector<double>() == std::vector<double>(4, 0));
}

DEVICE_TEST("linear: a weight of one row", "[linear]") {
  for (const Sizes& leading : {Sizes{}, {8}, {2, 3}, {0}}) {
    OpCase c = app::linear_case(leading, 6, 1, false);
    c.inputs[1].shape = c.grads[1].shape = {6};
    c.y.shape = c.dy.shape = leading;
    check_op(c, device);
  }
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3}, options), w = zeros({3}, options), bias = zeros({1}, options);
  check_throws<ShapeError>([&] { linear(x, w, bias); }, {"linear", "(3,)", "(1,)"});
  check_throws<ShapeError>([&] { linear(x, zeros({4}, options)); }, {"linear", "4", "(2, 3)"});
}

DEVICE_TEST("matmul: gradient check", "[matmul]") {
  check_gradient(device, {noise({3, 4}, 1), noise({4, 2}, 2)}, matmul_op);
  check_gradient(device, {noise({2, 1, 3, 2}, 1), noise({3, 2, 4}, 2)}, matmul_op);
  // Both operands from one tensor.
  check_gradient(device, {noise({3, 3}, 1)},
                 [](const std::vector<Tensor>& in) { return matmul(in[0], in[0]); });
}

DEVICE_TEST("matmul: nothing to sum gives zeros", "[matmul]") {
  const TensorOptions options{kFloat32, device};
  check_close("matmul: y", matmul(zeros({2, 0}, options), zeros({0, 3}, options)), filled({2, 3}),
              0);
  CHECK(matmul(zeros({0, 2}, options), zeros({2, 3}, options)).shape() == Shape{0, 3});
}

DEVICE_TEST("matmul: errors name the operator and the shapes", "[matmul]") {
  const TensorOptions options{kFloat32, device};
  const Tensor a = zeros({2, 3}, options);
  check_throws<ShapeError>(
      [&] {
        matmul(a, zeros({4, 5}, options));
      },
      {"matmul", "(2, 3)", "(4, 5)"});
  check_throws<ShapeError>([&] { matmul(a, zeros({2}, options)); }, {"matmul", "(2, 3)", "(2,)"});
  check_throws<ShapeError>([&] { matmul(zeros({2}, options), zeros({3}, options)); },
                           {"matmul", "(2,)", "(3,)"});
  check_throws<ShapeError>([&] { matmul(zeros({}, options), a); }, {"matmul", "()", "(2, 3)"});
  check_throws<ShapeError>([&] { mm(a, zeros({3}, options)); }, {"mm:", "(2, 3)", "(3,)"});
  check_throws<ShapeError>([&] { mm(a, a); }, {"mm:", "(2, 3)"});
  check_throws<ShapeError>([&] { mv(a, zeros({3, 1}, options)); }, {"mv:", "(2, 3)", "(3, 1)"});
  check_throws<ShapeError>([&] { dot(zeros({9}, options), zeros({3}, options)); },
                           {"dot:", "(9,)", "(3,)"});
  check_throws<ShapeError>(
      [&] {
        dot(zeros({1, 1}, options), zeros({1}, options));
      },
      {"dot:", "(1, 1)"});
  check_throws<ShapeError>(
      [&] {
        bmm(zeros({1, 2, 3}, options), zeros({2, 3, 4}, options));
      },
      {"bmm:", "(1, 2, 3)", "(2, 3, 4)"});
  check_throws<ShapeError>(
      [&] {
        addmm(zeros({3, 2, 2}, options), a, zeros({3, 2}, options));
      },
      {"addmm:", "(2, 2)", "(3, 2, 2)"});
  check_throws<ShapeError>([&] { addmm(zeros({2, 3}, options), a, a); }, {"addmm:", "(2, 3)"});
  check_throws<ShapeError>(
      [&] {
        addmm(zeros({2, 4}, options), a, zeros({3, 1}, options));
      },
      {"addmm:", "(2, 1)", "(2, 4)"});
  check_throws<ShapeError>(
      [&] {
        matmul(zeros({2, 2, 3}, options), zeros({4, 3, 5}, options));
      },
      {"matmul", "(2, 2, 3)", "(4, 3, 5)"});
  check_throws<DtypeError>(
      [&] {
        matmul(a, zeros({3, 2}, {kFloat64, device}));
      },
      {"matmul", "float32", "float64"});
  if (device.is_cuda())
    check_throws<DeviceError>([&] { matmul(a, zeros({3, 2})); }, {"matmul", "cuda", "cpu"});
}

// The kernel below both operators, in all its forms.
DEVICE_TEST("gemm: transposes and batches and shared operands", "[gemm]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (bool ta : {false, true})
      for (bool tb : {false, true})
        for (int shared : {0, 1, 2})
          for (const Sizes& mnk :
               {Sizes{1, 1, 1}, {3, 5, 7}, {17, 1, 33}, {1, 65, 2}, {34, 66, 19}, {4, 5, 0}}) {
            const int64_t m = mnk[0], n = mnk[1], k = mnk[2], batch = 3;
            INFO("m, n, k " << m << ' ' << n << ' ' << k << " ta " << ta << " tb " << tb
                            << " shared " << shared);
            const op::GemmShape g{
                ta, tb, m, n, k, batch, shared == 1 ? 0 : m * k, shared == 2 ? 0 : k * n};
            const Array a = noise({shared == 1 ? 1 : batch, m * k}, 1);
            const Array b = noise({shared == 2 ? 1 : batch, k * n}, 2);
            Array expected = filled({batch, m, n});
            for (int64_t i = 0; i < batch; ++i)
              for (int64_t r = 0; r < m; ++r)
                for (int64_t c = 0; c < n; ++c)
                  for (int64_t j = 0; j < k; ++j)
                    expected.v[static_cast<size_t>((i * m + r) * n + c)] +=
                        a.v[static_cast<size_t>(i * g.stride_a + (ta ? j * m + r : r * k + j))] *
                        b.v[static_cast<size_t>(i * g.stride_b + (tb ? c * k + j : j * n + c))];
            const TensorOptions options{dtype, device};
            const Tensor ta_ = tensor(a, options), tb_ = tensor(b, options);
            const Tensor y = full({batch, m, n}, 99, options);
            emit(op::Gemm{g, in(ta_), in(tb_), out(y)});
            check_close("gemm", y, expected, static_cast<double>(k));
          }
}

}  // namespace sinter::test
