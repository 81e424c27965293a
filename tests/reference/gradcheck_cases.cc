#include "tests/reference/gradcheck_cases.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "core/base/detail.h"
#include "sinter/models.h"
#include "sinter/nn.h"
#include "sinter/ops.h"
#include "sinter/random.h"
#include "tests/reference/gradcheck_attention.h"
#include "tests/reference/gradcheck_norm.h"
#include "tests/reference/gradcheck_reduce.h"
#include "tests/reference/gradcheck_shape.h"
#include "tests/reference/oracle_cases.h"
#include "tests/reference/oracle_elementwise.h"

namespace sinter::app {

namespace {

using Inputs = std::vector<Tensor>;

// Distinct values in (-2, 2), evenly spaced and shuffled, none of them 0: off the kinks of ReLU and
// of max-pooling.
Tensor spaced(const Shape& shape, Generator& generator) {
  const auto n = static_cast<size_t>(shape.numel());
  std::vector<double> values(n);
  for (size_t i = 0; i < n; ++i) {
    values[i] = (static_cast<double>(i) + 0.3) * 4 / static_cast<double>(n) - 2;
    std::swap(values[i], values[generator.next() % (i + 1)]);
  }
  return from_vector(values, shape);
}

// Uniform in [low, high).
Tensor drawn(const Shape& shape, Generator& generator, double low = -1, double high = 1) {
  Tensor x = empty(shape, {kFloat64, kCpu});
  uniform_(x, low, high, generator);
  return x;
}

// Puts tensors in the place of a module's parameters, one after another.
class SetParameters : public Visitor {
 public:
  SetParameters(const Inputs& tensors, size_t next) : tensors_(tensors), next_(next) {}
  void parameter(const std::string&, Tensor& tensor) override {
    if (tensor.defined()) tensor = tensors_.at(next_++);
  }
  void buffer(const std::string&, Tensor&) override {}
  void module(const std::string&, ModuleBase& child) override { child.visit(*this); }

 private:
  const Inputs& tensors_;
  size_t next_;
};

class GradcheckTable {
 public:
  std::vector<GradcheckCase> take() { return std::move(cases_); }

  void add_case(const std::string& op, const std::string& attributes, Inputs inputs,
                std::function<Tensor(const Inputs&)> f) {
    std::string what;
    for (const Tensor& x : inputs) what += str(what.empty() ? "" : " ", x.shape());
    if (!attributes.empty()) what += str(", ", attributes);
    cases_.push_back({op, what, std::move(inputs), std::move(f)});
  }

  // A module as a function of x and its parameters.
  void add_module(const std::string& name, const std::string& attributes, const Tensor& x,
                  const std::shared_ptr<Module>& module) {
    Inputs inputs = {x};
    for (const Tensor& p : module->parameters()) {
      // Of a size that keeps activations near 1 through a deep network.
      const double bound =
          p.rank() < 2
              ? 0.1
              : std::sqrt(3.0 * static_cast<double>(p.size(0)) / static_cast<double>(p.numel()));
      inputs.push_back(drawn(p.shape(), generator_, -bound, bound));
    }
    std::string what = x.shape().str();
    if (!attributes.empty()) what += str(", ", attributes);
    cases_.push_back({name, what, std::move(inputs), [module](const Inputs& in) {
                        SetParameters set(in, 1);
                        module->visit(set);
                        return (*module)(in[0]);
                      }});
  }

  void convolutions();
  void pools();
  void pools_of_other_kinds();
  void products();
  void elementwise();
  void reductions();
  void views();
  void losses();
  void modules();
  void fused();

 private:
  Tensor noise(const Shape& shape) { return drawn(shape, generator_); }
  Tensor ramp(const Shape& shape) { return spaced(shape, generator_); }
  // Of either sign, magnitude from 0.5 to 1.5: a divisor.
  Tensor away_from_zero(const Shape& shape) {
    std::vector<double> values = noise(shape).to_vector<double>();
    for (double& v : values) v += v < 0 ? -0.5 : 0.5;
    return from_vector(values, shape);
  }

