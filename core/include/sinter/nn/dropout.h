// Dropout as layers, from the calling thread's generator. What they do in eval mode is nothing.
#pragma once

#include <string>

#include "sinter/nn.h"

namespace sinter {

class Dropout : public Module {
 public:
  explicit Dropout(double p = 0.5);  // ValueError unless 0 <= p <= 1
  Tensor forward(const Tensor& x) override { return dropout(x, p_, is_training()); }
  std::string extra_repr() const override;

 private:
  double p_;
};

// Of whole channels.
class Dropout2d : public Module {
 public:
  explicit Dropout2d(double p = 0.5);  // likewise
  Tensor forward(const Tensor& x) override { return dropout2d(x, p_, is_training()); }
  std::string extra_repr() const override;

 private:
  double p_;
};

}  // namespace sinter
