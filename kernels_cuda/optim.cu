// Optimizer steps over all parameters at once: a step of a small network would otherwise be a
// launch, some 4 us, for each of its tensors.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "launch.cuh"
#include "reduce.cuh"
#include "sinter/kernels.h"
#include "stream.cuh"

namespace sinter {
namespace cuda {
namespace {

// Kernel parameters hold 4 KB: the slots of a launch travel in them, so that nothing is uploaded. A
// model with more tensors takes several launches.
constexpr int kMaxSlots = 64;

template <class Slot> struct SlotTable {
  int count = 0;
  int64_t chunk = 0;    // elements a block updates
  bool finish = false;  // the last launch of this step: it increments the step count
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

// Every block reads *step before it draws its ticket, so the last one may increment it.
template <class Slot>
__device__ void finish_step(const SlotTable<Slot>& table, unsigned* ticket, int64_t* step) {
  if (table.finish && last_block(ticket, gridDim.x) && threadIdx.x == 0) ++*step;
}

// ---- kernels ------------------------------------------------------------------------------------

// The constants in T, the bias corrections per block in double from the device's step count.
template <class T> struct AdamConstants { T beta1, beta2, one_minus_beta1, one_minus_beta2, eps; };

template <class T> __global__ void __launch_bounds__(kThreads)
    adam_kernel(const SlotTable<AdamSlot<T>> table, AdamConfig c, AdamConstants<T> k,
                const double* lr, int64_t* step, unsigned* ticket) {
  __shared__ double correction[2];
  const double rate = *lr;
  const auto t = static_cast<double>(*step + 1);
  // Two warps, so that the two slow powers run side by side.
  if (threadIdx.x == 0) correction[0] = 1.0 - pow(c.beta1, t);
  if (threadIdx.x == 32) correction[1] = 1.0 - pow(c.beta2, t);
  __syncthreads();
  const T step_size = static_cast<T>(rate / correction[0]);
  const T root = static_cast<T>(sqrt(correction[1]));
  const T decay = static_cast<T>(c.weight_decay),
          shrink = static_cast<T>(1.0 - rate * c.weight_decay);

  if (table.count > 0) {
    const int s = table.find(blockIdx.x);
    const AdamSlot<T>& slot = table.slot[s];
    const int64_t begin = (blockIdx.x - table.first_block[s]) * table.chunk;
    const int64_t end = min(begin + table.chunk, slot.n);
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      T p = slot.p[i], g = slot.g[i];
      if (c.decoupled)
        p *= shrink;
      else
        g += decay * p;
      const T m = k.beta1 * slot.m[i] + k.one_minus_beta1 * g;
      const T v = k.beta2 * slot.v[i] + k.one_minus_beta2 * g * g;
      slot.m[i] = m;
      slot.v[i] = v;
      slot.p[i] = p - step_size * m / (sqrt(v) / root + k.eps);
    }
  }
  finish_step(table, ticket, step);
}

template <class T> struct SgdConstants { T momentum, one_minus_dampening, decay; };

template <class T> __global__ void __launch_bounds__(kThreads)
    sgd_kernel(const SlotTable<SgdSlot<T>> table, SgdConfig c, SgdConstants<T> k, const double* lr,
               int64_t* step, unsigned* ticket) {
  const T rate = static_cast<T>(*lr);
  const bool first = *step == 0;
  if (table.count > 0) {
    const int s = table.find(blockIdx.x);
    const SgdSlot<T>& slot = table.slot[s];
    const int64_t begin = (blockIdx.x - table.first_block[s]) * table.chunk;
    const int64_t end = min(begin + table.chunk, slot.n);
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const T p = slot.p[i];
      T g = slot.g[i] + k.decay * p;
      if (slot.m) {
        const T m = first ? g : k.momentum * slot.m[i] + k.one_minus_dampening * g;
        slot.m[i] = m;
        g = c.nesterov ? g + k.momentum * m : m;
      }
      slot.p[i] = p - rate * g;
    }
  }
  finish_step(table, ticket, step);
}

// ---- launchers ----------------------------------------------------------------------------------

// Calls run(table, blocks) for the slots in groups of kMaxSlots; once, with an empty table, if
// there are none, for the step count.
template <class Slot, class Run> void for_tables(std::span<const Slot> slots, const Run& run) {
  int64_t total = 0;
  for (const Slot& slot : slots) total += slot.n;
  // Four elements a thread keep every SM busy in a small model; beyond some 4096 blocks larger
  // chunks spare the repeated powers.
  const int64_t chunk = std::max<int64_t>(4, ceil_div(total, int64_t{4096} * kThreads)) * kThreads;
  size_t next = 0;
  do {
    SlotTable<Slot> table;
    table.chunk = chunk;
    while (next < slots.size() && table.count < kMaxSlots) {
      const Slot& slot = slots[next++];
      table.slot[table.count] = slot;
      table.first_block[table.count + 1] = table.first_block[table.count] + ceil_div(slot.n, chunk);
      ++table.count;
    }
    table.finish = next == slots.size();
    int64_t blocks = table.first_block[table.count];
    if (blocks == 0) table.count = 0;
    if (blocks > 0 || table.finish) run(table, static_cast<unsigned>(std::max<int64_t>(blocks, 1)));
  } while (next < slots.size());
}

}  // namespace
}  // namespace cuda

template <class T> void adam_step(const Cuda& ctx, const AdamConfig& c,
                                  std::span<const AdamSlot<T>> slots, const double* lr,
                                  int64_t* step) {
  using namespace cuda;
  const AdamConstants<T> k{static_cast<T>(c.beta1), static_cast<T>(c.beta2),
                           static_cast<T>(1 - c.beta1), static_cast<T>(1 - c.beta2),
                           static_cast<T>(c.eps)};
  for_tables(slots, [&](const SlotTable<AdamSlot<T>>& table, unsigned blocks) {
    launch(ctx, {"adam_step", table.count, blocks}, blocks, kThreads, 0, adam_kernel<T>, table, c,
           k, lr, step, stream_resources(ctx).ticket);
  });
}

template <class T> void sgd_step(const Cuda& ctx, const SgdConfig& c,
                                 std::span<const SgdSlot<T>> slots, const double* lr,
                                 int64_t* step) {
  using namespace cuda;
  const SgdConstants<T> k{static_cast<T>(c.momentum), static_cast<T>(1 - c.dampening),
                          static_cast<T>(c.weight_decay)};
  for_tables(slots, [&](const SlotTable<SgdSlot<T>>& table, unsigned blocks) {
    launch(ctx, {"sgd_step", table.count, blocks}, blocks, kThreads, 0, sgd_kernel<T>, table, c, k,
           lr, step, stream_resources(ctx).ticket);
  });
}

#define SINTER_INSTANTIATE(T)                                                              \
  template void adam_step<T>(const Cuda&, const AdamConfig&, std::span<const AdamSlot<T>>, \
                             const double*, int64_t*);                                     \
  template void sgd_step<T>(const Cuda&, const SgdConfig&, std::span<const SgdSlot<T>>,    \
                            const double*, int64_t*);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
