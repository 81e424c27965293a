// The algorithms that conv2d.cu chooses from, each in a file of its own. Arguments are the operands
// of op::Conv2dForward and its gradients; no output is empty, b is nullable, dweight is not.
#pragma once

#include <cstdint>
#include <string>

#include "core/backend/conv2d_algorithms.h"
#include "sinter/operators/conv2d.h"

namespace sinter::cuda {

#define SINTER_CONV_ALGORITHM(name)                                                              \
  template <class T> void name##_conv2d_forward(const Cuda& ctx, const op::Conv2dShape& g,       \
                                                const T* x, const T* weight, const T* b, T* y,   \
                                                bool relu);                                      \
  template <class T> void name##_conv2d_backward_data(const Cuda& ctx, const op::Conv2dShape& g, \
                                                      const T* dy, const T* weight, T* dx);      \
  template <class T> void name##_conv2d_backward_weights(                                        \
      const Cuda& ctx, const op::Conv2dShape& g, const T* x, const T* dy, T* dweight)
#define SINTER_INSTANTIATE_CONV(name, T)                                                       \
  template void name##_conv2d_forward(const Cuda&, const op::Conv2dShape&, const T*, const T*, \
                                      const T*, T*, bool);                                     \
  template void name##_conv2d_backward_data(const Cuda&, const op::Conv2dShape&, const T*,     \
                                            const T*, T*);                                     \
  template void name##_conv2d_backward_weights(const Cuda&, const op::Conv2dShape&, const T*,  \
                                               const T*, T*);

// One thread an output element.
SINTER_CONV_ALGORITHM(naive);
// The matrix of patches written out, and a matrix product.
SINTER_CONV_ALGORITHM(im2col);
// The same with the patches gathered as they are multiplied: any geometry.
SINTER_CONV_ALGORITHM(implicit_gemm);
// Image tiles and weights in shared memory: few input channels.
SINTER_CONV_ALGORITHM(direct);
std::string direct_conv2d_lacks(const Cuda& ctx, const ConvTask& task);
// The bias's gradient comes with the weights'. db nullable.
template <class T> void direct_conv2d_backward_weights(const Cuda& ctx, const op::Conv2dShape& g,
                                                       const T* x, const T* dy, T* dweight, T* db);
// Implicit GEMM on tensor cores, float: in TF32 where g.tf32 says so, else in three TF32 products
// that together have float's precision.
SINTER_CONV_ALGORITHM(tensor);
std::string tensor_conv2d_lacks(const Cuda& ctx, const ConvTask& task);
bool tensor_conv2d_pays(const Cuda& ctx, const ConvTask& task);
// Winograd's algorithm: matrix products of transformed images and weights, in full precision.
SINTER_CONV_ALGORITHM(winograd);
bool winograd_conv2d_pays(const Cuda& ctx, const ConvTask& task);
struct WinogradBounds {
  int64_t scratch_bytes = int64_t{1} << 30;  // for transformed images, unless one needs more
  int splits = 0;  // products that share the sum of a weights' gradient; 0: as many as pay
};
// The same with other bounds.
template <class T> void winograd_conv2d_forward(const Cuda& ctx, const op::Conv2dShape& g,
                                                const T* x, const T* weight, const T* b, T* y,
                                                bool relu, const WinogradBounds& bounds);
template <class T> void winograd_conv2d_backward_data(const Cuda& ctx, const op::Conv2dShape& g,
                                                      const T* dy, const T* weight, T* dx,
                                                      const WinogradBounds& bounds);
template <class T> void winograd_conv2d_backward_weights(const Cuda& ctx, const op::Conv2dShape& g,
                                                         const T* x, const T* dy, T* dweight,
                                                         const WinogradBounds& bounds);
#undef SINTER_CONV_ALGORITHM

}  // namespace sinter::cuda
