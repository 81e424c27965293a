// Hooks: functions of the user's that autograd and modules call on the way.
#pragma once

#include <functional>
#include <utility>

namespace sinter {

// Of a registered hook. Letting go of the handle does not remove it.
class HookHandle {
 public:
  HookHandle() = default;
  explicit HookHandle(std::function<void()> remove) : remove_(std::move(remove)) {}
  // Nothing where the hook, or what it was registered with, is gone already.
  void remove() {
    if (remove_) std::exchange(remove_, nullptr)();
  }

 private:
  std::function<void()> remove_;
};

}  // namespace sinter
