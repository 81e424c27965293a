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

// What a block knows of its positions.
struct PartialLoss {
  double loss;        // sum over its positions
  int64_t bad_label;  // the first position whose label is out of range, or kNone
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
};

__device__ inline bool valid_label(int64_t label, int64_t classes) {
  return 0 <= label && label < classes;
}

// Over the kGroup threads that share a position.
template <int kGroup, class T, class Op> __device__ T over_group(T value, Op op) {
  if constexpr (kGroup == 1)
    return value;
  else
    return group_reduce<kGroup>(value, op);
}

// What a label weighs in the divisor of the mean; a label out of range makes the loss NaN anyway.
template <class T>
__device__ double weight_of(const CrossEntropyShape& g, int64_t label, const T* weight) {
  if (label == g.ignore_index) return 0;
  return weight && valid_label(label, g.classes) ? static_cast<double>(weight[label]) : 1;
}

// The sum of q_k over the classes, 1 without weights; see CrossEntropy.
template <class T> struct Shares {
  T at_label, anywhere, of_all_weights = 0;
  const T* weight;

  __device__ Shares(const CrossEntropyShape& g, const T* weight)
      : at_label(static_cast<T>(1 - g.label_smoothing)),
        anywhere(static_cast<T>(g.label_smoothing / static_cast<double>(g.classes))),
        weight(weight) {
    // Every thread in the same order. Classes are few beside positions.
    for (int64_t k = 0; weight && anywhere > T(0) && k < g.classes; ++k)
      of_all_weights += weight[k];
  }
  __device__ T q(int64_t k, int64_t label) const {
    if (!weight) return k == label ? at_label + anywhere : anywhere;
    return k == label ? at_label * weight[k] + anywhere * weight[k] : anywhere * weight[k];
  }
  __device__ T of_all(int64_t label) const {
    return weight ? at_label * weight[label] + anywhere * of_all_weights : T(1);
  }
};

// The divisor of the mean, from all labels. Its blocks' sums are added in block order.
template <class T> __global__ void __launch_bounds__(kThreads)
    label_weights(CrossEntropyShape g, const int64_t* labels, const T* weight, double* of_block,
                  double* total, StreamResources stream) {
  double sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < g.n * g.inner;
       p += step)
    sum += weight_of(g, labels[p], weight);
  sum = group_reduce<kThreads>(sum, Sum{});
  if (threadIdx.x == 0) of_block[blockIdx.x] = sum;
  if (!last_block(stream.ticket, gridDim.x)) return;
  sum = 0;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) sum += __ldcg(&of_block[b]);
  sum = group_reduce<kThreads>(sum, Sum{});
  if (threadIdx.x == 0) *total = sum;
}

