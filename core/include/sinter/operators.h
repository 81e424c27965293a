// Everything a backend computes: operators as data, each with the attributes and operands that it
// has, and run(ctx, op), once for each context.
//
// The framework above validates shapes, dtypes and devices, allocates outputs and emits operators
// (emit.h), which run at once or are noted in a program (program.h); a kernel trusts its operator.
// `each` lists attributes and operands by name: it is all that printing, comparing and binding a
// program knows of an operator.
//
//   run(Cpu)   returns when the work is done.
//   run(Cuda)  enqueues on ctx.stream and returns; ctx.device is current. It never synchronizes,
//   and
//              takes scratch memory from the caching allocator (runtime.h), not from the driver.
//
// Operands are float32 or float64, all of one dtype, unless the comment says otherwise. Results are
// bit-identical from run to run and, on the CPU, for any number of threads: reductions follow an
// order that depends on the geometry alone, and gradients gather instead of scattering with
// atomics. Images are NCHW. Operands marked optional may be absent; an OptionalOut may be left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sinter/operand.h"

namespace sinter {

// How a convolution is computed, forward and backward.
//   naive          the definition, one output after another: to read, and to check the others by
//   direct         CPU: images in the lanes of a vector; CUDA: small windows, few input channels
//   im2col         patches written out as a matrix, and a matrix product
//   implicit-gemm  the same with the patches gathered while they are multiplied
//   tensor-core    CUDA, float32: the same on tensor cores
//   winograd       windows of 3 x 3 and stride 1: a quarter of the multiplications, and some more
//                  rounding; a NaN spreads to results some pixels away
// They differ in the order of additions; each gives the same bits from run to run. kAuto chooses by
// geometry, dtype and device; any other computes every convolution or throws ValueError saying why
// it cannot and which can.
enum class ConvAlgo { kAuto, kNaive, kDirect, kIm2col, kImplicitGemm, kTensorCore, kWinograd };
const char* name(ConvAlgo algo);  // "auto", "naive", …, as above

namespace op {

// ---- element-wise and data movement (elementwise, reduce) ---------------------------------------

// Reads x at sum(index[d] * stride[d]) for every index below `shape`, in row-major order. Strides
// are in elements; 0 repeats x along that dimension. Rank 0 is one element.
struct Strided {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};
  bool operator==(const Strided&) const = default;
  void each(auto&& f) const { f("shape", shape, rank), f("stride", stride, rank); }
};

// Two operands read over one output shape.
struct Broadcast {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride_a[kMaxRank] = {};
  int64_t stride_b[kMaxRank] = {};
  bool operator==(const Broadcast&) const = default;
  void each(auto&& f) const {
    f("shape", shape, rank), f("stride_a", stride_a, rank), f("stride_b", stride_b, rank);
  }
};

struct Fill {
  static constexpr const char* name = "fill";
  double value = 0;
  Out y;
  void each(auto&& f) { f("value", value), f("y", y); }
};

// y = x converted element by element. Any two dtypes.
struct Cast {
  static constexpr const char* name = "cast";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

// y = x, of one shape and dtype, any; they may overlap.
struct Copy {
  static constexpr const char* name = "copy";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

// y (of g.shape) = x read through g: permutes and broadcasts. Any dtype.
struct StridedCopy {
  static constexpr const char* name = "strided_copy";
  Strided g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};

// y (of g.shape) = a kind b.
enum class BinaryOp { kAdd, kSub, kMul, kDiv };
struct Binary {
  static constexpr const char* name = "binary";
  BinaryOp kind = BinaryOp::kAdd;
  Broadcast g;
  In a, b;
  Out y;
  void each(auto&& f) { f("kind", kind), f("g", g), f("a", a), f("b", b), f("y", y); }
};

// y = alpha * x.
struct Scale {
  static constexpr const char* name = "scale";
  double alpha = 1;
  In x;
  Out y;
  void each(auto&& f) { f("alpha", alpha), f("x", x), f("y", y); }
};

// y += x.
struct Accumulate {
  static constexpr const char* name = "accumulate";
  In x;
  InOut y;
  void each(auto&& f) { f("x", x), f("y", y); }
};

// y = max(x, 0); a NaN stays a NaN.
struct ReluForward {
  static constexpr const char* name = "relu_forward";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};
// y = max(a + b, 0), all of one shape; a NaN stays a NaN.
struct AddRelu {
  static constexpr const char* name = "add_relu";
  In a, b;
  Out y;
  void each(auto&& f) { f("a", a), f("b", b), f("y", y); }
};
// dx = 0 where y <= 0, else dy: the gradient at 0 is 0, and a NaN passes its gradient on, as in
// PyTorch.
struct ReluBackward {
  static constexpr const char* name = "relu_backward";
  In y, dy;
  Out dx;
  void each(auto&& f) { f("y", y), f("dy", dy), f("dx", dx); }
};

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

// ---- matrix products (gemm, linear) -------------------------------------------------------------

// C[i] = op(A[i]) op(B[i]) for i < batch: op(A) is (m, k), op(B) is (k, n), C is (m, n), row-major
// and tight. ta: A is stored (k, m); tb: B is stored (n, k). stride_* is the distance, in elements,
// from one matrix of the batch to the next; 0 shares one matrix. k == 0 gives zeros. tf32: on Cuda
// float32 operands may be rounded to TF32 (set_allow_tf32).
struct GemmShape {
  bool ta = false, tb = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t batch = 1, stride_a = 0, stride_b = 0;
  bool tf32 = false;
  bool operator==(const GemmShape&) const = default;
  void each(auto&& f) const {
    f("ta", ta), f("tb", tb), f("m", m), f("n", n), f("k", k), f("batch", batch);
    f("stride_a", stride_a), f("stride_b", stride_b), f("tf32", tf32);
  }
};
struct Gemm {
  static constexpr const char* name = "gemm";
  GemmShape g;
  In a, b;
  Out c;
  void each(auto&& f) { f("g", g), f("a", a), f("b", b), f("c", c); }
};

// x: (n, in)  w: (out, in)  b: (out)  y: (n, out). tf32: as GemmShape's.
struct LinearShape {
  int64_t n = 0, in = 0, out = 0;
  bool tf32 = false;
  bool operator==(const LinearShape&) const = default;
  void each(auto&& f) const { f("n", n), f("in", in), f("out", out), f("tf32", tf32); }
};
// y = x w^T + b, with `relu` the ReLU of it, to the bit what ReluForward makes of it. b optional.
struct LinearForward {
  static constexpr const char* name = "linear_forward";
  LinearShape g;
  In x, w, b;
  Out y;
  bool relu = false;
  void each(auto&& f) { f("g", g), f("relu", relu), f("x", x), f("w", w), f("b", b), f("y", y); }
};
// dx = dy w.
struct LinearBackwardData {
  static constexpr const char* name = "linear_backward_data";
  LinearShape g;
  In dy, w;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("w", w), f("dx", dx); }
};
// dw = dy^T x, db = column sums of dy.
struct LinearBackwardWeights {
  static constexpr const char* name = "linear_backward_weights";
  LinearShape g;
  In x, dy;
  OptionalOut dw, db;
  void each(auto&& f) { f("g", g), f("x", x), f("dy", dy), f("dw", dw), f("db", db); }
};

// ---- convolution (conv2d) -----------------------------------------------------------------------

// Cross-correlation, as every framework's 'convolution'.
//   x: (n, c, h, w)  weight: (o, c / groups, kh, kw)  b: (o)  y: (n, o, oh, ow)
//   oh = (h + 2 pad_h - dil_h (kh - 1) - 1) / stride_h + 1, likewise ow; padding is zeros.
// The framework ensures that every extent is at least 1, that extents, h + 2 pad_h, w + 2 pad_w,
// strides and dilations are below 2^30, and h * w, oh * ow and c / groups * kh * kw below 2^31.
struct Conv2dShape {
  int n = 0, c = 0, h = 0, w = 0;
  int o = 0, kh = 0, kw = 0;
  int stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1, groups = 1;
  int oh = 0, ow = 0;
  ConvAlgo algo = ConvAlgo::kAuto;
  bool tf32 = false;  // as GemmShape's
  bool operator==(const Conv2dShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("c", c), f("h", h), f("w", w), f("o", o), f("kh", kh), f("kw", kw);
    f("stride_h", stride_h), f("stride_w", stride_w), f("pad_h", pad_h), f("pad_w", pad_w);
    f("dil_h", dil_h), f("dil_w", dil_w), f("groups", groups), f("oh", oh), f("ow", ow);
    f("algo", algo), f("tf32", tf32);
  }
};
// relu: y is the ReLU of the convolution, to the bit what ReluForward makes of it. b optional.
struct Conv2dForward {
  static constexpr const char* name = "conv2d_forward";
  Conv2dShape g;
  In x, weight, b;
  Out y;
  bool relu = false;
  void each(auto&& f) {
    f("g", g), f("relu", relu), f("x", x), f("weight", weight), f("b", b), f("y", y);
  }
};
struct Conv2dBackwardData {
  static constexpr const char* name = "conv2d_backward_data";
  Conv2dShape g;
  In dy, weight;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("weight", weight), f("dx", dx); }
};
struct Conv2dBackwardWeights {
  static constexpr const char* name = "conv2d_backward_weights";
  Conv2dShape g;
  In x, dy;
  OptionalOut dweight, db;
  void each(auto&& f) { f("g", g), f("x", x), f("dy", dy), f("dweight", dweight), f("db", db); }
};

// ---- pooling (pool2d) ---------------------------------------------------------------------------

// x: (n, c, h, w)  y: (n, c, oh, ow). The framework ensures 2 * pad <= kernel, so that every window
// holds at least one element of x, that every extent but n is at least 1, and what it ensures of a
// convolution's; kh * kw is below 2^31.
struct Pool2dShape {
  int n = 0, c = 0, h = 0, w = 0;
  int kh = 0, kw = 0, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
  int oh = 0, ow = 0;
  bool operator==(const Pool2dShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("c", c), f("h", h), f("w", w), f("kh", kh), f("kw", kw);
    f("stride_h", stride_h), f("stride_w", stride_w), f("pad_h", pad_h), f("pad_w", pad_w);
    f("oh", oh), f("ow", ow);
  }
};
// choice[i]: the place in its window of the element chosen for y[i], row * kw + column, from the
// window's first row and column, which may lie in the padding: the first maximum in row-major
// order; a NaN counts as the maximum. Padding never wins. uint8 where kh * kw <= 256, else int32.
struct MaxPool2dForward {
  static constexpr const char* name = "max_pool2d_forward";
  Pool2dShape g;
  In x;
  Out y, choice;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y), f("choice", choice); }
};
struct MaxPool2dBackward {
  static constexpr const char* name = "max_pool2d_backward";
  Pool2dShape g;
  In dy, choice;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("choice", choice), f("dx", dx); }
};
// f.operator()<Code>(), Code being the element type of `choice`.
template <class F> decltype(auto) with_choice(const Operand& choice, F&& f) {
  if (choice.dtype == kUInt8) return f.template operator()<uint8_t>();
  return f.template operator()<int32_t>();
}
// Divides by kh * kw, padding included (PyTorch's count_include_pad = True).
struct AvgPool2dForward {
  static constexpr const char* name = "avg_pool2d_forward";
  Pool2dShape g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};
