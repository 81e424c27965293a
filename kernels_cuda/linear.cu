// Fully connected layers: products through gemm, and the bias.
#include <cstdint>

#include "launch.cuh"
#include "sinter/operators.h"

namespace sinter {
namespace cuda {
namespace {

// y (n, out) += b (out)
template <class T, class Index>
__global__ void add_bias_kernel(Index n, Index out, const T* b, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) y[i] += b[i % out];
}

}  // namespace
}  // namespace cuda

template <class T> void linear_forward(const Cuda& ctx, const LinearShape& g, const T* x,
                                       const T* w, const T* b, T* y) {
  gemm(ctx, {.ta = false, .tb = true, .m = g.n, .n = g.out, .k = g.in}, x, w, y);
  if (b == nullptr) return;
  cuda::with_index(g.n * g.out, [&](auto zero) {
    using Index = decltype(zero);
    cuda::launch_1d(ctx, "linear_forward", g.n * g.out, cuda::add_bias_kernel<T, Index>,
                    static_cast<Index>(g.out), b, y);
  });
}

template <class T>
void linear_backward_data(const Cuda& ctx, const LinearShape& g, const T* dy, const T* w, T* dx) {
  gemm(ctx, {.ta = false, .tb = false, .m = g.n, .n = g.in, .k = g.out}, dy, w, dx);
}

template <class T> void linear_backward_weights(const Cuda& ctx, const LinearShape& g, const T* x,
                                                const T* dy, T* dw, T* db) {
  if (dw) gemm(ctx, {.ta = true, .tb = false, .m = g.out, .n = g.in, .k = g.n}, dy, x, dw);
  if (db) {
    Reduce columns;
    columns.kept = {.rank = 1, .shape = {g.out}, .stride = {1}};
    columns.reduced = {.rank = 1, .shape = {g.n}, .stride = {g.out}};
    sum(ctx, columns, dy, db);
  }
}

#define SINTER_INSTANTIATE(T)                                                                     \
  template void linear_forward<T>(const Cuda&, const LinearShape&, const T*, const T*, const T*,  \
                                  T*);                                                            \
  template void linear_backward_data<T>(const Cuda&, const LinearShape&, const T*, const T*, T*); \
  template void linear_backward_weights<T>(const Cuda&, const LinearShape&, const T*, const T*,   \
                                           T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
