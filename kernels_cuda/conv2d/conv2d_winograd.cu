// Convolution with 3 x 3 windows by Winograd's algorithm (core/backend/winograd.h), as 36 matrix
// products:
//   windows (36, o, c)  patches (36, splits, c, length)  tiles (36, splits, o, length)
//   forward           tiles = windows patches
//   backward data     tiles = windows^T patches
//   backward weights  windows = tiles patches^T, and the splits added up in order
// The tiles of a slice of the batch, (image, row, column), are cut into `splits` runs of `length`.
// There is one unless the product sums over tiles and has too few rows and columns to fill a GPU.
// Tiles come last so that a warp writes, and reads, 128 bytes in a row of each of the 36.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/backend/winograd.h"
#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/conv2d/conv2d_tile.cuh"
#include "kernels_cuda/gemm.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "sinter/operators/conv2d.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter::cuda {
using namespace op;

namespace {

using namespace winograd;

// ---- transforms ---------------------------------------------------------------------------------

// What they compute with.
template <class T> struct Numbers {
  __device__ static T add(T x, T y) { return x + y; }
  __device__ static T sub(T x, T y) { return x - y; }
  __device__ static T times(double f, T x) { return T(f) * x; }
  __device__ static T plus(T s, double f, T x) { return fma(T(f), x, s); }
};
#define SINTER_TRANSFORM __device__
#include "core/backend/winograd_transforms.h"
#undef SINTER_TRANSFORM

// Columns, then rows.
template <class Map, class T>
__device__ void transform(const T (&in)[Map::kFrom][Map::kFrom], T (&out)[Map::kTo][Map::kTo]) {
  T half[Map::kTo][Map::kFrom];
#pragma unroll
  for (int j = 0; j < Map::kFrom; ++j) {
    T column[Map::kFrom], moved[Map::kTo];
#pragma unroll
    for (int i = 0; i < Map::kFrom; ++i) column[i] = in[i][j];
    Map::apply(Numbers<T>{}, column, moved);
#pragma unroll
    for (int i = 0; i < Map::kTo; ++i) half[i][j] = moved[i];
  }
#pragma unroll
  for (int i = 0; i < Map::kTo; ++i) Map::apply(Numbers<T>{}, half[i], out[i]);
}

// ---- tiles and patches --------------------------------------------------------------------------

struct Tiles {
  int images, rows, columns;
  int splits;
  int64_t length;  // splits * length >= count(); what is beyond is zeros

