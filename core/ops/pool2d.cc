// Pooling. What has one dimension is an image of one row.
#include "sinter/operators/pool2d.h"

#include "core/base/detail.h"
#include "core/ops/windows.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// Images of `dims` (2, or 1: of one row) directions, in a batch or alone.
op::Pool2dShape planes_of(const char* op, const Tensor& x, int dims) {
  const char* images = dims == 2 ? "(N, C, H, W) or (C, H, W)" : "(N, C, L) or (C, L)";
  bool valid = x.defined() && (x.rank() == dims + 1 || x.rank() == dims + 2);
  for (int d = -1 - dims; valid && d < 0; ++d) valid = x.size(d) > 0;
  require<ShapeError>(valid, op, ": expected x of shape ", images,
                      " with extents of at least 1 but for N, got ", ShapeOf{x});
  require_floating(op, x);
  op::Pool2dShape g;
  g.n = x.rank() == dims + 2 ? to_int(op, x.size(0)) : 1;
  g.c = to_int(op, x.size(-1 - dims));
  g.h = dims == 2 ? to_int(op, x.size(-2)) : 1;
  g.w = to_int(op, x.size(-1));
  check_area(op, "images", g.h, g.w);
  return g;
}

// A dilated window that begins in the padding may step over a small image.
void check_dilated(const char* op, const Axis& a, const Shape& x) {
  if (a.size >= a.dilation) return;
  for (int first = -a.pad; first < 0; first += a.stride) {
    const int step = (-first + a.dilation - 1) / a.dilation;
    require<ShapeError>(first + step * a.dilation < a.size, op, ": a window of dilation ",
                        a.dilation, " and padding ", a.pad, " holds no element of x ", x);
  }
}

void set_windows(op::Pool2dShape& g, const char* op, const Tensor& x, Pair kernel,
                 const std::optional<Pair>& given_stride, Pair padding, Pair dilation, bool ceil) {
  const Pair stride = given_stride.value_or(kernel);
  check_pairs(op, {{"kernel", kernel, 1},
                   {"stride", stride, 1},
                   {"padding", padding, 0},
                   {"dilation", dilation, 1}});
  require<ValueError>(padding.h <= kernel.h / 2 && padding.w <= kernel.w / 2, op,
                      ": expected padding of at most half the kernel (", kernel.h, ", ", kernel.w,
                      "), got (", padding.h, ", ", padding.w, ")");
  const Shape window{kernel.h, kernel.w};
  const Axis v =
      axis_of(op, g.h, kernel.h, stride.h, padding.h, dilation.h, x.shape(), window, ceil);
  const Axis h =
      axis_of(op, g.w, kernel.w, stride.w, padding.w, dilation.w, x.shape(), window, ceil);
  check_dilated(op, v, x.shape());
  check_dilated(op, h, x.shape());
  check_area(op, "results", v.out, h.out);
  check_area(op, "windows", v.kernel, h.kernel);
  set_axes(g, v, h);
  g.dil_h = v.dilation;
  g.dil_w = h.dilation;
}

// Windows that divide the planes into `size` parts; where they are equal, those of ordinary
// pooling.
void set_parts(op::Pool2dShape& g, const char* op, Pair size) {
  require<ValueError>(size.h >= -1 && size.w >= -1, op,
                      ": expected output extents of at least 0, or -1 for x's own, got (", size.h,
                      ", ", size.w, ")");
  g.oh = size.h < 0 ? g.h : size.h;
  g.ow = size.w < 0 ? g.w : size.w;
  check_area(op, "results", g.oh, g.ow);
  if (g.oh == 0 || g.ow == 0) return;
  g.adaptive = g.h % g.oh != 0 || g.w % g.ow != 0;
  const auto largest = [](int extent, int parts) {
    int most = 0;
    for (int i = 0; i < parts; ++i) {
      const int64_t begin = int64_t{i} * extent / parts;
      most =
          std::max(most, static_cast<int>((int64_t{i + 1} * extent + parts - 1) / parts - begin));
    }
    return most;
  };
  g.stride_h = g.kh = largest(g.h, g.oh);
  g.stride_w = g.kw = largest(g.w, g.ow);
}

// The shape of x with the results' extents in place of its last `dims`.
Shape result_shape(const Tensor& x, const op::Pool2dShape& g, int dims) {
  Shape shape;
  for (int d = 0; d < x.rank() - dims; ++d) shape.append(x.size(d));
  if (dims == 2) shape.append(g.oh);
  shape.append(g.ow);
  return shape;
}

struct Maxima {
  Tensor y, choice;
};
Maxima max_over(const char* op, const op::Pool2dShape& g, const Tensor& x, int dims) {
  const Tensor y = empty(result_shape(x, g, dims), x.options());
  const DType code = int64_t{g.kh} * g.kw <= 256 ? kUInt8 : kInt32;
  const Tensor choice = empty(y.shape(), {code, x.device()});
  emit(op::MaxPool2dForward{g, in(x), out(y), out(choice)});
  return {record(op, y, {x},
                 [g, shape = x.shape(), choice](const Tensor& dy) {
                   const Tensor dx = empty(shape, dy.options());
                   emit(op::MaxPool2dBackward{g, in(dy), in(choice), out(dx)});
                   return Grads{dx};
                 }),
          choice};
}

