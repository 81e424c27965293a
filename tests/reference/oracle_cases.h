// Operators and optimizers on given inputs, beside what the naive oracle says of them: what the
// tests check and `sinter verify` tabulates.
#pragma once

#include <memory>

#include "sinter/ops.h"
#include "sinter/optim.h"
#include "tests/reference/comparison.h"

namespace sinter::app {

// ---- operators ----------------------------------------------------------------------------------

using Op = std::function<Tensor(const std::vector<Tensor>&)>;

struct OpCase {
  std::string what;  // the operator: "conv2d"
  std::vector<oracle::Array> inputs;
  Op op;
  oracle::Array y;                   // expected result
  oracle::Array dy;                  // upstream gradient
  std::vector<oracle::Array> grads;  // expected gradients of the inputs
  double y_terms = 1;                // see compare
  std::vector<double> terms = {};    // of each gradient
  std::string how = {};              // shapes and attributes, for messages
};

// Forward and backward: y, then each input's gradient.
std::vector<Comparison> compare_with_oracle(const OpCase& c, TensorOptions options,
                                            Mode mode = Mode::kEager);

// One case of an operator, with inputs that suit it: noise in [-1, 1] unless a comment says
// otherwise.
OpCase conv2d_case(const oracle::Sizes& x, const oracle::Sizes& w, bool bias,
                   const oracle::Conv& p = {});
OpCase max_pool2d_case(const oracle::Sizes& x, const oracle::Pool& p);  // off ties
OpCase avg_pool2d_case(const oracle::Sizes& x, const oracle::Pool& p);
OpCase linear_case(const oracle::Sizes& leading, int64_t in, int64_t out, bool bias);
OpCase matmul_case(const oracle::Sizes& a, const oracle::Sizes& b);
OpCase relu_case(const oracle::Sizes& shape);  // off the kink
OpCase sum_case(const oracle::Sizes& shape, const std::vector<int>& dims, bool keepdim);
OpCase mean_case(const oracle::Sizes& shape, const std::vector<int>& dims, bool keepdim);
OpCase permute_case(const oracle::Sizes& shape, const std::vector<int>& dims);
// An operator that leaves the elements and their order as they are: reshape, flatten, copies.
OpCase same_elements_case(const std::string& name, const oracle::Sizes& from,
                          const oracle::Sizes& to, const Op& op);
OpCase log_softmax_case(const oracle::Sizes& shape, int dim);  // inputs in [-4, 4]
OpCase cross_entropy_case(int64_t n, int64_t classes, double smoothing, Reduction reduction);

// What a program runs as one operator, where its backend has one (core/program/fuse).
// max_pool2d(relu(conv2d(x, weight, bias, options)), 2).
Tensor conv2d_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
                        const Conv2dOptions& options = {});
// linear(…relu(linear(x, weights[0], biases[0]))…): a ReLU behind every layer but the last, and
// behind that one too with relu_last. Biases may be undefined.
Tensor mlp(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
           bool relu_last = false);
// These choose by values that they computed: the largest of a window, what is above
// 0. Rounding must not make another choice than the oracle's, or gradients go elsewhere.
enum class Values {
  kIntegers,  // small ones, with many ties and zeros; results have to be equal
  kNoise      // drawn anew until no choice is closer than rounding in float32
};
OpCase conv2d_relu_pool_case(const oracle::Sizes& x, const oracle::Sizes& w, bool bias,
                             const oracle::Conv& p, Values values);
// widths: of x and of each layer's result.
OpCase mlp_case(int64_t rows, const oracle::Sizes& widths, bool bias, bool relu_last,
                Values values);

// a op b with broadcasting. Divisors keep away from 0.
struct Binary {
  const char* name;
  Tensor (*op)(const Tensor&, const Tensor&);
  double (*value)(double a, double b);
  double (*da)(double a, double b);  // partial derivatives
  double (*db)(double a, double b);
};
inline constexpr int kBinaries = 4;
extern const Binary kBinary[kBinaries];  // add, sub, mul, div
OpCase binary_case(const Binary& binary, const oracle::Sizes& a, const oracle::Sizes& b);

// The operators of the cases above, for inputs of a test's own.
Op conv2d_op(const oracle::Conv& p);  // x, weight and perhaps bias
Op max_pool2d_op(const oracle::Pool& p);
Op avg_pool2d_op(const oracle::Pool& p);
Op binary_op(const Binary& binary);
oracle::Array away_from_zero(const oracle::Sizes& shape, uint64_t seed);  // in +-[0.5, 1]
std::vector<int64_t> random_labels(int64_t n, int64_t classes, uint64_t seed);

// ---- optimizers ---------------------------------------------------------------------------------

// An optimizer and the equations of its paper, an element at a time.
struct OptimizerCase {
  std::string name;  // "AdamW", "SGD, Nesterov"
  std::function<std::unique_ptr<Optimizer>(const std::vector<Tensor>&)> make;
  // The parameter after update t = 1, 2, … with gradient g; m and v are its state, 0 at first.
  std::function<double(double p, double g, double& m, double& v, int t)> update;
};
std::vector<OptimizerCase> optimizer_cases();
// Twelve steps on several parameters: one element, an odd number, none, more than a block.
std::vector<Comparison> compare_with_equations(const OptimizerCase& c, TensorOptions options,
                                               Mode mode = Mode::kEager);

// ---- all of it ----------------------------------------------------------------------------------

// Every operator, forward and backward, every optimizer, and compositions that programs run as one
// operator, over shapes chosen to break kernels.
std::vector<VerifyCase> oracle_cases();

}  // namespace sinter::app
