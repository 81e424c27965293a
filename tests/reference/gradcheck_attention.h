// Attention, for gradcheck_cases().
#pragma once

#include <vector>

#include "tests/reference/gradcheck_cases.h"

namespace sinter::app {

void add_attention_cases(std::vector<GradcheckCase>& cases);

}  // namespace sinter::app
