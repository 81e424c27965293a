// Getting the data set a command works on.
#pragma once

#include "apps/options.h"

namespace sinter::app {

// CIFAR-10 from options.data_dir; with --download it is fetched there if it is not there whole.
// Only where neither --data-dir nor --download is given and the default folder has none is it
// fetched unasked, and replaced by the synthetic set, saying so, if that fails. Throws DataError
// for a named folder without it and for files that are damaged or cannot be read, Interrupted after
// Ctrl-C.
Dataset load_dataset(const Options& options, Progress& progress);

// The weights in the file that `option` names, a checkpoint's too. Throws DataError, also for those
// that are not weights of `model`, each of them finite.
NamedTensors load_weights(const char* option, const std::filesystem::path& path,
                          const std::string& model);

}  // namespace sinter::app
