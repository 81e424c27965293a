#include "core/base/detail.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

// PyTorch's introductory network.
struct LeNet : Module {
  Conv2d conv1{3, 6, 5}, conv2{6, 16, 5};
  Linear fc1{400, 120}, fc2{120, 84}, fc3{84, 10};
  Tensor forward(const Tensor& x) override {
    Tensor y = max_pool2d(relu(conv1(x)), 2);
    y = flatten(max_pool2d(relu(conv2(y)), 2), 1);
    return fc3(relu(fc2(relu(fc1(y)))));
  }
  void visit(Visitor& v) override {
    v.module("conv1", conv1);
    v.module("conv2", conv2);
    v.module("fc1", fc1);
    v.module("fc2", fc2);
    v.module("fc3", fc3);
  }
};

// A module with a buffer, a nested Sequential and a mode.
struct Scaled : Module {
  Sequential layers{Linear(3, 4), ReLU(), Linear(4, 2, false)};
  Tensor scale = full({1}, 2);
  Tensor forward(const Tensor& x) override { return is_training() ? layers(x) : layers(x) * scale; }
  void visit(Visitor& v) override {
    v.buffer("scale", scale);
    v.module("layers", layers);
  }
};

std::vector<std::string> names(const NamedTensors& tensors) {
  std::vector<std::string> result;
  for (const auto& entry : tensors) result.push_back(entry.first);
  return result;
}

std::vector<std::vector<double>> values(const NamedTensors& tensors) {
  std::vector<std::vector<double>> result;
  for (const auto& entry : tensors) result.push_back(entry.second.to_vector<double>());
  return result;
}

}  // namespace

TEST_CASE("nn: keys and their order are PyTorch's", "[nn]") {
  LeNet net;
  CHECK(names(net.state_dict()) == std::vector<std::string>{"conv1.weight", "conv1.bias",
                                                            "conv2.weight", "conv2.bias",
                                                            "fc1.weight", "fc1.bias", "fc2.weight",
                                                            "fc2.bias", "fc3.weight", "fc3.bias"});
  CHECK(names(net.named_parameters()) == names(net.state_dict()));
  CHECK(net.parameters().size() == 10);
  CHECK(net.named_buffers().empty());
  int64_t count = 0;
  for (const Tensor& p : net.parameters()) count += p.numel();
  CHECK(count == 62006);
  CHECK(net.conv2.weight.shape() == Shape{16, 6, 5, 5});
  CHECK(net.fc1.weight.shape() == Shape{120, 400});
  CHECK(net.fc1.bias.shape() == Shape{120});

  Sequential layers(Conv2d(3, 8, 3), ReLU(), MaxPool2d(2), Flatten(),
                    Sequential(Linear(8, 4), ReLU(), Linear(4, 2, /*bias=*/false)));
  CHECK(names(layers.state_dict()) ==
        std::vector<std::string>{"0.weight", "0.bias", "4.0.weight", "4.0.bias", "4.2.weight"});
  CHECK(layers.size() == 5);
  CHECK(names(layers[4].state_dict()) ==
        std::vector<std::string>{"0.weight", "0.bias", "2.weight"});

  Scaled scaled;
  CHECK(names(scaled.state_dict()) ==
        std::vector<std::string>{"scale", "layers.0.weight", "layers.0.bias", "layers.2.weight"});
  CHECK(names(scaled.named_buffers()) == std::vector<std::string>{"scale"});
  CHECK(scaled.parameters().size() == 3);
}

TEST_CASE("nn: parameters are leaves and the state dict shares their storage", "[nn]") {
  LeNet net;
  for (const auto& [key, tensor] : net.named_parameters()) {
    INFO(key);
    CHECK(tensor.is_leaf());
    CHECK(tensor.requires_grad());
  }
  for (const auto& [key, tensor] : net.state_dict()) CHECK(!tensor.requires_grad());
  CHECK(net.state_dict()[0].second.raw() == net.conv1.weight.raw());
  CHECK(net.parameters()[0].raw() == net.conv1.weight.raw());
  Scaled scaled;
  CHECK(!scaled.scale.requires_grad());
}

