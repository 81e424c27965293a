// Element-wise operators, broadcasting, reductions, permutations and matrix products.
#include <algorithm>
#include <limits>
#include <utility>

#include "arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

void check_same(const char* op, const Tensor& a, const Tensor& b) {
  require_defined(op, "a", a);
  require_defined(op, "b", b);
  require_floating(op, a);
  require<DtypeError>(a.dtype() == b.dtype(), op, ": expected one dtype, got ", a.dtype(), " and ",
                      b.dtype(), "; convert with to()");
  require<DeviceError>(a.device() == b.device(), op, ": expected one device, got ", a.device(),
                       " and ", b.device(), "; move with to()");
}

// Row-major strides of a contiguous `shape`.
void contiguous_strides(const Shape& shape, int64_t* stride) {
  int64_t step = 1;
  for (int d = shape.rank() - 1; d >= 0; --d) {
    stride[d] = step;
    step *= shape[d];
  }
}

// Strides that read `from` as if it had shape `to`: aligned at the end, 0 where it is repeated.
void broadcast_strides(const Shape& from, const Shape& to, int64_t* stride) {
  int64_t own[kMaxRank];
  contiguous_strides(from, own);
  const int missing = to.rank() - from.rank();
  for (int d = 0; d < to.rank(); ++d) {
    const bool repeated = d < missing || (from[d - missing] == 1 && to[d] != 1);
    stride[d] = repeated ? 0 : own[d - missing];
  }
}

// The shape that a and b broadcast to, their last `skip` dimensions left out.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b, int skip = 0) {
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

// Drops extents of 1 and merges neighbours that are one run of memory in every operand, so that
// kernels see few dimensions: (64, 6, 28, 28) + (64, 6, 28, 28) becomes one. `strides` holds one
// array an operand.
template <size_t kOperands>
int merge_dimensions(int rank, int64_t* shape, int64_t* const (&strides)[kOperands]) {
  int last = -1;
  for (int d = 0; d < rank; ++d) {
    if (shape[d] == 1) continue;
    bool merges = last >= 0;
    for (const int64_t* s : strides) merges = merges && s[last] == s[d] * shape[d];
    if (merges) {
      shape[last] *= shape[d];
    } else {
      shape[++last] = shape[d];
    }
    for (int64_t* s : strides) s[last] = s[d];
  }
  return last + 1;
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
  emit(op::Scale{factor, in(x), out(y)});
  return y;
}

// x repeated to `shape`, times factor.
Tensor expand(const Tensor& x, const Shape& shape, double factor = 1) {
  if (x.shape() == shape && factor == 1) return x;
  int64_t stride[kMaxRank];
  broadcast_strides(x.shape(), shape, stride);
  const Tensor y = empty(shape, x.options());
  emit(op::StridedCopy{strided(shape, stride), in(x), out(y)});
  return factor == 1 ? y : times(y, factor);
}

// Sums x over the dimensions marked in `reduced`; the result has shape `result` (with or without
// them).
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

// The gradient of an operand of `shape` that was broadcast to dy's shape: dy summed over what was
// repeated.
Tensor unbroadcast(const Tensor& dy, const Shape& shape) {
  if (dy.shape() == shape) return dy;
  const int missing = dy.rank() - shape.rank();
  bool reduced[kMaxRank] = {};
  for (int d = 0; d < dy.rank(); ++d) {
    reduced[d] = d < missing || (shape[d - missing] == 1 && dy.size(d) != 1);
  }
  return reduce(dy, reduced, shape, 1);
}

Tensor apply(const char* op, op::BinaryOp kind, const Tensor& a, const Tensor& b) {
  check_same(op, a, b);
  const Shape shape = broadcast_shape(op, a.shape(), b.shape());
  op::Broadcast g;
  std::copy(shape.begin(), shape.end(), g.shape);
  broadcast_strides(a.shape(), shape, g.stride_a);
  broadcast_strides(b.shape(), shape, g.stride_b);
  g.rank = merge_dimensions<2>(shape.rank(), g.shape, {g.stride_a, g.stride_b});
  const Tensor y = empty(shape, a.options());
  emit(op::Binary{kind, g, in(a), in(b), out(y)});
  return y;
}

}  // namespace

// ---- arithmetic ---------------------------------------------------------------------------------

