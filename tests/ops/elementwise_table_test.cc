// The operators of the table (operators/elementwise_table.h).
#include <sinter/program.h>

#include <bit>
#include <optional>

#include "tests/reference/oracle.h"
#include "tests/support/compiled.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

using Values = std::vector<double>;
Values values(const Tensor& x) { return x.to_vector<double>(); }

// Equal but for rounding; NaNs and infinities have to be the same.
void check_values(const Values& actual, const Values& expected, double tolerance) {
  REQUIRE(actual.size() == expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    INFO("element " << i << ": " << actual[i] << ", expected " << expected[i]);
    if (std::isnan(expected[i]))
      CHECK(std::isnan(actual[i]));
    else if (std::isinf(expected[i]))
      CHECK(actual[i] == expected[i]);
    else
      CHECK(std::abs(actual[i] - expected[i]) <= tolerance * std::max(1.0, std::abs(expected[i])));
  }
}

// In (0.3, 0.9), at multiples of an odd fraction: inside of every domain, and away from the points
// where a gradient jumps.
Array away_from_kinks(const Sizes& shape, uint64_t seed) {
  return oracle::map(noise(shape, seed), [](double v) { return 0.61 + 0.29 * v; });
}

struct Recorded {
  const char* what;
  Tensor (*f)(const Tensor&);
  Values y, dx;
};
// What PyTorch computes in float64 at these points, and the gradients of the sum.
const Values kPoints = {-2.5, -1, -0.5, -0.0, 0, 0.25, 1, 3, kNan, kInf, -kInf};
const std::vector<Recorded>& recorded() {
  static const std::vector<Recorded> all = {
      {"exp(x)",
       [](const Tensor& x) { return exp(x); },
       {0.0820849986238988, 0.36787944117144233, 0.6065306597126334, 1.0, 1.0, 1.2840254166877414,
        2.718281828459045, 20.085536923187668, kNan, kInf, 0.0},
       {0.0820849986238988, 0.36787944117144233, 0.6065306597126334, 1.0, 1.0, 1.2840254166877414,
        2.718281828459045, 20.085536923187668, kNan, kInf, 0.0}},
      {"expm1(x)",
       [](const Tensor& x) { return expm1(x); },
       {-0.9179150013761012, -0.6321205588285577, -0.3934693402873666, -0.0, 0.0,
        0.2840254166877415, 1.7182818284590453, 19.085536923187668, kNan, kInf, -1.0},
       {0.08208499862389884, 0.36787944117144233, 0.6065306597126334, 1.0, 1.0, 1.2840254166877414,
        2.7182818284590455, 20.085536923187668, kNan, kInf, 0.0}},
      {"log(x)",
       [](const Tensor& x) { return log(x); },
       {kNan, kNan, kNan, -kInf, -kInf, -1.3862943611198906, 0.0, 1.0986122886681098, kNan, kInf,
        kNan},
       {-0.4, -1.0, -2.0, -kInf, kInf, 4.0, 1.0, 0.3333333333333333, kNan, 0.0, -0.0}},
      {"log1p(x)",
       [](const Tensor& x) { return log1p(x); },
       {kNan, -kInf, -0.6931471805599453, -0.0, 0.0, 0.22314355131420976, 0.6931471805599453,
        1.3862943611198906, kNan, kInf, kNan},
       {-0.6666666666666666, kInf, 2.0, 1.0, 1.0, 0.8, 0.5, 0.25, kNan, 0.0, -0.0}},
      {"sqrt(x)",
       [](const Tensor& x) { return sqrt(x); },
       {kNan, kNan, kNan, -0.0, 0.0, 0.5, 1.0, 1.7320508075688772, kNan, kInf, kNan},
       {kNan, kNan, kNan, -kInf, kInf, 1.0, 0.5, 0.2886751345948129, kNan, 0.0, kNan}},
      {"rsqrt(x)",
       [](const Tensor& x) { return rsqrt(x); },
       {kNan, kNan, kNan, -kInf, kInf, 2.0, 1.0, 0.5773502691896258, kNan, 0.0, kNan},
       {kNan, kNan, kNan, kInf, -kInf, -4.0, -0.5, -0.09622504486493767, kNan, -0.0, kNan}},
      {"square(x)",
       [](const Tensor& x) { return square(x); },
       {6.25, 1.0, 0.25, 0.0, 0.0, 0.0625, 1.0, 9.0, kNan, kInf, kInf},
       {-5.0, -2.0, -1.0, -0.0, 0.0, 0.5, 2.0, 6.0, kNan, kInf, -kInf}},
      {"abs(x)",
       [](const Tensor& x) { return abs(x); },
       {2.5, 1.0, 0.5, 0.0, 0.0, 0.25, 1.0, 3.0, kNan, kInf, kInf},
       {-1.0, -1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, -1.0}},
      {"sign(x)",
       [](const Tensor& x) { return sign(x); },
       {-1.0, -1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, -1.0},
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}},
      {"neg(x)",
       [](const Tensor& x) { return neg(x); },
       {2.5, 1.0, 0.5, 0.0, -0.0, -0.25, -1.0, -3.0, kNan, -kInf, kInf},
       {-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0}},
      {"reciprocal(x)",
       [](const Tensor& x) { return reciprocal(x); },
       {-0.4, -1.0, -2.0, -kInf, kInf, 4.0, 1.0, 0.3333333333333333, kNan, 0.0, -0.0},
       {-0.16000000000000003, -1.0, -4.0, -kInf, -kInf, -16.0, -1.0, -0.1111111111111111, kNan,
        -0.0, -0.0}},
      {"sin(x)",
       [](const Tensor& x) { return sin(x); },
       {-0.5984721441039565, -0.8414709848078965, -0.479425538604203, -0.0, 0.0,
        0.24740395925452294, 0.8414709848078965, 0.1411200080598672, kNan, kNan, kNan},
       {-0.8011436155469337, 0.5403023058681398, 0.8775825618903728, 1.0, 1.0, 0.9689124217106447,
        0.5403023058681398, -0.9899924966004454, kNan, kNan, kNan}},
      {"cos(x)",
       [](const Tensor& x) { return cos(x); },
       {-0.8011436155469337, 0.5403023058681398, 0.8775825618903728, 1.0, 1.0, 0.9689124217106447,
        0.5403023058681398, -0.9899924966004454, kNan, kNan, kNan},
       {0.5984721441039565, 0.8414709848078965, 0.479425538604203, 0.0, -0.0, -0.24740395925452294,
        -0.8414709848078965, -0.1411200080598672, kNan, kNan, kNan}},
      {"tanh(x)",
       [](const Tensor& x) { return tanh(x); },
       {-0.9866142981514303, -0.7615941559557649, -0.46211715726000974, -0.0, 0.0,
        0.24491866240370913, 0.7615941559557649, 0.9950547536867305, kNan, 1.0, -1.0},
       {0.02659222668316057, 0.41997434161402614, 0.7864477329659274, 1.0, 1.0, 0.940014848806378,
        0.41997434161402614, 0.009866037165440166, kNan, 0.0, 0.0}},
      {"erf(x)",
       [](const Tensor& x) { return erf(x); },
       {-0.999593047982555, -0.8427007929497149, -0.5204998778130465, -0.0, 0.0,
        0.27632639016823696, 0.8427007929497149, 0.9999779095030014, kNan, 1.0, -1.0},
       {0.00217828423035271, 0.4151074974205947, 0.8787825789354448, 1.1283791670955126,
        1.1283791670955126, 1.0600141293761143, 0.4151074974205947, 0.00013925305194674786, kNan,
        0.0, 0.0}},
      {"sigmoid(x)",
       [](const Tensor& x) { return sigmoid(x); },
       {0.07585818002124355, 0.2689414213699951, 0.3775406687981454, 0.5, 0.5, 0.5621765008857981,
        0.7310585786300049, 0.9525741268224334, kNan, 1.0, 0.0},
       {0.07010371654510815, 0.19661193324148185, 0.2350037122015945, 0.25, 0.25,
        0.24613408273759835, 0.19661193324148185, 0.045176659730912, kNan, 0.0, 0.0}},
      {"relu(x)",
       [](const Tensor& x) { return relu(x); },
       {0.0, 0.0, 0.0, -0.0, 0.0, 0.25, 1.0, 3.0, kNan, kInf, 0.0},
       {0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0}},
      {"gelu(x)",
       [](const Tensor& x) { return gelu(x); },
       {-0.015524163314440398, -0.15865525393145702, -0.15426876936299344, -0.0, 0.0,
        0.14967658142073093, 0.841344746068543, 2.99595030590511, kNan, kInf, kNan},
       {-0.03761108590814519, -0.08331547058768635, 0.13250487534383712, 0.5, 0.5,
        0.695373354883636, 1.0833154705876864, 1.011945647204184, kNan, kNan, kNan}},
      // Where the slope is that of an infinite argument, PyTorch has NaN.
      {"gelu(x, tanh)",
       [](const Tensor& x) { return gelu(x, "tanh"); },
       {-0.015084266089998577, -0.15880800939172324, -0.15428599017485606, -0.0, 0.0,
        0.149675350701685, 0.8411919906082768, 2.996362607918227, kNan, kInf, kNan},
       {-0.03795157621266618, -0.08296408384578252, 0.13263009646535764, 0.5, 0.5,
        0.6953540951510604, 1.0829640838457826, 1.0115841666309695, kNan, 1, 0}},
      {"silu(x)",
       [](const Tensor& x) { return silu(x); },
       {-0.18964545005310887, -0.2689414213699951, -0.1887703343990727, -0.0, 0.0,
        0.14054412522144952, 0.7310585786300049, 2.8577223804672998, kNan, kInf, kNan},
       {-0.09940111134152683, 0.07232948812851325, 0.2600388126973482, 0.5, 0.5, 0.6237100215701977,
        0.9276705118714869, 1.0881041060151693, kNan, kNan, kNan}},
      {"floor(x)",
       [](const Tensor& x) { return floor(x); },
       {-3.0, -1.0, -1.0, -0.0, 0.0, 0.0, 1.0, 3.0, kNan, kInf, -kInf},
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}},
      {"ceil(x)",
       [](const Tensor& x) { return ceil(x); },
       {-2.0, -1.0, -0.0, -0.0, 0.0, 1.0, 1.0, 3.0, kNan, kInf, -kInf},
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}},
      {"round(x)",
       [](const Tensor& x) { return round(x); },
       {-2.0, -1.0, -0.0, -0.0, 0.0, 0.0, 1.0, 3.0, kNan, kInf, -kInf},
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}},
      {"trunc(x)",
       [](const Tensor& x) { return trunc(x); },
       {-2.0, -1.0, -0.0, -0.0, 0.0, 0.0, 1.0, 3.0, kNan, kInf, -kInf},
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}},
      {"leaky_relu(x)",
       [](const Tensor& x) { return leaky_relu(x); },
       {-0.025, -0.01, -0.005, -0.0, 0.0, 0.25, 1.0, 3.0, kNan, kInf, -kInf},
       {0.01, 0.01, 0.01, 0.01, 0.01, 1.0, 1.0, 1.0, 0.01, 1.0, 0.01}},
      {"elu(x)",
       [](const Tensor& x) { return elu(x); },
       {-0.9179150013761013, -0.6321205588285577, -0.3934693402873666, -0.0, 0.0, 0.25, 1.0, 3.0,
        kNan, kInf, -1.0},
       {0.0820849986238988, 0.36787944117144233, 0.6065306597126334, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
        1.0, 0.0}},
      {"softplus(x)",
       [](const Tensor& x) { return softplus(x); },
       {0.07888973429254963, 0.31326168751822286, 0.4740769841801067, 0.6931471805599453,
        0.6931471805599453, 0.8259394198788436, 1.3132616875182228, 3.048587351573742, kNan, kInf,
        0.0},
       {0.07585818002124356, 0.2689414213699951, 0.37754066879814546, 0.5, 0.5, 0.5621765008857981,
        0.7310585786300049, 0.9525741268224333, kNan, 1.0, 0.0}},
      {"softplus(x,3,2)",
       [](const Tensor& x) { return softplus(x, 3, 2); },
       {0.00018431049178693214, 0.01619578385791402, 0.06713775932758413, 0.23104906018664842,
        0.23104906018664842, 0.37895700203829996, 1.0, 3.0, kNan, kInf, 0.0},
       {0.0005527786369235996, 0.04742587317756679, 0.18242552380635632, 0.5, 0.5,
        0.679178699175393, 1.0, 1.0, kNan, 1.0, 0.0}},
      {"clamp(x,-0.5,1)",
       [](const Tensor& x) { return clamp(x, -0.5, 1); },
       {-0.5, -0.5, -0.5, -0.0, 0.0, 0.25, 1.0, 1.0, kNan, 1.0, -0.5},
       {0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0}},
      {"clamp_min(x, 0.25)",
       [](const Tensor& x) { return clamp_min(x, 0.25); },
       {0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 1.0, 3.0, kNan, kInf, 0.25},
       {0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0}},
      {"clamp_max(x, 0.25)",
       [](const Tensor& x) { return clamp_max(x, 0.25); },
       {-2.5, -1.0, -0.5, -0.0, 0.0, 0.25, 0.25, 0.25, kNan, 0.25, -kInf},
       {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0}},
      {"pow(x,2)",
       [](const Tensor& x) { return pow(x, 2); },
       {6.25, 1.0, 0.25, 0.0, 0.0, 0.0625, 1.0, 9.0, kNan, kInf, kInf},
       {-5.0, -2.0, -1.0, -0.0, 0.0, 0.5, 2.0, 6.0, kNan, kInf, -kInf}},
      {"pow(x,0)",
       [](const Tensor& x) { return pow(x, 0); },
       {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0},
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}},
      {"pow(x,-1)",
       [](const Tensor& x) { return pow(x, -1); },
       {-0.4, -1.0, -2.0, -kInf, kInf, 4.0, 1.0, 0.3333333333333333, kNan, 0.0, -0.0},
       {-0.16, -1.0, -4.0, -kInf, -kInf, -16.0, -1.0, -0.1111111111111111, kNan, -0.0, -0.0}},
      {"pow(2,x)",
       [](const Tensor& x) { return pow(2, x); },
       {0.1767766952966369, 0.5, 0.7071067811865476, 1.0, 1.0, 1.189207115002721, 2.0, 8.0, kNan,
        kInf, 0.0},
       {0.1225322679335684, 0.34657359027997264, 0.4901290717342736, 0.6931471805599453,
        0.6931471805599453, 0.8242955588659627, 1.3862943611198906, 5.545177444479562, kNan, kInf,
        0.0}},
      {"pow(0,x)",
       [](const Tensor& x) { return pow(0, x); },
       {kInf, kInf, kInf, 1.0, 1.0, 0.0, 0.0, 0.0, kNan, 0.0, kInf},
       {-kInf, -kInf, -kInf, 0.0, 0.0, 0.0, 0.0, 0.0, kNan, 0.0, -kInf}},
      {"maximum(x, zeros({}, x.options()))",
       [](const Tensor& x) { return maximum(x, zeros({}, x.options())); },
       {0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 1.0, 3.0, kNan, kInf, 0.0},
       {0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0}},
      {"minimum(x, ones({}, x.options()))",
       [](const Tensor& x) { return minimum(x, ones({}, x.options())); },
       {-2.5, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 1.0, kNan, 1.0, -kInf},
       {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 1.0}},
      {"x / 3",
       [](const Tensor& x) { return x / 3; },
       {-0.8333333333333334, -0.3333333333333333, -0.16666666666666666, -0.0, 0.0,
        0.08333333333333333, 0.3333333333333333, 1.0, kNan, kInf, -kInf},
       {0.3333333333333333, 0.3333333333333333, 0.3333333333333333, 0.3333333333333333,
        0.3333333333333333, 0.3333333333333333, 0.3333333333333333, 0.3333333333333333,
        0.3333333333333333, 0.3333333333333333, 0.3333333333333333}},
      {"3 / x",
       [](const Tensor& x) { return 3 / x; },
       {-1.2000000000000002, -3.0, -6.0, -kInf, kInf, 12.0, 3.0, 1.0, kNan, 0.0, -0.0},
       {-0.4800000000000001, -3.0, -12.0, -kInf, -kInf, -48.0, -3.0, -0.3333333333333333, kNan,
        -0.0, -0.0}},
  };
  return all;
}

}  // namespace

