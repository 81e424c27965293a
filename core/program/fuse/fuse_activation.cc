// ReLU behind a convolution, a linear layer or an addition.
#include "core/program/fuse/rewrite.h"

namespace sinter {

namespace {

// Whether it adds two arrays element by element.
bool adds_in_order(const op::Map* map) {
  return op::is_forward(map, op::Element::kAdd) && is_floating(map->y.dtype) &&
         map->a.buffer != 0 && map->b.buffer != 0 && map->a.numel() == map->y.numel() &&
         map->b.numel() == map->y.numel();
}

}  // namespace

// The operator that makes what a ReLU reads writes the ReLU's result. The bits are the same either
// way, so this may ask who else needs the value before the ReLU: then nothing would be saved.
void fuse_activations(List& list) {
  Rewriting rewriting(list);
  const auto end = static_cast<int>(rewriting.size());
  for (int i = 0; i < end; ++i) {
    const auto* relu = relu_at(rewriting, i);
    if (relu == nullptr || !list.buffer(relu->a).is_virtual()) continue;
    const int p = rewriting.producer(relu->a, i);
    if (p < 0 || rewriting.is_read(relu->a, p, i) || rewriting.is_read(relu->a, i, end)) continue;
    const auto unchanged = [&](const In& x) { return rewriting.unchanged(x, p, i); };
    if (const auto* conv = rewriting.at<op::Conv2dForward>(p)) {
      if (!unchanged(conv->x) || !unchanged(conv->weight) || !unchanged(conv->b)) continue;
      rewriting.replace(i,
                        op::Conv2dForward{conv->g, conv->x, conv->weight, conv->b, relu->y, true});
    } else if (const auto* linear = rewriting.at<op::LinearForward>(p)) {
      // On a GPU it is done where the bias is added.
      if (list.device.is_cuda() && linear->b.buffer == 0) continue;
      if (!unchanged(linear->x) || !unchanged(linear->w) || !unchanged(linear->b)) continue;
      rewriting.replace(
          i, op::LinearForward{linear->g, linear->x, linear->w, linear->b, relu->y, true});
    } else if (const auto* add = rewriting.at<op::Map>(p)) {
      if (!adds_in_order(add) || !unchanged(add->a) || !unchanged(add->b)) continue;
      rewriting.replace(i, op::map(op::Element::kAddRelu, add->a, add->b, relu->y));
    }
  }
  rewriting.finish();
}

}  // namespace sinter
