// Convolution as matrix products: patches of one image are laid out as a matrix, a block at a time,
// and each is multiplied by one thread.
#include <algorithm>

#include "kernels_cpu/conv2d/conv2d_algorithms.h"
#include "kernels_cpu/gemm.h"
#include "kernels_cpu/runtime/parallel.h"

namespace sinter {
using namespace op;
namespace {

// One group of one image as matrices: patches (c kh kw, oh ow), weights (o, c kh kw), y (o, oh ow).
struct GroupShape {
  int64_t c, o, kernel, patch, positions;
  int64_t x_plane, x_image, y_image;
  explicit GroupShape(const Conv2dShape& g)
      : c(g.c / g.groups),
        o(g.o / g.groups),
        kernel(int64_t{g.kh} * g.kw),
        patch(c * kernel),
        positions(int64_t{g.oh} * g.ow),
        x_plane(int64_t{g.h} * g.w),
        x_image(g.c * x_plane),
        y_image(g.o * positions) {}
};

// Elements of a block of patches: what a core's second-level cache holds beside the weights.
constexpr int64_t kPatchElements = 32768;

// How many of `count` units of `elements` fit in a block, in nearly equal blocks.
int64_t block_size(int64_t count, int64_t elements) {
  const int64_t most = std::clamp<int64_t>(kPatchElements / std::max<int64_t>(1, elements), 1,
                                           std::max<int64_t>(count, 1));
  const int64_t blocks = std::max<int64_t>(1, (count + most - 1) / most);
  return std::max<int64_t>(1, (count + blocks - 1) / blocks);
}

// For output columns j with 0 <= j * stride + shift < w, the range [begin, end).
struct Inside {
  int begin, end;
};
Inside inside(int ow, int w, int stride, int shift) {
  const int begin = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
  const int end = w - shift <= 0 ? 0 : (w - shift + stride - 1) / stride;
  return {std::min(begin, ow), std::clamp(end, std::min(begin, ow), ow)};
}

// patches (channels kh kw, rows ow) of output rows [row, row + rows) of `channels` planes at x.
template <class T>
void im2col(const Conv2dShape& g, int64_t channels, int row, int rows, const T* x, T* patches) {
  for (int64_t c = 0; c < channels; ++c, x += int64_t{g.h} * g.w) {
    for (int a = 0; a < g.kh; ++a) {
      for (int b = 0; b < g.kw; ++b) {
        const int shift = b * g.dil_w - g.pad_w;
        const Inside in = inside(g.ow, g.w, g.stride_w, shift);
        for (int i = row; i < row + rows; ++i, patches += g.ow) {
          const int source = i * g.stride_h - g.pad_h + a * g.dil_h;
          if (source < 0 || source >= g.h) {
            std::fill_n(patches, g.ow, T(0));
            continue;
          }
          const T* from = x + int64_t{source} * g.w + shift;
          std::fill_n(patches, in.begin, T(0));
          if (g.stride_w == 1) {
            std::copy(from + in.begin, from + in.end, patches + in.begin);
          } else {
            for (int j = in.begin; j < in.end; ++j) patches[j] = from[j * g.stride_w];
          }
          std::fill(patches + in.end, patches + g.ow, T(0));
        }
      }
    }
  }
}

// The transpose of im2col: adds patches to the planes at x, in a fixed order.
template <class T>
void add_col2im(const Conv2dShape& g, int64_t channels, int row, int rows, const T* patches, T* x) {
  for (int64_t c = 0; c < channels; ++c, x += int64_t{g.h} * g.w) {
    for (int a = 0; a < g.kh; ++a) {
      for (int b = 0; b < g.kw; ++b) {
        const int shift = b * g.dil_w - g.pad_w;
        const Inside in = inside(g.ow, g.w, g.stride_w, shift);
        for (int i = row; i < row + rows; ++i, patches += g.ow) {
          const int target = i * g.stride_h - g.pad_h + a * g.dil_h;
          if (target < 0 || target >= g.h) continue;
          T* to = x + int64_t{target} * g.w + shift;
          for (int j = in.begin; j < in.end; ++j) to[j * g.stride_w] += patches[j];
        }
      }
    }
  }
}

}  // namespace

template <class T> void im2col_conv2d_forward(const Conv2dShape& g, const T* x, const T* weight,
                                              const T* b, T* y, bool relu) {
  const GroupShape s(g);
  const int band = static_cast<int>(block_size(g.oh, s.patch * g.ow));
  const int64_t bands = (g.oh + band - 1) / band;
  parallel_for(int64_t{g.n} * g.groups * bands, [&](int64_t item) {
    const int row = static_cast<int>(item % bands) * band, rows = std::min(band, g.oh - row);
    const int64_t group = item / bands % g.groups, n = item / bands / g.groups;
    const int64_t columns = int64_t{rows} * g.ow;
    const Scratch<T> patches(s.patch * columns);
    im2col(g, s.c, row, rows, x + n * s.x_image + group * s.c * s.x_plane, patches.get());
    T* out = y + n * s.y_image + group * s.o * s.positions + int64_t{row} * g.ow;
    if (b != nullptr) {
      for (int64_t o = 0; o < s.o; ++o) {
        std::fill_n(out + o * s.positions, columns, b[group * s.o + o]);
      }
    }
    serial_gemm(false, false, s.o, columns, s.patch, weight + group * s.o * s.patch, s.patch,
                static_cast<const T*>(patches.get()), columns, out, s.positions, b != nullptr,
                relu);
  });
}

template <class T>
void im2col_conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  const GroupShape s(g);
  // Items own whole planes of dx, so that overlapping patches are added without races; within an
  // item, bands of rows bound the memory.
  const int64_t channels = block_size(s.c, s.kernel * g.ow * std::min(g.oh, 16));
  const int64_t blocks = (s.c + channels - 1) / channels;
  const int band = static_cast<int>(block_size(g.oh, channels * s.kernel * g.ow));
  parallel_for(int64_t{g.n} * g.groups * blocks, [&](int64_t item) {
    const int64_t c_begin = item % blocks * channels, c = std::min(channels, s.c - c_begin);
    const int64_t group = item / blocks % g.groups, n = item / blocks / g.groups;
    T* to = dx + n * s.x_image + (group * s.c + c_begin) * s.x_plane;
    std::fill_n(to, c * s.x_plane, T(0));
    const Scratch<T> patches(c * s.kernel * band * g.ow);
    for (int row = 0; row < g.oh; row += band) {
      const int rows = std::min(band, g.oh - row);
      const int64_t columns = int64_t{rows} * g.ow;
      serial_gemm(true, false, c * s.kernel, columns, s.o,
                  weight + group * s.o * s.patch + c_begin * s.kernel, s.patch,
                  dy + n * s.y_image + group * s.o * s.positions + int64_t{row} * g.ow, s.positions,
                  patches.get(), columns, false);
      add_col2im(g, c, row, rows, static_cast<const T*>(patches.get()), to);
    }
  });
}

