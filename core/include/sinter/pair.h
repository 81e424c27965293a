// Extents of images.
#pragma once

namespace sinter {

// One value for both directions, or (height, width).
struct Pair {
  int h, w;
  Pair(int both)
      : h(both), w(both) {}  // NOLINT: implicit, so that conv2d(…, {.stride = 2}) reads well
  Pair(int height, int width) : h(height), w(width) {}
};

}  // namespace sinter
