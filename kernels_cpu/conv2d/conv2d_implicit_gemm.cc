// Convolution as a matrix product whose patches are never written out.
//
// A band of rows of an image is copied once for each column of the window, shifted by it, with the
// zeros of the padding in place. In such a copy the pixels that a tap of the window reads for
// consecutive outputs follow one another, across the ends of rows as well: a row of the matrix of
// patches is the copy from some offset on. So kw copies (not kh kw) of a band in cache stand for
// the matrix, and one inner loop serves every width of image, padding, stride and dilation.
//
//   y, dx     pixels in the lanes, weights broadcast: a register tile of output channels x pixels,
//             summed over channels and taps. dx is the correlation of dy, zeros put between its
//             elements where the stride is not one, with the mirrored weights.
//   dweight   output channels in the lanes (dy transposed), patches broadcast: a register tile of
//             rows of the matrix of patches x output channels, summed over pixels.
//
// Every output is computed by one fixed sequence of operations. Only weight gradients are cut into
// partial sums, along chunks of images that depend on the geometry alone.
#include "kernels_cpu/conv2d/conv2d_algorithms.h"
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/conv2d/conv2d_implicit_gemm.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/tiles-inl.h"

// ---- geometry, the same for every instruction set -----------------------------------------------
#ifndef SINTER_KERNELS_CPU_CONV2D_IMPLICIT_GEMM_GEOMETRY
#define SINTER_KERNELS_CPU_CONV2D_IMPLICIT_GEMM_GEOMETRY

namespace sinter {
using namespace op;
namespace {

// out[o, r, q] = sum over c, a, b of source[c, (r stride_h - pad_h + a dil_h) / up_h,
//   (q stride_w - pad_w + b dil_w) / up_w] weight(o, c, a, b), where those divisions are exact and
// the source has that element. Channels are those of one group.
struct Correlation {
  int n, groups;
  int c, h, w;
  int o, oh, ow;
  int kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, up_h, up_w;
  bool relu = false;  // of the sums

  int taps() const { return kh * kw; }
  int64_t source_plane() const { return int64_t{h} * w; }
  int64_t out_plane() const { return int64_t{oh} * ow; }
};

inline Correlation forward_correlation(const Conv2dShape& g) {
  return {g.n,  g.groups,   g.c / g.groups, g.h,     g.w,     g.o / g.groups, g.oh,    g.ow, g.kh,
          g.kw, g.stride_h, g.stride_w,     g.pad_h, g.pad_w, g.dil_h,        g.dil_w, 1,    1};
}

// The tap (a, b) of this one is the tap (kh - 1 - a, kw - 1 - b) of the convolution.
inline Correlation backward_correlation(const Conv2dShape& g) {
  return {g.n,
          g.groups,
          g.o / g.groups,
          g.oh,
          g.ow,
          g.c / g.groups,
          g.h,
          g.w,
          g.kh,
          g.kw,
          1,
          1,
          (g.kh - 1) * g.dil_h - g.pad_h,
          (g.kw - 1) * g.dil_w - g.pad_w,
          g.dil_h,
          g.dil_w,
          g.stride_h,
          g.stride_w};
}

// Where the packed copies of `rows` rows of output hold what its taps read: that of tap t for
// output pixel p (counted through the rows) of channel c is at c * channel + tap[t] + p.
struct Layout {
  int rows;           // of output
  int copy_rows;      // rows of a copy
  int step;           // rows of the source from one to the next
  int copies_of_row;  // kh where rows are not shared between the taps of a column, else 1
  ptrdiff_t copy, channel;
  std::vector<ptrdiff_t> tap;

  Layout(const Correlation& k, int output_rows) : rows(output_rows) {
    // Without a stride neighbouring outputs read neighbouring rows. Far apart taps share none.
    const int shared_rows = rows + (k.kh - 1) * k.dil_h;
    const bool shared = k.stride_h == 1 && shared_rows <= int64_t{k.kh} * rows;
    copy_rows = shared ? shared_rows : rows;
    copies_of_row = shared ? 1 : k.kh;
    step = shared ? 1 : k.stride_h;
    copy = ptrdiff_t{copy_rows} * k.ow;
    channel = copies_of_row * k.kw * copy;
    for (int a = 0; a < k.kh; ++a) {
      for (int b = 0; b < k.kw; ++b) {
        tap.push_back(shared ? b * copy + ptrdiff_t{a} * k.dil_h * k.ow : (a * k.kw + b) * copy);
      }
    }
  }
};

// Packed bytes, and weights, that stay in the second-level cache together.
constexpr int64_t kPackedBytes = 256 << 10;
constexpr int64_t kWeightBytes = 384 << 10;
// Bytes of packed pixels that a tile of output pixels reads, and that stay in the first-level cache
// while all output channels are computed from them.
constexpr int64_t kTileBytes = 32 << 10;
// The same of transposed dy.
constexpr int64_t kGradientBytes = 64 << 10;
// Items that feed the threads, also when one is late; and output channels that make up for packing
// a band once more.
constexpr int kItems = 32;
constexpr int kShareChannels = 128;

}  // namespace
}  // namespace sinter
#endif