  SINTER_HD int64_t count() const { return int64_t{images} * rows * columns; }
};

// (image, channel, h, w)
struct Planes {
  int channels, h, w;
};

// Element e of (splits, channels, length): its plane, and the tile's corner there.
struct Place {
  int64_t plane;
  int channel, y, x;
  bool inside;  // otherwise it is beyond the last tile
};
template <class Index>
__device__ Place place_of(const Tiles& tiles, const Planes& planes, Index e) {
  const auto length = static_cast<Index>(tiles.length);
  const auto channels = static_cast<Index>(planes.channels);
  const auto rows = static_cast<Index>(tiles.rows), columns = static_cast<Index>(tiles.columns);
  const Index run = e / length, split = run / channels, channel = run - split * channels;
  const Index tile = split * length + (e - run * length);
  const Index row = tile / columns, image = row / rows;
  return {static_cast<int64_t>(image) * planes.channels + channel, static_cast<int>(channel),
          kTile * static_cast<int>(row - image * rows),
          kTile * static_cast<int>(tile - row * columns), tile < tiles.count()};
}

// Columns x .. x + N of a row, zeros outside. kFours: the four that begin at the tile's corner are
// inside and lie on a multiple of 16 bytes; a patch has one more on either side.
template <int N, bool kFours, class T>
__device__ void load_row(const T* row, bool inside, int x, int w, T (&to)[N]) {
  if constexpr (kFours) {
    constexpr int kBefore = (N - kTile) / 2;
    const auto four = inside ? *reinterpret_cast<const Quad<T>*>(row + x + kBefore) : Quad<T>{};
#pragma unroll
    for (int j = 0; j < kTile; ++j) to[kBefore + j] = four.v[j];
    if constexpr (N > kTile) {
      to[0] = inside && x >= 0 ? row[x] : T(0);
      to[N - 1] = inside && x + N <= w ? row[x + N - 1] : T(0);
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = inside && 0 <= x + j && x + j < w ? row[x + j] : T(0);
  }
}

// Of x or dy (images, channels, h, w), patches (PatchToPoints) or tiles (TileToPoints), which begin
// (pad_h, pad_w) above and left of the tile's corner. to: (36, splits, channels, length).
template <class Map, bool kFours, class T, class Index> __global__ void __launch_bounds__(kThreads)
    to_points(Index count, Tiles tiles, Planes planes, int pad_h, int pad_w, const T* from, T* to) {
  constexpr int N = Map::kFrom;
  const auto e = thread_index<Index>();
  if (e >= count) return;
  const Place at = place_of(tiles, planes, e);
  const T* plane = from + at.plane * planes.h * planes.w;
  T in[N][N], out[kPatch][kPatch];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int y = at.y - pad_h + i;
    load_row<N, kFours>(plane + static_cast<int64_t>(y) * planes.w,
                        at.inside && 0 <= y && y < planes.h, at.x - pad_w, planes.w, in[i]);
  }
  transform<Map>(in, out);
  to += e;
#pragma unroll
  for (int p = 0; p < kPoints; ++p)
    to[static_cast<int64_t>(p) * count] = out[p / kPatch][p % kPatch];
}

// y (images, channels, h, w) from tiles (36, channels, length), with b (channels), nullable; or the
// ReLU of that.
template <bool kFours, class T, class Index> __global__ void __launch_bounds__(kThreads)
    from_points(Index count, Tiles tiles, Planes planes, const T* from, const T* b, bool relu,
                T* y) {
  const auto e = thread_index<Index>();
  if (e >= count) return;
  const Place at = place_of(tiles, planes, e);
  if (!at.inside) return;
  T in[kPatch][kPatch], out[kTile][kTile];
  from += e;
#pragma unroll
  for (int p = 0; p < kPoints; ++p)
    in[p / kPatch][p % kPatch] = from[static_cast<int64_t>(p) * count];
  const T bias = b ? b[at.channel] : T(0);
  transform<PointsToTile>(in, out);
  const T limit = act_limit<T>(relu);
  T* to = y + (at.plane * planes.h + at.y) * planes.w + at.x;
#pragma unroll
  for (int i = 0; i < kTile; ++i, to += planes.w) {
    if (at.y + i >= planes.h) break;
    if constexpr (kFours) {
      Quad<T> four;
#pragma unroll
      for (int j = 0; j < kTile; ++j) four.v[j] = act(out[i][j] + bias, limit);
      *reinterpret_cast<Quad<T>*>(to) = four;
    } else {
#pragma unroll
      for (int j = 0; j < kTile; ++j)
        if (at.x + j < planes.w) to[j] = act(out[i][j] + bias, limit);
    }
  }
}

// ---- windows ------------------------------------------------------------------------------------

// weight (pairs, 3, 3), kRotate: by 180 degrees, to windows (36, pairs); a pair is (o, c). Windows
// pass through shared memory, so that a warp reads them in a row.
template <bool kRotate, class T> __global__ void __launch_bounds__(kThreads)
    windows_to_points(int64_t pairs, const T* weight, T* windows) {
  __shared__ T taps[kThreads * kTaps];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads;
  for (int i = threadIdx.x; i < kThreads * kTaps; i += kThreads)
    if (first * kTaps + i < pairs * kTaps) taps[i] = weight[first * kTaps + i];
  __syncthreads();
  const int64_t pair = first + threadIdx.x;
  if (pair >= pairs) return;
  T in[kWindow][kWindow], out[kPatch][kPatch];
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap)
    in[tap / kWindow][tap % kWindow] =
        taps[threadIdx.x * kTaps + (kRotate ? kTaps - 1 - tap : tap)];
  transform<WindowToPoints>(in, out);
#pragma unroll
  for (int p = 0; p < kPoints; ++p) windows[p * pairs + pair] = out[p / kPatch][p % kPatch];
}

