// Convolution of any geometry: a tiled matrix product whose right operand is gathered from the
// image instead of being written out (im2col) first. A weights' gradient is cut into slices of the
// batch, which depend on the geometry alone and are added up in order.
#include <algorithm>
#include <cstdint>

#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/conv2d/conv2d_tile.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/sum.cuh"

namespace sinter::cuda {
using namespace op;

namespace {

// ---- implicit GEMM ------------------------------------------------------------------------------

// For every group, C (m, n) = A (m, k) B (k, n), where k is a mixed-radix number (outer, mid,
// inner):
//                    m        n                k
//   forward          o/group  (image, oy, ox)  (channel, i, j)
//   backward data    c/group  (image, iy, ix)  (output channel, i, j)
//   backward weights o/group  (channel, i, j)  (image, oy, ox), cut into slices
// A(m, k) is a[group * a_group + k / a_period * a_outer + m * a_row + k % a_period]; B is gathered
// by the pass; C(m, n) goes to out[pass.output(group, n) + m * out_row + slice * out_slice].
struct GemmPlan {
  int64_t m, n, k;
  int64_t a_group, a_row, a_period, a_outer;
  int64_t out_row, out_slice;
  int64_t slice_k;  // a multiple of kTileK
  int radix_mid, radix_inner;
  int groups, slices;
  int64_t tiles_m, tiles_n;
};

// k and its digits, in every thread the same.
struct Digits {
  int64_t outer;
  int mid, inner;

