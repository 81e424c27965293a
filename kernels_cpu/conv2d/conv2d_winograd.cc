// Convolution with 3 x 3 windows by Winograd's algorithm (core/backend/winograd.h).
//
// Channels are in the lanes throughout: transforms then load and store whole vectors, whatever the
// size of the image, and need no lane for a tile that is not there. Images, whose pixels lie side
// by side, are transposed on their way in and out.
//
//   windows    (panels, 36, c, outputs of a panel)      a panel is what fills a register tile
//   patches    (36, vectors of c, tiles, lanes)
//   results    (36, tiles, outputs of a panel)
//   gradients  (36, panels, tiles, outputs of a panel)
//
// Forward, a block of tiles is an item of work: its patches and the results of a panel, some
// hundred kB, stay in the second-level cache, and the windows are read once for it, in the order in
// which they lie. The weights' gradient transforms a larger slice of tiles, and multiplies that
// point by point. Matrices of the 36 are a vector further apart than they are large: sizes are
// often powers of two, and the 36 vectors that a transform touches would compete for one set of the
// cache.
//
// Every result is computed by one fixed sequence of operations.
#include "core/backend/winograd.h"
#include "kernels_cpu/conv2d/conv2d_algorithms.h"
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/conv2d/conv2d_winograd.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/tiles-inl.h"
#include "kernels_cpu/transpose-inl.h"

// ---- geometry, the same for every instruction set -----------------------------------------------
#ifndef SINTER_KERNELS_CPU_CONV2D_WINOGRAD_GEOMETRY
#define SINTER_KERNELS_CPU_CONV2D_WINOGRAD_GEOMETRY

namespace sinter {
using namespace op;
namespace {

using namespace winograd;

// x or dy (images, channels, h, w). What is read of it begins `pad` above and left of a tile.
struct Planes {
  int channels, h, w, pad_h, pad_w;
  ptrdiff_t size() const { return ptrdiff_t{h} * w; }
};

// y (n, o, oh, ow) = x (n, c, h, w) correlated with windows: that of o and c begins at weight +
// o * of_o + c * of_c, `rotated` by 180 degrees or not.
struct Correlation3x3 {
  int n, c, h, w, o, oh, ow, pad_h, pad_w;
  ptrdiff_t of_o, of_c;
  bool rotated;
  bool relu = false;  // of the results

  Planes read() const { return {c, h, w, pad_h, pad_w}; }
  Planes made() const { return {o, oh, ow, 0, 0}; }
};

// Tiles whose products are computed together. More of them read the windows less often, but their
// patches are to stay in the second-level cache.
constexpr int kMostTiles = 32, kLeastTiles = 16;
constexpr int64_t kPatchBytes = 640 << 10;
inline int block_tiles(const Correlation3x3& k, size_t element) {
  const int64_t bytes = int64_t{kPoints} * k.c * static_cast<int64_t>(element);
  return static_cast<int>(std::clamp<int64_t>(kPatchBytes / bytes, kLeastTiles, kMostTiles));
}
// Tiles whose gradients are summed in one product: patches and tiles of all channels stay in the
// last-level cache, and of one point and a panel in the second.
constexpr int kSliceTiles = 256;
// Blocks that feed the threads, also when one is late; with fewer, items share a block and compute
// some of its output channels each, at least so many as make up for the patches.
constexpr int kItems = 16;
constexpr int kShareChannels = 128;

// Part of the rows of tiles, or of a row, of an image, or several images.
struct Block {
  int image, images, row, rows, column, columns;  // rows and columns of tiles
  int tiles() const { return images * rows * columns; }
};
struct Blocks {
  Parts columns, rows, images;

