// Every operator, module and loss with inputs that try it: what `sinter gradcheck` checks.
#pragma once

#include <functional>
#include <iosfwd>
#include <string>
#include <vector>

#include "sinter/tensor.h"

namespace sinter::app {

// One function to differentiate, and where.
struct GradcheckCase {
  std::string op;              // "conv2d"; modules by their class, "Conv2d"
  std::string what;            // shapes and attributes: "(2, 3, 7, 5), kernel 2"
  std::vector<Tensor> inputs;  // float64 on the CPU, off the kinks of f; move them to any device
  // Runs on the device and in the dtype of its inputs. For a module the inputs are x and its
  // parameters, in the order of visit().
  std::function<Tensor(const std::vector<Tensor>&)> f;
  // Too many parameters to check one by one: random directions in either mode.
  bool directions_only = false;
};

// All of them, an operator's beside each other. The same at every call.
std::vector<GradcheckCase> gradcheck_cases();

// Checks each case on each device, eagerly and compiled, and writes a line about each to `out`.
// Whether all are right.
bool check_gradients(const std::vector<GradcheckCase>& cases, const std::vector<Device>& devices,
                     bool full, std::ostream& out);

}  // namespace sinter::app
