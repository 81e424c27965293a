// Stacks of linear layers with ReLU.
//
// A stack whose weights stay in a core's second-level cache (`small`) goes through in three
// parallel regions, however many layers it has: a few rows of the batch at a time pass forward
// through all layers, and their gradients back; then all weights' gradients, in blocks of outputs.
// Products are register tiles of rows x outputs, straight from the arrays as they are: summed over
// the lanes where both factors are contiguous along the sum (y = x w^T), with one of them broadcast
// where not.
//
// Larger stacks are computed part by part, in place where the framework would make a tensor for
// each, with the results of the parts to the bit: a layer is a matrix product, next to which the
// passes over its values cost little.
#include "simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mlp.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <utility>

#include "parallel.h"
#include "sinter/operators.h"
#include "tiles-inl.h"

#ifndef SINTER_KERNELS_CPU_MLP_GEOMETRY
#define SINTER_KERNELS_CPU_MLP_GEOMETRY
namespace sinter {
namespace {

inline bool has_relu(const MlpShape& g, int l) { return l + 1 < g.layers || g.relu_last; }

// Rows of a chunk: by the batch alone, enough chunks for many threads.
inline int64_t chunk_rows(int64_t n) { return std::clamp<int64_t>((n / 16 + 3) / 4 * 4, 4, 32); }

// What the layers from `lowest` up need: the gradients of their results before ReLU.
template <class T> struct ChainArrays {
  int lowest = 0;
  std::array<const T*, kMaxMlpLayers> dz = {};  // that of the last layer may be dy itself
  std::array<T*, kMaxMlpLayers> own = {};       // null where dz is dy
};

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

// Rows [begin, end) of y = x w^T + b, with or without ReLU.
template <class T> void forward_layer(int64_t in, int64_t out, bool relu, int64_t begin,
                                      int64_t end, const T* x, const MlpLayer<T>& layer) {
  for (int64_t o = 0; o < out; o += kOutputs) {
    const T* w[kOutputs];  // past the end the last row is computed again, and not stored
    T bias[kOutputs] = {};
    const int64_t outputs = std::min<int64_t>(kOutputs, out - o);
    for (int64_t j = 0; j < kOutputs; ++j) w[j] = layer.w + std::min(o + j, out - 1) * in;
    for (int64_t j = 0; j < outputs && layer.b != nullptr; ++j) bias[j] = layer.b[o + j];
    for (int64_t row = begin; row < end; row += kDotRows) {
      const T* from[kDotRows];
      T sums[kDotRows * kOutputs];
      for (int64_t r = 0; r < kDotRows; ++r) from[r] = x + std::min(row + r, end - 1) * in;
      dot_tile(in, from, w, sums);
      for (int64_t r = 0; r < std::min<int64_t>(kDotRows, end - row); ++r) {
        for (int64_t j = 0; j < outputs; ++j) {
          const T z = sums[r * kOutputs + j] + bias[j];
          layer.y[(row + r) * out + o + j] = relu && z <= 0 ? T(0) : z;  // a NaN passes
        }
      }
    }
  }
}

template <class T>
void forward(const MlpShape& g, const T* x, std::span<const MlpLayer<T>> layers) {
  parallel_ranges(g.n, chunk_rows(g.n), [&](int64_t begin, int64_t end) {
    const T* from = x;
    for (int l = 0; l < g.layers; ++l) {
      const MlpLayer<T>& layer = layers[static_cast<size_t>(l)];
      forward_layer(g.width[l], g.width[l + 1], has_relu(g, l), begin, end, from, layer);
      from = layer.y;
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

// The gradients of rows [begin, end), from the last layer down.
template <class T> void chain_rows(const MlpShape& g, std::span<const MlpLayer<T>> layers,
                                   const T* dy, T* dx, const ChainArrays<T>& chain, int64_t begin,
                                   int64_t end) {
  const auto top = static_cast<size_t>(g.layers - 1);
  if (chain.own[top] != nullptr) {
    const int64_t width = g.width[g.layers];
    for (int64_t i = begin * width; i < end * width; ++i) {
      const T d = dy[i];  // read always, so that the choice below is no branch
      chain.own[top][i] = layers[top].y[i] <= 0 ? T(0) : d;
    }
  }
  for (int l = g.layers - 1; l > chain.lowest || (l == chain.lowest && dx != nullptr); --l) {
    const int64_t in = g.width[l], out = g.width[l + 1];
    const T* dz = chain.dz[static_cast<size_t>(l)];
    // What goes to layer l - 1 passes its ReLU.
    const T* y = l > 0 ? layers[static_cast<size_t>(l - 1)].y : nullptr;
    T* to = l > 0 ? chain.own[static_cast<size_t>(l - 1)] : dx;
    for (int64_t row = begin; row < end; row += kRows) {
      const T* a[kRows];  // past the end the last row is computed again
      for (int64_t r = 0; r < kRows; ++r) a[r] = dz + std::min(row + r, end - 1) * out;
      outer_product(std::min<int64_t>(kRows, end - row), in, out, a, 1,
                    layers[static_cast<size_t>(l)].w, in,
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
  }
}

// The gradients of outputs [begin, end) of one layer: dw = dz^T h, db = column sums of dz.
template <class T> void weight_block(int64_t n, int64_t in, int64_t out, int64_t begin, int64_t end,
                                     const T* dz, const T* h, const MlpGrads<T>& grads) {
  constexpr int64_t kBlock = 256;  // rows added one after another before a partial sum is set aside
  for (int64_t o = begin; o < end; o += kRows) {
    const int64_t outputs = std::min<int64_t>(kRows, end - o);
    if (n == 0 && grads.dw != nullptr) std::fill_n(grads.dw + o * in, outputs * in, T(0));
    if (n == 0 && grads.db != nullptr) std::fill_n(grads.db + o, outputs, T(0));
    for (int64_t first = 0; first < n; first += kBlock) {
      const int64_t rows = std::min(kBlock, n - first);
      if (grads.db != nullptr) {
        for (int64_t j = 0; j < outputs; ++j) {
          T sum = 0;
          for (int64_t i = first; i < first + rows; ++i) sum += dz[i * out + o + j];
          grads.db[o + j] = first > 0 ? grads.db[o + j] + sum : sum;
        }
      }
      if (grads.dw == nullptr) continue;
      const T* a[kRows];
      for (int64_t r = 0; r < kRows; ++r) a[r] = dz + first * out + std::min(o + r, end - 1);
      T* dw = grads.dw + o * in;
      const auto store = [&](int64_t r, int64_t column, const T* sums, int64_t lanes) {
        std::copy_n(sums, lanes, dw + r * in + column);
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
        for (int64_t i = 0; i < outputs * in; ++i) dw[i] += block.get()[i];
      }
    }
  }
}

template <class T> void backward(const MlpShape& g, const T* x, std::span<const MlpLayer<T>> layers,
                                 const T* dy, T* dx, std::span<const MlpGrads<T>> grads,
                                 const ChainArrays<T>& chain) {
  // Chunks of about as many weights in every layer.
  std::array<int64_t, kMaxMlpLayers + 1> first = {}, outputs = {};
  int64_t widest = 1;
  for (int l = 0; l < g.layers; ++l) widest = std::max(widest, g.width[l]);
  for (int l = 0; l < g.layers; ++l) {
    const auto i = static_cast<size_t>(l);
    const bool wanted = grads[i].dw != nullptr || grads[i].db != nullptr;
    outputs[i] = std::max<int64_t>(1, widest / std::max<int64_t>(1, g.width[l])) * 2 * kRows;
    first[i + 1] = first[i] + (wanted ? (g.width[l + 1] + outputs[i] - 1) / outputs[i] : 0);
  }
  const int64_t rows = chunk_rows(g.n);
  parallel_for((g.n + rows - 1) / rows, [&](int64_t chunk) {
    chain_rows(g, layers, dy, dx, chain, chunk * rows, std::min(g.n, (chunk + 1) * rows));
  });
  parallel_for(first[static_cast<size_t>(g.layers)], [&](int64_t item) {
    size_t l = 0;
    while (item >= first[l + 1]) ++l;
    const int64_t out = g.width[l + 1], begin = (item - first[l]) * outputs[l];
    weight_block(g.n, g.width[l], out, begin, std::min(out, begin + outputs[l]), chain.dz[l],
                 l > 0 ? static_cast<const T*>(layers[l - 1].y) : x, grads[l]);
  });
}

void ForwardFloat(const MlpShape& g, const float* x, std::span<const MlpLayer<float>> layers) {
  forward(g, x, layers);
}
void ForwardDouble(const MlpShape& g, const double* x, std::span<const MlpLayer<double>> layers) {
  forward(g, x, layers);
}
void BackwardFloat(const MlpShape& g, const float* x, std::span<const MlpLayer<float>> layers,
                   const float* dy, float* dx, std::span<const MlpGrads<float>> grads,
                   const ChainArrays<float>& chain) {
  backward(g, x, layers, dy, dx, grads, chain);
}
void BackwardDouble(const MlpShape& g, const double* x, std::span<const MlpLayer<double>> layers,
                    const double* dy, double* dx, std::span<const MlpGrads<double>> grads,
                    const ChainArrays<double>& chain) {
  backward(g, x, layers, dy, dx, grads, chain);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

LinearShape layer_shape(const MlpShape& g, int l) { return {g.n, g.width[l], g.width[l + 1]}; }

HWY_EXPORT(ForwardFloat);
HWY_EXPORT(ForwardDouble);
HWY_EXPORT(BackwardFloat);
HWY_EXPORT(BackwardDouble);

void small_forward(const MlpShape& g, const float* x, std::span<const MlpLayer<float>> layers) {
  HWY_DYNAMIC_DISPATCH(ForwardFloat)(g, x, layers);
}
void small_forward(const MlpShape& g, const double* x, std::span<const MlpLayer<double>> layers) {
  HWY_DYNAMIC_DISPATCH(ForwardDouble)(g, x, layers);
}
void small_backward(const MlpShape& g, const float* x, std::span<const MlpLayer<float>> layers,
                    const float* dy, float* dx, std::span<const MlpGrads<float>> grads,
                    const ChainArrays<float>& chain) {
  HWY_DYNAMIC_DISPATCH(BackwardFloat)(g, x, layers, dy, dx, grads, chain);
}
void small_backward(const MlpShape& g, const double* x, std::span<const MlpLayer<double>> layers,
                    const double* dy, double* dx, std::span<const MlpGrads<double>> grads,
                    const ChainArrays<double>& chain) {
  HWY_DYNAMIC_DISPATCH(BackwardDouble)(g, x, layers, dy, dx, grads, chain);
}

bool is_small(const MlpShape& g) {
  constexpr int64_t kMostWeights = 200000;
  int64_t weights = 0;
  for (int l = 0; l < g.layers; ++l) {
    if (g.width[l] == 0) return false;
    weights += g.width[l] * g.width[l + 1];
  }
  return weights <= kMostWeights;
}

}  // namespace

template <class T> bool mlp_fits(const Cpu&, const MlpShape&) { return true; }

template <class T> void mlp_forward(const Cpu& ctx, const MlpShape& g, const T* x,
                                    std::span<const MlpLayer<T>> layers) {
  if (is_small(g)) return small_forward(g, x, layers);
  for (int l = 0; l < g.layers; ++l) {
    const MlpLayer<T>& layer = layers[static_cast<size_t>(l)];
    linear_forward(ctx, layer_shape(g, l), x, layer.w, layer.b, layer.y);
    if (has_relu(g, l)) relu_forward<T>(ctx, g.n * g.width[l + 1], layer.y, layer.y);
    x = layer.y;
  }
}

template <class T> void mlp_backward(const Cpu& ctx, const MlpShape& g, const T* x,
                                     std::span<const MlpLayer<T>> layers,
                                     const MlpGradient<T>& from, T* dx,
                                     std::span<const MlpGrads<T>> grads) {
  const T* dy = from.dy;
  int lowest = 0;  // the lowest layer whose gradients lead to something asked for
  while (!dx && lowest < g.layers && !grads[static_cast<size_t>(lowest)].dw &&
         !grads[static_cast<size_t>(lowest)].db)
    ++lowest;
  if (is_small(g)) {
    ChainArrays<T> chain{.lowest = lowest};
    int64_t widths = 0;
    for (int l = lowest; l < g.layers; ++l) widths += g.width[l + 1];
    const Scratch<T> all(g.n * widths);
    T* next = all.get();
    for (int l = lowest; l < g.layers; ++l) {
      const auto i = static_cast<size_t>(l);
      if (has_relu(g, l)) chain.own[i] = std::exchange(next, next + g.n * g.width[l + 1]);
      chain.dz[i] = chain.own[i] != nullptr ? chain.own[i] : dy;
    }
    return small_backward(g, x, layers, dy, dx, grads, chain);
  }
  // The gradient of a layer's result and, in the other one, of its input.
  const int64_t size = g.n * *std::max_element(g.width, g.width + g.layers + 1);
  const Scratch<T> one(size), other(size);
  T *dz = one.get(), *dh = other.get();
  for (int l = g.layers - 1; l >= lowest; --l) {
    const MlpLayer<T>& layer = layers[static_cast<size_t>(l)];
    const MlpGrads<T>& grad = grads[static_cast<size_t>(l)];
    if (has_relu(g, l)) {
      relu_backward<T>(ctx, g.n * g.width[l + 1], layer.y, dy, dz);
      dy = dz;
    }
    linear_backward_weights(ctx, layer_shape(g, l),
                            l > 0 ? layers[static_cast<size_t>(l - 1)].y : x, dy, grad.dw, grad.db);
    if (l > lowest || dx) {
      T* to = l > 0 ? dh : dx;
      linear_backward_data(ctx, layer_shape(g, l), dy, layer.w, to);
      dy = to;
      std::swap(dz, dh);
    }
  }
}

#define SINTER_INSTANTIATE(T)                                                                     \
  template bool mlp_fits<T>(const Cpu&, const MlpShape&);                                         \
  template void mlp_forward(const Cpu&, const MlpShape&, const T*, std::span<const MlpLayer<T>>); \
  template void mlp_backward(const Cpu&, const MlpShape&, const T*, std::span<const MlpLayer<T>>, \
                             const MlpGradient<T>&, T*, std::span<const MlpGrads<T>>);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
#endif  // HWY_ONCE
