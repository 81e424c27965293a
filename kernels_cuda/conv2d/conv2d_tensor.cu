// Convolution as an implicit GEMM on tensor cores.
//
// Both kernels below multiply tiles that lie in shared memory, three stages deep: while one is
// multiplied, the next two are on their way there. Their right operand is gathered from an image,
// 4 bytes a copy, because windows shift rows by less than 16 bytes; consecutive lanes copy
// consecutive pixels. What makes the gather cheap is the order of the sum's terms: within a tile
// the tap, the place in the window, does not change, so that a thread works out one place in the
// image for all that it copies.
//
// Precision. A tensor core multiplies TF32: floats with 10 bits of mantissa, of which the products
// are exact. With kPasses == 1 the operands are rounded to that. With kPasses == 3 they are split,
// x = high + low, and high high + high low + low high is summed: the missing low low and what low
// loses are below 2^-22 of a product. Tensor cores truncate when they add, a bias that would grow
// with the length of the sum; so they add up 16 terms from zero at a time, and the sums are added
// to the total by ordinary, rounding additions (Ootomo and Yokota 2022, "Recovering single
// precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance"). An
// infinite operand makes NaN in either way.
#include <algorithm>
#include <cstdint>

#include "core/base/detail.h"
#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/tensor_core.cuh"

namespace sinter::cuda {
using namespace op;

namespace {

// A block makes a tile of C (2 kWarpM, 128), each of its 2 x 4 warps kWarpM x 32 of it, from tiles
// of A (2 kWarpM, 32) and B (32, 128).
constexpr int kTileN = 128, kTileK = 32, kStages = 3;
constexpr int kWarps = kThreads / 32;

constexpr int64_t kStride = int64_t{kThreads} << 16;  // of launch_1d's largest grid

int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

// ---- tiles --------------------------------------------------------------------------------------

// What a thread reads of the tiles, always 16 bytes: the values of a row of A, or of a column of B,
// at four places k_0 .. k_3 of the 16 that make up a step. Which k those are is free, as long as A
// and B agree and every k belongs to one thread of the four that share a row.

// k_q = 4 q + lane % 4. A comes packed (pack_weights), such that a tile is copied as it is and a
// warp reads 512 bytes in a row. B is (k, n): a thread reads 4 neighbours in n, which are a column
// of each of the warp's four 8 columns wide fragments. A pitch of 8 banks modulo 32 spreads the 8
// lanes that are served at once, 4 rows x 2 neighbours, over all banks.
struct PixelTiles {
  static constexpr bool kRounded = true;  // A, if it is to be
  static constexpr int kPitch = kTileN + 8, kB = kTileK * kPitch;

  __device__ static int packed(int m16, int step, int half, int lane) {
    return ((m16 * 2 + step) * 2 + half) * 128 + lane * 4;
  }
  __device__ static float4 a(const float* tile, int row, int step, int lane) {
    return *reinterpret_cast<const float4*>(tile + packed(row / 16, step, row / 8 % 2, lane));
  }
  // b[n][q]: column 4 (lane / 4) + n of the warp's 32.
  __device__ static void b(const float* tile, int column, int step, int lane, float (&b)[4][4]) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int k = step * 16 + 4 * q + lane % 4;
      const float4 v = *reinterpret_cast<const float4*>(tile + k * kPitch + column + lane / 4 * 4);
      b[0][q] = v.x;
      b[1][q] = v.y;
      b[2][q] = v.z;
      b[3][q] = v.w;
    }
  }
  // Column of C, of the warp's 32, in element e < 2 of fragment n.
  __device__ static int column(int n, int e, int lane) { return 4 * (2 * (lane % 4) + e) + n; }
};

// k_q = 4 (lane % 4) + q. Both tiles are rows of 32 k, in odd rows with the halves swapped: so the
// 8 lanes served at once, 2 rows x 4 places, reach all banks.
struct RowTiles {
  static constexpr bool kRounded = false;
  static constexpr int kB = kTileN * kTileK;

