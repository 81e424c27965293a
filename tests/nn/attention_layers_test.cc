#include "core/base/detail.h"
#include "tests/support/compiled.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

using Keys = std::vector<std::string>;

Keys keys(Module&& module) {
  Keys result;
  for (const auto& entry : module.state_dict()) result.push_back(entry.first);
  return result;
}

// Gives every parameter values that are none of its first ones.
void draw(Module& module) {
  Generator generator(3);
  for (const Tensor& t : module.parameters()) uniform_(t, -0.7, 0.7, generator);
}

// (N, L, E) of one head after another, as the paper has it. seen: (N, heads, L, S), numbers that
// are added.
Tensor by_definition(MultiheadAttention& m, int64_t heads, const Tensor& query, const Tensor& key,
                     const Tensor& value, const Tensor& seen) {
  const int64_t e = query.size(-1), d = e / heads;
  const auto rows = [&](const Tensor& own, int64_t i) {
    return own.defined() ? own : m.in_proj_weight.narrow(0, i * e, e);
  };
  const auto project = [&](const Tensor& x, const Tensor& own, int64_t i) {
    const Tensor y = matmul(x, rows(own, i).permute({1, 0}));
    return m.in_proj_bias.defined() ? y + m.in_proj_bias.narrow(0, i * e, e) : y;
  };
  const Tensor q = project(query, m.q_proj_weight, 0), k = project(key, m.k_proj_weight, 1);
  const Tensor v = project(value, m.v_proj_weight, 2);
  const auto head = [&](const Tensor& x, int64_t i) {
    return x.permute({2, 0, 1}).narrow(0, i * d, d).permute({1, 2, 0});
  };
  Tensor all;
  for (int64_t i = 0; i < heads; ++i) {
    const Tensor scores =
        matmul(head(q, i), head(k, i).permute({0, 2, 1})) / std::sqrt(static_cast<double>(d));
    const Tensor mask = seen.permute({1, 0, 2, 3}).narrow(0, i, 1).reshape(scores.shape());
    const Tensor y = matmul(softmax(scores + mask, -1), head(v, i));
    const Tensor part = matmul(y, m.out_proj.weight.permute({1, 0}).narrow(0, i * d, d));
    all = all.defined() ? all + part : part;
  }
  return m.out_proj.bias.defined() ? all + m.out_proj.bias : all;
}

constexpr double kOut = -std::numeric_limits<double>::infinity();

// Compares results and gradients of two functions of the inputs and of a module's parameters.
void check_same_function(Module& module, const std::vector<Tensor>& inputs,
                         const std::function<Tensor()>& f, const std::function<Tensor()>& g) {
  std::vector<Tensor> leaves = inputs;
  for (const Tensor& t : module.parameters()) leaves.push_back(t);
  const auto run = [&](const std::function<Tensor()>& function) {
    drop_gradients(leaves);
    const Tensor y = function();
    y.backward(tensor(noise(Sizes(y.shape().begin(), y.shape().end()), 9), y.options()));
    Results all = copies(gradients_of(leaves));
    all.push_back(y.detach().clone());
    return all;
  };
  check_close_results(run(f), run(g));
}

}  // namespace

TEST_CASE("nn: keys of attention's layers are PyTorch's", "[nn]") {
  CHECK(keys(MultiheadAttention(8, 2)) ==
        Keys{"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"});
  CHECK(keys(MultiheadAttention(8, 2, {.bias = false})) ==
        Keys{"in_proj_weight", "out_proj.weight"});
  CHECK(keys(MultiheadAttention(8, 2, {.kdim = 5})) == Keys{"q_proj_weight", "k_proj_weight",
                                                            "v_proj_weight", "in_proj_bias",
                                                            "out_proj.weight", "out_proj.bias"});
  const Keys layer = {"self_attn.in_proj_weight",
                      "self_attn.in_proj_bias",
                      "self_attn.out_proj.weight",
                      "self_attn.out_proj.bias",
                      "linear1.weight",
                      "linear1.bias",
                      "linear2.weight",
                      "linear2.bias",
                      "norm1.weight",
                      "norm1.bias",
                      "norm2.weight",
                      "norm2.bias"};
  const TransformerEncoderLayer one(8, 2, {.dim_feedforward = 16});
  CHECK(keys(clone(one)) == layer);
  Keys all;
  for (const char* prefix : {"layers.0.", "layers.1."})
    for (const std::string& key : layer) all.push_back(prefix + key);
  all.insert(all.end(), {"norm.weight", "norm.bias"});
  CHECK(keys(TransformerEncoder(one, 2, LayerNorm(8))) == all);
}

