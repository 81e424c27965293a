// Pooling. Common to all: images (N, C, H, W), or one of (C, H, W), of float32 or float64, whose
// results are of the same rank; signals (N, C, L) or (C, L) in the functions of one dimension. N
// may be 0, other extents not. Sizes are bounded as conv2d's, windows to fewer than 2^31 elements.
#pragma once

#include <optional>

#include "sinter/ops/reduce.h"
#include "sinter/pair.h"
#include "sinter/tensor.h"

namespace sinter {

struct MaxPool2dOptions {
  std::optional<Pair> stride = {};  // the kernel if not given
  Pair padding = 0;                 // at most half the kernel
  Pair dilation = 1;
  bool ceil_mode = false;  // a last window may hang over the end, if it begins before it
};
// Max over windows; padding never wins. Returns (N, C, OH, OW),
// OH = (H + 2 padding - dilation (kernel - 1) - 1) / stride + 1, rounded up with ceil_mode.
// Ties: the first element in row-major order wins and takes the whole gradient (as
// torch.nn.MaxPool2d); so does the first NaN of a window, over every number. ShapeError if a window
// holds no element of x, as one of dilation 2 may not where x has one row.
Tensor max_pool2d(const Tensor& x, Pair kernel, const MaxPool2dOptions& options = {});
// And where each maximum is in its plane, row * W + column.
ValuesIndices max_pool2d_with_indices(const Tensor& x, Pair kernel,
                                      const MaxPool2dOptions& options = {});

struct AvgPool2dOptions {
  std::optional<Pair> stride = {};  // the kernel if not given
  Pair padding = 0;                 // at most half the kernel
  bool ceil_mode = false;           // as max_pool2d's
  bool count_include_pad = true;    // padding counts as zeros
  std::optional<int> divisor_override = {};
};
// Mean over windows: their sums divided by their elements, or by divisor_override. Returns as
// max_pool2d.
Tensor avg_pool2d(const Tensor& x, Pair kernel, const AvgPool2dOptions& options = {});

// Means and maxima over windows that divide x into (OH, OW) parts, as equal as may be and
// overlapping by an element where they cannot be: rows from i H / OH, rounded down, to
// (i + 1) H / OH, rounded up. An output size of -1 is x's own (PyTorch's None).
Tensor adaptive_avg_pool2d(const Tensor& x, Pair output_size);
Tensor adaptive_max_pool2d(const Tensor& x, Pair output_size);

struct MaxPool1dOptions {
  std::optional<int> stride = {};
  int padding = 0, dilation = 1;
  bool ceil_mode = false;
};
struct AvgPool1dOptions {
  std::optional<int> stride = {};
  int padding = 0;
  bool ceil_mode = false, count_include_pad = true;
};
Tensor max_pool1d(const Tensor& x, int kernel, const MaxPool1dOptions& options = {});
Tensor avg_pool1d(const Tensor& x, int kernel, const AvgPool1dOptions& options = {});
Tensor adaptive_avg_pool1d(const Tensor& x, int output_size);
Tensor adaptive_max_pool1d(const Tensor& x, int output_size);

}  // namespace sinter
