// Operators that move values, for gradcheck_cases().
#pragma once

#include <vector>

#include "tests/reference/gradcheck_cases.h"

namespace sinter::app {

void add_shape_gradchecks(std::vector<GradcheckCase>& cases);

}  // namespace sinter::app
