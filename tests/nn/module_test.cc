// Modules of several inputs, children by name, and hooks.
#include "tests/support/compiled.h"

namespace sinter::test {
namespace {

using Values = std::vector<double>;
Values of(const Tensor& t) { return t.to_vector<double>(); }

struct Masked : ModuleOf<Masked> {
  Linear fc{3, 2};
  Dropout dropout{0.5};
  Tensor forward(const Tensor& x, const Tensor& mask) { return dropout(fc(x)) * mask; }
  void visit(Visitor& v) override {
    v.module("fc", fc);
    v.module("dropout", dropout);
  }
};
struct Outer : ModuleOf<Outer> {
  Masked inner;
  Sequential layers{Linear(2, 2), ReLU()};
  std::pair<Tensor, Tensor> forward(const Tensor& x, const Tensor& mask, double factor = 1) {
    const Tensor y = inner(x, mask);
    return {layers(y), y * factor};
  }
  void visit(Visitor& v) override {
    v.module("inner", inner);
    v.module("layers", layers);
  }
};

}  // namespace

DEVICE_TEST("modules: a forward of several inputs", "[nn]") {
  manual_seed(1);
  Outer net;
  net.to(kFloat64).to(device);
  net.eval();
  CHECK(!net.inner.dropout.is_training());
  const TensorOptions options{kFloat64, device};
  const Tensor x = tensor(noise({4, 3}, 1), options);
  const Tensor mask = tensor({{4, 1}, {1, 0, 1, 1}}, options);
  const Tensor y = linear(x, net.inner.fc.weight, net.inner.fc.bias) * mask;
  CHECK(same_bits(net(x, mask).second, y));
  CHECK(same_bits(net(x, mask, 2.0).second, y * 2.0));
  CHECK(net.state_dict().front().first == "inner.fc.weight");
  check_throws<ShapeError>([&] { net(mask, mask); }, {"inner.fc: linear", "(4, 1)"});
  // A leaf as an input is none that visit forgot.
  const Tensor leaf_mask = ones({4, 1}, options).set_requires_grad();
  sum(net(x, leaf_mask).first).backward();
  CHECK((leaf_mask.grad().defined() && net.inner.fc.weight.grad().defined()));

  auto step = compile([&](const Tensor& a, const Tensor& b) { return net(a, b).first; });
  const Tensor expected = net(x, mask).first.detach();
  for (int i = 0; i < 3; ++i) CHECK(relative_difference(step(x, mask), expected) < 1e-12);
  CHECK(step.stats().recordings == 2);
  const ProgramProfile profile = step.profile();
  CHECK(std::any_of(profile.operators.begin(), profile.operators.end(),
                    [](const OperatorProfile& op) { return op.module == "inner.fc"; }));
  // What the one above does not list is refused, whatever its inputs.
  struct Forgetful : ModuleOf<Forgetful> {
    Masked inner;
    Tensor forward(const Tensor& a, const Tensor& b) { return inner(a, b); }
  } forgetful;
  check_throws<ValueError>([&] { forgetful(ones({1, 3}), ones({1, 1})); }, {"Forgetful", "Masked"});
}

TEST_CASE("modules: children by name and path", "[nn]") {
  Outer net;
  std::vector<std::string> paths;
  for (const auto& [path, module] : net.named_modules()) paths.push_back(path);
  CHECK(paths == std::vector<std::string>{"", "inner", "inner.fc", "inner.dropout", "layers",
                                          "layers.0", "layers.1"});
  CHECK(net.modules().size() == 7);
  CHECK(net.children() == std::vector<ModuleBase*>{&net.inner, &net.layers});
  CHECK(net.named_children()[1].first == "layers");
  CHECK(&net.get_submodule("") == &net);
  CHECK(&net.get_submodule<Linear>("inner.fc") == &net.inner.fc);
  CHECK(&net.get_submodule("layers.0") == &net.layers[0]);
  check_throws<ValueError>([&] { net.get_submodule("inner.fb"); }, {"Outer", "inner.fb", "layers"});
  check_throws<ValueError>([&] { net.get_submodule<Conv2d>("inner.fc"); }, {"Linear", "Conv2d"});
  std::vector<std::string> order;
  net.apply([&](ModuleBase& m) {
    order.push_back(m.type_name());
    if (auto* fc = dynamic_cast<Linear*>(&m)) fc->bias.detach().fill_(0.5);
  });
  CHECK(order == std::vector<std::string>{"Linear", "Dropout", "Masked", "Linear", "ReLU",
                                          "Sequential", "Outer"});
  CHECK(of(net.inner.fc.bias) == Values{0.5, 0.5});
  TransformerEncoder encoder(TransformerEncoderLayer(4, 2, {.dim_feedforward = 4}), 2);
  CHECK(&encoder.get_submodule("layers.1.norm1") == &encoder.layers[1].norm1);
}

DEVICE_TEST("modules: a layer is replaced", "[nn]") {
  Outer net;
  net.to(device);
  net.eval();
  const Tensor x = ones({1, 3}, {kFloat32, device}), mask = ones({1, 1}, {kFloat32, device});
  auto step = compile([&](const Tensor& a) { return net(a, mask).first; });
  const std::vector<Tensor> held = net.parameters();
  const auto check_follows = [&] {
    const Tensor expected = net(x, mask).first.detach();
    for (int i = 0; i < 3; ++i) CHECK(relative_difference(step(x), expected) < 1e-5);
  };
  check_follows();
  net.inner.fc = Linear(3, 2);
  net.to(device);
  net.eval();
  check_follows();
  CHECK(!net.parameters()[0].is(held[0]));
  net.set_submodule("inner.fc", Linear(3, 2));
  net.set_submodule("layers.1", Tanh());
  net.set_submodule("layers.0", Sequential(Linear(2, 5), ReLU(), Linear(5, 1)));
  net.to(device);
  net.eval();
  check_follows();
  CHECK(net(x, mask).first.shape() == Shape{1, 1});
  CHECK(net.state_dict().back().first == "layers.0.2.bias");
  net.layers.append("last", Tanh());
  check_follows();
  check_throws<ValueError>([&] { net.set_submodule("inner.fc", ReLU()); },
                           {"set_submodule", "inner.fc", "Linear", "ReLU"});
  check_throws<ValueError>([&] { net.set_submodule("fc", ReLU()); }, {"Outer", "fc", "inner"});
}

TEST_CASE("modules: a Sequential by name", "[nn]") {
  Sequential net({{"fc", Linear(2, 3)}, {"act", ReLU()}});
  net.append("out", std::make_shared<Linear>(3, 1));
  CHECK(net.state_dict()[2].first == "out.weight");
  CHECK(net(ones({1, 2})).shape() == Shape{1, 1});
  check_throws<ValueError>([&] { net.append("fc", ReLU()); }, {"append", "fc"});
  check_throws<ValueError>([&] { net.append("a.b", ReLU()); }, {"append", "a.b"});
  CHECK(Sequential(net).state_dict().size() == 4);
}

DEVICE_TEST("modules: forward hooks read and replace", "[nn]") {
  const Tensor x = ones({2}, {kFloat32, device});
  Sequential net{Identity(), Identity()};
  HookHandle pre = net[0].register_forward_pre_hook(
      [](ModuleBase&, std::vector<Tensor>& inputs) { inputs[0] = inputs[0] * 2.0; });
  int calls = 0;
  HookHandle post = net[1].register_forward_hook(
      [&](ModuleBase& module, const std::vector<Tensor>& inputs, const Tensor& output) {
        ++calls;
        CHECK(module.type_name() == "Identity");
        CHECK(inputs.at(0).is(output));
        return output + 1.0;
      });
  HookHandle reads = net.register_forward_hook(
      [&](ModuleBase&, const std::vector<Tensor>&, const Tensor&) { return Tensor(); });
  CHECK(of(net(x)) == Values{3, 3});
  Sequential copy(net);
  auto step = compile([&](const Tensor& t) { return net(t); });
  for (int i = 0; i < 3; ++i) CHECK(of(step(x)) == Values{3, 3});
  pre.remove();
  pre.remove();
  for (int i = 0; i < 3; ++i) CHECK(of(step(x)) == Values{2, 2});
  post.remove();
  reads.remove();
  CHECK(of(net(x)) == Values{1, 1});
  CHECK(of(copy(x)) == Values{3, 3});
  CHECK(calls > 0);

  Masked masked;
  masked.eval();
  masked.register_forward_pre_hook([](ModuleBase&, std::vector<Tensor>& inputs) {
    CHECK(inputs.size() == 2);
    inputs[1] = zeros_like(inputs[1]);
  });
  CHECK(of(masked(ones({1, 3}), ones({1, 1}))) == Values{0, 0});
  check_throws<ValueError>([&] { net.register_forward_hook(nullptr); }, {"null"});
  masked.register_forward_pre_hook(
      [](ModuleBase&, std::vector<Tensor>& inputs) { inputs.pop_back(); });
  check_throws<ValueError>([&] { masked(ones({1, 3}), ones({1, 1})); }, {"pre-hook", "Masked"});
  Outer outer;
  outer.register_forward_hook(
      [](ModuleBase&, const std::vector<Tensor>&, const Tensor& y) { return y; });
  check_throws<ValueError>([&] { outer(ones({1, 3}), ones({1, 1})); }, {"Outer", "one tensor"});
}

}  // namespace sinter::test
