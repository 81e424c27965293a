// Dropout, and the random stream that it takes its masks from.
#pragma once

#include "sinter/operators/operator.h"
#include "sinter/philox.h"

namespace sinter {
namespace op {

// draw = state; then state[1] += 1. Both are int64 (2): the generator's seed and how many draws it
// has given on this device. An operator of its own, so that those that use the draw only read it:
// they and their backward pass compute the same mask from these two numbers, and none is kept.
struct NextDraw {
  static constexpr const char* name = "next_draw";
  InOut state;
  Out draw;
  void each(auto&& f) { f("state", state), f("draw", draw); }
};

// y[i] = x[i] * scale, or x[i] * 0 where the 32 random bits of i / group are below `threshold`,
// which is at most 2^32. Its own derivative: dx from dy with the same draw.
struct Dropout {
  static constexpr const char* name = "dropout";
  int64_t group = 1;
  uint64_t threshold = 0;
  double scale = 1;
  In x, draw;
  Out y;
  void each(auto&& f) {
    f("group", group), f("threshold", threshold), f("scale", scale), f("x", x);
    f("draw", draw), f("y", y);
  }
};

}  // namespace op

// The random bits of items 4 * block .. 4 * block + 3 of a draw. The second highest bit of the
// counter keeps them apart from what a Generator of the same seed draws on the host, the highest is
// permute_index's.
SINTER_HD inline Philox4 draw_bits(int64_t seed, int64_t draw, int64_t block) {
  return philox(static_cast<uint64_t>(seed), static_cast<uint64_t>(block),
                (uint64_t{1} << 62) | static_cast<uint64_t>(draw));
}

SINTER_OPERATOR(NextDraw);
SINTER_OPERATOR(Dropout);

}  // namespace sinter
