// Convolution, bias, ReLU and 2 x 2 max-pooling, each way in one launch, for the first layers of
// small networks: unit stride and dilation, one group, few input channels, images that fit in
// shared memory. Such layers are bound by latency (launches, and trips to memory between them) when
// the batch is small, and by the fp32 units when it is large; the intermediates never leave a
// block.
//
// One register tile serves y and dx (correlate): 2 x 2 results, a pooling window or a patch of dx,
// for OC channels. It reads K + 1 values of shared memory a row for 2 rows of results, and weights
// in vectors that most lanes of a warp share.
//
// Backward first spreads dy, where not y <= 0, over a tile of the convolution's gradient. Three
// elements of four are zeros, yet the tile is used as a dense one: skipping them would need a load
// for every multiplication, at an address that depends on the data, where the dense form multiplies
// at least five times for each value loaded, and multiplications are four times as cheap.
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "kernels_cuda/conv2d/conv2d_tile.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/conv2d_relu_pool.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// Threads of a block, at most; double takes twice the registers.
template <class T> constexpr int kForwardThreads = sizeof(T) == 4 ? 512 : 256;
template <class T> constexpr int kBackwardThreads = sizeof(T) == 4 ? 448 : 224;
template <class T> constexpr int kDweightThreads = sizeof(T) == 4 ? 320 : 160;

// An extent that a kernel divides by. The host works out the factor that makes a division one
// multiplication: otherwise divisions are most of what a kernel does before its first load. Exact
// where dividend * divisor < 2^32 (Granlund and Montgomery 1994, section 4).
class Divisor {
 public:
  Divisor(int by) : by_(by), factor_(by > 1 ? ((uint64_t{1} << 32) + by - 1) / by : 0) {}
  SINTER_HD operator int() const { return by_; }
  SINTER_HD int divide(int a) const {
    return by_ == 1 ? a : static_cast<int>((uint64_t{static_cast<unsigned>(a)} * factor_) >> 32);
  }

 private:
  int by_;
  unsigned factor_;
};
SINTER_HD int operator/(int a, const Divisor& d) { return d.divide(a); }
SINTER_HD int operator%(int a, const Divisor& d) { return a - d.divide(a) * d; }

// Rows 2 modulo 4 apart: 16 neighbouring rows, and 8 lanes along each of two, stand in different
// banks when read in pairs.
SINTER_HD int row_pitch(int width) { return (width + 1) / 4 * 4 + 2; }

// Weights lie in runs, K taps of a window's row by OC channels, an odd number of 16-byte vectors
// apart: runs of neighbouring groups of channels start in different banks.
constexpr int run_length(int k, int channels) {
  const int vectors = (k * channels + 3) / 4;
  return (vectors + 1 - vectors % 2) * 4;
}
template <int K, int OC> constexpr int kRun = run_length(K, OC);

// ---- parts of both kernels ----------------------------------------------------------------------

// How the threads of a block copy planes: `lanes` of them side by side along a row, one or two
// columns each, and further rows beside those.
struct Copying {
  Divisor lanes = 1;
  int step = 0;  // rows at once
  // Two columns each: where they begin, the planes' width and the addresses are even.
  bool pairs = false;

  Copying() = default;
  Copying(int width, bool pairs, int threads)
      : lanes(std::min(pairs ? width / 2 : width, threads)), step(threads / lanes), pairs(pairs) {}
};

// Starts copying rows [y0, y0 + tile_h) and columns [x0, x0 + width) of `planes` planes (h, w) into
// tiles (tile_h, pitch), `tile_plane` apart, with zeros outside. width is even.
template <class T> __device__ void load_planes(const Copying& copying, const T* x, int planes,
                                               int h, int w, int y0, int x0, int tile_h, int width,
                                               int pitch, int tile_plane, T* tile) {
  const int thread = threadIdx.x, first = thread / copying.lanes;
  if (first >= copying.step) return;
  const int together = copying.pairs ? 2 : 1;
  for (int column = thread % copying.lanes * together; column < width;
       column += copying.lanes * together) {
    const int from = x0 + column;
    const bool inside = 0 <= from && from < w;
    int plane = 0;
    for (int row = first;; row += copying.step) {
      for (; row >= tile_h; row -= tile_h) ++plane;
      if (plane >= planes) break;
      const int y = y0 + row;
      const T* at = x + (static_cast<int64_t>(plane) * h + y) * w + from;
      T* to = tile + plane * tile_plane + row * pitch + column;
      if (!inside || y < 0 || y >= h) {
        to[0] = T(0);
        if (copying.pairs) to[1] = T(0);
      } else if (copying.pairs) {
        __pipeline_memcpy_async(to, at, 2 * sizeof(T));
      } else {
        __pipeline_memcpy_async(to, at, sizeof(T));
      }
    }
  }
}

