// Pooling with all its options, adaptive and of one dimension, beside its definition.
#pragma once

#include <vector>

#include "tests/reference/oracle_cases.h"

namespace sinter::app {

void add_pool_cases(std::vector<VerifyCase>& cases);

}  // namespace sinter::app
