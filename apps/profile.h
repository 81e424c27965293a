// Where the time of a training step on a GPU goes, and how far that is from what the machine could
// do: `sinter bench --profile`.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sinter/profile.h"
#include "train.h"

namespace sinter::app {

// ---- the work of a step -------------------------------------------------------------------------

enum class Stage {
  kBatch,          // shuffling and gathering images
  kConvForward,    // convolutions with their ReLU and pooling
  kLinearForward,  // linear layers with their ReLU
  kLoss,           // cross-entropy and its gradient
  kLinearBackward,
  kConvBackward,
  kUpdate,  // the optimizer
  kOther,   // what may belong to several: element-wise operators, sums, copies
};
inline constexpr size_t kStages = 8;
const char* name(Stage stage);

struct Work {
  double flops = 0;  // of multiplications and additions in matrix products and convolutions
  double bytes = 0;  // each array read or written once
};

// What a step of `job` on a full batch has to do, however it is programmed.
struct StepWork {
  std::array<Work, kStages> stages;
  // Stages none of which can begin before the one before it is over everywhere, if whatever can be
  // one kernel is: each convolution, forward and backward; each run of linear layers, likewise; the
  // loss; the update. The next batch is gathered meanwhile.
  int64_t dependent = 0;

  Work total() const;
};
// image: (C, H, W). From the operators that the model's forward pass records: a multiplication and
// an addition are two operations; backward takes as many as forward for the weights and as many
// again for the layer's input, except for the images, which need no gradient. Bytes are of
// float32, and pooled layers count as computed in one pass.
StepWork step_work(const Job& job, const Shape& image);

// ---- what the GPU did ---------------------------------------------------------------------------

using Interval = std::pair<int64_t, int64_t>;            // start, end
int64_t covered(std::vector<Interval> intervals);        // length of their union
int64_t longest_chain(std::vector<Interval> intervals);  // most that lie one after another

// "void sinter::cuda::(anonymous namespace)::adam_kernel<float>(…)" to "adam_kernel"; of cutlass's
// kernels, all named Kernel, the template argument that tells them apart.
std::string short_name(const std::string& demangled);
// By the kernel's short name; forward unless `backward`.
Stage stage_of(std::string_view kernel, bool backward);

// Launches of one kernel with one grid in one stage.
struct KernelRow {
  Stage stage;
  std::string name;
  std::array<int, 3> grid{}, block{};
  int registers = 0;
  int64_t shared_bytes = 0;
  bool in_graph = false;
  int64_t launches = 0;
  double per_step = 0;                // launches
  double step_us = 0;                 // in a step, all launches together
  double mean_us = 0, median_us = 0;  // a launch
};

// Times are microseconds a step: sum of the rows - overlap + gaps = step.
struct StepTrace {
  int64_t steps = 0;
  double step_us = 0;                      // from the first start to the last end
  double gaps_us = 0;                      // nothing ran
  double overlap_us = 0;                   // counted twice in the rows: kernels side by side
  double chain = 0;                        // launches one after another
  std::array<double, kStages> stage_us{};  // something of that stage ran
  std::vector<KernelRow> rows;             // in order of first appearance
};
// activities: of `steps` training steps, in the order of their starts; at least one.
StepTrace summarize(const std::vector<GpuActivity>& activities, int64_t steps);

// ---- the profile --------------------------------------------------------------------------------

// What the machine does at best, measured through the library's own operators.
struct Ceilings {
  double launch_us = 0;     // a kernel by itself, back to back
  double node_us = 0;       // a kernel in a graph, each depending on the one before
  double copy_bytes_s = 0;  // within the device's memory, bytes read and bytes written
  double fp32_flops_s = 0;  // a large float32 matrix product
  int64_t matrix = 0;       // its size
};

struct StepProfile {
  Device device;
  std::string device_name;
  int64_t batch_size = 0;
  bool eager = false;
  int64_t steps_a_call = 1;                            // that are launched together
  int64_t steps = 0, passes = 0;                       // timed passes of so many steps
  double step_us = 0, fastest_us = 0, slowest_us = 0;  // a step, without the profiler; median
  StepTrace trace;
  StepWork work;
  Ceilings ceilings;
  uint64_t device_peak_bytes = 0;  // of live blocks, in this process until the profile was made
  uint64_t device_reserved_bytes = 0;
  uint64_t host_peak_bytes = 0;  // resident

  // The floor: the arithmetic or the traffic at the ceilings, whichever takes longer, and the
  // dependent stages at a graph node each.
  double compute_us() const;
  double memory_us() const;
  double floor_us() const;
};

// The first CUDA device among `devices`. Throws UsageError or DeviceError if there is none, Error
// if this build or machine has no profiler.
Device require_profilable(const std::vector<Device>& devices);
// Times training steps of `job` on job.device, a CUDA device, measures the ceilings and then traces
// some steps. Takes a few seconds. Throws Error where the device cannot be profiled.
StepProfile profile_steps(const Job& job, const Dataset& data, Progress& progress);
std::string markdown(const StepProfile& profile);
nlohmann::ordered_json to_json(const StepProfile& profile);

}  // namespace sinter::app
