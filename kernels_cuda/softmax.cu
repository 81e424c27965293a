// Softmax and its logarithm. A row belongs to a warp or a block, whose threads hold it in registers
// if it is not too long: one read, one write.
#include <cmath>
#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/softmax.cuh"
#include "sinter/operators/softmax.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- what rows and columns compute --------------------------------------------------------------

template <bool kLog, class T> __device__ T result(T x, T max, T total) {
  if constexpr (kLog)
    return x - max - total;  // total: its logarithm
  else
    return exp(x - max) / total;
}

// The sum over a row that an element's gradient needs: of these.
template <bool kLog, class T> __device__ T gradient_term(T y, T dy) { return kLog ? dy : y * dy; }
template <bool kLog, class T> __device__ T gradient(T y, T dy, T sum) {
  if constexpr (kLog)
    return dy - exp(y) * sum;
  else
    return y * (dy - sum);
}

// ---- kernels ------------------------------------------------------------------------------------

// Rows of at most kGroup * kItems.
template <bool kLog, int kGroup, int kItems, class T> __global__ void __launch_bounds__(kThreads)
    softmax_rows(int64_t rows, int64_t classes, const T* __restrict__ x, T* __restrict__ y) {
  const int lane = Rows<kGroup>::lane();
  const int n = static_cast<int>(classes);
  for (int64_t r = Rows<kGroup>::first(); r < rows; r += Rows<kGroup>::step()) {
    const T* xr = x + r * classes;
    T v[kItems], max = -std::numeric_limits<T>::infinity(), sum = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (lane + i * kGroup < n) v[i] = xr[lane + i * kGroup];
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (lane + i * kGroup < n) max = Max{}(max, v[i]);
    max = group_reduce<kGroup>(max, Max{});
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (lane + i * kGroup >= n) continue;
      const T power = exp(v[i] - max);
      if (!kLog) v[i] = power;
      sum += power;
    }
    sum = group_reduce<kGroup>(sum, Sum{});
    const T log_sum = kLog ? log(sum) : T(0);
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (lane + i * kGroup < n)
        y[r * classes + lane + i * kGroup] = kLog ? v[i] - max - log_sum : v[i] / sum;
  }
}

template <bool kLog, int kGroup, int kItems, class T> __global__ void __launch_bounds__(kThreads)
    softmax_rows_backward(int64_t rows, int64_t classes, const T* __restrict__ y,
                          const T* __restrict__ dy, T* __restrict__ dx) {
  const int lane = Rows<kGroup>::lane();
  const int n = static_cast<int>(classes);
  for (int64_t r = Rows<kGroup>::first(); r < rows; r += Rows<kGroup>::step()) {
    const int64_t at = r * classes + lane;
    T v[kItems], d[kItems], sum = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (lane + i * kGroup >= n) continue;
      v[i] = y[at + i * kGroup];
      d[i] = dy[at + i * kGroup];
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (lane + i * kGroup < n) sum += gradient_term<kLog>(v[i], d[i]);
    sum = group_reduce<kGroup>(sum, Sum{});
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      if (lane + i * kGroup < n) dx[at + i * kGroup] = gradient<kLog>(v[i], d[i], sum);
  }
}

// Longer rows: a block each, which reads them again from the cache.
template <bool kLog, class T> __global__ void __launch_bounds__(kThreads)
    softmax_long_rows(int64_t rows, int64_t classes, const T* x, T* y) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const T* xr = x + r * classes;
    const Normalizer<T> z = normalizer<kThreads>(xr, classes, static_cast<int>(threadIdx.x));
    const T total = kLog ? z.log_sum : z.sum;
    for (int64_t k = threadIdx.x; k < classes; k += kThreads)
      y[r * classes + k] = result<kLog>(xr[k], z.max, total);
  }
}

template <bool kLog, class T> __global__ void __launch_bounds__(kThreads)
    softmax_long_rows_backward(int64_t rows, int64_t classes, const T* y, const T* dy, T* dx) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t at = r * classes;
    T sum = sum_of<T>(threadIdx.x, classes, kThreads,
                      [&](int64_t k) { return gradient_term<kLog>(y[at + k], dy[at + k]); });
    sum = group_reduce<kThreads>(sum, Sum{});
    for (int64_t k = threadIdx.x; k < classes; k += kThreads)
      dx[at + k] = gradient<kLog>(y[at + k], dy[at + k], sum);
  }
}

