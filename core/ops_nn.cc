// The operators of neural networks: convolution, pooling, linear layers, softmax and loss.
#include <algorithm>
#include <array>
#include <climits>
#include <tuple>
#include <utility>

#include "sinter/dispatch.h"
#include "sinter/fused.h"
#include "sinter/graph.h"
#include "slice_sum.h"

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

Conv2dShape conv2d_shape(const Tensor& x, const Tensor& w, const Tensor& b,
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
  Conv2dShape g;
  g.n = to_int(op, x.size(0));
  g.c = to_int(op, x.size(1));
  g.o = to_int(op, w.size(0));
  set_axes(g, v, h);
  g.dil_h = v.dilation;
  g.dil_w = h.dilation;
  g.groups = options.groups;
  return g;
}

Pool2dShape pool2d_shape(const char* op, const Tensor& x, Pair kernel,
                         const Pool2dOptions& options) {
  require<ShapeError>(
      x.defined() && x.rank() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op,
      ": expected x of shape (N, C, H, W) with C, H and W of at least 1, got ", ShapeOf{x});
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
  Pool2dShape g;
  g.n = to_int(op, x.size(0));
  g.c = to_int(op, x.size(1));
  set_axes(g, v, h);
  return g;
}

// Checks the arguments of linear; `shape`, x's, becomes the result's.
LinearShape linear_shape(const Tensor& x, Shape& shape, const Tensor& weight, const Tensor& bias) {
  const char* op = "linear";
  require<ShapeError>(weight.defined() && weight.rank() == 2, op,
                      ": expected weight of shape (out, in), got ", ShapeOf{weight});
  if (shape.rank() < 1 || shape[-1] != weight.size(1)) {
    throw ShapeError(str(op, ": expected x of shape (…, ", weight.size(1), ") for weight ",
                         weight.shape(), ", got ", shape));
  }
  check_like(op, "weight", weight, x);
  if (bias.defined()) {
    require<ShapeError>(bias.shape() == Shape{weight.size(0)}, op, ": expected bias of shape (",
                        weight.size(0), ",), got ", bias.shape());
    check_like(op, "bias", bias, x);
  }
  LinearShape g;
  g.in = weight.size(1);
  g.out = weight.size(0);
  g.n = 1;
  for (int d = 0; d + 1 < shape.rank(); ++d) g.n *= shape[d];
  shape[-1] = g.out;
  shape.numel(op);  // throws if nobody can count them
  return g;
}

// nullptr for an undefined tensor.
template <class T> T* data_or_null(const Tensor& t) { return t.defined() ? t.data<T>() : nullptr; }

// Of no images or no channels: sums without terms, and the bias. Kernels are spared both.
Tensor conv2d_of_nothing(const Conv2dShape& g, const Tensor& x, const Tensor& weight,
                         const Tensor& bias) {
  const Tensor y = dispatch("conv2d", x, [&]<class T>(const auto&) {
    return zeros({g.n, g.o, g.oh, g.ow}, x.options());
  });
  const Tensor sums = record(
      "conv2d", y, {x, weight}, [x_shape = x.shape(), w_shape = weight.shape()](const Tensor& dy) {
        return Grads{zeros(x_shape, dy.options()), zeros(w_shape, dy.options())};
      });
  return bias.defined() ? add(sums, bias.reshape({g.o, 1, 1})) : sums;
}

}  // namespace

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Conv2dOptions& options) {
  const Conv2dShape g = conv2d_shape(x, weight, bias, options);
  if (g.n == 0 || g.c == 0) return conv2d_of_nothing(g, x, weight, bias);
  Tensor y = empty({g.n, g.o, g.oh, g.ow}, x.options());
  dispatch("conv2d", x, [&]<class T>(const auto& ctx) {
    conv2d_forward(ctx, g, x.data<const T>(), weight.data<const T>(), data_or_null<const T>(bias),
                   y.data<T>());
  });
  return record("conv2d", y, {x, weight, bias},
                [g, sx = Saved(x), sw = Saved(weight), need_x = x.requires_grad(),
                 need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
                  Grads grads(3);
                  if (need_x) grads[0] = empty(sx.shape(), dy.options());
                  if (need_w) grads[1] = empty(sw.shape(), dy.options());
                  if (need_b) grads[2] = empty({g.o}, dy.options());
                  dispatch("conv2d", dy, [&]<class T>(const auto& ctx) {
                    const T* d = dy.data<const T>();
                    if (need_x) {
                      conv2d_backward_data(ctx, g, d, sw.get().data<const T>(), grads[0].data<T>());
                    }
                    if (need_w || need_b) {
                      conv2d_backward_weights(ctx, g, sx.get().data<const T>(), d,
                                              data_or_null<T>(grads[1]), data_or_null<T>(grads[2]));
                    }
                  });
                  return grads;
                });
}

