// Runs of layers that one fused operator computes, against the same layers one by one.
#include <sinter/models.h>

#include "values.h"

namespace sinter::test {
namespace {

struct Pass {
  Tensor y;
  std::vector<Tensor> grads;
};

Pass pass(Module& net, const Tensor& x) {
  net.zero_grad();
  Pass result;
  result.y = net(x);
  sum(result.y * result.y).backward();
  for (const Tensor& p : net.parameters()) result.grads.push_back(p.grad().clone());
  return result;
}

// Largest difference as a share of the largest magnitude.
double difference(const Tensor& a, const Tensor& b) {
  const std::vector<double> left = a.to_vector<double>(), right = b.to_vector<double>();
  REQUIRE(a.shape() == b.shape());
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < left.size(); ++i) {
    worst = std::max(worst, std::abs(left[i] - right[i]));
    largest = std::max(largest, std::abs(right[i]));
  }
  return worst / largest;
}

void check_fused(Module& net, const Tensor& x) {
  net.to(x.device()).to(x.dtype());
  const Pass fused = pass(net, x);
  const no_fusion apart;
  const Pass plain = pass(net, x);
  const double tolerance = x.dtype() == kFloat64 ? 1e-12 : 2e-5;
  CHECK(difference(fused.y, plain.y) <= tolerance);
  REQUIRE(fused.grads.size() == plain.grads.size());
  for (size_t i = 0; i < fused.grads.size(); ++i) {
    INFO("parameter " << i);
    CHECK(difference(fused.grads[i], plain.grads[i]) <= tolerance);
  }
}

}  // namespace

DEVICE_TEST("sequence: fused runs compute what their layers do", "[nn][fused]") {
  manual_seed(4);
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    CifarCnn net;
    check_fused(net, tensor(noise({5, 3, 32, 32}, 1), options));
    Sequential mixed(Conv2d(2, 5, 3, {.padding = 1}), ReLU(), MaxPool2d(2), Conv2d(5, 4, 3), ReLU(),
                     AvgPool2d(2), Flatten(), Linear(16, 9), ReLU(), Linear(9, 7), Linear(7, 3),
                     ReLU());
    check_fused(mixed, tensor(noise({3, 2, 12, 13}, 2), options));
    // Neighbours that do not belong together.
    Sequential apart(Conv2d(2, 3, 3), ReLU(), MaxPool2d(2, 1), Conv2d(3, 3, 3), MaxPool2d(2),
                     ReLU(), Flatten(), ReLU(), Linear(12, 4));
    check_fused(apart, tensor(noise({3, 2, 9, 9}, 3), options));
  }
}

TEST_CASE("sequence: a derived layer is called, not fused", "[nn][fused]") {
  struct Doubled : Linear {
    using Linear::Linear;
    Tensor forward(const Tensor& x) override { return Linear::forward(x) * 2.0; }
  };
  manual_seed(1);
  Sequential net(Linear(4, 3), ReLU(), Doubled(3, 2));
  const Tensor x = tensor(noise({2, 4}, 1));
  const auto& first = dynamic_cast<Linear&>(net[0]);
  const auto& last = dynamic_cast<Linear&>(net[2]);
  const Tensor expected =
      linear(relu(linear(x, first.weight, first.bias)), last.weight, last.bias) * 2.0;
  CHECK(difference(net(x), expected) < 1e-6);
}

TEST_CASE("sequence: an error inside a fused run names its layer", "[nn][fused]") {
  Sequential net(Flatten(), Linear(4, 3), ReLU(), Linear(5, 2));
  check_throws<ShapeError>([&] { net(ones({2, 4})); }, {"3: linear", "(2, 5)", "(2, 3)"});
  Sequential convs(Conv2d(3, 4, 5), ReLU(), MaxPool2d(2));
  check_throws<ShapeError>([&] { convs(ones({1, 2, 8, 8})); }, {"0: conv2d"});
  check_throws<ShapeError>([&] { convs(ones({1, 3, 5, 5})); }, {"2: max_pool2d"});
}

}  // namespace sinter::test