  __device__ Digits(int64_t k, const GemmPlan& g)
      : outer(k / g.radix_inner / g.radix_mid),
        mid(static_cast<int>(k / g.radix_inner % g.radix_mid)),
        inner(static_cast<int>(k % g.radix_inner)) {}
  __device__ void next(const GemmPlan& g) {
    if (++inner < g.radix_inner) return;
    inner = 0;
    if (++mid < g.radix_mid) return;
    mid = 0;
    ++outer;
  }
};

// A pass tells what its right operand is: `Column` is what a thread knows of one column of B, and
// load(column, k) the element in row k of it; and what becomes of a sum: result(sum, group, m).
template <class T> struct ForwardPass {
  Conv2dShape g;
  const T* a;  // weight
  const T* x;
  const T* b;  // nullable
  T* out;      // y
  bool relu;

  struct Column {
    const T* x;
    int y0, x0, h;  // where the window begins; h is 0 for a column outside the matrix
  };
  __device__ Column column(int group, int64_t n, bool inside) const {
    const int64_t image = n / (g.oh * g.ow);
    const int at = static_cast<int>(n % (g.oh * g.ow));
    return {x + (image * g.c + static_cast<int64_t>(group) * (g.c / g.groups)) * g.h * g.w,
            at / g.ow * g.stride_h - g.pad_h, at % g.ow * g.stride_w - g.pad_w, inside ? g.h : 0};
  }
  __device__ T load(const Column& s, const Digits& k) const {
    const int iy = s.y0 + k.mid * g.dil_h, ix = s.x0 + k.inner * g.dil_w;
    if (iy < 0 || iy >= s.h || ix < 0 || ix >= g.w) return T(0);
    return s.x[(k.outer * g.h + iy) * g.w + ix];
  }
  __device__ int64_t output(int group, int64_t n) const {
    const int64_t plane = static_cast<int64_t>(g.oh) * g.ow;
    const int64_t o = static_cast<int64_t>(group) * (g.o / g.groups);
    return (n / plane * g.o + o) * plane + n % plane;
  }
  __device__ T result(T sum, int group, int64_t m) const {
    sum += b ? b[static_cast<int64_t>(group) * (g.o / g.groups) + m] : T(0);
    return act(sum, act_limit<T>(relu));
  }
};

template <class T> struct BackwardDataPass {
  Conv2dShape g;
  const T* a;  // weight
  const T* dy;
  T* out;  // dx

  struct Column {
    const T* dy;
    int y, x, oh;
  };
  __device__ Column column(int group, int64_t n, bool inside) const {
    const int64_t image = n / (g.h * g.w);
    const int at = static_cast<int>(n % (g.h * g.w));
    return {dy + (image * g.o + static_cast<int64_t>(group) * (g.o / g.groups)) * g.oh * g.ow,
            at / g.w + g.pad_h, at % g.w + g.pad_w, inside ? g.oh : 0};
  }
  // Pixel iy was read by output oy through window row i where oy * stride + i * dilation = iy +
  // pad.
  __device__ T load(const Column& s, const Digits& k) const {
    int oy = s.y - k.mid * g.dil_h, ox = s.x - k.inner * g.dil_w;
    if (oy < 0 || ox < 0) return T(0);
    if (g.stride_h > 1) {
      if (oy % g.stride_h != 0) return T(0);
      oy /= g.stride_h;
    }
    if (g.stride_w > 1) {
      if (ox % g.stride_w != 0) return T(0);
      ox /= g.stride_w;
    }
    if (oy >= s.oh || ox >= g.ow) return T(0);
    return s.dy[(k.outer * g.oh + oy) * g.ow + ox];
  }
  __device__ int64_t output(int group, int64_t n) const {
    const int64_t plane = static_cast<int64_t>(g.h) * g.w;
    const int64_t c = static_cast<int64_t>(group) * (g.c / g.groups);
    return (n / plane * g.c + c) * plane + n % plane;
  }
  __device__ T result(T sum, int, int64_t) const { return sum + T(0); }
};

template <class T> struct BackwardWeightsPass {
  Conv2dShape g;
  const T* a;  // dy
  const T* x;
  T* out;  // dweight, or partial sums of it

  struct Column {
    const T* x;
    int y0, x0, h;
  };
  __device__ Column column(int group, int64_t n, bool inside) const {
    const int at = static_cast<int>(n % (g.kh * g.kw));
    const int64_t c = static_cast<int64_t>(group) * (g.c / g.groups) + n / (g.kh * g.kw);
    return {x + c * g.h * g.w, at / g.kw * g.dil_h - g.pad_h, at % g.kw * g.dil_w - g.pad_w,
            inside ? g.h : 0};
  }
  __device__ T load(const Column& s, const Digits& k) const {
    const int iy = s.y0 + k.mid * g.stride_h, ix = s.x0 + k.inner * g.stride_w;
    if (iy < 0 || iy >= s.h || ix < 0 || ix >= g.w) return T(0);
    return s.x[(k.outer * g.c * g.h + iy) * g.w + ix];
  }
  __device__ int64_t output(int group, int64_t n) const {
    const int64_t window = static_cast<int64_t>(g.c / g.groups) * g.kh * g.kw;
    return static_cast<int64_t>(group) * (g.o / g.groups) * window + n;
  }
  __device__ T result(T sum, int, int64_t) const { return sum + T(0); }
};

constexpr int kGemmThreads = 128;
constexpr int kTileN = 128, kTileK = 8;

// A block makes 8 * kM rows by 128 columns of C; a thread kM by 8 of them in registers, reading kM
// + 8 values of shared memory for 8 * kM multiplications. While a tile is multiplied, the next one
// is on its way into registers. In loading, a thread owns one column of B, whose place in the image
// it works out once, and kM / 2 neighbours of one row of A.
template <class T, int kM, class Pass> __global__ void __launch_bounds__(kGemmThreads)
    implicit_gemm(const GemmPlan g, const Pass pass) {
  constexpr int kTileM = 8 * kM;
  constexpr int kOfA = kTileM * kTileK / kGemmThreads;  // elements of A that a thread loads
  constexpr int kPerRow = kTileK / kOfA;                // threads that load a row of A
  // A's tile is transposed, and padded so that the stores that transpose it hit 32 banks.
  alignas(16) __shared__ T a_tile[kTileK][kTileM + 4];
  alignas(16) __shared__ T b_tile[kTileK][kTileN];

  int64_t at = blockIdx.x;
  const int64_t m0 = at % g.tiles_m * kTileM;
  at /= g.tiles_m;
  const int64_t n0 = at % g.tiles_n * kTileN;
  at /= g.tiles_n;
  const int group = static_cast<int>(at % g.groups);
  const int64_t slice = at / g.groups;
  const int64_t k_begin = slice * g.slice_k;
  const int64_t k_end = min(k_begin + g.slice_k, g.k);

  const int a_m = threadIdx.x / kPerRow, a_k = threadIdx.x % kPerRow * kOfA;
  const bool a_inside = m0 + a_m < g.m;
  const T* a_row = pass.a + group * g.a_group + (m0 + a_m) * g.a_row;
  int64_t a_outer = (k_begin + a_k) / g.a_period, a_inner = (k_begin + a_k) % g.a_period;
  const int64_t n = n0 + threadIdx.x;
  const auto column = pass.column(group, n < g.n ? n : 0, n < g.n);
  Digits digits(k_begin, g);

  T a_next[kOfA], b_next[kTileK];
  const auto fetch = [&](int64_t k) {
  // The element, then a step of the position: 1 within the thread's part, then over the others'.
#pragma unroll
    for (int q = 0; q < kOfA; ++q) {
      a_next[q] = a_inside && k + a_k + q < k_end ? a_row[a_outer * g.a_outer + a_inner] : T(0);
      a_inner += q + 1 < kOfA ? 1 : kTileK - kOfA + 1;
      while (a_inner >= g.a_period) {
        a_inner -= g.a_period;
        ++a_outer;
      }
    }
#pragma unroll
    for (int q = 0; q < kTileK; ++q) {
      b_next[q] = k + q < k_end ? pass.load(column, digits) : T(0);
      digits.next(g);
    }
  };

  const int row = threadIdx.x / 16 * kM, quad = threadIdx.x % 16 * 4;
  T sum[kM][8] = {};
  fetch(k_begin);
  for (int64_t k = k_begin; k < k_end; k += kTileK) {
    __syncthreads();  // the previous tile has been read
#pragma unroll
    for (int q = 0; q < kOfA; ++q) a_tile[a_k + q][a_m] = a_next[q];
#pragma unroll
    for (int q = 0; q < kTileK; ++q) b_tile[q][threadIdx.x] = b_next[q];
    __syncthreads();
    if (k + kTileK < k_end) fetch(k + kTileK);
#pragma unroll
    for (int q = 0; q < kTileK; ++q) {
      T av[kM];
#pragma unroll
      for (int r = 0; r < kM; r += 2) {
        const auto two = *reinterpret_cast<const Pair<T>*>(&a_tile[q][row + r]);
        av[r] = two.v[0];
        av[r + 1] = two.v[1];
      }
      // Columns quad .. quad + 3 and 64 + those: neighbouring threads read neighbouring banks.
      const auto b0 = *reinterpret_cast<const Quad<T>*>(&b_tile[q][quad]);
      const auto b1 = *reinterpret_cast<const Quad<T>*>(&b_tile[q][64 + quad]);
#pragma unroll
      for (int r = 0; r < kM; ++r) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          sum[r][s] += av[r] * b0.v[s];
          sum[r][4 + s] += av[r] * b1.v[s];
        }
      }
    }
  }

#pragma unroll
  for (int s = 0; s < 8; ++s) {
    const int64_t n_out = n0 + s / 4 * 64 + quad + s % 4;
    if (n_out >= g.n) continue;
    T* out = pass.out + pass.output(group, n_out) + slice * g.out_slice;
#pragma unroll
    for (int r = 0; r < kM; ++r) {
      const int64_t m = m0 + row + r;
      if (m < g.m) out[m * g.out_row] = pass.result(sum[r][s], group, m);
    }
  }
}

