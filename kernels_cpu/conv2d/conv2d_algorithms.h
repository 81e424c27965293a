// The algorithms that conv2d.cc chooses from, each in a file of its own. Arguments are the operands
// of op::Conv2dForward and its gradients; b is nullable, dweight is not.
#pragma once

#include "sinter/operators/conv2d.h"

namespace sinter {

#define SINTER_CONV_ALGORITHM(name)                                                                \
  template <class T> void name##_conv2d_forward(const op::Conv2dShape& g, const T* x,              \
                                                const T* weight, const T* b, T* y, bool relu);     \
  template <class T>                                                                               \
  void name##_conv2d_backward_data(const op::Conv2dShape& g, const T* dy, const T* weight, T* dx); \
  template <class T> void name##_conv2d_backward_weights(const op::Conv2dShape& g, const T* x,     \
                                                         const T* dy, T* dweight);
// The definition, one output after another.
SINTER_CONV_ALGORITHM(naive)
// Images in the lanes of a vector: the fastest with few channels or pixels, but idle lanes make it
// a waste for a handful of images.
SINTER_CONV_ALGORITHM(direct)
template <class T> int direct_conv2d_lanes();  // images a vector holds on this machine
// Patches of one image laid out as a matrix a block at a time, and a one-thread matrix product on
// each.
SINTER_CONV_ALGORITHM(im2col)
// The same product without the matrix: a pixel or an output channel in each lane, for layers of
// many channels.
SINTER_CONV_ALGORITHM(implicit_gemm)
// 3 x 3 windows in a quarter of the multiplications, for layers of many channels.
SINTER_CONV_ALGORITHM(winograd)
#undef SINTER_CONV_ALGORITHM

}  // namespace sinter
