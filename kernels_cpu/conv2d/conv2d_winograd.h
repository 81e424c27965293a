// Convolution with 3 x 3 windows in a quarter of the multiplications; see conv2d_winograd.cc.
#pragma once

#include <string>

#include "sinter/operators/conv2d.h"

namespace sinter {

// What a geometry lacks for this algorithm, as a list of what it needs; empty if it has it all.
std::string winograd_conv2d_lacks(const op::Conv2dShape& g);

template <class T> void winograd_conv2d_forward(const op::Conv2dShape& g, const T* x,
                                                const T* weight, const T* b, T* y, bool relu);
template <class T>
void winograd_conv2d_backward_data(const op::Conv2dShape& g, const T* dy, const T* weight, T* dx);
template <class T> void winograd_conv2d_backward_weights(const op::Conv2dShape& g, const T* x,
                                                         const T* dy, T* dweight);

}  // namespace sinter
