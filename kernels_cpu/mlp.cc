// Stacks of linear layers with ReLU, whose weights stay in a core's second-level cache (mlp_fits).
//
// A stack goes through in three parallel regions, however many layers it has: a few rows of the
// batch at a time pass forward through all layers, and their gradients back; then all weights'
// gradients, in blocks of outputs. Products are register tiles of rows x outputs, straight from the
// arrays as they are: summed over the lanes where both factors are contiguous along the sum
// (y = x w^T), with one of them broadcast where not.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/mlp.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <array>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/tiles-inl.h"
#include "sinter/operators/mlp.h"

#ifndef SINTER_KERNELS_CPU_MLP_GEOMETRY
#define SINTER_KERNELS_CPU_MLP_GEOMETRY
namespace sinter {
using namespace op;
namespace {

inline bool has_relu(const MlpShape& g, int l) { return l + 1 < g.layers || g.relu_last; }

// Rows of a chunk: by the batch alone, enough chunks for many threads.
inline int64_t chunk_rows(int64_t n) { return std::clamp<int64_t>((n / 16 + 3) / 4 * 4, 4, 32); }

}  // namespace
}  // namespace sinter
#endif

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Register tiles: rows x outputs of a product summed over lanes, rows x vectors of the others.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kDotRows = 4, kVectors = 4;
#else
constexpr int kDotRows = 2, kVectors = 2;
#endif
constexpr int kRows = 4, kOutputs = 4;

// The lanes of kOutputs vectors added, to one number each.
template <class T> HWY_INLINE HWY_ATTR void sum_lanes(const hn::Vec<Vec<T>>* v, T* to) {
#if HWY_TARGET != HWY_SCALAR
  constexpr int kBlock = 16 / sizeof(T);
  const Vec<T> d;
  const auto across = [&](auto sum) HWY_ATTR {  // the 128-bit blocks of a vector
    if constexpr (kLanes<T> == kBlock) {
      return sum;
    } else {
      const hn::Half<Vec<T>> half;
      const auto h = hn::Add(hn::LowerHalf(half, sum), hn::UpperHalf(half, sum));
      if constexpr (kLanes<T> == 2 * kBlock) {
        return h;
      } else {
        const hn::Half<decltype(half)> quarter;
        static_assert(kLanes<T> == 4 * kBlock);
        return hn::Add(hn::LowerHalf(quarter, h), hn::UpperHalf(quarter, h));
      }
    }
  };
  const auto pair = [&](auto a, auto b) HWY_ATTR {
    return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  };
  const hn::FixedTag<T, kBlock> block;
  if constexpr (kBlock == 4) {
    const hn::RepartitionToWide<Vec<T>> wide;
    const auto low = hn::BitCast(wide, pair(v[0], v[1])),
               high = hn::BitCast(wide, pair(v[2], v[3]));
    hn::StoreU(across(hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, low, high)),
                              hn::BitCast(d, hn::InterleaveUpper(wide, low, high)))),
               block, to);
  } else {
    hn::StoreU(across(pair(v[0], v[1])), block, to);
    hn::StoreU(across(pair(v[2], v[3])), block, to + 2);
  }
#else
  for (int o = 0; o < kOutputs; ++o) to[o] = hn::GetLane(v[o]);
#endif
}

// sums (row, output) = x (row, in) w (output, in)^T for kDotRows rows and kOutputs outputs.
template <class T>
HWY_NOINLINE HWY_ATTR void dot_tile(int64_t in, const T* const* x, const T* const* w, T* sums) {
  constexpr int L = kLanes<T>;
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  V sum[kDotRows][kOutputs];
  for (auto& row : sum) {
    for (V& v : row) v = hn::Zero(d);
  }
  const auto add = [&](const auto& load, int64_t at) HWY_ATTR {
    V wv[kOutputs];
    for (int o = 0; o < kOutputs; ++o) wv[o] = load(w[o] + at);
    for (int r = 0; r < kDotRows; ++r) {
      const V xv = load(x[r] + at);
      for (int o = 0; o < kOutputs; ++o) sum[r][o] = hn::MulAdd(xv, wv[o], sum[r][o]);
    }
  };
  int64_t i = 0;
  for (; i + L <= in; i += L) add([&](const T* p) HWY_ATTR { return hn::LoadU(d, p); }, i);
  if (i < in && in >= L) {  // the last vector again, without what it had before
    const auto before = hn::FirstN(d, static_cast<size_t>(i - (in - L)));
    add([&](const T* p) HWY_ATTR { return hn::IfThenZeroElse(before, hn::LoadU(d, p)); }, in - L);
  } else if (i < in) {
    add(
        [&](const T* p) HWY_ATTR {
          HWY_ALIGN T lanes[L] = {};
          std::copy_n(p, in, lanes);
          return hn::Load(d, lanes);
        },
        0);
  }
  for (int r = 0; r < kDotRows; ++r) sum_lanes<T>(sum[r], sums + r * kOutputs);
}

