// Convolution, ReLU and pooling in one pass.
#pragma once

#include "sinter/operators/conv2d.h"

namespace sinter {
namespace op {

// y = max_pool2d(relu(conv2d(x, weight, b)), 2): convolution, bias, ReLU and 2 x 2 pooling of
// stride 2 in one pass. oh and ow are the convolution's; an odd last row or column is left out.
//   y: (n, o, oh / 2, ow / 2)  choice: as y, uint8: which of the window's four was taken, 2 * row +
//   column: the first maximum; a NaN counts as the maximum. b optional.
// Emitted where conv2d_relu_pool_fits; oh and ow are at least 2.
struct Conv2dReluPoolForward {
  static constexpr const char* name = "conv2d_relu_pool_forward";
  Conv2dShape g;
  In x, weight, b;
  Out y, choice;
  void each(auto&& f) {
    f("g", g), f("x", x), f("weight", weight), f("b", b), f("y", y), f("choice", choice);
  }
};
// The gradient goes to the chosen element unless y <= 0. On a CPU all gradients are made in one
// pass; a GPU makes dx, and the weights' gradients as sums over slices of the images, apart.
struct Conv2dReluPoolBackward {
  static constexpr const char* name = "conv2d_relu_pool_backward";
  Conv2dShape g;
  In x, weight, y, choice, dy;
  OptionalOut dx, dweight, db;
  void each(auto&& f) {
    f("g", g), f("x", x), f("weight", weight), f("y", y), f("choice", choice), f("dy", dy);
    f("dx", dx), f("dweight", dweight), f("db", db);
  }
};
struct Conv2dReluPoolBackwardData {
  static constexpr const char* name = "conv2d_relu_pool_backward_data";
  Conv2dShape g;
  In weight, y, choice, dy;
  Out dx;
  void each(auto&& f) {
    f("g", g), f("weight", weight), f("y", y), f("choice", choice), f("dy", dy), f("dx", dx);
  }
};
// partial: (conv2d_relu_pool_slices, elements of weight + o): dweight's and db's sums.
struct Conv2dReluPoolBackwardWeights {
  static constexpr const char* name = "conv2d_relu_pool_backward_weights";
  Conv2dShape g;
  In x, y, choice, dy;
  Out partial;
  void each(auto&& f) {
    f("g", g), f("x", x), f("y", y), f("choice", choice), f("dy", dy), f("partial", partial);
  }
};

// See work.h.
double flops(const Conv2dReluPoolForward& op);
double flops(const Conv2dReluPoolBackward& op);
double flops(const Conv2dReluPoolBackwardData& op);
double flops(const Conv2dReluPoolBackwardWeights& op);

}  // namespace op

SINTER_OPERATOR(Conv2dReluPoolForward);

// Each backend has its own way.
void run(const Cpu&, const op::Conv2dReluPoolBackward&);
void run(const Cuda&, const op::Conv2dReluPoolBackwardData&);
void run(const Cuda&, const op::Conv2dReluPoolBackwardWeights&);

// Whether the fused kernels can compute it, and are the faster way.
bool conv2d_relu_pool_fits(const Cpu&, const op::Conv2dShape& g, DType dtype);
bool conv2d_relu_pool_fits(const Cuda&, const op::Conv2dShape& g, DType dtype);
int64_t conv2d_relu_pool_slices(const Cuda&, const op::Conv2dShape& g, DType dtype);

}  // namespace sinter
