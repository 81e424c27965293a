// Convolution, three passes: the choice between the algorithms (ConvAlgo, operators.h), and two of
// them. The others are in conv2d_naive.cu, conv2d_im2col.cu, conv2d_tensor.cu and
// conv2d_winograd.cu.
//
// direct         Unit stride and dilation, one group, few input channels: the first layers of small
//                networks, where a matrix product would have an inner dimension too short to pay
//                for its tiles. Image tile and weights sit in shared memory, and each thread keeps
//                a small tile of results in registers.
// implicit_gemm  Every other geometry: a tiled matrix product whose right operand is gathered from
//                the image instead of being written out (im2col) first.
//
// Unless an algorithm is named, `direct_plan` and `direct_weights_plan` take what they can,
// Winograd's algorithm that by which it pays, and the tensor cores what fills their tiles, from the
// implicit GEMM. Gradients gather; the weights' gradients are sums over the batch, made in two
// stages: partial sums over slices that depend on the geometry alone, then a sum over the slices in
// order.
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "core/base/detail.h"
#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/conv2d/conv2d_tile.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/sum.cuh"
#include "sinter/operators/conv2d.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter {
using namespace op;

namespace cuda {
namespace {

constexpr int kMaxSlices = 256;  // partial sums of a weight's gradient

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

// ---- implicit GEMM ------------------------------------------------------------------------------

// For every group, C (m, n) = A (m, k) B (k, n), where k is a mixed-radix number (outer, mid,
// inner):
//                    m        n                k
//   forward          o/group  (image, oy, ox)  (channel, i, j)
//   backward data    c/group  (image, iy, ix)  (output channel, i, j)
//   backward weights o/group  (channel, i, j)  (image, oy, ox), cut into slices
// A(m, k) is a[group * a_group + k / a_period * a_outer + m * a_row + k % a_period]; B is gathered
// by the pass; C(m, n) goes to out[pass.output(group, n) + m * out_row + slice * out_slice].
struct GemmPlan {
  int64_t m, n, k;
  int64_t a_group, a_row, a_period, a_outer;
  int64_t out_row, out_slice;
  int64_t slice_k;  // a multiple of kTileK
  int radix_mid, radix_inner;
  int groups, slices;
  int64_t tiles_m, tiles_n;
};

// k and its digits, in every thread the same.
struct Digits {
  int64_t outer;
  int mid, inner;

