// Nested loops over a row-major shape that K operands are read through.
#pragma once

#include <cstdint>

#include "sinter/operators/elementwise.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter::cuda {

template <int K> struct Loop {
  int rank = 0;
  int64_t count = 1;  // product of shape
  int64_t shape[kMaxRank] = {};
  int64_t stride[K][kMaxRank] = {};

  // Appends an innermost dimension, or merges it with the one around it where every operand steps
  // through the two as through one: each dimension left costs a division per element.
  void append(int64_t extent, const int64_t (&step)[K]) {
    count *= extent;
    if (extent == 1) return;
    bool merge = rank > 0;
    for (int k = 0; k < K; ++k) merge = merge && stride[k][rank - 1] == extent * step[k];
    if (!merge) ++rank;
    shape[rank - 1] = merge ? shape[rank - 1] * extent : extent;
    for (int k = 0; k < K; ++k) stride[k][rank - 1] = step[k];
  }

  bool contiguous(int k) const { return rank == 0 || (rank == 1 && stride[k][0] == 1); }

  // Offsets of the operands at element i < count.
  template <class Index> SINTER_HD void offsets(Index i, int64_t (&at)[K]) const {
    for (int k = 0; k < K; ++k) at[k] = 0;
    for (int d = rank - 1; d > 0; --d) {
      const Index extent = static_cast<Index>(shape[d]);
      const Index outer = i / extent;
      const Index index = i - outer * extent;
      for (int k = 0; k < K; ++k) at[k] += static_cast<int64_t>(index) * stride[k][d];
      i = outer;
    }
    if (rank > 0)
      for (int k = 0; k < K; ++k) at[k] += static_cast<int64_t>(i) * stride[k][0];
  }
};

inline Loop<1> loop_over(const op::Strided& g) {
  Loop<1> loop;
  for (int d = 0; d < g.rank; ++d) loop.append(g.shape[d], {g.stride[d]});
  return loop;
}

}  // namespace sinter::cuda