  Generator generator_{1};
  std::vector<GradcheckCase> cases_;
};

void GradcheckTable::convolutions() {
  struct Case {
    Shape x, w;
    bool bias;
    Conv2dOptions options;
    std::string what;
  };
  const Case cases[] = {
      {{1, 1, 1, 1}, {1, 1, 1, 1}, true, {}, ""},
      {{2, 3, 7, 5}, {4, 3, 3, 2}, true, {}, ""},
      {{2, 3, 7, 5}, {4, 3, 3, 2}, false, {}, "no bias"},
      {{3, 3, 9, 8}, {6, 3, 5, 5}, true, {1, 2}, "padding 2"},
      {{2, 2, 9, 6}, {5, 2, 3, 2}, true, {{2, 3}, {1, 0}}, "stride (2, 3), padding (1, 0)"},
      {{2, 2, 11, 8}, {3, 2, 2, 3}, true, {1, 0, {3, 2}}, "dilation (3, 2)"},
      {{2, 4, 6, 7}, {6, 2, 3, 3}, true, {{1, 2}, 1, 1, 2}, "stride (1, 2), padding 1, groups 2"},
      {{2, 3, 5, 4}, {6, 1, 2, 2}, true, {1, 1, 1, 3}, "padding 1, depthwise, groups 3"},
      {{5, 2, 4, 3}, {3, 2, 4, 3}, true, {}, "window of the whole image"},
      {{1, 2, 1, 1}, {2, 2, 3, 3}, true, {2, 1}, "stride 2, padding 1"},
      {{17, 1, 5, 5}, {2, 1, 3, 3}, true, {3}, "stride 3, rows left over"},
      {{0, 2, 4, 4}, {3, 2, 3, 3}, true, {}, "batch of none"}};
  for (const Case& c : cases) {
    Inputs inputs = {noise(c.x), noise(c.w)};
    if (c.bias) inputs.push_back(noise({c.w[0]}));
    add_case("conv2d", c.what, inputs, [options = c.options](const Inputs& in) {
      return conv2d(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options);
    });
  }
}

void GradcheckTable::pools() {
  struct Case {
    Shape x;
    Pair kernel;
    MaxPool2dOptions options;
    std::string what;
  };
  const Case cases[] = {
      {{1, 1, 1, 1}, 1, {}, "kernel 1"},
      {{2, 3, 6, 8}, 2, {}, "kernel 2"},
      {{2, 2, 7, 5}, 2, {}, "kernel 2, rows left over"},
      {{2, 2, 7, 5}, {3, 2}, {Pair(2, 1), 1}, "kernel (3, 2), stride (2, 1), padding 1"},
      {{1, 2, 5, 5}, 3, {1, 1}, "kernel 3, stride 1, padding 1"},
      {{3, 2, 4, 9}, {1, 4}, {Pair(1, 3), {0, 2}}, "kernel (1, 4), stride (1, 3), padding (0, 2)"},
      {{2, 2, 9, 7}, {2, 1}, {Pair(5, 3), 0}, "kernel (2, 1), stride (5, 3)"},
      {{0, 2, 4, 4}, 2, {}, "kernel 2, batch of none"}};
  for (const Case& c : cases) {
    add_case("max_pool2d", c.what, {ramp(c.x)},
             [kernel = c.kernel, options = c.options](const Inputs& in) {
               return max_pool2d(in[0], kernel, options);
             });
  }
  for (const Case& c : cases) {
    add_case("avg_pool2d", c.what, {noise(c.x)},
             [kernel = c.kernel, options = c.options](const Inputs& in) {
               return avg_pool2d(in[0], kernel,
                                 {.stride = options.stride, .padding = options.padding});
             });
  }
}

void GradcheckTable::pools_of_other_kinds() {
  const MaxPool2dOptions max{2, 1, Pair(1, 2), true};
  add_case("max_pool2d", "kernel 3, stride 2, padding 1, dilation (1, 2), ceil_mode",
           {ramp({2, 2, 6, 7})}, [max](const Inputs& in) { return max_pool2d(in[0], 3, max); });
  add_case("max_pool2d_with_indices", "kernel 3, stride 2, padding 1, dilation (1, 2), ceil_mode",
           {ramp({2, 6, 7})},
           [max](const Inputs& in) { return max_pool2d_with_indices(in[0], 3, max).values; });
  add_case("avg_pool2d", "kernel 3, stride 2, padding 1, ceil_mode, padding not counted",
           {noise({2, 6, 8})}, [](const Inputs& in) {
             return avg_pool2d(
                 in[0], 3,
                 {.stride = 2, .padding = 1, .ceil_mode = true, .count_include_pad = false});
           });
  add_case("avg_pool2d", "divisor_override 3", {noise({1, 2, 5, 6})},
           [](const Inputs& in) { return avg_pool2d(in[0], 2, {.divisor_override = 3}); });
  add_case("max_pool1d", "kernel 3, stride 2", {ramp({2, 3, 8})},
           [](const Inputs& in) { return max_pool1d(in[0], 3, {.stride = 2}); });
  add_case("avg_pool1d", "kernel 3, stride 2, padding 1", {noise({2, 3, 8})},
           [](const Inputs& in) { return avg_pool1d(in[0], 3, {.stride = 2, .padding = 1}); });
  for (const Pair size : {Pair(3, 5), Pair(1, 1), Pair(3, 4)}) {
    const std::string what = str("to (", size.h, ", ", size.w, ")");
    add_case("adaptive_avg_pool2d", what, {noise({2, 6, 8})},
             [size](const Inputs& in) { return adaptive_avg_pool2d(in[0], size); });
    add_case("adaptive_max_pool2d", what, {ramp({2, 1, 6, 8})},
             [size](const Inputs& in) { return adaptive_max_pool2d(in[0], size); });
    add_case("adaptive_avg_pool1d", what, {noise({2, 2, 8})},
             [size](const Inputs& in) { return adaptive_avg_pool1d(in[0], size.w); });
    add_case("adaptive_max_pool1d", what, {ramp({2, 8})},
             [size](const Inputs& in) { return adaptive_max_pool1d(in[0], size.w); });
  }
}

void GradcheckTable::products() {
  const std::pair<Shape, int64_t> linears[] = {{{1, 1}, 1},    {{4, 5}, 3}, {{33, 17}, 19},
                                               {{2, 3, 7}, 4}, {{6}, 2},    {{0, 5}, 3}};
  for (const auto& [x, out] : linears) {
    const Shape w = {out, x[-1]};
    add_case("linear", "", {noise(x), noise(w), noise({out})},
             [](const Inputs& in) { return linear(in[0], in[1], in[2]); });
  }
  add_case("linear", "no bias", {noise({4, 5}), noise({3, 5})},
           [](const Inputs& in) { return linear(in[0], in[1]); });
  const std::pair<Shape, Shape> matmuls[] = {
      {{1, 1}, {1, 1}},    {{3, 4}, {4, 5}},    {{33, 17}, {17, 9}},    {{2, 3, 4}, {2, 4, 5}},
      {{2, 3, 4}, {4, 5}}, {{3, 4}, {2, 4, 1}}, {{1, 3, 4}, {3, 4, 2}}, {{2, 1, 3, 4}, {5, 4, 2}}};
  for (const auto& [a, b] : matmuls) {
    add_case("matmul", "", {noise(a), noise(b)},
             [](const Inputs& in) { return matmul(in[0], in[1]); });
  }
  add_case("matmul", "a vector", {noise({3}), noise({2, 3, 4})},
           [](const Inputs& in) { return matmul(in[0], in[1]); });
  add_case("mm", "", {noise({2, 3}), noise({3, 4})},
           [](const Inputs& in) { return mm(in[0], in[1]); });
  add_case("bmm", "", {noise({2, 3, 4}), noise({2, 4, 2})},
           [](const Inputs& in) { return bmm(in[0], in[1]); });
  add_case("mv", "", {noise({3, 4}), noise({4})},
           [](const Inputs& in) { return mv(in[0], in[1]); });
  add_case("dot", "", {noise({5}), noise({5})}, [](const Inputs& in) { return dot(in[0], in[1]); });
  add_case("addmm", "beta 0.5, alpha 2", {noise({4}), noise({3, 2}), noise({2, 4})},
           [](const Inputs& in) {
             return addmm(in[0], in[1], in[2], {0.5, 2});
           });
  add_case("baddbmm", "", {noise({3, 4}), noise({2, 3, 2}), noise({2, 2, 4})},
           [](const Inputs& in) { return baddbmm(in[0], in[1], in[2]); });
}

void GradcheckTable::elementwise() {
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{3, 5, 7}, Shape{1025}})
    add_case("relu", "", {ramp(shape)}, [](const Inputs& in) { return relu(in[0]); });

