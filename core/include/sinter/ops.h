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
#include "sinter/ops/dropout.h"
#include "sinter/ops/norm.h"
#include "sinter/tensor.h"

namespace sinter {

// One value for both directions, or (height, width).
struct Pair {
  int h, w;
  Pair(int both)
      : h(both), w(both) {}  // NOLINT: implicit, so that conv2d(…, {.stride = 2}) reads well
  Pair(int height, int width) : h(height), w(width) {}
};

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

struct Pool2dOptions {
  Pair stride = 0;   // 0: the kernel
  Pair padding = 0;  // at most half the kernel
};
// Max over windows; padding never wins. x: (N, C, H, W). Returns (N, C, OH, OW),
// OH = (H + 2 padding - kernel) / stride + 1.
// Ties: the first element in row-major order wins and takes the whole gradient (as
// torch.nn.MaxPool2d); so does the first NaN of a window, over every number.
// N may be 0, C, H and W not. Sizes are bounded as conv2d's, windows to fewer than 2^31 elements.
Tensor max_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options = {});
// Mean over windows, padding counted as zeros (as torch.nn.AvgPool2d's default). Extents as
// max_pool2d's.
Tensor avg_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options = {});

// x w^T + b. x: (…, in)  weight: (out, in)  bias: (out) or undefined. Returns (…, out); for in = 0
// the bias.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});
// Matrix product of the last two dimensions, (…, M, K) x (…, K, N) -> (…, M, N); the dimensions
// before them broadcast. Ranks of at least 2.
Tensor matmul(const Tensor& a, const Tensor& b);

// max(x, 0); a NaN stays a NaN. The gradient is 0 where the result is 0, and a NaN passes it on, as
// in PyTorch.
Tensor relu(const Tensor& x);

// Element by element, with NumPy's broadcasting: shapes are aligned at the end, and an extent of 1
// (or a missing one) is repeated.
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
// With a number.
Tensor operator+(const Tensor& a, double b);
Tensor operator-(const Tensor& a, double b);
Tensor operator*(const Tensor& a, double b);
Tensor operator/(const Tensor& a, double b);
inline Tensor operator*(double a, const Tensor& b) { return b * a; }
inline Tensor operator+(double a, const Tensor& b) { return b + a; }
inline Tensor operator-(const Tensor& a) { return a * -1.0; }
Tensor operator-(double a, const Tensor& b);
Tensor operator/(double a, const Tensor& b);

// In place: x = x + y by copy_, so that every sharer of x's storage sees it. y broadcasts to x's
// shape; x's shape and dtype stay. Throws ShapeError for a y that would make x larger, and what
// copy_ throws.
// Returns x.
Tensor operator+=(const Tensor& x, const Tensor& y);
Tensor operator-=(const Tensor& x, const Tensor& y);
Tensor operator*=(const Tensor& x, const Tensor& y);
Tensor operator/=(const Tensor& x, const Tensor& y);
Tensor operator+=(const Tensor& x, double y);
Tensor operator-=(const Tensor& x, double y);
Tensor operator*=(const Tensor& x, double y);
Tensor operator/=(const Tensor& x, double y);

// Over `dims` (negative from the end; empty: all of them). keepdim leaves extents of 1 in their
// place. float32 sums are right to some units in the last place, however long. The sum of nothing
// is 0, its mean NaN.
Tensor sum(const Tensor& x, const Dims& dims = {}, bool keepdim = false);
Tensor mean(const Tensor& x, const Dims& dims = {}, bool keepdim = false);

// The same elements in another shape, sharing storage; one extent may be -1 and is inferred, unless
// another is 0. Any dtype.
Tensor reshape(const Tensor& x, const Shape& shape);
// Dimensions first..last (negative from the end) merged into one, sharing storage. Any dtype.
Tensor flatten(const Tensor& x, int first = 0, int last = -1);
// Dimension i of the result is dimension dims[i] of x; a copy. Any dtype.
Tensor permute(const Tensor& x, const std::vector<int>& dims);
// Rows [first, first + count) of dimension 0, sharing storage. Any dtype.
Tensor narrow(const Tensor& x, int64_t first, int64_t count);

// log(exp(x) / sum exp(x)) over `dim`, computed without overflow.
Tensor log_softmax(const Tensor& x, int dim = -1);

enum class Reduction { kMean, kSum };
struct CrossEntropyOptions {
  Reduction reduction = Reduction::kMean;
  double label_smoothing = 0;  // in [0, 1]: (1 - s) on the label, s / C on every class
};
// Negative log-likelihood of the labels under softmax(logits) (torch.nn.functional.cross_entropy).
//   logits: (N, C), C at least 1  labels: (N), int64. Returns a scalar; for N = 0 the mean is NaN,
//   the sum 0.
// A label outside [0, C): ValueError naming it; on a CUDA device it is thrown by the next call that
// waits for the device, and the loss is NaN until then.
Tensor cross_entropy(const Tensor& logits, const Tensor& labels,
                     const CrossEntropyOptions& options = {});

// count += how many rows of logits (N, C) have their first maximum at the row's label. labels: (N),
// int64; count: one int64 on the same device. Not differentiable; does not wait for the device.
void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels);

}  // namespace sinter
