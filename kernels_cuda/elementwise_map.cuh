// Kernels of the operators of the table, of one type: each elementwise_<type>.cu has one, since
// together they take a compiler minutes. The build forbids contraction to fused multiply-adds
// there, so that an operator has the same bits wherever its line of the table is compiled into.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels_cuda/elementwise.cuh"
#include "kernels_cuda/elementwise_side.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/elementwise.h"

namespace sinter::cuda {

using op::Element;
using op::Map;

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

template <class T> void run_map(LaunchSite site, const Map& o) {
  op::with_element(o.kind, [&]<class O>() {
    if constexpr (element::takes<O, T>) {
      if (o.gradient < 0)
        map<O, -1, T>(site, o);
      else if constexpr (element::is_real<T>)
        map_gradient<O, T>(site, o);
    }
  });
}

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

}  // namespace sinter::cuda
