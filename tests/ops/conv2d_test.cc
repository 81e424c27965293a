#include <hwy/targets.h>

#include "core/base/detail.h"
#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {

#ifdef SINTER_WITH_CUDA
// All three passes by Winograd's algorithm, with these bounds (conv2d_bounds.cc).
template <class T> void winograd_in_slices(const Cuda& ctx, const op::Conv2dShape& g,
                                           int64_t scratch_bytes, int splits, const T* x,
                                           const T* w, const T* b, const T* dy, T* y, T* dx, T* dw);
#endif

namespace {

using app::conv2d_op;

bool has_tensor_cores([[maybe_unused]] Device device) {
#ifdef SINTER_WITH_CUDA
  return device.is_cuda() && cuda_device_info(device.index).compiled_for >= 80;
#else
  return false;
#endif
}

// The algorithms that `device` has for any geometry.
std::vector<ConvAlgo> algorithms(Device device) {
  if (!device.is_cuda())
    return {ConvAlgo::kNaive, ConvAlgo::kDirect, ConvAlgo::kIm2col, ConvAlgo::kImplicitGemm};
  std::vector<ConvAlgo> all = {ConvAlgo::kNaive, ConvAlgo::kIm2col, ConvAlgo::kImplicitGemm};
  if (has_tensor_cores(device)) all.push_back(ConvAlgo::kTensorCore);
  return all;
}

// Forward and all gradients against the oracle. `least_terms`: for how many roundings an element is
// allowed at least.
void check_batch(Device device, const Sizes& x_shape, const Sizes& w_shape, bool bias,
                 const oracle::Conv& p, double least_terms = 0) {
  INFO("algorithm " << name(conv_algo()) << " TF32 " << allow_tf32());
  app::OpCase c = app::conv2d_case(x_shape, w_shape, bias, p);
  if (conv_algo() != ConvAlgo::kAuto) c.what += str(" ", name(conv_algo()));
  for (double* terms : {&c.y_terms, &c.terms[0], &c.terms[1]})
    *terms = std::max(*terms, least_terms);
  if (allow_tf32()) {
    // Rounding to 10 bits of mantissa moves each operand by at most 2^-11 of itself and a product
    // of numbers in [-1, 1] by at most 2^-10. Products are off in random directions and by a tenth
    // of that in the mean square, so a sum of K of them by far less than sqrt(K) 2^-10, beside the
    // K roundings of float32.
    c.what += " TF32";
    for (double* terms : {&c.y_terms, &c.terms[0], &c.terms[1], &c.terms[2]})
      *terms += std::sqrt(*terms) * 0x1p-10 / epsilon(kFloat32);
  }
  if (conv_algo() == ConvAlgo::kTensorCore)
    check_op(c, device, {kFloat32});
  else
    check_op(c, device);
}

// Geometries that are awkward for one algorithm or another: more or fewer channels than a tile
// holds, batches that end inside one, images smaller than one, windows outside the image.
void check_geometries(Device device) {
  const oracle::Conv padded{.pad_h = 1, .pad_w = 1};
  check_batch(device, {3, 3, 12, 10}, {6, 3, 5, 5}, true, {});
  check_batch(device, {2, 64, 8, 8}, {64, 64, 3, 3}, true, padded);
  check_batch(device, {9, 40, 4, 4}, {70, 40, 3, 3}, true, padded);
  check_batch(device, {1, 130, 9, 7}, {150, 130, 3, 3}, false, padded);
  check_batch(device, {40, 32, 5, 5}, {33, 32, 1, 1}, true, {});
  check_batch(device, {2, 31, 9, 9}, {65, 31, 3, 3}, true,
              {.stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1});
  check_batch(device, {2, 24, 11, 10}, {24, 1, 3, 3}, true, {.pad_h = 1, .pad_w = 1, .groups = 24});
  check_batch(device, {3, 8, 7, 9}, {12, 4, 3, 2}, true,
              {.stride_h = 2, .stride_w = 3, .pad_h = 2, .pad_w = 1, .dil_w = 2, .groups = 2});
  check_batch(device, {2, 2, 3, 2}, {3, 2, 2, 1}, true, {.pad_h = 4, .pad_w = 3});
  check_batch(device, {2, 2, 11, 13}, {3, 2, 2, 2}, true, {.stride_h = 4, .stride_w = 5});
  check_batch(device, {1, 1, 1, 1}, {1, 1, 1, 1}, true, {});
  check_batch(device, {300, 2, 1, 3}, {3, 2, 1, 3}, true, {.pad_w = 1});
  Random random(6);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t groups = 1 + random.below(3);
    const int64_t kh = 1 + random.below(4), kw = 1 + random.below(4);
    const oracle::Conv p{.stride_h = 1 + random.below(3),
                         .stride_w = 1 + random.below(3),
                         .pad_h = random.below(4),
                         .pad_w = random.below(4),
                         .dil_h = 1 + random.below(3),
                         .dil_w = 1 + random.below(3),
                         .groups = groups};
    const int64_t h = p.dil_h * (kh - 1) + 1 + random.below(9);
    const int64_t w = p.dil_w * (kw - 1) + 1 + random.below(9);
    const int64_t c = groups * (1 + random.below(20)), o = groups * (1 + random.below(20));
    check_batch(device, {1 + random.below(9), c, h, w}, {o, c / groups, kh, kw},
                random.below(2) == 0, p);
  }
}

