// Memory of the two backends: blocks, and copies between them.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>

#include "sinter/shape.h"

namespace sinter::detail {

// 64-byte aligned, uninitialized. Blocks are kept for reuse: a training step returns to the
// operating system nothing it will ask for again. Throws OutOfMemoryError. allocate(0) returns a
// valid pointer.
void* allocate(const Cpu&, size_t bytes);
void deallocate(const Cpu&, void* p, size_t bytes) noexcept;

// Stream-ordered: the block may be used by later work on ctx.stream, and is reused by later work on
// ctx.stream after deallocate, once the work that is then on `others`, further streams of the
// device that it was used on, is over. Freed blocks are kept for reuse, so that a training step
// allocates nothing from the driver after its first run. Throws OutOfMemoryError, after giving
// cached blocks back to the driver, naming the bytes asked for, in use and free. allocate(0)
// returns a valid pointer.
void* allocate(const Cuda&, size_t bytes);
void deallocate(const Cuda&, void* p, size_t bytes,
                std::span<CUstream_st* const> others = {}) noexcept;

// dst and src: host memory where the name says host, else device memory of ctx. copy_to_host
// synchronizes ctx; copy_from_host returns once src may be reused; the others enqueue. dst and src
// of copy_on_device may overlap.
void copy_from_host(const Cuda& ctx, void* dst, const void* src, size_t bytes);
void copy_to_host(const Cuda& ctx, void* dst, const void* src, size_t bytes);
void copy_on_device(const Cuda& ctx, void* dst, const void* src, size_t bytes);
// Between devices. Ordered after the work of both streams and before their later work.
void copy_across(const Cuda& to, void* dst, const Cuda& from, const void* src, size_t bytes);

// Host memory, all of it.
inline void copy_from_host(const Cpu&, void* dst, const void* src, size_t bytes) {
  std::memcpy(dst, src, bytes);
}
inline void copy_to_host(const Cpu&, void* dst, const void* src, size_t bytes) {
  std::memcpy(dst, src, bytes);
}
inline void copy_on_device(const Cpu&, void* dst, const void* src, size_t bytes) {
  std::memmove(dst, src, bytes);
}

}  // namespace sinter::detail