// Rows [begin, end) of y = x weight^T + b, with or without ReLU. b nullable.
template <class T> void forward_layer(int64_t in, int64_t out, bool relu, int64_t begin,
                                      int64_t end, const T* x, const T* weight, const T* b, T* y) {
  for (int64_t o = 0; o < out; o += kOutputs) {
    const T* w[kOutputs];  // past the end the last row is computed again, and not stored
    T bias[kOutputs] = {};
    const int64_t outputs = std::min<int64_t>(kOutputs, out - o);
    for (int64_t j = 0; j < kOutputs; ++j) w[j] = weight + std::min(o + j, out - 1) * in;
    for (int64_t j = 0; j < outputs && b != nullptr; ++j) bias[j] = b[o + j];
    for (int64_t row = begin; row < end; row += kDotRows) {
      const T* from[kDotRows];
      T sums[kDotRows * kOutputs];
      for (int64_t r = 0; r < kDotRows; ++r) from[r] = x + std::min(row + r, end - 1) * in;
      dot_tile(in, from, w, sums);
      for (int64_t r = 0; r < std::min<int64_t>(kDotRows, end - row); ++r) {
        for (int64_t j = 0; j < outputs; ++j) {
          const T z = sums[r * kOutputs + j] + bias[j];
          y[(row + r) * out + o + j] = relu && z <= 0 ? T(0) : z;  // a NaN passes
        }
      }
    }
  }
}

template <class T> void forward(const MlpForward& o) {
  const MlpShape& g = o.g;
  parallel_ranges(g.n, chunk_rows(g.n), [&](int64_t begin, int64_t end) {
    const T* from = o.x.data<T>();
    for (int l = 0; l < g.layers; ++l) {
      const auto i = static_cast<size_t>(l);
      T* y = o.y[i].data<T>();
      forward_layer(g.width[l], g.width[l + 1], has_relu(g, l), begin, end, from, o.w[i].data<T>(),
                    o.b[i].data<T>(), y);
      from = y;
    }
  });
}

// sums (r; v) = sum over k of a[r][k * a_step] * b[k * b_step + col[v]], for kRows rows and
// kVectors vectors. If the columns are fewer than lanes, one of them at a time.
template <class T> HWY_NOINLINE HWY_ATTR void outer_tile(int64_t count, const T* const* a,
                                                         int64_t a_step, const T* b, int64_t b_step,
                                                         const int64_t* col, T* sums) {
  constexpr int L = kLanes<T>;
  const Vec<T> d;
  using V = hn::Vec<Vec<T>>;
  V sum[kRows][kVectors];
  for (auto& row : sum) {
    for (V& v : row) v = hn::Zero(d);
  }
  const T* left[kRows];
  const T* right[kVectors];
  for (int r = 0; r < kRows; ++r) left[r] = a[r];
  for (int v = 0; v < kVectors; ++v) right[v] = b + col[v];
  for (int64_t k = 0; k < count; ++k) {
    V bv[kVectors];
    for (int v = 0; v < kVectors; ++v) bv[v] = hn::LoadU(d, right[v] + k * b_step);
    for (int r = 0; r < kRows; ++r) {
      const V av = hn::Set(d, left[r][k * a_step]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(av, bv[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sum[r][v], d, sums + (r * kVectors + v) * L);
  }
}

// Calls store(r, column, sums, lanes) for the rows and columns of the product
//   sum over k < count of a[r][k * a_step] * b[k * b_step + column],  column < cols,
// of at most kRows rows; `lanes` consecutive columns at a time, some of them twice.
template <class T, class F> void outer_product(int64_t rows, int64_t cols, int64_t count,
                                               const T* const* a, int64_t a_step, const T* b,
                                               int64_t b_step, const F& store) {
  constexpr int L = kLanes<T>;
  if (cols < L) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        T sum = 0;
        for (int64_t k = 0; k < count; ++k) sum += a[r][k * a_step] * b[k * b_step + c];
        store(r, c, &sum, 1);
      }
    }
    return;
  }
  for (int64_t c = 0; c < cols; c += kVectors * L) {
    int64_t col[kVectors];
    T sums[kRows * kVectors * L];
    for (int v = 0; v < kVectors; ++v) col[v] = std::min(c + v * L, cols - L);
    outer_tile(count, a, a_step, b, b_step, col, sums);
    const auto vectors = std::min<int64_t>(kVectors, (cols - c + L - 1) / L);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < vectors; ++v) store(r, col[v], sums + (r * kVectors + v) * L, L);
    }
  }
}

