// Pooling's options, adaptive pooling and pooling of one dimension.
#include "core/base/detail.h"
#include "sinter/nn.h"
#include "tests/reference/oracle_pool.h"
#include "tests/support/values.h"

namespace sinter::test {

DEVICE_TEST("pool: every option beside the oracle", "[pool2d]") {
  std::vector<app::VerifyCase> cases;
  app::add_pool_cases(cases);
  CHECK(cases.size() == 60);
  for (const app::VerifyCase& c : cases) {
    const app::PreparedCheck check = c.prepare();
    INFO(c.op << ' ' << check.what);
    for (const DType dtype : {kFloat32, kFloat64})
      for (const app::Mode mode : app::kModes)
        for (const app::Comparison& result : check.check({dtype, device}, mode))
          CHECK(result.wrong == "");
  }
}

DEVICE_TEST("pool: ceil_mode by hand", "[pool2d]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor x = leaf({{1, 1, 5}, {1, 2, 3, 4, 5}}, options);
    const Tensor y = avg_pool1d(x, 2, {.ceil_mode = true});
    check_close("avg_pool1d: y", y, {{1, 1, 3}, {1.5, 3.5, 5}}, 0);
    y.backward(ones({1, 1, 3}, options));
    check_close("avg_pool1d: gradient 0", x.grad(), {{1, 1, 5}, {0.5, 0.5, 0.5, 0.5, 1}}, 0);
    // A window that would begin in the right padding is left out.
    CHECK(max_pool1d(zeros({1, 6}, options), 1, {.stride = 2, .ceil_mode = true}).shape() ==
          Shape{1, 3});
    CHECK(max_pool2d(zeros({1, 5, 5}, options), 2, {.stride = 2, .padding = 1, .ceil_mode = true})
              .shape() == Shape{1, 3, 3});
    // A kernel beyond the image, which hangs over the end.
    check_close("max_pool1d: y", max_pool1d(x, 6, {.stride = 2, .ceil_mode = true}),
                {{1, 1, 1}, {5}}, 0);
  }
}

DEVICE_TEST("max_pool2d: indices lie in the plane", "[pool2d]") {
  const double nan = std::nan("");
  const Tensor x =
      tensor({{1, 2, 3, 3}, {1, 9, 3, 4, 5, 6, 7, 8, 2, 1, 1, 1, 1, nan, 1, 1, 1, nan}},
             {kFloat64, device});
  const auto [values, indices] = max_pool2d_with_indices(x, 2, {.stride = 1});
  CHECK(indices.dtype() == kInt64);
  CHECK(indices.to_vector<int64_t>() == std::vector<int64_t>{1, 1, 7, 7, 4, 4, 4, 4});
  CHECK(std::isnan(values.to_vector<double>()[4]));
  CHECK(max_pool2d_with_indices(x, 2, {.padding = 1}).indices.to_vector<int64_t>() ==
        std::vector<int64_t>{0, 1, 6, 7, 0, 1, 3, 4});
  CHECK(max_pool2d_with_indices(x, 2, {.dilation = 2}).indices.to_vector<int64_t>() ==
        std::vector<int64_t>{6, 8});
  // Codes of more than a byte.
  const Tensor wide = tensor(ramp({2, 1, 300}, 1), {kFloat32, device});
  CHECK(max_pool2d_with_indices(wide, Pair(1, 299), {.stride = 1}).values.shape() ==
        Shape{2, 1, 2});
}

