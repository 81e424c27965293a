#include "sinter/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "core/base/detail.h"
#include "core/io/file.h"
#include "sinter/safetensors.h"

namespace sinter {
namespace {

constexpr const char* kReserved = "sinter_";  // what the format's own metadata begin with
constexpr const char* kVersionKey = "sinter_checkpoint";
constexpr const char* kVersion = "1";
constexpr const char* kHashKey = "sinter_hash";

// FNV-1a is a few lines, needs no library, and keeps up with what a checkpoint holds (about 1
// GB/s). Each step is a bijection of the state, so that no single changed byte goes unnoticed.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ p[i]) * 0x100000001B3;
  }
  void add(int64_t number) { add(&number, sizeof number); }
  // With its length, so that ("ab", "c") and ("a", "bc") differ.
  void add(std::string_view text) {
    add(static_cast<int64_t>(text.size()));
    add(text.data(), text.size());
  }
  void add(const std::string& name, const Tensor& tensor) {
    add(name);
    add(sinter::name(tensor.dtype()));
    add(int64_t{tensor.rank()});
    for (const int64_t size : tensor.shape()) add(size);
    const Tensor here = tensor.detach().to(kCpu);
    add(here.read(), here.bytes());
  }
  void add(NamedTensors tensors) {
    std::sort(tensors.begin(), tensors.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [name, tensor] : tensors) add(name, tensor);
  }
  std::string digits() const {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash_));
    return text;
  }

 private:
  uint64_t hash_ = 0xCBF29CE484222325;
};

// Of the whole file's meaning: safetensors has no checksum of its own.
std::string hash_of(const NamedTensors& tensors,
                    const std::map<std::string, std::string>& metadata) {
  Hash hash;
  for (const auto& [key, value] : metadata) {
    hash.add(key);
    hash.add(value);
  }
  hash.add(tensors);
  return hash.digits();
}

// The parts of a checkpoint and what their tensors' names begin with.
template <class C, class F> void for_each_part(C& checkpoint, F&& part) {
  part("model.", checkpoint.model);
  part("optimizer.", checkpoint.optimizer);
  part("extra.", checkpoint.extra);
}

// The checkpoint in `file`, which was read from `path`.
Checkpoint checkpoint_in(SafetensorsFile file, const std::filesystem::path& path) {
  Checkpoint checkpoint;
  checkpoint.metadata = std::move(file.metadata);
  const auto version = checkpoint.metadata.find(kVersionKey);
  require<DataError>(version != checkpoint.metadata.end(), path.string(),
                     ": not a checkpoint of Sinter: its metadata have no ", kVersionKey);
  require<DataError>(version->second == kVersion, path.string(), ": a checkpoint of version ",
                     in_quotes(version->second), ", expected version ", kVersion);
  const auto stored = checkpoint.metadata.extract(kHashKey);
  const std::string found = hash_of(file.tensors, checkpoint.metadata);
  require<DataError>(!stored.empty() && stored.mapped() == found, path.string(),
                     ": damaged: its contents have the hash ", found, ", expected ",
                     stored.empty() ? "one in its metadata" : in_quotes(stored.mapped()));
  checkpoint.metadata.erase(version);
  for (const auto& [key, value] : checkpoint.metadata)
    require<DataError>(key.rfind(kReserved, 0) != 0, path.string(), ": metadata key ",
                       in_quotes(key), ": this version knows none of that name");

  for (const auto& entry : file.tensors) {
    bool known = false;
    for_each_part(checkpoint, [&](const std::string& prefix, NamedTensors& part) {
      if (known || entry.first.rfind(prefix, 0) != 0) return;
      known = true;
      part.emplace_back(entry.first.substr(prefix.size()), entry.second);
    });
    require<DataError>(known, path.string(), ": tensor ", in_quotes(entry.first),
                       ": expected a name that begins with model., optimizer. or extra.");
  }
  return checkpoint;
}

}  // namespace

std::string state_hash(const NamedTensors& state) {
  Hash hash;
  hash.add(state);
  return hash.digits();
}

void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint) {
  NamedTensors tensors;
  for_each_part(checkpoint, [&](const std::string& prefix, const NamedTensors& part) {
    for (const auto& [name, tensor] : part) {
      require<ValueError>(tensor.defined(), "save_checkpoint: tensor ", in_quotes(prefix + name),
                          " is undefined");
      // Copied from the device once, then hashed and written from there.
      tensors.emplace_back(prefix + name, tensor.detach().to(kCpu));
    }
  });
  std::map<std::string, std::string> metadata = checkpoint.metadata;
  for (const auto& [key, value] : metadata) {
    require<ValueError>(key.rfind(kReserved, 0) != 0, "save_checkpoint: metadata key ",
                        in_quotes(key), ": keys that begin with ", kReserved, " are taken");
  }
  metadata.emplace(kVersionKey, kVersion);
  metadata.emplace(kHashKey, hash_of(tensors, metadata));
  save_safetensors(path, tensors, metadata);
}

Checkpoint load_checkpoint(const std::filesystem::path& path) {
  return checkpoint_in(load_safetensors(path), path);
}

NamedTensors load_weights(const std::filesystem::path& path) {
  SafetensorsFile file = load_safetensors(path);
  if (file.metadata.count(kVersionKey) == 0) return std::move(file.tensors);
  return checkpoint_in(std::move(file), path).model;
}

}  // namespace sinter