  struct Case {
    const char* op;
    Tensor (*binary)(const Tensor&, const Tensor&);
    const char* what;
    Tensor (*unary)(const Inputs&);
  };
  const Case cases[] = {
      {"add", add, "a number, and x twice", [](const Inputs& in) { return in[0] + 0.7 + in[0]; }},
      {"sub", sub, "a number, and x negated", [](const Inputs& in) { return -in[0] - 0.7; }},
      {"mul", mul, "a number, and x twice", [](const Inputs& in) { return in[0] * 0.7 * in[0]; }},
      {"div", div, "by a number", [](const Inputs& in) { return in[0] / 0.7; }}};
  const std::pair<Shape, Shape> broadcasts[] = {
      {{3, 4}, {3, 4}},          {{2, 3, 4}, {4}},    {{3, 1}, {1, 5}}, {{}, {2, 3}},
      {{2, 1, 3, 1}, {4, 1, 5}}, {{33, 32}, {33, 1}}, {{0, 3}, {1, 3}}};
  for (const Case& c : cases) {
    for (const auto& [a, b] : broadcasts) {
      add_case(c.op, "", {noise(a), away_from_zero(b)},
               [f = c.binary](const Inputs& in) { return f(in[0], in[1]); });
    }
    add_case(c.op, c.what, {noise({3, 5})}, c.unary);
  }
}

