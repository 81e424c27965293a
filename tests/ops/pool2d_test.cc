#include <sinter/emit.h>

#include "core/base/detail.h"
#include "tests/reference/oracle.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

struct Kind {
  const char* name;
  std::function<Tensor(const Tensor&, Pair, const MaxPool2dOptions&)> op;
  Op (*with)(const oracle::Pool&);  // op with this window
};
const Kind kMax{"max_pool2d", max_pool2d, app::max_pool2d_op};
const Kind kAvg{"avg_pool2d",
                [](const Tensor& x, Pair kernel, const MaxPool2dOptions& o) {
                  return avg_pool2d(x, kernel, {.stride = o.stride, .padding = o.padding});
                },
                app::avg_pool2d_op};

Op pool_op(const Kind& kind, const oracle::Pool& p) { return kind.with(p); }

void check_pool(Device device, const Sizes& shape, const oracle::Pool& p) {
  check_op(app::max_pool2d_case(shape, p), device);
  check_op(app::avg_pool2d_case(shape, p), device);
}

struct Pooled {
  Tensor y, choice;
};
// The operator itself, its codes in `code`.
Pooled pooled(const Tensor& x, const oracle::Pool& p, DType code) {
  const Shape& s = x.shape();
  const Sizes y = oracle::windows({s[0], s[1], s[2], s[3]}, p).first;
  const auto as_int = [](int64_t n) { return static_cast<int>(n); };
  const op::Pool2dShape g{.n = as_int(s[0]),
                          .c = as_int(s[1]),
                          .h = as_int(s[2]),
                          .w = as_int(s[3]),
                          .kh = as_int(p.kh),
                          .kw = as_int(p.kw),
                          .stride_h = as_int(p.stride_h),
                          .stride_w = as_int(p.stride_w),
                          .pad_h = as_int(p.pad_h),
                          .pad_w = as_int(p.pad_w),
                          .oh = as_int(y[2]),
                          .ow = as_int(y[3])};
  const Pooled to{empty(Shape(y), x.options()), full(Shape(y), 99, {code, x.device()})};
  emit(op::MaxPool2dForward{g, in(x), out(to.y), out(to.choice)});
  return to;
}

// The place in its window of each first NaN, else first maximum, by the definition.
std::vector<int64_t> places(const Array& x, const oracle::Pool& p) {
  std::vector<int64_t> all;
  oracle::for_each_index(oracle::windows(x.shape, p).first, [&](const Sizes& at) {
    int64_t place = -1;
    double best = 0;
    for (int64_t i = 0; i < p.kh * p.kw; ++i) {
      const int64_t row = at[2] * p.stride_h - p.pad_h + i / p.kw;
      const int64_t column = at[3] * p.stride_w - p.pad_w + i % p.kw;
      if (row < 0 || row >= x.shape[2] || column < 0 || column >= x.shape[3]) continue;
      const double v = x.v[oracle::offset(x.shape, {at[0], at[1], row, column})];
      if (place >= 0 && !(v > best) && !(std::isnan(v) && !std::isnan(best))) continue;
      place = i;
      best = v;
    }
    all.push_back(place);
  });
  return all;
}

void check_choice(Device device, const Array& x, const oracle::Pool& p,
                  const std::vector<int64_t>& expected) {
  INFO("x " << Shape(x.shape) << " kernel " << p.kh << ',' << p.kw << " stride " << p.stride_h
            << ',' << p.stride_w << " padding " << p.pad_h << ',' << p.pad_w);
  const DType code = p.kh * p.kw <= 256 ? kUInt8 : kInt32;
  for (DType dtype : {kFloat32, kFloat64})
    CHECK(pooled(tensor(x, {dtype, device}), p, code).choice.to_vector<int64_t>() == expected);
}

// Integers, of which many are equal, and some NaN.
Array ties(const Sizes& shape, uint64_t seed) {
  Array x = oracle::integers(shape, seed, 2);
  for (size_t i = 0; i < x.v.size(); i += 7 + i % 5) x.v[i] = std::nan("");
  return x;
}

}  // namespace

