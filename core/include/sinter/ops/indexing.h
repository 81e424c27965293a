// Elements chosen by indices, int64 or int32, from 0 to the extent that they choose from: a
// ValueError otherwise, of a CUDA device's at its next synchronization.
#pragma once

#include <optional>

#include "sinter/tensor.h"

namespace sinter {

// y[i, j, …] = x[i, j, …] with index[i, j, …] in the place of the coordinate along dimension `dim`.
// index: of x's rank and, in the other dimensions, at most its extents; a scalar counts as one
// dimension of one element. Any dtype.
Tensor gather(const Tensor& x, int dim, const Tensor& index);
// Those elements along dimension `dim`. index: (k) or a scalar. Any dtype.
Tensor index_select(const Tensor& x, int dim, const Tensor& index);
// Rows of weight (n, …), in index's shape (torch.nn.functional.embedding). Row padding_idx
// (negative from the end) gets no gradient.
Tensor embedding(const Tensor& index, const Tensor& weight,
                 std::optional<int64_t> padding_idx = {});
// int64, index's shape and a dimension of num_classes behind it: 1 at the index, else 0. -1
// classes: one more than the largest index, for which it waits for the device.
Tensor one_hot(const Tensor& index, int64_t num_classes = -1);

}  // namespace sinter
