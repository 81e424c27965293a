// Element-wise kernels and data movement: plain loops that the compiler vectorizes.
#include "sinter/operators/elementwise.h"

#include <algorithm>
#include <cstring>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/strided.h"

namespace sinter {
using namespace op;
namespace {

// f over ranges of [0, n), in parallel where it pays.
template <class F> void elements(int64_t n, const F& f) { parallel_ranges(n, kGrain, f); }

template <class T, class F>
void binary_runs(const Broadcast& g, const T* a, const T* b, T* y, const F& op) {
  const auto loops = make_loops<2>(g.rank, g.shape, {g.stride_a, g.stride_b});
  const int64_t sa = loops.inner_stride(0), sb = loops.inner_stride(1);
  elements(loops.size(), [&](int64_t begin, int64_t end) {
    loops.runs(begin, end, [&](int64_t at, const auto& offset, int64_t count) {
      const T *p = a + offset[0], *q = b + offset[1];
      T* out = y + at;
      // The strides that broadcasting makes most often, spelled out so that they vectorize.
      if (sa == 1 && sb == 1) {
        for (int64_t i = 0; i < count; ++i) out[i] = op(p[i], q[i]);
      } else if (sa == 1 && sb == 0) {
        for (int64_t i = 0; i < count; ++i) out[i] = op(p[i], *q);
      } else if (sa == 0 && sb == 1) {
        for (int64_t i = 0; i < count; ++i) out[i] = op(*p, q[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) out[i] = op(p[i * sa], q[i * sb]);
      }
    });
  });
}

template <class From, class To> void cast(int64_t n, const From* x, To* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = static_cast<To>(x[i]);
  });
}

template <class T> void strided_copy(const Strided& g, const T* x, T* y) {
  const auto loops = make_loops<1>(g.rank, g.shape, {g.stride});
  const int64_t stride = loops.inner_stride(0);
  elements(loops.size(), [&](int64_t begin, int64_t end) {
    loops.runs(begin, end, [&](int64_t at, const auto& offset, int64_t count) {
      const T* from = x + offset[0];
      if (stride == 1) {
        std::copy_n(from, count, y + at);
      } else if (stride == 0) {
        std::fill_n(y + at, count, *from);
      } else {
        for (int64_t i = 0; i < count; ++i) y[at + i] = from[i * stride];
      }
    });
  });
}

template <class T> void binary(BinaryOp kind, const Broadcast& g, const T* a, const T* b, T* y) {
  switch (kind) {
    case BinaryOp::kAdd:
      return binary_runs(g, a, b, y, [](T p, T q) { return p + q; });
    case BinaryOp::kSub:
      return binary_runs(g, a, b, y, [](T p, T q) { return p - q; });
    case BinaryOp::kMul:
      return binary_runs(g, a, b, y, [](T p, T q) { return p * q; });
    case BinaryOp::kDiv:
      return binary_runs(g, a, b, y, [](T p, T q) { return p / q; });
  }
}

template <class T> void scale(int64_t n, T alpha, const T* x, T* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = alpha * x[i];
  });
}

template <class T> void accumulate(int64_t n, const T* x, T* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
}

template <class T> void relu_forward(int64_t n, const T* x, T* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    // Not (x <= 0), rather than x > 0, so that a NaN passes.
    for (int64_t i = begin; i < end; ++i) y[i] = !(x[i] <= 0) ? x[i] : T(0);
  });
}

template <class T> void add_relu(int64_t n, const T* a, const T* b, T* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T sum = a[i] + b[i];
      y[i] = !(sum <= 0) ? sum : T(0);
    }
  });
}

template <class T> void relu_backward(int64_t n, const T* y, const T* dy, T* dx) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T d = dy[i];  // read always, so that the choice below is no branch
      dx[i] = y[i] <= 0 ? T(0) : d;
    }
  });
}

}  // namespace

void run(const Cpu&, const Fill& o) {
  with_any(o.y.dtype, [&]<class T>() {
    T* y = o.y.data<T>();
    const T value = static_cast<T>(o.value);
    elements(o.y.numel(),
             [&](int64_t begin, int64_t end) { std::fill(y + begin, y + end, value); });
  });
}

void run(const Cpu&, const Cast& o) {
  with_any(o.x.dtype, [&]<class From>() {
    with_any(o.y.dtype, [&]<class To>() { cast(o.x.numel(), o.x.data<From>(), o.y.data<To>()); });
  });
}

void run(const Cpu&, const Copy& o) {
  std::memmove(o.y.address, o.x.address, static_cast<size_t>(o.x.bytes()));
}

void run(const Cpu&, const StridedCopy& o) {
  with_any(o.x.dtype, [&]<class T>() { strided_copy(o.g, o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const Binary& o) {
  with_floating(
      o.y, [&]<class T>() { binary(o.kind, o.g, o.a.data<T>(), o.b.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const Scale& o) {
  with_floating(o.x, [&]<class T>() {
    scale(o.x.numel(), static_cast<T>(o.alpha), o.x.data<T>(), o.y.data<T>());
  });
}

void run(const Cpu&, const Accumulate& o) {
  with_floating(o.x, [&]<class T>() { accumulate(o.x.numel(), o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const ReluForward& o) {
  with_floating(o.x, [&]<class T>() { relu_forward(o.x.numel(), o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const AddRelu& o) {
  with_floating(
      o.y, [&]<class T>() { add_relu(o.y.numel(), o.a.data<T>(), o.b.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const ReluBackward& o) {
  with_floating(o.y, [&]<class T>() {
    relu_backward(o.y.numel(), o.y.data<T>(), o.dy.data<T>(), o.dx.data<T>());
  });
}

}  // namespace sinter
