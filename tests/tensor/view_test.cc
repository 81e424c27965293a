#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

Array iota(const Sizes& shape) {
  Array a = filled(shape);
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] = static_cast<double>(i);
  return a;
}

void check_permute(Device device, const Sizes& shape, const std::vector<int>& dims) {
  check_op(app::permute_case(shape, dims), device);
}

}  // namespace

DEVICE_TEST("reshape: shares storage and passes gradients through", "[view]") {
  const Array x = noise({2, 3, 4}, 1), dy = noise({6, 4}, 2);
  const Array y{{6, 4}, x.v}, dx{{2, 3, 4}, dy.v};
  for (const Shape& target : {Shape{6, 4}, Shape{-1, 4}, Shape{6, -1}})
    check_op({"reshape",
              {x},
              [&](const std::vector<Tensor>& in) { return reshape(in[0], target); },
              y,
              dy,
              {dx},
              0,
              {0}},
             device);
  const Tensor t = tensor(x, {kFloat32, device});
  CHECK(t.reshape({24}).raw() == t.raw());
  CHECK(t.reshape({24}).shares_storage());
  CHECK(t.reshape({1, 24, 1}).shape() == Shape{1, 24, 1});
  CHECK(full({1}, 3, {kFloat32, device}).reshape({}).item<double>() == 3);
  CHECK(zeros({0, 3}, {kFloat32, device}).reshape({3, 0, 2}).shape() == Shape{3, 0, 2});
  for (DType dtype : {kInt32, kInt64, kUInt8}) {
    const Tensor i = tensor(iota({2, 3}), {kFloat32, device}).to(dtype).reshape({3, 2});
    CHECK(i.dtype() == dtype);
    CHECK(i.to_vector<double>() == iota({3, 2}).v);
  }
}

DEVICE_TEST("flatten: merges the dimensions named", "[view]") {
  const Array x = noise({2, 3, 4, 5}, 1);
  const Tensor t = tensor(x, {kFloat32, device});
  CHECK(flatten(t).shape() == Shape{120});
  CHECK(flatten(t, 1).shape() == Shape{2, 60});
  CHECK(flatten(t, 1, 2).shape() == Shape{2, 12, 5});
  CHECK(flatten(t, -3, -2).shape() == Shape{2, 12, 5});
  CHECK(flatten(t, 2, 2).shape() == Shape{2, 3, 4, 5});
  CHECK(flatten(full({}, 1, {kFloat32, device})).shape() == Shape{1});
  CHECK(flatten(t, 1).raw() == t.raw());
  const Array dy = noise({2, 60}, 2);
  check_op({"flatten",
            {x},
            [](const std::vector<Tensor>& in) { return flatten(in[0], 1); },
            {{2, 60}, x.v},
            dy,
            {{{2, 3, 4, 5}, dy.v}},
            0,
            {0}},
           device);
}

DEVICE_TEST("permute: hand-computed case", "[view]") {
  const Array x{{2, 3}, {1, 2, 3, 4, 5, 6}}, dy{{3, 2}, {1, 2, 3, 4, 5, 6}};
  check_op({"permute",
            {x},
            [](const std::vector<Tensor>& in) {
              return permute(in[0], {1, 0});
            },
            {{3, 2}, {1, 4, 2, 5, 3, 6}},
            dy,
            {{{2, 3}, {1, 3, 5, 2, 4, 6}}},
            0,
            {0}},
           device);
}

DEVICE_TEST("permute: every order of four dimensions and long ones", "[view]") {
  std::vector<int> dims = {0, 1, 2, 3};
  do check_permute(device, {2, 3, 4, 5}, dims);
  while (std::next_permutation(dims.begin(), dims.end()));
  check_permute(device, {}, {});
  check_permute(device, {1, 1}, {1, 0});
  check_permute(device, {1031, 3}, {1, 0});
  check_permute(device, {33, 65}, {1, 0});
  check_permute(device, {3, 17, 257}, {2, 0, 1});
  check_permute(device, {2, 0, 3}, {2, 1, 0});
  check_permute(device, {2, 1, 3, 1, 2, 3, 1, 2}, {7, 3, 5, 1, 6, 0, 2, 4});
}

DEVICE_TEST("permute: any dtype and dimensions from the end", "[view]") {
  const Tensor x = tensor(iota({2, 3, 4}), {kFloat32, device});
  const std::vector<double> expected = permute(x, {2, 0, 1}).to_vector<double>();
  for (DType dtype : {kInt32, kInt64, kUInt8, kFloat64}) {
    CHECK(permute(x.to(dtype), {2, 0, 1}).to_vector<double>() == expected);
    CHECK(permute(x.to(dtype), {-1, -3, -2}).to_vector<double>() == expected);
  }
  CHECK(!permute(x, {2, 0, 1}).shares_storage());
}

