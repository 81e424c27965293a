// Optimizer steps over all parameters at once: a step of a small network would otherwise be a
// launch, some 4 us, for each of its tensors.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/stream.cuh"
#include "sinter/operators/optim.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter {
using namespace op;

namespace cuda {
namespace {

template <class T> struct AdamSlot {
  int64_t n;
  T* p;        // parameter
  const T* g;  // gradient: with slices > 1, the sum of as many, g_stride apart
  T* m;        // first moment
  T* v;        // second moment
  int64_t* step;
  int64_t slices = 1, g_stride = 0;
};
template <class T> struct SgdSlot {
  int64_t n;
  T* p;        // parameter
  const T* g;  // gradient
  T* m;        // momentum buffer; null without momentum
  int64_t* step;
};

// The slots of a launch travel in its kernel's parameters, so that nothing is uploaded; as many as
// these hold. A model with more tensors takes several launches.
constexpr int kMaxSlots = 53;
constexpr int kAhead = 2;  // elements of each array that a thread loads at a time
// A gradient that is a sum over slices: a block takes 32 elements, a warp some of the slices.
constexpr int kSlicedChunk = 32, kSliceWarps = kThreads / 32;

template <class T> SINTER_HD int64_t chunk_of(const AdamSlot<T>& slot, int64_t chunk) {
  return slot.slices > 1 ? kSlicedChunk : chunk;
}
template <class T> SINTER_HD int64_t chunk_of(const SgdSlot<T>&, int64_t chunk) { return chunk; }

template <class Slot> struct SlotTable {
  int count = 0;
  int64_t chunk = 0;     // elements a block updates (chunk_of)
  bool settled = false;  // all but the gradients may be read before the wait
  // The slots' step counts: steps[i] for the bits i of `counted`. In one place, so that a warp can
  // read them together; the slots of a launch are chosen for that.
  int64_t* steps = nullptr;
  uint64_t counted = 0;
  int64_t first_block[kMaxSlots + 1] = {};
  Slot slot[kMaxSlots] = {};

  // The slot that block `b` works on: first_block[s] <= b < first_block[s + 1]. Empty slots own no
  // block.
  __host__ __device__ int find(int64_t b) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first_block[middle] <= b)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
};

// The step counts of all slots, read by a warp of every block while there is time; the last block
// to be through with its own writes them back.
struct StepCounts {
  int64_t before[2] = {};

  template <class Slot> __device__ void read(const SlotTable<Slot>& table) {
    each(table, [&](int i, const int64_t* step) {
      before[i] = *static_cast<const volatile int64_t*>(step);
    });
  }
  // Behind a barrier, before which the block read the count of its own slot.
  template <class Slot> __device__ void finish(const SlotTable<Slot>& table, unsigned* ticket) {
    const bool first_lane = threadIdx.x % 32 == 0;
    unsigned earlier = 0;
    if (first_lane) earlier = atomicAdd(ticket, 1u);
    if (__shfl_sync(~0u, earlier, 0) != gridDim.x - 1) return;
    if (first_lane) *ticket = 0;
    each(table, [&](int i, int64_t* step) { *step = before[i] + 1; });
  }

 private:
  template <class Slot, class F>
  __device__ static void each(const SlotTable<Slot>& table, const F& f) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int bit = threadIdx.x % 32 + 32 * i;
      if (table.counted >> bit & 1) f(i, table.steps + bit);
    }
  }
};

// base^t by squaring: pow takes several times as long as the rest of the kernel.
__device__ inline double power(double base, int64_t t) {
  double result = 1;
  for (; t > 0; t /= 2, base *= base)
    if (t % 2 == 1) result *= base;
  return result;
}

// x, or 0 where it is below the smallest normal number. A NaN stays.
__device__ inline float without_subnormals(float x) { return fabsf(x) < FLT_MIN ? 0.f : x; }
__device__ inline double without_subnormals(double x) { return fabs(x) < DBL_MIN ? 0. : x; }

// ---- kernels ------------------------------------------------------------------------------------

// The constants in T, the bias corrections per block in double from the device's step count.
template <class T> struct AdamConstants { T beta1, beta2, one_minus_beta1, one_minus_beta2, eps; };

// Of this step: the learning rate over the first moment's correction, the root of the second's, and
// what decoupled decay leaves of a parameter.
template <class T> struct AdamRates { T step_size, root, shrink; };