struct AvgPool2dBackward {
  static constexpr const char* name = "avg_pool2d_backward";
  Pool2dShape g;
  In dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("dx", dx); }
};

// ---- softmax and loss (softmax) -----------------------------------------------------------------

// x, y: (outer, classes, inner), normalized over the middle dimension. float terms of a row's sum
// are added in blocks, and the blocks in double.
struct SoftmaxShape {
  int64_t outer = 0, classes = 0, inner = 0;
  bool operator==(const SoftmaxShape&) const = default;
  void each(auto&& f) const { f("outer", outer), f("classes", classes), f("inner", inner); }
};
struct LogSoftmaxForward {
  static constexpr const char* name = "log_softmax_forward";
  SoftmaxShape g;
  In x;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y); }
};
// dx = dy - exp(y) * (sum of dy over the classes).
struct LogSoftmaxBackward {
  static constexpr const char* name = "log_softmax_backward";
  SoftmaxShape g;
  In y, dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("y", y), f("dy", dy), f("dx", dx); }
};

// logits, dlogits: (n, classes)  labels: (n), int64  loss: one element.
//   q_k = (1 - label_smoothing) [k == label] + label_smoothing / classes
//   loss = -sum over n and k of q_k log_softmax(logits)_k, divided by n when `mean`
//   dlogits = softmax(logits) - q, likewise: the gradient of the loss.
// A label outside [0, classes): Cpu throws ValueError; Cuda records a fault that the next
// synchronization throws (runtime.h), and the loss is NaN.
struct CrossEntropyShape {
  int64_t n = 0, classes = 0;
  double label_smoothing = 0;
  bool mean = true;
  bool operator==(const CrossEntropyShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("classes", classes), f("label_smoothing", label_smoothing), f("mean", mean);
  }
};
struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  CrossEntropyShape g;
  In logits, labels;
  Out loss;
  OptionalOut dlogits;
  void each(auto&& f) {
    f("g", g), f("logits", logits), f("labels", labels), f("loss", loss), f("dlogits", dlogits);
  }
};