DEVICE_TEST("table: as PyTorch at ordinary and special points", "[elementwise]") {
  for (const Recorded& r : recorded())
    for (const DType dtype : {kFloat32, kFloat64}) {
      INFO(r.what << ' ' << dtype);
      const Tensor x = from_vector(kPoints, {11}, device).to(dtype).detach();
      x.set_requires_grad();
      const Tensor y = r.f(x);
      y.backward(ones_like(y));
      const double tolerance = dtype == kFloat64 ? 1e-14 : 1e-6;
      check_values(values(y), r.y, tolerance);
      check_values(values(x.grad()), r.dx, tolerance);
    }
}

namespace {

Tensor of(const Values& v, TensorOptions options) {
  return from_vector(v, {static_cast<int64_t>(v.size())}, options.device).to(options.dtype);
}
Tensor leaf_of(const Values& v, TensorOptions options) {
  const Tensor x = of(v, options).detach();
  x.set_requires_grad();
  return x;
}

}  // namespace

DEVICE_TEST("table: two operands where the gradient is a choice", "[elementwise]") {
  const Values va = {1, 2, 3, kNan, 1, 0, 0, -2}, vb = {2, 2, 1, 1, kNan, 0, 2, 3};
  struct Case {
    const char* what;
    Tensor (*f)(const Tensor&, const Tensor&);
    Values y, da, db;
  };
  const Case cases[] = {
      {"minimum",
       minimum,
       {1, 2, 1, kNan, kNan, 0, 0, -2},
       {1, .5, 0, 1, 1, .5, 1, 1},
       {0, .5, 1, 1, 1, .5, 0, 0}},
      {"maximum",
       maximum,
       {2, 2, 3, kNan, kNan, 0, 2, 3},
       {0, .5, 1, 1, 1, .5, 0, 0},
       {1, .5, 0, 1, 1, .5, 1, 1}},
      // 0^0 is 1 with gradients 0; where the base is negative the exponent has no gradient.
      {"pow",
       pow,
       {1, 4, 3, kNan, 1, 1, 0, -8},
       {2, 4, 1, 1, kNan, 0, 0, 12},
       {0, 4 * std::log(2), 3 * std::log(3), kNan, 0, 0, 0, kNan}},
  };
  for (const Case& c : cases)
    for (const DType dtype : {kFloat32, kFloat64}) {
      INFO(c.what << ' ' << dtype);
      const Tensor a = leaf_of(va, {dtype, device}), b = leaf_of(vb, {dtype, device});
      const Tensor y = c.f(a, b);
      y.backward(ones_like(y));
      const double tolerance = dtype == kFloat64 ? 1e-14 : 1e-6;
      check_values(values(y), c.y, tolerance);
      check_values(values(a.grad()), c.da, tolerance);
      check_values(values(b.grad()), c.db, tolerance);
    }
}

