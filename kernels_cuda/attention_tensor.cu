// Scaled dot-product attention of float32 on tensor cores.
//
// A block has 64 queries, or keys, 16 a warp, and goes through all keys, or queries, 32 at a time,
// of which the next are on their way into shared memory while these are multiplied. A warp's scores
// stay where the tensor core left them: which of the 8 terms of a product's step is which is free,
// as long as both operands agree, and in the order 0, 2, 4, 6, 1, 3, 5, 7 the fragment of a result
// is that of a left operand.
//
// Precision. As in conv2d_tensor.cu: with kPasses == 3 each operand is split into two TF32 numbers,
// x = high + low, and high high + high low + low high is summed, of no more terms than a tile has
// before ordinary additions, which round, take over. With kPasses == 1 operands are rounded.
//
// Tiles have a pitch of 4 banks modulo 32: 8 rows of 4 neighbours, of an operand that is read along
// its rows, and 4 pairs of rows by 8 neighbours, of one that is read down, lie in different ones.
#include <type_traits>

#include "kernels_cuda/attention.cuh"
#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/tensor_core.cuh"

namespace sinter::cuda {
using namespace op;

namespace {

constexpr int kWarps = 4, kBlockThreads = 32 * kWarps, kOwn = 16 * kWarps, kOther = 32;
template <int kDepth> constexpr int kPitch = kDepth + 4;

// Blocks on a multiprocessor, as registers and shared memory allow.
template <int kDepth> constexpr int kForwardBlocks = kDepth == 128 ? 2 : 4;
template <int kDepth> constexpr int kBackwardBlocks = kDepth == 128 ? 1 : kDepth == 64 ? 3 : 4;

// ---- operands -----------------------------------------------------------------------------------

// What of an operand a tensor core reads: high, and low with three passes.
template <int kPasses> struct Split;
template <> struct Split<3> {
  uint32_t high, low;
  __device__ explicit Split(float x = 0) {
    high = (__float_as_uint(x) + 0x1000) & 0xffffe000;
    low = __float_as_uint(x - __uint_as_float(high));
  }
};
template <> struct Split<1> {
  uint32_t high;
  __device__ explicit Split(float x = 0) { high = __float_as_uint(x) + 0x1000; }
};

// sum[n] += a b[n] for four neighbouring right operands. Products that follow each other belong to
// different sums: each would wait for its predecessor.
template <int kPasses> __device__ void multiply_step(const Split<kPasses> (&a)[4],
                                                     const Split<kPasses> (&b)[4][2],
                                                     float (&sum)[4][4]) {
  if constexpr (kPasses == 3) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
      mma_tf32(sum[n], a[0].low, a[1].low, a[2].low, a[3].low, b[n][0].high, b[n][1].high);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      mma_tf32(sum[n], a[0].high, a[1].high, a[2].high, a[3].high, b[n][0].low, b[n][1].low);
  }
#pragma unroll
  for (int n = 0; n < 4; ++n)
    mma_tf32(sum[n], a[0].high, a[1].high, a[2].high, a[3].high, b[n][0].high, b[n][1].high);
}

// The lane's place in fragments.
__device__ int lane_row() { return static_cast<int>(threadIdx.x) % 32 / 4; }
__device__ int lane_column() { return static_cast<int>(threadIdx.x) % 4; }

// A result of 16 x 32, in fragments of 8 columns. Element e of fragment n is at row(e), column(n,
// e) of it.
using Scores = float[4][4];
__device__ int row_in(int e) { return lane_row() + e / 2 * 8; }
__device__ int column_in(int n, int e) { return 8 * n + 2 * lane_column() + e % 2; }

// scores = a b^T: 16 rows at a, 32 at b.
template <int kDepth, int kPasses>
__device__ void multiply_rows(const float* a, const float* b, Scores& scores) {
  // Whose row of which quarter this lane hands in: of a the rows' halves change first, of b those
  // of the depth.
  const int row = static_cast<int>(threadIdx.x) % 8,
            quarter = static_cast<int>(threadIdx.x) % 32 / 8;
  const float* a_at = a + (row + quarter % 2 * 8) * kPitch<kDepth> + quarter / 2 * 4;
  const float* b_at = b + (row + quarter / 2 * 8) * kPitch<kDepth> + quarter % 2 * 4;
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[n][e] = 0;
#pragma unroll
  for (int part = 0; part < kDepth; part += 16) {
    float sum[4][4] = {};
#pragma unroll
    for (int k = part; k < part + 16; k += 8) {
      Split<kPasses> left[4], right[4][2];
      float x[4];
      load_matrices(a_at + k, x);
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = Split<kPasses>(x[i]);
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        load_matrices(b_at + n * 8 * kPitch<kDepth> + k, x);
#pragma unroll
        for (int i = 0; i < 4; ++i) right[n + i / 2][i % 2] = Split<kPasses>(x[i]);
      }
      multiply_step<kPasses>(left, right, sum);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] += sum[n][e];
  }
}