// correct (one int64) += rows of logits (n, classes) whose first maximum stands at the row's label
// (int64); a NaN counts as the maximum.
struct CountCorrect {
  static constexpr const char* name = "count_correct";
  In logits, labels;
  InOut correct;
  void each(auto&& f) { f("logits", logits), f("labels", labels), f("correct", correct); }
};

// ---- fused layers (conv2d_relu_pool, mlp) -------------------------------------------------------

// y = max_pool2d(relu(conv2d(x, weight, b)), 2): convolution, bias, ReLU and 2 x 2 pooling of
// stride 2 in one pass. oh and ow are the convolution's; an odd last row or column is left out.
//   y: (n, o, oh / 2, ow / 2)  choice: as y, uint8: which of the window's four was taken, 2 * row +
//   column: the first maximum; a NaN counts as the maximum. b optional.
// Emitted where conv2d_relu_pool_fits; oh and ow are at least 2.
struct Conv2dReluPoolForward {
  static constexpr const char* name = "conv2d_relu_pool_forward";
  Conv2dShape g;
  In x, weight, b;
  Out y, choice;
  void each(auto&& f) {
    f("g", g), f("x", x), f("weight", weight), f("b", b), f("y", y), f("choice", choice);
  }
};
// The gradient goes to the chosen element unless y <= 0. On a CPU all gradients are made in one
// pass; a GPU makes dx, and the weights' gradients as sums over slices of the images, apart.
struct Conv2dReluPoolBackward {
  static constexpr const char* name = "conv2d_relu_pool_backward";
  Conv2dShape g;
  In x, weight, y, choice, dy;
  OptionalOut dx, dweight, db;
  void each(auto&& f) {
    f("g", g), f("x", x), f("weight", weight), f("y", y), f("choice", choice), f("dy", dy);
    f("dx", dx), f("dweight", dweight), f("db", db);
  }
};
struct Conv2dReluPoolBackwardData {
  static constexpr const char* name = "conv2d_relu_pool_backward_data";
  Conv2dShape g;
  In weight, y, choice, dy;
  Out dx;
  void each(auto&& f) {
    f("g", g), f("weight", weight), f("y", y), f("choice", choice), f("dy", dy), f("dx", dx);
  }
};
// partial: (conv2d_relu_pool_slices, elements of weight + o): dweight's and db's sums.
struct Conv2dReluPoolBackwardWeights {
  static constexpr const char* name = "conv2d_relu_pool_backward_weights";
  Conv2dShape g;
  In x, y, choice, dy;
  Out partial;
  void each(auto&& f) {
    f("g", g), f("x", x), f("y", y), f("choice", choice), f("dy", dy), f("partial", partial);
  }
};

