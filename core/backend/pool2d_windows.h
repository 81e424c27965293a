// Where the windows of pooling lie, for both backends.
#pragma once

#include "sinter/operators/pool2d.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter {

// Pooling along one direction.
struct PoolAxis {
  int size, kernel, stride, pad, dilation, windows;
  bool adaptive;
};
SINTER_HD inline PoolAxis rows(const op::Pool2dShape& g) {
  return {g.h, g.kh, g.stride_h, g.pad_h, g.dil_h, g.oh, g.adaptive};
}
SINTER_HD inline PoolAxis columns(const op::Pool2dShape& g) {
  return {g.w, g.kw, g.stride_w, g.pad_w, g.dil_w, g.ow, g.adaptive};
}

// A window: where it begins, which may be in the padding, and those of its elements that lie in x:
// begin, begin + dilation, … before end.
struct PoolWindow {
  int first, begin, end;
};
SINTER_HD inline PoolWindow pool_window(const PoolAxis& a, int i) {
  if (a.adaptive) {
    const int first = static_cast<int>(int64_t{i} * a.size / a.windows);
    return {first, first, static_cast<int>((int64_t{i + 1} * a.size + a.windows - 1) / a.windows)};
  }
  const int first = i * a.stride - a.pad;
  const int end = first + (a.kernel - 1) * a.dilation + 1;
  const int begin = first >= 0        ? first
                    : a.dilation == 1 ? 0
                                      : first + (-first + a.dilation - 1) / a.dilation * a.dilation;
  return {first, begin, end < a.size ? end : a.size};
}

// How many elements of window `i` a mean counts, those in the padding included or not: the window
// of one that hangs over the end ends with the padding. Without dilation.
SINTER_HD inline int pool_counted(const PoolAxis& a, const PoolWindow& window, bool count_pad) {
  if (!count_pad) return window.end - window.begin;
  const int end = window.first + a.kernel;
  return (end < a.size + a.pad ? end : a.size + a.pad) - window.first;
}

// The windows that may hold element `i`: all of [begin, end) do, unless they are dilated.
struct PoolCover {
  int begin, end;
};
SINTER_HD inline PoolCover pool_cover(const PoolAxis& a, int i) {
  if (a.adaptive) {
    return {static_cast<int>(int64_t{i} * a.windows / a.size),
            static_cast<int>((int64_t{i + 1} * a.windows + a.size - 1) / a.size)};
  }
  // The last window that ends at i or before begins at `reach` - pad or before.
  const int reach = i + a.pad - (a.kernel - 1) * a.dilation - 1;
  const int end = (i + a.pad) / a.stride + 1;
  return {reach < 0 ? 0 : reach / a.stride + 1, end < a.windows ? end : a.windows};
}

}  // namespace sinter
