#include "sinter/work.h"

#include <algorithm>

#include "sinter/operators.h"

namespace sinter {

namespace {

double product(std::initializer_list<int64_t> extents) {
  double result = 1;
  for (const int64_t extent : extents) result *= static_cast<double>(extent);
  return result;
}

// A multiplication and an addition for each term of each sum.
double linear(const op::LinearShape& g) { return 2 * product({g.n, g.in, g.out}); }
double conv2d(const op::Conv2dShape& g, int oh, int ow) {
  return 2 * product({g.n, g.o, oh, ow, g.c / g.groups, g.kh, g.kw});
}
double conv2d(const op::Conv2dShape& g) { return conv2d(g, g.oh, g.ow); }
// Of one element for each that pooling leaves.
double pooled(const op::Conv2dShape& g) { return conv2d(g, g.oh / 2, g.ow / 2); }
// Layer l, from 1 on.
double mlp(const op::MlpShape& g, int l) { return 2 * product({g.n, g.width[l], g.width[l - 1]}); }

bool is_there(const Operand& x) { return x.buffer != 0; }
bool is_there(const std::vector<Out>& xs, int i) {
  return i < static_cast<int>(xs.size()) && is_there(xs[static_cast<size_t>(i)]);
}

// Of partial sums (slices, stride) of which `used` elements each are read.
double unread_of_slices(const Operand& partial, int64_t used) {
  const int64_t slices = partial.shape[0];
  return static_cast<double>(partial.bytes()) -
         product({slices, used, static_cast<int64_t>(size_of(partial.dtype))});
}

}  // namespace

double op::flops(const op::Gemm& op) { return 2 * product({op.g.batch, op.g.m, op.g.n, op.g.k}); }

double op::flops(const op::LinearForward& op) { return linear(op.g); }
double op::flops(const op::LinearBackwardData& op) { return linear(op.g); }
double op::flops(const op::LinearBackwardWeights& op) { return is_there(op.dw) ? linear(op.g) : 0; }

double op::flops(const op::Conv2dForward& op) { return conv2d(op.g); }
double op::flops(const op::Conv2dBackwardData& op) { return conv2d(op.g); }
double op::flops(const op::Conv2dBackwardWeights& op) {
  return is_there(op.dweight) ? conv2d(op.g) : 0;
}

double op::flops(const op::Conv2dReluPoolForward& op) { return 4 * pooled(op.g); }
double op::flops(const op::Conv2dReluPoolBackward& op) {
  return pooled(op.g) * (is_there(op.dx) + is_there(op.dweight));
}
double op::flops(const op::Conv2dReluPoolBackwardData& op) { return pooled(op.g); }
double op::flops(const op::Conv2dReluPoolBackwardWeights& op) { return pooled(op.g); }

double op::flops(const op::MlpForward& op) {
  double sum = 0;
  for (int l = 1; l <= op.g.layers; ++l) sum += mlp(op.g, l);
  return sum;
}
// The last layer's gradient is given, or the loss's, which is no product.
double op::flops(const op::MlpBackwardChain& op) {
  double sum = is_there(op.dx) ? mlp(op.g, 1) : 0;
  for (int l = 2; l <= op.g.layers; ++l)
    if (is_there(op.dz, l - 2)) sum += mlp(op.g, l);
  return sum;
}
double op::flops(const op::MlpBackwardWeights& op) {
  double sum = 0;
  for (int l = 1; l <= static_cast<int>(op.dw.size()); ++l)
    if (is_there(op.dw[static_cast<size_t>(l - 1)])) sum += mlp(op.g, l);
  return sum;
}

// Forward q k^T and p v; of the gradients dy v^T and p^T dy go with the keys, ds k and ds^T q with
// their own. Keys that the causal mask leaves out do not count.
namespace {
double attention(const op::AttentionShape& g, int64_t depth) {
  double pairs = product({g.l, g.s});
  if (g.causal) {
    const int64_t n = std::min(g.l, g.s);  // 1 + 2 + … + n, and s for each query behind
    pairs = 0.5 * product({n, n + 1}) + product({g.l - n, g.s});
  }
  return 2 * product({g.heads, depth}) * pairs;
}
}  // namespace
double op::flops(const op::AttentionForward& op) { return attention(op.g, op.g.e + op.g.ev); }
double op::flops(const op::AttentionBackwardKeys& op) {
  return attention(op.g, op.g.e + 2 * op.g.ev);
}
double op::flops(const op::AttentionBackwardQueries& op) { return attention(op.g, op.g.e); }

double op::bytes_unread(const op::GatherBatch& op) {
  constexpr int64_t kLabel = 1, kIndex = 8;
  const int64_t image = int64_t{op.g.c} * op.g.h * op.g.w;
  return product({std::max<int64_t>(op.g.size - op.g.n, 0), image + kLabel + kIndex});
}

double op::bytes_unread(const op::SumSlices& op) {
  return unread_of_slices(op.partial, op.y.numel());
}

double op::bytes_unread(const op::AdamStep& op) {
  double sum = 0;
  for (size_t i = 0; i < op.first.size(); ++i)
    if (op.first[i] >= 0) sum += unread_of_slices(op.g[i], op.p[i].numel());
  return sum;
}

}  // namespace sinter