DEVICE_TEST("pool2d: hand-computed case", "[pool2d]") {
  const Array x{{1, 1, 3, 4}, {1, 2, 3, 4, 8, 7, 6, 5, 0, 9, -1, -2}};
  const oracle::Pool p{2, 2, 1, 2};
  const Array dy{{1, 1, 2, 2}, {1, 10, 100, 1000}};
  check_op({"max_pool2d",
            {x},
            pool_op(kMax, p),
            {{1, 1, 2, 2}, {8, 6, 9, 6}},
            dy,
            {{{1, 1, 3, 4}, {0, 0, 0, 0, 1, 0, 1010, 0, 0, 100, 0, 0}}},
            0,
            {0}},
           device);
  check_op({"avg_pool2d",
            {x},
            pool_op(kAvg, p),
            {{1, 1, 2, 2}, {4.5, 4.5, 6, 2}},
            dy,
            {{{1, 1, 3, 4}, {0.25, 0.25, 2.5, 2.5, 25.25, 25.25, 252.5, 252.5, 25, 25, 250, 250}}},
            0,
            {0}},
           device);
}

DEVICE_TEST("pool2d: the stride defaults to the kernel", "[pool2d]") {
  const Tensor x = tensor(ramp({2, 3, 8, 9}, 1), {kFloat32, device});
  CHECK(max_pool2d(x, 2).shape() == Shape{2, 3, 4, 4});  // the ninth column is left out
  CHECK(max_pool2d(x, Pair(4, 3)).shape() == Shape{2, 3, 2, 3});
  CHECK(avg_pool2d(x, Pair(4, 3)).shape() == Shape{2, 3, 2, 3});
  CHECK(same_bits(max_pool2d(x, Pair(4, 3)), max_pool2d(x, Pair(4, 3), {.stride = Pair(4, 3)})));
  CHECK(max_pool2d(x, 3, {.padding = 1}).shape() == Shape{2, 3, 3, 3});
}

DEVICE_TEST("pool2d: shapes", "[pool2d]") {
  check_pool(device, {1, 1, 1, 1}, {1, 1, 1, 1});
  check_pool(device, {5, 6, 28, 28}, {2, 2, 2, 2});
  check_pool(device, {5, 16, 10, 10}, {2, 2, 2, 2});
  check_pool(device, {2, 3, 7, 9}, {2, 2, 2, 2});  // a row and a column left out
  check_pool(device, {2, 3, 5, 7}, {5, 7, 5, 7});  // the whole plane
  check_pool(device, {2, 3, 1, 9}, {1, 3, 1, 2});
  check_pool(device, {2, 3, 9, 1}, {3, 1, 2, 1});
  check_pool(device, {1, 1, 67, 131}, {3, 2, 2, 3, 1, 1});
  check_pool(device, {1, 1, 3, 2051}, {2, 3, 1, 2, 1, 1});
  check_pool(device, {130, 3, 4, 5}, {2, 3, 2, 1});
  check_pool(device, {3, 258, 4, 3}, {2, 2, 2, 1});
}

DEVICE_TEST("pool2d: every combination of kernel and stride and padding", "[pool2d]") {
  for (int64_t kh = 1; kh <= 4; ++kh)
    for (int64_t kw = 1; kw <= 3; ++kw)
      for (int64_t sh = 1; sh <= 3; ++sh)
        for (int64_t sw = 1; sw <= 3; ++sw)
          for (int64_t ph = 0; ph <= kh / 2; ++ph)
            for (int64_t pw = 0; pw <= kw / 2; ++pw)
              check_pool(device, {2, 2, 6, 7}, {kh, kw, sh, sw, ph, pw});
}

DEVICE_TEST("pool2d: rows of every length", "[pool2d]") {
  // Beside the vectors' widths, with the strides that have fast paths and one that has none.
  for (int64_t w = 3; w <= 40; ++w)
    for (const auto& [kw, stride] :
         {std::pair<int64_t, int64_t>{2, 2}, {3, 2}, {3, 1}, {1, 2}, {2, 3}})
      check_pool(device, {2, 3, 4, w}, {2, kw, 2, stride});
}

