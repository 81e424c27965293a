// Matrix products. The library that computes them (OpenBLAS where the build found it, else Eigen)
// always runs on one thread; parallelism comes from cutting C into tiles that depend on the shape
// alone, so the result is the same for any number of threads.
#include "gemm.h"

#include <algorithm>
#include <climits>
#include <string>

#include "parallel.h"
#include "sinter/check.h"

#ifdef SINTER_WITH_OPENBLAS
#include <cblas.h>
#else
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#endif

namespace sinter {
namespace {

#ifdef SINTER_WITH_OPENBLAS

// The threads are ours: an OpenBLAS that spawned its own inside each of them would oversubscribe
// the cores, and its partition would depend on how many there are.
void ensure_one_blas_thread() {
  static const bool once = (openblas_set_num_threads(1), true);
  (void)once;
}

void blas_gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, blasint m, blasint n, blasint k,
               const float* a, blasint lda, const float* b, blasint ldb, float beta, float* c,
               blasint ldc) {
  cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc);
}

void blas_gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, blasint m, blasint n, blasint k,
               const double* a, blasint lda, const double* b, blasint ldb, double beta, double* c,
               blasint ldc) {
  cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, ldc);
}

template <class T> void multiply(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T* a,
                                 int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                 bool accumulate) {
  ensure_one_blas_thread();
  require<ShapeError>(std::max({m, n, k, lda, ldb, ldc}) <= INT_MAX,
                      "gemm: an extent or row length of (", m, ", ", k, ") x (", k, ", ", n,
                      ") exceeds the 2^31 - 1 that BLAS can count");
  const auto i = [](int64_t v) { return static_cast<blasint>(v); };
  blas_gemm(ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, i(m), i(n), i(k), a,
            i(lda), b, i(ldb), T(accumulate ? 1 : 0), c, i(ldc));
}

#else

template <class T> void multiply(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T* a,
                                 int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                 bool accumulate) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using In = Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<> >;
  using Out = Eigen::Map<Matrix, Eigen::Unaligned, Eigen::OuterStride<> >;
  const In am(a, ta ? k : m, ta ? m : k, Eigen::OuterStride<>(lda));
  const In bm(b, tb ? n : k, tb ? k : n, Eigen::OuterStride<>(ldb));
  Out cm(c, m, n, Eigen::OuterStride<>(ldc));
  if (!accumulate) cm.setZero();
  if (!ta && !tb) {
    cm.noalias() += am * bm;
  } else if (!ta) {
    cm.noalias() += am * bm.transpose();
  } else if (!tb) {
    cm.noalias() += am.transpose() * bm;
  } else {
    cm.noalias() += am.transpose() * bm.transpose();
  }
}

#endif

// The tile of C that one thread computes at a time. Small enough to feed many threads, large enough
// that packing its operands, which the library repeats for every tile, stays cheap.
struct Tile {
  int64_t m, n;
};
Tile choose_tile(int64_t m, int64_t n, int64_t k) {
  constexpr double kTileFlops = 2e6;
  constexpr int64_t kSmallest = 32;
  Tile tile{m, n};
  while (2.0 * tile.m * tile.n * k > 2 * kTileFlops) {
    int64_t& longer = tile.m >= tile.n ? tile.m : tile.n;
    if (longer < 2 * kSmallest) break;
    longer = ((longer + 1) / 2 + 15) / 16 * 16;  // whole vectors of any instruction set
  }
  return tile;
}

}  // namespace

template <class T> void serial_gemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T* a,
                                    int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                    bool accumulate) {
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (!accumulate) {
      for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, T(0));
    }
    return;
  }
  multiply(ta, tb, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

template <class T>
void parallel_gemm(const Gemm& g, const T* a, const T* b, T* c, bool accumulate) {
  if (g.m == 0 || g.n == 0) return;
  const Tile tile = choose_tile(g.m, g.n, g.k);
  const int64_t rows = (g.m + tile.m - 1) / tile.m, cols = (g.n + tile.n - 1) / tile.n;
  const int64_t lda = g.ta ? g.m : std::max<int64_t>(g.k, 1);
  const int64_t ldb = g.tb ? std::max<int64_t>(g.k, 1) : g.n;
  const auto one_tile = [&](int64_t index) {
    const int64_t i = index / (rows * cols), row = index / cols % rows, col = index % cols;
    const int64_t m0 = row * tile.m, n0 = col * tile.n;
    serial_gemm(g.ta, g.tb, std::min(tile.m, g.m - m0), std::min(tile.n, g.n - n0), g.k,
                a + i * g.stride_a + (g.ta ? m0 : m0 * lda), lda,
                b + i * g.stride_b + (g.tb ? n0 * ldb : n0), ldb, c + (i * g.m + m0) * g.n + n0,
                g.n, accumulate);
  };
  // Many tiny products share a chunk.
  const int64_t work = tile.m * tile.n * std::max<int64_t>(1, g.k / 8);
  parallel_ranges(g.batch * rows * cols, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) one_tile(index);
  });
}

template <class T> void gemm(const Cpu&, const Gemm& g, const T* a, const T* b, T* c) {
  parallel_gemm(g, a, b, c, false);
}

#ifdef SINTER_WITH_OPENBLAS
BlasInfo blas_info() {
  const std::string config = openblas_get_config();  // "OpenBLAS 0.3.21 DYNAMIC_ARCH …"
  const size_t version = config.find(' ');
  return {config.substr(0, version == std::string::npos ? version : config.find(' ', version + 1)),
          openblas_get_corename()};
}
#else
BlasInfo blas_info() {
  return {str("Eigen ", EIGEN_WORLD_VERSION, ".", EIGEN_MAJOR_VERSION, ".", EIGEN_MINOR_VERSION),
          ""};
}
#endif

#define SINTER_INSTANTIATE(T)                                                                   \
  template void serial_gemm(bool, bool, int64_t, int64_t, int64_t, const T*, int64_t, const T*, \
                            int64_t, T*, int64_t, bool);                                        \
  template void parallel_gemm(const Gemm&, const T*, const T*, T*, bool);                       \
  template void gemm(const Cpu&, const Gemm&, const T*, const T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
