// Softmax.
#include "sinter/operators/softmax.h"

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {

namespace {

op::SoftmaxShape softmax_shape(const char* op, const Tensor& x, int dim) {
  require_defined(op, "x", x);
  require_floating(op, x);
  const int d = dimension(op, x, dim);
  if (x.rank() == 0) return {1, 1, 1};
  op::SoftmaxShape g{1, x.size(d), 1};
  for (int i = 0; i < d; ++i) g.outer *= x.size(i);
  for (int i = d + 1; i < x.rank(); ++i) g.inner *= x.size(i);
  return g;
}

template <class Forward, class Backward>
Tensor softmax_by(const char* op, const Tensor& x, int dim) {
  const op::SoftmaxShape g = softmax_shape(op, x, dim);
  const Tensor y = empty(x.shape(), x.options());
  emit(Forward{g, in(x), out(y)});
  return record(op, y, {x}, [g, sy = Saved(y)](const Tensor& dy) {
    const Tensor& y = sy.get();
    const Tensor dx = empty(y.shape(), y.options());
    emit(Backward{g, in(y), in(dy), out(dx)});
    return Grads{dx};
  });
}

}  // namespace

Tensor softmax(const Tensor& x, int dim) {
  return softmax_by<op::SoftmaxForward, op::SoftmaxBackward>("softmax", x, dim);
}
Tensor log_softmax(const Tensor& x, int dim) {
  return softmax_by<op::LogSoftmaxForward, op::LogSoftmaxBackward>("log_softmax", x, dim);
}

}  // namespace sinter