DEVICE_TEST("table: comparisons and truth values", "[elementwise]") {
  const Values va = {1, 2, 3, kNan, 0, -0.0}, vb = {2, 2, 1, 1, kNan, 0};
  for (const DType dtype : {kFloat32, kFloat64}) {
    const Tensor a = of(va, {dtype, device}), b = of(vb, {dtype, device});
    const auto check = [](const Tensor& y, const std::vector<bool>& expected) {
      CHECK(y.dtype() == kBool);
      CHECK(!y.requires_grad());
      CHECK(y.to_vector<bool>() == expected);
    };
    check(a == b, {false, true, false, false, false, true});
    check(a != b, {true, false, true, true, true, false});
    check(a < b, {true, false, false, false, false, false});
    check(a <= b, {true, true, false, false, false, true});
    check(a > b, {false, false, true, false, false, false});
    check(a >= b, {false, true, true, false, false, true});
    check(a > 1, {false, true, true, false, false, false});
    check(1 > a, {false, false, false, false, true, true});
    check(logical_and(a, b), {true, true, true, true, false, false});
    check(logical_or(a, b), {true, true, true, true, true, false});
    check(logical_xor(a, b), {false, false, false, false, true, false});
    check(logical_not(a), {false, false, false, false, true, true});
    check(isnan(a), {false, false, false, true, false, false});
    const Tensor special = of({1, kInf, -kInf, kNan}, {dtype, device});
    check(isinf(special), {false, true, true, false});
    check(isfinite(special), {true, false, false, false});
  }
  CHECK(logical_not(zeros({2}, {kInt64, device})).to_vector<bool>() ==
        std::vector<bool>{true, true});
  CHECK((leaf_of({1}, {kFloat64, device}) < 2).item<bool>());
}

