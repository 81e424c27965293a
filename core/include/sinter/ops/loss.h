// Losses and accuracy. What ops.h says of all operators holds here.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

enum class Reduction { kMean, kSum };
struct CrossEntropyOptions {
  Reduction reduction = Reduction::kMean;
  double label_smoothing = 0;  // in [0, 1]: (1 - s) on the label, s / C on every class
};
// Negative log-likelihood of the labels under softmax(logits) (torch.nn.functional.cross_entropy).
//   logits: (N, C), C at least 1  labels: (N), int64. Returns a scalar; for N = 0 the mean is NaN,
//   the sum 0.
// A label outside [0, C): ValueError naming it; on a CUDA device it is thrown by the next call that
// waits for the device, and the loss is NaN until then.
Tensor cross_entropy(const Tensor& logits, const Tensor& labels,
                     const CrossEntropyOptions& options = {});

// count += how many rows of logits (N, C) have their first maximum at the row's label. labels: (N),
// int64; count: one int64 on the same device. Not differentiable; does not wait for the device.
void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels);

}  // namespace sinter
