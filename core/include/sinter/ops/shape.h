// Parts of tensors, tensors made of parts, and what lies around them. Any dtype.
#pragma once

#include <string>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// Elements [start, start + length) along dimension `dim`; a negative start counts from the end.
// Shares storage along dimension 0, otherwise a copy.
Tensor narrow(const Tensor& x, int dim, int64_t start, int64_t length);
// Element `index` (negative from the end) along dimension `dim`, which the result has not. Shares
// storage along dimension 0, otherwise a copy.
Tensor select(const Tensor& x, int dim, int64_t index);
// In parts of `size` along a dimension, the last one smaller if they do not come out even; or in
// parts of `sizes`, which together are the extent.
std::vector<Tensor> split(const Tensor& x, int64_t size, int dim = 0);
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int dim = 0);
// In at most `chunks` parts of one size, rounded up, the last one smaller.
std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int dim = 0);

// One behind the other along a dimension, in which alone their shapes may differ; tensors of shape
// (0) are left out. All of one dtype. ValueError for an empty list.
Tensor cat(const std::vector<Tensor>& tensors, int dim = 0);
// Likewise along a new dimension (from -rank - 1 to rank), of tensors of one shape.
Tensor stack(const std::vector<Tensor>& tensors, int dim = 0);

// Repeated to `shape` as broadcasting does: extents of 1 become any, -1 keeps one, and there may be
// more dimensions in front. Shares storage if nothing is repeated, otherwise a copy.
Tensor expand(const Tensor& x, const Shape& shape);
// The other way round along some dimensions; a copy.
Tensor flip(const Tensor& x, const Dims& dims);

// With elements before and behind, for pairs (before, behind) from the last dimension on; negative
// ones crop. What they are: `value` ("constant"), the mirror image without the edge ("reflect"),
// the edge ("replicate") or the elements from the other end ("circular") (torch.nn.functional.pad).
// Reflect and circular cannot reach farther than x does: ShapeError.
Tensor pad(const Tensor& x, const std::vector<int64_t>& padding,
           const std::string& mode = "constant", double value = 0);

// The last two dimensions as matrices with zeros above the diagonal that begins at column
// `diagonal` of row 0, or below it.
Tensor tril(const Tensor& x, int64_t diagonal = 0);
Tensor triu(const Tensor& x, int64_t diagonal = 0);

}  // namespace sinter
