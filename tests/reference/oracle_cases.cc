#include "tests/reference/oracle_cases.h"

#include <algorithm>

#include "core/base/detail.h"
#include "sinter/data.h"
#include "sinter/emit.h"
#include "sinter/program.h"
#include "tests/reference/oracle_attention.h"
#include "tests/reference/oracle_elementwise.h"
#include "tests/reference/oracle_pool.h"
#include "tests/reference/oracle_reduce.h"
#include "tests/reference/oracle_shape.h"

namespace sinter::app {

using oracle::Array;
using oracle::count;
using oracle::filled;
using oracle::integers;
using oracle::noise;
using oracle::ramp;
using oracle::Sizes;

namespace {

using Inputs = std::vector<Tensor>;

Pair pair(int64_t h, int64_t w) { return {static_cast<int>(h), static_cast<int>(w)}; }

std::string pair_text(int64_t h, int64_t w) { return str("(", h, ", ", w, ")"); }

template <class T> std::string list_text(const std::vector<T>& numbers) {
  std::string text;
  for (const T number : numbers) text += str(text.empty() ? "" : ", ", number);
  return str("[", text, "]");
}

}  // namespace

std::vector<Comparison> compare_with_oracle(const OpCase& c, TensorOptions options, Mode mode) {
  Inputs inputs;
  for (const Array& a : c.inputs) inputs.push_back(leaf(a, options));
  const Tensor dy = tensor(c.dy, options);
  const std::vector<Tensor> computed = results(mode, [&] {
    for (const Tensor& x : inputs) x.set_grad({});
    const Tensor y = c.op(inputs);
    std::vector<Tensor> all = {y};
    if (!(y.shape() == dy.shape())) return all;
    y.backward(dy);
    for (const Tensor& x : inputs) all.push_back(x.grad());
    return all;
  });
  std::vector<Comparison> all = {compare("y", computed[0], c.y, c.y_terms)};
  if (!all.back().wrong.empty()) return all;
  for (size_t i = 0; i < inputs.size(); ++i)
    all.push_back(compare(str("gradient ", i), computed.at(1 + i), c.grads[i], c.terms[i]));
  return all;
}

// ---- convolution and pooling --------------------------------------------------------------------

namespace {

Conv2dOptions conv2d_options(const oracle::Conv& p) {
  return {pair(p.stride_h, p.stride_w), pair(p.pad_h, p.pad_w), pair(p.dil_h, p.dil_w),
          static_cast<int>(p.groups)};
}

std::string conv2d_text(const Sizes& x, const Sizes& w, bool bias, const oracle::Conv& p) {
  return str("x ", Shape(x), ", weight ", Shape(w), bias ? "" : ", no bias", ", stride ",
             pair_text(p.stride_h, p.stride_w), ", padding ", pair_text(p.pad_h, p.pad_w),
             ", dilation ", pair_text(p.dil_h, p.dil_w), ", groups ", p.groups);
}

}  // namespace

Op conv2d_op(const oracle::Conv& p) {
  return [options = conv2d_options(p)](const Inputs& in) {
    return conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options);
  };
}

OpCase conv2d_case(const Sizes& x_shape, const Sizes& w_shape, bool bias, const oracle::Conv& p) {
  const Array x = noise(x_shape, 1), w = noise(w_shape, 2), b = noise({w_shape[0]}, 3);
  const Array y = oracle::conv2d(x, w, bias ? &b : nullptr, p);
  const Array dy = noise(y.shape, 4);
  const auto taps = static_cast<double>(w_shape[2] * w_shape[3]);
  const auto places = static_cast<double>(count(y.shape)) / static_cast<double>(w_shape[0]);
  OpCase c{"conv2d", {x, w}, conv2d_op(p), y, dy, oracle::conv2d_gradients(x, w, dy, p)};
  c.y_terms = taps * static_cast<double>(w_shape[1]) + 1;
  c.terms = {taps * static_cast<double>(w_shape[0] / p.groups), places, places};
  if (bias) c.inputs.push_back(b);
  c.how = conv2d_text(x_shape, w_shape, bias, p);
  return c;
}

namespace {

template <class Options>
Op pool_op(const oracle::Pool& p, Tensor (*pool)(const Tensor&, Pair, const Options&)) {
  Options options;
  options.stride = pair(p.stride_h, p.stride_w);
  options.padding = pair(p.pad_h, p.pad_w);
  return [=, kernel = pair(p.kh, p.kw)](const Inputs& in) { return pool(in[0], kernel, options); };
}

std::string pool_text(const Sizes& x, const oracle::Pool& p) {
  return str("x ", Shape(x), ", kernel ", pair_text(p.kh, p.kw), ", stride ",
             pair_text(p.stride_h, p.stride_w), ", padding ", pair_text(p.pad_h, p.pad_w));
}

// How many windows an element may lie in: their gradients add up there.
double overlap(const oracle::Pool& p) {
  return static_cast<double>(((p.kh + p.stride_h - 1) / p.stride_h) *
                             ((p.kw + p.stride_w - 1) / p.stride_w));
}

}  // namespace

Op max_pool2d_op(const oracle::Pool& p) { return pool_op(p, max_pool2d); }
Op avg_pool2d_op(const oracle::Pool& p) { return pool_op(p, avg_pool2d); }

OpCase max_pool2d_case(const Sizes& shape, const oracle::Pool& p) {
  const Array x = ramp(shape, 1), dy = noise(oracle::windows(shape, p).first, 2);
  const auto [y, dx] = oracle::max_pool2d(x, p, dy);
  // The maximum itself is copied.
  return {"max_pool2d", {x}, max_pool2d_op(p), y, dy, {dx}, 0, {overlap(p)}, pool_text(shape, p)};
}

OpCase avg_pool2d_case(const Sizes& shape, const oracle::Pool& p) {
  const Array x = ramp(shape, 1), dy = noise(oracle::windows(shape, p).first, 2);
  const auto [y, dx] = oracle::avg_pool2d(x, p, dy);
  const auto area = static_cast<double>(p.kh * p.kw);
  return {"avg_pool2d", {x},          avg_pool2d_op(p),   y, dy, {dx},
          area,         {overlap(p)}, pool_text(shape, p)};
}

// ---- matrix products ----------------------------------------------------------------------------