DEVICE_TEST("table: where and masked_fill", "[elementwise]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor mask = from_vector<bool>({true, false, true}, {3}, device);
    const Tensor a = leaf_of({1, 2, 3}, options), b = leaf_of({10}, options);
    const Tensor y = where(mask, a, b);
    CHECK(values(y) == Values{1, 10, 3});
    y.backward(of({1, 2, 4}, options));
    CHECK(values(a.grad()) == Values{1, 0, 4});
    CHECK(values(b.grad()) == Values{2});
    CHECK(values(where(mask, 0, a)) == Values{0, 2, 0});
    CHECK(values(where(mask, a, kNan))[2] == 3);
    a.set_grad({});
    const Tensor filled = masked_fill(a, mask, -kInf);
    CHECK(values(filled) == Values{-kInf, 2, -kInf});
    filled.backward(of({1, 2, 4}, options));
    CHECK(values(a.grad()) == Values{0, 2, 0});
    // The mask decides the shape too.
    CHECK(where(mask.reshape({3, 1}), a, b).shape() == Shape{3, 3});
    check_throws<DtypeError>([&] { where(a, a, a); }, {"where", "bool", name(dtype)});
    check_throws<DtypeError>([&] { masked_fill(a, a, 0); }, {"masked_fill", "bool"});
    check_throws<ShapeError>([&] { where(mask, a, zeros({2}, options)); }, {"where", "(2,)"});
  }
  const Tensor ids = from_vector<int64_t>({5, 6}, {2}, device);
  const Tensor filled = masked_fill(ids, ids == 6, -100);
  CHECK(filled.dtype() == kInt64);
  CHECK(filled.to_vector<int64_t>() == std::vector<int64_t>{5, -100});
}

