// Losses of two tensors, element by element: a pass over both forward, and one backward.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/pointwise_loss.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>

#include "core/backend/pointwise_loss.h"
#include "kernels_cpu/runtime/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace HWY_NAMESPACE {
namespace {

// Plain loops: here they are compiled, and vectorized, for each instruction set.
constexpr int64_t kBlock = 256;  // terms added in T before their sum goes to one in double
constexpr int kWays = 16;

template <class T, class Loss>
double loss_sum(const Loss& loss, const T* x, const T* t, int64_t begin, int64_t end) {
  double total = 0;
  for (int64_t i = begin; i < end;) {
    const int64_t stop = std::min(end, i + kBlock);
    T way[kWays] = {};
    for (; i + kWays <= stop; i += kWays)
      for (int k = 0; k < kWays; ++k) way[k] += loss.value(x[i + k], t[i + k]);
    for (int k = 0; i < stop; ++i, ++k) way[k] += loss.value(x[i], t[i]);
    for (int half = kWays / 2; half > 0; half /= 2)
      for (int k = 0; k < half; ++k) way[k] += way[k + half];
    total += static_cast<double>(way[0]);
  }
  return total;
}

template <class T> void forward(const PointwiseLossForward& o) {
  const int64_t n = o.x.numel();
  const T *x = o.x.data<T>(), *t = o.t.data<T>();
  T* y = o.loss.data<T>();
  pointwise::with_loss<T>(o.kind, o.beta, [&](const auto& loss) HWY_ATTR {
    if (o.reduction == Reduction::kNone) {
      parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) HWY_ATTR {
        for (int64_t i = begin; i < end; ++i) y[i] = loss.value(x[i], t[i]);
      });
      return;
    }
    const int64_t chunks = (n + kGrain - 1) / kGrain;
    const Scratch<double> partial(chunks);
    parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) HWY_ATTR {
      partial.get()[begin / kGrain] = loss_sum(loss, x, t, begin, end);
    });
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += partial.get()[i];
    *y = static_cast<T>(o.reduction == Reduction::kMean ? total / static_cast<double>(n) : total);
  });
}

template <class T> void backward(const PointwiseLossBackward& o) {
  const int64_t n = o.x.numel();
  const T *x = o.x.data<T>(), *t = o.t.data<T>(), *dy = o.dloss.data<T>();
  T *dx = o.dx.data<T>(), *dt = o.dt.data<T>();
  const bool each = o.reduction == Reduction::kNone;
  const T share =
      o.reduction == Reduction::kMean ? static_cast<T>(1.0 / static_cast<double>(n)) : T(1);
  pointwise::with_loss<T>(o.kind, o.beta, [&](const auto& loss) HWY_ATTR {
    parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) HWY_ATTR {
      if (each) {
        for (int64_t i = begin; dx && i < end; ++i) dx[i] = dy[i] * loss.dx(x[i], t[i]);
        for (int64_t i = begin; dt && i < end; ++i) dt[i] = dy[i] * loss.dt(x[i], t[i]);
      } else {
        const T d = *dy * share;
        for (int64_t i = begin; dx && i < end; ++i) dx[i] = d * loss.dx(x[i], t[i]);
        for (int64_t i = begin; dt && i < end; ++i) dt[i] = d * loss.dt(x[i], t[i]);
      }
    });
  });
}

void Forward(const PointwiseLossForward& o) {
  with_floating(o.x, [&]<class T>() { forward<T>(o); });
}
void Backward(const PointwiseLossBackward& o) {
  with_floating(o.x, [&]<class T>() { backward<T>(o); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(Forward);
HWY_EXPORT(Backward);

}  // namespace

void run(const Cpu&, const PointwiseLossForward& o) { HWY_DYNAMIC_DISPATCH(Forward)(o); }
void run(const Cpu&, const PointwiseLossBackward& o) { HWY_DYNAMIC_DISPATCH(Backward)(o); }

}  // namespace sinter
#endif  // HWY_ONCE
