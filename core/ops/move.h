// Operators on shapes that others are made of.
#pragma once

#include <cstdint>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// Elements [start, start + length) along dimension d, which are there; a copy.
Tensor part_of(const Tensor& x, int d, int64_t start, int64_t length);

// x with zeros in the place of the dimensions' elements before and behind; negative: without them.
// Outside the graph.
Tensor zeros_around(const Tensor& x, const std::vector<int64_t>& before, const Shape& shape);

}  // namespace sinter
