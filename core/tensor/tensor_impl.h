// What a Tensor stands for. Private to core.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/tensor/storage.h"
#include "sinter/tensor.h"

namespace sinter {

struct Tensor::Impl {
  Impl(std::shared_ptr<Storage> storage, int64_t start, const Shape& shape, DType dtype)
      : storage(std::move(storage)), start(start), shape(shape), dtype(dtype) {}

  std::shared_ptr<Storage> storage;
  int64_t start;  // of the first element in the storage, in bytes
  Shape shape;
  DType dtype;
  // The leaf, which may be frozen, or the operator that made the values; null if neither is known.
  std::shared_ptr<Node> node;
  std::atomic<bool> listed{false};  // as the parameter of some module

  // A view is a range of another tensor, never of a view. Changing either in place changes both, so
  // each must find the other's place in the graph: the view goes through `base`, and makes itself a
  // new node when the base had recorded changes that the view's node does not know of.
  std::shared_ptr<Impl> base;
  int64_t offset = 0;                // in elements
  bool made_in_grad_mode = true;     // else it has no node, whatever its base has
  std::atomic<uint64_t> changes{0};  // of a base: recorded changes in place, of it and its views
  std::atomic<uint64_t> seen{0};     // of a view: those that its node knows of
};

}  // namespace sinter
