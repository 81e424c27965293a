// Runs of layers that one operator of a program computes, against the same layers one by one.
#include <sinter/models.h>

#include "tests/support/compiled.h"

namespace sinter::test {
namespace {

void check_network(Module& net, const Tensor& x) {
  net.to(x.device()).to(x.dtype());
  check_compiled([&] {
    net.zero_grad();
    const Tensor y = net(x);
    sum(y * y).backward();
    Results all = gradients_of(net.parameters());
    all.push_back(y);
    return all;
  });
}

}  // namespace

DEVICE_TEST("sequence: programs compute what their layers do", "[nn][fused]") {
  manual_seed(4);
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    CifarCnn net;
    check_network(net, tensor(noise({5, 3, 32, 32}, 1), options));
    Sequential mixed(Conv2d(2, 5, 3, {.padding = 1}), ReLU(), MaxPool2d(2), Conv2d(5, 4, 3), ReLU(),
                     AvgPool2d(2), Flatten(), Linear(16, 9), ReLU(), Linear(9, 7), Linear(7, 3),
                     ReLU());
    check_network(mixed, tensor(noise({3, 2, 12, 13}, 2), options));
    // Neighbours that do not belong together.
    Sequential apart(Conv2d(2, 3, 3), ReLU(), MaxPool2d(2, 1), Conv2d(3, 3, 3), MaxPool2d(2),
                     ReLU(), Flatten(), ReLU(), Linear(12, 4));
    check_network(apart, tensor(noise({3, 2, 9, 9}, 3), options));
  }
}

TEST_CASE("sequence: a derived layer is called", "[nn][fused]") {
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
  CHECK(same_bits(net(x), expected));
  const Tensor y = compiled([&] { return Results{net(x)}; })[0];
  CHECK(relative_difference(y, expected) < 1e-6);
}

TEST_CASE("sequence: an error names its layer", "[nn][fused]") {
  Sequential net(Flatten(), Linear(4, 3), ReLU(), Linear(5, 2));
  check_throws<ShapeError>([&] { net(ones({2, 4})); }, {"3: linear", "(2, 5)", "(2, 3)"});
  Sequential convs(Conv2d(3, 4, 5), ReLU(), MaxPool2d(2));
  check_throws<ShapeError>([&] { convs(ones({1, 2, 8, 8})); }, {"0: conv2d"});
  check_throws<ShapeError>([&] { convs(ones({1, 3, 5, 5})); }, {"2: max_pool2d"});
}

}  // namespace sinter::test
