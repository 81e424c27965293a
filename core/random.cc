#include "sinter/random.h"

#include <cmath>
#include <numbers>

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

template <class Draw> void fill_with(const char* op, const Tensor& x, Draw draw) {
  require<DtypeError>(is_floating(x.dtype()), op, ": expected float32 or float64, got ", x.dtype());
  std::vector<double> values(static_cast<size_t>(x.numel()));
  for (double& value : values) value = draw();
  x.detach().copy_(from_vector(values, x.shape()).to(x.device()));
}

}  // namespace

void uniform_(const Tensor& x, double low, double high, Generator& generator) {
  require<ValueError>(low <= high, "uniform_: expected low <= high, got ", low, " and ", high);
  fill_with("uniform_", x, [&] { return low + (high - low) * generator.uniform(); });
}

void normal_(const Tensor& x, double mean, double stddev, Generator& generator) {
  require<ValueError>(stddev >= 0, "normal_: expected stddev >= 0, got ", stddev);
  fill_with("normal_", x, [&] { return mean + stddev * generator.normal(); });
}

}  // namespace sinter
