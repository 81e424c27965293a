// The safetensors file format (https://huggingface.co/docs/safetensors): an 8-byte little-endian
// header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "sinter/nn.h"

namespace sinter {

struct SafetensorsFile {
  NamedTensors tensors;                         // on the CPU, in the order of their offsets
  std::map<std::string, std::string> metadata;  // the header's "__metadata__"
};
// Reads F64, F32, I64, I32 and U8 as they are; F16 and BF16 as float32 of the same values, BOOL as
// bool, true for any byte but 0. At most kMaxRank dimensions. Throws DataError, naming file
// and fault, for a file that is missing, truncated, oversized or malformed: bad JSON, another
// dtype, a duplicate key, offsets that overlap, leave gaps or disagree with dtype and shape.
SafetensorsFile load_safetensors(const std::filesystem::path& path);
// The same from memory; `name` stands for the file in messages.
SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name);

// Laid out as the reference implementation does: wider elements first, then by name, so that every
// tensor is aligned; the same tensors give the same bytes. Tensors may be on any device. Written
// beside `path` and renamed over it, so that a reader never sees half a file and a failure leaves
// the old one. Throws DataError if it cannot be written, ValueError for a duplicate name, one that
// is not UTF-8 or an undefined tensor.
void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace sinter