DEVICE_TEST("nn: layers are the operators with the module's parameters", "[nn]") {
  Conv2d conv(4, 6, Pair(3, 2),
              {.stride = Pair(2, 1), .padding = 1, .dilation = Pair(1, 2), .groups = 2});
  CHECK(conv.weight.shape() == Shape{6, 2, 3, 2});
  conv.to(device).to(kFloat64);
  const Tensor x = tensor(noise({2, 4, 7, 6}, 1), {kFloat64, device});
  const Array w = array(conv.weight), b = array(conv.bias);
  check_close("Conv2d", conv(x),
              oracle::conv2d(array(x), w, &b,
                             {.stride_h = 2, .pad_h = 1, .pad_w = 1, .dil_w = 2, .groups = 2}),
              20);
  Conv2d plain(4, 5, 3, {.bias = false});
  CHECK(!plain.bias.defined());
  CHECK(names(plain.state_dict()) == std::vector<std::string>{"weight"});
  CHECK(plain.to(device).to(kFloat64)(x).shape() == Shape{2, 5, 5, 4});

  CHECK(same_bits(MaxPool2d(3, 2, 1)(x), max_pool2d(x, 3, {.stride = 2, .padding = 1})));
  CHECK(same_bits(MaxPool2d(2)(x), max_pool2d(x, 2)));
  CHECK(same_bits(AvgPool2d(Pair(3, 2), 1)(x), avg_pool2d(x, Pair(3, 2), {.stride = 1})));
  CHECK(same_bits(ReLU()(x), relu(x)));
  CHECK(Flatten()(x).shape() == Shape{2, 168});
  CHECK(Flatten(0, 1)(x).shape() == Shape{8, 7, 6});

  Sequential layers(Linear(6, 4), ReLU());
  layers.append(Linear(4, 3));
  layers.to(device).to(kFloat64);
  auto& first = dynamic_cast<Linear&>(layers[0]);
  auto& last = dynamic_cast<Linear&>(layers[2]);
  const Tensor rows = tensor(noise({5, 6}, 2), {kFloat64, device});
  CHECK(same_bits(layers(rows),
                  linear(relu(linear(rows, first.weight, first.bias)), last.weight, last.bias)));
}

DEVICE_TEST("nn: LeNet runs and every parameter gets a gradient", "[nn]") {
  manual_seed(1);
  LeNet net;
  net.to(device);
  const Tensor x = tensor(noise({3, 3, 32, 32}, 1), {kFloat32, device});
  const Tensor y = net(x);
  CHECK(y.shape() == Shape{3, 10});
  cross_entropy(y, zeros({3}, {kInt64, device})).backward();
  for (const auto& [key, parameter] : net.named_parameters()) {
    INFO(key);
    REQUIRE(parameter.grad().defined());
    CHECK(parameter.grad().shape() == parameter.shape());
    double largest = 0;
    for (double g : parameter.grad().to_vector<double>()) largest = std::max(largest, std::abs(g));
    CHECK(largest > 0);
    CHECK(std::isfinite(largest));
  }
  net.zero_grad();
  for (const Tensor& parameter : net.parameters()) CHECK(!parameter.grad().defined());
}

TEST_CASE("nn: initial weights are uniform within 1 over the root of the fan-in", "[nn]") {
  manual_seed(7);
  const auto check = [](const Tensor& t, double fan_in) {
    const double bound = 1 / std::sqrt(fan_in);
    const std::vector<double> v = t.to_vector<double>();
    const auto n = static_cast<double>(v.size());
    double largest = 0, total = 0, squares = 0;
    for (double x : v) {
      largest = std::max(largest, std::abs(x));
      total += x;
      squares += x * x;
    }
    INFO(t.shape() << " fan-in " << fan_in);
    CHECK(largest <= bound * (1 + 1e-6));
    CHECK(largest >= bound * (1 - 20 / n));  // e^-20 of missing the outer 20 / n
    // Five standard deviations of the mean and of the mean square of n uniform draws.
    CHECK(std::abs(total / n) <= 5 * bound / std::sqrt(3 * n));
    CHECK(std::abs(squares / n - bound * bound / 3) <= 5 * bound * bound * std::sqrt(4.0 / 45 / n));
  };
  const Linear fc(400, 120);
  check(fc.weight, 400);
  check(fc.bias, 400);
  const Conv2d conv(16, 64, Pair(3, 5));
  check(conv.weight, 16 * 15);
  check(conv.bias, 16 * 15);
  const Conv2d grouped(64, 128, 3, {.groups = 8});  // the fan-in of a group
  check(grouped.weight, 8 * 9);
  check(grouped.bias, 8 * 9);
}

TEST_CASE("nn: the seed decides the initial weights", "[nn]") {
  const auto draw = [](uint64_t seed) {
    manual_seed(seed);
    LeNet net;
    return values(net.state_dict());
  };
  CHECK(draw(3) == draw(3));
  const auto a = draw(3), b = draw(4);
  for (size_t i = 0; i < a.size(); ++i) CHECK(a[i] != b[i]);
  manual_seed(3);
  LeNet first, second;
  CHECK(values(first.state_dict()) != values(second.state_dict()));
}

