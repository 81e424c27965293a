// Windows that slide over images: what convolution and pooling check and count alike.
#pragma once

#include <algorithm>
#include <climits>
#include <initializer_list>
#include <tuple>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/ops.h"

namespace sinter {

// Kernels hold extents, and positions in images with their padding, as int: below this, sums of two
// of them and steps beyond an end do not overflow.
inline constexpr int64_t kMostExtent = (int64_t{1} << 30) - 1;

inline int to_int(const char* op, int64_t value) {
  require<ShapeError>(value <= kMostExtent, op, ": extent ", value, " is beyond 2^30 - 1");
  return static_cast<int>(value);
}

// Kernels count the pixels of a plane and the elements of a window as int.
inline void check_area(const char* op, const char* what, int h, int w) {
  require<ShapeError>(int64_t{h} * w <= INT_MAX, op, ": expected ", what,
                      " of fewer than 2^31 elements, got (", h, ", ", w, ")");
}

inline void check_pairs(const char* op,
                        std::initializer_list<std::tuple<const char*, Pair, int>> pairs) {
  for (const auto& [name, p, least] : pairs) {
    if (p.h < least || p.w < least) {
      throw ValueError(
          str(op, ": expected ", name, " of at least ", least, ", got (", p.h, ", ", p.w, ")"));
    }
  }
}

// Windows along one direction of an image, in numbers that kernels can work with: a stride that
// leaves but one window, and the dilation of a window of one element, are no more than the image.
struct Axis {
  int size, kernel, stride, pad, dilation;
  int out;  // windows
};

// Throws, showing the shapes of x and of the whole kernel, if not even one window fits. ceil: a
// last window may hang over the end, if it begins before it.
inline Axis axis_of(const char* op, int64_t size, int64_t kernel, int stride, int pad, int dilation,
                    const Shape& x, const Shape& window, bool ceil = false) {
  const int64_t span = int64_t{dilation} * (to_int(op, kernel) - 1) + 1;
  const int64_t padded = to_int(op, size) + 2 * int64_t{pad};
  const int64_t room = padded - span + (ceil ? stride - 1 : 0);
  if (room < 0) {
    throw ShapeError(str(op, ": the kernel ", window, " spans ", span, " elements, more than the ",
                         size, " + 2 * ", pad, " of x ", x,
                         "; use more padding, a smaller kernel or a larger image"));
  }
  to_int(op, span);
  const int most = to_int(op, padded);
  int64_t out = room / stride + 1;
  if (ceil && (out - 1) * stride >= size + pad) --out;
  return {static_cast<int>(size),   static_cast<int>(kernel), std::min(stride, most), pad,
          std::min(dilation, most), static_cast<int>(out)};
}

// The two axes as kernels take them.
template <class G> void set_axes(G& g, const Axis& v, const Axis& h) {
  g.h = v.size;
  g.w = h.size;
  g.kh = v.kernel;
  g.kw = h.kernel;
  g.stride_h = v.stride;
  g.stride_w = h.stride;
  g.pad_h = v.pad;
  g.pad_w = h.pad;
  g.oh = v.out;
  g.ow = h.out;
}

}  // namespace sinter
