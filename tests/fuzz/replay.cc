// Feeds the files of a corpus to a fuzz target without libFuzzer: each as it is, cut off, with a
// byte too many and with single bits flipped.
//   usage: <target>_fuzz FOLDER
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "tests/support/temp_dir.h"

namespace fs = std::filesystem;

namespace {

std::string fed;  // what is being fed, for the report of a finding

void on_abort(int) {
  const std::string_view before = "while fed ";
  (void)!::write(STDERR_FILENO, before.data(), before.size());
  (void)!::write(STDERR_FILENO, fed.data(), fed.size());
}

// From a block of its own size: with the address sanitizer a byte read beyond it is seen.
void feed(const std::string& bytes) {
  const std::vector<uint8_t> input(bytes.begin(), bytes.end());
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

void feed_changed(const fs::path& path) {
  const std::string bytes = sinter::test::read_file(path);
  fed = path.string() + "\n";
  feed(bytes);
  fed = path.string() + " and a byte\n";
  feed(bytes + '\0');
  // Evenly spaced where the file is large.
  const size_t step = bytes.size() / 512 + 1;
  for (size_t i = 0; i < bytes.size(); i += step) {
    fed = sinter::str(path.string(), " cut to ", i, " bytes\n");
    feed(bytes.substr(0, i));
    std::string changed = bytes;
    changed[i] = static_cast<char>(changed[i] ^ (1 << i / step % 8));
    fed = sinter::str(path.string(), " with a flipped bit in byte ", i, "\n");
    feed(changed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(argv[1])) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::signal(SIGABRT, on_abort);
  for (const fs::path& file : files) feed_changed(file);
  std::printf("%zu files, whole and changed\n", files.size());
  return files.empty() ? 1 : 0;
}
