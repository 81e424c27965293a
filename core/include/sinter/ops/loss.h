// Losses and accuracy. What ops.h says of all operators holds here. Names, defaults and values are
// those of torch.nn.functional.
#pragma once

#include "sinter/reduction.h"
#include "sinter/tensor.h"

namespace sinter {

// With kMean a loss is divided by the number of its terms, or by the sum of their weights where
// `weight` weighs labels. Of no terms the mean is NaN, the sum 0.
struct CrossEntropyOptions {
  Reduction reduction = Reduction::kMean;
  double label_smoothing = 0;   // in [0, 1]: (1 - s) on the label, s / C on every class
  Tensor weight = {};           // of the classes: (C)
  int64_t ignore_index = -100;  // a label that counts as nothing
};
// Negative log-likelihood of the target under softmax(logits).
//   logits: (N, C), (C) or (N, C, d1, …), C at least 1
//   target: labels, int64, of the shape of logits without C; or probabilities, of logits' shape
// Returns a scalar, with kNone the terms, of the shape of labels.
// A label outside [0, C) that is not ignore_index: ValueError naming it; on a CUDA device it is
// thrown by the next call that waits for the device, and the loss is NaN until then. Probabilities
// have no labels to ignore: ValueError for an ignore_index of 0 or more; and their mean is over the
// positions, whatever the weights.
Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options = {});

struct NllLossOptions {
  Tensor weight = {};           // of the classes: (C)
  int64_t ignore_index = -100;  // a label that counts as nothing
  Reduction reduction = Reduction::kMean;
};
// -log_p[label]: with log_p = log_softmax(logits, 1) the cross-entropy. Shapes and errors as
// cross_entropy's with labels.
Tensor nll_loss(const Tensor& log_p, const Tensor& labels, const NllLossOptions& options = {});

// Of two tensors of shapes that broadcast. Each returns a scalar, with kNone the terms.
//   mse_loss        (x - target)^2
//   l1_loss         |x - target|; its gradient where they are equal is 0
//   smooth_l1_loss  d^2 / (2 beta) where d = |x - target| < beta, else d - beta / 2; beta >= 0
//   huber_loss      d^2 / 2 where d <= delta, else delta (d - delta / 2); delta > 0
Tensor mse_loss(const Tensor& x, const Tensor& target, Reduction reduction = Reduction::kMean);
Tensor l1_loss(const Tensor& x, const Tensor& target, Reduction reduction = Reduction::kMean);
Tensor smooth_l1_loss(const Tensor& x, const Tensor& target, Reduction reduction = Reduction::kMean,
                      double beta = 1);
Tensor huber_loss(const Tensor& x, const Tensor& target, Reduction reduction = Reduction::kMean,
                  double delta = 1);

struct BceWithLogitsOptions {
  Tensor weight = {};      // of the terms; broadcasts to x's shape
  Tensor pos_weight = {};  // of the part with target: log sigmoid(x); broadcasts to x's shape
  Reduction reduction = Reduction::kMean;
};
// -weight (pos_weight target log sigmoid(x) + (1 - target) log(1 - sigmoid(x))), without overflow.
//   x, target: of one shape. The mean is over the elements, whatever the weights.
Tensor binary_cross_entropy_with_logits(const Tensor& x, const Tensor& target,
                                        const BceWithLogitsOptions& options = {});

struct KlDivOptions {
  bool log_target = false;  // target holds log-probabilities
  Reduction reduction = Reduction::kMean;
  bool batchmean = false;  // instead of reduction: the sum divided by x's first extent
};
// Kullback-Leibler divergence of target from exp(x): target (log target - x), 0 where target is 0.
//   x: log-probabilities  target: probabilities; shapes that broadcast.
Tensor kl_div(const Tensor& x, const Tensor& target, const KlDivOptions& options = {});

// count += how many rows of logits (N, C) have their first maximum at the row's label. labels: (N),
// int64; count: one int64 on the same device. Not differentiable; does not wait for the device.
void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels);

}  // namespace sinter
