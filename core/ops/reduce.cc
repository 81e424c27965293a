// Reductions, cumulative sums and order along a dimension.
#include "sinter/operators/reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// What is reduced of x, and where its elements lie.
struct Reduced {
  bool marked[kMaxRank] = {};
  int64_t count = 1;  // terms of each result
  Shape result;       // with or without the reduced dimensions, as was asked
  Shape with_ones;
  op::Strided kept, reduced, rows;  // as in operators/reduce.h
};

Reduced reduced_by(const char* op, const Tensor& x, const std::vector<int>& dims, bool keepdim) {
  require_defined(op, "x", x);
  Reduced r;
  if (dims.empty()) std::fill(r.marked, r.marked + x.rank(), true);
  for (const int dim : dims) {
    const int d = dimension(op, x, dim);
    require<ShapeError>(!r.marked[d], op, ": dimension ", dim, " of x ", x.shape(),
                        " is given twice");
    r.marked[d] = true;
  }
  int64_t stride[kMaxRank], strides[2][kMaxRank];
  contiguous_strides(x.shape(), stride);
  Shape sizes[2];
  for (int d = 0; d < x.rank(); ++d) {
    if (r.marked[d]) r.count *= x.size(d);
    r.with_ones.append(r.marked[d] ? 1 : x.size(d));
    Shape& part = sizes[r.marked[d]];
    strides[r.marked[d]][part.rank()] = stride[d];
    part.append(x.size(d));
  }
  r.result = keepdim ? r.with_ones : sizes[0];
  r.kept = strided(sizes[0], strides[0]);
  r.reduced = strided(sizes[1], strides[1]);
  broadcast_strides(r.with_ones, x.shape(), stride);
  r.rows = strided(x.shape(), stride);
  return r;
}

// For what has no value of nothing.
void require_terms(const char* op, const Tensor& x, const Reduced& r) {
  require<ShapeError>(r.count > 0 || r.result.numel() == 0, op,
                      ": expected at least one element to reduce, got x ", x.shape());
}

TensorOptions with_dtype(const Tensor& x, DType dtype) { return {dtype, x.device()}; }
// What sums and products of x's elements are held in.
TensorOptions sum_options(const Tensor& x) {
  return is_floating(x.dtype()) ? x.options() : with_dtype(x, kInt64);
}

Tensor total(const char* op, bool mean, const Tensor& x, const std::vector<int>& dims,
             bool keepdim) {
  const Reduced r = reduced_by(op, x, dims, keepdim);
  if (!mean && !is_floating(x.dtype())) {
    const Tensor y = empty(r.result, sum_options(x));
    emit(op::SumIntegers{r.kept, r.reduced, in(x), out(y)});
    return y;
  }
  require_floating(op, x);
  // The mean of nothing is 0 / 0: NaN, as in PyTorch.
  const double factor = mean ? 1.0 / static_cast<double>(r.count) : 1.0;
  Tensor y = reduce(x, r.marked, r.result, r.count ? factor : 1.0);
  if (mean && r.count == 0) y.fill_(std::numeric_limits<double>::quiet_NaN());
  return record(op, y, {x}, [shape = x.shape(), with_ones = r.with_ones, factor](const Tensor& dy) {
    return Grads{repeated(dy.reshape(with_ones), shape, factor)};
  });
}

// What is needed for the backward pass only.
Tensor if_recording(const Tensor& x, const Shape& shape, TensorOptions options) {
  return recording({&x}) ? empty(shape, options) : Tensor();
}

Tensor extremum(const char* op, bool largest, bool nan_ties, const Tensor& x,
                const std::vector<int>& dims, bool keepdim) {
  const Reduced r = reduced_by(op, x, dims, keepdim);
  require_terms(op, x, r);
  const Tensor y = empty(r.result, x.options());
  const Tensor ties = if_recording(x, r.result, with_dtype(x, kInt64));
  emit(op::Extremum{largest, r.kept, r.reduced, in(x), out(y), optional_out(ties)});
  return record(
      op, y, {x}, [rows = r.rows, nan_ties, sx = Saved(x), sy = Saved(y), ties](const Tensor& dy) {
        const Tensor& x = sx.get();
        const Tensor dx = empty(x.shape(), x.options());
        emit(op::ExtremumBackward{rows, nan_ties, in(x), in(sy.get()), in(ties), in(dy), out(dx)});
        return Grads{dx};
      });
}

// x as (outer, n, inner) around a dimension.
op::AlongShape along(const Tensor& x, int d) {
  op::AlongShape g{1, x.rank() > 0 ? x.size(d) : 1, 1};
  for (int i = 0; i < d; ++i) g.outer *= x.size(i);
  for (int i = d + 1; i < x.rank(); ++i) g.inner *= x.size(i);
  return g;
}

// values, entered into the graph as elements of x at `index` along the dimension of g.
Tensor record_chosen(const char* op, const Tensor& x, const Tensor& values, const Tensor& index,
                     const op::AlongShape& g, int64_t k) {
  return record(op, values, {x}, [g, k, shape = x.shape(), si = Saved(index)](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.options());
    emit(op::ScatterAlong{g, k, in(dy), in(si.get()), out(dx)});
    return Grads{dx};
  });
}

