// Fully connected layers: matrix products and the two bias loops around them.
#include <algorithm>

#include "kernels_cpu/gemm.h"
#include "kernels_cpu/runtime/parallel.h"

namespace sinter {
using namespace op;
namespace {

template <class T> void repeat_rows(int64_t n, int64_t width, const T* row, T* y) {
  parallel_ranges(n, items_per_grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy_n(row, width, y + i * width);
  });
}

// sums[j] = the sum over i < n of y[i * width + j].
template <class T> void column_sums(int64_t n, int64_t width, const T* y, T* sums) {
  constexpr int64_t kColumns = 64, kRows = 128;
  parallel_ranges(width, std::max(kColumns, items_per_grain(n)), [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += kColumns) {
      const int64_t columns = std::min(kColumns, end - j);
      // Totals in double: the rounding error of a tall batch is its blocks'.
      double total[kColumns] = {};
      for (int64_t i = 0; i < n; i += kRows) {
        T block[kColumns] = {};
        for (int64_t r = i; r < std::min(n, i + kRows); ++r) {
          for (int64_t c = 0; c < columns; ++c) block[c] += y[r * width + j + c];
        }
        for (int64_t c = 0; c < columns; ++c) total[c] += static_cast<double>(block[c]);
      }
      for (int64_t c = 0; c < columns; ++c) sums[j + c] = static_cast<T>(total[c]);
    }
  });
}

}  // namespace

void run(const Cpu&, const LinearForward& o) {
  const LinearShape& g = o.g;
  with_floating(o.x, [&]<class T>() {
    const T* b = o.b.data<T>();
    T* y = o.y.data<T>();
    if (b != nullptr) repeat_rows(g.n, g.out, b, y);
    parallel_gemm({.tb = true, .m = g.n, .n = g.out, .k = g.in}, o.x.data<T>(), o.w.data<T>(), y,
                  b != nullptr, o.relu);
  });
}

void run(const Cpu&, const LinearBackwardData& o) {
  const LinearShape& g = o.g;
  with_floating(o.dy, [&]<class T>() {
    parallel_gemm({.m = g.n, .n = g.in, .k = g.out}, o.dy.data<T>(), o.w.data<T>(), o.dx.data<T>(),
                  false);
  });
}

void run(const Cpu&, const LinearBackwardWeights& o) {
  const LinearShape& g = o.g;
  with_floating(o.dy, [&]<class T>() {
    const T* dy = o.dy.data<T>();
    T *dw = o.dw.data<T>(), *db = o.db.data<T>();
    if (dw != nullptr) {
      parallel_gemm({.ta = true, .m = g.out, .n = g.in, .k = g.n}, dy, o.x.data<T>(), dw, false);
    }
    if (db != nullptr) column_sums(g.n, g.out, dy, db);
  });
}

}  // namespace sinter
