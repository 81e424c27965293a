#include "tests/reference/oracle_reduce.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "core/base/detail.h"

namespace sinter::app {

using oracle::Array;
using oracle::filled;
using oracle::Sizes;

namespace {

double sum_of(const Row& x) {
  long double total = 0;  // so that tens of thousands of terms leave a double its digits
  for (const double v : x) total += v;
  return static_cast<double>(total);
}

Row each(const Row& x, const std::function<double(double)>& f) {
  Row y;
  for (const double v : x) y.push_back(f(v));
  return y;
}

double variance(const Row& x, double correction) {
  const auto n = static_cast<double>(x.size());
  const double mean = sum_of(x) / n;
  return sum_of(each(x, [&](double v) { return (v - mean) * (v - mean); })) / (n - correction);
}

Row variance_slope(const Row& x, double correction) {
  const auto n = static_cast<double>(x.size());
  const double mean = sum_of(x) / n;
  return each(x, [&](double v) { return 2 * (v - mean) / (n - correction); });
}

ReductionOracle extremum(const std::string& name, Tensor (*op)(const Tensor&, const Dims&, bool),
                         double sign) {
  const auto best = [sign](const Row& x) {
    double largest = sign * x[0];
    for (const double v : x) largest = std::max(largest, sign * v);
    return sign * largest;
  };
  return {name,
          op,
          best,
          [best](const Row& x) {
            const double largest = best(x);
            return each(x, [&](double v) { return v == largest ? 1.0 : 0.0; });
          },
          0,
          ReductionOracle::Inputs::kRamp};
}

double norm_of(const Row& x, double p) {
  if (p == 0)
    return static_cast<double>(std::count_if(x.begin(), x.end(), [](double v) { return v != 0; }));
  if (std::isinf(p)) {
    const Row sizes = each(x, [](double v) { return std::abs(v); });
    return p > 0 ? *std::max_element(sizes.begin(), sizes.end())
                 : *std::min_element(sizes.begin(), sizes.end());
  }
  return std::pow(sum_of(each(x, [&](double v) { return std::pow(std::abs(v), p); })), 1 / p);
}

Row norm_slope(const Row& x, double p) {
  const double y = norm_of(x, p);
  return each(x, [&](double v) {
    if (p == 0) return 0.0;
    const double sign = v < 0 ? -1 : 1;
    if (std::isinf(p)) return std::abs(v) == y ? sign : 0;
    return sign * std::pow(std::abs(v) / y, p - 1);
  });
}

Row softmax_of(const Row& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  const Row powers = each(x, [&](double v) { return std::exp(v - largest); });
  const double total = sum_of(powers);
  return each(powers, [&](double v) { return v / total; });
}

// Places of the elements in ascending order of their values, which are distinct.
std::vector<size_t> order_of(const Row& x, bool descending) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return descending ? x[a] > x[b] : x[a] < x[b]; });
  return order;
}

// The first k elements in that order (all, if there are fewer).
AlongOracle chosen(const std::string& name, bool descending, size_t k,
                   const std::function<Tensor(const Tensor&, int)>& op) {
  const auto order = [=](const Row& x) {
    std::vector<size_t> places = order_of(x, descending);
    places.resize(std::min(k, places.size()));
    return places;
  };
  return {name,
          op,
          [order](const Row& x) {
            Row y;
            for (const size_t place : order(x)) y.push_back(x[place]);
            return y;
          },
          [order](const Row& x, const Row& dy) {
            Row dx(x.size());
            const std::vector<size_t> places = order(x);
            for (size_t j = 0; j < places.size(); ++j) dx[places[j]] = dy[j];
            return dx;
          },
          -1,  // exactly
          true};
}

}  // namespace