void GradcheckTable::reductions() {
  struct Case {
    Shape x;
    std::vector<int> dims;
    bool keepdim;
    std::string what;
  };
  const Case cases[] = {{{}, {}, false, "all"},
                        {{3, 4, 5}, {}, false, "all"},
                        {{1, 1025}, {}, true, "all, kept"},
                        {{3, 4, 5}, {1}, false, "dims 1"},
                        {{3, 4, 5}, {0, 2}, true, "dims 0 2, kept"},
                        {{2, 3, 4, 5}, {-1, 1}, false, "dims -1 1"},
                        {{33, 7}, {0}, false, "dims 0"},
                        {{0, 3}, {1}, false, "dims 1, batch of none"}};
  for (const Case& c : cases) {
    add_case("sum", c.what, {noise(c.x)},
             [=](const Inputs& in) { return sum(in[0], c.dims, c.keepdim); });
  }
  for (const Case& c : cases) {
    add_case("mean", c.what, {noise(c.x)},
             [=](const Inputs& in) { return mean(in[0], c.dims, c.keepdim); });
  }
}

// A view alone would pass its gradient through unseen: each is squared.
void GradcheckTable::views() {
  const auto squared = [](const Tensor& x) { return x * x; };
  add_case("reshape", "to (4, -1)", {noise({2, 3, 4})}, [=](const Inputs& in) {
    return squared(reshape(in[0], {4, -1}));
  });
  add_case("reshape", "to a scalar", {noise({1, 1})},
           [=](const Inputs& in) { return squared(reshape(in[0], Shape{})); });
  add_case("flatten", "1 to -2", {noise({2, 3, 4, 5})},
           [=](const Inputs& in) { return squared(flatten(in[0], 1, -2)); });
  const std::pair<Shape, std::vector<int>> permutations[] = {
      {{2, 3}, {1, 0}}, {{33, 34}, {1, 0}}, {{2, 3, 4}, {2, 0, 1}}, {{2, 3, 4, 5}, {0, -2, 3, 1}}};
  for (const auto& [shape, dims] : permutations) {
    add_case("permute", "", {noise(shape)},
             [=, dims = dims](const Inputs& in) { return squared(permute(in[0], dims)); });
  }
  add_case("transpose", "", {noise({2, 3, 4})},
           [=](const Inputs& in) { return squared(transpose(in[0], -1, 0)); });
  add_case("squeeze", "all", {noise({1, 3, 1, 2})},
           [=](const Inputs& in) { return squared(squeeze(in[0])); });
  add_case("squeeze", "one", {noise({1, 3, 1, 2})},
           [=](const Inputs& in) { return squared(squeeze(in[0], -2)); });
  add_case("unsqueeze", "", {noise({3, 2})},
           [=](const Inputs& in) { return squared(unsqueeze(in[0], 1)); });
  add_case("narrow", "rows 1 to 3", {noise({5, 3, 2})},
           [=](const Inputs& in) { return squared(narrow(in[0], 0, 1, 3)); });
  add_case("narrow", "two that overlap", {noise({5, 3})},
           [](const Inputs& in) { return narrow(in[0], 0, 0, 3) * narrow(in[0], 0, 2, 3); });
  add_case("clone", "", {noise({3, 5})}, [=](const Inputs& in) { return squared(in[0].clone()); });
}

