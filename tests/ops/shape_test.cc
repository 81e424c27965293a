// Operators that move values: their cases of the proof, hand-computed ones, and their errors.
#include <functional>

#include "sinter/nn/embedding.h"
#include "tests/reference/oracle_shape.h"
#include "tests/support/catch.h"
#include "tests/support/values.h"

namespace sinter::test {

DEVICE_TEST("shape: beside their definitions", "[shape]") {
  std::vector<app::VerifyCase> cases;
  app::add_shape_cases(cases);
  for (const app::VerifyCase& c : cases) {
    const app::PreparedCheck prepared = c.prepare();
    INFO(c.op << " " << prepared.what);
    for (const DType dtype : {kFloat32, kFloat64})
      for (const app::Mode mode : app::kModes)
        for (const Comparison& comparison : prepared.check({dtype, device}, mode)) {
          INFO(comparison.wrong);
          CHECK(comparison.wrong.empty());
        }
  }
}

DEVICE_TEST("shape: values of every dtype", "[shape]") {
  for (const DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8, kBool}) {
    INFO(dtype);
    const Tensor x = tensor({{2, 3}, {0, 1, 0, 1, 1, 0}}, {dtype, device});
    using Values = std::vector<double>;
    CHECK(narrow(x, 1, -2, 2).to_vector<double>() == Values{1, 0, 1, 0});
    CHECK(flip(x, {0, 1}).to_vector<double>() == Values{0, 1, 1, 0, 1, 0});
    CHECK(cat({x, x.narrow(1, 0, 1)}, 1).to_vector<double>() == Values{0, 1, 0, 0, 1, 1, 0, 1});
    CHECK(pad(x, {1, -1}, "constant", 1).to_vector<double>() == Values{1, 0, 1, 1, 1, 1});
    CHECK(pad(x, {2, 0}, "reflect").to_vector<double>() == Values{0, 1, 0, 1, 0, 0, 1, 1, 1, 0});
    CHECK(triu(x, 1).to_vector<double>() == Values{0, 1, 0, 0, 0, 0});
    const Tensor i = from_vector<int64_t>({2, 1}, {2, 1}, device);
    CHECK(gather(x, 1, i).to_vector<double>() == Values{0, 1});
    CHECK(index_select(x, 1, i.reshape({2}).to(kInt32)).to_vector<double>() == Values{0, 1, 0, 1});
  }
  const Tensor i = from_vector<int64_t>({1, 0}, {2}, device);
  CHECK(one_hot(i).to_vector<int64_t>() == std::vector<int64_t>{0, 1, 1, 0});
  CHECK(one_hot(i, 3).shape() == Shape{2, 3});
}

DEVICE_TEST("shape: errors name the operator and the shapes", "[shape]") {
  const Tensor x = zeros({2, 3}, {kFloat32, device});
  check_throws<ShapeError>([&] { narrow(x, 1, 2, 2); }, {"narrow", "(2, 3)"});
  check_throws<ShapeError>([&] { select(x, 1, 3); }, {"select", "(2, 3)"});
  check_throws<ShapeError>([&] { split(x, {1, 1}, 1); }, {"split", "(2, 3)", "got 2"});
  check_throws<ValueError>([&] { chunk(x, 0); }, {"chunk"});
  check_throws<ShapeError>(
      [&] {
        cat({x, zeros({2, 4}, x.options())}, 0);
      },
      {"cat", "(2, 3)", "(2, 4)"});
  check_throws<DtypeError>([&] { cat({x, x.to(kFloat64)}); }, {"cat", "float32", "float64"});
  check_throws<ShapeError>([&] { stack({x, x.narrow(1, 0, 1)}); }, {"stack", "(2, 1)"});
  check_throws<ShapeError>([&] { expand(x, {3, 3}); }, {"expand", "(2, 3)", "(3, 3)"});
  check_throws<ShapeError>([&] { flip(x, {0, -2}); }, {"flip", "(2, 3)"});
  check_throws<ShapeError>([&] { pad(x, {3, 0}, "reflect"); }, {"pad", "(2, 3)", "reflect"});
  check_throws<ValueError>([&] { pad(x, {1, 0}, "mirror"); }, {"pad", "mirror"});
  check_throws<ShapeError>([&] { tril(x.flatten()); }, {"tril", "(6,)"});
  const auto fault = [&](const std::string& op, const std::function<void(const Tensor&)>& f) {
    check_throws<ValueError>(
        [&] {
          f(from_vector<int64_t>({0, 9, 7}, {3}, device));
          synchronize(device);
        },
        {op, "index[1] = 9"});
  };
  fault("index_select", [&](const Tensor& i) { index_select(x, 1, i); });
  fault("gather", [&](const Tensor& i) { gather(x, 1, i.reshape({1, 3})); });
  fault("embedding", [&](const Tensor& i) { embedding(i, x); });
  fault("one_hot", [&](const Tensor& i) { one_hot(i, 4); });
}

TEST_CASE("Embedding: rows, weights and name", "[shape][nn]") {
  Embedding layer(5, 3, -1);
  CHECK(layer.extra_repr() == "5, 3, padding_idx=4");
  CHECK(layer.weight.select(0, 4).to_vector<float>() == std::vector<float>(3));
  const Tensor y = layer(from_vector<int64_t>({4, 1}, {2}));
  CHECK(y.shape() == Shape{2, 3});
  sum(y).backward();
  CHECK(layer.weight.grad().sum(1).to_vector<float>() == std::vector<float>{0, 3, 0, 0, 0});
  check_throws<ValueError>([] { Embedding(3, 2, 3); }, {"Embedding", "3"});
}

}  // namespace sinter::test
