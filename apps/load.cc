#include "apps/load.h"

#include <algorithm>
#include <cmath>

#include "core/base/detail.h"
#include "sinter/checkpoint.h"
#include "sinter/models.h"

namespace sinter::app {

namespace {

std::string megabytes(int64_t bytes) { return fixed(static_cast<double>(bytes) / 1e6, 1) + " MB"; }

std::filesystem::path download(const std::filesystem::path& dir, Progress& progress) {
  progress.line(str("downloading CIFAR-10 to ", dir.string(), ", ",
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

Dataset synthetic(const Options& options, Progress& progress) {
  const int64_t size = options.synthetic_size;
  return synthetic_dataset(
      size, std::max<int64_t>(size / 5, 1), 0, [&](int64_t done, int64_t total) {
        check_interrupt("while drawing images");
        progress.bar("synthetic images", static_cast<double>(done) / static_cast<double>(total),
                     str(grouped(done), " of ", grouped(total)));
      });
}

// What is there is read, and a fault in it is an error: going on without would hide it.
Dataset load_cifar10(const Options& options, Progress& progress) {
  const std::filesystem::path& dir = options.data_dir;
  const std::filesystem::path found = find_cifar10(dir);
  if (!found.empty()) {
    try {
      return read_cifar10(dir);
    } catch (const DataError& e) {
      // A download replaces files of its own folder only.
      if (!options.download || found != dir / kCifar10Folder) throw;
      progress.warning(e.what());
    }
  }
  std::error_code error;
  const bool usable = !std::filesystem::exists(dir, error) || std::filesystem::is_directory(dir);
  if (!options.download && (options.data_dir_named || !usable)) {
    try {
      return read_cifar10(dir);
    } catch (const DataError& e) {
      throw DataError(str("--data-dir: ", e.what(), "; name its folder, or add --download"));
    }
  }
  std::filesystem::path folder;
  try {
    folder = download(dir, progress);
  } catch (const DataError& e) {
    check_interrupt("download stopped; what came is kept and the next run resumes it");
    if (options.download) throw;
    progress.warning(str(e.what(), "\nCIFAR-10 cannot be had: going on with ", kSyntheticName,
                         ". Accuracies say nothing about CIFAR-10."));
    return synthetic(options, progress);
  }
  return read_cifar10(folder);
}

}  // namespace

Dataset load_dataset(const Options& options, Progress& progress) {
  return options.dataset == "cifar10" ? load_cifar10(options, progress)
                                      : synthetic(options, progress);
}

NamedTensors load_weights(const char* option, const std::filesystem::path& path,
                          const std::string& model) {
  NamedTensors weights;
  try {
    weights = sinter::load_weights(path);
  } catch (const DataError& e) {
    throw DataError(str(option, ": ", e.what()));
  }
  try {
    const std::unique_ptr<Module> holder = make_model(model);
    holder->load_state_dict(weights);
    for (const auto& [key, tensor] : holder->state_dict()) {  // as the model's dtype holds them
      for (const float value : tensor.to_vector<float>())
        require<DataError>(std::isfinite(value), "an element of ", key, " is ", value,
                           ", expected finite numbers");
    }
  } catch (const Error& e) {
    throw DataError(str(option, ": ", path.string(), ": not weights of ", model, ": ", e.what()));
  }
  return weights;
}

}  // namespace sinter::app