// ---- kernels, compiled for each instruction set -------------------------------------------------
HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Accumulators of a register tile. They, a vector of each column and one broadcast must fit in the
// vector registers: 32 with AVX-512 and NEON, else 16.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kAccumulators = 28;
constexpr int kMaxVectors = 4;  // of output channels in a tile of weight gradients
#else
constexpr int kAccumulators = 12;
constexpr int kMaxVectors = 2;
#endif
constexpr int kPixelVectors = 2;
constexpr int kMaxChannels = kAccumulators / kPixelVectors;  // of a tile of outputs
// Rows of patches in a tile of weight gradients: each needs a register for its address, too.
constexpr int kMaxRows = 12;
constexpr int tile_rows(int vectors) {
  return std::min(kMaxRows, std::min(24, kAccumulators) / vectors);
}

// to[c * to_stride + r] = from[r * from_stride + c] for as many r and c as a vector has lanes:
// first within 128-bit blocks, then the blocks.
template <class T> HWY_ATTR void transpose_vectors(const T* HWY_RESTRICT from,
                                                   ptrdiff_t from_stride, T* HWY_RESTRICT to,
                                                   ptrdiff_t to_stride) {
#if HWY_TARGET != HWY_SCALAR
  const Vec<T> d;
  const hn::Repartition<double, Vec<T>> d64;
  using V = hn::Vec<Vec<T>>;
  constexpr int L = kLanes<T>, kBlock = 16 / sizeof(T), kBlocks = L / kBlock;
  V v[kBlocks][kBlock];  // [g][j]: in block k, column k * kBlock + j of rows [g * kBlock, …)
  each<kBlocks>([&](auto g) HWY_ATTR {
    const T* at = from + g * kBlock * from_stride;
    if constexpr (kBlock == 2) {
      const V a = hn::LoadU(d, at), b = hn::LoadU(d, at + from_stride);
      v[g][0] = hn::InterleaveLower(d, a, b);
      v[g][1] = hn::InterleaveUpper(d, a, b);
    } else {
      const V a = hn::LoadU(d, at), b = hn::LoadU(d, at + from_stride);
      const V e = hn::LoadU(d, at + 2 * from_stride), f = hn::LoadU(d, at + 3 * from_stride);
      const auto ab0 = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
      const auto ab1 = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
      const auto ef0 = hn::BitCast(d64, hn::InterleaveLower(d, e, f));
      const auto ef1 = hn::BitCast(d64, hn::InterleaveUpper(d, e, f));
      v[g][0] = hn::BitCast(d, hn::InterleaveLower(d64, ab0, ef0));
      v[g][1] = hn::BitCast(d, hn::InterleaveUpper(d64, ab0, ef0));
      v[g][2] = hn::BitCast(d, hn::InterleaveLower(d64, ab1, ef1));
      v[g][3] = hn::BitCast(d, hn::InterleaveUpper(d64, ab1, ef1));
    }
  });
  each<kBlock>([&](auto j) HWY_ATTR {
    const auto store = [&](int k, V column)
                           HWY_ATTR { hn::StoreU(column, d, to + (k * kBlock + j) * to_stride); };
    if constexpr (kBlocks == 1) {
      store(0, v[0][j]);
    } else if constexpr (kBlocks == 2) {
      store(0, hn::ConcatLowerLower(d, v[1][j], v[0][j]));
      store(1, hn::ConcatUpperUpper(d, v[1][j], v[0][j]));
    } else {
      static_assert(kBlocks == 4);
      // Blocks (0, 2) and (1, 3) of two vectors, alternating.
      const V even01 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(v[1][j]), v[0][j]);
      const V odd01 = hn::OddEvenBlocks(v[1][j], hn::SwapAdjacentBlocks(v[0][j]));
      const V even23 = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(v[3][j]), v[2][j]);
      const V odd23 = hn::OddEvenBlocks(v[3][j], hn::SwapAdjacentBlocks(v[2][j]));
      store(0, hn::ConcatLowerLower(d, even23, even01));
      store(1, hn::ConcatLowerLower(d, odd23, odd01));
      store(2, hn::ConcatUpperUpper(d, even23, even01));
      store(3, hn::ConcatUpperUpper(d, odd23, odd01));
    }
  });