  Blocks(const Correlation3x3& k, int tiles)
      : columns(ceil_div(k.ow, kTile), tiles),
        rows(ceil_div(k.oh, kTile), tiles / columns.largest()),
        images(k.n, tiles / (columns.largest() * rows.largest())) {}
  int64_t count() const { return int64_t{images.count} * rows.count * columns.count; }
  Block at(int64_t i) const {
    const int column = static_cast<int>(i % columns.count);
    const int row = static_cast<int>(i / columns.count % rows.count);
    const int image = static_cast<int>(i / columns.count / rows.count);
    return {images.begin(image), images.size(image),    rows.begin(row),
            rows.size(row),      columns.begin(column), columns.size(column)};
  }
  Block largest() const { return {0, images.largest(), 0, rows.largest(), 0, columns.largest()}; }
};

}  // namespace
}  // namespace sinter
#endif

// ---- kernels, compiled for each instruction set -------------------------------------------------
HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// A register tile of tiles x vectors of output channels. Its sums, a vector of each column and one
// broadcast must fit in the vector registers: 32 with AVX-512 and NEON, else 16.
constexpr int kVectors = 2;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kMaxRows = 14;
#else
constexpr int kMaxRows = 6;
#endif

// ---- transforms ---------------------------------------------------------------------------------

// What the transforms compute with: vectors, a channel in each lane.
template <class D> struct Vectors {
  using V = hn::Vec<D>;
  D d;
  HWY_INLINE V add(V x, V y) const { return hn::Add(x, y); }
  HWY_INLINE V sub(V x, V y) const { return hn::Sub(x, y); }
  HWY_INLINE V times(double f, V x) const { return hn::Mul(hn::Set(d, f), x); }
  HWY_INLINE V plus(V s, double f, V x) const { return hn::MulAdd(hn::Set(d, f), x, s); }
};
#define SINTER_TRANSFORM HWY_INLINE
#include "core/backend/winograd_transforms.h"
#undef SINTER_TRANSFORM

// A matrix of vectors: that of row i and column j is at p + i * row + j * column.
template <class T> struct Matrix {
  T* p;
  ptrdiff_t row, column;
  T* at(int i, int j) const { return p + i * row + j * column; }
};

// Columns, then rows; `plus` is added to each result. kAct: and with `relu` the ReLU of that.
template <class Map, class T, bool kAct = false>
HWY_INLINE void transform(Matrix<const T> from, Matrix<T> to, const T* plus = nullptr,
                          bool relu = false) {
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  constexpr int L = kLanes<T>, kFrom = Map::kFrom, kTo = Map::kTo;
  HWY_ALIGN T half[kTo * kFrom * L];
  for (int j = 0; j < kFrom; ++j) {
    V in[kFrom], out[kTo];
    each<kFrom>([&](auto i) HWY_ATTR { in[i] = hn::Load(d, from.at(i, j)); });
    Map::apply(Vectors<Vec<T>>{d}, in, out);
    each<kTo>([&](auto i) HWY_ATTR { hn::Store(out[i], d, half + (i * kFrom + j) * L); });
  }
  for (int i = 0; i < kTo; ++i) {
    V in[kFrom], out[kTo];
    each<kFrom>([&](auto j) HWY_ATTR { in[j] = hn::Load(d, half + (i * kFrom + j) * L); });
    Map::apply(Vectors<Vec<T>>{d}, in, out);
    each<kTo>([&](auto j) HWY_ATTR {
      const V sum = plus == nullptr ? out[j] : hn::Add(out[j], hn::Load(d, plus));
      if constexpr (kAct)
        hn::Store(act(sum, act_limit(d, relu)), d, to.at(i, j));
      else
        hn::Store(sum, d, to.at(i, j));
    });
  }
}

// ---- windows ------------------------------------------------------------------------------------

// Windows of input channels that are transposed at once where they follow one another.
constexpr int kRun = 8;

// The output channels in panels, and where their windows begin and how far apart the points are.
template <class T> struct Panels : Parts {
  int c;

  explicit Panels(const Correlation3x3& k) : Parts(ceil_div(k.o, kLanes<T>), kVectors), c(k.c) {}
  ptrdiff_t step(int panel) const { return (ptrdiff_t{c} * size(panel) + 1) * kLanes<T>; }
  ptrdiff_t offset(int panel) const {
    return kPoints * (ptrdiff_t{c} * begin(panel) + panel) * kLanes<T>;
  }
};

