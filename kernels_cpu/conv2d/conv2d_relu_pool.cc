// Convolution, ReLU and 2 x 2 max-pooling.
//
// Layers of few channels (`small`) have kernels of their own, which take an image through all three
// operators while it is in the first-level cache:
//
//   forward   a register tile of several channels x positions, or of one vector of channels x
//             positions, whichever leaves fewer lanes idle, pooled as soon as it is there.
//   backward  one window in four positions has a gradient at most, and none where the ReLU was
//             closed. What is left is a list of (position, value) an output channel. With the
//             channels of a pixel side by side, the pixels under a kernel are kh runs of kw c
//             numbers, a vector or two each: an entry of the list adds value x patch to the
//             weights' gradient, and value x weights to a patch of dx.
//
// Other layers take the convolutions of conv2d.cc, into scratch memory, and pool in one more pass;
// so do all layers for which an algorithm is named. Their results equal those of the three
// operators one by one to the bit.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/conv2d/conv2d_relu_pool.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels_cpu/conv2d/conv2d.h"
#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/tiles-inl.h"
#include "kernels_cpu/transpose-inl.h"
#include "sinter/operators/conv2d_relu_pool.h"

// ---- geometry, the same for every instruction set -----------------------------------------------
#ifndef SINTER_KERNELS_CPU_CONV2D_RELU_POOL_GEOMETRY
#define SINTER_KERNELS_CPU_CONV2D_RELU_POOL_GEOMETRY

namespace sinter {
using namespace op;
namespace {

// A layer of few channels, stride 1, without dilation or groups.
struct SmallConv {
  int n, c, h, w, o, kh, kw, pad_h, pad_w;
  int ph, pw;  // pooled rows and columns
  int hp, wp;  // of an image with its padding

  explicit SmallConv(const Conv2dShape& g)
      : n(g.n),
        c(g.c),
        h(g.h),
        w(g.w),
        o(g.o),
        kh(g.kh),
        kw(g.kw),
        pad_h(g.pad_h),
        pad_w(g.pad_w),
        ph(g.oh / 2),
        pw(g.ow / 2),
        hp(g.h + 2 * g.pad_h),
        wp(g.w + 2 * g.pad_w) {}