// The loss and its gradient in one launch: kGroup threads share a position, each block leaves the
// loss of its positions, and the last one to finish adds them in block order. divisor: null unless
// of the mean. kGroup 1 is for images: neighbouring threads have neighbouring positions.
template <int kGroup, class T> __global__ void __launch_bounds__(kThreads)
    cross_entropy_rows(CrossEntropyShape g, const T* logits, const int64_t* labels, const T* weight,
                       const double* divisor, T* loss, T* dlogits, PartialLoss* of_block,
                       StreamResources stream) {
  const int lane = Rows<kGroup>::lane();
  const Shares<T> shares(g, weight);
  const T factor = divisor ? static_cast<T>(1.0 / *divisor) : T(1);
  double block_loss = 0;
  int64_t bad_label = PartialLoss::kNone;
  for (int64_t r = Rows<kGroup>::first(); r < g.n * g.inner; r += Rows<kGroup>::step()) {
    const int64_t first = r / g.inner * g.classes * g.inner + r % g.inner, label = labels[r];
    if (label == g.ignore_index || !valid_label(label, g.classes)) {
      const T nothing = label == g.ignore_index ? T(0) : std::numeric_limits<T>::quiet_NaN();
      for (int64_t k = lane; dlogits && k < g.classes; k += kGroup)
        dlogits[first + k * g.inner] = nothing;
      if (lane == 0 && g.reduction == Reduction::kNone) loss[r] = nothing;
      if (label != g.ignore_index) {
        block_loss = std::numeric_limits<double>::quiet_NaN();
        bad_label = Min{}(bad_label, r);
      }
      continue;
    }
    const auto x = [&](int64_t k) { return logits[first + k * g.inner]; };
    T max = -std::numeric_limits<T>::infinity();
    for (int64_t k = lane; k < g.classes; k += kGroup) max = Max{}(max, x(k));
    max = over_group<kGroup>(max, Max{});
    const T powers = sum_of<T>(lane, g.classes, kGroup, [&](int64_t k) { return exp(x(k) - max); });
    const T log_sum = log(over_group<kGroup>(powers, Sum{})), of_all = shares.of_all(label);
    T sum = 0;
    for (int64_t k = lane; k < g.classes; k += kGroup) {
      const T log_p = x(k) - max - log_sum, q = shares.q(k, label);
      if (dlogits) dlogits[first + k * g.inner] = factor * (of_all * exp(log_p) - q);
      // Terms without weight are left out: 0 * -infinity would be NaN.
      if (shares.anywhere > T(0) || k == label) sum += q * log_p;
    }
    sum = over_group<kGroup>(sum, Sum{});
    if (lane == 0) {
      block_loss -= static_cast<double>(sum);
      if (g.reduction == Reduction::kNone) loss[r] = -sum;
    }
  }
  block_loss = group_reduce<kThreads>(block_loss, Sum{});
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x == 0) of_block[blockIdx.x] = {block_loss, bad_label};
  if (!last_block(stream.ticket, gridDim.x)) return;

  double total = 0;
  bad_label = PartialLoss::kNone;
  for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) {
    total += __ldcg(&of_block[b].loss);  // from L2, where the other blocks' writes are
    bad_label = Min{}(
        bad_label,
        static_cast<int64_t>(__ldcg(reinterpret_cast<const long long*>(&of_block[b].bad_label))));
  }
  total = group_reduce<kThreads>(total, Sum{});
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x != 0) return;
  if (g.reduction != Reduction::kNone) *loss = static_cast<T>(divisor ? total / *divisor : total);
  if (bad_label != PartialLoss::kNone)
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
  int counted = 0;  // labels that are not ignored
  for (int64_t first = 0; first < g.n; first += kThreads) {
    const int64_t r = first + threadIdx.x;
    counted += __syncthreads_count(r < g.n && labels[r] != g.ignore_index);
  }
  const bool mean = g.reduction == Reduction::kMean;
  const T factor = static_cast<T>(mean ? 1.0 / static_cast<double>(counted) : 1.0);
  double total = 0;
  int64_t bad_label = PartialLoss::kNone;
  for (int64_t r = threadIdx.x; r < g.n; r += kThreads) {
    const int64_t label = labels[r];
    const bool counts = label != g.ignore_index;
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
      if (dlogits) dlogits[r * classes + k] = counts ? factor * (exp(log_p) - q) : T(0);
    }
    if (counts) total -= static_cast<double>(row_loss);
    if (counts && !valid_label(label, g.classes)) {
      total = std::numeric_limits<double>::quiet_NaN();
      bad_label = Min{}(bad_label, r);
    }
  }
  total = group_reduce<kThreads>(total, Sum{});
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x != 0) return;
  *loss = static_cast<T>(mean ? total / static_cast<double>(counted) : total);
  if (bad_label != PartialLoss::kNone)
    record_fault(stream.fault, FaultCode::kCrossEntropyLabel, bad_label, labels[bad_label],
                 g.classes);
}

template <class T> __global__ void __launch_bounds__(kThreads)
    nll_loss_kernel(NllLossShape g, const T* log_p, const int64_t* labels, const T* weight, T* loss,
                    T* of_label, int64_t* of_block, StreamResources stream) {
  int64_t bad_label = PartialLoss::kNone;
  for (int64_t p = Rows<1>::first(); p < g.n * g.inner; p += Rows<1>::step()) {
    const int64_t label = labels[p], first = p / g.inner * g.classes * g.inner + p % g.inner;
    const bool counts = label != g.ignore_index, valid = valid_label(label, g.classes);
    const T w = !counts || !valid ? T(0) : weight ? weight[label] : T(1);
    T term = counts && valid ? -w * log_p[first + label * g.inner] : T(0);
    if (counts && !valid) {
      term = std::numeric_limits<T>::quiet_NaN();
      bad_label = Min{}(bad_label, p);
    }
    loss[p] = term;
    of_label[p] = w;
  }
  bad_label = group_reduce<kThreads>(bad_label, Min{});
  if (threadIdx.x == 0) of_block[blockIdx.x] = bad_label;
  if (!last_block(stream.ticket, gridDim.x) || threadIdx.x != 0) return;
  for (unsigned b = 0; b < gridDim.x; ++b)
    bad_label = Min{}(
        bad_label, static_cast<int64_t>(__ldcg(reinterpret_cast<const long long*>(&of_block[b]))));
  if (bad_label != PartialLoss::kNone)
    record_fault(stream.fault, FaultCode::kNllLossLabel, bad_label, labels[bad_label], g.classes);
}

