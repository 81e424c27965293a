// Fully connected layers: products through gemm, and the bias.
#include <cstdint>

#include "kernels_cuda/gemm.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/sum.cuh"
#include "sinter/operators/linear.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// y (n, out) += b (out), nullable with kRelu, which takes the ReLU of that.
template <class T, class Index, bool kRelu>
__global__ void add_bias_kernel(Index n, Index out, const T* b, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    if constexpr (kRelu)
      y[i] = relu_of(b ? y[i] + b[i % out] : y[i]);
    else
      y[i] += b[i % out];
  }
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const LinearForward& o) {
  const LinearShape& g = o.g;
  with_floating(o.x, [&]<class T>() {
    cuda::gemm(ctx, {.ta = false, .tb = true, .m = g.n, .n = g.out, .k = g.in, .tf32 = g.tf32},
               o.x.data<T>(), o.w.data<T>(), o.y.data<T>());
    if (o.b.address == nullptr && !o.relu) return;
    cuda::with_index(g.n * g.out, [&]<class Index>(Index) {
      cuda::launch_1d(
          ctx, "linear_forward", g.n * g.out,
          o.relu ? cuda::add_bias_kernel<T, Index, true> : cuda::add_bias_kernel<T, Index, false>,
          static_cast<Index>(g.out), o.b.data<T>(), o.y.data<T>());
    });
  });
}

void run(const Cuda& ctx, const LinearBackwardData& o) {
  const LinearShape& g = o.g;
  with_floating(o.dy, [&]<class T>() {
    cuda::gemm(ctx, {.ta = false, .tb = false, .m = g.n, .n = g.in, .k = g.out, .tf32 = g.tf32},
               o.dy.data<T>(), o.w.data<T>(), o.dx.data<T>());
  });
}

void run(const Cuda& ctx, const LinearBackwardWeights& o) {
  const LinearShape& g = o.g;
  with_floating(o.dy, [&]<class T>() {
    const T* dy = o.dy.data<T>();
    if (T* dw = o.dw.data<T>())
      cuda::gemm(ctx, {.ta = true, .tb = false, .m = g.out, .n = g.in, .k = g.n, .tf32 = g.tf32},
                 dy, o.x.data<T>(), dw);
    if (T* db = o.db.data<T>())
      cuda::sum(ctx, {.rank = 1, .shape = {g.out}, .stride = {1}},
                {.rank = 1, .shape = {g.n}, .stride = {g.out}}, 1.0, dy, db);
  });
}

}  // namespace sinter
