// Convolution as it is defined, an output element at a time: slow, and short enough to check the
// other algorithms by, on paper too.
#include "kernels_cpu/conv2d/conv2d_algorithms.h"
#include "kernels_cpu/runtime/parallel.h"

namespace sinter {
using namespace op;
namespace {

// Where an element's indices stand in row-major memory.
int64_t at(int64_t a, int64_t b, int64_t b_size, int64_t c, int64_t c_size, int64_t d,
           int64_t d_size) {
  return ((a * b_size + b) * c_size + c) * d_size + d;
}

}  // namespace

// y[n, o, oy, ox] = b[o] + sum over c, i, j of x[n, c, iy, ix] weight[o, c, i, j]
//   with iy = oy stride_h - pad_h + i dil_h, and likewise ix; or the ReLU of it.
template <class T> void naive_conv2d_forward(const Conv2dShape& g, const T* x, const T* weight,
                                             const T* b, T* y, bool relu) {
  const int channels = g.c / g.groups;
  parallel_for(int64_t{g.n} * g.o * g.oh, [&](int64_t row) {
    const int64_t oy = row % g.oh, o = row / g.oh % g.o, n = row / g.oh / g.o;
    const int64_t first = o / (g.o / g.groups) * channels;  // channel of the group
    for (int64_t ox = 0; ox < g.ow; ++ox) {
      T sum = 0;
      for (int c = 0; c < channels; ++c) {
        for (int i = 0; i < g.kh; ++i) {
          for (int j = 0; j < g.kw; ++j) {
            const int64_t iy = oy * g.stride_h - g.pad_h + i * g.dil_h;
            const int64_t ix = ox * g.stride_w - g.pad_w + j * g.dil_w;
            if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
            sum += x[at(n, first + c, g.c, iy, g.h, ix, g.w)] *
                   weight[at(o, c, channels, i, g.kh, j, g.kw)];
          }
        }
      }
      sum += b != nullptr ? b[o] : T(0);
      y[row * g.ow + ox] = relu && sum <= 0 ? T(0) : sum;  // a NaN passes
    }
  });
}

// dx[n, c, iy, ix] = sum over o of c's group, i, j of dy[n, o, oy, ox] weight[o, c, i, j], for the
// oy and ox that read iy and ix through (i, j), if there are such.
template <class T>
void naive_conv2d_backward_data(const Conv2dShape& g, const T* dy, const T* weight, T* dx) {
  const int channels = g.c / g.groups, outputs = g.o / g.groups;
  parallel_for(int64_t{g.n} * g.c * g.h, [&](int64_t row) {
    const int64_t iy = row % g.h, c = row / g.h % g.c, n = row / g.h / g.c;
    const int64_t first = c / channels * outputs;
    for (int64_t ix = 0; ix < g.w; ++ix) {
      T sum = 0;
      for (int64_t o = first; o < first + outputs; ++o) {
        for (int i = 0; i < g.kh; ++i) {
          for (int j = 0; j < g.kw; ++j) {
            const int64_t y = iy + g.pad_h - i * g.dil_h, x = ix + g.pad_w - j * g.dil_w;
            if (y < 0 || y % g.stride_h != 0 || x < 0 || x % g.stride_w != 0) continue;
            const int64_t oy = y / g.stride_h, ox = x / g.stride_w;
            if (oy >= g.oh || ox >= g.ow) continue;
            sum += dy[at(n, o, g.o, oy, g.oh, ox, g.ow)] *
                   weight[at(o, c % channels, channels, i, g.kh, j, g.kw)];
          }
        }
      }
      dx[row * g.w + ix] = sum;
    }
  });
}

// dweight[o, c, i, j] = sum over n, oy, ox of dy[n, o, oy, ox] x[n, c, iy, ix].
template <class T>
void naive_conv2d_backward_weights(const Conv2dShape& g, const T* x, const T* dy, T* dweight) {
  const int channels = g.c / g.groups;
  parallel_for(int64_t{g.o} * channels * g.kh * g.kw, [&](int64_t e) {
    const int64_t j = e % g.kw, i = e / g.kw % g.kh, c = e / g.kw / g.kh % channels;
    const int64_t o = e / g.kw / g.kh / channels;
    const int64_t first = o / (g.o / g.groups) * channels;
    T sum = 0;
    for (int64_t n = 0; n < g.n; ++n) {
      for (int64_t oy = 0; oy < g.oh; ++oy) {
        for (int64_t ox = 0; ox < g.ow; ++ox) {
          const int64_t iy = oy * g.stride_h - g.pad_h + i * g.dil_h;
          const int64_t ix = ox * g.stride_w - g.pad_w + j * g.dil_w;
          if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
          sum += dy[at(n, o, g.o, oy, g.oh, ox, g.ow)] * x[at(n, first + c, g.c, iy, g.h, ix, g.w)];
        }
      }
    }
    dweight[e] = sum;
  });
}

#define SINTER_INSTANTIATE(T)                                                                     \
  template void naive_conv2d_forward(const Conv2dShape&, const T*, const T*, const T*, T*, bool); \
  template void naive_conv2d_backward_data(const Conv2dShape&, const T*, const T*, T*);           \
  template void naive_conv2d_backward_weights(const Conv2dShape&, const T*, const T*, T*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
