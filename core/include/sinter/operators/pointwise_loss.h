// Losses that compare two tensors element by element.
#pragma once

#include "sinter/operators/operator.h"
#include "sinter/reduction.h"

namespace sinter {
namespace op {

//   kMse        (x - t)^2
//   kL1         |x - t|
//   kSmoothL1   d^2 / (2 beta) where d = |x - t| < beta, else d - beta / 2
//   kHuber      d^2 / 2 where d = |x - t| <= beta, else beta (d - beta / 2)
//   kBce        (1 - t) x + log(1 + exp(-x)): binary cross-entropy of sigmoid(x)
//   kKlDiv      t (log t - x), 0 where t is 0: x are log-probabilities, t probabilities
//   kKlDivLog   exp(t) (t - x): t are log-probabilities too
enum class PointwiseLossKind { kMse, kL1, kSmoothL1, kHuber, kBce, kKlDiv, kKlDivLog };
const char* name(PointwiseLossKind kind);

// x, t: of one shape  loss: one element, with kNone of that shape. kMean divides by the number of
// elements.
struct PointwiseLossForward {
  static constexpr const char* name = "pointwise_loss_forward";
  PointwiseLossKind kind = PointwiseLossKind::kMse;
  double beta = 1;
  Reduction reduction = Reduction::kMean;
  In x, t;
  Out loss;
  void each(auto&& f) {
    f("kind", kind), f("beta", beta), f("reduction", reduction), f("x", x), f("t", t);
    f("loss", loss);
  }
};
// dloss: as loss. dx, dt: the gradients of x and t.
struct PointwiseLossBackward {
  static constexpr const char* name = "pointwise_loss_backward";
  PointwiseLossKind kind = PointwiseLossKind::kMse;
  double beta = 1;
  Reduction reduction = Reduction::kMean;
  In x, t, dloss;
  OptionalOut dx, dt;
  void each(auto&& f) {
    f("kind", kind), f("beta", beta), f("reduction", reduction), f("x", x), f("t", t);
    f("dloss", dloss), f("dx", dx), f("dt", dt);
  }
};

}  // namespace op

SINTER_OPERATOR(PointwiseLossForward);
SINTER_OPERATOR(PointwiseLossBackward);

}  // namespace sinter
