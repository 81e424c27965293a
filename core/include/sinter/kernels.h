// Everything a backend provides: one overload a context type.
//
// The framework above validates shapes, dtypes and devices and allocates outputs; a kernel trusts
// its arguments. Kernels take raw pointers into the memory of their context and small geometry
// structs, and never see a Tensor, so that they can be tested and profiled alone.
//
//   Cpu   returns when the work is done.
//   Cuda  enqueues on ctx.stream and returns; ctx.device is current. It never synchronizes, and
//   takes
//         scratch memory from the caching allocator (runtime.h), not from the driver.
//
// T is float or double, explicitly instantiated in the one file that defines the kernel; where
// other types are allowed the comment says so. A forgotten overload is a compile error, a forgotten
// definition a link error.
//
// Results are bit-identical from run to run and, on the CPU, for any number of threads: reductions
// follow an order that depends on the geometry alone, and gradients gather instead of scattering
// with atomics. Outputs are overwritten, never accumulated into, unless the comment says otherwise.
// All arrays are contiguous, row-major; images are NCHW. Pointers marked nullable may be null.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

struct CUstream_st;  // cudaStream_t without CUDA's headers

namespace sinter {

struct Cpu {};
struct Cuda {
  int device = 0;
  CUstream_st* stream = nullptr;
};

inline constexpr int kMaxRank = 8;

// ---- element-wise and data movement (elementwise, reduce) ---------------------------------------

// Reads x at sum(index[d] * stride[d]) for every index below `shape`, in row-major order. Strides
// are in elements; 0 repeats x along that dimension. Rank 0 is one element.
struct Strided {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride[kMaxRank] = {};
};

// Two operands read over one output shape.
struct Broadcast {
  int rank = 0;
  int64_t shape[kMaxRank] = {};
  int64_t stride_a[kMaxRank] = {};
  int64_t stride_b[kMaxRank] = {};
};

enum class BinaryOp { kAdd, kSub, kMul, kDiv };

template <class T> void fill(const Cpu&, int64_t n, T value, T* y);
template <class T> void fill(const Cuda&, int64_t n, T value, T* y);

// y = x converted element by element. From, To: float, double, int32_t, int64_t, uint8_t, all
// pairs.
template <class From, class To> void cast(const Cpu&, int64_t n, const From* x, To* y);
template <class From, class To> void cast(const Cuda&, int64_t n, const From* x, To* y);

// y (contiguous, g.shape) = x read through g. Permutes and broadcasts. T: also int32_t, int64_t,
// uint8_t.
template <class T> void strided_copy(const Cpu&, const Strided& g, const T* x, T* y);
template <class T> void strided_copy(const Cuda&, const Strided& g, const T* x, T* y);

// y (contiguous, g.shape) = a op b.
template <class T>
void binary(const Cpu&, BinaryOp op, const Broadcast& g, const T* a, const T* b, T* y);
template <class T>
void binary(const Cuda&, BinaryOp op, const Broadcast& g, const T* a, const T* b, T* y);

// y = alpha * x. x == y is allowed.
template <class T> void scale(const Cpu&, int64_t n, T alpha, const T* x, T* y);
template <class T> void scale(const Cuda&, int64_t n, T alpha, const T* x, T* y);

// y += x.
template <class T> void accumulate(const Cpu&, int64_t n, const T* x, T* y);
template <class T> void accumulate(const Cuda&, int64_t n, const T* x, T* y);

// y = max(x, 0); a NaN stays a NaN. The gradient at 0 is 0, as in PyTorch. x == y is allowed.
template <class T> void relu_forward(const Cpu&, int64_t n, const T* x, T* y);
template <class T> void relu_forward(const Cuda&, int64_t n, const T* x, T* y);
// dx = 0 where y <= 0, else dy: a NaN passes its gradient on, as in PyTorch. dy == dx is allowed.
template <class T> void relu_backward(const Cpu&, int64_t n, const T* y, const T* dy, T* dx);
template <class T> void relu_backward(const Cuda&, int64_t n, const T* y, const T* dy, T* dx);

// y[i] = factor * sum over j of x[kept(i) + reduced(j)], i running over `kept` in row-major order.
// float terms are added in blocks, and the blocks in double: however many there are, a sum carries
// the float rounding of a block.
struct Reduce {
  Strided kept;
  Strided reduced;
  double factor = 1;
};
template <class T> void sum(const Cpu&, const Reduce& g, const T* x, T* y);
template <class T> void sum(const Cuda&, const Reduce& g, const T* x, T* y);

// ---- matrix products (gemm, linear) -------------------------------------------------------------

// C[i] = op(A[i]) op(B[i]) for i < batch: op(A) is (m, k), op(B) is (k, n), C is (m, n), row-major
// and tight. ta: A is stored (k, m); tb: B is stored (n, k). stride_* is the distance, in elements,
// from one matrix of the batch to the next; 0 shares one matrix. k == 0 gives zeros. On Cuda a
// product is in TF32 where allow_tf32() says so (runtime.h), unless in full_precision.
struct Gemm {
  bool ta = false, tb = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t batch = 1, stride_a = 0, stride_b = 0;
  bool full_precision = false;
};
template <class T> void gemm(const Cpu&, const Gemm& g, const T* a, const T* b, T* c);
template <class T> void gemm(const Cuda&, const Gemm& g, const T* a, const T* b, T* c);

// x: (n, in)  w: (out, in)  b: (out)  y: (n, out).
struct LinearShape {
  int64_t n = 0, in = 0, out = 0;
};
// y = x w^T + b. b nullable.
template <class T>
void linear_forward(const Cpu&, const LinearShape& g, const T* x, const T* w, const T* b, T* y);
template <class T>
void linear_forward(const Cuda&, const LinearShape& g, const T* x, const T* w, const T* b, T* y);
// dx = dy w.
template <class T>
void linear_backward_data(const Cpu&, const LinearShape& g, const T* dy, const T* w, T* dx);
template <class T>
void linear_backward_data(const Cuda&, const LinearShape& g, const T* dy, const T* w, T* dx);
// dw = dy^T x, db = column sums of dy. Each nullable.
template <class T> void linear_backward_weights(const Cpu&, const LinearShape& g, const T* x,
                                                const T* dy, T* dw, T* db);
template <class T> void linear_backward_weights(const Cuda&, const LinearShape& g, const T* x,
                                                const T* dy, T* dw, T* db);

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
};
// b nullable.
template <class T> void conv2d_forward(const Cpu&, const Conv2dShape& g, const T* x,
                                       const T* weight, const T* b, T* y);
