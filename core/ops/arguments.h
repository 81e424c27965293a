// Checks of arguments that operators share.
#pragma once

#include <new>
#include <ostream>
#include <stdexcept>
#include <vector>

#include "core/base/detail.h"
#include "sinter/tensor.h"

namespace sinter {

// Throws ValueError, naming the operator and its argument, if `tensor` is undefined.
inline void require_defined(const char* op, const char* argument, const Tensor& tensor) {
  require<ValueError>(tensor.defined(), op, ": expected a tensor as ", argument,
                      ", got an undefined tensor");
}

// Dimension `dim` (negative from the end) of x; ShapeError, naming the operator. A scalar has one,
// of one element.
inline int dimension(const char* op, const Tensor& x, int dim) {
  if (x.rank() > 0) return x.shape().index(dim, op);
  require<ShapeError>(dim == 0 || dim == -1, op, ": no dimension ", dim, " in ", x.shape());
  return 0;
}

// Throws DtypeError, naming the operator, unless x is float32 or float64.
inline void require_floating(const char* op, const Tensor& x) {
  require<DtypeError>(is_floating(x.dtype()), op, ": expected float32 or float64, got ", x.dtype());
}

// Values on the host, zeros, to be filled.
template <class T> std::vector<T> host_values(int64_t n) try {
  return std::vector<T>(static_cast<size_t>(n));
} catch (const std::bad_alloc&) {
  throw OutOfMemoryError(str("out of host memory: cannot allocate ", n, " numbers"));
} catch (const std::length_error&) {
  throw OutOfMemoryError(str("out of host memory: cannot allocate ", n, " numbers"));
}

// A tensor's shape in a message, put into words only if the message is needed: these checks run at
// every call.
struct ShapeOf {
  const Tensor& tensor;
};
inline std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
  return shape.tensor.defined() ? out << shape.tensor.shape() : out << "an undefined tensor";
}

// Every tensor beside x must share its dtype and device.
inline void check_like(const char* op, const char* what, const Tensor& t, const Tensor& x) {
  if (t.dtype() != x.dtype()) {
    throw DtypeError(str(op, ": expected ", what, " of x's dtype ", x.dtype(), ", got ", t.dtype(),
                         "; convert with to()"));
  }
  if (t.device() != x.device()) {
    throw DeviceError(str(op, ": expected ", what, " on x's device ", x.device(), ", got ",
                          t.device(), "; move with to()"));
  }
}

}  // namespace sinter
