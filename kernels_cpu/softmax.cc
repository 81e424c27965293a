// Softmax and its logarithm, along rows or down columns, a vector at a time. Sums over a row go to
// kWays ways by the place of a term, and in blocks, whatever the vectors' width.
#include "kernels_cpu/softmax.h"

#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/softmax.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>
// Behind highway.h.
#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/softmax.h"

#ifndef SINTER_KERNELS_CPU_SOFTMAX_ONCE
#define SINTER_KERNELS_CPU_SOFTMAX_ONCE
namespace sinter {
namespace {

// Columns that are worked on together; ways of a row's sum; terms of a block.
constexpr int64_t kStrip = 64, kWays = 16, kSumBlock = 32 * kWays;

// A row or a strip of columns. For `backward`, in is y and dy is there.
template <class T> struct SoftmaxWork {
  int64_t classes;
  int64_t inner;  // columns: elements from one class to the next
  int64_t width;  // columns
  const T *in, *dy;
  T* out;
};

}  // namespace
}  // namespace sinter
#endif

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class T> using Tag = hn::CappedTag<T, 16>;
template <class T> constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(Tag<T>()));

// The first `count` lanes; `fill` in the others.
template <class T> HWY_ATTR hn::Vec<Tag<T>> load(const T* p, int64_t count, T fill = 0) {
  const Tag<T> d;
  if (count >= kLanes<T>) return hn::LoadU(d, p);
  HWY_ALIGN T part[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) part[i] = i < count ? p[i] : fill;
  return hn::Load(d, part);
}
template <class T> HWY_ATTR void store(hn::Vec<Tag<T>> v, int64_t count, T* p) {
  const Tag<T> d;
  if (count >= kLanes<T>) return hn::StoreU(v, d, p);
  HWY_ALIGN T part[kLanes<T>];
  hn::Store(v, d, part);
  for (int64_t i = 0; i < count; ++i) p[i] = part[i];
}

// Of numbers up to 0. Highway's makes 0 of a NaN.
template <class T> HWY_ATTR hn::Vec<Tag<T>> power(hn::Vec<Tag<T>> v) {
  return hn::IfThenElse(hn::Eq(v, v), hn::Exp(Tag<T>(), v), v);
}

// The sum of the lanes of term(i, count) for i = 0, kLanes, … below n, of which `count` are terms
// and the others 0.
template <class T, class Term> HWY_ATTR T sum_row(int64_t n, const Term& term) {
  constexpr int64_t kVectors = kWays / kLanes<T>;
  const Tag<T> d;
  double total = 0;
  for (int64_t i = 0; i < n;) {
    const int64_t end = std::min(n, i + kSumBlock);
    hn::Vec<Tag<T>> way[kVectors];
    for (int64_t k = 0; k < kVectors; ++k) way[k] = hn::Zero(d);
    while (i < end) {
      for (int64_t k = 0; k < kVectors && i < end; ++k, i += kLanes<T>) {
        way[k] = hn::Add(way[k], term(i, std::min(kLanes<T>, end - i)));
      }
    }
    HWY_ALIGN T sums[kWays];
    for (int64_t k = 0; k < kVectors; ++k) hn::Store(way[k], d, sums + k * kLanes<T>);
    for (int64_t half = kWays / 2; half > 0; half /= 2) {
      for (int64_t k = 0; k < half; ++k) sums[k] += sums[k + half];
    }
    total += static_cast<double>(sums[0]);
  }
  return static_cast<T>(total);
}

// f(i, count) for i = 0, kLanes, … below n.
template <class T, class F> HWY_ATTR void each_vector(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kLanes<T>) f(i, std::min(kLanes<T>, n - i));
}

template <class T> HWY_ATTR T largest_of(const T* x, int64_t n) {
  const Tag<T> d;
  const T lowest = -std::numeric_limits<T>::infinity();
  auto largest = hn::Set(d, lowest);
  each_vector<T>(n, [&](int64_t i, int64_t count)
                        HWY_ATTR { largest = hn::Max(load(x + i, count, lowest), largest); });
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// The sum of exp(x - largest), whose terms go to `powers` unless that is null. A NaN, or an
// infinity that is the largest, makes it a NaN, and so all results.
template <class T> HWY_ATTR T sum_of_powers(const T* x, int64_t n, T largest, T* powers) {
  const auto shift = hn::Set(Tag<T>(), largest);
  return sum_row<T>(n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto v = load(x + i, count, -std::numeric_limits<T>::infinity());
    auto p = power<T>(hn::Sub(v, shift));
    if (powers != nullptr) store(p, count, powers + i);
    // What is not a term would be a NaN if the largest is -infinity.
    if (count < kLanes<T>)
      p = hn::IfThenElseZero(hn::FirstN(Tag<T>(), static_cast<size_t>(count)), p);
    return p;
  });
}

