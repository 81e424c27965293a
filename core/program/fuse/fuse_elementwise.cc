// Element-wise operators that feed each other, in one pass over memory.
#include <algorithm>
#include <queue>

#include "core/program/fuse/rewrite.h"

namespace sinter {

namespace {

using op::ChainStep;
using op::Map;

// What chains compute: floating arithmetic, and bools that are compared or chosen from.
bool fits(const Map& map, DType dtype) {
  const DType arithmetic = op::arithmetic_of(map);
  const element::Types types = op::info(map.kind).types;
  return arithmetic == dtype ||
         (arithmetic == kBool && (types == element::kTest || types == element::kSelect));
}
// The floating dtype of a chain that ends with `map`; bool if there is none.
DType chain_dtype(const Map& map) {
  const DType arithmetic = op::arithmetic_of(map);
  return is_floating(arithmetic) ? arithmetic : kBool;
}

constexpr int kOperands = 5;
const In* operand(const Map& map, int k) {
  const In* const all[kOperands] = {&map.a, &map.b, &map.c, &map.result, &map.dy};
  return all[k]->buffer != 0 ? all[k] : nullptr;
}

// A chain that ends with entry `end`: its operators, and what becomes of their results.
class Chain {
 public:
  Chain(Rewriting& list, int end, const std::vector<char>& taken)
      : list_(list), end_(end), taken_(taken), last_(*list.at<Map>(end)) {}

  // The operator that does the work of all, or none if there is only one.
  bool grow() {
    dtype_ = chain_dtype(last_);
    if (dtype_ == kBool) return false;
    members_ = {end_};
    // Later ones first: whoever reads a result is a member by the time that its producer is asked.
    std::priority_queue<int> candidates;
    const auto push = [&](int i) {
      for (int k = 0; k < kOperands; ++k)
        if (const In* x = operand(*list_.at<Map>(i), k)) candidates.push(list_.producer(*x, i));
    };
    push(end_);
    while (!candidates.empty() && static_cast<int>(members_.size()) < op::kMaxChainSteps) {
      const int p = candidates.top();
      candidates.pop();
      if (p < 0 || is_member(p) || !can_join(p)) continue;
      members_.push_back(p);
      if (build())
        push(p);
      else
        members_.pop_back();
    }
    return members_.size() > 1 && build();
  }

  const std::vector<int>& members() const { return members_; }
  op::MapChain take() { return std::move(chain_); }

 private:
  bool is_member(int i) const {
    return std::find(members_.begin(), members_.end(), i) != members_.end();
  }

  bool can_join(int p) const {
    const Map* map = list_.at<Map>(p);
    if (map == nullptr || taken_[static_cast<size_t>(p)] || !fits(*map, dtype_) ||
        !(map->y.shape == last_.y.shape) || !list_.unchanged(map->y, p, end_))
      return false;
    // It is computed later than before: what it reads must be there still, and nobody else may
    // have read its result by then.
    for (int k = 0; k < kOperands; ++k)
      if (const In* x = operand(*map, k))
        if (!list_.unchanged(*x, p, end_)) return false;
    const std::vector<int> readers = list_.readers(map->y, p, end_);
    return std::all_of(readers.begin(), readers.end(), [&](int i) { return is_member(i); });
  }

  // chain_ from the members; false if it is more than a kernel takes.
  bool build() {
    std::vector<int> order = members_;
    std::sort(order.begin(), order.end());
    chain_ = {};
    const auto is_input = [&](const In& x, int at) {
      const int p = list_.producer(x, at);
      return !is_member(p) || x.numel() != last_.y.numel();
    };
    // Inputs first, since the steps' results are numbered behind them.
    for (const int i : order)
      for (int k = 0; k < kOperands; ++k) {
        const In* x = operand(*list_.at<Map>(i), k);
        if (x == nullptr || !is_input(*x, i) || input(*x) >= 0) continue;
        // What a member makes a part of, or is read as another shape, is not there yet.
        for (const int before : order)
          if (before < i && range_of(list_.at<Map>(before)->y).overlaps(range_of(*x))) return false;
        chain_.x.push_back(*x);
      }
    const auto inputs = static_cast<int>(chain_.x.size());
    for (const int i : order) {
      const Map& map = *list_.at<Map>(i);
      ChainStep step;
      step.kind = map.kind;
      step.gradient = static_cast<int8_t>(map.gradient);
      step.dtype = op::arithmetic_of(map);
      std::copy(map.number, map.number + 3, step.number);
      for (int k = 0; k < kOperands; ++k) {
        const In* x = operand(map, k);
        if (x == nullptr) continue;
        const int from = is_input(*x, i)
                             ? input(*x)
                             : inputs + static_cast<int>(std::find(order.begin(), order.end(),
                                                                   list_.producer(*x, i)) -
                                                         order.begin());
        step.from[k] = static_cast<int8_t>(from);
      }
      const auto size = static_cast<int>(list_.size());
      if (i == end_ || !list_.list().buffer(map.y).is_virtual() ||
          list_.is_read(map.y, end_, size)) {
        step.to = static_cast<int8_t>(chain_.y.size());
        chain_.y.push_back(map.y);
      }
      chain_.steps.push_back(step);
    }
    return inputs <= op::kMaxChainInputs &&
           static_cast<int>(chain_.y.size()) <= op::kMaxChainOutputs && writes_apart();
  }

  // The input that is x, or -1.
  int input(const In& x) const {
    for (size_t k = 0; k < chain_.x.size(); ++k)
      if (same_range(chain_.x[k], x) && chain_.x[k].shape == x.shape &&
          chain_.x[k].dtype == x.dtype)
        return static_cast<int>(k);
    return -1;
  }

  // An element is written only where the same one alone is read.
  bool writes_apart() const {
    for (size_t k = 0; k < chain_.y.size(); ++k) {
      const Range y = range_of(chain_.y[k]);
      for (const In& x : chain_.x)
        if (range_of(x).overlaps(y) && !(range_of(x) == y)) return false;
      for (size_t m = 0; m < k; ++m)
        if (range_of(chain_.y[m]).overlaps(y)) return false;
    }
    return true;
  }

  Rewriting& list_;
  const int end_;
  const std::vector<char>& taken_;
  const Map& last_;
  DType dtype_ = kFloat32;
  std::vector<int> members_;
  op::MapChain chain_;
};

}  // namespace

// Each chain ends with an operator and takes in, looking back, the producers of what it reads whose
// results are of the same shape and were read by nobody else meanwhile. What others read later, it
// writes too. The bits are those of the operators one by one, so this may ask who reads.
void fuse_elementwise(List& list) {
  Rewriting rewriting(list);
  std::vector<char> taken(rewriting.size());
  for (int i = static_cast<int>(rewriting.size()); i-- > 0;) {
    if (rewriting.at<Map>(i) == nullptr || taken[static_cast<size_t>(i)]) continue;
    Chain chain(rewriting, i, taken);
    if (!chain.grow()) continue;
    for (const int member : chain.members()) {
      taken[static_cast<size_t>(member)] = true;
      if (member != i) rewriting.remove(member);
    }
    rewriting.replace(i, chain.take());
  }
  rewriting.finish();
}

}  // namespace sinter
