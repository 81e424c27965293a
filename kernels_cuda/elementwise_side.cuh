// Operands of element-wise kernels, which broadcast.
#pragma once

#include <cstdint>

#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operand.h"
#include "sinter/operators/elementwise.h"

namespace sinter::cuda {

// How a kernel reads an operand.
enum class Way { kNumber, kWhole, kRepeated };
struct Reading {
  Way way = Way::kNumber;
  bool in_runs = false;  // a pack never leaves the innermost dimension
  bool narrow = false;   // 32 bits count the elements, whose divisions cost a part of those of 64
  Loop<1> loop;          // of a repeated one
};
template <class U> struct Side {
  const U* p = nullptr;
  U number{};
  Reading reading;
};

template <class U, int kCount> struct alignas(sizeof(U) * kCount) Pack { U v[kCount]; };

// Elements [i, i + kCount).
template <int kCount, class U>
__device__ void load(const U* p, U number, const Reading& reading, int64_t i, U (&v)[kCount]) {
  const Loop<1>& loop = reading.loop;
  const auto offset = [&](int64_t element) {
    int64_t at[1];
    if (reading.narrow)
      loop.offsets(static_cast<uint32_t>(element), at);
    else
      loop.offsets(element, at);
    return at[0];
  };
  if (reading.way == Way::kWhole) {
    if constexpr (kCount == 1) {
      v[0] = p[i];
    } else {
      const Pack<U, kCount> pack = reinterpret_cast<const Pack<U, kCount>*>(p)[i / kCount];
#pragma unroll
      for (int q = 0; q < kCount; ++q) v[q] = pack.v[q];
    }
  } else if (reading.way == Way::kNumber) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) v[q] = number;
  } else if (reading.in_runs) {
    const int64_t first = offset(i);
    const int64_t step = loop.rank > 0 ? loop.stride[0][loop.rank - 1] : 0;
#pragma unroll
    for (int q = 0; q < kCount; ++q) v[q] = p[first + q * step];
  } else {
#pragma unroll
    for (int q = 0; q < kCount; ++q) v[q] = p[offset(i + q)];
  }
}

template <class U, int kCount> __device__ void load(const Side<U>& s, int64_t i, U (&v)[kCount]) {
  load(s.p, s.number, s.reading, i, v);
}

inline Reading reading_of(const Operand& x, const Shape& shape, int pack) {
  Reading reading;
  if (x.address == nullptr) return reading;
  reading.way = x.numel() == shape.numel() ? Way::kWhole : Way::kRepeated;
  if (reading.way == Way::kWhole) return reading;
  int64_t stride[kMaxRank] = {}, step = 1;
  for (int d = shape.rank() - 1, k = x.shape.rank() - 1; k >= 0; --d, --k) {
    if (x.shape[k] != 1) stride[d] = step;
    step *= x.shape[k];
  }
  reading.narrow = shape.numel() < (int64_t{1} << 31);
  Loop<1>& loop = reading.loop;
  for (int d = 0; d < shape.rank(); ++d) loop.append(shape[d], {stride[d]});
  reading.in_runs = loop.rank == 0 || loop.shape[loop.rank - 1] % pack == 0;
  return reading;
}
template <class U> Side<U> side_of(const Operand& x, double number, const Shape& shape, int pack) {
  return {static_cast<const U*>(x.address), element::number<U>(number), reading_of(x, shape, pack)};
}

// Whether packs of so many elements of so many bytes can be read, or written, at a time.
inline bool allows_packs(const void* p, size_t size, Way way, int pack) {
  return way != Way::kWhole || reinterpret_cast<uintptr_t>(p) % (size * pack) == 0;
}

}  // namespace sinter::cuda
