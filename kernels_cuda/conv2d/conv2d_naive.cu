// Convolution as it is defined: a thread makes one output element, reading global memory for every
// product. Slow, and short enough to check the other algorithms by, on paper too.
#include "kernels_cuda/conv2d/conv2d_algorithms.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"

namespace sinter::cuda {
using namespace op;

namespace {

// y[n, o, oy, ox] = b[o] + sum over c, i, j of x[n, c, iy, ix] weight[o, c, i, j]
//   with iy = oy stride_h - pad_h + i dil_h, and likewise ix; or the ReLU of it.
template <class T> __global__ void __launch_bounds__(kThreads)
    naive_forward(int64_t count, Conv2dShape g, const T* x, const T* weight, const T* b, bool relu,
                  T* y) {
  const int channels = g.c / g.groups;
  for (auto e = thread_index<int64_t>(); e < count; e += thread_count<int64_t>()) {
    const int ox = static_cast<int>(e % g.ow), oy = static_cast<int>(e / g.ow % g.oh);
    const int o = static_cast<int>(e / g.ow / g.oh % g.o);
    const int64_t n = e / g.ow / g.oh / g.o;
    const int first = o / (g.o / g.groups) * channels;  // channel of the group
    T sum = 0;
    for (int c = 0; c < channels; ++c) {
      for (int i = 0; i < g.kh; ++i) {
        for (int j = 0; j < g.kw; ++j) {
          const int iy = oy * g.stride_h - g.pad_h + i * g.dil_h;
          const int ix = ox * g.stride_w - g.pad_w + j * g.dil_w;
          if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
          sum += x[((n * g.c + first + c) * g.h + iy) * g.w + ix] *
                 weight[((static_cast<int64_t>(o) * channels + c) * g.kh + i) * g.kw + j];
        }
      }
    }
    sum += b ? b[o] : T(0);
    y[e] = act(sum, act_limit<T>(relu));
  }
}

// dx[n, c, iy, ix] = sum over o of c's group, i, j of dy[n, o, oy, ox] weight[o, c, i, j], for the
// oy and ox that read iy and ix through (i, j), if there are such.
template <class T> __global__ void __launch_bounds__(kThreads)
    naive_backward_data(int64_t count, Conv2dShape g, const T* dy, const T* weight, T* dx) {
  const int channels = g.c / g.groups, outputs = g.o / g.groups;
  for (auto e = thread_index<int64_t>(); e < count; e += thread_count<int64_t>()) {
    const int ix = static_cast<int>(e % g.w), iy = static_cast<int>(e / g.w % g.h);
    const int c = static_cast<int>(e / g.w / g.h % g.c);
    const int64_t n = e / g.w / g.h / g.c;
    const int first = c / channels * outputs;
    T sum = 0;
    for (int o = first; o < first + outputs; ++o) {
      for (int i = 0; i < g.kh; ++i) {
        for (int j = 0; j < g.kw; ++j) {
          const int y = iy + g.pad_h - i * g.dil_h, x = ix + g.pad_w - j * g.dil_w;
          if (y < 0 || y % g.stride_h != 0 || x < 0 || x % g.stride_w != 0) continue;
          const int oy = y / g.stride_h, ox = x / g.stride_w;
          if (oy >= g.oh || ox >= g.ow) continue;
          const int64_t tap =
              ((static_cast<int64_t>(o) * channels + c % channels) * g.kh + i) * g.kw + j;
          sum += dy[((n * g.o + o) * g.oh + oy) * g.ow + ox] * weight[tap];
        }
      }
    }
    dx[e] = sum;
  }
}

// dweight[o, c, i, j] = sum over n, oy, ox of dy[n, o, oy, ox] x[n, c, iy, ix].
template <class T> __global__ void __launch_bounds__(kThreads)
    naive_backward_weights(int64_t count, Conv2dShape g, const T* x, const T* dy, T* dweight) {
  const int channels = g.c / g.groups;
  for (auto e = thread_index<int64_t>(); e < count; e += thread_count<int64_t>()) {
    const int j = static_cast<int>(e % g.kw), i = static_cast<int>(e / g.kw % g.kh);
    const int c = static_cast<int>(e / g.kw / g.kh % channels);
    const int o = static_cast<int>(e / g.kw / g.kh / channels);
    const int first = o / (g.o / g.groups) * channels;
    T sum = 0;
    for (int64_t n = 0; n < g.n; ++n) {
      for (int oy = 0; oy < g.oh; ++oy) {
        for (int ox = 0; ox < g.ow; ++ox) {
          const int iy = oy * g.stride_h - g.pad_h + i * g.dil_h;
          const int ix = ox * g.stride_w - g.pad_w + j * g.dil_w;
          if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
          sum += dy[((n * g.o + o) * g.oh + oy) * g.ow + ox] *
                 x[((n * g.c + first + c) * g.h + iy) * g.w + ix];
        }
      }
    }
    dweight[e] = sum;
  }
}

}  // namespace

template <class T> void naive_conv2d_forward(const Cuda& ctx, const Conv2dShape& g, const T* x,
                                             const T* weight, const T* b, T* y, bool relu) {
  launch_1d(ctx, "conv2d_forward", int64_t{g.n} * g.o * g.oh * g.ow, naive_forward<T>, g, x, weight,
            b, relu, y);
}
template <class T> void naive_conv2d_backward_data(const Cuda& ctx, const Conv2dShape& g,
                                                   const T* dy, const T* weight, T* dx) {
  launch_1d(ctx, "conv2d_backward_data", int64_t{g.n} * g.c * g.h * g.w, naive_backward_data<T>, g,
            dy, weight, dx);
}
template <class T> void naive_conv2d_backward_weights(const Cuda& ctx, const Conv2dShape& g,
                                                      const T* x, const T* dy, T* dweight) {
  launch_1d(ctx, "conv2d_backward_weights", int64_t{g.o} * (g.c / g.groups) * g.kh * g.kw,
            naive_backward_weights<T>, g, x, dy, dweight);
}

SINTER_INSTANTIATE_CONV(naive, float)
SINTER_INSTANTIATE_CONV(naive, double)

}  // namespace sinter::cuda