DEVICE_TEST("max_pool2d: ties and NaN in rows of every length", "[pool2d]") {
  for (int64_t w = 3; w <= 40; ++w)
    for (const auto& [kw, stride] : {std::pair<int64_t, int64_t>{2, 2}, {3, 2}, {3, 1}, {2, 3}}) {
      const oracle::Pool p{2, kw, 2, stride};
      Array x = noise({2, 2, 4, w}, static_cast<uint64_t>(w));
      for (double& value : x.v) {
        value = std::floor(3 * value);  // six values: most windows hold a tie
        if (value == -3) value = std::nan("");
      }
      const Array dy = noise(oracle::windows(x.shape, p).first, 2);
      const auto [y, dx] = oracle::max_pool2d(x, p, dy);
      for (DType dtype : {kFloat32, kFloat64}) {
        INFO("width " << w << " kernel " << kw << " stride " << stride << ' ' << dtype);
        const Tensor t = leaf(x, {dtype, device});
        const Tensor actual = max_pool2d(t, Pair(2, static_cast<int>(kw)),
                                         {.stride = Pair(2, static_cast<int>(stride))});
        const std::vector<double> values = actual.to_vector<double>();
        bool same = values.size() == y.v.size();
        for (size_t i = 0; same && i < values.size(); ++i)
          same = values[i] == y.v[i] || (std::isnan(values[i]) && std::isnan(y.v[i]));
        CHECK(same);
        actual.backward(tensor(dy, {dtype, device}));
        check_close("max_pool2d: gradient 0", t.grad(), dx, 9);
      }
    }
}

DEVICE_TEST("pool2d: gradient check", "[pool2d]") {
  for (const Kind& kind : {kMax, kAvg}) {
    check_gradient(device, {ramp({2, 3, 6, 7}, 1)}, pool_op(kind, {2, 2, 2, 2}));
    check_gradient(device, {ramp({2, 3, 7, 5}, 2)}, pool_op(kind, {3, 2, 2, 1, 1, 1}));
  }
}

DEVICE_TEST("max_pool2d: of equal elements the first wins and takes the gradient", "[pool2d]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    const Tensor x = leaf(filled({2, 3, 4, 6}, -2.5), options);
    const Tensor y = max_pool2d(x, Pair(2, 3));
    check_close("max_pool2d: y", y, filled({2, 3, 2, 2}, -2.5), 0);
    y.backward(ones(y.shape(), options));
    Array expected = filled({2, 3, 4, 6});
    for (size_t plane = 0; plane < 6; ++plane)
      for (size_t i : {0, 3, 12, 15}) expected.v[plane * 24 + i] = 1;
    check_close("max_pool2d: gradient 0", x.grad(), expected, 0);

    // Row-major order of the window: (0, 1) before (1, 0).
    const Tensor z = leaf({{1, 1, 2, 2}, {0, 7, 7, 0}}, options);
    max_pool2d(z, 2).backward(ones({1, 1, 1, 1}, options));
    check_close("max_pool2d: gradient 0", z.grad(), {{1, 1, 2, 2}, {0, 1, 0, 0}}, 0);

    // Zeros of both signs are equal.
    const Tensor s = leaf({{1, 1, 1, 2}, {-0.0, 0.0}}, options);
    max_pool2d(s, Pair(1, 2)).backward(ones({1, 1, 1, 1}, options));
    check_close("max_pool2d: gradient 0", s.grad(), {{1, 1, 1, 2}, {1, 0}}, 0);
  }
}

DEVICE_TEST("max_pool2d: padding never wins", "[pool2d]") {
  for (DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    Array x = ramp({2, 2, 5, 5}, 3);
    for (double& value : x.v) value -= 3;  // all negative
    const oracle::Pool p{3, 3, 2, 2, 1, 1};
    const Array dy = noise({2, 2, 3, 3}, 4);
    const auto [y, dx] = oracle::max_pool2d(x, p, dy);
    check_op({"max_pool2d", {x}, pool_op(kMax, p), y, dy, {dx}, 4, {4}}, device);
    // Nor against -infinity, whose gradient must still find an element.
    const double lowest = -std::numeric_limits<double>::infinity();
    const Tensor z = leaf(filled({1, 1, 2, 2}, lowest), options);
    const Tensor m = max_pool2d(z, 2, {.padding = 1});
    for (double value : m.to_vector<double>()) CHECK(value == lowest);
    m.backward(ones({1, 1, 2, 2}, options));
    check_close("max_pool2d: gradient 0", z.grad(), filled({1, 1, 2, 2}, 1), 0);
  }
}