// Linear layers one after another, a ReLU behind each but the last (and behind that one too with
// relu_last): h_0 = x, h_l = act_l(h_{l-1} w_l^T + b_l).
inline constexpr int kMaxMlpLayers = 8;
struct MlpShape {
  int64_t n = 0;
  int layers = 0;
  int64_t width[kMaxMlpLayers + 1] = {};  // w_l: (width[l], width[l - 1]), l = 1 .. layers
  bool relu_last = false;
  bool operator==(const MlpShape&) const = default;
  void each(auto&& f) const { f("n", n), f("width", width, layers + 1), f("relu_last", relu_last); }
};
// w[l - 1], b[l - 1], y[l - 1]: w_l, b_l (optional) and h_l.
struct MlpForward {
  static constexpr const char* name = "mlp_forward";
  MlpShape g;
  In x;
  std::vector<In> w, b;
  std::vector<Out> y;
  void each(auto&& f) { f("g", g), f("x", x), f("w", w), f("b", b), f("y", y); }
};
// dz[l - 1]: the gradient of layer l's result before its ReLU, of the layers that have one here;
// dx that of x, optional, and only if all have one. It starts from dy, the gradient of the last
// layer's result before its ReLU, which has no dz of its own then; or, where mlp_starts_from_loss,
// with dy absent, from what cross_entropy computed its loss of, h_layers being the logits.
struct MlpBackwardChain {
  static constexpr const char* name = "mlp_backward_chain";
  MlpShape g;
  CrossEntropyShape loss;
  In dy, logits, labels;
  std::vector<In> w, y;
  std::vector<Out> dz;
  OptionalOut dx;
  void each(auto&& f) {
    f("g", g), f("loss", loss), f("dy", dy), f("logits", logits), f("labels", labels);
    f("w", w), f("y", y), f("dz", dz), f("dx", dx);
  }
};
// dw[l - 1] = dz_l^T h_{l-1}, db[l - 1] = column sums of dz_l.
struct MlpBackwardWeights {
  static constexpr const char* name = "mlp_backward_weights";
  MlpShape g;
  In x;
  std::vector<In> y, dz;
  std::vector<OptionalOut> dw, db;
  void each(auto&& f) { f("g", g), f("x", x), f("y", y), f("dz", dz), f("dw", dw), f("db", db); }
};