  bool padded() const { return pad_h > 0 || pad_w > 0; }
  int windows() const { return ph * pw; }
  int taps() const { return kh * kw; }
  int64_t x_image() const { return int64_t{c} * h * w; }
  int64_t y_image() const { return int64_t{o} * windows(); }
};

// Channels of a mask of the backward pass, and elements of an image that the caches near a core
// hold next to what is made of it.
constexpr int kMostOutputs = 64, kMostInputs = 16;
constexpr int64_t kMostElements = 32768;

inline int round_up(int a, int b) { return ceil_div(a, b) * b; }

inline bool is_small(const Conv2dShape& g) {
  const SmallConv s(g);
  return g.stride_h == 1 && g.stride_w == 1 && g.dil_h == 1 && g.dil_w == 1 && g.groups == 1 &&
         g.o <= kMostOutputs && g.c <= kMostInputs && int64_t{g.kw} * g.c <= 128 &&
         int64_t{g.c} * s.hp * s.wp <= kMostElements;
}

// Parts that a batch is cut into, by the geometry alone: enough to keep many threads busy to the
// end, and few enough that the partial sums of a gradient stay small.
constexpr int kParts = 32;

// The planes of an image with zeros around them, and `slack` zeros behind.
template <class T> void pad_image(const SmallConv& s, const T* x, int slack, T* to) {
  std::fill_n(to, int64_t{s.c} * s.hp * s.wp + slack, T(0));
  for (int c = 0; c < s.c; ++c) {
    for (int i = 0; i < s.h; ++i) {
      std::copy_n(x + (int64_t{c} * s.h + i) * s.w, s.w,
                  to + (int64_t{c} * s.hp + i + s.pad_h) * s.wp + s.pad_w);
    }
  }
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

// A window's four elements, a vector of windows, to the largest and which that is.
template <class D, class V, class T = hn::TFromD<D>>
HWY_INLINE HWY_ATTR void pool_window(D d, V v0, V v1, V v2, V v3, T* y, uint8_t* choice) {
  // The choice, in lanes as wide as T: int32_t, or double, which converts to int32_t in one step.
  using Wide = std::conditional_t<sizeof(T) == sizeof(int32_t), int32_t, double>;
  const hn::Rebind<Wide, D> dw;
  const hn::Rebind<int32_t, D> di;
  const hn::Rebind<uint8_t, D> db;
  auto best = hn::Zero(d);
  auto taken = hn::Zero(dw);
  // A value that is greater, or the first NaN. The start is the ReLU's 0: with no value above it
  // the first window element stands, as its ReLU is a maximum.
  const auto meet = [&](auto v, int which) HWY_ATTR {
    const auto take = hn::AndNot(hn::Le(v, best), hn::Eq(best, best));
    best = hn::IfThenElse(take, v, best);
    taken = hn::IfThenElse(hn::RebindMask(dw, take), hn::Set(dw, static_cast<Wide>(which)), taken);
  };
  meet(v0, 0);
  meet(v1, 1);
  meet(v2, 2);
  meet(v3, 3);
  hn::StoreU(best, d, y);
  if constexpr (std::is_same_v<Wide, int32_t>) {
    hn::StoreU(hn::DemoteTo(db, taken), db, choice);
  } else {
    hn::StoreU(hn::DemoteTo(db, hn::DemoteTo(di, taken)), db, choice);
  }
}

// A row of `count` (>= kWidth) windows, whose rows begin at `top` and `bottom`; the last vector
// overlaps the one before it instead of leaving a remainder.
template <int kWidth, class T>
HWY_ATTR void pool_row(int count, const T* top, const T* bottom, T* y, uint8_t* choice) {
  const hn::CappedTag<T, kWidth> d;
  for (int j = 0; j < count; j += kWidth) {
    const int at = std::min(j, count - kWidth);
    auto v0 = hn::Zero(d), v1 = v0, v2 = v0, v3 = v0;
    hn::LoadInterleaved2(d, top + 2 * at, v0, v1);
    hn::LoadInterleaved2(d, bottom + 2 * at, v2, v3);
    pool_window(d, v0, v1, v2, v3, y + at, choice + at);
  }
}

// The same with the widest vectors that `count` fills; returns how many windows it has done, all or
// none.
template <class T> int pool_row(int count, const T* top, const T* bottom, T* y, uint8_t* choice) {
  constexpr int kWide = static_cast<int>(hn::MaxLanes(hn::ScalableTag<T>()));
  constexpr int kNarrow = std::min<int>(16 / sizeof(T), kWide);
  constexpr int kMiddle = std::max(kNarrow, kWide / 2);
  if (count < kNarrow) return 0;
  if (count >= kWide) {
    pool_row<kWide>(count, top, bottom, y, choice);
  } else if (count >= kMiddle) {
    pool_row<kMiddle>(count, top, bottom, y, choice);
  } else {
    pool_row<kNarrow>(count, top, bottom, y, choice);
  }
  return count;
}

// The same for rows of any length.
template <class T>
HWY_ATTR void pool_whole_row(int count, const T* top, const T* bottom, T* y, uint8_t* choice) {
  for (int j = pool_row(count, top, bottom, y, choice); j < count; ++j) {
    const T window[4] = {top[2 * j], top[2 * j + 1], bottom[2 * j], bottom[2 * j + 1]};
    T best = 0;
    uint8_t taken = 0;
    for (uint8_t k = 0; k < 4; ++k) {
      if (window[k] <= best || best != best) continue;
      best = window[k];
      taken = k;
    }
    y[j] = best;
    choice[j] = taken;
  }
}

void PoolRowFloat(int count, const float* top, const float* bottom, float* y, uint8_t* choice) {
  pool_whole_row(count, top, bottom, y, choice);
}
void PoolRowDouble(int count, const double* top, const double* bottom, double* y, uint8_t* choice) {
  pool_whole_row(count, top, bottom, y, choice);
}

// ---- layers of few channels, forward ------------------------------------------------------------

// Accumulators of a register tile; its operands need the rest of 32 or 16 vector registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif

// Hides from the compiler where `p` points. GCC otherwise keeps what one iteration loads for the
// next one, in registers that the accumulators need.
template <class T> HWY_INLINE void forget_origin(const T*& p) { asm("" : "+r"(p)); }

// Taps of a kernel over planes, in the order channel, row, column, and steps between planes and
// rows.
struct Taps {
  int channels, rows, cols;
  ptrdiff_t plane, row;
};

// to[p] + o * to_channel = bias[o] + sum over taps of from[p] * weights, a vector of positions
// each, for kO channels o and kP vectors p. The weights are (tap, channel).
template <int kO, int kP, class T>
HWY_NOINLINE HWY_ATTR void position_tile(const Taps& t, const T* const* from,
                                         const T* HWY_RESTRICT w, const T* bias, T* const* to,
                                         ptrdiff_t to_channel) {
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
      const ptrdiff_t begin = c * t.plane + a * t.row;
      for (ptrdiff_t at = begin; at < begin + t.cols; ++at, w += kO) {
        V x[kP];
        for (int p = 0; p < kP; ++p) x[p] = hn::LoadU(d, source[p] + at);
        for (int o = 0; o < kO; ++o) {
          const V wo = hn::Set(d, w[o]);
          for (int p = 0; p < kP; ++p) sum[o][p] = hn::MulAdd(wo, x[p], sum[o][p]);
        }
      }
    }
  }
  for (int o = 0; o < kO; ++o) {
    for (int p = 0; p < kP; ++p) hn::StoreU(sum[o][p], d, to[p] + o * to_channel);
  }
}

constexpr int kTileChannels = 6;

// Pooled rows [begin, end) of an image, with positions in the lanes. packed: (tile of channels;
// tap, channel). z: room for kTileChannels times two halves of z_half elements, the windows' upper
// rows and their lower rows, so that all windows of a channel are pooled as one row.
template <class T> void forward_positions(const SmallConv& s, int begin, int end, const T* x,
                                          const T* packed, const T* b, T* z, ptrdiff_t z_half, T* y,
                                          uint8_t* choice) {
  constexpr int L = kLanes<T>;
  const int cols = 2 * s.pw, vectors = ceil_div(cols, L), rows = 2 * (end - begin);
  const Taps taps{s.c, s.kh, s.kw, ptrdiff_t{s.hp} * s.wp, s.wp};
  const Parts tiles(s.o, kTileChannels);
  for (int tile = 0; tile < tiles.count; ++tile) {
    const int first = tiles.begin(tile), size = tiles.size(tile);
    T bias[kTileChannels] = {};
    if (b != nullptr) std::copy_n(b + first, size, bias);
    with_constant<kTileChannels>(size, [&](auto constant) {
      constexpr int kO = constant(), kP = std::min(8, kAccumulators / kO);
      const int last = rows * vectors - 1;
      for (int position = 0; position <= last; position += kP) {
        const T* from[kP];
        T* to[kP];
        for (int p = 0; p < kP; ++p) {
          // Past the end the last position is computed again.
          const int at = std::min(position + p, last), row = at / vectors;
          // The last vector of a row overlaps the one before it; that of a row shorter than a
          // vector runs into the next row, which is stored later, or behind the half.
          const int col = std::max(0, std::min(at % vectors * L, cols - L));
          from[p] = x + ptrdiff_t{2 * begin + row} * s.wp + col;
          to[p] = z + row % 2 * z_half + ptrdiff_t{row / 2} * cols + col;
        }
        position_tile<kO, kP>(taps, from, packed + int64_t{first} * s.c * s.taps(), bias, to,
                              2 * z_half);
      }
    });
    for (int o = 0; o < size; ++o) {
      const T* top = z + 2 * o * z_half;
      const ptrdiff_t out = (ptrdiff_t{first + o} * s.ph + begin) * s.pw;
      pool_whole_row((end - begin) * s.pw, top, top + z_half, y + out, choice + out);
    }
  }
}

// kW neighbouring windows of one vector of channels: y (window; lane) and choice likewise. Weights
// are (tap; lane), `bias` is a vector.
template <int kW, class T>
HWY_NOINLINE HWY_ATTR void channel_tile(const Taps& t, const T* HWY_RESTRICT x,
                                        const T* HWY_RESTRICT w, const T* bias, T* y,
                                        uint8_t* choice) {
  constexpr int L = kLanes<T>;
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  V sum[4 * kW];
  for (int p = 0; p < 4 * kW; ++p) sum[p] = hn::LoadU(d, bias);
  for (int c = 0; c < t.channels; ++c) {
    for (int a = 0; a < t.rows; ++a) {
      const T* top = x + c * t.plane + a * t.row;
      const T* bottom = top + t.row;
      for (int tap = 0; tap < t.cols; ++tap, ++top, ++bottom, w += L) {
        forget_origin(top);
        forget_origin(bottom);
        const V wv = hn::LoadU(d, w);
        for (int p = 0; p < kW; ++p) {
          sum[4 * p] = hn::MulAdd(hn::Set(d, top[2 * p]), wv, sum[4 * p]);
          sum[4 * p + 1] = hn::MulAdd(hn::Set(d, top[2 * p + 1]), wv, sum[4 * p + 1]);
          sum[4 * p + 2] = hn::MulAdd(hn::Set(d, bottom[2 * p]), wv, sum[4 * p + 2]);
          sum[4 * p + 3] = hn::MulAdd(hn::Set(d, bottom[2 * p + 1]), wv, sum[4 * p + 3]);
        }
      }
    }
  }
  for (int p = 0; p < kW; ++p) {
    pool_window(d, sum[4 * p], sum[4 * p + 1], sum[4 * p + 2], sum[4 * p + 3], y + p * L,
                choice + p * L);
  }
}

// Pooled rows [begin, end) of an image, with channels in the lanes. packed: (vector of channels;
// tap; lane), bias: (vector; lane). pooled, taken: room for a vector of each window.
template <class T> void forward_channels(const SmallConv& s, int begin, int end, const T* x,
                                         const T* packed, const T* bias, T* pooled, uint8_t* taken,
                                         T* y, uint8_t* choice) {
  constexpr int L = kLanes<T>, kMost = kAccumulators / 4;
  const Taps taps{s.c, s.kh, s.kw, ptrdiff_t{s.hp} * s.wp, s.wp};
  const Parts tiles(s.pw, kMost);
  const int windows = (end - begin) * s.pw;
  for (int o = 0; o < s.o; o += L) {
    for (int i = begin; i < end; ++i) {
      for (int tile = 0; tile < tiles.count; ++tile) {
        const int j = tiles.begin(tile);
        const ptrdiff_t at = (ptrdiff_t{i - begin} * s.pw + j) * L;
        with_constant<kMost>(tiles.size(tile), [&](auto constant) {
          channel_tile<constant()>(taps, x + ptrdiff_t{2 * i} * s.wp + 2 * j,
                                   packed + ptrdiff_t{o} * s.c * s.taps(), bias + o, pooled + at,
                                   taken + at);
        });
      }
    }
    for (int lane = 0; lane < std::min(L, s.o - o); ++lane) {
      const ptrdiff_t out = (ptrdiff_t{o + lane} * s.ph + begin) * s.pw;
      for (int i = 0; i < windows; ++i) {
        y[out + i] = pooled[i * L + lane];
        choice[out + i] = taken[i * L + lane];
      }
    }
  }
}

template <class T>
void forward(const SmallConv& s, const T* x, const T* weight, const T* b, T* y, uint8_t* choice) {
  constexpr int L = kLanes<T>;
  const int cols = 2 * s.pw, taps = s.c * s.taps();
  // The share of the lanes at work, of one way times the vectors of the other.
  const bool by_channels = int64_t{s.o} * round_up(cols, L) > int64_t{cols} * round_up(s.o, L);
  const bool copied = s.padded() || (!by_channels && cols < L);

  // Weights in the order in which the kernels read them.
  const Parts tiles(s.o, kTileChannels);
  const Scratch<T> packed(int64_t{round_up(s.o, L)} * (taps + 1));
  T* bias = packed.get() + int64_t{round_up(s.o, L)} * taps;
  if (by_channels) {
    std::fill_n(packed.get(), int64_t{round_up(s.o, L)} * (taps + 1), T(0));
    for (int o = 0; o < s.o; ++o) {
      T* to = packed.get() + ptrdiff_t{o / L * L} * taps + o % L;
      for (int tap = 0; tap < taps; ++tap) to[ptrdiff_t{tap} * L] = weight[o * taps + tap];
    }
    if (b != nullptr) std::copy_n(b, s.o, bias);
  } else {
    T* to = packed.get();
    for (int tile = 0; tile < tiles.count; ++tile) {
      for (int tap = 0; tap < taps; ++tap) {
        for (int o = tiles.begin(tile); o < tiles.begin(tile + 1); ++o)
          *to++ = weight[o * taps + tap];
      }
    }
  }

  // A few images a chunk, or bands of an image where there are few images.
  const int images = std::clamp(s.n / (2 * kParts), 1, 8);
  const int bands = std::clamp(kParts / std::max(1, s.n), 1, s.ph);
  const Parts rows(s.ph, ceil_div(s.ph, bands));
  parallel_for(int64_t{ceil_div(s.n, images)} * rows.count, [&](int64_t item) {
    const int first = static_cast<int>(item / rows.count) * images;
    const int begin = rows.begin(static_cast<int>(item % rows.count));
    const int end = rows.begin(static_cast<int>(item % rows.count) + 1);
    const ptrdiff_t z_half = ptrdiff_t{end - begin} * cols + L;
    const int64_t image = int64_t{s.c} * s.hp * s.wp + L;
    const int64_t room = by_channels ? int64_t{end - begin} * s.pw * L : 2 * kTileChannels * z_half;
    const LocalScratch<T> z(room), padded(copied ? image : 0);
    const LocalScratch<uint8_t> taken(by_channels ? room : 0);
    for (int n = first; n < std::min(s.n, first + images); ++n) {
      const T* from = x + n * s.x_image();
      if (copied) {
        pad_image(s, from, L, padded.get());
        from = padded.get();
      }
      T* to = y + n * s.y_image();
      if (by_channels) {
        forward_channels<T>(s, begin, end, from, packed.get(), bias, z.get(), taken.get(), to,
                            choice + n * s.y_image());
      } else {
        forward_positions<T>(s, begin, end, from, packed.get(), b, z.get(), z_half, to,
                             choice + n * s.y_image());
      }
    }
  });
}

// ---- layers of few channels, backward -----------------------------------------------------------

// One channel's gradient before pooling: `value` at pixel `at` (row wp + column) of the padded
// image.
template <class T> struct Entries {
  int32_t* at;
  T* value;
};

// Fills `list`, which has room for a vector more, with the windows of one plane that have a
// gradient, adds their gradients to *total and returns how many there are. pixel: where the first
// element of each window is.
template <class T> HWY_NOINLINE HWY_ATTR int list_entries(int windows, int wp, const int32_t* pixel,
                                                          const T* y, const uint8_t* choice,
                                                          const T* dy, const Entries<T>& list,
                                                          T* total) {
  int count = 0, i = 0;
#if HWY_TARGET != HWY_SCALAR
  constexpr int L = kLanes<T>;
  if (sizeof(T) == sizeof(int32_t) && windows >= L) {
    const Vec<T> d;
    const hn::Rebind<int32_t, Vec<T>> di;
    const hn::Rebind<uint8_t, Vec<T>> db;
    auto sum = hn::Zero(d);
    for (; i < windows; i += L) {
      // The last vector overlaps the one before it, and leaves out what that one had.
      const int first = std::min(i, windows - L);
      const auto shut = hn::Or(hn::FirstN(d, static_cast<size_t>(i - first)),
                               hn::Le(hn::LoadU(d, y + first), hn::Zero(d)));
      const auto open = hn::Not(shut);
      const auto taken = hn::PromoteTo(di, hn::LoadU(db, choice + first));
      const auto down =
          hn::And(hn::Set(di, wp), hn::VecFromMask(di, hn::Gt(taken, hn::Set(di, 1))));
      const auto at =
          hn::Add(hn::Add(hn::LoadU(di, pixel + first), down), hn::And(taken, hn::Set(di, 1)));
      const auto value = hn::LoadU(d, dy + first);
      // Not CompressStore: stores of compressed vectors are slow on some machines.
      if constexpr (sizeof(T) == sizeof(int32_t)) {
        hn::StoreU(hn::Compress(at, hn::RebindMask(di, open)), di, list.at + count);
      }
      hn::StoreU(hn::Compress(value, open), d, list.value + count);
      count += static_cast<int>(hn::CountTrue(d, open));
      sum = hn::Add(sum, hn::IfThenElseZero(open, value));
    }
    *total += hn::GetLane(hn::SumOfLanes(d, sum));
    return count;
  }
#endif
  for (; i < windows; ++i) {         // without a branch, which would be mispredicted often
    const bool open = !(y[i] <= 0);  // a NaN's too
    list.at[count] = pixel[i] + (choice[i] >> 1) * wp + (choice[i] & 1);
    list.value[count] = dy[i];
    count += open;
    *total += open ? dy[i] : T(0);
  }
  return count;
}

// Pixels with their channels side by side, (row, column, channel), from planes of a padded image,
// and back.
template <class T> HWY_NOINLINE HWY_ATTR void join_channels(const SmallConv& s, const T* x, T* to) {
  const ptrdiff_t plane = ptrdiff_t{s.h} * s.w;
  for (int i = 0; i < s.h; ++i) {
    const T* from = x + ptrdiff_t{i} * s.w;
    T* row = to + (ptrdiff_t{i + s.pad_h} * s.wp + s.pad_w) * s.c;
    int j = 0;
#if HWY_TARGET != HWY_SCALAR
    if (s.c == 3) {
      const Vec<T> d;
      for (; j + kLanes<T> <= s.w; j += kLanes<T>) {
        hn::StoreInterleaved3(hn::LoadU(d, from + j), hn::LoadU(d, from + plane + j),
                              hn::LoadU(d, from + 2 * plane + j), d, row + 3 * j);
      }
    }
#endif
    transpose(s.c, s.w - j, from + j, plane, row + ptrdiff_t{j} * s.c, s.c);
  }
}
template <class T>
HWY_NOINLINE HWY_ATTR void split_channels(const SmallConv& s, const T* from, T* x) {
  const ptrdiff_t plane = ptrdiff_t{s.h} * s.w;
  for (int i = 0; i < s.h; ++i) {
    const T* row = from + (ptrdiff_t{i + s.pad_h} * s.wp + s.pad_w) * s.c;
    T* to = x + ptrdiff_t{i} * s.w;
    transpose(s.w, s.c, row, s.c, to, plane);
  }
}

// A part of the patch under a kernel: kR runs, `row` apart in the image and `sum_row` apart in sums
// or weights, of kV vectors.

// sums += value * patch for every entry.
template <int kR, int kV, class T>
HWY_NOINLINE HWY_ATTR void add_patches(int count, const Entries<T>& list, const T* HWY_RESTRICT x,
                                       ptrdiff_t pixel, ptrdiff_t row, T* HWY_RESTRICT sums,
                                       ptrdiff_t sum_row) {
  constexpr int L = kLanes<T>;
  const Vec<T> d;
  hn::Vec<Vec<T>> sum[kR][kV];
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) sum[r][v] = hn::LoadU(d, sums + r * sum_row + v * L);
  }
  for (int i = 0; i < count; ++i) {
    const auto value = hn::Set(d, list.value[i]);
    const T* from = x + list.at[i] * pixel;
    for (int r = 0; r < kR; ++r) {
      for (int v = 0; v < kV; ++v)
        sum[r][v] = hn::MulAdd(value, hn::LoadU(d, from + r * row + v * L), sum[r][v]);
    }
  }
  for (int r = 0; r < kR; ++r) {
    for (int v = 0; v < kV; ++v) hn::StoreU(sum[r][v], d, sums + r * sum_row + v * L);
  }
}

