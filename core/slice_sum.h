// A gradient that is left as sums over slices of the batch: the optimizer adds them up on its way,
// which spares a small network's step a kernel between the two.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// The origin (Tensor::origin) of a tensor whose element i is the sum over s of
// slices[s][first + i].
struct SliceSum {
  Tensor slices;  // (S, n); nobody else's
  int64_t first = 0;

  // Makes `sum` that tensor, computed when somebody reads it.
  template <class T> void stand_for(const Tensor& sum) const;
};

}  // namespace sinter
