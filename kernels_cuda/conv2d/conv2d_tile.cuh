// What the kernels of convolutions share.
#pragma once

#include <cstdint>

#include "kernels_cuda/runtime/launch.cuh"

namespace sinter::cuda {

inline constexpr int kSharedBytes = 48 << 10;  // what a block gets on every GPU without asking
inline constexpr int kMaxSlices = 256;         // partial sums of a weight's gradient
inline constexpr int kEnoughBlocks = 128;      // about one for each SM of a large GPU

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Adjacent values moved in one instruction.
template <class T> struct alignas(2 * sizeof(T)) Pair { T v[2]; };
template <class T> struct alignas(16) Quad { T v[4]; };

}  // namespace sinter::cuda