Tensor add(const Tensor& a, const Tensor& b) {
  return record(
      "add", apply("add", op::BinaryOp::kAdd, a, b), {a, b},
      [sa = a.shape(), sb = b.shape(), ga = a.requires_grad(),
       gb = b.requires_grad()](const Tensor& dy) {
        return Grads{ga ? unbroadcast(dy, sa) : Tensor(), gb ? unbroadcast(dy, sb) : Tensor()};
      });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  return record("sub", apply("sub", op::BinaryOp::kSub, a, b), {a, b},
                [sa = a.shape(), sb = b.shape(), ga = a.requires_grad(),
                 gb = b.requires_grad()](const Tensor& dy) {
                  return Grads{ga ? unbroadcast(dy, sa) : Tensor(),
                               gb ? times(unbroadcast(dy, sb), -1) : Tensor()};
                });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  const Tensor y = apply("mul", op::BinaryOp::kMul, a, b);
  return record("mul", y, {a, b},
                [sa = Saved(a), sb = Saved(b), ga = a.requires_grad(),
                 gb = b.requires_grad()](const Tensor& dy) {
                  const Shape &shape_a = sa.shape(), &shape_b = sb.shape();
                  return Grads{ga ? unbroadcast(mul(dy, sb.get()), shape_a) : Tensor(),
                               gb ? unbroadcast(mul(dy, sa.get()), shape_b) : Tensor()};
                });
}

Tensor div(const Tensor& a, const Tensor& b) {
  const Tensor y = apply("div", op::BinaryOp::kDiv, a, b);
  // d(a / b) = da / b - (a / b) db / b, a / b made anew: the result may change in place.
  return record("div", y, {a, b},
                [sa = Saved(b.requires_grad() ? a : Tensor()), sb = Saved(b), shape_a = a.shape(),
                 ga = a.requires_grad(), gb = b.requires_grad()](const Tensor& dy) {
                  const Tensor &b = sb.get(), q = div(dy, b);
                  Grads grads(2);
                  if (ga) grads[0] = unbroadcast(q, shape_a);
                  if (gb) grads[1] = times(unbroadcast(mul(q, div(sa.get(), b)), sb.shape()), -1);
                  return grads;
                });
}

namespace {

// A number as the operand beside x, which is `op`'s argument of that name.
Tensor scalar_like(const char* op, const char* argument, const Tensor& x, double number) {
  require_defined(op, argument, x);
  return full({}, number, x.options());
}

}  // namespace

Tensor operator*(const Tensor& a, double b) {
  require_defined("mul", "a", a);
  require_floating("mul", a);
  return record("mul", times(a, b), {a}, [b](const Tensor& dy) { return Grads{times(dy, b)}; });
}
Tensor operator/(const Tensor& a, double b) { return div(a, scalar_like("div", "a", a, b)); }
Tensor operator+(const Tensor& a, double b) { return add(a, scalar_like("add", "a", a, b)); }
Tensor operator-(const Tensor& a, double b) { return sub(a, scalar_like("sub", "a", a, b)); }
Tensor operator-(double a, const Tensor& b) { return sub(scalar_like("sub", "b", b, a), b); }
Tensor operator/(double a, const Tensor& b) { return div(scalar_like("div", "b", b, a), b); }

namespace {

Tensor assign(const char* op, const Tensor& x, const Tensor& result) {
  if (!(result.shape() == x.shape()))
    throw ShapeError(str(op, ": expected a right side that broadcasts to x's shape ", x.shape(),
                         ", got one that makes it ", result.shape()));
  x.overwrite(op, result);
  return x;
}

// x for an operator whose gradient for y needs the values that x has before the change.
Tensor old_values(const Tensor& x, const Tensor& y) { return recording({&y}) ? x.clone() : x; }

}  // namespace

Tensor operator+=(const Tensor& x, const Tensor& y) { return assign("+=", x, x + y); }
Tensor operator-=(const Tensor& x, const Tensor& y) { return assign("-=", x, x - y); }
Tensor operator*=(const Tensor& x, const Tensor& y) {
  return assign("*=", x, old_values(x, y) * y);
}
Tensor operator/=(const Tensor& x, const Tensor& y) {
  return assign("/=", x, old_values(x, y) / y);
}
Tensor operator+=(const Tensor& x, double y) { return assign("+=", x, x + y); }
Tensor operator-=(const Tensor& x, double y) { return assign("-=", x, x - y); }
Tensor operator*=(const Tensor& x, double y) { return assign("*=", x, x * y); }
Tensor operator/=(const Tensor& x, double y) { return assign("/=", x, x / y); }