// Starts copying weights into runs: to (channels, kh, groups, kRun), where a run is (K, OC) for
// outputs o0 + group * OC and on, zeros from `outputs` on.
//   weight: (outputs, channels, kh, K); with kFlip (channels, outputs, kh, K), rotated by 180
//   degrees: the correlation that carries gradients back.
template <class T, int K, int OC, bool kFlip>
__device__ void load_weights(const T* weight, int outputs, int o0, int channels, const Divisor& kh,
                             const Divisor& groups, T* to) {
  for (int e = threadIdx.x; e < channels * kh * groups; e += blockDim.x) {
    const int row = e / groups, group = e - row * groups;
    T* run = to + e * kRun<K, OC>;
#pragma unroll
    for (int q = 0; q < OC; ++q) {
      const int o = o0 + group * OC + q;
      const T* from;
      if constexpr (kFlip) {
        const int channel = row / kh, i = row - channel * kh;
        from = weight + ((channel * outputs + o) * kh + kh - 1 - i) * K + K - 1;
      } else {
        from = weight + (o * channels * kh + row) * K;
      }
#pragma unroll
      for (int j = 0; j < K; ++j) {
        if (o < outputs)
          __pipeline_memcpy_async(run + j * OC + q, kFlip ? from - j : from + j, sizeof(T));
        else
          run[j * OC + q] = T(0);
      }
    }
  }
}

template <class T, int K> __device__ void load_row(const T* x, T (&v)[K + 1]) {
#pragma unroll
  for (int q = 0; q <= K; q += 2) {
    const auto two = *reinterpret_cast<const Pair<T>*>(x + q);
    v[q] = two.v[0];
    v[q + 1] = two.v[1];
  }
}

template <class T, int K, int OC>
__device__ void multiply_row(const T* run, const T (&upper)[K + 1], const T (&lower)[K + 1],
                             T (&sum)[OC][4]) {
  T w[kRun<K, OC>];
#pragma unroll
  for (int q = 0; q < K * OC; q += 4) {
    const auto four = *reinterpret_cast<const Quad<T>*>(run + q);
#pragma unroll
    for (int r = 0; r < 4; ++r) w[q + r] = four.v[r];
  }
#pragma unroll
  for (int j = 0; j < K; ++j) {
#pragma unroll
    for (int o = 0; o < OC; ++o) {
      sum[o][0] += w[j * OC + o] * upper[j];
      sum[o][1] += w[j * OC + o] * upper[j + 1];
      sum[o][2] += w[j * OC + o] * lower[j];
      sum[o][3] += w[j * OC + o] * lower[j + 1];
    }
  }
}

// sum[o] += the 2 x 2 results, row-major, at x, over `channels` planes and window rows
// [i_begin, i_end), in the order (channel, i, j). A row is read once, as the lower row of one step
// and the upper row of the next; the two change places instead of being copied.
template <class T, int K, int OC>
__device__ void correlate(int channels, int i_begin, int i_end, const T* x, int x_channel,
                          int x_row, const T* w, int w_channel, int w_row, T (&sum)[OC][4]) {
  if (i_begin >= i_end) return;
  x += i_begin * x_row;
  w += i_begin * w_row;
  const int rows = i_end - i_begin;
  for (int channel = 0; channel < channels; ++channel) {
    const T* next = x + x_row;
    const T* run = w;
    T a[K + 1], b[K + 1];
    load_row<T, K>(x, a);
    for (int i = 0; i < rows; i += 2) {
      load_row<T, K>(next, b);
      multiply_row<T, K, OC>(run, a, b, sum);
      if (i + 1 == rows) break;
      load_row<T, K>(next + x_row, a);
      multiply_row<T, K, OC>(run + w_row, b, a, sum);
      next += 2 * x_row;
      run += 2 * w_row;
    }
    x += x_channel;
    w += w_channel;
  }
}

// Adds up what `splits` (a power of two) neighbouring lanes hold; each gets the result.
template <class T, int OC> __device__ void add_splits(int splits, T (&sum)[OC][4]) {
  for (int offset = 1; offset < splits; offset *= 2) {
#pragma unroll
    for (int o = 0; o < OC; ++o)
#pragma unroll
      for (int q = 0; q < 4; ++q) sum[o][q] += __shfl_xor_sync(0xffffffffu, sum[o][q], offset);
  }
}

// ---- forward ------------------------------------------------------------------------------------

// A block makes `rows` pooled rows of `images` images (one image if there are several bands) for
// OC * groups channels. A thread makes one window, for OC channels and every splits-th input
// channel; groups and splits are neighbouring lanes, so that a warp reads few windows.
struct ForwardPlan {
  int n = 0, c = 0, h = 0, w = 0, o = 0, ph = 0;
  Divisor pw = 1, kh = 1;
  int pad_h = 0, pad_w = 0;
  int channels = 0;  // OC
  int images = 1, bands = 0, group_blocks = 0;
  Divisor rows = 1, groups = 1, splits = 1;
  Copying copying{};
  bool x_settled = false, weights_settled = false;  // may be read before the wait

  SINTER_HD int threads() const { return images * rows * pw * groups * splits; }
  SINTER_HD int tile_h() const { return 2 * rows + kh - 1; }
  SINTER_HD int width(int k) const { return 2 * pw + k - 1; }
  SINTER_HD int tile_size(int k) const {
    return (images * c * tile_h() * row_pitch(width(k)) + 3) / 4 * 4;
  }
};

