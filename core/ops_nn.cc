// The operators of neural networks: convolution, pooling, linear layers, softmax and loss.
#include <algorithm>
#include <climits>
#include <tuple>
#include <utility>

#include "arguments.h"
#include "sinter/emit.h"
#include "sinter/fused.h"

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

// ---- fused layers -------------------------------------------------------------------------------

namespace {
thread_local bool fusion_mode = true;
}  // namespace

no_fusion::no_fusion() : before_(std::exchange(fusion_mode, false)) {}
no_fusion::~no_fusion() { fusion_mode = before_; }
// Not while anomalies are looked for: the operator that made one is to be named.
bool fusion_enabled() { return fusion_mode && !anomaly_enabled(); }

Tensor conv2d_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Conv2dOptions& options) {
  const char* op = "conv2d_relu_pool";
  const op::Conv2dShape g = conv2d_shape(x, weight, bias, options);
  const bool fits = fusion_enabled() && with_context(x.device(), [&](const auto& ctx) {
                      return conv2d_relu_pool_fits(ctx, g, x.dtype());
                    });
  if (!fits) return max_pool2d(relu(conv2d(x, weight, bias, options)), 2);

  const Tensor y = empty({g.n, g.o, g.oh / 2, g.ow / 2}, x.options());
  const Tensor choice = empty(y.shape(), {kUInt8, x.device()});
  emit(op::Conv2dReluPoolForward{g, in(x), in(weight), in(bias), out(y), out(choice)});
  return record(
      op, y, {x, weight, bias},
      [g, choice, sx = Saved(x), sw = Saved(weight), sy = Saved(y), need_x = x.requires_grad(),
       need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
        Grads grads(3);
        if (need_x) grads[0] = empty(sx.shape(), dy.options());
        if (need_w) grads[1] = empty(sw.shape(), dy.options());
        if (need_b) grads[2] = empty({g.o}, dy.options());
        with_context(dy.device(), [&](const auto& ctx) {
          const In x = in(sx.get()), w = in(sw.get()), y = in(sy.get());
          if constexpr (std::is_same_v<decltype(ctx), const Cpu&>) {
            emit(op::Conv2dReluPoolBackward{g, x, w, y, in(choice), in(dy), optional_out(grads[0]),
                                            optional_out(grads[1]), optional_out(grads[2])});
          } else {
            if (need_w || need_b) {
              const int64_t weights = sw.shape().numel();
              const Tensor sums =
                  empty({conv2d_relu_pool_slices(ctx, g, dy.dtype()), weights + g.o}, dy.options());
              emit(op::Conv2dReluPoolBackwardWeights{g, x, y, in(choice), in(dy), out(sums)});
              if (need_w) emit(op::SumSlices{0, in(sums), out(grads[1])});
              if (need_b) emit(op::SumSlices{weights, in(sums), out(grads[2])});
            }
            if (need_x)
              emit(op::Conv2dReluPoolBackwardData{g, w, y, in(choice), in(dy), out(grads[0])});
          }
        });
        return grads;
      });
}

