// What becomes of a loss's terms.
#pragma once

namespace sinter {

// kMean: added up and divided by how many there are, or by their weights; kNone: each by itself.
enum class Reduction { kMean, kSum, kNone };
const char* name(Reduction reduction);  // "mean", "sum", "none"

}  // namespace sinter
