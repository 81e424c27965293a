// Matrix products. The library that computes them (OpenBLAS where the build found it, else Eigen)
// runs on the calling thread alone, whatever the program around us asked of it; parallelism comes
// from cutting C into tiles that depend on the shape alone, so the result is the same for any
// number of threads.
#include "kernels_cpu/gemm.h"

#include <algorithm>
#include <climits>
#include <new>
#include <string>

#include "core/base/detail.h"
#include "kernels_cpu/runtime/parallel.h"
#include "sinter/check.h"

#ifdef SINTER_WITH_OPENBLAS
#include <cblas.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#else
#define EIGEN_DONT_PARALLELIZE
#include <Eigen/Core>
#endif

#ifdef SINTER_WITH_OPENBLAS
// Every OpenBLAS exports these, though its headers do not speak of them.
extern "C" {
void* blas_memory_alloc(int) __attribute__((weak));
void blas_memory_free(void*) __attribute__((weak));
}
#endif

namespace sinter {
using namespace op;
namespace {

#ifdef SINTER_WITH_OPENBLAS

thread_local bool ending = false;  // this thread ends the process

// What OpenBLAS packs operands into: a buffer for each product under way, mapped when there is no
// free one, and kept. Where it can have no memory it tries for ever, and with more products at once
// than it has places for buffers it goes on without. So they are made here before the first
// product, one a core as far as memory and places go, and a thread that finds all of them taken
// waits for one.
class Buffers {
 public:
  // Throws OutOfMemoryError.
  void take() {
    while (!ending) {
      int n = free_.load(std::memory_order_acquire);
      while (n > 0) {
        if (free_.compare_exchange_weak(n, n - 1, std::memory_order_acquire)) return;
      }
      if (n == 0)
        free_.wait(0);
      else
        make();
    }
  }
  void give() noexcept {
    if (ending) return;
    free_.fetch_add(1, std::memory_order_release);
    free_.notify_one();
  }

