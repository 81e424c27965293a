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
    const Tensor full = x.numel() == size ? x : repeated(x, matrices(batch, rows, columns));
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
