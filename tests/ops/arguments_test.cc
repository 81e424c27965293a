// Arguments at the edges: extents of 0, extents that nobody can count, undefined tensors.
#include <climits>

#include "tests/support/values.h"

namespace sinter::test {
namespace {

using Binary = Tensor (*)(const Tensor&, const Tensor&);

std::vector<ConvAlgo> algorithms(Device device) {
  std::vector<ConvAlgo> all = {ConvAlgo::kAuto,   ConvAlgo::kNaive,        ConvAlgo::kDirect,
                               ConvAlgo::kIm2col, ConvAlgo::kImplicitGemm, ConvAlgo::kWinograd};
  if (device.is_cuda()) all.push_back(ConvAlgo::kTensorCore);
  return all;
}

Tensor leaf_of(const Shape& shape, double value, TensorOptions options) {
  return full(shape, value, options).set_requires_grad();
}

// Whether t has this shape and holds this value everywhere.
bool is_full(const Tensor& t, const Shape& shape, double value) {
  if (!t.defined() || !(t.shape() == shape)) return false;
  for (double v : t.to_vector<double>())
    if (!(v == value || (std::isnan(v) && std::isnan(value)))) return false;
  return true;
}

// y's gradient 1 everywhere.
void backward_of_ones(const Tensor& y) { y.backward(ones(y.shape(), y.options())); }

constexpr int64_t k2To32 = int64_t{1} << 32, k2To40 = int64_t{1} << 40;

// f(op, its options) for both kinds of pooling.
template <class F> void over_pooling(const F& f) {
  f(max_pool2d, MaxPool2dOptions());
  f(avg_pool2d, AvgPool2dOptions());
}

}  // namespace

// ---- extents of 0 -------------------------------------------------------------------------------

DEVICE_TEST("conv2d: no images and no channels in every algorithm", "[arguments][conv2d]") {
  for (ConvAlgo algo : algorithms(device)) {
    for (DType dtype : {kFloat32, kFloat64}) {
      for (const auto& [n, groups, stride] : {std::tuple{2, 1, 1}, {17, 1, 1}, {33, 2, 2}}) {
        INFO(name(algo) << ' ' << dtype << " n " << n << " groups " << groups);
        const With with(algo);
        const TensorOptions options{dtype, device};
        const Conv2dOptions how{.stride = stride, .padding = 1, .groups = groups};
        const int64_t out = stride == 1 ? 6 : 3;
        for (const bool no_images : {true, false}) {
          const Shape x_shape{no_images ? 0 : n, no_images ? 4 : 0, 6, 6};
          const Shape w_shape{8, no_images ? 4 / groups : 0, 3, 3},
              y_shape{x_shape[0], 8, out, out};
          const auto dy_sum = static_cast<double>(x_shape[0] * out * out);
          for (const bool biased : {true, false}) {
            const Tensor x = leaf_of(x_shape, 1, options), w = leaf_of(w_shape, 1, options);
            const Tensor b = biased ? leaf_of({8}, 2.5, options) : Tensor();
            const Tensor y = conv2d(x, w, b, how);
            CHECK(is_full(y, y_shape, biased ? 2.5 : 0));
            backward_of_ones(y);
            CHECK(is_full(x.grad(), x_shape, 0));
            CHECK(is_full(w.grad(), w_shape, 0));
            if (biased) CHECK(is_full(b.grad(), {8}, dy_sum));
          }
          const Tensor x = leaf_of(x_shape, 1, options), w = leaf_of(w_shape, 1, options);
          const Tensor b = leaf_of({8}, 2.5, options);
          for (const app::Mode mode : app::kModes) {
            const std::vector<Tensor> all = app::results(mode, [&] {
              for (const Tensor& t : {x, w, b}) t.set_grad({});
              const Tensor y = app::conv2d_relu_pool(x, w, b, how);
              backward_of_ones(y);
              return std::vector<Tensor>{y, x.grad(), w.grad(), b.grad()};
            });
            CHECK(is_full(all[0], {x_shape[0], 8, out / 2, out / 2}, 2.5));
            CHECK(is_full(all[1], x_shape, 0));
            CHECK(is_full(all[2], w_shape, 0));
            CHECK(is_full(all[3], {8}, static_cast<double>(x_shape[0] * (out / 2) * (out / 2))));
          }
        }
      }
    }
  }
}

DEVICE_TEST("conv2d: other extents of 0 are refused", "[arguments][conv2d]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Conv2dOptions padded{.padding = 2};
    const auto refused = [&](const Shape& x, const Shape& w) {
      check_throws<ShapeError>([&] { conv2d(zeros(x, options), zeros(w, options), {}, padded); },
                               {"conv2d", "at least 1"});
    };
    for (int64_t n : {0, 2}) {
      refused({n, 3, 0, 5}, {4, 3, 3, 3});
      refused({n, 3, 5, 0}, {4, 3, 3, 3});
      refused({n, 3, 5, 5}, {0, 3, 3, 3});
      refused({n, 3, 5, 5}, {4, 3, 0, 3});
      refused({n, 3, 5, 5}, {4, 3, 3, 0});
    }
    check_throws<DtypeError>(
        [&] {
          conv2d(zeros({0, 3, 5, 5}, {kInt32, device}), zeros({4, 3, 3, 3}, {kInt32, device}));
        },
        {"conv2d", "int32"});
  }
}

