// The loss made of softmax, and accuracy.
#include "sinter/operators/loss.h"

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

void check_labels(const char* op, const Tensor& logits, const Tensor& labels) {
  require<ShapeError>(logits.defined() && logits.rank() == 2 && logits.size(1) > 0, op,
                      ": expected logits of shape (N, C), got ", ShapeOf{logits});
  require_floating(op, logits);
  require<ShapeError>(labels.defined() && labels.shape() == Shape{logits.size(0)}, op,
                      ": expected labels of shape (", logits.size(0), ",) for logits ",
                      logits.shape(), ", got ", ShapeOf{labels});
  require<DtypeError>(labels.dtype() == kInt64, op, ": expected int64 labels, got ", labels.dtype(),
                      "; convert with to(kInt64)");
  require<DeviceError>(labels.device() == logits.device(), op, ": expected labels on ",
                       logits.device(), ", the device of logits, got ", labels.device());
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& labels,
                     const CrossEntropyOptions& options) {
  check_labels("cross_entropy", logits, labels);
  require<ValueError>(options.label_smoothing >= 0 && options.label_smoothing <= 1,
                      "cross_entropy: expected label_smoothing in [0, 1], got ",
                      options.label_smoothing);
  const op::CrossEntropyShape g{logits.size(0), logits.size(1), options.label_smoothing,
                                options.reduction == Reduction::kMean};
  // The gradient comes almost free with the loss; it is kept in place of the probabilities.
  const Tensor loss = empty({}, logits.options());
  const Tensor unit = recording({&logits}) ? empty(logits.shape(), logits.options()) : Tensor();
  emit(op::CrossEntropy{g, in(logits), in(labels), out(loss), optional_out(unit)});
  return record("cross_entropy", loss, {logits},
                [unit](const Tensor& dy) { return Grads{unit * dy}; });
}

void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels) {
  check_labels("add_correct", logits, labels);
  require<ShapeError>(count.defined() && count.numel() == 1,
                      "add_correct: expected a count of one element, got ", ShapeOf{count});
  require<DtypeError>(count.dtype() == kInt64, "add_correct: expected an int64 count, got ",
                      count.dtype());
  require<DeviceError>(count.device() == logits.device(), "add_correct: expected count on ",
                       logits.device(), ", the device of logits, got ", count.device());
  emit(op::CountCorrect{in(logits), in(labels), inout(count)});
}

}  // namespace sinter
