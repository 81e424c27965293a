// Convolution, ReLU and pooling, which programs run as one operator, against conv2d, relu and
// max_pool2d one by one, which have oracles of their own.
#include <cmath>
#include <limits>

#include "tests/support/compiled.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

using app::conv2d_relu_pool;
using app::Mode;

struct Layer {
  Sizes x, w;
  bool bias = true;
  int pad_h = 0, pad_w = 0;

  Conv2dOptions options() const { return {.padding = Pair(pad_h, pad_w)}; }
  Sizes y() const {
    return {x[0], w[0], (x[2] + 2 * pad_h - w[2] + 1) / 2, (x[3] + 2 * pad_w - w[3] + 1) / 2};
  }
};
std::ostream& operator<<(std::ostream& out, const Layer& l) {
  return out << "x " << Shape(l.x) << " weight " << Shape(l.w) << " bias " << l.bias << " padding "
             << l.pad_h << ',' << l.pad_w;
}

// Small integers. All sums of their products are exact in float32, in any order: kernels have to
// agree to the last bit and to choose the same elements, of which many are equal.
Array integers(const Sizes& shape, uint64_t seed, int64_t largest) {
  Array a = filled(shape);
  Random random(seed);
  for (double& x : a.v) x = static_cast<double>(random.below(2 * largest + 1) - largest);
  return a;
}

struct Inputs {
  Array x, w, b, dy;
};
Inputs integers_for(const Layer& l) {
  return {integers(l.x, 1, 3), integers(l.w, 2, 3), integers({l.w[0]}, 3, 20),
          integers(l.y(), 4, 3)};
}
Inputs noise_for(const Layer& l) {
  return {noise(l.x, 1), noise(l.w, 2), noise({l.w[0]}, 3), noise(l.y(), 4)};
}

// Makes y and the gradients of x, weight and bias; those whose bit in `mask` is not set are
// undefined.
Work work(const Layer& l, const Inputs& in, TensorOptions options, unsigned mask = 7) {
  std::vector<Tensor> leaves = {tensor(in.x, options), tensor(in.w, options)};
  if (l.bias) leaves.push_back(tensor(in.b, options));
  for (size_t i = 0; i < leaves.size(); ++i)
    if ((mask >> i & 1) != 0) leaves[i].set_requires_grad();
  return [leaves, l, dy = tensor(in.dy, options)] {
    drop_gradients(leaves);
    const Tensor y =
        conv2d_relu_pool(leaves[0], leaves[1], l.bias ? leaves[2] : Tensor(), l.options());
    if (y.requires_grad()) y.backward(dy);
    Results all = {y};
    for (const Tensor& leaf : leaves) all.push_back(leaf.grad());
    return all;
  };
}
Results fused_results(const Layer& l, const Inputs& in, TensorOptions options, unsigned mask = 7) {
  return compiled(work(l, in, options, mask));
}
Results unfused_results(const Layer& l, const Inputs& in, TensorOptions options) {
  return work(l, in, options)();
}

const char* const kParts[] = {
    "conv2d_forward",          "relu_forward",  "max_pool2d_forward", "conv2d_backward_data",
    "conv2d_backward_weights", "relu_backward", "max_pool2d_backward"};

// Whether a program has the fused operators instead of their parts.
bool is_fused(const Work& f) {
  const auto operators = operators_of(f);
  INFO(text(operators));
  CHECK(count(operators, "conv2d_relu_pool_forward") == 1 - count(operators, "conv2d_forward"));
  if (count(operators, "conv2d_forward") > 0) return false;
  for (const char* part : kParts) {
    INFO(part);
    CHECK(count(operators, part) == 0);
  }
  return true;
}

const char* const kNames[] = {"conv2d_relu_pool: y", "conv2d_relu_pool: gradient 0",
                              "conv2d_relu_pool: gradient 1", "conv2d_relu_pool: gradient 2"};