DEVICE_TEST("pool2d: no images; other extents of 0 are refused", "[arguments][pool2d]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    over_pooling([&]<class Options>(auto op, Options) {
      const Tensor x = leaf_of({0, 3, 5, 6}, 1, options);
      const Tensor y = op(x, 2, Options());
      CHECK(y.shape() == Shape{0, 3, 2, 3});
      backward_of_ones(y);
      CHECK(x.grad().shape() == x.shape());
      const auto refused = [&](const Shape& shape, Pair kernel, Pair padding) {
        check_throws<ShapeError>(
            [&] { op(zeros(shape, options), kernel, Options{.padding = padding}); },
            {"pool2d", shape.str(), "at least 1"});
      };
      refused({1, 1, 0, 3000}, {2, 1}, {1, 0});
      refused({1, 1, 3000, 0}, {1, 2}, {0, 1});
      refused({0, 1, 0, 0}, {2, 2}, {1, 1});
      refused({2, 0, 4, 4}, {2, 2}, {0, 0});
    });
  }
}

DEVICE_TEST("linear and matmul: every extent 0 in turn", "[arguments][linear]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    for (int zero = 1; zero < 8; ++zero) {
      const int64_t m = zero & 1 ? 0 : 3, k = zero & 2 ? 0 : 4, n = zero & 4 ? 0 : 5;
      INFO("m " << m << " k " << k << " n " << n << ' ' << dtype);
      const auto dm = static_cast<double>(m);
      for (const bool biased : {true, false}) {
        const Tensor x = leaf_of({m, k}, 1, options), w = leaf_of({n, k}, 1, options);
        const Tensor b = biased ? leaf_of({n}, 2.5, options) : Tensor();
        const Tensor y = linear(x, w, b);
        CHECK(is_full(y, {m, n}, biased ? 2.5 : 0));
        backward_of_ones(y);
        CHECK(is_full(x.grad(), {m, k}, 0));
        CHECK(is_full(w.grad(), {n, k}, 0));
        if (biased) CHECK(is_full(b.grad(), {n}, dm));
      }
      for (const int64_t batch : {-1, 0, 1, 2}) {  // -1: b has none
        const Tensor a = leaf_of(batch < 0 ? Shape{m, k} : Shape{batch, m, k}, 1, options);
        const Tensor b = leaf_of({k, n}, 1, options);
        const Tensor y = matmul(a, b);
        CHECK(is_full(y, batch < 0 ? Shape{m, n} : Shape{batch, m, n}, 0));
        backward_of_ones(y);
        CHECK(is_full(a.grad(), a.shape(), 0));
        CHECK(is_full(b.grad(), b.shape(), 0));
      }
    }
    // Batches of none beside real matrices.
    const Tensor a = leaf_of({0, 3, 4}, 1, options), b = leaf_of({1, 4, 5}, 1, options);
    const Tensor y = matmul(a, b);
    CHECK(y.shape() == Shape{0, 3, 5});
    backward_of_ones(y);
    CHECK(a.grad().shape() == a.shape());
    CHECK(is_full(b.grad(), {1, 4, 5}, 0));
  }
}

