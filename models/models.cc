#include "sinter/models.h"

namespace sinter {

Tensor CifarCnn::forward(const Tensor& x) {
  Tensor y = max_pool2d(relu(conv1(x)), 2);  // (N, 6, 14, 14)
  y = max_pool2d(relu(conv2(y)), 2);         // (N, 16, 5, 5)
  y = relu(fc1(flatten(y, 1)));              // (N, 120)
  y = relu(fc2(y));                          // (N, 84)
  return fc3(y);                             // (N, 10)
}

void CifarCnn::visit(Visitor& v) {
  v.module("conv1", conv1);
  v.module("conv2", conv2);
  v.module("fc1", fc1);
  v.module("fc2", fc2);
  v.module("fc3", fc3);
}

std::vector<std::string> model_names() { return {"cifar_cnn"}; }

std::unique_ptr<Module> make_model(const std::string& name) {
  if (name == "cifar_cnn") return std::make_unique<CifarCnn>();
  std::string known;
  for (const std::string& n : model_names()) known += (known.empty() ? "" : ", ") + n;
  throw ValueError(str("model: expected one of ", known, ", got '", name, "'"));
}

}  // namespace sinter