// dx += weights * values of the channels in a pixel's mask, for every pixel of the convolution's
// result: `masks` and `values` (pixel, channel) hold rows x cols of them. A patch's last vector has
// `tail` lanes.
//
// Goes down the columns: the patches of neighbours have all rows but one in common, which stay in
// registers, and only the row that no later patch has is added to memory.
template <int kR, int kV, class T>
HWY_NOINLINE HWY_ATTR void scatter_patches(int rows, int cols, int wp, int channels, int outputs,
                                           const uint64_t* masks, const T* values,
                                           const T* HWY_RESTRICT weights, ptrdiff_t w_channel,
                                           ptrdiff_t w_row, int tail, T* HWY_RESTRICT dx) {
  constexpr int L = kLanes<T>;
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  const auto inside = hn::FirstN(d, static_cast<size_t>(tail));
  for (int j = 0; j < cols; ++j) {
    V sum[kR][kV];
    for (int r = 0; r < kR; ++r) {
      for (int v = 0; v < kV; ++v) sum[r][v] = hn::Zero(d);
    }
    T* to = dx + ptrdiff_t{j} * channels;
    for (int i = 0; i < rows + kR - 1; ++i, to += ptrdiff_t{wp} * channels) {
      const ptrdiff_t at = ptrdiff_t{i} * wp + j;
      for (uint64_t mask = i < rows ? masks[at] : 0; mask != 0; mask &= mask - 1) {
        const int o = std::countr_zero(mask);
        const auto value = hn::Set(d, values[at * outputs + o]);
        const T* w = weights + o * w_channel;
        for (int r = 0; r < kR; ++r) {
          for (int v = 0; v < kV; ++v)
            sum[r][v] = hn::MulAdd(value, hn::LoadU(d, w + r * w_row + v * L), sum[r][v]);
        }
      }
      for (int v = 0; v < kV; ++v) {
        // Beside the patch the weights are 0, but a gradient of infinity times 0 is a NaN.
        const V done = v == kV - 1 ? hn::IfThenElseZero(inside, sum[0][v]) : sum[0][v];
        hn::StoreU(hn::Add(hn::LoadU(d, to + v * L), done), d, to + v * L);
      }
      for (int r = 0; r + 1 < kR; ++r) {
        for (int v = 0; v < kV; ++v) sum[r][v] = sum[r + 1][v];
      }
      for (int v = 0; v < kV; ++v) sum[kR - 1][v] = hn::Zero(d);
    }
  }
}