DEVICE_TEST("transpose: two dimensions in each other's place", "[view]") {
  const Tensor x = tensor(iota({2, 3, 4}), {kFloat32, device});
  for (DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8}) {
    const Tensor y = x.to(dtype);
    CHECK(same_bits(transpose(y, 0, 2), permute(y, {2, 1, 0})));
    CHECK(same_bits(transpose(y, -1, 1), permute(y, {0, 2, 1})));
    CHECK(same_bits(y.transpose(1, 1), y));
  }
  CHECK(transpose(x, 0, 1).to_vector<double>() ==
        std::vector<double>{0,  1,  2,  3,  12, 13, 14, 15, 4,  5,  6,  7,
                            16, 17, 18, 19, 8,  9,  10, 11, 20, 21, 22, 23});
  const Tensor scalar = x.sum();
  CHECK(same_bits(transpose(scalar, 0, -1), scalar));
  CHECK(transpose(tensor(iota({0, 3}), {kFloat32, device}), 0, 1).shape() == Shape{3, 0});
}

DEVICE_TEST("squeeze and unsqueeze: shapes that share storage", "[view]") {
  const Tensor x = tensor(iota({1, 3, 1, 2}), {kFloat32, device});
  CHECK(squeeze(x).shape() == Shape{3, 2});
  CHECK(x.squeeze().shares_storage());
  CHECK(squeeze(x, 0).shape() == Shape{3, 1, 2});
  CHECK(squeeze(x, -2).shape() == Shape{1, 3, 2});
  CHECK(squeeze(x, 1).shape() == x.shape());
  CHECK(squeeze(x, {0, 1, 2}).shape() == Shape{3, 2});
  CHECK(squeeze(x, Dims()).shape() == x.shape());
  CHECK(squeeze(x.narrow(0, 0, 1)).to_vector<double>() == x.to_vector<double>());
  CHECK(squeeze(x.sum()).shape() == Shape{});
  CHECK(squeeze(x.sum(), -1).shape() == Shape{});
  CHECK(squeeze(tensor(iota({0, 1}), {kFloat32, device})).shape() == Shape{0});

  const Tensor y = tensor(iota({3, 2}), {kFloat32, device});
  CHECK(unsqueeze(y, 0).shape() == Shape{1, 3, 2});
  CHECK(unsqueeze(y, 1).shape() == Shape{3, 1, 2});
  CHECK(unsqueeze(y, 2).shape() == Shape{3, 2, 1});
  CHECK(unsqueeze(y, -1).shape() == Shape{3, 2, 1});
  CHECK(unsqueeze(y, -3).shape() == Shape{1, 3, 2});
  CHECK(y.unsqueeze(1).shares_storage());
  CHECK(unsqueeze(y.sum(), -1).shape() == Shape{1});
  CHECK(same_bits(squeeze(unsqueeze(y, 1), 1), y));
}

DEVICE_TEST("narrow: rows of dimension 0", "[view]") {
  const Array x = noise({5, 2, 3}, 1), dy = noise({2, 2, 3}, 2);
  Array y = filled({2, 2, 3}), dx = filled({5, 2, 3});
  for (size_t i = 0; i < 12; ++i) {
    y.v[i] = x.v[i + 6];
    dx.v[i + 6] = dy.v[i];
  }
  check_op({"narrow",
            {x},
            [](const std::vector<Tensor>& in) { return narrow(in[0], 0, 1, 2); },
            y,
            dy,
            {dx},
            0,
            {0}},
           device);
  Tensor t = tensor(iota({5, 2}), {kFloat32, device});
  CHECK(t.narrow(0, 0, 5).shape() == Shape{5, 2});
  CHECK(t.narrow(0, 5, 0).shape() == Shape{0, 2});
  // Sharing storage: a change in the view is seen in the whole, and the other way round.
  t.narrow(0, 1, 2).fill_(-1);
  CHECK(t.to_vector<double>() == std::vector<double>{0, 1, -1, -1, -1, -1, 6, 7, 8, 9});
  const Tensor view = t.narrow(0, 3, 1).reshape({2, 1});
  t.fill_(4);
  CHECK(view.to_vector<double>() == std::vector<double>{4, 4});
  const Tensor bytes = tensor(iota({6, 3}), {kFloat32, device}).to(kUInt8);
  CHECK(bytes.narrow(0, 4, 1).to_vector<double>() == std::vector<double>{12, 13, 14});
}

