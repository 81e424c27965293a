// From a tensor's run-time device and dtype to a kernel's context and template argument.
#pragma once

#include "sinter/runtime.h"
#include "sinter/tensor.h"

namespace sinter {

// f(ctx), ctx being the Cpu or Cuda context of `device`.
template <class F> decltype(auto) dispatch_device(Device device, F&& f) {
#ifdef SINTER_WITH_CUDA
  if (device.is_cuda()) return f(cuda_context(device.index));
#else
  if (device.is_cuda()) require_usable(device);  // throws
#endif
  return f(Cpu{});
}

// f.operator()<T>(ctx) with T float or double after x's dtype. Throws DtypeError naming `op` for
// others.
template <class F> decltype(auto) dispatch(const char* op, const Tensor& x, F&& f) {
  return dispatch_device(x.device(), [&](const auto& ctx) -> decltype(auto) {
    if (x.dtype() == kFloat64) return f.template operator()<double>(ctx);
    require<DtypeError>(x.dtype() == kFloat32, op, ": expected float32 or float64, got ",
                        x.dtype());
    return f.template operator()<float>(ctx);
  });
}

// f.operator()<T>(ctx) for every element type.
template <class F> decltype(auto) dispatch_any(DType dtype, Device device, F&& f) {
  return dispatch_device(device, [&](const auto& ctx) -> decltype(auto) {
    switch (dtype) {
      case kFloat64:
        return f.template operator()<double>(ctx);
      case kInt32:
        return f.template operator()<int32_t>(ctx);
      case kInt64:
        return f.template operator()<int64_t>(ctx);
      case kUInt8:
        return f.template operator()<uint8_t>(ctx);
      case kFloat32:
        break;
    }
    return f.template operator()<float>(ctx);
  });
}

}  // namespace sinter
