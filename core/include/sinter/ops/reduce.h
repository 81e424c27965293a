// Reductions. What ops.h says of all operators holds here.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// Over `dims` (negative from the end; empty: all of them). keepdim leaves extents of 1 in their
// place. float32 sums are right to some units in the last place, however long. The sum of nothing
// is 0, its mean NaN.
Tensor sum(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
Tensor mean(const Tensor& x, const Dims& dims = {}, bool keepdim = false);

}  // namespace sinter
