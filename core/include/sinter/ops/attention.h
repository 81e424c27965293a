// Attention. What ops.h says of all operators holds here.
#pragma once

#include <optional>

#include "sinter/random.h"
#include "sinter/tensor.h"

namespace sinter {

struct AttentionOptions {
  // (…, L, S), or what broadcasts to it: a bool is whether the query may see the key, a number of
  // q's dtype is added to the score.
  Tensor attn_mask = {};
  double dropout_p = 0;    // of the weights, as dropout's; whether training or not
  bool is_causal = false;  // query i sees keys 0 … i, whatever L and S; no attn_mask then
  std::optional<double> scale = {};  // of scores; none: 1 / sqrt(E)
  // The third dimension from the end, heads, may be smaller in k and v: neighbouring heads of q,
  // as many as the ratio says, share one (Ainslie et al. 2023).
  bool enable_gqa = false;
};
// softmax(scale q k^T + mask) v (Vaswani et al. 2017).
//   q: (…, L, E)  k: (…, S, E)  v: (…, S, Ev). Returns (…, L, Ev). The dimensions before these
// broadcast.
// A query that sees no key gets zeros, and gives no gradient. Weights and scores are never in
// memory as a whole, in the backward pass neither (Dao et al. 2022): it takes memory for one number
// a query, or, for the gradient of a mask, for one a score. ValueError unless 0 <= dropout_p <= 1.
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options = {},
                                    Generator& generator = default_generator());

}  // namespace sinter
