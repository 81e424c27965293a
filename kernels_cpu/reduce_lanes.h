// The reductions that are worth run-time vectors, kLaneGroup neighbouring columns at a time; a
// contiguous run is rows of kLaneGroup. Which term goes to which accumulator is the same on every
// instruction set.
#pragma once

#include <cstdint>

namespace sinter {

inline constexpr int64_t kLaneGroup = 16;

// Column c < kLaneGroup takes x[k * stride + c] for k < rows. T is float or double.

// best[c] = the largest, or the smallest, of itself and these; a NaN beats every number.
template <class T>
void best_of_rows(bool largest, const T* x, int64_t stride, int64_t rows, T* best);
// Adds x - shift[c] to sum[c], and its square to squares[c].
template <class T> void moments_of_rows(const T* x, int64_t stride, int64_t rows,
                                        const double* shift, double* sum, double* squares);

// sum[c] of exp(x - largest[c]) goes on with these, largest[c] growing to the largest of them.
template <class T>
void powers_of_rows(const T* x, int64_t stride, int64_t rows, T* largest, double* sum);

}  // namespace sinter
