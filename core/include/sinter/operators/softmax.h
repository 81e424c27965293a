// Softmax, the loss made of it, and accuracy.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// x, y: (outer, classes, inner), normalized over the middle dimension. float terms of a row's sum
// are added in blocks, and the blocks in double.
struct SoftmaxShape {
  int64_t outer = 0, classes = 0, inner = 0;
  bool operator==(const SoftmaxShape&) const = default;
  void each(auto&& f) const { f("outer", outer), f("classes", classes), f("inner", inner); }
};
struct LogSoftmaxForward {
  static constexpr const char* name = "log_softmax_forward";
  SoftmaxShape g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};
// dx = dy - exp(y) * (sum of dy over the classes).
struct LogSoftmaxBackward {
  static constexpr const char* name = "log_softmax_backward";
  SoftmaxShape g;
  In y, dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("y", y), f("dy", dy), f("dx", dx); }
};

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

SINTER_OPERATOR(LogSoftmaxForward);
SINTER_OPERATOR(LogSoftmaxBackward);
SINTER_OPERATOR(CrossEntropy);
SINTER_OPERATOR(CountCorrect);

}  // namespace sinter
