// Convolution as a matrix product of the weights and a matrix of patches that is written out first:
// for some images at a time, so that memory stays bounded,
//   patches (c kh kw, images oh ow), rows of a group together
//   products (o, images oh ow) = weight (o, c / groups kh kw) patches, group by group
// and the products are put in order, (images, o, oh ow). The gradients are the two other products
// of the same three matrices.
#include <algorithm>
#include <cstdint>

#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/elementwise.cuh"
#include "kernels_cuda/gemm.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"

namespace sinter::cuda {
using namespace op;

namespace {

constexpr int64_t kPatchesBytes = int64_t{256} << 20;  // at most, unless one image needs more

// Matrices of `images` images from one of the batch on.
struct Chunk {
  Conv2dShape g;
  int64_t images;

  int64_t positions() const { return int64_t{g.oh} * g.ow; }
  int64_t columns() const { return images * positions(); }
  int64_t rows() const { return int64_t{g.c} * g.kh * g.kw; }
  int64_t x_image() const { return int64_t{g.c} * g.h * g.w; }
  int64_t y_image() const { return g.o * positions(); }
};

// Calls f(chunk, first image) until the batch is through.
template <class T, class F> void for_each_chunk(const Conv2dShape& g, const F& f) {
  Chunk chunk{g, 1};
  const int64_t image_bytes = chunk.rows() * chunk.positions() * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::max<int64_t>(kPatchesBytes / image_bytes, 1);
  for (int64_t first = 0; first < g.n; first += chunk.images) {
    chunk.images = std::min(most, g.n - first);
    f(chunk, first);
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    im2col(int64_t count, Conv2dShape g, int64_t columns, const T* x, T* patches) {
  for (auto e = thread_index<int64_t>(); e < count; e += thread_count<int64_t>()) {
    const int64_t row = e / columns, column = e % columns;
    const int j = static_cast<int>(row % g.kw), i = static_cast<int>(row / g.kw % g.kh);
    const int64_t c = row / g.kw / g.kh;
    const int ox = static_cast<int>(column % g.ow), oy = static_cast<int>(column / g.ow % g.oh);
    const int64_t n = column / g.ow / g.oh;
    const int iy = oy * g.stride_h - g.pad_h + i * g.dil_h;
    const int ix = ox * g.stride_w - g.pad_w + j * g.dil_w;
    const bool inside = 0 <= iy && iy < g.h && 0 <= ix && ix < g.w;
    patches[e] = inside ? x[((n * g.c + c) * g.h + iy) * g.w + ix] : T(0);
  }
}

// The transpose of im2col: a pixel adds up its places in the patches.
template <class T> __global__ void __launch_bounds__(kThreads)
    col2im(int64_t count, Conv2dShape g, int64_t columns, const T* patches, T* x) {
  for (auto e = thread_index<int64_t>(); e < count; e += thread_count<int64_t>()) {
    const int ix = static_cast<int>(e % g.w), iy = static_cast<int>(e / g.w % g.h);
    const int64_t c = e / g.w / g.h % g.c, n = e / g.w / g.h / g.c;
    T sum = 0;
    for (int i = 0; i < g.kh; ++i) {
      const int y = iy + g.pad_h - i * g.dil_h;
      if (y < 0 || y % g.stride_h != 0 || y / g.stride_h >= g.oh) continue;
      for (int j = 0; j < g.kw; ++j) {
        const int x_at = ix + g.pad_w - j * g.dil_w;
        if (x_at < 0 || x_at % g.stride_w != 0 || x_at / g.stride_w >= g.ow) continue;
        const int64_t column = (n * g.oh + y / g.stride_h) * g.ow + x_at / g.stride_w;
        sum += patches[((c * g.kh + i) * g.kw + j) * columns + column];
      }
    }
    x[e] = sum;
  }
}

// to (a, b, inner) = from (b, a, inner) with b's swapped, and bias[b] added where there is one; or
// the ReLU of that.
template <class T> __global__ void __launch_bounds__(kThreads)
    swap_outer(int64_t count, int64_t a, int64_t b, int64_t inner, const T* from, const T* bias,
               bool relu, T* to) {
  for (auto e = thread_index<int64_t>(); e < count; e += thread_count<int64_t>()) {
    const int64_t i = e % inner, at_b = e / inner % b, at_a = e / inner / b;
    const T value = from[(at_b * a + at_a) * inner + i] + (bias ? bias[at_b] : T(0));
    to[e] = act(value, act_limit<T>(relu));
  }
}

template <class T> void write_patches(const Cuda& ctx, const Chunk& chunk, const T* x, T* patches) {
  launch_1d(ctx, "conv2d: im2col", chunk.rows() * chunk.columns(), im2col<T>, chunk.g,
            chunk.columns(), x, patches);
}

// dy (images, o, positions) as (o, images positions).
template <class T>
void write_gradients(const Cuda& ctx, const Chunk& chunk, const T* dy, T* gradients) {
  launch_1d(ctx, "conv2d: im2col", chunk.g.o * chunk.columns(), swap_outer<T>, int64_t{chunk.g.o},
            chunk.images, chunk.positions(), dy, static_cast<const T*>(nullptr), false, gradients);
}

}  // namespace

template <class T> void im2col_conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                              const T* weight, const T* b, T* y, bool relu) {
  for_each_chunk<T>(g, [&](const Chunk& chunk, int64_t first) {
    const int64_t m = g.o / g.groups, k = chunk.rows() / g.groups, n = chunk.columns();
    const Scratch<T> patches(ctx, chunk.rows() * n), products(ctx, g.o * n);
    write_patches(ctx, chunk, x + first * chunk.x_image(), patches.data());
    gemm(ctx,
         {.m = m,
          .n = n,
          .k = k,
          .batch = g.groups,
          .stride_a = m * k,
          .stride_b = k * n,
          .tf32 = g.tf32},
         weight, static_cast<const T*>(patches.data()), products.data());
    launch_1d(ctx, "conv2d_forward", g.o * n, swap_outer<T>, chunk.images, int64_t{g.o},
              chunk.positions(), static_cast<const T*>(products.data()), b, relu,
              y + first * chunk.y_image());
  });
}

template <class T> void im2col_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g,
                                                    const T* dy, const T* weight, T* dx) {
  for_each_chunk<T>(g, [&](const Chunk& chunk, int64_t first) {
    const int64_t m = chunk.rows() / g.groups, k = g.o / g.groups, n = chunk.columns();
    const Scratch<T> patches(ctx, chunk.rows() * n), gradients(ctx, g.o * n);
    write_gradients(ctx, chunk, dy + first * chunk.y_image(), gradients.data());
    gemm(ctx,
         {.ta = true,
          .m = m,
          .n = n,
          .k = k,
          .batch = g.groups,
          .stride_a = m * k,
          .stride_b = k * n,
          .tf32 = g.tf32},
         weight, static_cast<const T*>(gradients.data()), patches.data());
    launch_1d(ctx, "conv2d_backward_data", chunk.images * chunk.x_image(), col2im<T>, g, n,
              static_cast<const T*>(patches.data()), dx + first * chunk.x_image());
  });
}

template <class T> void im2col_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                       const T* x, const T* dy, T* dweight) {
  const int64_t weights = int64_t{g.o} * (g.c / g.groups) * g.kh * g.kw;
  for_each_chunk<T>(g, [&](const Chunk& chunk, int64_t first) {
    const int64_t m = g.o / g.groups, n = chunk.rows() / g.groups, k = chunk.columns();
    const Scratch<T> patches(ctx, chunk.rows() * k), gradients(ctx, g.o * k);
    const Scratch<T> products(ctx, first > 0 ? weights : 0);
    write_patches(ctx, chunk, x + first * chunk.x_image(), patches.data());
    write_gradients(ctx, chunk, dy + first * chunk.y_image(), gradients.data());
    gemm(ctx,
         {.tb = true,
          .m = m,
          .n = n,
          .k = k,
          .batch = g.groups,
          .stride_a = m * k,
          .stride_b = n * k,
          .tf32 = g.tf32},
         static_cast<const T*>(gradients.data()), static_cast<const T*>(patches.data()),
         first > 0 ? products.data() : dweight);
    if (first > 0) accumulate(ctx, weights, static_cast<const T*>(products.data()), dweight);
  });
}

SINTER_INSTANTIATE_CONV(im2col, float)
SINTER_INSTANTIATE_CONV(im2col, double)

}  // namespace sinter::cuda