void check_exact(Device device, const Layer& l) {
  INFO(l);
  const Inputs in = integers_for(l);
  for (DType dtype : {kFloat32, kFloat64}) {
    if (!device.is_cuda()) CHECK(is_fused(work(l, in, {dtype, device})));
    const auto fused = fused_results(l, in, {dtype, device});
    const auto expected = unfused_results(l, in, {dtype, device});
    for (size_t i = 0; i < fused.size(); ++i)
      check_close(kNames[i], fused[i], array(expected[i]), 0);
  }
}

}  // namespace

DEVICE_TEST("fused_conv: the layers of LeNet equal their parts", "[fused]") {
  for (int64_t n : {1, 3, 64, 200}) {
    check_exact(device, {{n, 3, 32, 32}, {6, 3, 5, 5}});
    check_exact(device, {{n, 6, 14, 14}, {16, 6, 5, 5}});
  }
}

DEVICE_TEST("fused_conv: other layers equal their parts", "[fused]") {
  check_exact(device, {{2, 3, 12, 10}, {4, 3, 3, 3}, true, 1, 1});
  check_exact(device, {{3, 4, 9, 16}, {8, 4, 5, 5}, true, 2, 2});
  check_exact(device, {{5, 1, 8, 9}, {1, 1, 3, 3}});          // an odd column is left out
  check_exact(device, {{5, 2, 11, 13}, {17, 2, 3, 3}});       // an odd row and column
  check_exact(device, {{4, 5, 7, 20}, {3, 5, 5, 3}, false});  // no bias
  check_exact(device, {{4, 2, 20, 7}, {5, 2, 3, 5}, true, 0, 3});
  check_exact(device, {{2, 3, 9, 8}, {6, 3, 7, 3}, true, 3, 1});
  check_exact(device, {{2, 3, 9, 8}, {6, 3, 1, 5}, true, 0, 4});
  check_exact(device, {{2, 16, 10, 12}, {33, 16, 3, 3}, true, 1, 1});
  check_exact(device, {{2, 3, 70, 66}, {7, 3, 3, 3}, true, 1, 1});  // bands of an image
  check_exact(device, {{600, 4, 8, 8}, {12, 4, 3, 3}, true, 1, 1});
  check_exact(device, {{700, 5, 6, 7}, {11, 5, 3, 3}});
  check_exact(device, {{1100, 6, 14, 14}, {16, 6, 5, 5}});  // several images a block
  check_exact(device, {{2, 1, 3, 3}, {1, 1, 2, 2}});        // one window
  check_exact(device, {{2, 20, 9, 9}, {4, 20, 4, 4}});      // no fused kernel on every device
}

DEVICE_TEST("fused_conv: strides and dilation and groups", "[fused]") {
  const Array x = integers({3, 4, 17, 15}, 1, 3), w = integers({6, 2, 3, 3}, 2, 3);
  const TensorOptions options{kFloat32, device};
  const Conv2dOptions conv{.stride = Pair(2, 1), .dilation = Pair(1, 2), .groups = 2};
  const Tensor from = tensor(x, options), weight = tensor(w, options);
  const Work run = [&] { return Results{conv2d_relu_pool(from, weight, {}, conv)}; };
  const Array fused = array(compiled(run)[0]);
  CHECK(fused.shape == Sizes{3, 6, 4, 5});
  CHECK(fused.v == array(run()[0]).v);
}

DEVICE_TEST("fused_conv: rounding as the parts'", "[fused]") {
  for (const Layer& l : {Layer{{3, 3, 32, 32}, {6, 3, 5, 5}}, Layer{{3, 6, 14, 14}, {16, 6, 5, 5}},
                         Layer{{19, 2, 9, 10}, {5, 2, 3, 3}, true, 1, 1}}) {
    INFO(l);
    const Inputs in = noise_for(l);
    const auto taps = static_cast<double>(l.w[2] * l.w[3]);
    const auto windows = static_cast<double>(l.x[0] * l.y()[2] * l.y()[3]);
    const double terms[] = {taps * static_cast<double>(l.w[1]) + 1,
                            taps * static_cast<double>(l.w[0]), windows, windows};
    for (DType dtype : {kFloat32, kFloat64}) {
      const auto fused = fused_results(l, in, {dtype, device});
      const auto expected = unfused_results(l, in, {dtype, device});
      for (size_t i = 0; i < fused.size(); ++i)
        check_close(kNames[i], fused[i], array(expected[i]), terms[i]);
    }
  }
}