template <int kDepth> using Result = float[kDepth / 8][4];

// result = result * again + scores b, of 32 rows at b; again is by row, e / 2.
template <int kDepth, int kPasses>
__device__ void multiply_scores(const Scores& scores, const float* b, const float (&again)[2],
                                Result<kDepth>& result) {
  const float* b_at = b + 2 * lane_column() * kPitch<kDepth> + lane_row();
  Split<kPasses> left[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) left[k][i] = Split<kPasses>(scores[k][i % 2 * 2 + i / 2]);
#pragma unroll
  for (int first = 0; first < kDepth / 8; first += 4) {
    float sum[4][4] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Split<kPasses> right[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          right[n][i] = Split<kPasses>(b_at[(8 * k + i) * kPitch<kDepth> + 8 * (first + n)]);
      multiply_step<kPasses>(left[k], right, sum);
    }
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        result[first + n][e] = result[first + n][e] * again[e / 2] + sum[n][e];
  }
}

// ---- tiles --------------------------------------------------------------------------------------

// Sends kRows rows from `first` on of a (rows, depth) matrix to a tile; what is not there is 0.
// packs: depth is a multiple of 4 and x aligned.
template <int kDepth, int kRows> __device__ void send_tile(const float* x, int64_t first,
                                                           int64_t rows, int depth, bool packs,
                                                           float* tile) {
  const auto there = static_cast<int>(rows - first < kRows ? rows - first : kRows);
  const float* from = x + first * depth;
  if (packs) {
    constexpr int kPacks = kDepth / 4;
    for (int n = threadIdx.x; n < kRows * kPacks; n += kBlockThreads) {
      const int row = n / kPacks, column = n % kPacks * 4;
      float* to = tile + row * kPitch<kDepth> + column;
      if (row < there && column < depth)
        copy_async_16(to, from + row * depth + column);
      else
        *reinterpret_cast<float4*>(to) = float4{0, 0, 0, 0};
    }
  } else {
    for (int n = threadIdx.x; n < kRows * kDepth; n += kBlockThreads) {
      const int row = n / kDepth, column = n % kDepth;
      const bool valid = row < there && column < depth;
      copy_async(tile + row * kPitch<kDepth> + column, valid ? from + row * depth + column : x,
                 valid);
    }
  }
}
// Numbers [first, first + kOther) of x (rows).
__device__ void send_row(const float* x, int64_t first, int64_t rows, float* row) {
  const int n = threadIdx.x;
  if (n < kOther) copy_async(row + n, first + n < rows ? x + first + n : x, first + n < rows);
}

// For tile = 0, 1, … below `tiles`: work(tile, buffer) once send(tile, buffer) has arrived, with
// the next on its way into the other of two buffers.
template <class Send, class Do> __device__ void each_tile(int64_t tiles, Send send, Do work) {
  if (tiles > 0) send(int64_t{0}, 0);
  copy_async_commit();
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int buffer = static_cast<int>(tile % 2);
    if (tile + 1 < tiles) send(tile + 1, 1 - buffer);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();  // it is there, whoever sent it
    work(tile, buffer);
    __syncthreads();  // and read, before the buffer is sent to again
  }
  copy_async_wait<0>();  // where there was no tile
}
__device__ int64_t tiles_of(int64_t rows) { return (rows + kOther - 1) / kOther; }

