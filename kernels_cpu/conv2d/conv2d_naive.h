// Convolution as it is defined; see conv2d_naive.cc.
#pragma once

#include "sinter/operators/conv2d.h"

namespace sinter {

template <class T> void naive_conv2d_forward(const op::Conv2dShape& g, const T* x, const T* weight,
                                             const T* b, T* y, bool relu);
template <class T>
void naive_conv2d_backward_data(const op::Conv2dShape& g, const T* dy, const T* weight, T* dx);
template <class T>
void naive_conv2d_backward_weights(const op::Conv2dShape& g, const T* x, const T* dy, T* dweight);

}  // namespace sinter
