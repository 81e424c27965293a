// load_checkpoint, what restores a training from its result, and save_checkpoint.
#include "sinter/checkpoint.h"
#include "sinter/optim.h"
#include "sinter/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace sinter;
using namespace sinter::fuzz;

constexpr size_t kPerByte = 48;  // as safetensors_fuzz

// A training that the file need not fit: a misfit is refused and leaves every value alone.
void restore(const Checkpoint& checkpoint) {
  Linear net(2, 1);
  Adam adam(net.parameters());
  try {
    net.load_state_dict(checkpoint.model);
    adam.load_state_dict(checkpoint.optimizer);
  } catch (const Error&) {
  }
}

void check(const Checkpoint& checkpoint) {
  restore(checkpoint);
  save_checkpoint(scratch_file(), checkpoint);
  const Checkpoint again = load_checkpoint(scratch_file());
  expect(again.metadata == checkpoint.metadata, "the metadata changed");
  expect_same(checkpoint.model, again.model);
  expect_same(checkpoint.optimizer, again.optimizer);
  expect_same(checkpoint.extra, again.extra);
}

// The hash tells chance differences, not forgeries; nor would a fuzzer ever guess it. So the file
// is sealed with the hash that the refusal names, to reach what lies behind.
std::optional<Checkpoint> load_sealed(SafetensorsFile file, size_t size) {
  file.metadata["sinter_checkpoint"] = std::string("1");  // g++ 12 warns of "1"
  file.metadata["sinter_hash"].clear();
  const std::filesystem::path path = scratch_file();
  save_safetensors(path, file.tensors, file.metadata);
  std::string hash;
  try {
    load_checkpoint(path);
    expect(false, "a checkpoint without a hash was accepted");
  } catch (const DataError& e) {
    const std::string message = e.what(), before = "have the hash ";
    const size_t at = message.find(before);
    expect(at != std::string::npos, "the refusal names no hash: " + message);
    hash = message.substr(at + before.size(), 16);
  }
  file.metadata["sinter_hash"] = hash;
  save_safetensors(path, file.tensors, file.metadata);
  return accepted(path, size, kPerByte, [&] { return load_checkpoint(path); });
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes bytes = std::as_bytes(std::span(data, size));
  {
    const MemoryFile file(bytes);
    const auto checkpoint =
        accepted(file.path(), size, kPerByte, [&] { return load_checkpoint(file.path()); });
    if (checkpoint) check(*checkpoint);
  }
  SafetensorsFile file;
  try {
    file = parse_safetensors(bytes, "fuzz.safetensors");
  } catch (const DataError&) {
    return 0;
  }
  // 1 kB: what sealing adds.
  if (const auto checkpoint = load_sealed(std::move(file), size + 1024)) check(*checkpoint);
  return 0;
}
