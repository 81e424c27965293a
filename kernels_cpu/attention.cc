// Scaled dot-product attention, a tile of scores at a time: products by gemm, what is between them
// in vectors. Parallel over heads and blocks of queries, or of keys, each of whose sums one thread
// adds up in order.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/attention.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>
// Behind highway.h.
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels_cpu/gemm.h"
#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/attention.h"

#ifndef SINTER_KERNELS_CPU_ATTENTION_ONCE
#define SINTER_KERNELS_CPU_ATTENTION_ONCE
namespace sinter {
namespace {

using namespace op;

// A tile of scores. Its rows are the queries, or keys, that a task owns; all rows are kColumns
// apart, so that vectors may run past the last column.
constexpr int64_t kRows = 64, kColumns = 256;

// A run of `n` pairs of query and key: (i, j), then one query further on, or one key.
struct Run {
  int64_t head, i, j;
  bool keys;
  int64_t n;
};

// bias[c] = what the mask adds to the score of pair c.
template <class T>
void mask_run(const AttentionShape& g, const In& mask, int64_t offset, const Run& run, T* bias) {
  constexpr T kOut = -std::numeric_limits<T>::infinity();
  const int64_t at = offset + run.i * g.mask_query + run.j * g.mask_key;
  const int64_t step = run.keys ? g.mask_key : g.mask_query;
  if (mask.address == nullptr) {
    std::fill_n(bias, run.n, T(0));
  } else if (mask.dtype == kBool) {
    const bool* m = mask.data<bool>() + at;
    for (int64_t c = 0; c < run.n; ++c) bias[c] = m[c * step] ? T(0) : kOut;
  } else {
    const T* m = mask.data<T>() + at;
    for (int64_t c = 0; c < run.n; ++c) bias[c] = m[c * step];
  }
  if (!g.causal) return;
  // Pairs with j > i.
  const int64_t seen = std::clamp<int64_t>(run.keys ? run.i - run.j + 1 : run.j - run.i, 0, run.n);
  run.keys ? std::fill(bias + seen, bias + run.n, kOut) : std::fill(bias, bias + seen, kOut);
}

// factor[c] = what dropout multiplies the weight of pair c by.
template <class T>
void dropout_run(const AttentionShape& g, const In& draw, const Run& run, T* factor) {
  const auto* state = draw.data<int64_t>();
  const auto kept = static_cast<T>(g.kept);
  int64_t item = (run.head * g.l + run.i) * g.s + run.j, block = -1;
  Philox4 bits{};
  for (int64_t c = 0; c < run.n; ++c, item += run.keys ? 1 : g.s) {
    if (item / 4 != block) {
      block = item / 4;
      bits = draw_bits(state[0], state[1], block);
    }
    factor[c] = bits.v[item % 4] < g.threshold ? T(0) : kept;
  }
}

// What a task works with: tiles, and a row of each kind.
template <class T> struct Tiles {
  LocalScratch<T> memory{(2 * kRows + 4) * kColumns};
  T* scores = memory.get();
  T* gradients = scores + kRows * kColumns;
  T* bias = gradients + kRows * kColumns;
  T* factor = bias + kColumns;
  T* log_sum = factor + kColumns;
  T* delta = log_sum + kColumns;
};

}  // namespace
}  // namespace sinter
#endif

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class T> using Tag = hn::CappedTag<T, 16>;
template <class T> constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag<T>()));

// Highway's makes 0 of a NaN.
template <class T> HWY_ATTR hn::Vec<Tag<T>> power(hn::Vec<Tag<T>> v) {
  return hn::IfThenElse(hn::Eq(v, v), hn::Exp(Tag<T>(), v), v);
}

// A row's part of the softmax so far: its largest score, and the sum of exp(score - largest).
template <class T> struct Online {
  T largest;
  double sum;
};