  __device__ Digits(int64_t k, const GemmPlan& g)
      : outer(k / g.radix_inner / g.radix_mid),
        mid(static_cast<int>(k / g.radix_inner % g.radix_mid)),
        inner(static_cast<int>(k % g.radix_inner)) {}
  __device__ void next(const GemmPlan& g) {
    if (++inner < g.radix_inner) return;
    inner = 0;
    if (++mid < g.radix_mid) return;
    mid = 0;
    ++outer;
  }
};

// A pass tells what its right operand is: `Column` is what a thread knows of one column of B, and
// load(column, k) the element in row k of it; and what becomes of a sum: result(sum, group, m).
template <class T> struct ForwardPass {
  Conv2dShape g;
  const T* a;  // weight
  const T* x;
  const T* b;  // nullable
  T* out;      // y
  bool relu;

  struct Column {
    const T* x;
    int y0, x0, h;  // where the window begins; h is 0 for a column outside the matrix
  };
  __device__ Column column(int group, int64_t n, bool inside) const {
    const int64_t image = n / (g.oh * g.ow);
    const int at = static_cast<int>(n % (g.oh * g.ow));
    return {x + (image * g.c + static_cast<int64_t>(group) * (g.c / g.groups)) * g.h * g.w,
            at / g.ow * g.stride_h - g.pad_h, at % g.ow * g.stride_w - g.pad_w, inside ? g.h : 0};
  }
  __device__ T load(const Column& s, const Digits& k) const {
    const int iy = s.y0 + k.mid * g.dil_h, ix = s.x0 + k.inner * g.dil_w;
    if (iy < 0 || iy >= s.h || ix < 0 || ix >= g.w) return T(0);
    return s.x[(k.outer * g.h + iy) * g.w + ix];
  }
  __device__ int64_t output(int group, int64_t n) const {
    const int64_t plane = static_cast<int64_t>(g.oh) * g.ow;
    const int64_t o = static_cast<int64_t>(group) * (g.o / g.groups);
    return (n / plane * g.o + o) * plane + n % plane;
  }
  __device__ T result(T sum, int group, int64_t m) const {
    sum += b ? b[static_cast<int64_t>(group) * (g.o / g.groups) + m] : T(0);
    return act(sum, act_limit<T>(relu));
  }
};

template <class T> struct BackwardDataPass {
  Conv2dShape g;
  const T* a;  // weight
  const T* dy;
  T* out;  // dx

  struct Column {
    const T* dy;
    int y, x, oh;
  };
  __device__ Column column(int group, int64_t n, bool inside) const {
    const int64_t image = n / (g.h * g.w);
    const int at = static_cast<int>(n % (g.h * g.w));
    return {dy + (image * g.o + static_cast<int64_t>(group) * (g.o / g.groups)) * g.oh * g.ow,
            at / g.w + g.pad_h, at % g.w + g.pad_w, inside ? g.oh : 0};
  }
  // Pixel iy was read by output oy through window row i where oy * stride + i * dilation = iy +
  // pad.
  __device__ T load(const Column& s, const Digits& k) const {
    int oy = s.y - k.mid * g.dil_h, ox = s.x - k.inner * g.dil_w;
    if (oy < 0 || ox < 0) return T(0);
    if (g.stride_h > 1) {
      if (oy % g.stride_h != 0) return T(0);
      oy /= g.stride_h;
    }
    if (g.stride_w > 1) {
      if (ox % g.stride_w != 0) return T(0);
      ox /= g.stride_w;
    }
    if (oy >= s.oh || ox >= g.ow) return T(0);
    return s.dy[(k.outer * g.oh + oy) * g.ow + ox];
  }
  __device__ int64_t output(int group, int64_t n) const {
    const int64_t plane = static_cast<int64_t>(g.h) * g.w;
    const int64_t c = static_cast<int64_t>(group) * (g.c / g.groups);
    return (n / plane * g.c + c) * plane + n % plane;
  }
  __device__ T result(T sum, int, int64_t) const { return sum + T(0); }
};

template <class T> struct BackwardWeightsPass {
  Conv2dShape g;
  const T* a;  // dy
  const T* x;
  T* out;  // dweight, or partial sums of it

  struct Column {
    const T* x;
    int y0, x0, h;
  };
  __device__ Column column(int group, int64_t n, bool inside) const {
    const int at = static_cast<int>(n % (g.kh * g.kw));
    const int64_t c = static_cast<int64_t>(group) * (g.c / g.groups) + n / (g.kh * g.kw);
    return {x + c * g.h * g.w, at / g.kw * g.dil_h - g.pad_h, at % g.kw * g.dil_w - g.pad_w,
            inside ? g.h : 0};
  }
  __device__ T load(const Column& s, const Digits& k) const {
    const int iy = s.y0 + k.mid * g.stride_h, ix = s.x0 + k.inner * g.stride_w;
    if (iy < 0 || iy >= s.h || ix < 0 || ix >= g.w) return T(0);
    return s.x[(k.outer * g.c * g.h + iy) * g.w + ix];
  }
  __device__ int64_t output(int group, int64_t n) const {
    const int64_t window = static_cast<int64_t>(g.c / g.groups) * g.kh * g.kw;
    return static_cast<int64_t>(group) * (g.o / g.groups) * window + n;
  }
  __device__ T result(T sum, int, int64_t) const { return sum + T(0); }
};

constexpr int kGemmThreads = 128;
constexpr int kTileN = 128, kTileK = 8;

// A block makes 8 * kM rows by 128 columns of C; a thread kM by 8 of them in registers, reading kM
// + 8 values of shared memory for 8 * kM multiplications. While a tile is multiplied, the next one
// is on its way into registers. In loading, a thread owns one column of B, whose place in the image
// it works out once, and kM / 2 neighbours of one row of A.
template <class T, int kM, class Pass> __global__ void __launch_bounds__(kGemmThreads)
    implicit_gemm(const GemmPlan g, const Pass pass) {
  constexpr int kTileM = 8 * kM;
  constexpr int kOfA = kTileM * kTileK / kGemmThreads;  // elements of A that a thread loads
  constexpr int kPerRow = kTileK / kOfA;                // threads that load a row of A
  // A's tile is transposed, and padded so that the stores that transpose it hit 32 banks.
  alignas(16) __shared__ T a_tile[kTileK][kTileM + 4];
  alignas(16) __shared__ T b_tile[kTileK][kTileN];

  int64_t at = blockIdx.x;
  const int64_t m0 = at % g.tiles_m * kTileM;
  at /= g.tiles_m;
  const int64_t n0 = at % g.tiles_n * kTileN;
  at /= g.tiles_n;
  const int group = static_cast<int>(at % g.groups);
  const int64_t slice = at / g.groups;
  const int64_t k_begin = slice * g.slice_k;
  const int64_t k_end = min(k_begin + g.slice_k, g.k);

  const int a_m = threadIdx.x / kPerRow, a_k = threadIdx.x % kPerRow * kOfA;
  const bool a_inside = m0 + a_m < g.m;
  const T* a_row = pass.a + group * g.a_group + (m0 + a_m) * g.a_row;
  int64_t a_outer = (k_begin + a_k) / g.a_period, a_inner = (k_begin + a_k) % g.a_period;
  const int64_t n = n0 + threadIdx.x;
  const auto column = pass.column(group, n < g.n ? n : 0, n < g.n);
  Digits digits(k_begin, g);

  T a_next[kOfA], b_next[kTileK];
  const auto fetch = [&](int64_t k) {
  // The element, then a step of the position: 1 within the thread's part, then over the others'.
#pragma unroll
    for (int q = 0; q < kOfA; ++q) {
      a_next[q] = a_inside && k + a_k + q < k_end ? a_row[a_outer * g.a_outer + a_inner] : T(0);
      a_inner += q + 1 < kOfA ? 1 : kTileK - kOfA + 1;
      while (a_inner >= g.a_period) {
        a_inner -= g.a_period;
        ++a_outer;
      }
    }
#pragma unroll
    for (int q = 0; q < kTileK; ++q) {
      b_next[q] = k + q < k_end ? pass.load(column, digits) : T(0);
      digits.next(g);
    }
  };

  const int row = threadIdx.x / 16 * kM, quad = threadIdx.x % 16 * 4;
  T sum[kM][8] = {};
  fetch(k_begin);
  for (int64_t k = k_begin; k < k_end; k += kTileK) {
    __syncthreads();  // the previous tile has been read
#pragma unroll
    for (int q = 0; q < kOfA; ++q) a_tile[a_k + q][a_m] = a_next[q];
#pragma unroll
    for (int q = 0; q < kTileK; ++q) b_tile[q][threadIdx.x] = b_next[q];
    __syncthreads();
    if (k + kTileK < k_end) fetch(k + kTileK);
#pragma unroll
    for (int q = 0; q < kTileK; ++q) {
      T av[kM];
#pragma unroll
      for (int r = 0; r < kM; r += 2) {
        const auto two = *reinterpret_cast<const Pair<T>*>(&a_tile[q][row + r]);
        av[r] = two.v[0];
        av[r + 1] = two.v[1];
      }
      // Columns quad .. quad + 3 and 64 + those: neighbouring threads read neighbouring banks.
      const auto b0 = *reinterpret_cast<const Quad<T>*>(&b_tile[q][quad]);
      const auto b1 = *reinterpret_cast<const Quad<T>*>(&b_tile[q][64 + quad]);
#pragma unroll
      for (int r = 0; r < kM; ++r) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          sum[r][s] += av[r] * b0.v[s];
          sum[r][4 + s] += av[r] * b1.v[s];
        }
      }
    }
  }

#pragma unroll
  for (int s = 0; s < 8; ++s) {
    const int64_t n_out = n0 + s / 4 * 64 + quad + s % 4;
    if (n_out >= g.n) continue;
    T* out = pass.out + pass.output(group, n_out) + slice * g.out_slice;
#pragma unroll
    for (int r = 0; r < kM; ++r) {
      const int64_t m = m0 + row + r;
      if (m < g.m) out[m * g.out_row] = pass.result(sum[r][s], group, m);
    }
  }
}