template <class T> void windows_to_points(const Correlation3x3& k, const Panels<T>& panels,
                                          const T* weight, T* windows) {
  constexpr int L = kLanes<T>;
  const int64_t grain = items_per_grain(int64_t{kPoints} * kVectors * L);
  const Parts channels(k.c, grain);
  parallel_for(int64_t{panels.count} * channels.count, [&](int64_t item) {
    const int panel = static_cast<int>(item / channels.count), size = panels.size(panel);
    const int part = static_cast<int>(item % channels.count);
    const ptrdiff_t step = panels.step(panel);
    const int run = k.of_c == kTaps ? kRun : 1;
    HWY_ALIGN T taps[kRun * kTaps * L];
    for (int v = 0; v < size; ++v) {
      const int o = (panels.begin(panel) + v) * L, lanes = std::min(L, k.o - o);
      if (lanes < L) std::fill_n(taps, kRun * kTaps * L, T(0));  // of no output channel
      for (int c = channels.begin(part); c < channels.begin(part + 1); ++c) {
        const int at = (c - channels.begin(part)) % run;
        if (at == 0)
          transpose(lanes, std::min(run, channels.begin(part + 1) - c) * kTaps,
                    weight + o * k.of_o + c * k.of_c, k.of_o, taps, L);
        const int first = at * kTaps + (k.rotated ? kTaps - 1 : 0), sign = k.rotated ? -1 : 1;
        transform<WindowToPoints, T>(
            {taps + first * L, sign * kWindow * L, sign * L},
            {windows + panels.offset(panel) + (ptrdiff_t{c} * size + v) * L, kPatch * step, step});
      }
    }
  });
}

template <class T> void windows_from_points(const Correlation3x3& k, const Panels<T>& panels,
                                            const T* windows, T* weight) {
  constexpr int L = kLanes<T>;
  const Parts runs(k.c, kRun);
  parallel_for(int64_t{panels.count} * runs.count, [&](int64_t item) {
    const int panel = static_cast<int>(item / runs.count), size = panels.size(panel);
    const int run = static_cast<int>(item % runs.count), first = runs.begin(run);
    const ptrdiff_t step = panels.step(panel);
    HWY_ALIGN T taps[kRun * kTaps * L];
    for (int v = 0; v < size; ++v) {
      const int o = (panels.begin(panel) + v) * L;
      for (int i = 0; i < runs.size(run); ++i) {
        transform<PointsToWindow, T>(
            {windows + panels.offset(panel) + (ptrdiff_t{first + i} * size + v) * L, kPatch * step,
             step},
            {taps + i * kTaps * L, kWindow * L, L});
      }
      transpose(runs.size(run) * kTaps, std::min(L, k.o - o), taps, L,
                weight + o * k.of_o + first * k.of_c, k.of_o);
    }
  });
}

// ---- images -------------------------------------------------------------------------------------

// pixels (rows, columns, lanes) from `row` and `column` of as many planes on as there are lanes,
// with zeros outside and in the lanes beyond `lanes`. Fetches the planes `ahead` of them: rows in a
// plane each are too short for the processor to see a stream.
template <class T> void pack_pixels(const Planes& planes, int row, int column, int rows,
                                    int columns, int lanes, int fetched, ptrdiff_t ahead,
                                    const T* x, T* pixels) {
  constexpr int L = kLanes<T>;
  const int left = std::clamp(-column, 0, columns);
  const int right = std::clamp(planes.w - column, left, columns);
  if (lanes < L) std::fill_n(pixels, int64_t{rows} * columns * L, T(0));
  for (int i = row; i < row + rows; ++i, pixels += columns * L) {
    if (i < 0 || i >= planes.h || left == right) {
      std::fill_n(pixels, columns * L, T(0));
      continue;
    }
    const T* from = x + ptrdiff_t{i} * planes.w + column + left;
    for (int lane = 0; lane < fetched; ++lane)
      for (int j = 0; j < right - left; j += 64 / static_cast<int>(sizeof(T)))
        hwy::Prefetch(from + ahead + lane * planes.size() + j);
    std::fill_n(pixels, left * L, T(0));
    transpose(lanes, right - left, from, planes.size(), pixels + left * L, L);
    std::fill_n(pixels + right * L, (columns - right) * L, T(0));
  }
}