#else
  *to = *from;
  (void)from_stride;
  (void)to_stride;
#endif
}

// to[c * to_stride + r] = from[r * from_stride + c] for r < rows, c < cols. The last vectors
// overlap those before them instead of leaving a remainder.
template <class T> void transpose(int rows, int cols, const T* HWY_RESTRICT from,
                                  ptrdiff_t from_stride, T* HWY_RESTRICT to, ptrdiff_t to_stride) {
  constexpr int L = kLanes<T>;
  if (rows < L || cols < L) {
    for (int c = 0; c < cols; ++c) {
      for (int r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * from_stride + c];
    }
    return;
  }
  for (int c0 = 0; c0 < cols; c0 += L) {
    const int c = std::min(c0, cols - L);
    for (int r0 = 0; r0 < rows; r0 += L) {
      const int r = std::min(r0, rows - L);
      const T* at = from + r * from_stride + c;
      // The next columns of these rows: too many rows for the processor to see the streams.
      if (c + 2 * L <= cols) {
        for (int i = 0; i < L; ++i) hwy::Prefetch(at + i * from_stride + L);
      }
      transpose_vectors(at, from_stride, to + c * to_stride + r, to_stride);
    }
  }
}

// ---- packing ------------------------------------------------------------------------------------

// Copies a band of rows of one channel after another into the layout.
template <class T> class Packer {
 public:
  // For outputs from row `row` on. `source` has `elements`.
  Packer(const Correlation& k, const Layout& layout, int row, const T* source, int64_t elements)
      : k_(k),
        layout_(layout),
        top_(row * k.stride_h - k.pad_h),
        begin_(source),
        end_(source + elements) {}

  // Writes layout.channel elements, and up to a vector beyond them.
  void pack(const T* plane, T* to) const {
    for (int a = 0; a < layout_.copies_of_row; ++a) {
      for (int b = 0; b < k_.kw; ++b) {
        const int shift = b * k_.dil_w - k_.pad_w;
        // Outputs [left, right) read the image.
        const int left = std::clamp(shift >= 0 ? 0 : ceil_div(-shift, k_.stride_w), 0, k_.ow);
        const int64_t width = int64_t{k_.w - 1} * k_.up_w + 1 - shift;
        const int right =
            width <= 0
                ? left
                : static_cast<int>(std::clamp<int64_t>(ceil_div(width, k_.stride_w), left, k_.ow));
        const int top = top_ + a * k_.dil_h;
        if (k_.up_h == 1 && k_.up_w == 1 && k_.stride_w == 1 && k_.ow == k_.w &&
            layout_.step == 1 && whole_copy(plane, top, shift, left, right, to)) {
          to += layout_.copy;
          continue;
        }
        for (int i = 0; i < layout_.copy_rows; ++i, to += k_.ow) {
          const int v = top + i * layout_.step;
          if (v < 0 || v % k_.up_h != 0 || v / k_.up_h >= k_.h) {
            std::fill_n(to, k_.ow, T(0));
          } else {
            const T* from = plane + int64_t{v / k_.up_h} * k_.w;
            if (b == 0) fetch(from, k_.w);
            row(from, shift, left, right, to);
          }
        }
      }
    }
  }

 private:
  // Planes are pages of their own or few lines each: too short for the processor to see a stream.
  static constexpr int64_t kAhead = 4;
  void fetch(const T* from, int64_t n) const {
    const int64_t ahead = kAhead * k_.source_plane();
    if (end_ - from < ahead + n) return;
    for (int64_t j = 0; j < n; j += 64 / static_cast<int>(sizeof(T))) {
      hwy::Prefetch(from + ahead + j);
    }
  }

  // The rows of a copy that are as wide as those of the image: all at once, shifted, and then the
  // zeros. Does nothing and returns false if that reads outside the array.
  HWY_ATTR bool whole_copy(const T* HWY_RESTRICT plane, int top, ptrdiff_t shift, int left,
                           int right, T* HWY_RESTRICT to) const {
    const Vec<T> d;
    constexpr int L = kLanes<T>;
    const int begin = std::clamp(-top, 0, layout_.copy_rows);
    const int end = std::clamp(k_.h - top, begin, layout_.copy_rows);
    const int64_t first = int64_t{begin} * k_.w, count = int64_t{end - begin} * k_.w;
    const T* from = plane + (int64_t{begin} + top) * k_.w;
    if (shift < begin_ - from || shift + count + L > end_ - from) return false;
    if (shift == -k_.pad_w) fetch(from, count);
    std::fill_n(to, first, T(0));
    for (int64_t i = 0; i < count; i += L) {
      hn::StoreU(hn::LoadU(d, from + shift + i), d, to + first + i);
    }
    std::fill_n(to + first + count, layout_.copy - first - count, T(0));
    for (int i = begin; i < end; ++i) {
      for (int j = 0; j < left; ++j) to[i * k_.ow + j] = 0;
      for (int j = right; j < k_.ow; ++j) to[i * k_.ow + j] = 0;
    }
    return true;
  }

  // to[j] = from[(j stride + shift) / up] in [left, right), 0 outside. By whole vectors where they
  // read inside the array: what they write beyond the row is overwritten by the next one, what they
  // write outside [left, right) by zeros.
  HWY_ATTR void row(const T* HWY_RESTRICT from, ptrdiff_t shift, int left, int right,
                    T* HWY_RESTRICT to) const {
    const Vec<T> d;
    constexpr int L = kLanes<T>;
    const ptrdiff_t vectors = ptrdiff_t{k_.ow + L - 1} / L * L * k_.stride_w;
    const bool inside = shift >= begin_ - from && shift + vectors <= end_ - from;
    if (k_.up_w == 1 && k_.stride_w == 1 && inside) {
      for (int j = 0; j < k_.ow; j += L) hn::StoreU(hn::LoadU(d, from + shift + j), d, to + j);
#if HWY_TARGET != HWY_SCALAR
    } else if (k_.up_w == 1 && k_.stride_w == 2 && inside) {
      for (int j = 0; j < k_.ow; j += L) {
        auto even = hn::Zero(d), odd = even;
        hn::LoadInterleaved2(d, from + shift + 2 * j, even, odd);
        hn::StoreU(even, d, to + j);
      }
#endif
    } else if (k_.up_w == 1) {
      for (int j = left; j < right; ++j) to[j] = from[j * ptrdiff_t{k_.stride_w} + shift];
    } else {
      for (int j = left; j < right; ++j) {
        const ptrdiff_t at = j + shift;
        to[j] = at % k_.up_w == 0 ? from[at / k_.up_w] : T(0);
      }
    }
    for (int j = 0; j < left; ++j) to[j] = 0;
    for (int j = right; j < k_.ow; ++j) to[j] = 0;
  }

  const Correlation& k_;
  const Layout& layout_;
  int top_;  // first row
  const T *begin_, *end_;
};

