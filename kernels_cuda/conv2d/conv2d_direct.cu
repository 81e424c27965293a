// Convolution of unit stride and dilation, one group and few input channels: the first layers of
// small networks, where a matrix product would have an inner dimension too short to pay for its
// tiles. Image tile and weights sit in shared memory, and each thread keeps a small tile of results
// in registers. The weights' gradient is a sum over the batch, made in two stages: partial sums
// over slices that depend on the geometry alone, then a sum over the slices in order.
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/conv2d/conv2d_tile.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/sum.cuh"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter::cuda {
using namespace op;

namespace {

// ---- direct: forward, and backward data as the forward pass of another convolution --------------

// y (n, o, oh, ow) = x (n, c, h, w) correlated with (o, c, kh, K), padded with zeros. A block makes
// `rows` rows of one image, for 4 * quads output channels.
struct DirectPlan {
  int n, c, h, w, o, oh, ow, kh, pad_h, pad_w;
  int pairs;  // of horizontally adjacent outputs, in a row; a thread makes one pair
  int rows, bands;
  int quads, quad_blocks;
  bool relu = false;  // of the sums

  SINTER_HD int tile_h() const { return rows + kh - 1; }
  SINTER_HD int tile_w(int k) const { return 2 * pairs + k - 1; }  // even: k is odd
  SINTER_HD int tile_size(int k) const { return (c * tile_h() * tile_w(k) + 3) / 4 * 4; }
  SINTER_HD int weights_size(int k) const { return c * kh * k * 4 * quads; }
};

// Copies rows [y0, y0 + tile_h) and columns [x0, x0 + width) of every channel of an image (c, h, w)
// into a tile (c, tile_h, pitch), zeros outside. A warp a row, so that decoding an index is not
// most of the work, and asynchronously, so that all of it is in flight at once.
template <class T> __device__ void load_tile(const T* image, int c, int h, int w, int y0, int x0,
                                             int tile_h, int width, int pitch, T* tile) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int row = threadIdx.x / 32; row < c * tile_h; row += warps) {
    const int channel = row / tile_h, y = y0 + row % tile_h;
    const bool inside = 0 <= y && y < h;
    const T* from = image + (static_cast<int64_t>(channel) * h + y) * w;
    for (int column = lane; column < width; column += 32) {
      const int x = x0 + column;
      T* to = tile + row * pitch + column;
      if (inside && 0 <= x && x < w)
        __pipeline_memcpy_async(to, from + x, sizeof(T));
      else
        *to = T(0);
    }
  }
}

