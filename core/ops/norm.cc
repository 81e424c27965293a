// Normalization.
#include "sinter/operators/norm.h"

#include <limits>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/ops.h"

namespace sinter {
namespace {

// An optional tensor beside x.
void check_optional(const char* op, const char* what, const Tensor& t, const Shape& shape,
                    const Tensor& x) {
  if (!t.defined()) return;
  require<ShapeError>(t.shape() == shape, op, ": expected ", what, " of shape ", shape, " for x ",
                      x.shape(), ", got ", t.shape());
  check_like(op, what, t, x);
}

// Extents from dimension 2 on, merged.
int64_t places(const Tensor& x) {
  int64_t l = 1;
  for (int d = 2; d < x.rank(); ++d) l *= x.size(d);
  return l;
}

void check_images(const char* op, const Tensor& x) {
  require<ShapeError>(x.defined() && x.rank() >= 2, op, ": expected x of shape (N, C, *), got ",
                      ShapeOf{x});
  require_floating(op, x);
}

void check_batch_norm(const char* op, const Tensor& x, const Tensor& running_mean,
                      const Tensor& running_var, const Tensor& weight, const Tensor& bias,
                      const BatchNormOptions& options) {
  check_images(op, x);
  const Shape by_channel{x.size(1)};
  check_optional(op, "weight", weight, by_channel, x);
  check_optional(op, "bias", bias, by_channel, x);
  for (const auto& [what, t] :
       {std::pair("running_mean", &running_mean), std::pair("running_var", &running_var)}) {
    check_optional(op, what, *t, by_channel, x);
    require<ValueError>(options.training || t->defined(), op, ": expected ", what,
                        " when not training, got an undefined tensor");
    require<GradError>(!options.training || !t->requires_grad(), op, ": expected ", what,
                       " without grad, as training changes it");
  }
  if (!options.training) return;
  require<ValueError>(x.size(0) * places(x) != 1, op,
                      ": expected more than one value a channel when training, got x of shape ",
                      x.shape());
  if (options.count.defined()) {
    require<DtypeError>(options.count.dtype() == kInt64, op, ": expected an int64 count, got ",
                        options.count.dtype());
    require<ShapeError>(options.count.numel() == 1, op, ": expected a count of one element, got ",
                        options.count.shape());
    require<DeviceError>(options.count.device() == x.device(), op,
                         ": expected count on x's device ", x.device(), ", got ",
                         options.count.device());
  }
  require<ValueError>(options.momentum || options.count.defined(), op,
                      ": expected a momentum, or a count to average by");
}

// What the closures of both kinds know beside their operator.
struct Needs {
  bool x, weight, bias;
};

// The gradients of x, weight and bias by one operator of kind Op, which gets them last.
template <class Op> Grads gradients(Op op, const Saved& x, const Saved& weight,
                                    const Shape& weight_shape, const Tensor& mean,
                                    const Tensor& rstd, const Needs& needs, const Tensor& dy) {
  Grads grads(3);
  if (needs.x) grads[0] = empty(x.shape(), dy.options());
  if (needs.weight) grads[1] = empty(weight_shape, dy.options());
  if (needs.bias) grads[2] = empty(weight_shape, dy.options());
  op.x = in(x.get());
  op.dy = in(dy);
  op.weight = in(weight.get());
  op.mean = in(mean);
  op.rstd = in(rstd);
  op.dx = optional_out(grads[0]);
  op.dweight = optional_out(grads[1]);
  op.dbias = optional_out(grads[2]);
  emit(std::move(op));
  return grads;
}

// weight, bias: of the shape by_channel, which holds g.groups * g.channels elements.
Tensor row_norm(const char* name, const op::RowNormShape& g, const Tensor& x, const Tensor& weight,
                const Tensor& bias, const Shape& by_channel, double eps) {
  check_optional(name, "weight", weight, by_channel, x);
  check_optional(name, "bias", bias, by_channel, x);
  const Tensor y = empty(x.shape(), x.options());
  const Tensor mean = empty({g.n, g.groups}, {kFloat64, x.device()}), rstd = empty_like(mean);
  emit(op::RowNormForward{g, eps, in(x), in(weight), in(bias), out(y), out(mean), out(rstd)});
  const Needs needs{x.requires_grad(), weight.requires_grad(), bias.requires_grad()};
  return record(
      name, y, {x, weight, bias},
      [g, needs, by_channel, sx = Saved(x), sw = Saved(weight), mean, rstd](const Tensor& dy) {
        op::RowNormBackward op;
        op.g = g;
        return gradients(std::move(op), sx, sw, by_channel, mean, rstd, needs, dy);
      });
}

// Of rows over the last dimensions.
op::RowNormShape last_dimensions(const char* op, const Tensor& x, const Shape& normalized) {
  require_defined(op, "x", x);
  require_floating(op, x);
  bool fits = normalized.rank() >= 1 && normalized.rank() <= x.rank();
  for (int d = 1; fits && d <= normalized.rank(); ++d)
    fits = normalized[-d] == x.size(x.rank() - d);
  require<ShapeError>(fits, op, ": expected x whose shape ends in normalized_shape ", normalized,
                      ", of at least one dimension, got ", x.shape());
  op::RowNormShape g;
  g.n = 1;
  for (int d = 0; d < x.rank() - normalized.rank(); ++d) g.n *= x.size(d);
  g.channels = normalized.numel();
  return g;
}

}  // namespace

Tensor batch_norm(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                  const Tensor& weight, const Tensor& bias, const BatchNormOptions& options) {
  const char* name = "batch_norm";
  check_batch_norm(name, x, running_mean, running_var, weight, bias, options);
  const op::BatchNormShape g{x.size(0), x.size(1), places(x)};
  const Shape by_channel{g.c};
  const Tensor y = empty(x.shape(), x.options());
  const Tensor mean = empty(by_channel, {kFloat64, x.device()}), rstd = empty_like(mean);
  op::BatchNormForward forward;
  forward.g = g;
  forward.training = options.training;
  forward.eps = options.eps;
  forward.x = in(x);
  forward.weight = in(weight);
  forward.bias = in(bias);
  forward.running_mean = inout(running_mean);
  forward.running_var = inout(running_var);
  if (options.training) {
    forward.cumulative = !options.momentum;
    forward.momentum = options.momentum.value_or(0);
    forward.count = inout(options.count);
  }
  forward.y = out(y);
  forward.mean = out(mean);
  forward.rstd = out(rstd);
  emit(std::move(forward));
  const Needs needs{x.requires_grad(), weight.requires_grad(), bias.requires_grad()};
  return record(name, y, {x, weight, bias},
                [g, training = options.training, needs, by_channel, sx = Saved(x),
                 sw = Saved(weight), mean, rstd](const Tensor& dy) {
                  op::BatchNormBackward op;
                  op.g = g;
                  op.training = training;
                  return gradients(std::move(op), sx, sw, by_channel, mean, rstd, needs, dy);
                });
}

Tensor layer_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight,
                  const Tensor& bias, double eps) {
  const op::RowNormShape g = last_dimensions("layer_norm", x, normalized_shape);
  return row_norm("layer_norm", g, x, weight, bias, normalized_shape, eps);
}

