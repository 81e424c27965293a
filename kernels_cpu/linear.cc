// Fully connected layers: matrix products and the two bias loops around them.
#include <algorithm>

#include "gemm.h"
#include "parallel.h"

namespace sinter {

template <class T>
void linear_forward(const Cpu&, const LinearShape& g, const T* x, const T* w, const T* b, T* y) {
  if (b != nullptr) {
    parallel_ranges(g.n, items_per_grain(g.out), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::copy_n(b, g.out, y + i * g.out);
    });
  }
  parallel_gemm({.tb = true, .m = g.n, .n = g.out, .k = g.in}, x, w, y, b != nullptr);
}

template <class T>
void linear_backward_data(const Cpu&, const LinearShape& g, const T* dy, const T* w, T* dx) {
  parallel_gemm({.m = g.n, .n = g.in, .k = g.out}, dy, w, dx, false);
}

template <class T> void linear_backward_weights(const Cpu&, const LinearShape& g, const T* x,
                                                const T* dy, T* dw, T* db) {
  if (dw != nullptr) {
    parallel_gemm({.ta = true, .m = g.out, .n = g.in, .k = g.n}, dy, x, dw, false);
  }
  if (db != nullptr) {
    constexpr int64_t kColumns = 64, kRows = 128;
    parallel_ranges(g.out, std::max(kColumns, items_per_grain(g.n)),
                    [&](int64_t begin, int64_t end) {
                      for (int64_t j = begin; j < end; j += kColumns) {
                        const int64_t width = std::min(kColumns, end - j);
                        // Totals in double: the rounding error of a tall batch is its blocks'.
                        double total[kColumns] = {};
                        for (int64_t i = 0; i < g.n; i += kRows) {
                          T block[kColumns] = {};
                          for (int64_t r = i; r < std::min(g.n, i + kRows); ++r) {
                            for (int64_t c = 0; c < width; ++c) block[c] += dy[r * g.out + j + c];
                          }
                          for (int64_t c = 0; c < width; ++c)
                            total[c] += static_cast<double>(block[c]);
                        }
                        for (int64_t c = 0; c < width; ++c) db[j + c] = static_cast<T>(total[c]);
                      }
                    });
  }
}

#define SINTER_INSTANTIATE(T)                                                                     \
  template void linear_forward(const Cpu&, const LinearShape&, const T*, const T*, const T*, T*); \
  template void linear_backward_data(const Cpu&, const LinearShape&, const T*, const T*, T*);     \
  template void linear_backward_weights(const Cpu&, const LinearShape&, const T*, const T*, T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