// ---- choice of the kernels ----------------------------------------------------------------------

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

// ---- launchers ----------------------------------------------------------------------------------

template <class T, bool kFlip> void launch_direct(LaunchSite site, const char* name,
                                                  const DirectPlan& p, int kw, const T* x,
                                                  const T* weight, const T* b, T* y) {
  const auto shared = (p.tile_size(kw) + p.weights_size(kw)) * sizeof(T);
  launch(site, {name, p.n, p.o, p.oh, p.ow},
         dim3(static_cast<unsigned>(p.n * p.bands), static_cast<unsigned>(p.quad_blocks)),
         round_up(p.pairs * p.rows * p.quads, 32), shared,
         kw == 3 ? direct_conv<T, 3, kFlip> : direct_conv<T, 5, kFlip>, p, x, weight, b, y);
}

template <class T, class Pass>
void launch_gemm(LaunchSite site, const Operation& operation, GemmPlan p, const Pass& pass) {
  // float: 8 x 8 results a thread. double takes twice the registers: 4 x 8. Few rows: 2 x 8.
  constexpr int kWide = sizeof(T) == 4 ? 8 : 4;
  const bool wide = p.m > 16;
  p.tiles_m = ceil_div(p.m, wide ? 8 * kWide : 16);
  p.tiles_n = ceil_div(p.n, kTileN);
  const int64_t blocks = p.tiles_m * p.tiles_n * p.groups * p.slices;
  launch(site, operation, static_cast<unsigned>(blocks), kGemmThreads, 0,
         wide ? implicit_gemm<T, kWide, Pass> : implicit_gemm<T, 2, Pass>, p, pass);
}

