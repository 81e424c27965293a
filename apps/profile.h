// Where the time of a training step goes, and how far that is from what the machine could do:
// `sinter bench --profile`.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/train.h"
#include "sinter/profile.h"

namespace sinter::app {

// ---- the operators of a step --------------------------------------------------------------------

// Operators of one name, module and work.
struct OperatorRow {
  std::string name, module, backward_of;
  double per_step = 0;  // how many
  double step_us = 0;   // in a step, all together
  Work work;            // likewise
};
// Of a program of `steps` training steps, in the order in which they first run.
std::vector<OperatorRow> operator_rows(const ProgramProfile& program, int64_t steps);

// ---- what the GPU did ---------------------------------------------------------------------------

using Interval = std::pair<int64_t, int64_t>;            // start, end
int64_t covered(std::vector<Interval> intervals);        // length of their union
int64_t longest_chain(std::vector<Interval> intervals);  // most that lie one after another

// "void sinter::cuda::(anonymous namespace)::adam_kernel<float>(…)" to "adam_kernel"; of cutlass's
// kernels, all named Kernel, the template argument that tells them apart.
std::string short_name(const std::string& demangled);

// Launches of one kernel with one grid.
struct KernelRow {
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
  double step_us = 0;           // from the first start to the last end
  double gaps_us = 0;           // nothing ran
  double overlap_us = 0;        // counted twice in the rows: kernels side by side
  double chain = 0;             // launches one after another
  std::vector<KernelRow> rows;  // in order of first appearance
};
// activities: of `steps` training steps, in the order of their starts; at least one.
StepTrace summarize(const std::vector<GpuActivity>& activities, int64_t steps);

// ---- the profile --------------------------------------------------------------------------------

// What the machine does at best, measured through the library's own operators; on a CPU with as
// many threads as they use.
struct Ceilings {
  double launch_us = 0;     // of a GPU: a kernel by itself, back to back
  double node_us = 0;       // of a GPU: a kernel in a graph, each depending on the one before
  double copy_bytes_s = 0;  // within the device's memory, bytes read and bytes written
  double copy_bytes = 0;    // so many at a time
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
  std::vector<OperatorRow> operators;                  // of the compiled step, each timed alone
  int64_t operator_calls = 0;                          // in which they were
  double chain = 0;                // operators of a step that have to run one after another
  std::optional<StepTrace> trace;  // of a GPU
  Ceilings ceilings;
  uint64_t device_peak_bytes = 0;  // of live blocks, in this process until the profile was made
  uint64_t device_reserved_bytes = 0;
  uint64_t host_peak_bytes = 0;  // resident

  Work work() const;            // of all operators
  double operators_us() const;  // all together
  // The floor: the arithmetic or the traffic at the ceilings, whichever takes longer, and on a GPU
  // the longest chain of operators at a graph node each.
  double compute_us() const;
  double memory_us() const;
  double floor_us() const;
};

// The device that is profiled: the first CUDA device among `devices`, else the CPU. Throws Error if
// this build or machine has no profiler for it.
Device require_profilable(const std::vector<Device>& devices);
// Times training steps of `job` on job.device and each of their operators, measures the ceilings
// and, on a GPU, then traces some steps. Takes a few seconds. Throws Error where the device cannot
// be profiled.
StepProfile profile_steps(const Job& job, const Dataset& data, Progress& progress);
std::string markdown(const StepProfile& profile);
nlohmann::ordered_json to_json(const StepProfile& profile);

}  // namespace sinter::app
