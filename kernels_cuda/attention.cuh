// What the kernels of attention share: their parameters, and what is between scores and weights.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "sinter/operators/attention.h"

namespace sinter::cuda {

// An operator's addresses; null for those that it has not. Gradients are those of y, weights and
// scores (ds), of which an operator has some.
template <class T> struct Attention {
  op::AttentionShape g;
  const T *q, *k, *v;
  const bool* mask_seen;
  const T* mask_added;
  const int64_t* draw;
  const T *log_sum, *delta, *dy;
  T *dq, *dk, *dv, *ds, *y, *new_log_sum;
};
template <class T, class Op> Attention<T> attention_of(const Op& o) {
  Attention<T> a{};
  a.g = o.g;
  a.q = o.q.template data<T>();
  a.k = o.k.template data<T>();
  a.v = o.v.template data<T>();
  if (o.mask.dtype == kBool)
    a.mask_seen = o.mask.template data<bool>();
  else
    a.mask_added = o.mask.template data<T>();
  a.draw = o.draw.template data<int64_t>();
  if constexpr (requires { o.y; }) {
    a.y = o.y.template data<T>();
    a.new_log_sum = o.log_sum.template data<T>();
  } else {
    a.log_sum = o.log_sum.template data<T>();
    a.delta = o.delta.template data<T>();
    a.dy = o.dy.template data<T>();
  }
  if constexpr (requires { o.dq; }) {
    a.dq = o.dq.template data<T>();
    a.ds = o.ds.template data<T>();
  }
  if constexpr (requires { o.dk; }) {
    a.dk = o.dk.template data<T>();
    a.dv = o.dv.template data<T>();
  }
  return a;
}

// Powers are of 2: scores are scaled by log2(e) too.
template <class T> inline constexpr T kLog2E = static_cast<T>(1.4426950408889634);
template <class T> inline constexpr T kLn2 = static_cast<T>(0.69314718055994531);

// One head of q, and where its mask begins.
struct AttentionHead {
  int64_t head, mask;
};

// The score of query i and key j with what the mask adds; -infinity for a pair that is left out, or
// is not there.
template <class T> __device__ T masked_score(const Attention<T>& a, const AttentionHead& h,
                                             int64_t i, int64_t j, T score) {
  constexpr T kOut = -std::numeric_limits<T>::infinity();
  if (i >= a.g.l || j >= a.g.s || (a.g.causal && j > i)) return kOut;
  const int64_t at = h.mask + i * a.g.mask_query + j * a.g.mask_key;
  if (a.mask_seen != nullptr) return a.mask_seen[at] ? score : kOut;
  return a.mask_added != nullptr ? score + a.mask_added[at] * kLog2E<T> : score;
}

// What dropout multiplies the weight of i and j by.
template <class T>
__device__ T dropout_factor(const Attention<T>& a, int64_t head, int64_t i, int64_t j) {
  const int64_t item = (head * a.g.l + i) * a.g.s + j;
  const Philox4 bits = draw_bits(a.draw[0], a.draw[1], item / 4);
  const int word = static_cast<int>(item % 4);  // chosen like this the words stay in registers
  const uint32_t drawn =
      word < 2 ? (word == 0 ? bits.v[0] : bits.v[1]) : (word == 2 ? bits.v[2] : bits.v[3]);
  return drawn < a.g.threshold ? T(0) : static_cast<T>(a.g.kept);
}

// One row's part of the softmax so far.
template <class T> struct OnlineSum {
  T largest = -std::numeric_limits<T>::infinity();
  double sum = 0;

  // What is subtracted from scores; without any key so far all are -infinity.
  __device__ T shift() const {
    return largest == -std::numeric_limits<T>::infinity() ? T(0) : largest;
  }
  // Goes on to scores of which `other` is the largest. Returns by what the sums so far count now.
  __device__ T grow(T other) {
    const T before = largest;
    largest = other > largest ? other : largest;
    const T again = before == -std::numeric_limits<T>::infinity() ? T(0) : exp2(before - shift());
    sum *= static_cast<double>(again);
    return again;
  }
  // Rows without a key are 0.
  __device__ T factor() const { return sum == 0 ? T(0) : T(1) / static_cast<T>(sum); }
  __device__ T log_sum() const {
    if (sum == 0) return std::numeric_limits<T>::infinity();
    return largest * kLn2<T> + log(static_cast<T>(sum));
  }
};

// On tensor cores, for float32 and depths up to kTensorDepth. False, with nothing done, where those
// are not.
inline constexpr int64_t kTensorDepth = 128;
bool tensor_attention(const Cuda& ctx, const op::AttentionForward& o);
bool tensor_attention(const Cuda& ctx, const op::AttentionBackwardKeys& o);
bool tensor_attention(const Cuda& ctx, const op::AttentionBackwardQueries& o);

}  // namespace sinter::cuda
