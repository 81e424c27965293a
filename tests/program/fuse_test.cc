// What the fuse pass finds in programs, and that nothing else changes with it: values that are
// held, read, changed and used twice in between.
#include <sinter/models.h>

#include <memory>

#include "core/base/detail.h"
#include "tests/support/compiled.h"

namespace sinter::test {
namespace {

using app::conv2d_relu_pool;
using app::mlp;

std::vector<Tensor> linear_weights(const Sizes& widths, TensorOptions options, uint64_t seed) {
  std::vector<Tensor> weights;
  for (size_t l = 0; l + 1 < widths.size(); ++l)
    weights.push_back(leaf(oracle::map(noise({widths[l + 1], widths[l]}, seed + l),
                                       [&](double v) {
                                         return static_cast<float>(
                                             v * std::sqrt(3 / static_cast<double>(widths[l])));
                                       }),
                           options));
  return weights;
}
std::vector<Tensor> linear_biases(const Sizes& widths, TensorOptions options, uint64_t seed) {
  std::vector<Tensor> biases;
  for (size_t l = 1; l < widths.size(); ++l)
    biases.push_back(leaf(noise({widths[l]}, seed + l), options));
  return biases;
}

// Images through a convolution, ReLU, pooling and two linear layers, whose logits have labels. What
// is of interest in between is passed to `meet`, which may return what goes on.
struct Net {
  using Meet = std::function<void(const std::string& name, const Tensor& value)>;

  explicit Net(TensorOptions options, bool bias = true)
      : x(tensor(noise({6, 2, 12, 12}, 1), options)),
        conv(leaf(noise({4, 2, 3, 3}, 2), options)),
        conv_bias(bias ? leaf(noise({4}, 3), options) : Tensor()),
        w1(linear_weights({100, 16}, options, 4)[0]),
        b1(leaf(noise({16}, 5), options)),
        w2(linear_weights({16, 10}, options, 6)[0]),
        b2(leaf(noise({10}, 7), options)),
        labels(from_vector(app::random_labels(6, 10, 8), {6}, options.device)) {}

  std::vector<Tensor> leaves() const {
    std::vector<Tensor> all = {conv, w1, b1, w2, b2};
    if (conv_bias.defined()) all.push_back(conv_bias);
    if (x.requires_grad()) all.push_back(x);
    return all;
  }
  // The logits.
  Tensor forward(const Meet& meet = {}) const {
    const auto met = [&](const char* name, const Tensor& value) {
      if (meet) meet(name, value);
      return value;
    };
    const Tensor z = met("z", conv2d(x, conv, conv_bias));
    const Tensor r = met("r", relu(z));
    const Tensor p = met("p", max_pool2d(r, 2));
    const Tensor z1 = met("z1", linear(flatten(p, 1), w1, b1));
    const Tensor h = met("h", relu(z1));
    return met("y", linear(h, w2, b2));
  }
  // The loss and the gradients.
  Results step(const Meet& meet = {}, const CrossEntropyOptions& options = {}) const {
    drop_gradients(leaves());
    const Tensor loss = cross_entropy(forward(meet), labels, options);
    loss.backward();
    Results all = gradients_of(leaves());
    all.push_back(loss);
    return all;
  }