DEVICE_TEST("nn: to moves and converts parameters and buffers", "[nn]") {
  Scaled net;
  const auto before = values(net.state_dict());
  sum(net(ones({1, 3}))).backward();
  net.to(device).to(kFloat64);
  CHECK(values(net.state_dict()) == before);
  for (const auto& [key, tensor] : net.named_parameters()) {
    INFO(key);
    CHECK(tensor.dtype() == kFloat64);
    CHECK(tensor.device() == device);
    CHECK(tensor.is_leaf());
    CHECK(tensor.requires_grad());
    CHECK(!tensor.grad().defined());
  }
  CHECK(net.scale.device() == device);
  CHECK(net.scale.dtype() == kFloat64);
  sum(net(ones({1, 3}, {kFloat64, device}))).backward();
  CHECK(net.parameters()[0].grad().dtype() == kFloat64);
  net.to(kCpu).to(kFloat32);
  CHECK(values(net.state_dict()) == before);
}

TEST_CASE("nn: training mode reaches the children", "[nn]") {
  struct Outer : Module {
    Scaled inner;
    Tensor forward(const Tensor& x) override { return inner(x); }
    void visit(Visitor& v) override { v.module("inner", inner); }
  } net;
  CHECK(net.is_training());
  CHECK(net.inner.is_training());
  net.eval();
  CHECK(!net.is_training());
  CHECK(!net.inner.is_training());
  CHECK(!net.inner.layers[0].is_training());
  const Tensor x = ones({1, 3});
  const Tensor evaluated = net(x);
  net.train();
  CHECK(net.inner.layers[2].is_training());
  CHECK(same_bits(evaluated, net(x) * 2.0));
}

DEVICE_TEST("nn: load_state_dict copies values in", "[nn]") {
  manual_seed(1);
  Scaled from, to;
  from.scale.fill_(7);
  from.to(device).to(kFloat64);
  to.to(device);
  const void* place = to.parameters()[0].raw();
  // Another device and dtype than the module's, and another order.
  NamedTensors state = from.state_dict();
  for (auto& entry : state) entry.second = entry.second.to(kCpu);
  std::reverse(state.begin(), state.end());
  to.load_state_dict(state);
  CHECK(values(to.state_dict()) == values(from.state_dict()));
  CHECK(to.parameters()[0].raw() == place);
  CHECK(to.parameters()[0].dtype() == kFloat32);
  CHECK(to.parameters()[0].requires_grad());
  CHECK(to.parameters()[0].is_leaf());
  // A copy: what is done to the source later does not reach the module.
  from.scale.fill_(1);
  CHECK(to.scale.item<double>() == 7);
}

TEST_CASE("nn: load_state_dict errors name the keys and change nothing", "[nn]") {
  Scaled net;
  const auto before = values(net.state_dict());
  const NamedTensors good = [] {
    Scaled other;
    return other.state_dict();
  }();

  NamedTensors renamed = good;
  renamed[1].first = "layers.0.wight";
  renamed.emplace_back("surplus", zeros({1}));
  check_throws<ValueError>([&] { net.load_state_dict(renamed); },
                           {"layers.0.weight", "layers.0.wight", "surplus"});
  check_throws<ValueError>([&] { net.load_state_dict({}); },
                           {"scale", "layers.0.weight", "layers.0.bias", "layers.2.weight"});
  NamedTensors reshaped = good;
  reshaped[3].second = zeros({4, 2});
  check_throws<ShapeError>([&] { net.load_state_dict(reshaped); },
                           {"layers.2.weight", "(2, 4)", "(4, 2)"});
  NamedTensors twice = good;
  twice.push_back(good[0]);
  check_throws<ValueError>([&] { net.load_state_dict(twice); }, {"scale"});
  NamedTensors undefined = good;
  undefined[0].second = Tensor();
  check_throws<Error>([&] { net.load_state_dict(undefined); }, {"scale"});

  CHECK(values(net.state_dict()) == before);
  net.load_state_dict(good);
  CHECK(values(net.state_dict()) == values(good));
}