  __device__ static int place(int row, int k) { return row * kTileK + (k ^ (row % 2 * 16)); }
  __device__ static float4 read(const float* tile, int row, int step, int lane) {
    row += lane / 4;
    return *reinterpret_cast<const float4*>(tile + place(row, step * 16 + lane % 4 * 4));
  }
  __device__ static float4 a(const float* tile, int row, int step, int lane) {
    return read(tile, row, step, lane);
  }
  __device__ static void b(const float* tile, int column, int step, int lane, float (&b)[4][4]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float4 v = read(tile, column + 8 * n, step, lane);
      b[n][0] = v.x;
      b[n][1] = v.y;
      b[n][2] = v.z;
      b[n][3] = v.w;
    }
  }
  __device__ static int column(int n, int e, int lane) { return 8 * n + 2 * (lane % 4) + e; }
};

// Rounded to TF32, ties away from zero; the tensor core drops the lower bits. Adding x * 0 keeps a
// NaN whose bits the rounding would carry into the sign; it makes one of an infinity.
__device__ inline uint32_t to_tf32(float x) {
  return __float_as_uint(fmaf(x, 0.f, __uint_as_float(__float_as_uint(x) + 0x1000)));
}
// x = high + low + at most 2^-23 |x|. A NaN survives in low.
__device__ inline void split_tf32(float x, uint32_t& high, uint32_t& low) {
  high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
  low = __float_as_uint(x - __uint_as_float(high));
}

// Blocks on a multiprocessor, as registers allow.
template <int kWarpM, int kPasses> constexpr int kBlocks = kWarpM == 64 && kPasses == 3 ? 1 : 2;

template <int kWarpM> using Sums = float[kWarpM / 16][4][4];

// sum += the warp's part of A B.
template <class Tiles, int kWarpM, int kPasses>
__device__ void multiply_tiles(const float* a_tile, const float* b_tile, Sums<kWarpM>& sum) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = warp / 4 * kWarpM, column = warp % 4 * 32;
#pragma unroll 1  // registers
  for (int step = 0; step < kTileK / 16; ++step) {
    float b[4][4];
    Tiles::b(b_tile, column, step, lane, b);
    uint32_t b_high[4][4], b_low[4][4];
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if constexpr (kPasses == 1)
          b_high[n][q] = to_tf32(b[n][q]);
        else
          split_tf32(b[n][q], b_high[n][q], b_low[n][q]);
      }
#pragma unroll
    for (int m = 0; m < kWarpM / 16; ++m) {
      float a[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 v = Tiles::a(a_tile, row + m * 16 + half * 8, step, lane);
        a[half][0] = v.x;
        a[half][1] = v.y;
        a[half][2] = v.z;
        a[half][3] = v.w;
      }
      float part[4][4] = {};
      float(&to)[4][4] = kPasses == 1 ? sum[m] : part;
#pragma unroll
      for (int q = 0; q < 4; q += 2) {
        uint32_t a_high[4], a_low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (kPasses == 1)
            a_high[i] = Tiles::kRounded ? __float_as_uint(a[i % 2][q + i / 2])
                                        : to_tf32(a[i % 2][q + i / 2]);
          else
            split_tf32(a[i % 2][q + i / 2], a_high[i], a_low[i]);
        }
        // Neighbouring products belong to different sums: each waits for its predecessor.
        const auto products = [&](const uint32_t(&a)[4], const uint32_t(&b)[4][4]) {
#pragma unroll
          for (int n = 0; n < 4; ++n) mma_tf32(to[n], a[0], a[1], a[2], a[3], b[n][q], b[n][q + 1]);
        };
        if constexpr (kPasses == 3) {
          products(a_low, b_high);
          products(a_high, b_low);
        }
        products(a_high, b_high);
      }
      if constexpr (kPasses == 3) {
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[m][n][e] += part[n][e];
      }
    }
  }
}

template <class Tiles, int kWarpM> constexpr int kStageSize = 2 * kWarpM* kTileK + Tiles::kB;

// The block's tile of C, summed over `tiles` tiles of k that loader.load(a_tile, b_tile) copies one
// after another.
template <class Tiles, int kWarpM, int kPasses, class Loader>
__device__ void multiply(Loader& loader, int tiles, Sums<kWarpM>& sum) {
  constexpr int kStage = kStageSize<Tiles, kWarpM>, kA = 2 * kWarpM * kTileK;
  float* const stages = dynamic_shared<float>();
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < tiles) loader.load(stages + s * kStage, stages + s * kStage + kA);
    copy_async_commit();
  }
  int at = 0;  // stage of tile t
  for (int t = 0; t < tiles; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the tile is there, and the one that is overwritten has been read
    if (t + kStages - 1 < tiles) {
      float* const next = stages + (at > 0 ? at - 1 : kStages - 1) * kStage;
      loader.load(next, next + kA);
    }
    copy_async_commit();
    multiply_tiles<Tiles, kWarpM, kPasses>(stages + at * kStage, stages + at * kStage + kA, sum);
    at = at + 1 < kStages ? at + 1 : 0;
  }
}

