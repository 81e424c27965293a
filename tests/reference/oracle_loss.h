// Losses as their definitions say, in float64: values and gradients of the terms. Each term stands
// alone; reduction is applied by the cases.
#pragma once

#include <cmath>
#include <vector>

#include "sinter/reduction.h"
#include "tests/reference/oracle.h"

namespace sinter::app::oracle {

struct LabelLoss {
  double smoothing = 0;
  std::vector<double> weight = {};  // of the classes, or none
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::kMean;
  bool of_log_p = false;  // nll_loss: x are log-probabilities already
};
// x: (n, classes, …)  labels: as x without classes. Returns the loss and d(loss . dy)/dx, dy being
// of the loss's shape.
inline std::pair<Array, Array> label_loss(const Array& x, const std::vector<int64_t>& labels,
                                          const LabelLoss& p, const Array& dy) {
  const int64_t n = x.shape[0], classes = x.shape[1], inner = count(x.shape) / (n * classes);
  const auto w = [&](int64_t k) { return p.weight.empty() ? 1. : p.weight[size_t(k)]; };
  double divisor = 0;
  for (const int64_t label : labels) divisor += label == p.ignore_index ? 0 : w(label);
  if (p.reduction != Reduction::kMean) divisor = 1;
  Array terms{{}, {}}, dx = filled(x.shape);
  double total = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < inner; ++j) {
      const auto at = [&](int64_t k) { return size_t((i * classes + k) * inner + j); };
      const auto place = size_t(i * inner + j);
      const int64_t label = labels[place];
      double term = 0;
      if (label != p.ignore_index) {
        double largest = -INFINITY, sum = 0;
        for (int64_t k = 0; k < classes; ++k) largest = std::max(largest, x.v[at(k)]);
        for (int64_t k = 0; k < classes; ++k) sum += std::exp(x.v[at(k)] - largest);
        const double log_sum = p.of_log_p ? 0 : largest + std::log(sum);
        const double upstream = dy.v[p.reduction == Reduction::kNone ? place : 0] / divisor;
        std::vector<double> q(size_t(classes), 0.);
        double all = 0;
        for (int64_t k = 0; k < classes; ++k) {
          q[size_t(k)] =
              w(k) * ((k == label ? 1 - p.smoothing : 0) + p.smoothing / double(classes));
          all += q[size_t(k)];
          term -= q[size_t(k)] * (x.v[at(k)] - log_sum);
        }
        for (int64_t k = 0; k < classes; ++k)
          dx.v[at(k)] =
              upstream * ((p.of_log_p ? 0 : all * std::exp(x.v[at(k)] - log_sum)) - q[size_t(k)]);
      }
      terms.v.push_back(term);
      total += term;
    }
  if (p.reduction != Reduction::kNone) return {{{}, {total / divisor}}, dx};
  terms.shape = x.shape;
  terms.shape.erase(terms.shape.begin() + 1);
  return {terms, dx};
}

}  // namespace sinter::app::oracle