DEVICE_TEST("mlp: every width 0 in turn", "[arguments][mlp]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    for (int zero = 1; zero < 16; ++zero)
      for (const bool relu_last : {true, false})
        for (const app::Mode mode : app::kModes) {
          INFO("widths " << zero << " relu " << relu_last << ' ' << dtype << ' '
                         << app::name(mode));
          const int64_t n = zero & 1 ? 0 : 3,
                        width[] = {zero & 2 ? 0 : 4, zero & 4 ? 0 : 5, zero & 8 ? 0 : 6};
          const Tensor x = leaf_of({n, width[0]}, 0, options);
          const std::vector<Tensor> w = {leaf_of({width[1], width[0]}, 1, options),
                                         leaf_of({width[2], width[1]}, 1, options)};
          const std::vector<Tensor> b = {leaf_of({width[1]}, 2, options),
                                         leaf_of({width[2]}, 1, options)};
          const std::vector<Tensor> all = app::results(mode, [&] {
            for (const Tensor& t : {x, w[0], b[0], w[1], b[1]}) t.set_grad({});
            const Tensor y = app::mlp(x, w, b, relu_last);
            backward_of_ones(y);
            return std::vector<Tensor>{y,           x.grad(),    w[0].grad(),
                                       b[0].grad(), w[1].grad(), b[1].grad()};
          });
          const auto hidden = static_cast<double>(width[1]), rows = static_cast<double>(n);
          CHECK(is_full(all[0], {n, width[2]}, 2 * hidden + 1));
          const auto out = static_cast<double>(width[2]);
          CHECK(is_full(all[1], x.shape(), hidden * out));
          CHECK(is_full(all[2], w[0].shape(), 0));
          CHECK(is_full(all[3], b[0].shape(), rows * out));
          CHECK(is_full(all[4], w[1].shape(), 2 * rows));
          CHECK(is_full(all[5], b[1].shape(), rows));
        }
  }
}

DEVICE_TEST("softmax and losses: extents of 0", "[arguments][softmax]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    for (const Shape& shape :
         {Shape{0}, Shape{3, 0}, Shape{0, 3}, Shape{2, 0, 3}, Shape{2, 3, 0}}) {
      for (int dim = 0; dim < shape.rank(); ++dim) {
        const Tensor x = leaf_of(shape, 1, options);
        const Tensor y = log_softmax(x, dim);
        CHECK(y.shape() == shape);
        backward_of_ones(y);
        CHECK(x.grad().shape() == shape);
      }
    }
    const Tensor labels = zeros({0}, {kInt64, device});
    for (const int64_t classes : {1, 10, 3000}) {
      for (const bool mean : {true, false}) {
        const Tensor x = leaf_of({0, classes}, 1, options);
        const Tensor loss =
            cross_entropy(x, labels, {.reduction = mean ? Reduction::kMean : Reduction::kSum});
        CHECK(is_full(loss, {}, mean ? std::nan("") : 0));
        loss.backward();
        CHECK(x.grad().shape() == x.shape());
      }
      const Tensor count = full({1}, 7, {kInt64, device});
      add_correct(count, zeros({0, classes}, options), labels);
      CHECK(count.item<int64_t>() == 7);
    }
    check_throws<ShapeError>(
        [&] {
          cross_entropy(zeros({0, 0}, options), labels);
        },
        {"cross_entropy", "(0, 0)"});
    check_throws<ShapeError>(
        [&] {
          add_correct(zeros({1}, {kInt64, device}), zeros({0, 0}, options), labels);
        },
        {"add_correct", "(0, 0)"});
  }
}

