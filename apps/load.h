// Getting the data set a command works on.
#pragma once

#include "options.h"

namespace sinter::app {

// CIFAR-10 from options.data_dir, downloaded if it is not there; the synthetic set if it was asked
// for, or if the download fails, saying so. Throws DataError for files that are there but damaged,
// Interrupted after Ctrl-C.
Dataset load_dataset(const Options& options, Progress& progress);

}  // namespace sinter::app