TEST_CASE("nn: first weights of attention", "[nn]") {
  manual_seed(5);
  const MultiheadAttention m(64, 4), other(64, 4, {.kdim = 32});
  const auto largest = [](const Tensor& t) { return amax(abs(t.detach())).item<double>(); };
  const auto bounded = [&](const Tensor& t, double bound) {
    return largest(t) <= bound && largest(t) > 0.95 * bound;
  };
  CHECK(m.in_proj_weight.shape() == Shape{192, 64});
  CHECK(bounded(m.in_proj_weight, std::sqrt(6.0 / 256)));
  CHECK(bounded(other.q_proj_weight, std::sqrt(6.0 / 128)));
  CHECK(other.k_proj_weight.shape() == Shape{64, 32});
  CHECK(bounded(other.k_proj_weight, std::sqrt(6.0 / 96)));
  CHECK(bounded(m.out_proj.weight, 1.0 / 8));
  CHECK(largest(m.in_proj_bias) == 0);
  CHECK(largest(m.out_proj.bias) == 0);
}

DEVICE_TEST("nn: multi-head attention by its definition", "[nn]") {
  const TensorOptions options{kFloat64, device};
  const int64_t n = 3, l = 5, s = 7, e = 12, heads = 4;
  struct Case {
    bool batch_first, bias;
    std::optional<int> kdim, vdim;
  };
  for (const Case& c : {Case{true, true, {}, {}},
                        {false, true, {}, {}},
                        {true, false, {}, {}},
                        {true, true, 5, {}},
                        {false, true, 5, 6}}) {
    INFO("batch first " << c.batch_first << ", bias " << c.bias);
    MultiheadAttention m(
        static_cast<int>(e), static_cast<int>(heads),
        {.bias = c.bias, .kdim = c.kdim, .vdim = c.vdim, .batch_first = c.batch_first});
    m.to(kFloat64).to(device);
    draw(m);
    const Tensor query = leaf(noise({n, l, e}, 1), options);
    const Tensor key = leaf(noise({n, s, c.kdim.value_or(12)}, 2), options);
    const Tensor value = leaf(noise({n, s, c.vdim.value_or(12)}, 3), options);
    const auto turned = [&](const Tensor& x) { return c.batch_first ? x : x.permute({1, 0, 2}); };
    // Bools are true where a key is left out.
    const Tensor pairs = tensor(noise({l, s}, 4), options);
    const Tensor of_heads = tensor(noise({n * heads, l, s}, 5), options);
    const Tensor padding = tensor(noise({n, s}, 6), options);
    const auto numbers = [&](const Tensor& out) {
      return masked_fill(zeros(out.shape(), options), out, kOut);
    };
    const Tensor none = zeros({n, heads, l, s}, options);
    const Tensor later =
        gt(arange(s, {.device = device}), arange(l, {.device = device}).reshape({l, 1}));
    const Tensor some = gt(pairs, 0.6), padded = gt(padding, 0.5);
    const std::vector<std::pair<AttentionMasks, Tensor>> masks = {
        {{}, none},
        {{.attn_mask = some}, none + numbers(some)},
        {{.attn_mask = pairs}, none + pairs},
        {{.attn_mask = of_heads}, of_heads.reshape({n, heads, l, s})},
        {{.key_padding_mask = padded}, none + numbers(padded).reshape({n, 1, 1, s})},
        {{.attn_mask = some, .key_padding_mask = padded},
         none + numbers(some) + numbers(padded).reshape({n, 1, 1, s})},
        {{.attn_mask = pairs, .key_padding_mask = padded},
         none + pairs + numbers(padded).reshape({n, 1, 1, s})},
        {{.is_causal = true}, none + numbers(later)},
        {{.key_padding_mask = padding, .is_causal = true},
         none + numbers(later) + padding.reshape({n, 1, 1, s})}};
    for (const auto& entry : masks) {
      const AttentionMasks& mask = entry.first;
      const Tensor& seen = entry.second;
      check_same_function(
          m, {query, key, value},
          [&] { return turned(m.forward(turned(query), turned(key), turned(value), mask)); },
          [&] { return by_definition(m, heads, query, key, value, seen); });
    }
    if (c.kdim || c.vdim) continue;
    // To itself, and one sequence alone.
    check_same_function(
        m, {query}, [&] { return turned(m(turned(query))); },
        [&] {
          return by_definition(m, heads, query, query, query, zeros({n, heads, l, l}, options));
        });
    const Tensor alone = query.narrow(0, 1, 1).reshape({l, e});
    const Tensor out = padding.narrow(0, 1, 1).reshape({s}).narrow(0, 0, l);
    check_same_function(
        m, {query},
        [&] {
          return m.forward(alone, alone, alone, {.key_padding_mask = out}).reshape({1, l, e});
        },
        [&] {
          const Tensor one = query.narrow(0, 1, 1);
          return by_definition(m, heads, one, one, one, zeros({1, heads, l, l}, options) + out);
        });
  }
}

