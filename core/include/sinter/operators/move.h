// Operators that move values and compute none but sums of gradients. Any dtype where the comment
// does not say otherwise.
#pragma once

#include <vector>

#include "sinter/operators/elementwise.h"

namespace sinter {
namespace op {

// y (of g.shape) = x read through g, beginning at element `start`: permutes, repeats, reverses and
// takes parts.
struct StridedCopy {
  static constexpr const char* name = "strided_copy";
  Strided g;
  int64_t start = 0;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("start", start), f("x", x), f("y", y); }
};

// y (outer, sum of the widths) = the rows of every x (outer, its width) one behind the other.
struct Concatenate {
  static constexpr const char* name = "concatenate";
  int64_t outer = 0;
  std::vector<In> x;
  Out y;
  void each(auto&& f) { f("outer", outer), f("x", x), f("y", y); }
};

// What lies around the elements: a value, their mirror image (the element at the edge not
// repeated), the element at the edge, or the elements again.
enum class PadMode { kConstant, kReflect, kReplicate, kCircular };
const char* name(PadMode mode);

// Element i of `out` along a dimension is element i - before of the n of x, for negative `before`
// too; one that is not there is made as the mode says. Reflect reaches at most n - 1 elements over
// an edge, circular n.
struct PadShape {
  PadMode mode = PadMode::kConstant;
  int rank = 0;
  int64_t n[kMaxRank] = {}, before[kMaxRank] = {}, out[kMaxRank] = {};
  bool operator==(const PadShape&) const = default;
  void each(auto&& f) const {
    f("mode", mode), f("n", n, rank), f("before", before, rank), f("out", out, rank);
  }
};
struct Pad {
  static constexpr const char* name = "pad";
  PadShape g;
  double value = 0;  // of kConstant, converted to y's dtype
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("value", value), f("x", x), f("y", y); }
};
// dx = the sum of dy over the elements that were made of each of x, in row-major order. Of the
// other modes: kConstant's is Pad the other way round. Floating.
struct PadBackward {
  static constexpr const char* name = "pad_backward";
  PadShape g;
  In dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("dx", dx); }
};

// y = x, but 0 below the diagonal that begins at column `diagonal` of row 0 (`upper`), or above it.
// x, y: (batch, rows, columns).
struct Triangle {
  static constexpr const char* name = "triangle";
  bool upper = false;
  int64_t diagonal = 0, rows = 0, columns = 0;
  In x;
  Out y;
  void each(auto&& f) {
    f("upper", upper), f("diagonal", diagonal), f("rows", rows), f("columns", columns);
    f("x", x), f("y", y);
  }
};

}  // namespace op

SINTER_OPERATOR(StridedCopy);
SINTER_OPERATOR(Concatenate);
SINTER_OPERATOR(Pad);
SINTER_OPERATOR(PadBackward);
SINTER_OPERATOR(Triangle);

}  // namespace sinter
