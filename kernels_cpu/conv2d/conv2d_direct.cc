// Convolution with images in the lanes of a vector.
//
// A group of images, as many as a vector has lanes, is transposed so that one vector holds the same
// pixel of every image. A convolution then is scalar code on vectors: it runs at full width for any
// number of channels, any stride, dilation and padding, without edges. Weights are broadcast, and a
// register tile of output channels x positions lets every load feed several multiply-adds; there is
// no matrix of patches. The transposes cost a few instructions a pixel, against O K K
// multiply-adds.
//
// One kernel computes both y and dx: each is a sum over taps of a source at affine positions
// (Axis). The weight gradient has the same tile, of output channels x taps, and sums over
// positions; its lanes are added at the end.
//
// Every output is computed by one fixed sequence of operations. Only weight gradients are cut into
// partial sums, along chunks of images and rows that depend on the geometry alone.
#include "kernels_cpu/conv2d/conv2d_algorithms.h"
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/conv2d/conv2d_direct.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/tiles-inl.h"
#include "kernels_cpu/transpose-inl.h"

// ---- geometry, the same for every instruction set -----------------------------------------------
#ifndef SINTER_KERNELS_CPU_CONV2D_DIRECT_GEOMETRY
#define SINTER_KERNELS_CPU_CONV2D_DIRECT_GEOMETRY

namespace sinter {
using namespace op;
namespace {

// One dimension of a correlation: output `first + i * every` (i < count) is a sum over taps m of
// source[origin + i * step + m * tap_step] * weight[k_first + m * k_step], where the source has
// that element.
struct Axis {
  int first = 0, every = 1, count = 0;
  int taps = 0, k_first = 0, k_step = 1;
  int origin = 0, step = 1, tap_step = 1;
  std::vector<std::pair<int, int>> valid;  // for each i: the taps [first, second) inside the source

  int lowest(int i) const { return origin + i * step + std::min(0, (taps - 1) * tap_step); }
  int highest(int i) const { return origin + i * step + std::max(0, (taps - 1) * tap_step); }