template <class T, int K, int OC> __global__ void __launch_bounds__(kForwardThreads<T>, 1)
    relu_pool_forward_kernel(ForwardPlan g, const T* x, const T* weight, const T* b, T* y,
                             uint8_t* choice) {
  const int tile_h = g.tile_h(), pitch = row_pitch(g.width(K)), plane = tile_h * pitch;
  T* tile = dynamic_shared<T>();       // (images, c, tile_h, pitch)
  T* weights = tile + g.tile_size(K);  // (c, kh, groups, kRun)
  const int image0 = static_cast<int>(blockIdx.x) * g.images;
  const int row0 = static_cast<int>(blockIdx.z) * g.rows;
  const int o0 = static_cast<int>(blockIdx.y) * g.groups * OC;

#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {  // before the wait, and behind it
    if (turn == 1) wait_for_earlier();
    if (g.x_settled == (turn == 0))
      load_planes(g.copying, x + static_cast<int64_t>(image0) * g.c * g.h * g.w,
                  min(g.images, g.n - image0) * g.c, g.h, g.w, 2 * row0 - g.pad_h, -g.pad_w, tile_h,
                  g.width(K), pitch, plane, tile);
    if (g.weights_settled == (turn == 0))
      load_weights<T, K, OC, false>(weight, g.o, o0, g.c, g.kh, g.groups, weights);
  }
  __pipeline_commit();

  const int thread = threadIdx.x, split = thread % g.splits, part = thread / g.splits;
  const int group = part % g.groups;
  int cell = part / g.groups;
  bool inside = cell < g.images * g.rows * g.pw;
  if (!inside) cell = 0;  // a surplus thread works along, for the shuffles
  const int row = cell / g.pw, column = cell - row * g.pw;
  const int local = row / g.rows, image = image0 + local, py = row0 + row - local * g.rows;
  inside = inside && image < g.n && py < g.ph;
  T bias[OC];
#pragma unroll
  for (int q = 0; q < OC; ++q) {
    const int o = o0 + group * OC + q;
    bias[q] = b && o < g.o ? b[o] : T(0);
  }
  __pipeline_wait_prior(0);
  __syncthreads();

  T sum[OC][4] = {};
  correlate<T, K, OC>(g.c / g.splits, 0, g.kh,
                      tile + (local * g.c + split) * plane + 2 * (py - row0) * pitch + 2 * column,
                      g.splits * plane, pitch,
                      weights + (split * g.kh * g.groups + group) * kRun<K, OC>,
                      g.splits * g.kh * g.groups * kRun<K, OC>, g.groups * kRun<K, OC>, sum);
  add_splits(g.splits, sum);

  if (!inside) return;
#pragma unroll
  for (int q = 0; q < OC; ++q) {
    const int o = o0 + group * OC + q;
    if ((q & (g.splits - 1)) != split || o >= g.o) continue;
    // From the ReLU's 0 on: greater, or the first NaN. With nothing above 0 the first element
    // stands, as its ReLU is a maximum.
    T best = 0;
    int taken = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T z = sum[q][k] + bias[q];
      if (!(z <= best) && best == best) {
        best = z;
        taken = k;
      }
    }
    const int64_t at = ((static_cast<int64_t>(image) * g.o + o) * g.ph + py) * g.pw + column;
    y[at] = best;
    choice[at] = static_cast<uint8_t>(taken);
  }
}

// ---- backward -----------------------------------------------------------------------------------

// Two kernels, which may run side by side: dx, which the layers before wait for, and dweight with
// db. Block (slice, part) of either takes every slices-th image.
//
// dx: a block makes the part's cells, 2 x 2 patches: a thread one cell at a time, for OC channels
// and every dx_splits-th channel of the gradient. dweight: a block has 2 * groups output channels:
// a thread has two rows of windows, rows r and r + row_pairs of the (channel, i), for two output
// channels, and takes every splits-th row of the gradient. The row of windows after the last stands
// for db: it reads ones instead of x.
//
// The gradient of the convolution lies in shared memory between the zeros that dx reads around it,
// `left` columns and a row above and below; further rows are not visited.
struct BackwardPlan {
  int n = 0, c = 0, h = 0, w = 0, o = 0;
  Divisor ph = 1, pw = 1, kh = 1;
  int pad_h = 0, pad_w = 0;
  bool dx = false;  // else dweight
  int slices = 0, parts = 0;
  int channels = 0;  // OC
  int cells = 0, threads_dx = 0;
  Divisor dx_groups = 1, dx_splits = 1, cells_w = 1;
  int splits = 0;
  Divisor groups = 1, row_pairs = 1, tasks = 1;  // tasks: groups * row_pairs
  Copying copying{};
  // May be read before the wait: dx's weights or dweight's x, and y with choice.
  bool operand_settled = false, y_settled = false;

  int threads() const { return dx ? threads_dx : round_up(tasks * splits, 32); }
  SINTER_HD int all_cells() const { return (h + 1) / 2 * cells_w; }

