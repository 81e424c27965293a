#include <algorithm>

#include "core/base/detail.h"
#include "core/program/order.h"
#include "core/program/passes.h"

namespace sinter {

namespace {

struct Block {
  Buffer* buffer;
  std::vector<int> uses;    // ascending
  std::vector<int> begins;  // those that follow no other: several if it is written part by part
  int64_t end() const { return buffer->offset + static_cast<int64_t>(buffer->bytes); }
};

// Any access is aligned there; on a CPU no two blocks share a line of the cache.
int64_t aligned(const List& list, int64_t offset) {
  const int64_t unit = list.device.is_cuda() ? 512 : 64;
  return (offset + unit - 1) / unit * unit;
}

}  // namespace

int64_t memory_without_sharing(List& list) {
  int64_t size = 0;
  for (Buffer& buffer : list.buffers) {
    if (!buffer.is_virtual()) continue;
    buffer.offset = size;
    size = aligned(list, size + static_cast<int64_t>(buffer.bytes));
  }
  return size;
}

int64_t memory(List& list, const Schedule& schedule) {
  Order order(list.entries.size());
  const bool in_order = schedule.lanes == 1;
  std::vector<Block> blocks;
  std::vector<size_t> block_of(list.buffers.size());  // one more; 0: none yet
  for (size_t i = 0; i < list.entries.size(); ++i) {
    const auto entry = static_cast<int>(i);
    if (!in_order)
      for (const int p : schedule.places[i].after) order.add(p, entry);
    for (const OperandRef& ref : list.entries[i].operands) {
      Buffer& buffer = list.buffers[ref.operand->buffer];
      if (!buffer.is_virtual()) continue;
      size_t& block = block_of[ref.operand->buffer];
      if (block == 0) {
        blocks.push_back({&buffer, {}, {}});
        block = blocks.size();
      }
      std::vector<int>& uses = blocks[block - 1].uses;
      if (!uses.empty() && uses.back() == entry) continue;
      const bool follows = std::any_of(uses.begin(), uses.end(), [&](int use) {
        return in_order || order.precedes(use, entry);
      });
      if (!follows) blocks[block - 1].begins.push_back(entry);
      uses.push_back(entry);
    }
  }
  // Whether a is over before b begins, which is not the one of the two that begins first.
  const auto is_over = [&](const Block& a, const Block& b) {
    if (in_order) return a.uses.back() < b.uses.front();
    return std::all_of(a.uses.rbegin(), a.uses.rend(), [&](int use) {
      return std::all_of(b.begins.begin(), b.begins.end(),
                         [&](int begin) { return use < begin && order.precedes(use, begin); });
    });
  };
  int64_t size = 0;
  std::vector<const Block*> placed, beside;
  for (Block& block : blocks) {
    beside.clear();
    for (const Block* other : placed)
      if (!is_over(*other, block)) beside.push_back(other);
    std::sort(beside.begin(), beside.end(),
              [](const Block* a, const Block* b) { return a->buffer->offset < b->buffer->offset; });
    int64_t offset = 0;
    const auto bytes = static_cast<int64_t>(block.buffer->bytes);
    for (const Block* other : beside) {
      if (offset + bytes <= other->buffer->offset) break;
      offset = std::max(offset, aligned(list, other->end()));
    }
    block.buffer->offset = offset;
    placed.push_back(&block);
    size = std::max(size, block.end());
  }
  return size;
}

}  // namespace sinter