// Calls f(tile, first row, first column of its pixels) for a block's tiles in one of its images.
template <class F> void each_tile(const Block& block, int image, const F& f) {
  int tile = image * block.rows * block.columns;
  for (int i = 0; i < block.rows; ++i)
    for (int j = 0; j < block.columns; ++j) f(tile++, kTile * i, kTile * j);
}

// Elements of the pixels that a block's tiles read in an image.
template <class T> ptrdiff_t most_pixels(const Block& block) {
  return ptrdiff_t{kTile * block.rows + 2} * (kTile * block.columns + 2) * kLanes<T>;
}

// The points of a block's patches (PatchToPoints) or tiles (TileToPoints), vector v of the
// channels: a tile and a point further on are `tile_step` and `point_step` further in `to`.
template <class Map, class T> void block_to_points(const Planes& planes, const Block& block, int v,
                                                   const T* x, T* pixels, T* to,
                                                   ptrdiff_t tile_step, ptrdiff_t point_step) {
  constexpr int L = kLanes<T>;
  const int rows = kTile * (block.rows - 1) + Map::kFrom;
  const int columns = kTile * (block.columns - 1) + Map::kFrom;
  const int left = planes.channels - v * L, lanes = std::min(L, left);
  const ptrdiff_t image_size = planes.channels * planes.size(), row_size = ptrdiff_t{columns} * L;
  for (int image = 0; image < block.images; ++image) {
    const bool last = image + 1 == block.images;  // then the next channels of the first
    pack_pixels(planes, kTile * block.row - planes.pad_h, kTile * block.column - planes.pad_w, rows,
                columns, lanes, last ? std::min(L, left - lanes) : lanes,
                last ? L * planes.size() - image * image_size : image_size,
                x + (block.image + image) * image_size + v * L * planes.size(), pixels);
    each_tile(block, image, [&](int tile, int i, int j) HWY_ATTR {
      transform<Map, T>({pixels + i * row_size + j * L, row_size, L},
                        {to + tile * tile_step, kPatch * point_step, point_step});
    });
  }
}

// `lanes` channels of an image, which begin at y, from pixels (4 rows, 4 columns, lanes).
template <class T>
void unpack_pixels(const Correlation3x3& k, const Block& block, int lanes, const T* pixels, T* y) {
  constexpr int L = kLanes<T>;
  const int top = kTile * block.row, first = kTile * block.column, columns = kTile * block.columns;
  const int rows = std::min(kTile * block.rows, k.oh - top),
            width = std::min(columns, k.ow - first);
  const ptrdiff_t plane = ptrdiff_t{k.oh} * k.ow;
  y += ptrdiff_t{top} * k.ow + first;
  if (columns == k.ow) return transpose(rows * columns, lanes, pixels, L, y, plane);
  for (int i = 0; i < rows; ++i)
    transpose(width, lanes, pixels + ptrdiff_t{i} * columns * L, L, y + ptrdiff_t{i} * k.ow, plane);
}

// ---- products -----------------------------------------------------------------------------------

// sum (kR, kV vectors) += a (kR, terms) b (terms, kV vectors). The strides of a are constants:
// rows need no registers for their addresses.
template <int kR, int kV, int kRow, int kTerm, class T, class V>
HWY_INLINE void add_products(int terms, const T* HWY_RESTRICT a, const T* HWY_RESTRICT b,
                             V (&sum)[kR][kV]) {
  const Vec<T> d;
  constexpr int L = kLanes<T>;
  for (int i = 0; i < terms; ++i, a += kTerm, b += kV * L) {
    V row[kV];
    each<kV>([&](auto v) HWY_ATTR { row[v] = hn::Load(d, b + v * L); });
    each<kR>([&](auto r) HWY_ATTR {
      const V x = hn::Set(d, a[r * kRow]);
      each<kV>([&](auto v) HWY_ATTR { sum[r][v] = hn::MulAdd(x, row[v], sum[r][v]); });
    });
  }
}

