#include "tests/reference/oracle_pool.h"

#include "core/base/detail.h"

namespace sinter::app {

namespace {

using oracle::Array;
using oracle::Sizes;

// Windows along one direction: their elements inside x, and what a mean counts.
struct Window {
  std::vector<int64_t> elements;
  int64_t counted;
};
struct Axis {
  int64_t kernel = 1, stride = 1, pad = 0, dilation = 1;
};
std::vector<Window> windows(int64_t size, const Axis& a, bool ceil, bool count_pad) {
  std::vector<Window> all;
  for (int64_t first = -a.pad;; first += a.stride) {
    const int64_t last = first + (a.kernel - 1) * a.dilation;
    // What hangs over the end is less than a stride, and begins before the right padding.
    if (last >= size + a.pad + (ceil ? a.stride - 1 : 0) || (ceil && first >= size)) break;
    Window w{{}, 0};
    for (int64_t k = first; k <= last; k += a.dilation) {
      if (k >= 0 && k < size) w.elements.push_back(k);
      if (count_pad ? k < size + a.pad : k >= 0 && k < size) ++w.counted;
    }
    all.push_back(w);
  }
  return all;
}
std::vector<Window> parts(int64_t size, int64_t n) {
  std::vector<Window> all;
  for (int64_t i = 0; i < n; ++i) {
    Window w{{}, 0};
    for (int64_t k = 0; k < size; ++k)
      if (k * n > i * size - n && k * n < (i + 1) * size) w.elements.push_back(k);
    w.counted = static_cast<int64_t>(w.elements.size());
    all.push_back(w);
  }
  return all;
}

// planes: x as (planes, rows, columns); signals are planes of one row.
OpCase pool_case(const std::string& name, const Sizes& x_shape, const Sizes& planes,
                 const std::vector<Window>& rows, const std::vector<Window>& columns, bool max,
                 double divisor, const Op& op, const std::string& how) {
  const Array x = oracle::ramp(x_shape, 1);
  Sizes y_shape = x_shape;
  y_shape.back() = static_cast<int64_t>(columns.size());
  if (planes[1] > 1 || rows.size() > 1) *(y_shape.end() - 2) = static_cast<int64_t>(rows.size());
  const Array dy = oracle::noise(y_shape, 2);
  OpCase c{name, {x}, op, oracle::filled(y_shape), dy, {oracle::filled(x_shape)}};
  double most = 0;
  size_t out = 0;
  for (int64_t plane = 0; plane < planes[0]; ++plane)
    for (const Window& r : rows)
      for (const Window& w : columns) {
        double total = 0;
        size_t best = 0;
        bool any = false;
        const double by = divisor != 0
                              ? divisor
                              : static_cast<double>(r.counted) * static_cast<double>(w.counted);
        for (const int64_t i : r.elements)
          for (const int64_t j : w.elements) {
            const auto at = static_cast<size_t>((plane * planes[1] + i) * planes[2] + j);
            total += x.v[at];
            if (!max) c.grads[0].v[at] += dy.v[out] / by;
            if (!any || x.v[at] > x.v[best]) best = at;
            any = true;
          }
        if (max) c.grads[0].v[best] += dy.v[out];
        c.y.v[out++] = max ? x.v[best] : total / by;
        most = std::max(most, static_cast<double>(r.elements.size() * w.elements.size()));
      }
  c.y_terms = c.terms.emplace_back(most);
  c.how = how;
  return c;
}

}  // namespace

void add_pool_cases(std::vector<VerifyCase>& cases) {
  const auto add = [&](const OpCase& c) {
    cases.push_back({c.what, Reference::kOracle, [c] {
                       return PreparedCheck{c.how, [c](TensorOptions o, Mode mode) {
                                              return compare_with_oracle(c, o, mode);
                                            }};
                     }});
  };
  struct Case {
    Sizes x;
    int64_t kh, kw, sh, sw, ph, pw, dh, dw;
    bool ceil, count_pad;
    int divisor;
  };
  const Case images[] = {{{2, 3, 5, 6}, 2, 2, 2, 2, 0, 0, 1, 1, true, true, 0},
                         {{3, 5, 6}, 2, 3, 2, 2, 1, 1, 1, 1, true, false, 0},
                         {{2, 2, 7, 19}, 3, 3, 2, 2, 1, 1, 1, 1, false, false, 0},
                         {{1, 2, 9, 23}, 3, 3, 1, 1, 1, 1, 1, 2, false, true, 3},
                         {{2, 1, 9, 40}, 2, 3, 1, 2, 1, 1, 3, 2, true, true, -2},
                         {{2, 2, 6, 6}, 1, 1, 2, 2, 0, 0, 1, 1, true, true, 0},
                         {{1, 3, 2, 3}, 3, 4, 2, 3, 1, 2, 1, 1, true, true, 0},
                         {{1, 1, 3, 4}, 4, 5, 3, 2, 0, 0, 1, 1, true, false, 0}};
  for (const Case& c : images) {
    const auto whole = [](int64_t n) { return static_cast<int>(n); };
    const Pair kernel(whole(c.kh), whole(c.kw)), stride(whole(c.sh), whole(c.sw)),
        pad(whole(c.ph), whole(c.pw)), dilation(whole(c.dh), whole(c.dw));
    const int64_t h = c.x[c.x.size() - 2], w = c.x.back();
    const Sizes planes{oracle::count(c.x) / (h * w), h, w};
    const std::string how =
        str("x ", Shape(c.x), ", kernel (", c.kh, ", ", c.kw, "), stride (", c.sh, ", ", c.sw,
            "), padding (", c.ph, ", ", c.pw, ")", c.ceil ? ", ceil_mode" : "");
    const Axis down{c.kh, c.sh, c.ph, c.dh}, across{c.kw, c.sw, c.pw, c.dw};
    const MaxPool2dOptions max{stride, pad, dilation, c.ceil};
    for (const bool indices : {false, true}) {
      add(pool_case(
          indices ? "max_pool2d_with_indices" : "max_pool2d", c.x, planes,
          windows(h, down, c.ceil, true), windows(w, across, c.ceil, true), true, 0,
          [=](const std::vector<Tensor>& in) {
            return indices ? max_pool2d_with_indices(in[0], kernel, max).values
                           : max_pool2d(in[0], kernel, max);
          },
          str(how, ", dilation (", c.dh, ", ", c.dw, ")")));
    }
    const Axis rows{c.kh, c.sh, c.ph, 1}, columns{c.kw, c.sw, c.pw, 1};
    AvgPool2dOptions avg{stride, pad, c.ceil, c.count_pad, {}};
    if (c.divisor != 0) avg.divisor_override = c.divisor;
    add(pool_case(
        "avg_pool2d", c.x, planes, windows(h, rows, c.ceil, c.count_pad),
        windows(w, columns, c.ceil, c.count_pad), false, c.divisor,
        [=](const std::vector<Tensor>& in) { return avg_pool2d(in[0], kernel, avg); }, how));
    // Each row a signal.
    const Sizes signals{planes[0] * h, 1, w};
    add(pool_case(
        "max_pool1d", c.x.size() == 3 ? c.x : Sizes{c.x[0] * c.x[1], h, w}, signals,
        windows(1, {}, false, true), windows(w, across, c.ceil, true), true, 0,
        [=](const std::vector<Tensor>& in) {
          return max_pool1d(in[0], kernel.w, {stride.w, pad.w, dilation.w, c.ceil});
        },
        "1-d, " + how));
    add(pool_case(
        "avg_pool1d", c.x.size() == 3 ? c.x : Sizes{c.x[0] * c.x[1], h, w}, signals,
        windows(1, {}, false, true), windows(w, columns, c.ceil, c.count_pad), false, 0,
        [=](const std::vector<Tensor>& in) {
          return avg_pool1d(in[0], kernel.w, {stride.w, pad.w, c.ceil, c.count_pad});
        },
        "1-d, " + how));
  }
  struct Adaptive {
    Sizes x;
    int oh, ow;
  };
  for (const Adaptive& c : {Adaptive{{2, 3, 8, 8}, 5, 7},
                            {{3, 4, 3}, 1, 1},
                            {{1, 2, 6, 9}, 3, 3},
                            {{2, 2, 3, 4}, 5, 6},
                            {{1, 2, 7, 70}, 4, 33}}) {
    const int64_t h = c.x[c.x.size() - 2], w = c.x.back();
    const Sizes planes{oracle::count(c.x) / (h * w), h, w}, signals{planes[0] * h, 1, w};
    const std::string how = str("x ", Shape(c.x), " to (", c.oh, ", ", c.ow, ")");
    const Sizes rows = c.x.size() == 3 ? c.x : Sizes{c.x[0] * c.x[1], h, w};
    for (const bool max : {false, true}) {
      add(pool_case(
          max ? "adaptive_max_pool2d" : "adaptive_avg_pool2d", c.x, planes, parts(h, c.oh),
          parts(w, c.ow), max, 0,
          [=](const std::vector<Tensor>& in) {
            return (max ? adaptive_max_pool2d : adaptive_avg_pool2d)(in[0], Pair(c.oh, c.ow));
          },
          how));
      add(pool_case(
          max ? "adaptive_max_pool1d" : "adaptive_avg_pool1d", rows, signals, parts(1, 1),
          parts(w, c.ow), max, 0,
          [=](const std::vector<Tensor>& in) {
            return (max ? adaptive_max_pool1d : adaptive_avg_pool1d)(in[0], c.ow);
          },
          "1-d, " + how));
    }
  }
}

}  // namespace sinter::app