// kOwn rows of a head. Later ones, which have more keys under a causal mask, come first.
struct OwnRows {
  int64_t head, first;
};
__device__ OwnRows own_rows(int64_t length) {
  const int64_t blocks = (length + kOwn - 1) / kOwn, block = blockIdx.x;
  return {block / blocks, (blocks - 1 - block % blocks) * kOwn};
}
__device__ int warp_row() { return static_cast<int>(threadIdx.x) / 32 * 16; }

// Whether a score of a tile may be left out or changed: of queries from i on and keys up to j.
__device__ bool needs_mask(const Attention<float>& a, int64_t i, int64_t last_i, int64_t last_j) {
  return a.mask_seen != nullptr || a.mask_added != nullptr || last_i >= a.g.l || last_j >= a.g.s ||
         (a.g.causal && last_j > i);
}

template <class F> __device__ void each_score(F f) {
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) f(n, e);
}

// result, times `factor`, to 16 rows from `first` on of y (rows, depth).
template <int kDepth> __device__ void store_result(const Result<kDepth>& result,
                                                   const float (&factor)[2], int64_t first,
                                                   int64_t rows, int depth, float* y) {
#pragma unroll
  for (int n = 0; n < kDepth / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t row = first + row_in(e);
      const int column = column_in(n, e);
      if (row < rows && column < depth) y[row * depth + column] = result[n][e] * factor[e / 2];
    }
}

// ---- kernels ------------------------------------------------------------------------------------

template <int kDepth, int kPasses>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks<kDepth>)
    attention_forward_tensor_kernel(Attention<float> a, bool packs) {
  constexpr int kTile = kOther * kPitch<kDepth>;
  float* const q_tile = dynamic_shared<float>();
  float* const k_tile = q_tile + kOwn * kPitch<kDepth>;  // two buffers
  float* const v_tile = k_tile + 2 * kTile;
  const AttentionShape& g = a.g;
  const auto e_depth = static_cast<int>(g.e), v_depth = static_cast<int>(g.ev);
  const OwnRows own = own_rows(g.l);
  const AttentionHead h{own.head, mask_offset(g, own.head)};
  const int64_t kv = own.head / g.group, first = own.first + warp_row();
  const float *k = a.k + kv * g.s * g.e, *v = a.v + kv * g.s * g.ev;
  const float scale = static_cast<float>(g.scale) * kLog2E<float>;
  const int64_t end = g.causal ? min(g.s, own.first + kOwn) : g.s;

  OnlineSum<float> online[2];
  Result<kDepth> y = {};
  send_tile<kDepth, kOwn>(a.q + own.head * g.l * g.e, own.first, g.l, e_depth, packs, q_tile);
  each_tile(
      tiles_of(end),
      [&](int64_t tile, int buffer) {
        send_tile<kDepth, kOther>(k, tile * kOther, g.s, e_depth, packs, k_tile + buffer * kTile);
        send_tile<kDepth, kOther>(v, tile * kOther, g.s, v_depth, packs, v_tile + buffer * kTile);
      },
      [&](int64_t tile, int buffer) {
        const int64_t key = tile * kOther;
        Scores p;
        multiply_rows<kDepth, kPasses>(q_tile + warp_row() * kPitch<kDepth>,
                                       k_tile + buffer * kTile, p);
        each_score([&](int n, int e) { p[n][e] *= scale; });
        if (needs_mask(a, first, first + 15, key + kOther - 1)) {
          each_score([&](int n, int e) {
            p[n][e] = masked_score(a, h, first + row_in(e), key + column_in(n, e), p[n][e]);
          });
        }
        float largest[2] = {-std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()};
        each_score([&](int n, int e) {
          largest[e / 2] = p[n][e] > largest[e / 2] ? p[n][e] : largest[e / 2];
        });
        float again[2], sum[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // A row is four neighbouring lanes'.
          largest[i] = Max{}(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 1));
          largest[i] = Max{}(largest[i], __shfl_xor_sync(0xffffffffu, largest[i], 2));
          again[i] = online[i].grow(largest[i]);
        }
        each_score([&](int n, int e) {
          p[n][e] = exp2f(p[n][e] - online[e / 2].shift());
          sum[e / 2] += p[n][e];
        });
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
          sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
          online[i].sum += static_cast<double>(sum[i]);
        }
        if (g.threshold > 0) {
          each_score([&](int n, int e) {
            p[n][e] *= dropout_factor(a, h.head, first + row_in(e), key + column_in(n, e));
          });
        }
        multiply_scores<kDepth, kPasses>(p, v_tile + buffer * kTile, again, y);
      });

  const float factor[2] = {online[0].factor(), online[1].factor()};
  store_result<kDepth>(y, factor, first, g.l, v_depth, a.y + h.head * g.l * g.ev);
  if (lane_column() == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = first + row_in(2 * i);
      if (row < g.l) a.new_log_sum[h.head * g.l + row] = online[i].log_sum();
    }
  }
}

