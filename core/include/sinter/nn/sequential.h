// Sequential.
#pragma once

#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "sinter/nn/module.h"

namespace sinter {

// Modules one after another; children are named "0", "1", …, or as they are called. A copy has
// copies of the children, which share their tensors with the originals.
class Sequential : public Module {
 public:
  Sequential() = default;
  // Each a module, which is copied or moved in, or a std::shared_ptr or std::unique_ptr to one.
  template <class... Layers>
  requires(sizeof...(Layers) > 1 || !(std::is_base_of_v<Sequential, std::decay_t<Layers>> ||
                                      ...)) explicit Sequential(Layers&&... layers) {
    (append(std::forward<Layers>(layers)), ...);
  }
  Sequential(const Sequential& other);
  Sequential& operator=(const Sequential& other);
  Sequential(Sequential&&) noexcept = default;
  Sequential& operator=(Sequential&&) noexcept = default;

  // By name, in this order: Sequential({{"conv", Conv2d(3, 8, 3)}, {"relu", ReLU()}}).
  struct Named {
    template <class Layer> Named(std::string name, Layer&& layer)
        : name(std::move(name)), child(child_of(std::forward<Layer>(layer))) {}
    std::string name;
    detail::AnyModule child;
  };
  explicit Sequential(std::initializer_list<Named> layers) {
    for (const Named& layer : layers) add(layer.name, layer.child);
  }

  // A module, which is copied or moved in, or a pointer to one, which is the module itself. Throws
  // ValueError for null, for one that holds this Sequential, and for a name that is taken, empty or
  // has a dot.
  template <class Layer> Sequential& append(Layer&& layer) {
    return append(std::to_string(size()), std::forward<Layer>(layer));
  }
  template <class Layer> Sequential& append(const std::string& name, Layer&& layer) {
    return add(name, child_of(std::forward<Layer>(layer)));
  }
  Tensor forward(const Tensor& x) override;
  void visit(Visitor& v) override;
  size_t size() const { return children_.size(); }
  Module& operator[](size_t i);  // throws ValueError unless i < size()

 private:
  template <class Layer> static detail::AnyModule child_of(Layer&& layer) {
    if constexpr (std::is_base_of_v<Module, std::decay_t<Layer>>)
      return detail::AnyModule::of("append", std::forward<Layer>(layer));
    else
      return detail::AnyModule(std::shared_ptr(std::forward<Layer>(layer)));
  }
  Sequential& add(const std::string& name, detail::AnyModule child);
  detail::AnyModule* slot(const std::string& name) override;

  std::vector<std::pair<std::string, detail::AnyModule>> children_;
};

namespace detail {
// The modules of a network's forward, one after another.
Tensor run_sequence(const Tensor& x, std::span<Module* const> modules);
}  // namespace detail

}  // namespace sinter