// ---- y and dx -----------------------------------------------------------------------------------

// y (kO, kV vectors) (+)= weights (terms, kO) x patches: those of term i are at x + offset[i]. With
// `relu` the ReLU of that.
template <int kO, int kV, class T>
HWY_NOINLINE HWY_ATTR void output_tile(int terms, const ptrdiff_t* HWY_RESTRICT offset,
                                       const T* HWY_RESTRICT x, const T* HWY_RESTRICT w,
                                       const T* bias, bool first, bool relu, T* y,
                                       ptrdiff_t y_stride) {
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  constexpr int L = kLanes<T>;
  // They are read only after the sums: time enough to fetch them.
  each<kO>([&](auto o) HWY_ATTR {
    each<kV>([&](auto v) HWY_ATTR { hwy::Prefetch(y + o * y_stride + v * L); });
  });
  V sum[kO][kV];
  each<kO>([&](auto o) HWY_ATTR { each<kV>([&](auto v) HWY_ATTR { sum[o][v] = hn::Zero(d); }); });
  for (int i = 0; i < terms; ++i, w += kO) {
    const T* at = x + offset[i];
    V pixels[kV];
    each<kV>([&](auto v) HWY_ATTR { pixels[v] = hn::LoadU(d, at + v * L); });
    each<kO>([&](auto o) HWY_ATTR {
      const V wo = hn::Set(d, w[o]);
      each<kV>([&](auto v) HWY_ATTR { sum[o][v] = hn::MulAdd(wo, pixels[v], sum[o][v]); });
    });
  }
  const V limit = act_limit(d, relu);
  each<kO>([&](auto o) HWY_ATTR {
    each<kV>([&](auto v) HWY_ATTR {
      T* to = y + o * y_stride + v * L;
      const V before = !first            ? hn::LoadU(d, to)
                       : bias != nullptr ? hn::Set(d, bias[o])
                                         : hn::Zero(d);
      hn::StoreU(act(hn::Add(before, sum[o][v]), limit), d, to);
    });
  });
}

