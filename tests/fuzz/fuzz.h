// What the fuzz targets share. A target feeds bytes to a parser as LLVMFuzzerTestOneInput. The
// parser may accept them or refuse them with a DataError; the process ends, which is a finding, if
// it throws anything else, says something unclear, takes more memory than the bytes justify, or if
// what it accepted does not survive being written and read again.
//
// With clang and SINTER_BUILD_FUZZERS libFuzzer drives the targets (run.sh); with any compiler
// replay.cc does, over the corpus.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "core/base/detail.h"
#include "sinter/check.h"
#include "sinter/tensor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace sinter::fuzz {

using Bytes = std::span<const std::byte>;

// Ends the process with `what` unless `ok`: both drivers report that with the input at fault.
void expect(bool ok, const std::string& what);

// A file in memory: parsers that want a path get one without a disk in between.
class MemoryFile {
 public:
  explicit MemoryFile(Bytes bytes);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::filesystem::path path() const;

 private:
  int descriptor_;
};

// A path to write to, one for the process.
std::filesystem::path scratch_file();

// The most memory in use at once, above that at the start. Seen by the address sanitizer's
// allocator alone: 0 in other builds.
class PeakMemory {
 public:
  PeakMemory();
  ~PeakMemory();
  PeakMemory(const PeakMemory&) = delete;
  PeakMemory& operator=(const PeakMemory&) = delete;
  size_t bytes() const;
};

// A message about a bad file names it and fits on a screen, whatever is in the file.
void expect_clear(const std::string& message, const std::string& file);

// What parse() returns, or nothing if it refuses with a DataError.
//   file: what messages have to begin with; size: of the input, in bytes; per_byte: the memory that
//   a byte of it justifies.
template <class F> auto accepted(const std::string& file, size_t size, size_t per_byte, F&& parse)
    -> std::optional<decltype(parse())> {
  constexpr size_t kFixed =
      64 << 10;  // tables, buffers of streams, the allocator's smallest blocks
  std::optional<decltype(parse())> result;
  const PeakMemory peak;
  try {
    result = parse();
  } catch (const DataError& e) {
    expect_clear(e.what(), file);
  }
  expect(peak.bytes() <= kFixed + per_byte * size,
         str(peak.bytes(), " bytes of memory for ", size, " bytes of input"));
  return result;
}

// The same names, dtypes, shapes and bits, in any order.
void expect_same(NamedTensors a, NamedTensors b);

}  // namespace sinter::fuzz
