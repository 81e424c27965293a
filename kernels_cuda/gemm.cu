// Matrix products through cuBLAS, in full float or double precision unless TF32 is asked for.
// cuBLAS is opened for the first of them.
#include <cublas_v2.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "core/base/detail.h"
#include "kernels_cuda/gemm.cuh"
#include "kernels_cuda/runtime/check.cuh"
#include "kernels_cuda/runtime/shared_library.h"
#include "kernels_cuda/runtime/stream.cuh"
#include "sinter/operators/linear.h"

namespace sinter {
namespace cuda {
namespace {

#define SINTER_CUBLAS_FUNCTIONS(f)                                                            \
  f(cublasCreate) f(cublasDestroy) f(cublasGetStatusName) f(cublasGetStatusString)            \
      f(cublasSetAtomicsMode) f(cublasSetMathMode) f(cublasSetPointerMode) f(cublasSetStream) \
          f(cublasSetWorkspace) f(cublasSgemm_64) f(cublasDgemm_64)                           \
              f(cublasSgemmStridedBatched_64) f(cublasDgemmStridedBatched_64)
// Of the name that the header gives a function: cublasCreate is a macro for cublasCreate_v2.
#define SINTER_NAME(function) SINTER_TEXT(function)
#define SINTER_TEXT(text) #text

// The functions of the loaded library.
struct Cublas {
#define SINTER_DECLARE(function) decltype(::function)* function = nullptr;
  SINTER_CUBLAS_FUNCTIONS(SINTER_DECLARE)
#undef SINTER_DECLARE

