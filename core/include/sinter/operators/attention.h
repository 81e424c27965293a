// Scaled dot-product attention, whose scores are nowhere in memory: forward and backward compute
// them in tiles, from q, k and the logarithms of the softmax's sums (Dao et al. 2022,
// "FlashAttention").
#pragma once

#include "sinter/operators/dropout.h"
#include "sinter/operators/elementwise.h"
#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// q: (heads, l, e)  k: (heads / group, s, e)  v: (heads / group, s, ev)  y: (heads, l, ev)
//   y_i = sum over j of p_ij v_j, p_i = softmax over j of scale q_i . k_j + mask_ij
// Head h of q belongs to head h / group of k and v. A row without a key (s = 0, or all scores -inf)
// is 0. Any extent may be 0.
struct AttentionShape {
  int64_t heads = 0, group = 1, l = 0, s = 0, e = 0, ev = 0;
  double scale = 1;
  bool causal = false;  // key j is left out for queries before it: j > i
  // Where the mask of each head begins, and its steps from a query and a key to the next.
  Strided mask;
  int64_t mask_query = 0, mask_key = 0;
  // Dropout of p by the bits of item (head * l + i) * s + j of a draw: p * kept, or 0 where they
  // are below `threshold`.
  uint64_t threshold = 0;
  double kept = 1;
  bool tf32 = false;  // as GemmShape's
  bool operator==(const AttentionShape&) const = default;
  void each(auto&& f) const {
    f("heads", heads), f("group", group), f("l", l), f("s", s), f("e", e), f("ev", ev);
    f("scale", scale), f("causal", causal), f("mask", mask), f("mask_query", mask_query);
    f("mask_key", mask_key), f("threshold", threshold), f("kept", kept), f("tf32", tf32);
  }
};

// mask: q's dtype, added to the scores, or bool, where false leaves the key out; or absent. draw:
// int64 (2), of NextDraw, there if threshold > 0.
// log_sum (heads, l): log of the sum of exp(score); infinity for a row without a key, so that
// exp(score - log_sum) is 0.
struct AttentionForward {
  static constexpr const char* name = "attention_forward";
  AttentionShape g;
  In q, k, v, mask, draw;
  Out y, log_sum;
  void each(auto&& f) {
    f("g", g), f("q", q), f("k", k), f("v", v), f("mask", mask), f("draw", draw), f("y", y);
    f("log_sum", log_sum);
  }
};

// delta (heads, l) = sum over the last dimension of y dy: the sum of p_ij dp_ij over j, which
// softmax's gradient subtracts.
struct AttentionDelta {
  static constexpr const char* name = "attention_delta";
  In y, dy;
  Out delta;
  void each(auto&& f) { f("y", y), f("dy", dy), f("delta", delta); }
};

// With ds_ij = p_ij (dy_i . v_j - delta_i), for a mask too: dk_j = scale sum of ds_ij q_i and
// dv_j = sum of p_ij dy_i, over the queries of all heads that share the key's.
struct AttentionBackwardKeys {
  static constexpr const char* name = "attention_backward_keys";
  AttentionShape g;
  In q, k, v, mask, draw, log_sum, delta, dy;
  Out dk, dv;
  void each(auto&& f) {
    f("g", g), f("q", q), f("k", k), f("v", v), f("mask", mask), f("draw", draw);
    f("log_sum", log_sum), f("delta", delta), f("dy", dy), f("dk", dk), f("dv", dv);
  }
};

// dq_i = scale sum of ds_ij k_j, and ds (heads, l, s), the gradient of a mask of that shape.
struct AttentionBackwardQueries {
  static constexpr const char* name = "attention_backward_queries";
  AttentionShape g;
  In q, k, v, mask, draw, log_sum, delta, dy;
  Out dq;
  OptionalOut ds;
  void each(auto&& f) {
    f("g", g), f("q", q), f("k", k), f("v", v), f("mask", mask), f("draw", draw);
    f("log_sum", log_sum), f("delta", delta), f("dy", dy), f("dq", dq), f("ds", ds);
  }
};

// See work.h. What the backward pass computes anew does not count.
double flops(const AttentionForward& op);
double flops(const AttentionBackwardKeys& op);
double flops(const AttentionBackwardQueries& op);

}  // namespace op

// Where the mask of a head begins.
SINTER_HD inline int64_t mask_offset(const op::AttentionShape& g, int64_t head) {
  int64_t at = 0;
  for (int d = g.mask.rank - 1; d >= 0; --d) {
    at += head % g.mask.shape[d] * g.mask.stride[d];
    head /= g.mask.shape[d];
  }
  return at;
}

SINTER_OPERATOR(AttentionForward);
SINTER_OPERATOR(AttentionDelta);
SINTER_OPERATOR(AttentionBackwardKeys);
SINTER_OPERATOR(AttentionBackwardQueries);

}  // namespace sinter
