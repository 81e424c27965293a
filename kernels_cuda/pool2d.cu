// Max and average pooling. Gradients gather: a thread owns an element of x and visits the windows
// that cover it, so overlapping windows need no atomics.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/backend/pool2d_windows.h"
#include "kernels_cuda/runtime/launch.cuh"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- kernels ------------------------------------------------------------------------------------

// Of an element of a window, the steps from its first one.
__device__ inline int place(int distance, int dilation) {
  return dilation == 1 ? distance : distance / dilation;
}

template <class T, class Code, class Index>
__global__ void max_forward_kernel(Index n, Pool2dShape g, const T* x, T* y, Code* choice) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ox = static_cast<int>(i % g.ow);
    const Index row = i / g.ow;
    const int oy = static_cast<int>(row % g.oh);
    const int64_t plane = row / g.oh;
    const T* xp = x + plane * g.h * g.w;
    const PoolWindow ys = pool_window(rows(g), oy);
    const PoolWindow xs = pool_window(columns(g), ox);
    int best_y = ys.begin, best_x = xs.begin;
    T best = xp[ys.begin * g.w + xs.begin];
    for (int iy = ys.begin; iy < ys.end; iy += g.dil_h) {
      for (int ix = xs.begin; ix < xs.end; ix += g.dil_w) {
        const T v = xp[iy * g.w + ix];
        // The first maximum wins, and the first NaN over everything.
        if (v > best || (v != v && best == best)) {
          best = v;
          best_y = iy;
          best_x = ix;
        }
      }
    }
    y[i] = best;
    choice[i] = static_cast<Code>(place(best_y - ys.first, g.dil_h) * g.kw +
                                  place(best_x - xs.first, g.dil_w));
  }
}

template <class T, class Code, class Index>
__global__ void max_backward_kernel(Index n, Pool2dShape g, const T* dy, const Code* choice,
                                    T* dx) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ix = static_cast<int>(i % g.w);
    const Index row = i / g.w;
    const int iy = static_cast<int>(row % g.h);
    const int64_t plane = static_cast<int64_t>(row / g.h) * g.oh * g.ow;
    const PoolCover ys = pool_cover(rows(g), iy);
    const PoolCover xs = pool_cover(columns(g), ix);
    T sum = 0;
    for (int oy = ys.begin; oy < ys.end; ++oy) {
      const int down = iy - pool_window(rows(g), oy).first;
      if (g.dil_h != 1 && down % g.dil_h != 0) continue;
      const int row_code = place(down, g.dil_h) * g.kw;
      for (int ox = xs.begin; ox < xs.end; ++ox) {
        const int across = ix - pool_window(columns(g), ox).first;
        if (g.dil_w != 1 && across % g.dil_w != 0) continue;
        const int64_t o = plane + oy * g.ow + ox;
        if (choice[o] == row_code + place(across, g.dil_w)) sum += dy[o];
      }
    }
    dx[i] = sum;
  }
}

template <class Code, class Index>
__global__ void max_indices_kernel(Index n, Pool2dShape g, const Code* choice, int64_t* indices) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ox = static_cast<int>(i % g.ow);
    const int oy = static_cast<int>(i / g.ow % g.oh);
    const int code = choice[i];
    const int iy = pool_window(rows(g), oy).first + code / g.kw * g.dil_h;
    const int ix = pool_window(columns(g), ox).first + code % g.kw * g.dil_w;
    indices[i] = int64_t{iy} * g.w + ix;
  }
}

// What the sum of a window is divided by.
template <class T> __device__ inline T divisor_of(const Pool2dShape& g, bool count_pad, int divisor,
                                                  const PoolWindow& ys, const PoolWindow& xs) {
  if (divisor != 0) return static_cast<T>(divisor);
  return static_cast<T>(pool_counted(rows(g), ys, count_pad)) *
         static_cast<T>(pool_counted(columns(g), xs, count_pad));
}