DEVICE_TEST("adaptive pooling: by hand", "[pool2d]") {
  const TensorOptions options{kFloat64, device};
  const Tensor x = leaf({{1, 5}, {1, 2, 3, 4, 5}}, options);
  const Tensor y = adaptive_avg_pool1d(x, 3);  // [0, 2), [1, 4), [3, 5)
  check_close("adaptive_avg_pool1d: y", y, {{1, 3}, {1.5, 3, 4.5}}, 1);
  y.backward(tensor({{1, 3}, {6, 6, 6}}, options));
  check_close("adaptive_avg_pool1d: gradient 0", x.grad(), {{1, 5}, {3, 5, 2, 5, 3}}, 1);
  check_close("adaptive_max_pool1d: y", adaptive_max_pool1d(x, 3), {{1, 3}, {2, 4, 5}}, 0);
  // More parts than elements repeat them; -1 keeps an extent.
  check_close("adaptive_avg_pool1d: y", adaptive_avg_pool1d(x, 10),
              {{1, 10}, {1, 1, 2, 2, 3, 3, 4, 4, 5, 5}}, 0);
  const Tensor image = tensor(ramp({2, 3, 4, 6}, 1), options);
  CHECK(adaptive_avg_pool2d(image, {-1, 3}).shape() == Shape{2, 3, 4, 3});
  CHECK(same_bits(adaptive_max_pool2d(image, {2, 3}), max_pool2d(image, 2)));
  CHECK(same_bits(adaptive_max_pool2d(image, -1), image));
  // Nothing.
  const Tensor none = leaf(ramp({2, 3, 4, 6}, 1), options);
  const Tensor nothing = adaptive_avg_pool2d(none, {0, 2});
  CHECK(nothing.shape() == Shape{2, 3, 0, 2});
  nothing.sum().backward();
  CHECK(same_bits(none.grad(), zeros({2, 3, 4, 6}, options)));
  CHECK(adaptive_max_pool2d(zeros({0, 3, 4, 6}, options), 3).shape() == Shape{0, 3, 3, 3});
}

DEVICE_TEST("pool: layers", "[nn]") {
  const Tensor x = tensor(ramp({2, 3, 7, 6}, 1), {kFloat32, device});
  CHECK(same_bits(MaxPool2d(2, 1, 1, 2, true)(x),
                  max_pool2d(x, 2, {.stride = 1, .padding = 1, .dilation = 2, .ceil_mode = true})));
  CHECK(same_bits(
      AvgPool2d(2, {}, 1, true, false, 3)(x),
      avg_pool2d(
          x, 2,
          {.padding = 1, .ceil_mode = true, .count_include_pad = false, .divisor_override = 3})));
  CHECK(same_bits(AdaptiveAvgPool2d(3)(x), adaptive_avg_pool2d(x, 3)));
  CHECK(same_bits(AdaptiveMaxPool2d(Pair(2, -1))(x), adaptive_max_pool2d(x, {2, -1})));
  CHECK(str(AdaptiveAvgPool2d(Pair(1, -1))) == "AdaptiveAvgPool2d(output_size=(1, None))");
  CHECK(str(MaxPool2d(2, {}, 0, 1, true)) ==
        "MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=True)");
}

DEVICE_TEST("pool: what PyTorch refuses", "[pool2d]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({3, 3, 3}, options), signal = zeros({2, 10, 4}, options);
  check_throws<ValueError>([&] { avg_pool2d(x, 2, {.divisor_override = 0}); },
                           {"avg_pool2d", "divisor_override"});
  check_throws<ValueError>([&] { max_pool1d(x, 1, {.stride = 0}); }, {"max_pool1d", "stride"});
  check_throws<ValueError>([&] { max_pool1d(x, 1, {.dilation = 0}); }, {"max_pool1d", "dilation"});
  check_throws<ValueError>([&] { max_pool1d(x, 3, {.padding = 2, .dilation = 2}); }, {"padding"});
  check_throws<ShapeError>([&] { max_pool1d(zeros({2, 2, 2}, options), 5); }, {"max_pool1d"});
  check_throws<ShapeError>(
      [&] {
        max_pool1d(signal, INT_MAX, {INT_MAX, 0, INT_MAX, true});
      },
      {"max_pool1d"});
  check_throws<ShapeError>([&] { max_pool1d(zeros({1, 10, 0}, options), 1); }, {"(1, 10, 0)"});
  check_throws<ShapeError>([&] { max_pool1d(zeros({}, options), 1); }, {"max_pool1d"});
  check_throws<ShapeError>([&] { adaptive_avg_pool2d(zeros({2, 2}, options), 2); }, {"(2, 2)"});
  check_throws<ValueError>([&] { adaptive_max_pool1d(x, -2); }, {"adaptive_max_pool1d", "-2"});
  // Neither row of the window is in x.
  check_throws<ShapeError>(
      [&] {
        max_pool2d(zeros({1, 1, 3}, options), Pair(2, 1), {1, Pair(1, 0), Pair(2, 1)});
      },
      {"max_pool2d", "dilation 2", "(1, 1, 3)"});
}

}  // namespace sinter::test