// Calls f(rows, vectors, first row, first vector), the first two as constants, for parts that cover
// a patch of `rows` runs of `vectors` vectors.
template <class F> void each_part(int rows, int vectors, const F& f) {
  constexpr int kMostRows = 5, kMostVectors = 4;
  for (int v = 0; v < vectors; v += kMostVectors) {
    with_constant<kMostVectors>(std::min(kMostVectors, vectors - v), [&](auto kv) {
      constexpr int kV = kv(), kMost = std::min(kMostRows, kAccumulators / kV);
      for (int r = 0; r < rows; r += kMost) {
        with_constant<kMost>(std::min(kMost, rows - r), [&](auto kr) { f(kr, kv, r, v); });
      }
    });
  }
}

template <class T> void backward(const SmallConv& s, const T* x, const T* weight, const T* y,
                                 const uint8_t* choice, const T* dy, T* dx, T* dweight, T* db) {
  constexpr int L = kLanes<T>;
  const int run = s.kw * s.c, vectors = ceil_div(run, L), w_row = vectors * L;
  const ptrdiff_t w_channel = ptrdiff_t{s.kh} * w_row, weights = s.o * w_channel;
  const ptrdiff_t image_row = ptrdiff_t{s.wp} * s.c;
  // Vectors that begin inside the image end at most a vector behind it.
  const int64_t image = s.hp * image_row + L;
  const int rows = 2 * s.ph, cols = 2 * s.pw, windows = s.windows();

  // The weights as dx reads them: (channel; kernel row; column and channel of x, rounded up).
  const Scratch<T> packed(dx != nullptr ? weights : 0);
  if (dx != nullptr) {
    std::fill_n(packed.get(), weights, T(0));
    for (int o = 0; o < s.o; ++o) {
      for (int c = 0; c < s.c; ++c) {
        for (int a = 0; a < s.kh; ++a) {
          T* to = packed.get() + o * w_channel + ptrdiff_t{a} * w_row + c;
          for (int k = 0; k < s.kw; ++k) to[k * s.c] = *weight++;
        }
      }
    }
  }
  const Scratch<int32_t> pixel(windows);
  for (int i = 0; i < s.ph; ++i) {
    for (int j = 0; j < s.pw; ++j) pixel.get()[i * s.pw + j] = 2 * i * s.wp + 2 * j;
  }

  // A part's sums: weights as above, then db.
  const int images = ceil_div(std::max(1, s.n), kParts), parts = ceil_div(s.n, images);
  const ptrdiff_t part_size = (weights + s.o + 15) / 16 * 16;
  const Scratch<T> partial(parts * part_size);
  const auto add_part = [&](int64_t part) {
    T* sums = partial.get() + part * part_size;
    std::fill_n(sums, part_size, T(0));
    const LocalScratch<T> joined(dweight != nullptr ? image : 0),
        dx_joined(dx != nullptr ? image : 0);
    const LocalScratch<T> values(dx != nullptr ? int64_t{rows} * s.wp * s.o : 0);
    const LocalScratch<uint64_t> masks(dx != nullptr ? int64_t{rows} * s.wp : 0);
    const LocalScratch<int32_t> at(windows + L);
    const LocalScratch<T> value(windows + L);
    const Entries<T> list{at.get(), value.get()};
    if (dweight != nullptr) std::fill_n(joined.get(), image, T(0));
    const int first = static_cast<int>(part) * images;
    for (int n = first; n < std::min(s.n, first + images); ++n) {
      if (dweight != nullptr) join_channels(s, x + n * s.x_image(), joined.get());
      if (dx != nullptr) std::fill_n(masks.get(), int64_t{rows} * s.wp, 0);
      for (int o = 0; o < s.o; ++o) {
        const ptrdiff_t plane = n * s.y_image() + ptrdiff_t{o} * windows;
        const int count = list_entries(windows, s.wp, pixel.get(), y + plane, choice + plane,
                                       dy + plane, list, sums + weights + o);
        if (dweight != nullptr) {
          each_part(s.kh, vectors, [&](auto kr, auto kv, int r, int v) {
            add_patches<kr(), kv()>(count, list, joined.get() + r * image_row + v * L, s.c,
                                    image_row, sums + o * w_channel + r * w_row + v * L, w_row);
          });
        }
        if (dx != nullptr) {
          for (int i = 0; i < count; ++i) {
            masks.get()[list.at[i]] |= uint64_t{1} << o;
            values.get()[ptrdiff_t{list.at[i]} * s.o + o] = list.value[i];
          }
        }
      }
      if (dx == nullptr) continue;
      std::fill_n(dx_joined.get(), image, T(0));
      each_part(s.kh, vectors, [&](auto kr, auto kv, int r, int v) {
        const int tail = std::min((v + kv()) * L, run) - (v + kv() - 1) * L;
        scatter_patches<kr(), kv()>(rows, cols, s.wp, s.c, s.o, masks.get(), values.get(),
                                    packed.get() + r * w_row + v * L, w_channel, w_row, tail,
                                    dx_joined.get() + r * image_row + v * L);
      });
      split_channels(s, dx_joined.get(), dx + n * s.x_image());
    }
  };
  // The parts' sums, added in their order, of a few channels.
  const int64_t grain = items_per_grain(parts * w_channel * 4);
  const auto add_up = [&](int64_t chunk) {
    const int64_t begin = chunk * grain, end = std::min<int64_t>(s.o, begin + grain);
    const LocalScratch<T> total(w_channel);
    for (int64_t o = begin; o < end; ++o) {
      std::fill_n(total.get(), w_channel, T(0));
      T bias = 0;
      for (int part = 0; part < parts; ++part) {
        const T* from = partial.get() + part * part_size;
        bias += from[weights + o];
        from += o * w_channel;
        for (ptrdiff_t i = 0; i < w_channel; ++i) total.get()[i] += from[i];
      }
      if (db != nullptr) db[o] = bias;
      if (dweight == nullptr) continue;
      T* to = dweight + o * s.c * s.taps();
      for (int c = 0; c < s.c; ++c) {
        for (int a = 0; a < s.kh; ++a) {
          for (int k = 0; k < s.kw; ++k) *to++ = total.get()[a * w_row + k * s.c + c];
        }
      }
    }
  };
  parallel_for(parts, add_part);
  if (dweight != nullptr || db != nullptr) parallel_for((s.o + grain - 1) / grain, add_up);
}

