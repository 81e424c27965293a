// The operators of neural networks: convolution, pooling, linear layers, softmax and loss.
#include <algorithm>
#include <climits>
#include <tuple>
#include <utility>

#include "arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// A tensor's shape in a message, put into words only if the message is needed: these checks run at
// every call.
struct ShapeOf {
  const Tensor& tensor;
};
std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
  return shape.tensor.defined() ? out << shape.tensor.shape() : out << "an undefined tensor";
}

// Every tensor beside x must share its dtype and device.
void check_like(const char* op, const char* what, const Tensor& t, const Tensor& x) {
  if (t.dtype() != x.dtype()) {
    throw DtypeError(str(op, ": expected ", what, " of x's dtype ", x.dtype(), ", got ", t.dtype(),
                         "; convert with to()"));
  }
  if (t.device() != x.device()) {
    throw DeviceError(str(op, ": expected ", what, " on x's device ", x.device(), ", got ",
                          t.device(), "; move with to()"));
  }
}

// Kernels hold extents, and positions in images with their padding, as int: below this, sums of two
// of them and steps beyond an end do not overflow.
constexpr int64_t kMostExtent = (int64_t{1} << 30) - 1;

int to_int(const char* op, int64_t value) {
  require<ShapeError>(value <= kMostExtent, op, ": extent ", value, " is beyond 2^30 - 1");
  return static_cast<int>(value);
}

// Kernels count the pixels of a plane and the elements of a window as int.
void check_area(const char* op, const char* what, int h, int w) {
  require<ShapeError>(int64_t{h} * w <= INT_MAX, op, ": expected ", what,
                      " of fewer than 2^31 elements, got (", h, ", ", w, ")");
}

void check_pairs(const char* op, std::initializer_list<std::tuple<const char*, Pair, int>> pairs) {
  for (const auto& [name, p, least] : pairs) {
    if (p.h < least || p.w < least) {
      throw ValueError(
          str(op, ": expected ", name, " of at least ", least, ", got (", p.h, ", ", p.w, ")"));
    }
  }
}

// Windows along one direction of an image, in numbers that kernels can work with: a stride that
// leaves but one window, and the dilation of a window of one element, are no more than the image.
struct Axis {
  int size, kernel, stride, pad, dilation;
  int out;  // windows
};

// Throws, showing the shapes of x and of the whole kernel, if not even one window fits.
Axis axis_of(const char* op, int64_t size, int64_t kernel, int stride, int pad, int dilation,
             const Shape& x, const Shape& window) {
  const int64_t span = int64_t{dilation} * (to_int(op, kernel) - 1) + 1;
  const int64_t padded = to_int(op, size) + 2 * int64_t{pad};
  if (span > padded) {
    throw ShapeError(str(op, ": the kernel ", window, " spans ", span, " elements, more than the ",
                         size, " + 2 * ", pad, " of x ", x,
                         "; use more padding, a smaller kernel or a larger image"));
  }
  const int most = to_int(op, padded);
  return {static_cast<int>(size),   static_cast<int>(kernel),
          std::min(stride, most),   pad,
          std::min(dilation, most), static_cast<int>((padded - span) / stride + 1)};
}

// The two axes as kernels take them.
template <class G> void set_axes(G& g, const Axis& v, const Axis& h) {
  g.h = v.size;
  g.w = h.size;
  g.kh = v.kernel;
  g.kw = h.kernel;
  g.stride_h = v.stride;
  g.stride_w = h.stride;
  g.pad_h = v.pad;
  g.pad_w = h.pad;
  g.oh = v.out;
  g.ow = h.out;
}