  SINTER_HD int left(int k) const { return k - 1 - pad_w; }
  SINTER_HD int grads_pitch(int k) const { return row_pitch(2 * cells_w + k - 1); }
  SINTER_HD int grads_plane(int k) const { return (2 * ph + 2) * grads_pitch(k); }
  SINTER_HD int planes() const { return dx ? (o + 1) / 2 * 2 : 2 * groups; }
  SINTER_HD int grads_size(int k) const { return (planes() * grads_plane(k) + 3) / 4 * 4; }

  // dweight reads gradients in pairs of columns, from an even one on. Rows of windows that follow
  // one another, in one channel or the next, are a pitch apart modulo the banks.
  SINTER_HD int columns() const { return 2 * pw + pad_w % 2 * 2; }
  SINTER_HD int tile_h() const { return 2 * ph + kh - 1; }
  SINTER_HD int tile_pitch(int k) const { return row_pitch(columns() + k - 1); }
  SINTER_HD int tile_plane(int k) const {
    const int pitch = tile_pitch(k), size = tile_h() * pitch;
    return size + (((kh * pitch - size) % 32) + 32) % 32;
  }
  SINTER_HD int tile_size(int k) const { return dx ? 0 : (c * tile_plane(k) + 3) / 4 * 4; }
  SINTER_HD int ones_size(int k) const { return dx ? 0 : (tile_pitch(k) + 3) / 4 * 4; }
  int shared_size(int k, int run) const {
    const int staged =
        grads_size(k) + tile_size(k) + ones_size(k) + (dx ? o * kh * dx_groups * run : 0);
    return std::max(staged, dx ? 0 : splits * tasks * 4 * k);
  }
  SINTER_HD int outputs(int k) const { return o * c * kh * k + o; }  // dweight, then db
};

// dweight's part of one row of the gradient, (columns) at two channels' d0 and d1, under two rows
// of windows, which begin at x0 and x1: sum[r][q][j] += d_q[column] * x_r[column + j].
template <class T, int K> __device__ void accumulate_row(int columns, const T* x0, const T* x1,
                                                         const T* d0, const T* d1,
                                                         T (&sum)[2][2][K]) {
  const T* const x[2] = {x0, x1};
  const T* const d[2] = {d0, d1};
  T v[2][K + 1];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int j = 0; j < K - 1; j += 2) {
      const auto two = *reinterpret_cast<const Pair<T>*>(x[r] + j);
      v[r][j] = two.v[0];
      v[r][j + 1] = two.v[1];
    }
  }
  // Three steps bring the K + 1 = 6 registers of a window back to where they were: no copies.
#pragma unroll 3
  for (int column = 0; column < columns; column += 2) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto two = *reinterpret_cast<const Pair<T>*>(x[r] + column + K - 1);
      v[r][K - 1] = two.v[0];
      v[r][K] = two.v[1];
    }
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const auto two = *reinterpret_cast<const Pair<T>*>(d[q] + column);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int j = 0; j < K; ++j) {
          sum[r][q][j] += two.v[0] * v[r][j];
          sum[r][q][j] += two.v[1] * v[r][j + 1];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j < K - 1; ++j) v[r][j] = v[r][j + 2];
    }
  }
}

template <class T> __device__ void clear(int size, T* to) {
  for (int e = threadIdx.x; e < size / 4; e += blockDim.x)
    reinterpret_cast<Quad<T>*>(to)[e] = Quad<T>{};
}

// What the gradient of this thread's first element of an image depends on beside dy, read before
// that is there.
template <class T> struct Ahead {
  bool is_read = false;
  T result = 0;
  int chosen = 0;

  __device__ void read(const BackwardPlan& g, int64_t image, int first_plane, int planes,
                       const T* y, const uint8_t* choice) {
    const int cells = g.ph * g.pw, e = threadIdx.x;
    const int64_t at = (image * g.o + first_plane) * cells + e;
    is_read = g.y_settled;
    if (!is_read || e >= planes * cells) return;
    result = y[at];
    chosen = choice[at];
  }
};

// The gradient of the convolution's planes [first_plane, first_plane + planes) of an image, from
// that of the pooled ones.
template <class T, int K> __device__ void spread_gradient(const BackwardPlan& g, int64_t image,
                                                          int first_plane, int planes, const T* y,
                                                          const uint8_t* choice, const T* dy,
                                                          Ahead<T>& ahead, T* grads) {
  const int pitch = g.grads_pitch(K), plane = g.grads_plane(K), cells = g.ph * g.pw;
  const int64_t from = (image * g.o + first_plane) * cells;
#pragma unroll 2
  for (int e = threadIdx.x; e < planes * cells; e += blockDim.x) {
    // All read before any is looked at, so that one trip to memory fetches them.
    const T result = ahead.is_read ? ahead.result : y[from + e], d = dy[from + e];
    const int chosen = ahead.is_read ? ahead.chosen : choice[from + e];
    ahead.is_read = false;
    const T value = result <= T(0) ? T(0) : d;
    const int row = e / g.pw, column = e - row * g.pw, o = row / g.ph, py = row - o * g.ph;
    T* to = grads + o * plane + (1 + 2 * py) * pitch + g.left(K) + 2 * column;
    to[0] = chosen == 0 ? value : T(0);
    to[1] = chosen == 1 ? value : T(0);
    to[pitch] = chosen == 2 ? value : T(0);
    to[pitch + 1] = chosen == 3 ? value : T(0);
  }
}

