// Walks over strided operands, one contiguous-output run at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "sinter/operators/elementwise.h"

namespace sinter {

// N operands read over one shape, with dimensions merged where every operand allows it: the fewer
// and longer the inner runs, the better the loops over them vectorize.
template <int N> struct Loops {
  int rank = 0;  // at least 1
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank][N] = {};

  int64_t size() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= shape[d];
    return n;
  }
  int64_t inner() const { return shape[rank - 1]; }
  int64_t inner_stride(int operand) const { return stride[rank - 1][operand]; }

  // Offset of the element at row-major position `index`, for every operand.
  std::array<int64_t, N> offset(int64_t index) const {
    std::array<int64_t, N> result{};
    for (int d = rank - 1; d >= 0; --d) {
      const int64_t i = index % shape[d];
      index /= shape[d];
      for (int k = 0; k < N; ++k) result[k] += i * stride[d][k];
    }
    return result;
  }

  // Calls f(position, offsets, count) for the runs along the inner dimension that make up
  // [begin, end) of the row-major order.
  template <class F> void runs(int64_t begin, int64_t end, const F& f) const {
    if (begin >= end) return;
    std::array<int64_t, N> at = offset(begin);
    int64_t index[kMaxRank], rest = begin;
    for (int d = rank - 1; d >= 0; --d) {
      index[d] = rest % shape[d];
      rest /= shape[d];
    }
    for (int64_t first = index[rank - 1];;) {
      const int64_t count = std::min(end - begin, inner() - first);
      f(begin, at, count);
      begin += count;
      if (begin >= end) return;
      for (int k = 0; k < N; ++k) at[k] -= first * stride[rank - 1][k];
      first = 0;
      for (int d = rank - 2; d >= 0; --d) {
        for (int k = 0; k < N; ++k) at[k] += stride[d][k];
        if (++index[d] < shape[d]) break;
        for (int k = 0; k < N; ++k) at[k] -= shape[d] * stride[d][k];
        index[d] = 0;
      }
    }
  }
};

template <int N>
Loops<N> make_loops(int rank, const int64_t* shape, const std::array<const int64_t*, N>& stride) {
  Loops<N> loops;
  for (int d = 0; d < rank; ++d) {
    if (shape[d] == 1) continue;
    bool merge = loops.rank > 0;
    for (int k = 0; k < N && merge; ++k) {
      merge = loops.stride[loops.rank - 1][k] == stride[k][d] * shape[d];
    }
    if (!merge) loops.shape[loops.rank++] = 1;
    const int last = loops.rank - 1;
    loops.shape[last] *= shape[d];
    for (int k = 0; k < N; ++k) loops.stride[last][k] = stride[k][d];
  }
  if (loops.rank == 0) {
    loops.rank = 1;
    loops.shape[0] = 1;
    for (int k = 0; k < N; ++k) loops.stride[0][k] = 1;
  }
  return loops;
}

}  // namespace sinter
