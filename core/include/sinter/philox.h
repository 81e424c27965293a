// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). A draw is a pure function of a key and a counter, so
// every backend and every thread computes the same numbers, in any order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SINTER_HD __host__ __device__
#else
#define SINTER_HD
#endif

namespace sinter {

struct Philox4 {
  uint32_t v[4];
};

SINTER_HD inline Philox4 philox(uint64_t key, uint64_t counter_lo, uint64_t counter_hi) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_lo), c1 = static_cast<uint32_t>(counter_lo >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_hi), c3 = static_cast<uint32_t>(counter_hi >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9;  // Weyl increments of the key schedule: golden ratio, sqrt(3) - 1
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// A pseudo-random permutation of [0, size), evaluated one element at a time: a balanced Feistel
// network over the smallest even number of bits that holds `size`, with Philox as its round
// function and cycle walking for values outside (Black and Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002). No table, no sort and no order between elements, so a GPU thread finds
// the image it has to fetch by itself. size <= 2^62; index < size.
SINTER_HD inline uint64_t permute_index(uint64_t seed, uint64_t epoch, uint64_t size,
                                        uint64_t index) {
  int half = 1;
  while ((uint64_t{1} << (2 * half)) < size)
    ++half;  // at most a factor 4 too wide: < 4 walks on average
  const uint64_t mask = (uint64_t{1} << half) - 1;
  uint64_t value = index;
  do {
    uint64_t left = value >> half, right = value & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      // The top bit keeps these draws apart from a Generator's of the same seed.
      const Philox4 f = philox(seed, right, (uint64_t{1} << 63) | (epoch << 3) | round);
      const uint64_t next = left ^ ((f.v[0] | (uint64_t{f.v[1]} << 32)) & mask);
      left = right;
      right = next;
    }
    value = (left << half) | right;
  } while (value >= size);
  return value;
}

}  // namespace sinter
