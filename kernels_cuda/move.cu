// Movement of data.
#include <cstdint>
#include <cstring>

#include "core/backend/pad.h"
#include "kernels_cuda/move.cuh"
#include "sinter/operators/move.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- strided copies -----------------------------------------------------------------------------

template <class Index> struct StridedSource {
  int rank = 0;
  Divider<Index> extent[kMaxRank];
  int64_t stride[kMaxRank] = {};

  explicit StridedSource(const Loop<1>& loop) : rank(loop.rank) {
    for (int d = 0; d < rank; ++d) {
      extent[d] = Divider<Index>(loop.shape[d]);
      stride[d] = loop.stride[0][d];
    }
  }
  // Backwards x begins at its last element: places may be negative, and so count from `origin`.
  int64_t origin = 0;
  __device__ int64_t operator()(Index i) const {
    int64_t at = origin;
    for (int d = rank - 1; d > 0; --d) {
      const Index outer = extent[d].quotient(i);
      at += static_cast<int64_t>(i - outer * extent[d].d) * stride[d];
      i = outer;
    }
    return rank > 0 ? at + static_cast<int64_t>(i) * stride[0] : at;
  }
};

constexpr int kTile = 32, kTileRows = 8;

// Two dimensions in each other's place, through shared memory: y[r][c] = x[c][r], x's rows being
// `from` apart, y's `to`; the rest as `outer` says, of x and of y.
template <class U> __global__ void __launch_bounds__(kTile* kTileRows)
    transpose_kernel(int64_t tiles, int64_t across, int64_t down, int64_t rows, int64_t columns,
                     int64_t from, int64_t to, Loop<2> outer, const U* __restrict__ x,
                     U* __restrict__ y) {
  __shared__ U tile[kTile][kTile + 1];
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t c0 = t % across * kTile, r0 = t / across % down * kTile;
    int64_t at[2];
    outer.offsets(t / (across * down), at);
    __syncthreads();  // the tile before has been read
    for (int k = threadIdx.y; k < kTile; k += kTileRows) {
      const int64_t c = c0 + k, r = r0 + threadIdx.x;
      if (c < columns && r < rows) tile[k][threadIdx.x] = x[at[0] + c * from + r];
    }
    __syncthreads();
    for (int k = threadIdx.y; k < kTile; k += kTileRows) {
      const int64_t r = r0 + k, c = c0 + threadIdx.x;
      if (r < rows && c < columns) y[at[1] + r * to + c] = tile[threadIdx.x][k];
    }
  }
}

// A dimension of stride 1 that is not the innermost, where the two are worth tiles; else -1.
int across(const Loop<1>& loop) {
  if (loop.rank < 2 || loop.stride[0][loop.rank - 1] == 1 || loop.shape[loop.rank - 1] < 8)
    return -1;
  for (int d = 0; d < loop.rank - 1; ++d)
    if (loop.stride[0][d] == 1 && loop.shape[d] >= 8) return d;
  return -1;
}

template <class U>
void transpose(const Cuda& ctx, const Loop<1>& loop, int d, const void* x, void* y) {
  const int last = loop.rank - 1;
  Loop<2> outer;
  int64_t own[kMaxRank], step = 1;
  for (int i = last; i >= 0; --i) {
    own[i] = step;
    step *= loop.shape[i];
  }
  for (int i = 0; i < last; ++i)
    if (i != d) outer.append(loop.shape[i], {loop.stride[0][i], own[i]});
  const int64_t rows = loop.shape[d], columns = loop.shape[last];
  const int64_t over = ceil_div(columns, kTile), down = ceil_div(rows, kTile);
  const int64_t tiles = outer.count * over * down;
  launch(ctx, {"strided_copy", outer.count, rows, columns},
         static_cast<unsigned>(std::min<int64_t>(tiles, int64_t{1} << 30)), dim3(kTile, kTileRows),
         0, transpose_kernel<U>, tiles, over, down, rows, columns, loop.stride[0][last], own[d],
         outer, static_cast<const U*>(x), static_cast<U*>(y));
}

// ---- concatenation ------------------------------------------------------------------------------

// So many arrays a launch, with what a kernel has room for as parameters.
constexpr int kPartsAtOnce = 64;
struct Parts {
  const void* x[kPartsAtOnce];
  int64_t begin[kPartsAtOnce + 1];  // in the row of all parts, in units
};

