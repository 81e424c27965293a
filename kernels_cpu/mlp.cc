// Stacks of linear layers with ReLU: the parts one after another, in place where the framework
// would make a tensor for each. A layer is one matrix product, next to which the passes over its
// values cost little, and the results are those of the parts to the bit.
#include <algorithm>

#include "parallel.h"
#include "sinter/kernels.h"

namespace sinter {
namespace {

LinearShape layer_shape(const MlpShape& g, int l) { return {g.n, g.width[l], g.width[l + 1]}; }

bool has_relu(const MlpShape& g, int l) { return l + 1 < g.layers || g.relu_last; }

}  // namespace

template <class T> bool mlp_fits(const Cpu&, const MlpShape&) { return true; }

template <class T> void mlp_forward(const Cpu& ctx, const MlpShape& g, const T* x,
                                    std::span<const MlpLayer<T>> layers) {
  for (int l = 0; l < g.layers; ++l) {
    const MlpLayer<T>& layer = layers[static_cast<size_t>(l)];
    linear_forward(ctx, layer_shape(g, l), x, layer.w, layer.b, layer.y);
    if (has_relu(g, l)) relu_forward<T>(ctx, g.n * g.width[l + 1], layer.y, layer.y);
    x = layer.y;
  }
}

template <class T> void mlp_backward(const Cpu& ctx, const MlpShape& g, const T* x,
                                     std::span<const MlpLayer<T>> layers, const T* dy, T* dx,
                                     std::span<const MlpGrads<T>> grads) {
  int lowest = 0;  // the lowest layer whose gradients lead to something asked for
  while (!dx && lowest < g.layers && !grads[static_cast<size_t>(lowest)].dw &&
         !grads[static_cast<size_t>(lowest)].db)
    ++lowest;
  // The gradient of a layer's result and, in the other one, of its input.
  const int64_t size = g.n * *std::max_element(g.width, g.width + g.layers + 1);
  const Scratch<T> one(size), other(size);
  T *dz = one.get(), *dh = other.get();
  for (int l = g.layers - 1; l >= lowest; --l) {
    const MlpLayer<T>& layer = layers[static_cast<size_t>(l)];
    const MlpGrads<T>& grad = grads[static_cast<size_t>(l)];
    if (has_relu(g, l)) {
      relu_backward<T>(ctx, g.n * g.width[l + 1], layer.y, dy, dz);
      dy = dz;
    }
    linear_backward_weights(ctx, layer_shape(g, l),
                            l > 0 ? layers[static_cast<size_t>(l - 1)].y : x, dy, grad.dw, grad.db);
    if (l > lowest || dx) {
      T* to = l > 0 ? dh : dx;
      linear_backward_data(ctx, layer_shape(g, l), dy, layer.w, to);
      dy = to;
      std::swap(dz, dh);
    }
  }
}

#define SINTER_INSTANTIATE(T)                                                                     \
  template bool mlp_fits<T>(const Cpu&, const MlpShape&);                                         \
  template void mlp_forward(const Cpu&, const MlpShape&, const T*, std::span<const MlpLayer<T>>); \
  template void mlp_backward(const Cpu&, const MlpShape&, const T*, std::span<const MlpLayer<T>>, \
                             const T*, T*, std::span<const MlpGrads<T>>);
SINTER_INSTANTIATE(float)
SINTER_INSTANTIATE(double)
#undef SINTER_INSTANTIATE

}  // namespace sinter