template <class T> struct AdamElement {
  T p, g, m, v;

  __device__ void load(const AdamSlot<T>& slot, int64_t i) {
    p = slot.p[i];
    m = slot.m[i];
    v = slot.v[i];
  }
  __device__ void update(const AdamConfig& c, const AdamConstants<T>& k, const AdamRates<T>& rates,
                         const AdamSlot<T>& slot, int64_t i) {
    if (c.decoupled)
      p *= rates.shrink;
    else
      g += static_cast<T>(c.weight_decay) * p;
    m = without_subnormals(k.beta1 * m + k.one_minus_beta1 * g);
    v = without_subnormals(k.beta2 * v + k.one_minus_beta2 * g * g);
    slot.m[i] = m;
    slot.v[i] = v;
    slot.p[i] = p - rates.step_size * m / (sqrt(v) / rates.root + k.eps);
  }
};

template <class T> __global__ void __launch_bounds__(kThreads)
    adam_kernel(const SlotTable<AdamSlot<T>> table, AdamConfig c, AdamConstants<T> k,
                const double* lr, unsigned* ticket) {
  __shared__ AdamRates<T> rates;
  __shared__ T sums[kSliceWarps][kSlicedChunk];
  const bool early = table.settled;
  if (!early) wait_for_earlier();
  const int s = table.find(blockIdx.x);
  const AdamSlot<T>& slot = table.slot[s];
  const bool counts = threadIdx.x / 32 == 2;  // the warp that is to count
  StepCounts steps;
  if (counts) steps.read(table);
  // Two warps, so that the slow parts run side by side. Nearly always all slots are at one step:
  // its powers are begun before the block's own count is there.
  const auto own_power = [&](double base) {
    const int64_t likely = *table.slot[0].step, step = *slot.step;
    const double result = power(base, likely + 1);
    return step == likely ? result : power(base, step + 1);
  };
  if (threadIdx.x == 0) {
    const double rate = *lr;
    rates.step_size = static_cast<T>(rate / (1.0 - own_power(c.beta1)));
    rates.shrink = static_cast<T>(1.0 - rate * c.weight_decay);
  } else if (threadIdx.x == 32) {
    rates.root = static_cast<T>(sqrt(1.0 - own_power(c.beta2)));
  }
  const int64_t chunk = chunk_of(slot, table.chunk);
  const int64_t begin = (blockIdx.x - table.first_block[s]) * chunk;
  const int64_t end = min(begin + chunk, slot.n);
  if (begin >= end) {  // empty slots only, and one block to count for them
    if (early) wait_for_earlier();
    if (counts) steps.finish(table, ticket);
    return;
  }

  // Everything is on its way before any of it is used, and before the step's constants are there.
  // Behind the barrier the other warp has read the step count too.
  if (slot.slices > 1) {
    const int lane = threadIdx.x % kSlicedChunk, warp = threadIdx.x / kSlicedChunk;
    const int64_t i = begin + lane;
    AdamElement<T> element{};
    T sum = 0;
    if (warp == 0 && i < end) element.load(slot, i);
    if (early) wait_for_earlier();
    if (i < end) {
#pragma unroll 8
      for (int64_t slice = warp; slice < slot.slices; slice += kSliceWarps)
        sum += slot.g[slice * slot.g_stride + i];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (counts) steps.finish(table, ticket);
    if (warp != 0 || i >= end) return;
    for (int w = 0; w < kSliceWarps; ++w) element.g += sums[w][lane];
    element.update(c, k, rates, slot, i);
    return;
  }
  for (int64_t first = begin + threadIdx.x; first - threadIdx.x < end; first += kAhead * kThreads) {
    AdamElement<T> element[kAhead];
    const bool is_first = first - threadIdx.x == begin;
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const int64_t i = first + q * kThreads;
      if (i < end) element[q].load(slot, i);
    }
    if (is_first && early) wait_for_earlier();
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const int64_t i = first + q * kThreads;
      if (i < end) element[q].g = slot.g[i];
    }
    if (is_first) {
      __syncthreads();
      if (counts) steps.finish(table, ticket);
    }
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      const int64_t i = first + q * kThreads;
      if (i < end) element[q].update(c, k, rates, slot, i);
    }
  }
}

template <class T> struct SgdConstants { T momentum, one_minus_dampening, decay; };

template <class T> __global__ void __launch_bounds__(kThreads)
    sgd_kernel(const SlotTable<SgdSlot<T>> table, SgdConfig c, SgdConstants<T> k, const double* lr,
               unsigned* ticket) {
  __shared__ bool first;
  const int s = table.find(blockIdx.x);
  const SgdSlot<T>& slot = table.slot[s];
  if (threadIdx.x == 0) first = *slot.step == 0;
  StepCounts steps;
  if (threadIdx.x < 32) steps.read(table);
  const T rate = static_cast<T>(*lr);
  const int64_t begin = (blockIdx.x - table.first_block[s]) * table.chunk;
  const int64_t end = min(begin + table.chunk, slot.n);
  __syncthreads();
  if (threadIdx.x < 32) steps.finish(table, ticket);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const T p = slot.p[i];
    T g = slot.g[i] + k.decay * p;
    if (slot.m) {
      const T m =
          without_subnormals(first ? g : k.momentum * slot.m[i] + k.one_minus_dampening * g);
      slot.m[i] = m;
      g = c.nesterov ? g + k.momentum * m : m;
    }
    slot.p[i] = p - rate * g;
  }
}

