// What the kernels of softmax and of the losses made of it share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels_cpu/runtime/parallel.h"

namespace sinter {

// Elements that cost as much as kGrain of light work: exp is dear.
inline int64_t rows_per_grain(int64_t classes) {
  return std::max<int64_t>(1, items_per_grain(classes) / 16);
}

// The sum of term(k) for k < n. Blocks are added up in double, so that a million classes round no
// more than those of a block.
template <class T, class F> T sum_of(int64_t n, const F& term) {
  constexpr int64_t kBlock = 32;
  double total = 0;
  for (int64_t k = 0; k < n;) {
    T block = 0;
    for (const int64_t end = std::min(n, k + kBlock); k < end; ++k) block += term(k);
    total += static_cast<double>(block);
  }
  return static_cast<T>(total);
}

}  // namespace sinter
