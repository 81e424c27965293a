#include "tests/reference/drawn_replay.h"

#include <limits>
#include <optional>
#include <vector>

#include "core/base/detail.h"
#include "sinter/ops.h"

namespace sinter::app {

namespace {

using nlohmann::json;

// One call's arguments, by place behind x or by name.
class Call {
 public:
  Call(const Recorded& in, const json& a) : x(in.at("x")), in_(in), a_(a) {}

  const json* find(size_t place, const char* name) const {
    const json& args = a_.at("args");
    if (place < args.size()) return &args.at(place);
    const json& kwargs = a_.at("kwargs");
    return kwargs.contains(name) && !kwargs.at(name).is_null() ? &kwargs.at(name) : nullptr;
  }
  double number(size_t place, const char* name, double otherwise) const {
    const json* v = find(place, name);
    return v == nullptr ? otherwise : number(*v);
  }
  int integer(size_t place, const char* name, int otherwise) const {
    const json* v = find(place, name);
    return v == nullptr ? otherwise : v->get<int>();
  }
  bool flag(size_t place, const char* name, bool otherwise) const {
    const json* v = find(place, name);
    return v == nullptr ? otherwise : v->get<bool>();
  }
  std::string text(size_t place, const char* name, const char* otherwise) const {
    const json* v = find(place, name);
    return v == nullptr ? otherwise : v->get<std::string>();
  }
  Tensor tensor(size_t place, const char* name) const {
    const json* v = find(place, name);
    return v == nullptr || v->is_null() ? Tensor() : in_.at(v->at("tensor").get<std::string>());
  }
  // A tensor or a number.
  Term term(size_t place, const char* name, double otherwise = 0) const {
    const json* v = find(place, name);
    if (v != nullptr && v->is_object()) return tensor(place, name);
    return number(place, name, otherwise);
  }
  Dims dims(size_t place, const char* name) const {
    const json* v = find(place, name);
    if (v == nullptr || v->is_null()) return {};
    return v->is_array() ? Dims(v->get<std::vector<int>>()) : Dims(v->get<int>());
  }
  Shape shape(size_t place, const char* name) const {
    return Shape(find(place, name)->get<std::vector<int64_t>>());
  }
  std::vector<int64_t> extents(size_t place, const char* name) const {
    const json* v = find(place, name);
    if (v->is_array()) return v->get<std::vector<int64_t>>();
    return {v->get<int64_t>()};
  }
  // x and what else was listed as the first argument.
  std::vector<Tensor> list() const {
    std::vector<Tensor> tensors;
    for (const json& role : a_.at("list")) tensors.push_back(in_.at(role.get<std::string>()));
    return tensors;
  }
  Reduction reduction() const {
    const std::string r = text(100, "reduction", "mean");
    return r == "sum" ? Reduction::kSum : r == "none" ? Reduction::kNone : Reduction::kMean;
  }

  const Tensor& x;

