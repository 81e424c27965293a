// Element-wise operators: dtypes, shapes, derivatives and changes in place of all that the table
// names.
#include "sinter/ops/elementwise.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <ostream>
#include <utility>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/broadcast.h"
#include "sinter/autograd.h"
#include "sinter/emit.h"

namespace sinter {

bool op::ChainStep::operator==(const ChainStep& other) const {
  const auto bits = [](double x) { return std::bit_cast<uint64_t>(x); };  // a NaN is what it was
  bool same = kind == other.kind && gradient == other.gradient && to == other.to &&
              dtype == other.dtype && std::equal(from, from + 5, other.from);
  for (int k = 0; k < 3; ++k) same = same && bits(number[k]) == bits(other.number[k]);
  return same;
}

std::ostream& op::operator<<(std::ostream& out, const ChainStep& step) {
  out << (step.gradient < 0 ? info(step.kind).forward : info(step.kind).backward);
  const char* separator = "(";
  for (int k = 0; k < 5; ++k) {
    if (!reads(step.kind, step.gradient, k)) continue;
    out << std::exchange(separator, ", ");
    if (step.from[k] >= 0)
      out << '$' << static_cast<int>(step.from[k]);
    else
      out << step.number[k];
  }
  out << ')';
  if (step.to >= 0) out << " -> y" << static_cast<int>(step.to);
  return out;
}

namespace {

using op::Element;

// ---- dtypes -------------------------------------------------------------------------------------

enum class Kind { kTruth, kInteger, kFloating };
Kind kind_of(DType dtype) {
  return dtype == kBool ? Kind::kTruth : is_floating(dtype) ? Kind::kFloating : Kind::kInteger;
}

// Of two dtypes of one kind.
DType common(const char* op, DType a, DType b) {
  if (a == b) return a;
  require<DtypeError>(kind_of(a) == Kind::kInteger, op, ": expected one dtype, got ", a, " and ", b,
                      "; convert with to()");
  return a == kInt64 || b == kInt64 ? kInt64 : kInt32;
}

// Of some operands: the last kind decides, and of that kind those with the most say: tensors with
// dimensions, tensors without, numbers.
DType promoted(const char* op, const Term* const* terms, int count) {
  enum Say { kNumber, kPoint, kArray };
  DType dtype = kBool;
  int say = -1;
  for (int i = 0; i < count; ++i) {
    const Term& term = *terms[i];
    const DType own = !term.is_number()          ? term.tensor().dtype()
                      : term.number().is_integer ? kInt64
                                                 : kFloat32;
    const int own_say = term.is_number() ? kNumber : term.tensor().rank() == 0 ? kPoint : kArray;
    if (say < 0 || kind_of(own) > kind_of(dtype)) {
      dtype = own;
      say = own_say;
    } else if (kind_of(own) == kind_of(dtype)) {
      if (say == kNumber || own_say == kNumber)
        dtype = own_say > say ? own : dtype;
      else
        dtype = common(op, dtype, own);
      say = std::max(say, own_say);
    }
  }
  return dtype;
}

// ---- operators ----------------------------------------------------------------------------------

constexpr const char* kArgument[3] = {"a", "b", "c"};

op::Map map_of(Element kind, int gradient, const std::array<double, 3>& numbers) {
  op::Map map;
  map.kind = kind;
  map.gradient = gradient;
  std::copy(numbers.begin(), numbers.end(), map.number);
  return map;
}

// What the graph keeps of an operator: operands and result as far as gradients read them.
struct Kept {
  Element kind;
  std::array<double, 3> numbers;
  std::array<Saved, 3> operands;
  Saved result;
  std::array<Shape, 3> shapes;