// The same for any tile, of which only the first `pixels` are outputs.
template <class T>
void any_output_tile(int channels, int pixels, int terms, const ptrdiff_t* offset, const T* x,
                     const T* w, const T* bias, bool first, bool relu, T* y, ptrdiff_t y_stride) {
  constexpr int L = kLanes<T>, kMost = kPixelVectors * L;
  const bool whole = pixels % L == 0;
  T part[kMaxChannels * kMost];
  T* to = whole ? y : part;
  const ptrdiff_t stride = whole ? y_stride : kMost;
  if (!whole && !first) {
    for (int o = 0; o < channels; ++o) std::copy_n(y + o * y_stride, pixels, part + o * kMost);
  }
  with_constant<kMaxChannels>(channels, [&](auto o) {
    with_constant<kPixelVectors>(ceil_div(pixels, L), [&](auto v) {
      output_tile<o, v>(terms, offset, x, w, bias, first, relu, to, stride);
    });
  });
  if (!whole) {
    for (int o = 0; o < channels; ++o) std::copy_n(part + o * kMost, pixels, y + o * y_stride);
  }
}

// weights(o, c, tap) as (group, tile of o, c, tap, o in the tile). `mirrored`: the weights are
// those of a convolution from o to c, and its taps are taken in reverse.
template <class T> void pack_weights(const Correlation& k, const Parts& tiles, bool mirrored,
                                     const T* weight, T* packed) {
  const int64_t taps = k.taps(), terms = k.c * taps;
  parallel_for(int64_t{k.groups} * tiles.count, [&](int64_t item) {
    const int tile = static_cast<int>(item % tiles.count);
    const int64_t group = item / tiles.count, first = group * k.o + tiles.begin(tile);
    const int size = tiles.size(tile);
    T* to = packed + first * terms;
    if (!mirrored) {
      transpose(size, static_cast<int>(terms), weight + first * terms, terms, to, size);
      return;
    }
    for (int64_t c = 0; c < k.c; ++c) {
      const T* from = weight + ((group * k.c + c) * k.o + tiles.begin(tile)) * taps;
      for (int64_t t = taps - 1; t >= 0; --t) {
        for (int o = 0; o < size; ++o) *to++ = from[o * taps + t];
      }
    }
  });
}

