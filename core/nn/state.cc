#include <map>
#include <string_view>

#include "core/base/detail.h"
#include "core/io/file.h"
#include "sinter/tensor.h"

namespace sinter {
namespace {

// Names fit for a message: a state may have a hundred thousand of them, and they may come out of a
// file.
std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kMost = 10;
  if (names.empty()) return "none";
  std::string text;
  for (size_t i = 0; i < names.size() && i < kMost; ++i)
    text += (i > 0 ? ", " : "") + in_quotes(names[i]);
  return names.size() > kMost ? str(text, ", … and ", names.size() - kMost, " more") : text;
}

}  // namespace

StateKeys copy_state(const char* op, const NamedTensors& to, const NamedTensors& from,
                     bool strict) {
  std::map<std::string_view, const Tensor*> sources;
  std::vector<std::string> twice;
  for (const auto& [name, tensor] : from)
    if (!sources.emplace(name, &tensor).second) twice.push_back(name);

  StateKeys keys;
  struct Entry {
    const std::string& name;
    Tensor to;
    const Tensor& from;
  };
  std::vector<Entry> entries;
  std::map<std::string_view, const Tensor*> unused = sources;
  for (const auto& [name, tensor] : to) {
    if (const auto source = sources.find(name); source != sources.end()) {
      entries.push_back({name, tensor, *source->second});
      unused.erase(name);
    } else {
      keys.missing.push_back(name);
    }
  }
  for (const auto& [name, tensor] : from)
    if (unused.erase(name) > 0) keys.unexpected.push_back(name);

  if (strict && !(keys.missing.empty() && keys.unexpected.empty()))
    throw ValueError(str(op, ": missing keys: ", listed(keys.missing),
                         "; unexpected keys: ", listed(keys.unexpected)));
  if (!twice.empty()) throw ValueError(str(op, ": keys given more than once: ", listed(twice)));
  for (const Entry& entry : entries) {
    if (!entry.to.defined() || !entry.from.defined())
      throw ValueError(str(op, ": ", in_quotes(entry.name), " is an undefined tensor"));
    if (entry.from.shape() != entry.to.shape())
      throw ShapeError(str(op, ": expected ", in_quotes(entry.name), " of shape ", entry.to.shape(),
                           ", got ", entry.from.shape()));
  }
  for (Entry& entry : entries) entry.to.copy_(entry.from);
  return keys;
}

}  // namespace sinter
