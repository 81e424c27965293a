// Losses, and accuracy.
#include "sinter/operators/loss.h"

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/emit.h"
#include "sinter/operators/pointwise_loss.h"
#include "sinter/ops.h"

namespace sinter {

const char* name(Reduction reduction) {
  constexpr const char* kNames[] = {"mean", "sum", "none"};
  return kNames[static_cast<int>(reduction)];
}

const char* op::name(PointwiseLossKind kind) {
  constexpr const char* kNames[] = {"mse", "l1",     "smooth_l1", "huber",
                                    "bce", "kl_div", "kl_div_log"};
  return kNames[static_cast<int>(kind)];
}

namespace {

// ---- losses of labels ---------------------------------------------------------------------------

// Images of scores as the kernels see them: (n, classes, inner), and the shape of their labels.
struct Classes {
  int64_t n = 1, classes = 1, inner = 1;
  Shape labels;
};
Classes classes_of(const char* op, const Tensor& x) {
  require<ShapeError>(x.defined() && x.rank() >= 1 && x.size(x.rank() == 1 ? 0 : 1) > 0, op,
                      ": expected logits of shape (N, C), (C) or (N, C, …), C at least 1, got ",
                      ShapeOf{x});
  require_floating(op, x);
  Classes c;
  if (x.rank() == 1) {
    c.classes = x.size(0);
    return c;
  }
  c.n = x.size(0);
  c.classes = x.size(1);
  c.labels.append(c.n);
  for (int d = 2; d < x.rank(); ++d) {
    c.inner *= x.size(d);
    c.labels.append(x.size(d));
  }
  return c;
}

void check_labels(const char* op, const Tensor& logits, const Shape& expected,
                  const Tensor& labels) {
  require<ShapeError>(labels.defined() && labels.shape() == expected, op,
                      ": expected labels of shape ", expected, " for logits ", logits.shape(),
                      ", got ", ShapeOf{labels});
  require<DtypeError>(labels.dtype() == kInt64, op, ": expected int64 labels, got ", labels.dtype(),
                      "; convert with to(kInt64)");
  require<DeviceError>(labels.device() == logits.device(), op, ": expected labels on ",
                       logits.device(), ", the device of logits, got ", labels.device());
}

void check_weight(const char* op, const Tensor& logits, int64_t classes, const Tensor& weight) {
  if (!weight.defined()) return;
  require<ShapeError>(weight.shape() == Shape{classes}, op, ": expected weight of shape (", classes,
                      ",) for logits ", logits.shape(), ", got ", weight.shape());
  check_like(op, "weight", weight, logits);
}

Tensor reduced(const Tensor& terms, Reduction reduction) {
  switch (reduction) {
    case Reduction::kMean:
      return mean(terms);
    case Reduction::kSum:
      return sum(terms);
    case Reduction::kNone:
      break;
  }
  return terms;
}

// Cross-entropy with probabilities: -sum over the classes of q log_softmax(logits).
Tensor soft_cross_entropy(const Tensor& logits, const Tensor& target, const Classes& c,
                          const CrossEntropyOptions& options) {
  const char* op = "cross_entropy";
  check_like(op, "target", target, logits);
  require<ValueError>(options.ignore_index < 0, op,
                      ": expected no ignore_index beside a target of ", "probabilities, got ",
                      options.ignore_index);
  const int dim = logits.rank() == 1 ? 0 : 1;
  const double s = options.label_smoothing;
  Tensor q = s == 0 ? target : target * (1 - s) + s / static_cast<double>(c.classes);
  if (options.weight.defined()) {
    Shape along;
    for (int d = 0; d < logits.rank(); ++d) along.append(d == dim ? c.classes : 1);
    q = q * options.weight.reshape(along);
  }
  const Tensor terms = -sum(q * log_softmax(logits, dim), dim);
  return reduced(terms, options.reduction);
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options) {
  const char* op = "cross_entropy";
  const Classes c = classes_of(op, logits);
  require<ValueError>(options.label_smoothing >= 0 && options.label_smoothing <= 1, op,
                      ": expected label_smoothing in [0, 1], got ", options.label_smoothing);
  check_weight(op, logits, c.classes, options.weight);
  if (target.defined() && is_floating(target.dtype()) && target.shape() == logits.shape())
    return soft_cross_entropy(logits, target, c, options);
  check_labels(op, logits, c.labels, target);
  require<ValueError>(!options.weight.requires_grad(), op,
                      ": expected a weight that does not require grad");
  const op::CrossEntropyShape g{
      c.n, c.classes, c.inner, options.label_smoothing, options.reduction, options.ignore_index};
  // The gradient comes almost free with the loss; it is kept in place of the probabilities.
  const bool each = options.reduction == Reduction::kNone;
  const Tensor loss = empty(each ? c.labels : Shape{}, logits.options());
  const Tensor unit = recording({&logits}) ? empty(logits.shape(), logits.options()) : Tensor();
  emit(op::CrossEntropy{g, in(logits), in(target), in(options.weight), out(loss),
                        optional_out(unit)});
  return record(op, loss, {logits}, [unit, each](const Tensor& dy) {
    if (!each || unit.rank() == 1) return Grads{unit * dy};
    Shape along;  // dy without C, beside unit
    for (int d = 0; d < unit.rank(); ++d) along.append(d == 1 ? 1 : unit.size(d));
    return Grads{unit * dy.reshape(along)};
  });
}

Tensor nll_loss(const Tensor& log_p, const Tensor& labels, const NllLossOptions& options) {
  const char* op = "nll_loss";
  const Classes c = classes_of(op, log_p);
  check_labels(op, log_p, c.labels, labels);
  check_weight(op, log_p, c.classes, options.weight);
  require<ValueError>(!options.weight.requires_grad(), op,
                      ": expected a weight that does not require grad");
  const op::NllLossShape g{c.n, c.classes, c.inner, options.ignore_index};
  const Tensor terms = empty(c.labels, log_p.options()), of_label = empty_like(terms);
  emit(op::NllLossForward{g, in(log_p), in(labels), in(options.weight), out(terms), out(of_label)});
  const Tensor loss = record(
      op, terms, {log_p},
      [g, shape = log_p.shape(), sl = Saved(labels), sw = Saved(options.weight)](const Tensor& dy) {
        const Tensor dx = empty(shape, dy.options());
        emit(op::NllLossBackward{g, in(dy), in(sl.get()), in(sw.get()), out(dx)});
        return Grads{dx};
      });
  if (options.reduction != Reduction::kMean) return reduced(loss, options.reduction);
  return sum(loss) / sum(of_label);
}

// ---- losses element by element ------------------------------------------------------------------

namespace {

Tensor pointwise_loss(const char* op, op::PointwiseLossKind kind, const Tensor& x, const Tensor& t,
                      Reduction reduction, double beta = 1) {
  check_same(op, x, t);
  if (!(x.shape() == t.shape())) {
    const Shape shape = broadcast_shape(op, x.shape(), t.shape());
    const auto wide = [&](const Tensor& v) {
      return v.shape() == shape ? v : v + zeros(shape, v.options());
    };
    return pointwise_loss(op, kind, wide(x), wide(t), reduction, beta);
  }
  const Tensor loss = empty(reduction == Reduction::kNone ? x.shape() : Shape{}, x.options());
  emit(op::PointwiseLossForward{kind, beta, reduction, in(x), in(t), out(loss)});
  return record(op, loss, {x, t},
                [=, sx = Saved(x), st = Saved(t), need_x = x.requires_grad(),
                 need_t = t.requires_grad()](const Tensor& dy) {
                  const Tensor &x = sx.get(), &t = st.get();
                  Grads grads(2);
                  if (need_x) grads[0] = empty_like(x);
                  if (need_t) grads[1] = empty_like(t);
                  emit(op::PointwiseLossBackward{kind, beta, reduction, in(x), in(t), in(dy),
                                                 optional_out(grads[0]), optional_out(grads[1])});
                  return grads;
                });
}

}  // namespace

Tensor mse_loss(const Tensor& x, const Tensor& target, Reduction reduction) {
  return pointwise_loss("mse_loss", op::PointwiseLossKind::kMse, x, target, reduction);
}

Tensor l1_loss(const Tensor& x, const Tensor& target, Reduction reduction) {
  return pointwise_loss("l1_loss", op::PointwiseLossKind::kL1, x, target, reduction);
}

Tensor smooth_l1_loss(const Tensor& x, const Tensor& target, Reduction reduction, double beta) {
  require<ValueError>(beta >= 0, "smooth_l1_loss: expected beta of at least 0, got ", beta);
  return pointwise_loss("smooth_l1_loss", op::PointwiseLossKind::kSmoothL1, x, target, reduction,
                        beta);
}

Tensor huber_loss(const Tensor& x, const Tensor& target, Reduction reduction, double delta) {
  require<ValueError>(delta > 0, "huber_loss: expected delta above 0, got ", delta);
  return pointwise_loss("huber_loss", op::PointwiseLossKind::kHuber, x, target, reduction, delta);
}

Tensor binary_cross_entropy_with_logits(const Tensor& x, const Tensor& target,
                                        const BceWithLogitsOptions& options) {
  const char* op = "binary_cross_entropy_with_logits";
  check_same(op, x, target);
  require<ShapeError>(x.shape() == target.shape(), op, ": expected a target of x's shape ",
                      x.shape(), ", got ", target.shape());
  for (const auto& [what, weight] :
       {std::pair("weight", options.weight), std::pair("pos_weight", options.pos_weight)}) {
    if (!weight.defined()) continue;
    check_like(op, what, weight, x);
    require<ShapeError>(broadcast_shape(op, x.shape(), weight.shape()) == x.shape(), op,
                        ": expected ", what, " that broadcasts to x's shape ", x.shape(), ", got ",
                        weight.shape());
  }
  const auto bce = [&](const Tensor& t, Reduction reduction) {
    return pointwise_loss(op, op::PointwiseLossKind::kBce, x, t, reduction);
  };
  if (!options.weight.defined() && !options.pos_weight.defined())
    return bce(target, options.reduction);
  // With a target of 1 it is -log sigmoid(x), and with any other by (1 - target) x more.
  Tensor terms;
  if (options.pos_weight.defined())
    terms = (1.0 - target) * x +
            (1.0 + (options.pos_weight - 1.0) * target) * bce(ones_like(x), Reduction::kNone);
  else
    terms = bce(target, Reduction::kNone);
  if (options.weight.defined()) terms = terms * options.weight;
  return reduced(terms, options.reduction);
}

Tensor kl_div(const Tensor& x, const Tensor& target, const KlDivOptions& options) {
  const auto kind =
      options.log_target ? op::PointwiseLossKind::kKlDivLog : op::PointwiseLossKind::kKlDiv;
  if (!options.batchmean) return pointwise_loss("kl_div", kind, x, target, options.reduction);
  require<ShapeError>(x.defined() && x.rank() >= 1,
                      "kl_div: expected x of at least one dimension for batchmean, got ",
                      ShapeOf{x});
  return pointwise_loss("kl_div", kind, x, target, Reduction::kSum) *
         (1.0 / static_cast<double>(x.size(0)));
}

// ---- accuracy -----------------------------------------------------------------------------------

void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels) {
  const char* op = "add_correct";
  require<ShapeError>(logits.defined() && logits.rank() == 2 && logits.size(1) > 0, op,
                      ": expected logits of shape (N, C), got ", ShapeOf{logits});
  require_floating(op, logits);
  check_labels(op, logits, Shape{logits.size(0)}, labels);
  require<ShapeError>(count.defined() && count.numel() == 1, op,
                      ": expected a count of one element, got ", ShapeOf{count});
  require<DtypeError>(count.dtype() == kInt64, op, ": expected an int64 count, got ",
                      count.dtype());
  require<DeviceError>(count.device() == logits.device(), op, ": expected count on ",
                       logits.device(), ", the device of logits, got ", count.device());
  emit(op::CountCorrect{in(logits), in(labels), inout(count)});
}

}  // namespace sinter