Tensor max_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options) {
  const Pool2dShape g = pool2d_shape("max_pool2d", x, kernel, options);
  Tensor y = empty({g.n, g.c, g.oh, g.ow}, x.options());
  Tensor argmax = empty(y.shape(), {kInt32, x.device()});
  dispatch("max_pool2d", x, [&]<class T>(const auto& ctx) {
    max_pool2d_forward(ctx, g, x.data<const T>(), y.data<T>(), argmax.data<int32_t>());
  });
  return record("max_pool2d", y, {x}, [g, shape = x.shape(), argmax](const Tensor& dy) {
    Tensor dx = empty(shape, dy.options());
    dispatch("max_pool2d", dy, [&]<class T>(const auto& ctx) {
      max_pool2d_backward(ctx, g, dy.data<const T>(), argmax.data<const int32_t>(), dx.data<T>());
    });
    return Grads{dx};
  });
}

Tensor avg_pool2d(const Tensor& x, Pair kernel, const Pool2dOptions& options) {
  const Pool2dShape g = pool2d_shape("avg_pool2d", x, kernel, options);
  Tensor y = empty({g.n, g.c, g.oh, g.ow}, x.options());
  dispatch("avg_pool2d", x, [&]<class T>(const auto& ctx) {
    avg_pool2d_forward(ctx, g, x.data<const T>(), y.data<T>());
  });
  return record("avg_pool2d", y, {x}, [g, shape = x.shape()](const Tensor& dy) {
    Tensor dx = empty(shape, dy.options());
    dispatch("avg_pool2d", dy, [&]<class T>(const auto& ctx) {
      avg_pool2d_backward(ctx, g, dy.data<const T>(), dx.data<T>());
    });
    return Grads{dx};
  });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "linear";
  require<ShapeError>(x.defined(), op, ": expected x of shape (…, in), got an undefined tensor");
  Shape shape = x.shape();
  const LinearShape g = linear_shape(x, shape, weight, bias);
  Tensor y = empty(shape, x.options());
  dispatch(op, x, [&]<class T>(const auto& ctx) {
    linear_forward(ctx, g, x.data<const T>(), weight.data<const T>(), data_or_null<const T>(bias),
                   y.data<T>());
  });
  return record(op, y, {x, weight, bias},
                [g, sx = Saved(x), sw = Saved(weight), need_x = x.requires_grad(),
                 need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
                  Grads grads(3);
                  if (need_x) grads[0] = empty(sx.shape(), dy.options());
                  if (need_w) grads[1] = empty(sw.shape(), dy.options());
                  if (need_b) grads[2] = empty({g.out}, dy.options());
                  dispatch("linear", dy, [&]<class T>(const auto& ctx) {
                    const T* d = dy.data<const T>();
                    if (need_x) {
                      linear_backward_data(ctx, g, d, sw.get().data<const T>(), grads[0].data<T>());
                    }
                    if (need_w || need_b) {
                      linear_backward_weights(ctx, g, sx.get().data<const T>(), d,
                                              data_or_null<T>(grads[1]), data_or_null<T>(grads[2]));
                    }
                  });
                  return grads;
                });
}