DEVICE_TEST("nn: load_state_dict that is not strict takes what fits", "[nn]") {
  Scaled net;
  net.to(device);
  NamedTensors state = Scaled().state_dict();
  const std::vector<double> weight = state[1].second.to_vector<double>();
  state.erase(state.begin() + 2);
  state.emplace_back("head.weight", zeros({1}));
  const auto before = values(net.state_dict());
  check_throws<ValueError>([&] { net.load_state_dict(state); }, {"layers.0.bias", "head.weight"});
  CHECK(values(net.state_dict()) == before);
  const StateKeys keys = net.load_state_dict(state, {.strict = false});
  CHECK(keys.missing == std::vector<std::string>{"layers.0.bias"});
  CHECK(keys.unexpected == std::vector<std::string>{"head.weight"});
  CHECK(values(net.state_dict())[1] == weight);
  CHECK(values(net.state_dict())[2] == before[2]);
  state[1].second = zeros({7});
  check_throws<ShapeError>([&] { net.load_state_dict(state, {.strict = false}); },
                           {"layers.0.weight", "(7,)"});
}

TEST_CASE("nn: impossible layers are refused", "[nn]") {
  check_throws<Error>([] { Conv2d(0, 4, 3); }, {"Conv2d"});
  check_throws<Error>([] { Conv2d(4, 0, 3); }, {"Conv2d"});
  check_throws<Error>([] { Conv2d(4, 4, 0); }, {"Conv2d"});
  check_throws<Error>([] { Conv2d(4, 6, 3, {.groups = 3}); }, {"Conv2d", "groups"});
  check_throws<Error>([] { Conv2d(6, 4, 3, {.groups = 3}); }, {"Conv2d", "groups"});
  check_throws<Error>([] { Linear(0, 3); }, {"Linear"});
  check_throws<Error>([] { Linear(3, -1); }, {"Linear"});
  LeNet net;
  check_throws<ShapeError>(
      [&] {
        net(zeros({2, 1, 32, 32}));
      },
      {"conv2d", "(2, 1, 32, 32)", "(6, 3, 5, 5)"});
  check_throws<ShapeError>(
      [&] {
        net(zeros({2, 3, 28, 28}));
      },
      {"linear", "(2, 256)", "(120, 400)"});
}

TEST_CASE("nn: errors begin with the path of the module they came from", "[nn]") {
  struct Block : Module {
    Conv2d conv1{4, 4, 3}, conv2{3, 4, 3};  // conv2 does not take what conv1 makes
    Tensor forward(const Tensor& x) override { return conv2(conv1(x)); }
    void visit(Visitor& v) override {
      v.module("conv1", conv1);
      v.module("conv2", conv2);
    }
  };
  struct Net : Module {
    Sequential features{Conv2d(2, 4, 3), ReLU(), Block()};
    Tensor forward(const Tensor& x) override { return features(x); }
    void visit(Visitor& v) override { v.module("features", features); }
  } net;
  const auto message = [&](const Tensor& x) -> std::string {
    try {
      net(x);
    } catch (const ShapeError& e) {
      return e.what();
    }
    return "";
  };
  CHECK(message(zeros({1, 2, 9, 9}))
            .starts_with("features.2.conv2: conv2d: expected x with 3 channels, got 4"));
  CHECK(message(zeros({1, 3, 9, 9}))
            .starts_with("features.0: conv2d: expected x with 2 channels, got 3"));
  // The path is of one throw, not of the next.
  CHECK(message(zeros({1, 2, 9, 9})).starts_with("features.2.conv2: conv2d: "));
  // A layer called by itself has no path.
  check_throws<ShapeError>([&] { net.features(zeros({1})); }, {"0: conv2d"});
  Conv2d alone(2, 4, 3);
  try {
    alone(zeros({1}));
    FAIL("no error");
  } catch (const ShapeError& e) {
    CHECK(std::string(e.what()).starts_with("conv2d: "));
  }
}

// ---- shared, frozen, copied ---------------------------------------------------------------------

namespace {

// One matrix both ways.
struct Tied : Module {
  Linear encode{3, 3}, decode{3, 3};
  Tied() { decode.weight = encode.weight; }
  Tensor forward(const Tensor& x) override { return decode(encode(x)); }
  void visit(Visitor& v) override {
    v.module("encode", encode);
    v.module("decode", decode);
  }
};

}  // namespace