OpCase linear_case(const Sizes& leading, int64_t in, int64_t out, bool bias) {
  Sizes x_shape = leading, y_shape = leading;
  x_shape.push_back(in);
  y_shape.push_back(out);
  const int64_t rows = count(leading);
  Array x = noise({rows, in}, 1), dy = noise({rows, out}, 4);
  const Array w = noise({out, in}, 2), b = noise({out}, 3);
  Array y = oracle::linear(x, w, bias ? &b : nullptr);
  std::vector<Array> grads = oracle::linear_gradients(x, w, dy);
  x.shape = grads[0].shape = x_shape;
  y.shape = dy.shape = y_shape;
  OpCase c{"linear",
           {x, w},
           [](const Inputs& t) { return linear(t[0], t[1], t.size() > 2 ? t[2] : Tensor()); },
           y,
           dy,
           grads};
  c.y_terms = static_cast<double>(in) + 1;
  c.terms = {static_cast<double>(out), static_cast<double>(rows), static_cast<double>(rows)};
  if (bias) c.inputs.push_back(b);
  c.how = str("x ", Shape(x_shape), ", weight ", Shape(w.shape), bias ? "" : ", no bias");
  return c;
}

OpCase matmul_case(const Sizes& a_shape, const Sizes& b_shape) {
  const Array a = noise(a_shape, 1), b = noise(b_shape, 2);
  Array y = filled(oracle::matmul_products(a_shape, b_shape, [](size_t, size_t, size_t) {}));
  const Array dy = noise(y.shape, 3);
  Array da = filled(a_shape), db = filled(b_shape);
  oracle::matmul_products(a_shape, b_shape, [&](size_t i, size_t j, size_t k) {
    y.v[k] += a.v[i] * b.v[j];
    da.v[i] += dy.v[k] * b.v[j];
    db.v[j] += dy.v[k] * a.v[i];
  });
  const auto products = static_cast<double>(count(y.shape) * a_shape.back());
  const auto terms = [&](const Array& x) {
    return x.v.empty() ? 0 : products / static_cast<double>(x.v.size());
  };
  return {"matmul",
          {a, b},
          [](const Inputs& in) { return matmul(in[0], in[1]); },
          y,
          dy,
          {da, db},
          static_cast<double>(a_shape.back()),
          {terms(a), terms(b)},
          str("a ", Shape(a_shape), ", b ", Shape(b_shape))};
}

// ---- element by element -------------------------------------------------------------------------

OpCase relu_case(const Sizes& shape) {
  const Array x = ramp(shape, 1), dy = noise(shape, 2);
  return {"relu",
          {x},
          [](const Inputs& in) { return relu(in[0]); },
          oracle::relu(x),
          dy,
          {oracle::relu_gradient(x, dy)},
          0,
          {0},
          str("x ", Shape(shape))};
}

const Binary kBinary[kBinaries] = {
    {"add", add, [](double a, double b) { return a + b; }, [](double, double) { return 1.0; },
     [](double, double) { return 1.0; }},
    {"sub", sub, [](double a, double b) { return a - b; }, [](double, double) { return 1.0; },
     [](double, double) { return -1.0; }},
    {"mul", mul, [](double a, double b) { return a * b; }, [](double, double b) { return b; },
     [](double a, double) { return a; }},
    {"div", div, [](double a, double b) { return a / b; }, [](double, double b) { return 1 / b; },
     [](double a, double b) { return -a / (b * b); }},
};

Op binary_op(const Binary& binary) {
  return [op = binary.op](const Inputs& in) { return op(in[0], in[1]); };
}

Array away_from_zero(const Sizes& shape, uint64_t seed) {
  return oracle::map(noise(shape, seed), [](double v) {
    return static_cast<double>(static_cast<float>(v < 0 ? v / 2 - 0.5 : v / 2 + 0.5));
  });
}

OpCase binary_case(const Binary& binary, const Sizes& a_shape, const Sizes& b_shape) {
  const Array a = noise(a_shape, 1), b = away_from_zero(b_shape, 2);
  const Sizes y_shape = oracle::broadcast(a_shape, b_shape);
  const Array dy = noise(y_shape, 3);
  Array y = filled(y_shape), da = filled(a_shape), db = filled(b_shape);
  oracle::for_each_index(y_shape, [&](const Sizes& at) {
    const size_t i = oracle::offset(a_shape, at), j = oracle::offset(b_shape, at);
    const size_t k = oracle::offset(y_shape, at);
    y.v[k] = binary.value(a.v[i], b.v[j]);
    da.v[i] += dy.v[k] * binary.da(a.v[i], b.v[j]);
    db.v[j] += dy.v[k] * binary.db(a.v[i], b.v[j]);
  });
  const auto repeats = [&](const Array& x) {
    return x.v.empty() ? 1.0 : static_cast<double>(dy.v.size()) / static_cast<double>(x.v.size());
  };
  // Derivatives of a quotient reach 4: four times the rounding of a product.
  return {binary.name,
          {a, b},
          binary_op(binary),
          y,
          dy,
          {da, db},
          4,
          {4 * repeats(a), 4 * repeats(b)},
          str("a ", Shape(a_shape), ", b ", Shape(b_shape))};
}

// ---- reductions, views and losses ---------------------------------------------------------------

namespace {

OpCase reduce_case(const char* name, Tensor (*op)(const Tensor&, const Dims&, bool),
                   const Sizes& shape, const std::vector<int>& dims, bool keepdim) {
  const bool is_mean = std::string(name) == "mean";
  const int rank = static_cast<int>(shape.size());
  std::vector<int> reduced;  // as the oracle wants them: all spelled out, none negative
  for (int d : dims) reduced.push_back(d < 0 ? d + rank : d);
  if (dims.empty())
    for (int d = 0; d < rank; ++d) reduced.push_back(d);
  const Array x = noise(shape, 1);
  const Array total = oracle::sum(x, reduced);
  const double n =
      total.v.empty() ? 1 : static_cast<double>(x.v.size()) / static_cast<double>(total.v.size());
  const double factor = is_mean ? 1 / n : 1;
  Array y = oracle::map(total, [&](double v) { return v * factor; });
  if (!keepdim) {
    y.shape.clear();
    for (int d = 0; d < rank; ++d)
      if (std::find(reduced.begin(), reduced.end(), d) == reduced.end())
        y.shape.push_back(shape[static_cast<size_t>(d)]);
  }
  const Array dy = noise(y.shape, 2);
  Array dx = filled(shape);
  oracle::for_each_index(shape, [&](const Sizes& at) {
    dx.v[oracle::offset(shape, at)] = factor * dy.v[oracle::offset(total.shape, at)];
  });
  return {name,
          {x},
          [=](const Inputs& in) { return op(in[0], dims, keepdim); },
          y,
          dy,
          {dx},
          is_mean ? 1 : n,
          {2},
          str("x ", Shape(shape), ", dims ", list_text(dims), keepdim ? ", kept" : "")};
}

}  // namespace