// dweight (pairs, 3, 3) from windows (36, splits, pairs), whose splits it adds up in order; `add`:
// to what is there. A block makes 32 windows; each warp takes a column of the 6 x 6 points.
constexpr int kGradientThreads = 32 * kPatch;
template <class T> __global__ void __launch_bounds__(kGradientThreads)
    windows_from_points(int64_t pairs, int splits, const T* windows, bool add, T* dweight) {
  __shared__ T halves[kWindow][kPatch][33];  // 33: the rows of a window in different banks
  const int lane = threadIdx.x % 32, column = threadIdx.x / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 32, pair = first + lane;
  T sums[kPatch] = {}, half[kWindow];
  if (pair < pairs) {
#pragma unroll 4
    for (int s = 0; s < splits; ++s)
#pragma unroll
      for (int i = 0; i < kPatch; ++i)
        sums[i] += windows[(static_cast<int64_t>(i * kPatch + column) * splits + s) * pairs + pair];
  }
  PointsToWindow::apply(Numbers<T>{}, sums, half);
#pragma unroll
  for (int i = 0; i < kWindow; ++i) halves[i][column][lane] = half[i];
  __syncthreads();
  for (int e = threadIdx.x; e < 32 * kTaps; e += kGradientThreads) {
    const int window = e / kTaps, row = e % kTaps / kWindow;
    if (first + window >= pairs) break;
    T in[kPatch], out[kWindow];
#pragma unroll
    for (int j = 0; j < kPatch; ++j) in[j] = halves[row][j][window];
    PointsToWindow::apply(Numbers<T>{}, in, out);
    const int at = e % kWindow;
    const T value = at == 0 ? out[0] : at == 1 ? out[1] : out[2];
    T* to = dweight + first * kTaps + e;
    *to = add ? *to + value : value;
  }
}

// ---- launchers ----------------------------------------------------------------------------------

// Rows of the matrices begin on 32 bytes: loads of four elements for cuBLAS, whole sectors for us.
constexpr int kLengthMultiple = 8;

Tiles tiles_of(int images, int h, int w, int splits) {
  Tiles tiles{images, static_cast<int>(ceil_div(h, kTile)), static_cast<int>(ceil_div(w, kTile)),
              splits, 0};
  tiles.length = ceil_div(ceil_div(tiles.count(), splits), kLengthMultiple) * kLengthMultiple;
  return tiles;
}

template <class T> bool rows_of_fours(const T* p, int w) {
  return w % kTile == 0 && reinterpret_cast<uintptr_t>(p) % sizeof(Quad<T>) == 0;
}

template <class Map, class T> void launch_to_points(const Cuda& ctx, const Operation& operation,
                                                    const Tiles& tiles, const Planes& planes,
                                                    int pad_h, int pad_w, const T* from, T* to) {
  const int64_t count = tiles.length * tiles.splits * planes.channels;
  // Patches one pixel left of tiles that fill the rows, or these tiles.
  const bool fours = rows_of_fours(from, planes.w) && pad_w == (Map::kFrom - kTile) / 2 &&
                     kTile * tiles.columns == planes.w;
  with_index(count, [&]<class Index>(Index) {
    launch(ctx, operation, static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0,
           fours ? to_points<Map, true, T, Index> : to_points<Map, false, T, Index>,
           static_cast<Index>(count), tiles, planes, pad_h, pad_w, from, to);
  });
}

// Images of a slice, whose patches and tiles together fit in `bytes`, as far as one image's do; the
// slices are about equal.
int64_t slice_of(const Conv2dShape& g, int64_t tiles_of_image, int64_t element, int64_t bytes) {
  const int64_t image = kPoints * (int64_t{g.c} + g.o) * tiles_of_image * element;
  const int64_t most = std::clamp<int64_t>(bytes / image, 1, g.n);
  return ceil_div(g.n, ceil_div(g.n, most));
}

