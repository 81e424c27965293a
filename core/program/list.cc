#include "core/program/list.h"

#include "core/base/detail.h"

namespace sinter {

Entry Entry::copy() const {
  Entry entry(op->clone());
  entry.module = module;
  entry.forward = forward;
  entry.values = values;
  return entry;
}

List List::copy() const {
  List list;
  list.device = device;
  list.entries.reserve(entries.size());
  for (const Entry& entry : entries) list.entries.push_back(entry.copy());
  list.buffers = buffers;
  return list;
}

namespace {

std::string operand_name(const OperandRef& ref) {
  return ref.index < 0 ? std::string(ref.name) : str(ref.name, "[", ref.index, "]");
}

}  // namespace

bool Matching::same(const Operand& x, const Operand& y) {
  const Buffer &bx = a_.buffer(x), &by = b_.buffer(y);
  if (bx.kind != by.kind || bx.bytes != by.bytes) return false;
  if (bx.kind == Buffer::Kind::kOutside || bx.kind == Buffer::Kind::kInput)
    return bx.storage_number == by.storage_number;
  if (pairs_[x.buffer] == 0 && reverse_[y.buffer] == 0) {
    pairs_[x.buffer] = y.buffer;
    reverse_[y.buffer] = x.buffer;
  }
  return pairs_[x.buffer] == y.buffer && reverse_[y.buffer] == x.buffer;
}

std::string difference(const List& a, const List& b, Matching& matching) {
  for (size_t i = 0; i < a.entries.size() || i < b.entries.size(); ++i) {
    if (i >= a.entries.size())
      return str("operator ", i, ", ", b.entries[i].op->name(), ", is new");
    if (i >= b.entries.size())
      return str("operator ", i, ", ", a.entries[i].op->name(), ", is gone");
    const Entry &x = a.entries[i], &y = b.entries[i];
    const Operator &one = *x.op, &other = *y.op;
    if (one.type() != other.type())
      return str("operator ", i, ", ", one.name(), ": now ", other.name());
    // In words only if it is needed: this runs for every operator.
    const auto where = [&](const auto&... what) {
      return str("operator ", i, ", ", one.name(),
                 x.module != nullptr && !x.module->empty() ? " of " + *x.module : "", ": ",
                 what...);
    };
    if (const std::string attribute = one.difference(other); !attribute.empty())
      return where(attribute);
    if (x.values != y.values) return where("other values come from the host");
    if (x.operands.size() != y.operands.size()) return where("other operands");
    for (size_t k = 0; k < x.operands.size(); ++k) {
      const OperandRef &r = x.operands[k], &s = y.operands[k];
      const Operand &p = *r.operand, &q = *s.operand;
      if (r.name != s.name || r.index != s.index) return where("other operands");
      const auto operand = [&](const auto&... what) { return where(operand_name(r), what...); };
      if (!(p.shape == q.shape)) return operand(" of shape ", p.shape, ", then ", q.shape);
      if (p.dtype != q.dtype) return operand(" of ", p.dtype, ", then ", q.dtype);
      if (p.offset != q.offset) return operand(" at byte ", p.offset, ", then ", q.offset);
      if (!matching.same(p, q))
        return operand(
            " is another array than before; change values in place (copy_, fill_) "
            "instead of making a new tensor");
    }
  }
  return "";
}

}  // namespace sinter