template <int kDepth, int kPasses>
__global__ void __launch_bounds__(kBlockThreads, kBackwardBlocks<kDepth>)
    attention_queries_tensor_kernel(Attention<float> a, bool packs) {
  constexpr int kTile = kOther * kPitch<kDepth>;
  float* const q_tile = dynamic_shared<float>();
  float* const dy_tile = q_tile + kOwn * kPitch<kDepth>;
  float* const k_tile = dy_tile + kOwn * kPitch<kDepth>;  // two buffers
  float* const v_tile = k_tile + 2 * kTile;
  const AttentionShape& g = a.g;
  const auto e_depth = static_cast<int>(g.e), v_depth = static_cast<int>(g.ev);
  const OwnRows own = own_rows(g.l);
  const AttentionHead h{own.head, mask_offset(g, own.head)};
  const int64_t kv = own.head / g.group, first = own.first + warp_row();
  const float *k = a.k + kv * g.s * g.e, *v = a.v + kv * g.s * g.ev;
  const float scale = static_cast<float>(g.scale) * kLog2E<float>;
  const int64_t end = g.causal && a.ds == nullptr ? min(g.s, own.first + kOwn) : g.s;

  float log_sum[2] = {}, delta[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row = first + row_in(2 * i);
    if (row >= g.l) continue;
    log_sum[i] = a.log_sum[h.head * g.l + row] * kLog2E<float>;
    delta[i] = a.delta[h.head * g.l + row];
  }
  Result<kDepth> dq = {};
  send_tile<kDepth, kOwn>(a.q + own.head * g.l * g.e, own.first, g.l, e_depth, packs, q_tile);
  send_tile<kDepth, kOwn>(a.dy + own.head * g.l * g.ev, own.first, g.l, v_depth, packs, dy_tile);
  each_tile(
      tiles_of(end),
      [&](int64_t tile, int buffer) {
        send_tile<kDepth, kOther>(k, tile * kOther, g.s, e_depth, packs, k_tile + buffer * kTile);
        send_tile<kDepth, kOther>(v, tile * kOther, g.s, v_depth, packs, v_tile + buffer * kTile);
      },
      [&](int64_t tile, int buffer) {
        const int64_t key = tile * kOther;
        Scores p, ds;
        multiply_rows<kDepth, kPasses>(q_tile + warp_row() * kPitch<kDepth>,
                                       k_tile + buffer * kTile, p);
        multiply_rows<kDepth, kPasses>(dy_tile + warp_row() * kPitch<kDepth>,
                                       v_tile + buffer * kTile, ds);
        each_score([&](int n, int e) { p[n][e] *= scale; });
        if (needs_mask(a, first, first + 15, key + kOther - 1)) {
          each_score([&](int n, int e) {
            p[n][e] = masked_score(a, h, first + row_in(e), key + column_in(n, e), p[n][e]);
          });
        }
        if (g.threshold > 0) {
          each_score([&](int n, int e) {
            ds[n][e] *= dropout_factor(a, h.head, first + row_in(e), key + column_in(n, e));
          });
        }
        each_score([&](int n, int e) {
          ds[n][e] = exp2f(p[n][e] - log_sum[e / 2]) * (ds[n][e] - delta[e / 2]);
        });
        if (a.ds != nullptr) {
          each_score([&](int n, int e) {
            const int64_t i = first + row_in(e), j = key + column_in(n, e);
            if (i < g.l && j < g.s) a.ds[(h.head * g.l + i) * g.s + j] = ds[n][e];
          });
        }
        multiply_scores<kDepth, kPasses>(ds, k_tile + buffer * kTile, {1, 1}, dq);
      });

  const auto factor = static_cast<float>(g.scale);
  store_result<kDepth>(dq, {factor, factor}, first, g.l, e_depth, a.dq + h.head * g.l * g.e);
}

