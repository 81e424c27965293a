// Convolution: the table of algorithms (ConvAlgo), and the gradient of the bias.
#include "kernels_cpu/conv2d/conv2d.h"

#include <algorithm>
#include <array>

#include "core/backend/conv2d_algorithms.h"
#include "core/backend/winograd.h"
#include "kernels_cpu/conv2d/conv2d_algorithms.h"
#include "kernels_cpu/reduce.h"

namespace sinter {
using namespace op;
namespace {

// Whether at least half of the lanes of `direct` have an image.
bool fills_lanes(const ConvTask& task) {
  const int lanes =
      task.dtype == kFloat64 ? direct_conv2d_lanes<double>() : direct_conv2d_lanes<float>();
  return 2 * task.g.n >= lanes;
}
bool direct_pays(const Cpu&, const ConvTask& task) { return fills_lanes(task); }

// Whether implicit-gemm was measured to be the fastest (float32; AVX-512 and AVX2).
bool implicit_gemm_pays(const Cpu&, const ConvTask& task) {
  if (task.dtype != kFloat32) return false;
  const Conv2dShape& g = task.g;
  const ConvPass pass = task.pass;
  const bool lanes_of_images = fills_lanes(task);
  const int64_t c = g.c / g.groups, o = g.o / g.groups;
  if (pass == ConvPass::kBackwardWeights) {
    // Output channels fill the lanes, and make up for packing and transposing.
    return lanes_of_images ? o >= 16 && c * o >= 128 : o >= 8;
  }
  // With a stride most of what dx is computed from would be zeros between the elements of dy.
  const bool data = pass == ConvPass::kBackwardData;
  if (data && (g.stride_h > 1 || g.stride_w > 1)) return false;
  const int64_t channels = data ? c : o, columns = data ? g.w : g.ow;
  if (!lanes_of_images) return channels >= 8;
  // Work on a packed row, which short rows and few channels do not repay; and small images leave
  // lanes of pixels idle.
  const int64_t pixels = columns * (data ? g.h : g.oh), computed = (pixels + 31) / 32 * 32;
  return channels * std::min<int64_t>(columns, 32) >= 256 && 5 * pixels >= 4 * computed;
}

// Whether Winograd's algorithm was measured to be the fastest (float32; AVX-512 and AVX2).
bool winograd_pays(const Cpu&, const ConvTask& task) {
  if (task.dtype != kFloat32) return false;
  const Conv2dShape& g = task.g;
  const ConvPass pass = task.pass;
  if (std::min(g.c, g.o) < 32) return false;
  // It is faster with fewer channels as well, but rounds more: among millions of sums of K products
  // the worst is off by about K epsilon, and by more where K is smaller.
  if (pass != ConvPass::kBackwardWeights && (pass == ConvPass::kForward ? g.c : g.o) < 64)
    return false;
  // Enough tiles of 4 x 4 to repay transforming the weights, at least half of what they cover in
  // the image.
  const bool data = pass == ConvPass::kBackwardData;
  const int64_t h = data ? g.h : g.oh, w = data ? g.w : g.ow;
  return winograd::fills_tiles(g.n, h, w, 32);
}

std::string winograd_lacks(const Cpu&, const ConvTask& task) { return winograd::lacks(task.g); }

template <class T> using Algorithm =
    ConvAlgorithm<Cpu, void(const Conv2dShape&, const T*, const T*, const T*, T*, bool),
                  void(const Conv2dShape&, const T*, const T*, T*),
                  void(const Conv2dShape&, const T*, const T*, T*)>;
template <class T> const Algorithm<T>& choose(const Conv2dShape& g, ConvPass pass) {
  static constexpr std::array<Algorithm<T>, 5> kTable{{
      {ConvAlgo::kWinograd, winograd_lacks, winograd_pays, winograd_conv2d_forward<T>,
       winograd_conv2d_backward_data<T>, winograd_conv2d_backward_weights<T>},
      {ConvAlgo::kImplicitGemm, lacks_nothing<Cpu>, implicit_gemm_pays,
       implicit_gemm_conv2d_forward<T>, implicit_gemm_conv2d_backward_data<T>,
       implicit_gemm_conv2d_backward_weights<T>},
      {ConvAlgo::kDirect, lacks_nothing<Cpu>, direct_pays, direct_conv2d_forward<T>,
       direct_conv2d_backward_data<T>, direct_conv2d_backward_weights<T>},
      {ConvAlgo::kNaive, lacks_nothing<Cpu>, never_pays<Cpu>, naive_conv2d_forward<T>,
       naive_conv2d_backward_data<T>, naive_conv2d_backward_weights<T>},
      {ConvAlgo::kIm2col, lacks_nothing<Cpu>, always_pays<Cpu>, im2col_conv2d_forward<T>,
       im2col_conv2d_backward_data<T>, im2col_conv2d_backward_weights<T>},
  }};
  return choose_algorithm(Cpu{}, "the CPU", kTable, {g, pass, DTypeOf<T>::value});
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
  choose<T>(g, ConvPass::kForward).forward(g, x, weight, b, y, relu);
}

template <class T>
void conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  choose<T>(g, ConvPass::kBackwardData).backward_data(g, dy, weight, dx);
}

template <class T>
void conv2d_backward_weights(const Conv2dShape& g, const T* x, const T* dy, T* dweight, T* db) {
  if (db != nullptr) bias_gradient(g, dy, db);
  if (dweight == nullptr) return;
  choose<T>(g, ConvPass::kBackwardWeights).backward_weights(g, x, dy, dweight);
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
