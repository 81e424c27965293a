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

template <class T> void cross_entropy(const CrossEntropyShape& g, const T* logits,
                                      const int64_t* labels, T* loss, T* dlogits) {
  for (int64_t i = 0; i < g.n; ++i) {
    if (labels[i] < 0 || labels[i] >= g.classes) {
      throw ValueError(str("cross_entropy: labels[", i, "] = ", labels[i],
                           ", expected 0 <= label < ", g.classes));
    }
  }
  const double smooth = g.label_smoothing / static_cast<double>(g.classes);
  const T anywhere = static_cast<T>(smooth), at_label = static_cast<T>(1 - g.label_smoothing);
  const T factor = static_cast<T>(g.mean ? 1 / static_cast<double>(g.n) : 1);
  const int64_t grain = rows_per_grain(g.classes), chunks = (g.n + grain - 1) / grain;
  const Scratch<double> partial(chunks);
  parallel_ranges(g.n, grain, [&](int64_t begin, int64_t end) {
    const LocalScratch<T> powers(g.classes);
    double chunk_loss = 0;
    for (int64_t i = begin; i < end; ++i) {
      const T* x = logits + i * g.classes;
      T largest = x[0];
      for (int64_t k = 1; k < g.classes; ++k) largest = std::max(largest, x[k]);
      // Shifted by the maximum so that exp cannot overflow; the powers serve the gradient too.
      const T total = sum_of<T>(
          g.classes, [&](int64_t k) { return powers.get()[k] = std::exp(x[k] - largest); });
      const T log_total = std::log(total);
      chunk_loss -= (1 - g.label_smoothing) * (x[labels[i]] - largest - log_total);
      if (smooth != 0) {
        for (int64_t k = 0; k < g.classes; ++k) chunk_loss -= smooth * (x[k] - largest - log_total);
      }
      if (dlogits == nullptr) continue;
      for (int64_t k = 0; k < g.classes; ++k) {
        const T q = k == labels[i] ? at_label + anywhere : anywhere;
        dlogits[i * g.classes + k] = factor * (powers.get()[k] / total - q);
      }
    }
    partial.get()[begin / grain] = chunk_loss;
  });
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial.get()[chunk];
  *loss = static_cast<T>(g.mean ? total / static_cast<double>(g.n) : total);
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
    cross_entropy(o.g, o.logits.data<T>(), o.labels.data<int64_t>(), o.loss.data<T>(),
                  o.dlogits.data<T>());
  });
}

void run(const Cpu&, const CountCorrect& o) {
  with_floating(o.logits, [&]<class T>() {
    count_correct(o.logits.shape[0], o.logits.shape[1], o.logits.data<T>(),
                  o.labels.data<int64_t>(), o.correct.data<int64_t>());
  });
}

}  // namespace sinter
