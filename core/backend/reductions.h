// What every reduction does with a term and with an element's gradient: arithmetic that the
// backends share. How they walk the terms, on how many threads, is theirs.
#pragma once

#include <math.h>  // exp(float) by its plain name, as in CUDA

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "sinter/operators/reduce.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter::reductions {

// float is added up in double, integers in int64_t.
template <class T> using Total = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;
// The element type of sums and products.
template <class T> using Result = std::conditional_t<std::is_floating_point_v<T>, T, int64_t>;

template <class T> SINTER_HD bool is_nan(T v) {
  if constexpr (std::is_floating_point_v<T>)
    return v != v;
  else
    return false;
}

// Whether a is larger, or smaller, than b; a NaN is larger and smaller than every number. Without a
// branch, so that loops over it become vectors.
template <bool kLargest, class T> SINTER_HD bool beats(T a, T b) {
  const int stays = kLargest ? a <= b : a >= b, number = !is_nan(b);
  return (number & ~stays) != 0;
}
template <class T> SINTER_HD bool ties_with(T a, T b) { return a == b || (is_nan(a) && is_nan(b)); }
// Whether an element of value a and index i comes before one of b and j: of op::Sort.
template <class T> SINTER_HD bool precedes(bool descending, T a, int64_t i, T b, int64_t j) {
  if (ties_with(a, b)) return i < j;
  return descending ? beats<true>(a, b) : beats<true>(b, a);
}

// What loses against every term, or ties with it.
template <bool kLargest, class T> SINTER_HD constexpr T worst() {
  using Limits = std::numeric_limits<T>;
  if constexpr (Limits::has_infinity)
    return kLargest ? -Limits::infinity() : Limits::infinity();
  else
    return kLargest ? Limits::lowest() : Limits::max();
}

// ---- reductions ---------------------------------------------------------------------------------
//
// Of terms of type Term into an Acc: start, for terms of which the result's first is `first`
// (anything, if there are none); add term j, in ascending order within an Acc; merge two; finish
// result i.