DEVICE_TEST("fused_conv: with an algorithm named the layers are apart", "[fused]") {
  for (const Layer& l : {Layer{{19, 3, 32, 32}, {6, 3, 5, 5}}, Layer{{3, 6, 14, 14}, {16, 6, 5, 5}},
                         Layer{{19, 2, 9, 10}, {5, 2, 3, 3}, true, 1, 1}}) {
    INFO(l);
    const Inputs in = noise_for(l);
    for (ConvAlgo algo : {ConvAlgo::kNaive, ConvAlgo::kDirect, ConvAlgo::kIm2col}) {
      if (device.is_cuda() && algo == ConvAlgo::kDirect) continue;  // refuses some
      INFO(name(algo));
      const With with(algo);
      for (DType dtype : {kFloat32, kFloat64}) {
        const Work f = work(l, in, {dtype, device});
        CHECK(!is_fused(f));
        check_same_bits(compiled(f), f());
      }
    }
  }
}

// Kernels of the CPU that take a layer as a whole: vectors of positions or of channels, images with
// and without padding, patches of one vector and of many, more pixels than a tile, few images.
TEST_CASE("fused_conv: layers of few channels equal their parts", "[fused][cpu]") {
  check_exact(kCpu, {{2, 1, 4, 4}, {1, 1, 1, 1}});                 // a kernel of one tap
  check_exact(kCpu, {{3, 16, 6, 6}, {64, 16, 3, 3}, true, 1, 1});  // most channels
  check_exact(kCpu, {{3, 17, 6, 6}, {4, 17, 3, 3}});               // more
  check_exact(kCpu, {{3, 3, 6, 6}, {65, 3, 3, 3}});
  check_exact(kCpu, {{2, 16, 9, 12}, {3, 16, 7, 8}, true, 2, 3});  // a patch of many vectors
  check_exact(kCpu, {{5, 3, 40, 70}, {7, 3, 5, 5}, true, 2, 2});
  check_exact(kCpu, {{33, 2, 7, 39}, {13, 2, 3, 5}});
  check_exact(kCpu, {{70, 4, 10, 5}, {32, 4, 2, 3}, false, 1, 0});
  check_exact(kCpu, {{1, 8, 22, 22}, {31, 8, 11, 11}});
}

DEVICE_TEST("fused_conv: gradient check", "[fused]") {
  for (const Layer& l :
       {Layer{{2, 2, 8, 7}, {3, 2, 3, 3}}, Layer{{3, 1, 7, 8}, {4, 1, 5, 5}, true, 2, 2},
        Layer{{2, 3, 6, 9}, {2, 3, 5, 3}, true, 1, 1}}) {
    INFO(l);
    const Inputs in = noise_for(l);
    check_gradient(device, {in.x, in.w, in.b}, [&](const std::vector<Tensor>& t) {
      return conv2d_relu_pool(t[0], t[1], t[2], l.options());
    });
  }
}

DEVICE_TEST("fused_conv: ties and zeros and windows below zero", "[fused]") {
  // The centre's weight alone, and padding: the convolution is the identity.
  Array w = filled({1, 1, 3, 3});
  w.v[4] = 1;
  const Array x{{1, 1, 4, 6}, {2, 2, -1, 3,  0,  0,  //
                               2, 2, 3,  3,  0,  0,  //
                               5, 7, -1, -2, -4, 0,  //
                               9, 9, -1, -3, 6,  -5}};
  const Array dy{{1, 1, 2, 3}, {1, 10, 100, 1000, 10000, 100000}};
  const Layer l{x.shape, w.shape, false, 1, 1};
  for (DType dtype : {kFloat32, kFloat64}) {
    const auto fused = fused_results(l, {x, w, {}, dy}, {dtype, device});
    check_close(kNames[0], fused[0], {{1, 1, 2, 3}, {2, 3, 0, 9, 0, 6}}, 0);
    check_close(kNames[1], fused[1], {x.shape, {1,    0, 0, 10, 0,      0,  //
                                                0,    0, 0, 0,  0,      0,  //
                                                0,    0, 0, 0,  0,      0,  //
                                                1000, 0, 0, 0,  100000, 0}},
                0);
  }
}