 private:
  static double number(const json& v) {
    if (v.is_boolean()) return v.get<bool>() ? 1 : 0;
    if (!v.is_string()) return v.get<double>();
    const double infinity = std::numeric_limits<double>::infinity();
    return v == "inf" ? infinity : v == "-inf" ? -infinity : std::nan("");
  }
  const Recorded& in_;
  const json& a_;
};

template <class F> Replay call(F f) {
  return [f](const Recorded& in, const json& a) { return f(Call(in, a)); };
}

using ByDims = Tensor (*)(const Tensor&, const Dims&, bool);
Replay by_dims(ByDims op) {
  return call(
      [op](const Call& c) { return op(c.x, c.dims(0, "dim"), c.flag(1, "keepdim", false)); });
}

// var and std: dim, keepdim and correction, or unbiased where dim would be.
template <class Op> Replay spread(Op op) {
  return call([op](const Call& c) {
    VarOptions options;
    const json* first = c.find(0, "dim");
    const bool unbiased_first = first != nullptr && first->is_boolean();
    options.correction = c.number(100, "correction", 1);
    if (!c.flag(unbiased_first ? 0 : 1, "unbiased", true)) options.correction = 0;
    options.keepdim = c.flag(100, "keepdim", false);
    return op(c.x, unbiased_first ? Dims() : c.dims(0, "dim"), options);
  });
}

template <class All, class Along> Replay extremum(All all, Along along) {
  return call([=](const Call& c) {
    if (c.find(0, "dim") == nullptr) return all(c.x);
    return along(c.x, c.integer(0, "dim", 0), c.flag(1, "keepdim", false)).values;
  });
}

// One value for both directions, of one element or two; null is -1.
Pair pair(const json& v) {
  const auto extent = [](const json& n) { return n.is_null() ? -1 : n.get<int>(); };
  if (!v.is_array()) return extent(v);
  return v.size() == 1 ? Pair(extent(v[0])) : Pair(extent(v[0]), extent(v[1]));
}
Pair pair(const Call& c, size_t place, const char* name, Pair otherwise) {
  const json* v = c.find(place, name);
  return v == nullptr ? otherwise : pair(*v);
}
std::optional<Pair> stride(const Call& c) {
  const json* v = c.find(1, "stride");
  if (v == nullptr || v->is_null() || (v->is_array() && v->empty())) return {};
  return pair(*v);
}
std::optional<int> row_stride(const Call& c) {
  const std::optional<Pair> both = stride(c);
  return both ? std::optional<int>(both->w) : std::nullopt;
}

Replay product(Tensor (*op)(const Tensor&, const Tensor&)) {
  return call([op](const Call& c) { return op(c.x, c.tensor(0, "other")); });
}
Replay product_added(Tensor (*op)(const Tensor&, const Tensor&, const Tensor&,
                                  const AddProductOptions&)) {
  return call([op](const Call& c) {
    return op(c.x, c.tensor(0, "batch1"), c.tensor(1, "batch2"),
              {.beta = c.number(100, "beta", 1), .alpha = c.number(100, "alpha", 1)});
  });
}

Replay pointwise(Tensor (*op)(const Tensor&, const Tensor&, Reduction)) {
  return call([op](const Call& c) { return op(c.x, c.tensor(0, "target"), c.reduction()); });
}
Replay pointwise(Tensor (*op)(const Tensor&, const Tensor&, Reduction, double), const char* name) {
  return call([op, name](const Call& c) {
    return op(c.x, c.tensor(0, "target"), c.reduction(), c.number(100, name, 1));
  });
}

// A bound that is there: clamp has either or both.
Tensor clamped(const Call& c) {
  const bool below = c.find(0, "min") != nullptr && !c.find(0, "min")->is_null();
  const bool above = c.find(1, "max") != nullptr && !c.find(1, "max")->is_null();
  if (below && above) return clamp(c.x, c.term(0, "min"), c.term(1, "max"));
  if (below) return clamp(c.x, c.term(0, "min"));
  return clamp(c.x, std::nullopt, c.term(1, "max"));
}

Tensor chosen(const Call& c) {
  const json* other = c.find(1, "other");
  return where(c.tensor(0, "condition"), c.x, other == nullptr ? Term(0) : c.term(1, "other"));
}

}  // namespace

const std::map<std::string, Replay>& drawn_operators() {
#define UNARY(name)                                      \
  {                                                      \
#name, call([](const Call& c) { return name(c.x); }) \
  }
  static const std::map<std::string, Replay> table = {
      UNARY(abs),
      UNARY(neg),
      UNARY(sign),
      UNARY(square),
      UNARY(reciprocal),
      UNARY(sqrt),
      UNARY(rsqrt),
      UNARY(exp),
      UNARY(expm1),
      UNARY(log),
      UNARY(log1p),
      UNARY(sin),
      UNARY(cos),
      UNARY(tanh),
      UNARY(erf),
      UNARY(floor),
      UNARY(ceil),
      UNARY(trunc),
      UNARY(sigmoid),
      UNARY(relu),
      UNARY(silu),
      {"minimum", call([](const Call& c) { return minimum(c.x, c.tensor(0, "other")); })},
      {"maximum", call([](const Call& c) { return maximum(c.x, c.tensor(0, "other")); })},
      {"pow", call([](const Call& c) {
         const Term b = c.term(0, "exponent");
         return b.is_number() ? pow(c.x, b.number()) : pow(c.x, b.tensor());
       })},
      {"add",
       call([](const Call& c) { return add(c.x, c.term(0, "other"), c.number(100, "alpha", 1)); })},
      {"sub",
       call([](const Call& c) { return sub(c.x, c.term(0, "other"), c.number(100, "alpha", 1)); })},
      {"mul", call([](const Call& c) { return mul(c.x, c.tensor(0, "other")); })},
      {"div", call([](const Call& c) {
         const std::string mode = c.text(100, "rounding_mode", "");
         if (!mode.empty()) return div(c.x, c.term(0, "other"), mode);
         return div(c.x, c.tensor(0, "other"));
       })},
      {"round", call([](const Call& c) { return round(c.x, c.integer(0, "decimals", 0)); })},
      {"gelu", call([](const Call& c) { return gelu(c.x, c.text(0, "approximate", "none")); })},
      {"leaky_relu",
       call([](const Call& c) { return leaky_relu(c.x, c.number(0, "negative_slope", 0.01)); })},
      {"elu", call([](const Call& c) { return elu(c.x, c.number(0, "alpha", 1)); })},
      {"softplus", call([](const Call& c) {
         return softplus(c.x, c.number(0, "beta", 1), c.number(1, "threshold", 20));
       })},
      {"clamp", call(clamped)},
      {"where", call(chosen)},
      {"masked_fill", call([](const Call& c) {
         return masked_fill(c.x, c.tensor(0, "mask"), c.term(1, "value"));
       })},
      {"transpose", call([](const Call& c) {
         return transpose(c.x, c.integer(0, "dim0", 0), c.integer(1, "dim1", 0));
       })},
      {"squeeze", call([](const Call& c) {
         return c.find(0, "dim") == nullptr ? squeeze(c.x) : squeeze(c.x, c.dims(0, "dim"));
       })},
      {"unsqueeze", call([](const Call& c) { return unsqueeze(c.x, c.integer(0, "dim", 0)); })},
      {"narrow", call([](const Call& c) {
         return narrow(c.x, c.integer(0, "dim", 0), c.integer(1, "start", 0),
                       c.integer(2, "length", 0));
       })},
      {"select", call([](const Call& c) {
         return select(c.x, c.integer(0, "dim", 0), c.integer(1, "index", 0));
       })},
      {"split", call([](const Call& c) {
         const int dim = c.integer(1, "dim", 0);
         if (c.find(0, "split_size")->is_array())
           return split(c.x, c.extents(0, "split_size"), dim).at(0);
         return split(c.x, c.integer(0, "split_size", 1), dim).at(0);
       })},
      {"chunk", call([](const Call& c) {
         return chunk(c.x, c.integer(0, "chunks", 1), c.integer(1, "dim", 0)).at(0);
       })},
      {"cat", call([](const Call& c) { return cat(c.list(), c.integer(0, "dim", 0)); })},
      {"stack", call([](const Call& c) { return stack(c.list(), c.integer(0, "dim", 0)); })},
      {"expand", call([](const Call& c) { return expand(c.x, c.shape(0, "size")); })},
      {"flip", call([](const Call& c) { return flip(c.x, c.dims(0, "dims")); })},
      {"pad", call([](const Call& c) {
         return pad(c.x, c.extents(0, "pad"), c.text(1, "mode", "constant"),
                    c.number(2, "value", 0));
       })},
      {"tril", call([](const Call& c) { return tril(c.x, c.integer(0, "diagonal", 0)); })},
      {"triu", call([](const Call& c) { return triu(c.x, c.integer(0, "diagonal", 0)); })},
      {"gather", call([](const Call& c) {
         return gather(c.x, c.integer(0, "dim", 0), c.tensor(1, "index"));
       })},
      {"index_select", call([](const Call& c) {
         return index_select(c.x, c.integer(0, "dim", 0), c.tensor(1, "index"));
       })},
      {"embedding", call([](const Call& c) {
         const json* padding = c.find(100, "padding_idx");
         return embedding(
             c.tensor(0, "indices"), c.x,
             padding == nullptr ? std::nullopt : std::optional<int64_t>(padding->get<int64_t>()));
       })},
      {"max_pool2d", call([](const Call& c) {
         return max_pool2d_with_indices(c.x, pair(c, 0, "kernel_size", 1),
                                        {.stride = stride(c),
                                         .padding = pair(c, 2, "padding", 0),
                                         .dilation = pair(c, 3, "dilation", 1),
                                         .ceil_mode = c.flag(4, "ceil_mode", false)})
             .values;
       })},
      {"avg_pool2d", call([](const Call& c) {
         AvgPool2dOptions o{.stride = stride(c),
                            .padding = pair(c, 2, "padding", 0),
                            .ceil_mode = c.flag(3, "ceil_mode", false),
                            .count_include_pad = c.flag(4, "count_include_pad", true)};
         const json* divisor = c.find(5, "divisor_override");
         if (divisor != nullptr && !divisor->is_null()) o.divisor_override = divisor->get<int>();
         return avg_pool2d(c.x, pair(c, 0, "kernel_size", 1), o);
       })},
      {"max_pool1d", call([](const Call& c) {
         return max_pool1d(c.x, pair(c, 0, "kernel_size", 1).w,
                           {.stride = row_stride(c),
                            .padding = pair(c, 2, "padding", 0).w,
                            .dilation = pair(c, 3, "dilation", 1).w,
                            .ceil_mode = c.flag(4, "ceil_mode", false)});
       })},
      {"avg_pool1d", call([](const Call& c) {
         return avg_pool1d(c.x, pair(c, 0, "kernel_size", 1).w,
                           {.stride = row_stride(c),
                            .padding = pair(c, 2, "padding", 0).w,
                            .ceil_mode = c.flag(3, "ceil_mode", false),
                            .count_include_pad = c.flag(4, "count_include_pad", true)});
       })},
      {"adaptive_avg_pool2d",
       call([](const Call& c) { return adaptive_avg_pool2d(c.x, pair(c, 0, "output_size", 1)); })},
      {"adaptive_max_pool2d",
       call([](const Call& c) { return adaptive_max_pool2d(c.x, pair(c, 0, "output_size", 1)); })},
      {"adaptive_avg_pool1d", call([](const Call& c) {
         return adaptive_avg_pool1d(c.x, pair(c, 0, "output_size", 1).w);
       })},
      {"adaptive_max_pool1d", call([](const Call& c) {
         return adaptive_max_pool1d(c.x, pair(c, 0, "output_size", 1).w);
       })},
      {"matmul", product(matmul)},
      {"mm", product(mm)},
      {"bmm", product(bmm)},
      {"mv", product(mv)},
      {"dot", product(dot)},
      {"addmm", product_added(addmm)},
      {"baddbmm", product_added(baddbmm)},
      {"scaled_dot_product_attention", call([](const Call& c) {
         AttentionOptions options;
         options.attn_mask = c.tensor(2, "attn_mask");
         options.is_causal = c.flag(4, "is_causal", false);
         options.enable_gqa = c.flag(100, "enable_gqa", false);
         return scaled_dot_product_attention(c.x, c.tensor(0, "key"), c.tensor(1, "value"),
                                             options);
       })},
      {"linear",
       call([](const Call& c) { return linear(c.x, c.tensor(0, "weight"), c.tensor(1, "bias")); })},
      {"sum", by_dims(sum)},
      {"mean", by_dims(mean)},
      {"amax", by_dims(amax)},
      {"amin", by_dims(amin)},
      {"prod", by_dims(prod)},
      {"logsumexp", by_dims(logsumexp)},
      {"var",
       spread([](const Tensor& x, const Dims& d, const VarOptions& o) { return var(x, d, o); })},
      {"std", spread([](const Tensor& x, const Dims& d, const VarOptions& o) {
         return sinter::std(x, d, o);
       })},
      {"norm", call([](const Call& c) {
         return norm(c.x, c.number(0, "ord", 2), c.dims(1, "dim"), c.flag(2, "keepdim", false));
       })},
      {"max", extremum([](const Tensor& x) { return max(x); },
                       [](const Tensor& x, int d, bool k) { return max(x, d, k); })},
      {"min", extremum([](const Tensor& x) { return min(x); },
                       [](const Tensor& x, int d, bool k) { return min(x, d, k); })},
      {"cumsum", call([](const Call& c) { return cumsum(c.x, c.integer(0, "dim", 0)); })},
      {"softmax", call([](const Call& c) { return softmax(c.x, c.integer(0, "dim", -1)); })},
      {"log_softmax",
       call([](const Call& c) { return log_softmax(c.x, c.integer(0, "dim", -1)); })},
      {"topk", call([](const Call& c) {
         return topk(c.x, c.integer(0, "k", 1), c.integer(1, "dim", -1), c.flag(2, "largest", true),
                     c.flag(3, "sorted", true))
             .values;
       })},
      {"sort", call([](const Call& c) {
         return sort(c.x, c.integer(0, "dim", -1), c.flag(1, "descending", false)).values;
       })},
      {"mse_loss", pointwise(mse_loss)},
      {"l1_loss", pointwise(l1_loss)},
      {"smooth_l1_loss", pointwise(smooth_l1_loss, "beta")},
      {"huber_loss", pointwise(huber_loss, "delta")},
      {"kl_div", call([](const Call& c) {
         return kl_div(c.x, c.tensor(0, "target"),
                       {.log_target = c.flag(100, "log_target", false),
                        .reduction = c.reduction(),
                        .batchmean = c.text(100, "reduction", "mean") == "batchmean"});
       })},
      {"binary_cross_entropy_with_logits", call([](const Call& c) {
         return binary_cross_entropy_with_logits(c.x, c.tensor(0, "target"),
                                                 {.weight = c.tensor(100, "weight"),
                                                  .pos_weight = c.tensor(100, "pos_weight"),
                                                  .reduction = c.reduction()});
       })},
      {"nll_loss", call([](const Call& c) {
         return nll_loss(c.x, c.tensor(0, "target"),
                         {.weight = c.tensor(100, "weight"),
                          .ignore_index = c.integer(100, "ignore_index", -100),
                          .reduction = c.reduction()});
       })},
      {"cross_entropy", call([](const Call& c) {
         return cross_entropy(c.x, c.tensor(0, "target"),
                              {.reduction = c.reduction(),
                               .label_smoothing = c.number(100, "label_smoothing", 0),
                               .weight = c.tensor(100, "weight"),
                               .ignore_index = c.integer(100, "ignore_index", -100)});
       })},
      {"batch_norm", call([](const Call& c) {
         return batch_norm(c.x, c.tensor(0, "running_mean"), c.tensor(1, "running_var"),
                           c.tensor(2, "weight"), c.tensor(3, "bias"),
                           {.training = c.flag(100, "training", false),
                            .momentum = c.number(100, "momentum", 0.1),
                            .eps = c.number(100, "eps", 1e-5)});
       })},
      {"layer_norm", call([](const Call& c) {
         return layer_norm(c.x, c.shape(0, "normalized_shape"), c.tensor(1, "weight"),
                           c.tensor(2, "bias"), c.number(3, "eps", 1e-5));
       })},
      {"rms_norm", call([](const Call& c) {
         const json* eps = c.find(2, "eps");
         return rms_norm(c.x, c.shape(0, "normalized_shape"), c.tensor(1, "weight"),
                         eps == nullptr ? std::nullopt : std::optional<double>(eps->get<double>()));
       })},
      {"group_norm", call([](const Call& c) {
         return group_norm(c.x, c.integer(0, "num_groups", 1), c.tensor(1, "weight"),
                           c.tensor(2, "bias"), c.number(3, "eps", 1e-5));
       })}};
#undef UNARY
  return table;
}

}  // namespace sinter::app
