// Reductions.
#include <algorithm>
#include <limits>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

Tensor reduce_op(const char* op, bool mean, const Tensor& x, const std::vector<int>& dims,
                 bool keepdim) {
  require_defined(op, "x", x);
  require_floating(op, x);
  bool reduced[kMaxRank] = {};
  if (dims.empty()) std::fill(reduced, reduced + x.rank(), true);
  for (int dim : dims) {
    const int d = x.shape().index(dim, op);
    require<ShapeError>(!reduced[d], op, ": dimension ", dim, " of x ", x.shape(),
                        " is given twice");
    reduced[d] = true;
  }
  Shape kept, with_ones;
  int64_t count = 1;
  for (int d = 0; d < x.rank(); ++d) {
    if (reduced[d]) count *= x.size(d);
    if (!reduced[d]) kept.append(x.size(d));
    with_ones.append(reduced[d] ? 1 : x.size(d));
  }
  // The mean of nothing is 0 / 0: NaN, as in PyTorch.
  const double factor = mean ? 1.0 / static_cast<double>(count) : 1.0;
  Tensor y = reduce(x, reduced, keepdim ? with_ones : kept, count ? factor : 1.0);
  if (mean && count == 0) y.fill_(std::numeric_limits<double>::quiet_NaN());
  return record(op, y, {x}, [shape = x.shape(), with_ones, factor](const Tensor& dy) {
    return Grads{repeated(dy.reshape(with_ones), shape, factor)};
  });
}

}  // namespace

Tensor sum(const Tensor& x, const Dims& dims, bool keepdim) {
  return reduce_op("sum", false, x, dims.list, keepdim);
}
Tensor mean(const Tensor& x, const Dims& dims, bool keepdim) {
  return reduce_op("mean", true, x, dims.list, keepdim);
}

}  // namespace sinter