op::Conv2dShape conv2d_shape(const Tensor& x, const Tensor& w, const Tensor& b,
                             const Conv2dOptions& options) {
  const char* op = "conv2d";
  require<ShapeError>(x.defined() && x.rank() == 4 && x.size(2) > 0 && x.size(3) > 0, op,
                      ": expected x of shape (N, C, H, W) with H and W of at least 1, got ",
                      ShapeOf{x});
  check_pairs(op, {{"stride", options.stride, 1},
                   {"padding", options.padding, 0},
                   {"dilation", options.dilation, 1}});
  require<ValueError>(options.groups >= 1, op, ": expected groups of at least 1, got ",
                      options.groups);
  require<ShapeError>(
      w.defined() && w.rank() == 4 && w.size(0) > 0 && w.size(2) > 0 && w.size(3) > 0, op,
      ": expected weight of shape (O, C / groups, KH, KW) with O, KH and KW of at least 1, got ",
      ShapeOf{w});
  const int64_t channels = int64_t{to_int(op, w.size(1))} * options.groups;
  if (x.size(1) != channels) {
    throw ShapeError(str(op, ": expected x with ", channels, " channels, got ", x.size(1), ": x ",
                         x.shape(), ", weight ", w.shape(), ", groups ", options.groups));
  }
  if (w.size(0) % options.groups != 0) {
    throw ShapeError(str(op, ": expected weight with a multiple of groups = ", options.groups,
                         " output channels, got ", w.size(0), ": x ", x.shape(), ", weight ",
                         w.shape()));
  }
  require<ShapeError>(w.size(1) * w.size(2) * w.size(3) <= INT_MAX, op,
                      ": expected windows of fewer than 2^31 elements, got weight ", w.shape());
  require_floating(op, x);
  check_like(op, "weight", w, x);
  if (b.defined()) {
    require<ShapeError>(b.shape() == Shape{w.size(0)}, op, ": expected bias of shape (", w.size(0),
                        ",), got ", b.shape());
    check_like(op, "bias", b, x);
  }
  const Axis v = axis_of(op, x.size(2), w.size(2), options.stride.h, options.padding.h,
                         options.dilation.h, x.shape(), w.shape());
  const Axis h = axis_of(op, x.size(3), w.size(3), options.stride.w, options.padding.w,
                         options.dilation.w, x.shape(), w.shape());
  check_area(op, "images", v.size, h.size);
  check_area(op, "results", v.out, h.out);
  op::Conv2dShape g;
  g.n = to_int(op, x.size(0));
  g.c = to_int(op, x.size(1));
  g.o = to_int(op, w.size(0));
  set_axes(g, v, h);
  g.dil_h = v.dilation;
  g.dil_w = h.dilation;
  g.groups = options.groups;
  g.algo = conv_algo();
  g.tf32 = allow_tf32();
  return g;
}

op::Pool2dShape pool2d_shape(const char* op, const Tensor& x, Pair kernel,
                             const Pool2dOptions& options) {
  require<ShapeError>(
      x.defined() && x.rank() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op,
      ": expected x of shape (N, C, H, W) with C, H and W of at least 1, got ", ShapeOf{x});
  require_floating(op, x);
  const Pair stride{options.stride.h ? options.stride.h : kernel.h,
                    options.stride.w ? options.stride.w : kernel.w};
  check_pairs(op, {{"kernel", kernel, 1}, {"stride", stride, 1}, {"padding", options.padding, 0}});
  require<ValueError>(options.padding.h <= kernel.h / 2 && options.padding.w <= kernel.w / 2, op,
                      ": expected padding of at most half the kernel (", kernel.h, ", ", kernel.w,
                      "), got (", options.padding.h, ", ", options.padding.w, ")");
  const Shape window{kernel.h, kernel.w};
  const Axis v =
      axis_of(op, x.size(2), kernel.h, stride.h, options.padding.h, 1, x.shape(), window);
  const Axis h =
      axis_of(op, x.size(3), kernel.w, stride.w, options.padding.w, 1, x.shape(), window);
  check_area(op, "images", v.size, h.size);
  check_area(op, "results", v.out, h.out);
  check_area(op, "windows", v.kernel, h.kernel);
  op::Pool2dShape g;
  g.n = to_int(op, x.size(0));
  g.c = to_int(op, x.size(1));
  set_axes(g, v, h);
  return g;
}

