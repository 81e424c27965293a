// Element-wise kernels and movement of data.
//
// An operator of the table is a function of a block of elements, compiled from its line once for
// each instruction set as a plain loop, which the compiler turns into vectors. Operands that
// broadcast are repeated into a block first, numbers too: so a block's loop knows only arrays, and
// an element's bits depend neither on where in a vector it stands nor on what the others are.
// The build forbids contraction to fused multiply-adds in this file: instruction sets agree to the
// bit.
#include "kernels_cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels_cpu/elementwise.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come first.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <type_traits>

#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/strided.h"
#include "sinter/operators/elementwise.h"

// No element of a block's result is read for another: it is the same array as an operand, or has
// nothing in common with it.
#if HWY_COMPILER_CLANG
#define SINTER_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define SINTER_INDEPENDENT _Pragma("GCC ivdep")
#endif

HWY_BEFORE_NAMESPACE();
namespace sinter {
using namespace op;
namespace {
using Block = void (*)(int64_t n, const void* const* x, void* y);
}  // namespace
namespace HWY_NAMESPACE {
namespace {

// y = the value, or the gradient of an operand, of n elements; x: a, b, c, result, dy.
template <class O, int kGradient, class T>
HWY_ATTR void block(int64_t n, const void* const* x, void* y) {
  // A condition as the byte that it is: of bools GCC makes no vectors.
  using A = std::conditional_t<O::kTypes == element::kSelect, uint8_t, T>;
  const A* a = static_cast<const A*>(x[0]);
  const T *b = static_cast<const T*>(x[1]), *c = static_cast<const T*>(x[2]);
  if constexpr (kGradient < 0) {
    using Y = decltype(O::of(A(), T(), T()));
    Y* out = static_cast<Y*>(y);
    SINTER_INDEPENDENT
    for (int64_t i = 0; i < n; ++i)
      out[i] = O::of(a[i], O::kOperands > 1 ? b[i] : T(), O::kOperands > 2 ? c[i] : T());
  } else {
    constexpr int kReads = O::kReads[kGradient];
    const T *result = static_cast<const T*>(x[3]), *dy = static_cast<const T*>(x[4]);
    T* out = static_cast<T*>(y);
    SINTER_INDEPENDENT
    for (int64_t i = 0; i < n; ++i)
      out[i] = O::template gradient<kGradient>(
          kReads & element::kA ? a[i] : A(), kReads & element::kB ? b[i] : T(),
          kReads & element::kC ? c[i] : T(), kReads & element::kY ? result[i] : T(), dy[i]);
  }
}

template <class O, class T> Block block_of(int gradient) {
  if constexpr (element::takes<O, T>) {
    if (gradient < 0) return block<O, -1, T>;
    if constexpr (element::is_real<T>) {
      if constexpr (element::has_gradient<O, 0>)
        if (gradient == 0) return block<O, 0, T>;
      if constexpr (element::has_gradient<O, 1>)
        if (gradient == 1) return block<O, 1, T>;
      if constexpr (element::has_gradient<O, 2>)
        if (gradient == 2) return block<O, 2, T>;
    }
  }
  return nullptr;
}

Block FindBlock(Element kind, int gradient, DType dtype) {
  return with_element(kind, [&]<class O>() {
    return with_any(dtype, [&]<class T>() { return block_of<O, T>(gradient); });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace sinter
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sinter {
namespace {

HWY_EXPORT(FindBlock);

// f over ranges of [0, n), in parallel where it pays.
template <class F> void elements(int64_t n, const F& f) { parallel_ranges(n, kGrain, f); }

// What a block reads: 512 float32 or 256 float64 at a time, so that some of them stay in the first
// cache.
constexpr int64_t kBlockElements = 512;

// An operand as blocks see it.
class Source {
 public:
  Source() = default;
  Source(const Operand& x, const Shape& shape)
      : data_(static_cast<const std::byte*>(x.address)),
        size_(static_cast<int64_t>(size_of(x.dtype))),
        is_one_(x.numel() == 1),
        is_whole_(!is_one_ && x.numel() == shape.numel()) {
    if (is_one_ || is_whole_) return;
    int64_t stride[kMaxRank] = {}, step = 1;
    for (int d = shape.rank() - 1, k = x.shape.rank() - 1; k >= 0; --d, --k) {
      if (x.shape[k] != 1) stride[d] = step;
      step *= x.shape[k];
    }
    loops_ = make_loops<1>(shape.rank(), shape.begin(), {stride});
  }

  bool is_whole() const { return is_whole_; }
  // Elements [begin, begin + n), repeated into `scratch` if they are not there as they are. A
  // single one is repeated for the first block of a range, which is as large as any.
  const void* block(int64_t begin, int64_t n, bool first, std::byte* scratch) const {
    if (is_whole_) return data_ + begin * size_;
    if (is_one_) {
      if (!first) return scratch;
    } else if (loops_.inner_stride(0) == 1) {  // one run?
      const int64_t at = begin % loops_.inner();
      if (at + n <= loops_.inner()) return data_ + loops_.offset(begin)[0] * size_;
    }
    switch (size_) {
      case 1:
        gather<uint8_t>(begin, n, scratch);
        break;
      case 4:
        gather<uint32_t>(begin, n, scratch);
        break;
      default:
        gather<uint64_t>(begin, n, scratch);
    }
    return scratch;
  }

 private:
  template <class Bits> void gather(int64_t begin, int64_t n, std::byte* scratch) const {
    const Bits* x = reinterpret_cast<const Bits*>(data_);
    Bits* y = reinterpret_cast<Bits*>(scratch);
    if (is_one_) {
      std::fill_n(y, n, *x);
      return;
    }
    int64_t index[kMaxRank], offset = 0;
    const int last = loops_.rank - 1;
    for (int d = last; d >= 0; --d) {
      index[d] = begin % loops_.shape[d];
      begin /= loops_.shape[d];
      offset += index[d] * loops_.stride[d][0];
    }
    while (n > 0) {
      const int64_t count = std::min(n, loops_.inner() - index[last]);
      if (loops_.inner_stride(0) == 0)
        std::fill_n(y, count, x[offset]);
      else
        std::copy_n(x + offset, count, y);
      y += count;
      n -= count;
      index[last] += count;
      offset += count * loops_.inner_stride(0);
      for (int d = last; d > 0 && index[d] == loops_.shape[d]; --d) {
        offset += loops_.stride[d - 1][0] - index[d] * loops_.stride[d][0];
        index[d] = 0;
        ++index[d - 1];
      }
    }
  }

  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
  bool is_one_ = false, is_whole_ = false;
  Loops<1> loops_;
};

// A value of a chain: an array, what is repeated into a block, or a step's result.
struct Value {
  Source source;
  std::byte* y = nullptr;  // of a result that is written
  int64_t size = 0;        // of an element
  int64_t scratch = -1;    // where its block begins in the scratch memory; -1: it needs none
  bool is_source = false;
};
constexpr int kMostValues = kMaxChainInputs + kMaxChainSteps * 4;  // with three numbers a step

void run_steps(std::span<const ChainStep> steps, std::span<const Operand* const> x,
               std::span<const Operand* const> y) {
  const Shape& shape = y[0]->shape;
  const int64_t n = shape.numel();
  if (n == 0) return;
  std::array<Value, kMostValues> values;
  int count = 0;
  int64_t scratch_bytes = 0;
  const auto add = [&](int64_t size, bool needs_scratch) -> Value& {
    Value& value = values[static_cast<size_t>(count++)];
    value.size = size;
    if (needs_scratch) {
      value.scratch = scratch_bytes;
      scratch_bytes += kBlockElements * size;
    }
    return value;
  };
  const auto add_source = [&](const Operand& operand) {
    const Source source(operand, shape);
    Value& value = add(static_cast<int64_t>(size_of(operand.dtype)), !source.is_whole());
    value.source = source;
    value.is_source = true;
  };
  for (const Operand* operand : x) add_source(*operand);

  struct Step {
    Block block;
    int operand[5];
    int result;
  };
  std::array<Step, kMaxChainSteps> plan;
  alignas(8) std::byte numbers[kMaxChainSteps * 3][8];
  int results[kMaxChainSteps];
  const auto inputs = static_cast<int>(x.size());
  for (size_t s = 0; s < steps.size(); ++s) {
    const ChainStep& step = steps[s];
    plan[s].block = HWY_DYNAMIC_DISPATCH(FindBlock)(step.kind, step.gradient, step.dtype);
    for (int k = 0; k < 5; ++k) {
      plan[s].operand[k] = -1;
      if (!reads(step.kind, step.gradient, k)) continue;
      if (step.from[k] >= inputs) {
        plan[s].operand[k] = results[step.from[k] - inputs];
      } else if (step.from[k] >= 0) {
        plan[s].operand[k] = step.from[k];
      } else {
        Operand number;
        number.dtype = operand_dtype(step.kind, k, step.dtype);
        number.address = numbers[s * 3 + static_cast<size_t>(k)];
        with_any(number.dtype, [&]<class T>() {
          const T value = element::number<T>(step.number[k]);
          std::memcpy(number.address, &value, sizeof(T));
        });
        plan[s].operand[k] = count;
        add_source(number);
      }
    }
    results[s] = plan[s].result = count;
    const bool tests = step.gradient < 0 && info(step.kind).types == element::kTest;
    Value& value = add(static_cast<int64_t>(size_of(tests ? kBool : step.dtype)), step.to < 0);
    if (step.to >= 0) value.y = static_cast<std::byte*>(y[static_cast<size_t>(step.to)]->address);
  }

  elements(n, [&](int64_t begin, int64_t end) {
    // Without scratch memory a range is one block.
    const int64_t most = scratch_bytes > 0 ? kBlockElements : end - begin;
    const LocalScratch<std::byte> scratch(scratch_bytes);
    for (int64_t i = begin; i < end; i += most) {
      const int64_t length = std::min(most, end - i);
      const void* at[kMostValues];
      for (int v = 0; v < count; ++v) {
        const Value& value = values[static_cast<size_t>(v)];
        if (value.is_source)
          at[v] = value.source.block(i, length, i == begin, scratch.get() + value.scratch);
        else
          at[v] = value.y != nullptr ? value.y + i * value.size : scratch.get() + value.scratch;
      }
      for (size_t s = 0; s < steps.size(); ++s) {
        const void* operands[5];
        for (int k = 0; k < 5; ++k)
          operands[k] = plan[s].operand[k] < 0 ? nullptr : at[plan[s].operand[k]];
        plan[s].block(length, operands, const_cast<void*>(at[plan[s].result]));
      }
    }
  });
}

template <class From, class To> void cast(int64_t n, const From* x, To* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = static_cast<To>(x[i]);
  });
}

template <class T> void accumulate(int64_t n, const T* x, T* y) {
  elements(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] += x[i];
  });
}

}  // namespace

void run(const Cpu&, const Fill& o) {
  with_any(o.y.dtype, [&]<class T>() {
    T* y = o.y.data<T>();
    const T value = element::number<T>(o.value);
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

void run(const Cpu&, const Map& o) {
  const In* const operands[] = {&o.a, &o.b, &o.c, &o.result, &o.dy};
  ChainStep step;
  step.kind = o.kind;
  step.gradient = static_cast<int8_t>(o.gradient);
  step.to = 0;
  step.dtype = arithmetic_of(o);
  std::copy(o.number, o.number + 3, step.number);
  const Operand* x[5];
  int inputs = 0;
  for (int k = 0; k < 5; ++k) {
    if (operands[k]->address == nullptr) continue;
    step.from[k] = static_cast<int8_t>(inputs);
    x[inputs++] = operands[k];
  }
  const Operand* const y[] = {&o.y};
  run_steps({&step, 1}, {x, static_cast<size_t>(inputs)}, y);
}

void run(const Cpu&, const MapChain& o) {
  const Operand *x[kMaxChainInputs], *y[kMaxChainOutputs];
  for (size_t k = 0; k < o.x.size(); ++k) x[k] = &o.x[k];
  for (size_t k = 0; k < o.y.size(); ++k) y[k] = &o.y[k];
  run_steps(o.steps, {x, o.x.size()}, {y, o.y.size()});
}

void run(const Cpu&, const Accumulate& o) {
  with_floating(o.x, [&]<class T>() { accumulate(o.x.numel(), o.x.data<T>(), o.y.data<T>()); });
}

}  // namespace sinter
#endif  // HWY_ONCE