// Units of the rows of the parts, of which y's rows of `columns` units have some.
template <class U, class Index> __global__ void __launch_bounds__(kThreads)
    concatenate_kernel(Index n, Divider<Index> width, int count, Parts parts, int64_t columns,
                       U* __restrict__ y) {
  constexpr Index kBlock = kThreads * kMovesAtOnce;
  for (Index first = blockIdx.x * kBlock + threadIdx.x; first < n; first += gridDim.x * kBlock) {
    U v[kMovesAtOnce];
#pragma unroll
    for (int k = 0; k < kMovesAtOnce; ++k) {
      const Index i = first + k * kThreads;
      if (i >= n) continue;
      const Index row = width.quotient(i), column = i - row * width.d;
      int low = 0, high = count;  // the last part that begins at or before the column
      while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (parts.begin[middle] <= static_cast<int64_t>(column))
          low = middle;
        else
          high = middle;
      }
      v[k] = static_cast<const U*>(parts.x[low])[row * (parts.begin[low + 1] - parts.begin[low]) +
                                                 column - parts.begin[low]];
    }
#pragma unroll
    for (int k = 0; k < kMovesAtOnce; ++k) {
      const Index i = first + k * kThreads;
      if (i >= n) continue;
      const Index row = width.quotient(i);
      y[static_cast<int64_t>(row) * columns + (i - row * width.d)] = v[k];
    }
  }
}

// ---- pad ----------------------------------------------------------------------------------------

template <class Index> struct PadSource {
  PadShape g;
  Divider<Index> out[kMaxRank];

  explicit PadSource(const PadShape& g) : g(g) {
    for (int d = 0; d < g.rank; ++d) out[d] = Divider<Index>(g.out[d]);
  }
  __device__ int64_t operator()(Index i) const {
    int64_t at = 0, stride = 1;
    for (int d = g.rank - 1; d >= 0; --d) {
      const Index outer = d > 0 ? out[d].quotient(i) : 0;
      const auto place = static_cast<int64_t>(i - outer * out[d].d) - g.before[d];
      const int64_t from = pad_source(g.mode, g.n[d], place);
      if (from < 0) return -1;
      at += from * stride;
      stride *= g.n[d];
      i = outer;
    }
    return at;
  }
};

// The sum over all elements of dy that read an element of x, whose places are `index`.
template <int kDim, class T>
__device__ T sum_of_readers(const PadShape& g, const int64_t* index, const T* dy, int64_t row) {
  if constexpr (kDim == kMaxRank) {
    return dy[row];
  } else {
    if (kDim == g.rank) return dy[row];
    const PadReaders readers(g.mode, g.n[kDim], g.before[kDim], g.out[kDim], index[kDim]);
    T sum = 0;
#pragma unroll 1
    for (int k = 0; k < 3; ++k)
      for (int64_t i = readers.begin[k]; i < readers.end[k]; ++i)
        sum += sum_of_readers<kDim + 1>(g, index, dy, row * g.out[kDim] + i);
    return sum;
  }
}

template <class T, class Index> __global__ void pad_backward_kernel(Index n, PadShape g,
                                                                    const T* __restrict__ dy,
                                                                    T* __restrict__ dx) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    int64_t index[kMaxRank];
    Index rest = i;
    for (int d = g.rank - 1; d >= 0; --d) {
      const Index outer = rest / static_cast<Index>(g.n[d]);
      index[d] = static_cast<int64_t>(rest - outer * static_cast<Index>(g.n[d]));
      rest = outer;
    }
    dx[i] = sum_of_readers<0>(g, index, dy, 0);
  }
}

// ---- triangles ----------------------------------------------------------------------------------

template <class Index> struct TriangleSource {
  Divider<Index> rows, columns;
  int64_t diagonal;
  bool upper;

  __device__ int64_t operator()(Index i) const {
    const Index line = columns.quotient(i), column = i - line * columns.d;
    const Index row = line - rows.quotient(line) * rows.d;
    const int64_t right = static_cast<int64_t>(column) - static_cast<int64_t>(row) - diagonal;
    return (upper ? right >= 0 : right <= 0) ? static_cast<int64_t>(i) : -1;
  }
};

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const StridedCopy& o) {
  cuda::Loop<1> loop = cuda::loop_over(o.g);
  if (loop.count == 0) return;
  const size_t size = size_of(o.x.dtype);
  const char* x = static_cast<const char*>(o.x.address) + o.start * static_cast<int64_t>(size);
  const int last = loop.rank - 1;
  int64_t width = 1;  // elements a unit
  if (loop.rank > 0 && loop.stride[0][last] == 1) {
    width = cuda::elements_a_unit(
        size, {cuda::address_of(x), cuda::address_of(o.y.address), size * loop.shape[last]});
    for (int d = 0; d < last; ++d) {
      const auto step = static_cast<uint64_t>(std::abs(loop.stride[0][d]));
      width = std::min(width, cuda::elements_a_unit(size, {size * step}));
    }
    cuda::Loop<1> units;
    for (int d = 0; d < last; ++d) units.append(loop.shape[d], {loop.stride[0][d] / width});
    units.append(loop.shape[last] / width, {1});
    loop = units;
  }
  cuda::with_unit(width * static_cast<int64_t>(size), [&]<class U>(U) {
    if (const int d = cuda::across(loop); d >= 0)
      return cuda::transpose<U>(ctx, loop, d, x, o.y.address);
    // The least place is that of the operand's first element.
    int64_t lowest = 0;
    for (int d = 0; d < loop.rank; ++d)
      lowest += std::min<int64_t>(loop.stride[0][d], 0) * (loop.shape[d] - 1);
    cuda::move<U>(
        ctx, "strided_copy", loop.count,
        [&]<class Index>(Index) {
          cuda::StridedSource<Index> source(loop);
          source.origin = -lowest;
          return source;
        },
        x + lowest * static_cast<int64_t>(sizeof(U)), U{}, o.y.address);
  });
}

