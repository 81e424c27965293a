// Convolution: chooses between the algorithms (ConvAlgo, operators.h) and holds one of them.
//
//   naive   the definition (conv2d_naive.cc), only where it is asked for.
//   direct  images in the lanes of a vector (conv2d_direct.cc): the fastest with few channels or
//           pixels, but idle lanes make it a waste for a handful of images.
//   im2col  patches of one image laid out as a matrix a block at a time, and a one-thread matrix
//           product on each.
//   implicit-gemm  the same product without the matrix (conv2d_implicit_gemm.cc): a pixel or an
//           output channel in each lane, for layers of many channels.
//   winograd  3 x 3 windows in a quarter of the multiplications (conv2d_winograd.cc), for layers of
//           many channels.
#include "kernels_cpu/conv2d/conv2d.h"

#include <algorithm>
#include <type_traits>

#include "core/base/detail.h"
#include "kernels_cpu/conv2d/conv2d_direct.h"
#include "kernels_cpu/conv2d/conv2d_implicit_gemm.h"
#include "kernels_cpu/conv2d/conv2d_naive.h"
#include "kernels_cpu/conv2d/conv2d_winograd.h"
#include "kernels_cpu/gemm.h"
#include "kernels_cpu/reduce.h"
#include "kernels_cpu/runtime/parallel.h"
#include "sinter/check.h"

