// Stacks of small linear layers with ReLU, one launch a direction. At the sizes that are run here a
// layer's arithmetic takes less time than launching it, or than reading its input back: so the
// values stay in shared memory from layer to layer.
//
// A cluster of blocks takes a group of rows through all layers. Each block keeps its share of every
// weight matrix in shared memory, computes its share of a layer's features, and sends them to all
// blocks of the cluster, which then have the next layer's input. The gradients of the layers'
// inputs are the same chain through the transposed matrices. Those of the weights are sums over the
// rows, computed for all layers in another launch.
#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <type_traits>

#include "kernels_cuda/cluster.cuh"
#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/mlp.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter {
using namespace op;

namespace cuda {
namespace {

constexpr int kCluster = 8;  // blocks; more is not portable
constexpr int kQuad = 4;     // neighbouring features that a thread works on

// What one instruction loads from shared memory.
template <class T> struct alignas(16) Vector { T v[16 / sizeof(T)]; };
template <class T> constexpr int kVector = 16 / sizeof(T);

SINTER_HD inline int padded(int features) { return (features + kQuad - 1) / kQuad * kQuad; }

// From row to row of a matrix in shared memory. The padding holds zeros; an odd number of vectors
// spreads what is stored transposed over the banks.
template <class T> SINTER_HD int pitch(int features) {
  return (padded(features) / kVector<T> | 1) * kVector<T>;
}

// ---- the chain of layers ------------------------------------------------------------------------

// Rows that a cluster takes through the layers at once: few, so that a small batch fills the GPU,
// or many, so that a weight is used often once it is read.
constexpr int kFewRows = 4, kManyRows = 16;
template <int kRows> constexpr int kTileRows = kRows == kFewRows ? 2 : 4;  // of a thread

// y = act(v m^T), v (n, k) being the step before. Forward m (features, k) is w; backward it is the
// transposed w (k, features).
template <class T> struct Step {
  int k = 0, features = 0;
  const T* w = nullptr;
  const T* b = nullptr;  // forward: (features), nullable
  bool relu = false;     // forward
  const T* h = nullptr;  // backward: (n, features), y is 0 where it is not positive; nullable
  T* y = nullptr;        // (n, features)
  int share = 0;         // quads of features that a block computes; the last blocks may get fewer
  int m_at = 0;          // in shared memory, in elements: the block's rows of m
  int y_at = 0;          // and the group's rows of y, unless it is the last
};

// Shared memory holds the block's share of the matrices, the hidden layers, and two inputs, one of
// which is loaded while the other is used.
template <class T> struct Chain {
  int64_t n = 0;
  const T* x = nullptr;  // (n, step[0].k)
  // Backward, if there are logits: x is the gradient of the loss, and is written.
  const T* logits = nullptr;
  const int64_t* labels = nullptr;
  T at_label = 0, anywhere = 0;
  int64_t ignore_index = 0;
  bool mean = false;
  T* dlogits = nullptr;
  bool weights_settled = false;  // may be read before the wait
  int steps = 0;
  Step<T> step[kMaxMlpLayers] = {};

  // Places everything for groups of `rows` rows; returns the bytes of shared memory.
  int64_t place(int rows) {
    int64_t at = 2 * rows * pitch<T>(step[0].k);
    for (int s = 0; s < steps; ++s) {
      step[s].share = static_cast<int>(ceil_div(padded(step[s].features) / kQuad, kCluster));
      step[s].m_at = static_cast<int>(at);
      at += int64_t{step[s].share} * kQuad * pitch<T>(step[s].k);
      step[s].y_at = static_cast<int>(at);
      if (s + 1 < steps) at += int64_t{rows} * pitch<T>(step[s].features);
    }
    return at * static_cast<int64_t>(sizeof(T));
  }
};

// Copies `valid` rows of k elements and fills up to `rows` rows, and each row to its padded length,
// with zeros. A warp a row.
template <class T> __device__ void load_rows(const T* from, int k, int rows, int valid, T* to) {
  const int lane = threadIdx.x % 32;
  const bool vectors = k % kQuad == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
  for (int r = threadIdx.x / 32; r < rows; r += kThreads / 32) {
    const T* row = from + static_cast<int64_t>(r) * k;
    T* row_to = to + r * pitch<T>(k);
    if (vectors && r < valid) {
      for (int i = lane * kVector<T>; i < k; i += 32 * kVector<T>)
        __pipeline_memcpy_async(row_to + i, row + i, 16);
    } else {
      for (int i = lane; i < padded(k); i += 32) {
        if (r < valid && i < k)
          __pipeline_memcpy_async(row_to + i, row + i, sizeof(T));
        else
          row_to[i] = T(0);
      }
    }
  }
}

// The same of the transpose of (k, width), from its first `valid` columns. A warp takes blocks of 8
// columns by 4 rows: whole sectors of device memory, and 32 different banks of shared memory.
template <class T>
__device__ void load_columns(const T* from, int width, int k, int rows, int valid, T* to) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32 * 4 + lane / 8; i < padded(k); i += kThreads / 8) {
    const int inside = i < k ? valid : 0;
    const T* element = from + static_cast<int64_t>(i) * width + lane % 8;
    T* at = to + lane % 8 * pitch<T>(k) + i;
    for (int r = lane % 8; r < rows; r += 8, element += 8, at += 8 * pitch<T>(k)) {
      if (r < inside)
        __pipeline_memcpy_async(at, element, sizeof(T));
      else
        *at = T(0);
    }
  }
}

