// Softmax. What ops.h says of all operators holds here.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// exp(x) / sum exp(x) over `dim` (negative from the end; a scalar has one), and its logarithm, both
// computed without overflow. A row of -inf alone, or with +inf or a NaN, is NaN.
Tensor softmax(const Tensor& x, int dim = -1);
Tensor log_softmax(const Tensor& x, int dim = -1);

}  // namespace sinter