template <class T> void conv2d_forward(const Cuda&, const Conv2dShape& g, const T* x,
                                       const T* weight, const T* b, T* y);
template <class T>
void conv2d_backward_data(const Cpu&, const Conv2dShape& g, const T* dy, const T* weight, T* dx);
template <class T>
void conv2d_backward_data(const Cuda&, const Conv2dShape& g, const T* dy, const T* weight, T* dx);
// dweight, db: each nullable.
template <class T> void conv2d_backward_weights(const Cpu&, const Conv2dShape& g, const T* x,
                                                const T* dy, T* dweight, T* db);
template <class T> void conv2d_backward_weights(const Cuda&, const Conv2dShape& g, const T* x,
                                                const T* dy, T* dweight, T* db);

// ---- pooling (pool2d) ---------------------------------------------------------------------------

// x: (n, c, h, w)  y: (n, c, oh, ow). The framework ensures 2 * pad <= kernel, so that every window
// holds at least one element of x, that every extent but n is at least 1, and what it ensures of a
// convolution's; kh * kw is below 2^31.
struct Pool2dShape {
  int n = 0, c = 0, h = 0, w = 0;
  int kh = 0, kw = 0, stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0;
  int oh = 0, ow = 0;
};
// argmax[i]: offset, in its (h, w) plane, of the element chosen for y[i]: the first maximum in
// row-major order; a NaN counts as the maximum. Padding never wins.
template <class T>
void max_pool2d_forward(const Cpu&, const Pool2dShape& g, const T* x, T* y, int32_t* argmax);
template <class T>
void max_pool2d_forward(const Cuda&, const Pool2dShape& g, const T* x, T* y, int32_t* argmax);
template <class T> void max_pool2d_backward(const Cpu&, const Pool2dShape& g, const T* dy,
                                            const int32_t* argmax, T* dx);
