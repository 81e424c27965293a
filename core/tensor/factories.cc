// Tensors of numbers in a row. They are made on the host and the same on every device.
#include <cmath>
#include <limits>

#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"
#include "sinter/tensor.h"

namespace sinter {
namespace {

// value(i) for i in [0, n), in x's dtype.
template <class F> Tensor made_of(int64_t n, DType dtype, Device device, F value) {
  return with_any(dtype, [&]<class T>() {
    std::vector<T> values = host_values<T>(n);
    for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = static_cast<T>(value(i));
    return from_vector(values, {n}, device);
  });
}

// Whether x lies between the least and the largest number of dtype.
bool holds(DType dtype, double x) {
  return with_any(dtype, [&]<class T>() {
    using Limits = std::numeric_limits<T>;
    return static_cast<double>(Limits::lowest()) <= x && x <= static_cast<double>(Limits::max());
  });
}

}  // namespace

Tensor arange(Number start, Number end, Number step, const ArangeOptions& options) {
  const bool integers = start.is_integer && end.is_integer && step.is_integer;
  const DType dtype = options.dtype.value_or(integers ? kInt64 : kFloat32);
  const auto check = [&](bool ok, const auto&... message) {
    if (!ok)
      throw ValueError(str("arange: ", message..., ", got start ", start.real, ", end ", end.real,
                           ", step ", step.real));
  };
  check(std::isfinite(start.real) && std::isfinite(end.real) && std::isfinite(step.real),
        "expected finite numbers");
  check(integers || is_floating(dtype), "expected integers for ", dtype);
  check(step.real != 0, "expected a step that is not 0");
  check(step.real > 0 ? start.real <= end.real : start.real >= end.real,
        "expected a step that leads from start to end");
  double count = 0;
  if (integers) {
    // In 128 bits: end - start may overflow 64.
    const __int128 distance = __int128{end.integer} - start.integer, by = step.integer;
    count = static_cast<double>((distance + by - (by > 0 ? 1 : -1)) / by);
  } else {
    count = std::ceil((end.real - start.real) / step.real);
  }
  check(count < 0x1p53, "expected fewer elements");
  const auto n = static_cast<int64_t>(count);
  check(n == 0 || (holds(dtype, start.real) && holds(dtype, start.real + (count - 1) * step.real)),
        "expected numbers that ", dtype, " holds");
  if (integers)
    return made_of(n, dtype, options.device, [&](int64_t i) {
      // Unsigned: i * step alone may overflow.
      return static_cast<int64_t>(static_cast<uint64_t>(start.integer) +
                                  static_cast<uint64_t>(i) * static_cast<uint64_t>(step.integer));
    });
  return made_of(n, dtype, options.device,
                 [&](int64_t i) { return start.real + static_cast<double>(i) * step.real; });
}

Tensor linspace(double start, double end, int64_t steps, TensorOptions options) {
  require<ValueError>(steps >= 0, "linspace: expected steps >= 0, got ", steps);
  require<DtypeError>(is_floating(options.dtype), "linspace: expected float32 or float64, got ",
                      options.dtype);
  const double step = steps > 1 ? (end - start) / static_cast<double>(steps - 1) : 0;
  // From both ends, so that each is met exactly.
  return made_of(steps, options.dtype, options.device, [&](int64_t i) {
    if (i < (steps + 1) / 2) return start + static_cast<double>(i) * step;
    return end - static_cast<double>(steps - 1 - i) * step;
  });
}

Tensor eye(int64_t n, TensorOptions options) {
  const int64_t elements = Shape{n, n}.numel("eye");
  return with_any(options.dtype, [&]<class T>() {
    std::vector<T> values = host_values<T>(elements);
    for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i * (n + 1))] = 1;
    return from_vector(values, {n, n}, options.device);
  });
}

}  // namespace sinter
