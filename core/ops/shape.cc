// Operators that move values and compute none.
#include <numeric>
#include <utility>
#include <vector>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/operators/move.h"
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
  emit(op::StridedCopy{strided(shape, stride), 0, in(x), out(y)});
  return record("permute", y, {x},
                [inverse](const Tensor& dy) { return Grads{permute(dy, inverse)}; });
}

Tensor transpose(const Tensor& x, int dim0, int dim1) {
  require_defined("transpose", "x", x);
  const int d0 = dimension("transpose", x, dim0), d1 = dimension("transpose", x, dim1);
  std::vector<int> dims(static_cast<size_t>(x.rank()));
  std::iota(dims.begin(), dims.end(), 0);
  if (d0 != d1) std::swap(dims[d0], dims[d1]);
  return permute(x, dims);
}

Tensor squeeze(const Tensor& x) {
  require_defined("squeeze", "x", x);
  Shape shape;
  for (int d = 0; d < x.rank(); ++d)
    if (x.size(d) != 1) shape.append(x.size(d));
  return reshape(x, shape);
}

Tensor squeeze(const Tensor& x, const Dims& dims) {
  require_defined("squeeze", "x", x);
  bool listed[kMaxRank] = {};
  for (const int dim : dims.list) {
    require<ShapeError>(!std::exchange(listed[dimension("squeeze", x, dim)], true),
                        "squeeze: dimension ", dim, " of x ", x.shape(), " is given twice");
  }
  Shape shape;
  for (int d = 0; d < x.rank(); ++d)
    if (x.size(d) != 1 || !listed[d]) shape.append(x.size(d));
  return reshape(x, shape);
}

Tensor unsqueeze(const Tensor& x, int dim) {
  require_defined("unsqueeze", "x", x);
  require<ShapeError>(x.rank() < kMaxRank, "unsqueeze: x ", x.shape(), " has ", kMaxRank,
                      " dimensions, as many as a tensor may have");
  require<ShapeError>(dim >= -x.rank() - 1 && dim <= x.rank(), "unsqueeze: expected dim from ",
                      -x.rank() - 1, " to ", x.rank(), " for x ", x.shape(), ", got ", dim);
  const int place = dim < 0 ? dim + x.rank() + 1 : dim;
  Shape shape;
  for (int d = 0; d <= x.rank(); ++d) {
    if (d == place) shape.append(1);
    if (d < x.rank()) shape.append(x.size(d));
  }
  return reshape(x, shape);
}

}  // namespace sinter