// results (kR, kV vectors) = patches (kR, channels) windows (channels, kV vectors), of one point.
// patches (vectors of channels, tiles, lanes), of which kR tiles are read.
template <int kR, int kV, class T>
HWY_NOINLINE void product_tile(int channels, ptrdiff_t tiles, const T* HWY_RESTRICT patches,
                               const T* HWY_RESTRICT windows, T* HWY_RESTRICT results) {
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  constexpr int L = kLanes<T>;
  V sum[kR][kV];
  each<kR>([&](auto r) HWY_ATTR { each<kV>([&](auto v) HWY_ATTR { sum[r][v] = hn::Zero(d); }); });
  for (int c = 0; c < channels; c += L, patches += tiles * L, windows += L * kV * L)
    add_products<kR, kV, L, 1>(std::min(L, channels - c), patches, windows, sum);
  each<kR>([&](auto r) HWY_ATTR {
    each<kV>([&](auto v) HWY_ATTR { hn::Store(sum[r][v], d, results + (r * kV + v) * L); });
  });
}

// windows (kR, kV vectors) (+)= patches^T (tiles, lanes) gradients (tiles, kV vectors), of one
// point and kR of the lanes.
template <int kR, int kV, class T>
HWY_NOINLINE void gradient_tile(int tiles, const T* HWY_RESTRICT patches,
                                const T* HWY_RESTRICT gradients, bool add,
                                T* HWY_RESTRICT windows) {
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  constexpr int L = kLanes<T>;
  V sum[kR][kV];
  each<kR>([&](auto r) HWY_ATTR { each<kV>([&](auto v) HWY_ATTR { sum[r][v] = hn::Zero(d); }); });
  add_products<kR, kV, 1, L>(tiles, patches, gradients, sum);
  each<kR>([&](auto r) HWY_ATTR {
    each<kV>([&](auto v) HWY_ATTR {
      T* to = windows + (r * kV + v) * L;
      hn::Store(add ? hn::Add(hn::Load(d, to), sum[r][v]) : sum[r][v], d, to);
    });
  });
}

template <class T>
void correlate(const Correlation3x3& k, const T* x, const T* weight, const T* b, T* y) {
  constexpr int L = kLanes<T>;
  const Panels<T> panels(k);
  const Scratch<T> windows(panels.offset(panels.count));
  windows_to_points(k, panels, weight, windows.get());
  const int vectors = ceil_div(k.o, L);
  const Scratch<T> bias(b != nullptr ? int64_t{vectors} * L : 0);
  if (b != nullptr) std::fill_n(std::copy_n(b, k.o, bias.get()), vectors * L - k.o, T(0));

  const Blocks blocks(k, block_tiles(k, sizeof(T)));
  const int64_t most_shares = ceil_div(k.o, kShareChannels);
  const Parts shares(panels.count,
                     ceil_div(panels.count, std::clamp<int64_t>(ceil_div(kItems, blocks.count()), 1,
                                                                most_shares)));
  const int channel_vectors = ceil_div(k.c, L);
  const Block largest = blocks.largest();
  const ptrdiff_t patch_step = (ptrdiff_t{channel_vectors} * largest.tiles() + 1) * L;
  const ptrdiff_t result_step = (ptrdiff_t{kVectors} * largest.tiles() + 1) * L;
  const ptrdiff_t y_plane = ptrdiff_t{k.oh} * k.ow;
  parallel_for(blocks.count() * shares.count, [&](int64_t item) {
    const Block block = blocks.at(item / shares.count);
    const int share = static_cast<int>(item % shares.count), tiles = block.tiles();
    const LocalScratch<T> patches(kPoints * patch_step), results(kPoints * result_step);
    const LocalScratch<T> pixels(most_pixels<T>(largest));
    for (int v = 0; v < channel_vectors; ++v) {
      block_to_points<PatchToPoints>(k.read(), block, v, x, pixels.get(),
                                     patches.get() + ptrdiff_t{v} * tiles * L, L, patch_step);
    }

    const Parts rows(tiles, kMaxRows);
    const ptrdiff_t out_row = ptrdiff_t{kTile * block.columns} * L;
    for (int panel = shares.begin(share); panel < shares.begin(share + 1); ++panel) {
      const int size = panels.size(panel);
      with_constant<kVectors>(size, [&](auto kV) {
        for (int p = 0; p < kPoints; ++p) {
          for (int part = 0; part < rows.count; ++part) {
            with_constant<kMaxRows>(rows.size(part), [&](auto kR) {
              product_tile<kR, kV>(k.c, tiles,
                                   patches.get() + p * patch_step + rows.begin(part) * L,
                                   windows.get() + panels.offset(panel) + p * panels.step(panel),
                                   results.get() + p * result_step + rows.begin(part) * kV * L);
            });
          }
        }
      });
      for (int v = 0; v < size; ++v) {
        const int o = (panels.begin(panel) + v) * L;
        for (int image = 0; image < block.images; ++image) {
          each_tile(block, image, [&](int tile, int i, int j) HWY_ATTR {
            transform<PointsToTile, T, true>(
                {results.get() + (tile * size + v) * L, kPatch * result_step, result_step},
                {pixels.get() + i * out_row + j * L, out_row, L},
                b == nullptr ? nullptr : bias.get() + o, k.relu);
          });
          unpack_pixels(k, block, std::min(L, k.o - o), pixels.get(),
                        y + (ptrdiff_t{block.image + image} * k.o + o) * y_plane);
        }
      }
    }
  });
}