template <class T> __global__ void __launch_bounds__(kThreads)
    nll_loss_backward_kernel(int64_t count, NllLossShape g, const T* dloss, const int64_t* labels,
                             const T* weight, T* dlog_p) {
  const int64_t plane = g.classes * g.inner;
  for (int64_t i = thread_index<int64_t>(); i < count; i += thread_count<int64_t>()) {
    const int64_t k = i / g.inner % g.classes, p = i / plane * g.inner + i % g.inner;
    const int64_t label = labels[p];
    const bool chosen = k == label && label != g.ignore_index;
    dlog_p[i] = chosen ? -(weight ? weight[k] : T(1)) * dloss[p] : T(0);
  }
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
                          const int64_t* labels, const T* weight, T* loss, T* dlogits) {
  const int64_t positions = g.n * g.inner;
  const StreamResources stream = stream_resources(ctx);
  const bool mean = g.reduction == Reduction::kMean;
  const unsigned counting = row_blocks<1>(positions);
  const Scratch<double> divisor(ctx, mean ? counting + 1 : 0);
  if (mean)
    launch(ctx, {"label_weights", positions}, counting, kThreads, 0, label_weights<T>, g, labels,
           weight, divisor.data() + 1, divisor.data(), stream);
  const unsigned blocks = row_blocks<kGroup>(positions);
  const Scratch<PartialLoss> of_block(ctx, blocks);
  launch(ctx, {"cross_entropy", positions, g.classes}, blocks, kThreads, 0,
         cross_entropy_rows<kGroup, T>, g, logits, labels, weight,
         mean ? static_cast<const double*>(divisor.data()) : nullptr, loss, dlogits,
         of_block.data(), stream);
}

template <class T> void cross_entropy(const Cuda& ctx, const CrossEntropyShape& g, const T* logits,
                                      const int64_t* labels, const T* weight, T* loss, T* dlogits) {
  const bool few = g.inner == 1 && g.classes <= kFewClasses && g.n <= kFewRows && !weight &&
                   g.reduction != Reduction::kNone;
  if (few)
    launch_early(ctx, {"cross_entropy", g.n, g.classes}, 1, kThreads, 0, {}, cross_entropy_few<T>,
                 g, logits, labels, loss, dlogits, stream_resources(ctx));
  else if (g.inner > 1)
    launch_cross_entropy<1>(ctx, g, logits, labels, weight, loss, dlogits);
  else if (g.classes > kLongRow)
    launch_cross_entropy<kThreads>(ctx, g, logits, labels, weight, loss, dlogits);
  else
    launch_cross_entropy<32>(ctx, g, logits, labels, weight, loss, dlogits);
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
    cuda::cross_entropy(ctx, o.g, o.logits.data<T>(), o.labels.data<int64_t>(), o.weight.data<T>(),
                        o.loss.data<T>(), o.dlogits.data<T>());
  });
}

void run(const Cuda& ctx, const NllLossForward& o) {
  with_floating(o.log_p, [&]<class T>() {
    const int64_t positions = o.g.n * o.g.inner;
    if (positions == 0) return;
    const unsigned blocks = cuda::row_blocks<1>(positions);
    const cuda::Scratch<int64_t> of_block(ctx, blocks);
    cuda::launch(ctx, {o.name, positions, o.g.classes}, blocks, cuda::kThreads, 0,
                 cuda::nll_loss_kernel<T>, o.g, o.log_p.data<T>(), o.labels.data<int64_t>(),
                 o.weight.data<T>(), o.loss.data<T>(), o.of_label.data<T>(), of_block.data(),
                 cuda::stream_resources(ctx));
  });
}

void run(const Cuda& ctx, const NllLossBackward& o) {
  with_floating(o.dloss, [&]<class T>() {
    cuda::launch_1d(ctx, o.name, o.g.n * o.g.classes * o.g.inner, cuda::nll_loss_backward_kernel<T>,
                    o.g, o.dloss.data<T>(), o.labels.data<int64_t>(), o.weight.data<T>(),
                    o.dlog_p.data<T>());
  });
}

void run(const Cuda& ctx, const CountCorrect& o) {
  with_floating(o.logits, [&]<class T>() {
    cuda::count_correct(ctx, o.logits.shape[0], o.logits.shape[1], o.logits.data<T>(),
                        o.labels.data<int64_t>(), o.correct.data<int64_t>());
  });
}

}  // namespace sinter
