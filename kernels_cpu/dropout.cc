// Dropout: the random bits of a chunk are drawn a vector of Philox blocks at a time, and used while
// they are in the cache.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/dropout.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/dropout.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// bits[i] of items 4 * first … of a draw, for `blocks` blocks: draw_bits in vectors. Of each 64-bit
// lane the lower half counts; products take no other, and the upper one may hold anything.
HWY_ATTR void draw(int64_t seed, int64_t number, int64_t first, int64_t blocks,
                   uint32_t* HWY_RESTRICT bits) {
  int64_t b = 0;
#if HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  const hn::ScalableTag<uint64_t> d;
  const hn::Repartition<uint32_t, decltype(d)> half;
  const auto k = static_cast<int64_t>(hn::Lanes(d));
  const auto key = static_cast<uint64_t>(seed);
  const uint64_t high = (uint64_t{1} << 62) | static_cast<uint64_t>(number);
  const auto low32 = hn::Set(d, 0xffffffffu);
  const auto m0 = hn::BitCast(half, hn::Set(d, uint64_t{0xD2511F53}));
  const auto m1 = hn::BitCast(half, hn::Set(d, uint64_t{0xCD9E8D57}));
  for (; b + k <= blocks; b += k) {
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    auto c0 = hn::Iota(d, static_cast<uint64_t>(first + b));
    auto c1 = hn::ShiftRight<32>(c0);
    auto c2 = hn::Set(d, high & 0xffffffffu), c3 = hn::Set(d, high >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto p0 = hn::MulEven(m0, hn::BitCast(half, c0));
      const auto p1 = hn::MulEven(m1, hn::BitCast(half, c2));
      c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d, uint64_t{k0}));
      c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d, uint64_t{k1}));
      c1 = p1;
      c3 = p0;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    // A block's four words beside each other.
    const auto lower = hn::Or(hn::And(c0, low32), hn::ShiftLeft<32>(c1));
    const auto upper = hn::Or(hn::And(c2, low32), hn::ShiftLeft<32>(c3));
    hn::StoreInterleaved2(lower, upper, d, reinterpret_cast<uint64_t*>(bits + 4 * b));
  }
#endif
  for (; b < blocks; ++b) {
    const Philox4 block = draw_bits(seed, number, first + b);
    std::copy_n(block.v, 4, bits + 4 * b);
  }
}

// Items that are drawn before they are used.
constexpr int64_t kDrawn = 2048;

template <class T> void drop(const T* HWY_RESTRICT x, const uint32_t* HWY_RESTRICT bits, int64_t n,
                             uint32_t threshold, T scale, T* HWY_RESTRICT y) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * (bits[i] < threshold ? T(0) : scale);
}

template <class T> void dropout(const Dropout& o) {
  const int64_t *state = o.draw.data<int64_t>(), n = o.x.numel();
  if (n == 0) return;
  const T* x = o.x.data<T>();
  T* y = o.y.data<T>();
  const T scale = static_cast<T>(o.scale);
  // All are dropped only by a threshold of 2^32, which p just below 1 rounds to.
  const bool all = o.threshold > 0xffffffffu;
  const auto threshold = static_cast<uint32_t>(all ? 0xffffffffu : o.threshold);
  const int64_t grain = (items_per_grain(o.group) + 3) / 4 * 4;  // whole blocks
  parallel_ranges(n / o.group, grain, [&](int64_t begin, int64_t end) {
    alignas(64) uint32_t bits[kDrawn];
    for (int64_t i = begin; i < end; i += kDrawn) {
      const int64_t count = std::min(kDrawn, end - i);
      draw(state[0], state[1], i / 4, (count + 3) / 4, bits);
      if (o.group == 1) {
        drop(x + i, bits, count, threshold, all ? T(0) : scale, y + i);
        continue;
      }
      for (int64_t j = 0; j < count; ++j) {
        const T factor = all || bits[j] < threshold ? T(0) : scale;
        const T* HWY_RESTRICT from = x + (i + j) * o.group;
        T* HWY_RESTRICT to = y + (i + j) * o.group;
        for (int64_t l = 0; l < o.group; ++l) to[l] = from[l] * factor;
      }
    }
  });
}

void DropoutRun(const Dropout& o) {
  with_floating(o.x, [&]<class T>() { dropout<T>(o); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(DropoutRun);

}  // namespace

void run(const Cpu&, const NextDraw& o) {
  int64_t *state = o.state.data<int64_t>(), *draw = o.draw.data<int64_t>();
  draw[0] = state[0];
  draw[1] = state[1]++;
}

void run(const Cpu&, const Dropout& o) { HWY_DYNAMIC_DISPATCH(DropoutRun)(o); }

}  // namespace sinter
#endif