OpCase sum_case(const Sizes& shape, const std::vector<int>& dims, bool keepdim) {
  return reduce_case("sum", sum, shape, dims, keepdim);
}

OpCase mean_case(const Sizes& shape, const std::vector<int>& dims, bool keepdim) {
  return reduce_case("mean", mean, shape, dims, keepdim);
}

OpCase permute_case(const Sizes& shape, const std::vector<int>& dims) {
  const Array x = noise(shape, 1);
  Sizes y_shape;
  for (int d : dims) y_shape.push_back(shape[static_cast<size_t>(d)]);
  Array y = filled(y_shape), dx = filled(shape);
  const Array dy = noise(y_shape, 2);
  oracle::for_each_index(y_shape, [&](const Sizes& at) {
    Sizes from(at.size());
    for (size_t d = 0; d < at.size(); ++d) from[static_cast<size_t>(dims[d])] = at[d];
    const size_t i = oracle::offset(shape, from), k = oracle::offset(y_shape, at);
    y.v[k] = x.v[i];
    dx.v[i] = dy.v[k];
  });
  return {"permute", {x}, [=](const Inputs& in) { return permute(in[0], dims); }, y, dy, {dx},
          0,         {0}, str("x ", Shape(shape), ", dims ", list_text(dims))};
}

OpCase same_elements_case(const std::string& name, const Sizes& from, const Sizes& to,
                          const Op& op) {
  const Array x = noise(from, 1), dy = noise(to, 2);
  return {name, {x}, op, {to, x.v}, dy, {{from, dy.v}}, 0, {0}, str("x ", Shape(from))};
}

OpCase log_softmax_case(const Sizes& shape, int dim) {
  const int d = dim < 0 ? dim + static_cast<int>(shape.size()) : dim;
  const Array x = oracle::map(noise(shape, 1), [](double v) { return 4 * v; });
  const Array dy = noise(shape, 2);
  const auto [y, dx] = oracle::log_softmax(x, d, dy);
  const auto classes = static_cast<double>(shape[static_cast<size_t>(d)]);
  return {"log_softmax",
          {x},
          [=](const Inputs& in) { return log_softmax(in[0], dim); },
          y,
          dy,
          {dx},
          classes + 4,
          {classes + 8},
          str("x ", Shape(shape), ", dim ", dim)};
}

std::vector<int64_t> random_labels(int64_t n, int64_t classes, uint64_t seed) {
  oracle::Random random(seed);
  std::vector<int64_t> labels(static_cast<size_t>(n));
  for (int64_t& label : labels) label = random.below(classes);
  return labels;
}

OpCase cross_entropy_case(int64_t n, int64_t classes, double smoothing, Reduction reduction) {
  const Array x = oracle::map(noise({n, classes}, 1), [](double v) { return 4 * v; });
  const std::vector<int64_t> labels = random_labels(n, classes, 2);
  const double share = reduction == Reduction::kMean ? 1 / static_cast<double>(n) : 1;
  // The loss is linear in the log-probabilities, with these coefficients.
  Array weight = filled({n, classes}, -share * smoothing / static_cast<double>(classes));
  for (int64_t i = 0; i < n; ++i)
    weight.v[static_cast<size_t>(i * classes + labels[static_cast<size_t>(i)])] -=
        share * (1 - smoothing);
  const auto [log_p, dlogits] = oracle::log_softmax(x, 1, weight);
  double loss = 0;
  for (size_t i = 0; i < log_p.v.size(); ++i) loss += weight.v[i] * log_p.v[i];
  const double upstream = -0.75;
  const auto rows = static_cast<double>(n), c = static_cast<double>(classes);
  return {"cross_entropy",
          {x},
          [=](const Inputs& in) {
            return cross_entropy(in[0], from_vector(labels, {n}, in[0].device()),
                                 {.reduction = reduction, .label_smoothing = smoothing});
          },
          {{}, {loss}},
          {{}, {upstream}},
          {oracle::map(dlogits, [&](double v) { return v * upstream; })},
          rows + c + 4,
          {c + 8},
          str("logits (", n, ", ", classes, "), smoothing ", smoothing, ", ",
              reduction == Reduction::kMean ? "mean" : "sum")};
}

// ---- fused layers -------------------------------------------------------------------------------

namespace {

Array drawn(Values values, const Sizes& shape, uint64_t seed, int64_t largest) {
  return values == Values::kIntegers ? integers(shape, seed, largest) : noise(shape, seed);
}

std::string text(Values values) { return values == Values::kIntegers ? ", integers" : ", noise"; }

// Whether float32 takes a for the larger one whenever a > b, both being sums of so many terms, and
// off by no more than `compare` lets pass.
bool far_apart(double a, double b, double terms) {
  const double off = (terms + 4) * epsilon(kFloat32) * std::max({1.0, std::abs(a), std::abs(b)});
  return std::abs(a - b) > 2 * off;
}

// A case of more choices than noise keeps apart would be looked for without end.
void expect_found_by(uint64_t seed) {
  require<ValueError>(seed < 1000, "oracle: no noise found that leaves all choices clear");
}

}  // namespace

Tensor conv2d_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Conv2dOptions& options) {
  return max_pool2d(relu(conv2d(x, weight, bias, options)), 2);
}

Tensor mlp(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
           bool relu_last) {
  Tensor y = x;
  for (size_t l = 0; l < weights.size(); ++l) {
    y = linear(y, weights[l], biases.at(l));
    if (l + 1 < weights.size() || relu_last) y = relu(y);
  }
  return y;
}