DEVICE_TEST("fused_conv: the row and column left out get no gradient", "[fused]") {
  // The last row and column of x are read by no window, the ones before by a part of the weights.
  const Layer l{{2, 2, 7, 9}, {3, 2, 3, 3}};
  const auto fused = fused_results(l, integers_for(l), {kFloat32, device});
  const std::vector<double> dx = fused[1].to_vector<double>();
  double elsewhere = 0;
  for (size_t i = 0; i < dx.size(); ++i) {
    if (i / 9 % 7 == 6 || i % 9 == 8)
      CHECK(dx[i] == 0);
    else
      elsewhere += std::abs(dx[i]);
  }
  CHECK(elsewhere > 0);
}

DEVICE_TEST("fused_conv: a NaN is a maximum", "[fused]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    Layer l{{2, 2, 12, 12}, {3, 2, 5, 5}};
    Inputs in = integers_for(l);
    in.x.v[12 * 6 + 6] = std::nan("");  // image 0, channel 0, row 6, column 6
    const Work f = work(l, in, {dtype, device}, 0);
    const auto values = compiled(f)[0].to_vector<double>();
    const auto expected = f()[0].to_vector<double>();
    // Results 2 .. 6 of each axis read it: windows 1 .. 3.
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t row = i / 4 % 4, column = i % 4;
      const bool holds = i < 3 * 16 && row >= 1 && column >= 1;
      CHECK(std::isnan(values[i]) == holds);
      if (!holds) CHECK(values[i] == expected[i]);
    }
  }
}

DEVICE_TEST("fused_conv: a NaN passes the gradient on", "[fused]") {
  // Layers of few channels and of many; rows of windows of a vector or more, and of less.
  for (const Layer& l : {Layer{{2, 2, 12, 12}, {3, 2, 5, 5}}, Layer{{2, 2, 6, 5}, {3, 2, 3, 3}},
                         Layer{{2, 20, 12, 12}, {3, 20, 3, 3}}})
    for (DType dtype : {kFloat32, kFloat64})
      for (const Mode mode : app::kModes) {
        INFO(dtype << ' ' << app::name(mode) << " x " << l.x[1]);
        const TensorOptions options{dtype, device};
        const Tensor x = leaf(filled(l.x, 1), options), w = leaf(filled(l.w), options);
        const Tensor b = leaf({{3}, {std::nan(""), -1, 2}}, options);
        const Results all = run_as(mode, [&] {
          drop_gradients({x, w, b});
          const Tensor y = conv2d_relu_pool(x, w, b);
          y.backward(ones(y.shape(), options));
          return Results{y, x.grad(), w.grad(), b.grad()};
        });
        const auto windows = static_cast<double>(all[0].numel() / 3);
        check_close(kNames[3], all[3], {{3}, {windows, 0, windows}}, 0);
        Array dw = filled(l.w, windows);
        const auto channel = static_cast<std::ptrdiff_t>(dw.v.size() / 3);
        std::fill(dw.v.begin() + channel, dw.v.begin() + 2 * channel, 0);
        check_close(kNames[2], all[2], dw, 0);
        check_close(kNames[1], all[1], filled(l.x), 0);
      }
}

DEVICE_TEST("fused_conv: only the gradients asked for", "[fused]") {
  for (const Layer& l :
       {Layer{{70, 3, 14, 14}, {6, 3, 5, 5}}, Layer{{3, 2, 9, 8}, {5, 2, 3, 3}, true, 1, 1}}) {
    INFO(l);
    const Inputs in = integers_for(l);
    const TensorOptions options{kFloat32, device};
    const auto expected = unfused_results(l, in, options);
    for (unsigned mask = 0; mask < 8; ++mask) {
      INFO("mask " << mask);
      const auto some = fused_results(l, in, options, mask);
      for (size_t i = 0; i < 3; ++i) {
        if ((mask >> i & 1) == 0)
          CHECK(!some[i + 1].defined());
        else
          check_close(kNames[i + 1], some[i + 1], array(expected[i + 1]), 0);
      }
    }
  }
}