DEVICE_TEST("elementwise and reduce and views: extents of 0", "[arguments][elementwise]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const auto unary = [&](const Shape& shape, const Shape& expected, const auto& f) {
      const Tensor x = leaf_of(shape, 1, options);
      const Tensor y = f(x);
      CHECK(y.shape() == expected);
      backward_of_ones(y);
      CHECK(is_full(x.grad(), shape, 0));
    };
    for (const Binary op : std::initializer_list<Binary>{add, sub, mul, div}) {
      const Tensor a = leaf_of({0, 1}, 1, options), b = leaf_of({1, 3}, 2, options);
      const Tensor c = leaf_of({}, 2, options);
      const Tensor y = op(op(a, b), c);
      CHECK(y.shape() == Shape{0, 3});
      backward_of_ones(y);
      CHECK(is_full(a.grad(), {0, 1}, 0));
      CHECK(is_full(b.grad(), {1, 3}, 0));
      CHECK(is_full(c.grad(), {}, 0));
    }
    unary({2, 0}, {2, 0}, [](const Tensor& x) { return relu((x * 2 + 1) / 3 - 1); });
    unary({2, 0, 3}, {3, 0, 2}, [](const Tensor& x) { return permute(x, {2, 1, 0}); });
    unary({2, 0, 3}, {0, 7}, [](const Tensor& x) { return reshape(x, {0, 7}); });
    unary({2, 0, 3}, {2, 0}, [](const Tensor& x) { return flatten(x, 1); });
    unary({2, 0, 3}, {1, 0, 3}, [](const Tensor& x) { return narrow(x, 0, 1, 1); });
    unary({0, 3}, {0, 3}, [](const Tensor& x) { return narrow(x, 0, 0, 0).clone(); });
    for (int dim = 0; dim < 3; ++dim) {
      const Shape shape{2, 0, 3};
      const Tensor x = leaf_of(shape, 1, options), z = leaf_of(shape, 1, options);
      const Tensor y = sum(x, {dim}, true), m = mean(z, {dim}, true);
      Shape expected = shape;
      expected[dim] = 1;
      CHECK(is_full(y, expected, 0));
      CHECK(is_full(m, expected, std::nan("")));
      backward_of_ones(y);
      backward_of_ones(m);
      CHECK(x.grad().shape() == shape);
      CHECK(z.grad().shape() == shape);
    }
    check_throws<ShapeError>(
        [&] {
          reshape(zeros({0}, options), {-1, 0});
        },
        {"reshape", "(-1, 0)"});

    // A parameter without elements beside one with some.
    for (const bool adam : {true, false}) {
      const std::vector<Tensor> parameters = {leaf_of({0, 3}, 1, options), leaf_of({2}, 1, options),
                                              leaf_of({0}, 1, options)};
      for (const Tensor& p : parameters) p.set_grad(ones(p.shape(), options));
      if (adam)
        Adam(parameters, {.lr = 0.5}).step();
      else
        SGD(parameters, {.lr = 0.5, .momentum = 0.5}).step();
      for (double v : parameters[1].to_vector<double>()) CHECK(std::abs(v - 0.5) <= 1e-6);
      CHECK(parameters[0].shape() == Shape{0, 3});
    }
  }
}

