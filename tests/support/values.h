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

#include "tests/reference/oracle_cases.h"
#include "tests/support/catch.h"

namespace sinter::test {

// ---- shared with `sinter verify` ----------------------------------------------------------------

namespace oracle = app::oracle;
using oracle::Array;
using oracle::count;
using oracle::filled;
using oracle::noise;
using oracle::ramp;
using oracle::Random;
using oracle::Sizes;

using app::array;
using app::Comparison;
using app::epsilon;
using app::leaf;
using app::Op;
using app::OpCase;
using app::tensor;

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

// Fails the test unless a result was right. `what`: "conv2d: y".
inline void check_comparison(const std::string& what, const Comparison& c, TensorOptions options) {
  INFO(what << ", " << options.dtype << ", " << options.device << ": " << c.wrong);
  LargestError& largest =
      largest_errors()[what + ", " + options.device.str() + ", " + name(options.dtype)];
  largest.relative = std::max(largest.relative, c.error);
  largest.used = std::max(largest.used, c.share);
  CHECK(c.wrong.empty());
}

// Element by element |actual - expected| <= (terms + 4) * epsilon(dtype) * max(1, |expected|):
// `terms` is how many roundings meet in an element (comparison.h). 0 demands equality.
inline void check_close(const std::string& what, const Tensor& actual, const Array& expected,
                        double terms) {
  REQUIRE(actual.defined());
  check_comparison(what, app::compare(what, actual, expected, terms), actual.options());
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  const Tensor x = a.to(kCpu), y = b.to(kCpu);
  return a.bytes() == 0 || std::memcmp(x.read(), y.read(), a.bytes()) == 0;
}

// The same bits, but for those of NaNs, of which a GPU's additions keep one operand's or the
// other's.
inline bool same_numbers(const Tensor& a, const Tensor& b) {
  if (same_bits(a, b)) return true;
  if (!(a.shape() == b.shape()) || a.dtype() != b.dtype()) return false;
  const std::vector<double> x = a.to_vector<double>(), y = b.to_vector<double>();
  for (size_t i = 0; i < x.size(); ++i) {
    const bool same = x[i] == y[i] && std::signbit(x[i]) == std::signbit(y[i]);
    if (!same && !(std::isnan(x[i]) && std::isnan(y[i]))) return false;
  }
  return true;
}

// The CPU kernels' threads while one lives.
class Threads {
 public:
  explicit Threads(int n) { set_num_threads(n); }
  ~Threads() { set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  const int before_ = num_threads();
};

// The algorithm of convolutions and the precision while one lives.
class With {
 public:
  explicit With(ConvAlgo algo, bool tf32 = false) {
    set_conv_algo(algo);
    set_allow_tf32(tf32);
  }
  ~With() {
    set_conv_algo(ConvAlgo::kAuto);
    set_allow_tf32(false);
  }
  With(const With&) = delete;
  With& operator=(const With&) = delete;
};

// Forward and backward in every dtype, eager and compiled, against an oracle.
inline void check_op(const OpCase& c, Device device,
                     const std::vector<DType>& dtypes = {kFloat32, kFloat64}) {
  INFO(c.how);
  for (DType dtype : dtypes)
    for (const app::Mode mode : app::kModes) {
      INFO(app::name(mode));
      for (const Comparison& result : app::compare_with_oracle(c, {dtype, device}, mode))
        check_comparison(c.what + ": " + result.what, result, {dtype, device});
    }
}

}  // namespace sinter::test
