#include "sinter/nn/dropout.h"

#include "core/base/detail.h"
#include "core/nn/repr.h"

namespace sinter {
namespace {

double probability(const char* name, double p) {
  require<ValueError>(p >= 0 && p <= 1, name, ": expected p in [0, 1], got ", p);
  return p;
}
std::string dropout_repr(double p) { return str("p=", repr(p), ", inplace=False"); }

}  // namespace

Dropout::Dropout(double p) : p_(probability("Dropout", p)) {}
Dropout2d::Dropout2d(double p) : p_(probability("Dropout2d", p)) {}

std::string Dropout::extra_repr() const { return dropout_repr(p_); }
std::string Dropout2d::extra_repr() const { return dropout_repr(p_); }

}  // namespace sinter
