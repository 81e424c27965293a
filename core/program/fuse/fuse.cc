#include <algorithm>
#include <utility>

#include "rewrite.h"

namespace sinter {

Rewriting::Rewriting(List& list)
    : list_(list), inserted_(list.entries.size()), replaced_(list.entries.size()) {
  numbers_.reserve(list.buffers.size());
  std::vector<int> number;  // of each operand's buffer
  std::vector<int> count;
  for (const Entry& entry : list.entries) {
    for (const OperandRef& ref : entry.operands) {
      const int next = static_cast<int>(count.size());
      const int n = numbers_.emplace(ref.operand->buffer, next).first->second;
      if (n == next) count.push_back(0);
      ++count[static_cast<size_t>(n)];
      number.push_back(n);
    }
  }
  first_.resize(count.size() + 1);
  for (size_t n = 0; n < count.size(); ++n) first_[n + 1] = first_[n] + count[n];
  uses_.resize(number.size());
  std::vector<int> at = first_;
  size_t k = 0;
  for (size_t i = 0; i < list.entries.size(); ++i) {
    for (const OperandRef& ref : list.entries[i].operands) {
      const Range range = range_of(*ref.operand);
      uses_[static_cast<size_t>(at[static_cast<size_t>(number[k++])]++)] = {
          static_cast<int>(i), range.begin, range.end, ref.reads(), ref.writes()};
    }
  }
}

std::span<const Rewriting::Use> Rewriting::uses(const Operand& x) const {
  const auto found = numbers_.find(x.buffer);
  if (found == numbers_.end()) return {};
  const auto n = static_cast<size_t>(found->second);
  return std::span(uses_).subspan(static_cast<size_t>(first_[n]),
                                  static_cast<size_t>(first_[n + 1] - first_[n]));
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

Operand Rewriting::make(const Shape& shape, DType dtype) {
  Operand x;
  x.buffer = new_storage_number();
  x.shape = shape;
  x.dtype = dtype;
  list_.buffers[x.buffer].bytes = static_cast<size_t>(x.bytes());
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

void fuse(List& list) {
  move_relu_before_pooling(list);
  fuse_conv2d_relu_pool(list);
  fuse_linear_layers(list);
  fuse_activations(list);
  skip_times_one(list);
  start_chains_from_loss(list);
  sum_slices_in_updates(list);
  produce_in_place(list);
}

}  // namespace sinter
