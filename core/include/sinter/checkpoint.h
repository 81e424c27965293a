// Checkpoints: what a training needs to go on where it was, in one file; and hashes of states, by
// which two trainings can be compared at a glance.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "sinter/tensor.h"

namespace sinter {

struct Checkpoint {
  NamedTensors model;      // Module::state_dict()
  NamedTensors optimizer;  // Optimizer::state_dict()
  NamedTensors extra;      // what else the loop keeps in tensors
  // What it keeps elsewhere: its configuration, its position, the state of generators.
  std::map<std::string, std::string> metadata;
};

// Writes a safetensors file of the tensors, their names prefixed "model.", "optimizer." and
// "extra.", and the metadata. Being killed at any moment, or losing power, leaves the file that was
// there or the new one, whole. Waits for the tensors' device. Throws as save_safetensors does, and
// ValueError for a metadata key that begins with "sinter_".
void save_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);

// The tensors are on the CPU, in no particular order. Throws DataError for a file that is missing,
// truncated, malformed, no checkpoint, of another version of this format, or one whose bytes are
// not those that were written.
Checkpoint load_checkpoint(const std::filesystem::path& path);

// The tensors of a safetensors file or, of a checkpoint, those of its model under their own names.
// Throws as load_safetensors and load_checkpoint do.
NamedTensors load_weights(const std::filesystem::path& path);

// 16 hexadecimal digits: FNV-1a, 64 bits (http://www.isthe.com/chongo/tech/comp/fnv), over the
// tensors in the order of their names: name, name of the dtype, rank, extents, elements; texts
// after their length; numbers as 8 bytes, little-endian. Independent of the state's order and
// device, so that a state dict, the file it was saved to and what is loaded from that have one
// hash. Waits for the device. Tells chance differences, not forgeries.
std::string state_hash(const NamedTensors& state);

}  // namespace sinter