DEVICE_TEST("nn: tied weights are one parameter", "[nn]") {
  Tied net;
  CHECK(names(net.named_parameters()) ==
        std::vector<std::string>{"encode.weight", "encode.bias", "decode.bias"});
  CHECK(net.parameters().size() == 3);
  CHECK(names(net.state_dict()) ==
        std::vector<std::string>{"encode.weight", "encode.bias", "decode.weight", "decode.bias"});
  net.to(kCpu).to(kFloat32);  // nothing moves
  CHECK(net.decode.weight.is(net.encode.weight));
  net.to(device).to(kFloat64);
  CHECK(net.decode.weight.is(net.encode.weight));
  CHECK(net.encode.weight.device() == device);
  CHECK(net.encode.weight.dtype() == kFloat64);
  SGD sgd(net.parameters(), {.lr = 1});
  {
    const no_grad guard;
    net.encode.weight.fill_(1);
  }
  net.decode.weight.set_grad(ones({3, 3}, {kFloat64, device}));
  sgd.step();
  for (const double w : net.encode.weight.to_vector<double>()) CHECK(w == 0);
  NamedTensors state = net.state_dict();
  for (auto& entry : state) entry.second = entry.second.clone();
  Tied other;
  other.load_state_dict(state);
  CHECK(values(other.state_dict()) == values(net.state_dict()));
}

DEVICE_TEST("nn: frozen parameters are left alone", "[nn]") {
  Scaled net;
  net.to(device);
  const TensorOptions options{kFloat32, device};
  for (const Tensor& p : net.layers[0].parameters()) p.set_requires_grad(false);
  const auto before = values(net.state_dict());
  SGD sgd(net.parameters(), {.lr = 0.1});
  sum(net(ones({1, 3}, options))).backward();
  const std::vector<Tensor> parameters = net.parameters();
  CHECK(!parameters[0].grad().defined());
  CHECK(!parameters[1].grad().defined());
  CHECK(parameters[2].grad().defined());
  sgd.step();
  auto after = values(net.state_dict());
  CHECK(after[1] == before[1]);
  CHECK(after[2] == before[2]);
  CHECK(after[3] != before[3]);

  net.set_requires_grad(false);
  CHECK(!net(ones({1, 3}, options)).requires_grad());
  sgd.step();  // with gradients from before, and all of it frozen
  CHECK(values(net.state_dict()) == after);
  sgd.zero_grad();
  net.set_requires_grad();
  for (const Tensor& p : parameters) CHECK(!p.grad().defined());
  sum(net(ones({1, 3}, options))).backward();
  for (const Tensor& p : parameters) CHECK(p.grad().defined());
}

DEVICE_TEST("nn: an optimizer follows the module that moves", "[nn]") {
  // The same training, moved in the middle and not.
  const auto train = [&](bool move) {
    manual_seed(5);
    Linear net(3, 2);
    if (!move) net.to(kFloat64).to(device);
    Adam adam(net.parameters(), {.lr = 0.1});
    if (move) net.to(kFloat64).to(device);
    const Tensor x = tensor(noise({4, 3}, 1), {kFloat64, device});
    for (int i = 0; i < 3; ++i) {
      adam.zero_grad();
      sum(net(x) * net(x)).backward();
      adam.step();
    }
    CHECK(adam.steps() == 3);
    for (const auto& [name, tensor] : adam.state_dict()) CHECK(tensor.device() == device);
    return values(net.state_dict());
  };
  CHECK(train(true) == train(false));

  Linear a(3, 2), b(3, 2);
  std::vector<Tensor> both = a.parameters();
  for (const Tensor& p : b.parameters()) both.push_back(p);
  SGD sgd(both, {.lr = 0.1});
  b.to(kFloat64);
  check_throws<DtypeError>([&] { sgd.step(); }, {"SGD", "float32", "float64"});
  // A graph of before the move has gradients of the old kind.
  const Tensor loss = sum(a(ones({1, 3})));
  a.to(kFloat64);
  check_throws<GradError>([&] { loss.backward(); }, {"float64", "float32"});
}