constexpr int kMaxLossClasses = 32;

// The gradient of cross_entropy's loss for a group of rows: a lane a class. The loss kernel makes
// the same from the same, and finds labels that are out of range. Every thread of the block calls
// it: the rows that are not ignored, by which the mean divides, are counted while the logits are on
// their way.
template <int kRows, class T>
__device__ void loss_gradient(const Chain<T>& chain, int64_t row0, bool write, T* to) {
  constexpr int kWarps = kThreads / 32, kTurns = (kRows + kWarps - 1) / kWarps;
  const int lane = threadIdx.x % 32, k = chain.step[0].k;
  T d[kTurns];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t row = row0 + static_cast<int>(threadIdx.x) / 32 + turn * kWarps;
    const bool inside = row < chain.n && lane < k;
    const T z = inside ? chain.logits[row * k + lane] : -std::numeric_limits<T>::infinity();
    const int64_t label = row < chain.n ? chain.labels[row] : 0;
    const T max = group_reduce<32>(z, Max{});
    const T log_sum = log(group_reduce<32>(inside ? exp(z - max) : T(0), Sum{}));
    const T q = lane == label ? chain.at_label + chain.anywhere : chain.anywhere;
    d[turn] = inside && label != chain.ignore_index ? exp(z - max - log_sum) - q : T(0);
  }
  T factor = T(1);
  if (chain.mean) {
    int counted = 0;
    for (int64_t first = 0; first < chain.n; first += kThreads) {
      const int64_t row = first + threadIdx.x;
      counted += __syncthreads_count(row < chain.n && chain.labels[row] != chain.ignore_index);
    }
    factor = static_cast<T>(1.0 / static_cast<double>(counted));
  }
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int r = static_cast<int>(threadIdx.x) / 32 + turn * kWarps;
    const int64_t row = row0 + r;
    if (r >= kRows) break;
    // Of an ignored row 0, also where all are ignored and the factor is infinite.
    const T result = d[turn] == T(0) ? T(0) : factor * d[turn];
    if (lane < padded(k)) to[r * pitch<T>(k) + lane] = result;
    if (write && row < chain.n && lane < k) chain.dlogits[row * k + lane] = result;
  }
}

// Each of kLanes lanes has a part of kCount sums. Afterwards lane l has, complete, those from
// l * kCount / kLanes on; where there are fewer sums than lanes, several lanes have the same. Half
// of the sums go to the other half of the lanes at every turn, instead of all to everyone.
template <int kLanes, int kCount, class T>
__device__ void scatter_sums(T (&sum)[kCount], int lane) {
  int count = kCount;
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    if (count == 1) {
      sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], distance);
      continue;
    }
    count /= 2;
    const bool upper = lane & distance;