// ---- gathering ----------------------------------------------------------------------------------

// One dimension: position p reads, through tap t of the window, the element
// (p * scale + origin + t * step) / divisor of the image, if that is whole and inside.
struct Axis {
  int size, taps, scale, origin, step, divisor;

  __device__ int at(int p, int t) const {  // or negative
    int i = p * scale + origin + t * step;
    if (divisor > 1) {
      if (i % divisor != 0) return -1;
      i /= divisor;
    }
    return i < size ? i : -1;
  }
  // The positions below `end` that read inside the image through one of the taps first .. last;
  // for divisor 1.
  __device__ void readers(int first, int last, int& begin, int& end) const {
    const int before = -(origin + last * step), inside = size - 1 - origin - first * step;
    begin = before > 0 ? (before + scale - 1) / scale : 0;
    end = max(begin, inside >= 0 ? min(end, inside / scale + 1) : 0);
  }
};

Axis forward_axis(int size, int taps, int stride, int pad, int dilation) {
  return {size, taps, stride, -pad, dilation, 1};
}
// Pixel p of dx was read through tap t by output (p + pad - t * dilation) / stride.
Axis backward_axis(int size, int taps, int stride, int pad, int dilation) {
  return {size, taps, 1, pad, -dilation, stride};
}

// Images (n, groups * channels, y.size, x.size).
struct Images {
  const float* data;
  int channels, groups;
  Axis y, x;

  __device__ int plane() const { return y.size * x.size; }
  __device__ int64_t image() const { return static_cast<int64_t>(groups) * channels * plane(); }
  __device__ const float* group(int64_t at, int group) const {
    return data + at * image() + static_cast<int64_t>(group) * channels * plane();
  }
};

// ---- forward and backward data ------------------------------------------------------------------

// out (n, groups * m, plane) as sums over taps and the channels of `source`; as a matrix product:
// C (m, pixel) = weight (m, k) patches (k, pixel), k being (block of 32 channels, tap, channel).
struct Correlation {
  Images source;
  const float* weight;  // packed
  const float* bias;    // nullable
  float* out;           // (slices, n, groups * m, plane)
  int m, m_padded;
  int pixels, plane, width;  // of out: all images' together, an image's, a row's
  int k_tiles, slices, slice_tiles;
  int tiles_m, tiles_n;
  bool in_fours;  // whether out can be written 16 bytes at a time
  bool relu;      // of the sums
};

// packed (groups, k_tiles, m_padded / 16, 512): see PixelTiles. Element (group, m, channel, tap) of
// the weights is at ((group * group_rows + m * row) + channel * column) * taps + tap; what is
// outside becomes 0.
struct Packing {
  int m, m_padded, channels, taps, k_tiles;
  int64_t group, row, column;
  bool tf32;  // whether to round
};
template <class N> __global__ void __launch_bounds__(kThreads)
    pack_weights(N n, Packing g, const float* weight, float* packed) {
  for (N e = thread_index<N>(); e < n; e += thread_count<N>()) {
    const int q = static_cast<int>(e % 4), lane = static_cast<int>(e / 4 % 32);
    const int half = static_cast<int>(e / 128 % 2), step = static_cast<int>(e / 256 % 2);
    N rest = e / 512;
    const int m = static_cast<int>(rest % (g.m_padded / 16)) * 16 + half * 8 + lane / 4;
    rest /= g.m_padded / 16;
    const int tile = static_cast<int>(rest % g.k_tiles);
    const int64_t group = static_cast<int64_t>(rest / g.k_tiles);
    const int channel = tile / g.taps * kTileK + step * 16 + 4 * q + lane % 4;
    const bool inside = m < g.m && channel < g.channels;
    const float value =
        inside ? weight[(group * g.group + m * g.row + channel * g.column) * g.taps + tile % g.taps]
               : 0;
    packed[e] = g.tf32 ? __uint_as_float(to_tf32(value)) : value;
  }
}

