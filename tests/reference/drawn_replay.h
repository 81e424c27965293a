// Operators called as PyTorch's own samples call them (op_db, recorded by
// tests/golden/generate.py).
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "sinter/tensor.h"

namespace sinter::app {

// The tensors of a call, by role; x is the first argument.
using Recorded = std::map<std::string, Tensor>;
// attributes: {"args": […], "kwargs": {…}}, the arguments behind x; a tensor is {"tensor": role}.
using Replay = std::function<Tensor(const Recorded&, const nlohmann::json& attributes)>;
const std::map<std::string, Replay>& drawn_operators();

}  // namespace sinter::app