template <class T, class Index> __global__ void avg_forward_kernel(Index n, Pool2dShape g,
                                                                   bool count_pad, int divisor,
                                                                   const T* x, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ox = static_cast<int>(i % g.ow);
    const Index row = i / g.ow;
    const int oy = static_cast<int>(row % g.oh);
    const T* xp = x + static_cast<int64_t>(row / g.oh) * g.h * g.w;
    const PoolWindow ys = pool_window(rows(g), oy);
    const PoolWindow xs = pool_window(columns(g), ox);
    T sum = 0;
    for (int iy = ys.begin; iy < ys.end; ++iy)
      for (int ix = xs.begin; ix < xs.end; ++ix) sum += xp[iy * g.w + ix];
    y[i] = sum / divisor_of<T>(g, count_pad, divisor, ys, xs);
  }
}

template <class T, class Index> __global__ void avg_backward_kernel(Index n, Pool2dShape g,
                                                                    bool count_pad, int divisor,
                                                                    const T* dy, T* dx) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ix = static_cast<int>(i % g.w);
    const Index row = i / g.w;
    const int iy = static_cast<int>(row % g.h);
    const T* dyp = dy + static_cast<int64_t>(row / g.h) * g.oh * g.ow;
    const PoolCover ys = pool_cover(rows(g), iy);
    const PoolCover xs = pool_cover(columns(g), ix);
    T sum = 0;
    for (int oy = ys.begin; oy < ys.end; ++oy) {
      const PoolWindow down = pool_window(rows(g), oy);
      for (int ox = xs.begin; ox < xs.end; ++ox) {
        const PoolWindow across = pool_window(columns(g), ox);
        sum += dyp[oy * g.ow + ox] / divisor_of<T>(g, count_pad, divisor, down, across);
      }
    }
    dx[i] = sum;
  }
}

int64_t count_x(const Pool2dShape& g) { return int64_t{g.n} * g.c * g.h * g.w; }
int64_t count_y(const Pool2dShape& g) { return int64_t{g.n} * g.c * g.oh * g.ow; }

}  // namespace
}  // namespace cuda

// ---- launchers ----------------------------------------------------------------------------------

void run(const Cuda& ctx, const MaxPool2dForward& o) {
  const int64_t n = cuda::count_y(o.g);
  with_floating(o.x, [&]<class T>() {
    with_choice(o.choice, [&]<class Code>() {
      cuda::with_index(n, [&]<class Index>(Index) {
        cuda::launch_1d(ctx, "max_pool2d_forward", n, cuda::max_forward_kernel<T, Code, Index>, o.g,
                        o.x.data<T>(), o.y.data<T>(), o.choice.data<Code>());
      });
    });
  });
}

void run(const Cuda& ctx, const MaxPool2dBackward& o) {
  const int64_t n = cuda::count_x(o.g);
  with_floating(o.dy, [&]<class T>() {
    with_choice(o.choice, [&]<class Code>() {
      cuda::with_index(n, [&]<class Index>(Index) {
        cuda::launch_1d(ctx, "max_pool2d_backward", n, cuda::max_backward_kernel<T, Code, Index>,
                        o.g, o.dy.data<T>(), o.choice.data<Code>(), o.dx.data<T>());
      });
    });
  });
}

void run(const Cuda& ctx, const MaxPool2dIndices& o) {
  const int64_t n = cuda::count_y(o.g);
  with_choice(o.choice, [&]<class Code>() {
    cuda::with_index(n, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "max_pool2d_indices", n, cuda::max_indices_kernel<Code, Index>, o.g,
                      o.choice.data<Code>(), o.indices.data<int64_t>());
    });
  });
}

void run(const Cuda& ctx, const AvgPool2dForward& o) {
  const int64_t n = cuda::count_y(o.g);
  with_floating(o.x, [&]<class T>() {
    cuda::with_index(n, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "avg_pool2d_forward", n, cuda::avg_forward_kernel<T, Index>, o.g,
                      o.count_pad, o.divisor, o.x.data<T>(), o.y.data<T>());
    });
  });
}

void run(const Cuda& ctx, const AvgPool2dBackward& o) {
  const int64_t n = cuda::count_x(o.g);
  with_floating(o.dy, [&]<class T>() {
    cuda::with_index(n, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "avg_pool2d_backward", n, cuda::avg_backward_kernel<T, Index>, o.g,
                      o.count_pad, o.divisor, o.dy.data<T>(), o.dx.data<T>());
    });
  });
}

}  // namespace sinter
