// Linear layers one after another, with ReLUs between them: one operator forward, one for the
// gradients of what is between them, one for those of the weights.
#include <algorithm>

#include "core/base/detail.h"
#include "core/program/fuse/rewrite.h"

namespace sinter {

namespace {

bool fits(const List& list, const op::MlpShape& g, DType dtype) {
  return with_context(list.device, [&](const auto& ctx) { return mlp_fits(ctx, g, dtype); });
}

// Whether the upper layer takes the lower one's result as it is: the same elements in another shape
// are other rows.
bool fit_together(const op::LinearShape& lower, const op::LinearShape& upper) {
  return lower.n == upper.n && lower.out == upper.in;
}

// ---- forward ------------------------------------------------------------------------------------

struct Layer {
  int at = -1;  // of the last of its operators
  const op::LinearForward* linear = nullptr;
  const op::Map* relu = nullptr;  // null: none
  const Out& y() const { return relu != nullptr ? relu->y : linear->y; }
};

// The layer whose result x before entry i is.
Layer layer_of(const Rewriting& list, const Operand& x, int i) {
  Layer layer;
  layer.at = list.producer(x, i);
  layer.relu = relu_at(list, layer.at);
  const int linear_at = layer.relu != nullptr ? list.producer(layer.relu->a, layer.at) : layer.at;
  layer.linear = list.at<op::LinearForward>(linear_at);
  if (layer.linear == nullptr || layer.linear->relu) return {};
  for (const In& operand : {layer.linear->x, layer.linear->w, layer.linear->b})
    if (!list.unchanged(operand, linear_at, layer.at)) return {};
  return layer;
}

// From the last layer of a chain, which ends with entry i.
void forward(Rewriting& list, int i) {
  const Out* result = nullptr;
  if (const auto* linear = list.at<op::LinearForward>(i)) result = &linear->y;
  if (const auto* relu = relu_at(list, i)) result = &relu->y;
  if (result == nullptr) return;
  std::vector<Layer> layers{layer_of(list, *result, i + 1)};
  if (layers[0].linear == nullptr) return;
  while (true) {
    const Layer below = layer_of(list, layers.back().linear->x, layers.back().at);
    if (below.linear == nullptr || below.relu == nullptr ||
        !fit_together(below.linear->g, layers.back().linear->g))
      break;
    layers.push_back(below);
  }
  std::reverse(layers.begin(), layers.end());
  // Those of longer chains in groups from the first on, so that no layer is computed twice.
  layers.erase(layers.begin(),
               layers.begin() + static_cast<ptrdiff_t>((layers.size() - 1) / op::kMaxMlpLayers *
                                                       op::kMaxMlpLayers));
  if (layers.size() < 2) return;
  op::MlpForward mlp;
  mlp.x = layers[0].linear->x;
  mlp.g.n = layers[0].linear->g.n;
  mlp.g.layers = static_cast<int>(layers.size());
  mlp.g.width[0] = layers[0].linear->g.in;
  mlp.g.relu_last = layers.back().relu != nullptr;
  for (size_t l = 0; l < layers.size(); ++l) {
    const op::LinearForward& linear = *layers[l].linear;
    mlp.g.width[l + 1] = linear.g.out;
    mlp.w.push_back(linear.w);
    mlp.b.push_back(linear.b);
    mlp.y.push_back(layers[l].y());
    const bool holds = list.unchanged(linear.w, layers[l].at, i) &&
                       list.unchanged(linear.b, layers[l].at, i) &&
                       list.unchanged(layers[l].y(), layers[l].at, i);
    if (!holds) return;
  }
  if (list.unchanged(mlp.x, layers[0].at, i) && fits(list.list(), mlp.g, mlp.x.dtype))
    list.replace(i, std::move(mlp));
}

// ---- backward -----------------------------------------------------------------------------------

// Layers on the way of a gradient, the lowest first.
struct BackwardLayer {
  In dz;                                         // the gradient of its result before its ReLU
  In h;                                          // its result, of all but the last
  const op::LinearBackwardData* data = nullptr;  // from dz to the gradient of the result below
};
struct BackwardChain {
  std::vector<BackwardLayer> layers;
  op::MlpShape g;
};

// The chain that ends with the gradient dz before entry i, of a layer of shape `lowest`. No layers
// if there are not two, or its values do not hold until then.
BackwardChain chain_of(const Rewriting& list, const In& dz, const op::LinearShape& lowest, int i) {
  BackwardChain chain;
  std::vector<BackwardLayer>& layers = chain.layers;
  layers.push_back({dz, {}, nullptr});
  for (int at = i;;) {
    const int back_at = list.producer(layers.back().dz, at);
    const auto* relu = relu_backward_at(list, back_at);
    if (relu == nullptr) break;
    const int data_at = list.producer(relu->dy, back_at);
    const auto* data = list.at<op::LinearBackwardData>(data_at);
    const op::LinearShape& below = layers.size() == 1 ? lowest : layers.back().data->g;
    if (data == nullptr || !fit_together(below, data->g)) break;
    layers.back().h = relu->result;
    if (!list.unchanged(layers.back().dz, back_at, i) ||
        !list.unchanged(relu->result, back_at, i) || !list.unchanged(data->w, data_at, i) ||
        !list.unchanged(data->dy, data_at, i))
      break;
    layers.push_back({data->dy, {}, data});
    at = data_at;
  }
  // In groups from the last layer on.
  const size_t in_group = (layers.size() - 1) % op::kMaxMlpLayers + 1;
  layers.resize(in_group);
  layers.back().h = In();
  op::MlpShape& g = chain.g;
  g.layers = static_cast<int>(in_group);
  g.n = lowest.n;
  g.width[0] = lowest.in;
  g.width[1] = lowest.out;
  for (size_t l = 1; l < in_group; ++l) g.width[l + 1] = layers[l].data->g.out;
  if (in_group < 2 || !fits(list.list(), g, dz.dtype)) layers.clear();
  return chain;
}

// The shape of the layer whose weights' gradients are made of dz; null if none are.
const op::LinearShape* layer_below(const Rewriting& list, const In& dz, int i) {
  for (int k = i + 1; k < static_cast<int>(list.size()) && list.unchanged(dz, i, k); ++k) {
    const auto* weights = list.at<op::LinearBackwardWeights>(k);
    if (weights != nullptr && same_range(weights->dy, dz)) return &weights->g;
  }
  return nullptr;
}

void backward(Rewriting& list, int i) {
  const auto* data = list.at<op::LinearBackwardData>(i);
  const auto* relu = relu_backward_at(list, i);
  BackwardChain chain;
  if (data != nullptr) {
    chain = chain_of(list, data->dy, data->g, i);
  } else if (relu != nullptr) {
    const In dz{static_cast<const Operand&>(relu->y)};
    const op::LinearShape* const lowest = layer_below(list, dz, i);
    if (lowest != nullptr) chain = chain_of(list, dz, *lowest, i + 1);
  }
  if (chain.layers.empty()) return;
  const auto n = chain.layers.size();
  op::MlpBackwardChain made;
  made.g = chain.g;
  made.dy = chain.layers.back().dz;
  for (size_t l = 0; l < n; ++l) {
    const BackwardLayer& layer = chain.layers[l];
    const bool is_last = l + 1 == n;
    made.w.push_back(l > 0 ? layer.data->w : data != nullptr ? data->w : In());
    made.y.push_back(layer.h);
    made.dz.push_back(is_last ? Out() : Out{static_cast<const Operand&>(layer.dz)});
  }
  if (data != nullptr) made.dx = OptionalOut{data->dx};
  list.replace(i, std::move(made));
}

// The gradients of the weights of all layers of a chain, in the place of those of the lowest, which
// come last.
void weights_of_chain(Rewriting& list, int i, std::vector<char>& is_done) {
  const auto* lowest = list.at<op::LinearBackwardWeights>(i);
  if (lowest == nullptr || is_done[static_cast<size_t>(i)]) return;
  const BackwardChain chain = chain_of(list, lowest->dy, lowest->g, i);
  if (chain.layers.empty()) return;
  op::MlpBackwardWeights made;
  made.g = chain.g;
  made.x = lowest->x;
  std::vector<int> taken;
  for (size_t l = 0; l < chain.layers.size(); ++l) {
    const BackwardLayer& layer = chain.layers[l];
    const op::LinearBackwardWeights* own = l == 0 ? lowest : nullptr;
    for (int k = i - 1; k >= 0 && own == nullptr; --k) {
      const auto* weights = list.at<op::LinearBackwardWeights>(k);
      if (weights == nullptr || !same_range(weights->dy, layer.dz)) continue;
      const auto stays = [&](const Operand& dw) {
        return dw.buffer == 0 || (list.unchanged(dw, k, i) && !list.is_read(dw, k, i));
      };
      if (!(weights->g == layer.data->g) || !same_range(weights->x, chain.layers[l - 1].h) ||
          !list.unchanged(layer.dz, k, i) || !stays(weights->dw) || !stays(weights->db))
        break;
      own = weights;
      taken.push_back(k);
    }
    made.y.push_back(layer.h);
    made.dz.push_back(layer.dz);
    made.dw.push_back(own != nullptr ? own->dw : OptionalOut());
    made.db.push_back(own != nullptr ? own->db : OptionalOut());
  }
  if (taken.empty()) return;
  for (const int k : taken) is_done[static_cast<size_t>(k)] = true;
  list.replace(i, std::move(made));
}

}  // namespace

void fuse_linear_layers(List& list) {
  Rewriting rewriting(list);
  const auto n = static_cast<int>(rewriting.size());
  for (int i = 0; i < n; ++i) {
    forward(rewriting, i);
    backward(rewriting, i);
  }
  std::vector<char> is_done(rewriting.size());
  for (int i = n; i-- > 0;) weights_of_chain(rewriting, i, is_done);
  rewriting.finish();
}

}  // namespace sinter