// scores (n of them) become exp(scale scores + bias - the row's largest so far), which are added to
// its sum; what was summed before counts by the factor that this returns. bias: null for none.
template <class T>
HWY_ATTR T online_row(int64_t n, T scale, const T* bias, T* scores, Online<T>& row) {
  const Tag<T> d;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  const auto factor = hn::Set(d, scale);
  auto largest = hn::Set(d, row.largest);
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    auto v = hn::Mul(hn::LoadU(d, scores + c), factor);
    if (bias != nullptr) v = hn::Add(v, hn::LoadU(d, bias + c));
    if (c + kLanes < T >> n)
      v = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(n - c)), v, hn::Set(d, kLowest));
    hn::StoreU(v, d, scores + c);
    // Of a NaN and a number the number: the NaN comes back in the sum.
    largest = hn::IfThenElse(hn::Gt(v, largest), v, largest);
  }
  const T before = row.largest;
  row.largest = hn::GetLane(hn::MaxOfLanes(d, largest));
  // Without any key so far all differences are -infinity.
  const T shift = row.largest == kLowest ? T(0) : row.largest;
  const auto from = hn::Set(d, shift);
  auto total = hn::Zero(d);
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    const auto p = power<T>(hn::Sub(hn::LoadU(d, scores + c), from));
    hn::StoreU(p, d, scores + c);
    total = hn::Add(total, p);
  }
  const T again = before == kLowest ? T(0) : std::exp(before - shift);
  row.sum = row.sum * static_cast<double>(again) +
            static_cast<double>(hn::GetLane(hn::SumOfLanes(d, total)));
  return again;
}

template <class T> HWY_ATTR void multiply_row(int64_t n, T factor, T* x) {
  for (int64_t c = 0; c < n; ++c) x[c] *= factor;
}
template <class T> HWY_ATTR void multiply_row(int64_t n, const T* factor, T* x) {
  for (int64_t c = 0; c < n; ++c) x[c] *= factor[c];
}

template <class T> HWY_ATTR void forward(const AttentionForward& o, int64_t head, int64_t first) {
  const AttentionShape& g = o.g;
  const int64_t rows = std::min(kRows, g.l - first), kv = head / g.group;
  const T* q = o.q.data<T>() + (head * g.l + first) * g.e;
  const T* k = o.k.data<T>() + kv * g.s * g.e;
  const T* v = o.v.data<T>() + kv * g.s * g.ev;
  T* y = o.y.data<T>() + (head * g.l + first) * g.ev;
  T* log_sum = o.log_sum.data<T>() + head * g.l + first;
  const int64_t offset = mask_offset(g, head), end = g.causal ? std::min(g.s, first + rows) : g.s;
  const bool masked = o.mask.address != nullptr || g.causal;
  Tiles<T> tiles;
  Online<T> online[kRows];
  std::fill_n(online, rows, Online<T>{-std::numeric_limits<T>::infinity(), 0});
  std::fill_n(y, rows * g.ev, T(0));
  for (int64_t j = 0; j < end; j += kColumns) {
    const int64_t n = std::min(kColumns, end - j);
    serial_gemm(false, true, rows, n, g.e, q, g.e, k + j * g.e, g.e, tiles.scores, kColumns, false);
    for (int64_t r = 0; r < rows; ++r) {
      T* scores = tiles.scores + r * kColumns;
      const Run run{head, first + r, j, true, n};
      if (masked) mask_run(g, o.mask, offset, run, tiles.bias);
      const T again =
          online_row(n, static_cast<T>(g.scale), masked ? tiles.bias : nullptr, scores, online[r]);
      if (again != 1) multiply_row(g.ev, again, y + r * g.ev);
      if (g.threshold == 0) continue;
      dropout_run(g, o.draw, run, tiles.factor);
      multiply_row(n, tiles.factor, scores);
    }
    serial_gemm(false, false, rows, g.ev, n, tiles.scores, kColumns, v + j * g.ev, g.ev, y, g.ev,
                true);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const auto sum = static_cast<T>(online[r].sum);
    const bool none = sum == 0;
    log_sum[r] = none ? std::numeric_limits<T>::infinity() : online[r].largest + std::log(sum);
    if (none)
      std::fill_n(y + r * g.ev, g.ev, T(0));
    else
      multiply_row(g.ev, 1 / sum, y + r * g.ev);
  }
}