  void find_valid(int source) {
    valid.resize(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      std::pair<int, int> range{taps, 0};
      for (int m = 0; m < taps; ++m) {
        const int at = origin + i * step + m * tap_step;
        if (at < 0 || at >= source) continue;
        range.first = std::min(range.first, m);
        range.second = m + 1;
      }
      valid[static_cast<size_t>(i)] = range;
    }
  }
};

// y[i] = sum over k of x[i * stride - pad + k * dil] * w[k].
inline std::vector<Axis> forward_axes(int in, int out, int k, int stride, int pad, int dil) {
  Axis a;
  a.count = out;
  a.taps = k;
  a.origin = -pad;
  a.step = stride;
  a.tap_step = dil;
  a.find_valid(in);
  return {a};
}

// dx[j] = sum over k of dy[(j + pad - k * dil) / stride] * w[k] where that division is exact. The k
// that qualify depend on j modulo the stride: one axis a residue.
inline std::vector<Axis> backward_axes(int in, int out, int k, int stride, int pad, int dil) {
  std::vector<Axis> axes;
  int common = stride;  // by Euclid: with std::gcd here, g++ 13.3 -O3 divided by zero
  for (int rest = dil; rest != 0;) common = std::exchange(rest, common % rest);
  for (int residue = 0; residue < std::min(stride, in); ++residue) {
    Axis a;
    a.first = residue;
    a.every = stride;
    a.count = ceil_div(in - residue, stride);
    a.k_step = stride / common;
    a.tap_step = -dil / common;
    while (a.k_first < k && (residue + pad - a.k_first * dil) % stride != 0) ++a.k_first;
    if (a.k_first < k) {
      a.taps = ceil_div(k - a.k_first, a.k_step);
      a.origin = (residue + pad - a.k_first * dil) / stride;
    }
    a.find_valid(out);
    axes.push_back(std::move(a));
  }
  return axes;
}

// The source indices that outputs [begin, end) of every axis read, the zeros around the source
// included.
struct Extent {
  int low = 0, high = -1;
  int size() const { return high - low + 1; }
};
inline Extent source_extent(const std::vector<Axis>& axes, int begin, int end) {
  Extent e;
  for (const Axis& a : axes) {
    const int last = std::min(end, a.count) - 1;
    if (a.taps == 0 || last < begin) continue;
    const int low = a.lowest(begin), high = a.highest(last);
    if (e.size() == 0) {
      e = {low, high};
    } else {
      e = {std::min(e.low, low), std::max(e.high, high)};
    }
  }
  return e;
}

// y or dx as correlations of x or dy.
struct Correlation {
  int n, groups;
  int source_c, source_h, source_w;  // channels of one group
  int out_c, out_h, out_w;
  std::vector<Axis> rows, cols;
  int kh, kw;
  int64_t w_source, w_out;  // distance, in the weights, between channels of the source and of out
  bool relu = false;        // of the sums
};

inline Correlation forward_correlation(const Conv2dShape& g) {
  const int taps = g.kh * g.kw;
  return {g.n,
          g.groups,
          g.c / g.groups,
          g.h,
          g.w,
          g.o / g.groups,
          g.oh,
          g.ow,
          forward_axes(g.h, g.oh, g.kh, g.stride_h, g.pad_h, g.dil_h),
          forward_axes(g.w, g.ow, g.kw, g.stride_w, g.pad_w, g.dil_w),
          g.kh,
          g.kw,
          taps,
          int64_t{g.c / g.groups} * taps};
}

inline Correlation backward_correlation(const Conv2dShape& g) {
  const int taps = g.kh * g.kw;
  return {g.n,
          g.groups,
          g.o / g.groups,
          g.oh,
          g.ow,
          g.c / g.groups,
          g.h,
          g.w,
          backward_axes(g.h, g.oh, g.kh, g.stride_h, g.pad_h, g.dil_h),
          backward_axes(g.w, g.ow, g.kw, g.stride_w, g.pad_w, g.dil_w),
          g.kh,
          g.kw,
          int64_t{g.c / g.groups} * taps,
          taps};
}

// Work worth a chunk (about 20 us of one core), and memory a chunk may keep hot in the second-level
// cache.
constexpr double kChunkFlops = 3e6;
constexpr double kChunkBytes = 384 << 10;

// Rows of a band: enough work for a chunk, not more memory than the cache holds.
inline int choose_band(int rows, double flops_per_row, double bytes_per_row) {
  const double band = std::min(kChunkFlops / flops_per_row, kChunkBytes / bytes_per_row);
  const int most = std::clamp(static_cast<int>(std::min<double>(band, rows)), 1, std::max(rows, 1));
  return ceil_div(rows, ceil_div(rows, most));
}

}  // namespace
}  // namespace sinter
#endif

// ---- kernels, compiled for each instruction set -------------------------------------------------
HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Accumulators of a register tile. They, the operands of one side and one of the other must fit in
// the vector registers: 32 with AVX-512 and NEON, else 16.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif
constexpr int kMaxChannels = 6;  // of a tile
constexpr int tile_width(int channels) { return std::min(8, kAccumulators / channels); }

// Source pixels of a group of images with images in lanes, (channel, row, column, lane), zeros
// around them.
template <class T> struct Band {
  Extent rows, cols;
  ptrdiff_t row() const { return ptrdiff_t{cols.size()} * kLanes<T>; }
  ptrdiff_t channel() const { return rows.size() * row(); }
};

