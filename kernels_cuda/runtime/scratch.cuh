// Memory that a kernel needs only until its work on the stream is done.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/backend/memory.h"
#include "sinter/runtime.h"

namespace sinter::cuda {

// Uninitialized, from the caching allocator. It may go out of scope as soon as the kernels that use
// it are enqueued: the allocator gives the block only to later work of the same stream.
template <class T> class Scratch {
 public:
  Scratch(const Cuda& ctx, int64_t n)
      : ctx_(ctx),
        bytes_(static_cast<size_t>(n) * sizeof(T)),
        data_(static_cast<T*>(detail::allocate(ctx, bytes_))) {}
  ~Scratch() { detail::deallocate(ctx_, data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }

 private:
  Cuda ctx_;
  size_t bytes_;
  T* data_;
};

}  // namespace sinter::cuda