template <class T, int K, int OC> __global__ void __launch_bounds__(kBackwardThreads<T>, 2)
    relu_pool_dx_kernel(BackwardPlan g, const T* weight, const T* y, const uint8_t* choice,
                        const T* dy, T* dx) {
  const int pitch = g.grads_pitch(K), plane = g.grads_plane(K);
  T* grads = dynamic_shared<T>();        // (planes, 1 + 2 ph + 1, pitch)
  T* weights = grads + g.grads_size(K);  // (o, kh, dx_groups, kRun)
  const int thread = threadIdx.x;

  Ahead<T> ahead;
  ahead.read(g, blockIdx.x, 0, g.o, y, choice);
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {  // before the wait, and behind it
    if (turn == 1) wait_for_earlier();
    if (g.operand_settled == (turn == 0))
      load_weights<T, K, OC, true>(weight, g.c, 0, g.o, g.kh, g.dx_groups, weights);
    if (turn == 0) clear(g.grads_size(K), grads);
  }
  __pipeline_commit();
  for (int64_t image = blockIdx.x; image < g.n; image += g.slices) {
    __syncthreads();  // the zeros are there, or the previous image has been read
    spread_gradient<T, K>(g, image, 0, g.o, y, choice, dy, ahead, grads);
    __pipeline_wait_prior(0);
    __syncthreads();

    const int items = g.cells * g.dx_groups * g.dx_splits;
    for (int base = 0; base < items; base += g.threads_dx) {
      const int item = min(base + thread, items - 1);  // surplus lanes work along, for shuffles
      const int dx_split = item % g.dx_splits, at = item / g.dx_splits;
      const int dx_group = at % g.dx_groups;
      const int cell = static_cast<int>(blockIdx.y) * g.cells + at / g.dx_groups;
      const bool inside = base + thread < items && cell < g.all_cells();
      const int cy = inside ? cell / g.cells_w : 0;
      const int cx = inside ? cell - cy * g.cells_w : 0;
      // Gradient row top + i meets row i of the rotated window; the lower row of results reads one
      // further. Rows -1 and 2 ph are zeros, and others outside are left out.
      const int top = 2 * cy - (g.kh - 1 - g.pad_h);
      T d[OC][4] = {};
      correlate<T, K, OC>(
          g.o / g.dx_splits, max(0, -top - 1), min(int{g.kh}, 2 * g.ph - top),
          grads + dx_split * plane + (1 + top) * pitch + 2 * cx, g.dx_splits * plane, pitch,
          weights + (dx_split * g.kh * g.dx_groups + dx_group) * kRun<K, OC>,
          g.dx_splits * g.kh * g.dx_groups * kRun<K, OC>, g.dx_groups * kRun<K, OC>, d);
      add_splits(g.dx_splits, d);
      if (!inside) continue;
#pragma unroll
      for (int q = 0; q < OC; ++q) {
        const int channel = dx_group * OC + q;
        T* to = dx + ((image * g.c + channel) * g.h + 2 * cy) * g.w + 2 * cx;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const bool mine = ((q * 4 + r) & (g.dx_splits - 1)) == dx_split;
          if (mine && channel < g.c && 2 * cy + r / 2 < g.h && 2 * cx + r % 2 < g.w)
            to[r / 2 * g.w + r % 2] = d[q][r];
        }
      }
    }
  }
}