// Fills `band` of `channels` planes of `images` (at most kLanes) images, `image` elements apart.
template <class T> HWY_ATTR void load_band(const Band<T>& band, int channels, int h, int w,
                                           int images, ptrdiff_t image, const T* src, T* dst) {
  constexpr int L = kLanes<T>;
  const bool inside = band.rows.low >= 0 && band.rows.high < h && band.cols.low >= 0 &&
                      band.cols.high < w && images == L;
  if (!inside) std::fill_n(dst, channels * band.channel(), T(0));
  const int r0 = std::max(band.rows.low, 0), r1 = std::min(band.rows.high, h - 1);
  const int c0 = std::max(band.cols.low, 0), c1 = std::min(band.cols.high, w - 1);
  if (r1 < r0 || c1 < c0) return;
  for (int channel = 0; channel < channels; ++channel) {
    const T* s = src + (ptrdiff_t{channel} * h + r0) * w + c0;
    T* t = dst + channel * band.channel() + (r0 - band.rows.low) * band.row() +
           ptrdiff_t{c0 - band.cols.low} * L;
    if (band.cols.size() == w && c0 == band.cols.low) {  // whole rows follow one another
      transpose(images, (r1 - r0 + 1) * w, s, image, t, L);
    } else {
      for (int r = r0; r <= r1; ++r, s += w, t += band.row()) {
        transpose(images, c1 - c0 + 1, s, image, t, L);
      }
    }
  }
}

// ---- y and dx -----------------------------------------------------------------------------------

// Three nested loops over taps: channels, rows, columns, with the steps each takes through the
// source and through the packed weights.
struct TapLoops {
  int channels, rows, cols;
  ptrdiff_t s_channel, s_row, s_col;
  ptrdiff_t w_channel, w_row, w_col;
  bool relu;  // of the sums
};

// to[p] + o * to_channel = bias[o] + sum over taps of from[p] * weights, for kO channels o and kP
// positions p, or the ReLU of it.
template <int kO, int kP, class T>
HWY_NOINLINE HWY_ATTR void correlate_tile(const TapLoops& t, const T* const* from, const T* w,
                                          const T* bias, T* const* to, ptrdiff_t to_channel) {
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  V sum[kO][kP];
  for (int o = 0; o < kO; ++o) {
    for (int p = 0; p < kP; ++p) sum[o][p] = hn::Set(d, bias[o]);
  }
  const T* source[kP];
  for (int p = 0; p < kP; ++p) source[p] = from[p];
  for (int c = 0; c < t.channels; ++c) {
    for (int a = 0; a < t.rows; ++a) {
      ptrdiff_t at = c * t.s_channel + a * t.s_row;
      const T* HWY_RESTRICT wt = w + c * t.w_channel + a * t.w_row;
      for (int b = 0; b < t.cols; ++b, at += t.s_col, wt += t.w_col) {
        V x[kP];
        for (int p = 0; p < kP; ++p) x[p] = hn::Load(d, source[p] + at);
        for (int o = 0; o < kO; ++o) {
          const V wo = hn::Set(d, wt[o]);
          for (int p = 0; p < kP; ++p) sum[o][p] = hn::MulAdd(wo, x[p], sum[o][p]);
        }
      }
    }
  }
  const V limit = act_limit(d, t.relu);
  for (int o = 0; o < kO; ++o) {
    for (int p = 0; p < kP; ++p) hn::Store(act(sum[o][p], limit), d, to[p] + o * to_channel);
  }
}

