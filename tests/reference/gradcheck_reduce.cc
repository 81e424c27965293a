#include "tests/reference/gradcheck_reduce.h"

#include <limits>

#include "core/base/detail.h"
#include "sinter/ops.h"
#include "tests/reference/oracle_cases.h"

namespace sinter::app {

void add_reduction_cases(std::vector<GradcheckCase>& cases) {
  using Inputs = std::vector<Tensor>;
  const auto add = [&](const std::string& op, const std::string& attributes, const Shape& shape,
                       const std::function<Tensor(const Tensor&)>& f) {
    // Distinct sizes, none of them 0: off the kinks of extrema and norms.
    const Tensor x = tensor(oracle::ramp({shape.begin(), shape.end()}, 1), {kFloat64, kCpu});
    cases.push_back(
        {op, str(shape, attributes.empty() ? "" : ", ", attributes), {x}, [f](const Inputs& in) {
           return f(in[0]);
         }});
  };
  const std::vector<int> all_dims[] = {{}, {1}, {0, -1}};
  for (const std::vector<int>& dims : all_dims)
    for (const bool keepdim : {false, true}) {
      const Shape shape{3, 4, 5};
      const std::string over = str(dims.size(), " dims", keepdim ? ", kept" : "");
      const VarOptions options{0.5, keepdim};
      add("prod", over, shape, [=](const Tensor& x) { return prod(x + 2.0, dims, keepdim); });
      add("var", over, shape, [=](const Tensor& x) { return var(x, dims, options); });
      add("std", over, shape, [=](const Tensor& x) { return sinter::std(x, dims, options); });
      add("var_mean", over, shape, [=](const Tensor& x) {
        const VarMean both = var_mean(x, dims, options);
        return both.var * both.mean;
      });
      add("std_mean", over, shape, [=](const Tensor& x) {
        const StdMean both = std_mean(x, dims, options);
        return both.std * both.mean;
      });
      add("amax", over, shape, [=](const Tensor& x) { return amax(x, dims, keepdim); });
      add("amin", over, shape, [=](const Tensor& x) { return amin(x, dims, keepdim); });
      add("logsumexp", over, shape, [=](const Tensor& x) { return logsumexp(x, dims, keepdim); });
      const double inf = std::numeric_limits<double>::infinity();
      for (const double p : {0.5, 1.0, 2.0, 3.0, -1.0, inf, -inf})
        add("norm", str("p ", p, ", ", over), shape,
            [=](const Tensor& x) { return norm(x, p, dims, keepdim); });
    }
  for (int dim = 0; dim < 3; ++dim) {
    const Shape shape{3, 4, 5};
    const std::string along = str("dim ", dim);
    add("max", along, shape, [=](const Tensor& x) { return max(x, dim).values; });
    add("min", along, shape, [=](const Tensor& x) { return min(x, dim).values; });
    add("cumsum", along, shape, [=](const Tensor& x) { return cumsum(x, dim); });
    add("softmax", along, shape, [=](const Tensor& x) { return softmax(x * 3.0, dim); });
    add("topk", along, shape, [=](const Tensor& x) { return topk(x, 2, dim).values; });
    add("sort", along, shape, [=](const Tensor& x) { return sort(x, dim).values; });
  }
  add("max", "", {3, 5}, [](const Tensor& x) { return max(x); });
  add("min", "", {3, 5}, [](const Tensor& x) { return min(x); });
}

}  // namespace sinter::app
