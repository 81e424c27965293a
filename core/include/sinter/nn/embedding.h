// Rows of a table, looked up.
#pragma once

#include <optional>
#include <string>

#include "sinter/nn.h"

namespace sinter {

// embedding (ops/indexing.h) of indices. weight: (num_embeddings, embedding_dim), normal with mean
// 0 and deviation 1, and row padding_idx (negative from the end) 0. ValueError for one that is not
// there, or extents below 1.
class Embedding : public Module {
 public:
  Embedding(int64_t num_embeddings, int64_t embedding_dim, std::optional<int64_t> padding_idx = {});
  Tensor forward(const Tensor& index) override { return embedding(index, weight, padding_idx_); }
  void visit(Visitor& v) override;
  std::string extra_repr() const override;

  Tensor weight;

 private:
  std::optional<int64_t> padding_idx_;
};

}  // namespace sinter