// All positions of a band and one tile of kO channels. `out` is (kO, out_rows, out_w, lane), its
// first row being output row out_row.
template <int kO, class T> void correlate_band(const Correlation& k, const Band<T>& band,
                                               int i_begin, int i_end, const T* source, const T* w,
                                               const T* bias, int out_row, int out_rows, T* out) {
  constexpr int kP = tile_width(kO), L = kLanes<T>;
  for (const Axis& rows : k.rows) {
    for (const Axis& cols : k.cols) {
      const int64_t first = int64_t{i_begin} * cols.count;
      const int64_t last = int64_t{std::min(i_end, rows.count)} * cols.count - 1;
      for (int64_t position = first; position <= last; position += kP) {
        const T* from[kP];
        T* to[kP];
        std::pair<int, int> a{rows.taps, 0}, b{cols.taps, 0};  // taps that any position needs
        int i = static_cast<int>(position / cols.count),
            j = static_cast<int>(position % cols.count);
        for (int p = 0; p < kP; ++p) {
          from[p] = source + (rows.origin + i * rows.step - band.rows.low) * band.row() +
                    ptrdiff_t{cols.origin + j * cols.step - band.cols.low} * L;
          to[p] = out + (ptrdiff_t{rows.first + i * rows.every - out_row} * k.out_w + cols.first +
                         j * cols.every) *
                            L;
          const auto &va = rows.valid[static_cast<size_t>(i)],
                     &vb = cols.valid[static_cast<size_t>(j)];
          a = {std::min(a.first, va.first), std::max(a.second, va.second)};
          b = {std::min(b.first, vb.first), std::max(b.second, vb.second)};
          // Past the end the last position is computed again.
          if (position + p < last && ++j == cols.count) {
            j = 0;
            ++i;
          }
        }
        TapLoops t;
        t.channels = k.source_c;
        t.rows = std::max(0, a.second - a.first);
        t.cols = std::max(0, b.second - b.first);
        t.s_channel = band.channel();
        t.s_row = rows.tap_step * band.row();
        t.s_col = ptrdiff_t{cols.tap_step} * L;
        t.w_channel = ptrdiff_t{k.kh} * k.kw * kO;
        t.w_row = ptrdiff_t{rows.k_step} * k.kw * kO;
        t.w_col = ptrdiff_t{cols.k_step} * kO;
        t.relu = k.relu;
        const ptrdiff_t skipped = a.first * t.s_row + b.first * t.s_col;
        for (int p = 0; p < kP; ++p) from[p] += t.rows > 0 && t.cols > 0 ? skipped : 0;
        const T* wt = w + (ptrdiff_t{rows.k_first + a.first * rows.k_step} * k.kw + cols.k_first +
                           b.first * cols.k_step) *
                              kO;
        correlate_tile<kO, kP>(t, from, wt, bias, to, ptrdiff_t{out_rows} * k.out_w * L);
      }
    }
  }
}