  // Takes them all for good, once the products of other threads are done. Does not wait for ever:
  // exit() may be called in the middle of one, by a signal handler.
  void close() {
    ending = true;
    for (int taken = 0, turns = 0; turns < 1000; ++turns) {
      if (made_ > 0) taken += free_.exchange(0);
      if (taken == made_) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  // A child of fork has the buffers, and none of the threads that would give theirs back.
  void reset_in_child() {
    const int made = made_;
    new (this) Buffers;
    made_ = made;
    if (made > 0) free_ = made;
  }

  // Never destroyed: destructors of static objects may multiply.
  static Buffers& all() {
    static Buffers& buffers = *new Buffers;
    return buffers;
  }

 private:
  static constexpr int kNotMade = -1;
  static constexpr size_t kMost = 64;  // as many places are left beside OpenBLAS's own threads
  static constexpr size_t kBytes = size_t{128} << 20;  // of one
  static constexpr size_t kMargin = size_t{16} << 20;  // for what else is allocated meanwhile

  static bool room_for(size_t buffers) {
    const size_t bytes = buffers * kBytes + kMargin;
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    munmap(p, bytes);
    return true;
  }

  void make() {
    const std::lock_guard lock(mutex_);
    if (free_.load(std::memory_order_relaxed) != kNotMade) return;
    // Of the machine, not of this thread's affinity mask: other threads may have other ones.
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const size_t wanted = std::min(kMost, static_cast<size_t>(std::max(cores, 1L)));
    std::array<void*, kMost> made;
    size_t count = 0;
    if (!room_for(1)) release_cached_memory(Cpu{});
    // A program needs memory for other things too: those after the first leave it some.
    while (count < wanted && room_for(count == 0 ? 1 : 4)) {
      made[count++] = blas_memory_alloc == nullptr ? nullptr : blas_memory_alloc(0);
    }
    if (blas_memory_free != nullptr) {
      for (size_t i = 0; i < count; ++i) blas_memory_free(made[i]);
    }
    require<OutOfMemoryError>(count > 0, "out of host memory: OpenBLAS needs ", kBytes >> 20,
                              " MB of address space to multiply matrices; raise the limit (ulimit "
                              "-v), set OPENBLAS_NUM_THREADS=1 in the environment, so that it "
                              "takes none for threads, or build with -DSINTER_BLAS=OFF");
    [[maybe_unused]] static const int registered =
        pthread_atfork(nullptr, nullptr, [] { all().reset_in_child(); });
    made_ = static_cast<int>(count);
    free_.store(static_cast<int>(count), std::memory_order_release);
  }

  std::mutex mutex_;
  std::atomic<int> made_{0};
  std::atomic<int> free_{kNotMade};
};

// Run behind the destructors of static objects and before OpenBLAS's own, which unmaps the buffers,
// also those that detached threads multiply in.
__attribute__((destructor)) void close_buffers() { Buffers::all().close(); }

class Buffer {
 public:
  Buffer() { Buffers::all().take(); }
  ~Buffer() { Buffers::all().give(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

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

// The blocks a product is computed in, one call of OpenBLAS each: so small that it never starts
// threads of its own, which would compete with ours and add in an order that depends on how many
// they are. How many it may use is the surrounding program's to say, and to change while we run.
struct Blocks {
  int64_t m, n, k;
};
Blocks choose_blocks(int64_t m, int64_t n, int64_t k) {
  // The m n k up to which it multiplies on one thread; a product of a vector counts as one of
  // those, where less is much.
#ifdef __aarch64__
  constexpr int64_t kMatrix = 124999;
#else
  constexpr int64_t kMatrix = 1 << 18;
#endif
  constexpr int64_t kVector = 9216, kSide = 64, kLanes = 16;  // whole vectors, where it can be
  const auto part = [](int64_t total, int64_t most) {
    if (total <= most) return total;
    if (most > kLanes) most = most / kLanes * kLanes;
    const int64_t count = (total + most - 1) / most, even = (total + count - 1) / count;
    return std::min(most, (even + kLanes - 1) / kLanes * kLanes);
  };
  const int64_t limit = std::min(m, n) == 1 ? kVector : kMatrix;
  const int64_t area = limit / std::min(k, kSide);
  Blocks b{part(m, kSide), 0, 0};
  b.n = part(n, area / b.m);
  if (b.n < kSide) b.m = part(m, area / b.n);
  b.k = part(k, limit / (b.m * b.n));
  return b;
}

template <class T> void multiply(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const T* a,
                                 int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                 bool accumulate) {
  require<ShapeError>(std::max({lda, ldb, ldc}) <= INT_MAX, "gemm: a row length of (", m, ", ", k,
                      ") x (", k, ", ", n, ") exceeds the 2^31 - 1 that BLAS can count");
  const auto i = [](int64_t v) { return static_cast<blasint>(v); };
  const Blocks block = choose_blocks(m, n, k);
  const Buffer buffer;
  for (int64_t r = 0; r < m; r += block.m) {
    for (int64_t s = 0; s < n; s += block.n) {
      for (int64_t t = 0; t < k; t += block.k) {
        blas_gemm(ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans,
                  i(std::min(block.m, m - r)), i(std::min(block.n, n - s)),
                  i(std::min(block.k, k - t)), a + (ta ? t * lda + r : r * lda + t), i(lda),
                  b + (tb ? s * ldb + t : t * ldb + s), i(ldb), T(accumulate || t > 0 ? 1 : 0),
                  c + r * ldc + s, i(ldc));
      }
    }
  }
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
  try {
    if (!ta && !tb) {
      cm.noalias() += am * bm;
    } else if (!ta) {
      cm.noalias() += am * bm.transpose();
    } else if (!tb) {
      cm.noalias() += am.transpose() * bm;
    } else {
      cm.noalias() += am.transpose() * bm.transpose();
    }
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError(
        str("out of host memory: multiplying (", m, ", ", k, ") x (", k, ", ", n, ")"));
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
                                    bool accumulate, bool relu) {
  if (m == 0 || n == 0) return;
  if (k > 0) {
    multiply(ta, tb, m, n, k, a, lda, b, ldb, c, ldc, accumulate);
  } else if (!accumulate) {
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, T(0));
  }
  if (!relu) return;
  for (int64_t i = 0; i < m; ++i, c += ldc) {
    for (int64_t j = 0; j < n; ++j) {
      const T value = c[j];  // apart, so that the choice below is no branch
      c[j] = value <= 0 ? T(0) : value;
    }
  }
}

template <class T>
void parallel_gemm(const GemmShape& g, const T* a, const T* b, T* c, bool accumulate, bool relu) {
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
                g.n, accumulate, relu);
  };
  // Many tiny products share a chunk.
  const int64_t work = tile.m * tile.n * std::max<int64_t>(1, g.k / 8);
  parallel_ranges(g.batch * rows * cols, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) one_tile(index);
  });
}

void run(const Cpu&, const Gemm& o) {
  with_floating(o.a, [&]<class T>() {
    parallel_gemm(o.g, o.a.data<T>(), o.b.data<T>(), o.c.data<T>(), false);
  });
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
                            int64_t, T*, int64_t, bool, bool);                                  \
  template void parallel_gemm(const GemmShape&, const T*, const T*, T*, bool, bool);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
