// Losses of two tensors, element by element: a pass over both forward, and one backward.
#include <algorithm>
#include <cstdint>

#include "core/backend/pointwise_loss.h"
#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/runtime/stream.cuh"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

constexpr int kEach = 4;  // elements that a thread takes at once: loads in flight

template <class T, class Loss>
__global__ void loss_terms(int64_t n, Loss loss, const T* x, const T* t, T* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    y[i] = loss.value(x[i], t[i]);
}

// Terms are added four at a time in T, those in double. Blocks leave their sums, and the last one
// adds them in block order.
template <class T, class Loss> __global__ void __launch_bounds__(kThreads)
    loss_sum(int64_t n, Loss loss, double divisor, const T* x, const T* t, T* y, double* of_block,
             StreamResources stream) {
  const int64_t step = thread_count<int64_t>();
  double total = 0;
  for (int64_t i = thread_index<int64_t>(); i < n; i += kEach * step) {
    T term[kEach] = {};
#pragma unroll
    for (int q = 0; q < kEach; ++q)
      if (i + q * step < n) term[q] = loss.value(x[i + q * step], t[i + q * step]);
    total += static_cast<double>((term[0] + term[1]) + (term[2] + term[3]));
  }
  total = group_reduce<kThreads>(total, Sum{});
  if (threadIdx.x == 0) of_block[blockIdx.x] = total;
  if (!last_block(stream.ticket, gridDim.x)) return;
  total = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) total += __ldcg(&of_block[b]);
  total = group_reduce<kThreads>(total, Sum{});
  if (threadIdx.x == 0) *y = static_cast<T>(total / divisor);
}

// dloss: one number for all, or with `each` one an element.
template <class T, class Loss> __global__ void loss_gradients(int64_t n, Loss loss, T share,
                                                              bool each, const T* x, const T* t,
                                                              const T* dloss, T* dx, T* dt) {
  const T one = each ? T(0) : *dloss * share;
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) {
    const T d = each ? dloss[i] : one, a = x[i], b = t[i];
    if (dx) dx[i] = d * loss.dx(a, b);
    if (dt) dt[i] = d * loss.dt(a, b);
  }
}

template <class T> void forward(const Cuda& ctx, const PointwiseLossForward& o) {
  const int64_t n = o.x.numel();
  const T *x = o.x.data<T>(), *t = o.t.data<T>();
  T* y = o.loss.data<T>();
  pointwise::with_loss<T>(o.kind, o.beta, [&]<class Loss>(const Loss& loss) {
    if (o.reduction == Reduction::kNone) {
      launch_1d(ctx, o.name, n, loss_terms<T, Loss>, loss, x, t, y);
      return;
    }
    // By n alone, so that the order of the sum is.
    const auto blocks =
        static_cast<unsigned>(std::clamp<int64_t>(ceil_div(n, kThreads * kEach), 1, 1024));
    const Scratch<double> of_block(ctx, blocks);
    launch(ctx, {o.name, n}, blocks, kThreads, 0, loss_sum<T, Loss>, n, loss,
           o.reduction == Reduction::kMean ? static_cast<double>(n) : 1.0, x, t, y, of_block.data(),
           stream_resources(ctx));
  });
}

template <class T> void backward(const Cuda& ctx, const PointwiseLossBackward& o) {
  const int64_t n = o.x.numel();
  const T share =
      o.reduction == Reduction::kMean ? static_cast<T>(1.0 / static_cast<double>(n)) : T(1);
  pointwise::with_loss<T>(o.kind, o.beta, [&]<class Loss>(const Loss& loss) {
    launch_1d(ctx, o.name, n, loss_gradients<T, Loss>, loss, share, o.reduction == Reduction::kNone,
              o.x.data<T>(), o.t.data<T>(), o.dloss.data<T>(), o.dx.data<T>(), o.dt.data<T>());
  });
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const PointwiseLossForward& o) {
  with_floating(o.x, [&]<class T>() { cuda::forward<T>(ctx, o); });
}

void run(const Cuda& ctx, const PointwiseLossBackward& o) {
  with_floating(o.x, [&]<class T>() { cuda::backward<T>(ctx, o); });
}

}  // namespace sinter