template <class T>
void correlate(const Correlation& k, const T* x, const T* weight, const T* b, T* y) {
  constexpr int L = kLanes<T>;
  const int taps = k.kh * k.kw;
  const Parts tiles(k.out_c, kMaxChannels);

  // Weights in the order the kernel reads them: (group, tile; source channel, kh, kw, out channel).
  const int64_t group_weights = int64_t{k.out_c} * k.source_c * taps;
  const Scratch<T> packed(k.groups * group_weights);
  parallel_ranges(int64_t{k.groups} * tiles.count, items_per_grain(group_weights / tiles.count),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t item = begin; item < end; ++item) {
                      const int64_t group = item / tiles.count;
                      const int tile = static_cast<int>(item % tiles.count),
                                size = tiles.size(tile);
                      const T* from = weight + group * group_weights + tiles.begin(tile) * k.w_out;
                      T* to = packed.get() + group * group_weights +
                              int64_t{tiles.begin(tile)} * k.source_c * taps;
                      for (int c = 0; c < k.source_c; ++c) {
                        for (int tap = 0; tap < taps; ++tap) {
                          for (int o = 0; o < size; ++o)
                            *to++ = from[c * k.w_source + tap + o * k.w_out];
                        }
                      }
                    }
                  });

  // A band is rows [i_begin, i_end) of every row axis, and so a run of `every` times as many rows.
  const int every = k.rows[0].every, i_count = ceil_div(k.out_h, every);
  const Extent cols = source_extent(k.cols, 0, k.out_w);
  const double flops_per_row = 2.0 * L * every * k.out_c * k.out_w * k.source_c * taps /
                               static_cast<double>(k.rows.size() * k.cols.size());
  const double bytes_per_row = (double(k.source_c) * std::max(1, cols.size()) * k.rows[0].step +
                                double(kMaxChannels) * every * k.out_w) *
                               L * sizeof(T);
  const int band_rows = choose_band(i_count, flops_per_row, bytes_per_row);
  const int bands = ceil_div(i_count, band_rows), image_groups = ceil_div(k.n, L);

  parallel_for(int64_t{image_groups} * k.groups * bands, [&](int64_t item) {
    const int i_begin = static_cast<int>(item % bands) * band_rows;
    const int i_end = std::min(i_count, i_begin + band_rows);
    const int group = static_cast<int>(item / bands % k.groups);
    const int image = static_cast<int>(item / bands / k.groups) * L;
    const int images = std::min(L, k.n - image);
    const int out_row = i_begin * every, out_rows = std::min(k.out_h, i_end * every) - out_row;

    Band<T> band;
    band.rows = source_extent(k.rows, i_begin, i_end);
    band.cols = cols;
    const ptrdiff_t source_plane = ptrdiff_t{k.source_h} * k.source_w;
    const ptrdiff_t source_image = source_plane * k.source_c * k.groups;
    const Scratch<T> source(k.source_c * band.channel());
    load_band(band, k.source_c, k.source_h, k.source_w, images, source_image,
              x + image * source_image + group * k.source_c * source_plane, source.get());

    const ptrdiff_t out_plane = ptrdiff_t{k.out_h} * k.out_w;
    const ptrdiff_t out_image = out_plane * k.out_c * k.groups;
    const Scratch<T> out(int64_t{kMaxChannels} * out_rows * k.out_w * L);
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int channel = group * k.out_c + tiles.begin(tile), size = tiles.size(tile);
      const T* w =
          packed.get() + group * group_weights + int64_t{tiles.begin(tile)} * k.source_c * taps;
      T bias[kMaxChannels] = {};
      if (b != nullptr) std::copy_n(b + channel, size, bias);
      with_constant<kMaxChannels>(size, [&](auto channels) {
        correlate_band<channels()>(k, band, i_begin, i_end, source.get(), w, bias, out_row,
                                   out_rows, out.get());
      });
      for (int o = 0; o < size; ++o) {
        transpose(out_rows * k.out_w, images, out.get() + ptrdiff_t{o} * out_rows * k.out_w * L, L,
                  y + image * out_image + (channel + o) * out_plane + ptrdiff_t{out_row} * k.out_w,
                  out_image);
      }
    }
  });
}

// ---- weight gradient ----------------------------------------------------------------------------

// Rows and columns of output positions, and the steps a position takes through the source and
// through dy.
struct PositionLoops {
  int rows, cols;
  ptrdiff_t x_row, x_col, dy_row;
};

// sums (kO, kT; lane) += sum over positions of dy (position, kO; lane) * from[t].
template <int kO, int kT, class T>
HWY_NOINLINE HWY_ATTR void weight_tile(const PositionLoops& l, const T* const* from, const T* dy,
                                       T* HWY_RESTRICT sums) {
  constexpr int L = kLanes<T>;
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  V sum[kO][kT];
  for (int o = 0; o < kO; ++o) {
    for (int t = 0; t < kT; ++t) sum[o][t] = hn::Load(d, sums + (o * kT + t) * L);
  }
  const T* source[kT];
  for (int t = 0; t < kT; ++t) source[t] = from[t];
  for (int r = 0; r < l.rows; ++r) {
    ptrdiff_t at = r * l.x_row;
    const T* g = dy + r * l.dy_row;
    for (int c = 0; c < l.cols; ++c, at += l.x_col, g += kO * L) {
      V x[kT];
      for (int t = 0; t < kT; ++t) x[t] = hn::Load(d, source[t] + at);
      for (int o = 0; o < kO; ++o) {
        const V go = hn::Load(d, g + o * L);
        for (int t = 0; t < kT; ++t) sum[o][t] = hn::MulAdd(go, x[t], sum[o][t]);
      }
    }
  }
  for (int o = 0; o < kO; ++o) {
    for (int t = 0; t < kT; ++t) hn::Store(sum[o][t], d, sums + (o * kT + t) * L);
  }
}