// Checks the arguments of linear; `shape`, x's, becomes the result's.
op::LinearShape linear_shape(const Tensor& x, Shape& shape, const Tensor& weight,
                             const Tensor& bias) {
  const char* op = "linear";
  require<ShapeError>(weight.defined() && weight.rank() == 2, op,
                      ": expected weight of shape (out, in), got ", ShapeOf{weight});
  if (shape.rank() < 1 || shape[-1] != weight.size(1)) {
    throw ShapeError(str(op, ": expected x of shape (…, ", weight.size(1), ") for weight ",
                         weight.shape(), ", got ", shape));
  }
  require_floating(op, x);
  check_like(op, "weight", weight, x);
  if (bias.defined()) {
    require<ShapeError>(bias.shape() == Shape{weight.size(0)}, op, ": expected bias of shape (",
                        weight.size(0), ",), got ", bias.shape());
    check_like(op, "bias", bias, x);
  }
  op::LinearShape g;
  g.tf32 = allow_tf32();
  g.in = weight.size(1);
  g.out = weight.size(0);
  g.n = 1;
  for (int d = 0; d + 1 < shape.rank(); ++d) g.n *= shape[d];
  shape[-1] = g.out;
  shape.numel(op);  // throws if nobody can count them
  return g;
}

// Of no images or no channels: sums without terms, and the bias. Kernels are spared both.
Tensor conv2d_of_nothing(const op::Conv2dShape& g, const Tensor& x, const Tensor& weight,
                         const Tensor& bias) {
  const Tensor y = zeros({g.n, g.o, g.oh, g.ow}, x.options());
  const Tensor sums = record(
      "conv2d", y, {x, weight}, [x_shape = x.shape(), w_shape = weight.shape()](const Tensor& dy) {
        return Grads{zeros(x_shape, dy.options()), zeros(w_shape, dy.options())};
      });
  return bias.defined() ? add(sums, bias.reshape({g.o, 1, 1})) : sums;
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Conv2dOptions& options) {
  const op::Conv2dShape g = conv2d_shape(x, weight, bias, options);
  if (g.n == 0 || g.c == 0) return conv2d_of_nothing(g, x, weight, bias);
  const Tensor y = empty({g.n, g.o, g.oh, g.ow}, x.options());
  emit(op::Conv2dForward{g, in(x), in(weight), in(bias), out(y)});
  return record("conv2d", y, {x, weight, bias},
                [g, sx = Saved(x), sw = Saved(weight), need_x = x.requires_grad(),
                 need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
                  Grads grads(3);
                  if (need_x) grads[0] = empty(sx.shape(), dy.options());
                  if (need_w) grads[1] = empty(sw.shape(), dy.options());
                  if (need_b) grads[2] = empty({g.o}, dy.options());
                  if (need_x) {
                    emit(op::Conv2dBackwardData{g, in(dy), in(sw.get()), out(grads[0])});
                  }
                  if (need_w || need_b) {
                    emit(op::Conv2dBackwardWeights{g, in(sx.get()), in(dy), optional_out(grads[1]),
                                                   optional_out(grads[2])});
                  }
                  return grads;
                });
}

Tensor max_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options) {
  const op::Pool2dShape g = pool2d_shape("max_pool2d", x, kernel, options);
  const Tensor y = empty({g.n, g.c, g.oh, g.ow}, x.options());
  const DType code = int64_t{g.kh} * g.kw <= 256 ? kUInt8 : kInt32;
  const Tensor choice = empty(y.shape(), {code, x.device()});
  emit(op::MaxPool2dForward{g, in(x), out(y), out(choice)});
  return record("max_pool2d", y, {x}, [g, shape = x.shape(), choice](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.options());
    emit(op::MaxPool2dBackward{g, in(dy), in(choice), out(dx)});
    return Grads{dx};
  });
}

