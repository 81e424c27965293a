// Optimizer steps over all parameters in one call.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/optim.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include "kernels_cpu/runtime/parallel.h"
#include "sinter/operators/optim.h"

#ifndef SINTER_KERNELS_CPU_OPTIM_ONCE
#define SINTER_KERNELS_CPU_OPTIM_ONCE
namespace sinter {
using namespace op;
namespace {

template <class T> struct AdamSlot {
  int64_t n;
  T* p;        // parameter
  const T* g;  // gradient
  T* m;        // first moment
  T* v;        // second moment
  int64_t* step;
};

// AdamConfig and the step count boiled down to what an element needs.
template <class T> struct AdamFactors {
  T beta1, one_minus_beta1, beta2, one_minus_beta2;
  T step_size;   // lr / (1 - beta1^t)
  T correction;  // 1 / sqrt(1 - beta2^t)
  T eps, decay, l2;
};

template <class T> constexpr T kSmallestNormal = std::numeric_limits<T>::min();

// Starts to make a cache line this core's own, which a store to it would have to wait for.
inline void prefetch_to_write(const void* p) {
#if defined(__x86_64__)
  // GCC turns __builtin_prefetch(p, 1) into this only where it is told that the processor has it;
  // those of 64 bits that do not have it skip it.
  asm volatile("prefetchw %0" ::"m"(*static_cast<const char*>(p)));
#else
  __builtin_prefetch(p, 1);
#endif
}

}  // namespace
}  // namespace sinter
#endif

HWY_BEFORE_NAMESPACE();
namespace sinter {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// x, or 0 where it is below the smallest normal number. A NaN stays.
template <class D, class V> HWY_ATTR V without_subnormals(D d, V x) {
  return hn::IfThenZeroElse(hn::Lt(hn::Abs(x), hn::Set(d, kSmallestNormal<hn::TFromD<D>>)), x);
}

// In vectors by hand: the compiler leaves a loop with a square root scalar, for the sake of errno.
template <class T> HWY_ATTR void adam_range(const AdamFactors<T>& c, const AdamSlot<T>& s,
                                            int64_t begin, int64_t end) {
  const auto update = [&](auto d, int64_t i) HWY_ATTR {
    const auto p = hn::LoadU(d, s.p + i);
    const auto g = hn::MulAdd(hn::Set(d, c.l2), p, hn::LoadU(d, s.g + i));
    const auto m = without_subnormals(d, hn::MulAdd(hn::Set(d, c.beta1), hn::LoadU(d, s.m + i),
                                                    hn::Mul(hn::Set(d, c.one_minus_beta1), g)));
    const auto v =
        without_subnormals(d, hn::MulAdd(hn::Set(d, c.beta2), hn::LoadU(d, s.v + i),
                                         hn::Mul(hn::Set(d, c.one_minus_beta2), hn::Mul(g, g))));
    const auto scale = hn::MulAdd(hn::Sqrt(v), hn::Set(d, c.correction), hn::Set(d, c.eps));
    const auto step = hn::Mul(hn::Set(d, c.step_size), hn::Div(m, scale));
    hn::StoreU(m, d, s.m + i);
    hn::StoreU(v, d, s.v + i);
    hn::StoreU(hn::MulSub(hn::Set(d, c.decay), p, step), d, s.p + i);
  };
  const hn::ScalableTag<T> vector;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(vector));
  // Every core has read the parameters, and each line of them has to be called back from all: some
  // at once, where the stores alone would do it one after the other.
  constexpr int64_t kAhead = 16 * 64 / sizeof(T);
  for (int64_t i = begin; i < std::min(end, begin + kAhead); i += lanes) prefetch_to_write(s.p + i);
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    prefetch_to_write(s.p + std::min(i + kAhead, end - 1));
    update(vector, i);
  }
  for (; i < end; ++i) update(hn::CappedTag<T, 1>(), i);
}

