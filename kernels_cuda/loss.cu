// Cross-entropy and the count of correct predictions.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels_cuda/reduce.cuh"
#include "kernels_cuda/runtime/launch.cuh"
#include "kernels_cuda/runtime/scratch.cuh"
#include "kernels_cuda/runtime/stream.cuh"
#include "kernels_cuda/softmax.cuh"
#include "sinter/operators/loss.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

// ---- kernels ------------------------------------------------------------------------------------

// What a block knows of its rows.
struct RowsLoss {
  double loss;        // sum over its rows
  int64_t bad_label;  // the first row whose label is out of range, or kNone
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
};

__device__ inline bool valid_label(int64_t label, int64_t classes) {
  return 0 <= label && label < classes;
}

// The loss and its gradient in one launch: each block leaves the loss of its rows, and the
// last one to finish adds them in block order.
template <int kGroup, class T> __global__ void __launch_bounds__(kThreads)
    cross_entropy_rows(CrossEntropyShape g, const T* logits, const int64_t* labels, T* loss,
                       T* dlogits, RowsLoss* of_block, StreamResources stream) {
  const int lane = Rows<kGroup>::lane();
  const T at_label = static_cast<T>(1 - g.label_smoothing);
  const T anywhere = static_cast<T>(g.label_smoothing / static_cast<double>(g.classes));
  const T factor = static_cast<T>(g.mean ? 1.0 / static_cast<double>(g.n) : 1.0);
  double block_loss = 0;
  int64_t bad_label = RowsLoss::kNone;
  for (int64_t r = Rows<kGroup>::first(); r < g.n; r += Rows<kGroup>::step()) {
    const T* xr = logits + r * g.classes;
    const int64_t label = labels[r];
    const Normalizer<T> z = normalizer<kGroup>(xr, g.classes, lane);
    T sum = 0;
    for (int64_t k = lane; k < g.classes; k += kGroup) {
      const T log_p = xr[k] - z.max - z.log_sum;
      if (dlogits) {
        const T q = k == label ? at_label + anywhere : anywhere;
        dlogits[r * g.classes + k] = factor * (exp(log_p) - q);
      }
      // Terms without weight are left out: 0 * -infinity would be NaN.
      if (anywhere > T(0)) sum += anywhere * log_p;
      if (k == label) sum += at_label * log_p;
    }
    sum = group_reduce<kGroup>(sum, Sum{});
    if (lane == 0) block_loss -= static_cast<double>(sum);
    if (!valid_label(label, g.classes)) {
      block_loss = std::numeric_limits<double>::quiet_NaN();
      bad_label = Min{}(bad_label, r);
    }
  }
  block_loss = group_reduce<kThreads>(block_loss, Sum{});
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x == 0) of_block[blockIdx.x] = {block_loss, bad_label};
  if (!last_block(stream.ticket, gridDim.x)) return;

  double total = 0;
  bad_label = RowsLoss::kNone;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) {
    total += __ldcg(&of_block[b].loss);  // from L2, where the other blocks' writes are
    bad_label = Min{}(
        bad_label,
        static_cast<int64_t>(__ldcg(reinterpret_cast<const long long*>(&of_block[b].bad_label))));
  }
  total = group_reduce<kThreads>(total, Sum{});
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x != 0) return;
  *loss = static_cast<T>(g.mean ? total / static_cast<double>(g.n) : total);
  if (bad_label != RowsLoss::kNone)
    record_fault(stream.fault, FaultCode::kCrossEntropyLabel, bad_label, labels[bad_label],
                 g.classes);
}

// A small batch of few classes, as in a small network's step: a thread a row, one block, so that
// nothing is waited for but the logits.
constexpr int kFewClasses = 16;
constexpr int64_t kFewRows = 4 * kThreads;

template <class T> __global__ void __launch_bounds__(kThreads)
    cross_entropy_few(CrossEntropyShape g, const T* logits, const int64_t* labels, T* loss,
                      T* dlogits, StreamResources stream) {
  wait_for_earlier();
  const int classes = static_cast<int>(g.classes);
  const T at_label = static_cast<T>(1 - g.label_smoothing);
  const T anywhere = static_cast<T>(g.label_smoothing / static_cast<double>(g.classes));
  const T factor = static_cast<T>(g.mean ? 1.0 / static_cast<double>(g.n) : 1.0);
  double total = 0;
  int64_t bad_label = RowsLoss::kNone;
  for (int64_t r = threadIdx.x; r < g.n; r += kThreads) {
    const int64_t label = labels[r];
    T x[kFewClasses], max = -std::numeric_limits<T>::infinity(), sum = 0, row_loss = 0;
#pragma unroll
    for (int k = 0; k < kFewClasses; ++k)
      if (k < classes) x[k] = logits[r * classes + k];
#pragma unroll
    for (int k = 0; k < kFewClasses; ++k)
      if (k < classes) max = Max{}(max, x[k]);
#pragma unroll
    for (int k = 0; k < kFewClasses; ++k)
      if (k < classes) sum += exp(x[k] - max);
    const T log_sum = log(sum);
#pragma unroll
    for (int k = 0; k < kFewClasses; ++k) {
      if (k >= classes) continue;
      const T log_p = x[k] - max - log_sum;
      const T q = k == label ? at_label + anywhere : anywhere;
      if (q > T(0)) row_loss += q * log_p;  // 0 * -infinity would be NaN
      if (dlogits) dlogits[r * classes + k] = factor * (exp(log_p) - q);
    }
    total -= static_cast<double>(row_loss);
    if (!valid_label(label, g.classes)) {
      total = std::numeric_limits<double>::quiet_NaN();
      bad_label = Min{}(bad_label, r);
    }
  }
  total = group_reduce<kThreads>(total, Sum{});
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x != 0) return;
  *loss = static_cast<T>(g.mean ? total / static_cast<double>(g.n) : total);
  if (bad_label != RowsLoss::kNone)
    record_fault(stream.fault, FaultCode::kCrossEntropyLabel, bad_label, labels[bad_label],
                 g.classes);
}