  Tensor x, conv, conv_bias, w1, b1, w2, b2, labels;
};

const char* const kConvParts[] = {
    "conv2d_forward",          "relu_forward",  "max_pool2d_forward", "conv2d_backward_data",
    "conv2d_backward_weights", "relu_backward", "max_pool2d_backward"};

// On a CPU every layer of these tests has fused kernels.
void check_all_fused(Device device, const Work& f, int64_t mlps = 1) {
  if (device.is_cuda()) return;
  const auto operators = operators_of(f);
  INFO(text(operators));
  for (const char* part : kConvParts) {
    INFO(part);
    CHECK(count(operators, part) == 0);
  }
  CHECK(count(operators, "conv2d_relu_pool_forward") == 1);
  CHECK(count(operators, "conv2d_relu_pool_backward") == 1);
  for (const char* name : {"mlp_forward", "mlp_backward_chain", "mlp_backward_weights"})
    CHECK(count(operators, name) == mlps);
  for (const char* name : {"linear_forward", "linear_backward_data", "linear_backward_weights"})
    CHECK(count(operators, name) == 0);
}

}  // namespace

DEVICE_TEST("fuse: a step computes what its parts do", "[fuse]") {
  for (const DType dtype : {kFloat32, kFloat64})
    for (const bool bias : {true, false})
      for (const bool needs_dx : {false, true}) {
        INFO(dtype << " bias " << bias << " dx " << needs_dx);
        Net net({dtype, device}, bias);
        net.x.set_requires_grad(needs_dx);
        const Work step = [&] { return net.step(); };
        check_all_fused(device, step);
        check_compiled(step);
      }
}

DEVICE_TEST("fuse: label smoothing and sums", "[fuse]") {
  const Net net({kFloat32, device});
  for (const CrossEntropyOptions& options :
       {CrossEntropyOptions{.label_smoothing = 0.1},
        {.reduction = Reduction::kSum},
        {.reduction = Reduction::kSum, .label_smoothing = 0.3}}) {
    const Work step = [&] { return net.step({}, options); };
    check_all_fused(device, step);
    check_compiled(step);
  }
}

DEVICE_TEST("fuse: a Sequential and free functions are the same program", "[fuse]") {
  manual_seed(3);
  Sequential layers(Conv2d(2, 4, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(100, 16), ReLU(),
                    Linear(16, 12), ReLU(), Linear(12, 10));
  layers.to(device);
  const Tensor x = tensor(noise({6, 2, 12, 12}, 1), {kFloat32, device});
  const Tensor labels = from_vector(app::random_labels(6, 10, 8), {6}, device);
  const std::vector<Tensor> p = layers.parameters();
  const auto step = [&](const Tensor& logits) {
    const Tensor loss = cross_entropy(logits, labels);
    loss.backward();
    Results all = gradients_of(p);
    all.push_back(loss);
    return all;
  };
  const Work in_sequence = [&] {
    drop_gradients(p);
    return step(layers(x));
  };
  const Work written_out = [&] {
    drop_gradients(p);
    Tensor y = relu(conv2d(x, p[0], p[1]));
    y = max_pool2d(y, 2).reshape({6, 100});
    const Tensor h = relu(linear(y, p[2], p[3]));
    return step(linear(relu(linear(h, p[4], p[5])), p[6], p[7]));
  };
  const List a = program_of(in_sequence), b = program_of(written_out);
  INFO(text(operators_of(a)) << "\n" << text(operators_of(b)));
  Matching matching(a, b);
  CHECK(difference(a, b, matching) == "");
  check_all_fused(device, in_sequence);
  check_same_bits(check_compiled(in_sequence), check_compiled(written_out));
}

DEVICE_TEST("fuse: a step of CifarCnn has two fused layers and one chain", "[fuse]") {
  manual_seed(3);
  CifarCnn net;
  net.to(device);
  const Tensor x = tensor(noise({5, 3, 32, 32}, 1), {kFloat32, device});
  const Tensor labels = from_vector(app::random_labels(5, 10, 8), {5}, device);
  const Work step = [&] {
    net.zero_grad();
    const Tensor loss = cross_entropy(net(x), labels);
    loss.backward();
    Results all = gradients_of(net.parameters());
    all.push_back(loss);
    return all;
  };
  const auto operators = operators_of(step);
  INFO(text(operators));
  CHECK(count(operators, "conv2d_relu_pool_forward") == 2);
  CHECK(count(operators, device.is_cuda() ? "conv2d_relu_pool_backward_weights"
                                          : "conv2d_relu_pool_backward") == 2);
  // Not on every GPU.
  const op::MlpShape layers{.n = 5, .layers = 3, .width = {400, 120, 84, 10}};
  const int chains = with_context(
      device, [&](const auto& ctx) { return mlp_fits(ctx, layers, kFloat32) ? 1 : 0; });
  CHECK((chains == 1 || device.is_cuda()));
  CHECK(count(operators, "mlp_forward") == chains);
  CHECK(count(operators, "mlp_backward_chain") == chains);
  CHECK(count(operators, "mlp_backward_weights") == chains);
  // ReLUs stay between linear layers that are no chain.
  for (const char* part : kConvParts)
    if (chains == 1) CHECK(count(operators, part) == 0);
  check_compiled(step);
}

// ---- values in between --------------------------------------------------------------------------

DEVICE_TEST("fuse: values that are held change nothing else", "[fuse]") {
  const Net net({kFloat32, device});
  const Results alone = copies(compiled([&] { return net.step(); }));
  const Results eager = [&] {
    Results all;
    net.step([&](const std::string&, const Tensor& value) { all.push_back(value.detach()); });
    return copies(all);
  }();
  size_t k = 0;
  for (const char* name : {"z", "r", "p", "z1", "h", "y"}) {
    INFO(name);
    const Work holding = [&] {
      Tensor held;
      Results all = net.step([&](const std::string& what, const Tensor& value) {
        if (what == name) held = value.detach();
      });
      all.push_back(held);
      return all;
    };
    Results all = check_compiled(holding);
    check_close_results({all.back()}, {eager[k++]});
    all.pop_back();
    check_same_bits(all, alone);
  }
  // All of them at once.
  Results all = check_compiled([&] {
    Results held;
    Results results =
        net.step([&](const std::string&, const Tensor& value) { held.push_back(value.detach()); });
    results.insert(results.end(), held.begin(), held.end());
    return results;
  });
  check_close_results(Results(all.begin() + static_cast<std::ptrdiff_t>(alone.size()), all.end()),
                      eager);
  all.resize(alone.size());
  check_same_bits(all, alone);
}

DEVICE_TEST("fuse: readers of a value change nothing else", "[fuse]") {
  const Net net({kFloat32, device});
  const Results alone = copies(compiled([&] { return net.step(); }));
  for (const char* name : {"z", "r", "p", "z1", "h", "y"})
    for (const int when : {0, 1, 2, 3}) {  // at once, behind the forward and the backward pass, all
      INFO(name << ' ' << when);
      const Work reading = [&] {
        Tensor value, at_once, behind_forward, behind_backward;
        const auto read = [&](int moment) {
          return when == moment || when == 3 ? sum(value * value) : Tensor();
        };
        drop_gradients(net.leaves());
        const Tensor logits = net.forward([&](const std::string& what, const Tensor& t) {
          if (what != name) return;
          value = t.detach();
          at_once = read(0);
        });
        behind_forward = read(1);
        const Tensor loss = cross_entropy(logits, net.labels);
        loss.backward();
        behind_backward = read(2);
        Results all = gradients_of(net.leaves());
        for (const Tensor& t : {loss, at_once, behind_forward, behind_backward}) all.push_back(t);
        return all;
      };
      Results all = check_compiled(reading);
      all.resize(alone.size());
      check_same_bits(all, alone);
    }
}

DEVICE_TEST("fuse: values that are changed in place after their use", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Net net(options);
  const Results alone = copies(compiled([&] { return net.step(); }));
  for (const char* name : {"z", "r", "p", "z1", "h", "y"}) {
    INFO(name);
    // Behind the backward pass.
    Results all = check_compiled([&] {
      Tensor held;
      Results results = net.step([&](const std::string& what, const Tensor& value) {
        if (what == name) held = value.detach();
      });
      held.fill_(7);
      results.push_back(held);
      return results;
    });
    check_close("changed value", all.back(),
                filled(Sizes(all.back().shape().begin(), all.back().shape().end()), 7), 0);
    all.pop_back();
    check_same_bits(all, alone);
  }
  // Before it, where no derivative needs the value.
  const Tensor x = net.x, dy = tensor(noise({6, 4, 5, 5}, 9), options);
  const std::vector<Tensor> leaves = {net.conv, net.conv_bias};
  const auto pooled = [&](int changed) {
    return [&, changed] {
      drop_gradients(leaves);
      const Tensor z = conv2d(x, net.conv, net.conv_bias), r = relu(z), p = max_pool2d(r, 2);
      const Tensor y = p + 0.0;
      if (changed == 1) z.detach().fill_(5);
      if (changed == 2) p.detach().fill_(-5);
      y.backward(dy);
      Results all = gradients_of(leaves);
      all.push_back(y);
      if (changed == 1) all.push_back(z);
      if (changed == 2) all.push_back(p);
      return all;
    };
  };
  const Results unchanged = check_compiled(pooled(0));
  for (const int changed : {1, 2}) {
    INFO(changed);
    const Results all = check_compiled(pooled(changed));
    check_close_results(Results(all.begin(), all.begin() + 3), unchanged);
    CHECK(all[3].to_vector<float>()[3] == (changed == 1 ? 5 : -5));
  }
  // The result of a linear layer before its ReLU, and the logits.
  const std::vector<Tensor> w = linear_weights({20, 12, 8}, options, 1),
                            b = linear_biases({20, 12, 8}, options, 5);
  const Tensor rows = tensor(noise({7, 20}, 3), options), up = tensor(noise({7, 8}, 4), options);
  check_compiled([&] {
    drop_gradients({w[0], w[1], b[0], b[1]});
    const Tensor z = linear(rows, w[0], b[0]), h = relu(z), y = linear(h, w[1], b[1]);
    z.detach().fill_(3);
    const Tensor total = sum(y.detach());
    y.detach().fill_(2);
    y.backward(up);
    return Results{z, h, y, total, w[0].grad(), w[1].grad(), b[0].grad(), b[1].grad()};
  });
}

DEVICE_TEST("fuse: a value with another reader that has a gradient", "[fuse]") {
  const Net net({kFloat32, device});
  for (const char* name : {"z", "r", "p", "z1", "h", "y"})
    for (const bool before : {true, false}) {
      INFO(name << ' ' << before);
      check_compiled([&] {
        drop_gradients(net.leaves());
        Tensor value, other;
        const Tensor logits = net.forward([&](const std::string& what, const Tensor& t) {
          if (what != name) return;
          value = t;
          if (before) other = sum(value * value);
        });
        if (!before) other = sum(value * value);
        const Tensor loss = cross_entropy(logits, net.labels);
        (before ? other + loss : loss + other).backward();
        Results all = gradients_of(net.leaves());
        all.push_back(loss);
        all.push_back(other);
        return all;
      });
    }
}

DEVICE_TEST("fuse: weights that are changed in between", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Net net(options);
  const Net fresh(options);  // the values to begin with
  const auto change = [](const Tensor& t) {
    const no_grad guard;
    t.copy_(t * -2.0 + 0.25);
  };
  // What no derivative needs: biases, and the weights of the first layer.
  for (const std::string at : {"z", "r", "p", "z1", "h", "y"})
    for (const bool of_conv : {true, false}) {
      INFO(at << ' ' << of_conv);
      check_compiled([&] {
        const auto leaves = net.leaves(), first = fresh.leaves();
        {
          const no_grad guard;
          for (size_t i = 0; i < leaves.size(); ++i) leaves[i].copy_(first[i]);
        }
        Results all = net.step([&](const std::string& what, const Tensor&) {
          if (what != at) return;
          if (of_conv) {
            change(net.conv);
            change(net.conv_bias);
          } else {
            change(net.b1);
            change(net.b2);
          }
        });
        for (const Tensor& t : net.leaves()) all.push_back(t.detach() * 1.0);
        return all;
      });
    }
  // Those of a chain without a gradient of its input.
  const std::vector<Tensor> w = linear_weights({20, 12, 8, 5}, options, 1),
                            b = linear_biases({20, 12, 8, 5}, options, 5);
  const Tensor x = tensor(noise({7, 20}, 3), options), start = w[0].detach().clone(),
               dy = tensor(noise({7, 5}, 4), options);
  for (const int at : {0, 1, 2, 3}) {
    INFO(at);
    check_compiled([&] {
      {
        const no_grad guard;
        w[0].copy_(start);
      }
      drop_gradients({w[0], w[1], w[2], b[0], b[1], b[2]});
      Tensor y = x;
      for (size_t l = 0; l < 3; ++l) {
        y = linear(y, w[l], b[l]);
        if (at == static_cast<int>(l)) change(w[0]);
        if (l < 2) y = relu(y);
      }
      if (at == 3) change(w[0]);
      y.backward(dy);
      return Results{y,           w[0].grad(), w[1].grad(), w[2].grad(),
                     b[0].grad(), b[1].grad(), b[2].grad()};
    });
  }
  // What a derivative needs must not change, recorded or not.
  for (const app::Mode mode : app::kModes)
    check_throws<GradError>(
        [&] {
          run_as(mode, [&] {
            return net.step([&](const std::string& what, const Tensor&) {
              if (what == "y") change(net.w2);
            });
          });
        },
        {"changed in place"});
}

// ---- gradients ----------------------------------------------------------------------------------

DEVICE_TEST("fuse: gradients that are there grow", "[fuse]") {
  const Net net({kFloat32, device});
  const std::vector<Tensor> leaves = net.leaves();
  const Work step = [&] {
    drop_gradients(leaves);
    for (const Tensor& t : leaves) t.set_grad(full_like(t, 0.5));
    for (int i = 0; i < 2; ++i) cross_entropy(net.forward(), net.labels).backward();
    return gradients_of(leaves);
  };
  check_compiled(step);
  // From outside, call by call.
  std::vector<Results> grown;
  for (const app::Mode mode : app::kModes) {
    const Net other({kFloat32, device});
    for (const Tensor& t : other.leaves()) t.set_grad(full_like(t, 0.5));
    const auto add = [&] { cross_entropy(other.forward(), other.labels).backward(); };
    auto program = compile(add);
    for (int i = 0; i < 4; ++i) {
      if (mode == app::Mode::kCompiled)
        program();
      else
        add();
    }
    grown.push_back(copies(gradients_of(other.leaves())));
  }
  check_close_results(grown[1], grown[0]);
  // Of one layer only.
  for (const Tensor& there : leaves) {
    check_compiled([&] {
      drop_gradients(leaves);
      there.set_grad(full_like(there, 0.5));
      cross_entropy(net.forward(), net.labels).backward();
      return gradients_of(leaves);
    });
  }
}

DEVICE_TEST("fuse: frozen layers", "[fuse]") {
  for (unsigned frozen = 1; frozen < 64; ++frozen) {
    INFO("frozen " << frozen);
    const Net net({kFloat32, device});
    const std::vector<Tensor> leaves = net.leaves();
    for (size_t i = 0; i < leaves.size(); ++i) leaves[i].set_requires_grad((frozen >> i & 1) == 0);
    if (frozen == 63) net.x.set_requires_grad();
    check_compiled([&] { return net.step(); });
  }
  const TensorOptions options{kFloat64, device};
  const Sizes widths = {9, 8, 7, 6, 5};
  const std::vector<Tensor> w = linear_weights(widths, options, 1),
                            b = linear_biases(widths, options, 9);
  const Tensor x = tensor(noise({6, 9}, 3), options), dy = tensor(noise({6, 5}, 4), options);
  for (unsigned frozen = 0; frozen < 16; ++frozen)
    for (const bool needs_dx : {false, true}) {
      if (frozen == 15 && !needs_dx) continue;
      INFO("frozen " << frozen << " dx " << needs_dx);
      x.set_requires_grad(needs_dx);
      for (size_t l = 0; l < 4; ++l) {
        w[l].set_requires_grad((frozen >> l & 1) == 0);
        b[l].set_requires_grad((frozen >> l & 1) == 0);
      }
      std::vector<Tensor> leaves = w;
      leaves.insert(leaves.end(), b.begin(), b.end());
      leaves.push_back(x);
      check_compiled([&] {
        drop_gradients(leaves);
        const Tensor y = mlp(x, w, b);
        y.backward(dy);
        Results all = gradients_of(leaves);
        all.push_back(y);
        return all;
      });
    }
}

DEVICE_TEST("fuse: two losses", "[fuse]") {
  const Net net({kFloat32, device});
  const std::vector<Tensor> leaves = net.leaves();
  const auto results = [&](const Tensor& a, const Tensor& b) {
    Results all = gradients_of(leaves);
    all.push_back(a);
    all.push_back(b);
    return all;
  };
  check_compiled([&] {  // one backward pass
    drop_gradients(leaves);
    const Tensor y = net.forward();
    const Tensor a = cross_entropy(y, net.labels), b = sum(y * y);
    (a + b * 0.1).backward();
    return results(a, b);
  });
  check_compiled([&] {  // two
    drop_gradients(leaves);
    const Tensor y = net.forward();
    const Tensor a = cross_entropy(y, net.labels), b = sum(y * y);
    a.backward(true);
    b.backward();
    return results(a, b);
  });
  check_compiled([&] {  // of two forward passes
    drop_gradients(leaves);
    const Tensor a = cross_entropy(net.forward(), net.labels);
    const Tensor b = cross_entropy(net.forward(), net.labels, {.label_smoothing = 0.2});
    b.backward();
    a.backward();
    return results(a, b);
  });
  check_compiled([&] {  // two heads on one body
    drop_gradients(leaves);
    Tensor h;
    const Tensor y = net.forward([&](const std::string& what, const Tensor& value) {
      if (what == "h") h = value;
    });
    const Tensor a = cross_entropy(y, net.labels);
    const Tensor b = cross_entropy(linear(h, net.w2 * 0.5, net.b2), net.labels);
    (a + b).backward();
    return results(a, b);
  });
}

DEVICE_TEST("fuse: a second backward pass through one graph", "[fuse]") {
  const Net net({kFloat32, device});
  const std::vector<Tensor> leaves = net.leaves();
  check_compiled([&] {
    drop_gradients(leaves);
    const Tensor loss = cross_entropy(net.forward(), net.labels);
    loss.backward(true);
    const Results first = gradients_of(leaves);
    Results all;
    for (const Tensor& g : first) all.push_back(g * 1.0);
    loss.backward();
    for (const Tensor& g : gradients_of(leaves)) all.push_back(g);
    return all;
  });
  check_compiled([&] {  // the second time as the first
    drop_gradients(leaves);
    const Tensor loss = cross_entropy(net.forward(), net.labels);
    loss.backward(true);
    drop_gradients(leaves);
    loss.backward();
    return gradients_of(leaves);
  });
}

DEVICE_TEST("fuse: gradients that are returned and held", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Net net(options);
  Tensor scale = ones({}, options);
  auto step = compile([&] {
    net.w1.set_grad({});
    sum(net.forward() * scale).backward();
    return net.w1.grad();
  });
  for (int i = 1; i <= 6; ++i) {
    INFO(i);
    scale.fill_(i);
    const Tensor returned = step();
    net.w1.set_grad(net.w1.grad());
    CHECK(same_bits(returned, net.w1.grad()));
    const std::vector<double> now = returned.to_vector<double>();
    net.w1.set_grad({});
    sum(net.forward() * scale).backward();
    check_close_results({from_vector(now, returned.shape(), device).to(kFloat32)}, {net.w1.grad()});
  }
}

// ---- chains of linear layers --------------------------------------------------------------------

DEVICE_TEST("fuse: chains of many layers", "[fuse]") {
  struct Case {
    int64_t layers;
    int64_t forward, chains, alone;  // operators of a CPU's program: the last counts linear layers
  };
  for (const Case& c : {Case{1, 0, 0, 1},
                        {2, 1, 1, 0},
                        {3, 1, 1, 0},
                        {8, 1, 1, 0},
                        {9, 1, 1, 1},
                        {10, 2, 2, 0},
                        {17, 2, 2, 1}})
    for (const bool relu_last : {false, true})
      for (const bool needs_dx : {false, true}) {
        INFO(c.layers << " layers, ReLU last " << relu_last << " dx " << needs_dx);
        const TensorOptions options{kFloat64, device};
        Sizes widths;
        for (int64_t l = 0; l <= c.layers; ++l) widths.push_back(12 + l % 5);
        const std::vector<Tensor> w = linear_weights(widths, options, 1),
                                  b = linear_biases(widths, options, 40);
        const Tensor x = tensor(noise({6, widths.front()}, 3), options);
        const Tensor dy = tensor(noise({6, widths.back()}, 4), options);
        x.set_requires_grad(needs_dx);
        std::vector<Tensor> leaves = w;
        leaves.insert(leaves.end(), b.begin(), b.end());
        leaves.push_back(x);
        const Work f = [&] {
          drop_gradients(leaves);
          const Tensor y = mlp(x, w, b, relu_last);
          y.backward(dy);
          Results all = gradients_of(leaves);
          all.push_back(y);
          return all;
        };
        check_compiled(f);
        if (device.is_cuda()) continue;
        const auto operators = operators_of(f);
        INFO(text(operators));
        CHECK(count(operators, "mlp_forward") == c.forward);
        CHECK(count(operators, "mlp_backward_chain") == c.chains);
        CHECK(count(operators, "mlp_backward_weights") == c.chains);
        CHECK(count(operators, "linear_forward") == c.alone);
        CHECK(count(operators, "linear_backward_weights") == c.alone);
      }
}

DEVICE_TEST("fuse: chains with a layer without bias", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Sizes widths = {10, 9, 8, 7};
  for (size_t without = 0; without < 3; ++without) {
    INFO(without);
    const std::vector<Tensor> w = linear_weights(widths, options, 1);
    std::vector<Tensor> b = linear_biases(widths, options, 40);
    b[without] = Tensor();
    const Tensor x = tensor(noise({6, 10}, 3), options), dy = tensor(noise({6, 7}, 4), options);
    std::vector<Tensor> leaves = w;
    for (const Tensor& t : b)
      if (t.defined()) leaves.push_back(t);
    const Work f = [&] {
      drop_gradients(leaves);
      const Tensor y = mlp(x, w, b);
      y.backward(dy);
      Results all = gradients_of(leaves);
      all.push_back(y);
      return all;
    };
    check_compiled(f);
    if (!device.is_cuda()) CHECK(count(operators_of(f), "mlp_forward") == 1);
  }
}

DEVICE_TEST("fuse: tied weights", "[fuse]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor w = linear_weights({12, 12}, options, 1)[0], b = leaf(noise({12}, 2), options);
    const Tensor x = tensor(noise({6, 12}, 3), options), dy = tensor(noise({6, 12}, 4), options);
    for (const size_t times : {2, 3, 9}) {
      INFO(times << " times");
      check_compiled([&] {
        drop_gradients({w, b});
        const Tensor y = mlp(x, std::vector<Tensor>(times, w), std::vector<Tensor>(times, b));
        y.backward(dy);
        return Results{y, w.grad(), b.grad()};
      });
    }
    // The same layer on two inputs, and behind itself.
    const Tensor other = tensor(noise({6, 12}, 5), options);
    check_compiled([&] {
      drop_gradients({w, b});
      const Tensor left = relu(linear(x, w, b)), right = relu(linear(other, w, b));
      const Tensor y = linear(left, w, b) * linear(right, w, b);
      y.backward(dy);
      return Results{y, left, w.grad(), b.grad()};
    });
  }
}

DEVICE_TEST("fuse: layers with other shapes in between", "[fuse]") {
  // The same elements as more or fewer rows: not what a chain's kernels compute.
  const TensorOptions options{kFloat32, device};
  const Tensor x = tensor(noise({8, 10}, 1), options);
  for (const bool is_last : {false, true}) {
    INFO(is_last);
    const Sizes inner = is_last ? Sizes{10, 12, 8} : Sizes{10, 8};
    const std::vector<Tensor> w = linear_weights(inner, options, 1),
                              b = linear_biases(inner, options, 9);
    const std::vector<Tensor> v = linear_weights({4, 5, 3}, options, 20),
                              c = linear_biases({4, 5, 3}, options, 30);
    const Tensor dy = tensor(noise({16, 3}, 4), options);
    std::vector<Tensor> leaves = w;
    for (const auto* more : {&b, &v, &c}) leaves.insert(leaves.end(), more->begin(), more->end());
    check_compiled([&] {
      drop_gradients(leaves);
      const Tensor h = mlp(x, w, b, true).reshape({16, 4});
      const Tensor y = mlp(h, v, c);
      y.backward(dy);
      Results all = gradients_of(leaves);
      all.push_back(y);
      return all;
    });
  }
  // Rows of a layer's result, and the logits as more rows.
  const std::vector<Tensor> w = linear_weights({10, 12, 6}, options, 1),
                            b = linear_biases({10, 12, 6}, options, 9);
  const Tensor labels = from_vector(app::random_labels(16, 3, 8), {16}, device);
  check_compiled([&] {
    drop_gradients({w[0], w[1], b[0], b[1]});
    const Tensor h = relu(linear(x, w[0], b[0])).narrow(0, 2, 4);
    const Tensor y = sum(linear(h, w[1], b[1]));
    y.backward();
    return Results{y, w[0].grad(), w[1].grad(), b[0].grad(), b[1].grad()};
  });
  check_compiled([&] {
    drop_gradients({w[0], w[1], b[0], b[1]});
    const Tensor loss = cross_entropy(mlp(x, w, b).reshape({16, 3}), labels);
    loss.backward();
    return Results{loss, w[0].grad(), w[1].grad(), b[0].grad(), b[1].grad()};
  });
  // With leading dimensions all the way: those are rows.
  const Tensor cube = tensor(noise({2, 3, 10}, 5), options);
  const Work f = [&] {
    drop_gradients({w[0], w[1], b[0], b[1]});
    const Tensor y = mlp(cube, w, b);
    y.backward(ones_like(y));
    return Results{y, w[0].grad(), w[1].grad(), b[0].grad(), b[1].grad()};
  };
  check_compiled(f);
  if (!device.is_cuda()) CHECK(count(operators_of(f), "mlp_backward_weights") == 1);
}

DEVICE_TEST("fuse: linear layers without a ReLU between them are apart", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const std::vector<Tensor> w = linear_weights({10, 9, 8}, options, 1);
  const Tensor x = tensor(noise({6, 10}, 3), options), dy = tensor(noise({6, 8}, 4), options);
  const Work f = [&] {
    drop_gradients(w);
    const Tensor y = linear(linear(x, w[0]), w[1]);
    y.backward(dy);
    return Results{y, w[0].grad(), w[1].grad()};
  };
  check_same_bits(check_compiled(f), f());
  const auto operators = operators_of(f);
  INFO(text(operators));
  CHECK(count(operators, "linear_forward") == 2);
  CHECK(count(operators, "mlp_forward") == 0);
}

// ---- pooling ------------------------------------------------------------------------------------

DEVICE_TEST("fuse: pooling of other windows is apart", "[fuse]") {
  struct Case {
    Pair kernel;
    MaxPool2dOptions options;
  };
  for (const DType dtype : {kFloat32, kFloat64})
    for (const Case& c : {Case{3, {}},
                          {2, {.stride = 1}},
                          {3, {.stride = 2, .padding = 1}},
                          {Pair(2, 3), {}},
                          {2, {.stride = Pair(2, 1)}},
                          {2, {.padding = 1}},
                          {Pair(1, 2), {.stride = Pair(2, 2)}},
                          {2, {.dilation = 2}},
                          {2, {.stride = 2, .ceil_mode = true}},
                          {1, {.stride = 3}}}) {
      INFO(dtype << " kernel " << c.kernel.h << ", " << c.kernel.w);
      const TensorOptions options{dtype, device};
      const Net net(options);
      const std::vector<Tensor> leaves = {net.conv, net.conv_bias};
      // Integers: many ties and zeros.
      for (const bool ties : {false, true}) {
        INFO("ties " << ties);
        const Tensor x = tensor(
            ties ? oracle::integers({3, 2, 11, 12}, 1, 2) : noise({3, 2, 11, 12}, 1), options);
        if (ties) {
          const no_grad guard;
          net.conv.copy_(tensor(oracle::integers({4, 2, 3, 3}, 2, 1), options));
          net.conv_bias.fill_(-1);
        }
        const Work f = [&] {
          drop_gradients(leaves);
          const Tensor y =
              max_pool2d(relu(conv2d(x, net.conv, net.conv_bias)), c.kernel, c.options);
          (y * y).backward(ones_like(y));
          return Results{y, net.conv.grad(), net.conv_bias.grad()};
        };
        check_same_bits(check_compiled(f), f());
        const PassesOff parts("-elementwise");
        const auto operators = operators_of(f);
        INFO(text(operators));
        CHECK(count(operators, "conv2d_forward") == 1);
        const auto relu_at =
            std::find(operators.begin(), operators.end(), std::string("relu_backward"));
        REQUIRE(relu_at != operators.end());
        CHECK(std::find(relu_at, operators.end(), std::string("max_pool2d_backward")) !=
              operators.end());
        CHECK(count(operators, "relu_backward") == 1);
        CHECK(count(operators, "max_pool2d_backward") == 1);
      }
    }
}

DEVICE_TEST("fuse: what only resembles a convolution with ReLU and pooling", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Net net(options);
  const std::vector<Tensor> leaves = {net.conv, net.conv_bias};
  const auto check = [&](const std::string& what, const std::function<Tensor()>& y) {
    INFO(what);
    check_compiled([&] {
      drop_gradients(leaves);
      const Tensor result = y();
      (result * result).backward(ones_like(result));
      return Results{result, net.conv.grad(), net.conv_bias.grad()};
    });
  };
  const auto z = [&] { return conv2d(net.x, net.conv, net.conv_bias); };
  check("pooled first", [&] { return relu(max_pool2d(z(), 2)); });
  check("no ReLU", [&] { return max_pool2d(z(), 2); });
  check("no pooling", [&] { return relu(z()); });
  check("two ReLUs", [&] { return max_pool2d(relu(relu(z())), 2); });
  check("ReLU behind too", [&] { return relu(max_pool2d(relu(z()), 2)); });
  check("averages", [&] { return avg_pool2d(relu(z()), 2); });
  check("other channels", [&] { return max_pool2d(relu(z()).reshape({12, 2, 10, 10}), 2); });
  check("other rows", [&] { return max_pool2d(relu(z().reshape({6, 4, 20, 5})), 2); });
  check("a part", [&] { return max_pool2d(relu(z()).narrow(0, 1, 4), 2); });
  check("pooled twice", [&] {
    const Tensor r = relu(z());
    return max_pool2d(r, 2) + max_pool2d(r, 2);
  });
  check("pooled in two ways", [&] {
    const Tensor r = relu(z());
    return max_pool2d(r, 2) + max_pool2d(r, 3, {.stride = 2, .padding = 1}).narrow(0, 0, 6);
  });
  check("two ReLUs side by side", [&] {
    const Tensor t = z();
    return max_pool2d(relu(t), 2) + max_pool2d(relu(t), 2);
  });
  check("twice the same layer",
        [&] { return max_pool2d(relu(z()), 2) * max_pool2d(relu(z()), 2); });
}

DEVICE_TEST("fuse: with an algorithm named nothing of a convolution is fused", "[fuse]") {
  const Net net({kFloat32, device});
  for (const ConvAlgo algo : {ConvAlgo::kNaive, ConvAlgo::kDirect, ConvAlgo::kIm2col}) {
    if (device.is_cuda() && algo == ConvAlgo::kDirect) continue;  // refuses some
    INFO(name(algo));
    const With with(algo);
    const Work step = [&] { return net.step(); };
    check_compiled(step);
    const auto operators = operators_of(step);
    INFO(text(operators));
    CHECK(count(operators, "conv2d_relu_pool_forward") == 0);
    CHECK(count(operators, "conv2d_forward") == 1);
  }
}

// ---- products with one and copies ---------------------------------------------------------------

DEVICE_TEST("fuse: a product with one is its other factor as it was", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = tensor(noise({3, 5}, 1), options), start = x.clone();
  check_compiled([&] {
    x.copy_(start);
    Tensor one = ones({3, 5}, options);
    const Tensor product = x * one, other = one * x, by_scalar = ones({}, options) * x;
    const Tensor before = product + other;
    x.fill_(3);
    const Tensor behind = product + by_scalar;
    one.fill_(2);
    const Tensor doubled = x * one;
    const Tensor chain = doubled * ones({3, 5}, options) * ones({3, 5}, options);
    const Tensor of_chain = sum(chain, {0}), broadcast = ones({4, 3, 5}, options) * x;
    return Results{before, behind, doubled, of_chain, sum(broadcast, {0})};
  });
}

DEVICE_TEST("fuse: values that are copied to their places", "[fuse]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = tensor(noise({256}, 1), options), start = tensor(noise({1024}, 2), options);
  const Tensor place = zeros({1024}, options);
  const auto check = [&](const std::string& what, const std::function<Results()>& f) {
    INFO(what);
    check_compiled([&] {
      place.copy_(start);
      Results all = f();
      all.push_back(place * 1.0);
      return all;
    });
    const Results eager = [&] {
      place.copy_(start);
      f();
      return copies({place});
    }();
    place.copy_(start);
    compiled([&] {
      place.copy_(start);
      return f();
    });
    check_close_results({place}, eager);
  };
  const auto part = [&](int64_t first) { return place.narrow(0, first, 256); };
  check("alone", [&] {
    part(0).copy_(x + 1.0);
    part(512).copy_(x * 2.0);
    return Results{};
  });
  check("not aligned", [&] {
    part(3).copy_(x + 1.0);
    place.narrow(0, 700, 1).copy_(sum(x).reshape({1}));
    return Results{};
  });
  check("read in between", [&] {
    const Tensor y = x + 1.0;
    const Tensor total = sum(place);
    part(0).copy_(y);
    return Results{total};
  });
  check("changed in between", [&] {
    const Tensor y = x + 1.0;
    part(128).fill_(4);
    part(0).copy_(y);
    return Results{};
  });
  check("the value read later", [&] {
    const Tensor y = x + 1.0;
    part(0).copy_(y);
    part(0).fill_(2);
    return Results{sum(y)};
  });
  check("the value read in between", [&] {
    const Tensor y = x + 1.0, z = y * y;
    part(0).copy_(y);
    return Results{z};
  });
  check("made of what is there", [&] {
    part(0).copy_(part(0) * 2.0);
    part(256).copy_(part(128) + x);
    return Results{};
  });
  check("within itself", [&] {
    part(0).copy_(part(128));
    const Tensor y = place + 1.0;
    y.narrow(0, 128, 256).copy_(y.narrow(0, 0, 256));
    place.copy_(y);
    return Results{};
  });
  check("to two places", [&] {
    const Tensor y = x + 1.0;
    part(0).copy_(y);
    part(512).copy_(y);
    return Results{};
  });
  check("twice to one", [&] {
    part(0).copy_(x + 1.0);
    part(0).copy_(x + 2.0);
    return Results{};
  });
  check("a part of a value", [&] {
    const Tensor y = start * 3.0;
    part(0).copy_(y.narrow(0, 512, 256));
    return Results{};
  });
  check("a value in parts", [&] {
    const Tensor y = zeros({512}, options);
    y.narrow(0, 0, 256).copy_(x * 2.0);
    y.narrow(0, 256, 256).copy_(x * 3.0);
    place.narrow(0, 256, 512).copy_(y);
    return Results{};
  });
}

// ---- whole steps --------------------------------------------------------------------------------

DEVICE_TEST("fuse: optimizers take the fused gradients", "[fuse]") {
  using Make = std::function<std::unique_ptr<Optimizer>(const std::vector<Tensor>&)>;
  const std::pair<const char*, Make> optimizers[] = {
      {"SGD", [](const auto& p) { return std::make_unique<SGD>(p, SGDOptions{.lr = 0.05}); }},
      {"SGD with momentum",
       [](const auto& p) {
         return std::make_unique<SGD>(
             p, SGDOptions{.lr = 0.05, .momentum = 0.9, .weight_decay = 0.01, .nesterov = true});
       }},
      {"Adam", [](const auto& p) { return std::make_unique<Adam>(p, AdamOptions{.lr = 1e-3}); }},
      {"AdamW", [](const auto& p) { return std::make_unique<AdamW>(p, AdamOptions{.lr = 1e-3}); }}};
  for (const auto& [name, make] : optimizers)
    for (const DType dtype : {kFloat32, kFloat64}) {
      INFO(name << ' ' << dtype);
      // The weights after some steps.
      const auto train = [&, &make = make](bool is_compiled, const std::string& passes) {
        const PassesOff off(passes);
        const Net net({dtype, device});
        const std::unique_ptr<Optimizer> optimizer = make(net.leaves());
        const auto step = [&] {
          const Tensor loss = cross_entropy(net.forward(), net.labels);
          loss.backward();
          optimizer->step();
          optimizer->zero_grad();
          return loss;
        };
        auto program = compile(step);
        Tensor loss;
        for (int i = 0; i < 5; ++i) loss = is_compiled ? program() : step();
        Results all = copies(net.leaves());
        all.push_back(loss.clone());
        return all;
      };
      const Results eager = train(false, ""), fused = train(true, "");
      check_same_bits(train(true, "-fuse"), eager);
      for (const char* passes : {"-dead", "-schedule", "-memory", "-dead,-schedule,-memory"}) {
        INFO(passes);
        check_same_bits(train(true, passes), fused);
      }
      REQUIRE(fused.size() == eager.size());
      // Adam makes much of a gradient that is small against its rounding.
      for (size_t i = 0; i < eager.size(); ++i)
        CHECK(relative_difference(fused[i], eager[i]) < (dtype == kFloat64 ? 1e-7 : 5e-3));
    }
}

// ---- memory -------------------------------------------------------------------------------------

TEST_CASE("memory: an array written part by part begins with each part", "[program][cpu]") {
  const Tensor x = zeros({64}), half = zeros({32}), first = zeros({64}), second = zeros({64});
  Recorder recorder;
  {
    const Tensor a = x * 2.0;
    first.copy_(a);
    const Tensor parts = empty({64});
    parts.narrow(0, 0, 32).copy_(half);
    parts.narrow(0, 32, 32).copy_(half);
    second.copy_(parts);
  }
  List list = recorder.finish().list;
  recorder.stop();
  REQUIRE(operators_of(list) ==
          std::vector<std::string>{"mul_forward", "copy", "copy", "copy", "copy"});
  const auto range = [&](size_t entry, const char* name) {
    for (const OperandRef& ref : list.entries[entry].operands) {
      if (std::string(ref.name) != name) continue;
      const Buffer& buffer = list.buffer(*ref.operand);
      return std::pair(buffer.offset, buffer.offset + static_cast<int64_t>(buffer.bytes));
    }
    return std::pair<int64_t, int64_t>();
  };
  const auto share = [&] {
    const auto a = range(0, "y"), parts = range(4, "x");
    return a.first < parts.second && parts.first < a.second;
  };
  // The second part beside all that comes before.
  Schedule schedule;
  schedule.lanes = 2;
  schedule.places = {{0, {}}, {0, {0}}, {0, {1}}, {1, {}}, {0, {2, 3}}};
  memory(list, schedule);
  CHECK(!share());
  schedule.places[3].after = {1};
  memory(list, schedule);
  CHECK(share());
}

}  // namespace sinter::test
