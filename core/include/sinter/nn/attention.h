// Layers of attention (Vaswani et al. 2017).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sinter/nn/dropout.h"
#include "sinter/nn/norm.h"

namespace sinter {

// Which keys a query sees. Of bools true leaves a key out, unlike attn_mask of
// scaled_dot_product_attention; numbers are added to the scores.
struct AttentionMasks {
  Tensor attn_mask = {};         // (L, S) or (N heads, L, S)
  Tensor key_padding_mask = {};  // (N, S), or (S) for one sequence
  bool is_causal = false;        // keys up to the query's own place, beside what the masks say
};

// scaled_dot_product_attention of num_heads parts of projections of query, key and value, and a
// projection of them all. Weights are not returned (need_weights = False).
class MultiheadAttention : public ModuleOf<MultiheadAttention, Module> {
 public:
  struct Options {
    double dropout = 0;  // of weights
    bool bias = true;
    std::optional<int> kdim = {}, vdim = {};  // none: embed_dim
    bool batch_first = false;
  };
  // ValueError unless num_heads divides embed_dim. Projections of the input are drawn as
  // xavier_uniform_ does (Glorot and Bengio 2010), that of the output as Linear's; biases are 0.
  MultiheadAttention(int embed_dim, int num_heads, const Options& options = default_options());
  Tensor forward(const Tensor& x) override { return forward(x, x, x); }
  // query: (L, N, embed_dim)  key: (S, N, kdim)  value: (S, N, vdim); or N first, with batch_first;
  // or without N. Returns query's shape.
  Tensor forward(const Tensor& query, const Tensor& key, const Tensor& value,
                 const AttentionMasks& masks = {});
  void visit(Visitor& v) override;

  // in_proj_weight (3 embed_dim, embed_dim), or three of (embed_dim, …) if dimensions differ.
  Tensor in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias;
  Linear out_proj;

 private:
  static Options default_options() { return {}; }
  int64_t embed_dim_, num_heads_;
  Options options_;
};

// Attention of a sequence to itself and two linear layers, each with dropout, an addition of what
// went in and a layer_norm: behind the addition, or in front of all with norm_first.
class TransformerEncoderLayer : public ModuleOf<TransformerEncoderLayer, Module> {
 public:
  struct Options {
    int dim_feedforward = 2048;
    double dropout = 0.1;
    std::string activation = "relu";  // or "gelu"
    double layer_norm_eps = 1e-5;
    bool batch_first = false;
    bool norm_first = false;
    bool bias = true;
  };
  // ValueError for another activation.
  TransformerEncoderLayer(int d_model, int nhead, const Options& options = default_options());
  Tensor forward(const Tensor& x) override { return forward(x, AttentionMasks()); }
  Tensor forward(const Tensor& x, const AttentionMasks& masks);
  void visit(Visitor& v) override;

  MultiheadAttention self_attn;
  Linear linear1;
  Dropout dropout;
  Linear linear2;
  LayerNorm norm1, norm2;
  Dropout dropout1, dropout2;

 private:
  static Options default_options() { return {}; }
  Tensor attend(const Tensor& x, const AttentionMasks& masks);
  Tensor feed_forward(const Tensor& x);
  bool norm_first_, gelu_;
};

// num_layers clones of a layer, one after another; and a norm behind them.
class TransformerEncoder : public ModuleOf<TransformerEncoder, Module> {
 public:
  TransformerEncoder(const TransformerEncoderLayer& layer, int num_layers,
                     const std::optional<LayerNorm>& norm = {});
  Tensor forward(const Tensor& x) override { return forward(x, AttentionMasks()); }
  Tensor forward(const Tensor& x, const AttentionMasks& masks);
  void visit(Visitor& v) override;

  std::vector<TransformerEncoderLayer> layers;
  std::optional<LayerNorm> norm;
};

}  // namespace sinter
