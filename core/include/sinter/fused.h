// Several layers in one pass over memory. Sequential finds such runs of layers by itself (nn.h);
// the operators are here for networks that are written out. Values and gradients are those of the
// composition up to rounding where all are finite; a gradient of 0 does not meet an infinity or a
// NaN in x here.
#pragma once

#include <span>
#include <vector>

#include "sinter/ops.h"

namespace sinter {

// max_pool2d(relu(conv2d(x, weight, bias, options)), 2), with gradients. Where the backend has no
// fused kernel for the geometry, that composition. Throws as its parts.
Tensor conv2d_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
                        const Conv2dOptions& options = {});

// linear(…relu(linear(x, weights[0], biases[0]))…), a ReLU behind every layer but the last, and
// behind that one too with relu_last; the composition where the backend has no fused kernel.
//   x: (…, in)  weights[l]: (out, in)  biases[l]: (out), or undefined. Returns (…, out of the
//   last).
// Throws ValueError unless there are as many biases as weights, at least one; else as linear.
Tensor mlp(const Tensor& x, std::span<const Tensor> weights, std::span<const Tensor> biases,
           bool relu_last = false);

// While one lives, the operators above and Sequential run their parts one by one on this thread:
// the reference that the fused kernels are tested against.
class no_fusion {
 public:
  [[nodiscard]] no_fusion();
  ~no_fusion();
  no_fusion(const no_fusion&) = delete;
  no_fusion& operator=(const no_fusion&) = delete;

 private:
  bool before_;
};
bool fusion_enabled();

}  // namespace sinter