template <bool kLog, class T> HWY_ATTR void row(const SoftmaxWork<T>& w) {
  const Tag<T> d;
  const T largest = largest_of(w.in, w.classes);
  const T total = sum_of_powers(w.in, w.classes, largest, kLog ? nullptr : w.out);
  const auto shift = hn::Set(d, largest), log_total = hn::Set(d, std::log(total));
  const auto all = hn::Set(d, total);
  each_vector<T>(w.classes, [&](int64_t i, int64_t count) HWY_ATTR {
    if constexpr (kLog) {
      store(hn::Sub(hn::Sub(load(w.in + i, count), shift), log_total), count, w.out + i);
    } else {
      store(hn::Div(load(w.out + i, count), all), count, w.out + i);
    }
  });
}

// The gradient of an element, sum being that over the row of dy, or of y dy.
template <bool kLog, class T>
HWY_ATTR hn::Vec<Tag<T>> gradient(hn::Vec<Tag<T>> y, hn::Vec<Tag<T>> dy, hn::Vec<Tag<T>> sum) {
  if constexpr (kLog) {
    return hn::Sub(dy, hn::Mul(power<T>(y), sum));
  } else {
    return hn::Mul(y, hn::Sub(dy, sum));
  }
}

template <bool kLog, class T> HWY_ATTR void row_backward(const SoftmaxWork<T>& w) {
  const T total = sum_row<T>(w.classes, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto dy = load(w.dy + i, count);
    return kLog ? dy : hn::Mul(load(w.in + i, count), dy);
  });
  const auto sum = hn::Set(Tag<T>(), total);
  each_vector<T>(w.classes, [&](int64_t i, int64_t count) HWY_ATTR {
    store(gradient<kLog, T>(load(w.in + i, count), load(w.dy + i, count), sum), count, w.out + i);
  });
}

// ---- columns: a vector holds neighbours of one class --------------------------------------------

// f(at, c, count) for the vectors of each class of a strip: element and column that they begin at.
template <class T, class F>
HWY_ATTR void each_class(const SoftmaxWork<T>& w, int64_t begin, int64_t end, const F& f) {
  for (int64_t k = begin; k < end; ++k) {
    for (int64_t c = 0; c < w.width; c += kLanes<T>) {
      f(k * w.inner + c, c, std::min(kLanes<T>, w.width - c));
    }
  }
}

// sum[c] = the sum of the terms of column c, in blocks.
template <class T, class Term>
HWY_ATTR void sum_columns(const SoftmaxWork<T>& w, const Term& term, T* sum) {
  const Tag<T> d;
  double total[kStrip] = {};
  for (int64_t k = 0; k < w.classes; k += 32) {
    HWY_ALIGN T block[kStrip] = {};
    each_class(w, k, std::min(w.classes, k + 32),
               [&](int64_t at, int64_t c, int64_t count) HWY_ATTR {
                 hn::Store(hn::Add(hn::Load(d, block + c), term(at, c, count)), d, block + c);
               });
    for (int64_t c = 0; c < w.width; ++c) total[c] += static_cast<double>(block[c]);
  }
  for (int64_t c = 0; c < w.width; ++c) sum[c] = static_cast<T>(total[c]);
}

template <bool kLog, class T> HWY_ATTR void columns(const SoftmaxWork<T>& w) {
  const Tag<T> d;
  HWY_ALIGN T largest[kStrip], total[kStrip] = {};
  std::fill_n(largest, kStrip, -std::numeric_limits<T>::infinity());
  each_class(w, 0, w.classes, [&](int64_t at, int64_t c, int64_t count) HWY_ATTR {
    hn::Store(hn::Max(load(w.in + at, count), hn::Load(d, largest + c)), d, largest + c);
  });
  sum_columns(
      w,
      [&](int64_t at, int64_t c, int64_t count) HWY_ATTR {
        const auto p = power<T>(hn::Sub(load(w.in + at, count), hn::Load(d, largest + c)));
        if constexpr (!kLog) store(p, count, w.out + at);
        return p;
      },
      total);
  if constexpr (kLog) {
    for (int64_t c = 0; c < w.width; ++c) total[c] = std::log(total[c]);
  }
  each_class(w, 0, w.classes, [&](int64_t at, int64_t c, int64_t count) HWY_ATTR {
    const auto all = hn::Load(d, total + c);
    if constexpr (kLog) {
      const auto shift = hn::Load(d, largest + c);
      store(hn::Sub(hn::Sub(load(w.in + at, count), shift), all), count, w.out + at);
    } else {
      store(hn::Div(load(w.out + at, count), all), count, w.out + at);
    }
  });
}

