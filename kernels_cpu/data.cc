// Batches: which images, and their pixels as normalized numbers.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/data.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/data.h"
#include "sinter/philox.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

// A plain loop: the compiler vectorizes it for each instruction set.
template <class T> HWY_ATTR void normalize(int64_t n, const uint8_t* HWY_RESTRICT from, T factor,
                                           T offset, T* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]) * factor + offset;
}

void NormalizeFloat(int64_t n, const uint8_t* from, float factor, float offset, float* to) {
  normalize(n, from, factor, offset, to);
}
void NormalizeDouble(int64_t n, const uint8_t* from, double factor, double offset, double* to) {
  normalize(n, from, factor, offset, to);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(NormalizeFloat);
HWY_EXPORT(NormalizeDouble);

void normalize(int64_t n, const uint8_t* from, float factor, float offset, float* to) {
  HWY_DYNAMIC_DISPATCH(NormalizeFloat)(n, from, factor, offset, to);
}
void normalize(int64_t n, const uint8_t* from, double factor, double offset, double* to) {
  HWY_DYNAMIC_DISPATCH(NormalizeDouble)(n, from, factor, offset, to);
}

template <class T> void gather_batch(const GatherShape& g, const uint8_t* images,
                                     const uint8_t* labels, const int64_t* index, int64_t* position,
                                     T* x, int64_t* y) {
  const int64_t plane = static_cast<int64_t>(g.h) * g.w, image = plane * g.c;
  const int64_t first = position != nullptr ? *position : g.first;
  T factor[4], offset[4];
  for (int c = 0; c < g.c; ++c) {
    factor[c] = static_cast<T>(1 / (255.0 * g.std[c]));
    offset[c] = static_cast<T>(-static_cast<double>(g.mean[c]) / g.std[c]);
  }
  // Two or three images a chunk: light work, but each image is a wait for memory.
  parallel_ranges(g.n, items_per_grain(2 * image), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = index[(first + i) % g.size];
      y[i] = labels[from];
      for (int64_t c = 0; c < g.c; ++c) {
        normalize(plane, images + from * image + c * plane, factor[c], offset[c],
                  x + i * image + c * plane);
      }
    }
  });
  if (position != nullptr) *position = first + g.n;
}

}  // namespace

void run(const Cpu&, const ShuffledIndices& o) {
  int64_t* index = o.index.data<int64_t>();
  parallel_ranges(o.index.numel(), items_per_grain(256), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      index[i] = static_cast<int64_t>(permute_index(o.seed, o.epoch, static_cast<uint64_t>(o.size),
                                                    static_cast<uint64_t>(o.first + i)));
    }
  });
}

void run(const Cpu&, const GatherBatch& o) {
  with_floating(o.x, [&]<class T>() {
    gather_batch(o.g, o.images.data<uint8_t>(), o.labels.data<uint8_t>(), o.index.data<int64_t>(),
                 o.position.data<int64_t>(), o.x.data<T>(), o.y.data<int64_t>());
  });
}

}  // namespace sinter
#endif  // HWY_ONCE