namespace sinter {
using namespace op;
namespace {

enum class Pass { kForward, kBackwardData, kBackwardWeights };

// Whether implicit-gemm was measured to be the fastest (float32; AVX-512 and AVX2).
bool suits_implicit_gemm(const Conv2dShape& g, Pass pass, bool lanes_of_images) {
  const int64_t c = g.c / g.groups, o = g.o / g.groups;
  if (pass == Pass::kBackwardWeights) {
    // Output channels fill the lanes, and make up for packing and transposing.
    return lanes_of_images ? o >= 16 && c * o >= 128 : o >= 8;
  }
  // With a stride most of what dx is computed from would be zeros between the elements of dy.
  const bool data = pass == Pass::kBackwardData;
  if (data && (g.stride_h > 1 || g.stride_w > 1)) return false;
  const int64_t channels = data ? c : o, columns = data ? g.w : g.ow;
  if (!lanes_of_images) return channels >= 8;
  // Work on a packed row, which short rows and few channels do not repay; and small images leave
  // lanes of pixels idle.
  const int64_t pixels = columns * (data ? g.h : g.oh), computed = (pixels + 31) / 32 * 32;
  return channels * std::min<int64_t>(columns, 32) >= 256 && 5 * pixels >= 4 * computed;
}

// Whether Winograd's algorithm was measured to be the fastest (float32; AVX-512 and AVX2).
bool suits_winograd(const Conv2dShape& g, Pass pass) {
  if (std::min(g.c, g.o) < 32 || !winograd_conv2d_lacks(g).empty()) return false;
  // It is faster with fewer channels as well, but rounds more: among millions of sums of K products
  // the worst is off by about K epsilon, and by more where K is smaller.
  if (pass != Pass::kBackwardWeights && (pass == Pass::kForward ? g.c : g.o) < 64) return false;
  // Enough tiles of 4 x 4 to repay transforming the weights, at least half of what they cover in
  // the image.
  const bool data = pass == Pass::kBackwardData;
  const int64_t h = data ? g.h : g.oh, w = data ? g.w : g.ow;
  const int64_t tiles = g.n * ((h + 3) / 4) * ((w + 3) / 4);
  return tiles >= 32 && 2 * g.n * h * w >= 16 * tiles;
}

// Throws ValueError if Winograd's algorithm cannot compute a layer.
void require_winograd(const Conv2dShape& g, Pass pass) {
  const std::string lacks = winograd_conv2d_lacks(g);
  const char* const names[] = {"conv2d_forward", "conv2d_backward_data", "conv2d_backward_weights"};
  require<ValueError>(
      lacks.empty(), names[static_cast<int>(pass)], ": algorithm winograd needs ", lacks,
      "; this is x (", g.n, ", ", g.c, ", ", g.h, ", ", g.w, "), weight (", g.o, ", ",
      g.c / g.groups, ", ", g.kh, ", ", g.kw, "), stride (", g.stride_h, ", ", g.stride_w,
      "), dilation (", g.dil_h, ", ", g.dil_w, "), groups ", g.groups,
      ". Choose auto, naive, direct, im2col or implicit-gemm, with --conv-algo or set_conv_algo");
}

// The one place that chooses. Of the algorithms for any layer, direct when at least half of the
// lanes have an image.
template <class T> ConvAlgo choose(const Conv2dShape& g, Pass pass) {
  switch (g.algo) {
    case ConvAlgo::kNaive:
    case ConvAlgo::kDirect:
    case ConvAlgo::kIm2col:
    case ConvAlgo::kImplicitGemm:
      return g.algo;
    case ConvAlgo::kWinograd:
      require_winograd(g, pass);
      return g.algo;
    case ConvAlgo::kTensorCore:
      throw ValueError(str("conv2d: the CPU has no algorithm ", name(g.algo),
                           "; choose auto, naive, direct, im2col, implicit-gemm or winograd, with "
                           "--conv-algo or set_conv_algo, or a CUDA device"));
    case ConvAlgo::kAuto:
      break;
  }
  if (std::is_same_v<T, float> && suits_winograd(g, pass)) return ConvAlgo::kWinograd;
  const bool lanes_of_images = 2 * g.n >= direct_conv2d_lanes<T>();
  if (std::is_same_v<T, float> && suits_implicit_gemm(g, pass, lanes_of_images)) {
    return ConvAlgo::kImplicitGemm;
  }
  return lanes_of_images ? ConvAlgo::kDirect : ConvAlgo::kIm2col;
}

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

template <class T>
void gemm_forward(const Conv2dShape& g, const T* x, const T* weight, const T* b, T* y, bool relu) {
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
void gemm_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
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
void gemm_backward_weights(const Conv2dShape& g, const T* x, const T* dy, T* dweight) {
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

// db[o] = sum of dy over images and positions, plane by plane.
template <class T> void bias_gradient(const Conv2dShape& g, const T* dy, T* db) {
  const int64_t plane = int64_t{g.oh} * g.ow;
  Strided kept, reduced;
  kept.rank = 1;
  kept.shape[0] = g.o;
  kept.stride[0] = plane;
  reduced.rank = 2;
  reduced.shape[0] = g.n;
  reduced.stride[0] = g.o * plane;
  reduced.shape[1] = plane;
  reduced.stride[1] = 1;
  sum(kept, reduced, 1, dy, db);
}

}  // namespace

template <class T> void conv2d_forward(const Conv2dShape& g, const T* x, const T* weight,
                                       const T* b, T* y, bool relu) {
  const ConvAlgo algo = choose<T>(g, Pass::kForward);
  if (algo == ConvAlgo::kDirect) {
    direct_conv2d_forward(g, x, weight, b, y, relu);
  } else if (algo == ConvAlgo::kNaive) {
    naive_conv2d_forward(g, x, weight, b, y, relu);
  } else if (algo == ConvAlgo::kImplicitGemm) {
    implicit_gemm_conv2d_forward(g, x, weight, b, y, relu);
  } else if (algo == ConvAlgo::kWinograd) {
    winograd_conv2d_forward(g, x, weight, b, y, relu);
  } else {
    gemm_forward(g, x, weight, b, y, relu);
  }
}

template <class T>
void conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  const ConvAlgo algo = choose<T>(g, Pass::kBackwardData);
  if (algo == ConvAlgo::kDirect) {
    direct_conv2d_backward_data(g, dy, weight, dx);
  } else if (algo == ConvAlgo::kNaive) {
    naive_conv2d_backward_data(g, dy, weight, dx);
  } else if (algo == ConvAlgo::kImplicitGemm) {
    implicit_gemm_conv2d_backward_data(g, dy, weight, dx);
  } else if (algo == ConvAlgo::kWinograd) {
    winograd_conv2d_backward_data(g, dy, weight, dx);
  } else {
    gemm_backward_data(g, dy, weight, dx);
  }
}

template <class T>
void conv2d_backward_weights(const Conv2dShape& g, const T* x, const T* dy, T* dweight, T* db) {
  if (db != nullptr) bias_gradient(g, dy, db);
  if (dweight == nullptr) return;
  const ConvAlgo algo = choose<T>(g, Pass::kBackwardWeights);
  if (algo == ConvAlgo::kDirect) {
    direct_conv2d_backward_weights(g, x, dy, dweight);
  } else if (algo == ConvAlgo::kNaive) {
    naive_conv2d_backward_weights(g, x, dy, dweight);
  } else if (algo == ConvAlgo::kImplicitGemm) {
    implicit_gemm_conv2d_backward_weights(g, x, dy, dweight);
  } else if (algo == ConvAlgo::kWinograd) {
    winograd_conv2d_backward_weights(g, x, dy, dweight);
  } else {
    gemm_backward_weights(g, x, dy, dweight);
  }
}

#define SINTER_INSTANTIATE(T)                                                               \
  template void conv2d_forward(const Conv2dShape&, const T*, const T*, const T*, T*, bool); \
  template void conv2d_backward_data(const Conv2dShape&, const T*, const T*, T*);           \
  template void conv2d_backward_weights(const Conv2dShape&, const T*, const T*, T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

void run(const Cpu&, const Conv2dForward& o) {
  with_floating(o.x, [&]<class T>() {
    conv2d_forward(o.g, o.x.data<T>(), o.weight.data<T>(), o.b.data<T>(), o.y.data<T>(), o.relu);
  });
}

void run(const Cpu&, const Conv2dBackwardData& o) {
  with_floating(o.dy, [&]<class T>() {
    conv2d_backward_data(o.g, o.dy.data<T>(), o.weight.data<T>(), o.dx.data<T>());
  });
}

void run(const Cpu&, const Conv2dBackwardWeights& o) {
  with_floating(o.dy, [&]<class T>() {
    conv2d_backward_weights(o.g, o.x.data<T>(), o.dy.data<T>(), o.dweight.data<T>(),
                            o.db.data<T>());
  });
}

}  // namespace sinter