DEVICE_TEST("fused_conv: no images", "[fused]") {
  const Layer l{{0, 3, 32, 32}, {6, 3, 5, 5}};
  const auto fused = fused_results(l, integers_for(l), {kFloat32, device});
  CHECK(fused[0].shape() == Shape{0, 6, 14, 14});
  CHECK(fused[1].shape() == Shape{0, 3, 32, 32});
  check_close(kNames[2], fused[2], filled({6, 3, 5, 5}), 0);
  check_close(kNames[3], fused[3], filled({6}), 0);
}

DEVICE_TEST("fused_conv: the same input gives the same bits", "[fused]") {
  for (const Layer& l :
       {Layer{{130, 3, 20, 20}, {6, 3, 5, 5}}, Layer{{9, 6, 14, 14}, {16, 6, 5, 5}}}) {
    const Inputs in = noise_for(l);
    const auto first = fused_results(l, in, {kFloat32, device});
    for (int run = 0; run < 3; ++run)
      check_same_bits(fused_results(l, in, {kFloat32, device}), first);
  }
}

TEST_CASE("fused_conv: the same bits for any number of threads", "[fused][cpu]") {
  const Layer l{{40, 3, 20, 20}, {6, 3, 5, 5}};
  const Inputs in = noise_for(l);
  const auto with_threads = [&](int n) {
    const Threads set(n);
    return fused_results(l, in, {kFloat32, kCpu});
  };
  check_same_bits(with_threads(1), with_threads(3));
}

TEST_CASE("fused_conv: an infinite gradient stays within its patch", "[fused][cpu]") {
  const Layer l{{1, 6, 14, 14}, {16, 6, 5, 5}};
  Inputs in = integers_for(l);
  for (double& x : in.x.v) x = std::abs(x) + 1;  // windows above zero
  for (double& w : in.w.v) w = std::abs(w) + 1;
  in.dy.v[12] = std::numeric_limits<double>::infinity();  // channel 0, window (2, 2)
  for (DType dtype : {kFloat32, kFloat64}) {
    const std::vector<double> dx = fused_results(l, in, {dtype, kCpu})[1].to_vector<double>();
    size_t infinite = 0;
    for (size_t i = 0; i < dx.size(); ++i) {
      CHECK(!std::isnan(dx[i]));
      infinite += std::isinf(dx[i]);
    }
    CHECK(infinite == 6 * 25);
  }
}

CUDA_TEST("fused_conv: the layers of LeNet have fused kernels", "[fused]") {
#ifdef SINTER_WITH_CUDA
  const Cuda ctx = cuda_context(device.index);
  for (int n : {1, 64, 1024}) {
    const op::Conv2dShape first{
        .n = n, .c = 3, .h = 32, .w = 32, .o = 6, .kh = 5, .kw = 5, .oh = 28, .ow = 28};
    const op::Conv2dShape second{
        .n = n, .c = 6, .h = 14, .w = 14, .o = 16, .kh = 5, .kw = 5, .oh = 10, .ow = 10};
    for (const op::Conv2dShape& g : {first, second}) {
      CHECK(conv2d_relu_pool_fits(ctx, g, kFloat32));
      CHECK(conv2d_relu_pool_fits(ctx, g, kFloat64));
    }
    const Layer layers[] = {{{n, 3, 32, 32}, {6, 3, 5, 5}}, {{n, 6, 14, 14}, {16, 6, 5, 5}}};
    for (const Layer& l : layers)
      for (unsigned mask = 0; mask < 8; ++mask) {
        INFO(l << " mask " << mask);
        CHECK(is_fused(work(l, noise_for(l), {kFloat32, device}, mask)));
      }
  }
#endif
}

}  // namespace sinter::test