DEVICE_TEST("batches: images without pixels and sets without images", "[arguments][data]") {
  const TensorOptions bytes{kUInt8, device};
  for (const Shape& shape : {Shape{3, 0, 4, 4}, Shape{3, 3, 0, 4}, Shape{3, 3, 4, 0}}) {
    Batches batches({full(shape, 1, bytes), full({3}, 5, bytes)}, {.batch_size = 2});
    CHECK(batches.get(1).x.shape() == Shape{1, shape[1], shape[2], shape[3]});
    CHECK(is_full(batches.next().y, {2}, 5));
  }
  Batches none({zeros({0, 3, 4, 4}, bytes), zeros({0}, bytes)}, {.batch_size = 2});
  CHECK(none.size() == 0);
  check_throws<ValueError>([&] { none.next(); }, {"Batches::next", "no images"});
}

// ---- extents that nobody can count --------------------------------------------------------------

DEVICE_TEST("shape: more elements than can be counted are refused", "[arguments][view]") {
  const TensorOptions options{kFloat32, device};
  CHECK(Shape{k2To40, 0, 1 << 20}.numel() == 0);
  // Not only the elements: strides and parts, whatever the order of the extents.
  for (const Shape& shape : {Shape{k2To32, k2To32}, Shape{0, k2To32, k2To32},
                             Shape{k2To32, k2To32, 0}, Shape{k2To32, 0, k2To32}}) {
    check_throws<ShapeError>([&] { shape.numel(); }, {shape.str(), "more elements"});
    check_throws<ShapeError>([&] { zeros(shape, options); }, {"empty", shape.str()});
    check_throws<ShapeError>([&] { zeros({0}, options).reshape(shape); }, {"reshape", shape.str()});
    check_throws<ShapeError>([&] { from_vector<float>({}, shape, device); }, {shape.str()});
  }
  // Bytes are counted too.
  check_throws<ShapeError>(
      [&] {
        zeros({k2To40, 1 << 22, 0}, options);
      },
      {"empty", "more elements"});
  for (const Shape& shape : {Shape{-1}, Shape{-2, -3}, Shape{0, -1}, Shape{INT64_MIN}}) {
    check_throws<ShapeError>([&] { shape.numel(); }, {shape.str(), "at least 0"});
    check_throws<ShapeError>([&] { zeros(shape, options); }, {shape.str(), "at least 0"});
    check_throws<ShapeError>([&] { from_vector<float>({}, shape, device); }, {shape.str()});
  }
  const Tensor x = zeros({2, 3}, options), none = zeros({0}, options);
  check_throws<ShapeError>([&] { none.reshape({-1, k2To32, k2To32}); }, {"reshape"});
  check_throws<ShapeError>([&] { x.reshape({INT64_MIN, 2}); }, {"reshape", "(2, 3)"});
  check_throws<ShapeError>([&] { x.reshape({-1, INT64_MIN}); }, {"reshape", "(2, 3)"});
  check_throws<ShapeError>([&] { x.reshape({-1, -6}); }, {"reshape", "(2, 3)"});
  check_throws<ShapeError>([&] { x.reshape({INT64_MAX, INT64_MAX}); }, {"reshape"});
  CHECK(flatten(none.reshape({k2To40, 0, 1 << 20})).shape() == Shape{0});
  CHECK(flatten(none.reshape({k2To40, 1 << 10, 0}), 0, 1).shape() == Shape{k2To40 << 10, 0});
  for (const auto& [first, count] : {std::pair{int64_t{1}, INT64_MAX},
                                     {INT64_MAX, int64_t{1}},
                                     {INT64_MIN, int64_t{1}},
                                     {int64_t{0}, INT64_MIN}})
    check_throws<ShapeError>([&, f = first, c = count] { x.narrow(0, f, c); },
                             {"narrow", "(2, 3)"});
  for (const int dim : {INT_MIN, INT_MAX}) {
    check_throws<ShapeError>([&] { sum(x, {dim}); }, {"sum", "(2, 3)"});
    check_throws<ShapeError>([&] { log_softmax(x, dim); }, {"log_softmax", "(2, 3)"});
    check_throws<ShapeError>([&] { permute(x, {dim, 0}); }, {"permute", "(2, 3)"});
    check_throws<ShapeError>([&] { flatten(x, dim); }, {"flatten", "(2, 3)"});
  }
}