void ForwardFloat(const SmallConv& s, const float* x, const float* weight, const float* b, float* y,
                  uint8_t* choice) {
  forward(s, x, weight, b, y, choice);
}
void ForwardDouble(const SmallConv& s, const double* x, const double* weight, const double* b,
                   double* y, uint8_t* choice) {
  forward(s, x, weight, b, y, choice);
}
void BackwardFloat(const SmallConv& s, const float* x, const float* weight, const float* y,
                   const uint8_t* choice, const float* dy, float* dx, float* dweight, float* db) {
  backward(s, x, weight, y, choice, dy, dx, dweight, db);
}
void BackwardDouble(const SmallConv& s, const double* x, const double* weight, const double* y,
                    const uint8_t* choice, const double* dy, double* dx, double* dweight,
                    double* db) {
  backward(s, x, weight, y, choice, dy, dx, dweight, db);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(PoolRowFloat);
HWY_EXPORT(PoolRowDouble);
HWY_EXPORT(ForwardFloat);
HWY_EXPORT(ForwardDouble);
HWY_EXPORT(BackwardFloat);
HWY_EXPORT(BackwardDouble);

void pool_row(int count, const float* top, const float* bottom, float* y, uint8_t* choice) {
  HWY_DYNAMIC_DISPATCH(PoolRowFloat)(count, top, bottom, y, choice);
}
void pool_row(int count, const double* top, const double* bottom, double* y, uint8_t* choice) {
  HWY_DYNAMIC_DISPATCH(PoolRowDouble)(count, top, bottom, y, choice);
}

void small_forward(const SmallConv& s, const float* x, const float* weight, const float* b,
                   float* y, uint8_t* choice) {
  HWY_DYNAMIC_DISPATCH(ForwardFloat)(s, x, weight, b, y, choice);
}
void small_forward(const SmallConv& s, const double* x, const double* weight, const double* b,
                   double* y, uint8_t* choice) {
  HWY_DYNAMIC_DISPATCH(ForwardDouble)(s, x, weight, b, y, choice);
}
void small_backward(const SmallConv& s, const float* x, const float* weight, const float* y,
                    const uint8_t* choice, const float* dy, float* dx, float* dweight, float* db) {
  HWY_DYNAMIC_DISPATCH(BackwardFloat)(s, x, weight, y, choice, dy, dx, dweight, db);
}
void small_backward(const SmallConv& s, const double* x, const double* weight, const double* y,
                    const uint8_t* choice, const double* dy, double* dx, double* dweight,
                    double* db) {
  HWY_DYNAMIC_DISPATCH(BackwardDouble)(s, x, weight, y, choice, dy, dx, dweight, db);
}

bool use_small(const Conv2dShape& g) { return g.algo == ConvAlgo::kAuto && is_small(g); }

// Calls f(plane) for every image and output channel.
template <class F> void each_plane(const Conv2dShape& g, const F& f) {
  parallel_ranges(int64_t{g.n} * g.o, items_per_grain(int64_t{g.oh} * g.ow),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t plane = begin; plane < end; ++plane) f(plane);
                  });
}

