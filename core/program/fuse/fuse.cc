#include <algorithm>
#include <utility>

#include "rewrite.h"

namespace sinter {

Rewriting::Rewriting(List& list)
    : list_(list), inserted_(list.entries.size()), replaced_(list.entries.size()) {
  for (size_t i = 0; i < list.entries.size(); ++i) {
    for (const OperandRef& ref : list.entries[i].operands) {
      uses_[ref.operand->buffer].push_back(
          {static_cast<int>(i), range_of(*ref.operand), ref.reads(), ref.writes()});
    }
  }
}

int Rewriting::producer(const Operand& x, int i) const {
  const auto found = uses_.find(x.buffer);
  if (found == uses_.end()) return -1;
  const Range range = range_of(x);
  for (auto use = found->second.rbegin(); use != found->second.rend(); ++use) {
    if (use->entry >= i || !use->writes || !use->range.overlaps(range)) continue;
    return use->range == range ? use->entry : -1;
  }
  return -1;
}

bool Rewriting::unchanged(const Operand& x, int from, int to) const {
  const auto found = uses_.find(x.buffer);
  if (found == uses_.end()) return true;
  const Range range = range_of(x);
  return std::none_of(found->second.begin(), found->second.end(), [&](const Use& use) {
    return use.writes && from < use.entry && use.entry < to && use.range.overlaps(range);
  });
}

bool Rewriting::is_read(const Operand& x, int from, int to) const {
  const auto found = uses_.find(x.buffer);
  if (found == uses_.end()) return false;
  const Range range = range_of(x);
  return std::any_of(found->second.begin(), found->second.end(), [&](const Use& use) {
    return use.reads && from < use.entry && use.entry < to && use.range.overlaps(range);
  });
}

Operand Rewriting::make(const Shape& shape, DType dtype) {
  Operand x;
  x.buffer = new_storage_number();
  x.shape = shape;
  x.dtype = dtype;
  list_.buffers[x.buffer].bytes = static_cast<size_t>(x.bytes());
  return x;
}

void Rewriting::finish() {
  std::vector<Entry> entries;
  for (size_t i = 0; i < list_.entries.size(); ++i) {
    for (Entry& entry : inserted_[i]) entries.push_back(std::move(entry));
    if (!replaced_[i]) entries.push_back(std::move(list_.entries[i]));
  }
  list_.entries = std::move(entries);
}

void fuse(List& list) {
  move_relu_before_pooling(list);
  fuse_conv2d_relu_pool(list);
  fuse_linear_layers(list);
  skip_times_one(list);
  start_chains_from_loss(list);
  sum_slices_in_updates(list);
  produce_in_place(list);
}

}  // namespace sinter