DEVICE_TEST("nn: a transformer's encoder by its definition", "[nn]") {
  const TensorOptions options{kFloat64, device};
  for (const bool norm_first : {false, true})
    for (const char* activation : {"relu", "gelu"}) {
      TransformerEncoderLayer layer(8, 2,
                                    {.dim_feedforward = 24,
                                     .activation = activation,
                                     .layer_norm_eps = 1e-3,
                                     .batch_first = true,
                                     .norm_first = norm_first});
      layer.to(kFloat64).to(device);
      draw(layer);
      layer.eval();
      const Tensor x = leaf(noise({3, 5, 8}, 1), options);
      const AttentionMasks causal{.is_causal = true};
      const auto forward = [&](TransformerEncoderLayer& l, const Tensor& x) {
        const auto norm = [&](const LayerNorm& n, const Tensor& t) {
          return layer_norm(t, {8}, n.weight, n.bias, 1e-3);
        };
        const auto attend = [&](const Tensor& t) { return l.self_attn.forward(t, t, t, causal); };
        const auto feed = [&](const Tensor& t) {
          const Tensor h = linear(t, l.linear1.weight, l.linear1.bias);
          return linear(activation[0] == 'g' ? gelu(h) : relu(h), l.linear2.weight, l.linear2.bias);
        };
        if (norm_first) {
          const Tensor y = x + attend(norm(l.norm1, x));
          return y + feed(norm(l.norm2, y));
        }
        const Tensor y = norm(l.norm1, x + attend(x));
        return norm(l.norm2, y + feed(y));
      };
      check_same_function(
          layer, {x}, [&] { return layer.forward(x, causal); }, [&] { return forward(layer, x); });
      LayerNorm last(8);
      last.to(kFloat64).to(device);
      TransformerEncoder encoder(layer, 2, last);
      draw(encoder);
      encoder.eval();
      check_same_function(
          encoder, {x}, [&] { return encoder.forward(x, causal); },
          [&] {
            const Tensor y = forward(encoder.layers[1], forward(encoder.layers[0], x));
            return layer_norm(y, {8}, encoder.norm->weight, encoder.norm->bias);
          });
      // The layers are clones.
      CHECK(!encoder.layers[0].linear1.weight.is(layer.linear1.weight));
      CHECK(!encoder.layers[0].linear1.weight.is(encoder.layers[1].linear1.weight));
    }
}

