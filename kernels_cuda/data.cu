// Batches from data that stays on the device: shuffling, and fetching with normalization.
#include <algorithm>
#include <cstdint>

#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/stream.cuh"
#include "sinter/operators/data.h"
#include "sinter/philox.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

__global__ void shuffled_indices_kernel(int64_t n, uint64_t seed, uint64_t epoch, int64_t size,
                                        int64_t first, int64_t* index) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    index[i] = static_cast<int64_t>(
        permute_index(seed, epoch, static_cast<uint64_t>(size), static_cast<uint64_t>(first + i)));
}

template <class T> struct Normalization { T scale[4], shift[4]; };

// Every block reads *position before it draws its ticket, so the last one may move it.
template <class T> __global__ void __launch_bounds__(kThreads)
    gather_batch_kernel(GatherShape g, Normalization<T> z, const uint8_t* images,
                        const uint8_t* labels, const int64_t* index, int64_t* position, T* x,
                        int64_t* y, unsigned* ticket) {
  wait_for_earlier();
  const int64_t first = position ? *position : g.first;
  const int plane = g.h * g.w, size = plane * g.c;  // of bytes: the framework bounds them
  for (int64_t i = blockIdx.x; i < g.n; i += gridDim.x) {
    const int64_t from = index[(first + i) % g.size];
    if (threadIdx.x == 0) y[i] = labels[from];
    const uint8_t* image = images + from * size;
    T* to = x + i * size;
    for (int e = threadIdx.x; e < size; e += kThreads) {
      const int c = e / plane;
      to[e] = static_cast<T>(image[e]) * z.scale[c] + z.shift[c];
    }
  }
  if (position && last_block(ticket, gridDim.x) && threadIdx.x == 0) *position = first + g.n;
}

template <class T> void gather_batch(const Cuda& ctx, const GatherBatch& o) {
  const GatherShape& g = o.g;
  if (g.n == 0) return;
  Normalization<T> z;
  for (int c = 0; c < 4; ++c) {
    z.scale[c] = static_cast<T>(1.0 / (255.0 * static_cast<double>(g.std[c])));
    z.shift[c] = static_cast<T>(-static_cast<double>(g.mean[c]) / static_cast<double>(g.std[c]));
  }
  // Not early: it runs beside a step, whose next kernels want the room.
  launch_early(ctx, {"gather_batch", g.n, g.c, g.h, g.w},
               static_cast<unsigned>(std::min<int64_t>(g.n, 1 << 16)), kThreads, 0,
               {.early = false}, gather_batch_kernel<T>, g, z, o.images.data<uint8_t>(),
               o.labels.data<uint8_t>(), o.index.data<int64_t>(), o.position.data<int64_t>(),
               o.x.data<T>(), o.y.data<int64_t>(), stream_resources(ctx).ticket);
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const ShuffledIndices& o) {
  cuda::launch_1d(ctx, "shuffled_indices", o.index.numel(), cuda::shuffled_indices_kernel, o.seed,
                  o.epoch, o.size, o.first, o.index.data<int64_t>());
}

void run(const Cuda& ctx, const GatherBatch& o) {
  with_floating(o.x, [&]<class T>() { cuda::gather_batch<T>(ctx, o); });
}

}  // namespace sinter
