#include "load.h"

#include <algorithm>

namespace sinter::app {

namespace {

std::string megabytes(int64_t bytes) { return fixed(static_cast<double>(bytes) / 1e6, 1) + " MB"; }

std::filesystem::path download(const std::filesystem::path& dir, Progress& progress) {
  progress.line(str("no CIFAR-10 in ", dir.string(), ": downloading ",
                    megabytes(cifar10_source().bytes), " from ", cifar10_source().url));
  const Stopwatch clock;
  double redrawn = -1;
  int64_t resumed = -1;  // bytes an earlier, partial download left
  const auto folder = download_cifar10(dir, [&](int64_t done, int64_t total) {
    if (resumed < 0 && done > 0) resumed = done;
    if (total > 0 && done > 0 && clock.seconds() - redrawn >= 0.1) {
      redrawn = clock.seconds();
      const auto rate = static_cast<int64_t>(static_cast<double>(done - resumed) / redrawn);
      progress.bar("CIFAR-10", static_cast<double>(done) / static_cast<double>(total),
                   str(megabytes(done), " of ", megabytes(total), "  ", megabytes(rate), "/s"));
    }
    return !interrupted();
  });
  progress.line(str("CIFAR-10 is now in ", folder.string()));
  return folder;
}

}  // namespace

Dataset load_dataset(const Options& options, Progress& progress) {
  if (options.dataset == "cifar10") {
    // What is there is read, and a fault in it is an error: falling back would hide it.
    if (!find_cifar10(options.data_dir).empty()) return read_cifar10(options.data_dir);
    std::filesystem::path folder;
    try {
      folder = download(options.data_dir, progress);
    } catch (const DataError& e) {
      check_interrupt("download stopped; what came is kept and the next run resumes it");
      progress.warning(str(e.what(), "\nCIFAR-10 cannot be had: going on with ", kSyntheticName,
                           ". Accuracies say nothing about CIFAR-10."));
    }
    if (!folder.empty()) return read_cifar10(folder);
  }
  const int64_t size = options.synthetic_size;
  return synthetic_dataset(size, std::max<int64_t>(size / 5, 1));
}

}  // namespace sinter::app