DEVICE_TEST("operators: results that nobody can count are refused", "[arguments]") {
  const TensorOptions options{kFloat32, device};
  const Tensor wide = zeros({k2To40, 1, 0}, options), deep = zeros({1, k2To40, 0}, options);
  check_throws<ShapeError>([&] { add(wide, deep); }, {"add", "more elements"});
  check_throws<ShapeError>([&] { div(wide, deep); }, {"div", "more elements"});
  check_throws<ShapeError>(
      [&] {
        matmul(wide.reshape({k2To40, 1, 0, 1}), deep.reshape({1, k2To40, 1, 0}));
      },
      {"matmul", "more elements"});
  check_throws<ShapeError>(
      [&] {
        matmul(zeros({k2To40, 0}, options), zeros({0, k2To40}, options));
      },
      {"matmul", "more elements"});
  const Tensor flat = zeros({k2To40, 0}, options);
  check_throws<ShapeError>([&] { linear(flat, flat); }, {"linear", "more elements"});
  check_throws<ShapeError>(
      [&] {
        Batches({zeros({0, 4, 1 << 15, 1 << 15}, {kUInt8, device}), zeros({0}, {kUInt8, device})},
                {});
      },
      {"Batches", "2^31"});
}

DEVICE_TEST("conv2d: the largest strides and paddings and dilations", "[arguments][conv2d]") {
  const Array x_values = noise({17, 4, 6, 7}, 1), w_values = noise({8, 4, 3, 3}, 2);
  for (ConvAlgo algo : algorithms(device)) {
    // Computed if it is a matter of two or three windows.
    for (DType dtype : {kFloat32, kFloat64}) {
      if (algo == ConvAlgo::kTensorCore && dtype == kFloat64) continue;
      INFO(name(algo) << ' ' << dtype);
      const TensorOptions options{dtype, device};
      const auto run = [&](ConvAlgo with_algo, const Array& w_of, const Conv2dOptions& how) {
        const With with(with_algo);
        const Tensor x = leaf(x_values, options), w = leaf(w_of, options);
        const Tensor y = conv2d(x, w, {}, how);
        backward_of_ones(y);
        return std::array{y, x.grad(), w.grad()};
      };
      const auto same = [&](const Array& w_of, const Conv2dOptions& how, const Conv2dOptions& as) {
        const auto expected = run(ConvAlgo::kNaive, w_of, as);
        std::array<Tensor, 3> actual;
        try {
          actual = run(algo, w_of, how);
        } catch (const ValueError&) {  // not an algorithm for this layer
          CHECK(algo != ConvAlgo::kAuto);
          return;
        }
        for (size_t i = 0; i < 3; ++i)
          check_close("conv2d: largest strides", actual[i], array(expected[i]), 17 * 4 * 9);
      };
      const Array point{{8, 4, 1, 1}, {w_values.v.begin(), w_values.v.begin() + 32}};
      same(w_values, {.stride = INT_MAX}, {.stride = 6});
      same(w_values, {.stride = INT_MAX, .padding = 1}, {.stride = 9, .padding = 1});
      same(w_values, {.stride = Pair(1, INT_MAX), .padding = 2},
           {.stride = Pair(1, 9), .padding = 2});
      same(point, {.dilation = INT_MAX}, {});
      same(point, {.stride = INT_MAX, .padding = 1, .dilation = INT_MAX},
           {.stride = 9, .padding = 1});
    }
    const With with(algo);
    const TensorOptions options{kFloat32, device};
    const auto refused = [&](const Conv2dOptions& how, const char* part) {
      check_throws<Error>(
          [&] {
            conv2d(zeros({2, 4, 6, 7}, options), zeros({8, 4, 3, 3}, options), {}, how);
          },
          {"conv2d", part});
    };
    for (const int worst : {INT_MAX, INT_MAX - 1, INT_MAX / 2 + 1, 1 << 29}) {
      refused({.padding = worst}, "2^30 - 1");
      refused({.padding = Pair(0, worst)}, "2^30 - 1");
      refused({.padding = worst, .dilation = INT_MAX}, "conv2d");
      refused({.dilation = worst}, "spans");
      refused({.groups = worst}, "groups");
    }
    for (const int least : {INT_MIN, INT_MIN + 1, -1}) {
      refused({.stride = least}, "stride");
      refused({.padding = Pair(1, least)}, "padding");
      refused({.dilation = Pair(least, 1)}, "dilation");
      refused({.groups = least}, "groups");
    }
  }
}