DEVICE_TEST("table: dtypes of results", "[elementwise]") {
  const auto of_type = [&](DType dtype) { return ones({2}, {dtype, device}); };
  const Tensor b = of_type(kBool), u = of_type(kUInt8), i = of_type(kInt32), l = of_type(kInt64),
               f = of_type(kFloat32), d = of_type(kFloat64);
  const auto is = [](const Tensor& y, DType dtype, double value) {
    INFO(y.dtype() << ", expected " << dtype);
    CHECK(y.dtype() == dtype);
    CHECK(y.to_vector<double>()[0] == value);
  };
  is(b + b, kBool, 1);
  is(b + u, kUInt8, 2);
  is(u + i, kInt32, 2);
  is(u + l, kInt64, 2);
  is(i * l, kInt64, 1);
  is(l - f, kFloat32, 0);
  is(d + i, kFloat64, 2);
  is(b * f, kFloat32, 1);
  is(i + 2, kInt32, 3);
  is(b + 2, kInt64, 3);
  is(u * 0.5, kFloat32, 0.5);
  is(d * 0.5, kFloat64, 0.5);
  is(i / i, kFloat32, 1);
  is(l / 2, kFloat32, 0.5);
  is(exp(zeros({1}, {kInt64, device})), kFloat32, 1);
  is(sigmoid(zeros({1}, {kBool, device})), kFloat32, 0.5);
  is(pow(i + 1, 3), kInt32, 8);
  is(clamp(l * 7, 1, 3), kInt64, 3);
  is(clamp_max(l * 7, 5), kInt64, 5);
  is(clamp_min(l * 7, 5), kInt64, 7);
  is(clamp_max(l, 0.5), kFloat32, 0.5);
  is(eq(i, 1.0), kBool, 1);
  is(u - 2, kUInt8, 255);
  is(neg(u), kUInt8, 255);
  is(abs(neg(i)), kInt32, 1);
  is(relu(neg(l)), kInt64, 0);
  // A tensor without dimensions decides only by its kind.
  is(i + ones({}, {kInt64, device}), kInt64, 2);
  is(l + ones({}, {kFloat64, device}), kFloat64, 2);
  is(div(l * -7, 2, "floor"), kInt64, -4);
  is(div(l * -7, 2, "trunc"), kInt64, -3);
  is(floor_divide(f * -7, 2), kFloat32, -4);
  is(floor_divide(d, 0.1), kFloat64, 9);
  is(floor_divide(l, 0), kInt64, 0);
  is(where(b, i, l), kInt64, 1);
  check_throws<DtypeError>([&] { f + d; }, {"add", "float32", "float64"});
  check_throws<DtypeError>([&] { b - b; }, {"sub", "bool"});
  check_throws<ValueError>([&] { div(f, f, "up"); }, {"div", "rounding_mode", "up"});
  check_throws<ValueError>([&] { gelu(f, "erf"); }, {"gelu", "approximate", "erf"});
  // Integers meet what is differentiated.
  const Tensor x = leaf_of({2, 3}, {kFloat64, device});
  sum(x * i * 3).backward();
  CHECK(values(x.grad()) == Values{3, 3});
}

