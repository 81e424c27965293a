// Whether devices compute the same: a few training steps in float64, where a difference of kernels
// shows at once and rounding does not.
#pragma once

#include "apps/train.h"

namespace sinter::app {

// Largest difference let pass, relative to the largest element of the tensor (or to the loss).
// Different summation orders leave about 1e-15 a step, and a wrong kernel far more than this.
inline constexpr double kAgreementTolerance = 1e-9;
inline constexpr int64_t kAgreementSteps = 3;

struct Trace {
  Device device;
  std::vector<double> losses;  // of each step
  NamedTensors weights;        // after the last, on the CPU
};
// kAgreementSteps steps of the job in float64 on `device`, over the first images of `set`, which
// must be on the CPU and hold at least one image.
Trace trace_steps(Job job, ImageSet set, Device device);

struct Agreement {
  Device device;
  std::string worst;      // the loss or the weight that differs most
  double difference = 0;  // by how much of its largest element
  bool ok() const { return difference <= kAgreementTolerance; }  // false for NaN
};
Agreement compare(const Trace& reference, const Trace& other);

// "cuda:0 agrees with cpu …" or "cuda:0 disagrees with cpu …", with tensor, figure and tolerance.
std::string describe(const Agreement& agreement);

}  // namespace sinter::app
