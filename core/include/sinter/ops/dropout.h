// Dropout.
#pragma once

#include "sinter/random.h"

namespace sinter {

// Each element is 0 with probability p, else divided by 1 - p (Hinton et al. 2012;
// torch.nn.functional.dropout). x itself where not training or p = 0; all 0 for p = 1. As in
// PyTorch what is dropped is multiplied by 0, so a NaN stays one. p is met to 2^-32.
//   The mask is a function of the generator's seed and of its draws on x's device so far
// (Generator::draws), of which this is one: the same on every device, eagerly and compiled, and a
// new one at every call of a compiled function. ValueError unless 0 <= p <= 1.
Tensor dropout(const Tensor& x, double p = 0.5, bool training = true,
               Generator& generator = default_generator());
// Whole channels, of (N, C, L) or (C, L).
Tensor dropout1d(const Tensor& x, double p = 0.5, bool training = true,
                 Generator& generator = default_generator());
// Whole channels, of (N, C, H, W); of (N, C, L) too, as in PyTorch.
Tensor dropout2d(const Tensor& x, double p = 0.5, bool training = true,
                 Generator& generator = default_generator());

}  // namespace sinter
