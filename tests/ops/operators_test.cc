// What is written with signs: a number on the left, and changes in place.
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

using Values = std::vector<double>;

Values values(const Tensor& x) { return x.to_vector<double>(); }

}  // namespace

DEVICE_TEST("operators: a number on the left", "[operators]") {
  const Array x = {{2, 3}, {1, -2, 4, 0.5, -0.25, 8}};
  const Array dy = noise({2, 3}, 2);
  const auto times = [&](const std::function<double(double)>& slope) {
    Array dx = dy;
    for (size_t i = 0; i < dx.v.size(); ++i) dx.v[i] *= slope(x.v[i]);
    return dx;
  };
  check_op({"1 - x",
            {x},
            [](const std::vector<Tensor>& in) { return 1 - in[0]; },
            oracle::map(x, [](double v) { return 1 - v; }),
            dy,
            {times([](double) { return -1; })},
            1,
            {1}},
           device);
  check_op({"3 / x",
            {x},
            [](const std::vector<Tensor>& in) { return 3 / in[0]; },
            oracle::map(x, [](double v) { return 3 / v; }),
            dy,
            {times([](double v) { return -3 / (v * v); })},
            1,
            {3}},
           device);
  check_gradient(device, {{{3}, {0.5, -1.5, 2}}},
                 [](const std::vector<Tensor>& in) { return 1.0 / (2.5 - in[0]); });
  CHECK(values(1 - zeros({0}, {kFloat32, device})).empty());
  check_throws<Error>([] { 1 - Tensor(); }, {"undefined"});
}

DEVICE_TEST("operators: in place", "[operators]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    Tensor x = tensor({{2, 2}, {1, 2, 3, 4}}, options);
    const Tensor sharer = x, view = x.reshape({4}).narrow(0, 2, 2);
    const Tensor y = tensor({{2, 2}, {8, 4, 2, 1}}, options);
    const Tensor row = tensor({{2}, {2, 4}}, options), column = tensor({{2, 1}, {1, 2}}, options);
    CHECK((x += y).is(x));
    CHECK(values(sharer) == Values{9, 6, 5, 5});
    CHECK(values(view) == Values{5, 5});
    x -= row;
    CHECK(values(sharer) == Values{7, 2, 3, 1});
    x *= column;
    CHECK(values(sharer) == Values{7, 2, 6, 2});
    x /= row;
    CHECK(values(sharer) == Values{3.5, 0.5, 3, 0.5});
    x += 0.5;
    x -= 1;
    x *= 4;
    x /= 2.0;
    CHECK(values(sharer) == Values{6, 0, 5, 0});
    x += x;
    CHECK(values(sharer) == Values{12, 0, 10, 0});
    x -= tensor({{}, {1}}, options);
    CHECK(values(sharer) == Values{11, -1, 9, -1});
    x.narrow(0, 0, 1) *= 2;
    x.narrow(0, 1, 1) += row;
    CHECK(values(sharer) == Values{22, -2, 11, 3});
    CHECK(x.shape() == Shape{2, 2});
    CHECK(x.dtype() == dtype);
    CHECK(values(y) == Values{8, 4, 2, 1});
    Tensor none = zeros({0, 2}, options);
    none += row;
    none *= 2;
    CHECK(none.shape() == Shape{0, 2});
  }
}

DEVICE_TEST("operators: in place the shape and dtype stay", "[operators]") {
  const TensorOptions options{kFloat32, device};
  Tensor x = ones({3}, options);
  const Tensor larger = ones({2, 3}, options), other = ones({2}, options);
  check_throws<ShapeError>([&] { x += larger; }, {"+=", "(3,)", "(2, 3)"});
  check_throws<ShapeError>([&] { x -= larger; }, {"-=", "(3,)", "(2, 3)"});
  check_throws<ShapeError>([&] { x *= larger; }, {"*=", "(3,)", "(2, 3)"});
  check_throws<ShapeError>([&] { x /= larger; }, {"/=", "(3,)", "(2, 3)"});
  check_throws<ShapeError>([&] { x += other; }, {"(3,)", "(2,)"});
  Tensor one = ones({1}, options), scalar = ones({}, options);
  check_throws<ShapeError>([&] { one += x; }, {"+=", "(1,)", "(3,)"});
  check_throws<ShapeError>([&] { scalar += one; }, {"+=", "()", "(1,)"});
  check_throws<DtypeError>([&] { x += ones({3}, {kFloat64, device}); }, {"float32", "float64"});
  Tensor labels = ones({3}, {kInt64, device}), undefined;
  check_throws<DtypeError>([&] { labels += 0.5; }, {"+=", "float32", "int64"});
  check_throws<Error>([&] { undefined += x; }, {"undefined"});
  check_throws<Error>([&] { undefined += 1; }, {"undefined"});
  check_throws<Error>([&] { x += undefined; }, {"undefined"});
  CHECK(values(x) == Values{1, 1, 1});
  CHECK(values(one) == Values{1});
}

DEVICE_TEST("operators: in place they are part of the graph", "[operators]") {
  const TensorOptions options{kFloat64, device};
  // d/da, d/db of ((a * 3 + b) * b - a) / b, with b along the rows.
  check_gradient(device, {noise({2, 3}, 1), {{3}, {0.5, -1.5, 2}}},
                 [](const std::vector<Tensor>& in) {
                   Tensor x = in[0] * 3.0;
                   x += in[1];
                   x *= in[1];
                   x -= in[0];
                   x /= in[1];
                   x *= 2;
                   x += 1;
                   x -= 0.5;
                   x /= 4;
                   return x;
                 });
  // What starts without a gradient gets one.
  Tensor w = tensor({{2}, {3, 4}}, options);
  w.set_requires_grad();
  Tensor total = zeros({2}, options);
  for (int i = 0; i < 3; ++i) total += w * w;
  CHECK(total.requires_grad());
  sum(total).backward();
  CHECK(values(w.grad()) == Values{18, 24});
}

DEVICE_TEST("operators: in place a leaf changes under no_grad alone", "[operators]") {
  Tensor w = tensor({{2}, {3, 4}}, {kFloat32, device});
  w.set_requires_grad();
  check_throws<GradError>([&] { w -= 1; }, {"leaf"});
  check_throws<GradError>([&] { w *= w; }, {"leaf"});
  CHECK(values(w) == Values{3, 4});
  sum(w * w).backward();
  {
    const no_grad guard;
    w -= w.grad() * 0.5;
  }
  CHECK(values(w) == Values{0, 0});
  CHECK(w.is_leaf());
  CHECK(w.requires_grad());
}

}  // namespace sinter::test
