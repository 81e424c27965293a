// ReLU, for the kernels that apply it to what they store.
#pragma once

namespace sinter::cuda {

// max(x, 0). Not fmax, which would turn a NaN into 0.
template <class T> __device__ T relu_of(T x) { return x < T(0) ? T(0) : x; }

}  // namespace sinter::cuda