  Tensor gradient(int k, const Tensor& dy) const {
    const int reads = op::info(kind).reads[k];
    if (reads == element::kPass) return unbroadcast(dy, shapes[static_cast<size_t>(k)]);
    // One that reads nothing else is linear: fewer elements once they are added up.
    const Shape& shape = shapes[static_cast<size_t>(k)];
    const Tensor d = reads == element::kNothing ? unbroadcast(dy, shape) : dy;
    op::Map map = map_of(kind, k, numbers);
    if (reads & element::kA) map.a = in(operands[0].get());
    if (reads & element::kB) map.b = in(operands[1].get());
    if (reads & element::kC) map.c = in(operands[2].get());
    if (reads & element::kY) map.result = in(result.get());
    const Tensor dx = empty_like(d);
    map.dy = in(d);
    map.y = out(dx);
    emit(map);
    return unbroadcast(dx, shape);
  }
};

// The operator on tensors and numbers. `target`: where the result goes, if it is not to be a new
// tensor and is not recorded; checked before.
struct Call {
  const char* op;
  Element kind;
  std::array<Term, 3> terms{Term(0), Term(0), Term(0)};
  DType dtype = kFloat32;  // of the arithmetic
  DType result = kFloat32;
  Device device;
  Shape shape;

  Call(const char* op, Element kind, std::initializer_list<Term> given) : op(op), kind(kind) {
    size_t next = 0;
    for (const Term& term : given) terms.at(next++) = term;
    const op::ElementInfo& info = op::info(kind);
    const bool selects = info.types == element::kSelect;
    bool any = false;
    for (int k = 0; k < info.operands; ++k) {
      const Term& term = terms[static_cast<size_t>(k)];
      if (term.is_number()) continue;
      const Tensor& x = term.tensor();
      require_defined(op, info.operands == 1 ? "x" : kArgument[k], x);
      if (any)
        require<DeviceError>(x.device() == device, op, ": expected one device, got ", device,
                             " and ", x.device(), "; move with to()");
      shape = any ? broadcast_shape(op, shape, x.shape()) : x.shape();
      device = x.device();
      any = true;
    }
    require<ValueError>(any, op, ": expected a tensor among the operands, got numbers alone");
    if (selects)
      require<DtypeError>(terms[0].is_number() || terms[0].tensor().dtype() == kBool, op,
                          ": expected a condition of dtype bool, got ", terms[0].tensor().dtype(),
                          "; convert with to(kBool)");
    const Term* counted[3] = {};
    int count = 0;
    for (int k = selects ? 1 : 0; k < info.operands; ++k)
      counted[count++] = &terms[static_cast<size_t>(k)];
    dtype = promoted(op, counted, count);
    if (info.types == element::kReal && !is_floating(dtype)) dtype = kFloat32;
    require<DtypeError>(info.types != element::kNumber || dtype != kBool, op,
                        ": expected numbers, got bool; convert with to()");
    result = info.types == element::kTest ? kBool : dtype;
    for (int k = 0; k < info.operands; ++k) {
      Term& term = terms.at(static_cast<size_t>(k));
      const DType wanted = op::operand_dtype(kind, k, dtype);
      if (!term.is_number() && term.tensor().dtype() != wanted) term = term.tensor().to(wanted);
    }
  }

  std::array<double, 3> numbers() const {
    std::array<double, 3> values{};
    for (size_t k = 0; k < 3; ++k) values[k] = terms[k].number().real;
    return values;
  }

  bool is_recorded() const {
    return recording({&terms[0].tensor(), &terms[1].tensor(), &terms[2].tensor()});
  }

  void emit_to(const Tensor& y) const {
    op::Map map = map_of(kind, -1, numbers());
    In* operands[] = {&map.a, &map.b, &map.c};
    for (size_t k = 0; k < 3; ++k)
      if (terms[k].tensor().defined()) *operands[k] = in(terms[k].tensor());
    map.y = out(y);
    emit(map);
  }

