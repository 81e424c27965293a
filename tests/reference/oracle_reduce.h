// Reductions, softmax and what else goes along a dimension, beside their definitions.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/reference/oracle_cases.h"

namespace sinter::app {

using Row = std::vector<double>;

// What becomes of the elements of one result, in row-major order.
struct ReductionOracle {
  std::string name;
  std::function<Tensor(const Tensor&, const std::vector<int>&, bool)> op;
  std::function<double(const Row&)> value;
  std::function<Row(const Row&)> slope;  // its derivatives
  double terms = 8;                      // see compare
  // What suits it: distinct values, off the ties; near 1; anything.
  enum class Inputs { kNoise, kRamp, kNearOne } inputs = Inputs::kNoise;
};
// prod, var, std, amax, amin, logsumexp and norms of several p.
std::vector<ReductionOracle> reduction_oracles();
OpCase reduction_case(const ReductionOracle& r, const oracle::Sizes& shape,
                      const std::vector<int>& dims, bool keepdim);

// From the elements along a dimension to others, perhaps fewer.
struct AlongOracle {
  std::string name;
  std::function<Tensor(const Tensor&, int)> op;
  std::function<Row(const Row&)> value;
  std::function<Row(const Row& x, const Row& dy)> gradient;
  double terms_each = 0;  // roundings that an element of the row adds; < 0: exact
  bool ramp = false;      // distinct values
};
// cumsum, softmax, log_softmax, sort in both directions, topk of two, and the values of max and
// min.
std::vector<AlongOracle> along_oracles();
OpCase along_case(const AlongOracle& a, const oracle::Sizes& shape, int dim);

// Cases of all of them, for oracle_cases().
void add_reduction_cases(std::vector<VerifyCase>& cases);

}  // namespace sinter::app