OpCase conv2d_relu_pool_case(const Sizes& x_shape, const Sizes& w_shape, bool bias,
                             const oracle::Conv& p, Values values) {
  constexpr oracle::Pool kPool{2, 2, 2, 2};
  const auto taps = static_cast<double>(w_shape[2] * w_shape[3]);
  const double z_terms = taps * static_cast<double>(w_shape[1]) + 1;
  // The winner of a window, or 0, leaves all others behind.
  const auto choices_are_clear = [&](const Array& z) {
    for (const std::vector<size_t>& window : oracle::windows(z.shape, kPool).second) {
      double first = 0, second = -std::numeric_limits<double>::infinity();
      for (const size_t i : window) {
        second = std::max(second, std::min(first, z.v[i]));
        first = std::max(first, z.v[i]);
      }
      if (!far_apart(first, second, z_terms)) return false;
    }
    return true;
  };
  Array x, w, b, z;
  uint64_t seed = 0;
  do {
    x = drawn(values, x_shape, ++seed, 3);
    w = drawn(values, w_shape, ++seed, 3);
    b = drawn(values, {w_shape[0]}, ++seed, 20);
    z = oracle::conv2d(x, w, bias ? &b : nullptr, p);
    expect_found_by(seed);
  } while (values == Values::kNoise && !choices_are_clear(z));

  const Array dy = drawn(values, oracle::windows(z.shape, kPool).first, ++seed, 3);
  const auto [y, dh] = oracle::max_pool2d(oracle::relu(z), kPool, dy);
  OpCase c{"conv2d_relu_pool",
           {x, w},
           [options = conv2d_options(p)](const Inputs& in) {
             return conv2d_relu_pool(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options);
           },
           y,
           dy,
           oracle::conv2d_gradients(x, w, oracle::relu_gradient(z, dh), p)};
  if (bias) c.inputs.push_back(b);
  const auto places = static_cast<double>(count(y.shape)) / static_cast<double>(w_shape[0]);
  c.y_terms = z_terms;
  c.terms = {taps * static_cast<double>(w_shape[0] / p.groups), places, places};
  if (values == Values::kIntegers) {
    c.y_terms = 0;
    c.terms = {0, 0, 0};
  }
  c.how = conv2d_text(x_shape, w_shape, bias, p) + text(values);
  return c;
}

OpCase mlp_case(int64_t rows, const Sizes& widths, bool bias, bool relu_last, Values values) {
  const size_t layers = widths.size() - 1;
  const auto has_relu = [&](size_t l) { return l + 1 < layers || relu_last; };
  const bool exact = values == Values::kIntegers;
  std::vector<Array> w(layers), b(layers), z(layers), h(layers + 1);  // h: in front of each layer
  double terms = 0;  // of a layer's result and of all before it
  uint64_t seed = 0;
  for (bool clear = false; !clear;) {
    clear = true;
    terms = 0;
    expect_found_by(seed);
    h[0] = drawn(values, {rows, widths[0]}, ++seed, 1);
    for (size_t l = 0; l < layers; ++l) {
      const int64_t in = widths[l], out = widths[l + 1];
      w[l] = drawn(values, {out, in}, ++seed, 1);
      b[l] = drawn(values, {out}, ++seed, 1);
      if (!exact)  // values, and errors, keep their size from layer to layer
        w[l] = oracle::map(w[l], [&](double v) {
          return static_cast<double>(
              static_cast<float>(v * std::sqrt(3.0 / static_cast<double>(in))));
        });
      z[l] = oracle::linear(h[l], w[l], bias ? &b[l] : nullptr);
      terms += static_cast<double>(in) + 1;
      h[l + 1] = has_relu(l) ? oracle::relu(z[l]) : z[l];
      // Exactly 0 is what any arithmetic makes of a row of closed ReLUs without a bias.
      for (const double v : z[l].v)
        clear &= exact || !has_relu(l) || v == 0 || far_apart(v, 0, terms);
    }
  }

  const Array dy = drawn(values, {rows, widths.back()}, ++seed, 1);
  OpCase c{"mlp",
           {h[0]},
           [=](const Inputs& in) {
             std::vector<Tensor> weights, biases;
             for (size_t l = 0; l < layers; ++l) {
               weights.push_back(in[1 + l * (bias ? 2 : 1)]);
               biases.push_back(bias ? in[2 + 2 * l] : Tensor());
             }
             return mlp(in[0], weights, biases, relu_last);
           },
           h[layers],
           dy,
           {}};
  c.y_terms = exact ? 0 : terms;
  // From the last layer to the first: {dw, db} of each in front of those behind it, then dx.
  Array dh = dy;
  for (size_t l = layers; l-- > 0;) {
    const Array dz = has_relu(l) ? oracle::relu_gradient(z[l], dh) : dh;
    const std::vector<Array> grads = oracle::linear_gradients(h[l], w[l], dz);
    if (bias) c.grads.insert(c.grads.begin(), grads[2]);
    c.grads.insert(c.grads.begin(), grads[1]);
    dh = grads[0];
    terms += static_cast<double>(widths[l + 1]);
  }
  c.grads.insert(c.grads.begin(), dh);
  for (size_t l = 0; l < layers; ++l) {
    c.inputs.push_back(w[l]);
    if (bias) c.inputs.push_back(b[l]);
  }
  c.terms.assign(c.inputs.size(), exact ? 0 : terms + static_cast<double>(rows));
  c.how = str("rows ", rows, ", widths ", list_text(widths), bias ? "" : ", no bias",
              relu_last ? ", ReLU last" : "", text(values));
  return c;
}

// ---- optimizers ---------------------------------------------------------------------------------

namespace {

OptimizerCase adam(const std::string& name, AdamOptions o) {
  return {name, [o](const auto& p) { return std::make_unique<Adam>(p, o); },
          [o](double p, double g, double& m, double& v, int t) {
            const double decay = o.weight_decay.value_or(0);
            if (o.decoupled)
              p -= o.lr * decay * p;
            else
              g += decay * p;
            m = o.beta1 * m + (1 - o.beta1) * g;
            v = o.beta2 * v + (1 - o.beta2) * g * g;
            const double m_hat = m / (1 - std::pow(o.beta1, t));
            const double v_hat = v / (1 - std::pow(o.beta2, t));
            return p - o.lr * m_hat / (std::sqrt(v_hat) + o.eps);
          }};
}

OptimizerCase sgd(const std::string& name, SGDOptions o) {
  return {name, [o](const auto& p) { return std::make_unique<SGD>(p, o); },
          [o](double p, double g, double& m, double&, int t) {
            g += o.weight_decay * p;
            if (o.momentum != 0) {
              m = t == 1 ? g : o.momentum * m + (1 - o.dampening) * g;
              g = o.nesterov ? g + o.momentum * m : m;
            }
            return p - o.lr * g;
          }};
}

}  // namespace

std::vector<OptimizerCase> optimizer_cases() {
  std::vector<OptimizerCase> all = {
      adam("Adam", {}),
      adam("Adam, decay", {.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.1}),
      adam("Adam, eps", {.lr = 0.1, .beta1 = 0, .beta2 = 0.5, .eps = 0.1}),
      adam("Adam, decoupled", {.lr = 0.05, .weight_decay = 0.3, .decoupled = true}),
      adam("AdamW", {.lr = 0.01, .weight_decay = 0.2, .decoupled = true}),
      sgd("SGD", {.lr = 0.1}),
      sgd("SGD, decay", {.lr = 0.1, .weight_decay = 0.2}),
      sgd("SGD, momentum", {.lr = 0.1, .momentum = 0.9}),
      sgd("SGD, dampening", {.lr = 0.1, .momentum = 0.9, .dampening = 0.5, .weight_decay = 0.1}),
      sgd("SGD, Nesterov", {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.1, .nesterov = true}),
  };
  for (OptimizerCase& c : all)
    if (c.name == "AdamW")  // decoupled by itself
      c.make = [](const std::vector<Tensor>& p) {
        return std::make_unique<AdamW>(p, AdamOptions{.lr = 0.01, .weight_decay = 0.2});
      };
  return all;
}

