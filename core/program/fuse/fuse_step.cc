// What is between the parts of a training step.
#include <optional>

#include "core/base/detail.h"
#include "core/program/fuse/rewrite.h"

namespace sinter {

// x * 1 is x: who reads the product reads x. That is the gradient of a loss times the 1 that a
// backward pass begins with.
void skip_times_one(List& list) {
  const Rewriting before(list);
  for (int i = 0; i < static_cast<int>(before.size()); ++i) {
    for (const OperandRef& ref : list.entries[static_cast<size_t>(i)].operands) {
      if (ref.access != Access::kIn) continue;
      const int p = before.producer(*ref.operand, i);
      const auto* product = before.at<op::Map>(p);
      if (!op::is_forward(product, op::Element::kMul)) continue;
      for (const auto& [x, one] :
           {std::pair(&product->a, &product->b), std::pair(&product->b, &product->a)}) {
        const auto* fill = before.at<op::Fill>(before.producer(*one, p));
        if (fill == nullptr || fill->value != 1 || x->buffer == 0 ||
            x->numel() != product->y.numel() || !before.unchanged(*x, p, i))
          continue;
        ref.operand->buffer = x->buffer;
        ref.operand->offset = x->offset;
        break;
      }
    }
  }
}

// The gradients of linear layers whose last result is the logits of a loss: the chain makes the
// loss's gradient itself, and so waits for the logits only.
void start_chains_from_loss(List& list) {
  Rewriting rewriting(list);
  for (int i = 0; i < static_cast<int>(rewriting.size()); ++i) {
    const auto* chain = rewriting.at<op::MlpBackwardChain>(i);
    if (chain == nullptr || chain->dy.buffer == 0) continue;
    const int p = rewriting.producer(chain->dy, i);
    const auto* loss = rewriting.at<op::CrossEntropy>(p);
    if (loss == nullptr || !same_range(loss->dlogits, chain->dy) || loss->g.n != chain->g.n ||
        loss->g.classes != chain->g.width[chain->g.layers] || loss->g.inner != 1 ||
        loss->g.reduction == Reduction::kNone || loss->weight.buffer != 0 ||
        !rewriting.unchanged(loss->logits, p, i) || !rewriting.unchanged(loss->labels, p, i))
      continue;
    const bool can = with_context(
        list.device, [&](const auto& ctx) { return mlp_starts_from_loss(ctx, chain->g); });
    if (!can) continue;
    op::MlpBackwardChain started = *chain;
    started.loss = loss->g;
    started.logits = loss->logits;
    started.labels = loss->labels;
    started.dz.back() = Out{static_cast<const Operand&>(chain->dy)};
    started.dy = In();
    rewriting.replace(i, std::move(started));
  }
  rewriting.finish();
}

// Gradients that are sums over slices: Adam adds them up itself.
void sum_slices_in_updates(List& list) {
  if (!list.device.is_cuda()) return;
  Rewriting rewriting(list);
  for (int i = 0; i < static_cast<int>(rewriting.size()); ++i) {
    const auto* adam = rewriting.at<op::AdamStep>(i);
    if (adam == nullptr) continue;
    std::optional<op::AdamStep> step;
    for (size_t k = 0; k < adam->g.size(); ++k) {
      const int p = rewriting.producer(adam->g[k], i);
      const auto* sum = rewriting.at<op::SumSlices>(p);
      if (sum == nullptr || !rewriting.unchanged(sum->partial, p, i)) continue;
      if (!step) {
        step = *adam;
        step->first.resize(adam->g.size(), -1);
      }
      step->g[k] = sum->partial;
      step->first[k] = sum->first;
    }
    if (step) rewriting.replace(i, std::move(*step));
  }
  rewriting.finish();
}

// A value that is copied to its place: its producer writes it there.
void produce_in_place(List& list) {
  Rewriting rewriting(list);
  for (int i = 0; i < static_cast<int>(rewriting.size()); ++i) {
    const auto* copy = rewriting.at<op::Copy>(i);
    if (copy == nullptr || !list.buffer(copy->x).is_virtual()) continue;
    const int p = rewriting.producer(copy->x, i);
    if (p < 0 || !rewriting.stays(p)) continue;
    // Kernels may take it that what they write begins at a block's alignment.
    constexpr int64_t kAlignment = 512;
    if (copy->y.offset % kAlignment != 0 && copy->y.numel() != 1) continue;
    // The place must be nobody's meanwhile, and the value nobody else's.
    const int end = static_cast<int>(rewriting.size());
    const bool is_free =
        rewriting.unchanged(copy->y, p - 1, i) && !rewriting.is_read(copy->y, p - 1, i) &&
        !rewriting.is_read(copy->x, p - 1, i) && !rewriting.is_read(copy->x, i, end);
    if (!is_free) continue;
    Entry& producer = list.entries[static_cast<size_t>(p)];
    for (const OperandRef& ref : producer.operands) {
      if (ref.access != Access::kOut || !same_range(*ref.operand, copy->x)) continue;
      ref.operand->buffer = copy->y.buffer;
      ref.operand->offset = copy->y.offset;
      rewriting.remove(i);
      break;
    }
  }
  rewriting.finish();
}

}  // namespace sinter