// partial: (slices, outputs)
template <class T, int K> __global__ void __launch_bounds__(kDweightThreads<T>, 2)
    relu_pool_dweight_kernel(BackwardPlan g, const T* x, const T* y, const uint8_t* choice,
                             const T* dy, T* partial) {
  const int pitch = g.grads_pitch(K), plane = g.grads_plane(K);
  const int tile_pitch = g.tile_pitch(K), tile_plane = g.tile_plane(K);
  T* grads = dynamic_shared<T>();                              // (planes, 1 + 2 ph + 1, pitch)
  T* tile = grads + g.grads_size(K);                           // (c, tile_h, tile_pitch)
  T* ones = tile + g.tile_size(K);                             // (tile_pitch)
  const int o0 = static_cast<int>(blockIdx.y) * 2 * g.groups;  // of dweight
  const int thread = threadIdx.x, tasks = g.tasks;

  // From the even column at or before -pad_w on.
  const int tile_x0 = -((g.pad_w + 1) / 2 * 2);
  const auto load_image = [&](int64_t image) {
    load_planes(g.copying, x + image * g.c * g.h * g.w, g.c, g.h, g.w, -g.pad_h, tile_x0,
                g.tile_h(), g.columns() + K - 1, tile_pitch, tile_plane, tile);
  };
  const int planes = min(g.planes(), g.o - o0);
  Ahead<T> ahead;
  ahead.read(g, blockIdx.x, o0, planes, y, choice);
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {  // before the wait, and behind it
    if (turn == 1) wait_for_earlier();
    if (g.operand_settled == (turn == 0)) load_image(blockIdx.x);
    if (turn == 1) break;
    clear(g.grads_size(K), grads);
    for (int e = thread; e < g.ones_size(K); e += blockDim.x) ones[e] = T(1);
  }

  const int pair = thread % g.row_pairs, group = thread / g.row_pairs % g.groups;
  const int split = thread / g.tasks;  // surplus threads have one >= splits
  T sum[2][2][K] = {};                 // row of windows, output channel, tap

  for (int64_t image = blockIdx.x; image < g.n; image += g.slices) {
    __syncthreads();  // the zeros are there, or the previous image has been read
    spread_gradient<T, K>(g, image, o0, planes, y, choice, dy, ahead, grads);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();

    const T* rows_of_x[2];
    int x_step[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int window_row = pair + r * g.row_pairs;
      const int channel = window_row / g.kh, i = window_row - channel * g.kh;
      const bool is_weight = channel < g.c;
      rows_of_x[r] = is_weight ? tile + channel * tile_plane + i * tile_pitch : ones;
      x_step[r] = is_weight ? tile_pitch : 0;
    }
    const T* rows_of_d = grads + 2 * group * plane + pitch + g.left(K) / 2 * 2;
    for (int row = split; split < g.splits && row < 2 * g.ph; row += g.splits)
      accumulate_row<T, K>(g.columns(), rows_of_x[0] + row * x_step[0],
                           rows_of_x[1] + row * x_step[1], rows_of_d + row * pitch,
                           rows_of_d + plane + row * pitch, sum);
    if (image + g.slices < g.n) {
      __syncthreads();
      load_image(image + g.slices);
    }
  }

  // The splits of a task, added in order, over the tiles' memory.
  __syncthreads();
  T* sums = grads;  // (splits, 2 rows, 2 channels, K, tasks)
  if (split < g.splits) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int q = 0; q < 2; ++q)
#pragma unroll
        for (int j = 0; j < K; ++j)
          sums[((split * 2 + r) * 2 + q) * K * tasks + j * tasks + thread % tasks] = sum[r][q][j];
  }
  __syncthreads();
  T* out = partial + static_cast<int64_t>(blockIdx.x) * g.outputs(K);
  const int taps = g.c * g.kh * K;
  for (int e = thread; e < 4 * K * tasks; e += blockDim.x) {
    const int at = e / g.tasks, task = e - at * tasks;
    const int j = at % K, q = at / K % 2, r = at / K / 2;
    const int window_row = task % g.row_pairs + r * g.row_pairs;
    const int o = o0 + task / g.row_pairs * 2 + q;
    T total = sums[e];
    for (int s = 1; s < g.splits; ++s) total += sums[s * 4 * K * tasks + e];
    if (o >= g.o) continue;
    if (window_row < g.c * g.kh)
      out[o * taps + window_row * K + j] = total;
    else if (window_row == g.c * g.kh && j == 0)
      out[g.o * taps + o] = total;
  }
}

// ---- choice of the tiles ------------------------------------------------------------------------

bool unit_window(const Conv2dShape& g) {
  return g.stride_h == 1 && g.stride_w == 1 && g.dil_h == 1 && g.dil_w == 1 && g.groups == 1 &&
         (g.kw == 3 || g.kw == 5) && g.kh <= 7 && g.pad_h < g.kh && g.pad_w < g.kw;
}

int largest_divisor(int n, int most) {
  int d = std::clamp(most, 1, n);
  while (n % d != 0) --d;
  return d;
}

// Output channels a thread where threads are scarce: with three, fewer of them read less of shared
// memory, and wait longer for it.
constexpr int kFewChannels = 2;

