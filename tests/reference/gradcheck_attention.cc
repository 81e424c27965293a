#include "tests/reference/gradcheck_attention.h"

#include "core/base/detail.h"
#include "sinter/ops.h"

namespace sinter::app {

void add_attention_cases(std::vector<GradcheckCase>& cases) {
  Generator generator(1);
  const auto drawn = [&](const Shape& shape) {
    const Tensor x = empty(shape, {kFloat64, kCpu});
    uniform_(x, -1, 1, generator);
    return x;
  };
  const auto add = [&](const std::string& what, const Shape& q, const Shape& k, const Shape& v,
                       const Shape& mask, bool causal, bool gqa) {
    std::vector<Tensor> inputs{drawn(q), drawn(k), drawn(v)};
    if (mask.rank() > 0) inputs.push_back(drawn(mask));
    cases.push_back({"scaled_dot_product_attention", str(q, ", ", k, ", ", v, what), inputs,
                     [causal, gqa](const std::vector<Tensor>& in) {
                       AttentionOptions o;
                       o.is_causal = causal;
                       o.enable_gqa = gqa;
                       if (in.size() > 3) o.attn_mask = in[3];
                       return scaled_dot_product_attention(in[0], in[1], in[2], o);
                     }});
  };
  add("", {3, 4}, {5, 4}, {5, 2}, {}, false, false);
  add(", causal", {2, 5, 3}, {2, 4, 3}, {2, 4, 3}, {}, true, false);
  add(", mask", {2, 2, 3, 4}, {2, 2, 5, 4}, {2, 2, 5, 3}, {3, 5}, false, false);
  add(", shared heads", {2, 4, 3, 2}, {2, 2, 3, 2}, {2, 2, 3, 2}, {}, true, true);
  add(", broadcast", {2, 1, 3, 2}, {3, 4, 2}, {2, 3, 4, 2}, {}, false, false);
}

}  // namespace sinter::app
