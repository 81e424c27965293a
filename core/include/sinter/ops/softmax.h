// Softmax. What ops.h says of all operators holds here.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// log(exp(x) / sum exp(x)) over `dim`, computed without overflow.
Tensor log_softmax(const Tensor& x, int dim = -1);

}  // namespace sinter
