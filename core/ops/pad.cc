#include <algorithm>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/move.h"
#include "sinter/autograd.h"
#include "sinter/emit.h"
#include "sinter/operators/move.h"
#include "sinter/ops.h"

namespace sinter {

const char* op::name(PadMode mode) {
  constexpr const char* kNames[] = {"constant", "reflect", "replicate", "circular"};
  return kNames[static_cast<int>(mode)];
}

namespace {

using op::PadMode;

PadMode mode_of(const std::string& text) {
  for (const PadMode mode :
       {PadMode::kConstant, PadMode::kReflect, PadMode::kReplicate, PadMode::kCircular})
    if (text == op::name(mode)) return mode;
  throw ValueError(
      str("pad: expected constant, reflect, replicate or circular as mode, got ", text));
}

// In as few dimensions as do: what is not padded is one with the dimension in front of it where
// that is not padded either, and, as constants do not depend on the place, where it is.
op::PadShape geometry(PadMode mode, const Shape& from, const std::vector<int64_t>& before,
                      const Shape& to) {
  op::PadShape g;
  g.mode = mode;
  for (int d = 0; d < from.rank(); ++d) {
    const int64_t b = before[static_cast<size_t>(d)];
    const bool whole = b == 0 && from[d] == to[d];
    const int last = g.rank - 1;
    const bool last_whole = last >= 0 && g.before[last] == 0 && g.n[last] == g.out[last];
    if (last >= 0 && whole && (last_whole || mode == PadMode::kConstant)) {
      g.n[last] *= from[d], g.before[last] *= from[d], g.out[last] *= from[d];
    } else {
      g.n[g.rank] = from[d], g.before[g.rank] = b, g.out[g.rank] = to[d];
      ++g.rank;
    }
  }
  return g;
}

Tensor padded(PadMode mode, const Tensor& x, const std::vector<int64_t>& before, const Shape& shape,
              double value) {
  const Tensor y = empty(shape, x.options());
  emit(op::Pad{geometry(mode, x.shape(), before, shape), value, in(x), out(y)});
  return record("pad", y, {x}, [=, from = x.shape()](const Tensor& dy) {
    if (mode == PadMode::kConstant) {
      std::vector<int64_t> back = before;
      for (int64_t& b : back) b = -b;
      return Grads{zeros_around(dy, back, from)};
    }
    const Tensor dx = empty(from, dy.options());
    emit(op::PadBackward{geometry(mode, from, before, shape), in(dy), out(dx)});
    return Grads{dx};
  });
}

}  // namespace

Tensor zeros_around(const Tensor& x, const std::vector<int64_t>& before, const Shape& shape) {
  const Tensor y = empty(shape, x.options());
  emit(op::Pad{geometry(PadMode::kConstant, x.shape(), before, shape), 0, in(x), out(y)});
  return y;
}

Tensor pad(const Tensor& x, const std::vector<int64_t>& padding, const std::string& mode_name,
           double value) {
  require_defined("pad", "x", x);
  const PadMode mode = mode_of(mode_name);
  const auto pairs = static_cast<int>(padding.size() / 2);
  require<ShapeError>(padding.size() % 2 == 0 && pairs <= x.rank(), "pad: expected a pair of ",
                      "numbers for each of the last dimensions of x ", x.shape(), ", got ",
                      padding.size(), " numbers");
  Tensor from = x;
  Shape shape = x.shape();
  std::vector<int64_t> before(static_cast<size_t>(x.rank()));
  constexpr int64_t kFar = int64_t{1} << 60;
  for (int k = 0; k < pairs; ++k) {
    const int d = x.rank() - 1 - k;
    int64_t front = padding[static_cast<size_t>(2 * k)],
            behind = padding[static_cast<size_t>(2 * k + 1)];
    const int64_t n = x.size(d);
    const auto refuse = [&](const char* why) {
      throw ShapeError(str("pad: ", front, " before and ", behind, " behind dimension ", d,
                           " of x ", x.shape(), ", mode ", mode_name, ": ", why));
    };
    if (std::max({n, front, behind, -front, -behind}) > kFar || n + front + behind < 0)
      refuse("expected a result of at least 0 elements");
    const int64_t farthest = std::max(front, behind);
    if (mode == PadMode::kReflect && farthest > 0 && farthest >= n)
      refuse("expected fewer elements than x has to reflect");
    if (mode == PadMode::kCircular && farthest > n) refuse("expected no more elements than x has");
    if (mode != PadMode::kConstant && n == 0 && n + front + behind > 0)
      refuse("expected elements to repeat");
    if (mode == PadMode::kCircular &&
        std::min(front, behind) < 0) {  // what is cropped is not there
      const int64_t first = std::max<int64_t>(-front, 0), rest = n - first;
      const int64_t left = rest - std::max<int64_t>(-behind, 0);
      if (left < 0 || farthest > left) refuse("expected no more elements than are left of x");
      from = narrow(from, d, first, left);
      front = std::max<int64_t>(front, 0), behind = std::max<int64_t>(behind, 0);
      shape[d] = left;
    }
    before[static_cast<size_t>(d)] = front;
    shape[d] += front + behind;
  }
  shape.numel("pad");
  return padded(mode, from, before, shape, value);
}

}  // namespace sinter
