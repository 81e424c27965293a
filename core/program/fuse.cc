#include <algorithm>
#include <optional>

#include "passes.h"

namespace sinter {

namespace {

// Who writes what in a list, and when.
class Writes {
 public:
  explicit Writes(const List& list) : list_(list) {
    for (size_t i = 0; i < list.entries.size(); ++i) add_all(i);
  }
  void add_all(size_t i) {
    for (const OperandRef& ref : list_.entries[i].operands)
      if (ref.writes()) add(i, *ref.operand);
  }
  void add(size_t i, const Operand& x) {
    std::vector<Write>& writes = writes_[x.buffer];
    const Write write{static_cast<int>(i), range_of(x)};
    writes.insert(
        std::upper_bound(writes.begin(), writes.end(), write,
                         [](const Write& a, const Write& b) { return a.entry < b.entry; }),
        write);
  }
  void remove(size_t i, const Operand& x) {
    std::erase_if(writes_[x.buffer], [&](const Write& w) {
      return w.entry == static_cast<int>(i) && w.range == range_of(x);
    });
  }

  // The operator that made the value that x has before entry i, if one of the list made it as a
  // whole; -1 if not.
  int producer(const Operand& x, size_t i) const {
    const auto found = writes_.find(x.buffer);
    if (found == writes_.end()) return -1;
    const Range range = range_of(x);
    for (auto it = found->second.rbegin(); it != found->second.rend(); ++it) {
      if (it->entry >= static_cast<int>(i) || !it->range.overlaps(range)) continue;
      return it->range == range ? it->entry : -1;
    }
    return -1;
  }
  // Whether x keeps its value from behind entry `from` to before entry `to`.
  bool unchanged(const Operand& x, int from, size_t to) const {
    const auto found = writes_.find(x.buffer);
    if (found == writes_.end()) return true;
    const Range range = range_of(x);
    return std::none_of(found->second.begin(), found->second.end(), [&](const Write& w) {
      return from < w.entry && w.entry < static_cast<int>(to) && w.range.overlaps(range);
    });
  }

 private:
  struct Write {
    int entry;
    Range range;
  };
  const List& list_;
  std::unordered_map<uint64_t, std::vector<Write>> writes_;
};

// The operator of entry i, if it is an Op.
template <class Op> Op* at(List& list, int i) {
  return i < 0 ? nullptr : list.entries[static_cast<size_t>(i)].op->template as<Op>();
}

void move_to(Operand& x, const Operand& place) {
  x.buffer = place.buffer;
  x.offset = place.offset;
}

// x * 1 is x: who reads the product reads x.
void skip_times_one(List& list, const Writes& writes, size_t i) {
  for (const OperandRef& ref : list.entries[i].operands) {
    if (ref.access != Access::kIn) continue;
    const int p = writes.producer(*ref.operand, i);
    const auto* product = at<op::Binary>(list, p);
    if (product == nullptr || product->kind != op::BinaryOp::kMul) continue;
    for (const auto& [x, one] : {std::pair(&product->a, &product->b), {&product->b, &product->a}}) {
      const auto* fill = at<op::Fill>(list, writes.producer(*one, static_cast<size_t>(p)));
      if (fill == nullptr || fill->value != 1 || x->numel() != product->y.numel() ||
          !writes.unchanged(*x, p, i))
        continue;
      move_to(*ref.operand, *x);
      break;
    }
  }
}

// The gradients of linear layers whose last result is the logits of a loss: the chain makes the
// loss's gradient itself, and waits for the logits only.
void start_chain_from_loss(List& list, Writes& writes, size_t i) {
  auto* chain = at<op::MlpBackwardChain>(list, static_cast<int>(i));
  if (chain == nullptr || chain->dy.buffer == 0) return;
  const int p = writes.producer(chain->dy, i);
  const auto* loss = at<op::CrossEntropy>(list, p);
  if (loss == nullptr || !(range_of(loss->dlogits) == range_of(chain->dy)) ||
      !writes.unchanged(loss->logits, p, i) || !writes.unchanged(loss->labels, p, i))
    return;
  const bool can = with_context(
      list.device, [&](const auto& ctx) { return mlp_starts_from_loss(ctx, chain->g); });
  if (!can) return;
  op::MlpBackwardChain started = *chain;
  started.loss = loss->g;
  started.logits = loss->logits;
  started.labels = loss->labels;
  started.dz.back() = Out{static_cast<const Operand&>(chain->dy)};
  started.dy = In();
  list.entries[i].set(std::make_unique<OperatorOf<op::MlpBackwardChain>>(std::move(started)));
  const auto* now = at<op::MlpBackwardChain>(list, static_cast<int>(i));
  writes.add(i, now->dz.back());
}

// Gradients that are sums over slices: the update adds them up itself.
void sum_slices_in_update(List& list, const Writes& writes, size_t i) {
  const auto* adam = at<op::AdamStep>(list, static_cast<int>(i));
  if (adam == nullptr || !list.device.is_cuda()) return;
  std::optional<op::AdamStep> step;
  for (size_t k = 0; k < adam->g.size(); ++k) {
    const int p = writes.producer(adam->g[k], i);
    const auto* sum = at<op::SumSlices>(list, p);
    if (sum == nullptr || !writes.unchanged(sum->partial, p, i)) continue;
    if (!step) {
      step = *adam;
      step->first.resize(adam->g.size(), -1);
    }
    step->g[k] = sum->partial;
    step->first[k] = sum->first;
  }
  if (step) list.entries[i].set(std::make_unique<OperatorOf<op::AdamStep>>(std::move(*step)));
}

// A value that is copied to its place: its producer writes it there.
void produce_in_place(List& list, Writes& writes, size_t i, std::vector<size_t>& taken_out) {
  const auto* copy = at<op::Copy>(list, static_cast<int>(i));
  if (copy == nullptr || !list.buffer(copy->x).is_virtual()) return;
  const int p = writes.producer(copy->x, i);
  if (p < 0) return;
  // The place must be nobody's meanwhile, and the value nobody else's.
  const Range from = range_of(copy->x), to = range_of(copy->y);
  for (size_t k = static_cast<size_t>(p); k < list.entries.size(); ++k) {
    if (k == i) continue;
    for (const OperandRef& ref : list.entries[k].operands) {
      const Range range = range_of(*ref.operand);
      if (k <= i && range.overlaps(to)) return;
      if (range.overlaps(from) &&
          !(k == static_cast<size_t>(p) && ref.access == Access::kOut && range == from))
        return;
    }
  }
  Entry& producer = list.entries[static_cast<size_t>(p)];
  for (const OperandRef& ref : producer.operands) {
    if (ref.access != Access::kOut || !(range_of(*ref.operand) == from)) continue;
    writes.remove(static_cast<size_t>(p), *ref.operand);
    move_to(*ref.operand, copy->y);
    writes.add(static_cast<size_t>(p), *ref.operand);
    writes.remove(i, copy->y);
    taken_out.push_back(i);
    list.entries[i].operands.clear();
    return;
  }
}

}  // namespace

void fuse(List& list) {
  Writes writes(list);
  for (size_t i = 0; i < list.entries.size(); ++i) skip_times_one(list, writes, i);
  std::vector<size_t> taken_out;
  for (size_t i = 0; i < list.entries.size(); ++i) {
    start_chain_from_loss(list, writes, i);
    sum_slices_in_update(list, writes, i);
    produce_in_place(list, writes, i, taken_out);
  }
  for (const size_t i : taken_out) list.entries[i].op = nullptr;
  std::erase_if(list.entries, [](const Entry& entry) { return entry.op == nullptr; });
}

}  // namespace sinter