std::vector<ReductionOracle> reduction_oracles() {
  std::vector<ReductionOracle> all;
  all.push_back({"prod", prod,
                 [](const Row& x) {
                   double y = 1;
                   for (const double v : x) y *= v;
                   return y;
                 },
                 [](const Row& x) {
                   Row slope(x.size(), 1);
                   double y = 1;
                   for (const double v : x) y *= v;
                   for (size_t i = 0; i < x.size(); ++i) slope[i] = y / x[i];
                   return slope;
                 },
                 8, ReductionOracle::Inputs::kNearOne});
  for (const double correction : {0.0, 1.0, 0.5}) {
    const auto options = [=](bool keepdim) { return VarOptions{correction, keepdim}; };
    all.push_back({str("var, correction ", correction),
                   [=](const Tensor& x, const std::vector<int>& dims, bool keepdim) {
                     return var(x, dims, options(keepdim));
                   },
                   [=](const Row& x) { return variance(x, correction); },
                   [=](const Row& x) { return variance_slope(x, correction); }});
    all.push_back({str("std, correction ", correction),
                   [=](const Tensor& x, const std::vector<int>& dims, bool keepdim) {
                     return sinter::std(x, dims, options(keepdim));
                   },
                   [=](const Row& x) { return std::sqrt(variance(x, correction)); },
                   [=](const Row& x) {
                     const double y = std::sqrt(variance(x, correction));
                     return each(variance_slope(x, correction),
                                 [&](double v) { return y == 0 ? 0 : v / (2 * y); });
                   }});
  }
  all.push_back(extremum("amax", amax, 1));
  all.push_back(extremum("amin", amin, -1));
  all.push_back(
      {"logsumexp", logsumexp,
       [](const Row& x) { return std::log(sum_of(each(x, [](double v) { return std::exp(v); }))); },
       softmax_of});
  const double inf = std::numeric_limits<double>::infinity();
  for (const double p : {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -1.0, -2.0, inf, -inf})
    all.push_back({str("norm, p ", p),
                   [=](const Tensor& x, const std::vector<int>& dims, bool keepdim) {
                     return norm(x, p, dims, keepdim);
                   },
                   [=](const Row& x) { return norm_of(x, p); },
                   [=](const Row& x) { return norm_slope(x, p); }, 16,
                   ReductionOracle::Inputs::kRamp});
  return all;
}

OpCase reduction_case(const ReductionOracle& r, const Sizes& shape, const std::vector<int>& dims,
                      bool keepdim) {
  const int rank = static_cast<int>(shape.size());
  std::vector<bool> reduced(shape.size(), dims.empty());
  for (const int d : dims)
    if (rank > 0) reduced[static_cast<size_t>(d < 0 ? d + rank : d)] = true;
  Sizes ones = shape, kept;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (reduced[d])
      ones[d] = 1;
    else
      kept.push_back(shape[d]);
  }
  Array x =
      r.inputs == ReductionOracle::Inputs::kRamp ? oracle::ramp(shape, 1) : oracle::noise(shape, 1);
  if (r.inputs == ReductionOracle::Inputs::kNearOne)
    for (double& v : x.v) v = static_cast<float>(1 + v / 64);
  Array y = filled(ones), dx = filled(shape);
  const Array dy = oracle::noise(ones, 2);
  std::vector<std::vector<size_t>> members(y.v.size());
  oracle::for_each_index(shape, [&](const Sizes& at) {
    members[oracle::offset(ones, at)].push_back(oracle::offset(shape, at));
  });
  for (size_t i = 0; i < members.size(); ++i) {
    Row row;
    for (const size_t m : members[i]) row.push_back(x.v[m]);
    y.v[i] = r.value(row);
    const Row slope = r.slope(row);
    for (size_t j = 0; j < row.size(); ++j) dx.v[members[i][j]] = dy.v[i] * slope[j];
  }
  const Sizes& result = keepdim ? ones : kept;
  double terms = r.terms;
  if (r.inputs == ReductionOracle::Inputs::kNearOne && !members.empty())
    terms += static_cast<double>(members[0].size());  // every factor rounds
  y.shape = result;
  return {r.name,
          {x},
          [=](const std::vector<Tensor>& in) { return r.op(in[0], dims, keepdim); },
          y,
          {result, dy.v},
          {dx},
          terms,
          {8 + terms},
          str("x ", Shape(shape), ", ", dims.size(), " dims", keepdim ? ", kept" : "")};
}

