// Elements chosen by indices, which are int64. One that is out of range is a ValueError that names
// the first of them, of a GPU's at the next synchronization.
#pragma once

#include "sinter/operators/reduce.h"

namespace sinter {
namespace op {

// The function that indices were given to, as errors name it.
enum class Indexing { kIndexSelect, kEmbedding, kGather, kOneHot };
const char* name(Indexing by);

// y (outer, k, inner) = x (outer, n, inner) at the k indices. Any dtype.
struct IndexSelect {
  static constexpr const char* name = "index_select";
  Indexing by = Indexing::kIndexSelect;
  AlongShape g;
  In x, index;
  Out y;
  void each(auto&& f) { f("by", by), f("g", g), f("x", x), f("index", index), f("y", y); }
};
// dx (outer, n, inner): at each index the sum of dy (outer, k, inner) where it stands, in an order
// that the indices alone tell; 0 at `skip`. Floating.
struct IndexSelectBackward {
  static constexpr const char* name = "index_select_backward";
  AlongShape g;
  int64_t skip = -1;
  In index, dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("skip", skip), f("index", index), f("dy", dy), f("dx", dx); }
};

// Indices (outer, n, inner) along a dimension of x that has `limit` elements, `step` apart; the
// other coordinates of each of the outer * inner lines are read through `lines`.
struct GatherLines {
  AlongShape index;
  Strided lines;
  int64_t limit = 0, step = 0;
  bool operator==(const GatherLines&) const = default;
  void each(auto&& f) const {
    f("index", index), f("lines", lines), f("limit", limit), f("step", step);
  }
};
// y (of the indices' shape) = x at the line and the index. Any dtype.
struct Gather {
  static constexpr const char* name = "gather";
  GatherLines g;
  In x, index;
  Out y;
  void each(auto&& f) { f("g", g), f("x", x), f("index", index), f("y", y); }
};
// dx = the sums of dy that belong to each element of x. Floating.
struct GatherBackward {
  static constexpr const char* name = "gather_backward";
  GatherLines g;
  In index, dy;
  Out dx;
  void each(auto&& f) { f("g", g), f("index", index), f("dy", dy), f("dx", dx); }
};

// y (k, classes) = 1 at the index of each row, else 0. y: int64.
struct OneHot {
  static constexpr const char* name = "one_hot";
  int64_t classes = 0;
  In index;
  Out y;
  void each(auto&& f) { f("classes", classes), f("index", index), f("y", y); }
};

}  // namespace op

SINTER_OPERATOR(IndexSelect);
SINTER_OPERATOR(IndexSelectBackward);
SINTER_OPERATOR(Gather);
SINTER_OPERATOR(GatherBackward);
SINTER_OPERATOR(OneHot);

}  // namespace sinter