DEVICE_TEST("table: add and sub with alpha", "[elementwise]") {
  const TensorOptions options{kFloat64, device};
  const Tensor a = leaf_of({1, 2}, options), b = leaf_of({3, 5}, options);
  const Tensor y = add(a, b, 2) - sub(a, b, 0.5);
  CHECK(values(y) == Values{7.5, 12.5});
  y.backward(ones_like(y));
  CHECK(values(a.grad()) == Values{0, 0});
  CHECK(values(b.grad()) == Values{2.5, 2.5});
}

DEVICE_TEST("table: gradients against differences", "[elementwise]") {
  const Array x = away_from_kinks({3, 5}, 1), row = away_from_kinks({5}, 2);
  for (const Recorded& r : recorded()) {
    INFO(r.what);
    check_gradient(device, {x}, [&](const std::vector<Tensor>& in) { return r.f(in[0]); });
  }
  using Inputs = std::vector<Tensor>;
  check_gradient(device, {x, row}, [](const Inputs& in) { return pow(in[0], in[1]); });
  check_gradient(device, {x, row}, [](const Inputs& in) { return minimum(in[0], in[1]); });
  check_gradient(device, {x, row}, [](const Inputs& in) { return maximum(in[1], in[0]); });
  check_gradient(device, {x, row, {{}, {0.6}}},
                 [](const Inputs& in) { return clamp(in[0], in[2], in[1] + 0.4); });
  check_gradient(device, {x, row}, [](const Inputs& in) { return add_relu(in[0], in[1] - 1); });
}