template <class T> struct SumOfIntegers {
  using Term = T;
  using Acc = int64_t;
  int64_t* y;
  SINTER_HD Acc start(T) const { return 0; }
  SINTER_HD void add(Acc& a, T v, int64_t) const { merge(a, static_cast<int64_t>(v)); }
  SINTER_HD void merge(Acc& a, const Acc& b) const {
    a = static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const { y[i] = a; }
};

template <class T> struct Product {
  using Term = T;
  struct Acc {
    Total<T> factors;  // the product of those that are not 0
    int64_t zeros;
  };
  Result<T>*y, *others;
  SINTER_HD Acc start(T) const { return {1, 0}; }
  SINTER_HD void add(Acc& a, T v, int64_t) const {
    if (v == T(0))
      ++a.zeros;
    else
      a.factors = times(a.factors, static_cast<Total<T>>(v));
  }
  SINTER_HD void merge(Acc& a, const Acc& b) const {
    a.factors = times(a.factors, b.factors);
    a.zeros += b.zeros;
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const {
    // times(0, …): an infinity or a NaN beside a 0 is a NaN.
    y[i] = static_cast<Result<T>>(a.zeros > 0 ? times(0, a.factors) : a.factors);
    if (others) others[i] = a.zeros == 1 ? static_cast<Result<T>>(a.factors) : Result<T>(0);
  }
  SINTER_HD static Total<T> times(Total<T> a, Total<T> b) {
    if constexpr (std::is_floating_point_v<T>)
      return a * b;
    else
      return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  }
};

template <class T, bool kLargest> struct Best {
  using Term = T;
  using Acc = T;
  T* y;
  SINTER_HD Acc start(T) const { return worst<kLargest, T>(); }
  SINTER_HD void add(Acc& a, T v, int64_t) const { a = beats<kLargest>(v, a) ? v : a; }
  SINTER_HD void merge(Acc& a, const Acc& b) const { a = beats<kLargest>(b, a) ? b : a; }
  SINTER_HD void finish(int64_t i, const Acc& a) const { y[i] = a; }
};

// With the number of ties, and of |x| with kAbsolute.
template <class T, bool kLargest, bool kAbsolute = false> struct BestAndTies {
  using Term = T;
  struct Acc {
    T best;
    int64_t ties;
  };
  T* y;
  int64_t* ties;
  SINTER_HD Acc start(T) const { return {worst<kLargest, T>(), 0}; }
  SINTER_HD void add(Acc& a, T v, int64_t) const {
    if constexpr (kAbsolute) v = v < T(0) ? -v : v;
    merge(a, {v, 1});
  }
  SINTER_HD void merge(Acc& a, const Acc& b) const {
    if (beats<kLargest>(b.best, a.best))
      a = b;
    else if (ties_with(a.best, b.best))
      a.ties += b.ties;
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const {
    y[i] = a.best;
    if (ties) ties[i] = a.ties;
  }
};

template <class T, bool kLargest> struct BestAndPlace {
  using Term = T;
  struct Acc {
    T best;
    int64_t place;
  };
  int64_t* index;
  T* values;
  SINTER_HD Acc start(T) const {
    return {worst<kLargest, T>(), std::numeric_limits<int64_t>::max()};
  }
  SINTER_HD void add(Acc& a, T v, int64_t j) const { merge(a, {v, j}); }
  SINTER_HD void merge(Acc& a, const Acc& b) const {
    const bool better = beats<kLargest>(b.best, a.best);
    if (better || (ties_with(a.best, b.best) && b.place < a.place)) a = b;
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const {
    index[i] = a.place;
    if (values) values[i] = a.best;
  }
};

template <class T> struct Moments {
  using Term = T;
  struct Acc {
    double shift, sum, squares;  // of x - shift
  };
  double n, correction;
  bool root;
  T *y, *mean;
  SINTER_HD Acc start(T first) const { return {static_cast<double>(first), 0, 0}; }
  SINTER_HD void add(Acc& a, T v, int64_t) const {
    const double d = static_cast<double>(v) - a.shift;
    a.sum += d;
    a.squares += d * d;
  }
  SINTER_HD void merge(Acc& a, const Acc& b) const {  // of one shift
    a.sum += b.sum;
    a.squares += b.squares;
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const {
    const double off = a.sum / n, deviations = a.squares - a.sum * off;
    const double freedom = n - correction;
    // Rounding may leave less than nothing; a NaN stays one.
    double variance = (deviations < 0 ? 0 : deviations) / (freedom < 0 ? 0 : freedom);
    if (root) variance = sqrt(variance);
    y[i] = static_cast<T>(variance);
    if (mean) mean[i] = static_cast<T>(a.shift + off);
  }
};

enum class Power { kZero, kOne, kTwo, kOther };
template <class T, Power kPower> struct PowerNorm {
  using Term = T;
  using Acc = double;
  double p;
  T* y;
  SINTER_HD Acc start(T) const { return 0; }
  SINTER_HD void add(Acc& a, T x, int64_t) const {
    const double v = static_cast<double>(x);
    if constexpr (kPower == Power::kZero) a += v != 0 ? 1 : 0;
    if constexpr (kPower == Power::kOne) a += fabs(v);
    if constexpr (kPower == Power::kTwo) a += v * v;
    if constexpr (kPower == Power::kOther) a += pow(fabs(v), p);
  }
  SINTER_HD void merge(Acc& a, const Acc& b) const { a += b; }
  SINTER_HD void finish(int64_t i, const Acc& a) const {
    double norm = a;
    if constexpr (kPower == Power::kTwo) norm = sqrt(a);
    if constexpr (kPower == Power::kOther) norm = pow(a, 1 / p);
    y[i] = static_cast<T>(norm);
  }
};

template <class T> struct LogOfSum {
  using Term = T;
  struct Acc {
    T largest;
    double sum;  // of exp(x - largest)
  };
  T* y;
  SINTER_HD Acc start(T) const { return {worst<true, T>(), 0}; }
  SINTER_HD void add(Acc& a, T v, int64_t) const { merge(a, {v, is_nan(v) ? double{v} : 1.0}); }
  SINTER_HD void merge(Acc& a, const Acc& b) const {
    // Of equals first: the difference of two infinities is a NaN.
    if (b.largest == a.largest) {
      a.sum += b.sum;
    } else if (b.largest > a.largest) {
      a.sum = a.sum * static_cast<double>(exp(a.largest - b.largest)) + b.sum;
      a.largest = b.largest;
    } else {  // or b is a NaN
      a.sum += b.sum * static_cast<double>(exp(b.largest - a.largest));
    }
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const {
    y[i] = static_cast<T>(static_cast<double>(a.largest) + log(a.sum));
  }
};

template <class T, bool kAll> struct AllOrAnyOf {
  using Term = T;
  using Acc = uint8_t;
  uint8_t* y;
  SINTER_HD Acc start(T) const { return kAll; }
  SINTER_HD void add(Acc& a, T v, int64_t) const { merge(a, v != T(0)); }
  SINTER_HD void merge(Acc& a, const Acc& b) const {
    a = static_cast<uint8_t>(kAll ? a & b : a | b);
  }
  SINTER_HD void finish(int64_t i, const Acc& a) const { y[i] = a; }
};

// Calls fold(kept, reduced, x, reduction) for what `o` stands for.

template <class F> void visit(const op::SumIntegers& o, const F& fold) {
  with_any(o.x.dtype, [&]<class T>() {
    if constexpr (std::is_integral_v<T>)
      fold(o.kept, o.reduced, o.x.data<T>(), SumOfIntegers<T>{o.y.data<int64_t>()});
  });
}

template <class F> void visit(const op::Prod& o, const F& fold) {
  with_any(o.x.dtype, [&]<class T>() {
    fold(o.kept, o.reduced, o.x.data<T>(),
         Product<T>{o.y.data<Result<T>>(), o.others.data<Result<T>>()});
  });
}

// f.operator()<true>() or <false>().
template <class F> void with_flag(bool flag, const F& f) {
  if (flag)
    f.template operator()<true>();
  else
    f.template operator()<false>();
}

template <class F> void visit(const op::Extremum& o, const F& fold) {
  with_any(o.x.dtype, [&]<class T>() {
    with_flag(o.largest, [&]<bool kLargest>() {
      if (o.ties.address != nullptr)
        fold(o.kept, o.reduced, o.x.data<T>(),
             BestAndTies<T, kLargest>{o.y.data<T>(), o.ties.data<int64_t>()});
      else
        fold(o.kept, o.reduced, o.x.data<T>(), Best<T, kLargest>{o.y.data<T>()});
    });
  });
}

template <class F> void visit(const op::ArgExtremum& o, const F& fold) {
  with_any(o.x.dtype, [&]<class T>() {
    with_flag(o.largest, [&]<bool kLargest>() {
      fold(o.kept, o.reduced, o.x.data<T>(),
           BestAndPlace<T, kLargest>{o.index.data<int64_t>(), o.values.data<T>()});
    });
  });
}

template <class F> void visit(const op::Variance& o, const F& fold) {
  double n = 1;
  for (int d = 0; d < o.reduced.rank; ++d) n *= static_cast<double>(o.reduced.shape[d]);
  with_floating(o.x, [&]<class T>() {
    fold(o.kept, o.reduced, o.x.data<T>(),
         Moments<T>{n, o.correction, o.root, o.y.data<T>(), o.mean.data<T>()});
  });
}

template <class F> void visit(const op::Norm& o, const F& fold) {
  with_floating(o.x, [&]<class T>() {
    const T* x = o.x.data<T>();
    T* y = o.y.data<T>();
    if (std::isinf(o.p)) {
      with_flag(o.p > 0, [&]<bool kLargest>() {
        fold(o.kept, o.reduced, x, BestAndTies<T, kLargest, true>{y, o.ties.data<int64_t>()});
      });
    } else if (o.p == 0) {
      fold(o.kept, o.reduced, x, PowerNorm<T, Power::kZero>{o.p, y});
    } else if (o.p == 1) {
      fold(o.kept, o.reduced, x, PowerNorm<T, Power::kOne>{o.p, y});
    } else if (o.p == 2) {
      fold(o.kept, o.reduced, x, PowerNorm<T, Power::kTwo>{o.p, y});
    } else {
      fold(o.kept, o.reduced, x, PowerNorm<T, Power::kOther>{o.p, y});
    }
  });
}

template <class F> void visit(const op::LogSumExp& o, const F& fold) {
  with_floating(
      o.x, [&]<class T>() { fold(o.kept, o.reduced, o.x.data<T>(), LogOfSum<T>{o.y.data<T>()}); });
}

template <class F> void visit(const op::AllOrAny& o, const F& fold) {
  with_any(o.x.dtype, [&]<class T>() {
    with_flag(o.all, [&]<bool kAll>() {
      fold(o.kept, o.reduced, o.x.data<T>(), AllOrAnyOf<T, kAll>{o.y.data<uint8_t>()});
    });
  });
}

// ---- gradients ----------------------------------------------------------------------------------
//
// The gradient of element i, a term of result r.

template <class T> struct ProductGradient {
  const T *x, *y, *others, *dy;
  SINTER_HD T operator()(int64_t i, int64_t r) const {
    return x[i] == T(0) ? dy[r] * others[r] : dy[r] * (y[r] / x[i]);
  }
};

template <class T> struct TiesGradient {
  const T *x, *y;
  const int64_t* ties;
  const T* dy;
  bool nan_ties;
  SINTER_HD T operator()(int64_t i, int64_t r) const {
    if (is_nan(y[r]) && !nan_ties) return y[r];
    return ties_with(x[i], y[r]) ? dy[r] / static_cast<T>(ties[r]) : T(0);
  }
};

template <class T, bool kRoot> struct VarianceGradient {
  const T *x, *mean, *y, *dy;
  T scale;
  SINTER_HD T operator()(int64_t i, int64_t r) const {
    const T slope = scale * (x[i] - mean[r]);
    if constexpr (!kRoot) return dy[r] * slope;
    return y[r] == T(0) ? T(0) : dy[r] / (2 * y[r]) * slope;
  }
};

template <class T> SINTER_HD T sign(T v) { return v > T(0) ? T(1) : v < T(0) ? T(-1) : T(0); }

template <class T, Power kPower> struct NormGradient {
  const T *x, *y, *dy;
  T p;
  SINTER_HD T operator()(int64_t i, int64_t r) const {
    if constexpr (kPower == Power::kOne) return dy[r] * sign(x[i]);
    if (y[r] == T(0)) return T(0);
    if constexpr (kPower == Power::kTwo) return dy[r] * (x[i] / y[r]);
    if (x[i] == T(0)) return T(0);
    return dy[r] * (x[i] < T(0) ? T(-1) : T(1)) * pow(fabs(x[i]) / y[r], p - 1);
  }
};

// Of the norms of infinite p.
template <class T> struct LargestGradient {
  const T *x, *y;
  const int64_t* ties;
  const T* dy;
  SINTER_HD T operator()(int64_t i, int64_t r) const {
    return fabs(x[i]) == y[r] ? dy[r] / static_cast<T>(ties[r]) * sign(x[i]) : T(0);
  }
};

template <class T> struct LogOfSumGradient {
  const T *x, *y, *dy;
  SINTER_HD T operator()(int64_t i, int64_t r) const { return dy[r] * exp(x[i] - y[r]); }
};

// Calls each(rows, dx, gradient) for what `o` stands for.

template <class F> void visit(const op::ProdBackward& o, const F& each) {
  with_floating(o.x, [&]<class T>() {
    each(o.rows, o.dx,
         ProductGradient<T>{o.x.data<T>(), o.y.data<T>(), o.others.data<T>(), o.dy.data<T>()});
  });
}

template <class F> void visit(const op::ExtremumBackward& o, const F& each) {
  with_floating(o.x, [&]<class T>() {
    each(o.rows, o.dx,
         TiesGradient<T>{o.x.data<T>(), o.y.data<T>(), o.ties.data<int64_t>(), o.dy.data<T>(),
                         o.nan_ties});
  });
}

template <class F> void visit(const op::VarianceBackward& o, const F& each) {
  with_floating(o.x, [&]<class T>() {
    with_flag(o.root, [&]<bool kRoot>() {
      each(o.rows, o.dx,
           VarianceGradient<T, kRoot>{o.x.data<T>(), o.mean.data<T>(), o.y.data<T>(),
                                      o.dy.data<T>(), static_cast<T>(o.scale)});
    });
  });
}

template <class F> void visit(const op::NormBackward& o, const F& each) {
  with_floating(o.x, [&]<class T>() {
    const T *x = o.x.data<T>(), *y = o.y.data<T>(), *dy = o.dy.data<T>();
    const T p = static_cast<T>(o.p);
    if (std::isinf(o.p))
      each(o.rows, o.dx, LargestGradient<T>{x, y, o.ties.data<int64_t>(), dy});
    else if (o.p == 1)
      each(o.rows, o.dx, NormGradient<T, Power::kOne>{x, y, dy, p});
    else if (o.p == 2)
      each(o.rows, o.dx, NormGradient<T, Power::kTwo>{x, y, dy, p});
    else
      each(o.rows, o.dx, NormGradient<T, Power::kOther>{x, y, dy, p});
  });
}

template <class F> void visit(const op::LogSumExpBackward& o, const F& each) {
  with_floating(o.x, [&]<class T>() {
    each(o.rows, o.dx, LogOfSumGradient<T>{o.x.data<T>(), o.y.data<T>(), o.dy.data<T>()});
  });
}

}  // namespace sinter::reductions
