#include "core/ops/move.h"

#include <algorithm>
#include <utility>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/autograd.h"
#include "sinter/emit.h"
#include "sinter/operators/move.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// The place of a dimension that x has not.
int new_dimension(const char* op, const Tensor& x, int dim) {
  require<ShapeError>(dim >= -x.rank() - 1 && dim <= x.rank(), op, ": expected dim from ",
                      -x.rank() - 1, " to ", x.rank(), " for tensors of shape ", x.shape(),
                      ", got ", dim);
  return dim < 0 ? dim + x.rank() + 1 : dim;
}

void check_list(const char* op, const std::vector<Tensor>& tensors) {
  require<ValueError>(!tensors.empty(), op, ": expected at least one tensor, got none");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor &t = tensors[i], &x = tensors[0];
    if (!t.defined())
      throw ValueError(str(op, ": expected tensors, got an undefined one at place ", i));
    require<DtypeError>(t.dtype() == x.dtype(), op, ": expected tensors of one dtype, got ",
                        x.dtype(), " and ", t.dtype(), "; convert with to()");
    require<DeviceError>(t.device() == x.device(), op, ": expected tensors on one device, got ",
                         x.device(), " and ", t.device(), "; move with to()");
  }
}

Tensor triangle(const char* op, bool upper, const Tensor& x, int64_t diagonal) {
  require_defined(op, "x", x);
  require<ShapeError>(x.rank() >= 2, op, ": expected at least 2 dimensions, got x of shape ",
                      ShapeOf{x});
  const int64_t rows = x.size(-2), columns = x.size(-1);
  const Tensor y = empty(x.shape(), x.options());
  emit(op::Triangle{upper, diagonal, rows, columns, in(x), out(y)});
  return record(op, y, {x},
                [=](const Tensor& dy) { return Grads{triangle(op, upper, dy, diagonal)}; });
}

}  // namespace

Tensor part_of(const Tensor& x, int d, int64_t start, int64_t length) {
  Shape shape = x.shape();
  shape[d] = length;
  int64_t stride[kMaxRank];
  contiguous_strides(x.shape(), stride);
  const Tensor y = empty(shape, x.options());
  const int64_t first = y.numel() > 0 ? start * stride[d] : 0;
  emit(op::StridedCopy{strided(shape, stride), first, in(x), out(y)});
  return record("narrow", y, {x}, [d, start, from = x.shape()](const Tensor& dy) {
    std::vector<int64_t> before(static_cast<size_t>(from.rank()));
    before[static_cast<size_t>(d)] = start;
    return Grads{zeros_around(dy, before, from)};
  });
}

Tensor narrow(const Tensor& x, int dim, int64_t start, int64_t length) {
  return x.narrow(dim, start, length);
}

Tensor select(const Tensor& x, int dim, int64_t index) {
  require_defined("select", "x", x);
  require<ShapeError>(x.rank() >= 1, "select: expected at least 1 dimension, got a scalar");
  const int d = dimension("select", x, dim);
  require<ShapeError>(index >= -x.size(d) && index < x.size(d), "select: no element ", index,
                      " along dimension ", dim, " of x ", x.shape());
  Shape shape;
  for (int i = 0; i < x.rank(); ++i)
    if (i != d) shape.append(x.size(i));
  return narrow(x, d, index < 0 ? index + x.size(d) : index, 1).reshape(shape);
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int dim) {
  require_defined("split", "x", x);
  require<ShapeError>(x.rank() >= 1, "split: expected at least 1 dimension, got a scalar");
  const int d = dimension("split", x, dim);
  int64_t start = 0;
  std::vector<Tensor> parts;
  for (const int64_t size : sizes) {
    require<ShapeError>(size >= 0 && size <= x.size(d) - start, "split: expected sizes that add ",
                        "up to ", x.size(d), ", the extent of x ", x.shape(), " along dimension ",
                        dim, ", got a part of ", size, " from ", start);
    parts.push_back(narrow(x, d, start, size));
    start += size;
  }
  require<ShapeError>(start == x.size(d), "split: expected sizes that add up to ", x.size(d),
                      ", the extent of x ", x.shape(), " along dimension ", dim, ", got ", start);
  return parts;
}

std::vector<Tensor> split(const Tensor& x, int64_t size, int dim) {
  require_defined("split", "x", x);
  require<ShapeError>(x.rank() >= 1, "split: expected at least 1 dimension, got a scalar");
  const int64_t n = x.size(dimension("split", x, dim));
  require<ShapeError>(size > 0 || (size == 0 && n == 0), "split: expected a size of at least 1 ",
                      "for x ", x.shape(), " along dimension ", dim, ", got ", size);
  std::vector<int64_t> sizes;
  for (int64_t start = 0; start < n; start += sizes.back())
    sizes.push_back(std::min(size, n - start));
  if (sizes.empty()) sizes.push_back(0);
  return split(x, sizes, dim);
}

