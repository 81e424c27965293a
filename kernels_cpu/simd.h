// Highway, with the instruction sets this room compiles for. Included by files that
// foreach_target.h compiles once for each of them; the best one is chosen at run time.
//
// Not compiled for: SSSE3 and AVX3_DL, because SSE4 and AVX3 serve the same kernels as well;
// vectors of a length unknown to the compiler (SVE, RVV), because register tiles are arrays of
// vectors. Those machines use NEON or Highway's portable code.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
