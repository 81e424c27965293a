// Batches: which images, and their pixels as normalized numbers.
#include "simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "data.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>

#include "parallel.h"
#include "sinter/kernels.h"
#include "sinter/philox.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
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

}  // namespace

void shuffled_indices(const Cpu&, uint64_t seed, uint64_t epoch, int64_t size, int64_t first,
                      int64_t count, int64_t* index) {
  parallel_ranges(count, items_per_grain(256), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      index[i] = static_cast<int64_t>(permute_index(seed, epoch, static_cast<uint64_t>(size),
                                                    static_cast<uint64_t>(first + i)));
    }
  });
}

template <class T> void gather_images(const Cpu&, const GatherShape& g, const uint8_t* images,
                                      const int64_t* index, T* x) {
  const int64_t plane = static_cast<int64_t>(g.h) * g.w, image = plane * g.c;
  parallel_ranges(g.n, items_per_grain(image), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < g.c; ++c) {
        const uint8_t* from = images + index[i] * image + c * plane;
        T* to = x + i * image + c * plane;
        const T factor = static_cast<T>(1 / (255.0 * g.std[c]));
        const T offset = static_cast<T>(-static_cast<double>(g.mean[c]) / g.std[c]);
        normalize(plane, from, factor, offset, to);
      }
    }
  });
}

void gather_labels(const Cpu&, int64_t n, const uint8_t* labels, const int64_t* index, int64_t* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = labels[index[i]];
}

template void gather_images(const Cpu&, const GatherShape&, const uint8_t*, const int64_t*, float*);
template void gather_images(const Cpu&, const GatherShape&, const uint8_t*, const int64_t*,
                            double*);

}  // namespace sinter
#endif  // HWY_ONCE