ValuesIndices extremum_along(const char* op, bool largest, const Tensor& x, int dim, bool keepdim) {
  const Reduced r = reduced_by(op, x, {dim}, keepdim);
  require_terms(op, x, r);
  const Tensor values = empty(r.result, x.options());
  const Tensor index = empty(r.result, with_dtype(x, kInt64));
  emit(op::ArgExtremum{largest, r.kept, r.reduced, in(x), out(index), optional_out(values)});
  return {record_chosen(op, x, values, index, along(x, dimension(op, x, dim)), 1), index};
}

Tensor place(const char* op, bool largest, const Tensor& x, std::optional<int> dim, bool keepdim) {
  const Reduced r = reduced_by(op, x, dim ? std::vector<int>{*dim} : std::vector<int>{}, keepdim);
  require_terms(op, x, r);
  const Tensor index = empty(r.result, with_dtype(x, kInt64));
  emit(op::ArgExtremum{largest, r.kept, r.reduced, in(x), out(index), {}});
  return index;
}

// The variance or its root, and the mean, if asked for.
VarMean moments(const char* op, bool root, bool with_mean, const Tensor& x,
                const std::vector<int>& dims, const VarOptions& options) {
  const Reduced r = reduced_by(op, x, dims, options.keepdim);
  require_floating(op, x);
  const Tensor y = empty(r.result, x.options());
  const Tensor mean =
      with_mean ? empty(r.result, x.options()) : if_recording(x, r.result, x.options());
  emit(
      op::Variance{options.correction, root, r.kept, r.reduced, in(x), out(y), optional_out(mean)});
  const auto n = static_cast<double>(r.count);
  VarMean result;
  result.var = record(op, y, {x},
                      [rows = r.rows, scale = 2 / (n - options.correction), root, sx = Saved(x),
                       sm = Saved(mean), sy = Saved(root ? y : Tensor())](const Tensor& dy) {
                        const Tensor& x = sx.get();
                        const Tensor dx = empty(x.shape(), x.options());
                        emit(op::VarianceBackward{rows, scale, root, in(x), in(sm.get()),
                                                  in(sy.get()), in(dy), out(dx)});
                        return Grads{dx};
                      });
  if (!with_mean) return result;
  result.mean =
      record(op, mean, {x}, [shape = x.shape(), with_ones = r.with_ones, n](const Tensor& dy) {
        return Grads{repeated(dy.reshape(with_ones), shape, 1 / n)};
      });
  return result;
}

Tensor all_or_any(const char* op, bool all, const Tensor& x, const std::vector<int>& dims,
                  bool keepdim) {
  const Reduced r = reduced_by(op, x, dims, keepdim);
  // As in PyTorch, where bytes were the truth values once.
  const Tensor y = empty(r.result, with_dtype(x, x.dtype() == kUInt8 ? kUInt8 : kBool));
  emit(op::AllOrAny{all, r.kept, r.reduced, in(x), out(y)});
  return y;
}

ValuesIndices ordered(const char* op, const Tensor& x, int64_t k, int dim, bool descending) {
  const int d = dimension(op, x, dim);
  const op::AlongShape g = along(x, d);
  require<ShapeError>(0 <= k && k <= g.n, op, ": expected 0 <= k <= ", g.n, ", the extent of x ",
                      x.shape(), " along dimension ", dim, ", got ", k);
  Shape shape = x.shape();
  if (shape.rank() > 0)
    shape[d] = k;
  else if (k == 0)
    shape.append(0);
  const Tensor values = empty(shape, x.options());
  const Tensor index = empty(shape, with_dtype(x, kInt64));
  emit(op::Sort{g, k, descending, in(x), out(values), out(index)});
  return {record_chosen(op, x, values, index, g, k), index};
}

}  // namespace

Tensor sum(const Tensor& x, const Dims& dims, bool keepdim) {
  return total("sum", false, x, dims.list, keepdim);
}
Tensor mean(const Tensor& x, const Dims& dims, bool keepdim) {
  return total("mean", true, x, dims.list, keepdim);
}

Tensor prod(const Tensor& x, const Dims& dims, bool keepdim) {
  const Reduced r = reduced_by("prod", x, dims.list, keepdim);
  const Tensor y = empty(r.result, sum_options(x));
  const Tensor others = if_recording(x, r.result, x.options());
  emit(op::Prod{r.kept, r.reduced, in(x), out(y), optional_out(others)});
  return record("prod", y, {x},
                [rows = r.rows, sx = Saved(x), sy = Saved(y), others](const Tensor& dy) {
                  const Tensor& x = sx.get();
                  const Tensor dx = empty(x.shape(), x.options());
                  emit(op::ProdBackward{rows, in(x), in(sy.get()), in(others), in(dy), out(dx)});
                  return Grads{dx};
                });
}

