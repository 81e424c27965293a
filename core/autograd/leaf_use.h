// How modules learn of parameters that their forward uses and their visit forgot. Private to core.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// Told of every leaf that an operator recorded on this thread takes and that no module is known to
// list (Tensor::listed).
class LeafWatch {
 public:
  virtual ~LeafWatch() = default;
  virtual void unlisted(const char* op, const Tensor& leaf) = 0;
};
// Installs this thread's watch, null for none, and returns the one before.
LeafWatch* exchange_leaf_watch(LeafWatch* watch);

}  // namespace sinter