std::vector<Comparison> compare_with_equations(const OptimizerCase& c, TensorOptions options,
                                               Mode mode) {
  constexpr int kSteps = 12;
  const Sizes shapes[] = {{1}, {3, 5}, {257}, {0, 4}, {1031, 3}};
  Inputs parameters;
  std::vector<Array> p, m, v;
  for (const Sizes& shape : shapes) {
    p.push_back(noise(shape, 10 + p.size()));
    m.push_back(filled(shape));
    v.push_back(filled(shape));
    parameters.push_back(leaf(p.back(), options));
    parameters.back().set_grad(zeros(Shape(shape), options));
  }
  const std::unique_ptr<Optimizer> optimizer = c.make(parameters);
  auto step = compile([&] { optimizer->step(); });
  std::vector<Comparison> all;
  for (int t = 1; t <= kSteps; ++t) {
    for (size_t i = 0; i < p.size(); ++i) {
      // By hand: the optimizer alone is under test.
      const Array g = noise(p[i].shape, 100 * static_cast<uint64_t>(t) + i);
      parameters[i].grad().copy_(tensor(g, options));
      for (size_t k = 0; k < g.v.size(); ++k)
        p[i].v[k] = c.update(p[i].v[k], g.v[k], m[i].v[k], v[i].v[k], t);
    }
    if (mode == Mode::kCompiled)
      step();
    else
      optimizer->step();
    if (t > 2 && t < kSteps) continue;
    // A few roundings a step in p, and in m and v, whose errors lr scales down.
    for (size_t i = 0; i < p.size(); ++i)
      all.push_back(compare(str("parameter ", i, " after step ", t), parameters[i], p[i], 6 * t));
  }
  const Array steps{{}, {kSteps}};
  all.push_back(compare(
      "step count", full({}, static_cast<double>(optimizer->steps()), {kFloat64, kCpu}), steps, 0));
  return all;
}

// ---- all of it ----------------------------------------------------------------------------------

namespace {

class Table {
 public:
  std::vector<VerifyCase> take() { return std::move(cases_); }

  void convolutions();
  void pools();
  void products();
  void elementwise();
  void reductions();
  void views();
  void losses();
  void fused();
  void data();
  void optimizers();

 private:
  template <class Make> void add(const std::string& op, Make make) {
    cases_.push_back({op, Reference::kOracle, [make = std::move(make)] {
                        auto c = std::make_shared<const OpCase>(make());
                        return PreparedCheck{c->how, [c](TensorOptions o, Mode mode) {
                                               return compare_with_oracle(*c, o, mode);
                                             }};
                      }});
  }