Tensor mean_over(const char* op, const op::Pool2dShape& g, const Tensor& x, int dims,
                 bool count_pad, int divisor = 0) {
  const Tensor y = empty(result_shape(x, g, dims), x.options());
  emit(op::AvgPool2dForward{g, count_pad, divisor, in(x), out(y)});
  return record(op, y, {x}, [g, count_pad, divisor, shape = x.shape()](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.options());
    emit(op::AvgPool2dBackward{g, count_pad, divisor, in(dy), out(dx)});
    return Grads{dx};
  });
}

Maxima max_pool(const Tensor& x, Pair kernel, const MaxPool2dOptions& o, op::Pool2dShape& g) {
  const char* op = "max_pool2d";
  g = planes_of(op, x, 2);
  set_windows(g, op, x, kernel, o.stride, o.padding, o.dilation, o.ceil_mode);
  return max_over(op, g, x, 2);
}

// No results, of which x has a gradient of zeros.
Tensor pool_to_nothing(const char* op, const Tensor& x, const Shape& shape) {
  return record(op, empty(shape, x.options()), {x},
                [s = x.shape()](const Tensor& dy) { return Grads{zeros(s, dy.options())}; });
}

Tensor adaptive(const char* op, const Tensor& x, Pair output_size, int dims, bool max) {
  op::Pool2dShape g = planes_of(op, x, dims);
  set_parts(g, op, output_size);
  const Shape shape = result_shape(x, g, dims);
  if (g.oh == 0 || g.ow == 0) return pool_to_nothing(op, x, shape);
  // Whole planes are rows to reduce.
  if (g.oh == 1 && g.ow == 1) {
    const Tensor planes = dims == 2 ? flatten(x, -2, -1) : x;
    return (max ? sinter::max(planes, -1).values : mean(planes, {-1})).reshape(shape);
  }
  return max ? max_over(op, g, x, dims).y : mean_over(op, g, x, dims, false);
}

}  // namespace

Tensor max_pool2d(const Tensor& x, Pair kernel, const MaxPool2dOptions& options) {
  op::Pool2dShape g;
  return max_pool(x, kernel, options, g).y;
}

ValuesIndices max_pool2d_with_indices(const Tensor& x, Pair kernel,
                                      const MaxPool2dOptions& options) {
  op::Pool2dShape g;
  const Maxima maxima = max_pool(x, kernel, options, g);
  const Tensor indices = empty(maxima.y.shape(), {kInt64, x.device()});
  emit(op::MaxPool2dIndices{g, in(maxima.choice), out(indices)});
  return {maxima.y, indices};
}

Tensor avg_pool2d(const Tensor& x, Pair kernel, const AvgPool2dOptions& o) {
  const char* op = "avg_pool2d";
  op::Pool2dShape g = planes_of(op, x, 2);
  require<ValueError>(o.divisor_override != 0, op, ": expected a divisor_override other than 0");
  set_windows(g, op, x, kernel, o.stride, o.padding, 1, o.ceil_mode);
  return mean_over(op, g, x, 2, o.count_include_pad, o.divisor_override.value_or(0));
}

Tensor adaptive_avg_pool2d(const Tensor& x, Pair output_size) {
  return adaptive("adaptive_avg_pool2d", x, output_size, 2, false);
}
Tensor adaptive_max_pool2d(const Tensor& x, Pair output_size) {
  return adaptive("adaptive_max_pool2d", x, output_size, 2, true);
}

namespace {

std::optional<Pair> row_stride(const std::optional<int>& stride) {
  return stride ? std::optional<Pair>(Pair(1, *stride)) : std::nullopt;
}

}  // namespace

Tensor max_pool1d(const Tensor& x, int kernel, const MaxPool1dOptions& o) {
  const char* op = "max_pool1d";
  op::Pool2dShape g = planes_of(op, x, 1);
  set_windows(g, op, x, {1, kernel}, row_stride(o.stride), {0, o.padding}, {1, o.dilation},
              o.ceil_mode);
  return max_over(op, g, x, 1).y;
}

Tensor avg_pool1d(const Tensor& x, int kernel, const AvgPool1dOptions& o) {
  const char* op = "avg_pool1d";
  op::Pool2dShape g = planes_of(op, x, 1);
  set_windows(g, op, x, {1, kernel}, row_stride(o.stride), {0, o.padding}, 1, o.ceil_mode);
  return mean_over(op, g, x, 1, o.count_include_pad);
}

Tensor adaptive_avg_pool1d(const Tensor& x, int output_size) {
  return adaptive("adaptive_avg_pool1d", x, {1, output_size}, 1, false);
}
Tensor adaptive_max_pool1d(const Tensor& x, int output_size) {
  return adaptive("adaptive_max_pool1d", x, {1, output_size}, 1, true);
}

}  // namespace sinter