template <class T> std::optional<ForwardPlan> forward_plan(const Conv2dShape& g) {
  ForwardPlan p{.n = g.n,
                .c = g.c,
                .h = g.h,
                .w = g.w,
                .o = g.o,
                .ph = g.oh / 2,
                .pw = g.ow / 2,
                .kh = g.kh,
                .pad_h = g.pad_h,
                .pad_w = g.pad_w};
  const int64_t windows = int64_t{g.n} * p.ph * p.pw;
  // Many channels a thread read less of shared memory for a multiplication; few make more threads.
  constexpr int64_t kFewThreads = 24 << 10, kManyThreads = 32 << 10;
  const bool many = g.o > 4 && windows * ceil_div(g.o, 8) >= kManyThreads;
  p.channels = !many ? kFewChannels : round_up(g.o, 6) <= round_up(g.o, 8) ? 6 : 8;
  const int all_groups = static_cast<int>(ceil_div(g.o, p.channels));
  while (windows * all_groups * p.splits < kFewThreads && p.splits < 4 && g.c % (2 * p.splits) == 0)
    p.splits = 2 * p.splits;

  // A small batch has too few images to fill the GPU: cut them by rows or channels, evenly if
  // either goes.
  p.rows = p.ph;
  p.groups = all_groups;
  const int wanted = static_cast<int>(ceil_div(kEnoughBlocks, g.n));
  if (wanted > 1 && p.ph % wanted == 0) {
    p.rows = p.ph / wanted;
  } else if (wanted > 1) {
    p.groups = largest_divisor(all_groups, all_groups / wanted);
    p.rows = std::max<int>(1, static_cast<int>(p.ph / ceil_div(wanted, all_groups / p.groups)));
  }
  const auto shared = [&] {
    return (p.tile_size(g.kw) + g.c * g.kh * p.groups * run_length(g.kw, p.channels)) * sizeof(T);
  };
  while (p.threads() > kForwardThreads<T> || shared() > kSharedBytes) {
    Divisor& part = p.rows > 1 ? p.rows : p.groups > 1 ? p.groups : p.splits;
    if (part == 1) return {};
    part = static_cast<int>(ceil_div(part, 2));
  }
  p.bands = static_cast<int>(ceil_div(p.ph, p.rows));
  p.rows = static_cast<int>(ceil_div(p.ph, p.bands));
  p.group_blocks = static_cast<int>(ceil_div(all_groups, p.groups));
  // Small images share a block, as long as two blocks a multiprocessor remain.
  while (p.bands == 1 && 2 * p.threads() <= 256 && g.n / (2 * p.images) >= 2 * kEnoughBlocks) {
    p.images *= 2;
    if (shared() <= kSharedBytes) continue;
    p.images /= 2;
    break;
  }
  return p;
}

template <class T> BackwardPlan backward_plan(const Conv2dShape& g, bool dx) {
  BackwardPlan p{.n = g.n,
                 .c = g.c,
                 .h = g.h,
                 .w = g.w,
                 .o = g.o,
                 .ph = g.oh / 2,
                 .pw = g.ow / 2,
                 .kh = g.kh,
                 .pad_h = g.pad_h,
                 .pad_w = g.pad_w,
                 .dx = dx};
  p.cells_w = (g.w + 1) / 2;
  // At least two parts: smaller blocks, of which two fit a multiprocessor. dx, which is waited for,
  // gets half as many again.
  p.slices = std::min(g.n, kEnoughBlocks);
  const int blocks = dx ? kEnoughBlocks * 3 / 2 : kEnoughBlocks;
  const int wanted = std::max(2, static_cast<int>(ceil_div(blocks, g.n)));
  if (dx) {
    p.channels = kFewChannels;
    p.dx_groups = static_cast<int>(ceil_div(g.c, p.channels));
    p.parts = std::min(wanted, p.all_cells());
    p.cells = static_cast<int>(ceil_div(p.all_cells(), p.parts));
    // Splits until a block has some ten warps: fewer do not hide each other's waits.
    const auto items = [&] { return p.cells * p.dx_groups * p.dx_splits; };
    while (items() < 288 && p.dx_splits < 8 && g.o % (2 * p.dx_splits) == 0)
      p.dx_splits = 2 * p.dx_splits;
    p.threads_dx = std::min(round_up(items(), 32), kBackwardThreads<T>);
    return p;
  }
  p.channels = 2;
  const int all_groups = static_cast<int>(ceil_div(g.o, 2));
  p.row_pairs = (g.c * g.kh + 2) / 2;
  constexpr int threads = kDweightThreads<T>;
  p.groups = largest_divisor(all_groups, std::min(all_groups / wanted, threads / p.row_pairs));
  p.parts = all_groups / p.groups;
  p.tasks = p.groups * p.row_pairs;
  // `splits` threads a task, such that none of them is idle in the last round.
  const int rows = 2 * p.ph, most = std::clamp(threads / p.tasks, 1, rows);
  p.splits = static_cast<int>(ceil_div(rows, ceil_div(rows, most)));
  return p;
}

template <class T> size_t backward_shared(const BackwardPlan& p, int k) {
  return static_cast<size_t>(p.shared_size(k, run_length(k, p.channels))) * sizeof(T);
}