template <class T> void large_forward(const Conv2dShape& g, const T* x, const T* weight, const T* b,
                                      T* y, uint8_t* choice) {
  const int64_t plane_size = int64_t{g.oh} * g.ow;
  const Scratch<T> z(int64_t{g.n} * g.o * plane_size);
  conv2d_forward(g, x, weight, b, z.get());
  const int ph = g.oh / 2, pw = g.ow / 2;
  each_plane(g, [&](int64_t plane) {
    for (int i = 0; i < ph; ++i) {
      const T* top = z.get() + plane * plane_size + int64_t{2 * i} * g.ow;
      const T* bottom = top + g.ow;
      const int64_t out = (plane * ph + i) * pw;
      pool_row(pw, top, bottom, y + out, choice + out);
    }
  });
}

template <class T> void large_backward(const Conv2dShape& g, const T* x, const T* weight,
                                       const T* y, const uint8_t* choice, const T* dy, T* dx,
                                       T* dweight, T* db) {
  const int64_t plane_size = int64_t{g.oh} * g.ow;
  const Scratch<T> dz(int64_t{g.n} * g.o * plane_size);
  const int ph = g.oh / 2, pw = g.ow / 2;
  each_plane(g, [&](int64_t plane) {
    T* to = dz.get() + plane * plane_size;
    std::fill_n(to, plane_size, T(0));
    for (int i = 0; i < ph; ++i) {
      for (int j = 0; j < pw; ++j) {
        const int64_t at = (plane * ph + i) * pw + j;
        const int row = 2 * i + choice[at] / 2, column = 2 * j + choice[at] % 2;
        const T d = dy[at];  // read always, so that the choice below is no branch
        to[int64_t{row} * g.ow + column] = y[at] <= 0 ? T(0) : d;
      }
    }
  });
  if (dx) conv2d_backward_data(g, static_cast<const T*>(dz.get()), weight, dx);
  if (dweight || db) {
    conv2d_backward_weights(g, x, static_cast<const T*>(dz.get()), dweight, db);
  }
}

}  // namespace