void GradcheckTable::losses() {
  const std::pair<Shape, int> softmaxes[] = {{{4, 10}, 1},       {{3, 5, 2}, 1}, {{6}, 0},
                                             {{2, 3, 4, 5}, -4}, {{1, 1}, 1},    {{3, 1025}, 1}};
  for (const auto& [shape, dim] : softmaxes) {
    add_case("log_softmax", str("dim ", dim), {drawn(shape, generator_, -5, 5)},
             [dim = dim](const Inputs& in) { return log_softmax(in[0], dim); });
  }
  struct Case {
    int64_t n, c;
    Reduction reduction;
    double smoothing;
    std::string what;
  };
  const Case cases[] = {{1, 1, Reduction::kMean, 0, "mean"},
                        {6, 10, Reduction::kMean, 0, "mean"},
                        {5, 3, Reduction::kSum, 0, "sum"},
                        {7, 10, Reduction::kMean, 0.1, "mean, smoothing 0.1"},
                        {1, 2, Reduction::kSum, 0.3, "sum, smoothing 0.3"},
                        {65, 33, Reduction::kMean, 1, "mean, smoothing 1"}};
  for (const Case& c : cases) {
    std::vector<int64_t> labels(static_cast<size_t>(c.n));
    for (int64_t& label : labels)
      label = static_cast<int64_t>(generator_.next() % static_cast<uint64_t>(c.c));
    add_case("cross_entropy", c.what, {drawn({c.n, c.c}, generator_, -4, 4)},
             [=](const Inputs& in) {
               return cross_entropy(in[0], from_vector(labels, {c.n}, in[0].device()),
                                    {c.reduction, c.smoothing});
             });
  }
}

void GradcheckTable::modules() {
  add_module("Conv2d", "stride 2, padding (1, 0), groups 2", noise({2, 4, 6, 5}),
             std::make_shared<Conv2d>(4, 6, Pair{3, 2}, Conv2d::Options{2, {1, 0}, 1, 2}));
  add_module("Conv2d", "no bias", noise({2, 3, 5, 4}),
             std::make_shared<Conv2d>(3, 2, 3, Conv2d::Options{.bias = false}));
  add_module("Linear", "", noise({3, 5}), std::make_shared<Linear>(5, 4));
  add_module("Linear", "no bias", noise({2, 3, 5}), std::make_shared<Linear>(5, 4, false));
  add_module("ReLU", "", ramp({3, 5, 7}), std::make_shared<ReLU>());
  add_module("MaxPool2d", "kernel 3, stride 2, padding 1", ramp({2, 3, 7, 6}),
             std::make_shared<MaxPool2d>(3, 2, 1));
  add_module("AvgPool2d", "kernel (2, 3), stride 2", noise({2, 3, 7, 6}),
             std::make_shared<AvgPool2d>(Pair{2, 3}, 2));
  add_module("Flatten", "", noise({2, 3, 4}), std::make_shared<Flatten>());
  add_module("Sequential", "conv, pool, flatten, linear", noise({2, 3, 6, 6}),
             std::make_shared<Sequential>(Conv2d(3, 4, 3), MaxPool2d(2), Flatten(), Linear(16, 3)));
  for (const std::string& name : model_names()) {
    add_module(name, "whole network", noise({2, 3, 32, 32}), make_model(name));
    cases_.back().directions_only = true;
  }
}