// A value and where it stands; the first maximum wins, a NaN over every number.
template <class T> struct Candidate {
  T value;
  int64_t index;
};
template <class T> __device__ bool beats(const Candidate<T>& a, const Candidate<T>& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

// A warp a row, whatever its length: counting is not worth a second variant.
template <class T> __global__ void __launch_bounds__(kThreads)
    count_correct_kernel(int64_t n, int64_t classes, const T* logits, const int64_t* labels,
                         unsigned long long* correct) {
  const int lane = Rows<32>::lane();
  int hits = 0;
  for (int64_t r = Rows<32>::first(); r < n; r += Rows<32>::step()) {
    Candidate<T> best{-std::numeric_limits<T>::infinity(), std::numeric_limits<int64_t>::max()};
    for (int64_t k = lane; k < classes; k += 32) {
      const Candidate<T> other{logits[r * classes + k], k};
      if (beats(other, best)) best = other;
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      const Candidate<T> other{__shfl_xor_sync(0xffffffffu, best.value, offset),
                               static_cast<int64_t>(__shfl_xor_sync(
                                   0xffffffffu, static_cast<long long>(best.index), offset))};
      if (beats(other, best)) best = other;
    }
    hits += lane == 0 && best.index == labels[r];
  }
  hits = group_reduce<kThreads>(hits, Sum{});
  if (threadIdx.x == 0 && hits > 0) atomicAdd(correct, static_cast<unsigned long long>(hits));
}

// ---- launchers ----------------------------------------------------------------------------------

template <int kGroup, class T>
void launch_cross_entropy(const Cuda& ctx, const CrossEntropyShape& g, const T* logits,
                          const int64_t* labels, T* loss, T* dlogits) {
  const unsigned blocks = row_blocks<kGroup>(g.n);
  const Scratch<RowsLoss> of_block(ctx, blocks);
  launch(ctx, {"cross_entropy", g.n, g.classes}, blocks, kThreads, 0, cross_entropy_rows<kGroup, T>,
         g, logits, labels, loss, dlogits, of_block.data(), stream_resources(ctx));
}

template <class T> void cross_entropy(const Cuda& ctx, const CrossEntropyShape& g, const T* logits,
                                      const int64_t* labels, T* loss, T* dlogits) {
  if (g.classes <= kFewClasses && g.n <= kFewRows)
    launch_early(ctx, {"cross_entropy", g.n, g.classes}, 1, kThreads, 0, {}, cross_entropy_few<T>,
                 g, logits, labels, loss, dlogits, stream_resources(ctx));
  else if (g.classes > kLongRow)
    launch_cross_entropy<kThreads>(ctx, g, logits, labels, loss, dlogits);
  else
    launch_cross_entropy<32>(ctx, g, logits, labels, loss, dlogits);
}

template <class T> void count_correct(const Cuda& ctx, int64_t n, int64_t classes, const T* logits,
                                      const int64_t* labels, int64_t* correct) {
  if (n == 0) return;
  launch(ctx, {"count_correct", n, classes}, row_blocks<32>(n), kThreads, 0,
         count_correct_kernel<T>, n, classes, logits, labels,
         reinterpret_cast<unsigned long long*>(correct));
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const CrossEntropy& o) {
  with_floating(o.logits, [&]<class T>() {
    cuda::cross_entropy(ctx, o.g, o.logits.data<T>(), o.labels.data<int64_t>(), o.loss.data<T>(),
                        o.dlogits.data<T>());
  });
}

void run(const Cuda& ctx, const CountCorrect& o) {
  with_floating(o.logits, [&]<class T>() {
    cuda::count_correct(ctx, o.logits.shape[0], o.logits.shape[1], o.logits.data<T>(),
                        o.labels.data<int64_t>(), o.correct.data<int64_t>());
  });
}

}  // namespace sinter
