// Element-wise operators, with broadcasting.
#include <algorithm>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

Tensor apply(const char* op, op::BinaryOp kind, const Tensor& a, const Tensor& b) {
  check_same(op, a, b);
  const Shape shape = broadcast_shape(op, a.shape(), b.shape());
  op::Broadcast g;
  std::copy(shape.begin(), shape.end(), g.shape);
  broadcast_strides(a.shape(), shape, g.stride_a);
  broadcast_strides(b.shape(), shape, g.stride_b);
  g.rank = merge_dimensions<2>(shape.rank(), g.shape, {g.stride_a, g.stride_b});
  const Tensor y = empty(shape, a.options());
  emit(op::Binary{kind, g, in(a), in(b), out(y)});
  return y;
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  return record(
      "add", apply("add", op::BinaryOp::kAdd, a, b), {a, b},
      [sa = a.shape(), sb = b.shape(), ga = a.requires_grad(),
       gb = b.requires_grad()](const Tensor& dy) {
        return Grads{ga ? unbroadcast(dy, sa) : Tensor(), gb ? unbroadcast(dy, sb) : Tensor()};
      });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  return record("sub", apply("sub", op::BinaryOp::kSub, a, b), {a, b},
                [sa = a.shape(), sb = b.shape(), ga = a.requires_grad(),
                 gb = b.requires_grad()](const Tensor& dy) {
                  return Grads{ga ? unbroadcast(dy, sa) : Tensor(),
                               gb ? times(unbroadcast(dy, sb), -1) : Tensor()};
                });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  const Tensor y = apply("mul", op::BinaryOp::kMul, a, b);
  return record("mul", y, {a, b},
                [sa = Saved(a), sb = Saved(b), ga = a.requires_grad(),
                 gb = b.requires_grad()](const Tensor& dy) {
                  const Shape &shape_a = sa.shape(), &shape_b = sb.shape();
                  return Grads{ga ? unbroadcast(mul(dy, sb.get()), shape_a) : Tensor(),
                               gb ? unbroadcast(mul(dy, sa.get()), shape_b) : Tensor()};
                });
}

Tensor div(const Tensor& a, const Tensor& b) {
  const Tensor y = apply("div", op::BinaryOp::kDiv, a, b);
  // d(a / b) = da / b - (a / b) db / b, a / b made anew: the result may change in place.
  return record("div", y, {a, b},
                [sa = Saved(b.requires_grad() ? a : Tensor()), sb = Saved(b), shape_a = a.shape(),
                 ga = a.requires_grad(), gb = b.requires_grad()](const Tensor& dy) {
                  const Tensor &b = sb.get(), q = div(dy, b);
                  Grads grads(2);
                  if (ga) grads[0] = unbroadcast(q, shape_a);
                  if (gb) grads[1] = times(unbroadcast(mul(q, div(sa.get(), b)), sb.shape()), -1);
                  return grads;
                });
}

namespace {

// A number as the operand beside x, which is `op`'s argument of that name.
Tensor scalar_like(const char* op, const char* argument, const Tensor& x, double number) {
  require_defined(op, argument, x);
  return full({}, number, x.options());
}

}  // namespace

Tensor operator*(const Tensor& a, double b) {
  require_defined("mul", "a", a);
  require_floating("mul", a);
  return record("mul", times(a, b), {a}, [b](const Tensor& dy) { return Grads{times(dy, b)}; });
}
Tensor operator/(const Tensor& a, double b) { return div(a, scalar_like("div", "a", a, b)); }
Tensor operator+(const Tensor& a, double b) { return add(a, scalar_like("add", "a", a, b)); }
Tensor operator-(const Tensor& a, double b) { return sub(a, scalar_like("sub", "a", a, b)); }
Tensor operator-(double a, const Tensor& b) { return sub(scalar_like("sub", "b", b, a), b); }
Tensor operator/(double a, const Tensor& b) { return div(scalar_like("div", "b", b, a), b); }

namespace {

Tensor assign(const char* op, const Tensor& x, const Tensor& result) {
  if (!(result.shape() == x.shape()))
    throw ShapeError(str(op, ": expected a right side that broadcasts to x's shape ", x.shape(),
                         ", got one that makes it ", result.shape()));
  x.overwrite(op, result);
  return x;
}

// x for an operator whose gradient for y needs the values that x has before the change.
Tensor old_values(const Tensor& x, const Tensor& y) { return recording({&y}) ? x.clone() : x; }

}  // namespace

Tensor operator+=(const Tensor& x, const Tensor& y) { return assign("+=", x, x + y); }
Tensor operator-=(const Tensor& x, const Tensor& y) { return assign("-=", x, x - y); }
Tensor operator*=(const Tensor& x, const Tensor& y) {
  return assign("*=", x, old_values(x, y) * y);
}
Tensor operator/=(const Tensor& x, const Tensor& y) {
  return assign("/=", x, old_values(x, y) / y);
}
Tensor operator+=(const Tensor& x, double y) { return assign("+=", x, x + y); }
Tensor operator-=(const Tensor& x, double y) { return assign("-=", x, x - y); }
Tensor operator*=(const Tensor& x, double y) { return assign("*=", x, x * y); }
Tensor operator/=(const Tensor& x, double y) { return assign("/=", x, x / y); }

Tensor relu(const Tensor& x) {
  require_defined("relu", "x", x);
  require_floating("relu", x);
  const Tensor y = empty(x.shape(), x.options());
  emit(op::ReluForward{in(x), out(y)});
  // y <= 0 exactly where x <= 0, and y is kept alive by the next operator anyway.
  return record("relu", y, {x}, [sy = Saved(y)](const Tensor& dy) {
    const Tensor& y = sy.get();
    const Tensor dx = empty(y.shape(), y.options());
    emit(op::ReluBackward{in(y), in(dy), out(dx)});
    return Grads{dx};
  });
}

}  // namespace sinter