TEST_CASE("nn: what visit forgot is noticed", "[nn]") {
  struct Forgetful : Module {
    Linear listed{2, 2}, forgotten{2, 2};
    Tensor scale = ones({2}).set_requires_grad();
    bool use_scale = false, use_forgotten = false;
    Tensor forward(const Tensor& x) override {
      Tensor y = listed(x);
      if (use_forgotten) y = forgotten(y);
      return use_scale ? y * scale : y;
    }
    void visit(Visitor& v) override { v.module("listed", listed); }
  };
  struct Outer : Module {
    Forgetful inner;
    Tensor forward(const Tensor& x) override { return inner(x); }
    void visit(Visitor& v) override { v.module("inner", inner); }
  } net;
  const Tensor x = ones({1, 2});
  CHECK(net(x).shape() == Shape{1, 2});
  net.inner.use_forgotten = true;
  check_throws<ValueError>([&] { net(x); }, {"Forgetful", "Linear", "visit"});
  {
    const no_grad guard;  // its mode would be forgotten too
    check_throws<ValueError>([&] { net(x); }, {"Forgetful", "Linear"});
  }
  net.inner.use_forgotten = false;
  net.inner.use_scale = true;
  check_throws<ValueError>([&] { net(x); }, {"Forgetful", "mul", "(2,)", "visit"});
  net.inner.scale.set_requires_grad(false);
  CHECK(net(x).requires_grad());
  // An input may be a leaf.
  net.inner.use_scale = false;
  const Tensor input = ones({1, 2}).set_requires_grad();
  sum(net(input)).backward();
  CHECK(input.grad().defined());

  // Layers of a sequence, which may be fused rather than called.
  struct Fused : Module {
    Conv2d conv{1, 2, 3};
    ReLU relu;
    MaxPool2d pool{2};
    Tensor forward(const Tensor& x) override {
      Module* const layers[] = {&conv, &relu, &pool};
      return detail::run_sequence(x, layers);
    }
    void visit(Visitor& v) override {
      v.module("relu", relu);
      v.module("pool", pool);
    }
  } fused;
  check_throws<ValueError>([&] { fused(ones({1, 1, 8, 8})); }, {"Fused", "Conv2d"});
}

TEST_CASE("nn: layers without tensors need not be listed unless they have modes", "[nn]") {
  struct Noise : Module {
    Tensor forward(const Tensor& x) override { return is_training() ? x * 2.0 : x; }
  };
  struct Net : Module {
    Linear fc{2, 2};
    ReLU relu;
    Noise noise;
    bool noisy = false;
    Tensor forward(const Tensor& x) override {
      const Tensor y = ReLU()(relu(fc(x)));
      return noisy ? noise(y) : y;
    }
    void visit(Visitor& v) override { v.module("fc", fc); }
  } net;
  for (int i = 0; i < 2; ++i) CHECK(net(ones({1, 2})).shape() == Shape{1, 2});
  net.noisy = true;
  for (int i = 0; i < 2; ++i)
    check_throws<ValueError>([&] { net(ones({1, 2})); }, {"Net", "Noise", "visit"});
  CHECK(net.noise.is_training());  // outside, nobody is missed
  CHECK(net.noise(ones({2})).to_vector<float>() == std::vector<float>{2, 2});
}

TEST_CASE("nn: a listed tensor is trained unless it was frozen", "[nn]") {
  struct Scale : Module {
    Tensor scale = full({2}, 3), fixed = ones({2}).set_requires_grad(false);
    Tensor forward(const Tensor& x) override { return x * scale * fixed; }
    void visit(Visitor& v) override {
      v.parameter("scale", scale);
      v.parameter("fixed", fixed);
    }
  } net;
  SGD sgd(net.parameters(), {.lr = 1});
  CHECK(net.scale.requires_grad());
  CHECK(!net.fixed.requires_grad());
  sum(net(ones({2}))).backward();
  sgd.step();
  CHECK(net.scale.to_vector<float>() == std::vector<float>{2, 2});
  CHECK(net.fixed.to_vector<float>() == std::vector<float>{1, 1});
  const Scale copy = clone(net);
  CHECK(copy.scale.requires_grad());
  CHECK(!copy.fixed.requires_grad());
  net.scale = net.scale * 2.0;
  check_throws<GradError>([&] { net.parameters(); }, {"Scale", "scale", "detach"});
}

TEST_CASE("nn: the path of an error that passed a level by", "[nn]") {
  struct Block : Module {
    Linear a{2, 3};
    Tensor forward(const Tensor& x) override { return a(x); }
    void visit(Visitor& v) override { v.module("a", a); }
  };
  struct Net : Module {
    Sequential blocks{Block(), Block()};
    Tensor forward(const Tensor& x) override { return blocks[1](blocks[0](x)); }
    void visit(Visitor& v) override { v.module("blocks", blocks); }
  } net;
  try {
    net(ones({1, 2}));
    FAIL("no error");
  } catch (const ShapeError& e) {
    CHECK(std::string(e.what()).starts_with("blocks.1.a: linear: "));
  }
}