// y (n, o, oh, ow) = x (n, c, h, w) correlated with weight (o, c, 3, 3); kBackward: rotated
// (c, o, 3, 3). g describes this correlation, whatever the pass.
template <bool kBackward, class T>
void correlate(const Cuda& ctx, const char* name, const Conv2dShape& g, const T* x, const T* weight,
               const T* b, bool relu, T* y, const WinogradBounds& bounds) {
  const Operation operation{name, g.n, g.o, g.oh, g.ow};
  const int64_t pairs = int64_t{g.o} * g.c;
  const Scratch<T> windows(ctx, kPoints * pairs);
  launch(ctx, operation, static_cast<unsigned>(ceil_div(pairs, kThreads)), kThreads, 0,
         windows_to_points<kBackward, T>, pairs, weight, windows.data());

  const Planes read{g.c, g.h, g.w}, made{g.o, g.oh, g.ow};
  const int64_t images =
      slice_of(g, tiles_of(1, g.oh, g.ow, 1).count(), sizeof(T), bounds.scratch_bytes);
  for (int64_t first = 0; first < g.n; first += images) {
    const Tiles tiles = tiles_of(static_cast<int>(std::min(images, g.n - first)), g.oh, g.ow, 1);
    const Scratch<T> patches(ctx, tiles.length * kPoints * g.c);
    const Scratch<T> results(ctx, tiles.length * kPoints * g.o);
    launch_to_points<PatchToPoints>(ctx, operation, tiles, read, g.pad_h, g.pad_w,
                                    x + first * g.c * g.h * g.w, patches.data());
    gemm(ctx,
         {.ta = kBackward,
          .m = g.o,
          .n = tiles.length,
          .k = g.c,
          .batch = kPoints,
          .stride_a = pairs,
          .stride_b = g.c * tiles.length},
         static_cast<const T*>(windows.data()), static_cast<const T*>(patches.data()),
         results.data());
    const int64_t count = g.o * tiles.length;
    T* const to = y + first * g.o * g.oh * g.ow;
    const bool fours = rows_of_fours(to, g.ow);
    with_index(count, [&]<class Index>(Index) {
      launch(ctx, operation, static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0,
             fours ? from_points<true, T, Index> : from_points<false, T, Index>,
             static_cast<Index>(count), tiles, made, static_cast<const T*>(results.data()), b, relu,
             to);
    });
  }
}

// Into how many products of shorter sums to cut the 36 of a weights' gradient. In 64 x 64 tiles of
// the results, of which a multiprocessor of a large GPU works on four at a time: rounds of these,
// against writing and reading the partial sums. Depends on the geometry alone.
int best_splits(const Conv2dShape& g, int64_t tiles) {
  constexpr int64_t kAtOnce = 4 * 132;
  // In time for 64 x 64 multiplications by one of four on a multiprocessor, about 86 ns, in which
  // memory moves some 300 kB: a tile of partial sums is 32 kB, to be written and read.
  constexpr double kPartial = 0.11;
  constexpr int kMost = 64, kLeastLength = 128;
  const int64_t results = kPoints * ceil_div(g.o, 64) * ceil_div(g.c, 64);
  int best = 1;
  double least = 0;
  for (int splits = 1; splits <= kMost; ++splits) {
    const int64_t length = ceil_div(tiles, splits);
    if (splits > 1 && length < kLeastLength) break;
    const int64_t rounds = ceil_div(results * splits, kAtOnce);
    const double cost =
        static_cast<double>(rounds * length) + kPartial * static_cast<double>(results * splits);
    if (splits == 1 || cost < 0.97 * least) {  // for less than that, fewer
      best = splits;
      least = cost;
    }
  }
  return best;
}

}  // namespace

bool winograd_conv2d_pays(const Cuda& ctx, const ConvTask& task) {
  if (task.dtype != kFloat32) return false;
  const Conv2dShape& g = task.g;
  // Against the tensor cores' algorithm, which multiplies three times where this one does once, or
  // once with TF32 (measured on an H200: docs/benchmarks.md).
  const bool once =
      g.tf32 && task.pass != ConvPass::kBackwardWeights && tensor_conv2d_lacks(ctx, task).empty();
  if (std::min(g.c, g.o) < (once ? 256 : 64)) return false;
  // Enough tiles that multiplying them takes longer than moving 36 sums for each window, and at
  // least half of what they cover inside the image.
  return fills_tiles(g.n, g.oh, g.ow, 64);
}

