// How operators run: emit(op) runs an operator at once, or notes it in the program that this thread
// records (program.h).
//
//   struct Square {                              // y = x^2; any struct with name and each will do
//     static constexpr const char* name = "square";
//     In x;
//     Out y;
//     void each(auto&& f) { f("x", x), f("y", y); }
//   };
//   void run(const Cpu&, const Square& op) { … op.x.data<float>() … }
//   …
//   const Tensor y = empty_like(x);
//   emit(Square{in(x), out(y)});
#pragma once

#include <bit>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "sinter/operand.h"
#include "sinter/runtime.h"
#include "sinter/tensor.h"
#include "sinter/work.h"

namespace sinter {

// Operands, absent for an undefined tensor.
In in(const Tensor& t);
Out out(const Tensor& t);
OptionalOut optional_out(const Tensor& t);
InOut inout(const Tensor& t);

namespace detail {

// f(ctx), ctx being the Cpu or Cuda context of `device`. Throws DeviceError if it is not usable.
template <class F> decltype(auto) with_context(Device device, F&& f) {
  if constexpr (cuda_built()) {
    if (device.is_cuda()) return f(cuda_context(device.index));
  } else {
    if (device.is_cuda()) require_usable(device);  // throws
  }
  return f(Cpu{});
}

enum class Access { kIn, kOut, kOptionalOut, kInOut };
struct OperandRef {
  const char* name;
  int index;  // in a vector of operands; -1: not of one
  Operand* operand;
  Access access;
  bool reads() const { return access == Access::kIn || access == Access::kInOut; }
  bool writes() const { return access != Access::kIn; }
};

template <class T> inline constexpr bool is_operand = std::is_base_of_v<Operand, T>;
template <class T> inline constexpr bool is_operand<std::vector<T>> = is_operand<T>;

template <class T> constexpr Access access_of() {
  if constexpr (std::is_same_v<T, In>) return Access::kIn;
  if constexpr (std::is_same_v<T, Out>) return Access::kOut;
  if constexpr (std::is_same_v<T, OptionalOut>) return Access::kOptionalOut;
  return Access::kInOut;
}

// Calls f(OperandRef) for every operand that is there, f(name, value) for every attribute.
template <class Op, class F> void each_operand(Op& op, F&& f) {
  op.each([&]<class V>(const char* name, V& value) {
    if constexpr (std::is_base_of_v<Operand, V>) {
      if (value.buffer != 0) f(OperandRef{name, -1, &value, access_of<V>()});
    } else if constexpr (is_operand<V>) {
      for (size_t i = 0; i < value.size(); ++i) {
        if (value[i].buffer != 0) {
          f(OperandRef{name, static_cast<int>(i), &value[i], access_of<typename V::value_type>()});
        }
      }
    }
  });
}
template <class Op, class F> void each_attribute(Op& op, F&& f) {
  op.each([&]<class V>(const char* name, V& value) {
    if constexpr (!is_operand<V>) f(name, value);
  });
}

}  // namespace detail

// What `op` has to do: every operand is read or written once, one that changes both. An operator of
// one's own may have flops(op) and bytes_unread(op), found beside it, as those of work.h.
template <class Op> Work work(const Op& op) {
  Work result;
  detail::each_operand(const_cast<Op&>(op), [&](const detail::OperandRef& ref) {
    const auto bytes = static_cast<double>(ref.operand->bytes());
    result.bytes += ref.access == detail::Access::kInOut ? 2 * bytes : bytes;
  });
  if constexpr (requires { flops(op); }) result.flops = flops(op);
  if constexpr (requires { bytes_unread(op); }) result.bytes -= bytes_unread(op);
  return result;
}

namespace detail {

// To the bit: a NaN is what it was, and -0 is not 0.
template <class V> bool same_attribute(const V& a, const V& b) {
  if constexpr (std::is_same_v<V, double>)
    return std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
  else
    return a == b;
}

// As in "stride=(1, 1)": a number, a name, a list, or a struct that has `each`.
template <class V> void print_attribute(std::ostream& out, const V& value) {
  if constexpr (std::is_same_v<V, bool>) {
    out << (value ? "true" : "false");
  } else if constexpr (std::is_enum_v<V> && requires { name(value); }) {
    out << name(value);
  } else if constexpr (std::is_enum_v<V>) {
    out << static_cast<int>(value);
  } else if constexpr (requires { value.each([](auto&&...) {}); }) {
    const char* separator = "(";
    const auto field = [&](const char* name, const auto& v, int count = -1) {
      out << std::exchange(separator, ", ") << name << '=';
      if constexpr (std::is_array_v<std::remove_reference_t<decltype(v)>>) {
        out << '(';
        for (int i = 0; i < count; ++i) out << (i ? ", " : "") << v[i];
        out << ')';
      } else {
        print_attribute(out, v);
      }
    };
    value.each(field);
    out << ')';
  } else if constexpr (requires { value.begin(); }) {
    out << '(';
    for (size_t i = 0; i < value.size(); ++i) out << (i ? ", " : "") << value[i];
    out << ')';
  } else {
    out << value;
  }
}

// run(ctx, op), found beside the operator or in sinter.
template <class Ctx, class Op> void run_operator(const Ctx& ctx, const Op& op) {
  if constexpr (requires { run(ctx, op); }) {
    run(ctx, op);
  } else {
    throw DeviceError(detail::str(Op::name, ": has no kernel for ",
                                  std::is_same_v<Ctx, Cpu> ? "the CPU" : "CUDA devices"));
  }
}

// An operator whose type is forgotten: what a program holds.
class Operator {
 public:
  Operator() = default;
  Operator(const Operator&) = delete;
  Operator& operator=(const Operator&) = delete;
  virtual ~Operator() = default;
  virtual const char* name() const = 0;
  virtual const void* type() const = 0;  // the same for operators of one type
  virtual std::unique_ptr<Operator> clone() const = 0;
  virtual void run(const Cpu& ctx) const = 0;
  virtual void run(const Cuda& ctx) const = 0;
  virtual void print_attributes(std::ostream& out) const = 0;  // "alpha=2, g=(n=64, …)"
  // The first attribute in which `other`, of the same type, differs: "alpha: 2, then 3"; empty if
  // none does.
  virtual std::string difference(const Operator& other) const = 0;
  // Every operand that is there.
  virtual std::vector<OperandRef> operands() = 0;
  virtual Work work() const = 0;
  // This operator as an Op, null if it is another.
  template <class Op> Op* as();
};

template <class Op> class OperatorOf final : public Operator {
 public:
  explicit OperatorOf(Op op) : op(std::move(op)) {}
  const char* name() const override {
    if constexpr (requires { op.title(); })
      return op.title();  // of its kind
    else
      return Op::name;
  }
  const void* type() const override { return &Op::name; }
  std::unique_ptr<Operator> clone() const override { return std::make_unique<OperatorOf>(op); }
  void run(const Cpu& ctx) const override { run_operator(ctx, op); }
  void run(const Cuda& ctx) const override {
    if constexpr (cuda_built()) run_operator(ctx, op);
  }
  void print_attributes(std::ostream& out) const override {
    const char* separator = "";
    each_attribute(mutable_op(), [&](const char* name, const auto& value) {
      out << std::exchange(separator, ", ") << name << '=';
      print_attribute(out, value);
    });
  }
  std::string difference(const Operator& other) const override {
    std::vector<const void*> theirs;
    each_attribute(static_cast<const OperatorOf&>(other).mutable_op(),
                   [&](const char*, const auto& value) { theirs.push_back(&value); });
    std::string result;
    size_t i = 0;
    each_attribute(mutable_op(), [&]<class V>(const char* name, const V& value) {
      const V& their = *static_cast<const V*>(theirs[i++]);
      if (!result.empty() || same_attribute(value, their)) return;
      std::ostringstream text;
      text << name << ": ";
      print_attribute(text, value);
      text << ", then ";
      print_attribute(text, their);
      result = text.str();
    });
    return result;
  }
  std::vector<OperandRef> operands() override {
    std::vector<OperandRef> refs;
    each_operand(op, [&](const OperandRef& ref) { refs.push_back(ref); });
    return refs;
  }
  Work work() const override { return sinter::work(op); }
  Op op;

 private:
  Op& mutable_op() const { return const_cast<Op&>(op); }  // each is for writers too
};

template <class Op> Op* Operator::as() {
  return type() == &Op::name ? &static_cast<OperatorOf<Op>*>(this)->op : nullptr;
}

// ---- for emit -----------------------------------------------------------------------------------

bool recording_program();  // whether this thread records one
void note_operator(std::unique_ptr<Operator> op);
// Looks up the operand's address, for work of this thread, and counts a change of what is written.
void bind_operand(const OperandRef& ref);
Device device_of(const Operand& operand);

}  // namespace detail

// Runs `op` on the device of its operands, or notes it. Throws what its kernel throws; DeviceError
// if there is none for the device; GraphError if a program under way cannot hold it.
template <class Op> void emit(Op op) {
  if (detail::recording_program())
    return detail::note_operator(std::make_unique<detail::OperatorOf<Op>>(std::move(op)));
  Device device;
  detail::each_operand(op, [&](const detail::OperandRef& ref) {
    device = detail::device_of(*ref.operand);
    detail::bind_operand(ref);
  });
  detail::with_context(device, [&](const auto& ctx) { detail::run_operator(ctx, op); });
}

}  // namespace sinter
