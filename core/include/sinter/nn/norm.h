// Layers that normalize.
#pragma once

#include <optional>
#include <string>

#include "sinter/nn.h"

namespace sinter {

// What BatchNorm1d and BatchNorm2d share (torch.nn's _BatchNorm). weight, of ones, and bias, of
// zeros: (num_features); running_mean and running_var likewise, and num_batches_tracked, one int64.
// A forward pass uses the batch's statistics in training, and always without running ones; in
// training it updates those there are. It changes them while a program runs as well.
class BatchNorm : public Module {
 public:
  struct Options {
    double eps = 1e-5;
    std::optional<double> momentum = 0.1;  // none: averages of all batches
    bool affine = true;
    bool track_running_stats = true;
    bool bias = true;  // of what is affine
  };
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;
  std::string extra_repr() const override;

  Tensor weight, bias, running_mean, running_var, num_batches_tracked;

 protected:
  // x has a rank from `least` to `most`.
  BatchNorm(const char* name, int num_features, const Options& options, int least, int most);
  static Options default_options() { return {}; }

 private:
  const char* name_;
  int num_features_, least_, most_;
  Options options_;
};
// x: (N, C) or (N, C, L).
class BatchNorm1d : public BatchNorm {
 public:
  explicit BatchNorm1d(int num_features, const Options& options = default_options())
      : BatchNorm("BatchNorm1d", num_features, options, 2, 3) {}
};
// x: (N, C, H, W).
class BatchNorm2d : public BatchNorm {
 public:
  explicit BatchNorm2d(int num_features, const Options& options = default_options())
      : BatchNorm("BatchNorm2d", num_features, options, 4, 4) {}
};

// layer_norm; weight, of ones, and bias, of zeros: normalized_shape.
class LayerNorm : public Module {
 public:
  struct Options {
    double eps = 1e-5;
    bool elementwise_affine = true;
    bool bias = true;
  };
  explicit LayerNorm(int normalized_size, const Options& options = default_options())
      : LayerNorm(Shape{normalized_size}, options) {}
  explicit LayerNorm(const Shape& normalized_shape, const Options& options = default_options());
  Tensor forward(const Tensor& x) override {
    return layer_norm(x, normalized_shape_, weight, bias, options_.eps);
  }
  void visit(Visitor& v) override;
  std::string extra_repr() const override;

  Tensor weight, bias;

 private:
  static Options default_options() { return {}; }
  Shape normalized_shape_;
  Options options_;
};

// group_norm; weight, of ones, and bias, of zeros: (num_channels).
class GroupNorm : public Module {
 public:
  struct Options {
    double eps = 1e-5;
    bool affine = true;
    bool bias = true;  // of what is affine
  };
  GroupNorm(int num_groups, int num_channels, const Options& options = default_options());
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;
  std::string extra_repr() const override;

  Tensor weight, bias;

 private:
  static Options default_options() { return {}; }
  int num_groups_, num_channels_;
  Options options_;
};

}  // namespace sinter
