// Winograd's algorithm for 3 x 3 windows (Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for
// Convolutional Neural Networks"): what both backends' kernels are made of.
//
// Sequences are polynomials, and a correlation a product of such: to know it, it is enough to know
// its values at sufficiently many points, and there it is a product of numbers. A tile of 4 x 4
// results depends on a patch of 6 x 6 pixels, for which 6 points in each direction do:
//   forward           y  = A^T [(G w G^T) . (B^T x B)] A     summed over the channels
//   backward weights  dw = G^T [(A dy A^T) . (B^T x B)] G    summed over the tiles
// where . goes element by element: instead of 144 products for each pair of channels, 36. The sums
// make them 36 matrix products. Backward data is the forward pass of dy, with the weights rotated
// and their channels exchanged. winograd_transforms.h has A, B and G.
//
// Precision. The transforms magnify rounding errors, by how much depends on the points. Largest
// error by largest result, in float, x, w and dy uniform in [-1, 1], sums of 64 / 512 channels or
// tiles, and as a share of what the tests allow a sum of so many products:
//   points                     forward                       backward weights
//   0, +-1, +-2, oo            5.0e-6 / 9.7e-6  112 / 128 %  3.9e-6 / 8.0e-6  55 /  52 %
//   0, +-1, +-1/2, oo          6.6e-6 / 1.0e-5  119 / 129 %  3.6e-6 / 1.2e-5  82 / 153 %
//   0, +-1/2, +-2, oo          2.5e-6 / 5.2e-6   72 /  54 %  1.6e-6 / 3.3e-6  49 /  36 %
//   0, 1, -1, 1/2, -2, oo      2.1e-6 / 4.9e-6   55 /  42 %  2.0e-6 / 3.7e-6  35 /  28 %
//   0, +-3/4, +-3/2, oo        1.5e-6 / 3.0e-6   50 /  43 %  1.0e-6 / 2.7e-6  20 /  29 %
// The last ones are used here; their powers, and so A and B, are exact in binary. Sums of fewer
// than 16 products use up to 280 % of what the tests allow as many. The products are in full
// precision also where TF32 is allowed: in TF32 they are off by 2e-3 of the largest result, where
// without the transforms it would be 3e-4.
//   A NaN or an infinity reaches every result of the tiles whose patches hold it.
#pragma once

#include <cstdint>
#include <string>

#include "sinter/operators/conv2d.h"

namespace sinter::winograd {

inline constexpr int kTile = 4, kPatch = 6, kWindow = 3;
inline constexpr int kPoints = kPatch * kPatch, kTaps = kWindow * kWindow;

// The points are 0, kA, -kA, kB, -kB and infinity, in this order. Values at p and -p share the even
// and the odd part of the polynomial.
inline constexpr double kA = 0.75, kB = 1.5, kA2 = kA * kA, kB2 = kB * kB;
// One over the product of a point's distances from the others.
inline constexpr double kAt0 = 1 / (kA2 * kB2);
inline constexpr double kAtA = 1 / (2 * kA2 * (kA2 - kB2));
inline constexpr double kAtB = 1 / (2 * kB2 * (kB2 - kA2));

// What a layer has not that the algorithm needs; empty if it has all.
inline std::string lacks(const op::Conv2dShape& g) {
  const bool fits = g.kh == kWindow && g.kw == kWindow && g.stride_h == 1 && g.stride_w == 1 &&
                    g.dil_h == 1 && g.dil_w == 1 && g.groups == 1 && g.pad_h < kWindow &&
                    g.pad_w < kWindow;
  return fits ? "" : "windows of 3 x 3, stride and dilation 1, one group and padding below 3";
}

// Tiles of n planes (h, w).
inline int64_t tiles(int64_t n, int64_t h, int64_t w) {
  return n * ((h + kTile - 1) / kTile) * ((w + kTile - 1) / kTile);
}
// Whether there are at least so many, and half of what they cover lies in the planes.
inline bool fills_tiles(int64_t n, int64_t h, int64_t w, int64_t least) {
  const int64_t count = tiles(n, h, w);
  return count >= least && 2 * n * h * w >= kTile * kTile * count;
}

}  // namespace sinter::winograd
