#include "tests/reference/oracle_elementwise.h"

#include <cmath>
#include <numbers>

#include "core/base/detail.h"
#include "sinter/ops.h"
#include "tests/reference/oracle_cases.h"
#include "tests/reference/oracle_loss.h"

namespace sinter::app {

namespace {

using oracle::Array;
using oracle::Sizes;
using Inputs = std::vector<Tensor>;

// The derivative by each of two numbers; a function of one leaves the second alone.
struct Function {
  const char* name;
  Tensor (*op)(const Tensor& a, const Tensor& b);
  double (*value)(double a, double b);
  double (*da)(double a, double b);
  double (*db)(double a, double b);  // null: of one number
  double low = -2, high = 2;         // inputs, which keep away from where they meet and from 0
};

constexpr double kBeta = 0.5;

double phi(double a) { return std::exp(-a * a / 2) / std::sqrt(2 * std::numbers::pi); }
double cdf(double a) { return std::erfc(-a / std::sqrt(2.0)) / 2; }
double logistic(double a) { return 1 / (1 + std::exp(-a)); }
double tanh_inner(double a) { return std::sqrt(2 / std::numbers::pi) * (a + 0.044715 * a * a * a); }
double sgn(double a) { return a > 0 ? 1 : a < 0 ? -1 : 0; }

using D = double;
#define ONE(name, f, df)                                                                           \
  {                                                                                                \
#name,                                                                                         \
        [](const Tensor& a,                                                                        \
           const Tensor&) { return name(a); },                                                     \
                                            []([[maybe_unused]] D a,                               \
                                               D) -> D { return f; },                              \
                                                                   []([[maybe_unused]] D a,        \
                                                                      D) -> D { return df; },      \
                                                                                           nullptr \
  }
#define ONE_ABOVE_0(name, f, df)                                                                   \
  {                                                                                                \
#name,                                                                                         \
        [](const Tensor& a,                                                                        \
           const Tensor&) { return name(a); },                                                     \
                                            [](D a,                                                \
                                               D) -> D { return f; },                              \
                                                                   [](D a, D)                      \
                                                                        -> D { return df; },       \
                                                                                          nullptr, \
                                                                                          0.25, 4  \
  }
#define WITH(label, call, f, df)                                                                   \
  {                                                                                                \
#label,                                                                                        \
        [](const Tensor& a,                                                                        \
           const Tensor&) { return call; }, [](D a,                                                \
                                               D) -> D { return f; },                              \
                                                                   [](D a,                         \
                                                                      D) -> D { return df; },      \
                                                                                           nullptr \
  }
#define TWO(name, f, dfa, dfb)                                                                 \
  {                                                                                            \
#name, [](const Tensor& a, const Tensor& b) { return name(a, b); },                          \
   [](D a, D b) -> D { return f; }, []([[maybe_unused]] D a, [[maybe_unused]] D b) -> D { return dfa; }, \
   []([[maybe_unused]] D a, [[maybe_unused]] D b) -> D { return dfb; } \
  }
#define LOSS(name, f, dfa, dfb)                                                               \
  {                                                                                           \
#name, [](const Tensor& a, const Tensor& b) { return name(a, b, Reduction::kNone); },       \
   [](D a, D b) -> D { return f; }, [](D a, D b) -> D { return dfa; },                          \
   [](D a, D b) -> D { return dfb; } \
  }

const std::vector<Function>& functions() {
  static const std::vector<Function> all = {
      ONE(abs, std::abs(a), sgn(a)),
      ONE(neg, -a, -1),
      ONE(sign, sgn(a), 0),
      ONE(square, a * a, 2 * a),
      ONE(reciprocal, 1 / a, -1 / (a * a)),
      ONE(exp, std::exp(a), std::exp(a)),
      ONE(expm1, std::expm1(a), std::exp(a)),
      ONE(sin, std::sin(a), std::cos(a)),
      ONE(cos, std::cos(a), -std::sin(a)),
      ONE(tanh, std::tanh(a), 1 - std::tanh(a) * std::tanh(a)),
      ONE(erf, std::erf(a), 2 / std::sqrt(std::numbers::pi) * std::exp(-a * a)),
      ONE(floor, std::floor(a), 0),
      ONE(ceil, std::ceil(a), 0),
      ONE(round, std::nearbyint(a), 0),
      ONE(trunc, std::trunc(a), 0),
      ONE(sigmoid, logistic(a), logistic(a) * logistic(-a)),
      ONE(gelu, a * cdf(a), cdf(a) + a * phi(a)),
      ONE(gelu_tanh, a / 2 * (1 + std::tanh(tanh_inner(a))),
          (1 + std::tanh(tanh_inner(a))) / 2 + a / 2 / std::pow(std::cosh(tanh_inner(a)), 2) *
                                                   std::sqrt(2 / std::numbers::pi) *
                                                   (1 + 3 * 0.044715 * a * a)),
      ONE(silu, a * logistic(a), logistic(a) * (1 + a * logistic(-a))),
      ONE_ABOVE_0(sqrt, std::sqrt(a), 0.5 / std::sqrt(a)),
      ONE_ABOVE_0(rsqrt, 1 / std::sqrt(a), -0.5 / (a * std::sqrt(a))),
      ONE_ABOVE_0(log, std::log(a), 1 / a),
      ONE_ABOVE_0(log1p, std::log1p(a), 1 / (1 + a)),
      WITH(leaky_relu, leaky_relu(a, 0.125), a > 0 ? a : a / 8, a > 0 ? 1 : 0.125),
      WITH(elu, elu(a, 0.75), a > 0 ? a : 0.75 * std::expm1(a), a > 0 ? 1 : 0.75 * std::exp(a)),
      WITH(softplus, softplus(a, 2), std::log1p(std::exp(2 * a)) / 2, logistic(2 * a)),
      WITH(clamp, clamp(a, -0.7, 0.9), std::clamp(a, -0.7, 0.9), a > -0.7 && a < 0.9),
      WITH(clamp_min, clamp_min(a, -0.7), std::max(a, -0.7), a > -0.7),
      WITH(clamp_max, clamp_max(a, 0.9), std::min(a, 0.9), a < 0.9),
      WITH(masked_fill, masked_fill(a, a > 0.5, 3), a > 0.5 ? 3 : a, a > 0.5 ? 0 : 1),
      TWO(minimum, std::min(a, b), a < b, b < a),
      TWO(maximum, std::max(a, b), a > b, b > a),
      {"pow", [](const Tensor& a, const Tensor& b) { return pow(a, b); },
       [](D a, D b) -> D { return std::pow(a, b); },
       [](D a, D b) -> D { return b * std::pow(a, b - 1); },
       [](D a, D b) -> D { return std::pow(a, b) * std::log(a); }, 0.25, 2},
      {"where", [](const Tensor& a, const Tensor& b) { return where(a > b, a, b * b); },
       [](D a, D b) -> D { return a > b ? a : b * b; }, [](D a, D b) -> D { return a > b; },
       [](D a, D b) -> D { return a > b ? 0 : 2 * b; }},
      LOSS(mse_loss, (a - b) * (a - b), 2 * (a - b), 2 * (b - a)),
      LOSS(l1_loss, std::abs(a - b), sgn(a - b), sgn(b - a)),
      {"smooth_l1_loss",
       [](const Tensor& a, const Tensor& b) {
         return smooth_l1_loss(a, b, Reduction::kNone, kBeta);
       },
       [](D a, D b) -> D {
         const D d = std::abs(a - b);
         return d < kBeta ? d * d / (2 * kBeta) : d - kBeta / 2;
       },
       [](D a, D b) -> D { return std::abs(a - b) < kBeta ? (a - b) / kBeta : sgn(a - b); },
       [](D a, D b) -> D { return std::abs(a - b) < kBeta ? (b - a) / kBeta : sgn(b - a); }},
      {"huber_loss",
       [](const Tensor& a, const Tensor& b) { return huber_loss(a, b, Reduction::kNone, kBeta); },
       [](D a, D b) -> D {
         const D d = std::abs(a - b);
         return d < kBeta ? d * d / 2 : kBeta * (d - kBeta / 2);
       },
       [](D a, D b) -> D { return std::abs(a - b) < kBeta ? a - b : kBeta * sgn(a - b); },
       [](D a, D b) -> D { return std::abs(a - b) < kBeta ? b - a : kBeta * sgn(b - a); }},
      {"binary_cross_entropy_with_logits",
       [](const Tensor& a, const Tensor& b) {
         return binary_cross_entropy_with_logits(a, b, {.reduction = Reduction::kNone});
       },
       [](D a, D b) -> D { return std::log1p(std::exp(a)) - a * b; },
       [](D a, D b) -> D { return logistic(a) - b; }, [](D a, D) -> D { return -a; }},
      {"kl_div",
       [](const Tensor& a, const Tensor& b) {
         return kl_div(a, b, {.reduction = Reduction::kNone});
       },
       [](D a, D b) -> D { return b * (std::log(b) - a); }, [](D, D b) -> D { return -b; },
       [](D a, D b) -> D { return std::log(b) + 1 - a; }, 0.25, 4}};
  return all;
}
#undef ONE
#undef ONE_ABOVE_0
#undef WITH
#undef TWO
#undef LOSS

// Distinct numbers in f's range that both dtypes hold, none within 1/64 of another's or of 0, of
// integers and of the kinks above.
Array inputs_of(const Function& f, const Sizes& shape, uint64_t seed) {
  Array x = oracle::filled(shape);
  oracle::Random random(seed);
  for (double& v : x.v) {
    const auto at = static_cast<double>(random.below(static_cast<int64_t>(32 * (f.high - f.low))));
    v = f.low + (at + (seed % 2 == 0 ? 0.25 : 0.75)) / 32;
  }
  return x;
}

OpCase case_of(const Function& f, const Sizes& shape) {
  const Array a = inputs_of(f, shape, 1), b = inputs_of(f, shape, 2), dy = oracle::noise(shape, 3);
  OpCase c{f.name, {a},  [op = f.op](const Inputs& in) { return op(in[0], in.back()); },
           a,      dy,   {a},
           12,     {16}, str("x ", Shape(shape))};
  if (f.db != nullptr) {
    c.inputs.push_back(b);
    c.grads.push_back(b);
    c.terms.push_back(16);
  }
  for (size_t i = 0; i < a.v.size(); ++i) {
    c.y.v[i] = f.value(a.v[i], b.v[i]);
    c.grads[0].v[i] = dy.v[i] * f.da(a.v[i], b.v[i]);
    if (f.db != nullptr) c.grads[1].v[i] = dy.v[i] * f.db(a.v[i], b.v[i]);
  }
  return c;
}

OpCase nll_case(const Sizes& shape, Reduction reduction) {
  const Array log_p = oracle::map(oracle::noise(shape, 1), [](double v) { return 2 * v - 2; });
  Sizes terms = shape;
  terms.erase(terms.begin() + 1);
  const std::vector<int64_t> labels = random_labels(oracle::count(terms), shape[1], 2);
  oracle::LabelLoss p;
  p.reduction = reduction;
  p.of_log_p = true;
  const Array dy = oracle::noise(reduction == Reduction::kNone ? terms : Sizes{}, 3);
  const auto [y, dx] = oracle::label_loss(log_p, labels, p, dy);
  return {"nll_loss",
          {log_p},
          [=](const Inputs& in) {
            return nll_loss(in[0], from_vector(labels, Shape(terms), in[0].device()),
                            {.reduction = reduction});
          },
          y,
          dy,
          {dx},
          static_cast<double>(oracle::count(terms)) + 4,
          {8},
          str("x ", Shape(shape), ", ", name(reduction))};
}

void add(std::vector<VerifyCase>& cases, const std::string& op, std::function<OpCase()> make) {
  cases.push_back({op, Reference::kOracle, [make] {
                     const OpCase c = make();
                     return PreparedCheck{c.how, [c](TensorOptions o, Mode mode) {
                                            return compare_with_oracle(c, o, mode);
                                          }};
                   }});
}

}  // namespace

void add_elementwise_cases(std::vector<VerifyCase>& cases) {
  for (const Function& f : functions())
    for (const Sizes& shape : {Sizes{}, {1}, {7}, {3, 1, 5}, {4, 33}, {1027}, {0, 3}})
      add(cases, f.name, [&f, shape] { return case_of(f, shape); });
  for (const Reduction reduction : {Reduction::kMean, Reduction::kSum, Reduction::kNone})
    for (const Sizes& shape : {Sizes{1, 1}, {7, 3}, {65, 10}, {2, 5, 3, 4}})
      add(cases, "nll_loss", [=] { return nll_case(shape, reduction); });
}

void add_elementwise_gradchecks(std::vector<GradcheckCase>& cases) {
  const auto leaf64 = [](const Array& a) { return tensor(a, {kFloat64, kCpu}); };
  for (const Function& f : functions())
    for (const Sizes& shape : {Sizes{5}, {3, 4}}) {
      Inputs inputs{leaf64(inputs_of(f, shape, 1))};
      if (f.db != nullptr) inputs.push_back(leaf64(inputs_of(f, shape, 2)));
      cases.push_back({f.name, str(Shape(shape)), inputs,
                       [op = f.op](const Inputs& in) { return op(in[0], in.back()); }});
    }
  const std::vector<int64_t> labels = random_labels(6, 4, 2);
  cases.push_back(
      {"nll_loss", "(2, 4, 3)", {leaf64(oracle::noise({2, 4, 3}, 1))}, [labels](const Inputs& in) {
         return nll_loss(in[0], from_vector(labels, {2, 3}, in[0].device()));
       }});
}

}  // namespace sinter::app
