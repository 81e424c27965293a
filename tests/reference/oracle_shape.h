// Operators that move values, beside their definitions.
#pragma once

#include <string>
#include <vector>

#include "tests/reference/oracle_cases.h"

namespace sinter::app {

OpCase narrow_case(const oracle::Sizes& shape, int dim, int64_t start, int64_t length);
OpCase pad_case(const oracle::Sizes& shape, const std::vector<int64_t>& padding,
                const std::string& mode);
// Of shapes that differ along `dim` alone.
OpCase cat_case(const std::vector<oracle::Sizes>& shapes, int dim);
OpCase triangle_case(const oracle::Sizes& shape, int64_t diagonal, bool upper);
OpCase gather_case(const oracle::Sizes& shape, int dim, const oracle::Sizes& index);
OpCase index_select_case(const oracle::Sizes& shape, int dim, int64_t count);
OpCase embedding_case(const oracle::Sizes& index, const oracle::Sizes& weight, int64_t padding_idx);

void add_shape_cases(std::vector<VerifyCase>& cases);

}  // namespace sinter::app