DEVICE_TEST("nn: the result of a stack of layers may change in place", "[nn]") {
  manual_seed(4);
  Sequential net(Linear(3, 5), ReLU(), Linear(5, 3));
  net.to(kFloat64).to(device);
  const Tensor x = tensor(noise({4, 3}, 1), {kFloat64, device});
  const auto gradient = [&](bool in_place) {
    net.zero_grad();
    Tensor h = net(x);
    if (in_place)
      h += x;
    else
      h = h + x;
    sum(h * h).backward();
    return net.parameters()[0].grad().clone();
  };
  const Tensor a = gradient(true), b = gradient(false);
  CHECK(same_bits(a, b));
}

TEST_CASE("nn: a network may use another one without owning it", "[nn]") {
  struct Student : Module {
    explicit Student(Module& teacher) : teacher_(teacher) {}
    Linear fc{2, 2};
    Tensor forward(const Tensor& x) override {
      const Tensor target = teacher_.call_apart(x);
      return fc(x) - target;
    }
    void visit(Visitor& v) override { v.module("fc", fc); }

   private:
    Module& teacher_;
  };
  Sequential teacher(Linear(2, 3), ReLU(), Linear(3, 2));
  Student student(teacher);
  CHECK(student.parameters().size() == 2);
  try {
    teacher.call_apart(ones({1, 5}));
    FAIL("no error");
  } catch (const ShapeError& e) {
    CHECK(std::string(e.what()).starts_with("0: linear: "));
  }
  sum(student(ones({1, 2}))).backward();
  CHECK(student.fc.weight.grad().defined());
  // Layers reached through the one that holds them, and one layer used twice.
  struct Direct : Module {
    Sequential layers{Linear(2, 2), ReLU()};
    Tensor forward(const Tensor& x) override { return layers[0](layers(layers[0](x))); }
    void visit(Visitor& v) override { v.module("layers", layers); }
  } direct;
  CHECK(direct(ones({1, 2})).shape() == Shape{1, 2});
}

TEST_CASE("nn: copies of a Sequential", "[nn]") {
  Sequential a(Linear(2, 3), ReLU());
  Sequential b(a);  // of a variable
  CHECK(b.size() == 2);
  CHECK(&b[0] != &a[0]);
  CHECK(b.parameters()[0].is(a.parameters()[0]));  // as a copy of any module shares its tensors
  Sequential net;
  net.append(a).append(b);
  CHECK(net.size() == 2);
  CHECK(net[0].parameters().size() == 2);
  net.eval();
  CHECK(a.is_training());  // it is a copy that was appended
  CHECK(net.parameters().size() == 2);
  net.append(net);
  CHECK(net.size() == 3);
  const Sequential c = a;
  Sequential d(c), e(std::move(d));
  CHECK(e.size() == 2);
  e = a;
  CHECK(e.parameters()[0].is(a.parameters()[0]));

  auto shared = std::make_shared<Linear>(3, 2);
  Sequential pointers(std::make_unique<Linear>(2, 3), std::shared_ptr<Module>(shared));
  CHECK(&pointers[1] == shared.get());
  CHECK(pointers(ones({1, 2})).shape() == Shape{1, 2});
  check_throws<ValueError>([&] { Sequential copy(pointers); }, {"Sequential", "Linear", "copy"});
  check_throws<ValueError>([&] { pointers.append(std::shared_ptr<Linear>()); }, {"null"});
  check_throws<ValueError>([&] { pointers[2]; }, {"Sequential", "2"});
  auto self = std::make_shared<Sequential>();
  check_throws<ValueError>([&] { self->append(self); }, {"Sequential"});
  auto outer = std::make_shared<Sequential>();
  outer->append(self);
  check_throws<ValueError>([&] { self->append(outer); }, {"Sequential"});
  CHECK(Sequential().size() == 0);
}

TEST_CASE("nn: copies and lists of modules know what they hold", "[nn]") {
  struct Net : Sequential {
    Net() : Sequential(Linear(2, 2), ReLU()) {}
    Net(const Net& other) : Sequential(other) {}
  };
  const Net net;
  const Net copy(net);
  CHECK(copy.size() == 2);
  struct Scaled : Linear {
    Scaled() : Linear(2, 2) {}
    Tensor forward(const Tensor& x) override { return Linear::forward(x) * 10.0; }
  } scaled;
  Linear& base = scaled;
  check_throws<ValueError>([&] { clone(base); }, {"clone", "Scaled"});
  check_throws<ValueError>([&] { Sequential().append(base); }, {"append", "Scaled"});
  CHECK(same_bits(clone(scaled)(ones({1, 2})), scaled(ones({1, 2}))));
  struct Holder : Module {
    std::shared_ptr<Module> held;
    Tensor forward(const Tensor& x) override { return (*held)(x); }
    void visit(Visitor& v) override {
      if (held) v.module("held", *held);
    }
  };
  auto outer = std::make_shared<Sequential>();
  auto holder = std::make_shared<Holder>();
  outer->append(holder);
  holder->held = outer;  // a ring
  check_throws<ValueError>([&] { outer->parameters(); }, {"list itself"});
  check_throws<ValueError>([&] { outer->train(); }, {"list itself"});
  holder->held = nullptr;
  // A layer that is used in several places has one of its names.
  auto shared = std::make_shared<Linear>(3, 3);
  Sequential twice(shared, ReLU(), std::shared_ptr<Module>(shared));
  try {
    twice(ones({1, 2}));
    FAIL("no error");
  } catch (const ShapeError& e) {
    CHECK(std::string(e.what()).starts_with("0: linear: "));
  }
  Module* const none[] = {nullptr};
  check_throws<ValueError>(
      [&] {
        detail::run_sequence(ones({1, 2}), none);
      },
      {"run_sequence", "null"});
}