#pragma unroll
    for (int j = 0; j < kCount / 2; ++j) {
      if (j >= count) break;
      const T mine = upper ? sum[j + count] : sum[j];
      const T other = upper ? sum[j] : sum[j + count];
      sum[j] = mine + __shfl_xor_sync(0xffffffffu, other, distance);
    }
  }
}

// The block's share of a step for one group of rows. kLanes lanes make a tile, some rows by one
// quad of features, each lane from a part of k. wait_for_v returns when v is there; every thread
// calls it.
template <class T, bool kBackward, int kRows, int kLanes, class Wait>
__device__ void run_step(const Step<T>& step, bool last, int64_t row0, int64_t n, const T* v,
                         T* shared, ByteBarrier& received, const Wait& wait_for_v) {
  constexpr int kTile = kTileRows<kRows>, kRowTiles = kRows / kTile, kSums = kTile * kQuad;
  constexpr int kKept = kSums > kLanes ? kSums / kLanes : 1;    // sums that a lane ends up with
  constexpr int kCopies = kLanes > kSums ? kLanes / kSums : 1;  // lanes that end up with the same
  constexpr int kWarpTiles = 32 / kLanes;
  const int lane = threadIdx.x % kLanes;
  const int first_quad = cluster_rank() * step.share;
  const int tiles = min(step.share, padded(step.features) / kQuad - first_quad) * kRowTiles;
  const int vectors = padded(step.k) / kVector<T>, pitch_v = pitch<T>(step.k) / kVector<T>;

  for (int first = threadIdx.x / 32 * kWarpTiles; first < tiles; first += kThreads / kLanes) {
    const int wanted = first + static_cast<int>(threadIdx.x) % 32 / kLanes;
    const int tile = min(wanted, tiles - 1);  // a warp's last ones may do work nobody wants
    const int tile_row = tile % kRowTiles * kTile, quad = tile / kRowTiles;
    const auto row_of = [&](int j) { return tile_row + (lane * kKept / kCopies + j) / kQuad; };
    const auto feature_of = [&](int j) {
      return (first_quad + quad) * kQuad + (lane * kKept / kCopies + j) % kQuad;
    };

    // What the sums will be combined with; on its way while the thread waits and adds.
    T other[kKept];
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int f = feature_of(j);
      const int64_t row = row0 + row_of(j);
      other[j] = T(kBackward ? 1 : 0);
      if (f < step.features && row < n) {
        if (kBackward && step.h) other[j] = step.h[row * step.features + f];
        if (!kBackward && step.b) other[j] = step.b[f];
      }
    }
    wait_for_v();

    T sum[kSums] = {};
    const auto* rows = reinterpret_cast<const Vector<T>*>(v) + tile_row * pitch_v;
    const auto* weights =
        reinterpret_cast<const Vector<T>*>(shared + step.m_at) + quad * kQuad * pitch_v;
#pragma unroll 2
    for (int i = lane; i < vectors; i += kLanes) {
      Vector<T> row[kTile], weight[kQuad];
#pragma unroll
      for (int r = 0; r < kTile; ++r) row[r] = rows[r * pitch_v + i];
#pragma unroll
      for (int f = 0; f < kQuad; ++f) weight[f] = weights[f * pitch_v + i];
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e)
#pragma unroll
        for (int j = 0; j < kSums; ++j) sum[j] += row[j / kQuad].v[e] * weight[j % kQuad].v[e];
    }
    scatter_sums<kLanes>(sum, lane);

    if (wanted >= tiles) continue;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int f = feature_of(j), r = row_of(j);
      T y = sum[j];
      if constexpr (kBackward) {
        if (other[j] <= T(0)) y = T(0);  // a NaN passes the gradient on
      } else {
        y += other[j];
        if (step.relu && y < T(0)) y = T(0);  // a NaN stays
      }
      if (f >= step.features) y = T(0);  // padding, which the next step reads
      if (!last) {
        const uint32_t to = shared_address(shared + step.y_at + r * pitch<T>(step.features) + f);
#pragma unroll
        for (int copy = 0; copy < kCluster; copy += kCopies) {
          const int rank = copy + lane % kCopies;
          send(address_in(to, rank), y, address_in(received.address(), rank));
        }
      }
      if (lane % kCopies == 0 && f < step.features && row0 + r < n)
        step.y[(row0 + r) * step.features + f] = y;
    }
  }
  wait_for_v();  // without a tile, too: no block may end before it has got what is sent to it
}

