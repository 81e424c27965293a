#include "tests/reference/gradcheck_shape.h"

#include "sinter/ops.h"
#include "sinter/random.h"

namespace sinter::app {

void add_shape_gradchecks(std::vector<GradcheckCase>& cases) {
  using Inputs = std::vector<Tensor>;
  Generator generator(2);
  const auto add = [&](const char* op, const char* what, std::initializer_list<Shape> shapes,
                       const std::function<Tensor(const Inputs&)>& f) {
    Inputs inputs;
    for (const Shape& shape : shapes) {
      inputs.push_back(empty(shape, {kFloat64, kCpu}));
      uniform_(inputs.back(), -1, 1, generator);
    }
    cases.push_back({op, what, inputs, [f](const Inputs& in) { return square(f(in)); }});
  };
  const auto index = [](const Tensor& x, const std::vector<int64_t>& values, const Shape& shape) {
    return from_vector(values, shape, x.device());
  };
  add("narrow", "dim 1", {{3, 5, 2}}, [](const Inputs& in) { return narrow(in[0], 1, 1, 3); });
  add("select", "", {{3, 4, 2}}, [](const Inputs& in) { return select(in[0], 1, -2); });
  add("split", "", {{3, 5}}, [](const Inputs& in) { return split(in[0], 2, 1)[1]; });
  add("chunk", "", {{5, 3}}, [](const Inputs& in) { return chunk(in[0], 2)[0]; });
  add("cat", "", {{2, 3}, {2, 1}, {2, 2}}, [](const Inputs& in) { return cat(in, 1); });
  add("stack", "", {{2, 3}, {2, 3}}, [](const Inputs& in) { return stack(in, -1); });
  add("expand", "", {{3, 1}}, [](const Inputs& in) { return expand(in[0], {2, -1, 4}); });
  add("flip", "", {{3, 4}}, [](const Inputs& in) { return flip(in[0], {0, 1}); });
  for (const char* mode : {"constant", "reflect", "replicate", "circular"})
    add("pad", mode, {{2, 3, 4}}, [=](const Inputs& in) { return pad(in[0], {3, 1, 1, 2}, mode); });
  add("tril", "", {{2, 3, 4}}, [](const Inputs& in) { return tril(in[0], 1); });
  add("triu", "", {{4, 3}}, [](const Inputs& in) { return triu(in[0], -1); });
  add("gather", "", {{3, 4}}, [=](const Inputs& in) {
    return gather(in[0], 1, index(in[0], {0, 3, 3, 1, 2, 2}, {2, 3}));
  });
  add("index_select", "", {{3, 4}}, [=](const Inputs& in) {
    return index_select(in[0], -1, index(in[0], {3, 0, 3}, {3}));
  });
  // Without a padding row, whose gradient is 0 though results depend on it.
  add("embedding", "", {{4, 3}}, [=](const Inputs& in) {
    return embedding(index(in[0], {1, 3, 1, 0}, {2, 2}), in[0]);
  });
}

}  // namespace sinter::app
