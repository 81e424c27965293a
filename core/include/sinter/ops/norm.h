// Normalization.
#pragma once

#include <optional>

#include "sinter/tensor.h"

namespace sinter {

struct BatchNormOptions {
  bool training = false;
  // Of the newest batch in the running statistics; without a value they are the averages of all
  // batches, which `count` counts.
  std::optional<double> momentum = 0.1;
  double eps = 1e-5;
  // One int64 on x's device, or undefined: incremented in training (num_batches_tracked).
  Tensor count = {};
};
// (x - mean) / sqrt(var + eps) * weight + bias, by channel (Ioffe and Szegedy 2015;
// torch.nn.functional.batch_norm).
//   x: (N, C, *)  running_mean, running_var, weight, bias: (C) or undefined.
// In training the statistics are those of x over all dimensions but the channels', var biased, and
// the running ones change in place to (1 - momentum) running + momentum * x's, with the unbiased
// variance; where x has no elements they stay. Otherwise the running ones are used, and must be
// there. x = (N, C, *) with one value a channel in training: ValueError. GradError for running
// statistics that require grad and would change.
Tensor batch_norm(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                  const Tensor& weight = {}, const Tensor& bias = {},
                  const BatchNormOptions& options = {});

// (x - mean) / sqrt(var + eps) * weight + bias over the last dimensions, var biased (Ba, Kiros and
// Hinton 2016; torch.nn.functional.layer_norm). x: (…, normalized_shape)  weight, bias:
// normalized_shape, of at least one dimension, or undefined.
Tensor layer_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight = {},
                  const Tensor& bias = {}, double eps = 1e-5);
// x / sqrt(mean(x^2) + eps) * weight over the last dimensions (Zhang and Sennrich 2019;
// torch.nn.functional.rms_norm). Shapes as layer_norm's. eps: without a value the distance from 1
// to the next number of x's dtype.
Tensor rms_norm(const Tensor& x, const Shape& normalized_shape, const Tensor& weight = {},
                std::optional<double> eps = {});
// As layer_norm for each of `groups` groups of neighbouring channels of an image, with a weight and
// a bias a channel (Wu and He 2018; torch.nn.functional.group_norm). x: (N, C, *)  weight, bias:
// (C) or undefined. Only N may be 0. ValueError unless groups divides C, and where a group of all
// images together is one value.
Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight = {},
                  const Tensor& bias = {}, double eps = 1e-5);
// group_norm with a group a channel (Ulyanov, Vedaldi and Lempitsky 2016;
// torch.nn.functional.instance_norm with use_input_stats). x: (N, C, *) with more than one value a
// channel of an image: ValueError otherwise.
Tensor instance_norm(const Tensor& x, const Tensor& weight = {}, const Tensor& bias = {},
                     double eps = 1e-5);

}  // namespace sinter
