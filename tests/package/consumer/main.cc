// A user's program: a network of its own, trained on a problem made up on the spot. Fails unless
// the loss falls.
#include <sinter/sinter.h>

#include <cstdint>
#include <iostream>
#include <vector>

namespace {

struct BarNet : sinter::Module {
  sinter::Conv2d conv{1, 4, 3, {.padding = 1}};
  sinter::ReLU relu;
  sinter::MaxPool2d pool{2};
  sinter::Flatten flatten;
  sinter::Linear fc{4 * 4 * 4, 2};

  sinter::Tensor forward(const sinter::Tensor& x) override {
    return fc(flatten(pool(relu(conv(x)))));
  }
  void visit(sinter::Visitor& v) override {
    v.module("conv", conv);
    v.module("fc", fc);
  }
};

constexpr int kImages = 64, kSide = 8, kSteps = 60;

// (N, 1, 8, 8) noise with one bright line: a row where the label is 0, a column where it is 1.
sinter::Tensor bars(const std::vector<int64_t>& labels) {
  sinter::Generator random(1);
  std::vector<float> x(labels.size() * kSide * kSide);
  for (float& pixel : x) pixel = static_cast<float>(random.uniform());
  for (size_t i = 0; i < labels.size(); ++i) {
    const size_t line = i / 2 % kSide;
    for (size_t j = 0; j < kSide; ++j)
      x[i * kSide * kSide + (labels[i] == 0 ? line * kSide + j : j * kSide + line)] += 1;
  }
  return sinter::from_vector(x, {static_cast<int64_t>(labels.size()), 1, kSide, kSide});
}

int run() {
  sinter::manual_seed(0);
  std::vector<int64_t> labels(kImages);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int64_t>(i % 2);
  const sinter::Tensor x = bars(labels);
  const sinter::Tensor y = sinter::from_vector(labels, {kImages});

  BarNet net;
  sinter::Adam adam(net.parameters(), {.lr = 0.01});
  double first = 0, last = 0;
  for (int step = 0; step < kSteps; ++step) {
    const sinter::Tensor loss = sinter::cross_entropy(net(x), y);
    last = loss.item<double>();
    if (step == 0) first = last;
    if (step % 10 == 0 || step == kSteps - 1)
      std::cout << "step " << step << " loss " << last << '\n';
    adam.zero_grad();
    loss.backward();
    adam.step();
  }
  if (!(last < first / 2)) {
    std::cerr << "the loss did not fall: " << first << " -> " << last << '\n';
    return 1;
  }
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
