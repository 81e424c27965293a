// Reductions. What ops.h says of all operators holds here.
//
// Over `dims` (negative from the end; empty: all of them), or one dimension `dim`. keepdim leaves
// extents of 1 in their place. A scalar has a dimension 0, of one element. ShapeError for a
// dimension that is not there or given twice.
#pragma once

#include <cstdint>
#include <optional>

#include "sinter/tensor.h"

namespace sinter {

// float32 sums are right to some units in the last place, however long. The sum of nothing is 0,
// its mean NaN. sum takes integers too: the result is int64, modulo 2^64.
Tensor sum(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
Tensor mean(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
// The product; of nothing, 1. Of integers: int64, modulo 2^64.
Tensor prod(const Tensor& x, const Dims& dims = {}, bool keepdim = false);

struct VarOptions {
  double correction = 1;  // the divisor is max(0, terms - correction)
  bool keepdim = false;
};
struct VarMean {
  Tensor var, mean;
};
struct StdMean {
  Tensor std, mean;
};
// Variance and standard deviation. Of one element with correction 1: NaN. The gradient of std is 0
// where std is.
Tensor var(const Tensor& x, const Dims& dims = {}, const VarOptions& options = {});
Tensor std(const Tensor& x, const Dims& dims = {}, const VarOptions& options = {});
VarMean var_mean(const Tensor& x, const Dims& dims = {}, const VarOptions& options = {});
StdMean std_mean(const Tensor& x, const Dims& dims = {}, const VarOptions& options = {});

struct ValuesIndices {
  Tensor values, indices;  // indices: int64, along the dimension
};
// The largest or smallest element; a NaN counts as both. Any dtype; ShapeError if there is none.
//   Over everything, and of amax and amin: the gradient is divided evenly among equal elements; of
//   amax and amin it is NaN where the result is.
//   max and min over a dimension: the first of equal elements, which takes the gradient.
Tensor max(const Tensor& x);
Tensor min(const Tensor& x);
ValuesIndices max(const Tensor& x, int dim, bool keepdim = false);
ValuesIndices min(const Tensor& x, int dim, bool keepdim = false);
Tensor amax(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
Tensor amin(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
// Where the first of the largest or smallest elements is, int64: along `dim`, or, without one, in
// the row-major order of all elements.
Tensor argmax(const Tensor& x, std::optional<int> dim = {}, bool keepdim = false);
Tensor argmin(const Tensor& x, std::optional<int> dim = {}, bool keepdim = false);

// (sum of |x|^p)^(1/p): torch.linalg.vector_norm. p = 0 counts elements other than 0, p = inf is
// the largest |x|, p = -inf the smallest. Of nothing: 0; ShapeError for p < 0 and p = inf. The
// gradient is 0 where the norm is, or the element; for infinite p it is divided evenly among equal
// elements.
Tensor norm(const Tensor& x, double p = 2, const Dims& dims = {}, bool keepdim = false);
// log(sum(exp(x))) without overflow; of nothing, or of -inf alone, -inf.
Tensor logsumexp(const Tensor& x, const Dims& dims = {}, bool keepdim = false);

// Whether all elements are other than 0, or any is; a NaN is. Any dtype; the result is bool, of
// uint8 uint8.
Tensor all(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
Tensor any(const Tensor& x, const Dims& dims = {}, bool keepdim = false);

// y[i] = x[0] + … + x[i] along `dim`. Of integers: int64, modulo 2^64.
Tensor cumsum(const Tensor& x, int dim);

// The k largest (or smallest) elements along `dim` and where they were, in descending (ascending)
// order whatever `sorted` says; of equal ones the lower index first. A NaN counts as larger than
// every number. Any dtype. ShapeError unless 0 <= k <= the extent.
ValuesIndices topk(const Tensor& x, int64_t k, int dim = -1, bool largest = true,
                   bool sorted = true);
// All of them: stable in both directions.
ValuesIndices sort(const Tensor& x, int dim = -1, bool descending = false);
Tensor argsort(const Tensor& x, int dim = -1, bool descending = false);

}  // namespace sinter