Tensor var(const Tensor& x, const Dims& dims, const VarOptions& options) {
  return moments("var", false, false, x, dims.list, options).var;
}
Tensor std(const Tensor& x, const Dims& dims, const VarOptions& options) {
  return moments("std", true, false, x, dims.list, options).var;
}
VarMean var_mean(const Tensor& x, const Dims& dims, const VarOptions& options) {
  return moments("var_mean", false, true, x, dims.list, options);
}
StdMean std_mean(const Tensor& x, const Dims& dims, const VarOptions& options) {
  VarMean both = moments("std_mean", true, true, x, dims.list, options);
  return {std::move(both.var), std::move(both.mean)};
}

Tensor max(const Tensor& x) { return extremum("max", true, true, x, {}, false); }
Tensor min(const Tensor& x) { return extremum("min", false, true, x, {}, false); }
ValuesIndices max(const Tensor& x, int dim, bool keepdim) {
  return extremum_along("max", true, x, dim, keepdim);
}
ValuesIndices min(const Tensor& x, int dim, bool keepdim) {
  return extremum_along("min", false, x, dim, keepdim);
}
Tensor amax(const Tensor& x, const Dims& dims, bool keepdim) {
  return extremum("amax", true, false, x, dims.list, keepdim);
}
Tensor amin(const Tensor& x, const Dims& dims, bool keepdim) {
  return extremum("amin", false, false, x, dims.list, keepdim);
}
Tensor argmax(const Tensor& x, std::optional<int> dim, bool keepdim) {
  return place("argmax", true, x, dim, keepdim);
}
Tensor argmin(const Tensor& x, std::optional<int> dim, bool keepdim) {
  return place("argmin", false, x, dim, keepdim);
}

Tensor norm(const Tensor& x, double p, const Dims& dims, bool keepdim) {
  const Reduced r = reduced_by("norm", x, dims.list, keepdim);
  require_floating("norm", x);
  require<ValueError>(!std::isnan(p), "norm: expected a number as p, got ", p);
  if (p < 0 || std::isinf(p)) require_terms("norm", x, r);
  const Tensor y = empty(r.result, x.options());
  const Tensor ties = std::isinf(p) ? if_recording(x, r.result, with_dtype(x, kInt64)) : Tensor();
  emit(op::Norm{p, r.kept, r.reduced, in(x), out(y), optional_out(ties)});
  return record("norm", y, {x},
                [rows = r.rows, p, sx = Saved(x), sy = Saved(y), ties](const Tensor& dy) {
                  const Tensor& x = sx.get();
                  if (p == 0) return Grads{zeros_like(x)};
                  const Tensor dx = empty(x.shape(), x.options());
                  emit(op::NormBackward{rows, p, in(x), in(sy.get()), in(ties), in(dy), out(dx)});
                  return Grads{dx};
                });
}

Tensor logsumexp(const Tensor& x, const Dims& dims, bool keepdim) {
  const Reduced r = reduced_by("logsumexp", x, dims.list, keepdim);
  require_floating("logsumexp", x);
  const Tensor y = empty(r.result, x.options());
  emit(op::LogSumExp{r.kept, r.reduced, in(x), out(y)});
  return record("logsumexp", y, {x},
                [rows = r.rows, sx = Saved(x), sy = Saved(y)](const Tensor& dy) {
                  const Tensor& x = sx.get();
                  const Tensor dx = empty(x.shape(), x.options());
                  emit(op::LogSumExpBackward{rows, in(x), in(sy.get()), in(dy), out(dx)});
                  return Grads{dx};
                });
}

Tensor all(const Tensor& x, const Dims& dims, bool keepdim) {
  return all_or_any("all", true, x, dims.list, keepdim);
}
Tensor any(const Tensor& x, const Dims& dims, bool keepdim) {
  return all_or_any("any", false, x, dims.list, keepdim);
}

Tensor cumsum(const Tensor& x, int dim) {
  require_defined("cumsum", "x", x);
  const op::AlongShape g = along(x, dimension("cumsum", x, dim));
  const Tensor y = empty(x.shape(), sum_options(x));
  emit(op::CumSum{g, false, in(x), out(y)});
  return record("cumsum", y, {x}, [g](const Tensor& dy) {
    const Tensor dx = empty(dy.shape(), dy.options());
    emit(op::CumSum{g, true, in(dy), out(dx)});
    return Grads{dx};
  });
}

ValuesIndices topk(const Tensor& x, int64_t k, int dim, bool largest, bool) {
  require_defined("topk", "x", x);
  return ordered("topk", x, k, dim, largest);
}
ValuesIndices sort(const Tensor& x, int dim, bool descending) {
  require_defined("sort", "x", x);
  return ordered("sort", x, x.rank() > 0 ? x.size(dimension("sort", x, dim)) : 1, dim, descending);
}
Tensor argsort(const Tensor& x, int dim, bool descending) {
  const no_grad guard;
  return sort(x, dim, descending).indices;
}

}  // namespace sinter