DEVICE_TEST("table: in place", "[elementwise]") {
  const TensorOptions options{kFloat32, device};
  for (const bool recorded : {false, true}) {
    const std::optional<no_grad> guard =
        recorded ? std::nullopt : std::optional<no_grad>(std::in_place);
    const Tensor x = of({1, 2, 3, 4}, options), view = x.narrow(0, 1, 2);
    const uint64_t version = x.version();
    CHECK(x.add_(1).is(x));
    CHECK(values(x) == Values{2, 3, 4, 5});
    CHECK(x.version() > version);
    x.sub_(of({1}, options), 2).mul_(x).div_(2);
    CHECK(values(x) == Values{0, 0.5, 2, 4.5});
    view.add_(view, 0.5);
    CHECK(values(x) == Values{0, 0.75, 3, 4.5});
    // What overlaps is read as it was before.
    x.narrow(0, 0, 2).mul_(0).add_(x.narrow(0, 1, 2));
    CHECK(values(x) == Values{0.75 * 0, 3, 3, 4.5});
    x.clamp_(1, 4);
    CHECK(values(x) == Values{1, 3, 3, 4});
    x.pow_(2).masked_fill_(x > 8, -1);
    CHECK(values(x) == Values{1, -1, -1, -1});
    x.zero_();
    CHECK(values(x) == Values{0, 0, 0, 0});
    const Tensor count = zeros({2}, {kInt64, device});
    count.add_(3).mul_(2);
    CHECK(count.to_vector<int64_t>() == std::vector<int64_t>{6, 6});
    check_throws<DtypeError>([&] { count.div_(2); }, {"div_", "float32", "int64"});
    check_throws<ShapeError>([&] { count.add_(ones({3, 2}, {kInt64, device})); }, {"add_"});
  }
  check_gradient(device, {noise({3}, 1), {{3}, {0.5, -1.5, 2}}}, [](const std::vector<Tensor>& in) {
    const Tensor x = in[0] * 3;
    x.add_(in[1], 2).mul_(in[1]).sub_(in[0], 0.5).div_(in[1]);
    return x.pow_(2).masked_fill_(in[1] > 1, 0);
  });
}

DEVICE_TEST("table: round to decimals", "[elementwise]") {
  const Tensor x = leaf_of({1.25, -2.375, 1234.5}, {kFloat64, device});
  check_values(values(round(x, 1)), {1.2, -2.4, 1234.5}, 1e-15);
  check_values(values(round(x, -2)), {0, 0, 1200}, 0);
  check_values(values(round(x)), {1, -2, 1234}, 0);
}

// Over the whole range of arguments, against the functions of float64.
DEVICE_TEST("table: functions of float32 are right to some units in the last place",
            "[elementwise]") {
  struct Function {
    const char* name;
    Tensor (*f)(const Tensor&);
    double (*exact)(double);
  };
  const Function functions[] = {
      {"exp", exp, std::exp},       {"expm1", expm1, std::expm1}, {"log", log, std::log},
      {"log1p", log1p, std::log1p}, {"tanh", tanh, std::tanh},    {"erf", erf, std::erf},
      {"sin", sin, std::sin},       {"cos", cos, std::cos},       {"sqrt", sqrt, std::sqrt}};
  std::vector<float> x;
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 65521)
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  const Tensor t = from_vector(x, {static_cast<int64_t>(x.size())}, device);
  for (const Function& function : functions) {
    INFO(function.name);
    const std::vector<float> y = function.f(t).to_vector<float>();
    double worst = 0;
    bool same_kind = true;
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = function.exact(x[i]);
      const auto rounded = static_cast<float>(exact);
      if (std::isnan(rounded) || std::isinf(rounded)) {
        same_kind = same_kind && (std::isnan(rounded) ? std::isnan(y[i]) : y[i] == rounded);
        continue;
      }
      const double unit = std::max(0x1p-149, std::abs(exact) * 0x1p-23);
      const double off = std::abs(y[i] - exact) / unit;
      if (!(off <= worst)) worst = off;
    }
    CHECK(same_kind);
    CHECK(worst <= 3);
  }
}

// Every line of the table, whatever its operands' sizes, positions and broadcasting, gives an
// element the bits that it has alone.
DEVICE_TEST("table: an element's bits depend on it alone", "[elementwise]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor all = tensor(noise({4099}, 1), options) * 3;
    for (const Recorded& r : recorded()) {
      INFO(r.what << ' ' << dtype);
      const Tensor y = r.f(all);
      for (const int64_t n : {1, 2, 3, 5, 16, 17, 63, 513})
        for (const int64_t first : {0, 1, 7, 1000, 3000}) {
          const Tensor part = r.f(all.narrow(0, first, n));
          CHECK(same_bits(part, y.narrow(0, first, n)));
        }
    }
    const Tensor column = all.narrow(0, 0, 67).reshape({67, 1}), row = all.narrow(0, 100, 61);
    const Tensor wide = column / row;
    for (const int64_t i : {0, 1, 33, 66})
      CHECK(
          same_bits(wide.narrow(0, i, 1).reshape({61}), column.narrow(0, i, 1).reshape({1}) / row));
  }
}