std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int dim) {
  require_defined("chunk", "x", x);
  require<ShapeError>(x.rank() >= 1, "chunk: expected at least 1 dimension, got a scalar");
  require<ValueError>(chunks >= 1, "chunk: expected at least 1 chunk, got ", chunks);
  const int64_t n = x.size(dimension("chunk", x, dim));
  if (n == 0) return split(x, std::vector<int64_t>(static_cast<size_t>(chunks)), dim);
  return split(x, (n - 1) / chunks + 1, dim);
}

Tensor cat(const std::vector<Tensor>& tensors, int dim) {
  check_list("cat", tensors);
  // Lists began with an empty tensor before shapes of extent 0 could say of what.
  const auto left_out = [](const Tensor& t) { return t.shape() == Shape{0}; };
  const Tensor* first = nullptr;
  for (const Tensor& t : tensors)
    if (first == nullptr || (left_out(*first) && !left_out(t))) first = &t;
  require<ShapeError>(first->rank() >= 1,
                      "cat: expected at least 1 dimension, got a scalar; stack "
                      "makes one");
  const int d = dimension("cat", *first, dim);
  Shape shape = first->shape();
  shape[d] = 0;
  for (const Tensor& t : tensors) {
    if (left_out(t)) continue;
    bool fits = t.rank() == first->rank();
    for (int i = 0; fits && i < t.rank(); ++i) fits = i == d || t.size(i) == first->size(i);
    require<ShapeError>(fits, "cat: expected shapes that differ in dimension ", dim, " alone, got ",
                        first->shape(), " and ", t.shape());
    shape[d] += t.size(d);
  }
  const Tensor y = empty(shape, first->options());
  op::Concatenate concatenate;
  concatenate.outer = 1;
  for (int i = 0; i < d; ++i) concatenate.outer *= shape[i];
  std::vector<int64_t> lengths;
  for (const Tensor& t : tensors) {
    lengths.push_back(left_out(t) ? 0 : t.size(d));
    if (t.numel() > 0) concatenate.x.push_back(in(t));
  }
  concatenate.y = out(y);
  if (y.numel() > 0) emit(std::move(concatenate));
  std::vector<Shape> shapes;
  std::vector<bool> needs;
  for (const Tensor& t : tensors) {
    shapes.push_back(t.shape());
    needs.push_back(t.requires_grad());
  }
  return record("cat", y, tensors, [=](const Tensor& dy) {
    Grads grads(shapes.size());
    int64_t start = 0;
    for (size_t i = 0; i < shapes.size(); start += lengths[i++])
      if (needs[i]) grads[i] = narrow(dy, d, start, lengths[i]).reshape(shapes[i]);
    return grads;
  });
}

Tensor stack(const std::vector<Tensor>& tensors, int dim) {
  check_list("stack", tensors);
  const int d = new_dimension("stack", tensors[0], dim);
  std::vector<Tensor> rows;
  for (const Tensor& t : tensors) {
    require<ShapeError>(t.shape() == tensors[0].shape(), "stack: expected tensors of one shape, ",
                        "got ", tensors[0].shape(), " and ", t.shape());
    rows.push_back(unsqueeze(t, d));
  }
  return cat(rows, d);
}

Tensor expand(const Tensor& x, const Shape& wanted) {
  require_defined("expand", "x", x);
  Shape shape = wanted;
  const int added = shape.rank() - x.rank();
  bool fits = added >= 0;
  for (int d = 0; fits && d < shape.rank(); ++d) {
    if (d >= added && shape[d] == -1) shape[d] = x.size(d - added);
    fits = shape[d] >= 0 && (d < added || x.size(d - added) == 1 || x.size(d - added) == shape[d]);
  }
  require<ShapeError>(fits, "expand: x ", x.shape(), " does not broadcast to ", wanted);
  shape.numel("expand");
  bool repeats = false;
  for (int d = 0; d < shape.rank(); ++d)
    repeats = repeats || shape[d] != (d < added ? 1 : x.size(d - added));
  if (!repeats) return x.reshape(shape);
  return record("expand", repeated(x, shape), {x},
                [from = x.shape()](const Tensor& dy) { return Grads{unbroadcast(dy, from)}; });
}

Tensor flip(const Tensor& x, const Dims& dims) {
  require_defined("flip", "x", x);
  int64_t stride[kMaxRank], start = 0;
  contiguous_strides(x.shape(), stride);
  bool flipped[kMaxRank] = {};
  for (const int dim : dims.list) {
    const int d = dimension("flip", x, dim);
    require<ShapeError>(!std::exchange(flipped[d], true), "flip: dimension ", dim, " of x ",
                        x.shape(), " is given twice");
    if (x.numel() == 0 || x.rank() == 0) continue;
    start += (x.size(d) - 1) * stride[d];
    stride[d] = -stride[d];
  }
  const Tensor y = empty(x.shape(), x.options());
  emit(op::StridedCopy{strided(x.shape(), stride), start, in(x), out(y)});
  return record("flip", y, {x}, [dims](const Tensor& dy) { return Grads{flip(dy, dims)}; });
}

Tensor tril(const Tensor& x, int64_t diagonal) { return triangle("tril", false, x, diagonal); }
Tensor triu(const Tensor& x, int64_t diagonal) { return triangle("triu", true, x, diagonal); }

}  // namespace sinter
