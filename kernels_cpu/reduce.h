// Sums for the other kernels of this room; see reduce.cc.
#pragma once

#include "sinter/operators/reduce.h"

namespace sinter {

// y[i] = factor * sum over j of x[kept(i) + reduced(j)], as op::Sum.
template <class T>
void sum(const op::Strided& kept, const op::Strided& reduced, double factor, const T* x, T* y);

}  // namespace sinter