// kFlip: `weight` is (c, o, kh, K), rotated by 180 degrees: the correlation that carries dy back.
template <class T, int K, bool kFlip> __global__ void __launch_bounds__(kThreads)
    direct_conv(DirectPlan g, const T* x, const T* weight, const T* b, T* y) {
  static_assert(K % 2 == 1);
  T* tile = dynamic_shared<T>();       // (c, tile_h, tile_w)
  T* weights = tile + g.tile_size(K);  // (c, kh, K, quads, 4)
  const int64_t image = blockIdx.x / g.bands;
  const int y0 = static_cast<int>(blockIdx.x % g.bands) * g.rows;
  const int o0 = blockIdx.y * g.quads * 4;
  const int tile_h = g.tile_h(), tile_w = g.tile_w(K);

  load_tile(x + image * g.c * g.h * g.w, g.c, g.h, g.w, y0 - g.pad_h, -g.pad_w, tile_h, tile_w,
            tile_w, tile);
  const int window = g.kh * K, taps = g.c * window;
  for (int e = threadIdx.x; e < 4 * g.quads * taps; e += blockDim.x) {
    const int o = e / taps, tap = e - o * taps;  // tap: (c, kh, K)
    T* to = weights + tap * 4 * g.quads + o;
    if (o0 + o >= g.o) {
      *to = T(0);
    } else if constexpr (kFlip) {
      const int channel = tap / window, at = tap - channel * window;
      __pipeline_memcpy_async(to, weight + (channel * g.o + o0 + o) * window + window - 1 - at,
                              sizeof(T));
    } else {
      __pipeline_memcpy_async(to, weight + (o0 + o) * taps + tap, sizeof(T));
    }
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();

  const int items = g.pairs * g.rows;
  const int quad = threadIdx.x / items, item = threadIdx.x % items;
  const int row = item / g.pairs, column = 2 * (item % g.pairs);
  if (quad >= g.quads || y0 + row >= g.oh) return;

  T sum[4][2] = {};  // output channels x columns
  const T* x_row = tile + row * tile_w + column;
  const T* w_row = weights + quad * 4;
  for (int channel = 0; channel < g.c; ++channel) {
    for (int i = 0; i < g.kh; ++i) {
      T v[K + 1];
#pragma unroll
      for (int q = 0; q < (K + 1) / 2; ++q) {
        const auto two = *reinterpret_cast<const Pair<T>*>(x_row + i * tile_w + 2 * q);
        v[2 * q] = two.v[0];
        v[2 * q + 1] = two.v[1];
      }
#pragma unroll
      for (int j = 0; j < K; ++j) {
        const auto w = *reinterpret_cast<const Quad<T>*>(w_row);
        w_row += 4 * g.quads;
#pragma unroll
        for (int o = 0; o < 4; ++o) {
          sum[o][0] += w.v[o] * v[j];
          sum[o][1] += w.v[o] * v[j + 1];
        }
      }
    }
    x_row += tile_h * tile_w;
  }

  const T limit = act_limit<T>(g.relu);
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int o = o0 + quad * 4 + q;
    if (o >= g.o) break;
    const T bias = b ? b[o] : T(0);
    T* out = y + ((image * g.o + o) * g.oh + y0 + row) * g.ow + column;
    out[0] = act(sum[q][0] + bias, limit);
    if (column + 1 < g.ow) out[1] = act(sum[q][1] + bias, limit);
  }
}

// ---- direct: backward weights -------------------------------------------------------------------

// dweight (o, c, kh, K) and db (o). An item is a band of `rows` output rows of one image; a block
// adds up every blocks-th item. A task is one row of a window, (channel, i), for 4 output channels:
// 4 * K sums that a thread keeps in registers. The last row of windows stands for db: it reads ones
// instead of x. `splits` threads share a task, each taking every splits-th row of the band.
struct DirectWeightsPlan {
  int n, c, h, w, o, oh, ow, kh, pad_h, pad_w;
  int rows, bands;
  int quads, quad_blocks;
  int splits, blocks;

  SINTER_HD int tasks() const { return (c * kh + 1) * quads; }
  SINTER_HD int tile_h() const { return rows + kh - 1; }
  SINTER_HD int width() const { return (ow + 1) / 2 * 2; }  // a thread takes two columns at a time
  SINTER_HD int pitch(int k) const {
    return (width() + k - 1) | 1;
  }  // odd: rows in different banks
  SINTER_HD int tile_size(int k) const { return (c * tile_h() * pitch(k) + 3) / 4 * 4; }
  SINTER_HD int grads_size() const { return rows * width() * 4 * quads; }
  SINTER_HD int shared_size(int k) const {
    const int staged = tile_size(k) + grads_size() + pitch(k), sums = splits * tasks() * 4 * k;
    return staged > sums ? staged : sums;
  }
  SINTER_HD int outputs(int k) const { return o * c * kh * k + o; }  // dweight, then db
};

