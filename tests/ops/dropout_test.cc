#include "sinter/operators/dropout.h"

#include "sinter/philox.h"
#include "tests/support/compiled.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

// Whether each of n items is kept in draw `number` of a generator of this seed: by the definition.
std::vector<bool> kept(uint64_t seed, uint64_t number, int64_t n, double p) {
  std::vector<bool> all;
  for (int64_t i = 0; i < n; ++i) {
    const Philox4 bits = philox(seed, static_cast<uint64_t>(i / 4), (uint64_t{1} << 62) | number);
    all.push_back(bits.v[i % 4] >= p * 0x1p32);
  }
  return all;
}

Array dropped(const Array& x, const std::vector<bool>& kept, int64_t group, double p) {
  Array y = x;
  for (size_t i = 0; i < y.v.size(); ++i)
    y.v[i] *= kept[i / static_cast<size_t>(group)] ? 1 / (1 - p) : 0;
  return y;
}

}  // namespace

DEVICE_TEST("dropout: the mask of each call forward and backward", "[dropout]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (const int64_t n : {1, 3, 4, 5, 63, 64, 1000, 2049, 40003}) {
      const TensorOptions options{dtype, device};
      Generator generator(7);
      const double p = 0.375;
      for (uint64_t call = 0; call < 3; ++call) {
        const Array x = noise({n}, call), dy = noise({n}, call + 10);
        const std::vector<bool> mask = kept(7, call, n, p);
        const Tensor t = leaf(x, options);
        const Tensor y = dropout(t, p, true, generator);
        check_close("dropout: y", y, dropped(x, mask, 1, p), 1);
        y.backward(tensor(dy, options));
        check_close("dropout: gradient 0", t.grad(), dropped(dy, mask, 1, p), 1);
      }
      CHECK(generator.draws(device) == 3);
    }
}

DEVICE_TEST("dropout: whole channels", "[dropout]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (const Sizes& shape :
         {Sizes{3, 5, 2, 2}, {2, 3, 7, 5}, {70, 64, 3, 4}, {2, 3, 40, 40}, {3, 4, 9}}) {
      const TensorOptions options{dtype, device};
      Generator generator(3);
      const int64_t group = count(shape) / (shape[0] * shape[1]);
      const std::vector<bool> mask = kept(3, 0, shape[0] * shape[1], 0.5);
      const Array x = noise(shape, 1), dy = noise(shape, 2);
      const Tensor t = leaf(x, options);
      const Tensor y = dropout2d(t, 0.5, true, generator);
      check_close("dropout2d: y", y, dropped(x, mask, group, 0.5), 1);
      y.backward(tensor(dy, options));
      check_close("dropout2d: gradient 0", t.grad(), dropped(dy, mask, group, 0.5), 1);
    }
  const TensorOptions options{kFloat32, device};
  const Array x = noise({6, 5}, 1);
  for (const Sizes& shape : {Sizes{6, 5}, {2, 3, 5}}) {
    Generator generator(3);
    const Tensor y = dropout1d(tensor({shape, x.v}, options), 0.5, true, generator);
    check_close("dropout1d: y", y, dropped({shape, x.v}, kept(3, 0, 6, 0.5), 5, 0.5), 1);
  }
}

DEVICE_TEST("dropout: as often as p says", "[dropout]") {
  const TensorOptions options{kFloat32, device};
  const int64_t n = 1 << 20;
  for (const double p : {0.1, 0.5, 0.9}) {
    Generator generator(1);
    const std::vector<double> y =
        dropout(ones({n}, options), p, true, generator).to_vector<double>();
    const auto zeros = static_cast<double>(std::count(y.begin(), y.end(), 0.0));
    const double deviation = std::sqrt(static_cast<double>(n) * p * (1 - p));
    CHECK(std::abs(zeros - static_cast<double>(n) * p) <= 5 * deviation);
  }
}

