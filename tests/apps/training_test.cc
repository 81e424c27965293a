#include <thread>

#include "tests/support/values.h"

namespace sinter::test {
namespace {

// Every kind of layer, at odd sizes.
struct Net : Module {
  Conv2d conv1{3, 6, 3, {.padding = 1}},
      conv2{6, 9, Pair(3, 2), {.stride = Pair(1, 2), .groups = 3}};
  Linear fc1{9 * 3 * 2, 33}, fc2{33, 5};
  Tensor forward(const Tensor& x) override {
    Tensor y = max_pool2d(relu(conv1(x)), 2);                   // (N, 6, 6, 5)
    y = avg_pool2d(relu(conv2(y)), Pair(2, 1), {.stride = 1});  // (N, 9, 3, 2)
    return fc2(relu(fc1(flatten(y, 1))));
  }
  void visit(Visitor& v) override {
    v.module("conv1", conv1);
    v.module("conv2", conv2);
    v.module("fc1", fc1);
    v.module("fc2", fc2);
  }
};

struct Result {
  std::vector<double> losses;
  NamedTensors weights;
  double accuracy;
};

// `steps` updates on one batch of noise with arbitrary labels.
Result train(TensorOptions options, int steps, int64_t n = 24, uint64_t seed = 11) {
  manual_seed(seed);
  Net net;
  net.to(options.device).to(options.dtype);
  const Tensor x = tensor(noise({n, 3, 12, 11}, 1), options);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < n; ++i) labels.push_back(i * 7 % 5);
  const Tensor y = from_vector(labels, {n}, options.device);
  AdamW optimizer(net.parameters(), {.lr = 4e-3, .weight_decay = 1e-3});
  Result result;
  for (int step = 0; step < steps; ++step) {
    const Tensor loss = cross_entropy(net(x), y, {.label_smoothing = 0.01});
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    result.losses.push_back(loss.item<double>());
  }
  const no_grad guard;
  const Tensor correct = zeros({}, {kInt64, options.device});
  add_correct(correct, net(x), y);
  result.accuracy = correct.item<double>() / static_cast<double>(n);
  for (const auto& [key, value] : net.state_dict())
    result.weights.emplace_back(key, value.to(kCpu).clone());
  return result;
}

bool same(const Result& a, const Result& b) {
  bool equal = a.losses == b.losses && a.weights.size() == b.weights.size();
  for (size_t i = 0; equal && i < a.weights.size(); ++i)
    equal = same_bits(a.weights[i].second, b.weights[i].second);
  return equal;
}

}  // namespace

DEVICE_TEST("training: one batch can be learnt by heart", "[training]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const Result result = train({dtype, device}, 150);
    INFO(dtype << ": from " << result.losses.front() << " to " << result.losses.back());
    CHECK(std::abs(result.losses.front() - std::log(5.0)) < 0.3);
    CHECK(result.losses.back() < 0.15);  // smoothing leaves 0.07
    CHECK(result.accuracy == 1);
  }
}

DEVICE_TEST("training: two runs give equal bits", "[training]") {
  for (DType dtype : {kFloat32, kFloat64})
    CHECK(same(train({dtype, device}, 20), train({dtype, device}, 20)));
}

TEST_CASE("training: any number of threads gives equal bits", "[training]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (int64_t n : {1, 24, 67}) {
      const Threads alone(1);
      const Result one = train({dtype, kCpu}, 6, n);
      for (int threads : {2, 3, 5, 8}) {
        const Threads set(threads);
        INFO(threads << " threads, batch " << n << ", " << dtype);
        CHECK(same(one, train({dtype, kCpu}, 6, n)));
      }
    }
}

DEVICE_TEST("training: threads train side by side undisturbed", "[training]") {
  // Each another training, so that nothing of one can pass for another's.
  const auto nth = [device](size_t i) {
    return train({kFloat32, device}, 10, 24 - 7 * static_cast<int64_t>(i), 11 + i);
  };
  std::vector<Result> alone, together(3);
  for (size_t i = 0; i < together.size(); ++i) alone.push_back(nth(i));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < together.size(); ++i)
    threads.emplace_back([&, i] { together[i] = nth(i); });
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < together.size(); ++i) CHECK(same(alone[i], together[i]));
  CHECK(!same(alone[0], alone[1]));
}