Tensor mlp(const Tensor& x, std::span<const Tensor> weights, std::span<const Tensor> biases,
           bool relu_last) {
  const char* op = "mlp";
  require<ValueError>(!weights.empty() && weights.size() == biases.size(), op,
                      ": expected as many biases as weights, and at least one, got ", biases.size(),
                      " and ", weights.size());
  require<ShapeError>(x.defined(), op, ": expected x of shape (…, in), got an undefined tensor");
  const size_t layers = weights.size();
  Shape shape = x.shape();
  std::vector<Shape> shapes;
  op::MlpShape g;
  g.relu_last = relu_last;
  for (size_t l = 0; l < layers; ++l) {
    require<ShapeError>(weights[l].defined(), op, ": expected weights[", l,
                        "] of shape (out, in), got an undefined tensor");
    const op::LinearShape layer = linear_shape(x, shape, weights[l], biases[l]);
    shapes.push_back(shape);
    if (l >= op::kMaxMlpLayers) continue;
    g.layers = static_cast<int>(l) + 1;
    g.n = layer.n;
    g.width[l] = layer.in;
    g.width[l + 1] = layer.out;
  }
  const bool fits =
      fusion_enabled() && layers <= op::kMaxMlpLayers &&
      with_context(x.device(), [&](const auto& ctx) { return mlp_fits(ctx, g, x.dtype()); });
  std::vector<Tensor> ys;
  if (!fits) {
    Tensor y = x;
    for (size_t l = 0; l < layers; ++l) {
      y = linear(y, weights[l], biases[l]);
      if (l + 1 < layers || relu_last) y = relu(y);
    }
    return y;
  }

  std::vector<Tensor> inputs{x};
  std::vector<Saved> saved_weights, saved_ys;
  op::MlpForward forward{g, in(x), {}, {}, {}};
  for (size_t l = 0; l < layers; ++l) {
    inputs.push_back(weights[l]);
    inputs.push_back(biases[l]);
    forward.w.push_back(in(weights[l]));
    forward.b.push_back(in(biases[l]));
    ys.push_back(empty(shapes[l], x.options()));
    forward.y.push_back(out(ys[l]));
  }
  emit(std::move(forward));
  std::vector<bool> needed;
  for (const Tensor& input : inputs) needed.push_back(input.requires_grad());
  for (size_t l = 0; l < layers; ++l) {
    saved_weights.emplace_back(weights[l]);
    // The last result is needed for its ReLU alone: without one it may change.
    if (l + 1 < layers || relu_last) saved_ys.emplace_back(ys[l]);
  }
  return record(
      op, ys.back(), inputs, [g, needed, sx = Saved(x), saved_weights, saved_ys](const Tensor& dy) {
        const auto layers = static_cast<size_t>(g.layers);
        Grads grads(needed.size());
        if (needed[0]) grads[0] = empty(sx.shape(), dy.options());
        for (size_t l = 0; l < layers; ++l) {
          if (needed[1 + 2 * l]) grads[1 + 2 * l] = empty(saved_weights[l].shape(), dy.options());
          if (needed[2 + 2 * l]) grads[2 + 2 * l] = empty({g.width[l + 1]}, dy.options());
        }
        // dz[l]: the gradient of layer l's result before its ReLU, down to the lowest that leads to
        // what is asked for.
        size_t lowest = 0;
        while (!needed[0] && lowest < layers && !needed[1 + 2 * lowest] && !needed[2 + 2 * lowest])
          ++lowest;
        std::vector<Tensor> dz(layers);
        dz.back() = dy;
        if (g.relu_last) {
          dz.back() = empty(dy.shape(), dy.options());
          emit(op::ReluBackward{in(saved_ys.back().get()), in(dy), out(dz.back())});
        }
        op::MlpBackwardChain chain;
        op::MlpBackwardWeights sums;
        chain.g = sums.g = g;
        chain.dy = in(dz.back());
        chain.dx = optional_out(grads[0]);
        sums.x = in(sx.get());
        for (size_t l = 0; l < layers; ++l) {
          const bool is_last = l + 1 == layers;
          const Tensor y = is_last && !g.relu_last ? Tensor() : saved_ys[l].get();
          if (!is_last && l >= lowest) dz[l] = empty(y.shape(), dy.options());
          chain.w.push_back(in(saved_weights[l].get()));
          chain.y.push_back(in(y));
          chain.dz.push_back(is_last ? Out() : out(dz[l]));
          sums.y.push_back(in(y));
          sums.dz.push_back(in(dz[l]));
          sums.dw.push_back(optional_out(grads[1 + 2 * l]));
          sums.db.push_back(optional_out(grads[2 + 2 * l]));
        }
        if (needed[0] || lowest + 1 < layers) emit(std::move(chain));
        if (std::count(needed.begin() + 1, needed.end(), true) > 0) emit(std::move(sums));
        return grads;
      });
}

}  // namespace sinter