// ---- algorithms by name -------------------------------------------------------------------------

[[noreturn]] void refuse(const char* pass, const std::string& needs, const Conv2dShape& g) {
  throw ValueError(
      str(pass, ": algorithm ", name(g.algo), " needs ", needs, "; this is x (", g.n, ", ", g.c,
          ", ", g.h, ", ", g.w, "), weight (", g.o, ", ", g.c / g.groups, ", ", g.kh, ", ", g.kw,
          "), stride (", g.stride_h, ", ", g.stride_w, "), dilation (", g.dil_h, ", ", g.dil_w,
          "), groups ", g.groups,
          ". Choose auto, naive, im2col or implicit-gemm, with --conv-algo or set_conv_algo"));
}
[[noreturn]] void refuse_direct(const char* pass, const Conv2dShape& g) {
  refuse(pass,
         "stride and dilation 1, one group, windows 3 or 5 wide and at most 7 high, at most 16 "
         "channels read and 256 made, and padding below the window's size",
         g);
}

bool direct_allowed(const Conv2dShape& g) {
  return g.algo == ConvAlgo::kAuto || g.algo == ConvAlgo::kDirect;
}

// Whether tensor cores compute a pass that `direct` did not take.
template <class T>
bool use_tensor_cores(const Cuda& ctx, const Conv2dShape& g, ConvPass pass, const char* name) {
  const bool asked = g.algo == ConvAlgo::kTensorCore;
  if (!asked && g.algo != ConvAlgo::kAuto) return false;
  if constexpr (std::is_same_v<T, float>) {
    if (!asked) return tensor_conv2d_pays(g, pass) && tensor_conv2d_lacks(ctx, g).empty();
    const std::string lacks = tensor_conv2d_lacks(ctx, g);
    if (!lacks.empty()) refuse(name, lacks, g);
    return true;
  } else {
    if (asked) refuse(name, "float32", g);
    return false;
  }
}

// Whether Winograd's algorithm computes a pass that `direct` did not take.
template <class T> bool use_winograd(const Conv2dShape& g, ConvPass pass, const char* name) {
  if (g.algo == ConvAlgo::kAuto) return std::is_same_v<T, float> && winograd_conv2d_pays(g, pass);
  if (g.algo != ConvAlgo::kWinograd) return false;
  const std::string lacks = winograd_conv2d_lacks(g);
  if (!lacks.empty()) refuse(name, lacks, g);
  return true;
}

// Computes dweight and returns true if that is neither for `direct` nor for `implicit_gemm`.
template <class T> bool other_weights_gradient(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                               const T* dy, T* dweight) {
  const char* const name = "conv2d_backward_weights";
  if (g.algo == ConvAlgo::kNaive) {
    naive_conv2d_backward_weights(ctx, g, x, dy, dweight);
    return true;
  }
  if (g.algo == ConvAlgo::kIm2col) {
    im2col_conv2d_backward_weights(ctx, g, x, dy, dweight);
    return true;
  }
  if (direct_allowed(g)) {
    if (direct_weights_plan<T>(g)) return false;
    if (g.algo == ConvAlgo::kDirect) refuse_direct(name, g);
  }
  if (use_winograd<T>(g, ConvPass::kBackwardWeights, name)) {
    winograd_conv2d_backward_weights(ctx, g, x, dy, dweight);
    return true;
  }
  if (!use_tensor_cores<T>(ctx, g, ConvPass::kBackwardWeights, name)) return false;
  if constexpr (std::is_same_v<T, float>) tensor_conv2d_backward_weights(ctx, g, x, dy, dweight);
  return true;
}

