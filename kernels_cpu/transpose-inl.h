// Transposes in vectors, for files that foreach_target.h compiles for each instruction set:
// included by them behind foreach_target.h, and so once for each.
#if defined(SINTER_KERNELS_CPU_TRANSPOSE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SINTER_KERNELS_CPU_TRANSPOSE_INL_H
#undef SINTER_KERNELS_CPU_TRANSPOSE_INL_H
#else
#define SINTER_KERNELS_CPU_TRANSPOSE_INL_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// dst[c * dst_stride + r] = src[r * src_stride + c] for r < rows, c < cols. Both sides are walked
// in 128-bit blocks; the last block overlaps the one before it instead of leaving a remainder.
template <class T> HWY_ATTR void transpose(int rows, int cols, const T* HWY_RESTRICT src,
                                           ptrdiff_t src_stride, T* HWY_RESTRICT dst,
                                           ptrdiff_t dst_stride) {
#if HWY_TARGET != HWY_SCALAR
  constexpr int kBlock = 16 / sizeof(T);
  const hn::FixedTag<T, kBlock> d;
  if (rows >= kBlock && cols >= kBlock) {
    const auto block = [&](int r, int c) HWY_ATTR {
      const T* s = src + r * src_stride + c;
      T* t = dst + c * dst_stride + r;
      const auto a = hn::LoadU(d, s), b = hn::LoadU(d, s + src_stride);
      const auto ab0 = hn::InterleaveLower(d, a, b), ab1 = hn::InterleaveUpper(d, a, b);
      if constexpr (kBlock == 2) {
        hn::StoreU(ab0, d, t);
        hn::StoreU(ab1, d, t + dst_stride);
      } else {
        const auto e = hn::LoadU(d, s + 2 * src_stride), f = hn::LoadU(d, s + 3 * src_stride);
        const auto ef0 = hn::InterleaveLower(d, e, f), ef1 = hn::InterleaveUpper(d, e, f);
        hn::StoreU(hn::ConcatLowerLower(d, ef0, ab0), d, t);
        hn::StoreU(hn::ConcatUpperUpper(d, ef0, ab0), d, t + dst_stride);
        hn::StoreU(hn::ConcatLowerLower(d, ef1, ab1), d, t + 2 * dst_stride);
        hn::StoreU(hn::ConcatUpperUpper(d, ef1, ab1), d, t + 3 * dst_stride);
      }
    };
    // Along the longer side innermost: few streams, long runs.
    if (cols >= rows) {
      for (int r = 0; r < rows; r += kBlock) {
        const int row = std::min(r, rows - kBlock);
        for (int c = 0; c < cols; c += kBlock) block(row, std::min(c, cols - kBlock));
      }
    } else {
      for (int c = 0; c < cols; c += kBlock) {
        const int col = std::min(c, cols - kBlock);
        for (int r = 0; r < rows; r += kBlock) block(std::min(r, rows - kBlock), col);
      }
    }
    return;
  }
#endif
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) dst[c * dst_stride + r] = src[r * src_stride + c];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#endif
