#include "sinter/random.h"

#include <cmath>
#include <numbers>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"
#include "sinter/philox.h"

namespace sinter {

uint64_t Generator::next() {
  // A Philox block is 128 bits: two draws.
  const Philox4 block = philox(seed_, position_ >> 1, 0);
  const int half = static_cast<int>(position_++ & 1) * 2;
  return block.v[half] | (uint64_t{block.v[half + 1]} << 32);
}

double Generator::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

double Generator::normal() {
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));  // 1 - u is never 0
  return radius * std::cos(2 * std::numbers::pi * uniform());
}

Generator& default_generator() {
  thread_local Generator generator;
  return generator;
}

void manual_seed(uint64_t seed) { default_generator() = Generator(seed); }

namespace {

// draw(T()): the next element, T being x's.
template <class Draw> void fill_with(const char* op, const Tensor& x, Draw draw) {
  require_defined(op, "x", x);
  require_floating(op, x);
  const Tensor drawn = with_floating(x.dtype(), [&]<class T>() {
    std::vector<T> values = host_values<T>(x.numel());
    for (T& value : values) value = draw(T());
    return from_vector(values, x.shape(), x.device());
  });
  // A leaf may be a parameter that gets its first values, which nothing was computed from.
  (x.is_leaf() ? x.detach() : x).overwrite(op, drawn);
}

}  // namespace

void uniform_(const Tensor& x, double low, double high, Generator& generator) {
  require<ValueError>(low <= high && std::isfinite(high - low),
                      "uniform_: expected low <= high at a finite distance, got ", low, " and ",
                      high);
  fill_with("uniform_", x, [&]<class T>(T) {
    const T value = static_cast<T>(low + (high - low) * generator.uniform());
    if (value < high) return value;
    // Rounded up to high, which is not to be drawn.
    const T before = std::nextafter(value, static_cast<T>(low));
    return before >= low ? before : value;
  });
}

void normal_(const Tensor& x, double mean, double stddev, Generator& generator) {
  require<ValueError>(stddev >= 0, "normal_: expected stddev >= 0, got ", stddev);
  fill_with("normal_", x,
            [&]<class T>(T) { return static_cast<T>(mean + stddev * generator.normal()); });
}

Tensor rand(const Shape& shape, TensorOptions options, Generator& generator) {
  const Tensor x = empty(shape, options);
  uniform_(x, 0, 1, generator);
  return x;
}

Tensor randn(const Shape& shape, TensorOptions options, Generator& generator) {
  const Tensor x = empty(shape, options);
  normal_(x, 0, 1, generator);
  return x;
}

}  // namespace sinter