// dz = 0 where y <= 0, else dy, for a vector.
template <class T> HWY_ATTR void mask_vector(const T* y, const T* dy, T* dz) {
  const Vec<T> d;
  const auto shut = hn::Le(hn::LoadU(d, y), hn::Zero(d));
  hn::StoreU(hn::IfThenZeroElse(shut, hn::LoadU(d, dy)), d, dz);
}

// The gradients of rows [begin, end), from the last layer's down to that of layer `lowest`, and to
// that of x where it is asked for.
template <class T>
void chain_rows(const MlpBackwardChain& o, int lowest, int64_t begin, int64_t end) {
  const MlpShape& g = o.g;
  const T* dz = o.dy.data<T>();
  T* dx = o.dx.data<T>();
  for (int l = g.layers - 1; l > lowest || (l == 0 && dx != nullptr); --l) {
    const int64_t in = g.width[l], out = g.width[l + 1];
    const auto i = static_cast<size_t>(l);
    const T* w = o.w[i].data<T>();
    // What goes to layer l - 1 passes its ReLU.
    const T* y = l > 0 ? o.y[i - 1].data<T>() : nullptr;
    T* to = l > 0 ? o.dz[i - 1].data<T>() : dx;
    for (int64_t row = begin; row < end; row += kRows) {
      const T* a[kRows];  // past the end the last row is computed again
      for (int64_t r = 0; r < kRows; ++r) a[r] = dz + std::min(row + r, end - 1) * out;
      outer_product(std::min<int64_t>(kRows, end - row), in, out, a, 1, w, in,
                    [&](int64_t r, int64_t column, const T* sums, int64_t lanes) {
                      const int64_t at = (row + r) * in + column;
                      if (y == nullptr) {
                        std::copy_n(sums, lanes, to + at);
                      } else if (lanes == kLanes<T>) {
                        mask_vector(y + at, sums, to + at);
                      } else {
                        for (int64_t i = 0; i < lanes; ++i)
                          to[at + i] = y[at + i] <= 0 ? T(0) : sums[i];
                      }
                    });
    }
    dz = to;
  }
}

template <class T> void chain(const MlpBackwardChain& o) {
  int lowest = 0;  // the lowest layer with a dz; that of the last one is dy
  while (lowest + 1 < o.g.layers && o.dz[static_cast<size_t>(lowest)].address == nullptr) ++lowest;
  parallel_ranges(o.g.n, chunk_rows(o.g.n),
                  [&](int64_t begin, int64_t end) { chain_rows<T>(o, lowest, begin, end); });
}

