#include <algorithm>

#include "core/base/detail.h"
#include "core/program/passes.h"

namespace sinter {

std::vector<std::vector<int>> dependencies(const List& list) {
  struct Use {
    int entry;
    Range range;
    bool writes;
  };
  std::vector<std::vector<Use>> uses(
      list.buffers.size());  // of each buffer, those that still matter
  std::vector<std::vector<int>> result(list.entries.size());
  for (size_t i = 0; i < list.entries.size(); ++i) {
    std::vector<int>& before = result[i];
    const int entry = static_cast<int>(i);
    for (const OperandRef& ref : list.entries[i].operands) {
      const Range range = range_of(*ref.operand);
      for (const Use& use : uses[range.buffer]) {
        if (use.entry != entry && (use.writes || ref.writes()) && use.range.overlaps(range))
          before.push_back(use.entry);
      }
    }
    for (const OperandRef& ref : list.entries[i].operands) {
      const Range range = range_of(*ref.operand);
      std::vector<Use>& of_buffer = uses[range.buffer];
      // Whoever comes later and waits for this one has waited for those.
      if (ref.writes()) {
        std::erase_if(of_buffer, [&](const Use& use) {
          return use.entry != entry && range.covers(use.range);
        });
      }
      of_buffer.push_back({entry, range, ref.writes()});
    }
    std::sort(before.begin(), before.end());
    before.erase(std::unique(before.begin(), before.end()), before.end());
  }
  return result;
}

}  // namespace sinter