// partial: (blocks, outputs)
template <class T, int K> __global__ void __launch_bounds__(kThreads)
    direct_backward_weights(DirectWeightsPlan g, const T* x, const T* dy, T* partial) {
  const int tile_h = g.tile_h(), pitch = g.pitch(K), width = g.width(), channels = 4 * g.quads;
  T* tile = dynamic_shared<T>();     // (c, tile_h, pitch)
  T* grads = tile + g.tile_size(K);  // (rows, width, channels)
  T* ones = grads + g.grads_size();  // (pitch)
  const int o0 = blockIdx.y * channels;
  const int tasks = g.tasks();
  const int task = threadIdx.x % tasks, split = threadIdx.x / tasks;
  const int window_row = task / g.quads, quad = task % g.quads;
  const bool is_bias = window_row == g.c * g.kh;
  const T* x_row = is_bias ? ones : tile + (window_row / g.kh * tile_h + window_row % g.kh) * pitch;
  const int x_step = is_bias ? 0 : pitch;
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;

  for (int e = threadIdx.x; e < pitch; e += blockDim.x) ones[e] = T(1);
  T sum[4][K] = {};
  for (int64_t item = blockIdx.x; item < static_cast<int64_t>(g.n) * g.bands; item += g.blocks) {
    const int64_t image = item / g.bands;
    const int y0 = static_cast<int>(item % g.bands) * g.rows;
    const int rows = min(g.rows, g.oh - y0);
    __syncthreads();  // the previous item has been read
    load_tile(x + image * g.c * g.h * g.w, g.c, g.h, g.w, y0 - g.pad_h, -g.pad_w, tile_h,
              width + K - 1, pitch, tile);
    for (int r = threadIdx.x / 32; r < channels * rows; r += warps) {
      const int o = r / rows, row = r - o * rows;
      const T* from = dy + ((image * g.o + o0 + o) * g.oh + y0 + row) * g.ow;
      for (int column = lane; column < width; column += 32) {
        T* to = grads + (row * width + column) * channels + o;
        if (o0 + o < g.o && column < g.ow)
          __pipeline_memcpy_async(to, from + column, sizeof(T));
        else
          *to = T(0);
      }
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();

    // Surplus threads have split >= splits and copy only.
    for (int row = split; split < g.splits && row < rows; row += g.splits) {
      const T* xs = x_row + row * x_step;
      const T* ds = grads + row * width * channels + quad * 4;
      T v[K + 1];
#pragma unroll
      for (int j = 0; j < K - 1; ++j) v[j] = xs[j];
      for (int column = 0; column < width; column += 2) {
        v[K - 1] = xs[column + K - 1];
        v[K] = xs[column + K];
        const auto d0 = *reinterpret_cast<const Quad<T>*>(ds + column * channels);
        const auto d1 = *reinterpret_cast<const Quad<T>*>(ds + (column + 1) * channels);
#pragma unroll
        for (int j = 0; j < K; ++j)
#pragma unroll
          for (int o = 0; o < 4; ++o) {
            sum[o][j] += d0.v[o] * v[j];
            sum[o][j] += d1.v[o] * v[j + 1];
          }
#pragma unroll
        for (int j = 0; j < K - 1; ++j) v[j] = v[j + 2];
      }
    }
  }

  // The splits of a task, added in order, over the tiles' memory.
  __syncthreads();
  T* sums = tile;  // (splits, tasks, 4, K)
  if (split < g.splits) {
#pragma unroll
    for (int o = 0; o < 4; ++o)
#pragma unroll
      for (int j = 0; j < K; ++j) sums[((split * tasks + task) * 4 + o) * K + j] = sum[o][j];
  }
  __syncthreads();
  T* out = partial + static_cast<int64_t>(blockIdx.x) * g.outputs(K);
  const int window = g.kh * K;
  for (int e = threadIdx.x; e < tasks * 4 * K; e += blockDim.x) {
    const int j = e % K, q = e / K % 4, from = e / K / 4;
    const int o = o0 + from % g.quads * 4 + q, window_row_of = from / g.quads;
    if (o >= g.o) continue;
    T total = sums[e];
    for (int s = 1; s < g.splits; ++s) total += sums[s * tasks * 4 * K + e];
    if (window_row_of < g.c * g.kh)
      out[o * g.c * window + window_row_of * K + j] = total;
    else if (j == 0)
      out[g.o * g.c * window + o] = total;
  }
}

// ---- plans --------------------------------------------------------------------------------------

bool unit_window(const Conv2dShape& g) {
  return g.stride_h == 1 && g.stride_w == 1 && g.dil_h == 1 && g.dil_w == 1 && g.groups == 1 &&
         (g.kw == 3 || g.kw == 5) && g.kh <= 7;
}

// The direct kernel for y (n, o, oh, ow) from x (n, c, h, w), if it pays and its tiles fit.
template <class T> std::optional<DirectPlan> direct_plan(int n, int c, int h, int w, int o, int oh,
                                                         int ow, int kh, int kw, int pad_h,
                                                         int pad_w) {
  if (c > 16 || o > 256 || ow > 256 || pad_h < 0 || pad_w < 0) return {};
  DirectPlan p{n, c, h, w, o, oh, ow, kh, pad_h, pad_w, (ow + 1) / 2, 0, 0, 0, 0};
  const auto fits = [&] {
    return (p.tile_size(kw) + p.weights_size(kw)) * sizeof(T) <= kSharedBytes;
  };
  // 128 pairs of outputs a block, the bands of an image about equal, and 256 threads.
  p.quads = 1;
  p.rows = std::min(oh, std::max(1, 128 / p.pairs));
  while (p.rows > 1 && !fits()) --p.rows;
  if (!fits()) return {};
  p.bands = static_cast<int>(ceil_div(oh, p.rows));
  p.rows = static_cast<int>(ceil_div(oh, p.bands));
  const int all_quads = static_cast<int>(ceil_div(o, 4));
  p.quads = std::clamp(256 / (p.pairs * p.rows), 1, all_quads);
  while (p.quads > 1 && !fits()) --p.quads;
  // A small batch has too few images to fill the GPU: spread the channels, then the rows.
  const auto blocks = [&] { return int64_t{n} * p.bands * ceil_div(all_quads, p.quads); };
  while (blocks() < kEnoughBlocks && p.quads > 1) p.quads = static_cast<int>(ceil_div(p.quads, 2));
  while (blocks() < kEnoughBlocks && p.rows > 4) {
    p.rows = static_cast<int>(ceil_div(p.rows, 2));
    p.bands = static_cast<int>(ceil_div(oh, p.rows));
  }
  p.quad_blocks = static_cast<int>(ceil_div(all_quads, p.quads));
  if (int64_t{n} * p.bands >= int64_t{1} << 31) return {};
  return p;
}

template <class T> std::optional<DirectWeightsPlan> direct_weights_plan(const Conv2dShape& g) {
  if (!unit_window(g) || g.c > 16 || g.o > 256 || g.ow > 256) return {};
  DirectWeightsPlan p{g.n,     g.c,     g.h, g.w, g.o, g.oh, g.ow, g.kh,
                      g.pad_h, g.pad_w, 0,   0,   0,   0,    0,    0};
  const int all_quads = static_cast<int>(ceil_div(g.o, 4));
  p.quads = std::clamp(256 / (g.c * g.kh + 1), 1, all_quads);
  p.quad_blocks = static_cast<int>(ceil_div(all_quads, p.quads));
  // Whole images if they fit, but enough bands to fill the GPU. More rows than this have more bytes
  // than shared memory, and tiles of them perhaps more elements than an int counts.
  constexpr int kMostRows = kSharedBytes / static_cast<int>(sizeof(T));
  for (p.bands = static_cast<int>(ceil_div(g.oh, kMostRows)); p.bands <= g.oh; ++p.bands) {
    p.rows = static_cast<int>(ceil_div(g.oh, p.bands));
    // `splits` threads a task, such that none of them is idle in the last round.
    const int most = std::clamp(256 / p.tasks(), 1, p.rows);
    p.splits = static_cast<int>(ceil_div(p.rows, ceil_div(p.rows, most)));
    const bool fits = p.shared_size(g.kw) * sizeof(T) <= kSharedBytes;
    const bool enough = int64_t{g.n} * p.bands * p.quad_blocks >= kEnoughBlocks || p.rows <= 4;
    if (!fits || !enough) continue;
    p.bands = static_cast<int>(ceil_div(g.oh, p.rows));
    p.blocks = static_cast<int>(std::min<int64_t>(int64_t{g.n} * p.bands, kMaxSlices));
    return p;
  }
  return {};
}

template <class T> std::optional<DirectPlan> forward_plan(const Conv2dShape& g) {
  if (!unit_window(g)) return {};
  return direct_plan<T>(g.n, g.c, g.h, g.w, g.o, g.oh, g.ow, g.kh, g.kw, g.pad_h, g.pad_w);
}
// Of the forward pass of dy that gives dx.
template <class T> std::optional<DirectPlan> data_plan(const Conv2dShape& g) {
  if (!unit_window(g)) return {};
  return direct_plan<T>(g.n, g.o, g.oh, g.ow, g.c, g.h, g.w, g.kh, g.kw, g.kh - 1 - g.pad_h,
                        g.kw - 1 - g.pad_w);
}

template <class T> bool can(const ConvTask& task) {
  switch (task.pass) {
    case ConvPass::kForward:
      return forward_plan<T>(task.g).has_value();
    case ConvPass::kBackwardData:
      return data_plan<T>(task.g).has_value();
    case ConvPass::kBackwardWeights:
      break;
  }
  return direct_weights_plan<T>(task.g).has_value();
}

template <class T, bool kFlip> void launch_direct(LaunchSite site, const char* name,
                                                  const DirectPlan& p, int kw, const T* x,
                                                  const T* weight, const T* b, T* y) {
  const auto shared = (p.tile_size(kw) + p.weights_size(kw)) * sizeof(T);
  launch(site, {name, p.n, p.o, p.oh, p.ow},
         dim3(static_cast<unsigned>(p.n * p.bands), static_cast<unsigned>(p.quad_blocks)),
         round_up(p.pairs * p.rows * p.quads, 32), shared,
         kw == 3 ? direct_conv<T, 3, kFlip> : direct_conv<T, 5, kFlip>, p, x, weight, b, y);
}

}  // namespace