template <class T, class Pass>
void launch_gemm(LaunchSite site, const Operation& operation, GemmPlan p, const Pass& pass) {
  // float: 8 x 8 results a thread. double takes twice the registers: 4 x 8. Few rows: 2 x 8.
  constexpr int kWide = sizeof(T) == 4 ? 8 : 4;
  const bool wide = p.m > 16;
  p.tiles_m = ceil_div(p.m, wide ? 8 * kWide : 16);
  p.tiles_n = ceil_div(p.n, kTileN);
  const int64_t blocks = p.tiles_m * p.tiles_n * p.groups * p.slices;
  launch(site, operation, static_cast<unsigned>(blocks), kGemmThreads, 0,
         wide ? implicit_gemm<T, kWide, Pass> : implicit_gemm<T, 2, Pass>, p, pass);
}

}  // namespace

template <class T> void implicit_gemm_conv2d_forward(const Cuda& ctx, const Conv2dShape& g,
                                                     const T* x, const T* weight, const T* b, T* y,
                                                     bool relu) {
  const int64_t plane = int64_t{g.oh} * g.ow, window = int64_t{g.c / g.groups} * g.kh * g.kw;
  GemmPlan p{};
  p.m = g.o / g.groups;
  p.n = g.n * plane;
  p.k = window;
  p.a_group = p.m * window;
  p.a_row = window;
  p.a_period = window;
  p.out_row = plane;
  p.slice_k = ceil_div(window, kTileK) * kTileK;
  p.radix_mid = g.kh;
  p.radix_inner = g.kw;
  p.groups = g.groups;
  p.slices = 1;
  launch_gemm<T>(ctx, {name(ConvPass::kForward), g.n, g.o, g.oh, g.ow}, p,
                 ForwardPass<T>{g, weight, x, b, y, relu});
}

