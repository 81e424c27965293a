// The linear layer.
#include "sinter/operators/linear.h"

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// Checks the arguments of linear; `shape`, x's, becomes the result's.
op::LinearShape linear_shape(const Tensor& x, Shape& shape, const Tensor& weight,
                             const Tensor& bias) {
  const char* op = "linear";
  require<ShapeError>(weight.defined() && weight.rank() == 2, op,
                      ": expected weight of shape (out, in) or (in), got ", ShapeOf{weight});
  if (shape.rank() < 1 || shape[-1] != weight.size(1)) {
    throw ShapeError(str(op, ": expected x of shape (…, ", weight.size(1), ") for weight ",
                         weight.shape(), ", got ", shape));
  }
  require_floating(op, x);
  check_like(op, "weight", weight, x);
  if (bias.defined()) {
    require<ShapeError>(bias.shape() == Shape{weight.size(0)}, op, ": expected bias of shape (",
                        weight.size(0), ",), got ", bias.shape());
    check_like(op, "bias", bias, x);
  }
  op::LinearShape g;
  g.tf32 = allow_tf32();
  g.in = weight.size(1);
  g.out = weight.size(0);
  g.n = 1;
  for (int d = 0; d + 1 < shape.rank(); ++d) g.n *= shape[d];
  shape[-1] = g.out;
  shape.numel(op);  // throws if nobody can count them
  return g;
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "linear";
  require<ShapeError>(x.defined(), op, ": expected x of shape (…, in), got an undefined tensor");
  Shape shape = x.shape();
  if (weight.defined() && weight.rank() == 1) {
    require<ShapeError>(!bias.defined(), op, ": expected no bias beside a weight of shape ",
                        weight.shape(), ", got one of shape ", ShapeOf{bias});
    const Tensor y = linear(x, weight.reshape({1, weight.size(0)}));
    Shape without;
    for (int d = 0; d + 1 < y.rank(); ++d) without.append(y.size(d));
    return y.reshape(without);
  }
  const op::LinearShape g = linear_shape(x, shape, weight, bias);
  const Tensor y = empty(shape, x.options());
  emit(op::LinearForward{g, in(x), in(weight), in(bias), out(y)});
  return record(op, y, {x, weight, bias},
                [g, sx = Saved(x), sw = Saved(weight), need_x = x.requires_grad(),
                 need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
                  Grads grads(3);
                  if (need_x) grads[0] = empty(sx.shape(), dy.options());
                  if (need_w) grads[1] = empty(sw.shape(), dy.options());
                  if (need_b) grads[2] = empty({g.out}, dy.options());
                  if (need_x) {
                    emit(op::LinearBackwardData{g, in(dy), in(sw.get()), out(grads[0])});
                  }
                  if (need_w || need_b) {
                    emit(op::LinearBackwardWeights{g, in(sx.get()), in(dy), optional_out(grads[1]),
                                                   optional_out(grads[2])});
                  }
                  return grads;
                });
}

}  // namespace sinter
