// Operators that move values and compute none.
#include <utility>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {

Tensor permute(const Tensor& x, const std::vector<int>& dims) {
  require_defined("permute", "x", x);
  bool valid = static_cast<int>(dims.size()) == x.rank();
  bool seen[kMaxRank] = {};
  std::vector<int> inverse(dims.size());
  Shape shape;
  int64_t own[kMaxRank], stride[kMaxRank];
  contiguous_strides(x.shape(), own);
  for (size_t i = 0; valid && i < dims.size(); ++i) {
    const int d = dims[i] < 0 ? dims[i] + x.rank() : dims[i];
    valid = d >= 0 && d < x.rank() && !std::exchange(seen[d], true);
    if (!valid) break;
    shape.append(x.size(d));
    stride[i] = own[d];
    inverse[d] = static_cast<int>(i);
  }
  if (!valid) {
    std::string got;
    for (int d : dims) got += str(got.empty() ? "" : ", ", d);
    throw ShapeError(str("permute: expected each of the ", x.rank(), " dimensions of x ", x.shape(),
                         " once, got (", got, ")"));
  }
  const Tensor y = empty(shape, x.options());
  emit(op::StridedCopy{strided(shape, stride), in(x), out(y)});
  return record("permute", y, {x},
                [inverse](const Tensor& dy) { return Grads{permute(dy, inverse)}; });
}

}  // namespace sinter
