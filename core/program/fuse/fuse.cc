#include <algorithm>
#include <utility>

#include "core/base/detail.h"
#include "core/program/fuse/rewrite.h"

namespace sinter {

Rewriting::Rewriting(List& list)
    : list_(list), inserted_(list.entries.size()), replaced_(list.entries.size()) {
  first_.resize(list.buffers.size() + 1);
  for (const Entry& entry : list.entries)
    for (const OperandRef& ref : entry.operands) ++first_[ref.operand->buffer + 1];
  for (size_t b = 1; b < first_.size(); ++b) first_[b] += first_[b - 1];
  uses_.resize(static_cast<size_t>(first_.back()));
  std::vector<int> at = first_;
  for (size_t i = 0; i < list.entries.size(); ++i) {
    for (const OperandRef& ref : list.entries[i].operands) {
      const Range range = range_of(*ref.operand);
      uses_[static_cast<size_t>(at[range.buffer]++)] = {static_cast<int>(i), range.begin, range.end,
                                                        ref.reads(), ref.writes()};
    }
  }
}

std::span<const Rewriting::Use> Rewriting::uses(const Operand& x) const {
  if (x.buffer + 1 >= first_.size()) return {};  // made since
  const auto first = static_cast<size_t>(first_[x.buffer]);
  return std::span(uses_).subspan(first, static_cast<size_t>(first_[x.buffer + 1]) - first);
}

int Rewriting::producer(const Operand& x, int i) const {
  const std::span<const Use> all = uses(x);
  const Range range = range_of(x);
  for (auto use = all.rbegin(); use != all.rend(); ++use) {
    if (use->entry >= i || !use->writes || !use->overlaps(range)) continue;
    return use->begin == range.begin && use->end == range.end ? use->entry : -1;
  }
  return -1;
}

bool Rewriting::unchanged(const Operand& x, int from, int to) const {
  const std::span<const Use> all = uses(x);
  const Range range = range_of(x);
  return std::none_of(all.begin(), all.end(), [&](const Use& use) {
    return use.writes && from < use.entry && use.entry < to && use.overlaps(range);
  });
}

bool Rewriting::is_read(const Operand& x, int from, int to) const {
  const std::span<const Use> all = uses(x);
  const Range range = range_of(x);
  return std::any_of(all.begin(), all.end(), [&](const Use& use) {
    return use.reads && from < use.entry && use.entry < to && use.overlaps(range);
  });
}

std::vector<int> Rewriting::readers(const Operand& x, int from, int to) const {
  std::vector<int> entries;
  const Range range = range_of(x);
  for (const Use& use : uses(x))
    if (use.reads && from < use.entry && use.entry < to && use.overlaps(range))
      entries.push_back(use.entry);
  return entries;
}

Operand Rewriting::make(const Shape& shape, DType dtype) {
  Operand x;
  x.buffer = list_.buffers.size();
  x.shape = shape;
  x.dtype = dtype;
  list_.buffers.emplace_back().bytes = static_cast<size_t>(x.bytes());
  return x;
}

void Rewriting::finish() {
  if (!is_changed_) return;
  std::vector<Entry> entries;
  entries.reserve(list_.entries.size());
  for (size_t i = 0; i < list_.entries.size(); ++i) {
    for (Entry& entry : inserted_[i]) entries.push_back(std::move(entry));
    if (!replaced_[i]) entries.push_back(std::move(list_.entries[i]));
  }
  list_.entries = std::move(entries);
}

void fuse_layers(List& list) {
  move_relu_before_pooling(list);
  fuse_conv2d_relu_pool(list);
  fuse_linear_layers(list);
}

void fuse_between(List& list) {
  fuse_activations(list);
  skip_times_one(list);
  start_chains_from_loss(list);
  sum_slices_in_updates(list);
  produce_in_place(list);
}

}  // namespace sinter
