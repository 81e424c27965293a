// Cross-entropy and accuracy. Sums over a row are taken in order, in blocks, the loss row by row.
#include "sinter/operators/loss.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/base/detail.h"
#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/softmax.h"
#include "sinter/check.h"

namespace sinter {
using namespace op;
namespace {

// Throws ValueError, in the name of `op`, for a label that is neither a class nor ignored. Labels
// and their tensor's shape: (n, inner).
void check_labels(const char* op, const int64_t* labels, int64_t n, int64_t inner, int64_t classes,
                  int64_t ignore_index) {
  for (int64_t p = 0; p < n * inner; ++p) {
    if (labels[p] == ignore_index || (labels[p] >= 0 && labels[p] < classes)) continue;
    const std::string place = inner == 1 ? str(p) : str(p / inner, ", ", p % inner);
    throw ValueError(str(op, ": labels[", place, "] = ", labels[p], ", expected 0 <= label < ",
                         classes, " or ignore_index ", ignore_index));
  }
}

// What the mean divides by: the labels' weights.
template <class T>
double weight_of_labels(const CrossEntropyShape& g, const int64_t* labels, const T* weight) {
  double total = 0;
  for (int64_t p = 0; p < g.n * g.inner; ++p)
    if (labels[p] != g.ignore_index) total += weight ? static_cast<double>(weight[labels[p]]) : 1;
  return total;
}

template <class T> void cross_entropy(const CrossEntropyShape& g, const T* logits,
                                      const int64_t* labels, const T* weight, T* loss, T* dlogits) {
  check_labels("cross_entropy", labels, g.n, g.inner, g.classes, g.ignore_index);
  const bool mean = g.reduction == Reduction::kMean;
  const double divisor = mean ? weight_of_labels(g, labels, weight) : 1;
  const double smooth = g.label_smoothing / static_cast<double>(g.classes);
  const T anywhere = static_cast<T>(smooth), at_label = static_cast<T>(1 - g.label_smoothing);
  const T factor = static_cast<T>(1 / divisor);
  T weight_of_all = 0;
  for (int64_t k = 0; weight && k < g.classes; ++k) weight_of_all += weight[k];
  const int64_t positions = g.n * g.inner, grain = rows_per_grain(g.classes);
  const int64_t chunks = (positions + grain - 1) / grain;
  const Scratch<double> partial(chunks);
  parallel_ranges(positions, grain, [&](int64_t begin, int64_t end) {
    const LocalScratch<T> powers(g.classes);
    double chunk_loss = 0;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p / g.inner * g.classes * g.inner + p % g.inner, label = labels[p];
      if (label == g.ignore_index) {
        if (g.reduction == Reduction::kNone) loss[p] = 0;
        for (int64_t k = 0; dlogits && k < g.classes; ++k) dlogits[first + k * g.inner] = 0;
        continue;
      }
      const auto x = [&](int64_t k) { return logits[first + k * g.inner]; };
      T largest = x(0);
      for (int64_t k = 1; k < g.classes; ++k) largest = std::max(largest, x(k));
      // Shifted by the maximum so that exp cannot overflow; the powers serve the gradient too.
      const T total = sum_of<T>(
          g.classes, [&](int64_t k) { return powers.get()[k] = std::exp(x(k) - largest); });
      const T log_total = std::log(total), of_label = weight ? weight[label] : T(1);
      double term = 0;
      // Terms without weight are left out: 0 * -infinity would be NaN.
      if (at_label > 0)
        term -= (1 - g.label_smoothing) * (x(label) - largest - log_total) * of_label;
      for (int64_t k = 0; smooth != 0 && k < g.classes; ++k)
        term -= smooth * (x(k) - largest - log_total) * (weight ? weight[k] : T(1));
      if (g.reduction == Reduction::kNone) loss[p] = static_cast<T>(term);
      chunk_loss += term;
      if (dlogits == nullptr) continue;
      // The sum over k of q_k, which is 1 without weights.
      const T of_all = weight ? at_label * of_label + anywhere * weight_of_all : T(1);
      for (int64_t k = 0; k < g.classes; ++k) {
        const T share = k == label ? at_label + anywhere : anywhere;
        const T q = !weight      ? share
                    : k == label ? at_label * of_label + anywhere * of_label
                                 : anywhere * weight[k];
        dlogits[first + k * g.inner] = factor * (of_all * (powers.get()[k] / total) - q);
      }
    }
    partial.get()[begin / grain] = chunk_loss;
  });
  if (g.reduction == Reduction::kNone) return;
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial.get()[chunk];
  *loss = static_cast<T>(total / divisor);
}

template <class T> void nll_loss(const NllLossShape& g, const T* log_p, const int64_t* labels,
                                 const T* weight, T* loss, T* of_label) {
  check_labels("nll_loss", labels, g.n, g.inner, g.classes, g.ignore_index);
  parallel_ranges(g.n * g.inner, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const bool counts = labels[p] != g.ignore_index;
      of_label[p] = !counts ? T(0) : weight ? weight[labels[p]] : T(1);
      const int64_t first = p / g.inner * g.classes * g.inner + p % g.inner;
      loss[p] = counts ? -of_label[p] * log_p[first + labels[p] * g.inner] : T(0);
    }
  });
}