DEVICE_TEST("view: operators read views where they begin", "[view]") {
  // Offsets that break the alignment of vector loads.
  const Array x = noise({7, 3}, 1);
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor view = tensor(x, options).narrow(0, 1, 5);
    const Array rows{{5, 3}, {x.v.begin() + 3, x.v.begin() + 18}};
    check_close("relu: y", relu(view), oracle::map(rows, [](double v) { return v > 0 ? v : 0; }),
                0);
    check_close(
        "add: y", view + tensor(x, options).narrow(0, 2, 5).narrow(0, 0, 5),
        [&] {
          Array total = rows;
          for (size_t i = 0; i < 15; ++i) total.v[i] += x.v[i + 6];
          return total;
        }(),
        1);
    check_close("sum: y", sum(view, {0}, true), oracle::sum(rows, {0}), 5);
    const Array w = noise({4, 3}, 2);
    check_close("linear: y", linear(view, tensor(w, options)),
                oracle::product(rows, oracle::transposed(w)), 3);
  }
}

DEVICE_TEST("view: gradient check", "[view]") {
  check_gradient(device, {noise({4, 3, 2}, 1)}, [](const std::vector<Tensor>& in) {
    const Tensor rows = narrow(in[0], 0, 1, 2) * 2.0 + narrow(in[0], 0, 2, 2);  // overlapping
    return permute(reshape(rows, {3, -1}), {1, 0}) *
           flatten(narrow(in[0], 0, 0, 2)).reshape({4, 3});
  });
}

DEVICE_TEST("view: errors name the operator and the shapes", "[view]") {
  const Tensor x = zeros({2, 3}, {kFloat32, device});
  check_throws<ShapeError>([&] { reshape(x, {4, 2}); }, {"reshape", "(2, 3)", "(4, 2)"});
  check_throws<ShapeError>([&] { reshape(x, {-1, 4}); }, {"reshape", "(2, 3)", "(-1, 4)"});
  check_throws<ShapeError>([&] { reshape(x, {-1, -1}); }, {"reshape", "(-1, -1)"});
  check_throws<ShapeError>([&] { reshape(x, {-2, 3}); }, {"reshape", "(-2, 3)"});
  check_throws<ShapeError>([&] { flatten(x, 1, 0); }, {"flatten", "(2, 3)"});
  check_throws<ShapeError>([&] { flatten(x, 2); }, {"flatten", "(2, 3)"});
  check_throws<ShapeError>([&] { permute(x, {0}); }, {"permute", "(2, 3)"});
  check_throws<ShapeError>([&] { permute(x, {0, 0}); }, {"permute", "(2, 3)"});
  check_throws<ShapeError>([&] { permute(x, {0, 2}); }, {"permute", "(2, 3)"});
  check_throws<ShapeError>([&] { transpose(x, 0, 2); }, {"transpose", "(2, 3)"});
  check_throws<ShapeError>([&] { transpose(x, -3, 0); }, {"transpose", "(2, 3)"});
  check_throws<ShapeError>([&] { transpose(x.sum(), 0, 1); }, {"transpose", "()"});
  check_throws<ShapeError>([&] { squeeze(x, 2); }, {"squeeze", "(2, 3)"});
  check_throws<ShapeError>([&] { squeeze(x, {1, -1}); }, {"squeeze", "-1", "(2, 3)", "twice"});
  check_throws<ShapeError>([&] { unsqueeze(x, 3); }, {"unsqueeze", "-3 to 2", "(2, 3)", "got 3"});
  check_throws<ShapeError>([&] { unsqueeze(x, -4); }, {"unsqueeze", "(2, 3)", "got -4"});
  check_throws<ShapeError>(
      [&] {
        unsqueeze(zeros({1, 1, 1, 1, 1, 1, 1, 1}), 0);
      },
      {"unsqueeze", "8 dimensions"});
  check_throws<ValueError>([] { squeeze(Tensor()); }, {"squeeze", "x"});
  check_throws<ShapeError>([&] { narrow(x, 0, 1, 2); }, {"narrow", "(2, 3)"});
  check_throws<ShapeError>([&] { narrow(x, 0, -3, 1); }, {"narrow", "(2, 3)"});
  check_throws<ShapeError>([&] { narrow(x, 0, 0, -1); }, {"narrow", "(2, 3)"});
  check_throws<ShapeError>([&] { narrow(zeros({}, {kFloat32, device}), 0, 0, 1); }, {"narrow"});
}

}  // namespace sinter::test
