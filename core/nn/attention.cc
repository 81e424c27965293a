#include "sinter/nn/attention.h"

#include <cmath>
#include <limits>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/attention.h"
#include "sinter/random.h"

namespace sinter {
namespace {

constexpr const char* kName = "MultiheadAttention";

// Drawn as xavier_uniform_ does (Glorot and Bengio 2010).
Tensor projection(int64_t out, int64_t in) {
  const Tensor weight = empty({out, in});
  const double bound = std::sqrt(6 / static_cast<double>(in + out));
  uniform_(weight, -bound, bound);
  return weight.set_requires_grad();
}

// Rows [first, first + count) of a bias that may be missing.
Tensor part(const Tensor& x, int64_t first, int64_t count) {
  return x.defined() ? x.narrow(0, first, count) : Tensor();
}

// A mask whose bools leave out, as numbers to add, like x's.
Tensor added(const Tensor& mask, const Tensor& x) {
  if (mask.dtype() != kBool) return mask;
  return masked_fill(zeros(mask.shape(), x.options()), mask,
                     -std::numeric_limits<double>::infinity());
}

// Both masks, either of which may be missing, as scaled_dot_product_attention takes one.
Tensor joined(const Tensor& a, const Tensor& b, const Tensor& x) {
  if (a.defined() && b.defined()) {
    if (a.dtype() == kBool && b.dtype() == kBool) return logical_not(logical_or(a, b));
    return added(a, x) + added(b, x);
  }
  const Tensor& one = a.defined() ? a : b;
  return one.defined() && one.dtype() == kBool ? logical_not(one) : one;
}

}  // namespace

// ---- attention ----------------------------------------------------------------------------------

MultiheadAttention::MultiheadAttention(int embed_dim, int num_heads, const Options& options)
    : out_proj(std::max(embed_dim, 1), std::max(embed_dim, 1), options.bias),
      embed_dim_(embed_dim),
      num_heads_(num_heads),
      options_(options) {
  const int kdim = options.kdim.value_or(embed_dim), vdim = options.vdim.value_or(embed_dim);
  require<ValueError>(
      embed_dim >= 1 && num_heads >= 1 && embed_dim % num_heads == 0 && kdim >= 1 && vdim >= 1,
      kName, ": expected positive dimensions and a num_heads that divides embed_dim, got ",
      embed_dim, ", kdim ", kdim, ", vdim ", vdim, " and ", num_heads, " heads");
  require<ValueError>(options.dropout >= 0 && options.dropout <= 1, kName,
                      ": expected dropout in [0, 1], got ", options.dropout);
  if (kdim == embed_dim && vdim == embed_dim) {
    in_proj_weight = projection(3 * embed_dim, embed_dim);
  } else {
    q_proj_weight = projection(embed_dim, embed_dim);
    k_proj_weight = projection(embed_dim, kdim);
    v_proj_weight = projection(embed_dim, vdim);
  }
  if (!options.bias) return;
  in_proj_bias = zeros({3 * embed_dim}).set_requires_grad();
  out_proj.bias = zeros({embed_dim}).set_requires_grad();
}

Tensor MultiheadAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const AttentionMasks& masks) {
  const int64_t e = embed_dim_, h = num_heads_, d = e / h;
  const int64_t kdim = options_.kdim.value_or(static_cast<int>(e));
  const int64_t vdim = options_.vdim.value_or(static_cast<int>(e));
  const bool batched = query.defined() && query.rank() == 3;
  // Places of the length and of the batch; a sequence alone is a batch of one that comes first.
  const int length = batched && !options_.batch_first ? 0 : 1;
  const auto fits = [&](const Tensor& x, int64_t depth) {
    return x.defined() && x.rank() == query.rank() && x.size(-1) == depth;
  };
  const bool same = query.is(key) && query.is(value);
  bool right = query.defined() && (batched || query.rank() == 2) && fits(query, e) &&
               fits(key, kdim) && fits(value, vdim);
  if (right && batched) {
    right = key.size(1 - length) == query.size(1 - length) &&
            value.size(1 - length) == query.size(1 - length);
  }
  const int at = batched ? length : 0;
  require<ShapeError>(right && key.size(at) == value.size(at), kName, ": expected query ",
                      length == 0 ? "(L, N, " : "(N, L, ", e, "), key with S for L and ", kdim,
                      " features, and value with S and ", vdim, ", or all without N, got ",
                      ShapeOf{query}, ", ", ShapeOf{key}, " and ", ShapeOf{value});
  const int64_t n = batched ? query.size(1 - length) : 1;
  const int64_t l = query.size(at), s = key.size(at);

  // (N, heads, length, d) of projections (L, N, heads d), or with N first.
  const auto heads = [&](const Tensor& x, int64_t rows) {
    return length == 0 ? x.reshape({rows, n, h, d}).permute({1, 2, 0, 3})
                       : x.reshape({n, rows, h, d}).permute({0, 2, 1, 3});
  };
  Tensor q, k, v;
  if (same && in_proj_weight.defined()) {
    const Tensor all = linear(query, in_proj_weight, in_proj_bias);
    const Tensor parts = length == 0 ? all.reshape({l, n, 3, h, d}).permute({2, 1, 3, 0, 4})
                                     : all.reshape({n, l, 3, h, d}).permute({2, 0, 3, 1, 4});
    const auto one = [&](int64_t i) { return parts.narrow(0, i, 1).reshape({n, h, l, d}); };
    q = one(0);
    k = one(1);
    v = one(2);
  } else {
    const auto weight = [&](const Tensor& own, int64_t i) {
      return own.defined() ? own : in_proj_weight.narrow(0, i * e, e);
    };
    q = heads(linear(query, weight(q_proj_weight, 0), part(in_proj_bias, 0, e)), l);
    k = heads(linear(key, weight(k_proj_weight, 1), part(in_proj_bias, e, e)), s);
    v = heads(linear(value, weight(v_proj_weight, 2), part(in_proj_bias, 2 * e, e)), s);
  }

  AttentionOptions options;
  options.dropout_p = options_.dropout > 0 && is_training() ? options_.dropout : 0;
  options.is_causal = masks.is_causal;
  Tensor mask = masks.attn_mask, padding = masks.key_padding_mask;
  if (mask.defined()) {
    const bool by_head = mask.rank() == 3;
    require<ShapeError>(mask.shape() == (by_head ? Shape{n * h, l, s} : Shape{l, s}), kName,
                        ": expected attn_mask of shape ", Shape{l, s}, " or ", Shape{n * h, l, s},
                        ", got ", mask.shape());
    if (by_head) mask = mask.reshape({n, h, l, s});
  }
  if (padding.defined()) {
    require<ShapeError>(padding.shape() == (batched ? Shape{n, s} : Shape{s}), kName,
                        ": expected key_padding_mask of shape ", batched ? Shape{n, s} : Shape{s},
                        ", got ", padding.shape());
    padding = padding.reshape({n, 1, 1, s});
  }
  options.attn_mask = joined(mask, padding, q);

  const Tensor y = attention(q, k, v, options);
  const Tensor rows = length == 0 ? y.permute({2, 0, 1, 3}) : y.permute({0, 2, 1, 3});
  return out_proj(rows.reshape(query.shape()));
}