// ---- the passes ---------------------------------------------------------------------------------

template <class T> void conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                       const T* weight, const T* b, T* y, bool relu) {
  if (g.algo == ConvAlgo::kNaive) return naive_conv2d_forward(ctx, g, x, weight, b, y, relu);
  if (g.algo == ConvAlgo::kIm2col) return im2col_conv2d_forward(ctx, g, x, weight, b, y, relu);
  if (direct_allowed(g) && unit_window(g)) {
    auto p = direct_plan<T>(g.n, g.c, g.h, g.w, g.o, g.oh, g.ow, g.kh, g.kw, g.pad_h, g.pad_w);
    if (p) p->relu = relu;
    if (p) return launch_direct<T, false>(ctx, "conv2d_forward", *p, g.kw, x, weight, b, y);
  }
  if (g.algo == ConvAlgo::kDirect) refuse_direct("conv2d_forward", g);
  if (use_winograd<T>(g, ConvPass::kForward, "conv2d_forward"))
    return winograd_conv2d_forward(ctx, g, x, weight, b, y, {}, relu);
  if (use_tensor_cores<T>(ctx, g, ConvPass::kForward, "conv2d_forward")) {
    if constexpr (std::is_same_v<T, float>) tensor_conv2d_forward(ctx, g, x, weight, b, y, relu);
    return;
  }
  const int64_t plane = int64_t{g.oh} * g.ow, window = int64_t{g.c / g.groups} * g.kh * g.kw;
  GemmPlan p{};
  p.m = g.o / g.groups;
  p.n = g.n * plane;
  p.k = window;
  p.a_group = p.m * window;
  p.a_row = window;
  p.a_period = window;
  p.out_row = plane;
  p.slice_k = ceil_div(window, kTileK) * kTileK;
  p.radix_mid = g.kh;
  p.radix_inner = g.kw;
  p.groups = g.groups;
  p.slices = 1;
  launch_gemm<T>(ctx, {"conv2d_forward", g.n, g.o, g.oh, g.ow}, p,
                 ForwardPass<T>{g, weight, x, b, y, relu});
}

template <class T> void conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g, const T* dy,
                                             const T* weight, T* dx) {
  if (g.algo == ConvAlgo::kNaive) return naive_conv2d_backward_data(ctx, g, dy, weight, dx);
  if (g.algo == ConvAlgo::kIm2col) return im2col_conv2d_backward_data(ctx, g, dy, weight, dx);
  if (direct_allowed(g) && unit_window(g)) {
    const auto p = direct_plan<T>(g.n, g.o, g.oh, g.ow, g.c, g.h, g.w, g.kh, g.kw,
                                  g.kh - 1 - g.pad_h, g.kw - 1 - g.pad_w);
    if (p)
      return launch_direct<T, true>(ctx, "conv2d_backward_data", *p, g.kw, dy, weight,
                                    static_cast<const T*>(nullptr), dx);
  }
  if (g.algo == ConvAlgo::kDirect) refuse_direct("conv2d_backward_data", g);
  if (use_winograd<T>(g, ConvPass::kBackwardData, "conv2d_backward_data"))
    return winograd_conv2d_backward_data(ctx, g, dy, weight, dx);
  if (use_tensor_cores<T>(ctx, g, ConvPass::kBackwardData, "conv2d_backward_data")) {
    if constexpr (std::is_same_v<T, float>) tensor_conv2d_backward_data(ctx, g, dy, weight, dx);
    return;
  }
  const int64_t plane = int64_t{g.h} * g.w, window = int64_t{g.kh} * g.kw;
  GemmPlan p{};
  p.m = g.c / g.groups;
  p.n = g.n * plane;
  p.k = g.o / g.groups * window;
  p.a_group = p.k * p.m;
  p.a_row = window;
  p.a_period = window;
  p.a_outer = p.m * window;
  p.out_row = plane;
  p.slice_k = ceil_div(p.k, kTileK) * kTileK;
  p.radix_mid = g.kh;
  p.radix_inner = g.kw;
  p.groups = g.groups;
  p.slices = 1;
  launch_gemm<T>(ctx, {"conv2d_backward_data", g.n, g.c, g.h, g.w}, p,
                 BackwardDataPass<T>{g, weight, dy, dx});
}

