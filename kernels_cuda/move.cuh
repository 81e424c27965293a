// Kernels that read each element of the result from a place that an index tells.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/runtime/launch.cuh"

namespace sinter::cuda {

// n / d and the rest by a multiplication, for n < 2^31 (Granlund and Montgomery, "Division by
// invariant integers using multiplication", 1994): decoding an index is mostly divisions.
template <class Index> struct Divider {
  uint32_t d = 1, magic = 0, shift = 0;

  Divider() = default;
  explicit Divider(int64_t divisor) : d(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift) < d) ++shift;
    const uint64_t power = uint64_t{1} << shift;
    magic = static_cast<uint32_t>((power - d) * (uint64_t{1} << 32) / d + 1);
  }
  __device__ uint32_t quotient(uint32_t n) const { return (__umulhi(n, magic) + n) >> shift; }
};
template <> struct Divider<int64_t> {
  int64_t d = 1;

  Divider() = default;
  explicit Divider(int64_t divisor) : d(divisor) {}
  __device__ int64_t quotient(int64_t n) const { return n / d; }
};

// How many elements of `size` bytes make up the widest unit, of at most 16 bytes, that divides all
// of `bytes`: addresses and the distances between them.
inline int64_t elements_a_unit(size_t size, std::initializer_list<uint64_t> bytes) {
  uint64_t unit = 16;
  for (const uint64_t b : bytes)
    while (b % unit != 0 && unit > size) unit /= 2;
  return static_cast<int64_t>(unit / size);
}
inline uint64_t address_of(const void* p) { return reinterpret_cast<uint64_t>(p); }

// f(unsigned integer of `bytes` bytes).
template <class F> void with_unit(int64_t bytes, const F& f) {
  switch (bytes) {
    case 1:
      return f(uint8_t{});
    case 2:
      return f(uint16_t{});
    case 4:
      return f(uint32_t{});
    case 8:
      return f(uint64_t{});
    default:
      return f(uint4{});
  }
}

constexpr int kMovesAtOnce = 4;  // loads of a thread under way

// y[i] = x[source(i)], or `value` where source(i) is negative.
template <class U, class Index, class Source> __global__ void __launch_bounds__(kThreads)
    move_kernel(Index n, Source source, const U* __restrict__ x, U value, U* __restrict__ y) {
  constexpr Index kBlock = kThreads * kMovesAtOnce;
  for (Index first = blockIdx.x * kBlock + threadIdx.x; first < n; first += gridDim.x * kBlock) {
    U v[kMovesAtOnce];
#pragma unroll
    for (int k = 0; k < kMovesAtOnce; ++k) {
      const Index i = first + k * kThreads;
      v[k] = value;
      if (i >= n) continue;
      const int64_t at = source(i);
      if (at >= 0) v[k] = x[at];
    }
#pragma unroll
    for (int k = 0; k < kMovesAtOnce; ++k) {
      const Index i = first + k * kThreads;
      if (i < n) y[i] = v[k];
    }
  }
}

// make(Index{}) gives the source for n units of type U.
template <class U, class Make> void move(LaunchSite site, const char* name, int64_t n,
                                         const Make& make, const void* x, U value, void* y) {
  if (n == 0) return;
  with_index(n, [&]<class Index>(Index) {
    const auto source = make(Index{});
    const auto blocks = std::min<int64_t>(ceil_div(n, kThreads * kMovesAtOnce), 1 << 16);
    launch(site, {name, n}, static_cast<unsigned>(blocks), kThreads, 0,
           move_kernel<U, Index, std::decay_t<decltype(source)>>, static_cast<Index>(n), source,
           static_cast<const U*>(x), value, static_cast<U*>(y));
  });
}

}  // namespace sinter::cuda
