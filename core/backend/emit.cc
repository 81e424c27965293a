#include "sinter/emit.h"

#include "core/base/detail.h"
#include "core/tensor/tensor_impl.h"

namespace sinter {

Operand operand_of(const Tensor& t) {
  Operand x;
  if (!t.defined()) return x;
  const Tensor::Impl& impl = *t.impl_;
  x.storage = impl.storage.get();
  x.buffer = x.storage->number;
  x.offset = impl.start;
  x.shape = impl.shape;
  x.dtype = impl.dtype;
  return x;
}

In in(const Tensor& t) { return {operand_of(t)}; }
Out out(const Tensor& t) { return {operand_of(t)}; }
OptionalOut optional_out(const Tensor& t) { return {out(t)}; }
InOut inout(const Tensor& t) { return {operand_of(t)}; }

void detail::bind_operand(const OperandRef& ref) {
  Operand& x = *ref.operand;
  x.address = x.storage->use() + x.offset;
  if (ref.writes()) x.storage->version.fetch_add(1, std::memory_order_relaxed);
}

Device detail::device_of(const Operand& operand) { return operand.storage->device; }

}  // namespace sinter
