// Attention.
#include "core/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/operators/attention.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention";

// The dimensions before the last `count`.
Shape leading(const Shape& shape, int count) {
  Shape result;
  for (int d = 0; d < shape.rank() - count; ++d) result.append(shape[d]);
  return result;
}

Shape joined(const Shape& lead, std::initializer_list<int64_t> rest) {
  Shape result = lead;
  for (const int64_t extent : rest) result.append(extent);
  result.numel(kOp);  // throws if nobody can count them
  return result;
}

void check_arguments(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& o) {
  require_defined(kOp, "q", q);
  require_defined(kOp, "k", k);
  require_defined(kOp, "v", v);
  require_floating(kOp, q);
  check_like(kOp, "k", k, q);
  check_like(kOp, "v", v, q);
  const int least = o.enable_gqa ? 3 : 2;
  require<ShapeError>(q.rank() >= least && k.rank() >= least && v.rank() >= least &&
                          q.size(-1) == k.size(-1) && k.size(-2) == v.size(-2),
                      kOp, ": expected q (…, L, E), k (…, S, E) and v (…, S, Ev)",
                      o.enable_gqa ? ", with heads before the last two dimensions" : "", ", got ",
                      q.shape(), ", ", k.shape(), " and ", v.shape());
  require<ValueError>(o.dropout_p >= 0 && o.dropout_p <= 1, kOp,
                      ": expected dropout_p in [0, 1], got ", o.dropout_p);
  if (!o.attn_mask.defined()) return;
  require<DtypeError>(o.attn_mask.dtype() == kBool || o.attn_mask.dtype() == q.dtype(), kOp,
                      ": expected attn_mask of dtype bool or q's ", q.dtype(), ", got ",
                      o.attn_mask.dtype());
  require<DeviceError>(o.attn_mask.device() == q.device(), kOp,
                       ": expected attn_mask on q's device ", q.device(), ", got ",
                       o.attn_mask.device(), "; move with to()");
}

// How many heads of q share one of k, or of v.
int64_t sharing(const Tensor& q, const Tensor& x) {
  const int64_t heads = q.size(-3), own = x.size(-3);
  require<ShapeError>(own > 0 ? heads % own == 0 : heads == 0, kOp,
                      ": expected a number of heads that divides q's, got ", x.shape(), " for q ",
                      q.shape());
  return own > 0 ? heads / own : 1;
}

