#include "core/ops/broadcast.h"

#include <algorithm>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/operators/move.h"

namespace sinter {

void check_same(const char* op, const Tensor& a, const Tensor& b) {
  require_defined(op, "a", a);
  require_defined(op, "b", b);
  require_floating(op, a);
  require<DtypeError>(a.dtype() == b.dtype(), op, ": expected one dtype, got ", a.dtype(), " and ",
                      b.dtype(), "; convert with to()");
  require<DeviceError>(a.device() == b.device(), op, ": expected one device, got ", a.device(),
                       " and ", b.device(), "; move with to()");
}

void contiguous_strides(const Shape& shape, int64_t* stride) {
  int64_t step = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    stride[d] = step;
    step *= shape[d];
  }
}

void broadcast_strides(const Shape& from, const Shape& to, int64_t* stride) {
  int64_t own[kMaxRank];
  contiguous_strides(from, own);
  const int missing = to.rank() - from.rank();
  for (int d = 0; d < to.rank(); ++d) {
    const bool repeated = d < missing || (from[d - missing] == 1 && to[d] != 1);
    stride[d] = repeated ? 0 : own[d - missing];
  }
}

Shape broadcast_shape(const char* op, const Shape& a, const Shape& b, int skip) {
  const int rank = std::max(a.rank(), b.rank());
  Shape shape;
  for (int d = 0; d < rank - skip; ++d) {
    const int i = d - (rank - a.rank()), j = d - (rank - b.rank());
    const int64_t m = i < 0 ? 1 : a[i], n = j < 0 ? 1 : b[j];
    if (m != n && m != 1 && n != 1) {
      throw ShapeError(str(op, ": expected shapes that broadcast, got ", a, " and ", b, " (", m,
                           " against ", n, ")"));
    }
    shape.append(m == 1 ? n : m);
  }
  shape.numel(op);  // throws if nobody can count them
  return shape;
}

op::Strided strided(const Shape& shape, const int64_t* stride) {
  op::Strided g;
  std::copy(shape.begin(), shape.end(), g.shape);
  std::copy(stride, stride + shape.rank(), g.stride);
  g.rank = merge_dimensions<1>(shape.rank(), g.shape, {g.stride});
  return g;
}

Tensor times(const Tensor& x, double factor) {
  const Tensor y = empty(x.shape(), x.options());
  emit(op::scale(factor, in(x), out(y)));
  return y;
}

Tensor repeated(const Tensor& x, const Shape& shape, double factor) {
  if (x.shape() == shape && factor == 1) return x;
  int64_t stride[kMaxRank];
  broadcast_strides(x.shape(), shape, stride);
  const Tensor y = empty(shape, x.options());
  emit(op::StridedCopy{strided(shape, stride), 0, in(x), out(y)});
  return factor == 1 ? y : times(y, factor);
}

Tensor reduce(const Tensor& x, const bool* reduced, const Shape& result, double factor) {
  int64_t stride[kMaxRank];
  contiguous_strides(x.shape(), stride);
  Shape sizes[2];
  int64_t strides[2][kMaxRank];
  for (int d = 0; d < x.rank(); ++d) {
    Shape& part = sizes[reduced[d]];
    strides[reduced[d]][part.rank()] = stride[d];
    part.append(x.size(d));
  }
  const Tensor y = empty(result, x.options());
  emit(
      op::Sum{strided(sizes[0], strides[0]), strided(sizes[1], strides[1]), factor, in(x), out(y)});
  return y;
}

Tensor unbroadcast(const Tensor& dy, const Shape& shape) {
  if (dy.shape() == shape) return dy;
  const int missing = dy.rank() - shape.rank();
  bool reduced[kMaxRank] = {};
  for (int d = 0; d < dy.rank(); ++d) {
    reduced[d] = d < missing || (shape[d - missing] == 1 && dy.size(d) != 1);
  }
  return reduce(dy, reduced, shape, 1);
}

}  // namespace sinter