template <class T> void conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                                const T* dy, T* dweight, T* db) {
  const Operation operation{"conv2d_backward_weights", g.n, g.c, g.h, g.w};
  const int64_t window = int64_t{g.c / g.groups} * g.kh * g.kw, weights = g.o * window;
  const int64_t plane = int64_t{g.oh} * g.ow;
  if (dweight && !other_weights_gradient(ctx, g, x, dy, dweight)) {
    const auto direct = direct_allowed(g) ? direct_weights_plan<T>(g) : std::nullopt;
    if (direct) {
      const DirectWeightsPlan& p = *direct;
      const Scratch<T> partial(ctx, int64_t{p.blocks} * p.outputs(g.kw));
      launch(ctx, operation,
             dim3(static_cast<unsigned>(p.blocks), static_cast<unsigned>(p.quad_blocks)),
             round_up(p.tasks() * p.splits, 32), p.shared_size(g.kw) * sizeof(T),
             g.kw == 3 ? direct_backward_weights<T, 3> : direct_backward_weights<T, 5>, p, x, dy,
             partial.data());
      return sum_slices<T>(ctx, operation.name, p.blocks, weights + g.o, weights, g.o,
                           partial.data(), dweight, db);
    }
    GemmPlan p{};
    p.m = g.o / g.groups;
    p.n = window;
    p.k = g.n * plane;
    p.a_group = p.m * plane;
    p.a_row = plane;
    p.a_period = plane;
    p.a_outer = g.o * plane;
    p.out_row = window;
    p.out_slice = weights;
    p.radix_mid = g.oh;
    p.radix_inner = g.ow;
    p.groups = g.groups;
    // Slices of the batch until some 512 blocks have work, each with 64 tiles or more to go
    // through.
    const int64_t tiles = ceil_div(p.m, 64) * ceil_div(p.n, kTileN) * g.groups;
    p.slices = static_cast<int>(std::clamp<int64_t>(
        std::min(4 * kEnoughBlocks / tiles, p.k / (64 * kTileK)), 1, kMaxSlices));
    p.slice_k = ceil_div(ceil_div(p.k, p.slices), kTileK) * kTileK;
    p.slices = static_cast<int>(ceil_div(p.k, p.slice_k));
    if (p.slices == 1) {
      launch_gemm<T>(ctx, operation, p, BackwardWeightsPass<T>{g, dy, x, dweight});
    } else {
      const Scratch<T> partial(ctx, p.slices * weights);
      launch_gemm<T>(ctx, operation, p, BackwardWeightsPass<T>{g, dy, x, partial.data()});
      sum_slices<T>(ctx, operation.name, p.slices, weights, weights, 0, partial.data(), dweight,
                    nullptr);
    }
  }
  if (db)
    sum(ctx, {.rank = 1, .shape = {g.o}, .stride = {plane}},
        {.rank = 2, .shape = {g.n, plane}, .stride = {g.o * plane, 1}}, 1.0, dy, db);
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const Conv2dForward& o) {
  with_floating(o.x, [&]<class T>() {
    cuda::conv2d_forward(ctx, o.g, o.x.data<T>(), o.weight.data<T>(), o.b.data<T>(), o.y.data<T>(),
                         o.relu);
  });
}

void run(const Cuda& ctx, const Conv2dBackwardData& o) {
  with_floating(o.dy, [&]<class T>() {
    cuda::conv2d_backward_data(ctx, o.g, o.dy.data<T>(), o.weight.data<T>(), o.dx.data<T>());
  });
}

void run(const Cuda& ctx, const Conv2dBackwardWeights& o) {
  with_floating(o.dy, [&]<class T>() {
    cuda::conv2d_backward_weights(ctx, o.g, o.x.data<T>(), o.dy.data<T>(), o.dweight.data<T>(),
                                  o.db.data<T>());
  });
}

}  // namespace sinter