Tensor log_softmax(const Tensor& x, int dim) {
  require<ShapeError>(x.defined() && x.rank() >= 1,
                      "log_softmax: expected x of at least one dimension, got ", ShapeOf{x});
  const int d = x.shape().index(dim, "log_softmax");
  SoftmaxShape g{1, x.size(d), 1};
  for (int i = 0; i < d; ++i) g.outer *= x.size(i);
  for (int i = d + 1; i < x.rank(); ++i) g.inner *= x.size(i);
  Tensor y = empty(x.shape(), x.options());
  dispatch("log_softmax", x, [&]<class T>(const auto& ctx) {
    log_softmax_forward(ctx, g, x.data<const T>(), y.data<T>());
  });
  return record("log_softmax", y, {x}, [g, sy = Saved(y)](const Tensor& dy) {
    const Tensor& y = sy.get();
    Tensor dx = empty(y.shape(), y.options());
    dispatch("log_softmax", y, [&]<class T>(const auto& ctx) {
      log_softmax_backward(ctx, g, y.data<const T>(), dy.data<const T>(), dx.data<T>());
    });
    return Grads{dx};
  });
}

namespace {

// Where the gradient of a loss comes from.
struct OfCrossEntropy {
  CrossEntropyShape shape;
  Saved logits, labels;
  bool intact() const { return logits.intact() && labels.intact(); }
};

void check_labels(const char* op, const Tensor& logits, const Tensor& labels) {
  require<ShapeError>(logits.defined() && logits.rank() == 2 && logits.size(1) > 0, op,
                      ": expected logits of shape (N, C), got ", ShapeOf{logits});
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
  const CrossEntropyShape g{logits.size(0), logits.size(1), options.label_smoothing,
                            options.reduction == Reduction::kMean};
  // The gradient comes almost free with the loss; it is kept in place of the probabilities.
  // A backward pass that makes the gradient from the logits does not wait for either.
  Tensor loss, unit;
  {
    const branch_guard beside(logits.device());
    loss = empty({}, logits.options());
    if (recording({&logits})) unit = empty(logits.shape(), logits.options());
    dispatch("cross_entropy", logits, [&]<class T>(const auto& ctx) {
      cross_entropy(ctx, g, logits.data<const T>(), labels.data<const int64_t>(), loss.data<T>(),
                    data_or_null<T>(unit));
    });
  }
  if (unit.defined()) unit.set_origin(OfCrossEntropy{g, Saved(logits), Saved(labels)});
  return record(
      "cross_entropy", loss, {logits}, [unit](const Tensor& dy) { return Grads{unit * dy}; },
      [unit] { return Grads{unit}; });
}

void add_correct(const Tensor& count, const Tensor& logits, const Tensor& labels) {
  check_labels("add_correct", logits, labels);
  require<ShapeError>(count.defined() && count.numel() == 1,
                      "add_correct: expected a count of one element, got ", ShapeOf{count});
  require<DtypeError>(count.dtype() == kInt64, "add_correct: expected an int64 count, got ",
                      count.dtype());
  require<DeviceError>(count.device() == logits.device(), "add_correct: expected count on ",
                       logits.device(), ", the device of logits, got ", count.device());
  dispatch("add_correct", logits, [&]<class T>(const auto& ctx) {
    count_correct(ctx, logits.size(0), logits.size(1), logits.data<const T>(),
                  labels.data<const int64_t>(), count.data<int64_t>());
  });
  count.bump_version();
}

// ---- fused layers -------------------------------------------------------------------------------

namespace {
thread_local bool fusion_mode = true;
}  // namespace

no_fusion::no_fusion() : before_(std::exchange(fusion_mode, false)) {}
no_fusion::~no_fusion() { fusion_mode = before_; }
// Not while anomalies are looked for: the operator that made one is to be named.
bool fusion_enabled() { return fusion_mode && !anomaly_enabled(); }

#ifdef SINTER_WITH_CUDA
template <class T> void SliceSum::stand_for(const Tensor& sum) const {
  sum.defer([sums = *this, n = sum.numel()](void* to) {
    sum_slices(cuda_context(sums.slices.device().index), sums.slices.size(0), sums.slices.size(1),
               n, sums.slices.data<const T>() + sums.first, static_cast<T*>(to));
  });
  sum.set_origin(*this);
}
#endif

Tensor conv2d_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Conv2dOptions& options) {
  const char* op = "conv2d_relu_pool";
  const Conv2dShape g = conv2d_shape(x, weight, bias, options);
  const bool fits =
      fusion_enabled() && conv_algo() == ConvAlgo::kAuto && g.n > 0 && g.c > 0 && g.oh >= 2 &&
      g.ow >= 2 &&
      dispatch(op, x, [&]<class T>(const auto& ctx) { return conv2d_relu_pool_fits<T>(ctx, g); });
  if (!fits) return max_pool2d(relu(conv2d(x, weight, bias, options)), 2);

  Tensor y = empty({g.n, g.o, g.oh / 2, g.ow / 2}, x.options());
  Tensor choice = empty(y.shape(), {kUInt8, x.device()});
  dispatch(op, x, [&]<class T>(const auto& ctx) {
    conv2d_relu_pool_forward(ctx, g, x.data<const T>(), weight.data<const T>(),
                             data_or_null<const T>(bias), y.data<T>(), choice.data<uint8_t>());
  });
  return record(
      op, y, {x, weight, bias},
      [g, choice, sx = Saved(x), sw = Saved(weight), sy = Saved(y), need_x = x.requires_grad(),
       need_w = weight.requires_grad(), need_b = bias.requires_grad()](const Tensor& dy) {
        Grads grads(3);
        if (need_x) grads[0] = empty(sx.shape(), dy.options());
        if (need_w) grads[1] = empty(sw.shape(), dy.options());
        if (need_b) grads[2] = empty({g.o}, dy.options());
        dispatch("conv2d_relu_pool", dy, [&]<class T>(const auto& ctx) {
          const T *x = sx.get().data<const T>(), *w = sw.get().data<const T>(),
                  *y = sy.get().data<const T>(), *d = dy.data<const T>();
          const auto* chosen = choice.data<const uint8_t>();
          T* dx = data_or_null<T>(grads[0]);
          if constexpr (std::is_same_v<std::decay_t<decltype(ctx)>, Cpu>) {
            conv2d_relu_pool_backward(ctx, g, x, w, y, chosen, d, dx, data_or_null<T>(grads[1]),
                                      data_or_null<T>(grads[2]));
          } else {
            const int64_t weights = sw.shape().numel();
            SliceSum sums;
            if (need_w || need_b)
              sums.slices =
                  empty({conv2d_relu_pool_slices<T>(ctx, g), weights + g.o}, dy.options());
            conv2d_relu_pool_backward(ctx, g, x, w, y, chosen, d, dx, data_or_null<T>(sums.slices));
            if (need_w) sums.stand_for<T>(grads[1]);
            sums.first = weights;
            if (need_b) sums.stand_for<T>(grads[2]);
          }
        });
        return grads;
      });
}

