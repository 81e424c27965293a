// Convolution by the algorithm that g.algo names or the geometry suggests; see conv2d.cc.
#pragma once

#include "sinter/operators/conv2d.h"

namespace sinter {

// b nullable. relu: y becomes the ReLU of the convolution.
template <class T> void conv2d_forward(const op::Conv2dShape& g, const T* x, const T* weight,
                                       const T* b, T* y, bool relu = false);
template <class T>
void conv2d_backward_data(const op::Conv2dShape& g, const T* dy, const T* weight, T* dx);
// dweight, db: each nullable.
template <class T>
void conv2d_backward_weights(const op::Conv2dShape& g, const T* x, const T* dy, T* dweight, T* db);

}  // namespace sinter
