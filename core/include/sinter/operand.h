// The arrays that an operator reads and writes, as the operator declares them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sinter/shape.h"

namespace sinter {

struct Storage;  // a block of device memory, freed with its last owner

// A part of a storage, in the shape and dtype that the operator sees: contiguous, row-major. Made
// of tensors by in(), out() and inout() (emit.h). An address is there once the operator runs.
struct Operand {
  void* address = nullptr;     // of the first element; null for 'no operand'
  Storage* storage = nullptr;  // while the operator is emitted
  uint64_t buffer = 0;         // the storage's number, in a program its buffer's; 0: no operand
  int64_t offset = 0;          // of the first element in its storage, in bytes
  Shape shape;
  DType dtype = kFloat32;

  int64_t numel() const { return shape.numel(); }
  int64_t bytes() const { return shape.numel() * static_cast<int64_t>(size_of(dtype)); }
};

struct In : Operand {
  template <class T> const T* data() const { return static_cast<const T*>(address); }
};
// Overwritten as a whole, whatever was there.
struct Out : Operand {
  template <class T> T* data() const { return static_cast<T*>(address); }
};
// One that the operator can leave out.
struct OptionalOut : Out {};
// Read and changed.
struct InOut : Operand {
  template <class T> T* data() const { return static_cast<T*>(address); }
};

// f.operator()<T>() with T float or double, whichever x holds: every operator on floating operands
// begins with it. The framework ensures that x holds one of the two.
template <class F> decltype(auto) with_floating(DType dtype, F&& f) {
  if (dtype == kFloat64) return f.template operator()<double>();
  return f.template operator()<float>();
}
template <class F> decltype(auto) with_floating(const Operand& x, F&& f) {
  return with_floating(x.dtype, f);
}
// The same for every element type. A bool is one byte, 0 or 1.
template <class F> decltype(auto) with_any(DType dtype, F&& f) {
  switch (dtype) {
    case kFloat64:
      return f.template operator()<double>();
    case kInt32:
      return f.template operator()<int32_t>();
    case kInt64:
      return f.template operator()<int64_t>();
    case kUInt8:
      return f.template operator()<uint8_t>();
    case kBool:
      return f.template operator()<bool>();
    case kFloat32:
      break;
  }
  return f.template operator()<float>();
}

}  // namespace sinter