template <class T> void correlate(const Correlation& k, bool mirrored, const T* source,
                                  const T* weight, const T* bias, T* out) {
  constexpr int kPixels = kPixelVectors * kLanes<T>;
  const int taps = k.taps();
  const Parts tiles(k.o, kMaxChannels);
  const Scratch<T> packed_weights(int64_t{k.groups} * k.o * k.c * taps);
  pack_weights(k, tiles, mirrored, weight, packed_weights.get());

  // Channels that a tile of pixels reads from the first-level cache; rows and images, from the
  // second.
  const int64_t tile_rows = ceil_div(kPixels, k.ow);
  const int64_t tile_elements =
      Layout(k, static_cast<int>(std::min<int64_t>(tile_rows, k.oh))).channel;
  const Parts blocks(k.c, kTileBytes / static_cast<int64_t>(tile_elements * sizeof(T)));
  int rows = k.oh;
  while (rows > tile_rows &&
         Layout(k, rows).channel * blocks.largest() * static_cast<int64_t>(sizeof(T)) >
             kPackedBytes)
    rows = (rows + 1) / 2;
  const Parts bands(k.oh, rows);
  const Layout layout(k, bands.largest());
  const int64_t image_elements = layout.channel * blocks.largest();
  const int most_images = static_cast<int>(std::min(
      kPackedBytes / static_cast<int64_t>(image_elements * sizeof(T)), 256 / k.out_plane()));
  const Parts chunks(
      k.n, std::min<int64_t>(most_images, std::max<int64_t>(k.n / kItems, 128 / k.out_plane())));
  // Where these are few, items share a band and compute some of its output channels each.
  const int64_t items = int64_t{chunks.count} * k.groups * bands.count;
  const Parts shares(tiles.count,
                     ceil_div(tiles.count, std::clamp<int64_t>(ceil_div(kItems, items), 1,
                                                               ceil_div(k.o, kShareChannels))));
  // Tiles of output channels whose weights stay in the second-level cache too.
  const int hot_tiles = static_cast<int>(
      std::max<int64_t>(1, kWeightBytes / (int64_t{tiles.largest()} * blocks.largest() * taps *
                                           static_cast<int64_t>(sizeof(T)))));
  std::vector<ptrdiff_t> offset;
  for (int c = 0; c < blocks.largest(); ++c) {
    for (ptrdiff_t t : layout.tap) offset.push_back(c * layout.channel + t);
  }

  parallel_for(items * shares.count, [&](int64_t item) {
    const int share = static_cast<int>(item % shares.count);
    const int band = static_cast<int>(item / shares.count % bands.count);
    const int64_t group = item / shares.count / bands.count % k.groups;
    const int chunk = static_cast<int>(item / shares.count / bands.count / k.groups);
    const int64_t image = int64_t{chunks.begin(chunk)}, images = chunks.size(chunk);
    const int row = bands.begin(band), pixels = bands.size(band) * k.ow;
    const Packer<T> packer(k, layout, row, source,
                           int64_t{k.n} * k.groups * k.c * k.source_plane());
    // The last vectors of a tile read beyond what was packed.
    const Scratch<T> packed(images * image_elements + kPixels);
    std::fill_n(packed.get() + images * image_elements, kPixels, T(0));
    for (int block = 0; block < blocks.count; ++block) {
      const int c0 = blocks.begin(block), channels = blocks.size(block);
      for (int64_t n = 0; n < images; ++n) {
        const T* from = source + (((image + n) * k.groups + group) * k.c + c0) * k.source_plane();
        for (int c = 0; c < channels; ++c) {
          packer.pack(from + c * k.source_plane(),
                      packed.get() + n * image_elements + c * layout.channel);
        }
      }
      for (int first = shares.begin(share); first < shares.begin(share + 1); first += hot_tiles) {
        const int last = std::min(first + hot_tiles, shares.begin(share + 1));
        for (int64_t n = 0; n < images; ++n) {
          T* to =
              out + ((image + n) * k.groups + group) * k.o * k.out_plane() + int64_t{row} * k.ow;
          for (int p = 0; p < pixels; p += kPixels) {
            const T* x = packed.get() + n * image_elements + p;
            for (int tile = first; tile < last; ++tile) {
              const int o = tiles.begin(tile), size = tiles.size(tile);
              const T* w =
                  packed_weights.get() + ((group * k.o + o) * k.c + int64_t{size} * c0) * taps;
              any_output_tile(size, std::min(kPixels, pixels - p), channels * taps, offset.data(),
                              x, w, bias == nullptr ? nullptr : bias + group * k.o + o, block == 0,
                              k.relu && block + 1 == blocks.count, to + o * k.out_plane() + p,
                              k.out_plane());
            }
          }
        }
      }
    }
  });
}

// ---- dweight ------------------------------------------------------------------------------------

// sums (kR, kV vectors) (+)= patches (kR, pixels) x dy (pixels, kV vectors). The pixels are
// `segments` times `pixels` that follow one another in the patches, whose rows are at x +
// offset[r].
template <int kR, int kV, class T>
HWY_NOINLINE HWY_ATTR void gradient_tile(int segments, int pixels, ptrdiff_t segment,
                                         const ptrdiff_t* offset, const T* HWY_RESTRICT x,
                                         const T* HWY_RESTRICT dy, bool first,
                                         T* HWY_RESTRICT sums) {
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  constexpr int L = kLanes<T>;
  V sum[kR][kV];
  each<kR>([&](auto r) HWY_ATTR { each<kV>([&](auto v) HWY_ATTR { sum[r][v] = hn::Zero(d); }); });
  for (int s = 0; s < segments; ++s, x += segment) {
    const T* row[kR];
    each<kR>([&](auto r) HWY_ATTR { row[r] = x + offset[r]; });
    for (ptrdiff_t p = 0; p < pixels; ++p, dy += kV * L) {
      V g[kV];
      each<kV>([&](auto v) HWY_ATTR { g[v] = hn::Load(d, dy + v * L); });
      each<kR>([&](auto r) HWY_ATTR {
        const V xr = hn::Set(d, row[r][p]);
        each<kV>([&](auto v) HWY_ATTR { sum[r][v] = hn::MulAdd(xr, g[v], sum[r][v]); });
      });
    }
  }
  each<kR>([&](auto r) HWY_ATTR {
    each<kV>([&](auto v) HWY_ATTR {
      T* to = sums + (r * kV + v) * L;
      hn::Store(first ? sum[r][v] : hn::Add(hn::Load(d, to), sum[r][v]), d, to);
    });
  });
}

