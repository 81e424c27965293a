// Element-wise operators and copies: bound by memory, so 16 bytes an access where the layout
// allows.
#include <cstdint>

#include "kernels_cuda/elementwise.cuh"
#include "kernels_cuda/loop.cuh"
#include "kernels_cuda/relu.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "sinter/operators/elementwise.h"
#include "sinter/runtime.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- kernels ------------------------------------------------------------------------------------

template <class T> struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];
};

template <class T> __global__ void fill_kernel(int64_t n, T value, T* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>()) y[i] = value;
}

template <class From, class To> __global__ void cast_kernel(int64_t n, const From* x, To* y) {
  for (int64_t i = thread_index<int64_t>(); i < n; i += thread_count<int64_t>())
    y[i] = static_cast<To>(x[i]);
}

// y = f(a, b), the first `packs` packs 16 bytes at a time. y may be a or b: an element is read only
// by the thread that writes it, before it writes.
template <class T, class F>
__global__ void map_kernel(int64_t n, int64_t packs, F f, const T* a, const T* b, T* y) {
  const int64_t first = thread_index<int64_t>(), step = thread_count<int64_t>();
  for (int64_t i = first; i < packs; i += step) {
    const Pack<T> pa = reinterpret_cast<const Pack<T>*>(a)[i];
    const Pack<T> pb = reinterpret_cast<const Pack<T>*>(b)[i];
    Pack<T> py;
#pragma unroll
    for (int q = 0; q < Pack<T>::kSize; ++q) py.v[q] = f(pa.v[q], pb.v[q]);
    reinterpret_cast<Pack<T>*>(y)[i] = py;
  }
  for (int64_t i = packs * Pack<T>::kSize + first; i < n; i += step) y[i] = f(a[i], b[i]);
}

template <class T, class Index>
__global__ void strided_copy_kernel(Index n, Loop<1> loop, const T* x, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    int64_t at[1];
    loop.offsets(i, at);
    y[i] = x[at[0]];
  }
}

template <class T, class Index, class F>
__global__ void broadcast_kernel(Index n, Loop<2> loop, F f, const T* a, const T* b, T* y) {
  for (Index i = thread_index<Index>(); i < n; i += thread_count<Index>()) {
    int64_t at[2];
    loop.offsets(i, at);
    y[i] = f(a[at[0]], b[at[1]]);
  }
}

struct Add {
  template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Sub {
  template <class T> __device__ T operator()(T a, T b) const { return a - b; }
};
struct Mul {
  template <class T> __device__ T operator()(T a, T b) const { return a * b; }
};
struct Div {
  template <class T> __device__ T operator()(T a, T b) const { return a / b; }
};
template <class T> struct Scale {
  T alpha;
  __device__ T operator()(T x, T) const { return alpha * x; }
};
struct Relu {
  template <class T> __device__ T operator()(T x, T) const { return relu_of(x); }
};
struct AddRelu {
  template <class T> __device__ T operator()(T a, T b) const { return relu_of(a + b); }
};
struct ReluGradient {
  template <class T> __device__ T operator()(T y, T dy) const { return y <= T(0) ? T(0) : dy; }
};

// ---- launchers ----------------------------------------------------------------------------------

// A function of one operand gets it as both; the second load is the same address and goes away.
template <class T, class F>
void map(LaunchSite site, const char* name, int64_t n, F f, const T* a, const T* b, T* y) {
  if (n == 0) return;
  const auto bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) |
                    reinterpret_cast<uintptr_t>(y);
  const int64_t packs = bits % sizeof(Pack<T>) == 0 ? n / Pack<T>::kSize : 0;
  const int64_t items = packs > 0 ? packs : n;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(items, kThreads), 1 << 16));
  launch(site, {name, n}, blocks, kThreads, 0, map_kernel<T, F>, n, packs, f, a, b, y);
}

template <class T, class F> void broadcast(const Cuda& ctx, const char* name, const Loop<2>& loop,
                                           F f, const T* a, const T* b, T* y) {
  if (loop.contiguous(0) && loop.contiguous(1)) {
    map(ctx, name, loop.count, f, a, b, y);
    return;
  }
  with_index(loop.count, [&](auto zero) {
    using Index = decltype(zero);
    launch_1d(ctx, name, loop.count, broadcast_kernel<T, Index, F>, loop, f, a, b, y);
  });
}

}  // namespace

