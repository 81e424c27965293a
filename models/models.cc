#include "sinter/models.h"

#include "core/base/detail.h"

namespace sinter {

Tensor CifarCnn::forward(const Tensor& x) {
  Module* const layers[] = {&conv1, &relu, &pool,            // (N, 6, 14, 14)
                            &conv2, &relu, &pool, &flatten,  // (N, 400)
                            &fc1,   &relu,                   // (N, 120)
                            &fc2,   &relu,                   // (N, 84)
                            &fc3};
  return detail::run_sequence(x, layers);
}

void CifarCnn::visit(Visitor& v) {
  v.module("conv1", conv1);
  v.module("conv2", conv2);
  v.module("fc1", fc1);
  v.module("fc2", fc2);
  v.module("fc3", fc3);
  v.module("relu", relu);
  v.module("pool", pool);
  v.module("flatten", flatten);
}

std::vector<std::string> model_names() { return {"cifar_cnn"}; }

std::unique_ptr<Module> make_model(const std::string& name) {
  if (name == "cifar_cnn") return std::make_unique<CifarCnn>();
  std::string known;
  for (const std::string& n : model_names()) known += (known.empty() ? "" : ", ") + n;
  throw ValueError(str("model: expected one of ", known, ", got '", name, "'"));
}

}  // namespace sinter