DEVICE_TEST("pool2d: a NaN is the maximum", "[pool2d]") {
  for (DType dtype : {kFloat32, kFloat64})
    for (size_t place = 0; place < 4; ++place) {
      const TensorOptions options{dtype, device};
      Array x{{1, 1, 2, 4}, {1, 2, 3, 4, 5, 6, 7, 8}};
      x.v[place / 2 * 4 + place % 2] = std::nan("");
      const Tensor t = leaf(x, options);
      const Tensor y = max_pool2d(t, 2);
      const std::vector<double> values = y.to_vector<double>();
      CHECK(std::isnan(values[0]));
      CHECK(values[1] == 8);
      y.backward(ones({1, 1, 1, 2}, options));
      Array dx{{1, 1, 2, 4}, {0, 0, 0, 0, 0, 0, 0, 1}};
      dx.v[place / 2 * 4 + place % 2] = 1;
      check_close("max_pool2d: gradient 0", t.grad(), dx, 0);
      const std::vector<double> mean = avg_pool2d(t, 2).to_vector<double>();
      CHECK(std::isnan(mean[0]));
      CHECK(mean[1] == 5.5);
    }
}

DEVICE_TEST("max_pool2d: the place in the window by hand", "[pool2d]") {
  const double nan = std::nan(""), lowest = -std::numeric_limits<double>::infinity();
  const Array x{{1, 1, 3, 4},
                {1, 2, 3, 4,  //
                 8, 7, 6, 5,  //
                 0, 9, -1, -2}};
  check_choice(device, x, {2, 2, 1, 2}, {2, 2, 3, 0});
  check_choice(device, x, {2, 3, 1, 1}, {3, 3, 4, 3});              // windows overlap
  check_choice(device, x, {2, 2, 2, 2, 1, 1}, {3, 3, 2, 1, 2, 0});  // counted from the padding
  check_choice(device, x, {3, 4, 3, 4}, {9});
  check_choice(device, filled({1, 1, 4, 6}, -2.5), {2, 3, 2, 3}, {0, 0, 0, 0});
  check_choice(device, filled({1, 1, 2, 2}, -2.5), {2, 2, 2, 2, 1, 1}, {3, 2, 1, 0});
  check_choice(device, filled({1, 1, 2, 2}, lowest), {2, 2, 2, 2, 1, 1}, {3, 2, 1, 0});
  check_choice(device, {{1, 1, 2, 4}, {0, 7, -0.0, 0, 7, 0, 0, -0.0}}, {2, 2, 2, 2}, {1, 0});
  check_choice(device, {{1, 1, 2, 4}, {1, nan, 8, 7, nan, 9, 6, nan}}, {2, 2, 2, 2}, {1, 3});
}

DEVICE_TEST("max_pool2d: the place in windows of every kind", "[pool2d]") {
  for (int64_t w : {3, 4, 7, 9, 16, 19, 33, 40})
    for (int64_t kh = 1; kh <= 3; ++kh)
      for (int64_t kw = 1; kw <= 3; ++kw)
        for (int64_t sh = 1; sh <= 3; ++sh)
          for (int64_t sw = 1; sw <= 3; ++sw)
            for (int64_t pad = 0; pad <= 1; ++pad) {
              const oracle::Pool p{kh, kw, sh, sw, pad * (kh / 2), pad * (kw / 2)};
              Array x = ties({2, 2, 5, w}, static_cast<uint64_t>(w));
              check_choice(device, x, p, places(x, p));
              for (double& value : x.v) value -= 3;  // all negative
              check_choice(device, x, p, places(x, p));
            }
}

DEVICE_TEST("max_pool2d: the place in windows of hundreds of elements", "[pool2d]") {
  // One byte holds 256 places, the last of them 255.
  for (const oracle::Pool& p : {oracle::Pool{16, 16, 2, 1},
                                {1, 256, 1, 2},
                                {16, 16, 3, 5, 8, 8},
                                {1, 257, 1, 1},
                                {17, 16, 2, 2},
                                {17, 16, 3, 5, 8, 8},
                                {300, 1, 1, 1},
                                {32, 40, 1, 1, 16, 20}}) {
    const Sizes shape = {1, 2, p.kh + 4, p.kw + 21};
    const Array x = ramp(shape, 3), equal = filled(shape, -1);
    check_choice(device, x, p, places(x, p));
    check_choice(device, equal, p, places(equal, p));
    check_op(app::max_pool2d_case(shape, p), device);  // the gradient finds its element
    Array last = filled({1, 1, p.kh, p.kw}, -1);
    last.v.back() = 1;
    if (p.pad_h == 0) check_choice(device, last, p, {p.kh * p.kw - 1});
    const Tensor t = leaf(last, {kFloat32, device});
    max_pool2d(t, Pair(static_cast<int>(p.kh), static_cast<int>(p.kw))).sum().backward();
    Array dx = filled(last.shape);
    dx.v.back() = 1;
    check_close("max_pool2d: gradient 0", t.grad(), dx, 0);
  }
}

