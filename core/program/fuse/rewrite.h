// What the fuse pass's rewrites are written with. Private to core.
#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/base/detail.h"
#include "core/program/passes.h"
#include "sinter/operators.h"

namespace sinter {

// One walk over a list. It looks at the list as it was before the walk; what it puts in the place
// of operators is there when it is finished. A new operator writes what others wrote before, which
// dead() removes once nobody needs them.
class Rewriting {
 public:
  explicit Rewriting(List& list);

  size_t size() const { return list_.entries.size(); }
  const List& list() const { return list_; }
  // The operator of entry i, if it is an Op; null also for i < 0.
  template <class Op> const Op* at(int i) const {
    return i < 0 ? nullptr : list_.entries[static_cast<size_t>(i)].op->template as<Op>();
  }

  // The entry that made the value which x has before entry i, if one made it as a whole; else -1.
  int producer(const Operand& x, int i) const;
  // Whether x keeps its value from behind entry `from` to before entry `to`.
  bool unchanged(const Operand& x, int from, int to) const;
  // Whether an entry between the two reads x.
  bool is_read(const Operand& x, int from, int to) const;

  // Those that do.
  std::vector<int> readers(const Operand& x, int from, int to) const;

  // A new buffer of the program.
  Operand make(const Shape& shape, DType dtype);
  template <class Op> void insert_before(int i, Op op) {
    is_changed_ = true;
    inserted_[static_cast<size_t>(i)].push_back(entry_like(i, std::move(op)));
  }
  template <class Op> void replace(int i, Op op) {
    replaced_[static_cast<size_t>(i)] = true;
    insert_before(i, std::move(op));
  }
  void remove(int i) {
    is_changed_ = true;
    replaced_[static_cast<size_t>(i)] = true;
  }
  bool stays(int i) const { return !replaced_[static_cast<size_t>(i)]; }
  void finish();

 private:
  struct Use {
    int entry;
    int64_t begin, end;
    bool reads, writes;
    bool overlaps(const Range& range) const { return begin < range.end && range.begin < end; }
  };
  std::span<const Use> uses(const Operand& x) const;
  template <class Op> Entry entry_like(int i, Op op) const {
    Entry entry(std::make_unique<OperatorOf<Op>>(std::move(op)));
    entry.module = list_.entries[static_cast<size_t>(i)].module;
    entry.forward = list_.entries[static_cast<size_t>(i)].forward;
    return entry;
  }

  List& list_;
  // Uses by buffer, in the list's order: those of buffer b are [first_[b], first_[b + 1]).
  std::vector<int> first_;
  std::vector<Use> uses_;
  std::vector<std::vector<Entry>> inserted_;
  std::vector<char> replaced_;
  bool is_changed_ = false;
};

// Entry i, if it is a ReLU or its gradient; else null.
inline const op::Map* relu_at(const Rewriting& list, int i) {
  const auto* map = list.at<op::Map>(i);
  return op::is_relu(map) ? map : nullptr;
}
inline const op::Map* relu_backward_at(const Rewriting& list, int i) {
  const auto* map = list.at<op::Map>(i);
  return op::is_relu_backward(map) ? map : nullptr;
}

inline bool same_range(const Operand& a, const Operand& b) { return range_of(a) == range_of(b); }

// The rewrites, in the order in which fuse runs them; each is described where it is defined.
void move_relu_before_pooling(List& list);  // fuse_conv2d.cc
void fuse_conv2d_relu_pool(List& list);
void fuse_linear_layers(List& list);  // fuse_linear.cc
void fuse_activations(List& list);    // fuse_activation.cc
void skip_times_one(List& list);      // fuse_step.cc
void start_chains_from_loss(List& list);
void sum_slices_in_updates(List& list);
void produce_in_place(List& list);

}  // namespace sinter