// weight = the sum over tiles of patches of x times tiles of dy. Slice by slice of the tiles all
// are transformed, and then multiplied point by point.
template <class T>
void weight_gradient(const Correlation3x3& k, const T* x, const T* dy, T* weight) {
  constexpr int L = kLanes<T>;
  const Panels<T> panels(k);
  const Scratch<T> windows(panels.offset(panels.count));
  const Blocks blocks(k, kMostTiles);
  const Block largest = blocks.largest();
  const Parts slices(blocks.count(), std::max(1, kSliceTiles / largest.tiles()));
  const int channel_vectors = ceil_div(k.c, L);
  const ptrdiff_t slice_tiles = ptrdiff_t{slices.largest()} * largest.tiles();
  const ptrdiff_t patch_step = (channel_vectors * slice_tiles + 1) * L;
  const ptrdiff_t gradient_step = (panels.total * slice_tiles + 1) * L;
  const Scratch<T> patches(kPoints * patch_step), gradients(kPoints * gradient_step);
  std::vector<int> first_tile;  // of each block of a slice, and their number
  for (int slice = 0; slice < slices.count; ++slice) {
    first_tile.assign(1, 0);
    for (int i = slices.begin(slice); i < slices.begin(slice + 1); ++i)
      first_tile.push_back(first_tile.back() + blocks.at(i).tiles());
    const int tiles = first_tile.back(), jobs = channel_vectors + panels.count;
    parallel_for(int64_t{slices.size(slice)} * jobs, [&](int64_t item) {
      const Block block = blocks.at(slices.begin(slice) + item / jobs);
      const ptrdiff_t first = first_tile[static_cast<size_t>(item / jobs)];
      const int job = static_cast<int>(item % jobs), panel = job - channel_vectors;
      const LocalScratch<T> pixels(most_pixels<T>(largest));
      if (job < channel_vectors) {
        block_to_points<PatchToPoints>(k.read(), block, job, x, pixels.get(),
                                       patches.get() + (ptrdiff_t{job} * tiles + first) * L, L,
                                       patch_step);
        return;
      }
      const ptrdiff_t size = panels.size(panel), begin = panels.begin(panel);
      for (int v = 0; v < size; ++v) {
        block_to_points<TileToPoints>(k.made(), block, panels.begin(panel) + v, dy, pixels.get(),
                                      gradients.get() + (begin * tiles + first * size + v) * L,
                                      size * L, gradient_step);
      }
    });
    parallel_for(int64_t{kPoints} * panels.count, [&](int64_t item) {
      const int panel = static_cast<int>(item % panels.count);
      const int p = static_cast<int>(item / panels.count);
      with_constant<kVectors>(panels.size(panel), [&](auto kV) {
        for (int v = 0; v < channel_vectors; ++v) {
          const Parts rows(std::min(L, k.c - v * L), kMaxRows);
          for (int part = 0; part < rows.count; ++part) {
            const int row = rows.begin(part);
            with_constant<std::min(kMaxRows, L)>(rows.size(part), [&](auto kR) {
              gradient_tile<kR, kV>(
                  tiles, patches.get() + p * patch_step + ptrdiff_t{v} * tiles * L + row,
                  gradients.get() + p * gradient_step + ptrdiff_t{panels.begin(panel)} * tiles * L,
                  slice > 0,
                  windows.get() + panels.offset(panel) + p * panels.step(panel) +
                      (ptrdiff_t{v} * L + row) * kV * L);
            });
          }
        }
      });
    });
  }
  windows_from_points(k, panels, static_cast<const T*>(windows.get()), weight);
}

