// The command line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "apps/train.h"

namespace sinter::app {

struct Options {
  // train, bench, eval, doctor, gradcheck, verify; print: `text` is all that was asked for
  std::string command;
  std::string text;

  Job job;                           // its device is set by the command
  std::string device;                // empty: chosen
  std::vector<std::string> devices;  // bench, gradcheck, verify; empty: every usable one
  int64_t runs = 1;                  // bench
  bool profile = false;              // bench
  int threads = 0;                   // 0: as many as cores
  std::filesystem::path data_dir = "data";
  bool data_dir_named = false;      // on the command line
  bool download = false;            // asked for
  std::string dataset = "cifar10";  // or synthetic
  int64_t synthetic_size = 50000;   // training images; a fifth as many test images
  bool quiet = false;

  std::filesystem::path metrics, save, init;                                       // train
  std::filesystem::path checkpoint;                                                // train
  int64_t every = 0;                                                               // train
  bool resume = false;                                                             // train
  std::filesystem::path weights, logits;                                           // eval
  std::filesystem::path json = "sinter-bench.json", markdown = "sinter-bench.md";  // bench
  std::string op;                                      // gradcheck, verify; empty: all
  bool full = false;                                   // gradcheck
  std::filesystem::path out, golden = "tests/golden";  // verify
};

// Throws UsageError naming the option, what was expected and what came.
Options parse_options(int argc, const char* const* argv);

}  // namespace sinter::app
