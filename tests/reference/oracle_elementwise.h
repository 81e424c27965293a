// Element-wise operators and losses for `sinter verify` and `sinter gradcheck`.
#pragma once

#include <vector>

#include "tests/reference/comparison.h"
#include "tests/reference/gradcheck_cases.h"

namespace sinter::app {

// Beside functions and derivatives of one or two numbers, written out here.
void add_elementwise_cases(std::vector<VerifyCase>& cases);
void add_elementwise_gradchecks(std::vector<GradcheckCase>& cases);

}  // namespace sinter::app
