// Checks of arguments that operators share.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// Throws ValueError, naming the operator and its argument, if `tensor` is undefined.
inline void require_defined(const char* op, const char* argument, const Tensor& tensor) {
  require<ValueError>(tensor.defined(), op, ": expected a tensor as ", argument,
                      ", got an undefined tensor");
}

// Throws DtypeError, naming the operator, unless x is float32 or float64.
inline void require_floating(const char* op, const Tensor& x) {
  require<DtypeError>(is_floating(x.dtype()), op, ": expected float32 or float64, got ", x.dtype());
}

}  // namespace sinter