// Winograd's algorithm makes an element of 36 products, of two rounded factors each, for every
// channel or tile of 4 x 4: more roundings than a sum over few has terms.
constexpr double kWinogradRoundings = 3 * 36;

// The same for the batch of x_shape and for one of 19: backends choose between algorithms by the
// geometry, the number of images included, and 19 is a multiple of no vector's lanes.
void check_conv2d(Device device, const Sizes& x_shape, const Sizes& w_shape, bool bias,
                  const oracle::Conv& p) {
  check_batch(device, x_shape, w_shape, bias, p);
  Sizes many = x_shape;
  many[0] = 19;
  check_batch(device, many, w_shape, bias, p);
}

}  // namespace

DEVICE_TEST("conv2d: hand-computed case", "[conv2d]") {
  // Two input channels, the second weighted by 10; the upstream gradient is one at a corner.
  const Array x{{1, 2, 3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, /**/ 0, 1, 0, 1, 0, 1, 0, 1, 0}};
  const Array w{{1, 2, 2, 2}, {1, 0, 0, -1, /**/ 10, 20, 30, 40}};
  const Array b{{1}, {0.5}};
  // 1 - 5 + (20 + 30) + 0.5, 2 - 6 + (10 + 40) + 0.5, …
  const Array y{{1, 1, 2, 2}, {46.5, 46.5, 46.5, 46.5}};
  const Array dy{{1, 1, 2, 2}, {1, 0, 0, 2}};
  const Array dx{{1, 2, 3, 3}, {1, 0, 0, 0, 1, 0, 0, 0, -2, /**/ 10, 20, 0, 30, 60, 40, 0, 60, 80}};
  const Array dw{{1, 2, 2, 2}, {11, 14, 20, 23, /**/ 0, 3, 3, 0}};
  check_op({"conv2d", {x, w, b}, conv2d_op({}), y, dy, {dx, dw, {{1}, {3}}}, 8, {8, 8, 8}}, device);
}

DEVICE_TEST("conv2d: the layers of LeNet", "[conv2d]") {
  check_conv2d(device, {3, 3, 32, 32}, {6, 3, 5, 5}, true, {});
  check_conv2d(device, {3, 6, 14, 14}, {16, 6, 5, 5}, true, {});
  check_batch(device, {64, 3, 32, 32}, {6, 3, 5, 5}, true, {});
  check_batch(device, {64, 6, 14, 14}, {16, 6, 5, 5}, true, {});
}

