// parse_safetensors, and save_safetensors of what it accepts.
#include "sinter/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/temp_dir.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sinter;
  using namespace sinter::fuzz;
  // The header as a tree of JSON: it takes 25 bytes for one of many short `"9c3f":"",`.
  constexpr size_t kPerByte = 48;
  const auto parse = [](Bytes bytes) { return parse_safetensors(bytes, "fuzz.safetensors"); };
  const auto file = accepted("fuzz.safetensors", size, kPerByte,
                             [&] { return parse(std::as_bytes(std::span(data, size))); });
  if (!file) return 0;

  size_t bytes = 0;
  for (const auto& [name, tensor] : file->tensors) bytes += tensor.bytes();
  // Half precision becomes float32.
  expect(bytes < 2 * size, "more elements than the file has bytes");

  save_safetensors(scratch_file(), file->tensors, file->metadata);
  const std::string written = test::read_file(scratch_file());
  const SafetensorsFile again = parse(std::as_bytes(std::span(written)));
  expect(again.metadata == file->metadata, "the metadata changed");
  expect_same(again.tensors, file->tensors);

  save_safetensors(scratch_file(), again.tensors, again.metadata);
  expect(test::read_file(scratch_file()) == written, "the same tensors gave other bytes");
  return 0;
}