void AdamFloat(const AdamFactors<float>& c, const AdamSlot<float>& s, int64_t begin, int64_t end) {
  adam_range(c, s, begin, end);
}
void AdamDouble(const AdamFactors<double>& c, const AdamSlot<double>& s, int64_t begin,
                int64_t end) {
  adam_range(c, s, begin, end);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(AdamFloat);
HWY_EXPORT(AdamDouble);

void adam_range(const AdamFactors<float>& c, const AdamSlot<float>& s, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(AdamFloat)(c, s, begin, end);
}
void adam_range(const AdamFactors<double>& c, const AdamSlot<double>& s, int64_t begin,
                int64_t end) {
  HWY_DYNAMIC_DISPATCH(AdamDouble)(c, s, begin, end);
}

template <class T> struct SgdSlot {
  int64_t n;
  T* p;        // parameter
  const T* g;  // gradient
  T* m;        // momentum buffer; null without momentum
  int64_t* step;
};

// Elements of a chunk: fewer than for lighter work, since an element of Adam costs a root and a
// division.
constexpr int64_t kChunk = 2048;

// Calls f(slot, begin, end) for ranges that cover every slot. The slots count as one long array,
// cut evenly: a thread gets the same share of them as of the gradients' elements, many of which it
// has computed itself.
template <class Slot, class F> void each_range(std::span<const Slot> slots, const F& f) {
  std::vector<int64_t> first{0};
  for (const Slot& s : slots) first.push_back(first.back() + s.n);
  parallel_ranges(first.back(), kChunk, [&](int64_t begin, int64_t end) {
    auto next = std::upper_bound(first.begin(), first.end(), begin);
    for (; begin < end; ++next) {
      const int64_t of_slot = *(next - 1), stop = std::min(end, *next);
      if (begin == stop) continue;  // an empty slot
      f(slots[static_cast<size_t>(next - first.begin() - 1)], begin - of_slot, stop - of_slot);
      begin = stop;
    }
  });
}

template <class T>
void adam_step(const AdamConfig& c, std::span<const AdamSlot<T>> slots, const double* lr) {
  // Nearly always all slots are at one step: its powers are made once.
  std::map<int64_t, AdamFactors<T>> factors;
  for (const AdamSlot<T>& s : slots) {
    const auto [entry, is_new] = factors.try_emplace(*s.step);
    if (!is_new) continue;
    const double t = static_cast<double>(*s.step + 1);
    AdamFactors<T>& f = entry->second;
    f.beta1 = static_cast<T>(c.beta1);
    f.beta2 = static_cast<T>(c.beta2);
    f.one_minus_beta1 = static_cast<T>(1 - c.beta1);
    f.one_minus_beta2 = static_cast<T>(1 - c.beta2);
    f.step_size = static_cast<T>(*lr / (1 - std::pow(c.beta1, t)));
    f.correction = static_cast<T>(1 / std::sqrt(1 - std::pow(c.beta2, t)));
    f.eps = static_cast<T>(c.eps);
    f.decay = static_cast<T>(c.decoupled ? 1 - *lr * c.weight_decay : 1);
    f.l2 = static_cast<T>(c.decoupled ? 0 : c.weight_decay);
  }
  each_range(slots, [&](const AdamSlot<T>& s, int64_t begin, int64_t end) {
    adam_range(factors.find(*s.step)->second, s, begin, end);
  });
  for (const AdamSlot<T>& s : slots) ++*s.step;
}

template <class T>
void sgd_step(const SgdConfig& c, std::span<const SgdSlot<T>> slots, const double* lr) {
  const T rate = static_cast<T>(*lr), decay = static_cast<T>(c.weight_decay);
  const T momentum = static_cast<T>(c.momentum), fresh = static_cast<T>(1 - c.dampening);
  each_range(slots, [&](const SgdSlot<T>& s, int64_t begin, int64_t end) {
    const bool first = *s.step == 0;
    for (int64_t i = begin; i < end; ++i) {
      T grad = s.g[i] + decay * s.p[i];
      if (s.m != nullptr) {
        const T m = first ? grad : momentum * s.m[i] + fresh * grad;
        s.m[i] = std::abs(m) < kSmallestNormal<T> ? T(0) : m;
        grad = c.nesterov ? grad + momentum * s.m[i] : s.m[i];
      }
      s.p[i] -= rate * grad;
    }
  });
  for (const SgdSlot<T>& s : slots) ++*s.step;
}

}  // namespace

void run(const Cpu&, const AdamStep& o) {
  if (o.p.empty()) return;
  with_floating(o.p[0], [&]<class T>() {
    std::vector<AdamSlot<T>> slots;
    slots.reserve(o.p.size());
    for (size_t i = 0; i < o.p.size(); ++i) {
      slots.push_back({o.p[i].numel(), o.p[i].data<T>(), o.g[i].data<T>(), o.m[i].data<T>(),
                       o.v[i].data<T>(), o.steps.data<int64_t>() + o.place[i]});
    }
    adam_step<T>(o.c, slots, o.lr.data<double>());
  });
}

void run(const Cpu&, const SgdStep& o) {
  if (o.p.empty()) return;
  with_floating(o.p[0], [&]<class T>() {
    std::vector<SgdSlot<T>> slots;
    slots.reserve(o.p.size());
    for (size_t i = 0; i < o.p.size(); ++i) {
      slots.push_back({o.p[i].numel(), o.p[i].data<T>(), o.g[i].data<T>(),
                       o.m.empty() ? nullptr : o.m[i].data<T>(),
                       o.steps.data<int64_t>() + o.place[i]});
    }
    sgd_step<T>(o.c, slots, o.lr.data<double>());
  });
}

}  // namespace sinter
#endif  // HWY_ONCE