// Each of the x.size(-3) heads `times` times, beside each other.
Tensor repeated_heads(const Tensor& x, int64_t times) {
  if (times == 1) return x;
  const Shape lead = leading(x.shape(), 2);
  const int64_t rows = x.size(-2), columns = x.size(-1);
  return repeated(x.reshape(joined(lead, {1, rows, columns})), joined(lead, {times, rows, columns}))
      .reshape(joined(leading(x.shape(), 3), {lead[-1] * times, rows, columns}));
}
// The gradient of repeated_heads.
Tensor shared_heads(const Tensor& dx, int64_t times) {
  if (times == 1) return dx;
  const Shape lead = leading(dx.shape(), 3);
  const int64_t heads = dx.size(-3) / times, rows = dx.size(-2), columns = dx.size(-1);
  return unbroadcast(dx.reshape(joined(lead, {heads, times, rows, columns})),
                     joined(lead, {heads, 1, rows, columns}))
      .reshape(joined(lead, {heads, rows, columns}));
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options, Generator& generator) {
  require<ValueError>(!options.is_causal || !options.attn_mask.defined(), kOp,
                      ": expected either attn_mask or is_causal, got both");
  return attention(q, k, v, options, generator);
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& o,
                 Generator& generator) {
  check_arguments(q, k, v, o);
  op::AttentionShape g;
  g.l = q.size(-2);
  g.s = k.size(-2);
  g.e = q.size(-1);
  g.ev = v.size(-1);
  // Of scores that are sums of nothing any scale will do.
  g.scale = o.scale ? *o.scale : g.e > 0 ? 1 / std::sqrt(static_cast<double>(g.e)) : 1;
  g.causal = o.is_causal;
  g.tf32 = allow_tf32();

  // Kernels know heads in a row, and how many of q's share one of k and v. An operand that
  // broadcasts otherwise is repeated in memory.
  const int64_t group_k = o.enable_gqa ? sharing(q, k) : 1;
  const int64_t group_v = o.enable_gqa ? sharing(q, v) : 1;
  g.group = std::min(group_k, group_v);
  require<ShapeError>(group_k % g.group == 0 && group_v % g.group == 0, kOp,
                      ": expected heads of k and v of which one number divides the other, got ",
                      k.shape(), " and ", v.shape());
  const Tensor k_heads = repeated_heads(k.detach(), group_k / g.group);
  const Tensor v_heads = repeated_heads(v.detach(), group_v / g.group);
  const int own = o.enable_gqa ? 3 : 2;  // dimensions that do not broadcast
  const Shape batch = broadcast_shape(kOp, leading(q.shape(), own),
                                      broadcast_shape(kOp, k_heads.shape(), v_heads.shape(), own));
  const Shape lead = o.enable_gqa ? joined(batch, {q.size(-3)}) : batch;
  const Shape lead_kv = o.enable_gqa ? joined(batch, {k_heads.size(-3)}) : batch;
  const Shape q_shape = joined(lead, {g.l, g.e}), y_shape = joined(lead, {g.l, g.ev});
  const Shape k_shape = joined(lead_kv, {g.s, g.e}), v_shape = joined(lead_kv, {g.s, g.ev});
  const Shape scores = joined(lead, {g.l, g.s});
  g.heads = lead.numel(kOp);
  const Tensor sq = repeated(q.detach(), q_shape), sk = repeated(k_heads, k_shape);
  const Tensor sv = repeated(v_heads, v_shape);

  const Tensor& mask = o.attn_mask;
  if (mask.defined()) {
    bool fits = mask.rank() <= scores.rank();
    for (int d = 1; fits && d <= mask.rank(); ++d)
      fits = mask.size(-d) == 1 || mask.size(-d) == scores[-d];
    require<ShapeError>(fits, kOp, ": expected attn_mask that broadcasts to ", scores, ", got ",
                        mask.shape());
    int64_t stride[kMaxRank];
    broadcast_strides(mask.shape(), scores, stride);
    g.mask = strided(lead, stride);
    g.mask_query = stride[lead.rank()];
    g.mask_key = stride[lead.rank() + 1];
  }
  Tensor draw;
  if (o.dropout_p > 0) {
    draw = empty({2}, {kInt64, q.device()});
    emit(op::NextDraw{inout(generator.device_state(q.device())), out(draw)});
    g.threshold = static_cast<uint64_t>(std::llround(o.dropout_p * 0x1p32));
    g.kept = o.dropout_p < 1 ? 1 / (1 - o.dropout_p) : 0;
  }

  const Tensor y = empty(y_shape, q.options()), log_sum = empty(joined(lead, {g.l}), q.options());
  const Tensor mask_values = mask.defined() ? mask.detach() : Tensor();
  emit(op::AttentionForward{g, in(sq), in(sk), in(sv), in(mask_values), in(draw), out(y),
                            out(log_sum)});
  return record(
      kOp, y, {q, k, v, mask},
      [=, vq = Saved(sq), vk = Saved(sk), vv = Saved(sv), vm = Saved(mask_values), vd = Saved(draw),
       vy = Saved(y), v_log_sum = Saved(log_sum), shape_q = q.shape(), heads_k = k_heads.shape(),
       heads_v = v_heads.shape(), need_q = q.requires_grad(), need_k = k.requires_grad(),
       need_v = v.requires_grad(), need_mask = mask.requires_grad(),
       mask_shape = mask.defined() ? mask.shape() : Shape()](const Tensor& dy) {
        const Tensor &q = vq.get(), &k = vk.get(), &v = vv.get(), &log_sum = v_log_sum.get();
        const Tensor &mask = vm.get(), &draw = vd.get();
        const Tensor delta = empty(log_sum.shape(), dy.options());
        emit(op::AttentionDelta{in(vy.get()), in(dy), out(delta)});
        Grads grads(4);
        if (need_q || need_mask) {
          const Tensor dq = empty(q.shape(), dy.options());
          const Tensor ds = need_mask ? empty(scores, dy.options()) : Tensor();
          emit(op::AttentionBackwardQueries{g, in(q), in(k), in(v), in(mask), in(draw), in(log_sum),
                                            in(delta), in(dy), out(dq), optional_out(ds)});
          if (need_q) grads[0] = unbroadcast(dq, shape_q);
          if (need_mask) grads[3] = unbroadcast(ds, mask_shape);
        }
        if (need_k || need_v) {
          const Tensor dk = empty(k.shape(), dy.options()), dv = empty(v.shape(), dy.options());
          emit(op::AttentionBackwardKeys{g, in(q), in(k), in(v), in(mask), in(draw), in(log_sum),
                                         in(delta), in(dy), out(dk), out(dv)});
          if (need_k) grads[1] = shared_heads(unbroadcast(dk, heads_k), group_k / g.group);
          if (need_v) grads[2] = shared_heads(unbroadcast(dv, heads_v), group_v / g.group);
        }
        return grads;
      });
}

}  // namespace sinter
