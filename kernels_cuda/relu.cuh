// ReLU, for the kernels that apply it to what they store.
#pragma once

#include <cmath>

namespace sinter::cuda {

// act(x, act_limit<T>(relu)) = max(x, 0), or x as it is without `relu`: a select and no branch. Not
// fmax, which would turn a NaN into 0.
template <class T> __device__ T act_limit(bool relu) { return relu ? T(0) : T(-INFINITY); }
template <class T> __device__ T act(T x, T limit) { return x < limit ? T(0) : x; }
template <class T> __device__ T relu_of(T x) { return act(x, T(0)); }

}  // namespace sinter::cuda
