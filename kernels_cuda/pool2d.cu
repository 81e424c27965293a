// Max and average pooling. Gradients gather: a thread owns an element of x and visits the windows
// that cover it, so overlapping windows need no atomics.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/pool2d.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// Positions [begin, end) along one axis.
struct Span {
  int begin, end;
};

// Where window `o` begins; before x, if in the padding.
SINTER_HD inline int window_begin(int o, int stride, int pad) { return o * stride - pad; }

// The elements of x under window `o`, padding left out.
SINTER_HD inline Span elements_under(int o, int kernel, int stride, int pad, int extent) {
  const int first = window_begin(o, stride, pad), last = first + kernel;
  return {first < 0 ? 0 : first, last > extent ? extent : last};
}

// The windows over element `i` of x: o * stride - pad <= i < o * stride - pad + kernel.
SINTER_HD inline Span windows_over(int i, int kernel, int stride, int pad, int windows) {
  const int reach =
      i + pad - kernel;  // the last window that ends at i or before starts at <= reach
  const int begin = reach < 0 ? 0 : reach / stride + 1;
  const int end = (i + pad) / stride + 1;
  return {begin, end > windows ? windows : end};
}

// ---- kernels ------------------------------------------------------------------------------------

template <class T, class Code, class Index>
__global__ void max_forward_kernel(Index n, Pool2dShape g, const T* x, T* y, Code* choice) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ox = static_cast<int>(i % g.ow);
    const Index row = i / g.ow;
    const int oy = static_cast<int>(row % g.oh);
    const int64_t plane = row / g.oh;
    const T* xp = x + plane * g.h * g.w;
    const Span ys = elements_under(oy, g.kh, g.stride_h, g.pad_h, g.h);
    const Span xs = elements_under(ox, g.kw, g.stride_w, g.pad_w, g.w);
    const int top = window_begin(oy, g.stride_h, g.pad_h);
    const int left = window_begin(ox, g.stride_w, g.pad_w);
    int taken = (ys.begin - top) * g.kw + xs.begin - left;
    T best = xp[ys.begin * g.w + xs.begin];
    for (int iy = ys.begin; iy < ys.end; ++iy) {
      for (int ix = xs.begin; ix < xs.end; ++ix) {
        const T v = xp[iy * g.w + ix];
        // The first maximum wins, and the first NaN over everything.
        if (v > best || (v != v && best == best)) {
          best = v;
          taken = (iy - top) * g.kw + ix - left;
        }
      }
    }
    y[i] = best;
    choice[i] = static_cast<Code>(taken);
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
    const Span ys = windows_over(iy, g.kh, g.stride_h, g.pad_h, g.oh);
    const Span xs = windows_over(ix, g.kw, g.stride_w, g.pad_w, g.ow);
    T sum = 0;
    for (int oy = ys.begin; oy < ys.end; ++oy) {
      const int row_code = (iy - window_begin(oy, g.stride_h, g.pad_h)) * g.kw + ix;
      for (int ox = xs.begin; ox < xs.end; ++ox) {
        const int64_t o = plane + oy * g.ow + ox;
        const int code = row_code - window_begin(ox, g.stride_w, g.pad_w);
        if (choice[o] == code) sum += dy[o];
      }
    }
    dx[i] = sum;
  }
}

template <class T, class Index>
__global__ void avg_forward_kernel(Index n, Pool2dShape g, T scale, const T* x, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ox = static_cast<int>(i % g.ow);
    const Index row = i / g.ow;
    const int oy = static_cast<int>(row % g.oh);
    const T* xp = x + static_cast<int64_t>(row / g.oh) * g.h * g.w;
    const Span ys = elements_under(oy, g.kh, g.stride_h, g.pad_h, g.h);
    const Span xs = elements_under(ox, g.kw, g.stride_w, g.pad_w, g.w);
    T sum = 0;
    for (int iy = ys.begin; iy < ys.end; ++iy)
      for (int ix = xs.begin; ix < xs.end; ++ix) sum += xp[iy * g.w + ix];
    y[i] = sum * scale;
  }
}

template <class T, class Index>
__global__ void avg_backward_kernel(Index n, Pool2dShape g, T scale, const T* dy, T* dx) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    const int ix = static_cast<int>(i % g.w);
    const Index row = i / g.w;
    const int iy = static_cast<int>(row % g.h);
    const T* dyp = dy + static_cast<int64_t>(row / g.h) * g.oh * g.ow;
    const Span ys = windows_over(iy, g.kh, g.stride_h, g.pad_h, g.oh);
    const Span xs = windows_over(ix, g.kw, g.stride_w, g.pad_w, g.ow);
    T sum = 0;
    for (int oy = ys.begin; oy < ys.end; ++oy)
      for (int ox = xs.begin; ox < xs.end; ++ox) sum += dyp[oy * g.ow + ox];
    dx[i] = sum * scale;
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

void run(const Cuda& ctx, const AvgPool2dForward& o) {
  const int64_t n = cuda::count_y(o.g);
  with_floating(o.x, [&]<class T>() {
    const T scale = T(1) / (T(o.g.kh) * T(o.g.kw));
    cuda::with_index(n, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "avg_pool2d_forward", n, cuda::avg_forward_kernel<T, Index>, o.g, scale,
                      o.x.data<T>(), o.y.data<T>());
    });
  });
}

void run(const Cuda& ctx, const AvgPool2dBackward& o) {
  const int64_t n = cuda::count_x(o.g);
  with_floating(o.dy, [&]<class T>() {
    const T scale = T(1) / (T(o.g.kh) * T(o.g.kw));
    cuda::with_index(n, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "avg_pool2d_backward", n, cuda::avg_backward_kernel<T, Index>, o.g,
                      scale, o.dy.data<T>(), o.dx.data<T>());
    });
  });
}

}  // namespace sinter
