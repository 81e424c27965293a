// Activations as layers (nn/activation.h): what they compute is the functions', which have tests of
// their own.
#include <sinter/sinter.h>

#include <cmath>

#include "core/base/detail.h"
#include "tests/support/compiled.h"
#include "tests/support/values.h"

namespace sinter::test {

DEVICE_TEST("nn: activations as layers", "[nn]") {
  const Tensor x = from_vector(std::vector<double>{-2, -0.5, 0, 1, 30, -1}, {2, 3}).to(device);
  const auto check = [&](Module&& layer, const std::vector<double>& expected) {
    INFO(str(layer));
    const std::vector<double> got = layer(x).to_vector<double>();
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); ++i)
      CHECK(std::abs(got[i] - expected[i]) <= 1e-14 * std::max(1.0, std::abs(expected[i])));
    CHECK(layer.parameters().empty());
  };
  const auto each = [&](double (*f)(double)) {
    std::vector<double> y = x.to_vector<double>();
    for (double& v : y) v = f(v);
    return y;
  };
  check(Identity(), each([](double v) { return v; }));
  check(Tanh(), each([](double v) { return std::tanh(v); }));
  check(Sigmoid(), each([](double v) { return 1 / (1 + std::exp(-v)); }));
  check(SiLU(), each([](double v) { return v / (1 + std::exp(-v)); }));
  check(GELU(), each([](double v) { return v / 2 * std::erfc(-v / std::sqrt(2.0)); }));
  check(GELU("tanh"), each([](double v) {
          const double scale = std::sqrt(2 / std::acos(-1.0));
          return v / 2 * (1 + std::tanh(scale * (v + 0.044715 * v * v * v)));
        }));
  check(LeakyReLU(), each([](double v) { return v > 0 ? v : 0.01 * v; }));
  check(LeakyReLU(0.25), each([](double v) { return v > 0 ? v : 0.25 * v; }));
  check(ELU(), each([](double v) { return v > 0 ? v : std::expm1(v); }));
  check(ELU(3), each([](double v) { return v > 0 ? v : 3 * std::expm1(v); }));
  check(Softplus(), each([](double v) { return v > 20 ? v : std::log1p(std::exp(v)); }));
  check(Softplus(2, 1),
        each([](double v) { return 2 * v > 1 ? v : std::log1p(std::exp(2 * v)) / 2; }));
  // Of the row (0, 1, …): exp(-2), exp(-0.5) and 1; of columns, differences of two numbers.
  const double sum = std::exp(-2) + std::exp(-0.5) + 1, rest = 1 + std::exp(-29) + std::exp(-31);
  check(Softmax(-1), {std::exp(-2) / sum, std::exp(-0.5) / sum, 1 / sum, std::exp(-29) / rest,
                      1 / rest, std::exp(-31) / rest});
  check(LogSoftmax(0),
        {-std::log1p(std::exp(3)), -std::log1p(std::exp(30.5)), -std::log1p(std::exp(-1)),
         -std::log1p(std::exp(-3)), -std::log1p(std::exp(-30.5)), -std::log1p(std::exp(1))});
}

TEST_CASE("nn: activations print as PyTorch's", "[nn]") {
  CHECK(str(Sequential(Identity(), Tanh(), Sigmoid(), SiLU())) ==
        "Sequential(\n  (0): Identity()\n  (1): Tanh()\n  (2): Sigmoid()\n  (3): SiLU()\n)");
  CHECK(str(GELU()) == "GELU(approximate='none')");
  CHECK(str(GELU("tanh")) == "GELU(approximate='tanh')");
  CHECK(str(LeakyReLU()) == "LeakyReLU(negative_slope=0.01)");
  CHECK(str(ELU()) == "ELU(alpha=1.0)");
  CHECK(str(Softplus()) == "Softplus(beta=1.0, threshold=20.0)");
  CHECK(str(Softmax(1)) == "Softmax(dim=1)");
  CHECK(str(LogSoftmax(-1)) == "LogSoftmax(dim=-1)");
  check_throws<ValueError>([] { GELU("erf"); }, {"GELU", "none", "tanh", "'erf'"});
}

// A layer's name is to be had inside a module.
TEST_CASE("nn: a module with an identity", "[nn]") {
  struct Net : Module {
    Identity skip;
    Linear fc{2, 2};
    Tensor forward(const Tensor& x) override { return fc(x) + skip(x); }
    void visit(Visitor& v) override {
      v.module("skip", skip);
      v.module("fc", fc);
    }
  } net;
  {
    const no_grad guard;
    net.fc.weight.fill_(0);
    net.fc.bias.fill_(1);
  }
  const Tensor x = from_vector(std::vector<float>{1, 2}, {1, 2});
  CHECK(net(x).to_vector<float>() == std::vector<float>{2, 3});
  CHECK(net.state_dict().size() == 2);
}

}  // namespace sinter::test