// A thread copies one pixel of every other channel, and its share of the weights.
template <int kWarpM> struct PixelLoader {
  static constexpr int kEvery = kThreads / kTileN;  // channels copied at once

  const Correlation& g;
  const float* weight;
  // Of the tile to come: the first channel that the thread copies, and how many there are from it.
  const float* plane;
  int channels;
  int py, px, ty, tx;

  __device__ PixelLoader(const Correlation& g, int group, int m0, int n0, int k_tile)
      : g(g),
        weight(g.weight + (static_cast<int64_t>(group) * g.k_tiles + k_tile) * g.m_padded * kTileK +
               static_cast<int64_t>(m0) * kTileK + threadIdx.x * 4) {
    const int pixel = n0 + threadIdx.x % kTileN;
    const int at = pixel % g.plane;
    const int taps = g.source.y.taps * g.source.x.taps;
    const int channel = k_tile / taps * kTileK + threadIdx.x / kTileN;
    plane =
        g.source.group(pixel / g.plane, group) + static_cast<int64_t>(channel) * g.source.plane();
    channels = pixel < g.pixels ? g.source.channels - channel : 0;
    py = at / g.width;
    px = at % g.width;
    ty = k_tile % taps / g.source.x.taps;
    tx = k_tile % g.source.x.taps;
  }

  __device__ void load(float* a_tile, float* b_tile) {
#pragma unroll
    for (int e = 0; e < 2 * kWarpM * kTileK; e += 4 * kThreads)
      copy_async_16(a_tile + e + threadIdx.x * 4, weight + e);
    weight += static_cast<int64_t>(g.m_padded) * kTileK;

    const int y = g.source.y.at(py, ty), x = g.source.x.at(px, tx);
    const int left = y >= 0 && x >= 0 ? channels : 0;
    const float* from = plane + y * g.source.x.size + x;
    float* to = b_tile + threadIdx.x / kTileN * PixelTiles::kPitch + threadIdx.x % kTileN;
#pragma unroll
    for (int c = 0; c < kTileK; c += kEvery) {
      copy_async(to + c * PixelTiles::kPitch, from, c < left);
      from += kEvery * g.source.plane();
    }

    if (++tx < g.source.x.taps) return;
    tx = 0;
    if (++ty < g.source.y.taps) return;
    ty = 0;
    plane += static_cast<int64_t>(kTileK) * g.source.plane();
    channels -= kTileK;
  }
};

template <int kWarpM, int kPasses>
__global__ void __launch_bounds__(kThreads, kBlocks<kWarpM, kPasses>)
    tensor_correlation(const Correlation g) {
  int at = static_cast<int>(blockIdx.x);
  const int m0 = at % g.tiles_m * 2 * kWarpM;
  at /= g.tiles_m;
  const int n0 = at % g.tiles_n * kTileN;
  at /= g.tiles_n;
  const int group = at % g.source.groups, slice = at / g.source.groups;
  const int k_begin = slice * g.slice_tiles;

  Sums<kWarpM> sum = {};
  PixelLoader<kWarpM> loader(g, group, m0, n0, k_begin);
  multiply<PixelTiles, kWarpM, kPasses>(loader, min(g.slice_tiles, g.k_tiles - k_begin), sum);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float limit = act_limit<float>(g.relu);
  const int64_t channels = static_cast<int64_t>(g.source.groups) * g.m;
  float* const out =
      g.out + slice * channels * g.pixels + static_cast<int64_t>(group) * g.m * g.plane;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int n = n0 + warp % 4 * 32 + PixelTiles::column(0, e, lane);  // 4 neighbours from here
#pragma unroll
    for (int m = 0; m < kWarpM / 16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m0 + warp / 4 * kWarpM + m * 16 + half * 8 + lane / 4;
        if (row >= g.m) continue;
        const float bias = g.bias ? g.bias[group * g.m + row] : 0;
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = act(sum[m][i][half * 2 + e] + bias, limit);
        if (g.in_fours) {
          if (n >= g.pixels) continue;
          float* to = out + (n / g.plane * channels + row) * g.plane + n % g.plane;
          *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
          continue;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (n + i < g.pixels)
            out[((n + i) / g.plane * channels + row) * g.plane + (n + i) % g.plane] = v[i];
      }
    }
  }
}

