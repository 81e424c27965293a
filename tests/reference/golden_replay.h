// What PyTorch computed, replayed: operators, optimizers and a training run recorded in float64 by
// tests/golden/generate.py.
#pragma once

#include <filesystem>
#include <vector>

#include "tests/reference/comparison.h"

namespace sinter::app {

// Largest difference let pass, relative to the largest element of the recorded tensor. Summation
// orders differ, so float64 leaves about 1e-15. In float32 the inputs are rounded too: a few 2^-24,
// times up to ten where a quotient or a logarithm enlarges them.
inline constexpr double kRecordedDouble = 1e-10, kRecordedSingle = 2e-6;
// After fifty steps of Adam. PyTorch's own float32 runs are within 1e-6 of its float64 run's
// losses, with noise of several roundings on the weights (generate.py sees to that); in the weights
// a gradient element that is small against its rounding is amplified by Adam's division.
inline constexpr double kRecordedSingleLosses = 1e-5, kRecordedSingleWeights = 1e-3;

// The cases of operators.safetensors, optimizers.safetensors and training.safetensors in `dir`.
// Throw DataError if a file is missing or unreadable, if anything in it would go unused (a tensor
// of no case, an operator or an option not known here), or if an operator or an optimizer has no
// record.
std::vector<VerifyCase> golden_operators(const std::filesystem::path& dir);
std::vector<VerifyCase> golden_optimizers(const std::filesystem::path& dir);
std::vector<VerifyCase> golden_training(const std::filesystem::path& dir);
// The PyTorch that the operators came from: "2.9.1".
std::string golden_version(const std::filesystem::path& dir);

}  // namespace sinter::app