// Rows of the window times rows of the result do not fit int.
DEVICE_TEST("conv2d: windows of many rows", "[arguments][conv2d]") {
  const With with(ConvAlgo::kImplicitGemm);
  const TensorOptions options{kFloat32, device};
  const Tensor y = conv2d(ones({1, 1, 100000, 1}, options), ones({1, 1, 50000, 1}, options));
  CHECK(is_full(y, {1, 1, 50001, 1}, 50000));
}

DEVICE_TEST("conv2d and pool2d: planes and windows beyond 2^31 are refused",
            "[arguments][conv2d]") {
  const TensorOptions options{kFloat32, device};
  const Tensor w = zeros({1, 1, 1, 1}, options);
  for (const Shape& shape : {Shape{0, 1, 1 << 16, 1 << 15}, Shape{0, 1, 1 << 16, 1 << 16},
                             Shape{0, 1, (int64_t{1} << 30) - 1, 3}, Shape{0, 1, k2To32, 1},
                             Shape{0, 1, 1, int64_t{1} << 30}, Shape{0, 1, k2To40, 1}}) {
    const Tensor x = zeros(shape, options);
    check_throws<ShapeError>([&] { conv2d(x, w); }, {"conv2d", "2^3"});
    check_throws<ShapeError>([&] { max_pool2d(x, 1); }, {"max_pool2d", "2^3"});
    check_throws<ShapeError>([&] { avg_pool2d(x, 1); }, {"avg_pool2d", "2^3"});
  }
  CHECK(conv2d(zeros({0, 1, 1 << 15, (1 << 16) - 1}, options), w).shape()[3] == (1 << 16) - 1);
  const Tensor small = ones({1, 1, 4, 4}, options);
  check_throws<ShapeError>([&] { conv2d(small, w, {}, {.padding = 1 << 15}); }, {"conv2d", "2^31"});
  check_throws<ShapeError>(
      [&] {
        conv2d(zeros({k2To32, 0, 1, 1}, options), zeros({1, 0, 1, 1}, options));
      },
      {"conv2d", "4294967296"});
  check_throws<ShapeError>(
      [&] {
        conv2d(zeros({0, k2To32, 1, 1}, options), w);
      },
      {"conv2d", "1 channels", "4294967296"});
  over_pooling([&]<class Options>(auto op, Options) {
    check_throws<ShapeError>([&] { op(small, 50000, Options{.padding = 25000}); },
                             {"pool2d", "2^31"});
    for (const int worst : {INT_MAX, INT_MAX - 1, 1 << 30}) {
      check_throws<Error>([&] { op(small, worst, Options()); }, {"pool2d"});
      check_throws<ValueError>([&] { op(small, 2, Options{.padding = worst}); },
                               {"pool2d", "padding"});
      check_throws<ShapeError>([&] { op(small, worst, Options{.padding = worst / 2}); },
                               {"pool2d", "2^30"});
      CHECK(is_full(op(small, 2, Options{.stride = worst}), {1, 1, 1, 1}, 1));
      CHECK(is_full(op(small, 2, Options{.stride = worst, .padding = 1}), {1, 1, 1, 1},
                    std::is_same_v<Options, AvgPool2dOptions> ? 0.25 : 1));
    }
    for (const int least : {INT_MIN, -1}) {
      check_throws<ValueError>([&] { op(small, least, Options()); }, {"pool2d", "kernel"});
      check_throws<ValueError>([&] { op(small, 2, Options{.stride = least}); },
                               {"pool2d", "stride"});
      check_throws<ValueError>([&] { op(small, 2, Options{.padding = least}); },
                               {"pool2d", "padding"});
    }
  });
  // As large as they may be: 40000^2 elements, of which 16 are not padding.
  CHECK(std::abs(avg_pool2d(small, 40000, {.padding = 19999}).item<double>() * 1e8 - 1) <= 1e-6);
}