// scores become the weights that dropout leaves, and gradients, of these, become ds.
template <class T> HWY_ATTR void gradient_row(int64_t n, T scale, const T* bias, const T* factor,
                                              const T* log_sum, const T* delta, T* scores,
                                              T* gradients) {
  const Tag<T> d;
  const auto by = hn::Set(d, scale);
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    auto v = hn::Mul(hn::LoadU(d, scores + c), by);
    if (bias != nullptr) v = hn::Add(v, hn::LoadU(d, bias + c));
    auto p = power<T>(hn::Sub(v, hn::LoadU(d, log_sum + c)));
    auto dp = hn::LoadU(d, gradients + c);
    const auto weights = p;
    if (factor != nullptr) {
      const auto f = hn::LoadU(d, factor + c);
      p = hn::Mul(p, f);
      dp = hn::Mul(dp, f);
    }
    hn::StoreU(p, d, scores + c);
    hn::StoreU(hn::Mul(weights, hn::Sub(dp, hn::LoadU(d, delta + c))), d, gradients + c);
  }
}

// The weights and gradients of `rows` queries or keys from `row` on, of which a run begins at
// `column`, from tiles of products.
template <class T, class Op> HWY_ATTR void gradient_tile(const Op& o, int64_t head, bool keys,
                                                         int64_t row, int64_t rows, int64_t column,
                                                         int64_t columns, Tiles<T>& tiles) {
  const AttentionShape& g = o.g;
  const int64_t offset = mask_offset(g, head);
  const bool masked = o.mask.address != nullptr || g.causal;
  const T* log_sum = o.log_sum.template data<T>() + head * g.l;
  const T* delta = o.delta.template data<T>() + head * g.l;
  if (!keys) {
    std::copy_n(log_sum + column, columns, tiles.log_sum);
    std::copy_n(delta + column, columns, tiles.delta);
  }
  for (int64_t r = 0; r < rows; ++r) {
    Run run{head, column, row + r, false, columns};
    if (keys) {
      run = {head, row + r, column, true, columns};
      std::fill_n(tiles.log_sum, kColumns, log_sum[row + r]);
      std::fill_n(tiles.delta, kColumns, delta[row + r]);
    }
    if (masked) mask_run(g, o.mask, offset, run, tiles.bias);
    if (g.threshold > 0) dropout_run(g, o.draw, run, tiles.factor);
    gradient_row(columns, static_cast<T>(g.scale), masked ? tiles.bias : nullptr,
                 g.threshold > 0 ? tiles.factor : nullptr, tiles.log_sum, tiles.delta,
                 tiles.scores + r * kColumns, tiles.gradients + r * kColumns);
  }
}

template <class T>
HWY_ATTR void backward_queries(const AttentionBackwardQueries& o, int64_t head, int64_t first) {
  const AttentionShape& g = o.g;
  const int64_t rows = std::min(kRows, g.l - first), kv = head / g.group;
  const T* q = o.q.data<T>() + (head * g.l + first) * g.e;
  const T* dy = o.dy.data<T>() + (head * g.l + first) * g.ev;
  const T* k = o.k.data<T>() + kv * g.s * g.e;
  const T* v = o.v.data<T>() + kv * g.s * g.ev;
  T* dq = o.dq.data<T>() + (head * g.l + first) * g.e;
  T* ds = o.ds.data<T>();
  if (ds != nullptr) ds += (head * g.l + first) * g.s;
  const int64_t end = g.causal ? std::min(g.s, first + rows) : g.s;
  if (ds != nullptr && end < g.s) std::fill_n(ds, rows * g.s, T(0));
  std::fill_n(dq, rows * g.e, T(0));
  Tiles<T> tiles;
  for (int64_t j = 0; j < end; j += kColumns) {
    const int64_t n = std::min(kColumns, end - j);
    serial_gemm(false, true, rows, n, g.e, q, g.e, k + j * g.e, g.e, tiles.scores, kColumns, false);
    serial_gemm(false, true, rows, n, g.ev, dy, g.ev, v + j * g.ev, g.ev, tiles.gradients, kColumns,
                false);
    gradient_tile(o, head, true, first, rows, j, n, tiles);
    if (ds != nullptr) {
      for (int64_t r = 0; r < rows; ++r)
        std::copy_n(tiles.gradients + r * kColumns, n, ds + r * g.s + j);
    }
    serial_gemm(false, false, rows, g.e, n, tiles.gradients, kColumns, k + j * g.e, g.e, dq, g.e,
                true);
  }
  multiply_row(rows * g.e, static_cast<T>(g.scale), dq);
}