template <class T> void max_pool2d_backward(const Cuda&, const Pool2dShape& g, const T* dy,
                                            const int32_t* argmax, T* dx);
// Divides by kh * kw, padding included (PyTorch's count_include_pad = True).
template <class T> void avg_pool2d_forward(const Cpu&, const Pool2dShape& g, const T* x, T* y);
template <class T> void avg_pool2d_forward(const Cuda&, const Pool2dShape& g, const T* x, T* y);
template <class T> void avg_pool2d_backward(const Cpu&, const Pool2dShape& g, const T* dy, T* dx);
template <class T> void avg_pool2d_backward(const Cuda&, const Pool2dShape& g, const T* dy, T* dx);

// ---- fused layers (conv2d_relu_pool, mlp)
// --------------------------------------------------------

// y = max_pool2d(relu(conv2d(x, weight, b)), 2): convolution, bias, ReLU and 2 x 2 pooling of
// stride 2 in one pass. oh and ow are the convolution's; an odd last row or column is left out.
//   y: (n, o, oh / 2, ow / 2)  choice: as y, which of the window's four was taken, 2 * row +
//   column: the first maximum; a NaN counts as the maximum. b nullable.
// The framework asks fits before it calls the two others, and composes them from the parts if not;
// oh and ow are at least 2.
template <class T> bool conv2d_relu_pool_fits(const Cpu&, const Conv2dShape& g);
template <class T> bool conv2d_relu_pool_fits(const Cuda&, const Conv2dShape& g);
template <class T> void conv2d_relu_pool_forward(const Cpu&, const Conv2dShape& g, const T* x,
                                                 const T* weight, const T* b, T* y,
                                                 uint8_t* choice);
template <class T> void conv2d_relu_pool_forward(const Cuda&, const Conv2dShape& g, const T* x,
                                                 const T* weight, const T* b, T* y,
                                                 uint8_t* choice);
// The gradient goes to the chosen element unless y <= 0. dx, dweight, db: each nullable.
template <class T> void conv2d_relu_pool_backward(const Cpu&, const Conv2dShape& g, const T* x,
                                                  const T* weight, const T* y,
                                                  const uint8_t* choice, const T* dy, T* dx,
                                                  T* dweight, T* db);
// dx nullable. partial: (slices, weights + o), nullable: dweight's and db's sums over slices of the
// images, which sum_slices adds up, or whoever reads them next.
template <class T> int64_t conv2d_relu_pool_slices(const Cuda&, const Conv2dShape& g);
template <class T>
void conv2d_relu_pool_backward(const Cuda&, const Conv2dShape& g, const T* x, const T* weight,
                               const T* y, const uint8_t* choice, const T* dy, T* dx, T* partial);
// sum[i] = the sum over s of partial[s * stride + i].
template <class T>
void sum_slices(const Cuda&, int64_t slices, int64_t stride, int64_t n, const T* partial, T* sum);

// See cross_entropy below.
struct CrossEntropyShape {
  int64_t n = 0, classes = 0;
  double label_smoothing = 0;
  bool mean = true;
};

