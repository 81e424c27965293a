// Pooling.
#include "sinter/operators/pool2d.h"

#include "core/base/detail.h"
#include "core/ops/windows.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

op::Pool2dShape pool2d_shape(const char* op, const Tensor& x, Pair kernel,
                             const Pool2dOptions& options) {
  require<ShapeError>(
      x.defined() && x.rank() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op,
      ": expected x of shape (N, C, H, W) with C, H and W of at least 1, got ", ShapeOf{x});
  require_floating(op, x);
  const Pair stride{options.stride.h ? options.stride.h : kernel.h,
                    options.stride.w ? options.stride.w : kernel.w};
  check_pairs(op, {{"kernel", kernel, 1}, {"stride", stride, 1}, {"padding", options.padding, 0}});
  require<ValueError>(options.padding.h <= kernel.h / 2 && options.padding.w <= kernel.w / 2, op,
                      ": expected padding of at most half the kernel (", kernel.h, ", ", kernel.w,
                      "), got (", options.padding.h, ", ", options.padding.w, ")");
  const Shape window{kernel.h, kernel.w};
  const Axis v =
      axis_of(op, x.size(2), kernel.h, stride.h, options.padding.h, 1, x.shape(), window);
  const Axis h =
      axis_of(op, x.size(3), kernel.w, stride.w, options.padding.w, 1, x.shape(), window);
  check_area(op, "images", v.size, h.size);
  check_area(op, "results", v.out, h.out);
  check_area(op, "windows", v.kernel, h.kernel);
  op::Pool2dShape g;
  g.n = to_int(op, x.size(0));
  g.c = to_int(op, x.size(1));
  set_axes(g, v, h);
  return g;
}

}  // namespace

Tensor max_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options) {
  const op::Pool2dShape g = pool2d_shape("max_pool2d", x, kernel, options);
  const Tensor y = empty({g.n, g.c, g.oh, g.ow}, x.options());
  const DType code = int64_t{g.kh} * g.kw <= 256 ? kUInt8 : kInt32;
  const Tensor choice = empty(y.shape(), {code, x.device()});
  emit(op::MaxPool2dForward{g, in(x), out(y), out(choice)});
  return record("max_pool2d", y, {x}, [g, shape = x.shape(), choice](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.options());
    emit(op::MaxPool2dBackward{g, in(dy), in(choice), out(dx)});
    return Grads{dx};
  });
}

Tensor avg_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options) {
  const op::Pool2dShape g = pool2d_shape("avg_pool2d", x, kernel, options);
  const Tensor y = empty({g.n, g.c, g.oh, g.ow}, x.options());
  emit(op::AvgPool2dForward{g, in(x), out(y)});
  return record("avg_pool2d", y, {x}, [g, shape = x.shape()](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.options());
    emit(op::AvgPool2dBackward{g, in(dy), out(dx)});
    return Grads{dx};
  });
}

}  // namespace sinter