std::string direct_conv2d_lacks(const Cuda&, const ConvTask& task) {
  if (task.dtype == kFloat64 ? can<double>(task) : can<float>(task)) return {};
  return "stride and dilation 1, one group, windows 3 or 5 wide and at most 7 high, at most 16 "
         "channels read and 256 made, and padding below the window's size";
}

template <class T> void direct_conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                              const T* weight, const T* b, T* y, bool relu) {
  DirectPlan p = *forward_plan<T>(g);
  p.relu = relu;
  launch_direct<T, false>(ctx, name(ConvPass::kForward), p, g.kw, x, weight, b, y);
}

template <class T> void direct_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g,
                                                    const T* dy, const T* weight, T* dx) {
  launch_direct<T, true>(ctx, name(ConvPass::kBackwardData), *data_plan<T>(g), g.kw, dy, weight,
                         static_cast<const T*>(nullptr), dx);
}

template <class T> void direct_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                       const T* x, const T* dy, T* dweight, T* db) {
  const Operation operation{name(ConvPass::kBackwardWeights), g.n, g.c, g.h, g.w};
  const int64_t weights = int64_t{g.o} * g.c * g.kh * g.kw;
  const DirectWeightsPlan p = *direct_weights_plan<T>(g);
  const Scratch<T> partial(ctx, int64_t{p.blocks} * p.outputs(g.kw));
  launch(ctx, operation,
         dim3(static_cast<unsigned>(p.blocks), static_cast<unsigned>(p.quad_blocks)),
         round_up(p.tasks() * p.splits, 32), p.shared_size(g.kw) * sizeof(T),
         g.kw == 3 ? direct_backward_weights<T, 3> : direct_backward_weights<T, 5>, p, x, dy,
         partial.data());
  sum_slices<T>(ctx, operation.name, p.blocks, weights + g.o, weights, g.o, partial.data(), dweight,
                db);
}

template <class T> void direct_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                       const T* x, const T* dy, T* dweight) {
  direct_conv2d_backward_weights(ctx, g, x, dy, dweight, static_cast<T*>(nullptr));
}

template void direct_conv2d_backward_weights(const Cuda&, const Conv2dShape&, const float*,
                                             const float*, float*, float*);
template void direct_conv2d_backward_weights(const Cuda&, const Conv2dShape&, const double*,
                                             const double*, double*, double*);
SINTER_INSTANTIATE_CONV(direct, float)
SINTER_INSTANTIATE_CONV(direct, double)

}  // namespace sinter::cuda
