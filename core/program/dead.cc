#include <algorithm>

#include "core/base/detail.h"
#include "core/program/passes.h"

namespace sinter {

void dead(List& list) {
  // From the end: the parts of buffers whose values somebody later reads; of those that are there
  // when the program ends, all.
  std::vector<std::vector<Range>> needed(list.buffers.size());
  for (uint64_t b = 1; b < list.buffers.size(); ++b)
    if (const Buffer& buffer = list.buffers[b]; !buffer.is_virtual())
      needed[b].push_back({b, 0, static_cast<int64_t>(buffer.bytes)});
  const auto needed_of = [&](const Operand& x) -> std::vector<Range>& { return needed[x.buffer]; };
  const auto is_needed = [&](const Operand& x) {
    const Range range = range_of(x);
    const std::vector<Range>& parts = needed_of(x);
    return std::any_of(parts.begin(), parts.end(),
                       [&](const Range& part) { return part.overlaps(range); });
  };
  std::vector<Entry> kept;
  for (size_t i = list.entries.size(); i-- > 0;) {
    Entry& entry = list.entries[i];
    // One that writes nothing is there for something else.
    bool is_live = std::none_of(entry.operands.begin(), entry.operands.end(),
                                [](const OperandRef& ref) { return ref.writes(); });
    for (const OperandRef& ref : entry.operands)
      is_live = is_live || (ref.writes() && is_needed(*ref.operand));
    if (!is_live) continue;
    bool left_out = false;
    for (const OperandRef& ref : entry.operands) {
      if (ref.access != Access::kOptionalOut || is_needed(*ref.operand)) continue;
      *ref.operand = Operand();
      left_out = true;
    }
    if (left_out) entry.operands = entry.op->operands();
    for (const OperandRef& ref : entry.operands) {
      if (ref.reads() || !ref.writes()) continue;
      // Overwritten: what was there before is needed no more.
      const Range range = range_of(*ref.operand);
      std::erase_if(needed_of(*ref.operand), [&](const Range& part) { return range.covers(part); });
    }
    for (const OperandRef& ref : entry.operands)
      if (ref.reads()) needed_of(*ref.operand).push_back(range_of(*ref.operand));
    kept.push_back(std::move(entry));
  }
  std::reverse(kept.begin(), kept.end());
  list.entries = std::move(kept);
}

}  // namespace sinter