// ---- what the dispatch table refers to: one plain function an instruction set -------------------

void CorrelateFloat(const Correlation3x3& k, const float* x, const float* w, const float* b,
                    float* y) {
  correlate(k, x, w, b, y);
}
void CorrelateDouble(const Correlation3x3& k, const double* x, const double* w, const double* b,
                     double* y) {
  correlate(k, x, w, b, y);
}
void WeightGradientFloat(const Correlation3x3& k, const float* x, const float* dy, float* dw) {
  weight_gradient(k, x, dy, dw);
}
void WeightGradientDouble(const Correlation3x3& k, const double* x, const double* dy, double* dw) {
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

void dispatch(const Correlation3x3& k, const float* x, const float* w, const float* b, float* y) {
  HWY_DYNAMIC_DISPATCH(CorrelateFloat)(k, x, w, b, y);
}
void dispatch(const Correlation3x3& k, const double* x, const double* w, const double* b,
              double* y) {
  HWY_DYNAMIC_DISPATCH(CorrelateDouble)(k, x, w, b, y);
}

Correlation3x3 forward_correlation(const Conv2dShape& g) {
  return {g.n,   g.c,  g.h, g.w, g.o, g.oh, g.ow, g.pad_h, g.pad_w, ptrdiff_t{g.c} * kTaps,
          kTaps, false};
}

}  // namespace

template <class T> void winograd_conv2d_forward(const Conv2dShape& g, const T* x, const T* weight,
                                                const T* b, T* y, bool relu) {
  Correlation3x3 k = forward_correlation(g);
  k.relu = relu;
  dispatch(k, x, weight, b, y);
}

template <> void winograd_conv2d_backward_weights(const Conv2dShape& g, const float* x,
                                                  const float* dy, float* dweight) {
  HWY_DYNAMIC_DISPATCH(WeightGradientFloat)(forward_correlation(g), x, dy, dweight);
}
template <> void winograd_conv2d_backward_weights(const Conv2dShape& g, const double* x,
                                                  const double* dy, double* dweight) {
  HWY_DYNAMIC_DISPATCH(WeightGradientDouble)(forward_correlation(g), x, dy, dweight);
}

template <class T>
void winograd_conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  dispatch({g.n, g.o, g.oh, g.ow, g.c, g.h, g.w, kWindow - 1 - g.pad_h, kWindow - 1 - g.pad_w,
            kTaps, ptrdiff_t{g.c} * kTaps, true},
           dy, weight, static_cast<const T*>(nullptr), dx);
}

#define SINTER_INSTANTIATE(T)                                                                 \
  template void winograd_conv2d_forward(const Conv2dShape&, const T*, const T*, const T*, T*, \
                                        bool);                                                \
  template void winograd_conv2d_backward_data(const Conv2dShape&, const T*, const T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
#endif  // HWY_ONCE
