// Matrix products.
#include <algorithm>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/operators/linear.h"
#include "sinter/ops.h"

namespace sinter {
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

// matmul of (…, M, K) and (…, K, N), in the name of `op`.
Tensor matrix_product(const char* op, const Tensor& a, const Tensor& b) {
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  const Shape batch = broadcast_shape(op, a.shape(), b.shape(), 2);
  auto matrices = [&](const Shape& lead, int64_t rows, int64_t columns) {
    Shape s = lead;
    s.append(rows);
    s.append(columns);
    s.numel(op);  // throws if nobody can count them
    return s;
  };
  const Shape result = matrices(batch, m, n);
  // A batch that shares the right operand is one tall matrix: one product, and db needs no sum.
  const bool tall = b.rank() == 2 && a.rank() > 2;
  // An operand without a batch is shared; one that broadcasts partly is repeated in memory.
  auto stacked = [&](const Tensor& x, int64_t rows, int64_t columns) {
    const int64_t size = rows * columns;
    const Tensor full = x.numel() == size ? x : repeated(x, matrices(batch, rows, columns));
    return full.reshape({size > 0 ? full.numel() / size : batch.numel(), rows, columns});
  };
  const Tensor sa =
      tall ? a.detach().reshape({1, batch.numel() * m, k}) : stacked(a.detach(), m, k);
  const Tensor sb = tall ? b.detach().reshape({1, k, n}) : stacked(b.detach(), k, n);
  const Tensor y = batched_product(sa, false, sb, false).reshape(result);
  // dA = dY B^T, dB = A^T dY, summed over the batches that shared or repeated the operand.
  return record(
      op, y, {a, b},
      [=, va = Saved(sa), vb = Saved(sb), shape_a = a.shape(), shape_b = b.shape(),
       ga = a.requires_grad(), gb = b.requires_grad()](const Tensor& dy) {
        const Tensor d =
            tall ? dy.reshape({1, batch.numel() * m, n}) : dy.reshape({batch.numel(), m, n});
        Grads grads(2);
        if (ga) {
          grads[0] = unbroadcast(
              batched_product(d, false, vb.get(), true).reshape(matrices(batch, m, k)), shape_a);
        }
        if (gb) {
          const Tensor db = batched_product(va.get(), true, d, false);
          grads[1] =
              tall ? db.reshape(shape_b) : unbroadcast(db.reshape(matrices(batch, k, n)), shape_b);
        }
        return grads;
      });
}

// Of exactly these ranks, for which `expected` is the text.
Tensor product_of_ranks(const char* op, const Tensor& a, const Tensor& b, int rank_a, int rank_b,
                        const char* expected) {
  check_same(op, a, b);
  const bool fits = a.rank() == rank_a && b.rank() == rank_b &&
                    a.size(-1) == b.size(rank_b == 1 ? 0 : -2) &&
                    (rank_a < 3 || a.size(0) == b.size(0));
  require<ShapeError>(fits, op, ": expected ", expected, ", got ", a.shape(), " and ", b.shape());
  return matmul(a, b);
}

// beta x + alpha product.
Tensor add_product(const char* op, const Tensor& x, const Tensor& product,
                   const AddProductOptions& o) {
  check_same(op, x, product);
  require<ShapeError>(x.rank() <= product.rank() &&
                          broadcast_shape(op, x.shape(), product.shape()) == product.shape(),
                      op, ": expected an x that broadcasts to the product's shape ",
                      product.shape(), ", got ", x.shape());
  const Tensor y = [&] {
    const no_grad guard;
    const Tensor scaled = product * o.alpha;
    return o.beta == 0 ? scaled : add(scaled, x, o.beta);
  }();
  return record(op, y, {x, product},
                [o, shape = x.shape(), need_x = x.requires_grad(),
                 need_product = product.requires_grad()](const Tensor& dy) {
                  Grads grads(2);
                  if (need_x) grads[0] = times(unbroadcast(dy, shape), o.beta);
                  if (need_product) grads[1] = times(dy, o.alpha);
                  return grads;
                });
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  const char* op = "matmul";
  check_same(op, a, b);
  const bool row = a.rank() == 1, column = b.rank() == 1;
  if (a.rank() < 1 || b.rank() < 1 || a.size(-1) != b.size(column ? 0 : -2)) {
    throw ShapeError(str(op, ": expected (…, M, K) and (…, K, N), or vectors (K), got ", a.shape(),
                         " and ", b.shape()));
  }
  if (!row && !column) return matrix_product(op, a, b);
  const Tensor y = matrix_product(op, row ? a.reshape({1, a.size(0)}) : a,
                                  column ? b.reshape({b.size(0), 1}) : b);
  Shape shape;
  for (int d = 0; d < y.rank() - 2; ++d) shape.append(y.size(d));
  if (!row) shape.append(y.size(-2));
  if (!column) shape.append(y.size(-1));
  return y.reshape(shape);
}

Tensor mm(const Tensor& a, const Tensor& b) {
  return product_of_ranks("mm", a, b, 2, 2, "(M, K) and (K, N)");
}
Tensor bmm(const Tensor& a, const Tensor& b) {
  return product_of_ranks("bmm", a, b, 3, 3, "(B, M, K) and (B, K, N)");
}
Tensor mv(const Tensor& a, const Tensor& b) {
  return product_of_ranks("mv", a, b, 2, 1, "(M, K) and (K)");
}
Tensor dot(const Tensor& a, const Tensor& b) {
  return product_of_ranks("dot", a, b, 1, 1, "(K) and (K)");
}

Tensor addmm(const Tensor& x, const Tensor& a, const Tensor& b, const AddProductOptions& options) {
  return add_product(
      "addmm", x, product_of_ranks("addmm", a, b, 2, 2, "a product of (M, K) and (K, N)"), options);
}
Tensor baddbmm(const Tensor& x, const Tensor& a, const Tensor& b,
               const AddProductOptions& options) {
  return add_product(
      "baddbmm", x, product_of_ranks("baddbmm", a, b, 3, 3, "a product of (B, M, K) and (B, K, N)"),
      options);
}

}  // namespace sinter
