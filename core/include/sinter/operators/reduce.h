// Reductions, cumulative sums and order along a dimension.
#pragma once

#include "sinter/operators/elementwise.h"

namespace sinter {
namespace op {

// y[i] = factor * sum over j of x[kept(i) + reduced(j)], i running over `kept` in row-major order.
// float terms are added in blocks, and the blocks in double: however many there are, a sum carries
// the float rounding of a block.
struct Sum {
  static constexpr const char* name = "sum";
  Strided kept, reduced;
  double factor = 1;
  In x;
  Out y;
  void each(auto&& f) {
    f("kept", kept), f("reduced", reduced), f("factor", factor), f("x", x), f("y", y);
  }
};

// y[i] = the sum over s of partial[s * stride + first + i]. partial: (slices, stride).
struct SumSlices {
  static constexpr const char* name = "sum_slices";
  int64_t first = 0;
  In partial;
  Out y;
  void each(auto&& f) { f("first", first), f("partial", partial), f("y", y); }
};

// All reductions below run over the terms x[kept(i) + reduced(j)] of result i, as Sum does; float
// terms are added in double. A NaN counts as the maximum and as the minimum.
//
// Their derivatives are element by element: `rows` is read over x's shape and says which result an
// element is a term of.

// x: any integer dtype  y: int64, modulo 2^64.
struct SumIntegers {
  static constexpr const char* name = "sum_integers";
  Strided kept, reduced;
  In x;
  Out y;
  void each(auto&& f) { f("kept", kept), f("reduced", reduced), f("x", x), f("y", y); }
};

// x: any dtype  y: x's if floating, else int64. others, floating only and optional: the product of
// the factors other than 0 where exactly one is 0, else 0: the derivative at a factor of 0.
struct Prod {
  static constexpr const char* name = "prod";
  Strided kept, reduced;
  In x;
  Out y;
  OptionalOut others;
  void each(auto&& f) {
    f("kept", kept), f("reduced", reduced), f("x", x), f("y", y), f("others", others);
  }
};
struct ProdBackward {
  static constexpr const char* name = "prod_backward";
  Strided rows;
  In x, y, others, dy;
  Out dx;
  void each(auto&& f) {
    f("rows", rows), f("x", x), f("y", y), f("others", others), f("dy", dy), f("dx", dx);
  }
};

// The largest term, or the smallest, of at least one. x, y: one dtype, any. ties (int64, optional):
// how many terms are equal to it.
struct Extremum {
  static constexpr const char* name = "extremum";
  bool largest = true;
  Strided kept, reduced;
  In x;
  Out y;
  OptionalOut ties;
  void each(auto&& f) {
    f("largest", largest), f("kept", kept), f("reduced", reduced), f("x", x), f("y", y);
    f("ties", ties);
  }
};
// The gradient is divided evenly among the ties. Where y is a NaN: among the NaNs with nan_ties;
// otherwise all of the row's gradient is NaN.
struct ExtremumBackward {
  static constexpr const char* name = "extremum_backward";
  Strided rows;
  bool nan_ties = false;
  In x, y, ties, dy;
  Out dx;
  void each(auto&& f) {
    f("rows", rows), f("nan_ties", nan_ties), f("x", x), f("y", y), f("ties", ties), f("dy", dy);
    f("dx", dx);
  }
};

// index[i] (int64): the first j whose term is the largest, or the smallest; of at least one.
// values (optional): that term. x: any dtype.
struct ArgExtremum {
  static constexpr const char* name = "arg_extremum";
  bool largest = true;
  Strided kept, reduced;
  In x;
  Out index;
  OptionalOut values;
  void each(auto&& f) {
    f("largest", largest), f("kept", kept), f("reduced", reduced), f("x", x), f("index", index);
    f("values", values);
  }
};

// y = sum of (x - mean)^2 / max(0, n - correction) over n terms, with `root` its square root. In
// one pass: sums of x - s and of (x - s)^2, s being the first term (Chan, Golub and LeVeque,
// "Algorithms for computing the sample variance", 1983), in double. As s is a term itself, at most
// n of a double's units in the last place are lost, and some units unless s lies far outside.
struct Variance {
  static constexpr const char* name = "variance";
  double correction = 1;
  bool root = false;
  Strided kept, reduced;
  In x;
  Out y;
  OptionalOut mean;
  void each(auto&& f) {
    f("correction", correction), f("root", root), f("kept", kept), f("reduced", reduced);
    f("x", x), f("y", y), f("mean", mean);
  }
};
// dx = dy * scale * (x - mean); with `root`, that divided by 2 y, and 0 where y is 0. scale:
// 2 / (n - correction).
struct VarianceBackward {
  static constexpr const char* name = "variance_backward";
  Strided rows;
  double scale = 0;
  bool root = false;
  In x, mean, y, dy;  // y: with root
  Out dx;
  void each(auto&& f) {
    f("rows", rows), f("scale", scale), f("root", root), f("x", x), f("mean", mean), f("y", y);
    f("dy", dy), f("dx", dx);
  }
};

// y = (sum of |x|^p)^(1 / p); for p = 0 the count of terms that are not 0, for infinite p the
// largest or the smallest |x|, of which there is at least one. ties: of infinite p, as Extremum's.
struct Norm {
  static constexpr const char* name = "norm";
  double p = 2;
  Strided kept, reduced;
  In x;
  Out y;
  OptionalOut ties;
  void each(auto&& f) {
    f("p", p), f("kept", kept), f("reduced", reduced), f("x", x), f("y", y), f("ties", ties);
  }
};
// dx = dy * sign(x) (|x| / y)^(p - 1), 0 where x or y is 0; for infinite p the gradient is divided
// evenly among the ties. p is not 0. ties: of infinite p.
struct NormBackward {
  static constexpr const char* name = "norm_backward";
  Strided rows;
  double p = 2;
  In x, y, ties, dy;
  Out dx;
  void each(auto&& f) {
    f("rows", rows), f("p", p), f("x", x), f("y", y), f("ties", ties), f("dy", dy), f("dx", dx);
  }
};

// y = log(sum of exp(x)), in one pass and without overflow; of no terms, or of none above
// -infinity, -infinity.
struct LogSumExp {
  static constexpr const char* name = "logsumexp";
  Strided kept, reduced;
  In x;
  Out y;
  void each(auto&& f) { f("kept", kept), f("reduced", reduced), f("x", x), f("y", y); }
};
// dx = dy * exp(x - y).
struct LogSumExpBackward {
  static constexpr const char* name = "logsumexp_backward";
  Strided rows;
  In x, y, dy;
  Out dx;
  void each(auto&& f) { f("rows", rows), f("x", x), f("y", y), f("dy", dy), f("dx", dx); }
};

// y (bool or uint8): 1 if all terms are other than 0, or any is; a NaN is other than 0. x: any
// dtype.
struct AllOrAny {
  static constexpr const char* name = "all_or_any";
  bool all = true;
  Strided kept, reduced;
  In x;
  Out y;
  void each(auto&& f) {
    f("all", all), f("kept", kept), f("reduced", reduced), f("x", x), f("y", y);
  }
};

// Tensors of `outer` x n x `inner` elements, along the middle dimension.
struct AlongShape {
  int64_t outer = 0, n = 0, inner = 0;
  bool operator==(const AlongShape&) const = default;
  void each(auto&& f) const { f("outer", outer), f("n", n), f("inner", inner); }
};

// y[j] = the sum of x up to element j, or with `reverse` from it on; float terms are added in
// double. x: any dtype  y: x's if floating, else int64.
struct CumSum {
  static constexpr const char* name = "cumsum";
  AlongShape g;
  bool reverse = false;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("reverse", reverse), f("x", x), f("y", y); }
};

// The first k of n elements in descending or ascending order; of equal ones the lower index first,
// a NaN counting as larger than every number. x: any dtype  values: (outer, k, inner), x's dtype
// index: likewise, int64.
struct Sort {
  static constexpr const char* name = "sort";
  AlongShape g;
  int64_t k = 0;
  bool descending = false;
  In x;
  Out values, index;
  void each(auto&& f) {
    f("g", g), f("k", k), f("descending", descending), f("x", x), f("values", values);
    f("index", index);
  }
};

// dx[index[j]] = dy[j] for j < k, elsewhere 0; the indices of a row differ. dy, index: (outer, k,
// inner).
struct ScatterAlong {
  static constexpr const char* name = "scatter_along";
  AlongShape g;
  int64_t k = 0;
  In dy, index;
  Out dx;
  void each(auto&& f) { f("g", g), f("k", k), f("dy", dy), f("index", index), f("dx", dx); }
};

// See work.h.
double bytes_unread(const SumSlices& op);

}  // namespace op

SINTER_OPERATOR(Sum);
SINTER_OPERATOR(SumSlices);
SINTER_OPERATOR(SumIntegers);
SINTER_OPERATOR(Prod);
SINTER_OPERATOR(ProdBackward);
SINTER_OPERATOR(Extremum);
SINTER_OPERATOR(ExtremumBackward);
SINTER_OPERATOR(ArgExtremum);
SINTER_OPERATOR(Variance);
SINTER_OPERATOR(VarianceBackward);
SINTER_OPERATOR(Norm);
SINTER_OPERATOR(NormBackward);
SINTER_OPERATOR(LogSumExp);
SINTER_OPERATOR(LogSumExpBackward);
SINTER_OPERATOR(AllOrAny);
SINTER_OPERATOR(CumSum);
SINTER_OPERATOR(Sort);
SINTER_OPERATOR(ScatterAlong);

}  // namespace sinter
