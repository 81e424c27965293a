#include "tests/reference/gradcheck_norm.h"

#include <memory>
#include <string>
#include <tuple>

#include "core/base/detail.h"
#include "sinter/ops.h"

namespace sinter::app {

namespace {

using Inputs = std::vector<Tensor>;

Tensor drawn(const Shape& shape, Generator& generator) {
  const Tensor x = empty(shape, {kFloat64, kCpu});
  uniform_(x, -1, 1, generator);
  return x;
}

}  // namespace

void add_norm_gradchecks(std::vector<GradcheckCase>& cases) {
  Generator generator(1);
  // x, and with `affine` a weight and a bias.
  const auto add =
      [&](const std::string& op, const std::string& attributes, const Shape& x, const Shape& weight,
          bool affine,
          const std::function<Tensor(const Tensor& x, const Tensor& weight, const Tensor& bias)>&
              f) {
        Inputs inputs{drawn(x, generator)};
        if (affine)
          inputs.insert(inputs.end(), {drawn(weight, generator), drawn(weight, generator)});
        cases.push_back({op, str(x, ", ", attributes, affine ? "" : ", no weight"), inputs,
                         [f](const Inputs& in) {
                           return in.size() > 1 ? f(in[0], in[1], in[2]) : f(in[0], {}, {});
                         }});
      };
  for (const bool affine : {true, false}) {
    for (const Shape& shape : {Shape{5, 3}, {2, 3, 5}, {2, 2, 6, 7}}) {
      const Shape by_channel{shape[1]};
      add("batch_norm", "training", shape, by_channel, affine,
          [](const Tensor& x, const Tensor& w, const Tensor& b) {
            return batch_norm(x, {}, {}, w, b, {.training = true});
          });
      add("batch_norm", "eval", shape, by_channel, affine,
          [by_channel](const Tensor& x, const Tensor& w, const Tensor& b) {
            return batch_norm(x, full(by_channel, 0.25, x.options()),
                              full(by_channel, 1.5, x.options()), w, b);
          });
    }
    for (const Shape& last : {Shape{5}, {3, 5}})
      add("layer_norm", str("over ", last), {4, 3, 5}, last, affine,
          [last](const Tensor& x, const Tensor& w, const Tensor& b) {
            return layer_norm(x, last, w, b);
          });
    for (const Shape& shape : {Shape{3, 6}, {2, 6, 5}, {2, 6, 3, 6}}) {
      add("group_norm", "3 groups", shape, {6}, affine,
          [](const Tensor& x, const Tensor& w, const Tensor& b) { return group_norm(x, 3, w, b); });
      if (shape.rank() > 2)
        add("instance_norm", "", shape, {6}, affine,
            [](const Tensor& x, const Tensor& w, const Tensor& b) {
              return instance_norm(x, w, b);
            });
    }
  }
  cases.push_back({"rms_norm",
                   "(4, 7)",
                   {drawn({4, 7}, generator), drawn({7}, generator)},
                   [](const Inputs& in) { return rms_norm(in[0], {7}, in[1], 1e-5); }});

  // The same mask at every call: the draws are set back inside of the function.
  using Drop = Tensor (*)(const Tensor&, double, bool, Generator&);
  for (const auto& [name, drop, shape] :
       {std::tuple<const char*, Drop, Shape>{"dropout", dropout, {5, 9}},
        {"dropout1d", dropout1d, {3, 4, 5}},
        {"dropout2d", dropout2d, {2, 4, 3, 3}}}) {
    const auto masks = std::make_shared<Generator>(2);
    cases.push_back({name,
                     str(shape, ", p 0.4"),
                     {drawn(shape, generator)},
                     [masks, drop = drop](const Inputs& in) {
                       masks->set_draws(in[0].device(), 0);
                       return drop(in[0], 0.4, true, *masks);
                     }});
  }
}

}  // namespace sinter::app
