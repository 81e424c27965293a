// Optimizers.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// m and v are 0 where they would be below the smallest normal number. The first moment of a weight
// that gets no more gradients, as those of dead units, would otherwise end at a subnormal number of
// a few bits, 0.9 times which rounds to itself, and stay there; and a CPU takes a hundred times as
// long over subnormal numbers.

// All parameters in one operator. lr (one float64) and steps (int64, one a parameter and perhaps
// more) live in the context's memory, so that a program reads them anew at every call; a step
// counts the finished updates of its parameter, and is incremented.
//   Kingma and Ba 2015, algorithm 1; with `decoupled`, Loshchilov and Hutter 2019, algorithm 2 (as
//   PyTorch: p *= 1 - lr * weight_decay first). Otherwise weight_decay * p is added to the
//   gradient. t = step + 1;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2 p -= lr *
//   (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
struct AdamConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decoupled = false;
  bool operator==(const AdamConfig&) const = default;
  void each(auto&& f) const {
    f("beta1", beta1), f("beta2", beta2), f("eps", eps), f("weight_decay", weight_decay);
    f("decoupled", decoupled);
  }
};
// place[i]: where in `steps` parameter i has its count, ascending. g[i]: p[i]'s gradient; or, on
// Cuda, with first[i] >= 0, partial sums of it, (slices, stride), as SumSlices adds them up.
struct AdamStep {
  static constexpr const char* name = "adam_step";
  AdamConfig c;
  std::vector<int64_t> place, first;
  In lr;
  std::vector<In> g;
  std::vector<InOut> p, m, v;
  InOut steps;
  void each(auto&& f) {
    f("c", c), f("place", place), f("first", first), f("lr", lr), f("g", g), f("p", p), f("m", m);
    f("v", v), f("steps", steps);
  }
};

// g += weight_decay * p; m = g at the first step, else momentum * m + (1 - dampening) * g;
// g = g + momentum * m if nesterov, else m; p -= lr * g (Sutskever et al. 2013, in PyTorch's form).
struct SgdConfig {
  double momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
  bool operator==(const SgdConfig&) const = default;
  void each(auto&& f) const {
    f("momentum", momentum), f("dampening", dampening), f("weight_decay", weight_decay);
    f("nesterov", nesterov);
  }
};
// m: momentum buffers; empty without momentum. The others as AdamStep's.
struct SgdStep {
  static constexpr const char* name = "sgd_step";
  SgdConfig c;
  std::vector<int64_t> place;
  In lr;
  std::vector<In> g;
  std::vector<InOut> p, m;
  InOut steps;
  void each(auto&& f) {
    f("c", c), f("place", place), f("lr", lr), f("g", g), f("p", p), f("m", m), f("steps", steps);
  }
};

// See work.h.
double bytes_unread(const AdamStep& op);

}  // namespace op

SINTER_OPERATOR(AdamStep);
SINTER_OPERATOR(SgdStep);

}  // namespace sinter
