// The algorithms behind conv2d.cu's choice that live in files of their own. Arguments are the
// operands of op::Conv2dForward and its gradients; no output is empty, and dweight is not null.
#pragma once

#include <cstdint>
#include <string>

#include "sinter/operators/conv2d.h"

namespace sinter::cuda {

enum class ConvPass { kForward, kBackwardData, kBackwardWeights };

// One thread an output element (conv2d_naive.cu).
template <class T> void naive_conv2d_forward(const Cuda& ctx, const op::Conv2dShape& g, const T* x,
                                             const T* weight, const T* b, T* y, bool relu);
template <class T> void naive_conv2d_backward_data(const Cuda& ctx, const op::Conv2dShape& g,
                                                   const T* dy, const T* weight, T* dx);
template <class T> void naive_conv2d_backward_weights(const Cuda& ctx, const op::Conv2dShape& g,
                                                      const T* x, const T* dy, T* dweight);

// The matrix of patches written out, and a matrix product (conv2d_im2col.cu).
template <class T> void im2col_conv2d_forward(const Cuda& ctx, const op::Conv2dShape& g, const T* x,
                                              const T* weight, const T* b, T* y, bool relu);
template <class T> void im2col_conv2d_backward_data(const Cuda& ctx, const op::Conv2dShape& g,
                                                    const T* dy, const T* weight, T* dx);
template <class T> void im2col_conv2d_backward_weights(const Cuda& ctx, const op::Conv2dShape& g,
                                                       const T* x, const T* dy, T* dweight);

// Implicit GEMM on tensor cores, float (conv2d_tensor.cu): in TF32 where g.tf32 says so, else in
// three TF32 products that together have float's precision.
//
// Why it cannot run this pass, to follow "needs"; empty if it can.
std::string tensor_conv2d_lacks(const Cuda& ctx, const op::Conv2dShape& g);
// Whether its tiles are filled well enough to beat the implicit GEMM outside the tensor cores.
bool tensor_conv2d_pays(const op::Conv2dShape& g, ConvPass pass);
void tensor_conv2d_forward(const Cuda& ctx, const op::Conv2dShape& g, const float* x,
                           const float* weight, const float* b, float* y, bool relu);
void tensor_conv2d_backward_data(const Cuda& ctx, const op::Conv2dShape& g, const float* dy,
                                 const float* weight, float* dx);
void tensor_conv2d_backward_weights(const Cuda& ctx, const op::Conv2dShape& g, const float* x,
                                    const float* dy, float* dweight);

// A quarter of the multiplications, for windows of 3 x 3: matrix products of transformed images and
// weights (conv2d_winograd.cu), in full precision.
struct WinogradBounds {
  int64_t scratch_bytes = int64_t{1} << 30;  // for transformed images, unless one needs more
  int splits = 0;  // products that share the sum of a weights' gradient; 0: as many as pay
};
// Why it cannot run this layer, to follow "needs"; empty if it can.
std::string winograd_conv2d_lacks(const op::Conv2dShape& g);
// Whether it is the fastest in float.
bool winograd_conv2d_pays(const op::Conv2dShape& g, ConvPass pass);
template <class T> void winograd_conv2d_forward(const Cuda& ctx, const op::Conv2dShape& g,
                                                const T* x, const T* weight, const T* b, T* y,
                                                const WinogradBounds& bounds = {},
                                                bool relu = false);
template <class T> void winograd_conv2d_backward_data(const Cuda& ctx, const op::Conv2dShape& g,
                                                      const T* dy, const T* weight, T* dx,
                                                      const WinogradBounds& bounds = {});
template <class T> void winograd_conv2d_backward_weights(const Cuda& ctx, const op::Conv2dShape& g,
                                                         const T* x, const T* dy, T* dweight,
                                                         const WinogradBounds& bounds = {});

}  // namespace sinter::cuda