Tensor relu(const Tensor& x) {
  require_defined("relu", "x", x);
  require_floating("relu", x);
  const Tensor y = empty(x.shape(), x.options());
  emit(op::ReluForward{in(x), out(y)});
  // y <= 0 exactly where x <= 0, and y is kept alive by the next operator anyway.
  return record("relu", y, {x}, [sy = Saved(y)](const Tensor& dy) {
    const Tensor& y = sy.get();
    const Tensor dx = empty(y.shape(), y.options());
    emit(op::ReluBackward{in(y), in(dy), out(dx)});
    return Grads{dx};
  });
}

// ---- reductions and permutations ----------------------------------------------------------------

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
    return Grads{expand(dy.reshape(with_ones), shape, factor)};
  });
}

}  // namespace

Tensor sum(const Tensor& x, const Dims& dims, bool keepdim) {
  return reduce_op("sum", false, x, dims.list, keepdim);
}
Tensor mean(const Tensor& x, const Dims& dims, bool keepdim) {
  return reduce_op("mean", true, x, dims.list, keepdim);
}

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

// ---- matrix product -----------------------------------------------------------------------------

namespace {

// op(a) op(b) for (batch, rows, columns) operands, the transposes being of the matrices. A batch of
// 1 is shared by all of the other's.
Tensor batched_product(const Tensor& a, bool ta, const Tensor& b, bool tb) {
  op::GemmShape g;
  g.ta = ta;
  g.tb = tb;
  g.m = a.size(ta ? 2 : 1);
  g.k = a.size(ta ? 1 : 2);
  g.n = b.size(tb ? 1 : 2);
  g.batch = std::max(a.size(0), b.size(0));
  if (a.size(0) == 0 || b.size(0) == 0) g.batch = 0;
  g.stride_a = a.size(0) == 1 ? 0 : a.size(1) * a.size(2);
  g.stride_b = b.size(0) == 1 ? 0 : b.size(1) * b.size(2);
  g.tf32 = allow_tf32();
  const Tensor c = empty({g.batch, g.m, g.n}, a.options());
  emit(op::Gemm{g, in(a), in(b), out(c)});
  return c;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  check_same("matmul", a, b);
  if (a.rank() < 2 || b.rank() < 2 || a.size(-1) != b.size(-2)) {
    throw ShapeError(
        str("matmul: expected (…, M, K) and (…, K, N), got ", a.shape(), " and ", b.shape()));
  }
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  const Shape batch = broadcast_shape("matmul", a.shape(), b.shape(), 2);
  auto matrices = [&](const Shape& lead, int64_t rows, int64_t columns) {
    Shape s = lead;
    s.append(rows);
    s.append(columns);
    s.numel("matmul");  // throws if nobody can count them
    return s;
  };
  const Shape result = matrices(batch, m, n);
  // An operand without a batch is shared; one that broadcasts partly is repeated in memory.
  auto stacked = [&](const Tensor& x, int64_t rows, int64_t columns) {
    const int64_t size = rows * columns;
    const Tensor full = x.numel() == size ? x : expand(x, matrices(batch, rows, columns));
    return full.reshape({size > 0 ? full.numel() / size : batch.numel(), rows, columns});
  };
  const Tensor sa = stacked(a.detach(), m, k), sb = stacked(b.detach(), k, n);
  const Tensor y = batched_product(sa, false, sb, false).reshape(result);
  // dA = dY B^T, dB = A^T dY, summed over the batches that shared or repeated the operand.
  return record(
      "matmul", y, {a, b},
      [=, va = Saved(sa), vb = Saved(sb), shape_a = a.shape(), shape_b = b.shape(),
       ga = a.requires_grad(), gb = b.requires_grad()](const Tensor& dy) {
        const Tensor d = dy.reshape({batch.numel(), m, n});
        Grads grads(2);
        if (ga) {
          grads[0] = unbroadcast(
              batched_product(d, false, vb.get(), true).reshape(matrices(batch, m, k)), shape_a);
        }
        if (gb) {
          grads[1] = unbroadcast(
              batched_product(va.get(), true, d, false).reshape(matrices(batch, k, n)), shape_b);
        }
        return grads;
      });
}

}  // namespace sinter