void GradcheckTable::fused() {
  struct Layer {
    Shape x, w;
    bool bias;
    Conv2dOptions options;
    std::string what;
  };
  const Layer layers[] = {
      {{2, 2, 8, 8}, {3, 2, 3, 3}, true, {}, ""},
      {{2, 2, 8, 7}, {3, 2, 3, 3}, false, {}, "no bias, a column left over"},
      {{3, 1, 7, 8}, {4, 1, 5, 5}, true, {1, 2}, "padding 2, a row left over"},
      {{2, 3, 6, 9}, {2, 3, 5, 3}, true, {1, {1, 0}}, "padding (1, 0), a column left over"},
      {{17, 1, 3, 4}, {2, 1, 2, 3}, true, {}, "one window"},
      {{2, 4, 9, 7}, {6, 2, 3, 2}, true, {{2, 1}, 1, 1, 2}, "stride (2, 1), padding 1, groups 2"},
      {{0, 2, 6, 6}, {3, 2, 3, 3}, true, {}, "batch of none"}};
  for (const Layer& l : layers) {
    Inputs inputs = {noise(l.x), noise(l.w)};
    if (l.bias) inputs.push_back(noise({l.w[0]}));
    add_case("conv2d_relu_pool", l.what, inputs, [options = l.options](const Inputs& in) {
      return conv2d_relu_pool(in[0], in[1], in.size() > 2 ? in[2] : Tensor(), options);
    });
  }
  struct Stack {
    Shape x;
    std::vector<int64_t> widths;  // of the layers' results
    std::vector<bool> bias;
    bool relu_last;
    std::string what;
  };
  const Stack stacks[] = {
      {{3, 4}, {2}, {true}, false, "one layer"},
      {{3, 4}, {2}, {true}, true, "one layer, ReLU last"},
      {{3, 4}, {6, 5, 2}, {true, true, true}, false, ""},
      {{3, 4}, {6, 5, 2}, {true, false, true}, true, "a bias missing, ReLU last"},
      {{2, 3, 5}, {7, 4}, {true, true}, false, "leading dimensions"},
      {{17, 9}, {33, 1, 7}, {false, true, false}, false, "biases missing"},
      {{6}, {5, 3}, {true, true}, false, "a vector"},
      {{0, 5}, {4, 3}, {true, true}, false, "batch of none"}};
  for (const Stack& s : stacks) {
    Inputs inputs = {noise(s.x)};
    int64_t in_width = s.x[-1];
    for (size_t l = 0; l < s.widths.size(); ++l) {
      inputs.push_back(noise({s.widths[l], in_width}));
      if (s.bias[l]) inputs.push_back(noise({s.widths[l]}));
      in_width = s.widths[l];
    }
    add_case("mlp", s.what, inputs, [bias = s.bias, relu_last = s.relu_last](const Inputs& in) {
      Inputs weights, biases;
      size_t next = 1;
      for (const bool has_bias : bias) {
        weights.push_back(in[next++]);
        biases.push_back(has_bias ? in[next++] : Tensor());
      }
      return mlp(in[0], weights, biases, relu_last);
    });
  }
}

}  // namespace

std::vector<GradcheckCase> gradcheck_cases() {
  GradcheckTable table;
  table.convolutions();
  table.pools();
  table.pools_of_other_kinds();
  table.products();
  table.elementwise();
  table.reductions();
  table.views();
  table.losses();
  table.modules();
  table.fused();
  std::vector<GradcheckCase> cases = table.take();
  add_attention_cases(cases);
  add_reduction_cases(cases);
  add_norm_gradchecks(cases);
  add_shape_gradchecks(cases);
  add_elementwise_gradchecks(cases);
  // An operator's beside each other, in the order of their first ones.
  std::map<std::string, int> place;
  for (const GradcheckCase& c : cases) place.emplace(c.op, static_cast<int>(place.size()));
  std::stable_sort(cases.begin(), cases.end(), [&](const GradcheckCase& a, const GradcheckCase& b) {
    return place.at(a.op) < place.at(b.op);
  });
  return cases;
}

}  // namespace sinter::app
