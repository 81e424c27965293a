// Networks built from core, by name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sinter/nn.h"

namespace sinter {

// The small convolutional network of PyTorch's CIFAR-10 tutorial, LeNet-5's shape (LeCun et al.
// 1998) for colour images: conv 3->6 k5, ReLU, max-pool 2, conv 6->16 k5, ReLU, max-pool 2, linear
// 400->120, ReLU, 120->84, ReLU, 84->10. 62,006 parameters.
//   x: (N, 3, 32, 32), normalized. Returns logits (N, 10).
class CifarCnn : public Module {
 public:
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;

  Conv2d conv1{3, 6, 5}, conv2{6, 16, 5};
  Linear fc1{400, 120}, fc2{120, 84}, fc3{84, 10};
  ReLU relu;
  MaxPool2d pool{2};
  Flatten flatten;
};

// The names make_model knows.
std::vector<std::string> model_names();
// A new network with weights drawn from default_generator(). Throws ValueError, listing the names,
// for another one.
std::unique_ptr<Module> make_model(const std::string& name);

}  // namespace sinter
