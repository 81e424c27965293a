// Dropout. Masks are computed where they are needed, forward and backward: Philox costs less than
// the memory that a mask would take.
#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/dropout.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

__global__ void next_draw_kernel(int64_t* state, int64_t* draw) {
  draw[0] = state[0];
  draw[1] = state[1];
  state[1] += 1;
}

template <class T, int kPack> struct alignas(sizeof(T) * kPack) Pack { T v[kPack]; };

template <class T> bool aligned(const T* x, const T* y, size_t bytes) {
  return (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % bytes == 0;
}

// A thread a Philox block, which is four elements; with kPacks they are moved 16 bytes at a time.
template <class T, bool kPacks> __global__ void __launch_bounds__(kThreads)
    dropout_kernel(int64_t blocks, int64_t n, uint64_t threshold, T scale, const T* x,
                   const int64_t* draw, T* y) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t seed = draw[0], number = draw[1];
  for (int64_t i = thread_index<int64_t>(); i < blocks; i += thread_count<int64_t>()) {
    const Philox4 bits = draw_bits(seed, number, i);
    const auto factor = [&](int q) { return bits.v[q] < threshold ? T(0) : scale; };
    if (kPacks && 4 * i + 4 <= n) {
#pragma unroll
      for (int part = 0; part < 4 / kPack; ++part) {
        auto v = reinterpret_cast<const Pack<T, kPack>*>(x)[i * (4 / kPack) + part];
#pragma unroll
        for (int q = 0; q < kPack; ++q) v.v[q] *= factor(part * kPack + q);
        reinterpret_cast<Pack<T, kPack>*>(y)[i * (4 / kPack) + part] = v;
      }
    } else {
#pragma unroll
      for (int q = 0; q < 4; ++q)
        if (4 * i + q < n) y[4 * i + q] = x[4 * i + q] * factor(q);
    }
  }
}

// Groups of elements with one decision: a warp a group.
template <class T, int kPack> __global__ void __launch_bounds__(kThreads)
    dropout_groups_kernel(int64_t items, int64_t packs, uint64_t threshold, T scale, const T* x,
                          const int64_t* draw, T* y) {
  const int64_t seed = draw[0], number = draw[1];
  for (int64_t i = thread_index<int64_t>() / 32; i < items; i += thread_count<int64_t>() / 32) {
    const Philox4 bits = draw_bits(seed, number, i / 4);
    const int q = static_cast<int>(i % 4);  // chosen like this the words stay in registers
    const uint32_t word =
        q < 2 ? (q == 0 ? bits.v[0] : bits.v[1]) : (q == 2 ? bits.v[2] : bits.v[3]);
    const T factor = word < threshold ? T(0) : scale;
    const auto* from = reinterpret_cast<const Pack<T, kPack>*>(x) + i * packs;
    auto* to = reinterpret_cast<Pack<T, kPack>*>(y) + i * packs;
    for (int64_t l = threadIdx.x % 32; l < packs; l += 32) {
      Pack<T, kPack> v = from[l];
#pragma unroll
      for (int e = 0; e < kPack; ++e) v.v[e] *= factor;
      to[l] = v;
    }
  }
}

template <class T> void dropout(const Cuda& ctx, const Dropout& o) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t n = o.x.numel();
  if (n == 0) return;
  const T* x = o.x.data<T>();
  T* y = o.y.data<T>();
  const auto* draw = o.draw.data<int64_t>();
  const auto scale = static_cast<T>(o.scale);
  const bool packs = aligned(x, static_cast<const T*>(y), 16);
  if (o.group == 1) {
    launch_1d(ctx, "dropout", ceil_div(n, 4),
              packs ? dropout_kernel<T, true> : dropout_kernel<T, false>, n, o.threshold, scale, x,
              draw, y);
    return;
  }
  const int64_t items = n / o.group;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(ceil_div(items, kThreads / 32), 1 << 16));
  if (packs && o.group % kPack == 0) {
    launch(ctx, {"dropout", items, o.group}, blocks, kThreads, 0, dropout_groups_kernel<T, kPack>,
           items, o.group / kPack, o.threshold, scale, x, draw, y);
  } else {
    launch(ctx, {"dropout", items, o.group}, blocks, kThreads, 0, dropout_groups_kernel<T, 1>,
           items, o.group, o.threshold, scale, x, draw, y);
  }
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const NextDraw& o) {
  cuda::launch(ctx, {"next_draw"}, 1, 1, 0, cuda::next_draw_kernel, o.state.data<int64_t>(),
               o.draw.data<int64_t>());
}

void run(const Cuda& ctx, const Dropout& o) {
  with_floating(o.x, [&]<class T>() { cuda::dropout<T>(ctx, o); });
}

}  // namespace sinter