// sums[i] = the lanes of vector i added, for i < count, in place; count is a multiple of kBlock
// (or of one on a scalar target). Several vectors are transposed and added at once.
template <class T> HWY_ATTR void add_lanes(int64_t count, T* sums) {
  constexpr int L = kLanes<T>;
#if HWY_TARGET != HWY_SCALAR
  constexpr int kBlock = 16 / sizeof(T);
  const hn::FixedTag<T, kBlock> d;
  for (int64_t i = 0; i < count; i += kBlock) {
    const T* s = sums + i * L;
    auto total = hn::Zero(d);
    for (int lane = 0; lane < L; lane += kBlock, s += kBlock) {
      const auto a = hn::LoadU(d, s), b = hn::LoadU(d, s + L);
      const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
      if constexpr (kBlock == 2) {
        total = hn::Add(total, ab);
      } else {
        const auto e = hn::LoadU(d, s + 2 * L), f = hn::LoadU(d, s + 3 * L);
        const auto ef = hn::Add(hn::InterleaveLower(d, e, f), hn::InterleaveUpper(d, e, f));
        total = hn::Add(total,
                        hn::Add(hn::ConcatLowerLower(d, ef, ab), hn::ConcatUpperUpper(d, ef, ab)));
      }
    }
    hn::StoreU(total, d, sums + i);
  }
#else
  (void)count;
  (void)sums;
  static_assert(L == 1);
#endif
}

