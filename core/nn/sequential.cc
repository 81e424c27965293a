#include "sinter/nn/sequential.h"

#include <algorithm>

#include "core/base/detail.h"
#include "core/nn/children.h"

namespace sinter {

Tensor detail::run_sequence(const Tensor& x, std::span<Module* const> modules) {
  require<ValueError>(std::find(modules.begin(), modules.end(), nullptr) == modules.end(),
                      "run_sequence: expected modules, got null");
  Tensor y = x;
  for (Module* module : modules) y = (*module)(y);
  return y;
}

Sequential::Sequential(const Sequential& other) : Module(other) {
  for (const auto& [name, child] : other.children_) {
    children_.emplace_back(name, child.copy());
    require<ValueError>(children_.back().second.module != nullptr, "Sequential: cannot copy child ",
                        name, ", ", child.module->type_name(),
                        ": it has no copy constructor, or was appended by a pointer to its base");
  }
}

Sequential& Sequential::operator=(const Sequential& other) { return *this = Sequential(other); }

Sequential& Sequential::add(const std::string& name, detail::AnyModule child) {
  require<ValueError>(child.module != nullptr, "Sequential: append: expected a module, got null");
  require<ValueError>(child.module.get() != this && !lists(*child.module, this),
                      "Sequential: append: expected another module, got one that holds this one");
  require<ValueError>(!name.empty() && name.find('.') == std::string::npos && slot(name) == nullptr,
                      "Sequential: append: expected a new name without dots, got '", name, "'");
  children_.emplace_back(name, std::move(child));
  changed();
  return *this;
}

detail::AnyModule* Sequential::slot(const std::string& name) {
  for (auto& [own, child] : children_)
    if (own == name) return &child;
  return nullptr;
}

Module& Sequential::operator[](size_t i) {
  require<ValueError>(i < children_.size(), "Sequential: no child ", i, " among ",
                      children_.size());
  return *children_[i].second.module;
}

Tensor Sequential::forward(const Tensor& x) {
  std::vector<Module*> modules;
  modules.reserve(children_.size());
  for (const auto& [name, child] : children_) modules.push_back(child.module.get());
  return detail::run_sequence(x, modules);
}

void Sequential::visit(Visitor& v) {
  for (const auto& [name, child] : children_) v.module(name, *child.module);
}

}  // namespace sinter
