// Sums.
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

// See work.h.
double bytes_unread(const SumSlices& op);

}  // namespace op

SINTER_OPERATOR(Sum);
SINTER_OPERATOR(SumSlices);

}  // namespace sinter
