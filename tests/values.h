// Values in and out of tests: plain arrays for the oracles, and comparisons that NaN cannot pass.
#pragma once

#include <sinter/sinter.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "catch.h"

namespace sinter::test {

using Sizes = std::vector<int64_t>;

// What oracles compute with: float64 on the host, row-major, knowing nothing of Tensor.
struct Array {
  Sizes shape;
  std::vector<double> v;
};

inline int64_t count(const Sizes& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

inline Array filled(const Sizes& shape, double value = 0) {
  return {shape, std::vector<double>(static_cast<size_t>(count(shape)), value)};
}

// The tests' own random numbers (splitmix64), so that no input depends on the code under test.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

// Uniform in [-1, 1], representable in float32, so that both dtypes and the oracle see one input.
inline Array noise(const Sizes& shape, uint64_t seed) {
  Array a = filled(shape);
  Random random(seed);
  for (double& x : a.v) x = static_cast<float>(2 * random.uniform() - 1);
  return a;
}

// Distinct values in [-1, 1], evenly spaced, none of them 0, shuffled: every element keeps its
// distance from the kinks of ReLU and of max-pooling, so that a small change crosses none.
inline Array ramp(const Sizes& shape, uint64_t seed) {
  Array a = filled(shape);
  const int64_t n = count(shape);
  Random random(seed);
  for (int64_t i = 0; i < n; ++i) {
    const auto k = static_cast<size_t>(i);
    const auto value =
        static_cast<float>((static_cast<double>(i - n / 2) + 0.25) * 2 / static_cast<double>(n));
    const auto other = static_cast<size_t>(random.below(i + 1));  // Fisher-Yates, inside out
    a.v[k] = a.v[other];
    a.v[other] = value;
  }
  return a;
}

inline Tensor tensor(const Array& a, TensorOptions options = {}) {
  if (options.dtype == kFloat64) return from_vector(a.v, Shape(a.shape), options.device);
  return from_vector(std::vector<float>(a.v.begin(), a.v.end()), Shape(a.shape), options.device);
}

inline Tensor leaf(const Array& a, TensorOptions options = {}) {
  Tensor t = tensor(a, options);
  t.set_requires_grad();
  return t;
}

inline Array array(const Tensor& t) {
  return {Sizes(t.shape().begin(), t.shape().end()), t.to_vector<double>()};
}

inline double epsilon(DType dtype) {
  return dtype == kFloat64 ? std::numeric_limits<double>::epsilon()
                           : std::numeric_limits<float>::epsilon();
}

// ---- largest errors -----------------------------------------------------------------------------

struct LargestError {
  double relative = 0;  // |actual - expected| / max(1, |expected|)
  double used = 0;      // the same as a share of the tolerance
};
inline std::map<std::string, LargestError>& largest_errors() {
  static std::map<std::string, LargestError> errors;
  return errors;
}
inline void print_largest_errors() {
  std::printf("%-44s %12s %10s\n", "result, device, dtype", "largest", "of allowed");
  for (const auto& [what, error] : largest_errors())
    std::printf("%-44s %12.3g %9.1f%%\n", what.c_str(), error.relative, 100 * error.used);
}

// ---- comparisons --------------------------------------------------------------------------------

// Element by element |actual - expected| <= terms * epsilon(dtype) * max(1, |expected|).
//
// `terms` is how many roundings meet in an element: for a sum of K products of numbers in [-1, 1]
// take K. The partial sums of such numbers grow like sqrt(K) / 3 and their K roundings add up like
// a random walk, which gives K / 6 epsilon: K epsilon leaves a factor of six for unlucky orders,
// yet is far below what a lower precision (TF32, half) or one wrong term would cost. 0 demands
// equality.
inline void check_close(const std::string& what, const Tensor& actual, const Array& expected,
                        double terms) {
  INFO(what << ", " << actual.dtype() << ", " << actual.device());
  REQUIRE(actual.defined());
  REQUIRE(actual.shape() == Shape(expected.shape));
  const std::vector<double> values = actual.to_vector<double>();
  REQUIRE(values.size() == expected.v.size());
  const double rounding = terms == 0 ? 0 : (terms + 4) * epsilon(actual.dtype());
  LargestError& largest =
      largest_errors()[what + ", " + actual.device().str() + ", " + name(actual.dtype())];
  int64_t wrong = 0;
  size_t first = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double diff = std::abs(values[i] - expected.v[i]);
    const double scale = std::max(1.0, std::abs(expected.v[i]));
    if (!(diff <= rounding * scale) && wrong++ == 0) first = i;  // NaN is wrong
    largest.relative = std::max(largest.relative, diff / scale);
    if (rounding > 0) largest.used = std::max(largest.used, diff / scale / rounding);
  }
  if (wrong > 0)
    FAIL_CHECK(wrong << " of " << values.size() << " wrong; first at " << first << ": "
                     << values[first] << ", expected " << expected.v[first] << " +- "
                     << rounding * std::max(1.0, std::abs(expected.v[first])));
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  const Tensor x = a.to(kCpu), y = b.to(kCpu);
  return a.bytes() == 0 || std::memcmp(x.raw(), y.raw(), a.bytes()) == 0;
}

using Op = std::function<Tensor(const std::vector<Tensor>&)>;

// An operator on given inputs, and what an oracle says of it.
struct OpCase {
  std::string what;
  std::vector<Array> inputs;
  Op op;
  Array y;                         // expected result
  Array dy;                        // upstream gradient
  std::vector<Array> grads;        // expected gradients of the inputs
  double y_terms = 1;              // see check_close
  std::vector<double> terms = {};  // of each gradient
};

// Forward and backward in every dtype.
inline void check_op(const OpCase& c, Device device,
                     const std::vector<DType>& dtypes = {kFloat32, kFloat64}) {
  for (DType dtype : dtypes) {
    const TensorOptions options{dtype, device};
    std::vector<Tensor> inputs;
    for (const Array& a : c.inputs) inputs.push_back(leaf(a, options));
    const Tensor y = c.op(inputs);
    check_close(c.what + ": y", y, c.y, c.y_terms);
    y.backward(tensor(c.dy, options));
    for (size_t i = 0; i < inputs.size(); ++i)
      check_close(c.what + ": gradient " + std::to_string(i), inputs[i].grad(), c.grads[i],
                  c.terms[i]);
  }
}

}  // namespace sinter::test