std::vector<AlongOracle> along_oracles() {
  std::vector<AlongOracle> all;
  all.push_back({"cumsum", cumsum,
                 [](const Row& x) {
                   Row y(x.size());
                   std::partial_sum(x.begin(), x.end(), y.begin());
                   return y;
                 },
                 [](const Row&, const Row& dy) {
                   Row dx(dy.size());
                   std::partial_sum(dy.rbegin(), dy.rend(), dx.rbegin());
                   return dx;
                 }});
  all.push_back({"softmax", softmax, softmax_of, [](const Row& x, const Row& dy) {
                   const Row y = softmax_of(x);
                   double dot = 0;
                   for (size_t k = 0; k < y.size(); ++k) dot += y[k] * dy[k];
                   Row dx(y.size());
                   for (size_t k = 0; k < y.size(); ++k) dx[k] = y[k] * (dy[k] - dot);
                   return dx;
                 }});
  all.push_back(
      {"log_softmax", log_softmax,
       [](const Row& x) { return each(softmax_of(x), [](double v) { return std::log(v); }); },
       [](const Row& x, const Row& dy) {
         const Row p = softmax_of(x);
         const double total = sum_of(dy);
         Row dx(p.size());
         for (size_t k = 0; k < p.size(); ++k) dx[k] = dy[k] - p[k] * total;
         return dx;
       },
       0.1});
  const size_t everything = std::numeric_limits<size_t>::max();
  for (const bool descending : {false, true}) {
    const char* const way = descending ? ", descending" : ", ascending";
    all.push_back(chosen(str("sort", way), descending, everything, [=](const Tensor& x, int dim) {
      return sort(x, dim, descending).values;
    }));
    all.push_back(chosen(str("topk", way), descending, 2, [=](const Tensor& x, int dim) {
      const int64_t n = x.rank() > 0 ? x.size(dim) : 1;
      return topk(x, std::min<int64_t>(2, n), dim, descending).values;
    }));
  }
  all.push_back(
      chosen("max", true, 1, [](const Tensor& x, int dim) { return max(x, dim, true).values; }));
  all.push_back(
      chosen("min", false, 1, [](const Tensor& x, int dim) { return min(x, dim, true).values; }));
  return all;
}

OpCase along_case(const AlongOracle& a, const Sizes& shape, int dim) {
  const size_t d = static_cast<size_t>(dim < 0 ? dim + static_cast<int>(shape.size()) : dim);
  const Array x = a.ramp ? oracle::ramp(shape, 1)
                         : oracle::map(oracle::noise(shape, 1), [](double v) { return 4 * v; });
  const auto row_of = [&](const Array& from, Sizes at) {
    Row row;
    for (at[d] = 0; at[d] < from.shape[d]; ++at[d])
      row.push_back(from.v[oracle::offset(from.shape, at)]);
    return row;
  };
  const auto put = [&](Array& to, Sizes at, const Row& row) {
    for (at[d] = 0; at[d] < to.shape[d]; ++at[d])
      to.v[oracle::offset(to.shape, at)] = row[static_cast<size_t>(at[d])];
  };
  Sizes rows = shape, result = shape;
  rows[d] = 1;
  result[d] = static_cast<int64_t>(a.value(Row(static_cast<size_t>(shape[d]))).size());
  Array y = filled(result), dx = filled(shape);
  const Array dy = oracle::noise(result, 2);
  oracle::for_each_index(rows, [&](const Sizes& at) {
    const Row row = row_of(x, at);
    put(y, at, a.value(row));
    put(dx, at, a.gradient(row, row_of(dy, at)));
  });
  const double terms = 4 + a.terms_each * static_cast<double>(shape[d]);
  const bool exact = a.terms_each < 0;
  return {a.name,
          {x},
          [=](const std::vector<Tensor>& in) { return a.op(in[0], dim); },
          y,
          dy,
          {dx},
          exact ? 0 : terms,
          {exact ? 0 : terms + 8},
          str("x ", Shape(shape), ", dim ", dim)};
}

void add_reduction_cases(std::vector<VerifyCase>& cases) {
  const auto add = [&](const std::string& op, const std::function<OpCase()>& make) {
    cases.push_back({op.substr(0, op.find(',')), Reference::kOracle, [make] {
                       auto c = std::make_shared<const OpCase>(make());
                       return PreparedCheck{str(c->what, ": ", c->how),
                                            [c](TensorOptions options, Mode mode) {
                                              return compare_with_oracle(*c, options, mode);
                                            }};
                     }});
  };
  struct Over {
    Sizes x;
    std::vector<int> dims;
  };
  for (const ReductionOracle& r : reduction_oracles()) {
    bool keepdim = false;  // alternating
    for (const Over& o : {Over{{5}, {}},
                          {{3, 4, 5}, {1}},
                          {{3, 4, 5}, {0, -1}},
                          {{33, 70}, {0}},
                          {{5, 1025}, {1}},
                          {{2, 33, 40}, {1}},
                          {{40001}, {}}}) {
      add(r.name, [=] { return reduction_case(r, o.x, o.dims, keepdim); });
      keepdim = !keepdim;
    }
  }
  for (const AlongOracle& a : along_oracles()) {
    if (a.name == "log_softmax") continue;  // has cases with the losses
    for (const auto& [shape, dim] : {std::pair<Sizes, int>{{5}, 0},
                                     {{3, 4, 5}, 1},
                                     {{3, 4, 5}, -3},
                                     {{3, 257}, 1},
                                     {{257, 3}, 0},
                                     {{2, 2500, 3}, 1}})
      add(a.name, [=, shape = shape, dim = dim] { return along_case(a, shape, dim); });
  }
}

}  // namespace sinter::app