template <class T> void weight_gradient(const Conv2dShape& g, const T* x, const T* dy, T* dweight) {
  constexpr int L = kLanes<T>;
  const int group_c = g.c / g.groups, group_o = g.o / g.groups, kernel = g.kh * g.kw;
  const Parts tiles(group_o, kMaxChannels);

  // Channels are cut into blocks whose sums, a vector for every weight, stay in the cache.
  constexpr int kBlockTaps = 160;
  const Parts blocks(group_c, std::max(1, kBlockTaps / kernel));
  const int block_c = ceil_div(group_c, blocks.count);
  const auto rows_axis = forward_axes(g.h, g.oh, g.kh, g.stride_h, g.pad_h, g.dil_h);
  const auto cols_axis = forward_axes(g.w, g.ow, g.kw, g.stride_w, g.pad_w, g.dil_w);
  const Extent cols = source_extent(cols_axis, 0, g.ow);

  // A unit is a band of rows of a group of images; a chunk adds up consecutive units.
  const double flops_per_row = 2.0 * L * g.ow * group_o * block_c * kernel;
  const double bytes_per_row =
      (double(block_c) * cols.size() * g.stride_h + double(group_o) * g.ow) * L * sizeof(T);
  const int band_rows = choose_band(g.oh, flops_per_row, bytes_per_row);
  const int bands = ceil_div(g.oh, band_rows);
  const int64_t units = int64_t{ceil_div(g.n, L)} * bands;
  constexpr int64_t kChunks = 32;
  const int64_t most_chunks = std::max<int64_t>(1, kChunks / (int64_t{g.groups} * blocks.count));
  const int64_t chunk_units = (units + most_chunks - 1) / most_chunks;
  const int64_t chunks = (units + chunk_units - 1) / chunk_units;

  const int64_t weights = int64_t{g.o} * group_c * kernel;
  const Scratch<T> partial(chunks * weights);

  parallel_for(chunks * g.groups * blocks.count, [&](int64_t item) {
    const int block = static_cast<int>(item % blocks.count);
    const int group = static_cast<int>(item / blocks.count % g.groups);
    const int64_t chunk = item / blocks.count / g.groups;
    const int c_begin = blocks.begin(block), channels = blocks.size(block);
    const int taps = channels * kernel;

    // Sums of all tiles: (channel tile; tap tile; channel, tap; lane), tap tiles rounded up.
    std::vector<int64_t> first_sum{0};
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int size = tiles.size(tile), width = tile_width(size);
      first_sum.push_back(first_sum.back() + int64_t{ceil_div(taps, width)} * width * size);
    }
    const int64_t sums_count = (first_sum.back() + 3) / 4 * 4;  // add_lanes takes four at a time
    const Scratch<T> sums(sums_count * L);
    std::fill_n(sums.get(), sums_count * L, T(0));

    for (int64_t unit = chunk * chunk_units; unit < std::min(units, (chunk + 1) * chunk_units);
         ++unit) {
      const int image = static_cast<int>(unit / bands) * L, images = std::min(L, g.n - image);
      const int row = static_cast<int>(unit % bands) * band_rows;
      const int rows = std::min(band_rows, g.oh - row);
      Band<T> band;
      band.rows = source_extent(rows_axis, row, row + rows);
      band.cols = cols;
      const ptrdiff_t plane = ptrdiff_t{g.h} * g.w, out_plane = ptrdiff_t{g.oh} * g.ow;
      const Scratch<T> source(channels * band.channel());
      load_band(band, channels, g.h, g.w, images, g.c * plane,
                x + image * g.c * plane + (group * group_c + c_begin) * plane, source.get());

      // One tile of channels of dy at a time, (position, channel; lane).
      const Scratch<T> gradient(int64_t{kMaxChannels} * rows * g.ow * L);
      for (int tile = 0; tile < tiles.count; ++tile) {
        const int size = tiles.size(tile);
        if (images < L) std::fill_n(gradient.get(), int64_t{size} * rows * g.ow * L, T(0));
        for (int o = 0; o < size; ++o) {
          transpose(images, rows * g.ow,
                    dy + image * g.o * out_plane +
                        (group * group_o + tiles.begin(tile) + o) * out_plane +
                        ptrdiff_t{row} * g.ow,
                    g.o * out_plane, gradient.get() + o * L, ptrdiff_t{size} * L);
        }
        with_constant<kMaxChannels>(size, [&](auto constant) {
          constexpr int kO = constant(), kT = tile_width(kO);
          // Few enough rows at a time that dy stays in the first-level cache for all taps.
          constexpr int kLevel1 = 24 << 10;
          const int64_t row_bytes = int64_t{g.ow} * kO * L * static_cast<int64_t>(sizeof(T));
          const int step = static_cast<int>(std::clamp<int64_t>(kLevel1 / row_bytes, 1, rows));
          for (int r = 0; r < rows; r += step) {
            PositionLoops l;
            l.rows = std::min(step, rows - r);
            l.cols = g.ow;
            l.x_row = g.stride_h * band.row();
            l.x_col = ptrdiff_t{g.stride_w} * L;
            l.dy_row = ptrdiff_t{g.ow} * kO * L;
            T* tile_sums = sums.get() + first_sum[static_cast<size_t>(tile)] * L;
            for (int tap = 0; tap < taps; tap += kT, tile_sums += kO * kT * L) {
              const T* from[kT];
              for (int t = 0; t < kT; ++t) {
                const int at = std::min(tap + t, taps - 1);  // past the end: computed, not used
                const int c = at / kernel, i = at % kernel / g.kw, j = at % g.kw;
                from[t] = source.get() + c * band.channel() +
                          (r * g.stride_h + i * g.dil_h) * band.row() + ptrdiff_t{j} * g.dil_w * L;
              }
              weight_tile<kO, kT>(l, from, gradient.get() + r * l.dy_row, tile_sums);
            }
          }
        });
      }
    }

    add_lanes(sums_count, sums.get());
    T* to = partial.get() + chunk * weights + int64_t{group} * group_o * group_c * kernel;
    for (int tile = 0; tile < tiles.count; ++tile) {
      const int size = tiles.size(tile), width = tile_width(size);
      const T* from = sums.get() + first_sum[static_cast<size_t>(tile)];
      for (int o = 0; o < size; ++o) {
        T* row = to + (int64_t{tiles.begin(tile) + o} * group_c + c_begin) * kernel;
        for (int tap = 0; tap < taps; ++tap) {
          row[tap] = from[tap / width * width * size + o * width + tap % width];
        }
      }
    }
  });

  parallel_ranges(weights, items_per_grain(chunks), [&](int64_t begin, int64_t end) {
    std::copy(partial.get() + begin, partial.get() + end, dweight + begin);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      const T* p = partial.get() + chunk * weights;
      for (int64_t i = begin; i < end; ++i) dweight[i] += p[i];
    }
  });
}