  Tensor run() const {
    const Tensor y = empty(shape, {result, device});
    emit_to(y);
    if (!is_floating(result)) return y;
    // record() also detaches what is a view, and checks for anomalies.
    if (!is_recorded()) return record(op, y, {}, nullptr);
    Kept kept{kind, numbers(), {}, {}, {}};
    std::vector<Tensor> inputs;
    int needed = 0;
    for (size_t k = 0; k < 3; ++k) {
      const Tensor& x = terms[k].tensor();
      inputs.push_back(x);
      kept.shapes[k] = x.shape();
      if (x.requires_grad()) needed |= op::info(kind).reads[k];
    }
    if (needed & element::kA) kept.operands[0] = Saved(terms[0].tensor());
    if (needed & element::kB) kept.operands[1] = Saved(terms[1].tensor());
    if (needed & element::kC) kept.operands[2] = Saved(terms[2].tensor());
    if (needed & element::kY) kept.result = Saved(y);
    inputs.resize(static_cast<size_t>(op::info(kind).operands));
    std::array<bool, 3> wanted{};
    for (size_t k = 0; k < inputs.size(); ++k)
      wanted[k] = inputs[k].requires_grad() && op::info(kind).reads[k] != element::kNone;
    return record(op, y, inputs,
                  [kept = std::move(kept), wanted, n = inputs.size()](const Tensor& dy) {
                    Grads grads(n);
                    for (size_t k = 0; k < n; ++k)
                      if (wanted[k]) grads[k] = kept.gradient(static_cast<int>(k), dy);
                    return grads;
                  });
  }
};

}  // namespace

#define SINTER_UNARY(kind, name, ...) \
  Tensor name(const Tensor& x) { return Call(#name, Element::kind, {x}).run(); }
#define SINTER_BINARY(kind, name, ...)                                                        \
  Tensor name(const Tensor& a, const Tensor& b) {                                             \
    return Call(#name, Element::kind, {a, b}).run();                                          \
  }                                                                                           \
  Tensor name(const Tensor& a, Number b) { return Call(#name, Element::kind, {a, b}).run(); } \
  Tensor name(Number a, const Tensor& b) { return Call(#name, Element::kind, {a, b}).run(); }
#define SINTER_TERNARY(kind, name, ...)                        \
  Tensor name(const Tensor& a, const Term& b, const Term& c) { \
    return Call(#name, Element::kind, {a, b, c}).run();        \
  }
SINTER_ELEMENTWISE(SINTER_UNARY, SINTER_BINARY, SINTER_TERNARY)
#undef SINTER_UNARY
#undef SINTER_BINARY
#undef SINTER_TERNARY

namespace {

Number negated(Number x) {
  if (x.is_integer && x.integer != std::numeric_limits<int64_t>::min()) return -x.integer;
  return -x.real;
}

// What x, if it has the other bound, is clamped to in place of one: an infinity, or an integer that
// is as large as any, so that integers stay integers.
Number no_bound(const Tensor& x, const Term& other, bool upper) {
  const bool real =
      (x.defined() && is_floating(x.dtype())) ||
      (other.is_number() ? !other.number().is_integer : is_floating(other.tensor().dtype()));
  if (real) return (upper ? 1 : -1) * std::numeric_limits<double>::infinity();
  using Limits = std::numeric_limits<int64_t>;
  return upper ? Limits::max() : Limits::min();
}

}  // namespace

Tensor add(const Tensor& a, const Term& b, Number alpha) {
  return Call("add", Element::kAddScaled, {a, b, alpha}).run();
}
Tensor sub(const Tensor& a, const Term& b, Number alpha) {
  return Call("sub", Element::kAddScaled, {a, b, negated(alpha)}).run();
}
Tensor div(const Tensor& a, const Term& b, std::string_view rounding_mode) {
  const bool down = rounding_mode == "floor";
  require<ValueError>(down || rounding_mode == "trunc",
                      "div: expected rounding_mode trunc or floor, got '", rounding_mode, "'");
  return Call("div", down ? Element::kFloorDiv : Element::kTruncDiv, {a, b}).run();
}
Tensor floor_divide(const Tensor& a, const Term& b) {
  return Call("floor_divide", Element::kFloorDiv, {a, b}).run();
}
Tensor gelu(const Tensor& x, std::string_view approximate) {
  require<ValueError>(approximate == "none" || approximate == "tanh",
                      "gelu: expected approximate none or tanh, got '", approximate, "'");
  return Call("gelu", approximate == "tanh" ? Element::kGeluTanh : Element::kGelu, {x}).run();
}
Tensor round(const Tensor& x, int decimals) {
  const double scale = std::pow(10, std::abs(decimals));
  return decimals < 0 ? round(x / scale) * scale : round(x * scale) / scale;
}
Tensor leaky_relu(const Tensor& x) { return leaky_relu(x, 0.01); }
Tensor elu(const Tensor& x) { return elu(x, 1); }
Tensor softplus(const Tensor& x, const Term& beta) { return softplus(x, beta, 20); }
Tensor clamp(const Tensor& x, const Term& min) {
  return Call("clamp", Element::kClamp, {x, min, no_bound(x, min, true)}).run();
}
Tensor clamp(const Tensor& x, std::nullopt_t, const Term& max) {
  return Call("clamp", Element::kClamp, {x, no_bound(x, max, false), max}).run();
}
Tensor masked_fill(const Tensor& x, const Tensor& mask, const Term& value) {
  return Call("masked_fill", Element::kWhere, {mask, value, x}).run();
}

// ---- in place -----------------------------------------------------------------------------------

namespace {

const Tensor& assign(const Tensor& x, const Call& call) {
  require<ShapeError>(call.shape == x.shape(), call.op,
                      ": expected a right side that broadcasts to x's shape ", x.shape(),
                      ", got one that makes it ", call.shape);
  require<DtypeError>(kind_of(call.result) <= kind_of(x.dtype()), call.op, ": a result of dtype ",
                      call.result, " does not fit into x of dtype ", x.dtype(),
                      "; convert x with to()");
  x.overwrite(call.op, call.run());
  return x;
}

// x for an operator whose gradient for another operand needs the values that x has before.
Tensor old_values(const Tensor& x, std::initializer_list<Term> others) {
  for (const Term& other : others)
    if (recording({&other.tensor()})) return x.clone();
  return x;
}

}  // namespace

const Tensor& Tensor::add_(const Term& y, Number alpha) const {
  if (alpha.real == 1) return assign(*this, Call("add_", Element::kAdd, {*this, y}));
  return assign(*this, Call("add_", Element::kAddScaled, {*this, y, alpha}));
}
const Tensor& Tensor::sub_(const Term& y, Number alpha) const {
  if (alpha.real == 1) return assign(*this, Call("sub_", Element::kSub, {*this, y}));
  return assign(*this, Call("sub_", Element::kAddScaled, {*this, y, negated(alpha)}));
}
const Tensor& Tensor::mul_(const Term& y) const {
  return assign(*this, Call("mul_", Element::kMul, {old_values(*this, {y}), y}));
}
const Tensor& Tensor::div_(const Term& y) const {
  return assign(*this, Call("div_", Element::kDiv, {old_values(*this, {y}), y}));
}
const Tensor& Tensor::pow_(const Term& y) const {
  return assign(*this, Call("pow_", Element::kPow, {old_values(*this, {*this, y}), y}));
}
const Tensor& Tensor::clamp_(const Term& min, const Term& max) const {
  return assign(*this,
                Call("clamp_", Element::kClamp, {old_values(*this, {*this, min, max}), min, max}));
}
const Tensor& Tensor::masked_fill_(const Tensor& mask, const Term& value) const {
  return assign(*this, Call("masked_fill_", Element::kWhere, {mask, value, *this}));
}

Tensor operator+=(const Tensor& x, const Term& y) {
  return assign(x, Call("+=", Element::kAdd, {x, y}));
}
Tensor operator-=(const Tensor& x, const Term& y) {
  return assign(x, Call("-=", Element::kSub, {x, y}));
}
Tensor operator*=(const Tensor& x, const Term& y) {
  return assign(x, Call("*=", Element::kMul, {old_values(x, {y}), y}));
}
Tensor operator/=(const Tensor& x, const Term& y) {
  return assign(x, Call("/=", Element::kDiv, {old_values(x, {y}), y}));
}

}  // namespace sinter
