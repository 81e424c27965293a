// Convolution: the table of algorithms (ConvAlgo), and the gradient of the bias.
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>

#include "core/backend/conv2d_algorithms.h"
#include "core/backend/winograd.h"
#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/sum.cuh"
#include "sinter/operators/conv2d.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

template <class T> void bias_gradient(const Cuda& ctx, const Conv2dShape& g, const T* dy, T* db) {
  const int64_t plane = int64_t{g.oh} * g.ow;
  if (db)
    sum(ctx, {.rank = 1, .shape = {g.o}, .stride = {plane}},
        {.rank = 2, .shape = {g.n, plane}, .stride = {g.o * plane, 1}}, 1.0, dy, db);
}
std::string winograd_lacks(const Cuda&, const ConvTask& task) { return winograd::lacks(task.g); }

template <class T> using Algorithm =
    ConvAlgorithm<Cuda,
                  void(const Cuda&, const Conv2dShape&, const T*, const T*, const T*, T*, bool),
                  void(const Cuda&, const Conv2dShape&, const T*, const T*, T*),
                  void(const Cuda&, const Conv2dShape&, const T*, const T*, T*, T*)>;

// With the bias's gradient, where the algorithm has none of its own.
template <class T, void (*kWeights)(const Cuda&, const Conv2dShape&, const T*, const T*, T*)>
void with_bias(const Cuda& ctx, const Conv2dShape& g, const T* x, const T* dy, T* dweight, T* db) {
  kWeights(ctx, g, x, dy, dweight);
  bias_gradient(ctx, g, dy, db);
}

#define SINTER_PASSES(name)                                 \
  name##_conv2d_forward<T>, name##_conv2d_backward_data<T>, \
      with_bias<T, name##_conv2d_backward_weights<T>>
template <class T> constexpr Algorithm<T> tensor_cores() {
  if constexpr (std::is_same_v<T, float>)
    return {ConvAlgo::kTensorCore, tensor_conv2d_lacks, tensor_conv2d_pays, SINTER_PASSES(tensor)};
  else  // lacks float32
    return {
        ConvAlgo::kTensorCore, tensor_conv2d_lacks, tensor_conv2d_pays, nullptr, nullptr, nullptr};
}
template <class T>
const Algorithm<T>& choose(const Cuda& ctx, const Conv2dShape& g, ConvPass pass) {
  static constexpr std::array<Algorithm<T>, 6> kTable{{
      {ConvAlgo::kDirect, direct_conv2d_lacks, always_pays<Cuda>, direct_conv2d_forward<T>,
       direct_conv2d_backward_data<T>, direct_conv2d_backward_weights<T>},
      {ConvAlgo::kWinograd, winograd_lacks, winograd_conv2d_pays, SINTER_PASSES(winograd)},
      tensor_cores<T>(),
      {ConvAlgo::kNaive, lacks_nothing<Cuda>, never_pays<Cuda>, SINTER_PASSES(naive)},
      {ConvAlgo::kIm2col, lacks_nothing<Cuda>, never_pays<Cuda>, SINTER_PASSES(im2col)},
      {ConvAlgo::kImplicitGemm, lacks_nothing<Cuda>, always_pays<Cuda>,
       SINTER_PASSES(implicit_gemm)},
  }};
  return choose_algorithm(ctx, "CUDA devices", kTable, {g, pass, DTypeOf<T>::value});
}
#undef SINTER_PASSES

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const Conv2dForward& o) {
  with_floating(o.x, [&]<class T>() {
    cuda::choose<T>(ctx, o.g, ConvPass::kForward)
        .forward(ctx, o.g, o.x.data<T>(), o.weight.data<T>(), o.b.data<T>(), o.y.data<T>(), o.relu);
  });
}

void run(const Cuda& ctx, const Conv2dBackwardData& o) {
  with_floating(o.dy, [&]<class T>() {
    cuda::choose<T>(ctx, o.g, ConvPass::kBackwardData)
        .backward_data(ctx, o.g, o.dy.data<T>(), o.weight.data<T>(), o.dx.data<T>());
  });
}

void run(const Cuda& ctx, const Conv2dBackwardWeights& o) {
  with_floating(o.dy, [&]<class T>() {
    T *dweight = o.dweight.data<T>(), *db = o.db.data<T>();
    const T* dy = o.dy.data<T>();
    if (dweight == nullptr) return cuda::bias_gradient(ctx, o.g, dy, db);
    cuda::choose<T>(ctx, o.g, ConvPass::kBackwardWeights)
        .backward_weights(ctx, o.g, o.x.data<T>(), dy, dweight, db);
  });
}

}  // namespace sinter