DEVICE_TEST("conv2d: common layers of deeper nets", "[conv2d]") {
  check_conv2d(device, {2, 16, 17, 15}, {32, 16, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_conv2d(device, {3, 33, 8, 9}, {17, 33, 3, 3}, false, {.pad_h = 1, .pad_w = 1});
  check_conv2d(device, {1, 40, 20, 21}, {6, 40, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_conv2d(device, {2, 16, 24, 30}, {20, 16, 5, 5}, true, {});
  check_conv2d(device, {2, 3, 6, 7}, {257, 3, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_conv2d(device, {2, 40, 7, 5}, {70, 40, 1, 1}, true, {});  // a matrix product
  check_conv2d(device, {2, 12, 9, 9}, {24, 12, 1, 1}, false, {.stride_h = 2, .stride_w = 2});
  check_conv2d(device, {2, 3, 30, 21}, {8, 3, 7, 7}, true,
               {.stride_h = 2, .stride_w = 2, .pad_h = 3, .pad_w = 3});
  check_conv2d(device, {2, 24, 11, 10}, {24, 1, 3, 3}, true,  // depthwise
               {.pad_h = 1, .pad_w = 1, .groups = 24});
  check_conv2d(device, {2, 8, 11, 10}, {24, 1, 3, 3}, true,  // depthwise, three filters each
               {.pad_h = 1, .pad_w = 1, .groups = 8});
}

DEVICE_TEST("conv2d: extents of one and kernels as large as the image", "[conv2d]") {
  check_conv2d(device, {1, 1, 1, 1}, {1, 1, 1, 1}, true, {});
  check_conv2d(device, {2, 3, 1, 9}, {4, 3, 1, 3}, true, {});
  check_conv2d(device, {2, 3, 9, 1}, {4, 3, 3, 1}, true, {});
  check_conv2d(device, {3, 2, 5, 7}, {4, 2, 5, 7}, true, {});  // one output each
  check_conv2d(device, {3, 2, 1, 1}, {4, 2, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_conv2d(device, {2, 2, 2, 3}, {3, 2, 4, 5}, false, {.pad_h = 2, .pad_w = 2});
  // Windows that lie wholly in the padding.
  check_conv2d(device, {2, 2, 3, 2}, {3, 2, 2, 1}, true, {.pad_h = 4, .pad_w = 3});
  // A stride that skips rows and columns altogether, and leaves some at the far end.
  check_conv2d(device, {2, 2, 11, 13}, {3, 2, 2, 2}, true, {.stride_h = 4, .stride_w = 5});
}

DEVICE_TEST("conv2d: more elements than a block and a grid row", "[conv2d]") {
  check_conv2d(device, {1, 1, 67, 131}, {2, 1, 3, 5}, true, {.pad_h = 1, .pad_w = 2});
  check_batch(device, {70, 2, 9, 8}, {3, 2, 3, 3}, true, {});
  check_batch(device, {2, 65, 5, 6}, {130, 65, 3, 2}, true, {.pad_h = 1});
  check_conv2d(device, {1, 2, 3, 1030}, {3, 2, 2, 3}, true, {});
  check_conv2d(device, {1, 2, 3, 1030}, {3, 2, 2, 4}, true, {});
  check_batch(device, {257, 1, 4, 3}, {1, 1, 2, 2}, true, {});
  check_batch(device, {1025, 1, 5, 4}, {5, 1, 3, 3}, true, {});
}

DEVICE_TEST("conv2d: every combination of stride and padding and dilation and groups", "[conv2d]") {
  // H != W, odd and even, and each option with equal, taller and wider values.
  const int64_t pairs[][2] = {{1, 1}, {2, 1}, {1, 3}, {2, 2}};
  int combination = 0;
  for (const auto& stride : pairs)
    for (const auto& dilation : pairs)
      for (const auto& padding : {std::pair<int64_t, int64_t>{0, 0}, {1, 0}, {0, 2}, {2, 1}})
        for (int64_t groups : {1, 2, 4}) {
          const int64_t kh = 1 + combination % 3, kw = 1 + combination / 3 % 3;
          const bool bias = combination++ % 2 == 0;
          check_conv2d(device, {2, 4, 7, 8}, {4 * (1 + combination % 2), 4 / groups, kh, kw}, bias,
                       {.stride_h = stride[0],
                        .stride_w = stride[1],
                        .pad_h = padding.first,
                        .pad_w = padding.second,
                        .dil_h = dilation[0],
                        .dil_w = dilation[1],
                        .groups = groups});
        }
  CHECK(combination == 192);
}

DEVICE_TEST("conv2d: windows of every size", "[conv2d]") {
  for (int64_t kh = 1; kh <= 8; ++kh)
    for (int64_t kw = 1; kw <= 8; ++kw)
      check_conv2d(device, {2, 1 + kh % 4, 9, 10}, {1 + kw % 7, 1 + kh % 4, kh, kw}, kw % 2 == 0,
                   {.pad_h = kw % 4, .pad_w = kh % 3});
}

DEVICE_TEST("conv2d: random geometries", "[conv2d]") {
  Random random(5);
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t groups = 1 + random.below(3);
    const int64_t kh = 1 + random.below(5), kw = 1 + random.below(5);
    const oracle::Conv p{.stride_h = 1 + random.below(3),
                         .stride_w = 1 + random.below(3),
                         .pad_h = random.below(4),
                         .pad_w = random.below(4),
                         .dil_h = 1 + random.below(3),
                         .dil_w = 1 + random.below(3),
                         .groups = groups};
    const int64_t h = p.dil_h * (kh - 1) + 1 + random.below(9);
    const int64_t w = p.dil_w * (kw - 1) + 1 + random.below(9);
    const int64_t c = groups * (1 + random.below(4)), o = groups * (1 + random.below(5));
    check_batch(device, {1 + random.below(24), c, h, w}, {o, c / groups, kh, kw},
                random.below(2) == 0, p);
  }
}

DEVICE_TEST("conv2d: only the gradients asked for", "[conv2d]") {
  const Array x = noise({2, 2, 5, 6}, 1), w = noise({3, 2, 3, 2}, 2), b = noise({3}, 3);
  const Array dy = noise({2, 3, 3, 5}, 4);
  const std::vector<Array> expected = oracle::conv2d_gradients(x, w, dy, {});
  const TensorOptions options{kFloat64, device};
  for (int mask = 1; mask < 8; ++mask) {
    std::vector<Tensor> in = {tensor(x, options), tensor(w, options), tensor(b, options)};
    for (int i = 0; i < 3; ++i)
      if ((mask >> i & 1) != 0) in[static_cast<size_t>(i)].set_requires_grad();
    conv2d(in[0], in[1], in[2]).backward(tensor(dy, options));
    for (size_t i = 0; i < 3; ++i) {
      INFO("mask " << mask << " input " << i);
      if ((mask >> i & 1) == 0)
        CHECK(!in[i].grad().defined());
      else
        check_close("conv2d: gradient " + std::to_string(i), in[i].grad(), expected[i], 40);
    }
  }
}

DEVICE_TEST("conv2d: gradient check", "[conv2d]") {
  check_gradient(device, {noise({2, 3, 5, 6}, 1), noise({4, 3, 3, 2}, 2), noise({4}, 3)},
                 conv2d_op({.stride_h = 2, .pad_h = 1, .pad_w = 2}));
  check_gradient(device, {noise({2, 4, 6, 5}, 1), noise({6, 2, 2, 3}, 2)},
                 conv2d_op({.stride_w = 2, .pad_w = 1, .dil_h = 2, .groups = 2}));
  check_gradient(device, {noise({9, 2, 4, 3}, 1), noise({3, 2, 3, 3}, 2), noise({3}, 3)},
                 conv2d_op({.pad_h = 1, .pad_w = 1}));
}

DEVICE_TEST("conv2d: a NaN reaches exactly the windows that hold it", "[conv2d]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    Array x = noise({1, 1, 5, 6}, 1);
    x.v[2 * 6 + 3] = std::nan("");
    const TensorOptions options{dtype, device};
    const Tensor y = conv2d(tensor(x, options), tensor(filled({1, 1, 2, 2}, 1), options));
    const std::vector<double> values = y.to_vector<double>();
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 5; ++j) {
        const bool holds = (i == 1 || i == 2) && (j == 2 || j == 3);
        CHECK(std::isnan(values[static_cast<size_t>(i * 5 + j)]) == holds);
      }
  }
}

DEVICE_TEST("conv2d: the same input gives the same bits", "[conv2d]") {
  std::vector<Tensor> first;
  for (int run = 0; run < 3; ++run) {
    const TensorOptions options{kFloat32, device};
    const Tensor x = leaf(noise({9, 5, 13, 12}, 1), options);
    const Tensor w = leaf(noise({7, 5, 3, 3}, 2), options), b = leaf(noise({7}, 3), options);
    const Tensor y = conv2d(x, w, b, {.stride = 2, .padding = 1});
    y.backward(tensor(noise(array(y).shape, 4), options));
    const std::vector<Tensor> now = {y.detach(), x.grad(), w.grad(), b.grad()};
    if (run == 0) first = now;
    for (size_t i = 0; i < now.size(); ++i) CHECK(same_bits(first[i], now[i]));
  }
}

DEVICE_TEST("conv2d: every algorithm against the oracle", "[conv2d]") {
  for (ConvAlgo algo : algorithms(device)) {
    const With with(algo);
    check_geometries(device);
  }
}

CUDA_TEST("conv2d: the direct algorithm against the oracle", "[conv2d]") {
  const With with(ConvAlgo::kDirect);
  check_batch(device, {3, 3, 32, 32}, {6, 3, 5, 5}, true, {});
  check_batch(device, {19, 6, 14, 14}, {16, 6, 5, 5}, true, {});
  check_batch(device, {2, 16, 17, 15}, {16, 16, 3, 3}, false, {.pad_h = 1, .pad_w = 1});
  check_batch(device, {5, 4, 9, 11}, {7, 4, 7, 5}, true, {.pad_h = 3, .pad_w = 2});
}

CUDA_TEST("conv2d: TF32 keeps to its bound and only where it is allowed", "[conv2d]") {
  if (!has_tensor_cores(device)) return;
  {
    const With with(ConvAlgo::kTensorCore, true);
    check_geometries(device);
  }
  const Tensor x = tensor(noise({4, 64, 8, 8}, 1), {kFloat32, device});
  const Tensor w = tensor(noise({64, 64, 3, 3}, 2), {kFloat32, device});
  const auto y = [&](ConvAlgo algo, bool tf32) {
    const With with(algo, tf32);
    return conv2d(x, w, {}, {.padding = 1});
  };
  CHECK(!same_bits(y(ConvAlgo::kTensorCore, true), y(ConvAlgo::kTensorCore, false)));
  CHECK(same_bits(y(ConvAlgo::kImplicitGemm, true), y(ConvAlgo::kImplicitGemm, false)));
  // A wide layer is the tensor cores' unless an algorithm is named.
  CHECK(same_bits(y(ConvAlgo::kAuto, false), y(ConvAlgo::kTensorCore, false)));
  CHECK(same_bits(y(ConvAlgo::kAuto, true), y(ConvAlgo::kTensorCore, true)));
  // Matrix products follow the same setting.
  const Tensor a = tensor(noise({256, 512}, 3), {kFloat32, device});
  const Tensor b = tensor(noise({512, 256}, 4), {kFloat32, device});
  const Tensor full = matmul(a, b);
  const With with(ConvAlgo::kAuto, true);
  CHECK(!same_bits(matmul(a, b), full));
}

// Sums of many and of few terms, one tile or part of one, and rows and columns that end inside one.
void check_winograd(Device device) {
  const With with(ConvAlgo::kWinograd);
  const oracle::Conv padded{.pad_h = 1, .pad_w = 1};
  // Sums that are long enough for what is allowed of the other algorithms.
  check_batch(device, {2, 64, 8, 8}, {64, 64, 3, 3}, true, padded);
  check_batch(device, {9, 64, 4, 4}, {70, 64, 3, 3}, true, padded);
  check_batch(device, {4, 130, 9, 7}, {150, 130, 3, 3}, false, padded);
  check_batch(device, {2, 96, 10, 12}, {65, 96, 3, 3}, true, {});
  check_batch(device, {3, 64, 7, 10}, {64, 64, 3, 3}, true, {.pad_h = 2, .pad_w = 2});
  // One tile or part of one, rows and columns that end inside a tile, each padding, few channels.
  for (int64_t pad_h = 0; pad_h < 3; ++pad_h)
    for (int64_t pad_w = 0; pad_w < 3; ++pad_w)
      for (const auto& [h, w] : {std::pair<int64_t, int64_t>{3, 3},
                                 {4, 4},
                                 {6, 6},
                                 {5, 12},
                                 {8, 5},
                                 {13, 9},
                                 {10, 16}}) {
        const oracle::Conv p{.pad_h = pad_h, .pad_w = pad_w};
        check_batch(device, {1, 1, h, w}, {1, 1, 3, 3}, true, p, kWinogradRoundings);
        check_batch(device, {5, 3, h, w}, {33, 3, 3, 3}, false, p, kWinogradRoundings);
        check_batch(device, {2, 33, h, w}, {3, 33, 3, 3}, true, p, kWinogradRoundings);
      }
  check_batch(device, {1, 1, 1, 1}, {1, 1, 3, 3}, true, padded, kWinogradRoundings);
  check_batch(device, {3, 2, 1, 2}, {4, 2, 3, 3}, true, {.pad_h = 2, .pad_w = 1},
              kWinogradRoundings);
  check_batch(device, {70, 33, 4, 4}, {33, 33, 3, 3}, true, padded, kWinogradRoundings);
  check_batch(device, {1, 2, 5, 1030}, {3, 2, 3, 3}, true, padded, kWinogradRoundings);
}

DEVICE_TEST("conv2d: Winograd's algorithm against the oracle", "[conv2d]") {
  check_winograd(device);
}

#ifdef SINTER_WITH_CUDA
CUDA_TEST("conv2d: Winograd's algorithm in slices of the batch and of the sums", "[conv2d]") {
  constexpr int64_t kN = 7, kC = 12, kO = 9, kH = 9, kW = 8;
  const oracle::Conv p{.pad_h = 1, .pad_w = 1};
  const Array x = noise({kN, kC, kH, kW}, 1), w = noise({kO, kC, 3, 3}, 2), b = noise({kO}, 3);
  const Array y = oracle::conv2d(x, w, &b, p), dy = noise(y.shape, 4);
  const std::vector<Array> gradients = oracle::conv2d_gradients(x, w, dy, p);
  op::Conv2dShape g;
  g.n = kN;
  g.c = kC;
  g.h = g.oh = kH;
  g.w = g.ow = kW;
  g.o = kO;
  g.kh = g.kw = 3;
  g.pad_h = g.pad_w = 1;
  const auto check = [&]<class T>(T, DType dtype, int64_t images, int splits) {
    INFO(dtype << ", " << images << " images a slice, " << splits << " splits");
    // Patches and tiles of an image, 6 each.
    const int64_t bytes = images * 36 * (kC + kO) * 6 * static_cast<int64_t>(sizeof(T));
    const TensorOptions options{dtype, device};
    const Tensor tx = tensor(x, options), tw = tensor(w, options), tb = tensor(b, options);
    const Tensor tdy = tensor(dy, options);
    std::vector<Tensor> first;
    for (int run = 0; run < 2; ++run) {
      std::vector<Tensor> now;
      for (const Array* like : {&y, &x, &w})
        now.push_back(full(Shape(like->shape), std::nan(""), options));
      winograd_in_slices(cuda_context(device.index), g, bytes, splits, tx.data<const T>(),
                         tw.data<const T>(), tb.data<const T>(), tdy.data<const T>(),
                         now[0].data<T>(), now[1].data<T>(), now[2].data<T>());
      if (run == 0) first = now;
      for (size_t i = 0; i < now.size(); ++i) CHECK(same_bits(first[i], now[i]));
    }
    check_close("conv2d winograd in slices: y", first[0], y, kWinogradRoundings);
    check_close("conv2d winograd in slices: dx", first[1], gradients[0], kWinogradRoundings);
    check_close("conv2d winograd in slices: dw", first[2], gradients[1], kN * kH * kW);
  };
  for (int64_t images : {0, 1, 3, 7})  // 0: less than one needs
    for (int splits : {0, 1, 3, 7, 50}) {
      check(float{}, kFloat32, images, splits);
      check(double{}, kFloat64, images, splits);
    }
}
#endif

CUDA_TEST("conv2d: wide float32 layers of 3 x 3 windows are Winograd's", "[conv2d]") {
  const auto results = [&](ConvAlgo algo, bool tf32, int64_t c, int64_t o) {
    const With with(algo, tf32);
    const Tensor x = leaf(noise({32, c, 8, 8}, 1), {kFloat32, device});
    const Tensor w = leaf(noise({o, c, 3, 3}, 3), {kFloat32, device});
    const Tensor y = conv2d(x, w, {}, {.padding = 1});
    y.backward(tensor(noise({32, o, 8, 8}, 2), {kFloat32, device}));
    return std::vector<Tensor>{y, x.grad(), w.grad()};
  };
  const auto check_equal = [](const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    for (size_t i = 0; i < a.size(); ++i) CHECK(same_bits(a[i], b[i]));
  };
  check_equal(results(ConvAlgo::kAuto, false, 64, 70), results(ConvAlgo::kWinograd, false, 64, 70));
  // It does not round to TF32.
  check_equal(results(ConvAlgo::kWinograd, false, 64, 70),
              results(ConvAlgo::kWinograd, true, 64, 70));
  if (!has_tensor_cores(device)) return;
  const auto automatic = results(ConvAlgo::kAuto, true, 128, 130);
  const auto tensor_core = results(ConvAlgo::kTensorCore, true, 128, 130);
  CHECK(same_bits(automatic[0], tensor_core[0]));
  CHECK(same_bits(automatic[1], tensor_core[1]));
  CHECK(same_bits(automatic[2], results(ConvAlgo::kWinograd, true, 128, 130)[2]));
}

DEVICE_TEST("conv2d: every algorithm gives the same bits again", "[conv2d]") {
  std::vector<ConvAlgo> all = algorithms(device);
  all.push_back(ConvAlgo::kWinograd);
  for (ConvAlgo algo : all) {
    INFO(name(algo));
    const With with(algo);
    std::vector<Tensor> first;
    for (int run = 0; run < 3; ++run) {
      const TensorOptions options{kFloat32, device};
      const Tensor x = leaf(noise({24, 48, 12, 12}, 1), options);
      const Tensor w = leaf(noise({40, 48, 3, 3}, 2), options), b = leaf(noise({40}, 3), options);
      const Tensor y = conv2d(x, w, b, {.padding = 1});
      y.backward(tensor(noise(array(y).shape, 4), options));
      const std::vector<Tensor> now = {y.detach(), x.grad(), w.grad(), b.grad()};
      if (run == 0) first = now;
      for (size_t i = 0; i < now.size(); ++i) CHECK(same_bits(first[i], now[i]));
    }
  }
}

// Geometries that the CPU's implicit matrix product cuts differently from check_geometries: several
// blocks of channels, bands of rows, groups of images, panels and shares of output channels, each
// with an uneven rest; every padding of a window; and images whose rows are narrower, as wide and
// wider than the output's.
void check_cuts(Device device) {
  check_batch(device, {2, 43, 33, 18}, {29, 43, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_batch(device, {1, 8, 91, 70}, {9, 8, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_batch(device, {1, 3, 131, 41}, {17, 3, 5, 5}, false, {.stride_h = 2, .stride_w = 2});
  check_batch(device, {67, 5, 5, 7}, {20, 5, 3, 3}, true, {.pad_h = 1, .pad_w = 1});
  check_batch(device, {35, 9, 4, 4}, {35, 9, 3, 3}, false, {.pad_h = 1, .pad_w = 1});
  check_batch(device, {1, 6, 3, 301}, {270, 6, 2, 3}, true, {.pad_w = 1});
  check_batch(device, {3, 130, 6, 5}, {140, 130, 1, 1}, true, {});
  for (int64_t pad = 0; pad <= 4; ++pad)
    check_batch(device, {3, 5, 9, 8}, {17, 5, 5, 3}, true, {.pad_h = pad, .pad_w = 4 - pad});
  check_batch(device, {2, 6, 20, 33}, {15, 6, 3, 3}, true,
              {.pad_h = 2, .pad_w = 2, .dil_h = 2, .dil_w = 2});
  check_batch(device, {2, 6, 20, 18}, {34, 3, 3, 3}, true,
              {.pad_h = 9, .pad_w = 1, .dil_h = 9, .groups = 2});
  check_batch(device, {2, 4, 19, 40}, {18, 4, 3, 3}, true, {.stride_w = 2, .pad_w = 1});
}

TEST_CASE("conv2d: matrix products and Winograd with every instruction set", "[conv2d][cpu]") {
  struct Restore {
    ~Restore() { hwy::SetSupportedTargetsForTest(0); }
  } const restore;
  // From the best to the simplest: targets are bits, the lower the better.
  std::vector<std::string> done;
  for (int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets);
    if (std::find(done.begin(), done.end(), simd_target()) != done.end()) continue;
    done.push_back(simd_target());
    INFO(simd_target());
    {
      const With with(ConvAlgo::kImplicitGemm);
      check_geometries(kCpu);
      check_cuts(kCpu);
    }
    check_winograd(kCpu);
    // Blocks of tiles that end inside an image, and several of them.
    const With with(ConvAlgo::kWinograd);
    check_batch(kCpu, {9, 3, 30, 22}, {2, 3, 3, 3}, true, {.pad_h = 1, .pad_w = 1},
                kWinogradRoundings);
  }
  CHECK(!done.empty());
}

TEST_CASE("conv2d: the same bits for any number of threads", "[conv2d][cpu]") {
  for (ConvAlgo algo : {ConvAlgo::kAuto, ConvAlgo::kDirect, ConvAlgo::kIm2col,
                        ConvAlgo::kImplicitGemm, ConvAlgo::kWinograd}) {
    INFO(name(algo));
    const With with(algo);
    for (const auto& [x_shape, w_shape] : {std::pair<Sizes, Sizes>{{40, 20, 8, 8}, {150, 20, 3, 3}},
                                           {{3, 33, 35, 32}, {40, 33, 3, 3}},
                                           {{1, 3, 40, 40}, {64, 3, 5, 5}}}) {
      if (algo == ConvAlgo::kWinograd && w_shape[2] != 3) continue;
      std::vector<Tensor> first;
      for (int threads : {1, 2, 3, 7}) {
        const Threads set(threads);
        const TensorOptions options{kFloat32, kCpu};
        const Tensor x = leaf(noise(x_shape, 1), options), w = leaf(noise(w_shape, 2), options);
        const Tensor b = leaf(noise({w_shape[0]}, 3), options);
        const Tensor y = conv2d(x, w, b, {.padding = 1});
        y.backward(tensor(noise(array(y).shape, 4), options));
        const std::vector<Tensor> now = {y.detach(), x.grad(), w.grad(), b.grad()};
        if (threads == 1) first = now;
        for (size_t i = 0; i < now.size(); ++i) CHECK(same_bits(first[i], now[i]));
      }
    }
  }
}

TEST_CASE("conv2d: wide layers are Winograd's or the implicit matrix product's", "[conv2d][cpu]") {
  const auto results = [](ConvAlgo algo, const Sizes& x_shape, const Sizes& w_shape, int64_t pad) {
    const With with(algo);
    const TensorOptions options{kFloat32, kCpu};
    const Tensor x = leaf(noise(x_shape, 1), options), w = leaf(noise(w_shape, 2), options);
    const Tensor y = conv2d(x, w, {}, {.padding = pad});
    y.backward(tensor(noise(array(y).shape, 4), options));
    return std::vector<Tensor>{y.detach(), x.grad(), w.grad()};
  };
  const auto check = [&](ConvAlgo algo, const Sizes& x_shape, const Sizes& w_shape, int64_t pad) {
    INFO(name(algo));
    const auto chosen = results(ConvAlgo::kAuto, x_shape, w_shape, pad);
    const auto named = results(algo, x_shape, w_shape, pad);
    for (size_t i = 0; i < chosen.size(); ++i) CHECK(same_bits(chosen[i], named[i]));
  };
  check(ConvAlgo::kWinograd, {16, 64, 32, 32}, {64, 64, 3, 3}, 1);
  check(ConvAlgo::kWinograd, {16, 128, 8, 8}, {128, 128, 3, 3}, 1);
  check(ConvAlgo::kWinograd, {2, 64, 15, 16}, {70, 64, 3, 3}, 1);
  check(ConvAlgo::kImplicitGemm, {16, 64, 16, 16}, {64, 64, 5, 5}, 2);
  check(ConvAlgo::kImplicitGemm, {16, 64, 32, 32}, {20, 64, 3, 3}, 1);
  check(ConvAlgo::kImplicitGemm, {1, 128, 8, 8}, {128, 128, 3, 3}, 1);
}

DEVICE_TEST("conv2d: an algorithm that cannot says why and which can", "[conv2d]") {
  CHECK(conv_algo() == ConvAlgo::kAuto);
  for (ConvAlgo algo : {ConvAlgo::kAuto, ConvAlgo::kNaive, ConvAlgo::kDirect, ConvAlgo::kIm2col,
                        ConvAlgo::kImplicitGemm, ConvAlgo::kTensorCore, ConvAlgo::kWinograd})
    CHECK(conv_algo_named(name(algo)) == algo);
  check_throws<ValueError>([] { conv_algo_named("fft"); },
                           {"fft", "auto", "tensor-core", "winograd"});

  const auto forward = [&](DType dtype, const Conv2dOptions& options) {
    return conv2d(zeros({2, 3, 8, 9}, {dtype, device}), zeros({4, 3, 3, 3}, {dtype, device}), {},
                  options);
  };
  {
    const With with(ConvAlgo::kWinograd);
    check_throws<ValueError>(
        [&] { forward(kFloat32, {.stride = 2}); },
        {"conv2d_forward", "winograd", "3 x 3", "stride", "(2, 3, 8, 9)", "--conv-algo"});
    check_throws<ValueError>([&] { forward(kFloat64, {.padding = 3}); },
                             {"conv2d_forward", "winograd", "padding below 3"});
  }
  if (!device.is_cuda()) {
    const With with(ConvAlgo::kTensorCore);
    check_throws<ValueError>(
        [&] { forward(kFloat32, {}); },
        {"conv2d", "tensor-core", "CPU", "implicit-gemm", "winograd", "--conv-algo"});
    return;
  }
  {
    const With with(ConvAlgo::kDirect);
    check_throws<ValueError>(
        [&] { forward(kFloat32, {.stride = 2}); },
        {"conv2d_forward", "direct", "stride", "(2, 3, 8, 9)", "--conv-algo", "implicit-gemm"});
  }
  const With with(ConvAlgo::kTensorCore);
  check_throws<ValueError>([&] { forward(kFloat64, {}); },
                           {"conv2d_forward", "tensor-core", "float32", "--conv-algo"});
  if (has_tensor_cores(device)) return;
  check_throws<ValueError>(
      [&] { forward(kFloat32, {}); },
      {"conv2d_forward", "tensor-core", "compiled for compute capability 8.0", "--conv-algo"});
}

DEVICE_TEST("conv2d: errors name the operator and the shapes", "[conv2d]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3, 8, 9}, options), w = zeros({4, 3, 3, 3}, options);
  check_throws<ShapeError>([&] { conv2d(zeros({3, 8, 9}, options), w); }, {"conv2d", "(3, 8, 9)"});
  check_throws<ShapeError>([&] { conv2d(x, zeros({4, 27}, options)); }, {"conv2d", "(4, 27)"});
  check_throws<ShapeError>(
      [&] {
        conv2d(x, zeros({4, 2, 3, 3}, options));
      },
      {"conv2d", "(2, 3, 8, 9)", "(4, 2, 3, 3)"});
  check_throws<ShapeError>(
      [&] {
        conv2d(x, zeros({4, 3, 9, 3}, options));
      },
      {"conv2d", "(2, 3, 8, 9)", "(4, 3, 9, 3)"});
  check_throws<ShapeError>([&] { conv2d(x, w, {}, {.dilation = 5}); },
                           {"conv2d", "(2, 3, 8, 9)", "(4, 3, 3, 3)"});
  check_throws<ShapeError>([&] { conv2d(x, w, zeros({3}, options)); }, {"conv2d", "(3,)", "(4,)"});
  check_throws<ShapeError>([&] { conv2d(x, w, {}, {.groups = 2}); }, {"conv2d", "groups"});
  // It is x that has the wrong channels, where the weight is a layer's.
  check_throws<ShapeError>(
      [&] {
        conv2d(zeros({2, 4, 8, 9}, options), w);
      },
      {"conv2d: expected x with 3 channels, got 4", "(2, 4, 8, 9)", "(4, 3, 3, 3)"});
  check_throws<ShapeError>(
      [&] {
        conv2d(zeros({2, 5, 8, 9}, options), w, {}, {.groups = 2});
      },
      {"conv2d: expected x with 6 channels, got 5", "(2, 5, 8, 9)", "(4, 3, 3, 3)", "groups 2"});
  check_throws<ShapeError>(
      [&] {
        conv2d(zeros({2, 9, 8, 9}, options), w, {}, {.groups = 3});
      },
      {"conv2d: expected weight with a multiple of groups = 3 output channels, got 4"});
  check_throws<Error>([&] { conv2d(x, w, {}, {.stride = 0}); }, {"conv2d", "stride"});
  check_throws<Error>([&] { conv2d(x, w, {}, {.padding = Pair(0, -1)}); }, {"conv2d", "padding"});
  check_throws<Error>([&] { conv2d(x, w, {}, {.dilation = 0}); }, {"conv2d", "dilation"});
  check_throws<Error>([&] { conv2d(x, w, {}, {.groups = 0}); }, {"conv2d", "groups"});
  check_throws<DtypeError>([&] { conv2d(x, w.to(kFloat64)); }, {"conv2d", "float32", "float64"});
  check_throws<DtypeError>([&] { conv2d(x.to(kInt32), w.to(kInt32)); }, {"conv2d", "int32"});
  check_throws<Error>([&] { conv2d(x, Tensor()); }, {"conv2d"});
  if (device.is_cuda())
    check_throws<DeviceError>([&] { conv2d(x, w.to(kCpu)); }, {"conv2d", "cuda", "cpu"});
}

}  // namespace sinter::test