template <class T> void implicit_gemm_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g,
                                                           const T* dy, const T* weight, T* dx) {
  const int64_t plane = int64_t{g.h} * g.w, window = int64_t{g.kh} * g.kw;
  GemmPlan p{};
  p.m = g.c / g.groups;
  p.n = g.n * plane;
  p.k = g.o / g.groups * window;
  p.a_group = p.k * p.m;
  p.a_row = window;
  p.a_period = window;
  p.a_outer = p.m * window;
  p.out_row = plane;
  p.slice_k = ceil_div(p.k, kTileK) * kTileK;
  p.radix_mid = g.kh;
  p.radix_inner = g.kw;
  p.groups = g.groups;
  p.slices = 1;
  launch_gemm<T>(ctx, {name(ConvPass::kBackwardData), g.n, g.c, g.h, g.w}, p,
                 BackwardDataPass<T>{g, weight, dy, dx});
}

template <class T> void implicit_gemm_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                              const T* x, const T* dy, T* dweight) {
  const Operation operation{name(ConvPass::kBackwardWeights), g.n, g.c, g.h, g.w};
  const int64_t window = int64_t{g.c / g.groups} * g.kh * g.kw, weights = g.o * window;
  const int64_t plane = int64_t{g.oh} * g.ow;
  GemmPlan p{};
  p.m = g.o / g.groups;
  p.n = window;
  p.k = g.n * plane;
  p.a_group = p.m * plane;
  p.a_row = plane;
  p.a_period = plane;
  p.a_outer = g.o * plane;
  p.out_row = window;
  p.out_slice = weights;
  p.radix_mid = g.oh;
  p.radix_inner = g.ow;
  p.groups = g.groups;
  // Slices of the batch until some 512 blocks have work, each with 64 tiles or more to go
  // through.
  const int64_t tiles = ceil_div(p.m, 64) * ceil_div(p.n, kTileN) * g.groups;
  p.slices = static_cast<int>(
      std::clamp<int64_t>(std::min(4 * kEnoughBlocks / tiles, p.k / (64 * kTileK)), 1, kMaxSlices));
  p.slice_k = ceil_div(ceil_div(p.k, p.slices), kTileK) * kTileK;
  p.slices = static_cast<int>(ceil_div(p.k, p.slice_k));
  if (p.slices == 1) {
    launch_gemm<T>(ctx, operation, p, BackwardWeightsPass<T>{g, dy, x, dweight});
  } else {
    const Scratch<T> partial(ctx, p.slices * weights);
    launch_gemm<T>(ctx, operation, p, BackwardWeightsPass<T>{g, dy, x, partial.data()});
    sum_slices<T>(ctx, operation.name, p.slices, weights, weights, 0, partial.data(), dweight,
                  nullptr);
  }
}

SINTER_INSTANTIATE_CONV(implicit_gemm, float)
SINTER_INSTANTIATE_CONV(implicit_gemm, double)

}  // namespace sinter::cuda
