// Tensors made of a rule. Expected values are PyTorch's where it has them.
#include "tests/support/values.h"

namespace sinter::test {
namespace {

using Values = std::vector<double>;
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

}  // namespace

DEVICE_TEST("factories: like another tensor", "[factories]") {
  for (const DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8}) {
    Tensor x = full({2, 3}, 4, {dtype, device});
    if (is_floating(dtype)) x.set_requires_grad();
    for (const auto& [y, value] :
         {std::pair(zeros_like(x), 0), std::pair(ones_like(x), 1), std::pair(full_like(x, 7), 7)}) {
      CHECK(y.shape() == Shape{2, 3});
      CHECK(y.dtype() == dtype);
      CHECK(y.device() == device);
      CHECK(!y.requires_grad());
      CHECK(y.to_vector<double>() == Values(6, value));
    }
    CHECK(empty_like(x).shape() == Shape{2, 3});
    CHECK(empty_like(x).dtype() == dtype);
    CHECK(empty_like(x).raw() != x.raw());
    CHECK(x.to_vector<double>() == Values(6, 4));
  }
  CHECK(zeros_like(zeros({0, 3}, {kInt32, device})).shape() == Shape{0, 3});
  check_throws<ValueError>([] { zeros_like(Tensor()); }, {"undefined"});
}

DEVICE_TEST("factories: arange of integers is int64", "[factories]") {
  const ArangeOptions here = {.device = device};
  const auto check = [&](const Tensor& x, const std::vector<int64_t>& expected) {
    CHECK(x.dtype() == kInt64);
    CHECK(x.device() == device);
    CHECK(x.shape() == Shape{static_cast<int64_t>(expected.size())});
    CHECK(x.to_vector<int64_t>() == expected);
  };
  check(arange(5, here), {0, 1, 2, 3, 4});
  check(arange(0, here), {});
  check(arange(3, 3, here), {});
  check(arange(-2, 2, here), {-2, -1, 0, 1});
  check(arange(2, 11, 3, here), {2, 5, 8});
  check(arange(2, 12, 3, here), {2, 5, 8, 11});
  check(arange(5, -4, -2, here), {5, 3, 1, -1, -3});
  check(arange(int64_t{5}, uint8_t{7}, here), {5, 6});
  check(arange(kLargest - 2, kLargest, here), {kLargest - 2, kLargest - 1});
  check(arange(kLeast, kLargest, int64_t{1} << 62, here),
        {kLeast, kLeast / 2, 0, int64_t{1} << 62});
  CHECK(arange(2).device() == kCpu);

  CHECK(arange(3, {kFloat64, device}).dtype() == kFloat64);
  CHECK(arange(1, 4, {kFloat32, device}).to_vector<double>() == Values{1, 2, 3});
  CHECK(arange(250, 256, {kUInt8, device}).to_vector<int>() ==
        std::vector<int>{250, 251, 252, 253, 254, 255});
}

DEVICE_TEST("factories: arange with a fraction is float32", "[factories]") {
  const auto values = [&](const Tensor& x) {
    CHECK(x.dtype() == kFloat32);
    CHECK(x.device() == device);
    return x.to_vector<float>();
  };
  const ArangeOptions here = {.device = device};
  using Floats = std::vector<float>;
  CHECK(values(arange(3.0, here)) == Floats{0, 1, 2});
  CHECK(values(arange(2.5F, here)) == Floats{0, 1, 2});
  CHECK(values(arange(0, 1, 0.3, here)) == Floats{0, 0.3F, 0.6F, 0.9F});
  CHECK(values(arange(2.5, -1, -0.75, here)) == Floats{2.5F, 1.75F, 1, 0.25F, -0.5F});
  CHECK(values(arange(0, 3, 2.0, here)) == Floats{0, 2});
  CHECK(values(arange(1.0, 1, here)).empty());
  const Values x = arange(0, 1, 0.1, {kFloat64, device}).to_vector<double>();
  REQUIRE(x.size() == 10);
  for (size_t i = 0; i < x.size(); ++i) CHECK(x[i] == static_cast<double>(i) * 0.1);
}