// ---- what the dispatch table refers to: one plain function an instruction set -------------------

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }
int LanesFloat() { return kLanes<float>; }
int LanesDouble() { return kLanes<double>; }
void CorrelateFloat(const Correlation& k, const float* x, const float* w, const float* b,
                    float* y) {
  correlate(k, x, w, b, y);
}
void CorrelateDouble(const Correlation& k, const double* x, const double* w, const double* b,
                     double* y) {
  correlate(k, x, w, b, y);
}
void WeightGradientFloat(const Conv2dShape& g, const float* x, const float* dy, float* dw) {
  weight_gradient(g, x, dy, dw);
}
void WeightGradientDouble(const Conv2dShape& g, const double* x, const double* dy, double* dw) {
  weight_gradient(g, x, dy, dw);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(TargetName);
HWY_EXPORT(LanesFloat);
HWY_EXPORT(LanesDouble);
HWY_EXPORT(CorrelateFloat);
HWY_EXPORT(CorrelateDouble);
HWY_EXPORT(WeightGradientFloat);
HWY_EXPORT(WeightGradientDouble);

void dispatch(const Correlation& k, const float* x, const float* w, const float* b, float* y) {
  HWY_DYNAMIC_DISPATCH(CorrelateFloat)(k, x, w, b, y);
}
void dispatch(const Correlation& k, const double* x, const double* w, const double* b, double* y) {
  HWY_DYNAMIC_DISPATCH(CorrelateDouble)(k, x, w, b, y);
}

}  // namespace

std::string simd_target() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

template <> int direct_conv2d_lanes<float>() { return HWY_DYNAMIC_DISPATCH(LanesFloat)(); }
template <> int direct_conv2d_lanes<double>() { return HWY_DYNAMIC_DISPATCH(LanesDouble)(); }

template <class T> void direct_conv2d_forward(const Conv2dShape& g, const T* x, const T* weight,
                                              const T* b, T* y, bool relu) {
  Correlation k = forward_correlation(g);
  k.relu = relu;
  dispatch(k, x, weight, b, y);
}

template <class T>
void direct_conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  dispatch(backward_correlation(g), dy, weight, static_cast<const T*>(nullptr), dx);
}

template <> void direct_conv2d_backward_weights(const Conv2dShape& g, const float* x,
                                                const float* dy, float* dweight) {
  HWY_DYNAMIC_DISPATCH(WeightGradientFloat)(g, x, dy, dweight);
}
template <> void direct_conv2d_backward_weights(const Conv2dShape& g, const double* x,
                                                const double* dy, double* dweight) {
  HWY_DYNAMIC_DISPATCH(WeightGradientDouble)(g, x, dy, dweight);
}

#define SINTER_INSTANTIATE(T)                                                                      \
  template void direct_conv2d_forward(const Conv2dShape&, const T*, const T*, const T*, T*, bool); \
  template void direct_conv2d_backward_data(const Conv2dShape&, const T*, const T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
#endif  // HWY_ONCE
