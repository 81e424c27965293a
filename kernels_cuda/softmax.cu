// Log-softmax.
#include <cmath>
#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/softmax.cuh"
#include "sinter/operators/softmax.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- kernels ------------------------------------------------------------------------------------

template <int kGroup, class T> __global__ void __launch_bounds__(kThreads)
    log_softmax_rows(int64_t rows, int64_t classes, const T* x, T* y) {
  const int lane = Rows<kGroup>::lane();
  for (int64_t r = Rows<kGroup>::first(); r < rows; r += Rows<kGroup>::step()) {
    const T* xr = x + r * classes;
    const Normalizer<T> z = normalizer<kGroup>(xr, classes, lane);
    for (int64_t k = lane; k < classes; k += kGroup) y[r * classes + k] = xr[k] - z.max - z.log_sum;
  }
}

template <int kGroup, class T> __global__ void __launch_bounds__(kThreads)
    log_softmax_rows_backward(int64_t rows, int64_t classes, const T* y, const T* dy, T* dx) {
  const int lane = Rows<kGroup>::lane();
  for (int64_t r = Rows<kGroup>::first(); r < rows; r += Rows<kGroup>::step()) {
    const int64_t at = r * classes;
    T sum = sum_of<T>(lane, classes, kGroup, [&](int64_t k) { return dy[at + k]; });
    sum = group_reduce<kGroup>(sum, Sum{});
    for (int64_t k = lane; k < classes; k += kGroup) dx[at + k] = dy[at + k] - exp(y[at + k]) * sum;
  }
}

// inner > 1: a thread a column; neighbouring columns are neighbouring addresses.
template <class T>
__global__ void log_softmax_columns(int64_t n, int64_t classes, int64_t inner, const T* x, T* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) {
    const int64_t at = i / inner * classes * inner + i % inner;
    T max = -std::numeric_limits<T>::infinity();
    for (int64_t k = 0; k < classes; ++k) max = Max{}(max, x[at + k * inner]);
    const T log_sum =
        log(sum_of<T>(0, classes, 1, [&](int64_t k) { return exp(x[at + k * inner] - max); }));
    for (int64_t k = 0; k < classes; ++k) y[at + k * inner] = x[at + k * inner] - max - log_sum;
  }
}

template <class T> __global__ void log_softmax_columns_backward(int64_t n, int64_t classes,
                                                                int64_t inner, const T* y,
                                                                const T* dy, T* dx) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) {
    const int64_t at = i / inner * classes * inner + i % inner;
    const T sum = sum_of<T>(0, classes, 1, [&](int64_t k) { return dy[at + k * inner]; });
    for (int64_t k = 0; k < classes; ++k)
      dx[at + k * inner] = dy[at + k * inner] - exp(y[at + k * inner]) * sum;
  }
}

// ---- launchers ----------------------------------------------------------------------------------

template <class T>
void log_softmax_forward(const Cuda& ctx, const SoftmaxShape& g, const T* x, T* y) {
  if (g.outer * g.classes * g.inner == 0) return;
  if (g.inner > 1)
    launch_1d(ctx, "log_softmax_forward", g.outer * g.inner, log_softmax_columns<T>, g.classes,
              g.inner, x, y);
  else if (g.classes > kLongRow)
    launch(ctx, {"log_softmax_forward", g.outer, g.classes}, row_blocks<kThreads>(g.outer),
           kThreads, 0, log_softmax_rows<kThreads, T>, g.outer, g.classes, x, y);
  else
    launch(ctx, {"log_softmax_forward", g.outer, g.classes}, row_blocks<32>(g.outer), kThreads, 0,
           log_softmax_rows<32, T>, g.outer, g.classes, x, y);
}

template <class T>
void log_softmax_backward(const Cuda& ctx, const SoftmaxShape& g, const T* y, const T* dy, T* dx) {
  if (g.outer * g.classes * g.inner == 0) return;
  if (g.inner > 1)
    launch_1d(ctx, "log_softmax_backward", g.outer * g.inner, log_softmax_columns_backward<T>,
              g.classes, g.inner, y, dy, dx);
  else if (g.classes > kLongRow)
    launch(ctx, {"log_softmax_backward", g.outer, g.classes}, row_blocks<kThreads>(g.outer),
           kThreads, 0, log_softmax_rows_backward<kThreads, T>, g.outer, g.classes, y, dy, dx);
  else
    launch(ctx, {"log_softmax_backward", g.outer, g.classes}, row_blocks<32>(g.outer), kThreads, 0,
           log_softmax_rows_backward<32, T>, g.outer, g.classes, y, dy, dx);
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const LogSoftmaxForward& o) {
  with_floating(
      o.x, [&]<class T>() { cuda::log_softmax_forward(ctx, o.g, o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cuda& ctx, const LogSoftmaxBackward& o) {
  with_floating(o.y, [&]<class T>() {
    cuda::log_softmax_backward(ctx, o.g, o.y.data<T>(), o.dy.data<T>(), o.dx.data<T>());
  });
}

}  // namespace sinter