// out[i] = the slices' sums at i, added in order, and its channel's bias; or the ReLU of that.
template <class N> __global__ void __launch_bounds__(kThreads)
    add_slices(N n, int slices, int channels, int plane, const float* partial, const float* bias,
               bool relu, float* out) {
  for (N i = thread_index<N>(); i < n; i += thread_count<N>()) {
    float sum = partial[i];
    for (int s = 1; s < slices; ++s) sum += partial[static_cast<int64_t>(s) * n + i];
    sum += bias ? bias[i / plane % channels] : 0;
    out[i] = act(sum, act_limit<float>(relu));
  }
}

// ---- backward weights ---------------------------------------------------------------------------

// C (m, n) = dy (m, k) patches (n, k)^T for every group: m an output channel, n a (tap, channel),
// k an output's (image, y, x). The channels of a tap are padded to 16, so that one tap holds all
// that a warp copies. A block leaves out the outputs that read zeros only: for 3 x 3 windows a
// tenth of an image of 16 x 16, a third of one of 4 x 4.
struct WeightsGradient {
  Images x;
  const float* dy;
  float* partial;  // (slices, groups * m, n)
  int m, n, c_padded;
  int images, oh, ow;
  int k_tiles, slices;  // a slice has the same share of every block's tiles
  int tiles_m, tiles_n;
};

// A lane copies one pixel of a tile, from the warp's share of the rows.
template <int kWarpM> struct RowLoader {
  static constexpr int kOfA = 2 * kWarpM / kWarps, kOfB = kTileN / kWarps;
  static_assert(kOfA % 2 == 0 && kOfB == 16);

  const WeightsGradient& g;
  const float *dy, *x;  // the first row of each that the thread copies, in image 0
  int rows, channels;   // how many exist from there on
  int ty, tx;
  int x_end, y_end, width, height;  // of the outputs that the block visits in each image
  int step_x, step_y, step_image;   // 32 pixels, as digits
  int image, py, px;                // of the tile to come

  __device__ RowLoader(const WeightsGradient& g, int group, int m0, int n0) : g(g) {
    const int warp = threadIdx.x / 32;
    const int row = m0 + warp * kOfA;
    rows = g.m - row;
    dy = g.dy + (static_cast<int64_t>(group) * g.m + row) * g.oh * g.ow;
    const int n = n0 + warp * kOfB;
    const int tap = n / g.c_padded, channel = n % g.c_padded;
    channels = n < g.n ? g.x.channels - channel : 0;
    x = g.x.group(0, group) + static_cast<int64_t>(channel) * g.x.plane();
    const int taps_x = g.x.x.taps;
    ty = tap / taps_x;
    tx = tap % taps_x;

    const int first = n0 / g.c_padded, last = (min(n0 + kTileN, g.n) - 1) / g.c_padded;
    const bool one_row = first / taps_x == last / taps_x;
    int y_begin, x_begin;
    y_end = g.oh;
    x_end = g.ow;
    g.x.y.readers(first / taps_x, last / taps_x, y_begin, y_end);
    g.x.x.readers(one_row ? first % taps_x : 0, one_row ? last % taps_x : taps_x - 1, x_begin,
                  x_end);
    height = y_end - y_begin;
    width = x_end - x_begin;
    px = x_begin;
    py = y_begin;
    image = 0;
  }

  // How many tiles the block's sum has in all; then start(first), whose tile is loaded first.
  __device__ int tiles() const {
    return static_cast<int>((static_cast<int64_t>(g.images) * height * width + kTileK - 1) /
                            kTileK);
  }
  __device__ void start(int tile) {
    if (height == 0 || width == 0) return;
    const int64_t pixel = static_cast<int64_t>(tile) * kTileK + threadIdx.x % 32;
    px += static_cast<int>(pixel % width);
    py += static_cast<int>(pixel / width % height);
    image = static_cast<int>(pixel / width / height);
    step_x = kTileK % width;
    step_y = kTileK / width % height;
    step_image = kTileK / width / height;
  }

  __device__ void load(float* a_tile, float* b_tile) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool exists = image < g.images;
    {
      const int left = exists ? rows : 0;
      const int plane = g.oh * g.ow;
      const float* from =
          dy + static_cast<int64_t>(image) * g.x.groups * g.m * plane + py * g.ow + px;
#pragma unroll
      for (int r = 0; r < kOfA; ++r) {
        copy_async(a_tile + RowTiles::place(warp * kOfA + r, lane), from, r < left);
        from += plane;
      }
    }
    {
      const int y = g.x.y.at(py, ty), column = g.x.x.at(px, tx);
      const int left = exists && y >= 0 && column >= 0 ? channels : 0;
      const float* from = x + image * g.x.image() + y * g.x.x.size + column;
#pragma unroll
      for (int r = 0; r < kOfB; ++r) {
        copy_async(b_tile + RowTiles::place(warp * kOfB + r, lane), from, r < left);
        from += g.x.plane();
      }
    }
    // 32 pixels on, digit by digit.
    px += step_x;
    if (px >= x_end) {
      px -= width;
      ++py;
    }
    py += step_y;
    if (py >= y_end) {
      py -= height;
      ++image;
    }
    image += step_image;
  }
};

