// Element-wise operators and copies: bound by memory, so 16 bytes an access where the layout
// allows. The build forbids contraction to fused multiply-adds in this file, so that an operator
// has the same bits wherever its line of the table is compiled into.
#include <cstdint>
#include <type_traits>

#include "kernels_cuda/elementwise.cuh"
#include "kernels_cuda/elementwise_side.cuh"
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

template <class T, class Index>
__global__ void strided_copy_kernel(Index n, Loop<1> loop, const T* x, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    int64_t at[1];
    loop.offsets(i, at);
    y[i] = x[at[0]];
  }
}

// ---- operators of the table ---------------------------------------------------------------------

template <class O, int kGradient> constexpr bool reads_operand(int k) {
  if (kGradient < 0) return k < O::kOperands;
  return k == 4 || (O::kReads[kGradient < 0 ? 0 : kGradient] >> k & 1) != 0;
}

template <class A, class T> struct Sides {
  Side<A> a;
  Side<T> b, c, result, dy;
};

// The value of an operator, or the gradient of one of its operands, for kCount elements from i on.
// y may be an operand: an element is read only by the thread that writes it, before it writes.
template <class O, int kGradient, int kCount, class A, class T, class Y>
__device__ void map_elements(const Sides<A, T>& x, int64_t i, Y* y) {
  A a[kCount] = {};
  T b[kCount] = {}, c[kCount] = {}, result[kCount] = {}, dy[kCount] = {};
  if constexpr (reads_operand<O, kGradient>(0)) load(x.a, i, a);
  if constexpr (reads_operand<O, kGradient>(1)) load(x.b, i, b);
  if constexpr (reads_operand<O, kGradient>(2)) load(x.c, i, c);
  if constexpr (reads_operand<O, kGradient>(3)) load(x.result, i, result);
  if constexpr (reads_operand<O, kGradient>(4)) load(x.dy, i, dy);
  Pack<Y, kCount> pack;
#pragma unroll
  for (int q = 0; q < kCount; ++q) {
    if constexpr (kGradient < 0)
      pack.v[q] = O::of(a[q], b[q], c[q]);
    else
      pack.v[q] = O::template gradient<kGradient>(a[q], b[q], c[q], result[q], dy[q]);
  }
  if constexpr (kCount == 1)
    y[i] = pack.v[0];
  else
    reinterpret_cast<Pack<Y, kCount>*>(y)[i / kCount] = pack;
}

// The first `packs` packs 16 bytes of T at a time.
template <class O, int kGradient, class A, class T, class Y>
__global__ void map_kernel(int64_t n, int64_t packs, const __grid_constant__ Sides<A, T> x, Y* y) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t first = thread_index<int64_t>(), step = thread_count<int64_t>();
  for (int64_t i = first; i < packs; i += step) map_elements<O, kGradient, kPack>(x, i * kPack, y);
  for (int64_t i = packs * kPack + first; i < n; i += step) map_elements<O, kGradient, 1>(x, i, y);
}

template <class O, int kGradient, class T> void map(LaunchSite site, const Map& o) {
  using A = std::conditional_t<O::kTypes == element::kSelect, bool, T>;
  using Y = std::conditional_t<O::kTypes == element::kTest && (kGradient < 0), bool, T>;
  constexpr int kPack = 16 / sizeof(T);
  const Shape& shape = o.y.shape;
  const int64_t n = shape.numel();
  if (n == 0) return;
  const Sides<A, T> x{side_of<A>(o.a, o.number[0], shape, kPack),
                      side_of<T>(o.b, o.number[1], shape, kPack),
                      side_of<T>(o.c, o.number[2], shape, kPack),
                      side_of<T>(o.result, 0, shape, kPack), side_of<T>(o.dy, 0, shape, kPack)};
  Y* const y = static_cast<Y*>(o.y.address);
  const auto fits = [](const auto& side) {
    return allows_packs(side.p, sizeof(*side.p), side.reading.way, kPack);
  };
  const bool packed = allows_packs(y, sizeof(Y), Way::kWhole, kPack) && fits(x.a) && fits(x.b) &&
                      fits(x.c) && fits(x.result) && fits(x.dy);
  const int64_t packs = packed ? n / kPack : 0;
  const int64_t items = packs > 0 ? packs : n;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(items, kThreads), 1 << 16));
  launch(site, {o.title(), n}, blocks, kThreads, 0, map_kernel<O, kGradient, A, T, Y>, n, packs, x,
         y);
}

template <class O, class T> void map_gradient(LaunchSite site, const Map& o) {
  if constexpr (element::has_gradient<O, 0>)
    if (o.gradient == 0) return map<O, 0, T>(site, o);
  if constexpr (element::has_gradient<O, 1>)
    if (o.gradient == 1) return map<O, 1, T>(site, o);
  if constexpr (element::has_gradient<O, 2>)
    if (o.gradient == 2) return map<O, 2, T>(site, o);
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
  map<element::table::kAdd, -1, T>(
      site, op::map(Element::kAdd, In{operand(y)}, In{operand(x)}, Out{operand(y)}));
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
  copy_on_device(ctx, o.y.address, o.x.address, static_cast<size_t>(o.y.bytes()));
}

void run(const Cuda& ctx, const StridedCopy& o) {
  const cuda::Loop<1> loop = cuda::loop_over(o.g);
  with_any(o.x.dtype, [&]<class T>() {
    cuda::with_index(loop.count, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "strided_copy", loop.count, cuda::strided_copy_kernel<T, Index>, loop,
                      o.x.data<T>(), o.y.data<T>());
    });
  });
}

void run(const Cuda& ctx, const Map& o) {
  with_element(o.kind, [&]<class O>() {
    with_any(arithmetic_of(o), [&]<class T>() {
      if constexpr (element::takes<O, T>) {
        if (o.gradient < 0)
          cuda::map<O, -1, T>(ctx, o);
        else if constexpr (element::is_real<T>)
          cuda::map_gradient<O, T>(ctx, o);
      }
    });
  });
}

void run(const Cuda& ctx, const Accumulate& o) {
  with_floating(
      o.x, [&]<class T>() { cuda::accumulate(ctx, o.x.numel(), o.x.data<T>(), o.y.data<T>()); });
}

}  // namespace sinter