// inner > 1: a thread a column; neighbouring columns are neighbouring addresses.
template <bool kLog, class T>
__global__ void softmax_columns(int64_t n, int64_t classes, int64_t inner, const T* x, T* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) {
    const int64_t at = i / inner * classes * inner + i % inner;
    T max = -std::numeric_limits<T>::infinity();
    for (int64_t k = 0; k < classes; ++k) max = Max{}(max, x[at + k * inner]);
    T total = sum_of<T>(0, classes, 1, [&](int64_t k) { return exp(x[at + k * inner] - max); });
    if (kLog) total = log(total);
    for (int64_t k = 0; k < classes; ++k)
      y[at + k * inner] = result<kLog>(x[at + k * inner], max, total);
  }
}

template <bool kLog, class T> __global__ void softmax_columns_backward(int64_t n, int64_t classes,
                                                                       int64_t inner, const T* y,
                                                                       const T* dy, T* dx) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) {
    const int64_t at = i / inner * classes * inner + i % inner;
    const T sum = sum_of<T>(0, classes, 1, [&](int64_t k) {
      return gradient_term<kLog>(y[at + k * inner], dy[at + k * inner]);
    });
    for (int64_t k = 0; k < classes; ++k)
      dx[at + k * inner] = gradient<kLog>(y[at + k * inner], dy[at + k * inner], sum);
  }
}

// ---- launchers ----------------------------------------------------------------------------------

// f.operator()<kGroup, kItems>() with the threads of a row and what each holds; false if the row is
// too long.
template <class F> bool in_registers(int64_t classes, const F& f) {
  if (classes <= 32)
    f.template operator()<32, 1>();
  else if (classes <= 128)
    f.template operator()<32, 4>();
  else if (classes <= 512)
    f.template operator()<32, 16>();
  else if (classes <= 1024)
    f.template operator()<32, 32>();
  else if (classes <= 2048)
    f.template operator()<kThreads, 8>();
  else if (classes <= 8192)
    f.template operator()<kThreads, 32>();
  else
    return false;
  return true;
}

template <bool kLog, class T>
void softmax_forward(const Cuda& ctx, const char* name, const SoftmaxShape& g, const T* x, T* y) {
  if (g.outer * g.classes * g.inner == 0) return;
  const LaunchSite site(ctx);
  if (g.inner > 1)
    return launch_1d(site, name, g.outer * g.inner, softmax_columns<kLog, T>, g.classes, g.inner, x,
                     y);
  const bool done = in_registers(g.classes, [&]<int kGroup, int kItems>() {
    launch(site, {name, g.outer, g.classes}, row_blocks<kGroup>(g.outer), kThreads, 0,
           softmax_rows<kLog, kGroup, kItems, T>, g.outer, g.classes, x, y);
  });
  if (done) return;
  launch(site, {name, g.outer, g.classes}, row_blocks<kThreads>(g.outer), kThreads, 0,
         softmax_long_rows<kLog, T>, g.outer, g.classes, x, y);
}

template <bool kLog, class T> void softmax_backward(const Cuda& ctx, const char* name,
                                                    const SoftmaxShape& g, const T* y, const T* dy,
                                                    T* dx) {
  if (g.outer * g.classes * g.inner == 0) return;
  const LaunchSite site(ctx);
  if (g.inner > 1)
    return launch_1d(site, name, g.outer * g.inner, softmax_columns_backward<kLog, T>, g.classes,
                     g.inner, y, dy, dx);
  const bool done = in_registers(g.classes, [&]<int kGroup, int kItems>() {
    launch(site, {name, g.outer, g.classes}, row_blocks<kGroup>(g.outer), kThreads, 0,
           softmax_rows_backward<kLog, kGroup, kItems, T>, g.outer, g.classes, y, dy, dx);
  });
  if (done) return;
  launch(site, {name, g.outer, g.classes}, row_blocks<kThreads>(g.outer), kThreads, 0,
         softmax_long_rows_backward<kLog, T>, g.outer, g.classes, y, dy, dx);
}

template <bool kLog, class Op> void forward(const Cuda& ctx, const Op& o) {
  with_floating(o.x, [&]<class T>() {
    softmax_forward<kLog>(ctx, Op::name, o.g, o.x.template data<T>(), o.y.template data<T>());
  });
}

template <bool kLog, class Op> void backward(const Cuda& ctx, const Op& o) {
  with_floating(o.y, [&]<class T>() {
    softmax_backward<kLog>(ctx, Op::name, o.g, o.y.template data<T>(), o.dy.template data<T>(),
                           o.dx.template data<T>());
  });
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const SoftmaxForward& o) { cuda::forward<false>(ctx, o); }
void run(const Cuda& ctx, const SoftmaxBackward& o) { cuda::backward<false>(ctx, o); }
void run(const Cuda& ctx, const LogSoftmaxForward& o) { cuda::forward<true>(ctx, o); }
void run(const Cuda& ctx, const LogSoftmaxBackward& o) { cuda::backward<true>(ctx, o); }

}  // namespace sinter