template <class T, bool kBackward, int kRows>
__device__ __forceinline__ void run_layers(const Chain<T>& chain) {
#if __CUDA_ARCH__ >= 900
  __shared__ ByteBarrier received[kMaxMlpLayers];
  T* shared = dynamic_shared<T>();
  const int rank = cluster_rank(), k = chain.step[0].k;

  if (threadIdx.x == 0)
    for (int s = 0; s + 1 < chain.steps; ++s) received[s].init();
  cluster_arrive();

  const auto load_input = [&](int64_t row0, T* to) {
    if (kBackward && chain.logits && row0 < chain.n)
      loss_gradient<kRows>(chain, row0, rank == 0, to);
    else if (row0 < chain.n)
      load_rows(chain.x + row0 * k, k, kRows, static_cast<int>(min(int64_t{kRows}, chain.n - row0)),
                to);
    __pipeline_commit();
  };
  const auto load_matrix = [&](const Step<T>& step) {
    const int rows = step.share * kQuad;
    const int first = min(rank * rows, step.features), valid = min(rows, step.features - first);
    T* to = shared + step.m_at;
    if constexpr (kBackward)
      load_columns(step.w + first, step.features, step.k, rows, valid, to);
    else
      load_rows(step.w + static_cast<int64_t>(first) * step.k, step.k, rows, valid, to);
  };
  const int64_t rows_a_turn = gridDim.x / kCluster * int64_t{kRows};
  int64_t row0 = blockIdx.x / kCluster * int64_t{kRows};
  if (chain.weights_settled) {
#pragma unroll 1
    for (int s = 0; s < chain.steps; ++s) load_matrix(chain.step[s]);
    wait_for_earlier();
    load_input(row0, shared);
  } else {
    wait_for_earlier();
#pragma unroll 1
    for (int s = 0; s < chain.steps; ++s) {
      load_matrix(chain.step[s]);
      if (s == 0) load_input(row0, shared);
    }
  }
  __pipeline_commit();

  for (int turn = 0; row0 < chain.n; ++turn) {
    const T* input = shared + (turn & 1) * kRows * pitch<T>(k);
    cluster_wait();  // everyone is done with the hidden layers
    if (threadIdx.x == 0)
      for (int s = 0; s + 1 < chain.steps; ++s)
        received[s].expect(kRows * padded(chain.step[s].features) * static_cast<int>(sizeof(T)));
    __pipeline_wait_prior(turn == 0 ? 1 : 0);  // the input; not all matrices yet
    __syncthreads();
    const int64_t next_row0 = row0 + rows_a_turn;
    load_input(next_row0, shared + (~turn & 1) * kRows * pitch<T>(k));

    for (int s = 0; s < chain.steps; ++s) {
      const Step<T>& step = chain.step[s];
      if (turn == 0 && s == 1) {
        __pipeline_wait_prior(1);  // all matrices
        __syncthreads();
      }
      const auto run = [&]<int kLanes>() {
        run_step<T, kBackward, kRows, kLanes>(step, s + 1 == chain.steps, row0, chain.n,
                                              s == 0 ? input : shared + chain.step[s - 1].y_at,
                                              shared, received[s], [&] {
                                                if (s > 0) received[s - 1].wait(turn & 1);
                                              });
      };
      // As many lanes to a tile as leave no warp idle.
      const int tiles = step.share * kRows / kTileRows<kRows>;
      if (tiles * 32 <= kThreads)
        run.template operator()<32>();
      else if (tiles * 16 <= kThreads)
        run.template operator()<16>();
      else
        run.template operator()<8>();
    }
    row0 = next_row0;
    if (row0 < chain.n) cluster_arrive();
  }
#endif
}