// The gradients of outputs [begin, end) of one layer: dw = dz^T h, db = column sums of dz. Each
// nullable.
template <class T> void weight_block(int64_t n, int64_t in, int64_t out, int64_t begin, int64_t end,
                                     const T* dz, const T* h, T* dw, T* db) {
  constexpr int64_t kBlock = 256;  // rows added one after another before a partial sum is set aside
  for (int64_t o = begin; o < end; o += kRows) {
    const int64_t outputs = std::min<int64_t>(kRows, end - o);
    for (int64_t first = 0; first < n; first += kBlock) {
      const int64_t rows = std::min(kBlock, n - first);
      if (db != nullptr) {
        for (int64_t j = 0; j < outputs; ++j) {
          T sum = 0;
          for (int64_t i = first; i < first + rows; ++i) sum += dz[i * out + o + j];
          db[o + j] = first > 0 ? db[o + j] + sum : sum;
        }
      }
      if (dw == nullptr) continue;
      const T* a[kRows];
      for (int64_t r = 0; r < kRows; ++r) a[r] = dz + first * out + std::min(o + r, end - 1);
      T* to = dw + o * in;
      const auto store = [&](int64_t r, int64_t column, const T* sums, int64_t lanes) {
        std::copy_n(sums, lanes, to + r * in + column);
      };
      if (first == 0) {
        outer_product(outputs, in, rows, a, out, h, in, store);
      } else {
        // Columns may come twice, and are to be added once.
        const LocalScratch<T> block(outputs * in);
        outer_product(outputs, in, rows, a, out, h + first * in, in,
                      [&](int64_t r, int64_t column, const T* sums, int64_t lanes) {
                        std::copy_n(sums, lanes, block.get() + r * in + column);
                      });
        for (int64_t i = 0; i < outputs * in; ++i) to[i] += block.get()[i];
      }
    }
  }
}

template <class T> void weights(const MlpBackwardWeights& o) {
  const MlpShape& g = o.g;
  // Chunks of about as many weights in every layer.
  std::array<int64_t, kMaxMlpLayers + 1> first = {}, outputs = {};
  int64_t widest = 1;
  for (int l = 0; l < g.layers; ++l) widest = std::max(widest, g.width[l]);
  for (int l = 0; l < g.layers; ++l) {
    const auto i = static_cast<size_t>(l);
    const bool wanted = o.dw[i].address != nullptr || o.db[i].address != nullptr;
    outputs[i] = std::max<int64_t>(1, widest / std::max<int64_t>(1, g.width[l])) * 2 * kRows;
    first[i + 1] = first[i] + (wanted ? (g.width[l + 1] + outputs[i] - 1) / outputs[i] : 0);
  }
  parallel_for(first[static_cast<size_t>(g.layers)], [&](int64_t item) {
    size_t l = 0;
    while (item >= first[l + 1]) ++l;
    const int64_t out = g.width[l + 1], begin = (item - first[l]) * outputs[l];
    weight_block(g.n, g.width[l], out, begin, std::min(out, begin + outputs[l]), o.dz[l].data<T>(),
                 l > 0 ? o.y[l - 1].data<T>() : o.x.data<T>(), o.dw[l].data<T>(),
                 o.db[l].data<T>());
  });
}

void Forward(const MlpForward& o) {
  with_floating(o.x, [&]<class T>() { forward<T>(o); });
}
void Chain(const MlpBackwardChain& o) {
  with_floating(o.dy, [&]<class T>() { chain<T>(o); });
}
void Weights(const MlpBackwardWeights& o) {
  with_floating(o.x, [&]<class T>() { weights<T>(o); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(Forward);
HWY_EXPORT(Chain);
HWY_EXPORT(Weights);

}  // namespace

bool mlp_fits(const Cpu&, const MlpShape& g, DType) {
  constexpr int64_t kMostWeights = 200000;
  if (g.n == 0) return false;
  int64_t weights = 0;
  for (int l = 0; l < g.layers; ++l) {
    if (g.width[l] == 0) return false;
    weights += g.width[l] * g.width[l + 1];
  }
  return weights <= kMostWeights;
}

void run(const Cpu&, const MlpForward& o) { HWY_DYNAMIC_DISPATCH(Forward)(o); }
void run(const Cpu&, const MlpBackwardChain& o) { HWY_DYNAMIC_DISPATCH(Chain)(o); }
void run(const Cpu&, const MlpBackwardWeights& o) { HWY_DYNAMIC_DISPATCH(Weights)(o); }

}  // namespace sinter
#endif  // HWY_ONCE
