#include <sinter/philox.h>

#include <thread>

#include "tests/support/values.h"

namespace sinter::test {
namespace {

std::vector<uint32_t> draw(uint64_t key, uint64_t lo, uint64_t hi) {
  const Philox4 r = philox(key, lo, hi);
  return {r.v[0], r.v[1], r.v[2], r.v[3]};
}

}  // namespace

TEST_CASE("philox: the vectors published with the paper", "[random]") {
  // Random123, kat_vectors, "philox4x32 10".
  using Words = std::vector<uint32_t>;
  CHECK(draw(0, 0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(draw(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(draw(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("permute_index: a bijection of every size", "[random]") {
  for (uint64_t size = 1; size <= 300; ++size) {
    std::vector<bool> seen(size);
    bool good = true;
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t at = permute_index(5, size % 7, size, i);
      good = good && at < size && !seen[at];
      if (at < size) seen[at] = true;
    }
    INFO("size " << size);
    CHECK(good);
  }
  for (uint64_t size : {1023, 1024, 1025, 50000, 65536, 65537}) {
    std::vector<bool> seen(size);
    bool good = true;
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t at = permute_index(1, 2, size, i);
      good = good && at < size && !seen[at];
      if (at < size) seen[at] = true;
    }
    INFO("size " << size);
    CHECK(good);
  }
  const uint64_t huge = uint64_t{1} << 62;
  CHECK(permute_index(1, 1, huge, huge - 1) < huge);
  CHECK(permute_index(1, 1, huge - 1, huge - 2) < huge - 1);
}

TEST_CASE("permute_index: seeds and epochs give unrelated orders", "[random]") {
  constexpr uint64_t kSize = 10000;
  const auto order = [](uint64_t seed, uint64_t epoch) {
    std::vector<double> at;
    for (uint64_t i = 0; i < kSize; ++i)
      at.push_back(static_cast<double>(permute_index(seed, epoch, kSize, i)));
    return at;
  };
  const auto correlation = [](const std::vector<double>& a, const std::vector<double>& b) {
    const double mean = (kSize - 1) / 2.0;
    double product = 0, square = 0;
    for (size_t i = 0; i < kSize; ++i) {
      product += (a[i] - mean) * (b[i] - mean);
      square += (a[i] - mean) * (a[i] - mean);
    }
    return product / square;
  };
  const std::vector<double> a = order(1, 0);
  CHECK(a == order(1, 0));
  std::vector<double> in_order(kSize);
  for (size_t i = 0; i < kSize; ++i) in_order[i] = static_cast<double>(i);
  // Five standard deviations (1 / sqrt(size)).
  for (const std::vector<double>& b :
       {order(1, 1), order(2, 0), order(1, uint64_t{1} << 40), in_order})
    CHECK(std::abs(correlation(a, b)) < 0.05);
  // Neighbours are torn apart as well.
  std::vector<double> shifted(a.begin() + 1, a.end());
  shifted.push_back(a[0]);
  CHECK(std::abs(correlation(a, shifted)) < 0.05);
  // Each of the orders of three comes up in its turn.
  std::map<std::vector<uint64_t>, int> orders;
  for (uint64_t epoch = 0; epoch < 6000; ++epoch)
    ++orders[{permute_index(3, epoch, 3, 0), permute_index(3, epoch, 3, 1),
              permute_index(3, epoch, 3, 2)}];
  CHECK(orders.size() == 6);
  for (const auto& entry : orders) CHECK(std::abs(entry.second - 1000) < 150);  // 5 deviations
}

TEST_CASE("generator: deterministic and positionable", "[random]") {
  Generator a(42), b(42), c(43);
  std::vector<uint64_t> first, second, third;
  for (int i = 0; i < 100; ++i) {
    first.push_back(a.next());
    second.push_back(b.next());
    third.push_back(c.next());
  }
  CHECK(first == second);
  CHECK(first != third);
  CHECK(a.position() == b.position());
  CHECK(a.seed() == 42);
  // Seed and position are the whole state, whatever was drawn.
  a.uniform();
  a.normal();
  const uint64_t position = a.position();
  const double u = a.uniform(), z = a.normal();
  const uint64_t n = a.next();
  Generator resumed(42);
  resumed.set_position(position);
  CHECK(resumed.uniform() == u);
  CHECK(resumed.normal() == z);
  CHECK(resumed.next() == n);
  b.set_position(0);
  CHECK(b.next() == first[0]);
  std::sort(first.begin(), first.end());
  CHECK(std::adjacent_find(first.begin(), first.end()) == first.end());
}

TEST_CASE("generator: uniform and normal draws", "[random]") {
  constexpr int kDraws = 200000;
  Generator g(7);
  double total = 0, squares = 0, serial = 0, last = 0.5;
  std::vector<int> bins(20);
  for (int i = 0; i < kDraws; ++i) {
    const double u = g.uniform();
    REQUIRE((u >= 0 && u < 1));
    total += u;
    squares += u * u;
    serial += (u - 0.5) * (last - 0.5);
    last = u;
    ++bins[static_cast<size_t>(u * 20)];
  }
  const double n = kDraws;
  CHECK(std::abs(total / n - 0.5) < 5 * std::sqrt(1 / 12.0 / n));
  CHECK(std::abs(squares / n - 1 / 3.0) < 5 * std::sqrt(4 / 45.0 / n));
  CHECK(std::abs(serial / n) < 5 / 12.0 / std::sqrt(n));
  double chi2 = 0;
  for (int count : bins) chi2 += (count - n / 20) * (count - n / 20) / (n / 20);
  CHECK(chi2 < 60);  // 19 degrees of freedom: exceeded once in a million

  double moments[4] = {};
  for (int i = 0; i < kDraws; ++i) {
    const double z = g.normal();
    REQUIRE(std::isfinite(z));
    double power = 1;
    for (double& moment : moments) {
      power *= z;
      moment += power / n;
    }
  }
  // Moments 1 to 4 are 0, 1, 0, 3, with variances 1, 2, 15 and 96.
  CHECK(std::abs(moments[0]) < 5 * std::sqrt(1 / n));
  CHECK(std::abs(moments[1] - 1) < 5 * std::sqrt(2 / n));
  CHECK(std::abs(moments[2]) < 5 * std::sqrt(15 / n));
  CHECK(std::abs(moments[3] - 3) < 5 * std::sqrt(96 / n));
}

TEST_CASE("generator: every thread has its own", "[random]") {
  manual_seed(9);
  const double here = default_generator().uniform();
  double there = 0, after = 0;
  std::thread([&] {
    manual_seed(9);
    there = default_generator().uniform();
    manual_seed(1234);
  }).join();
  CHECK(here == there);
  after = default_generator().uniform();
  manual_seed(9);
  default_generator().uniform();
  CHECK(default_generator().uniform() == after);
}

DEVICE_TEST("random fills: the same numbers on every device and dtype", "[random]") {
  for (const Sizes& sizes : {Sizes{}, {1}, {3, 5}, {1031}, {0}}) {
    std::vector<double> uniform, normal;
    Generator by_hand(3);
    for (int64_t i = 0; i < count(sizes); ++i) uniform.push_back(-2 + 5 * by_hand.uniform());
    for (int64_t i = 0; i < count(sizes); ++i) normal.push_back(10 + 0.5 * by_hand.normal());
    for (DType dtype : {kFloat32, kFloat64}) {
      Generator g(3);
      const Tensor t = empty(Shape(sizes), {dtype, device});
      uniform_(t, -2, 3, g);
      check_close("uniform_", t, {sizes, uniform}, 1);
      normal_(t, 10, 0.5, g);
      check_close("normal_", t, {sizes, normal}, 1);
      CHECK(g.position() == by_hand.position());
    }
  }
  const Tensor a = empty({100}, {kFloat32, device}), b = empty({100}, {kFloat32, device});
  manual_seed(1);
  uniform_(a, 0, 1);
  uniform_(b, 0, 1);
  CHECK(!same_bits(a, b));
  manual_seed(1);
  uniform_(b, 0, 1);
  CHECK(same_bits(a, b));
  CHECK(a.version() > 0);
  check_throws<DtypeError>(
      [&] {
        uniform_(zeros({2}, {kInt64, device}), 0, 1);
      },
      {"uniform_", "int64"});
  check_throws<DtypeError>(
      [&] {
        normal_(zeros({2}, {kUInt8, device}), 0, 1);
      },
      {"normal_", "uint8"});
  check_throws<ValueError>([&] { uniform_(a, 1, 0); }, {"uniform_"});
  check_throws<ValueError>([&] { normal_(a, 0, -1); }, {"normal_"});
}

DEVICE_TEST("rand and randn: the same numbers on every device", "[random]") {
  for (const DType dtype : {kFloat32, kFloat64})
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{3, 5}, Shape{1031}}) {
      Generator g(5), by_hand(5);
      const Tensor u = rand(shape, {dtype, device}, g), z = randn(shape, {dtype, device}, g);
      const Tensor expected_u = empty(shape, {dtype}), expected_z = empty(shape, {dtype});
      uniform_(expected_u, 0, 1, by_hand);
      normal_(expected_z, 0, 1, by_hand);
      CHECK(same_bits(u, expected_u));
      CHECK(same_bits(z, expected_z));
      CHECK(u.device() == device);
      CHECK(g.position() == by_hand.position());
      CHECK(!u.requires_grad());
    }
  manual_seed(3);
  const Tensor a = randn({4}, {kFloat32, device}), b = rand({4}, {kFloat32, device});
  manual_seed(3);
  CHECK(same_bits(randn({4}), a));
  CHECK(same_bits(rand({4}), b));
  check_throws<DtypeError>([&] { rand({2}, {kInt64, device}); }, {"int64"});
  check_throws<DtypeError>([&] { randn({2}, {kUInt8, device}); }, {"uint8"});
}

DEVICE_TEST("random fills: the upper bound is never drawn", "[random]") {
  // A draw so close to 1 that float32 rounds it up.
  constexpr uint64_t kPosition = 22063287;
  Generator g(0);
  g.set_position(kPosition);
  REQUIRE(static_cast<float>(g.uniform()) == 1);
  g.set_position(kPosition);
  CHECK(rand({1}, {kFloat32, device}, g).item<float>() == std::nextafter(1.0F, 0.0F));
  g.set_position(kPosition);
  CHECK(rand({1}, {kFloat64, device}, g).item<double>() > 1 - 0x1p-25);
  const Tensor x = empty({1}, {kFloat32, device});
  g.set_position(kPosition);
  uniform_(x, -3, -2, g);
  CHECK(x.item<float>() == std::nextafter(-2.0F, -3.0F));
  // Bounds between which there is nothing.
  uniform_(x, 7, 7, g);
  CHECK(x.item<float>() == 7);
  const double inf = std::numeric_limits<double>::infinity();
  check_throws<ValueError>([&] { uniform_(x, 0, inf); }, {"uniform_", "finite", "inf"});
  check_throws<ValueError>([&] { uniform_(x, std::nan(""), 1); }, {"uniform_", "nan"});
  check_throws<ValueError>([&] { uniform_(x, -1.5e308, 1.5e308); }, {"uniform_", "finite"});
}

}  // namespace sinter::test