bool conv2d_relu_pool_fits(const Cpu&, const Conv2dShape& g, DType) {
  return g.algo == ConvAlgo::kAuto && g.n > 0 && g.c > 0 && g.oh >= 2 && g.ow >= 2;
}

void run(const Cpu&, const Conv2dReluPoolForward& o) {
  with_floating(o.x, [&]<class T>() {
    const T *x = o.x.data<T>(), *weight = o.weight.data<T>(), *b = o.b.data<T>();
    T* y = o.y.data<T>();
    uint8_t* choice = o.choice.data<uint8_t>();
    if (use_small(o.g)) {
      small_forward(SmallConv(o.g), x, weight, b, y, choice);
    } else {
      large_forward(o.g, x, weight, b, y, choice);
    }
  });
}

void run(const Cpu&, const Conv2dReluPoolBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    const T *x = o.x.data<T>(), *weight = o.weight.data<T>(), *y = o.y.data<T>();
    const uint8_t* choice = o.choice.data<uint8_t>();
    const T* dy = o.dy.data<T>();
    T *dx = o.dx.data<T>(), *dweight = o.dweight.data<T>(), *db = o.db.data<T>();
    if (use_small(o.g)) {
      small_backward(SmallConv(o.g), x, weight, y, choice, dy, dx, dweight, db);
    } else {
      large_backward(o.g, x, weight, y, choice, dy, dx, dweight, db);
    }
  });
}

}  // namespace sinter
#endif  // HWY_ONCE