template <int kDepth, int kPasses>
__global__ void __launch_bounds__(kBlockThreads, kBackwardBlocks<kDepth>)
    attention_keys_tensor_kernel(Attention<float> a, bool packs) {
  constexpr int kTile = kOther * kPitch<kDepth>;
  float* const k_tile = dynamic_shared<float>();
  float* const v_tile = k_tile + kOwn * kPitch<kDepth>;
  float* const q_tile = v_tile + kOwn * kPitch<kDepth>;  // two buffers of this and all below
  float* const dy_tile = q_tile + 2 * kTile;
  float* const log_sums = dy_tile + 2 * kTile;
  float* const deltas = log_sums + 2 * kOther;
  const AttentionShape& g = a.g;
  const auto e_depth = static_cast<int>(g.e), v_depth = static_cast<int>(g.ev);
  const OwnRows own = own_rows(g.s);  // of a head of k and v
  const int64_t first = own.first + warp_row();
  const float scale = static_cast<float>(g.scale) * kLog2E<float>;
  // Tiles of queries of each head that shares these keys.
  const int64_t begin = g.causal ? own.first / kOther : 0;
  const int64_t each = max(tiles_of(g.l) - begin, int64_t{0});

  Result<kDepth> dk = {}, dv = {};
  send_tile<kDepth, kOwn>(a.k + own.head * g.s * g.e, own.first, g.s, e_depth, packs, k_tile);
  send_tile<kDepth, kOwn>(a.v + own.head * g.s * g.ev, own.first, g.s, v_depth, packs, v_tile);
  each_tile(
      each * g.group,
      [&](int64_t tile, int buffer) {
        const int64_t head = own.head * g.group + tile / each;
        const int64_t query = (begin + tile % each) * kOther;
        send_tile<kDepth, kOther>(a.q + head * g.l * g.e, query, g.l, e_depth, packs,
                                  q_tile + buffer * kTile);
        send_tile<kDepth, kOther>(a.dy + head * g.l * g.ev, query, g.l, v_depth, packs,
                                  dy_tile + buffer * kTile);
        send_row(a.log_sum + head * g.l, query, g.l, log_sums + buffer * kOther);
        send_row(a.delta + head * g.l, query, g.l, deltas + buffer * kOther);
      },
      [&](int64_t tile, int buffer) {
        const int64_t head = own.head * g.group + tile / each;
        const int64_t query = (begin + tile % each) * kOther;
        const AttentionHead h{head, mask_offset(g, head)};
        Scores p, ds;
        multiply_rows<kDepth, kPasses>(k_tile + warp_row() * kPitch<kDepth>,
                                       q_tile + buffer * kTile, p);
        multiply_rows<kDepth, kPasses>(v_tile + warp_row() * kPitch<kDepth>,
                                       dy_tile + buffer * kTile, ds);
        each_score([&](int n, int e) { p[n][e] *= scale; });
        if (needs_mask(a, query, query + kOther - 1, first + 15)) {
          each_score([&](int n, int e) {
            p[n][e] = masked_score(a, h, query + column_in(n, e), first + row_in(e), p[n][e]);
          });
        }
        each_score([&](int n, int e) {
          const int at = buffer * kOther + column_in(n, e);
          const float weight = exp2f(p[n][e] - log_sums[at] * kLog2E<float>);
          float factor = 1;
          if (g.threshold > 0)
            factor = dropout_factor(a, head, query + column_in(n, e), first + row_in(e));
          p[n][e] = weight * factor;
          ds[n][e] = weight * (ds[n][e] * factor - deltas[at]);
        });
        multiply_scores<kDepth, kPasses>(p, dy_tile + buffer * kTile, {1, 1}, dv);
        multiply_scores<kDepth, kPasses>(ds, q_tile + buffer * kTile, {1, 1}, dk);
      });

  const auto factor = static_cast<float>(g.scale);
  store_result<kDepth>(dk, {factor, factor}, first, g.s, e_depth, a.dk + own.head * g.s * g.e);
  store_result<kDepth>(dv, {1, 1}, first, g.s, v_depth, a.dv + own.head * g.s * g.ev);
}

