// Shapes, strides and gradients of operands that broadcast.
#pragma once

#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"
#include "sinter/operators/reduce.h"
#include "sinter/tensor.h"

namespace sinter {

// Throws unless a and b are floating tensors of one dtype on one device.
void check_same(const char* op, const Tensor& a, const Tensor& b);

// Row-major strides of a contiguous `shape`.
void contiguous_strides(const Shape& shape, int64_t* stride);

// Strides that read `from` as if it had shape `to`: aligned at the end, 0 where it is repeated.
void broadcast_strides(const Shape& from, const Shape& to, int64_t* stride);

// The shape that a and b broadcast to, their last `skip` dimensions left out.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b, int skip = 0);

// Drops extents of 1 and merges neighbours that are one run of memory in every operand, so that
// kernels see few dimensions: (64, 6, 28, 28) + (64, 6, 28, 28) becomes one. `strides` holds one
// array an operand.
template <size_t kOperands>
int merge_dimensions(int rank, int64_t* shape, int64_t* const (&strides)[kOperands]) {
  int last = -1;
  for (int d = 0; d < rank; ++d) {
    if (shape[d] == 1) continue;
    bool merges = last >= 0;
    for (const int64_t* s : strides) merges = merges && s[last] == s[d] * shape[d];
    if (merges) {
      shape[last] *= shape[d];
    } else {
      shape[++last] = shape[d];
    }
    for (int64_t* s : strides) s[last] = s[d];
  }
  return last + 1;
}

// `shape` read by `stride`, in as few dimensions as do.
op::Strided strided(const Shape& shape, const int64_t* stride);

// factor * x, outside the graph.
Tensor times(const Tensor& x, double factor);

// x repeated to `shape`, times factor, outside the graph.
Tensor repeated(const Tensor& x, const Shape& shape, double factor = 1);

// Sums x over the dimensions marked in `reduced`; the result has shape `result` (with or without
// them). Outside the graph.
Tensor reduce(const Tensor& x, const bool* reduced, const Shape& result, double factor);

// The gradient of an operand of `shape` that was broadcast to dy's shape: dy summed over what was
// repeated.
Tensor unbroadcast(const Tensor& dy, const Shape& shape);

}  // namespace sinter
