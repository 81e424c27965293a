// ReLU done by the convolution, linear layer or addition before it: which programs have that, and
// that no bit is another than eagerly.
#include <hwy/targets.h>

#include <cmath>
#include <limits>

#include "core/base/detail.h"
#include "tests/reference/oracle.h"
#include "tests/support/compiled.h"

namespace sinter::test {
namespace {

constexpr DType kFloats[] = {kFloat32, kFloat64};

// Eagerly and compiled, with the fuse pass and without: the same bits.
void check_exact(const Work& f) {
  const Results eager = copies(f());
  for (const char* off : {"", "-dead", "-schedule", "-memory", "-fuse"}) {
    INFO("SINTER_PASSES=" << off);
    const PassesOff without(off);
    check_same_bits(copies(compiled(f)), eager);
  }
}

// What f's program has, of operators that end with a ReLU and of ones that do not.
struct Has {
  int64_t conv = 0, conv_relu = 0, linear = 0, linear_relu = 0, binary = 0, add_relu = 0, relu = 0;
  bool operator==(const Has&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Has& h) {
  return out << h.conv << " conv, " << h.conv_relu << " conv relu, " << h.linear << " linear, "
             << h.linear_relu << " linear relu, " << h.binary << " binary, " << h.add_relu
             << " add relu, " << h.relu << " relu";
}
Has forward_of(const Work& f) {
  const PassesOff parts("-elementwise");  // which puts what is left into chains
  Has has;
  const List list = program_of(f);
  for (const Entry& entry : list.entries) {
    if (const auto* conv = entry.op->as<op::Conv2dForward>())
      ++(conv->relu ? has.conv_relu : has.conv);
    if (const auto* linear = entry.op->as<op::LinearForward>())
      ++(linear->relu ? has.linear_relu : has.linear);
    const auto* map = entry.op->as<op::Map>();
    if (map != nullptr && map->gradient < 0 && !op::is_relu(map) &&
        !op::is_forward(map, op::Element::kAddRelu))
      ++has.binary;
    if (op::is_forward(map, op::Element::kAddRelu)) ++has.add_relu;
    if (op::is_relu(map)) ++has.relu;
  }
  return has;
}
// Of `f` without gradients: a backward pass has operators of its own.
void check_forward(const Work& f, const Has& expected) {
  const no_grad guard;
  CHECK(forward_of(f) == expected);
}

// y and the gradients of the leaves.
Work step_of(const std::vector<Tensor>& leaves, const std::function<Tensor()>& y) {
  return [=] {
    drop_gradients(leaves);
    const Tensor result = y();
    if (result.requires_grad()) result.backward(ones_like(result) * 0.5);
    Results all = gradients_of(leaves);
    all.push_back(result);
    return all;
  };
}

constexpr ConvAlgo kAlgorithms[] = {
    ConvAlgo::kAuto,         ConvAlgo::kNaive,      ConvAlgo::kDirect,  ConvAlgo::kIm2col,
    ConvAlgo::kImplicitGemm, ConvAlgo::kTensorCore, ConvAlgo::kWinograd};

struct Layer {
  Sizes x, w;
  bool bias = true;
  oracle::Conv p = {};
};
std::ostream& operator<<(std::ostream& out, const Layer& l) {
  return out << "x " << Shape(l.x) << " weight " << Shape(l.w) << " bias " << l.bias << " stride "
             << l.p.stride_h << ',' << l.p.stride_w << " padding " << l.p.pad_h << ',' << l.p.pad_w
             << " dilation " << l.p.dil_h << ',' << l.p.dil_w << " groups " << l.p.groups;
}
const std::vector<Layer>& layers() {
  static const std::vector<Layer> all = {
      {{3, 3, 12, 10}, {6, 3, 5, 5}},
      {{3, 3, 12, 10}, {6, 3, 5, 5}, false},
      {{18, 5, 9, 11}, {13, 5, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{4, 40, 8, 8}, {70, 40, 3, 3}, true, {.pad_h = 1, .pad_w = 1}},
      {{2, 70, 9, 7}, {65, 70, 3, 3}, false, {.pad_h = 1, .pad_w = 1}},
      {{1, 600, 9, 9}, {8, 600, 1, 1}},  // more channels than are summed at once
      {{1, 200, 5, 6}, {20, 200, 3, 3}, true, {.pad_h = 2, .pad_w = 1}},
      {{2, 8, 11, 10}, {8, 1, 3, 3}, true, {.pad_h = 1, .pad_w = 1, .groups = 8}},
      {{3, 8, 9, 12},
       {12, 4, 3, 2},
       true,
       {.stride_h = 2, .stride_w = 3, .pad_h = 2, .pad_w = 1, .dil_w = 2, .groups = 2}},
      {{2, 2, 3, 2}, {3, 2, 2, 1}, true, {.pad_h = 4, .pad_w = 3}},  // windows outside the image
      {{1, 1, 1, 1}, {1, 1, 1, 1}}};
  return all;
}

// Whether the device has the algorithm for a layer; it says so itself.
bool has_algorithm(const Tensor& x, const Tensor& w, const app::Op& conv) {
  try {
    const no_grad guard;
    conv({x, w});
    return true;
  } catch (const ValueError&) {
    return false;
  }
}

op::Conv2dShape shape_of(const Layer& l, ConvAlgo algo) {
  const auto i = [](int64_t v) { return static_cast<int>(v); };
  op::Conv2dShape g;
  g.n = i(l.x[0]), g.c = i(l.x[1]), g.h = i(l.x[2]), g.w = i(l.x[3]);
  g.o = i(l.w[0]), g.kh = i(l.w[2]), g.kw = i(l.w[3]);
  g.stride_h = i(l.p.stride_h), g.stride_w = i(l.p.stride_w);
  g.pad_h = i(l.p.pad_h), g.pad_w = i(l.p.pad_w);
  g.dil_h = i(l.p.dil_h), g.dil_w = i(l.p.dil_w), g.groups = i(l.p.groups);
  g.oh = (g.h + 2 * g.pad_h - g.dil_h * (g.kh - 1) - 1) / g.stride_h + 1;
  g.ow = (g.w + 2 * g.pad_w - g.dil_w * (g.kw - 1) - 1) / g.stride_w + 1;
  g.algo = algo;
  return g;
}

Array relu_of(const Array& x) {
  return oracle::map(x, [](double v) { return v <= 0 ? 0 : v; });
}

// NaN, infinities, zeros of both signs and subnormal numbers among others.
Array specials(const Sizes& shape, uint64_t seed) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const double values[] = {std::nan(""), kInf, -kInf, 0.0, -0.0, 1e-40, -1e-40, 2, -2};
  Array a = filled(shape);
  Random random(seed);
  for (double& x : a.v) x = values[random.below(9)];
  return a;
}
// A few of them, so that not all sums are NaN.
Array with_specials(Array a, uint64_t seed) {
  const Array special = specials(a.shape, seed);
  Random random(seed + 1);
  for (size_t i = 0; i < a.v.size(); ++i) {
    if (random.below(30) == 0) a.v[i] = special.v[i];
    if (random.below(3) == 0) a.v[i] = i % 2 == 0 ? 0.0 : -0.0;
  }
  return a;
}

// y is the ReLU of z, a NaN being one.
void check_is_relu(const Tensor& y, const Tensor& z) {
  const std::vector<double> a = y.to_vector<double>(), b = z.to_vector<double>();
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    INFO(i << ": " << b[i]);
    if (std::isnan(b[i]))
      CHECK(std::isnan(a[i]));
    else
      CHECK(a[i] == (b[i] <= 0 ? 0 : b[i]));
  }
}

}  // namespace

// ---- the operators alone ------------------------------------------------------------------------

DEVICE_TEST("fused_activation: convolutions against the oracle", "[fused]") {
  for (const Layer& l : layers()) {
    INFO(l);
    const Array x = noise(l.x, 1), w = noise(l.w, 2), b = noise({l.w[0]}, 3);
    const Array expected = relu_of(oracle::conv2d(x, w, l.bias ? &b : nullptr, l.p));
    const auto terms = static_cast<double>(l.w[1] * l.w[2] * l.w[3] + 1);
    for (const ConvAlgo algo : kAlgorithms)
      for (const DType dtype : kFloats) {
        INFO(name(algo) << ' ' << dtype);
        const TensorOptions options{dtype, device};
        const Tensor tx = tensor(x, options), tw = tensor(w, options);
        {
          const With with(algo);
          if (!has_algorithm(tx, tw, app::conv2d_op(l.p))) continue;
        }
        const op::Conv2dShape g = shape_of(l, algo);
        const Tensor bias = l.bias ? tensor(b, options) : Tensor();
        const Tensor z = empty({g.n, g.o, g.oh, g.ow}, options), y = empty(z.shape(), options);
        emit(op::Conv2dForward{g, in(tx), in(tw), in(bias), out(z)});
        emit(op::Conv2dForward{g, in(tx), in(tw), in(bias), out(y), true});
        const bool winograd = algo == ConvAlgo::kAuto || algo == ConvAlgo::kWinograd;
        check_close(str("conv2d with ReLU ", name(algo)), y, expected,
                    winograd ? std::max(terms, 3.0 * 36) : terms);
        CHECK(same_bits(y, relu(z)));
      }
  }
}

DEVICE_TEST("fused_activation: linear layers against the oracle", "[fused]") {
  struct Case {
    int64_t n, in, out;
  };
  for (const Case& c : {Case{1, 1, 1}, {7, 20, 13}, {33, 1000, 70}, {300, 64, 200}, {5, 0, 4}})
    for (const bool bias : {true, false})
      for (const DType dtype : kFloats) {
        INFO(c.n << " x " << c.in << " -> " << c.out << " bias " << bias << ' ' << dtype);
        const TensorOptions options{dtype, device};
        const Array x = noise({c.n, c.in}, 1), w = noise({c.out, c.in}, 2), b = noise({c.out}, 3);
        Array expected = filled({c.n, c.out});
        for (int64_t i = 0; i < c.n; ++i)
          for (int64_t j = 0; j < c.out; ++j) {
            double sum = bias ? b.v[static_cast<size_t>(j)] : 0;
            for (int64_t k = 0; k < c.in; ++k)
              sum +=
                  x.v[static_cast<size_t>(i * c.in + k)] * w.v[static_cast<size_t>(j * c.in + k)];
            expected.v[static_cast<size_t>(i * c.out + j)] = sum <= 0 ? 0 : sum;
          }
        const Tensor tx = tensor(x, options), tw = tensor(w, options);
        const Tensor tb = bias ? tensor(b, options) : Tensor();
        const Tensor z = empty({c.n, c.out}, options), y = empty(z.shape(), options);
        const op::LinearShape g{c.n, c.in, c.out};
        emit(op::LinearForward{g, in(tx), in(tw), in(tb), out(z)});
        emit(op::LinearForward{g, in(tx), in(tw), in(tb), out(y), true});
        check_close("linear with ReLU", y, expected, static_cast<double>(c.in + 1));
        CHECK(same_bits(y, relu(z)));
      }
}

DEVICE_TEST("fused_activation: additions against the oracle", "[fused]") {
  for (const Sizes& shape : {Sizes{1}, {3}, {7, 5, 3}, {40000}, {0}})
    for (const DType dtype : kFloats) {
      INFO(Shape(shape) << ' ' << dtype);
      const TensorOptions options{dtype, device};
      const Array a = noise(shape, 1), b = noise(shape, 2);
      Array expected = a;
      for (size_t i = 0; i < a.v.size(); ++i) expected.v[i] = std::max(a.v[i] + b.v[i], 0.0);
      const Tensor ta = tensor(a, options), tb = tensor(b, options), y = empty(ta.shape(), options);
      emit(op::map(op::Element::kAddRelu, in(ta), in(tb), out(y)));
      check_close("add with ReLU", y, expected, 1);
      CHECK(same_bits(y, relu(ta + tb)));
    }
}

DEVICE_TEST("fused_activation: NaN, infinities and zeros of both signs", "[fused]") {
  for (const DType dtype : kFloats) {
    const TensorOptions options{dtype, device};
    INFO(dtype);
    // An addition.
    const Tensor a = tensor(specials({5000}, 1), options), b = tensor(specials({5000}, 2), options);
    const Tensor sum = a + b, y = empty(sum.shape(), options);
    emit(op::map(op::Element::kAddRelu, in(a), in(b), out(y)));
    check_is_relu(y, sum);
    CHECK(same_numbers(y, relu(sum)));
    check_exact([&] { return Results{relu(a + b)}; });
    // A linear layer: rows without a special value, and biases that are one.
    for (const bool bias : {true, false}) {
      INFO("bias " << bias);
      const Tensor rows = tensor(with_specials(noise({50, 20}, 1), 2), options);
      const Tensor w = tensor(with_specials(noise({30, 20}, 3), 14), options);
      const Tensor c = bias ? tensor(specials({30}, 5), options) : Tensor();
      const Tensor z = linear(rows, w, c), h = empty(z.shape(), options);
      emit(op::LinearForward{{50, 20, 30}, in(rows), in(w), in(c), out(h), true});
      check_is_relu(h, z);
      CHECK(same_numbers(h, relu(z)));
      check_exact([&] { return Results{relu(linear(rows, w, c))}; });
    }
    // Convolutions.
    for (const Layer& l : layers())
      for (const ConvAlgo algo : kAlgorithms) {
        INFO(l << ' ' << name(algo));
        const With with(algo);
        const Tensor x = tensor(with_specials(noise(l.x, 6), 7), options);
        const Tensor w = tensor(with_specials(noise(l.w, 8), 9), options);
        const Tensor c = l.bias ? tensor(specials({l.w[0]}, 10), options) : Tensor();
        const app::Op conv = app::conv2d_op(l.p);
        if (!has_algorithm(x, w, conv)) continue;
        const Tensor z = conv({x, w, c}), r = empty(z.shape(), options);
        emit(op::Conv2dForward{shape_of(l, algo), in(x), in(w), in(c), out(r), true});
        check_is_relu(r, z);
        CHECK(same_numbers(r, relu(z)));
        const Work f = [&] { return Results{relu(conv({x, w, c}))}; };
        check_same_bits(copies(compiled(f)), copies(f()));
      }
  }
}

TEST_CASE("fused_activation: -0 becomes 0 on a CPU", "[fused][cpu]") {
  for (const DType dtype : kFloats) {
    const TensorOptions options{dtype, kCpu};
    const Tensor zero = full({40}, -0.0, options), y = empty({40}, options);
    emit(op::map(op::Element::kAddRelu, in(zero), in(zero), out(y)));
    for (const double v : y.to_vector<double>()) CHECK((v == 0 && !std::signbit(v)));
  }
}

// ---- in programs --------------------------------------------------------------------------------

DEVICE_TEST("fused_activation: a linear layer that is in no chain", "[fused]") {
  for (const DType dtype : kFloats)
    for (const bool bias : {true, false})
      for (const bool needs_dx : {false, true}) {
        INFO(dtype << " bias " << bias << " dx " << needs_dx);
        const TensorOptions options{dtype, device};
        const Tensor x = tensor(noise({9, 2, 20}, 1), options),
                     w = leaf(noise({13, 20}, 2), options);
        const Tensor b = bias ? leaf(noise({13}, 3), options) : Tensor();
        x.set_requires_grad(needs_dx);
        std::vector<Tensor> leaves = {x, w};
        if (bias) leaves.push_back(b);
        const Work f = step_of(leaves, [=] { return relu(linear(x, w, b)); });
        check_exact(f);
        // A product alone has no pass on a GPU that a ReLU could be part of.
        const bool is_fused = bias || !device.is_cuda();
        check_forward(f, is_fused ? Has{.linear_relu = 1} : Has{.linear = 1, .relu = 1});
      }
}

DEVICE_TEST("fused_activation: a convolution by every algorithm", "[fused]") {
  int64_t done = 0;
  for (const Layer& l : layers())
    for (const ConvAlgo algo : kAlgorithms)
      for (const DType dtype : kFloats) {
        INFO(l << ' ' << name(algo) << ' ' << dtype);
        const With with(algo);
        const TensorOptions options{dtype, device};
        const Tensor x = leaf(noise(l.x, 1), options), w = leaf(noise(l.w, 2), options);
        const Tensor b = l.bias ? leaf(noise({l.w[0]}, 3), options) : Tensor();
        const app::Op conv = app::conv2d_op(l.p);
        std::vector<Tensor> leaves = {x, w};
        if (l.bias) leaves.push_back(b);
        const Work f = step_of(leaves, [=] { return relu(conv({x, w, b})); });
        try {
          f();  // an algorithm may lack a pass of a layer
        } catch (const ValueError&) {
          continue;
        }
        check_exact(f);
        check_forward(f, {.conv_relu = 1});
        ++done;
      }
  CHECK(done > 80);
}

DEVICE_TEST("fused_activation: TF32 of a convolution and a linear layer", "[fused]") {
  const With with(ConvAlgo::kAuto, true);
  const TensorOptions options{kFloat32, device};
  const Tensor x = leaf(noise({8, 64, 8, 8}, 1), options);
  const Tensor w = leaf(noise({64, 64, 3, 3}, 2), options), b = leaf(noise({64}, 3), options);
  check_exact(step_of({x, w, b}, [=] { return relu(conv2d(x, w, b, {.padding = 1})); }));
  const Tensor v = leaf(noise({70, 512}, 4), options), c = leaf(noise({70}, 5), options);
  const Tensor rows = leaf(noise({40, 512}, 6), options);
  check_exact(step_of({rows, v, c}, [=] { return relu(linear(rows, v, c)); }));
}

DEVICE_TEST("fused_activation: an addition", "[fused]") {
  for (const DType dtype : kFloats) {
    INFO(dtype);
    const TensorOptions options{dtype, device};
    const Tensor a = leaf(noise({3, 5, 7}, 1), options), b = leaf(noise({3, 5, 7}, 2), options);
    const auto check = [&](const std::string& what, const std::vector<Tensor>& leaves,
                           const std::function<Tensor()>& y, const Has& expected) {
      INFO(what);
      const Work f = step_of(leaves, y);
      check_exact(f);
      check_forward(f, expected);
    };
    const Has fused{.add_relu = 1}, apart{.binary = 1, .relu = 1};
    check(
        "two", {a, b}, [=] { return relu(a + b); }, fused);
    check(
        "one twice", {a}, [=] { return relu(a + a); }, fused);
    check(
        "as rows", {a, b},
        [=] {
          return relu((a + b).reshape({15, 7}));
        },
        fused);
    check(
        "with a 1 in front", {a, b},
        [=] {
          return relu(a + b.reshape({1, 3, 5, 7}));
        },
        fused);
    check(
        "a part", {a, b}, [=] { return relu((a + b).narrow(0, 1, 2)); }, apart);
    check(
        "a difference", {a, b}, [=] { return relu(a - b); }, apart);
    check(
        "a product", {a, b}, [=] { return relu(a * b); }, apart);
    check("two ReLUs", {a, b}, [=] { return relu(relu(a + b)); }, {.add_relu = 1, .relu = 1});
    // Broadcast.
    const Tensor row = leaf(noise({7}, 3), options), column = leaf(noise({5, 1}, 4), options);
    check(
        "a row", {a, row}, [=] { return relu(a + row); }, apart);
    check(
        "a row before", {a, row}, [=] { return relu(row + a); }, apart);
    check(
        "a column", {a, column}, [=] { return relu(a + column); }, apart);
    check(
        "a row and a column", {row, column}, [=] { return relu(row + column); }, apart);
    check(
        "a number", {a}, [=] { return relu(a + 0.25); }, apart);
    // One element is no broadcast of one.
    const Tensor one = leaf(noise({1}, 5), options), other = leaf(noise({1, 1}, 6), options);
    check(
        "one element", {one, other}, [=] { return relu(one + other); }, fused);
  }
}

DEVICE_TEST("fused_activation: a Sequential and free functions are the same program", "[fused]") {
  manual_seed(3);
  Sequential net(Conv2d(2, 4, 3), ReLU(), Conv2d(4, 6, 3, {.stride = 2}), ReLU(), AvgPool2d(2),
                 ReLU(), Flatten(), Linear(24, 16), ReLU());
  net.to(device);
  const Tensor x = tensor(noise({5, 2, 12, 12}, 1), {kFloat32, device});
  const std::vector<Tensor> p = net.parameters();
  const Work in_sequence = step_of(p, [&] { return net(x); });
  const Work written_out = step_of(p, [&] {
    const Tensor h = relu(conv2d(x, p[0], p[1]));
    const Tensor z = relu(conv2d(h, p[2], p[3], {.stride = 2}));
    return relu(linear(relu(avg_pool2d(z, 2)).reshape({5, 24}), p[4], p[5]));
  });
  const List a = program_of(in_sequence), b = program_of(written_out);
  INFO(text(operators_of(a)) << "\n" << text(operators_of(b)));
  Matching matching(a, b);
  CHECK(difference(a, b, matching) == "");
  check_forward(in_sequence, {.conv_relu = 2, .linear_relu = 1, .relu = 1});
  check_exact(in_sequence);
  check_same_bits(compiled(in_sequence), compiled(written_out));
}

DEVICE_TEST("fused_activation: a residual block", "[fused]") {
  for (const DType dtype : kFloats) {
    const TensorOptions options{dtype, device};
    const Tensor x = leaf(noise({4, 6, 9, 8}, 1), options);
    const Tensor w1 = leaf(noise({6, 6, 3, 3}, 2), options), b1 = leaf(noise({6}, 3), options);
    const Tensor w2 = leaf(noise({6, 6, 3, 3}, 4), options), b2 = leaf(noise({6}, 5), options);
    const Conv2dOptions padded{.padding = 1};
    const auto block = [=](const Tensor& t) {
      return relu(conv2d(relu(conv2d(t, w1, b1, padded)), w2, b2, padded) + t);
    };
    const std::vector<Tensor> leaves = {x, w1, b1, w2, b2};
    const Work one = step_of(leaves, [=] { return block(x); });
    check_exact(one);
    check_forward(one, {.conv = 1, .conv_relu = 1, .add_relu = 1});
    const Work three = step_of(leaves, [=] { return block(block(block(x))); });
    check_exact(three);
    check_forward(three, {.conv = 3, .conv_relu = 3, .add_relu = 3});
  }
}

DEVICE_TEST("fused_activation: larger fusions come first", "[fused]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = tensor(noise({6, 2, 12, 12}, 1), options);
  const Tensor w = leaf(noise({4, 2, 3, 3}, 2), options), b = leaf(noise({4}, 3), options);
  const Work pooled = step_of({w, b}, [=] { return max_pool2d(relu(conv2d(x, w, b)), 2); });
  const Work of_three = step_of({w, b}, [=] { return max_pool2d(relu(conv2d(x, w, b)), 3); });
  check_compiled(pooled);
  check_exact(of_three);
  check_forward(of_three, {.conv_relu = 1});
  const Tensor rows = tensor(noise({7, 20}, 1), options);
  const Tensor w1 = leaf(noise({12, 20}, 2), options), b1 = leaf(noise({12}, 3), options);
  const Tensor w2 = leaf(noise({8, 12}, 4), options), b2 = leaf(noise({8}, 5), options);
  const Work chain =
      step_of({w1, b1, w2, b2}, [=] { return relu(linear(relu(linear(rows, w1, b1)), w2, b2)); });
  check_compiled(chain);
  if (device.is_cuda()) return;
  check_forward(pooled, {});
  CHECK(count(operators_of(pooled), "conv2d_relu_pool_forward") == 1);
  check_forward(chain, {});
  CHECK(count(operators_of(chain), "mlp_forward") == 1);
}

DEVICE_TEST("fused_activation: an operator with a ReLU is no start of a larger fusion", "[fused]") {
  const TensorOptions options{kFloat32, device};
  const Tensor rows = tensor(noise({7, 20}, 1), options);
  const Tensor w1 = tensor(noise({12, 20}, 2), options), b1 = tensor(noise({12}, 3), options);
  const Tensor w2 = tensor(noise({8, 12}, 4), options), b2 = tensor(noise({8}, 5), options);
  const auto layer = [&](const Tensor& x, const Tensor& w, const Tensor& b) {
    const Tensor y = empty({x.size(0), w.size(0)}, options);
    emit(op::LinearForward{{x.size(0), w.size(1), w.size(0)}, in(x), in(w), in(b), out(y), true});
    return y;
  };
  for (const bool more : {false, true}) {  // one more ReLU changes nothing
    const auto act = [&](const Tensor& t) { return more ? relu(t) : t; };
    for (const bool last : {false, true}) {
      INFO("ReLU again " << more << " last " << last);
      const Work f = [&] {
        const Tensor h = act(layer(rows, w1, b1));
        return Results{last ? act(layer(h, w2, b2)) : linear(h, w2, b2)};
      };
      check_exact(f);
      CHECK(count(operators_of(f), "mlp_forward") == 0);
    }
  }
  const Work before = [&] { return Results{layer(relu(linear(rows, w1, b1)), w2, b2)}; };
  check_exact(before);
  check_forward(before, {.linear_relu = 2});

  const Layer l{{3, 2, 12, 12}, {4, 2, 3, 3}};
  const Tensor x = tensor(noise(l.x, 1), options), w = tensor(noise(l.w, 2), options);
  const Work pooled = [&] {
    const Tensor y = empty({3, 4, 10, 10}, options);
    emit(op::Conv2dForward{shape_of(l, ConvAlgo::kAuto), in(x), in(w), {}, out(y), true});
    return Results{max_pool2d(relu(y), 2), max_pool2d(y, 2)};
  };
  check_exact(pooled);
  CHECK(count(operators_of(pooled), "conv2d_relu_pool_forward") == 0);
}

// ---- the value before the ReLU ------------------------------------------------------------------

namespace {

// Each pattern on inputs of its own.
struct Pattern {
  std::string name;
  std::vector<Tensor> leaves;
  std::function<Tensor()> z;
  Has fused, apart;
};
std::vector<Pattern> patterns(TensorOptions options) {
  const Tensor x = leaf(noise({3, 2, 9, 8}, 1), options);
  const Tensor w = leaf(noise({4, 2, 3, 3}, 2), options), b = leaf(noise({4}, 3), options);
  const Tensor rows = leaf(noise({7, 20}, 4), options);
  const Tensor v = leaf(noise({12, 20}, 5), options), c = leaf(noise({12}, 6), options);
  const Tensor p = leaf(noise({6, 10}, 7), options), q = leaf(noise({6, 10}, 8), options);
  return {{"convolution",
           {x, w, b},
           [=] { return conv2d(x, w, b); },
           {.conv_relu = 1},
           {.conv = 1, .relu = 1}},
          {"linear layer",
           {rows, v, c},
           [=] { return linear(rows, v, c); },
           {.linear_relu = 1},
           {.linear = 1, .relu = 1}},
          {"addition", {p, q}, [=] { return p + q; }, {.add_relu = 1}, {.binary = 1, .relu = 1}}};
}

}  // namespace

DEVICE_TEST("fused_activation: the value before the ReLU has other readers", "[fused]") {
  for (const DType dtype : kFloats)
    for (const Pattern& p : patterns({dtype, device})) {
      INFO(p.name << ' ' << dtype);
      const Results alone = copies(step_of(p.leaves, [&] { return relu(p.z()); })());
      // It is held, or read before or behind the ReLU: what is there anyway is not made twice.
      for (const int when : {0, 1, 2}) {
        INFO("when " << when);
        const Work f = [&, when] {
          drop_gradients(p.leaves);
          const Tensor z = p.z();
          const Tensor before = when == 1 ? sum(z.detach()) : Tensor();
          const Tensor y = relu(z);
          const Tensor behind = when == 2 ? sum(z.detach()) : Tensor();
          if (y.requires_grad()) y.backward(ones_like(y) * 0.5);
          Results all = gradients_of(p.leaves);
          for (const Tensor& t : {y, when == 0 ? z : before, behind}) all.push_back(t);
          return all;
        };
        check_exact(f);
        check_forward(f, p.apart);
        Results all = copies(compiled(f));
        all.resize(alone.size());
        check_same_bits(all, alone);
      }
      // Two ReLUs of one value, and one whose other reader is no part of the program's results.
      check_exact(step_of(p.leaves, [&] {
        const Tensor z = p.z();
        return relu(z) * relu(z);
      }));
      check_exact(step_of(p.leaves, [&] {
        const Tensor z = p.z();
        static_cast<void>(z * 2.0);
        return relu(z);
      }));
      // Another branch, which has a gradient.
      check_exact(step_of(p.leaves, [&] {
        const Tensor z = p.z();
        return relu(z) + z;
      }));
    }
}

DEVICE_TEST("fused_activation: the value before the ReLU is changed", "[fused]") {
  for (const Pattern& p : patterns({kFloat32, device})) {
    INFO(p.name);
    const Work behind = step_of(p.leaves, [&] {
      const Tensor z = p.z(), y = relu(z);
      z.detach().fill_(3);
      return y;
    });
    check_exact(behind);
    check_forward(behind, p.fused);
    const Work before = step_of(p.leaves, [&] {
      const Tensor z = p.z();
      z.detach().copy_(z.detach() - 0.25);
      return relu(z);
    });
    check_exact(before);
    CHECK(forward_of(before).relu == 1);
    // A part of it.
    const Work part = step_of(p.leaves, [&] {
      const Tensor z = p.z();
      z.detach().narrow(0, 0, 1).fill_(-1);
      return relu(z);
    });
    check_exact(part);
    CHECK(forward_of(part).relu == 1);
  }
}

DEVICE_TEST("fused_activation: what is read is changed in between", "[fused]") {
  for (const Pattern& p : patterns({kFloat32, device}))
    for (const Tensor& changed : p.leaves)
      for (const bool whole : {true, false}) {
        INFO(p.name << ' ' << changed.shape() << ' ' << whole);
        const Tensor start = changed.detach().clone();
        const no_grad guard;
        const Work f = [&] {
          changed.copy_(start);
          const Tensor z = p.z();
          (whole ? changed : changed.narrow(0, 0, 1)).fill_(2);
          return Results{relu(z)};
        };
        check_exact(f);
        CHECK(forward_of(f) == p.apart);
        changed.copy_(start);
        // Behind the ReLU it may.
        const Work behind = [&] {
          changed.copy_(start);
          const Tensor y = relu(p.z());
          changed.fill_(2);
          return Results{y};
        };
        check_exact(behind);
        CHECK(forward_of(behind) == p.fused);
        changed.copy_(start);
      }
}

DEVICE_TEST("fused_activation: other views of the value", "[fused]") {
  for (const Pattern& p : patterns({kFloat32, device})) {
    INFO(p.name);
    const Work flat = step_of(p.leaves, [&] { return relu(flatten(p.z(), 0)); });
    check_exact(flat);
    check_forward(flat, p.fused);
    const Work part = step_of(p.leaves, [&] { return relu(p.z().narrow(0, 1, 2)); });
    check_exact(part);
    check_forward(part, p.apart);
    // A value that is held after the ReLU, and read.
    check_exact([&] {
      drop_gradients(p.leaves);
      const Tensor y = relu(p.z()), total = sum(y.detach());
      y.backward(ones_like(y));
      Results all = gradients_of(p.leaves);
      for (const Tensor& t : {y, total}) all.push_back(t);
      return all;
    });
  }
}

TEST_CASE("fused_activation: any number of threads gives the same bits", "[fused][cpu]") {
  for (const Layer& l : layers())
    for (const ConvAlgo algo : kAlgorithms) {
      const With with(algo);
      const Tensor x = tensor(noise(l.x, 1)), w = tensor(noise(l.w, 2));
      const app::Op conv = app::conv2d_op(l.p);
      if (!has_algorithm(x, w, conv)) continue;
      INFO(l << ' ' << name(algo));
      const auto y = [&](int threads) {
        const Threads with_threads(threads);
        return copies(compiled([&] { return Results{relu(conv({x, w}))}; }));
      };
      check_same_bits(y(1), y(3));
    }
}

TEST_CASE("fused_activation: every instruction set", "[fused][cpu]") {
  struct Restore {
    ~Restore() { hwy::SetSupportedTargetsForTest(0); }
  } const restore;
  for (int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets);
    INFO(simd_target());
    for (const Layer& l : layers())
      for (const ConvAlgo algo : {ConvAlgo::kDirect, ConvAlgo::kImplicitGemm, ConvAlgo::kWinograd})
        for (const DType dtype : kFloats) {
          const With with(algo);
          const TensorOptions options{dtype, kCpu};
          const Tensor x = tensor(with_specials(noise(l.x, 6), 7), options);
          const Tensor w = tensor(noise(l.w, 8), options);
          const Tensor b = l.bias ? tensor(noise({l.w[0]}, 10), options) : Tensor();
          const app::Op conv = app::conv2d_op(l.p);
          if (!has_algorithm(x, w, conv)) continue;
          INFO(l << ' ' << name(algo) << ' ' << dtype);
          const Tensor z = conv({x, w, b}), y = empty(z.shape(), options);
          emit(op::Conv2dForward{shape_of(l, algo), in(x), in(w), in(b), out(y), true});
          check_is_relu(y, z);
          CHECK(same_bits(y, relu(z)));
        }
  }
}

TEST_CASE("fused_activation: operators tell of their ReLU", "[fused][cpu]") {
  const Tensor x = zeros({2, 3}), w = zeros({4, 3}), y = zeros({2, 4});
  OperatorOf plain(op::LinearForward{{2, 3, 4}, in(x), in(w), {}, out(y)});
  OperatorOf with(op::LinearForward{{2, 3, 4}, in(x), in(w), {}, out(y), true});
  CHECK(plain.difference(with) == "relu: false, then true");
  std::ostringstream printed;
  with.print_attributes(printed);
  CHECK(printed.str() == "g=(n=2, in=3, out=4, tf32=false), relu=true");
}

}  // namespace sinter::test