template <class T>
HWY_ATTR void backward_keys(const AttentionBackwardKeys& o, int64_t kv, int64_t first) {
  const AttentionShape& g = o.g;
  const int64_t rows = std::min(kRows, g.s - first);
  const T* k = o.k.data<T>() + (kv * g.s + first) * g.e;
  const T* v = o.v.data<T>() + (kv * g.s + first) * g.ev;
  T* dk = o.dk.data<T>() + (kv * g.s + first) * g.e;
  T* dv = o.dv.data<T>() + (kv * g.s + first) * g.ev;
  std::fill_n(dk, rows * g.e, T(0));
  std::fill_n(dv, rows * g.ev, T(0));
  Tiles<T> tiles;
  for (int64_t head = kv * g.group; head < (kv + 1) * g.group; ++head) {
    const T* q = o.q.data<T>() + head * g.l * g.e;
    const T* dy = o.dy.data<T>() + head * g.l * g.ev;
    for (int64_t i = g.causal ? first : 0; i < g.l; i += kColumns) {
      const int64_t n = std::min(kColumns, g.l - i);
      serial_gemm(false, true, rows, n, g.e, k, g.e, q + i * g.e, g.e, tiles.scores, kColumns,
                  false);
      serial_gemm(false, true, rows, n, g.ev, v, g.ev, dy + i * g.ev, g.ev, tiles.gradients,
                  kColumns, false);
      gradient_tile(o, head, false, first, rows, i, n, tiles);
      serial_gemm(false, false, rows, g.ev, n, tiles.scores, kColumns, dy + i * g.ev, g.ev, dv,
                  g.ev, true);
      serial_gemm(false, false, rows, g.e, n, tiles.gradients, kColumns, q + i * g.e, g.e, dk, g.e,
                  true);
    }
  }
  multiply_row(rows * g.e, static_cast<T>(g.scale), dk);
}

void ForwardTask(const AttentionForward& o, int64_t head, int64_t first) {
  with_floating(o.q, [&]<class T>() { forward<T>(o, head, first); });
}
void QueriesTask(const AttentionBackwardQueries& o, int64_t head, int64_t first) {
  with_floating(o.q, [&]<class T>() { backward_queries<T>(o, head, first); });
}
void KeysTask(const AttentionBackwardKeys& o, int64_t kv, int64_t first) {
  with_floating(o.q, [&]<class T>() { backward_keys<T>(o, kv, first); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(ForwardTask);
HWY_EXPORT(QueriesTask);
HWY_EXPORT(KeysTask);

// f(head, first) for every block of `length` queries or keys, against which there are `others`.
template <class F> void each_block(const AttentionShape& g, int64_t heads, int64_t length,
                                   int64_t others, const F& f) {
  const int64_t blocks = (length + kRows - 1) / kRows;
  const int64_t work = std::min(kRows, length) * others * (g.e + g.ev + 16) / 8;
  parallel_ranges(heads * blocks, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b / blocks, b % blocks * kRows);
  });
}

}  // namespace

void run(const Cpu&, const AttentionForward& o) {
  each_block(o.g, o.g.heads, o.g.l, o.g.s, [&](int64_t head, int64_t first) {
    HWY_DYNAMIC_DISPATCH(ForwardTask)(o, head, first);
  });
}

void run(const Cpu&, const AttentionDelta& o) {
  with_floating(o.y, [&]<class T>() {
    const int64_t rows = o.delta.numel(), n = rows > 0 ? o.y.numel() / rows : 0;
    const T *y = o.y.data<T>(), *dy = o.dy.data<T>();
    T* delta = o.delta.data<T>();
    parallel_ranges(rows, items_per_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double total = 0;
        for (int64_t c = 0; c < n; ++c)
          total += static_cast<double>(y[i * n + c]) * static_cast<double>(dy[i * n + c]);
        delta[i] = static_cast<T>(total);
      }
    });
  });
}

void run(const Cpu&, const AttentionBackwardQueries& o) {
  each_block(o.g, o.g.heads, o.g.l, o.g.s, [&](int64_t head, int64_t first) {
    HWY_DYNAMIC_DISPATCH(QueriesTask)(o, head, first);
  });
}

void run(const Cpu&, const AttentionBackwardKeys& o) {
  each_block(o.g, o.g.heads / std::max<int64_t>(o.g.group, 1), o.g.s, o.g.l * o.g.group,
             [&](int64_t kv, int64_t first) {
               HWY_DYNAMIC_DISPATCH(KeysTask)
               (o, kv, first);
             });
}

}  // namespace sinter
#endif  // HWY_ONCE
