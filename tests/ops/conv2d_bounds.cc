// For conv2d_test.cc: Winograd's algorithm with other bounds than it chooses. A file of its own,
// since namespace sinter::cuda and the function of this name exclude each other.
#ifdef SINTER_WITH_CUDA
#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"

namespace sinter::test {

template <class T> void winograd_in_slices(const Cuda& ctx, const op::Conv2dShape& g,
                                           int64_t scratch_bytes, int splits, const T* x,
                                           const T* w, const T* b, const T* dy, T* y, T* dx,
                                           T* dw) {
  const cuda::WinogradBounds bounds{scratch_bytes, splits};
  cuda::winograd_conv2d_forward(ctx, g, x, w, b, y, false, bounds);
  cuda::winograd_conv2d_backward_data(ctx, g, dy, w, dx, bounds);
  cuda::winograd_conv2d_backward_weights(ctx, g, x, dy, dw, bounds);
}
template void winograd_in_slices(const Cuda&, const op::Conv2dShape&, int64_t, int, const float*,
                                 const float*, const float*, const float*, float*, float*, float*);
template void winograd_in_slices(const Cuda&, const op::Conv2dShape&, int64_t, int, const double*,
                                 const double*, const double*, const double*, double*, double*,
                                 double*);

}  // namespace sinter::test
#endif