template <int kWarpM, int kPasses>
__global__ void __launch_bounds__(kThreads, kBlocks<kWarpM, kPasses>)
    tensor_weights_gradient(const WeightsGradient g) {
  int at = static_cast<int>(blockIdx.x);
  const int m0 = at % g.tiles_m * 2 * kWarpM;
  at /= g.tiles_m;
  const int n0 = at % g.tiles_n * kTileN;
  at /= g.tiles_n;
  const int group = at % g.x.groups, slice = at / g.x.groups;

  Sums<kWarpM> sum = {};
  RowLoader<kWarpM> loader(g, group, m0, n0);
  const int tiles = loader.tiles(), share = (tiles + g.slices - 1) / g.slices;
  loader.start(slice * share);
  multiply<RowTiles, kWarpM, kPasses>(loader, min(share, tiles - slice * share), sum);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* const out = g.partial + (static_cast<int64_t>(slice) * g.x.groups + group) * g.m * g.n;
#pragma unroll
  for (int m = 0; m < kWarpM / 16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m0 + warp / 4 * kWarpM + m * 16 + half * 8 + lane / 4;
      if (row >= g.m) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = n0 + warp % 4 * 32 + RowTiles::column(i, 0, lane);
        if (n < g.n)
          *reinterpret_cast<float2*>(out + static_cast<int64_t>(row) * g.n + n) =
              make_float2(sum[m][i][half * 2], sum[m][i][half * 2 + 1]);
      }
    }
  }
}

// dweight (o, channels, taps) = the slices' sums (slices, o, taps, c_padded), added in order.
template <class N> __global__ void __launch_bounds__(kThreads)
    add_weights_slices(N n, int slices, int64_t slice_size, int channels, int c_padded, int taps,
                       const float* partial, float* dweight) {
  for (N i = thread_index<N>(); i < n; i += thread_count<N>()) {
    const int channel = static_cast<int>(i % channels), tap = static_cast<int>(i / channels % taps);
    const auto o = static_cast<int64_t>(i / channels / taps);
    const float* from = partial + (o * taps + tap) * c_padded + channel;
    float sum = *from;
#pragma unroll 8
    for (int s = 1; s < slices; ++s) sum += from[s * slice_size];
    dweight[(o * channels + channel) * taps + tap] = sum;
  }
}

// ---- launchers ----------------------------------------------------------------------------------

// The sum over k is cut into slices where the tiles of C alone would leave multiprocessors idle,
// by an estimate in units of the time that a tile of k takes. A function of the geometry alone, so
// that results are the same on every GPU.
constexpr int kMultiprocessors = 132;  // of the GPU that this is cut for
int64_t best_slices(int64_t tiles, int64_t slots, int64_t k_tiles) {
  constexpr int64_t kFill = 6;                 // a block's beginning and end
  constexpr int64_t kSum = 8, kPerWrite = 32;  // the second stage: its launch, results a unit
  const auto cost = [&](int64_t slices) {
    const int64_t blocks = tiles * slices;
    return ceil_div(blocks, slots) * (ceil_div(k_tiles, slices) + kFill) +
           (slices > 1 ? kSum + blocks / kPerWrite : 0);
  };
  int64_t best = 1;
  for (int64_t slices = 2; slices <= 256 && slices * 8 <= k_tiles; ++slices)
    if (cost(slices) < cost(best)) best = slices;
  return best;
}

// f<kWarpM, kPasses>() for the tiles that suit m rows and the precision that is asked for.
template <class F> void with_tiles(int m, bool tf32, const F& f) {
  if (tf32)
    m > 64 ? f.template operator()<64, 1>() : f.template operator()<32, 1>();
  else
    m > 64 ? f.template operator()<64, 3>() : f.template operator()<32, 3>();
}