template <class T> void winograd_conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                                const T* weight, const T* b, T* y, bool relu,
                                                const WinogradBounds& bounds) {
  correlate<false>(ctx, "conv2d_forward", g, x, weight, b, relu, y, bounds);
}

template <class T> void winograd_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g,
                                                      const T* dy, const T* weight, T* dx,
                                                      const WinogradBounds& bounds) {
  Conv2dShape back = g;
  std::swap(back.c, back.o);
  std::swap(back.h, back.oh);
  std::swap(back.w, back.ow);
  back.pad_h = kWindow - 1 - g.pad_h;
  back.pad_w = kWindow - 1 - g.pad_w;
  correlate<true>(ctx, "conv2d_backward_data", back, dy, weight, static_cast<const T*>(nullptr),
                  false, dx, bounds);
}

template <class T> void winograd_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                         const T* x, const T* dy, T* dweight,
                                                         const WinogradBounds& bounds) {
  const Operation operation{"conv2d_backward_weights", g.n, g.c, g.h, g.w};
  const int64_t pairs = int64_t{g.o} * g.c;
  const int64_t tiles_of_image = tiles_of(1, g.oh, g.ow, 1).count();
  const Planes read{g.c, g.h, g.w}, made{g.o, g.oh, g.ow};
  const int64_t images = slice_of(g, tiles_of_image, sizeof(T), bounds.scratch_bytes);
  for (int64_t first = 0; first < g.n; first += images) {
    const auto count = static_cast<int>(std::min(images, g.n - first));
    const int splits = bounds.splits > 0 ? bounds.splits : best_splits(g, count * tiles_of_image);
    const Tiles tiles = tiles_of(count, g.oh, g.ow, splits);
    const Scratch<T> patches(ctx, tiles.length * splits * kPoints * g.c);
    const Scratch<T> gradients(ctx, tiles.length * splits * kPoints * g.o);
    const Scratch<T> windows(ctx, pairs * kPoints * splits);
    launch_to_points<PatchToPoints>(ctx, operation, tiles, read, g.pad_h, g.pad_w,
                                    x + first * g.c * g.h * g.w, patches.data());
    launch_to_points<TileToPoints>(ctx, operation, tiles, made, 0, 0,
                                   dy + first * g.o * g.oh * g.ow, gradients.data());
    gemm(ctx,
         {.tb = true,
          .m = g.o,
          .n = g.c,
          .k = tiles.length,
          .batch = int64_t{kPoints} * splits,
          .stride_a = g.o * tiles.length,
          .stride_b = g.c * tiles.length},
         static_cast<const T*>(gradients.data()), static_cast<const T*>(patches.data()),
         windows.data());
    launch(ctx, operation, static_cast<unsigned>(ceil_div(pairs, 32)), kGradientThreads, 0,
           windows_from_points<T>, pairs, splits, static_cast<const T*>(windows.data()), first > 0,
           dweight);
  }
}

template <class T> void winograd_conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                                const T* weight, const T* b, T* y, bool relu) {
  winograd_conv2d_forward(ctx, g, x, weight, b, y, relu, {});
}
template <class T> void winograd_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g,
                                                      const T* dy, const T* weight, T* dx) {
  winograd_conv2d_backward_data(ctx, g, dy, weight, dx, {});
}
template <class T> void winograd_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                         const T* x, const T* dy, T* dweight) {
  winograd_conv2d_backward_weights(ctx, g, x, dy, dweight, {});
}

SINTER_INSTANTIATE_CONV(winograd, float)
SINTER_INSTANTIATE_CONV(winograd, double)
#define SINTER_INSTANTIATE(T)                                                                      \
  template void winograd_conv2d_forward(const Cuda&, const Conv2dShape&, const T*, const T*,       \
                                        const T*, T*, bool, const WinogradBounds&);                \
  template void winograd_conv2d_backward_data(const Cuda&, const Conv2dShape&, const T*, const T*, \
                                              T*, const WinogradBounds&);                          \
  template void winograd_conv2d_backward_weights(const Cuda&, const Conv2dShape&, const T*,        \
                                                 const T*, T*, const WinogradBounds&);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter::cuda
