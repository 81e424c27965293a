#include "sinter/nn/embedding.h"

#include "core/base/detail.h"
#include "sinter/random.h"

namespace sinter {

Embedding::Embedding(int64_t num_embeddings, int64_t embedding_dim,
                     std::optional<int64_t> padding_idx)
    : padding_idx_(padding_idx) {
  require<ValueError>(num_embeddings >= 1 && embedding_dim >= 1,
                      "Embedding: expected positive extents, got ", num_embeddings, " and ",
                      embedding_dim);
  require<ValueError>(
      !padding_idx || (-num_embeddings <= *padding_idx && *padding_idx < num_embeddings),
      "Embedding: expected padding_idx to be one of ", num_embeddings, " rows, got ",
      padding_idx.value_or(0));
  if (padding_idx_ && *padding_idx_ < 0) *padding_idx_ += num_embeddings;
  const no_grad guard;
  weight = empty({num_embeddings, embedding_dim});
  normal_(weight, 0, 1);
  if (padding_idx_) weight.select(0, *padding_idx_).fill_(0);
  weight.set_requires_grad();
}

void Embedding::visit(Visitor& v) { v.parameter("weight", weight); }

std::string Embedding::extra_repr() const {
  std::string text = str(weight.size(0), ", ", weight.size(1));
  if (padding_idx_) text += str(", padding_idx=", *padding_idx_);
  return text;
}

}  // namespace sinter