// The most shared memory a block can be given.
size_t shared_limit(int device) {
  int bytes = 0;
  SINTER_CUDA_CHECK(
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<size_t>(bytes);
}

// ---- launchers ----------------------------------------------------------------------------------

// Calls f(std::integral_constant<int, value>) for the value among kValues.
template <int... kValues, class F> void with_constant(int value, const F& f) {
  ((value == kValues ? f(std::integral_constant<int, kValues>()) : void()), ...);
}

// Whether rows of x can be copied two elements at a time.
template <class T> bool in_pairs(const T* x, int w, int pad_w) {
  return w % 2 == 0 && pad_w % 2 == 0 && reinterpret_cast<uintptr_t>(x) % (2 * sizeof(T)) == 0;
}

template <class T> bool fits(const Cuda& ctx, const Conv2dShape& g) {
  return forward_plan<T>(g).has_value() &&
         backward_shared<T>(backward_plan<T>(g, true), g.kw) <= shared_limit(ctx.device) &&
         backward_shared<T>(backward_plan<T>(g, false), g.kw) <= shared_limit(ctx.device);
}

template <class T> void forward(const Cuda& ctx, const Conv2dReluPoolForward& o) {
  const Conv2dShape& g = o.g;
  const T *x = o.x.data<T>(), *weight = o.weight.data<T>();
  ForwardPlan p = forward_plan<T>(g).value();
  const int threads = round_up(p.threads(), 32);
  p.copying = Copying(p.width(g.kw), in_pairs(x, g.w, g.pad_w), threads);
  p.x_settled = settled(x);
  p.weights_settled = settled(weight);
  const int weights = g.c * g.kh * p.groups * run_length(g.kw, p.channels);
  const auto shared = static_cast<size_t>(p.tile_size(g.kw) + weights) * sizeof(T);
  const dim3 grid(static_cast<unsigned>(ceil_div(g.n, p.images)),
                  static_cast<unsigned>(p.group_blocks), static_cast<unsigned>(p.bands));
  with_constant<3, 5>(g.kw, [&](auto k) {
    with_constant<kFewChannels, 6, 8>(p.channels, [&](auto channels) {
      launch_early(ctx, {o.name, g.n, g.o, g.oh, g.ow}, grid, threads, shared, {},
                   relu_pool_forward_kernel<T, k(), channels()>, p, x, weight, o.b.data<T>(),
                   o.y.data<T>(), o.choice.data<uint8_t>());
    });
  });
}

template <class T, class Kernel, class... Arguments>
void launch_backward(LaunchSite site, const char* name, const Conv2dShape& g, const BackwardPlan& p,
                     Kernel kernel, Arguments... arguments) {
  const dim3 grid(static_cast<unsigned>(p.slices), static_cast<unsigned>(p.parts));
  launch_early(site, {name, g.n, g.o, g.oh, g.ow}, grid, p.threads(), backward_shared<T>(p, g.kw),
               {.early = g.n <= kBriefBatch}, kernel, p, arguments...);
}

template <class T> void backward_data(const Cuda& ctx, const Conv2dReluPoolBackwardData& o) {
  const T *weight = o.weight.data<T>(), *y = o.y.data<T>();
  const auto* choice = o.choice.data<uint8_t>();
  BackwardPlan p = backward_plan<T>(o.g, true);
  p.operand_settled = settled(weight);
  p.y_settled = settled(y) && settled(choice);
  with_constant<3, 5>(o.g.kw, [&](auto k) {
    with_constant<1, 2, 3>(p.channels, [&](auto channels) {
      launch_backward<T>(ctx, o.name, o.g, p, relu_pool_dx_kernel<T, k(), channels()>, weight, y,
                         choice, o.dy.data<T>(), o.dx.data<T>());
    });
  });
}

template <class T> void backward_weights(const Cuda& ctx, const Conv2dReluPoolBackwardWeights& o) {
  const Conv2dShape& g = o.g;
  const T *x = o.x.data<T>(), *y = o.y.data<T>();
  const auto* choice = o.choice.data<uint8_t>();
  BackwardPlan p = backward_plan<T>(g, false);
  // Copied from the even column at or before -pad_w on.
  p.copying = Copying(p.columns() + g.kw - 1, in_pairs(x, g.w, 0), p.threads());
  p.operand_settled = settled(x);
  p.y_settled = settled(y) && settled(choice);
  with_constant<3, 5>(g.kw, [&](auto k) {
    launch_backward<T>(ctx, o.name, g, p, relu_pool_dweight_kernel<T, k()>, x, y, choice,
                       o.dy.data<T>(), o.partial.data<T>());
  });
}

}  // namespace
}  // namespace cuda

bool conv2d_relu_pool_fits(const Cuda& ctx, const Conv2dShape& g, DType dtype) {
  if (g.algo != ConvAlgo::kAuto || g.n == 0 || g.c == 0 || g.oh < 2 || g.ow < 2) return false;
  if (!cuda::unit_window(g)) return false;
  if (g.c > 16 || g.o > 256 || g.w > 256 || g.h > 256) return false;
  return dtype == kFloat64 ? cuda::fits<double>(ctx, g) : cuda::fits<float>(ctx, g);
}

int64_t conv2d_relu_pool_slices(const Cuda&, const Conv2dShape& g, DType dtype) {
  return dtype == kFloat64 ? cuda::backward_plan<double>(g, false).slices
                           : cuda::backward_plan<float>(g, false).slices;
}

void run(const Cuda& ctx, const Conv2dReluPoolForward& o) {
  with_floating(o.x, [&]<class T>() { cuda::forward<T>(ctx, o); });
}

void run(const Cuda& ctx, const Conv2dReluPoolBackwardData& o) {
  with_floating(o.dy, [&]<class T>() { cuda::backward_data<T>(ctx, o); });
}

void run(const Cuda& ctx, const Conv2dReluPoolBackwardWeights& o) {
  with_floating(o.dy, [&]<class T>() { cuda::backward_weights<T>(ctx, o); });
}

}  // namespace sinter