template <bool kLog, class T> HWY_ATTR void columns_backward(const SoftmaxWork<T>& w) {
  const Tag<T> d;
  HWY_ALIGN T sum[kStrip] = {};
  sum_columns(
      w,
      [&](int64_t at, int64_t, int64_t count) HWY_ATTR {
        const auto dy = load(w.dy + at, count);
        return kLog ? dy : hn::Mul(load(w.in + at, count), dy);
      },
      sum);
  each_class(w, 0, w.classes, [&](int64_t at, int64_t c, int64_t count) HWY_ATTR {
    store(gradient<kLog, T>(load(w.in + at, count), load(w.dy + at, count), hn::Load(d, sum + c)),
          count, w.out + at);
  });
}

template <bool kLog, class T> void softmax(const SoftmaxWork<T>& w) {
  const bool down = w.inner > 1;
  if (w.dy == nullptr) {
    down ? columns<kLog>(w) : row<kLog>(w);
  } else {
    down ? columns_backward<kLog>(w) : row_backward<kLog>(w);
  }
}

void SoftmaxFloat(const SoftmaxWork<float>& w) { softmax<false>(w); }
void SoftmaxDouble(const SoftmaxWork<double>& w) { softmax<false>(w); }
void LogSoftmaxFloat(const SoftmaxWork<float>& w) { softmax<true>(w); }
void LogSoftmaxDouble(const SoftmaxWork<double>& w) { softmax<true>(w); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(SoftmaxFloat);
HWY_EXPORT(SoftmaxDouble);
HWY_EXPORT(LogSoftmaxFloat);
HWY_EXPORT(LogSoftmaxDouble);

template <bool kLog, class T> void softmax(const SoftmaxWork<T>& w) {
  if constexpr (std::is_same_v<T, float>) {
    kLog ? HWY_DYNAMIC_DISPATCH(LogSoftmaxFloat)(w) : HWY_DYNAMIC_DISPATCH(SoftmaxFloat)(w);
  } else {
    kLog ? HWY_DYNAMIC_DISPATCH(LogSoftmaxDouble)(w) : HWY_DYNAMIC_DISPATCH(SoftmaxDouble)(w);
  }
}

// dy: null for the forward pass.
template <bool kLog, class T>
void softmax(const SoftmaxShape& g, const T* in, const T* dy, T* out) {
  if (g.classes == 0) return;
  // A row is a strip of one column.
  const int64_t width = std::min(g.inner, kStrip),
                strips = width ? (g.inner + width - 1) / width : 0;
  parallel_ranges(
      g.outer * strips, rows_per_grain(g.classes * std::max<int64_t>(1, width)),
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t column = i % strips * width;
          const int64_t at = i / strips * g.classes * g.inner + column;
          softmax<kLog>(SoftmaxWork<T>{g.classes, g.inner, std::min(width, g.inner - column),
                                       in + at, dy ? dy + at : nullptr, out + at});
        }
      });
}

template <bool kLog, class Op> void forward(const Op& o) {
  with_floating(o.x, [&]<class T>() {
    softmax<kLog, T>(o.g, o.x.template data<T>(), nullptr, o.y.template data<T>());
  });
}

template <bool kLog, class Op> void backward(const Op& o) {
  with_floating(o.y, [&]<class T>() {
    softmax<kLog, T>(o.g, o.y.template data<T>(), o.dy.template data<T>(), o.dx.template data<T>());
  });
}

}  // namespace

void run(const Cpu&, const SoftmaxForward& o) { forward<false>(o); }
void run(const Cpu&, const SoftmaxBackward& o) { backward<false>(o); }
void run(const Cpu&, const LogSoftmaxForward& o) { forward<true>(o); }
void run(const Cpu&, const LogSoftmaxBackward& o) { backward<true>(o); }

}  // namespace sinter
#endif  // HWY_ONCE
