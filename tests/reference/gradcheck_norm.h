// The cases of gradcheck_cases.h that normalization and dropout have.
#pragma once

#include <vector>

#include "tests/reference/gradcheck_cases.h"

namespace sinter::app {

void add_norm_gradchecks(std::vector<GradcheckCase>& cases);

}  // namespace sinter::app