// ---- launchers ----------------------------------------------------------------------------------

template <int kDepth> size_t shared_bytes(int own_tiles, int rows) {
  return (static_cast<size_t>(own_tiles * kOwn + 4 * kOther) * kPitch<kDepth> +
          static_cast<size_t>(rows * kOther)) *
         sizeof(float);
}

// f(kDepth, kPasses), as constants, for what is no deeper.
template <class F> void with_depth(const AttentionShape& g, const F& f) {
  const auto with_passes = [&](auto depth) {
    g.tf32 ? f(depth, std::integral_constant<int, 1>())
           : f(depth, std::integral_constant<int, 3>());
  };
  const int64_t depth = g.e > g.ev ? g.e : g.ev;
  if (depth <= 32)
    with_passes(std::integral_constant<int, 32>());
  else if (depth <= 64)
    with_passes(std::integral_constant<int, 64>());
  else
    with_passes(std::integral_constant<int, 128>());
}

template <class Op> bool usable(const Cuda& ctx, const Op& o) {
  return o.q.dtype == kFloat32 && o.g.e > 0 && o.g.e <= kTensorDepth && o.g.ev > 0 &&
         o.g.ev <= kTensorDepth && compiled_architecture(ctx.device) >= 80;
}

// A block for each kOwn rows of each of `heads`.
template <class Op> void launch_rows(const Cuda& ctx, const Op& o,
                                     void (*kernel)(Attention<float>, bool), int64_t heads,
                                     int64_t length, size_t bytes) {
  const int64_t blocks = heads * ceil_div(length, kOwn);
  if (blocks == 0) return;
  const Attention<float> a = attention_of<float>(o);
  bool packs = o.g.e % 4 == 0 && o.g.ev % 4 == 0;
  for (const float* x : {a.q, a.k, a.v, a.dy})
    packs = packs && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  launch(ctx, {Op::name, o.g.heads, o.g.l, o.g.s, o.g.e}, static_cast<unsigned>(blocks),
         kBlockThreads, bytes, kernel, a, packs);
}

}  // namespace

bool tensor_attention(const Cuda& ctx, const AttentionForward& o) {
  if (!usable(ctx, o)) return false;
  with_depth(o.g, [&](auto depth, auto passes) {
    launch_rows(ctx, o, attention_forward_tensor_kernel<depth(), passes()>, o.g.heads, o.g.l,
                shared_bytes<depth()>(1, 0));
  });
  return true;
}

bool tensor_attention(const Cuda& ctx, const AttentionBackwardQueries& o) {
  if (!usable(ctx, o)) return false;
  with_depth(o.g, [&](auto depth, auto passes) {
    launch_rows(ctx, o, attention_queries_tensor_kernel<depth(), passes()>, o.g.heads, o.g.l,
                shared_bytes<depth()>(2, 0));
  });
  return true;
}

bool tensor_attention(const Cuda& ctx, const AttentionBackwardKeys& o) {
  if (!usable(ctx, o)) return false;
  with_depth(o.g, [&](auto depth, auto passes) {
    launch_rows(ctx, o, attention_keys_tensor_kernel<depth(), passes()>, o.g.heads / o.g.group,
                o.g.s, shared_bytes<depth()>(2, 4));
  });
  return true;
}

}  // namespace sinter::cuda
