// Chains of element-wise operators: a short program that every thread interprets for a pack of
// elements. All arithmetic is of one type; a bool is a 0 or a 1 of it.
//   Values lie in local memory, which for the few of a chain stays in the first cache. The build
// forbids contraction to fused multiply-adds in this file, as in elementwise.cu, whose bits these
// are.
#include <cstdint>
#include <type_traits>

#include "kernels_cuda/elementwise_side.cuh"
#include "sinter/operators/elementwise.h"

namespace sinter {
using namespace op;

namespace cuda {
namespace {

constexpr int kMostValues = kMaxChainInputs + kMaxChainSteps;

template <class T> struct Step {
  Element kind;
  int8_t gradient;
  int8_t from[5];
  int8_t to;
  T number[3];
};
struct Output {
  void* p;
  bool is_bool;
};
struct Input {
  const void* p;
  bool is_bool;
  Reading reading;
};
template <class T> struct Program {
  int inputs = 0, steps = 0;
  Input x[kMaxChainInputs];
  Step<T> step[kMaxChainSteps];
  Output y[kMaxChainOutputs];
};

// y = the value of O, or a gradient, for one element; nothing where O has none of that type.
template <class O, int kGradient, class T>
__device__ void evaluate(T a, T b, T c, T result, T dy, T& y) {
  if constexpr (element::takes<O, T>) {
    using A = std::conditional_t<O::kTypes == element::kSelect, bool, T>;
    const A first = [&] {
      if constexpr (std::is_same_v<A, bool>)
        return a != T(0);
      else
        return a;
    }();
    if constexpr (kGradient < 0)
      y = static_cast<T>(O::of(first, b, c));
    else if constexpr (element::has_gradient < O, kGradient < 0 ? 0 : kGradient >)
      y = O::template gradient<kGradient>(first, b, c, result, dy);
  }
}

template <class T, int kCount> __device__ void evaluate(const Step<T>& step, const T (&a)[kCount],
                                                        const T (&b)[kCount], const T (&c)[kCount],
                                                        const T (&result)[kCount],
                                                        const T (&dy)[kCount], T (&y)[kCount]) {
#define SINTER_EVALUATE(kind, gradient)                                                 \
  for (int q = 0; q < kCount; ++q)                                                      \
    evaluate<element::table::kind, gradient>(a[q], b[q], c[q], result[q], dy[q], y[q]); \
  break;
#define SINTER_CASE(kind, ...)                  \
  case 4 * static_cast<int>(Element::kind):     \
    SINTER_EVALUATE(kind, -1)                   \
  case 4 * static_cast<int>(Element::kind) + 1: \
    SINTER_EVALUATE(kind, 0)                    \
  case 4 * static_cast<int>(Element::kind) + 2: \
    SINTER_EVALUATE(kind, 1)                    \
  case 4 * static_cast<int>(Element::kind) + 3: \
    SINTER_EVALUATE(kind, 2)
  switch (4 * static_cast<int>(step.kind) + step.gradient + 1) {
    SINTER_ELEMENTWISE(SINTER_CASE, SINTER_CASE, SINTER_CASE)
  }
#undef SINTER_CASE
#undef SINTER_EVALUATE
}

template <class U, int kCount, class T>
__device__ void load_as(const Input& x, int64_t i, T (&v)[kCount]) {
  U values[kCount];
  load(static_cast<const U*>(x.p), U(0), x.reading, i, values);
#pragma unroll
  for (int q = 0; q < kCount; ++q) v[q] = static_cast<T>(values[q]);
}

template <class U, int kCount, class T>
__device__ void store(void* p, int64_t i, const T (&v)[kCount]) {
  Pack<U, kCount> pack;
#pragma unroll
  for (int q = 0; q < kCount; ++q) pack.v[q] = static_cast<U>(v[q]);
  if constexpr (kCount == 1)
    static_cast<U*>(p)[i] = pack.v[0];
  else
    static_cast<Pack<U, kCount>*>(p)[i / kCount] = pack;
}

// Elements [i, i + kCount). All inputs are read before anything is written: an output may be one.
template <int kCount, class T>
__device__ void chain_elements(const Program<T>& program, int64_t i) {
  T value[kMostValues][kCount];
  for (int k = 0; k < program.inputs; ++k) {
    const Input& x = program.x[k];
    if (x.is_bool)
      load_as<bool>(x, i, value[k]);
    else
      load_as<T>(x, i, value[k]);
  }
  for (int s = 0; s < program.steps; ++s) {
    const Step<T>& step = program.step[s];
    T operand[5][kCount];
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      const int from = step.from[k];
      const T number = k < 3 ? step.number[k < 3 ? k : 0] : T(0);
#pragma unroll
      for (int q = 0; q < kCount; ++q) operand[k][q] = from >= 0 ? value[from][q] : number;
    }
    T y[kCount] = {};
    evaluate(step, operand[0], operand[1], operand[2], operand[3], operand[4], y);
#pragma unroll
    for (int q = 0; q < kCount; ++q) value[program.inputs + s][q] = y[q];
    if (step.to < 0) continue;
    const Output& out = program.y[step.to];
    if (out.is_bool)
      store<bool>(out.p, i, y);
    else
      store<T>(out.p, i, y);
  }
}

template <class T>
__global__ void chain_kernel(int64_t n, int64_t packs, const __grid_constant__ Program<T> program) {
  constexpr int kPack = 16 / sizeof(T);
  const int64_t first = thread_index<int64_t>(), step = thread_count<int64_t>();
  for (int64_t i = first; i < packs; i += step) chain_elements<kPack>(program, i * kPack);
  for (int64_t i = packs * kPack + first; i < n; i += step) chain_elements<1>(program, i);
}

template <class T> void chain(LaunchSite site, const MapChain& o) {
  constexpr int kPack = 16 / sizeof(T);
  const Shape& shape = o.y[0].shape;
  const int64_t n = shape.numel();
  if (n == 0) return;
  Program<T> program{};
  program.inputs = static_cast<int>(o.x.size());
  program.steps = static_cast<int>(o.steps.size());
  bool packed = true;
  for (size_t k = 0; k < o.x.size(); ++k) {
    const In& x = o.x[k];
    program.x[k] = {x.address, x.dtype == kBool, reading_of(x, shape, kPack)};
    packed = packed && allows_packs(x.address, size_of(x.dtype), program.x[k].reading.way, kPack);
  }
  for (size_t k = 0; k < o.y.size(); ++k) {
    const Out& y = o.y[k];
    program.y[k] = {y.address, y.dtype == kBool};
    packed = packed && allows_packs(y.address, size_of(y.dtype), Way::kWhole, kPack);
  }
  for (size_t s = 0; s < o.steps.size(); ++s) {
    const ChainStep& step = o.steps[s];
    program.step[s] = {step.kind, step.gradient, {}, step.to, {}};
    for (int k = 0; k < 5; ++k) program.step[s].from[k] = step.from[k];
    for (int k = 0; k < 3; ++k) program.step[s].number[k] = element::number<T>(step.number[k]);
  }
  const int64_t packs = packed ? n / kPack : 0;
  const int64_t items = packs > 0 ? packs : n;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(items, kThreads), 1 << 16));
  launch(site, {MapChain::name, n}, blocks, kThreads, 0, chain_kernel<T>, n, packs, program);
}

}  // namespace
}  // namespace cuda

void run(const Cuda& ctx, const MapChain& o) {
  for (const ChainStep& step : o.steps)
    if (is_floating(step.dtype))
      return with_floating(step.dtype, [&]<class T>() { cuda::chain<T>(ctx, o); });
}

}  // namespace sinter