  std::vector<VerifyCase> cases_;
};

void Table::convolutions() {
  struct Case {
    Sizes x, w;
    bool bias = true;
    oracle::Conv p = {};
  };
  std::vector<Case> cases = {
      // LeNet's and deeper networks' layers.
      {{3, 3, 32, 32}, {6, 3, 5, 5}},
      {{19, 6, 14, 14}, {16, 6, 5, 5}},
      {{64, 3, 32, 32}, {6, 3, 5, 5}},
      {{2, 16, 17, 15}, {32, 16, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{3, 33, 8, 9}, {17, 33, 3, 3}, false, {.pad_h = 1, .pad_w = 1}},
      {{1, 40, 20, 21}, {6, 40, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{2, 40, 7, 5}, {70, 40, 1, 1}},
      {{2, 12, 9, 9}, {24, 12, 1, 1}, false, {.stride_h = 2, .stride_w = 2}},
      {{2, 3, 30, 21}, {8, 3, 7, 7}, true, {.stride_h = 2, .stride_w = 2, .pad_h = 3, .pad_w = 3}},
      {{2, 24, 11, 10}, {24, 1, 3, 3}, true, {.pad_h = 1, .pad_w = 1, .groups = 24}},
      {{2, 8, 11, 10}, {24, 1, 3, 3}, true, {.pad_h = 1, .pad_w = 1, .groups = 8}},
      // Extents of one, windows of the whole image, windows that lie in the padding.
      {{1, 1, 1, 1}, {1, 1, 1, 1}},
      {{2, 3, 1, 9}, {4, 3, 1, 3}},
      {{2, 3, 9, 1}, {4, 3, 3, 1}},
      {{3, 2, 5, 7}, {4, 2, 5, 7}},
      {{3, 2, 1, 1}, {4, 2, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{2, 2, 2, 3}, {3, 2, 4, 5}, false, {.pad_h = 2, .pad_w = 2}},
      {{2, 2, 3, 2}, {3, 2, 2, 1}, true, {.pad_h = 4, .pad_w = 3}},
      // A stride that skips rows and columns, and leaves some at the far end.
      {{2, 2, 11, 13}, {3, 2, 2, 2}, true, {.stride_h = 4, .stride_w = 5}},
      // More than a block in every extent.
      {{1, 1, 67, 131}, {2, 1, 3, 5}, true, {.pad_h = 1, .pad_w = 2}},
      {{70, 2, 9, 8}, {3, 2, 3, 3}},
      {{2, 65, 5, 6}, {130, 65, 3, 2}, true, {.pad_h = 1}},
      {{1, 2, 3, 1030}, {3, 2, 2, 3}},
      {{1, 2, 1030, 3}, {3, 2, 4, 2}},
      {{1025, 1, 5, 4}, {5, 1, 3, 3}},
      {{2, 3, 6, 7}, {1027, 3, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{2, 1026, 4, 3}, {3, 1026, 2, 3}},
      {{0, 2, 4, 4}, {3, 2, 3, 3}}};  // a batch of none
  // Every combination of stride, dilation, padding and groups: equal, taller and wider.
  const int64_t pairs[][2] = {{1, 1}, {2, 1}, {1, 3}, {2, 2}};
  int64_t k = 0;
  for (const auto& stride : pairs)
    for (const auto& dilation : pairs)
      for (const auto& padding : {std::pair<int64_t, int64_t>{0, 0}, {1, 0}, {0, 2}, {2, 1}})
        for (const int64_t groups : {1, 2, 4}) {
          const int64_t kh = 1 + k % 3, kw = 1 + k / 3 % 3;
          // 19 images are a multiple of no vector's lanes; backends choose algorithms by them too.
          cases.push_back({{k % 5 == 0 ? 19 : 2, 4, 7, 8},
                           {4 * (1 + k % 2), 4 / groups, kh, kw},
                           k % 2 == 0,
                           {stride[0], stride[1], padding.first, padding.second, dilation[0],
                            dilation[1], groups}});
          ++k;
        }
  // Windows of every size.
  for (int64_t kh = 1; kh <= 8; ++kh)
    for (int64_t kw = 1; kw <= 8; ++kw)
      cases.push_back({{2, 1 + kh % 4, 9, 10},
                       {1 + kw % 7, 1 + kh % 4, kh, kw},
                       kw % 2 == 0,
                       {.pad_h = kw % 4, .pad_w = kh % 3}});
  for (const Case& c : cases) add("conv2d", [c] { return conv2d_case(c.x, c.w, c.bias, c.p); });
}

void Table::pools() {
  std::vector<std::pair<Sizes, oracle::Pool>> cases = {
      {{1, 1, 1, 1}, {1, 1, 1, 1}},          {{5, 6, 28, 28}, {2, 2, 2, 2}},
      {{2, 3, 7, 9}, {2, 2, 2, 2}},  // a row and a column left out
      {{2, 3, 5, 7}, {5, 7, 5, 7}},  // the whole plane
      {{2, 3, 1, 9}, {1, 3, 1, 2}},          {{2, 3, 9, 1}, {3, 1, 2, 1}},
      {{2, 2, 9, 7}, {2, 1, 5, 3}},  // elements in no window
      {{1, 1, 67, 131}, {3, 2, 2, 3, 1, 1}}, {{1, 1, 3, 2051}, {2, 3, 1, 2, 1, 1}},
      {{1, 1, 2051, 3}, {3, 2, 2, 1, 1, 1}}, {{130, 3, 4, 5}, {2, 3, 2, 1}},
      {{1, 1031, 4, 3}, {2, 2, 2, 1}},       {{1031, 1, 4, 3}, {2, 2, 2, 2}},
      {{0, 2, 4, 4}, {2, 2, 2, 2}}};
  for (int64_t kh = 1; kh <= 4; ++kh)
    for (int64_t kw = 1; kw <= 3; ++kw)
      for (int64_t sh = 1; sh <= 3; ++sh)
        for (int64_t sw = 1; sw <= 3; ++sw)
          cases.push_back({{2, 2, 6, 7}, {kh, kw, sh, sw, kh / 2, (sh + sw) % (kw / 2 + 1)}});
  for (int64_t w = 3; w <= 40; ++w)  // beside the widths of vectors
    cases.push_back({{2, 3, 4, w}, {2, 2 + w % 2, 2, 1 + w % 3}});
  for (const auto& [x, p] : cases)
    add("max_pool2d", [x = x, p = p] { return max_pool2d_case(x, p); });
  for (const auto& [x, p] : cases)
    add("avg_pool2d", [x = x, p = p] { return avg_pool2d_case(x, p); });
}

void Table::products() {
  struct Case {
    Sizes leading;
    int64_t in, out;
  };
  std::vector<Case> cases = {{{1}, 1, 1},    {{64}, 400, 120},  {{64}, 84, 10}, {{7}, 33, 65},
                             {{1}, 1031, 3}, {{3}, 2, 1027},    {{1030}, 5, 2}, {{257}, 1, 259},
                             {{}, 6, 5},     {{2, 3, 4}, 5, 7}, {{0}, 5, 3}};
  for (const int64_t n : {1, 2, 3, 5, 8, 17})
    for (const int64_t in : {1, 7, 16, 31})
      for (const int64_t out : {1, 4, 9, 33}) cases.push_back({{n}, in, out});
  for (const Case& c : cases)
    for (const bool bias : {true, false})
      add("linear", [c, bias] { return linear_case(c.leading, c.in, c.out, bias); });
  const std::pair<Sizes, Sizes> matmuls[] = {{{1, 1}, {1, 1}},
                                             {{65, 129}, {129, 33}},
                                             {{1, 1025}, {1025, 1}},
                                             {{1025, 1}, {1, 3}},
                                             {{2, 1}, {1, 1030}},
                                             {{3, 2, 4}, {3, 4, 5}},
                                             {{3, 2, 4}, {4, 5}},
                                             {{2, 4}, {3, 4, 5}},
                                             {{3, 1, 2, 4}, {5, 4, 3}},
                                             {{1, 2, 4}, {3, 4, 5}},
                                             {{2, 1, 3, 2, 4}, {1, 5, 1, 4, 3}},
                                             {{67, 3, 2}, {67, 2, 3}},
                                             {{300, 1, 1}, {1, 1, 1}},
                                             {{70001, 1, 2}, {70001, 2, 1}},  // beyond 65,535
                                             {{0, 2}, {2, 3}},
                                             {{2, 0}, {0, 3}}};
  for (const auto& [a, b] : matmuls) add("matmul", [a = a, b = b] { return matmul_case(a, b); });
}

void Table::elementwise() {
  for (const Sizes& shape : {Sizes{},
                             {1},
                             {3},
                             {255},
                             {256},
                             {257},
                             {1023},
                             {1025},
                             {5, 6, 28, 28},
                             {1, 2, 3, 4, 5, 1, 2, 3},
                             {100003},
                             {0, 3}})
    add("relu", [shape] { return relu_case(shape); });
  const std::pair<Sizes, Sizes> broadcasts[] = {
      {{}, {}},
      {{1}, {}},
      {{257}, {257}},
      {{1025}, {1}},
      {{1}, {1025}},
      {{3, 5}, {5}},
      {{5}, {3, 5}},
      {{3, 1}, {1, 5}},
      {{3, 1}, {3, 5}},
      {{2, 3, 4, 5}, {3, 1, 1}},
      {{2, 3, 4, 5}, {1, 3, 1, 5}},
      {{2, 1, 4, 1}, {3, 1, 5}},
      {{2, 1, 2, 1, 2, 1, 2, 1}, {1, 3, 1, 2, 1, 3, 1, 2}},
      {{259, 3}, {259, 1}},
      {{3, 1031}, {1031}},
      {{70001}, {70001}},
      {{2, 0, 3}, {1, 3}}};
  for (const Binary& binary : kBinary)
    for (const auto& [a, b] : broadcasts)
      add(binary.name, [&binary, a = a, b = b] { return binary_case(binary, a, b); });
}

void Table::reductions() {
  std::vector<std::pair<Sizes, std::vector<int>>> cases = {
      {{}, {}},
      {{1}, {0}},
      {{1, 1, 1}, {1}},
      {{70001, 3}, {0}},
      {{70001, 3}, {1}},
      {{3, 70001}, {1}},
      {{0, 3}, {1}},
      {{3, 4, 2, 5}, {-1}},
      {{64, 6, 28, 28}, {0, 2, 3}},
      {{2, 1, 3, 1, 2, 2, 1, 3}, {0, 2, 5, 7}}};
  for (int mask = 0; mask < 16; ++mask) {  // every subset of dimensions
    std::vector<int> dims;
    for (int d = 0; d < 4; ++d)
      if ((mask >> d & 1) != 0) dims.push_back(d % 2 == 0 ? d : d - 4);
    cases.push_back({{3, 4, 2, 5}, dims});
  }
  for (const int64_t n : {2, 31, 33, 255, 257, 1023, 1025, 4099}) {
    cases.push_back({{n}, {}});
    cases.push_back({{n, 3}, {0}});
    cases.push_back({{3, n}, {1}});
    cases.push_back({{2, n, 3}, {1}});
    cases.push_back({{n, 2, 3}, {0, 2}});
  }
  bool keepdim = false;  // alternating
  for (const auto& [x, dims] : cases) {
    add("sum", [x = x, dims = dims, keepdim] { return sum_case(x, dims, keepdim); });
    keepdim = !keepdim;
  }
  for (const auto& [x, dims] : cases) {
    add("mean", [x = x, dims = dims, keepdim] { return mean_case(x, dims, keepdim); });
    keepdim = !keepdim;
  }
}

void Table::views() {
  const std::pair<Sizes, Sizes> reshapes[] = {
      {{2, 3, 4}, {6, 4}}, {{1}, {}}, {{1031, 3}, {3, 1031}}, {{0, 3}, {3, 0, 2}}};
  for (const auto& [from, to] : reshapes)
    add("reshape", [from = from, to = to] {
      return same_elements_case("reshape", from, to,
                                [to](const Inputs& in) { return reshape(in[0], Shape(to)); });
    });
  struct Flattening {
    Sizes from, to;
    int first, last;
  };
  const Flattening flattenings[] = {{{2, 3, 4, 5}, {120}, 0, -1},
                                    {{2, 3, 4, 5}, {2, 60}, 1, -1},
                                    {{2, 3, 4, 5}, {2, 12, 5}, -3, -2},
                                    {{1025, 1, 1}, {1025, 1}, 1, 2}};
  for (const Flattening& f : flattenings)
    add("flatten", [f] {
      return same_elements_case("flatten", f.from, f.to,
                                [f](const Inputs& in) { return flatten(in[0], f.first, f.last); });
    });
  std::vector<int> order = {0, 1, 2, 3};
  do add("permute", [order] { return permute_case({2, 3, 4, 5}, order); });
  while (std::next_permutation(order.begin(), order.end()));
  const std::pair<Sizes, std::vector<int>> permutations[] = {
      {{}, {}},
      {{1, 1}, {1, 0}},
      {{1031, 3}, {1, 0}},
      {{33, 65}, {1, 0}},
      {{3, 17, 257}, {2, 0, 1}},
      {{2, 0, 3}, {2, 1, 0}},
      {{2, 1, 3, 1, 2, 3, 1, 2}, {7, 3, 5, 1, 6, 0, 2, 4}}};
  for (const auto& [shape, dims] : permutations)
    add("permute", [shape = shape, dims = dims] { return permute_case(shape, dims); });
  for (const Sizes& shape : {Sizes{}, {1}, {3, 5}, {1027, 3}, {0, 3}}) {
    add("clone", [shape] {
      return same_elements_case("clone", shape, shape,
                                [](const Inputs& in) { return in[0].clone(); });
    });
    // The inputs are exact in float32, so that going there and back changes nothing.
    add("to", [shape] {
      return same_elements_case("to", shape, shape, [](const Inputs& in) {
        const DType other = in[0].dtype() == kFloat64 ? kFloat32 : kFloat64;
        const Tensor y = in[0].to(other).to(in[0].dtype());
        // A program is one device's.
        return recording_program() ? y : y.to(kCpu).to(in[0].device());
      });
    });
  }
}

void Table::losses() {
  std::vector<std::pair<Sizes, int>> softmaxes = {
      {{1}, 0},           {{1, 1}, 1},       {{64, 10}, -1},  {{64, 10}, 0}, {{3, 4, 5, 6}, 0},
      {{3, 4, 5, 6}, -2}, {{3, 4, 5, 6}, 3}, {{9001, 10}, 1}, {{2, 5003}, 1}};
  for (const int64_t c : {2, 31, 33, 257, 1000, 1025, 2053}) {
    softmaxes.push_back({{3, c}, 1});
    softmaxes.push_back({{c, 3}, 0});
    softmaxes.push_back({{2, c, 3}, 1});
  }
  for (const auto& [shape, dim] : softmaxes)
    add("log_softmax", [shape = shape, dim = dim] { return log_softmax_case(shape, dim); });
  for (const Reduction reduction : {Reduction::kMean, Reduction::kSum})
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      const auto add_case = [&](int64_t n, int64_t c) {
        add("cross_entropy", [=] { return cross_entropy_case(n, c, smoothing, reduction); });
      };
      for (const int64_t n : {1, 3, 64, 257, 1025, 9001}) add_case(n, 10);
      for (const int64_t c : {1, 2, 31, 33, 100, 1025, 2053}) add_case(5, c);
    }
}

void Table::fused() {
  struct Layer {
    Sizes x, w;
    bool bias = true;
    oracle::Conv p = {};
  };
  std::vector<Layer> layers = {
      {{2, 3, 12, 10}, {4, 3, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{3, 4, 9, 16}, {8, 4, 5, 5}, false, {.pad_h = 2, .pad_w = 2}},
      {{2, 16, 10, 12}, {33, 16, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{5, 1, 8, 9}, {1, 1, 3, 3}},     // an odd column is left out
      {{5, 2, 11, 13}, {17, 2, 3, 3}},  // an odd row and column
      {{4, 5, 7, 20}, {3, 5, 5, 3}, false},
      {{4, 2, 20, 7}, {5, 2, 3, 5}, true, {.pad_w = 3}},
      {{2, 3, 9, 8}, {6, 3, 7, 3}, true, {.pad_h = 3, .pad_w = 1}},
      {{2, 3, 9, 8}, {6, 3, 1, 5}, false, {.pad_w = 4}},
      {{2, 3, 70, 66}, {7, 3, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},  // bands of an image
      {{700, 5, 6, 7}, {11, 5, 3, 3}},                                 // several images a block
      {{1025, 1, 5, 4}, {3, 1, 2, 3}},
      {{2, 1, 3, 3}, {1, 1, 2, 2}},  // one window
      {{3, 4, 2, 2}, {5, 4, 1, 1}},
      {{2, 20, 9, 9}, {4, 20, 4, 4}},
      // For the parts one by one.
      {{3, 6, 17, 15},
       {6, 2, 3, 3},
       true,
       {.stride_h = 2, .stride_w = 1, .dil_h = 1, .dil_w = 2, .groups = 3}},
      {{0, 3, 32, 32}, {6, 3, 5, 5}}};  // a batch of none
  for (const int64_t n : {1, 3, 16, 64}) {
    layers.push_back({{n, 3, 32, 32}, {6, 3, 5, 5}});  // LeNet's
    layers.push_back({{n, 6, 14, 14}, {16, 6, 5, 5}});
  }
  struct Stack {
    int64_t rows;
    Sizes widths;
  };
  std::vector<Stack> stacks = {{130, {1500, 64, 10}},  // a long row
                               {9, {600, 700, 3}},     // too wide for one kernel
                               {1031, {17, 19, 5}},
                               {0, {6, 5, 3}}};
  for (const int64_t rows : {1, 3, 16, 64, 300}) stacks.push_back({rows, {400, 120, 84, 10}});
  for (const int64_t rows : {1, 5, 70})
    for (const Sizes& widths : {Sizes{1, 1},
                                {400, 10},  // one layer
                                {7, 1, 33},
                                {257, 33, 1, 7, 1},
                                {33, 257, 7},
                                {5, 6, 7, 8, 9, 10, 11, 12, 13},       // eight layers
                                {5, 6, 7, 8, 9, 10, 11, 12, 13, 14}})  // more than a kernel takes
      stacks.push_back({rows, widths});
  for (const Values values : {Values::kIntegers, Values::kNoise}) {
    for (const Layer& l : layers)
      if (values == Values::kIntegers || l.x[0] < 64)  // of many windows, some are always close
        add("conv2d_relu_pool",
            [=] { return conv2d_relu_pool_case(l.x, l.w, l.bias, l.p, values); });
    for (const Stack& s : stacks)
      if (values == Values::kIntegers || s.rows <= 70)
        for (const bool relu_last : {false, true})
          for (const bool bias : {true, false})
            add("mlp", [=] { return mlp_case(s.rows, s.widths, bias, relu_last, values); });
  }
}

// What surrounds the differentiable operators: counting right answers, and making batches of bytes.
void Table::data() {
  for (const int64_t n : {1, 255, 257, 1025, 9001})
    for (const int64_t classes : {1, 10, 37, 1031})
      cases_.push_back({"add_correct", Reference::kOracle, [=] {
                          const Array x = noise({n, classes}, 1);
                          const std::vector<int64_t> labels = random_labels(n, classes, 2);
                          Array correct{{}, {3}};  // adds to what is there
                          for (int64_t i = 0; i < n; ++i) {
                            const auto row = x.v.begin() + i * classes;
                            const int64_t best = std::max_element(row, row + classes) - row;
                            correct.v[0] += best == labels[static_cast<size_t>(i)];
                          }
                          return PreparedCheck{
                              str("logits ", Shape(x.shape)), [=](TensorOptions o, Mode mode) {
                                const Tensor logits = tensor(x, o),
                                             y = from_vector(labels, {n}, o.device);
                                const std::vector<Tensor> counted = results(mode, [&] {
                                  const Tensor total = full({}, 3, {kInt64, o.device});
                                  add_correct(total, logits, y);
                                  return std::vector<Tensor>{total};
                                });
                                return std::vector<Comparison>{
                                    compare("count", counted[0].to(kFloat64), correct, 0)};
                              }};
                        }});
  for (const Sizes& shape : {Sizes{1, 1, 1, 1}, {7, 3, 32, 32}, {5, 4, 3, 7}, {1031, 1, 3, 5}})
    cases_.push_back(
        {"Batches", Reference::kOracle, [=] {
           const std::array<float, 4> mean = {0.5F, 0.25F, 0, 0.4375F},
                                      std = {0.5F, 0.25F, 1, 0.375F};
           oracle::Random random(1);
           std::vector<uint8_t> pixels, labels;
           for (int64_t i = 0; i < count(shape); ++i)
             pixels.push_back(static_cast<uint8_t>(random.below(256)));
           for (int64_t i = 0; i < shape[0]; ++i)
             labels.push_back(static_cast<uint8_t>(random.below(10)));
           Array x = filled(shape), y = filled({shape[0]});
           oracle::for_each_index(shape, [&](const Sizes& at) {
             const size_t i = oracle::offset(shape, at), c = static_cast<size_t>(at[1]);
             x.v[i] = (pixels[i] / 255.0 - mean[c]) / std[c];
           });
           y.v.assign(labels.begin(), labels.end());
           return PreparedCheck{
               str("images ", Shape(shape)), [=](TensorOptions o, Mode mode) {
                 ImageSet set{from_vector(pixels, Shape(shape)), from_vector(labels, {shape[0]})};
                 set.mean = mean;
                 set.std = std;
                 Batches batches(set.to(o.device),
                                 {.batch_size = shape[0], .shuffle = false, .dtype = o.dtype});
                 batches.start_epoch(0);
                 const std::vector<Tensor> batch = results(mode, [&] {
                   const Batch first = batches.get(0);
                   return std::vector<Tensor>{first.x, first.y};
                 });
                 // One multiplication and one addition, with factors that are rounded too.
                 return std::vector<Comparison>{compare("x", batch[0], x, 2),
                                                compare("y", batch[1].to(kFloat64), y, 0)};
               }};
         }});
}

void Table::optimizers() {
  for (const OptimizerCase& c : optimizer_cases())
    cases_.push_back({c.name.substr(0, c.name.find(',')), Reference::kOracle, [c] {
                        return PreparedCheck{c.name, [c](TensorOptions o, Mode mode) {
                                               return compare_with_equations(c, o, mode);
                                             }};
                      }});
}

}  // namespace

std::vector<VerifyCase> oracle_cases() {
  Table table;
  table.convolutions();
  table.pools();
  table.products();
  table.elementwise();
  table.reductions();
  table.views();
  table.losses();
  table.fused();
  table.data();
  table.optimizers();
  std::vector<VerifyCase> cases = table.take();
  add_attention_cases(cases);
  add_pool_cases(cases);
  add_shape_cases(cases);
  add_reduction_cases(cases);
  add_elementwise_cases(cases);
  return cases;
}

}  // namespace sinter::app
