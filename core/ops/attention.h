// Attention, for modules.
#pragma once

#include "sinter/ops/attention.h"

namespace sinter {

// scaled_dot_product_attention, in which attn_mask and is_causal may both hold.
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options,
                 Generator& generator = default_generator());

}  // namespace sinter