template <class T, int kRows> __global__ void __launch_bounds__(kThreads, 8 / sizeof(T))
    mlp_forward_kernel(const __grid_constant__ Chain<T> chain) {
  run_layers<T, false, kRows>(chain);
}
template <class T, int kRows> __global__ void __launch_bounds__(kThreads, 8 / sizeof(T))
    mlp_backward_kernel(const __grid_constant__ Chain<T> chain) {
  run_layers<T, true, kRows>(chain);
}

// ---- gradients of the weights -------------------------------------------------------------------

// A block makes a tile of one layer's dw, kTileOut by kTileIn. Its warps share the rows of the
// batch and go each at its own pace; their sums are added at the end. The tile is small because
// there are few: a small network's gradients barely fill the GPU.
constexpr int kTileOut = 16, kTileIn = 32, kTileSize = kTileOut * kTileIn;
constexpr int kRowsAhead = 4;  // that a warp loads at a time
constexpr int kStages = 3;     // one being used, the others being loaded
template <class T> constexpr int kGradientWarps = 64 / sizeof(T);

// dw (out, in) = dz^T h and db (out) = column sums of dz; dz (n, out), h (n, in).
template <class T> struct LayerGradients {
  int out, in;
  const T* dz;
  const T* h;
  T* dw;  // nullable
  T* db;  // nullable
  int first_tile, tiles_across;
};
template <class T> struct Gradients {
  int64_t n = 0;
  int layers = 0, tiles = 0;
  LayerGradients<T> layer[kMaxMlpLayers] = {};
};

template <class T> __global__ void __launch_bounds__(32 * kGradientWarps<T>)
    mlp_dweight_kernel(const __grid_constant__ Gradients<T> g) {
  constexpr int kWarps = kGradientWarps<T>;
  struct alignas(16) Stage {
    T dz[kRowsAhead][kTileOut], h[kRowsAhead][kTileIn];
  };
  struct alignas(16) Sums {
    T dw[kTileSize], db[kTileOut];
  };
  __shared__ union {
    Stage stage[kWarps][kStages];
    Sums sums[kWarps];
  } shared;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  wait_for_earlier();

  int l = g.layers - 1;
  while (static_cast<int>(blockIdx.x) < g.layer[l].first_tile) --l;
  const LayerGradients<T>& layer = g.layer[l];
  const int tile = static_cast<int>(blockIdx.x) - layer.first_tile;
  const int o0 = tile / layer.tiles_across * kTileOut, i0 = tile % layer.tiles_across * kTileIn;

  // A warp takes kRowsAhead rows in every round, and only itself reads what it loads.
  constexpr int kRoundRows = kRowsAhead * kWarps;
  const int64_t rounds = (g.n + kRoundRows - 1) / kRoundRows;
  const auto copy = [&](const T* from, int width, int column, int64_t row, T* to) {
    if (row < g.n && column < width)
      __pipeline_memcpy_async(to, from + row * width + column, sizeof(T));
    else
      *to = T(0);
  };
  const auto load = [&](int64_t round) {
    if (round < rounds) {
      Stage& stage = shared.stage[warp][round % kStages];
      const int64_t row0 = round * kRoundRows + warp * kRowsAhead;
#pragma unroll
      for (int r = 0; r < kRowsAhead; ++r)
        copy(layer.h, layer.in, i0 + lane, row0 + r, &stage.h[r][lane]);
#pragma unroll
      for (int r = lane / kTileOut; r < kRowsAhead; r += 32 / kTileOut)
        copy(layer.dz, layer.out, o0 + lane % kTileOut, row0 + r, &stage.dz[r][lane % kTileOut]);
    }
    __pipeline_commit();
  };

  // A lane has 4 x 4 of the tile's elements.
  const int o = lane / 8 * 4, i = lane % 8 * 4;
  struct alignas(16) Four {
    T v[4];
  };
  T dw[4][4] = {}, db[4] = {};
  for (int round = 0; round < kStages - 1; ++round) load(round);
  for (int64_t round = 0; round < rounds; ++round) {
    load(round + kStages - 1);
    __pipeline_wait_prior(kStages - 1);
    __syncwarp();
    const Stage& stage = shared.stage[warp][round % kStages];
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) {
      const Four dz = *reinterpret_cast<const Four*>(&stage.dz[r][o]);
      const Four h = *reinterpret_cast<const Four*>(&stage.h[r][i]);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        db[p] += dz.v[p];
#pragma unroll
        for (int q = 0; q < 4; ++q) dw[p][q] += dz.v[p] * h.v[q];
      }
    }
    __syncwarp();  // the stage may be loaded again
  }

  __syncthreads();
  Sums& own = shared.sums[warp];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    Four row;