void MultiheadAttention::visit(Visitor& v) {
  v.parameter("in_proj_weight", in_proj_weight);
  v.parameter("q_proj_weight", q_proj_weight);
  v.parameter("k_proj_weight", k_proj_weight);
  v.parameter("v_proj_weight", v_proj_weight);
  v.parameter("in_proj_bias", in_proj_bias);
  v.module("out_proj", out_proj);
}

// ---- encoders -----------------------------------------------------------------------------------

TransformerEncoderLayer::TransformerEncoderLayer(int d_model, int nhead, const Options& options)
    : self_attn(
          d_model, nhead,
          {.dropout = options.dropout, .bias = options.bias, .batch_first = options.batch_first}),
      linear1(d_model, options.dim_feedforward, options.bias),
      dropout(options.dropout),
      linear2(options.dim_feedforward, d_model, options.bias),
      norm1(d_model, {.eps = options.layer_norm_eps, .bias = options.bias}),
      norm2(d_model, {.eps = options.layer_norm_eps, .bias = options.bias}),
      dropout1(options.dropout),
      dropout2(options.dropout),
      norm_first_(options.norm_first),
      gelu_(options.activation == "gelu") {
  require<ValueError>(gelu_ || options.activation == "relu",
                      "TransformerEncoderLayer: expected activation \"relu\" or \"gelu\", got \"",
                      options.activation, "\"");
}

Tensor TransformerEncoderLayer::attend(const Tensor& x, const AttentionMasks& masks) {
  return dropout1(self_attn(x, x, x, masks));
}

Tensor TransformerEncoderLayer::feed_forward(const Tensor& x) {
  const Tensor hidden = linear1(x);
  return dropout2(linear2(dropout(gelu_ ? gelu(hidden) : relu(hidden))));
}

Tensor TransformerEncoderLayer::forward(const Tensor& x, const AttentionMasks& masks) {
  if (norm_first_) {
    const Tensor y = x + attend(norm1(x), masks);
    return y + feed_forward(norm2(y));
  }
  const Tensor y = norm1(x + attend(x, masks));
  return norm2(y + feed_forward(y));
}

void TransformerEncoderLayer::visit(Visitor& v) {
  v.module("self_attn", self_attn);
  v.module("linear1", linear1);
  v.module("dropout", dropout);
  v.module("linear2", linear2);
  v.module("norm1", norm1);
  v.module("norm2", norm2);
  v.module("dropout1", dropout1);
  v.module("dropout2", dropout2);
}

TransformerEncoder::TransformerEncoder(const TransformerEncoderLayer& layer, int num_layers,
                                       const std::optional<LayerNorm>& norm)
    : norm(norm) {
  require<ValueError>(num_layers >= 0, "TransformerEncoder: expected num_layers >= 0, got ",
                      num_layers);
  for (int i = 0; i < num_layers; ++i) layers.push_back(clone(layer));
}

Tensor TransformerEncoder::forward(const Tensor& x, const AttentionMasks& masks) {
  Tensor y = x;
  for (TransformerEncoderLayer& layer : layers) y = layer(y, masks);
  return norm ? (*norm)(y) : y;
}

void TransformerEncoder::visit(Visitor& v) {
  for (size_t i = 0; i < layers.size(); ++i) v.module("layers." + std::to_string(i), layers[i]);
  if (norm) v.module("norm", *norm);
}

}  // namespace sinter
