// Copies and conversions, and the entry to the operators of the table (elementwise_map.cuh).
#include <cstdint>
#include <type_traits>

#include "core/backend/memory.h"
#include "kernels_cuda/elementwise.cuh"
#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/elementwise.h"
#include "sinter/runtime.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- kernels ------------------------------------------------------------------------------------

template <class T> __global__ void fill_kernel(int64_t n, T value, T* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) y[i] = value;
}

template <class From, class To> __global__ void cast_kernel(int64_t n, const From* x, To* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    y[i] = static_cast<To>(x[i]);
}

}  // namespace

template <class T> void accumulate(LaunchSite site, int64_t n, const T* x, T* y) {
  const auto operand = [&](const T* p) {
    Operand array;
    array.address = const_cast<T*>(p);
    array.shape = {n};
    array.dtype = DTypeOf<T>::value;
    return array;
  };
  map<T>(site, op::map(Element::kAdd, In{operand(y)}, In{operand(x)}, Out{operand(y)}));
}
template void accumulate(LaunchSite, int64_t, const float*, float*);
template void accumulate(LaunchSite, int64_t, const double*, double*);

}  // namespace cuda

void run(const Cuda& ctx, const Fill& o) {
  with_any(o.y.dtype, [&]<class T>() {
    cuda::launch_1d(ctx, "fill", o.y.numel(), cuda::fill_kernel<T>, element::number<T>(o.value),
                    o.y.data<T>());
  });
}

void run(const Cuda& ctx, const Cast& o) {
  with_any(o.x.dtype, [&]<class From>() {
    with_any(o.y.dtype, [&]<class To>() {
      cuda::launch_1d(ctx, "cast", o.x.numel(), cuda::cast_kernel<From, To>, o.x.data<From>(),
                      o.y.data<To>());
    });
  });
}

void run(const Cuda& ctx, const Copy& o) {
  detail::copy_on_device(ctx, o.y.address, o.x.address, static_cast<size_t>(o.y.bytes()));
}

void run(const Cuda& ctx, const Map& o) {
  with_any(arithmetic_of(o), [&]<class T>() { cuda::map<T>(ctx, o); });
}

void run(const Cuda& ctx, const Accumulate& o) {
  with_floating(
      o.x, [&]<class T>() { cuda::accumulate(ctx, o.x.numel(), o.x.data<T>(), o.y.data<T>()); });
}

}  // namespace sinter