namespace {

int64_t chains(const Work& f) { return count(operators_of(f), "map_chain"); }

// The same bits eagerly, in a program, and in one without chains.
void check_chain(const std::string& what, const Work& f, int64_t expected) {
  INFO(what);
  CHECK(chains(f) == expected);
  const Results eager = copies(f());
  for (const char* off : {"", "-elementwise", "-fuse", "-dead", "-memory"}) {
    INFO("SINTER_PASSES=" << off);
    const PassesOff without(off);
    check_same_bits(compiled(f), eager);
  }
  const PassesOff without("-elementwise");
  CHECK(chains(f) == 0);
}

}  // namespace

DEVICE_TEST("fuse_elementwise: chains have the bits of their parts", "[fused]") {
  for (const DType dtype : {kFloat32, kFloat64})
    for (const Sizes& shape : {Sizes{2, 3}, {1}, {67, 1031}, {0, 4}, {5, 1, 7}}) {
      INFO(Shape(shape) << ' ' << dtype);
      const TensorOptions options{dtype, device};
      const Tensor a = tensor(noise(shape, 1), options), b = tensor(noise(shape, 2), options);
      const Tensor row = tensor(noise({shape.back()}, 3), options);
      // Nothing has a producer.
      const bool some = Shape(shape).numel() > 0;
      const auto check = [&](const std::string& what, const Work& f, int64_t expected) {
        check_chain(what, f, some ? expected : 0);
      };
      check(
          "a line", [=] { return Results{tanh(exp(a * 2) + 1)}; }, 1);
      check(
          "a tree", [=] { return Results{sigmoid(a + row) * tanh(b - row) / (a * a + 1)}; }, 1);
      check(
          "choices", [=] { return Results{where(logical_and(a > 0, b > 0.25), a, b * 2)}; }, 1);
      check(
          "a bool at the end", [=] { return Results{a * 2 < b + 1}; }, 1);
      check(
          "a value that is held",
          [=] {
            const Tensor inner = exp(a);
            return Results{inner, sqrt(inner + row), isnan(inner)};
          },
          1);
      check(
          "many steps",
          [=] {
            Tensor x = a;
            for (int i = 0; i < 40; ++i) x = sin(x) + row;
            return Results{x};
          },
          7);
      check(
          "many inputs",
          [=] {
            Tensor x = a;
            for (int i = 0; i < 12; ++i) x = x * tensor(noise(shape, 10 + i), options);
            return Results{x};
          },
          2);
      check(
          "alone", [=] { return Results{exp(a)}; }, 0);
      check(
          "repeated later", [=] { return Results{exp(row) * a}; }, shape.size() == 1);
    }
}

DEVICE_TEST("fuse_elementwise: backward passes", "[fused]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor a = leaf(noise({33, 65}, 1), options), row = leaf(noise({65}, 2), options);
    const Work f = [=] {
      drop_gradients({a, row});
      const Tensor y = gelu(a * row) * sigmoid(a) + clamp(softplus(a - row), 0.5, 0.75);
      sum(y * y).backward();
      return Results{y, a.grad(), row.grad()};
    };
    CHECK(chains(f) >= 2);
    const Results eager = copies(f());
    for (const char* off : {"", "-elementwise", "-fuse", "-dead", "-memory"}) {
      INFO("SINTER_PASSES=" << off);
      const PassesOff without(off);
      check_same_bits(compiled(f), eager);
    }
  }
}

DEVICE_TEST("fuse_elementwise: what is changed or read in between", "[fused]") {
  const TensorOptions options{kFloat32, device};
  const Tensor start = tensor(noise({6, 5}, 1), options), b = tensor(noise({6, 5}, 2), options);
  const Tensor row = tensor(noise({5}, 3), options);
  const no_grad guard;
  check_chain(
      "an operand is overwritten",
      [=] {
        const Tensor x = start.clone(), twice = x * 2;
        x.copy_(b);
        return Results{twice + b, x};
      },
      0);
  check_chain(
      "a part of the result is overwritten",
      [=] {
        const Tensor twice = start * 2;
        twice.narrow(0, 1, 2).fill_(7);
        return Results{twice + b};
      },
      0);
  check_chain(
      "a part of the result is written",
      [=] {
        const Tensor x = start.clone();
        x.narrow(0, 1, 2).mul_(3);
        return Results{x + b};
      },
      0);
  check_chain(
      "the result is read in between",
      [=] {
        const Tensor twice = start * 2, total = sum(twice, 0);
        return Results{twice + total};
      },
      0);
  check_chain(
      "in place",
      [=] {
        const Tensor x = start.clone();
        x.mul_(2).add_(b);
        const Tensor y = x * row;
        x.sub_(1);
        return Results{x, y, exp(y) + 1};
      },
      1);
  check_chain(
      "a row of itself",
      [=] {
        const Tensor x = start.clone();
        const Tensor t = exp(x.narrow(0, 0, 1).reshape({5})) * row;
        x.mul_(t);
        return Results{x, t};
      },
      1);
}

}  // namespace sinter::test