template <class T> void weight_gradient(const Correlation& k, const T* x, const T* dy, T* dweight) {
  constexpr int L = kLanes<T>;
  const int taps = k.taps();
  const int64_t weights = int64_t{k.groups} * k.o * k.c * taps;
  // Output channels in panels of at most kMaxVectors vectors. Partial sums cost memory, and blocks
  // of channels that dy is transposed anew: first chunks of images until their sums weigh a few
  // MiB, then blocks.
  const Parts panels(ceil_div(k.o, L), kMaxVectors);
  const int most_chunks = static_cast<int>(
      std::clamp<int64_t>((6 << 20) / static_cast<int64_t>(sizeof(T)) / weights, 1, 16));
  const Parts chunks(k.n, ceil_div(k.n, most_chunks));
  const int most_blocks = ceil_div(16, int64_t{chunks.count} * k.groups);
  const Parts blocks(k.c, std::max(ceil_div(k.c, most_blocks), ceil_div(64, taps)));

  // Pixels of a panel of dy in the first-level cache, and rows or images of x in the second.
  const int panel_pixels = static_cast<int>(kGradientBytes / (kMaxVectors * L * sizeof(T)));
  int rows = k.oh;
  while (rows > 1 && int64_t{rows} * k.ow > panel_pixels &&
         Layout(k, rows).channel * blocks.largest() * static_cast<int64_t>(sizeof(T)) >
             kPackedBytes)
    rows = (rows + 1) / 2;
  const Parts bands(k.oh, rows);
  const Layout layout(k, bands.largest());
  const int64_t image_elements = layout.channel * blocks.largest();
  const int group_images = static_cast<int>(
      std::clamp<int64_t>(bands.count > 1 ? 1 : panel_pixels / k.out_plane(), 1, chunks.largest()));
  const int64_t band_pixels = int64_t{bands.largest()} * k.ow;

  const Scratch<T> partial(chunks.count > 1 ? chunks.count * weights : 0);
  T* const all_sums = chunks.count > 1 ? partial.get() : dweight;
  parallel_for(int64_t{chunks.count} * k.groups * blocks.count, [&](int64_t item) {
    const int block = static_cast<int>(item % blocks.count);
    const int64_t group = item / blocks.count % k.groups;
    const int chunk = static_cast<int>(item / blocks.count / k.groups);
    const int c0 = blocks.begin(block), channels = blocks.size(block), terms = channels * taps;
    std::vector<ptrdiff_t> offset;
    for (int c = 0; c < channels; ++c) {
      for (ptrdiff_t t : layout.tap) offset.push_back(c * layout.channel + t);
    }
    // The last tile computes rows past the end, which nobody reads.
    offset.resize(static_cast<size_t>(terms) + kMaxRows, offset.back());
    const ptrdiff_t sum_stride = ptrdiff_t{terms} + kMaxRows;
    const Scratch<T> packed(group_images * image_elements + L);
    const Scratch<T> gradient(group_images * band_pixels * panels.total * L);
    const Scratch<T> sums(sum_stride * panels.total * L);
    if (k.o % L != 0) {  // lanes beyond the last channel: computed, not used
      std::fill_n(gradient.get(), group_images * band_pixels * panels.total * L, T(0));
    }
    bool first = true;
    for (int n0 = chunks.begin(chunk); n0 < chunks.begin(chunk + 1); n0 += group_images) {
      const int images = std::min(group_images, chunks.begin(chunk + 1) - n0);
      for (int band = 0; band < bands.count; ++band) {
        const int row = bands.begin(band), pixels = bands.size(band) * k.ow;
        const Packer<T> packer(k, layout, row, x, int64_t{k.n} * k.groups * k.c * k.source_plane());
        for (int i = 0; i < images; ++i) {
          const T* from = x + ((int64_t{n0 + i} * k.groups + group) * k.c + c0) * k.source_plane();
          for (int c = 0; c < channels; ++c) {
            packer.pack(from + c * k.source_plane(),
                        packed.get() + i * image_elements + c * layout.channel);
          }
        }
        for (int panel = 0; panel < panels.count; ++panel) {
          const int vectors = panels.size(panel), o = panels.begin(panel) * L;
          const int outputs = std::min(vectors * L, k.o - o);
          T* const dy_panel = gradient.get() + int64_t{images} * pixels * o;
          for (int i = 0; i < images; ++i) {
            transpose(outputs, pixels,
                      dy + ((int64_t{n0 + i} * k.groups + group) * k.o + o) * k.out_plane() +
                          int64_t{row} * k.ow,
                      k.out_plane(), dy_panel + int64_t{i} * pixels * vectors * L, vectors * L);
          }
          T* const panel_sums = sums.get() + sum_stride * o;
          // Several whole bands, or part of one.
          const int step = images > 1 ? pixels : std::min(pixels, panel_pixels);
          with_constant<kMaxVectors>(vectors, [&](auto v) {
            constexpr int kR = tile_rows(v);
            for (int p = 0; p < pixels; p += step) {
              for (int r = 0; r < terms; r += kR) {
                gradient_tile<kR, v>(images, std::min(step, pixels - p), image_elements,
                                     offset.data() + r, packed.get() + p,
                                     dy_panel + ptrdiff_t{p} * v * L, first && p == 0,
                                     panel_sums + ptrdiff_t{r} * v * L);
              }
            }
          });
        }
        first = false;
      }
    }
    T* const to = all_sums + chunk * weights + (group * k.o * k.c + c0) * taps;
    for (int panel = 0; panel < panels.count; ++panel) {
      const int vectors = panels.size(panel), o = panels.begin(panel) * L;
      transpose(terms, std::min(vectors * L, k.o - o), sums.get() + sum_stride * o,
                ptrdiff_t{vectors} * L, to + int64_t{o} * k.c * taps, ptrdiff_t{k.c} * taps);
    }
  });
  if (chunks.count == 1) return;
  parallel_ranges(weights, items_per_grain(chunks.count), [&](int64_t begin, int64_t end) {
    std::copy(all_sums + begin, all_sums + end, dweight + begin);
    for (int chunk = 1; chunk < chunks.count; ++chunk) {
      const T* p = all_sums + chunk * weights;
      for (int64_t i = begin; i < end; ++i) dweight[i] += p[i];
    }
  });
}

