// Softmax and its logarithm. Rows are small and exp dominates; sums over a row are taken in order,
// in blocks.
#include "kernels_cpu/softmax.h"

#include <algorithm>
#include <cmath>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/softmax.h"

namespace sinter {
using namespace op;
namespace {

// One distribution of `classes` elements `stride` apart: y = x - log(sum(exp(x))), shifted by the
// maximum so that exp cannot overflow.
template <class T> void log_softmax_row(int64_t classes, int64_t stride, const T* x, T* y) {
  T largest = x[0];
  for (int64_t k = 1; k < classes; ++k) largest = std::max(largest, x[k * stride]);
  // All -inf, or +inf: leave the arithmetic below to make the NaN that has no better value.
  const T log_total =
      std::log(sum_of<T>(classes, [&](int64_t k) { return std::exp(x[k * stride] - largest); }));
  for (int64_t k = 0; k < classes; ++k) y[k * stride] = x[k * stride] - largest - log_total;
}

// y = exp(x) / sum(exp(x)), shifted likewise.
template <class T> void softmax_row(int64_t classes, int64_t stride, const T* x, T* y) {
  T largest = x[0];
  for (int64_t k = 1; k < classes; ++k) largest = std::max(largest, x[k * stride]);
  const T total = sum_of<T>(
      classes, [&](int64_t k) { return y[k * stride] = std::exp(x[k * stride] - largest); });
  for (int64_t k = 0; k < classes; ++k) y[k * stride] /= total;
}

template <class F> void each_row(const SoftmaxShape& g, const F& f) {
  if (g.classes == 0) return;
  const int64_t rows = g.outer * g.inner;
  parallel_ranges(rows, rows_per_grain(g.classes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i / g.inner * g.classes * g.inner + i % g.inner);
  });
}

template <class T> void softmax_backward(const SoftmaxShape& g, const T* y, const T* dy, T* dx) {
  each_row(g, [&](int64_t at) {
    const auto place = [&](int64_t k) { return at + k * g.inner; };
    const T dot = sum_of<T>(g.classes, [&](int64_t k) { return y[place(k)] * dy[place(k)]; });
    for (int64_t k = 0; k < g.classes; ++k) dx[place(k)] = y[place(k)] * (dy[place(k)] - dot);
  });
}

template <class T>
void log_softmax_backward(const SoftmaxShape& g, const T* y, const T* dy, T* dx) {
  each_row(g, [&](int64_t at) {
    const T total = sum_of<T>(g.classes, [&](int64_t k) { return dy[at + k * g.inner]; });
    for (int64_t k = 0; k < g.classes; ++k) {
      const int64_t i = at + k * g.inner;
      dx[i] = dy[i] - std::exp(y[i]) * total;
    }
  });
}

}  // namespace

void run(const Cpu&, const SoftmaxForward& o) {
  with_floating(o.x, [&]<class T>() {
    const T* x = o.x.data<T>();
    T* y = o.y.data<T>();
    each_row(o.g, [&](int64_t at) { softmax_row(o.g.classes, o.g.inner, x + at, y + at); });
  });
}

void run(const Cpu&, const SoftmaxBackward& o) {
  with_floating(o.y, [&]<class T>() {
    softmax_backward(o.g, o.y.data<T>(), o.dy.data<T>(), o.dx.data<T>());
  });
}

void run(const Cpu&, const LogSoftmaxForward& o) {
  with_floating(o.x, [&]<class T>() {
    const T* x = o.x.data<T>();
    T* y = o.y.data<T>();
    each_row(o.g, [&](int64_t at) { log_softmax_row(o.g.classes, o.g.inner, x + at, y + at); });
  });
}

void run(const Cpu&, const LogSoftmaxBackward& o) {
  with_floating(o.y, [&]<class T>() {
    log_softmax_backward(o.g, o.y.data<T>(), o.dy.data<T>(), o.dx.data<T>());
  });
}

}  // namespace sinter
