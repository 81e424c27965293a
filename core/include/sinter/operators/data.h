// Batches of images.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// index[i] (int64) = pi(first + i), where pi is a permutation of [0, size) fixed by seed and epoch
// (permute_index in philox.h). The same on every backend.
struct ShuffledIndices {
  static constexpr const char* name = "shuffled_indices";
  uint64_t seed = 0, epoch = 0;
  int64_t size = 0, first = 0;
  Out index;
  void each(auto&& f) {
    f("seed", seed), f("epoch", epoch), f("size", size), f("first", first), f("index", index);
  }
};

// The next n of `size` images, in the order of `index`, going on from its beginning behind its end:
//   x[i] = (images[index[at + i]] / 255 - mean[c]) / std[c], as one multiplication and one addition
//   y[i] = labels[index[at + i]]
// at is `first`, or with a position what that holds, which grows by n: so a program takes another
// batch at every call. position: one int64, optional. images: (size, c, h, w) bytes  labels: (size)
// bytes  index: (size), int64  x: (n, c, h, w)  y: (n), int64.
struct GatherShape {
  int64_t n = 0, size = 0, first = 0;
  int c = 0, h = 0, w = 0;
  float mean[4] = {}, std[4] = {1, 1, 1, 1};
  bool operator==(const GatherShape&) const = default;
  void each(auto&& f) const {
    f("n", n), f("size", size), f("first", first), f("c", c), f("h", h), f("w", w);
    f("mean", mean, c), f("std", std, c);
  }
};
struct GatherBatch {
  static constexpr const char* name = "gather_batch";
  GatherShape g;
  In images, labels, index;
  InOut position;
  Out x, y;
  void each(auto&& f) {
    f("g", g), f("images", images), f("labels", labels), f("index", index);
    f("position", position), f("x", x), f("y", y);
  }
};

// See work.h.
double bytes_unread(const GatherBatch& op);

}  // namespace op

SINTER_OPERATOR(ShuffledIndices);
SINTER_OPERATOR(GatherBatch);

}  // namespace sinter
