// Losses, and accuracy.
#pragma once

#include "sinter/operators/operator.h"
#include "sinter/reduction.h"

namespace sinter {
namespace op {

// logits, dlogits: (n, classes, inner)  labels: (n, inner), int64  weight: (classes), optional
// loss: one element, with kNone (n, inner).
//   q_k = weight_k ((1 - label_smoothing) [k == label] + label_smoothing / classes)
//   loss = -sum over k of q_k log_softmax(logits)_k, summed over n and inner unless kNone, and with
//   kMean divided by the sum of weight[label], which is their number where there are no weights.
//   dlogits: the gradient of the loss, with kNone of the sum of all.
// A label that is ignore_index counts as nothing: neither in the loss nor in what it is divided by.
// Any other outside [0, classes): Cpu throws ValueError; Cuda records a fault that the next
// synchronization throws (runtime.h), and the loss is NaN.
struct CrossEntropyShape {
  int64_t n = 0, classes = 0, inner = 1;
  double label_smoothing = 0;
  Reduction reduction = Reduction::kMean;
  int64_t ignore_index = -100;
  bool operator==(const CrossEntropyShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("classes", classes), f("inner", inner), f("label_smoothing", label_smoothing);
    f("reduction", reduction), f("ignore_index", ignore_index);
  }
};
struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  CrossEntropyShape g;
  In logits, labels, weight;
  Out loss;
  OptionalOut dlogits;
  void each(auto&& f) {
    f("g", g), f("logits", logits), f("labels", labels), f("weight", weight), f("loss", loss);
    f("dlogits", dlogits);
  }
};

// log_p, dlog_p: (n, classes, inner)  labels: (n, inner), int64  weight: (classes), optional
// loss, of_label, dloss: (n, inner).
//   loss = -weight[label] log_p[label], of_label = weight[label]; both 0 where label is
//   ignore_index. A label out of range: as CrossEntropy's.
struct NllLossShape {
  int64_t n = 0, classes = 0, inner = 1, ignore_index = -100;
  bool operator==(const NllLossShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("classes", classes), f("inner", inner), f("ignore_index", ignore_index);
  }
};
struct NllLossForward {
  static constexpr const char* name = "nll_loss_forward";
  NllLossShape g;
  In log_p, labels, weight;
  Out loss, of_label;
  void each(auto&& f) {
    f("g", g), f("log_p", log_p), f("labels", labels), f("weight", weight), f("loss", loss);
    f("of_label", of_label);
  }
};
struct NllLossBackward {
  static constexpr const char* name = "nll_loss_backward";
  NllLossShape g;
  In dloss, labels, weight;
  Out dlog_p;
  void each(auto&& f) {
    f("g", g), f("dloss", dloss), f("labels", labels), f("weight", weight), f("dlog_p", dlog_p);
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
SINTER_OPERATOR(NllLossForward);
SINTER_OPERATOR(NllLossBackward);
SINTER_OPERATOR(CountCorrect);

}  // namespace sinter
