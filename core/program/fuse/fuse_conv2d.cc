// Convolution, ReLU and pooling.
#include "core/base/detail.h"
#include "core/program/fuse/rewrite.h"

namespace sinter {

namespace {

bool is_2x2(const op::Pool2dShape& g) {
  return g.kh == 2 && g.kw == 2 && g.stride_h == 2 && g.stride_w == 2 && g.pad_h == 0 &&
         g.pad_w == 0 && g.dil_h == 1 && g.dil_w == 1 && g.oh == g.h / 2 && g.ow == g.w / 2 &&
         !g.adaptive;
}

// Whether windows of 2 x 2 over the convolution's results are what was pooled.
bool pools(const op::Pool2dShape& pool, const op::Conv2dShape& g) {
  return is_2x2(pool) && pool.n == g.n && pool.c == g.o && pool.h == g.oh && pool.w == g.ow;
}

// What the kernels say of a layer, asked once: they plan what they would do, and a program has the
// same layer again and again.
class Kernels {
 public:
  explicit Kernels(Device device) : device_(device) {}
  bool fit(const op::Conv2dShape& g, DType dtype) { return of(g, dtype).fit; }
  int64_t slices(const op::Conv2dShape& g, DType dtype) { return of(g, dtype).slices; }

 private:
  struct Known {
    op::Conv2dShape g;
    DType dtype;
    bool fit = false;
    int64_t slices = 0;
  };
  const Known& of(const op::Conv2dShape& g, DType dtype) {
    for (const Known& known : known_)
      if (known.g == g && known.dtype == dtype) return known;
    Known known{g, dtype};
    with_context(device_, [&](const auto& ctx) {
      known.fit = conv2d_relu_pool_fits(ctx, g, dtype);
      if constexpr (std::is_same_v<decltype(ctx), const Cuda&>)
        if (known.fit) known.slices = conv2d_relu_pool_slices(ctx, g, dtype);
    });
    known_.push_back(known);
    return known_.back();
  }

