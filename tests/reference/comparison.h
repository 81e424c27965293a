// Results beside a reference: how far off they are, and how much of what rounding explains that
// takes. The tests assert on it and `sinter verify` tabulates it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sinter/tensor.h"
#include "tests/reference/oracle.h"

namespace sinter::app {

// ---- between arrays and tensors -----------------------------------------------------------------

Tensor tensor(const oracle::Array& a, TensorOptions options = {});
Tensor leaf(const oracle::Array& a, TensorOptions options = {});  // requires grad
oracle::Array array(const Tensor& t);
double epsilon(DType dtype);  // 2^-23 or 2^-52

// ---- ways to run --------------------------------------------------------------------------------

// Operators one by one, or as a compiled function's program (program.h), in which passes may have
// put others in their place.
enum class Mode { kEager, kCompiled };
inline constexpr Mode kModes[] = {Mode::kEager, Mode::kCompiled};
const char* name(Mode mode);

// What f returns, undefined tensors among it: called, or compiled and called three times, of which
// the third is a replay. f must do the same at each call, and begin with dropping gradients that it
// makes.
std::vector<Tensor> results(Mode mode, const std::function<std::vector<Tensor>()>& f);

// ---- one result ---------------------------------------------------------------------------------

struct Comparison {
  std::string what = {};  // "y", "gradient 1"
  int64_t compared = 0;   // elements
  double error = 0;       // the largest, relative to the scale that each function below states
  double share = 0;       // the largest, as a share of its tolerance; above 1 is wrong
  // Empty if right: "3 of 8 elements wrong; the first, [5], is 0.25, expected 0.5 +- 1e-07". NaN
  // and a result that is missing or of another shape are wrong.
  std::string wrong = {};
};

// Element by element |actual - expected| <= (terms + 4) * epsilon(dtype) * max(1, |expected|).
//
// `terms` is how many roundings meet in an element: for a sum of K products of numbers in [-1, 1]
// take K. The partial sums of such numbers grow like sqrt(K) / 3 and their K roundings add up like
// a random walk, which gives K / 6 epsilon: K epsilon leaves a factor of six for unlucky orders,
// yet is far below what a lower precision (TF32, half) or one wrong term would cost. 0 demands
// equality.
Comparison compare(const std::string& what, const Tensor& actual, const oracle::Array& expected,
                   double terms);

// Element by element |actual - expected| <= allowed * the largest |expected| of the tensor.
Comparison compare_recorded(const std::string& what, const Tensor& actual, const Tensor& expected,
                            double allowed);

// ---- many ---------------------------------------------------------------------------------------

// Runs on a device in a dtype and compares with what was prepared.
using Check = std::function<std::vector<Comparison>(TensorOptions, Mode)>;

struct PreparedCheck {
  std::string what;  // shapes and attributes: "x (2, 3, 7, 5), kernel 2"
  Check check;
};

enum class Reference { kOracle, kPyTorch, kDerivatives };

struct VerifyCase {
  std::string op;  // "conv2d"; modules and optimizers by their class, "Conv2d", "AdamW"
  Reference reference;
  // Computes the reference: once, for every device and dtype, and not before it is its turn.
  std::function<PreparedCheck()> prepare;
};

}  // namespace sinter::app
