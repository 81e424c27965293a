// Dropout.
#include "sinter/operators/dropout.h"

#include <cmath>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// Of `group` neighbours at once.
Tensor drop(const char* name, const Tensor& x, int64_t group, double p, bool training,
            Generator& generator) {
  require<ValueError>(p >= 0 && p <= 1, name, ": expected p in [0, 1], got ", p);
  if (!training || p == 0) return x;
  if (p == 1) return x * 0.0;
  const Tensor draw = empty({2}, {kInt64, x.device()});
  emit(op::NextDraw{inout(generator.device_state(x.device())), out(draw)});
  op::Dropout dropout;
  dropout.group = group;
  dropout.threshold = static_cast<uint64_t>(std::llround(p * 0x1p32));
  dropout.scale = 1 / (1 - p);
  const auto apply = [dropout, draw](const Tensor& from) {
    const Tensor to = empty(from.shape(), from.options());
    op::Dropout o = dropout;
    o.x = in(from);
    o.draw = in(draw);
    o.y = out(to);
    emit(std::move(o));
    return to;
  };
  return record(name, apply(x), {x}, [apply](const Tensor& dy) { return Grads{apply(dy)}; });
}

// Of the last x.rank() - `leading` dimensions together.
Tensor drop_channels(const char* name, const Tensor& x, int leading, double p, bool training,
                     Generator& generator) {
  int64_t group = 1;
  for (int d = leading; d < x.rank(); ++d) group *= x.size(d);
  return drop(name, x, group, p, training, generator);
}

}  // namespace

Tensor dropout(const Tensor& x, double p, bool training, Generator& generator) {
  require_defined("dropout", "x", x);
  require_floating("dropout", x);
  return drop("dropout", x, 1, p, training, generator);
}

Tensor dropout1d(const Tensor& x, double p, bool training, Generator& generator) {
  require<ShapeError>(x.defined() && (x.rank() == 2 || x.rank() == 3),
                      "dropout1d: expected x of shape (N, C, L) or (C, L), got ", ShapeOf{x});
  require_floating("dropout1d", x);
  return drop_channels("dropout1d", x, x.rank() - 1, p, training, generator);
}

Tensor dropout2d(const Tensor& x, double p, bool training, Generator& generator) {
  require<ShapeError>(x.defined() && (x.rank() == 3 || x.rank() == 4),
                      "dropout2d: expected x of shape (N, C, H, W) or (N, C, L), got ", ShapeOf{x});
  require_floating("dropout2d", x);
  return drop_channels("dropout2d", x, 2, p, training, generator);
}

}  // namespace sinter