Tensor avg_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options) {
  const op::Pool2dShape g = pool2d_shape("avg_pool2d", x, kernel, options);
  const Tensor y = empty({g.n, g.c, g.oh, g.ow}, x.options());
  emit(op::AvgPool2dForward{g, in(x), out(y)});
  return record("avg_pool2d", y, {x}, [g, shape = x.shape()](const Tensor& dy) {
    const Tensor dx = empty(shape, dy.options());
    emit(op::AvgPool2dBackward{g, in(dy), out(dx)});
    return Grads{dx};
  });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "linear";
  require<ShapeError>(x.defined(), op, ": expected x of shape (…, in), got an undefined tensor");
  Shape shape = x.shape();
  const op::LinearShape g = linear_shape(x, shape, weight, bias);
  const Tensor y = empty(shape, x.options());
  emit(op::LinearForward{g, in(x), in(weight), in(bias), out(y)});
  return record(op, y, {x, weight, bias},
                [g, sx = Saved(x), sw = Saved(weight), need_x = x.requires_grad(),
                 need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
                  Grads grads(3);
                  if (need_x) grads[0] = empty(sx.shape(), dy.options());
                  if (need_w) grads[1] = empty(sw.shape(), dy.options());
                  if (need_b) grads[2] = empty({g.out}, dy.options());
                  if (need_x) {
                    emit(op::LinearBackwardData{g, in(dy), in(sw.get()), out(grads[0])});
                  }
                  if (need_w || need_b) {
                    emit(op::LinearBackwardWeights{g, in(sx.get()), in(dy), optional_out(grads[1]),
                                                   optional_out(grads[2])});
                  }
                  return grads;
                });
}

Tensor log_softmax(const Tensor& x, int dim) {
  require<ShapeError>(x.defined() && x.rank() >= 1,
                      "log_softmax: expected x of at least one dimension, got ", ShapeOf{x});
  require_floating("log_softmax", x);
  const int d = x.shape().index(dim, "log_softmax");
  op::SoftmaxShape g{1, x.size(d), 1};
  for (int i = 0; i < d; ++i) g.outer *= x.size(i);
  for (int i = d + 1; i < x.rank(); ++i) g.inner *= x.size(i);
  const Tensor y = empty(x.shape(), x.options());
  emit(op::LogSoftmaxForward{g, in(x), out(y)});
  return record("log_softmax", y, {x}, [g, sy = Saved(y)](const Tensor& dy) {
    const Tensor& y = sy.get();
    const Tensor dx = empty(y.shape(), y.options());
    emit(op::LogSoftmaxBackward{g, in(y), in(dy), out(dx)});
    return Grads{dx};
  });
}

namespace {

void check_labels(const char* op, const Tensor& logits, const Tensor& labels) {
  require<ShapeError>(logits.defined() && logits.rank() == 2 && logits.size(1) > 0, op,
                      ": expected logits of shape (N, C), got ", ShapeOf{logits});
  require_floating(op, logits);
  require<ShapeError>(labels.defined() && labels.shape() == Shape{logits.size(0)}, op,
                      ": expected labels of shape (", logits.size(0), ",) for logits ",
                      logits.shape(), ", got ", ShapeOf{labels});
  require<DtypeError>(labels.dtype() == kInt64, op, ": expected int64 labels, got ", labels.dtype(),
                      "; convert with to(kInt64)");
  require<DeviceError>(labels.device() == logits.device(), op, ": expected labels on ",
                       logits.device(), ", the device of logits, got ", labels.device());
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& labels,
                     const CrossEntropyOptions& options) {
  check_labels("cross_entropy", logits, labels);
  require<ValueError>(options.label_smoothing >= 0 && options.label_smoothing <= 1,
                      "cross_entropy: expected label_smoothing in [0, 1], got ",
                      options.label_smoothing);
  const op::CrossEntropyShape g{logits.size(0), logits.size(1), options.label_smoothing,
                                options.reduction == Reduction::kMean};
  // The gradient comes almost free with the loss; it is kept in place of the probabilities.
  const Tensor loss = empty({}, logits.options());
  const Tensor unit = recording({&logits}) ? empty(logits.shape(), logits.options()) : Tensor();
  emit(op::CrossEntropy{g, in(logits), in(labels), out(loss), optional_out(unit)});
  return record("cross_entropy", loss, {logits},
                [unit](const Tensor& dy) { return Grads{unit * dy}; });
}

void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels) {
  check_labels("add_correct", logits, labels);
  require<ShapeError>(count.defined() && count.numel() == 1,
                      "add_correct: expected a count of one element, got ", ShapeOf{count});
  require<DtypeError>(count.dtype() == kInt64, "add_correct: expected an int64 count, got ",
                      count.dtype());
  require<DeviceError>(count.device() == logits.device(), "add_correct: expected count on ",
                       logits.device(), ", the device of logits, got ", count.device());
  emit(op::CountCorrect{in(logits), in(labels), inout(count)});
}

}  // namespace sinter
