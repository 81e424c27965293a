#include "sinter/nn/norm.h"

#include "core/base/detail.h"
#include "core/nn/repr.h"
#include "core/ops/arguments.h"

namespace sinter {
namespace {

Tensor parameter_of(const Shape& shape, double value) {
  return full(shape, value).set_requires_grad();
}

}  // namespace

// ---- batch normalization ------------------------------------------------------------------------

BatchNorm::BatchNorm(const char* name, int num_features, const Options& options, int least,
                     int most)
    : name_(name), num_features_(num_features), least_(least), most_(most), options_(options) {
  require<ValueError>(num_features >= 1, name, ": expected positive num_features, got ",
                      num_features);
  const Shape by_channel{num_features};
  if (options.affine) {
    weight = parameter_of(by_channel, 1);
    if (options.bias) bias = parameter_of(by_channel, 0);
  }
  if (options.track_running_stats) {
    running_mean = zeros(by_channel);
    running_var = ones(by_channel);
    num_batches_tracked = zeros({}, {kInt64, kCpu});
  }
}

Tensor BatchNorm::forward(const Tensor& x) {
  require<ShapeError>(
      x.defined() && x.rank() >= least_ && x.rank() <= most_ && x.size(1) == num_features_, name_,
      ": expected x of shape (N, ", num_features_,
      most_ == 4 ? ", H, W)" : ") or with a length behind it", ", got ", ShapeOf{x});
  const bool training = is_training(), updates = training && options_.track_running_stats;
  return batch_norm(x, running_mean, running_var, weight, bias,
                    {.training = training || !options_.track_running_stats,
                     .momentum = updates ? options_.momentum : 0,
                     .eps = options_.eps,
                     .count = updates ? num_batches_tracked : Tensor()});
}

void BatchNorm::visit(Visitor& v) {
  v.parameter("weight", weight);
  v.parameter("bias", bias);
  v.buffer("running_mean", running_mean);
  v.buffer("running_var", running_var);
  v.buffer("num_batches_tracked", num_batches_tracked);
}

std::string BatchNorm::extra_repr() const {
  return str(num_features_, ", eps=", repr(options_.eps),
             ", momentum=", options_.momentum ? repr(*options_.momentum) : "None",
             ", affine=", repr(options_.affine), ", bias=", repr(bias.defined()),
             ", track_running_stats=", repr(options_.track_running_stats));
}

// ---- layers and groups --------------------------------------------------------------------------

LayerNorm::LayerNorm(const Shape& normalized_shape, const Options& options)
    : normalized_shape_(normalized_shape), options_(options) {
  require<ValueError>(normalized_shape.rank() >= 1,
                      "LayerNorm: expected a normalized_shape of at least one dimension, got ",
                      normalized_shape);
  if (options.elementwise_affine) {
    weight = parameter_of(normalized_shape, 1);
    if (options.bias) bias = parameter_of(normalized_shape, 0);
  }
}

void LayerNorm::visit(Visitor& v) {
  v.parameter("weight", weight);
  v.parameter("bias", bias);
}

std::string LayerNorm::extra_repr() const {
  return str(normalized_shape_, ", eps=", repr(options_.eps),
             ", elementwise_affine=", repr(options_.elementwise_affine),
             ", bias=", repr(bias.defined()));
}

GroupNorm::GroupNorm(int num_groups, int num_channels, const Options& options)
    : num_groups_(num_groups), num_channels_(num_channels), options_(options) {
  require<ValueError>(num_groups >= 1 && num_channels >= 1 && num_channels % num_groups == 0,
                      "GroupNorm: expected positive num_groups that divide num_channels, got ",
                      num_groups, " and ", num_channels);
  if (!options.affine) return;
  weight = parameter_of({num_channels}, 1);
  if (options.bias) bias = parameter_of({num_channels}, 0);
}

Tensor GroupNorm::forward(const Tensor& x) {
  return group_norm(x, num_groups_, weight, bias, options_.eps);
}

void GroupNorm::visit(Visitor& v) {
  v.parameter("weight", weight);
  v.parameter("bias", bias);
}

std::string GroupNorm::extra_repr() const {
  return str(num_groups_, ", ", num_channels_, ", eps=", repr(options_.eps),
             ", affine=", repr(options_.affine), ", bias=", repr(bias.defined()));
}

}  // namespace sinter