DEVICE_TEST("dropout: the ends", "[dropout]") {
  const TensorOptions options{kFloat32, device};
  Generator generator(1);
  const Tensor x = leaf(noise({5, 7}, 1), options);
  CHECK(dropout(x, 0, true, generator).is(x));
  CHECK(dropout(x, 0.5, false, generator).is(x));
  CHECK(generator.draws(device) == 0);
  const Tensor y = dropout(x, 1, true, generator);
  check_close("dropout: all of them", y, filled({5, 7}), 0);
  y.sum().backward();
  check_close("dropout: all of them, gradient 0", x.grad(), filled({5, 7}), 0);
  // What 32 bits cannot tell from 1 drops all; from 0, nothing.
  check_close("dropout: all of them", dropout(ones({1000}, options), 1 - 1e-12, true, generator),
              filled({1000}), 0);
  check_close("dropout: none", dropout(ones({1000}, options), 1e-12, true, generator),
              filled({1000}, 1), 0);
  CHECK(dropout(zeros({0, 3}, options), 0.5, true, generator).shape() == Shape{0, 3});
  CHECK(dropout2d(zeros({2, 3, 0, 1}, options), 0.5, true, generator).shape() == Shape{2, 3, 0, 1});
  // As in PyTorch a NaN is a NaN, dropped or not.
  const double nan = std::nan("");
  for (const double p : {0.5, 1.0})
    for (double v : dropout(full({64}, nan, options), p, true, generator).to_vector<double>())
      CHECK(std::isnan(v));
}

DEVICE_TEST("dropout: a generator's state is numbers", "[dropout]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = ones({100}, options);
  Generator generator(11);
  dropout(x, 0.5, true, generator);
  const int64_t at = generator.draws(device);
  Generator copy = generator;
  const Tensor second = dropout(x, 0.5, true, generator);
  CHECK(same_bits(dropout(x, 0.5, true, copy), second));
  CHECK(!same_bits(dropout(x, 0.5, true, generator), second));
  Generator resumed(11);
  resumed.set_draws(device, at);
  CHECK(same_bits(dropout(x, 0.5, true, resumed), second));
  Generator other(12);
  other.set_draws(device, at);
  CHECK(!same_bits(dropout(x, 0.5, true, other), second));
  // Assigned, also one that drew before.
  other = resumed;
  CHECK(other.draws(device) == 2);
  CHECK(same_bits(dropout(x, 0.5, true, other), dropout(x, 0.5, true, resumed)));
  other = Generator(11);
  CHECK(other.draws(device) == 0);
  other.set_draws(device, at);
  CHECK(same_bits(dropout(x, 0.5, true, other), second));
  check_throws<ValueError>([&] { other.set_draws(device, -1); }, {"set_draws", "-1"});
  // Draws on the host are others.
  CHECK(generator.position() == 0);
}

DEVICE_TEST("dropout: a compiled function draws a new mask at every call", "[dropout]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf(noise({300}, 1), options);
  // The function is the first to ask either generator for its state.
  Generator eager(5), other(5);
  const auto work = [&](Generator& generator) {
    x.set_grad({});
    const Tensor y = dropout(dropout(x, 0.25, true, generator), 0.5, true, generator);
    y.sum().backward();
    return Results{y.detach(), x.grad()};
  };
  auto program = compile([&] { return work(other); });
  std::vector<Results> calls;
  for (int i = 0; i < 5; ++i) {
    const Results compiled = copies(program());
    check_same_bits(compiled, copies(work(eager)));
    calls.push_back(compiled);
    CHECK(other.draws(device) == 2 * (i + 1));
  }
  for (size_t i = 1; i < calls.size(); ++i) CHECK(!same_bits(calls[i][0], calls[0][0]));
  // A program goes on from the state that its generator is given.
  other = Generator(5);
  for (const Results& call : calls) check_same_bits(copies(program()), call);
  other.set_draws(device, 4);
  check_same_bits(copies(program()), calls[2]);
}

DEVICE_TEST("dropout: errors say what was expected and what came", "[dropout]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = ones({2, 3, 4, 5}, options);
  check_throws<ValueError>([&] { dropout(x, -0.1); }, {"dropout", "[0, 1]", "-0.1"});
  check_throws<ValueError>([&] { dropout(x, 1.5); }, {"dropout", "1.5"});
  check_throws<ValueError>([&] { dropout(x, std::nan(""), false); }, {"dropout", "nan"});
  check_throws<ValueError>([&] { dropout({}, 0.5); }, {"dropout", "undefined"});
  check_throws<DtypeError>([&] { dropout(x.to(kInt64)); }, {"dropout", "int64"});
  check_throws<ShapeError>([&] { dropout2d(ones({3}, options)); }, {"dropout2d", "(3,)"});
  check_throws<ShapeError>([&] { dropout1d(x); }, {"dropout1d", "(2, 3, 4, 5)"});
  check_throws<ValueError>([&] { dropout2d(x, 2); }, {"dropout2d", "2"});
  check_throws<ValueError>([&] { Dropout layer(1.25); }, {"Dropout", "1.25"});
  check_throws<ValueError>([&] { Dropout2d layer(-1); }, {"Dropout2d", "-1"});
}

}  // namespace sinter::test