void run(const Cuda& ctx, const Concatenate& o) {
  const auto rows = o.outer;
  const int64_t all = o.y.bytes() / rows;
  uint64_t common = cuda::address_of(o.y.address) | static_cast<uint64_t>(all);
  for (const In& x : o.x)
    common |= cuda::address_of(x.address) | static_cast<uint64_t>(x.bytes() / rows);
  const int64_t unit = cuda::elements_a_unit(1, {common});
  cuda::with_unit(unit, [&]<class U>(U) {
    int64_t column = 0;
    for (size_t first = 0; first < o.x.size(); first += cuda::kPartsAtOnce) {
      cuda::Parts parts{};
      const int count = static_cast<int>(
          std::min<size_t>(o.x.size() - first, static_cast<size_t>(cuda::kPartsAtOnce)));
      for (int k = 0; k < count; ++k) {
        const In& x = o.x[first + static_cast<size_t>(k)];
        parts.x[k] = x.address;
        parts.begin[k + 1] = parts.begin[k] + x.bytes() / rows / unit;
      }
      const int64_t width = parts.begin[count], n = rows * width;
      cuda::with_index(n, [&]<class Index>(Index) {
        const auto blocks =
            std::min<int64_t>(cuda::ceil_div(n, cuda::kThreads * cuda::kMovesAtOnce), 1 << 16);
        cuda::launch(ctx, {"concatenate", rows, width}, static_cast<unsigned>(blocks),
                     cuda::kThreads, 0, cuda::concatenate_kernel<U, Index>, static_cast<Index>(n),
                     cuda::Divider<Index>(width), count, parts, all / unit, o.y.data<U>() + column);
      });
      column += width;
    }
  });
}

void run(const Cuda& ctx, const Pad& o) {
  if (o.y.numel() == 0) return;
  PadShape g = o.g;
  const size_t size = size_of(o.x.dtype);
  const int last = g.rank - 1;
  int64_t width = 1;
  if (g.rank > 0 &&
      (g.mode == PadMode::kConstant || (g.before[last] == 0 && g.n[last] == g.out[last]))) {
    width = cuda::elements_a_unit(
        size, {cuda::address_of(o.x.address), cuda::address_of(o.y.address), size * g.n[last],
               size * g.out[last], size * static_cast<uint64_t>(std::abs(g.before[last]))});
    g.n[last] /= width, g.before[last] /= width, g.out[last] /= width;
  }
  with_any(o.y.dtype, [&]<class T>() {
    const T value = element::number<T>(o.value);
    cuda::with_unit(width * static_cast<int64_t>(size), [&]<class U>(U) {
      U unit{};
      if constexpr (sizeof(U) >= sizeof(T))
        for (size_t at = 0; at < sizeof(U); at += sizeof(T))
          std::memcpy(reinterpret_cast<char*>(&unit) + at, &value, sizeof(T));
      cuda::move<U>(
          ctx, "pad", o.y.numel() / width,
          [&]<class Index>(Index) { return cuda::PadSource<Index>(g); }, o.x.address, unit,
          o.y.address);
    });
  });
}

void run(const Cuda& ctx, const PadBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    cuda::with_index(o.dx.numel(), [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "pad_backward", o.dx.numel(), cuda::pad_backward_kernel<T, Index>, o.g,
                      o.dy.data<T>(), o.dx.data<T>());
    });
  });
}

void run(const Cuda& ctx, const Triangle& o) {
  with_any(o.x.dtype, [&]<class T>() {
    cuda::move<T>(
        ctx, "triangle", o.y.numel(),
        [&]<class Index>(Index) {
          const int64_t far = std::clamp(o.diagonal, -o.rows, o.columns);
          return cuda::TriangleSource<Index>{cuda::Divider<Index>(o.rows),
                                             cuda::Divider<Index>(o.columns), far, o.upper};
        },
        o.x.address, T(0), o.y.address);
  });
}

}  // namespace sinter