CUDA_TEST("training: CUDA follows the CPU", "[training]") {
  const Result host = train({kFloat64, kCpu}, 10), there = train({kFloat64, device}, 10);
  // Adam divides by the root of v, so that it magnifies rounding where a gradient is all but zero:
  // four digits are left for that above the epsilon of some thousand operations.
  for (size_t i = 0; i < host.losses.size(); ++i)
    CHECK(std::abs(host.losses[i] - there.losses[i]) <= 1e-9);
  for (size_t i = 0; i < host.weights.size(); ++i) {
    INFO(host.weights[i].first);
    const std::vector<double> a = host.weights[i].second.to_vector<double>();
    const std::vector<double> b = there.weights[i].second.to_vector<double>();
    double worst = 0;
    for (size_t k = 0; k < a.size(); ++k) worst = std::max(worst, std::abs(a[k] - b[k]));
    CHECK(worst <= 1e-8);
  }
  const Result single = train({kFloat32, device}, 10);
  for (size_t i = 0; i < host.losses.size(); ++i)
    CHECK(std::abs(host.losses[i] - single.losses[i]) <= 2e-3);
}

// The first step, by the oracles alone: what autograd, layers and loss add up to.
DEVICE_TEST("training: a whole backward pass against the oracles", "[training]") {
  const Array x = ramp({3, 2, 8, 7}, 1), w = noise({4, 2, 3, 3}, 2), b = noise({4}, 3);
  const Array fc = noise({5, 12}, 4);
  const std::vector<int64_t> labels = {4, 0, 2};

  const oracle::Conv conv{.pad_w = 1};
  const oracle::Pool pool{2, 2, 2, 2};
  const Array h = oracle::conv2d(x, w, &b, conv);  // (3, 4, 6, 7)
  const Array r = oracle::map(h, [](double v) { return v > 0 ? v : 0; });
  Array p = oracle::max_pool2d(r, pool, filled({3, 4, 3, 3})).first;
  p.shape = {3, 36};
  // The last layer sees the sum of each row of a channel.
  Array q = filled({3, 12});
  for (size_t i = 0; i < p.v.size(); ++i) q.v[i / 3] += p.v[i];
  const Array logits = oracle::product(q, oracle::transposed(fc));
  Array weight = filled({3, 5});
  for (size_t i = 0; i < 3; ++i) weight.v[i * 5 + static_cast<size_t>(labels[i])] = -1.0 / 3;
  const auto [log_p, dlogits] = oracle::log_softmax(logits, 1, weight);
  double loss = 0;
  for (size_t i = 0; i < log_p.v.size(); ++i) loss += weight.v[i] * log_p.v[i];
  const Array dfc = oracle::product(oracle::transposed(dlogits), q);
  const Array dq = oracle::product(dlogits, fc);
  Array dp = filled({3, 4, 3, 3});
  for (size_t i = 0; i < dp.v.size(); ++i) dp.v[i] = dq.v[i / 3];
  Array dh = oracle::max_pool2d(r, pool, dp).second;
  for (size_t i = 0; i < dh.v.size(); ++i) dh.v[i] = h.v[i] > 0 ? dh.v[i] : 0;
  const std::vector<Array> dconv = oracle::conv2d_gradients(x, w, dh, conv);

  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor tx = leaf(x, options), tw = leaf(w, options), tb = leaf(b, options);
    const Tensor tfc = leaf(fc, options);
    const Tensor features = max_pool2d(relu(conv2d(tx, tw, tb, {.padding = Pair(0, 1)})), 2);
    const Tensor l = cross_entropy(linear(flatten(sum(features, {-1}), 1), tfc),
                                   from_vector(labels, {3}, device));
    l.backward();
    check_close("network: loss", l, {{}, {loss}}, 200);
    check_close("network: dx", tx.grad(), dconv[0], 400);
    check_close("network: dweight", tw.grad(), dconv[1], 400);
    check_close("network: dbias", tb.grad(), dconv[2], 400);
    check_close("network: dfc", tfc.grad(), dfc, 400);
  }
}

}  // namespace sinter::test