#pragma unroll
    for (int q = 0; q < 4; ++q) row.v[q] = dw[p][q];
    *reinterpret_cast<Four*>(&own.dw[(o + p) * kTileIn + i]) = row;
    if (i == 0) own.db[o + p] = db[p];
  }
  __syncthreads();
  for (int e = threadIdx.x; e < kTileSize + kTileOut; e += 32 * kWarps) {
    const bool bias = e >= kTileSize;
    T sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      sum += bias ? shared.sums[w].db[e - kTileSize] : shared.sums[w].dw[e];
    const int row = o0 + (bias ? e - kTileSize : e / kTileIn), column = i0 + e % kTileIn;
    if (row >= layer.out) continue;
    if (bias) {
      if (layer.db && i0 == 0) layer.db[row] = sum;
    } else if (layer.dw && column < layer.in) {
      layer.dw[static_cast<int64_t>(row) * layer.in + column] = sum;
    }
  }
}

// ---- launchers ----------------------------------------------------------------------------------

struct Limits {
  // Whether the kernels run: the device has clusters, this build's code for it uses them, and eight
  // blocks find room at once. They need not: a slice of a GPU (MIG), or a process's share of one
  // (MPS), may have too few multiprocessors together.
  bool float_chains, double_chains;
  int multiprocessors, block_bytes, multiprocessor_bytes;
};

// Whether a cluster of the kernel's blocks fits the current device, each with all the shared memory
// that a block can have.
bool cluster_fits(const void* kernel, int device) {
  allow_shared_memory(kernel, device);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kCluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = kCluster;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = static_cast<size_t>(most_dynamic_shared(kernel, device));
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  if (error == cudaErrorInvalidClusterSize) {
    cudaGetLastError();
    return false;
  }
  SINTER_CUDA_CHECK(error);
  return clusters > 0;
}

template <class T> bool chains_fit(int device) {
  const auto fits = [&](void (*kernel)(Chain<T>)) {
    return cluster_fits(reinterpret_cast<const void*>(kernel), device);
  };
  return fits(mlp_forward_kernel<T, kFewRows>) && fits(mlp_forward_kernel<T, kManyRows>) &&
         fits(mlp_backward_kernel<T, kFewRows>) && fits(mlp_backward_kernel<T, kManyRows>);
}