// Fills in the tiles and slices of a plan.
template <int kWarpM, int kPasses, class Plan> void set_tiles(Plan& p, int columns, int groups) {
  p.tiles_m = static_cast<int>(ceil_div(p.m, 2 * kWarpM));
  p.tiles_n = static_cast<int>(ceil_div(columns, kTileN));
  p.slices = static_cast<int>(best_slices(int64_t{p.tiles_m} * p.tiles_n * groups,
                                          kMultiprocessors * kBlocks<kWarpM, kPasses>, p.k_tiles));
}

template <class Tiles, int kWarpM, class Plan>
void launch_tiles(LaunchSite site, const Operation& operation, int groups, void (*kernel)(Plan),
                  const Plan& p) {
  constexpr int kBytes = kStages * kStageSize<Tiles, kWarpM> * static_cast<int>(sizeof(float));
  launch(site, operation, static_cast<unsigned>(p.tiles_m * p.tiles_n * groups * p.slices),
         kThreads, kBytes, kernel, p);
}

// Where the weights (o, c / groups, kh, kw) of C's row m and the summed-over channel stand.
struct WeightStrides {
  int64_t row, column;
};

template <int kWarpM, int kPasses> void correlate(const Cuda& ctx, const Operation& operation,
                                                  Correlation p, const WeightStrides& strides,
                                                  const float* weight) {
  const Images& source = p.source;
  const int taps = source.y.taps * source.x.taps;
  p.k_tiles = static_cast<int>(ceil_div(source.channels, kTileK)) * taps;
  p.m_padded = static_cast<int>(round_up(p.m, 2 * kWarpM));
  set_tiles<kWarpM, kPasses>(p, p.pixels, source.groups);
  p.slice_tiles = static_cast<int>(ceil_div(p.k_tiles, p.slices));

  const int64_t packed_size = int64_t{source.groups} * p.k_tiles * p.m_padded * kTileK;
  const Scratch<float> packed(ctx, packed_size);
  const Packing packing{p.m,         p.m_padded,     source.channels,
                        taps,        p.k_tiles,      int64_t{p.m} * source.channels,
                        strides.row, strides.column, kPasses == 1};
  with_index(packed_size + kStride, [&](auto index) {
    launch_1d(ctx, operation.name, packed_size, pack_weights<decltype(index)>, packing, weight,
              packed.data());
  });
  p.weight = packed.data();

  const int64_t size = int64_t{source.groups} * p.m * p.pixels;
  const bool sliced = p.slices > 1;
  const Scratch<float> partial(ctx, sliced ? p.slices * size : 0);
  float* const out = p.out;
  const float* const bias = p.bias;
  const bool relu = p.relu;
  if (sliced) {
    p.out = partial.data();
    p.bias = nullptr;
    p.relu = false;
  }
  p.in_fours = p.plane % 4 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  launch_tiles<PixelTiles, kWarpM>(ctx, operation, source.groups,
                                   tensor_correlation<kWarpM, kPasses>, p);
  if (!sliced) return;
  with_index(size + kStride, [&](auto index) {
    launch_1d(ctx, operation.name, size, add_slices<decltype(index)>, p.slices, source.groups * p.m,
              p.plane, static_cast<const float*>(partial.data()), bias, relu, out);
  });
}

template <int kWarpM, int kPasses> void gather_weights_gradient(const Cuda& ctx,
                                                                const Operation& operation,
                                                                WeightsGradient p, float* dweight) {
  const int taps = p.x.y.taps * p.x.x.taps, groups = p.x.groups;
  p.c_padded = static_cast<int>(round_up(p.x.channels, 16));
  p.n = taps * p.c_padded;
  p.k_tiles = static_cast<int>(ceil_div(int64_t{p.images} * p.oh * p.ow, kTileK));
  set_tiles<kWarpM, kPasses>(p, p.n, groups);

  const int64_t slice_size = int64_t{groups} * p.m * p.n;
  const Scratch<float> partial(ctx, p.slices * slice_size);
  p.partial = partial.data();
  launch_tiles<RowTiles, kWarpM>(ctx, operation, groups, tensor_weights_gradient<kWarpM, kPasses>,
                                 p);
  const int64_t weights = int64_t{groups} * p.m * p.x.channels * taps;
  with_index(weights + kStride, [&](auto index) {
    launch_1d(ctx, operation.name, weights, add_weights_slices<decltype(index)>, p.slices,
              slice_size, p.x.channels, p.c_padded, taps, static_cast<const float*>(p.partial),
              dweight);
  });
}

}  // namespace

