// Operators as data (emit.h): whoever writes one has what the built-in ones have.
#include <sinter/emit.h>

#include <cmath>
#include <sstream>
#include <vector>

#include "core/base/detail.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

// ys[k] = xs[k]^2 + shift, and counts its runs, if asked to.
struct Squares {
  static constexpr const char* name = "squares";
  double shift = 0;
  std::vector<int64_t> tags;
  std::vector<In> xs;
  std::vector<Out> ys;
  InOut runs;
  OptionalOut last;
  void each(auto&& f) {
    f("shift", shift), f("tags", tags), f("xs", xs), f("ys", ys), f("runs", runs), f("last", last);
  }
};

void run(const Cpu&, const Squares& op) {
  for (size_t k = 0; k < op.xs.size(); ++k) {
    with_floating(op.xs[k], [&]<class T>() {
      for (int64_t i = 0; i < op.xs[k].numel(); ++i) {
        const T x = op.xs[k].data<T>()[i];
        op.ys[k].data<T>()[i] = x * x + static_cast<T>(op.shift);
      }
    });
  }
  ++*op.runs.data<int64_t>();
  if (op.last.address != nullptr) *op.last.data<int64_t>() = op.tags.back();
}

// Has no kernel at all.
struct Nowhere {
  static constexpr const char* name = "nowhere";
  In x;
  void each(auto&& f) { f("x", x); }
};

}  // namespace

TEST_CASE("emit: an operator of one's own", "[emit][cpu]") {
  const Tensor a = from_vector<float>({1, -2, 3}, {3}), b = from_vector<double>({0.5}, {});
  const Tensor ya = empty_like(a), yb = empty_like(b);
  const Tensor runs = zeros({}, {kInt64}), last = zeros({}, {kInt64});
  const auto op = [&](bool wants_last) {
    return Squares{1,
                   {7, 9},
                   {in(a), in(b)},
                   {out(ya), out(yb)},
                   inout(runs),
                   optional_out(wants_last ? last : Tensor())};
  };
  const uint64_t of_x = a.version(), of_y = ya.version(), of_last = last.version();
  emit(op(false));
  CHECK(ya.to_vector<float>() == std::vector<float>{2, 5, 10});
  CHECK(yb.item<double>() == 1.25);
  CHECK(runs.item<int64_t>() == 1);
  // What is written counts a change, and nothing else does.
  CHECK(a.version() == of_x);
  CHECK(ya.version() == of_y + 1);
  CHECK(last.version() == of_last);
  emit(op(true));
  CHECK(runs.item<int64_t>() == 2);
  CHECK(last.item<int64_t>() == 9);
  CHECK(last.version() == of_last + 1);
}

TEST_CASE("emit: a part of a tensor is an operand", "[emit][cpu]") {
  const Tensor x = from_vector<float>({1, 2, 3, 4, 5, 6}, {3, 2}), y = zeros({4});
  const Tensor runs = zeros({}, {kInt64});
  const In operand = in(x.narrow(0, 1, 1));
  CHECK(operand.shape == Shape{1, 2});
  CHECK(operand.offset == 8);
  CHECK(operand.buffer == x.place().first);
  CHECK(in(Tensor()).buffer == 0);
  emit(Squares{0, {}, {in(x.narrow(0, 1, 1))}, {out(y.narrow(0, 2, 2))}, inout(runs), {}});
  CHECK(y.to_vector<float>() == std::vector<float>{0, 0, 9, 16});
}

DEVICE_TEST("emit: an operator without a kernel for the device is refused", "[emit]") {
  const Tensor x = zeros({2}, {kFloat32, device});
  check_throws<DeviceError>([&] { emit(Nowhere{in(x)}); },
                            {"nowhere", "no kernel", device.is_cuda() ? "CUDA" : "CPU"});
}

TEST_CASE("emit: an operator tells of itself", "[emit][cpu]") {
  const Tensor x = zeros({2, 3}), w = zeros({4, 3}), y = zeros({2, 4});
  OperatorOf linear(op::LinearForward{{2, 3, 4}, in(x), in(w), {}, out(y)});
  CHECK(std::string(linear.name()) == "linear_forward");
  std::ostringstream text;
  linear.print_attributes(text);
  CHECK(text.str() == "g=(n=2, in=3, out=4, tf32=false), relu=false");
  std::vector<std::string> names;
  for (const OperandRef& ref : linear.operands())
    names.push_back(str(ref.name, ref.reads() ? " read" : "", ref.writes() ? " written" : ""));
  CHECK(names == std::vector<std::string>{"x read", "w read", "y written"});
  CHECK(linear.as<op::LinearForward>() == &linear.op);
  CHECK(linear.as<op::Gemm>() == nullptr);

  const std::unique_ptr<Operator> same = linear.clone();
  CHECK(linear.difference(*same).empty());
  same->as<op::LinearForward>()->g.tf32 = true;
  const std::string difference = linear.difference(*same);
  INFO(difference);
  CHECK(difference.find("g: ") == 0);
  CHECK(difference.find("tf32=false") < difference.find("tf32=true"));

  // Numbers to the bit.
  OperatorOf fill(op::Fill{std::nan(""), out(y)});
  CHECK(fill.difference(*fill.clone()).empty());
  OperatorOf zero(op::Fill{0, out(y)}), negative(op::Fill{-0.0, out(y)});
  CHECK(zero.difference(negative) == "value: 0, then -0");

  OperatorOf squares(Squares{0.5, {3, 4}, {in(x), in(w)}, {out(y)}, inout(x), {}});
  std::ostringstream all;
  squares.print_attributes(all);
  CHECK(all.str() == "shift=0.5, tags=(3, 4)");
  names.clear();
  for (const OperandRef& ref : squares.operands())
    names.push_back(
        str(ref.name, ref.index, ref.reads() ? " read" : "", ref.writes() ? " written" : ""));
  CHECK(names ==
        std::vector<std::string>{"xs0 read", "xs1 read", "ys0 written", "runs-1 read written"});
}

}  // namespace sinter::test