// ---- what the dispatch table refers to: one plain function an instruction set -------------------

void CorrelateFloat(const Correlation& k, bool mirrored, const float* x, const float* w,
                    const float* b, float* y) {
  correlate(k, mirrored, x, w, b, y);
}
void CorrelateDouble(const Correlation& k, bool mirrored, const double* x, const double* w,
                     const double* b, double* y) {
  correlate(k, mirrored, x, w, b, y);
}
void WeightGradientFloat(const Correlation& k, const float* x, const float* dy, float* dw) {
  weight_gradient(k, x, dy, dw);
}
void WeightGradientDouble(const Correlation& k, const double* x, const double* dy, double* dw) {
  weight_gradient(k, x, dy, dw);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(CorrelateFloat);
HWY_EXPORT(CorrelateDouble);
HWY_EXPORT(WeightGradientFloat);
HWY_EXPORT(WeightGradientDouble);

void dispatch(const Correlation& k, bool mirrored, const float* x, const float* w, const float* b,
              float* y) {
  HWY_DYNAMIC_DISPATCH(CorrelateFloat)(k, mirrored, x, w, b, y);
}
void dispatch(const Correlation& k, bool mirrored, const double* x, const double* w,
              const double* b, double* y) {
  HWY_DYNAMIC_DISPATCH(CorrelateDouble)(k, mirrored, x, w, b, y);
}

}  // namespace

template <class T> void implicit_gemm_conv2d_forward(const Conv2dShape& g, const T* x,
                                                     const T* weight, const T* b, T* y, bool relu) {
  Correlation k = forward_correlation(g);
  k.relu = relu;
  dispatch(k, false, x, weight, b, y);
}

template <class T>
void implicit_gemm_conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  dispatch(backward_correlation(g), true, dy, weight, static_cast<const T*>(nullptr), dx);
}

template <> void implicit_gemm_conv2d_backward_weights(const Conv2dShape& g, const float* x,
                                                       const float* dy, float* dweight) {
  HWY_DYNAMIC_DISPATCH(WeightGradientFloat)(forward_correlation(g), x, dy, dweight);
}
template <> void implicit_gemm_conv2d_backward_weights(const Conv2dShape& g, const double* x,
                                                       const double* dy, double* dweight) {
  HWY_DYNAMIC_DISPATCH(WeightGradientDouble)(forward_correlation(g), x, dy, dweight);
}

#define SINTER_INSTANTIATE(T)                                                                      \
  template void implicit_gemm_conv2d_forward(const Conv2dShape&, const T*, const T*, const T*, T*, \
                                             bool);                                                \
  template void implicit_gemm_conv2d_backward_data(const Conv2dShape&, const T*, const T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
#endif  // HWY_ONCE