namespace {

// The arrays of a stack of layers, as kernels take them.
template <class T>
std::array<MlpLayer<T>, kMaxMlpLayers> mlp_layers(const std::vector<Tensor>& weights,
                                                  const std::vector<Tensor>& biases,
                                                  const std::vector<Tensor>& ys) {
  std::array<MlpLayer<T>, kMaxMlpLayers> layers{};
  for (size_t l = 0; l < weights.size(); ++l)
    layers[l] = {weights[l].data<const T>(), data_or_null<const T>(biases[l]), ys[l].data<T>()};
  return layers;
}

std::vector<Tensor> get_all(const std::vector<Saved>& saved) {
  std::vector<Tensor> tensors;
  for (const Saved& s : saved) tensors.push_back(s.get());
  return tensors;
}

}  // namespace

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
  MlpShape g;
  g.relu_last = relu_last;
  for (size_t l = 0; l < layers; ++l) {
    require<ShapeError>(weights[l].defined(), op, ": expected weights[", l,
                        "] of shape (out, in), got an undefined tensor");
    const LinearShape layer = linear_shape(x, shape, weights[l], biases[l]);
    shapes.push_back(shape);
    if (l >= kMaxMlpLayers) continue;
    g.layers = static_cast<int>(l) + 1;
    g.n = layer.n;
    g.width[l] = layer.in;
    g.width[l + 1] = layer.out;
  }
  const bool fits = fusion_enabled() && layers <= kMaxMlpLayers &&
                    dispatch(op, x, [&]<class T>(const auto& ctx) { return mlp_fits<T>(ctx, g); });
  if (!fits) {
    Tensor y = x;
    for (size_t l = 0; l < layers; ++l) {
      y = linear(y, weights[l], biases[l]);
      if (l + 1 < layers || relu_last) y = relu(y);
    }
    return y;
  }

  std::vector<Tensor> ys, inputs{x}, plain_weights, plain_biases;
  std::vector<Saved> saved_weights, saved_ys;
  for (size_t l = 0; l < layers; ++l) {
    ys.push_back(empty(shapes[l], x.options()));
    inputs.push_back(weights[l]);
    inputs.push_back(biases[l]);
    plain_weights.push_back(weights[l].detach());
    plain_biases.push_back(biases[l].defined() ? biases[l].detach() : Tensor());
    saved_weights.emplace_back(weights[l]);
  }
  dispatch(op, x, [&]<class T>(const auto& ctx) {
    const auto arrays = mlp_layers<T>(plain_weights, plain_biases, ys);
    mlp_forward(ctx, g, x.data<const T>(), std::span<const MlpLayer<T>>(arrays.data(), layers));
  });
  std::vector<bool> needed;
  for (const Tensor& input : inputs) needed.push_back(input.requires_grad());
  // The last result is needed for its ReLU alone: without one it may change.
  for (size_t l = 0; l + (relu_last ? 0 : 1) < layers; ++l) saved_ys.emplace_back(ys[l]);
  return record(
      op, ys.back(), inputs,
      [g, needed, plain_biases, sx = Saved(x), saved_weights, saved_ys,
       last = ys.back().detach()](const Tensor& dy) {
        const auto layers = static_cast<size_t>(g.layers);
        const std::vector<Tensor> weights = get_all(saved_weights);
        std::vector<Tensor> ys = get_all(saved_ys);
        if (!g.relu_last) ys.push_back(last);
        Grads grads(needed.size());
        if (needed[0]) grads[0] = empty(sx.shape(), dy.options());
        for (size_t l = 0; l < layers; ++l) {
          if (needed[1 + 2 * l]) grads[1 + 2 * l] = empty(weights[l].shape(), dy.options());
          if (needed[2 + 2 * l]) grads[2 + 2 * l] = empty({g.width[l + 1]}, dy.options());
        }
        const auto* loss = dy.origin<OfCrossEntropy>();
        if (loss && !loss->intact()) loss = nullptr;
        const bool below = std::count(needed.begin(), needed.end() - 2, true) > 0;
        dispatch("mlp", dy, [&]<class T>(const auto& ctx) {
          const auto arrays = mlp_layers<T>(weights, plain_biases, ys);
          MlpGradient<T> from;
          if (loss && mlp_starts_from_loss(ctx, g, below))
            from = {.logits = loss->logits.get().template data<const T>(),
                    .labels = loss->labels.get().template data<const int64_t>(),
                    .loss = loss->shape};
          else
            from.dy = dy.data<const T>();
          std::array<MlpGrads<T>, kMaxMlpLayers> out{};
          for (size_t l = 0; l < layers; ++l)
            out[l] = {data_or_null<T>(grads[1 + 2 * l]), data_or_null<T>(grads[2 + 2 * l])};
          mlp_backward(ctx, g, sx.get().data<const T>(),
                       std::span<const MlpLayer<T>>(arrays.data(), layers), from,
                       data_or_null<T>(grads[0]), std::span<const MlpGrads<T>>(out.data(), layers));
        });
        return grads;
      });
}

}  // namespace sinter