// Linear layers one after another, a ReLU behind each but the last (and behind that one too with
// relu_last): h_0 = x, h_l = act_l(h_{l-1} w_l^T + b_l).
inline constexpr int kMaxMlpLayers = 8;
struct MlpShape {
  int64_t n = 0;
  int layers = 0;
  int64_t width[kMaxMlpLayers + 1] = {};  // w_l: (width[l], width[l - 1]), l = 1 .. layers
  bool relu_last = false;
};
template <class T> struct MlpLayer {
  const T* w;
  const T* b;  // nullable
  T* y;        // h_l: (n, width[l])
};
template <class T> struct MlpGrads {
  T* dw;  // nullable
  T* db;  // nullable
};
// The gradient of h_layers: dy (n, width[layers]), or, where mlp_starts_from_loss, in its place
// that of cross_entropy's loss, h_layers being its logits.
template <class T> struct MlpGradient {
  const T* dy = nullptr;
  const T* logits = nullptr;
  const int64_t* labels = nullptr;
  CrossEntropyShape loss{};
};
template <class T> bool mlp_fits(const Cpu&, const MlpShape& g);
template <class T> bool mlp_fits(const Cuda&, const MlpShape& g);
// layers[l - 1] holds w_l, b_l and h_l, which is written. Backward passes a ReLU as relu_backward.
template <class T>
void mlp_forward(const Cpu&, const MlpShape& g, const T* x, std::span<const MlpLayer<T>> layers);
template <class T>
void mlp_forward(const Cuda&, const MlpShape& g, const T* x, std::span<const MlpLayer<T>> layers);
// dx nullable. Reads the layers' y.
template <class T>
void mlp_backward(const Cpu&, const MlpShape& g, const T* x, std::span<const MlpLayer<T>> layers,
                  const MlpGradient<T>& from, T* dx, std::span<const MlpGrads<T>> grads);
template <class T>
void mlp_backward(const Cuda&, const MlpShape& g, const T* x, std::span<const MlpLayer<T>> layers,
                  const MlpGradient<T>& from, T* dx, std::span<const MlpGrads<T>> grads);
// Whether it takes the gradient of a loss in the form of what the loss is computed from. below: a
// gradient other than those of the last layer's parameters is asked for.
inline bool mlp_starts_from_loss(const Cpu&, const MlpShape&, bool /*below*/) { return false; }
bool mlp_starts_from_loss(const Cuda&, const MlpShape& g, bool below);

// ---- softmax and loss (softmax) -----------------------------------------------------------------

// x, y: (outer, classes, inner), normalized over the middle dimension. float terms of a row's sum
// are added in blocks, and the blocks in double.
struct SoftmaxShape {
  int64_t outer = 0, classes = 0, inner = 0;
};
template <class T> void log_softmax_forward(const Cpu&, const SoftmaxShape& g, const T* x, T* y);
template <class T> void log_softmax_forward(const Cuda&, const SoftmaxShape& g, const T* x, T* y);
// dx = dy - exp(y) * (sum of dy over the classes).
template <class T>
void log_softmax_backward(const Cpu&, const SoftmaxShape& g, const T* y, const T* dy, T* dx);
template <class T>
void log_softmax_backward(const Cuda&, const SoftmaxShape& g, const T* y, const T* dy, T* dx);

// logits, dlogits: (n, classes)  labels: (n)  loss: one element.
//   q_k = (1 - label_smoothing) [k == label] + label_smoothing / classes
//   loss = -sum over n and k of q_k log_softmax(logits)_k, divided by n when `mean`
//   dlogits = softmax(logits) - q, likewise: the gradient of the loss. Nullable.
// A label outside [0, classes): Cpu throws ValueError; Cuda records a fault that the next
// synchronization throws (runtime.h), and the loss is NaN.
template <class T> void cross_entropy(const Cpu&, const CrossEntropyShape& g, const T* logits,
                                      const int64_t* labels, T* loss, T* dlogits);
template <class T> void cross_entropy(const Cuda&, const CrossEntropyShape& g, const T* logits,
                                      const int64_t* labels, T* loss, T* dlogits);