  Cublas() {
    const SharedLibrary library(str("libcublas.so.", CUBLAS_VER_MAJOR), SINTER_CUBLAS_LIBRARY,
                                "matrix products on a GPU",
                                "install cuBLAS (part of the CUDA toolkit) or add its folder to "
                                "LD_LIBRARY_PATH");
#define SINTER_FIND(function) library.find(SINTER_NAME(function), function);
    SINTER_CUBLAS_FUNCTIONS(SINTER_FIND)
#undef SINTER_FIND
  }
};

// Throws Error if the library cannot be had; a later call tries again.
const Cublas& cublas() {
  static const Cublas functions;
  return functions;
}

#define SINTER_CUBLAS_CHECK(call)                                                               \
  do {                                                                                          \
    const cublasStatus_t sinter_status = cublas().call;                                         \
    if (sinter_status != CUBLAS_STATUS_SUCCESS)                                                 \
      throw CudaError(str(path_in_repository(__FILE__), ":", __LINE__, ": ",                    \
                          cublas().cublasGetStatusName(sinter_status), " calling " #call, ": ", \
                          cublas().cublasGetStatusString(sinter_status)));                      \
  } while (false)

cublasHandle_t make_handle(const Cuda& ctx) {
  // A workspace of our own, of the size cuBLAS recommends for Hopper: with it, results are the same
  // from run to run, and a captured product allocates nothing.
  constexpr size_t kWorkspaceBytes = size_t{32} << 20;
  // The stream's first product may be one that is captured in a graph.
  const UnrestrictedCalls unrestricted;
  cublasHandle_t handle = nullptr;
  SINTER_CUBLAS_CHECK(cublasCreate(&handle));
  void* workspace = nullptr;
  try {
    SINTER_CUBLAS_CHECK(cublasSetStream(handle, ctx.stream));
    // Atomics would make the order of additions a race.
    SINTER_CUBLAS_CHECK(cublasSetAtomicsMode(handle, CUBLAS_ATOMICS_NOT_ALLOWED));
    SINTER_CUBLAS_CHECK(cublasSetPointerMode(handle, CUBLAS_POINTER_MODE_HOST));
    workspace = permanent_memory(ctx, kWorkspaceBytes);
    SINTER_CUBLAS_CHECK(cublasSetWorkspace(handle, workspace, kWorkspaceBytes));
  } catch (...) {
    static_cast<void>(cublas().cublasDestroy(handle));
    static_cast<void>(cudaFree(workspace));
    throw;
  }
  return handle;
}

// One handle a stream, which is one a thread and device: streams are the threads' own, and pass on
// when a thread ends. Never destroyed, like the streams: at exit the driver may be gone first.
cublasHandle_t handle_of(const Cuda& ctx) {
  using Key = std::pair<int, cudaStream_t>;
  thread_local Key last_key{-1, nullptr};
  thread_local cublasHandle_t last_handle = nullptr;
  const Key key{ctx.device, ctx.stream};
  if (last_key == key) return last_handle;

  static auto& mutex = *new std::mutex;
  static auto& handles = *new std::map<Key, cublasHandle_t>;
  const std::lock_guard lock(mutex);
  auto found = handles.find(key);
  if (found == handles.end()) found = handles.emplace(key, make_handle(ctx)).first;
  last_key = key;
  last_handle = found->second;
  return last_handle;
}

}  // namespace

template <class T>
void gemm(const Cuda& ctx, const op::GemmShape& g, const T* a, const T* b, T* c) {
  if (g.m == 0 || g.n == 0 || g.batch == 0) return;
  if (g.k == 0) {
    SINTER_CUDA_CHECK(
        cudaMemsetAsync(c, 0, static_cast<size_t>(g.batch * g.m * g.n) * sizeof(T), ctx.stream));
    return;
  }
  // cuBLAS is column-major, where a row-major matrix reads as its transpose: ask for
  // C^T = op(B)^T op(A)^T with the operands swapped, and nothing moves.
  const cublasHandle_t handle = handle_of(ctx);
  // The default mode rounds nothing to TF32.
  SINTER_CUBLAS_CHECK(
      cublasSetMathMode(handle, g.tf32 ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH));
  const cublasOperation_t op_a = g.ta ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t op_b = g.tb ? CUBLAS_OP_T : CUBLAS_OP_N;
  const int64_t lda = g.ta ? g.m : g.k, ldb = g.tb ? g.k : g.n, ldc = g.n;
  const T one = 1, zero = 0;
  if (g.batch == 1) {
    if constexpr (std::is_same_v<T, float>)
      SINTER_CUBLAS_CHECK(
          cublasSgemm_64(handle, op_b, op_a, g.n, g.m, g.k, &one, b, ldb, a, lda, &zero, c, ldc));
    else
      SINTER_CUBLAS_CHECK(
          cublasDgemm_64(handle, op_b, op_a, g.n, g.m, g.k, &one, b, ldb, a, lda, &zero, c, ldc));
    return;
  }
  // The batch is a grid dimension, which holds 65535.
  for (int64_t first = 0; first < g.batch; first += 65535) {
    const int64_t count = std::min<int64_t>(g.batch - first, 65535);
    const T* a_first = a + first * g.stride_a;
    const T* b_first = b + first * g.stride_b;
    T* c_first = c + first * g.m * g.n;
    if constexpr (std::is_same_v<T, float>)
      SINTER_CUBLAS_CHECK(cublasSgemmStridedBatched_64(
          handle, op_b, op_a, g.n, g.m, g.k, &one, b_first, ldb, g.stride_b, a_first, lda,
          g.stride_a, &zero, c_first, ldc, g.m * g.n, count));
    else
      SINTER_CUBLAS_CHECK(cublasDgemmStridedBatched_64(
          handle, op_b, op_a, g.n, g.m, g.k, &one, b_first, ldb, g.stride_b, a_first, lda,
          g.stride_a, &zero, c_first, ldc, g.m * g.n, count));
  }
}

template void gemm(const Cuda&, const op::GemmShape&, const float*, const float*, float*);
template void gemm(const Cuda&, const op::GemmShape&, const double*, const double*, double*);

}  // namespace cuda

void run(const Cuda& ctx, const op::Gemm& o) {
  with_floating(
      o.a, [&]<class T>() { cuda::gemm(ctx, o.g, o.a.data<T>(), o.b.data<T>(), o.c.data<T>()); });
}

}  // namespace sinter
