// Normalization by its definition.
#pragma once

#include <vector>

#include "tests/reference/oracle.h"

namespace sinter::app::oracle {

// x with a number for each element of which statistic and which weight is its own.
struct Norm {
  Array x, weight, bias, dy;
  std::vector<size_t> statistic = {}, channel = {};
  size_t statistics = 0;
  double eps = 1e-5;
  bool centred = true;
  std::vector<double> mean = {}, var = {};  // given ones; empty: x's
};
struct Normalized {
  std::vector<double> mean, var;  // biased
  Array y, dx, dweight, dbias;
};
inline Normalized normalize(const Norm& n) {
  const size_t count = n.x.v.size();
  // Means, in more than float64: added up one by one, thousands of terms would round more than the
  // kernels do.
  const auto means = [&](const std::function<double(size_t)>& term) {
    std::vector<long double> total(n.statistics), terms(n.statistics);
    for (size_t i = 0; i < count; ++i) {
      total[n.statistic[i]] += term(i);
      ++terms[n.statistic[i]];
    }
    std::vector<double> result;
    for (size_t s = 0; s < n.statistics; ++s)
      result.push_back(static_cast<double>(total[s] / terms[s]));
    return result;
  };
  Normalized r{n.mean, n.var, n.x, n.x, filled(n.weight.shape), filled(n.bias.shape)};
  const bool given = !n.mean.empty();
  if (!given) {
    r.mean =
        n.centred ? means([&](size_t i) { return n.x.v[i]; }) : std::vector<double>(n.statistics);
    r.var = means([&](size_t i) { return std::pow(n.x.v[i] - r.mean[n.statistic[i]], 2); });
  }
  const auto rstd = [&](size_t i) { return 1 / std::sqrt(r.var[n.statistic[i]] + n.eps); };
  const auto z = [&](size_t i) { return (n.x.v[i] - r.mean[n.statistic[i]]) * rstd(i); };
  const auto d = [&](size_t i) { return n.dy.v[i] * n.weight.v[n.channel[i]]; };
  for (size_t i = 0; i < count; ++i) {
    r.y.v[i] = z(i) * n.weight.v[n.channel[i]] + n.bias.v[n.channel[i]];
    r.dweight.v[n.channel[i]] += n.dy.v[i] * z(i);
    r.dbias.v[n.channel[i]] += n.dy.v[i];
  }
  std::vector<double> d_mean(n.statistics), dz_mean(n.statistics);
  if (!given) {
    if (n.centred) d_mean = means(d);
    dz_mean = means([&](size_t i) { return d(i) * z(i); });
  }
  for (size_t i = 0; i < count; ++i)
    r.dx.v[i] = rstd(i) * (d(i) - d_mean[n.statistic[i]] - z(i) * dz_mean[n.statistic[i]]);
  return r;
}

}  // namespace sinter::app::oracle
