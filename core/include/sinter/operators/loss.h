// The loss made of softmax, and accuracy.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// logits, dlogits: (n, classes)  labels: (n), int64  loss: one element.
//   q_k = (1 - label_smoothing) [k == label] + label_smoothing / classes
//   loss = -sum over n and k of q_k log_softmax(logits)_k, divided by n when `mean`
//   dlogits = softmax(logits) - q, likewise: the gradient of the loss.
// A label outside [0, classes): Cpu throws ValueError; Cuda records a fault that the next
// synchronization throws (runtime.h), and the loss is NaN.
struct CrossEntropyShape {
  int64_t n = 0, classes = 0;
  double label_smoothing = 0;
  bool mean = true;
  bool operator==(const CrossEntropyShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("classes", classes), f("label_smoothing", label_smoothing), f("mean", mean);
  }
};
struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  CrossEntropyShape g;
  In logits, labels;
  Out loss;
  OptionalOut dlogits;
  void each(auto&& f) {
    f("g", g), f("logits", logits), f("labels", labels), f("loss", loss), f("dlogits", dlogits);
  }
};

// correct (one int64) += rows of logits (n, classes) whose first maximum stands at the row's label
// (int64); a NaN counts as the maximum.
struct CountCorrect {
  static constexpr const char* name = "count_correct";
  In logits, labels;
  InOut correct;
  void each(auto&& f) { f("logits", logits), f("labels", labels), f("correct", correct); }
};

}  // namespace op

SINTER_OPERATOR(CrossEntropy);
SINTER_OPERATOR(CountCorrect);

}  // namespace sinter
