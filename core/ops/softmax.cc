// Softmax.
#include "sinter/operators/softmax.h"

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {

Tensor log_softmax(const Tensor& x, int dim) {
  require<ShapeError>(x.defined() && x.rank() >= 1,
                      "log_softmax: expected x of at least one dimension, got ", ShapeOf{x});
  require_floating("log_softmax", x);
  const int d = x.shape().index(dim, "log_softmax");
  op::SoftmaxShape g{1, x.size(d), 1};
  for (int i = 0; i < d; ++i) g.outer *= x.size(i);
  for (int i = d + 1; i < x.rank(); ++i) g.inner *= x.size(i);
  const Tensor y = empty(x.shape(), x.options());
  emit(op::LogSoftmaxForward{g, in(x), out(y)});
  return record("log_softmax", y, {x}, [g, sy = Saved(y)](const Tensor& dy) {
    const Tensor& y = sy.get();
    const Tensor dx = empty(y.shape(), y.options());
    emit(op::LogSoftmaxBackward{g, in(y), in(dy), out(dx)});
    return Grads{dx};
  });
}

}  // namespace sinter