  Device device_;
  std::vector<Known> known_;
};

// y = max_pool2d(relu(conv2d(x)), 2), from its end.
void forward(Rewriting& list, Kernels& kernels, int i) {
  const auto* pool = list.at<op::MaxPool2dForward>(i);
  if (pool == nullptr) return;
  const int at = list.producer(pool->x, i);
  const auto* relu = relu_at(list, at);
  if (relu == nullptr) return;
  const int conv_at = list.producer(relu->a, at);
  const auto* conv = list.at<op::Conv2dForward>(conv_at);
  if (conv == nullptr || conv->relu || !pools(pool->g, conv->g) ||
      !kernels.fit(conv->g, conv->x.dtype))
    return;
  for (const In& x : {conv->x, conv->weight, conv->b})
    if (!list.unchanged(x, conv_at, i)) return;
  list.replace(
      i, op::Conv2dReluPoolForward{conv->g, conv->x, conv->weight, conv->b, pool->y, pool->choice});
}

// What the gradient of a convolution's result was made of: y, choice and dy of the three together.
struct Pooled {
  In y, choice, dy;
};
bool is_pooled(const Rewriting& list, Kernels& kernels, const op::Conv2dShape& g, const In& dz,
               int i, Pooled& made) {
  const int pool_at = list.producer(dz, i);
  const auto* pool = list.at<op::MaxPool2dBackward>(pool_at);
  if (pool == nullptr || !pools(pool->g, g) || !kernels.fit(g, dz.dtype)) return false;
  const int at = list.producer(pool->dy, pool_at);
  const auto* relu = relu_backward_at(list, at);
  if (relu == nullptr) return false;
  made = {relu->result, pool->choice, relu->dy};
  return list.unchanged(made.y, at, i) && list.unchanged(made.dy, at, i) &&
         list.unchanged(made.choice, pool_at, i);
}

// dx. On a CPU it is made with the weights' gradients where there are some: see below.
void backward_data(Rewriting& list, Kernels& kernels, int i) {
  const auto* conv = list.at<op::Conv2dBackwardData>(i);
  Pooled from;
  if (conv == nullptr || !is_pooled(list, kernels, conv->g, conv->dy, i, from)) return;
  if (list.list().device.is_cuda()) {
    list.replace(i, op::Conv2dReluPoolBackwardData{conv->g, conv->weight, from.y, from.choice,
                                                   from.dy, conv->dx});
  } else {
    list.replace(
        i, op::Conv2dReluPoolBackward{
               conv->g, In(), conv->weight, from.y, from.choice, from.dy, {conv->dx}, {}, {}});
  }
}

void backward_weights(Rewriting& list, Kernels& kernels, int i) {
  const auto* conv = list.at<op::Conv2dBackwardWeights>(i);
  Pooled from;
  if (conv == nullptr || !is_pooled(list, kernels, conv->g, conv->dy, i, from)) return;
  const op::Conv2dShape& g = conv->g;
  if (list.list().device.is_cuda()) {
    const int64_t weights = int64_t{g.o} * (g.c / g.groups) * g.kh * g.kw;
    const int64_t slices = kernels.slices(g, conv->x.dtype);
    const Operand partial = list.make({slices, weights + g.o}, conv->x.dtype);
    list.insert_before(i, op::Conv2dReluPoolBackwardWeights{g, conv->x, from.y, from.choice,
                                                            from.dy, Out{partial}});
    list.remove(i);
    if (conv->dweight.buffer != 0)
      list.insert_before(i, op::SumSlices{0, In{partial}, Out{conv->dweight}});
    if (conv->db.buffer != 0)
      list.insert_before(i, op::SumSlices{weights, In{partial}, Out{conv->db}});
    return;
  }
  op::Conv2dReluPoolBackward all{g,       conv->x, In(),          from.y,  from.choice,
                                 from.dy, {},      conv->dweight, conv->db};
  // dx too, if it was made of the same just before.
  for (int k = i - 1; k >= 0 && k >= i - 2; --k) {
    const auto* data = list.at<op::Conv2dBackwardData>(k);
    if (data == nullptr || !(data->g == g) || !same_range(data->dy, conv->dy) ||
        !list.unchanged(data->dy, k, i) || !list.unchanged(data->weight, k, i) ||
        !list.unchanged(data->dx, k, i) || list.is_read(data->dx, k, i))
      continue;
    all.weight = data->weight;
    all.dx = OptionalOut{data->dx};
    break;
  }
  list.replace(i, std::move(all));
}

}  // namespace

// dr = pool_backward(dy, choice), dz = relu_backward(r, dr), where y and choice are the pooled r,
// becomes d = relu_backward(y, dy), dz = pool_backward(d, choice): the same, bit for bit, as an
// element gets the gradients of the windows that chose it, whose y it is; and nothing reads the
// larger r any more.
void move_relu_before_pooling(List& list) {
  Rewriting rewriting(list);
  for (int i = 0; i < static_cast<int>(rewriting.size()); ++i) {
    const auto* relu = relu_backward_at(rewriting, i);
    if (relu == nullptr) continue;
    const int back_at = rewriting.producer(relu->dy, i);
    const auto* back = rewriting.at<op::MaxPool2dBackward>(back_at);
    if (back == nullptr) continue;
    const int pool_at = rewriting.producer(back->choice, back_at);
    const auto* pool = rewriting.at<op::MaxPool2dForward>(pool_at);
    if (pool == nullptr || !same_range(pool->x, relu->result) ||
        !rewriting.unchanged(relu->result, pool_at, i) ||
        !rewriting.unchanged(pool->y, pool_at, i) ||
        !rewriting.unchanged(pool->choice, pool_at, i) ||
        !rewriting.unchanged(back->dy, back_at, i))
      continue;
    const Operand d = rewriting.make(back->dy.shape, back->dy.dtype);
    rewriting.insert_before(i, op::relu_backward(In{pool->y}, back->dy, Out{d}));
    rewriting.replace(i, op::MaxPool2dBackward{back->g, In{d}, back->choice, relu->y});
  }
  rewriting.finish();
}

// Convolution, bias, ReLU and pooling in one operator, and back: one on a CPU; on a GPU dx and the
// weights' gradients apart, the latter as sums over slices of the images.
void fuse_conv2d_relu_pool(List& list) {
  Rewriting rewriting(list);
  Kernels kernels(list.device);
  for (int i = 0; i < static_cast<int>(rewriting.size()); ++i) {
    forward(rewriting, kernels, i);
    backward_data(rewriting, kernels, i);
    backward_weights(rewriting, kernels, i);
  }
  rewriting.finish();
}

}  // namespace sinter