DEVICE_TEST("nn: a clone has tensors of its own", "[nn]") {
  manual_seed(2);
  Scaled net;
  net.to(device);
  net.eval();
  net.layers[0].set_requires_grad(false);
  Scaled copy = clone(net);
  CHECK(values(copy.state_dict()) == values(net.state_dict()));
  CHECK(names(copy.state_dict()) == names(net.state_dict()));
  CHECK(!copy.is_training());
  CHECK(copy.scale.device() == device);
  const auto before = values(net.state_dict());
  const std::vector<Tensor> parameters = copy.parameters();
  CHECK(!parameters[0].requires_grad());
  CHECK(parameters[2].requires_grad());
  CHECK(parameters[2].is_leaf());
  {
    const no_grad guard;
    for (const auto& [name, tensor] : copy.state_dict()) tensor.fill_(9);
  }
  CHECK(values(net.state_dict()) == before);
  CHECK(values(copy.state_dict()) != before);

  Tied tied;
  struct Twice : Module {
    Linear fc{2, 2};
    Tensor forward(const Tensor& x) override { return fc(fc(x)); }
    void visit(Visitor& v) override {
      v.module("a", fc);
      v.module("b", fc);
    }
  } twice;
  Twice again = clone(twice);
  CHECK(again.parameters().size() == 2);
  CHECK(again.state_dict()[0].second.raw() == again.state_dict()[2].second.raw());
  CHECK(again.state_dict()[0].second.raw() != twice.fc.weight.raw());
  const Tied other = clone(tied);
  CHECK(other.encode.weight.is(other.decode.weight));
  CHECK(!other.encode.weight.is(tied.encode.weight));

  struct ByPointer : Module {
    std::shared_ptr<Linear> fc = std::make_shared<Linear>(2, 2);
    Tensor forward(const Tensor& x) override { return (*fc)(x); }
    void visit(Visitor& v) override { v.module("fc", *fc); }
  } shared;
  const Tensor weight = shared.fc->weight;
  check_throws<ValueError>([&] { clone(shared); }, {"clone", "ByPointer", "fc", "Linear"});
  CHECK(shared.fc->weight.is(weight));
}

TEST_CASE("nn: modules print as PyTorch's", "[nn]") {
  CHECK(str(Conv2d(3, 6, 5)) == "Conv2d(3, 6, kernel_size=(5, 5), stride=(1, 1))");
  CHECK(
      str(Conv2d(
          4, 6, Pair(3, 2),
          {.stride = 2, .padding = 1, .dilation = Pair(1, 2), .groups = 2, .bias = false})) ==
      "Conv2d(4, 6, kernel_size=(3, 2), stride=(2, 2), padding=(1, 1), dilation=(1, 2), groups=2, "
      "bias=False)");
  CHECK(str(Linear(3, 2, false)) == "Linear(in_features=3, out_features=2, bias=False)");
  CHECK(str(MaxPool2d(3, 2)) == "MaxPool2d(kernel_size=(3, 3), stride=(2, 2), padding=(0, 0))");
  CHECK(str(Flatten()) == "Flatten(start_dim=1, end_dim=-1)");
  Scaled net;
  CHECK(str(net) ==
        "Scaled(\n"
        "  (layers): Sequential(\n"
        "    (0): Linear(in_features=3, out_features=4, bias=True)\n"
        "    (1): ReLU()\n"
        "    (2): Linear(in_features=4, out_features=2, bias=False)\n"
        "  )\n"
        ")");
  CHECK(str(Sequential()) == "Sequential()");
}

}  // namespace sinter::test