template <class T> void accumulate(LaunchSite site, int64_t n, const T* x, T* y) {
  map(site, "accumulate", n, Add{}, static_cast<const T*>(y), x, y);
}
template void accumulate(LaunchSite, int64_t, const float*, float*);
template void accumulate(LaunchSite, int64_t, const double*, double*);

}  // namespace cuda

void run(const Cuda& ctx, const Fill& o) {
  with_any(o.y.dtype, [&]<class T>() {
    cuda::launch_1d(ctx, "fill", o.y.numel(), cuda::fill_kernel<T>, static_cast<T>(o.value),
                    o.y.data<T>());
  });
}

void run(const Cuda& ctx, const Cast& o) {
  with_any(o.x.dtype, [&]<class From>() {
    with_any(o.y.dtype, [&]<class To>() {
      cuda::launch_1d(ctx, "cast", o.x.numel(), cuda::cast_kernel<From, To>, o.x.data<From>(),
                      o.y.data<To>());
    });
  });
}

void run(const Cuda& ctx, const Copy& o) {
  copy_on_device(ctx, o.y.address, o.x.address, static_cast<size_t>(o.y.bytes()));
}

void run(const Cuda& ctx, const StridedCopy& o) {
  const cuda::Loop<1> loop = cuda::loop_over(o.g);
  with_any(o.x.dtype, [&]<class T>() {
    cuda::with_index(loop.count, [&]<class Index>(Index) {
      cuda::launch_1d(ctx, "strided_copy", loop.count, cuda::strided_copy_kernel<T, Index>, loop,
                      o.x.data<T>(), o.y.data<T>());
    });
  });
}

void run(const Cuda& ctx, const Binary& o) {
  const cuda::Loop<2> loop = cuda::loop_over(o.g);
  with_floating(o.y, [&]<class T>() {
    const T *a = o.a.data<T>(), *b = o.b.data<T>();
    T* y = o.y.data<T>();
    switch (o.kind) {
      case BinaryOp::kAdd:
        return cuda::broadcast(ctx, "add", loop, cuda::Add{}, a, b, y);
      case BinaryOp::kSub:
        return cuda::broadcast(ctx, "sub", loop, cuda::Sub{}, a, b, y);
      case BinaryOp::kMul:
        return cuda::broadcast(ctx, "mul", loop, cuda::Mul{}, a, b, y);
      case BinaryOp::kDiv:
        return cuda::broadcast(ctx, "div", loop, cuda::Div{}, a, b, y);
    }
  });
}

void run(const Cuda& ctx, const Scale& o) {
  with_floating(o.x, [&]<class T>() {
    const T* x = o.x.data<T>();
    cuda::map(ctx, "scale", o.x.numel(), cuda::Scale<T>{static_cast<T>(o.alpha)}, x, x,
              o.y.data<T>());
  });
}

void run(const Cuda& ctx, const Accumulate& o) {
  with_floating(
      o.x, [&]<class T>() { cuda::accumulate(ctx, o.x.numel(), o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cuda& ctx, const ReluForward& o) {
  with_floating(o.x, [&]<class T>() {
    const T* x = o.x.data<T>();
    cuda::map(ctx, "relu_forward", o.x.numel(), cuda::Relu{}, x, x, o.y.data<T>());
  });
}

void run(const Cuda& ctx, const AddRelu& o) {
  with_floating(o.y, [&]<class T>() {
    cuda::map(ctx, "add_relu", o.y.numel(), cuda::AddRelu{}, o.a.data<T>(), o.b.data<T>(),
              o.y.data<T>());
  });
}

void run(const Cuda& ctx, const ReluBackward& o) {
  with_floating(o.y, [&]<class T>() {
    cuda::map(ctx, "relu_backward", o.y.numel(), cuda::ReluGradient{}, o.y.data<T>(),
              o.dy.data<T>(), o.dx.data<T>());
  });
}

}  // namespace sinter