template <class T> void nll_loss_backward(const NllLossShape& g, const T* dloss,
                                          const int64_t* labels, const T* weight, T* dlog_p) {
  const int64_t plane = g.classes * g.inner;
  parallel_ranges(g.n, items_per_grain(plane), [&](int64_t begin, int64_t end) {
    std::fill(dlog_p + begin * plane, dlog_p + end * plane, T(0));
    for (int64_t p = begin * g.inner; p < end * g.inner; ++p) {
      if (labels[p] == g.ignore_index) continue;
      const int64_t first = p / g.inner * plane + p % g.inner;
      dlog_p[first + labels[p] * g.inner] = -(weight ? weight[labels[p]] : T(1)) * dloss[p];
    }
  });
}

template <class T> void count_correct(int64_t n, int64_t classes, const T* logits,
                                      const int64_t* labels, int64_t* correct) {
  std::atomic<int64_t> total{0};  // integers: any order of addition gives the same count
  parallel_ranges(n, items_per_grain(classes), [&](int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      const T* row = logits + i * classes;
      int64_t best = 0;  // the first maximum; a NaN counts as one, and nothing is above it
      for (int64_t k = 1; k < classes && row[best] == row[best]; ++k) {
        if (!(row[k] <= row[best])) best = k;
      }
      count += best == labels[i];
    }
    total += count;
  });
  *correct += total;
}

}  // namespace

void run(const Cpu&, const CrossEntropy& o) {
  with_floating(o.logits, [&]<class T>() {
    cross_entropy(o.g, o.logits.data<T>(), o.labels.data<int64_t>(), o.weight.data<T>(),
                  o.loss.data<T>(), o.dlogits.data<T>());
  });
}

void run(const Cpu&, const NllLossForward& o) {
  with_floating(o.log_p, [&]<class T>() {
    nll_loss(o.g, o.log_p.data<T>(), o.labels.data<int64_t>(), o.weight.data<T>(), o.loss.data<T>(),
             o.of_label.data<T>());
  });
}

void run(const Cpu&, const NllLossBackward& o) {
  with_floating(o.dloss, [&]<class T>() {
    nll_loss_backward(o.g, o.dloss.data<T>(), o.labels.data<int64_t>(), o.weight.data<T>(),
                      o.dlog_p.data<T>());
  });
}

void run(const Cpu&, const CountCorrect& o) {
  with_floating(o.logits, [&]<class T>() {
    count_correct(o.logits.shape[0], o.logits.shape[1], o.logits.data<T>(),
                  o.labels.data<int64_t>(), o.correct.data<int64_t>());
  });
}

}  // namespace sinter