DEVICE_TEST("nn: an encoder's training step compiled", "[nn]") {
  // The same numbers as eagerly, to the bit, at every call: masks of dropout and weights.
  const PassesOff without("-fuse");
  const auto train = [&](bool compiled) {
    manual_seed(2);
    TransformerEncoder net(TransformerEncoderLayer(16, 4, {.dim_feedforward = 32}), 2);
    net.to(device);
    Adam optimizer(net.parameters());
    const Tensor x = zeros({9, 3, 16}, {kFloat32, device});
    const auto step = [&] {
      optimizer.zero_grad();
      const Tensor y = net.forward(x, {.is_causal = true});
      const Tensor loss = mean(y * y * y);
      loss.backward();
      optimizer.step();
      return Results{loss.detach()};
    };
    auto program = compile(step);
    Results all;
    for (uint64_t i = 0; i < 5; ++i) {
      x.copy_(tensor(noise({9, 3, 16}, i), x.options()));
      all.push_back((compiled ? program() : step())[0].clone());
    }
    for (const auto& entry : net.state_dict()) all.push_back(entry.second.clone());
    net.eval();
    all.push_back(net(x).detach());
    return all;
  };
  const Results eager = train(false);
  check_same_bits(train(true), eager);
  CHECK(eager[0].item<double>() != eager[1].item<double>());
}

DEVICE_TEST("nn: attention drops weights in training alone", "[nn]") {
  manual_seed(1);
  MultiheadAttention m(8, 2, {.dropout = 0.5, .batch_first = true});
  m.to(device);
  const Tensor x = tensor(noise({2, 6, 8}, 1), {kFloat32, device});
  const Tensor one = m(x), two = m(x);
  CHECK(!same_bits(one, two));
  m.eval();
  CHECK(same_bits(m(x), m(x)));
  CHECK(!same_bits(m(x), one));
}

DEVICE_TEST("nn: errors of attention's layers", "[nn]") {
  check_throws<ValueError>([] { MultiheadAttention m(8, 3); }, {"MultiheadAttention", "8", "3"});
  check_throws<ValueError>([] { MultiheadAttention m(0, 1); }, {"MultiheadAttention", "0"});
  check_throws<ValueError>([] { MultiheadAttention m(8, 2, {.kdim = 0}); }, {"kdim 0"});
  check_throws<ValueError>([] { MultiheadAttention m(8, 2, {.dropout = 2}); }, {"dropout", "2"});
  check_throws<ValueError>([] { TransformerEncoderLayer l(8, 2, {.activation = "tanh"}); },
                           {"activation", "tanh"});
  MultiheadAttention m(8, 2, {.batch_first = true}), second(8, 2);
  m.to(device);
  second.to(device);
  const auto of = [&](const Shape& shape) { return zeros(shape, {kFloat32, device}); };
  check_throws<ShapeError>([&] { m(of({2, 3, 7})); }, {"(N, L, 8)", "(2, 3, 7)"});
  check_throws<ShapeError>([&] { second(of({2, 3, 7})); }, {"(L, N, 8)", "(2, 3, 7)"});
  check_throws<ShapeError>([&] { m(of({8})); }, {"MultiheadAttention", "(8,)"});
  check_throws<ShapeError>([&] { m.forward(of({2, 3, 8}), of({3, 8}), of({3, 8})); }, {"(3, 8)"});
  check_throws<ShapeError>(
      [&] {
        m.forward(of({2, 3, 8}), of({3, 4, 8}), of({3, 4, 8}));
      },
      {"(3, 4, 8)"});
  check_throws<ShapeError>(
      [&] {
        m.forward(of({2, 3, 8}), of({2, 4, 8}), of({2, 5, 8}));
      },
      {"(2, 5, 8)"});
  const Tensor x = of({2, 3, 8});
  check_throws<ShapeError>(
      [&] {
        m.forward(x, x, x, {.attn_mask = of({2, 3, 3})});
      },
      {"attn_mask", "(4, 3, 3)", "(2, 3, 3)"});
  check_throws<ShapeError>(
      [&] {
        m.forward(x, x, x, {.key_padding_mask = of({3, 2})});
      },
      {"key_padding_mask", "(2, 3)", "(3, 2)"});
}

}  // namespace sinter::test
