// read_cifar10_file: records of a label and 3,072 pixels.
#include <algorithm>
#include <cstring>
#include <vector>

#include "sinter/data.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace sinter;
using namespace sinter::fuzz;

constexpr size_t kPixels = 3 * 32 * 32, kRecord = 1 + kPixels;

void check(std::span<const uint8_t> bytes) {
  const MemoryFile file(std::as_bytes(bytes));
  const auto set =
      accepted(file.path(), bytes.size(), 2, [&] { return read_cifar10_file(file.path()); });

  // It accepts exactly the whole records with a label in range, and gives back every byte.
  bool good = !bytes.empty() && bytes.size() % kRecord == 0;
  for (size_t at = 0; good && at < bytes.size(); at += kRecord) good = bytes[at] < 10;
  expect(set.has_value() == good, good ? "a good file was refused" : "a bad file was accepted");
  if (!set) return;
  const size_t n = bytes.size() / kRecord;
  const auto count = static_cast<int64_t>(n);
  expect(set->images.shape() == Shape({count, 3, 32, 32}) && set->labels.shape() == Shape({count}),
         "the shapes do not fit the file");
  for (size_t i = 0; i < n; ++i) {
    const uint8_t* record = bytes.data() + i * kRecord;
    expect(set->labels.data<uint8_t>()[i] == record[0], "a label changed");
    expect(std::memcmp(set->images.data<uint8_t>() + i * kPixels, record + 1, kPixels) == 0,
           "pixels changed");
  }
}

// Mutations of a file seldom hit the few bytes that matter. So the first bytes also describe a
// file: how many are missing from its end, then the label of each record.
void check_described(std::span<const uint8_t> bytes) {
  std::vector<uint8_t> file;
  for (size_t i = 1; i < std::min<size_t>(bytes.size(), 5); ++i) {
    file.resize(i * kRecord, static_cast<uint8_t>(i));
    file[(i - 1) * kRecord] = bytes[i];
  }
  const size_t missing = bytes.empty() ? 0 : bytes[0] % 4;
  file.resize(file.size() - std::min(missing, file.size()));
  check(file);
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  check({data, size});
  check_described({data, size});
  return 0;
}