std::string tensor_conv2d_lacks(const Cuda& ctx, const ConvTask& task) {
  const Conv2dShape& g = task.g;
  if (task.dtype != kFloat32) return "float32";
  const int compiled_for = compiled_architecture(ctx.device);
  if (compiled_for < 80)
    return str("kernels compiled for compute capability 8.0 or later, got ", compiled_for / 10, ".",
               compiled_for % 10);
  // Pixels of a batch, and blocks, are counted in 32 bits.
  const int64_t pixels = std::max(int64_t{g.n} * g.h * g.w, int64_t{g.n} * g.oh * g.ow);
  const int64_t rows = int64_t{std::max(g.c, g.o)} + 64 * g.groups;
  if (pixels >= int64_t{1} << 30 || ceil_div(pixels, kTileN) * ceil_div(rows, 64) >= 1 << 30)
    return "fewer pixels in a batch";
  return {};
}

bool tensor_conv2d_pays(const Cuda&, const ConvTask& task) {
  const Conv2dShape& g = task.g;
  // At least half of a block's products belong to the result; the tensor cores are more than twice
  // as fast as what stands outside them.
  const int c = g.c / g.groups, o = g.o / g.groups;
  const auto filled = [](int64_t n, int64_t tile) {
    return static_cast<double>(n) / static_cast<double>(round_up(n, tile));
  };
  switch (task.pass) {
    case ConvPass::kForward:
      return filled(o, 64) * filled(c, kTileK) >= 0.5;
    case ConvPass::kBackwardData:
      return filled(c, 64) * filled(o, kTileK) >= 0.5;
    case ConvPass::kBackwardWeights:
      break;
  }
  const int64_t columns = round_up(c, 16) * g.kh * g.kw;
  return filled(o, 64) * filled(c, 16) * filled(columns, kTileN) >= 0.5;
}

template <> void tensor_conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const float* x,
                                       const float* weight, const float* b, float* y, bool relu) {
  Correlation p{};
  p.source = {x, g.c / g.groups, g.groups, forward_axis(g.h, g.kh, g.stride_h, g.pad_h, g.dil_h),
              forward_axis(g.w, g.kw, g.stride_w, g.pad_w, g.dil_w)};
  p.bias = b;
  p.relu = relu;
  p.out = y;
  p.m = g.o / g.groups;
  p.plane = g.oh * g.ow;
  p.width = g.ow;
  p.pixels = g.n * p.plane;
  with_tiles(p.m, g.tf32, [&]<int kWarpM, int kPasses>() {
    correlate<kWarpM, kPasses>(ctx, {"conv2d_forward", g.n, g.o, g.oh, g.ow}, p,
                               {p.source.channels, 1}, weight);
  });
}

template <> void tensor_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g, const float* dy,
                                             const float* weight, float* dx) {
  Correlation p{};
  p.source = {dy, g.o / g.groups, g.groups, backward_axis(g.oh, g.kh, g.stride_h, g.pad_h, g.dil_h),
              backward_axis(g.ow, g.kw, g.stride_w, g.pad_w, g.dil_w)};
  p.out = dx;
  p.m = g.c / g.groups;
  p.plane = g.h * g.w;
  p.width = g.w;
  p.pixels = g.n * p.plane;
  with_tiles(p.m, g.tf32, [&]<int kWarpM, int kPasses>() {
    correlate<kWarpM, kPasses>(ctx, {"conv2d_backward_data", g.n, g.c, g.h, g.w}, p, {1, p.m},
                               weight);
  });
}

template <> void tensor_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                const float* x, const float* dy, float* dweight) {
  WeightsGradient p{};
  p.x = {x, g.c / g.groups, g.groups, forward_axis(g.h, g.kh, g.stride_h, g.pad_h, g.dil_h),
         forward_axis(g.w, g.kw, g.stride_w, g.pad_w, g.dil_w)};
  p.dy = dy;
  p.m = g.o / g.groups;
  p.images = g.n;
  p.oh = g.oh;
  p.ow = g.ow;
  with_tiles(p.m, g.tf32, [&]<int kWarpM, int kPasses>() {
    gather_weights_gradient<kWarpM, kPasses>(ctx, {"conv2d_backward_weights", g.n, g.c, g.h, g.w},
                                             p, dweight);
  });
}

}  // namespace sinter::cuda
