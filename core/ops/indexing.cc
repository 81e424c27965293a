#include "sinter/ops/indexing.h"

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/autograd.h"
#include "sinter/emit.h"
#include "sinter/operators/indexing.h"
#include "sinter/ops.h"

namespace sinter {

const char* op::name(Indexing by) {
  constexpr const char* kNames[] = {"index_select", "embedding", "gather", "one_hot"};
  return kNames[static_cast<int>(by)];
}

namespace {

// The indices as operators take them.
Tensor indices(const char* op, const Tensor& index, Device device) {
  require<DtypeError>(index.dtype() == kInt64 || index.dtype() == kInt32, op,
                      ": expected int64 or int32 as index, got ", index.dtype());
  require<DeviceError>(index.device() == device, op, ": expected index on x's device ", device,
                       ", got ", index.device(), "; move with to()");
  return index.to(kInt64);
}

// y: of `shape`.
Tensor selected(op::Indexing by, const Tensor& x, int d, const Tensor& index, const Shape& shape,
                int64_t skip) {
  op::AlongShape g{1, x.size(d), 1};
  for (int i = 0; i < d; ++i) g.outer *= x.size(i);
  for (int i = d + 1; i < x.rank(); ++i) g.inner *= x.size(i);
  const Tensor y = empty(shape, x.options());
  emit(op::IndexSelect{by, g, in(x), in(index), out(y)});
  return record(op::name(by), y, {x},
                [g, skip, from = x.shape(), si = Saved(index)](const Tensor& dy) {
                  const Tensor dx = empty(from, dy.options());
                  emit(op::IndexSelectBackward{g, skip, in(si.get()), in(dy), out(dx)});
                  return Grads{dx};
                });
}

}  // namespace

Tensor gather(const Tensor& x, int dim, const Tensor& index) {
  require_defined("gather", "x", x);
  require_defined("gather", "index", index);
  const Tensor i = indices("gather", index, x.device());
  const int d = dimension("gather", x, dim);
  // A scalar is as good as one element along a dimension.
  if (x.rank() == 0 && i.rank() <= 1)
    return gather(x.reshape({1}), 0, i.reshape({i.numel()})).reshape(i.shape());
  if (x.rank() == 1 && i.rank() == 0) return gather(x, 0, i.reshape({1})).reshape({});
  bool fits = i.rank() == x.rank();
  for (int k = 0; fits && k < x.rank(); ++k) fits = k == d || i.size(k) <= x.size(k);
  require<ShapeError>(fits, "gather: expected an index of x's rank and, but for dimension ", dim,
                      ", at most its extents, got x ", x.shape(), " and index ", i.shape());
  int64_t stride[kMaxRank], outer_stride[kMaxRank];
  contiguous_strides(x.shape(), stride);
  op::GatherLines g;
  g.index = {1, i.size(d), 1};
  g.limit = x.size(d);
  g.step = stride[d];
  Shape others;
  for (int k = 0; k < x.rank(); ++k) {
    if (k == d) continue;
    (k < d ? g.index.outer : g.index.inner) *= i.size(k);
    outer_stride[others.rank()] = stride[k];
    others.append(i.size(k));
  }
  g.lines = strided(others, outer_stride);
  const Tensor y = empty(i.shape(), x.options());
  emit(op::Gather{g, in(x), in(i), out(y)});
  return record("gather", y, {x}, [g, from = x.shape(), si = Saved(i)](const Tensor& dy) {
    const Tensor dx = empty(from, dy.options());
    emit(op::GatherBackward{g, in(si.get()), in(dy), out(dx)});
    return Grads{dx};
  });
}

Tensor index_select(const Tensor& x, int dim, const Tensor& index) {
  require_defined("index_select", "x", x);
  require_defined("index_select", "index", index);
  const Tensor i = indices("index_select", index, x.device());
  require<ShapeError>(i.rank() <= 1, "index_select: expected an index of 1 dimension, got ",
                      i.shape());
  const int d = dimension("index_select", x, dim);
  if (x.rank() == 0) {
    require<ShapeError>(i.numel() == 1, "index_select: expected one index into a scalar, got ",
                        i.numel());
    return index_select(x.reshape({1}), 0, i).reshape({});
  }
  Shape shape = x.shape();
  shape[d] = i.numel();
  shape.numel("index_select");
  return selected(op::Indexing::kIndexSelect, x, d, i, shape, -1);
}

Tensor embedding(const Tensor& index, const Tensor& weight, std::optional<int64_t> padding_idx) {
  require_defined("embedding", "index", index);
  require_defined("embedding", "weight", weight);
  require<ShapeError>(weight.rank() >= 1, "embedding: expected a weight of rows, got a scalar");
  require_floating("embedding", weight);
  const Tensor i = indices("embedding", index, weight.device());
  const int64_t n = weight.size(0);
  require<ValueError>(!padding_idx || (-n <= *padding_idx && *padding_idx < n),
                      "embedding: expected padding_idx to be one of ", n, " rows, got ",
                      padding_idx.value_or(0));
  const int64_t skip = !padding_idx ? -1 : *padding_idx < 0 ? *padding_idx + n : *padding_idx;
  require<ShapeError>(i.rank() + weight.rank() - 1 <= kMaxRank, "embedding: index ", i.shape(),
                      " and weight ", weight.shape(), " have too many dimensions together");
  Shape shape = i.shape();
  for (int d = 1; d < weight.rank(); ++d) shape.append(weight.size(d));
  shape.numel("embedding");
  return selected(op::Indexing::kEmbedding, weight, 0, i, shape, skip);
}

Tensor one_hot(const Tensor& index, int64_t num_classes) {
  require_defined("one_hot", "index", index);
  const Tensor i = indices("one_hot", index, index.device());
  require<ValueError>(num_classes >= 1 || num_classes == -1,
                      "one_hot: expected num_classes of at least 1, or -1, got ", num_classes);
  require<ValueError>(num_classes != -1 || i.numel() > 0,
                      "one_hot: expected num_classes for an index without elements");
  if (num_classes == -1) num_classes = max(i).item<int64_t>() + 1;
  require<ShapeError>(i.rank() < kMaxRank, "one_hot: index ", i.shape(), " has ", kMaxRank,
                      " dimensions, as many as a tensor may have");
  Shape shape = i.shape();
  shape.append(std::max<int64_t>(num_classes, 1));  // of negative indices: the kernel says so
  const Tensor y = empty(shape, i.options());
  emit(op::OneHot{shape[-1], in(i), out(y)});
  return y;
}

}  // namespace sinter