TEST_CASE("factories: arange refuses what makes no sense", "[factories]") {
  const double inf = std::numeric_limits<double>::infinity();
  check_throws<ValueError>([] { arange(0, 5, 0); }, {"arange", "not 0", "step 0"});
  check_throws<ValueError>([] { arange(0, 5, 0.0); }, {"not 0"});
  check_throws<ValueError>([] { arange(-1); }, {"leads from start to end", "end -1"});
  check_throws<ValueError>([] { arange(0, 5, -1); }, {"leads from start to end"});
  check_throws<ValueError>([] { arange(5, 0.5); }, {"leads from start to end"});
  check_throws<ValueError>([&] { arange(inf); }, {"finite"});
  check_throws<ValueError>([&] { arange(std::nan(""), 1); }, {"finite"});
  check_throws<ValueError>([&] { arange(0, 1, -inf); }, {"finite"});
  check_throws<ValueError>([] { arange(257, {kUInt8}); }, {"uint8"});
  check_throws<ValueError>([] { arange(-1, 3, {kUInt8}); }, {"uint8"});
  check_throws<ValueError>([] { arange(int64_t{1} << 31, (int64_t{1} << 31) + 2, {kInt32}); },
                           {"int32"});
  check_throws<ValueError>([] { arange(0.0, 5, {kInt64}); }, {"integers for int64"});
  check_throws<ValueError>([] { arange(1e39, 2e39, 1e39, {kFloat32}); }, {"float32"});
  check_throws<ValueError>([] { arange(0, 1, 1e-300); }, {"fewer"});
  check_throws<Error>([] { arange(kLeast, kLargest); }, {});
  check_throws<Error>([] { arange(int64_t{1} << 52); }, {});
}

DEVICE_TEST("factories: linspace meets both ends", "[factories]") {
  CHECK(linspace(0, 1, 5, {kFloat32, device}).to_vector<double>() == Values{0, 0.25, 0.5, 0.75, 1});
  CHECK(linspace(-1, 2, 4, {kFloat64, device}).to_vector<double>() == Values{-1, 0, 1, 2});
  CHECK(linspace(2, -2, 3, {kFloat64, device}).to_vector<double>() == Values{2, 0, -2});
  CHECK(linspace(3, 7, 1, {kFloat32, device}).to_vector<double>() == Values{3});
  CHECK(linspace(3, 7, 2, {kFloat32, device}).to_vector<double>() == Values{3, 7});
  CHECK(linspace(3, 7, 0, {kFloat32, device}).shape() == Shape{0});
  for (const int64_t n : {3, 10, 49, 1000}) {
    const Values x = linspace(0.1, 0.7, n, {kFloat64, device}).to_vector<double>();
    REQUIRE(static_cast<int64_t>(x.size()) == n);
    CHECK(x.front() == 0.1);
    CHECK(x.back() == 0.7);
    for (size_t i = 0; i < x.size(); ++i)
      CHECK(std::abs(x[i] - (0.1 + 0.6 * static_cast<double>(i) / static_cast<double>(n - 1))) <=
            1e-15);
  }
  check_throws<ValueError>([] { linspace(0, 1, -1); }, {"linspace", "-1"});
  check_throws<DtypeError>([] { linspace(0, 1, 3, {kInt64}); }, {"linspace", "int64"});
}

DEVICE_TEST("factories: eye", "[factories]") {
  for (const DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8}) {
    const Tensor x = eye(3, {dtype, device});
    CHECK(x.shape() == Shape{3, 3});
    CHECK(x.dtype() == dtype);
    CHECK(x.device() == device);
    CHECK(x.to_vector<double>() == Values{1, 0, 0, 0, 1, 0, 0, 0, 1});
  }
  CHECK(eye(0, {kFloat32, device}).shape() == Shape{0, 0});
  check_throws<ShapeError>([] { eye(-1); }, {"-1"});
}

}  // namespace sinter::test