Tensor rms_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight,
                std::optional<double> eps) {
  op::RowNormShape g = last_dimensions("rms_norm", x, normalized_shape);
  g.centred = false;
  const double least = x.dtype() == kFloat64 ? std::numeric_limits<double>::epsilon()
                                             : double{std::numeric_limits<float>::epsilon()};
  return row_norm("rms_norm", g, x, weight, {}, normalized_shape, eps.value_or(least));
}

namespace {

Tensor grouped(const char* op, const Tensor& x, int64_t groups, const Tensor& weight,
               const Tensor& bias, double eps) {
  op::RowNormShape g;
  g.n = x.size(0);
  g.groups = groups;
  g.channels = x.size(1) / std::max<int64_t>(groups, 1);
  g.inner = places(x);
  return row_norm(op, g, x, weight, bias, {x.size(1)}, eps);
}

}  // namespace

Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  double eps) {
  const char* op = "group_norm";
  check_images(op, x);
  require<ShapeError>(x.size(1) > 0 && places(x) > 0, op,
                      ": expected x of at least one channel and one place, got ", x.shape());
  require<ValueError>(groups >= 1 && x.size(1) % groups == 0, op,
                      ": expected groups that divide the channels of x ", x.shape(), ", got ",
                      groups);
  require<ValueError>(x.size(0) * (x.size(1) / groups) * places(x) != 1, op,
                      ": expected more than one value a channel, got x of shape ", x.shape(),
                      " in ", groups, " groups");
  return grouped(op, x, groups, weight, bias, eps);
}

Tensor instance_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const char* op = "instance_norm";
  check_images(op, x);
  require<ValueError>(places(x) != 1, op,
                      ": expected more than one value a channel of an image, got x of shape ",
                      x.shape());
  return grouped(op, x, x.size(1), weight, bias, eps);
}

}  // namespace sinter