// ---- optimizers (optim) -------------------------------------------------------------------------

// All parameters in one operator. lr (one float64) and steps (int64, one a parameter and perhaps
// more) live in the context's memory, so that a program reads them anew at every call; a step
// counts the finished updates of its parameter, and is incremented.
//   Kingma and Ba 2015, algorithm 1; with `decoupled`, Loshchilov and Hutter 2019, algorithm 2 (as
//   PyTorch: p *= 1 - lr * weight_decay first). Otherwise weight_decay * p is added to the
//   gradient. t = step + 1;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2 p -= lr *
//   (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
struct AdamConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decoupled = false;
  bool operator==(const AdamConfig&) const = default;
  void each(auto&& f) const {
    f("beta1", beta1), f("beta2", beta2), f("eps", eps), f("weight_decay", weight_decay);
    f("decoupled", decoupled);
  }
};
// place[i]: where in `steps` parameter i has its count, ascending. g[i]: p[i]'s gradient; or, on
// Cuda, with first[i] >= 0, partial sums of it, (slices, stride), as SumSlices adds them up.
struct AdamStep {
  static constexpr const char* name = "adam_step";
  AdamConfig c;
  std::vector<int64_t> place, first;
  In lr;
  std::vector<In> g;
  std::vector<InOut> p, m, v;
  InOut steps;
  void each(auto&& f) {
    f("c", c), f("place", place), f("first", first), f("lr", lr), f("g", g), f("p", p), f("m", m);
    f("v", v), f("steps", steps);
  }
};

// g += weight_decay * p; m = g at the first step, else momentum * m + (1 - dampening) * g;
// g = g + momentum * m if nesterov, else m; p -= lr * g (Sutskever et al. 2013, in PyTorch's form).
struct SgdConfig {
  double momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
  bool operator==(const SgdConfig&) const = default;
  void each(auto&& f) const {
    f("momentum", momentum), f("dampening", dampening), f("weight_decay", weight_decay);
    f("nesterov", nesterov);
  }
};
// m: momentum buffers; empty without momentum. The others as AdamStep's.
struct SgdStep {
  static constexpr const char* name = "sgd_step";
  SgdConfig c;
  std::vector<int64_t> place;
  In lr;
  std::vector<In> g;
  std::vector<InOut> p, m;
  InOut steps;
  void each(auto&& f) {
    f("c", c), f("place", place), f("lr", lr), f("g", g), f("p", p), f("m", m), f("steps", steps);
  }
};

// ---- data (data) --------------------------------------------------------------------------------

// index[i] (int64) = pi(first + i), where pi is a permutation of [0, size) fixed by seed and epoch
// (permute_index in philox.h). The same on every backend.
struct ShuffledIndices {
  static constexpr const char* name = "shuffled_indices";
  uint64_t seed = 0, epoch = 0;
  int64_t size = 0, first = 0;
  Out index;
  void each(auto&& f) {
    f("seed", seed), f("epoch", epoch), f("size", size), f("first", first), f("index", index);
  }
};

