// Chains of linear layers with ReLU between them.
#pragma once

#include "sinter/operators/loss.h"

namespace sinter {
namespace op {

// Linear layers one after another, a ReLU behind each but the last (and behind that one too with
// relu_last): h_0 = x, h_l = act_l(h_{l-1} w_l^T + b_l).
inline constexpr int kMaxMlpLayers = 8;
struct MlpShape {
  int64_t n = 0;
  int layers = 0;
  int64_t width[kMaxMlpLayers + 1] = {};  // w_l: (width[l], width[l - 1]), l = 1 .. layers
  bool relu_last = false;
  bool operator==(const MlpShape&) const = default;
  void each(auto&& f) const { f("n", n), f("width", width, layers + 1), f("relu_last", relu_last); }
};
// w[l - 1], b[l - 1], y[l - 1]: w_l, b_l (optional) and h_l.
struct MlpForward {
  static constexpr const char* name = "mlp_forward";
  MlpShape g;
  In x;
  std::vector<In> w, b;
  std::vector<Out> y;
  void each(auto&& f) { f("g", g), f("x", x), f("w", w), f("b", b), f("y", y); }
};
// dz[l - 1]: the gradient of layer l's result before its ReLU, of the layers that have one here;
// dx that of x, optional, and only if all have one. It starts from dy, the gradient of the last
// layer's result before its ReLU, which has no dz of its own then; or, where mlp_starts_from_loss,
// with dy absent, from what cross_entropy computed its loss of, h_layers being the logits.
struct MlpBackwardChain {
  static constexpr const char* name = "mlp_backward_chain";
  MlpShape g;
  CrossEntropyShape loss;
  In dy, logits, labels;
  std::vector<In> w, y;
  std::vector<Out> dz;
  OptionalOut dx;
  void each(auto&& f) {
    f("g", g), f("loss", loss), f("dy", dy), f("logits", logits), f("labels", labels);
    f("w", w), f("y", y), f("dz", dz), f("dx", dx);
  }
};
// dw[l - 1] = dz_l^T h_{l-1}, db[l - 1] = column sums of dz_l.
struct MlpBackwardWeights {
  static constexpr const char* name = "mlp_backward_weights";
  MlpShape g;
  In x;
  std::vector<In> y, dz;
  std::vector<OptionalOut> dw, db;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y), f("dz", dz), f("dw", dw), f("db", db); }
};

// See work.h.
double flops(const MlpForward& op);
double flops(const MlpBackwardChain& op);
double flops(const MlpBackwardWeights& op);

}  // namespace op

SINTER_OPERATOR(MlpForward);
SINTER_OPERATOR(MlpBackwardChain);
SINTER_OPERATOR(MlpBackwardWeights);

// Whether the fused kernels can compute it, and are the faster way.
bool mlp_fits(const Cpu&, const op::MlpShape& g, DType dtype);
bool mlp_fits(const Cuda&, const op::MlpShape& g, DType dtype);
inline bool mlp_starts_from_loss(const Cpu&, const op::MlpShape&) { return false; }
bool mlp_starts_from_loss(const Cuda&, const op::MlpShape& g);

}  // namespace sinter
