// The losses of PointwiseLossKind, once for both backends: values and derivatives. The math
// functions are those that the caller sees: std:: on a CPU, the device's on a GPU.
#pragma once

#include <cmath>

#include "sinter/operators/pointwise_loss.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter::pointwise {

using std::abs;
using std::exp;
using std::log;
using std::log1p;

template <class T> SINTER_HD T sign(T d) { return d > T(0) ? T(1) : d < T(0) ? T(-1) : d; }

// Each has value(x, t) and the derivatives dx(x, t) and dt(x, t). A NaN stays one.
template <class T> struct Mse {
  T beta;
  SINTER_HD T value(T x, T t) const { return (x - t) * (x - t); }
  SINTER_HD T dx(T x, T t) const { return T(2) * (x - t); }
  SINTER_HD T dt(T x, T t) const { return -dx(x, t); }
};
template <class T> struct L1 {
  T beta;
  SINTER_HD T value(T x, T t) const { return abs(x - t); }
  SINTER_HD T dx(T x, T t) const { return sign(x - t); }
  SINTER_HD T dt(T x, T t) const { return -dx(x, t); }
};
template <class T> struct SmoothL1 {
  T beta;  // 0: L1
  SINTER_HD T value(T x, T t) const {
    const T d = abs(x - t);
    return d < beta ? T(0.5) * d * d / beta : d - T(0.5) * beta;
  }
  SINTER_HD T dx(T x, T t) const {
    const T d = x - t;
    return abs(d) < beta ? d / beta : sign(d);
  }
  SINTER_HD T dt(T x, T t) const { return -dx(x, t); }
};
template <class T> struct Huber {
  T beta;
  SINTER_HD T value(T x, T t) const {
    const T d = abs(x - t);
    return d <= beta ? T(0.5) * d * d : beta * (d - T(0.5) * beta);
  }
  SINTER_HD T dx(T x, T t) const {
    const T d = x - t;
    return abs(d) <= beta ? d : beta * sign(d);
  }
  SINTER_HD T dt(T x, T t) const { return -dx(x, t); }
};
template <class T> struct Bce {
  T beta;
  // log(1 + exp(-x)) without overflow: exp's argument is never positive.
  SINTER_HD T value(T x, T t) const {
    return (T(1) - t) * x + (x < T(0) ? -x : T(0)) + log1p(exp(-abs(x)));
  }
  SINTER_HD T dx(T x, T t) const {
    const T e = exp(-abs(x));
    return (x < T(0) ? e : T(1)) / (T(1) + e) - t;
  }
  SINTER_HD T dt(T x, T) const { return -x; }
};
template <class T> struct KlDiv {
  T beta;
  SINTER_HD T value(T x, T t) const { return (t == T(0) ? T(0) : t * log(t)) - t * x; }
  SINTER_HD T dx(T, T t) const { return -t; }
  // NaN at t = 0, as in PyTorch: t / t.
  SINTER_HD T dt(T x, T t) const { return (t == T(0) ? T(0) : log(t)) + t / t - x; }
};
template <class T> struct KlDivLog {
  T beta;
  SINTER_HD T value(T x, T t) const { return exp(t) * (t - x); }
  SINTER_HD T dx(T, T t) const { return -exp(t); }
  SINTER_HD T dt(T x, T t) const { return exp(t) * (t - x + T(1)); }
};

// f(loss) with the loss of that kind.
template <class T, class F>
decltype(auto) with_loss(op::PointwiseLossKind kind, double beta, F&& f) {
  const T b = static_cast<T>(beta);
  switch (kind) {
    case op::PointwiseLossKind::kL1:
      return f(L1<T>{b});
    case op::PointwiseLossKind::kSmoothL1:
      return f(SmoothL1<T>{b});
    case op::PointwiseLossKind::kHuber:
      return f(Huber<T>{b});
    case op::PointwiseLossKind::kBce:
      return f(Bce<T>{b});
    case op::PointwiseLossKind::kKlDiv:
      return f(KlDiv<T>{b});
    case op::PointwiseLossKind::kKlDivLog:
      return f(KlDivLog<T>{b});
    case op::PointwiseLossKind::kMse:
      break;
  }
  return f(Mse<T>{b});
}

}  // namespace sinter::pointwise
