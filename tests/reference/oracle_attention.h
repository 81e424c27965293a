// Attention beside its definition.
#pragma once

#include <optional>

#include "sinter/ops/attention.h"
#include "tests/reference/oracle_cases.h"

namespace sinter::app {

struct AttentionCase {
  oracle::Sizes q, k, v;
  enum class Mask { kNone, kBool, kNumbers } mask = Mask::kNone;
  oracle::Sizes mask_shape = {};
  bool causal = false;
  std::optional<double> scale = {};
  bool gqa = false;
  int64_t none_seen = -1;  // the query of the mask that sees no key; -1: chance
};
// A bool mask lets three of four keys be seen. One of numbers is an input with a gradient, except
// where a query is to see no key, which is by -infinity.
OpCase attention_case(const AttentionCase& c);

void add_attention_cases(std::vector<VerifyCase>& cases);

}  // namespace sinter::app