// ---- launchers ----------------------------------------------------------------------------------

// Calls run(table, blocks) for the slots in groups of at most kMaxSlots.
template <class Slot, class Run> void for_tables(const std::vector<Slot>& slots, const Run& run) {
  int64_t total = 0;
  for (const Slot& slot : slots) total += slot.n;
  // Two elements a thread keep every SM busy in a small model; beyond some 4096 blocks larger
  // chunks spare the repeated powers.
  const int64_t chunk =
      std::max<int64_t>(kAhead, ceil_div(total, int64_t{4096} * kThreads)) * kThreads;
  for (size_t next = 0; next < slots.size();) {
    SlotTable<Slot> table;
    table.chunk = chunk;
    table.steps = slots[next].step;
    while (next < slots.size() && table.count < kMaxSlots) {
      const Slot& slot = slots[next];
      const int64_t place = slot.step - table.steps;
      if (place < 0 || place >= 64) break;
      table.counted |= uint64_t{1} << place;
      ++next;
      table.slot[table.count] = slot;
      table.first_block[table.count + 1] =
          table.first_block[table.count] + ceil_div(slot.n, chunk_of(slot, chunk));
      ++table.count;
    }
    // A table of empty slots still has steps to count.
    run(table, static_cast<unsigned>(std::max<int64_t>(table.first_block[table.count], 1)));
  }
}

template <class T> void adam_step(const Cuda& ctx, const AdamStep& o) {
  std::vector<AdamSlot<T>> slots;
  for (size_t i = 0; i < o.p.size(); ++i) {
    AdamSlot<T> slot{o.p[i].numel(),   o.p[i].data<T>(), o.g[i].data<T>(),
                     o.m[i].data<T>(), o.v[i].data<T>(), o.steps.data<int64_t>() + o.place[i]};
    if (!o.first.empty() && o.first[i] >= 0) {
      slot.g += o.first[i];
      slot.slices = o.g[i].shape[0];
      slot.g_stride = o.g[i].shape[1];
    }
    slots.push_back(slot);
  }
  const AdamConfig& c = o.c;
  const AdamConstants<T> k{static_cast<T>(c.beta1), static_cast<T>(c.beta2),
                           static_cast<T>(1 - c.beta1), static_cast<T>(1 - c.beta2),
                           static_cast<T>(c.eps)};
  const auto* lr = o.lr.data<double>();
  for_tables(slots, [&](SlotTable<AdamSlot<T>>& table, unsigned blocks) {
    table.settled = settled(lr);
    for (int s = 0; s < table.count; ++s) {
      const AdamSlot<T>& slot = table.slot[s];
      for (const void* p : {static_cast<const void*>(slot.p), static_cast<const void*>(slot.m),
                            static_cast<const void*>(slot.v), static_cast<const void*>(slot.step)})
        table.settled = table.settled && settled(p);
    }
    launch_early(ctx, {"adam_step", table.count, blocks}, blocks, kThreads, 0, {}, adam_kernel<T>,
                 table, c, k, lr, stream_resources(ctx).ticket);
  });
}

template <class T> void sgd_step(const Cuda& ctx, const SgdStep& o) {
  std::vector<SgdSlot<T>> slots;
  for (size_t i = 0; i < o.p.size(); ++i)
    slots.push_back({o.p[i].numel(), o.p[i].data<T>(), o.g[i].data<T>(),
                     o.m.empty() ? nullptr : o.m[i].data<T>(),
                     o.steps.data<int64_t>() + o.place[i]});
  const SgdConfig& c = o.c;
  const SgdConstants<T> k{static_cast<T>(c.momentum), static_cast<T>(1 - c.dampening),
                          static_cast<T>(c.weight_decay)};
  for_tables(slots, [&](const SlotTable<SgdSlot<T>>& table, unsigned blocks) {
    launch(ctx, {"sgd_step", table.count, blocks}, blocks, kThreads, 0, sgd_kernel<T>, table, c, k,
           o.lr.data<double>(), stream_resources(ctx).ticket);
  });
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const AdamStep& o) {
  if (o.p.empty()) return;
  with_floating(o.p[0], [&]<class T>() { cuda::adam_step<T>(ctx, o); });
}

void run(const Cuda& ctx, const SgdStep& o) {
  if (o.p.empty()) return;
  with_floating(o.p[0], [&]<class T>() { cuda::sgd_step<T>(ctx, o); });
}

}  // namespace sinter
