// Batches from data that stays on the device: shuffling, and fetching with normalization.
#include <algorithm>
#include <cstdint>

#include "launch.cuh"
#include "sinter/kernels.h"
#include "sinter/philox.h"

namespace sinter {
namespace cuda {
namespace {

__global__ void shuffled_indices_kernel(int64_t n, uint64_t seed, uint64_t epoch, int64_t size,
                                        int64_t first, int64_t* index) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    index[i] = static_cast<int64_t>(
        permute_index(seed, epoch, static_cast<uint64_t>(size), static_cast<uint64_t>(first + i)));
}

template <class T> struct Normalization { T scale[4], shift[4]; };

template <class T, class Index>
__global__ void gather_images_kernel(Index n, int channels, Index plane, Normalization<T> z,
                                     const uint8_t* images, const int64_t* index, T* x) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const Index row = i / plane;  // of (image, channel)
    const Index image = row / channels;
    const int c = static_cast<int>(row - image * channels);
    const Index within = i - image * (plane * channels);
    const int64_t from = index[image] * (static_cast<int64_t>(plane) * channels) + within;
    x[i] = static_cast<T>(images[from]) * z.scale[c] + z.shift[c];
  }
}

__global__ void gather_labels_kernel(int64_t n, const uint8_t* labels, const int64_t* index,
                                     int64_t* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    y[i] = labels[index[i]];
}

}  // namespace
}  // namespace cuda

void shuffled_indices(const Cuda& ctx, uint64_t seed, uint64_t epoch, int64_t size, int64_t first,
                      int64_t count, int64_t* index) {
  cuda::launch_1d(ctx, "shuffled_indices", count, cuda::shuffled_indices_kernel, seed, epoch, size,
                  first, index);
}

template <class T> void gather_images(const Cuda& ctx, const GatherShape& g, const uint8_t* images,
                                      const int64_t* index, T* x) {
  cuda::Normalization<T> z;
  for (int c = 0; c < 4; ++c) {
    z.scale[c] = static_cast<T>(1.0 / (255.0 * static_cast<double>(g.std[c])));
    z.shift[c] = static_cast<T>(-static_cast<double>(g.mean[c]) / static_cast<double>(g.std[c]));
  }
  const int64_t plane = int64_t{g.h} * g.w, n = g.n * g.c * plane;
  cuda::with_index(n, [&](auto zero) {
    using Index = decltype(zero);
    cuda::launch_1d(ctx, "gather_images", n, cuda::gather_images_kernel<T, Index>, g.c,
                    static_cast<Index>(plane), z, images, index, x);
  });
}

void gather_labels(const Cuda& ctx, int64_t n, const uint8_t* labels, const int64_t* index,
                   int64_t* y) {
  cuda::launch_1d(ctx, "gather_labels", n, cuda::gather_labels_kernel, labels, index, y);
}

template void gather_images<float>(const Cuda&, const GatherShape&, const uint8_t*, const int64_t*,
                                   float*);
template void gather_images<double>(const Cuda&, const GatherShape&, const uint8_t*, const int64_t*,
                                    double*);

}  // namespace sinter
