#include "sinter/nn/activation.h"

#include <utility>

#include "core/base/detail.h"
#include "core/nn/repr.h"

namespace sinter {

GELU::GELU(std::string approximate) : approximate_(std::move(approximate)) {
  require<ValueError>(approximate_ == "none" || approximate_ == "tanh",
                      "GELU: expected approximate none or tanh, got '", approximate_, "'");
}

std::string GELU::extra_repr() const { return str("approximate='", approximate_, "'"); }
std::string LeakyReLU::extra_repr() const { return str("negative_slope=", repr(slope_)); }
std::string ELU::extra_repr() const { return str("alpha=", repr(alpha_)); }
std::string Softplus::extra_repr() const {
  return str("beta=", repr(beta_), ", threshold=", repr(threshold_));
}
std::string Softmax::extra_repr() const { return str("dim=", dim_); }
std::string LogSoftmax::extra_repr() const { return str("dim=", dim_); }

}  // namespace sinter
