#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/base/detail.h"
#include "core/program/passes.h"
#include "sinter/check.h"

namespace sinter {

Passes Passes::from_environment() {
  Passes passes;
  const char* text = std::getenv("SINTER_PASSES");
  std::string rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string name = rest.substr(0, comma);
    rest.erase(0, comma + 1);
    bool* const pass = name == "-fuse"          ? &passes.fuse
                       : name == "-elementwise" ? &passes.elementwise
                       : name == "-dead"        ? &passes.dead
                       : name == "-schedule"    ? &passes.schedule
                       : name == "-memory"      ? &passes.memory
                                                : nullptr;
    require<ValueError>(pass != nullptr,
                        "SINTER_PASSES: expected some of -fuse, -elementwise, -dead, -schedule "
                        "and -memory, separated by commas, got '",
                        name, "'");
    *pass = false;
  }
  return passes;
}

void rewrite(List& list, const Passes& passes, const std::function<void(const char*)>& show) {
  const auto remove_dead = [&] {
    if (!passes.dead) return;
    dead(list);
    show("after dead");
  };
  if (passes.fuse) {
    fuse_layers(list);
    show("after fuse, layers");
    remove_dead();
    fuse_between(list);
    show("after fuse, between them");
    if (passes.elementwise) {
      remove_dead();
      fuse_elementwise(list);
      show("after elementwise");
    }
  }
  remove_dead();
}

}  // namespace sinter
