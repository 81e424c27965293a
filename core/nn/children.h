// Modules within modules. Private to core.
#pragma once

#include <string>

#include "sinter/nn/module.h"

namespace sinter {

// Whether `wanted` is among the children of a module, theirs, and so on; and by which names.
bool lists(ModuleBase& module, const void* wanted, std::string* path = nullptr);

}  // namespace sinter
