// Copies through strides: runs of memory as wide as there are, transposes in blocks.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/strided_copy.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/strided.h"
#include "kernels_cpu/transpose-inl.h"
#include "sinter/operators/move.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {

HWY_ATTR void transpose_block(int size, int rows, int cols, const void* src, ptrdiff_t src_stride,
                              void* dst, ptrdiff_t dst_stride) {
  const auto of = [&]<class T>(T) HWY_ATTR {
    transpose(rows, cols, static_cast<const T*>(src), src_stride, static_cast<T*>(dst), dst_stride);
  };
  if (size == 4) return of(float());
  of(double());
}

HWY_ATTR void reverse(int size, int64_t n, const void* last, void* y) {
  const auto of = [&]<class T>(T) HWY_ATTR {
    const T* from = static_cast<const T*>(last);
    T* to = static_cast<T*>(y);
    const hn::ScalableTag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
      hn::StoreU(hn::Reverse(d, hn::LoadU(d, from - i - (lanes - 1))), d, to + i);
    for (; i < n; ++i) to[i] = from[-i];
  };
  if (size == 4) return of(float());
  of(double());
}

}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
using namespace op;

HWY_EXPORT(transpose_block);
HWY_EXPORT(reverse);

namespace {

constexpr int64_t kTile = 64;

// A dimension of stride 1 that is not the innermost, where the two are worth blocks; else -1.
int across(const Loops<1>& loops, size_t size) {
  if (size < 4 || loops.inner() < 8 || loops.inner_stride(0) == 1) return -1;
  for (int d = 0; d < loops.rank - 1; ++d)
    if (loops.stride[d][0] == 1 && loops.shape[d] >= 8) return d;
  return -1;
}

// Dimension d of x, in which it is contiguous, becomes one of rows.
template <class T> void transposed(const Loops<1>& loops, int d, const T* x, T* y) {
  const int last = loops.rank - 1;
  const int64_t rows = loops.inner(), columns = loops.shape[d];
  Loops<2> outer;  // every other dimension, of x and of y
  int64_t step = 1, to_stride = 0;
  int64_t own[kMaxRank];
  for (int i = last; i >= 0; --i) {
    own[i] = step;
    step *= loops.shape[i];
  }
  to_stride = own[d];
  for (int i = 0; i < last; ++i) {
    if (i == d) continue;
    outer.shape[outer.rank] = loops.shape[i];
    outer.stride[outer.rank][0] = loops.stride[i][0];
    outer.stride[outer.rank++][1] = own[i];
  }
  if (outer.rank == 0) outer.shape[outer.rank++] = 1;
  const int64_t across = (columns + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(1, kGrain / (rows * std::min(columns, kTile)));
  parallel_ranges(outer.size() * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const auto at = outer.offset(task / across);
      const int64_t c = task % across * kTile, width = std::min(kTile, columns - c);
      for (int64_t r = 0; r < rows; r += kTile) HWY_DYNAMIC_DISPATCH(transpose_block)
      (sizeof(T), static_cast<int>(std::min(kTile, rows - r)), static_cast<int>(width),
       x + at[0] + r * loops.stride[last][0] + c, loops.stride[last][0],
       y + at[1] + r + c * to_stride, to_stride);
    }
  });
}

template <class T> void strided_copy(const Strided& g, const T* x, T* y) {
  const auto loops = make_loops<1>(g.rank, g.shape, {g.stride});
  if (const int d = across(loops, sizeof(T)); d >= 0) return transposed(loops, d, x, y);
  const int64_t stride = loops.inner_stride(0);
  parallel_ranges(loops.size(), kGrain, [&](int64_t begin, int64_t end) {
    loops.runs(begin, end, [&](int64_t at, const auto& offset, int64_t count) {
      const T* from = x + offset[0];
      if (stride == 1) {
        if (count < 16)
          for (int64_t i = 0; i < count; ++i) y[at + i] = from[i];
        else
          std::memcpy(y + at, from, static_cast<size_t>(count) * sizeof(T));
      } else if (stride == 0) {
        std::fill_n(y + at, count, *from);
      } else if (stride == -1 && sizeof(T) >= 4 && count >= 8) {
        HWY_DYNAMIC_DISPATCH(reverse)(sizeof(T), count, from, y + at);
      } else {
        for (int64_t i = 0; i < count; ++i) y[at + i] = from[i * stride];
      }
    });
  });
}

}  // namespace

void run(const Cpu&, const StridedCopy& o) {
  with_any(o.x.dtype, [&]<class T>() {
    if (o.y.numel() > 0) strided_copy(o.g, o.x.data<T>() + o.start, o.y.data<T>());
  });
}

}  // namespace sinter
#endif  // HWY_ONCE