// *correct += rows of logits (n, classes) whose first maximum stands at the row's label; a NaN
// counts as the maximum.
template <class T> void count_correct(const Cpu&, int64_t n, int64_t classes, const T* logits,
                                      const int64_t* labels, int64_t* correct);
template <class T> void count_correct(const Cuda&, int64_t n, int64_t classes, const T* logits,
                                      const int64_t* labels, int64_t* correct);

// ---- optimizers (optim) -------------------------------------------------------------------------

// All parameters in one call. lr and the slots' steps live in the context's memory, so that a
// captured step reads them anew at every replay; a slot's step counts its finished updates and is
// incremented by the call.
template <class T> struct AdamSlot {
  int64_t n;
  T* p;        // parameter
  const T* g;  // gradient: with slices > 1 (on Cuda), the sum of as many, g_stride apart
  T* m;        // first moment
  T* v;        // second moment
  int64_t* step;
  int64_t slices = 1, g_stride = 0;
};
// Kingma and Ba 2015, algorithm 1; with `decoupled`, Loshchilov and Hutter 2019, algorithm 2 (as
// PyTorch: p *= 1 - lr * weight_decay first). Otherwise weight_decay * p is added to the gradient.
//   t = step + 1;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   p -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
struct AdamConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  bool decoupled = false;
};
template <class T> void adam_step(const Cpu&, const AdamConfig& c,
                                  std::span<const AdamSlot<T>> slots, const double* lr);
template <class T> void adam_step(const Cuda&, const AdamConfig& c,
                                  std::span<const AdamSlot<T>> slots, const double* lr);

template <class T> struct SgdSlot {
  int64_t n;
  T* p;        // parameter
  const T* g;  // gradient
  T* m;        // momentum buffer; null without momentum
  int64_t* step;
};
// g += weight_decay * p; m = g at the first step, else momentum * m + (1 - dampening) * g;
// g = g + momentum * m if nesterov, else m; p -= lr * g (Sutskever et al. 2013, in PyTorch's form).
struct SgdConfig {
  double momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
};
template <class T>
void sgd_step(const Cpu&, const SgdConfig& c, std::span<const SgdSlot<T>> slots, const double* lr);
template <class T>
void sgd_step(const Cuda&, const SgdConfig& c, std::span<const SgdSlot<T>> slots, const double* lr);

// ---- data (data) --------------------------------------------------------------------------------

// index[i] = pi(first + i) for i < count, where pi is a permutation of [0, size) fixed by seed and
// epoch (permute_index in philox.h). The same on every backend.
void shuffled_indices(const Cpu&, uint64_t seed, uint64_t epoch, int64_t size, int64_t first,
                      int64_t count, int64_t* index);
void shuffled_indices(const Cuda&, uint64_t seed, uint64_t epoch, int64_t size, int64_t first,
                      int64_t count, int64_t* index);

// The next n of `size` images, in the order of `index`, going on from its beginning behind its end:
//   x[i] = (images[index[at + i]] / 255 - mean[c]) / std[c], as one multiplication and one addition
//   y[i] = labels[index[at + i]]
// at is `first`, or with a position *position, in the context's memory, which grows by n: so a
// captured step takes another batch at every replay. position: nullable. images: (size, c, h, w)
// bytes  labels: (size) bytes  x: (n, c, h, w)  y: (n).
struct GatherShape {
  int64_t n = 0, size = 0, first = 0;
  int c = 0, h = 0, w = 0;
  float mean[4] = {}, std[4] = {1, 1, 1, 1};
};
template <class T> void gather_batch(const Cpu&, const GatherShape& g, const uint8_t* images,
                                     const uint8_t* labels, const int64_t* index, int64_t* position,
                                     T* x, int64_t* y);
template <class T> void gather_batch(const Cuda&, const GatherShape& g, const uint8_t* images,
                                     const uint8_t* labels, const int64_t* index, int64_t* position,
                                     T* x, int64_t* y);

}  // namespace sinter
