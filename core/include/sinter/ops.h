// Operators. Each validates its arguments, runs on the device of its inputs and records its
// derivative.
//
// Common to all: inputs share one device and one floating dtype (float32 or float64) unless a
// comment says otherwise; results are new tensors. Throws ShapeError, DtypeError or DeviceError
// saying what was expected and what came; an undefined tensor is an Error that names the argument.
//
// Extents may be 0 where the comment does not say otherwise: sums without terms are 0. ShapeError
// for results of more elements than 2^63 - 1 bytes hold.
#pragma once

#include <vector>

#include "sinter/autograd.h"
#include "sinter/ops/attention.h"
#include "sinter/ops/dropout.h"
#include "sinter/ops/elementwise.h"
#include "sinter/ops/indexing.h"
#include "sinter/ops/loss.h"
#include "sinter/ops/matmul.h"
#include "sinter/ops/norm.h"
#include "sinter/ops/pool.h"
#include "sinter/ops/reduce.h"
#include "sinter/ops/shape.h"
#include "sinter/ops/softmax.h"
#include "sinter/pair.h"
#include "sinter/tensor.h"

namespace sinter {

struct Conv2dOptions {
  Pair stride = 1;    // >= 1
  Pair padding = 0;   // zeros on each side, >= 0
  Pair dilation = 1;  // >= 1
  int groups = 1;     // divides input and output channels
};
// Cross-correlation (torch.nn.functional.conv2d).
//   x: (N, C, H, W)  weight: (O, C / groups, KH, KW)  bias: (O) or undefined.
//   Returns (N, O, OH, OW), OH = (H + 2 padding - dilation (KH - 1) - 1) / stride + 1, likewise OW.
// N and C may be 0, other extents not; without channels the result is the bias. Extents and H + 2
// padding are below 2^30, images (H, W), results (OH, OW) and windows (C / groups, KH, KW) have
// fewer than 2^31 elements: ShapeError otherwise.
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = {},
              const Conv2dOptions& options = {});

// The same elements in another shape, sharing storage; one extent may be -1 and is inferred, unless
// another is 0. Any dtype.
Tensor reshape(const Tensor& x, const Shape& shape);
// Dimensions first..last (negative from the end) merged into one, sharing storage. Any dtype.
Tensor flatten(const Tensor& x, int first = 0, int last = -1);
// Dimension i of the result is dimension dims[i] of x; a copy. Any dtype.
Tensor permute(const Tensor& x, const std::vector<int>& dims);
// Two dimensions (negative from the end) in each other's place; a copy. Any dtype.
Tensor transpose(const Tensor& x, int dim0, int dim1);
// Without its dimensions of extent 1, or without those of them that are listed (negative from the
// end), sharing storage. Any dtype.
Tensor squeeze(const Tensor& x);
Tensor squeeze(const Tensor& x, const Dims& dims);
// With a dimension of extent 1 in front of dimension `dim` (from -rank - 1 to rank), sharing
// storage. Any dtype.
Tensor unsqueeze(const Tensor& x, int dim);

}  // namespace sinter