template <class T>
void im2col_conv2d_backward_weights(const Conv2dShape& g, const T* x, const T* dy, T* dweight) {
  const GroupShape s(g);
  const int64_t channels = block_size(s.c, s.kernel * g.ow * std::min(g.oh, 16));
  const int64_t blocks = (s.c + channels - 1) / channels;
  const int band = static_cast<int>(block_size(g.oh, channels * s.kernel * g.ow));
  // Chunks of images have partial sums of their own: enough chunks to feed the threads, no more.
  const int64_t images = (g.n + 15) / 16, chunks = (g.n + images - 1) / images;
  const int64_t weights = g.o * s.patch;
  const Scratch<T> partial(chunks > 1 ? chunks * weights : 0);
  T* sums = chunks > 1 ? partial.get() : dweight;
  parallel_for(chunks * g.groups * blocks, [&](int64_t item) {
    const int64_t c_begin = item % blocks * channels, c = std::min(channels, s.c - c_begin);
    const int64_t group = item / blocks % g.groups, chunk = item / blocks / g.groups;
    T* to = sums + chunk * weights + group * s.o * s.patch + c_begin * s.kernel;
    const Scratch<T> patches(c * s.kernel * band * g.ow);
    bool first = true;
    for (int64_t n = chunk * images; n < std::min<int64_t>(g.n, (chunk + 1) * images); ++n) {
      for (int row = 0; row < g.oh; row += band) {
        const int rows = std::min(band, g.oh - row);
        const int64_t columns = int64_t{rows} * g.ow;
        im2col(g, c, row, rows, x + n * s.x_image + (group * s.c + c_begin) * s.x_plane,
               patches.get());
        serial_gemm(false, true, s.o, c * s.kernel, columns,
                    dy + n * s.y_image + group * s.o * s.positions + int64_t{row} * g.ow,
                    s.positions, static_cast<const T*>(patches.get()), columns, to, s.patch,
                    !first);
        first = false;
      }
    }
  });
  if (chunks == 1) return;
  parallel_ranges(weights, items_per_grain(chunks), [&](int64_t begin, int64_t end) {
    std::copy(sums + begin, sums + end, dweight + begin);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      for (int64_t i = begin; i < end; ++i) dweight[i] += sums[chunk * weights + i];
    }
  });
}

#define SINTER_INSTANTIATE(T)                                                                      \
  template void im2col_conv2d_forward(const Conv2dShape&, const T*, const T*, const T*, T*, bool); \
  template void im2col_conv2d_backward_data(const Conv2dShape&, const T*, const T*, T*);           \
  template void im2col_conv2d_backward_weights(const Conv2dShape&, const T*, const T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