// Of the current device.
Limits limits_of(int device) {
  static auto& mutex = *new std::mutex;
  static auto& known = *new std::map<int, Limits>;
  const std::lock_guard lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    SINTER_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  const bool clusters =
      compiled_architecture(device) >= 90 && attribute(cudaDevAttrClusterLaunch) != 0;
  const Limits limits{clusters && chains_fit<float>(device), clusters && chains_fit<double>(device),
                      attribute(cudaDevAttrMultiProcessorCount),
                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  return known.emplace(device, limits).first->second;
}

constexpr int kBarrierBytes = kMaxMlpLayers * static_cast<int>(sizeof(ByteBarrier));
constexpr int kReservedBytes = 1024;  // what the driver keeps of a block's shared memory

template <class T, bool kBackward, int kRows>
void launch_chain(const Cuda& ctx, const char* name, Chain<T>& chain, int64_t max_clusters) {
  const auto kernel = kBackward ? mlp_backward_kernel<T, kRows> : mlp_forward_kernel<T, kRows>;
  const auto bytes = static_cast<size_t>(chain.place(kRows));
  // Clusters that come later would load the weights again; all work the same number of turns.
  const int64_t groups = ceil_div(chain.n, kRows);
  const int64_t clusters = ceil_div(groups, ceil_div(groups, max_clusters));
  chain.weights_settled = true;
  for (int s = 0; s < chain.steps; ++s)
    chain.weights_settled = chain.weights_settled && settled(chain.step[s].w);
  launch_early(ctx, {name, chain.n, chain.steps}, static_cast<unsigned>(clusters * kCluster),
               kThreads, bytes, {.cluster = kCluster}, kernel, chain);
}

template <class T, bool kBackward>
void run_chain(const Cuda& ctx, const char* name, Chain<T>& chain) {
  const Limits limits = limits_of(ctx.device);
  // Two blocks to a multiprocessor: one computes while the other waits for its neighbours.
  const auto clusters_at_once = [&](int rows) {
    const int64_t bytes = chain.place(rows) + kBarrierBytes + kReservedBytes;
    const int64_t blocks = std::clamp<int64_t>(limits.multiprocessor_bytes / bytes, 1, 2);
    return std::max<int64_t>(limits.multiprocessors / kCluster * blocks, 1);
  };
  const int64_t few = clusters_at_once(kFewRows), many = clusters_at_once(kManyRows);
  if (ceil_div(chain.n, kFewRows) <= few ||
      chain.place(kManyRows) + kBarrierBytes > limits.block_bytes)
    launch_chain<T, kBackward, kFewRows>(ctx, name, chain, few);
  else
    launch_chain<T, kBackward, kManyRows>(ctx, name, chain, many);
}

template <class T> Chain<T> forward_chain(const MlpShape& g) {
  Chain<T> chain{.n = g.n, .steps = g.layers};
  for (int l = 0; l < g.layers; ++l) {
    chain.step[l].k = static_cast<int>(g.width[l]);
    chain.step[l].features = static_cast<int>(g.width[l + 1]);
    chain.step[l].relu = l + 1 < g.layers || g.relu_last;
  }
  return chain;
}

// From the last layer to the input of layer `lowest`. Without a step, it makes the gradient of the
// loss alone.
template <class T> Chain<T> backward_chain(const MlpShape& g, int lowest) {
  Chain<T> chain{.n = g.n};
  chain.step[0].k = static_cast<int>(g.width[g.layers]);
  for (int l = g.layers - 1; l >= lowest; --l) {
    Step<T>& step = chain.step[chain.steps++];
    step.k = static_cast<int>(g.width[l + 1]);
    step.features = static_cast<int>(g.width[l]);
  }
  return chain;
}

template <class T> bool fits(const Cuda& ctx, const MlpShape& g) {
  // Beyond these, cuBLAS's large tiles gain more than its many launches lose.
  constexpr int64_t kMaxWeightBytes = int64_t{1} << 20, kMaxProducts = int64_t{1} << 28;
  int64_t weights = 0;
  for (int l = 0; l < g.layers; ++l) weights += g.width[l] * g.width[l + 1];
  if (g.n == 0 || std::count(g.width, g.width + g.layers + 1, 0) > 0) return false;
  if (weights * static_cast<int64_t>(sizeof(T)) > kMaxWeightBytes || g.n > kMaxProducts / weights)
    return false;
  const Limits limits = limits_of(ctx.device);
  const int64_t bytes =
      std::max(forward_chain<T>(g).place(kFewRows), backward_chain<T>(g, 0).place(kFewRows));
  const bool chains = std::is_same_v<T, float> ? limits.float_chains : limits.double_chains;
  return chains && bytes + kBarrierBytes <= limits.block_bytes;
}

template <class T> void forward(const Cuda& ctx, const MlpForward& o) {
  Chain<T> chain = forward_chain<T>(o.g);
  chain.x = o.x.data<T>();
  for (int s = 0; s < chain.steps; ++s) {
    const auto l = static_cast<size_t>(s);
    chain.step[s].w = o.w[l].data<T>();
    chain.step[s].b = o.b[l].data<T>();
    chain.step[s].y = o.y[l].data<T>();
  }
  run_chain<T, false>(ctx, o.name, chain);
}

template <class T> void backward(const Cuda& ctx, const MlpBackwardChain& o) {
  const MlpShape& g = o.g;
  const size_t top = static_cast<size_t>(g.layers) - 1;
  T* const dx = o.dx.data<T>();
  // The lowest layer whose dz is asked for, or `top`, whose dz is dy or made from the loss.
  size_t lowest = 0;
  while (lowest < top && o.dz[lowest].address == nullptr) ++lowest;
  Chain<T> chain = backward_chain<T>(g, dx ? 0 : static_cast<int>(lowest) + 1);
  if (o.dy.address != nullptr) {
    if (chain.steps == 0) return;
    chain.x = o.dy.data<T>();
  } else {
    const CrossEntropyShape& loss = o.loss;
    chain.logits = o.logits.data<T>();
    chain.labels = o.labels.data<int64_t>();
    chain.at_label = static_cast<T>(1 - loss.label_smoothing);
    chain.anywhere = static_cast<T>(loss.label_smoothing / static_cast<double>(loss.classes));
    chain.ignore_index = loss.ignore_index;
    chain.mean = loss.reduction == Reduction::kMean;
    chain.dlogits = o.dz[top].data<T>();
  }
  for (int s = 0; s < chain.steps; ++s) {
    const size_t l = top - static_cast<size_t>(s);  // the layer whose input's gradient it is
    Step<T>& step = chain.step[s];
    step.w = o.w[l].data<T>();
    step.h = l > 0 ? o.y[l - 1].data<T>() : nullptr;
    step.y = l > 0 ? o.dz[l - 1].data<T>() : dx;
  }
  run_chain<T, true>(ctx, o.name, chain);
}

template <class T> void backward_weights(const Cuda& ctx, const MlpBackwardWeights& o) {
  const MlpShape& g = o.g;
  Gradients<T> gradients{.n = g.n};
  for (size_t l = 0; l < o.dw.size(); ++l) {
    T *const dw = o.dw[l].data<T>(), *const db = o.db[l].data<T>();
    if (!dw && !db) continue;
    const int out = static_cast<int>(g.width[l + 1]), in = static_cast<int>(g.width[l]);
    const int across = static_cast<int>(ceil_div(in, kTileIn));
    gradients.layer[gradients.layers++] = {
        out, in, o.dz[l].data<T>(), l > 0 ? o.y[l - 1].data<T>() : o.x.data<T>(),
        dw,  db, gradients.tiles,   across};
    gradients.tiles += static_cast<int>(ceil_div(out, kTileOut)) * across;
  }
  if (gradients.tiles == 0) return;
  // Not early: what goes on from the chain, towards the first layer, is to have the room first.
  launch_early(ctx, {o.name, g.n, gradients.layers, gradients.tiles},
               static_cast<unsigned>(gradients.tiles), 32 * kGradientWarps<T>, 0, {.early = false},
               mlp_dweight_kernel<T>, gradients);
}

}  // namespace
}  // namespace cuda

bool mlp_fits(const Cuda& ctx, const MlpShape& g, DType dtype) {
  return dtype == kFloat64 ? cuda::fits<double>(ctx, g) : cuda::fits<float>(ctx, g);
}

bool mlp_starts_from_loss(const Cuda&, const MlpShape& g) {
  return !g.relu_last && g.width[g.layers] <= cuda::kMaxLossClasses;
}

void run(const Cuda& ctx, const MlpForward& o) {
  with_floating(o.x, [&]<class T>() { cuda::forward<T>(ctx, o); });
}

void run(const Cuda& ctx, const MlpBackwardChain& o) {
  with_floating(o.w.back(), [&]<class T>() { cuda::backward<T>(ctx, o); });
}

void run(const Cuda& ctx, const MlpBackwardWeights& o) {
  with_floating(o.x, [&]<class T>() { cuda::backward_weights<T>(ctx, o); });
}

}  // namespace sinter