// ---- undefined tensors --------------------------------------------------------------------------

DEVICE_TEST("operators: an undefined tensor is named with its operator", "[arguments]") {
  const TensorOptions options{kFloat32, device};
  const Tensor u, x = ones({2, 2}, options), images = ones({1, 1, 4, 4}, options),
                  w = ones({1, 1, 2, 2}, options), labels = zeros({2}, {kInt64, device});
  const Tensor count = zeros({1}, {kInt64, device});
  const auto names = [](const std::string& op, const std::string& argument, const auto& f) {
    INFO(op << ' ' << argument);
    check_throws<Error>(f, {op + ": ", " " + argument, "undefined tensor"});
  };
  names("conv2d", "x", [&] { conv2d(u, w); });
  names("conv2d", "weight", [&] { conv2d(images, u); });
  names("max_pool2d", "x", [&] { max_pool2d(u, 2); });
  names("avg_pool2d", "x", [&] { avg_pool2d(u, 2); });
  names("linear", "x", [&] { linear(u, x); });
  names("linear", "weight", [&] { linear(x, u); });
  for (const auto& [op, f] : std::initializer_list<std::pair<std::string, Binary>>{
           {"matmul", matmul}, {"add", add}, {"sub", sub}, {"mul", mul}, {"div", div}}) {
    names(op, "a", [&, f = f] { f(u, x); });
    names(op, "b", [&, f = f] { f(x, u); });
    names(op, "a", [&, f = f] { f(u, u); });
  }
  names("add", "a", [&] { u + 1.0; });
  names("sub", "a", [&] { u - 1.0; });
  names("mul", "a", [&] { u * 2.0; });
  names("neg", "x", [&] { -u; });
  names("div", "a", [&] { u / 2.0; });
  names("relu", "x", [&] { relu(u); });
  names("sum", "x", [&] { sum(u); });
  names("mean", "x", [&] { mean(u); });
  names("permute", "x", [&] { permute(u, {}); });
  names("reshape", "x", [&] { reshape(u, {}); });
  names("reshape", "x", [&] { reshape(u, {1}); });
  names("flatten", "x", [&] { flatten(u); });
  names("narrow", "x", [&] { narrow(u, 0, 0, 0); });
  names("to", "x", [&] { u.to(device); });
  names("to", "x", [&] { u.to(kFloat32); });
  names("to", "x", [&] { u.to(kFloat64); });
  names("clone", "x", [&] { u.clone(); });
  names("log_softmax", "x", [&] { log_softmax(u); });
  names("cross_entropy", "logits", [&] { cross_entropy(u, labels); });
  names("cross_entropy", "labels", [&] { cross_entropy(x, u); });
  names("add_correct", "count", [&] { add_correct(u, x, labels); });
  names("add_correct", "logits", [&] { add_correct(count, u, labels); });
  names("add_correct", "labels", [&] { add_correct(count, x, u); });
}

}  // namespace sinter::test