DEVICE_TEST("max_pool2d: the same codes as the fused convolution's", "[pool2d][fused]") {
  // Exact sums with many ties; windows that the ReLU makes all zero, and NaN.
  for (const auto& [shape, o, k] : {std::tuple{Sizes{3, 3, 32, 32}, 6, 5},
                                    {Sizes{3, 6, 14, 14}, 16, 5},
                                    {Sizes{2, 2, 11, 14}, 5, 3},
                                    {Sizes{2, 20, 9, 8}, 4, 3}}) {
    const auto at = [&, &shape = shape](size_t d) { return static_cast<int>(shape[d]); };
    op::Conv2dShape g{.n = at(0), .c = at(1), .h = at(2), .w = at(3), .o = o, .kh = k, .kw = k};
    g.oh = g.h - k + 1;
    g.ow = g.w - k + 1;
    Array x = oracle::integers(shape, 1, 1), b = oracle::integers({o}, 3, 20);
    x.v[static_cast<size_t>(g.w + 2)] = std::nan("");
    b.v[1] = std::nan("");
    b.v[2] = -1000;
    const Array w = oracle::integers({o, g.c, k, k}, 2, 1);
    for (DType dtype : {kFloat32, kFloat64}) {
      INFO("x " << Shape(shape) << ' ' << dtype);
      const bool fits = with_context(
          device, [&](const auto& ctx) { return conv2d_relu_pool_fits(ctx, g, dtype); });
      if (!fits) continue;
      const TensorOptions options{dtype, device};
      const Tensor tx = tensor(x, options), tw = tensor(w, options), tb = tensor(b, options);
      const Pooled apart = pooled(relu(conv2d(tx, tw, tb)), {2, 2, 2, 2}, kUInt8);
      const Tensor y = empty_like(apart.y), choice = full_like(apart.choice, 99);
      emit(op::Conv2dReluPoolForward{g, in(tx), in(tw), in(tb), out(y), out(choice)});
      CHECK(same_bits(choice, apart.choice));
    }
  }
}

DEVICE_TEST("pool2d: errors name the operator and the shapes", "[pool2d]") {
  const TensorOptions options{kFloat32, device};
  const Tensor x = zeros({2, 3, 4, 5}, options);
  for (const Kind& kind : {kMax, kAvg}) {
    const std::string op = kind.name;
    check_throws<ShapeError>([&] { kind.op(zeros({4, 5}, options), 2, {}); }, {op, "(4, 5)"});
    check_throws<ShapeError>([&] { kind.op(zeros({3, 0, 5}, options), 2, {}); }, {op, "(3, 0, 5)"});
    check_throws<Error>([&] { kind.op(x, 2, {.stride = 0}); }, {op, "stride"});
    check_throws<ShapeError>([&] { kind.op(x, Pair(5, 2), {}); }, {op, "(2, 3, 4, 5)", "5"});
    check_throws<ShapeError>([&] { kind.op(x, Pair(2, 6), {}); }, {op, "(2, 3, 4, 5)", "6"});
    check_throws<Error>([&] { kind.op(x, 0, {}); }, {op, "kernel"});
    check_throws<Error>([&] { kind.op(x, 2, {.stride = -1}); }, {op, "stride"});
    check_throws<Error>([&] { kind.op(x, 3, {.padding = 2}); }, {op, "padding"});
    check_throws<Error>([&] { kind.op(x, 3, {.padding = -1}); }, {op, "padding"});
    check_throws<DtypeError>([&] { kind.op(x.to(kInt64), 2, {}); }, {op, "int64"});
    check_throws<Error>([&] { kind.op(Tensor(), 2, {}); }, {op});
  }
}

}  // namespace sinter::test