// The next n of `size` images, in the order of `index`, going on from its beginning behind its end:
//   x[i] = (images[index[at + i]] / 255 - mean[c]) / std[c], as one multiplication and one addition
//   y[i] = labels[index[at + i]]
// at is `first`, or with a position what that holds, which grows by n: so a program takes another
// batch at every call. position: one int64, optional. images: (size, c, h, w) bytes  labels: (size)
// bytes  index: (size), int64  x: (n, c, h, w)  y: (n), int64.
struct GatherShape {
  int64_t n = 0, size = 0, first = 0;
  int c = 0, h = 0, w = 0;
  float mean[4] = {}, std[4] = {1, 1, 1, 1};
  bool operator==(const GatherShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("size", size), f("first", first), f("c", c), f("h", h), f("w", w);
    f("mean", mean, c), f("std", std, c);
  }
};
struct GatherBatch {
  static constexpr const char* name = "gather_batch";
  GatherShape g;
  In images, labels, index;
  InOut position;
  Out x, y;
  void each(auto&& f) {
    f("g", g), f("images", images), f("labels", labels), f("index", index);
    f("position", position), f("x", x), f("y", y);
  }
};

}  // namespace op

// ---- kernels ------------------------------------------------------------------------------------

#define SINTER_OPERATOR(Op)            \
  void run(const Cpu&, const op::Op&); \
  void run(const Cuda&, const op::Op&)
SINTER_OPERATOR(Fill);
SINTER_OPERATOR(Cast);
SINTER_OPERATOR(Copy);
SINTER_OPERATOR(StridedCopy);
SINTER_OPERATOR(Binary);
SINTER_OPERATOR(Scale);
SINTER_OPERATOR(Accumulate);
SINTER_OPERATOR(ReluForward);
SINTER_OPERATOR(AddRelu);
SINTER_OPERATOR(ReluBackward);
SINTER_OPERATOR(Sum);
SINTER_OPERATOR(SumSlices);
SINTER_OPERATOR(Gemm);
SINTER_OPERATOR(LinearForward);
SINTER_OPERATOR(LinearBackwardData);
SINTER_OPERATOR(LinearBackwardWeights);
SINTER_OPERATOR(Conv2dForward);
SINTER_OPERATOR(Conv2dBackwardData);
SINTER_OPERATOR(Conv2dBackwardWeights);
SINTER_OPERATOR(MaxPool2dForward);
SINTER_OPERATOR(MaxPool2dBackward);
SINTER_OPERATOR(AvgPool2dForward);
SINTER_OPERATOR(AvgPool2dBackward);
SINTER_OPERATOR(LogSoftmaxForward);
SINTER_OPERATOR(LogSoftmaxBackward);
SINTER_OPERATOR(CrossEntropy);
SINTER_OPERATOR(CountCorrect);
SINTER_OPERATOR(Conv2dReluPoolForward);
SINTER_OPERATOR(MlpForward);
SINTER_OPERATOR(MlpBackwardChain);
SINTER_OPERATOR(MlpBackwardWeights);
SINTER_OPERATOR(AdamStep);
SINTER_OPERATOR(SgdStep);
SINTER_OPERATOR(ShuffledIndices);
SINTER_OPERATOR(GatherBatch);
#undef SINTER_OPERATOR
// Each backend has its own way.
void run(const Cpu&, const op::Conv2dReluPoolBackward&);
void run(const Cuda&, const op::Conv2dReluPoolBackwardData&);
void run(const Cuda&, const op::Conv2dReluPoolBackwardWeights&);

// Whether the fused kernels can compute it, and are the faster way.
bool conv2d_relu_pool_fits(const Cpu&, const op::Conv2dShape& g, DType dtype);
bool conv2d_relu_pool_fits(const Cuda&, const op::Conv2dShape& g, DType dtype);
int64_t conv2d_relu_pool_slices(const Cuda&, const op::Conv2dShape& g, DType dtype);
bool mlp_fits(const Cpu&, const op::MlpShape& g, DType dtype);
bool mlp_fits(const Cuda&, const op::MlpShape& g, DType dtype);
inline bool mlp_starts_from_loss(const Cpu&, const op::MlpShape&) { return false; }
bool mlp_starts_from_loss(const Cuda&, const op::MlpShape& g);

}  // namespace sinter
