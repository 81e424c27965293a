// Convolution.
#include "sinter/operators/conv2d.h"

#include <climits>

#include "core/base/detail.h"
#include "core/ops/windows.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

op::Conv2dShape conv2d_shape(const Tensor& x, const Tensor& w, const Tensor& b,
                             const Conv2dOptions& options) {
  const char* op = "conv2d";
  require<ShapeError>(x.defined() && x.rank() == 4 && x.size(2) > 0 && x.size(3) > 0, op,
                      ": expected x of shape (N, C, H, W) with H and W of at least 1, got ",
                      ShapeOf{x});
  check_pairs(op, {{"stride", options.stride, 1},
                   {"padding", options.padding, 0},
                   {"dilation", options.dilation, 1}});
  require<ValueError>(options.groups >= 1, op, ": expected groups of at least 1, got ",
                      options.groups);
  require<ShapeError>(
      w.defined() && w.rank() == 4 && w.size(0) > 0 && w.size(2) > 0 && w.size(3) > 0, op,
      ": expected weight of shape (O, C / groups, KH, KW) with O, KH and KW of at least 1, got ",
      ShapeOf{w});
  const int64_t channels = int64_t{to_int(op, w.size(1))} * options.groups;
  if (x.size(1) != channels) {
    throw ShapeError(str(op, ": expected x with ", channels, " channels, got ", x.size(1), ": x ",
                         x.shape(), ", weight ", w.shape(), ", groups ", options.groups));
  }
  if (w.size(0) % options.groups != 0) {
    throw ShapeError(str(op, ": expected weight with a multiple of groups = ", options.groups,
                         " output channels, got ", w.size(0), ": x ", x.shape(), ", weight ",
                         w.shape()));
  }
  require<ShapeError>(w.size(1) * w.size(2) * w.size(3) <= INT_MAX, op,
                      ": expected windows of fewer than 2^31 elements, got weight ", w.shape());
  require_floating(op, x);
  check_like(op, "weight", w, x);
  if (b.defined()) {
    require<ShapeError>(b.shape() == Shape{w.size(0)}, op, ": expected bias of shape (", w.size(0),
                        ",), got ", b.shape());
    check_like(op, "bias", b, x);
  }
  const Axis v = axis_of(op, x.size(2), w.size(2), options.stride.h, options.padding.h,
                         options.dilation.h, x.shape(), w.shape());
  const Axis h = axis_of(op, x.size(3), w.size(3), options.stride.w, options.padding.w,
                         options.dilation.w, x.shape(), w.shape());
  check_area(op, "images", v.size, h.size);
  check_area(op, "results", v.out, h.out);
  op::Conv2dShape g;
  g.n = to_int(op, x.size(0));
  g.c = to_int(op, x.size(1));
  g.o = to_int(op, w.size(0));
  set_axes(g, v, h);
  g.dil_h = v.dilation;
  g.dil_w = h.dilation;
  g.groups = options.groups;
  g.algo = conv_algo();
  g.tf32 = allow_tf32();
  return g;
}

// Of no images or no channels: sums without terms, and the bias. Kernels are spared both.
Tensor conv2d_of_nothing(const op::Conv2dShape& g, const Tensor& x, const Tensor& weight,
                         const Tensor& bias) {
  const Tensor y = zeros({g.n, g.o, g.oh, g.ow}, x.options());
  const Tensor sums = record(
      "conv2d", y, {x, weight}, [x_shape = x.shape(), w_shape = weight.shape()](const Tensor& dy) {
        return Grads{zeros(x_shape, dy.options()), zeros(w_shape, dy.options())};
      });
  return bias.defined() ? add(sums, bias.reshape({g.o, 1, 1})) : sums;
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Conv2dOptions& options) {
  const op::Conv2dShape g = conv2d_shape(x, weight, bias, options);
  if (g.n == 0 || g.c == 0) return conv2d_of_nothing(g, x, weight, bias);
  const Tensor y = empty({g.n, g.o, g.oh, g.ow}, x.options());
  emit(op::Conv2dForward{g, in(x), in(weight), in(bias), out(y)});
  return record("conv2d", y, {x, weight, bias},
                [g, sx = Saved(x), sw = Saved(weight), need_x = x.requires_grad(),
                 need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
                  Grads grads(3);
                  if (need_x) grads[0] = empty(sx.shape(), dy.options());
                  if (need_w) grads[1] = empty(sw.shape(), dy.options());
                  if (need_b) grads[2] = empty({g.o}, dy.options());
                  if (need_x) {
                    emit(op::Conv2dBackwardData{g, in(dy), in(sw.get()), out(grads[0])});
                  }
                  if (need_w || need_b) {
                    emit(op::Conv2dBackwardWeights{g, in(sx.get()), in(dy), optional_out(grads[1]),
                                                   optional_out(grads[2])});
                  }
                  return grads;
                });
}

}  // namespace sinter
