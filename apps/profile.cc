#include "profile.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "machine.h"
#include "sinter/autograd.h"
#include "sinter/ops.h"
#include "sinter/random.h"

namespace sinter::app {

namespace {

constexpr std::array<Stage, kStages> kAllStages = {
    Stage::kBatch,          Stage::kConvForward,  Stage::kLinearForward, Stage::kLoss,
    Stage::kLinearBackward, Stage::kConvBackward, Stage::kUpdate,        Stage::kOther};

constexpr size_t at(Stage stage) { return static_cast<size_t>(stage); }

}  // namespace

const char* name(Stage stage) {
  static constexpr const char* kNames[kStages] = {
      "batch",           "conv forward",  "linear forward", "loss",
      "linear backward", "conv backward", "update",         "other"};
  return kNames[at(stage)];
}

// ---- the work of a step -------------------------------------------------------------------------

Work StepWork::total() const {
  Work sum;
  for (const Work& work : stages) {
    sum.flops += work.flops;
    sum.bytes += work.bytes;
  }
  return sum;
}

namespace {

// A convolution or linear layer with the operators behind it up to the next such layer, which can
// be computed in one pass; for one image.
struct Layer {
  bool convolution = false;
  bool needs_dx = false;
  double multiply_adds = 0;
  double in = 0, weights = 0, out = 0;  // elements
};

double elements(const std::optional<Shape>& shape) {
  return shape ? static_cast<double>(shape->numel()) : 0;
}

std::vector<Layer> layers_of(const std::vector<RecordedOp>& ops, double image_elements) {
  std::vector<Layer> layers;
  for (const RecordedOp& op : ops) {
    const std::string_view what = op.op;
    const double out = elements(op.result);
    if (what != "conv2d" && what != "linear") {
      if (!layers.empty() && what != "cross_entropy") layers.back().out = out;
      continue;
    }
    const Shape& weight = op.inputs.at(1).value();  // (out, what an output is a sum over)
    Layer layer;
    layer.convolution = what == "conv2d";
    layer.needs_dx = op.inputs[0].has_value();
    layer.multiply_adds = out * static_cast<double>(weight.numel() / weight[0]);
    layer.in = layers.empty() ? image_elements : layers.back().out;
    layer.weights = elements(weight) + (op.inputs.size() > 2 ? elements(op.inputs[2]) : 0);
    layer.out = out;
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace

StepWork step_work(const Job& job, const Shape& image) {
  Job on_cpu = job;
  on_cpu.device = kCpu;
  const std::unique_ptr<Module> model = initial_model(on_cpu);
  const Tensor logits = (*model)(zeros({1, image[0], image[1], image[2]}));
  const std::vector<Layer> layers =
      layers_of(recorded_ops(logits), static_cast<double>(image.numel()));

  constexpr double kFloat = 4, kLabel = 8, kIndex = 8;
  const auto n = static_cast<double>(job.batch_size);
  StepWork work;
  const auto add = [&](Stage stage, double flops, double bytes) {
    work.stages[at(stage)].flops += flops;
    work.stages[at(stage)].bytes += bytes;
  };
  const auto pixels = static_cast<double>(image.numel());
  add(Stage::kBatch, 0, n * (pixels + kFloat * pixels + 1 + kLabel + kIndex));
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const double flops = 2 * n * layer.multiply_adds;
    add(layer.convolution ? Stage::kConvForward : Stage::kLinearForward, flops,
        kFloat * (n * layer.in + layer.weights + n * layer.out));
    // Reads the input, the output (which the ReLU's gradient asks for) and its gradient; writes the
    // gradient of the weights. For the input's gradient it also reads the weights and writes that.
    const double once = n * layer.in + 2 * n * layer.out + layer.weights;
    add(layer.convolution ? Stage::kConvBackward : Stage::kLinearBackward,
        flops * (layer.needs_dx ? 2 : 1),
        kFloat * (once + (layer.needs_dx ? layer.weights + n * layer.in : 0)));
    const bool continues_run = i > 0 && !layer.convolution && !layers[i - 1].convolution;
    if (!continues_run) work.dependent += 2;
  }
  work.dependent += 2;  // the loss and the update
  add(Stage::kLoss, 0, n * (2 * kFloat * elements(logits.shape()) + kLabel));
  double parameters = 0;
  for (const Tensor& p : model->parameters()) parameters += static_cast<double>(p.numel());
  // Reads parameters, gradients and the optimizer's state, writes all but the gradients.
  const double state = job.optimizer != "sgd" ? 2 : job.momentum > 0 ? 1 : 0;
  add(Stage::kUpdate, 0, kFloat * parameters * (3 + 2 * state));
  return work;
}

// ---- what the GPU did ---------------------------------------------------------------------------

int64_t covered(std::vector<Interval> intervals) {
  std::sort(intervals.begin(), intervals.end());
  int64_t sum = 0;
  for (size_t i = 0; i < intervals.size();) {
    auto [start, end] = intervals[i];
    for (++i; i < intervals.size() && intervals[i].first <= end; ++i)
      end = std::max(end, intervals[i].second);
    sum += end - start;
  }
  return sum;
}

// Taking the earliest end among those that start after the last one taken is optimal.
int64_t longest_chain(std::vector<Interval> intervals) {
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.second < b.second; });
  int64_t taken = 0, free_from = INT64_MIN;
  for (const auto& [start, end] : intervals) {
    if (start < free_from) continue;
    free_from = end;
    ++taken;
  }
  return taken;
}

std::string short_name(const std::string& demangled) {
  static const std::string kAnonymous = "(anonymous namespace)::";
  std::string text = demangled;
  for (size_t found; (found = text.find(kAnonymous)) != std::string::npos;)
    text.erase(found, kAnonymous.size());
  // Up to the parameters, without template arguments.
  std::string plain, arguments;
  int depth = 0;
  for (const char c : text) {
    if (c == '(' && depth == 0) break;
    if (c == '>') --depth;
    if (depth > 0) arguments += c;
    if (depth == 0 && c != '>' && c != '<') plain += c;
    if (c == '<') ++depth;
  }
  plain = plain.substr(plain.find_last_of(' ') + 1);  // behind the type of the result
  const size_t scope = plain.rfind("::");
  if (scope != std::string::npos) plain = plain.substr(scope + 2);
  if (plain.rfind("Kernel", 0) == 0 && !arguments.empty())
    plain = arguments.substr(0, arguments.find_first_of("<,"));
  return plain.empty() ? demangled : plain;
}

Stage stage_of(std::string_view kernel, bool backward) {
  const auto has = [&](std::string_view part) {
    return kernel.find(part) != std::string_view::npos;
  };
  // The name tells, if it can: a loss may be computed beside the backward pass.
  if (has("forward"))
    backward = false;
  else if (has("backward") || has("dx") || has("dweight") || has("sum_slices"))
    backward = true;
  const Stage conv = backward ? Stage::kConvBackward : Stage::kConvForward;
  const Stage linear = backward ? Stage::kLinearBackward : Stage::kLinearForward;
  // The first part that the name holds decides.
  const std::pair<std::string_view, Stage> parts[] = {
      {"gather_batch", Stage::kBatch},
      {"shuffled_indices", Stage::kBatch},
      {"softmax", Stage::kLoss},
      {"cross_entropy", Stage::kLoss},
      {"adam_", Stage::kUpdate},
      {"sgd_", Stage::kUpdate},
      {"mlp", linear},
      {"linear", linear},
      {"add_bias", linear},
      {"conv", conv},
      {"direct_", conv},
      {"implicit_gemm", conv},
      {"sum_slices", conv},  // the last part of the weights' gradient
      {"pool", conv},        // fused with a convolution too
      {"max_", conv},        // pooling
      {"avg_", conv},
      {"gemm", linear},  // cuBLAS's, under many names
      {"gemv", linear},
      {"cutlass", linear},
      {"splitK", linear},
      {"dot_kernel", linear},
  };
  for (const auto& [part, stage] : parts) {
    if (has(part)) return stage;
  }
  return Stage::kOther;
}

StepTrace summarize(const std::vector<GpuActivity>& activities, int64_t steps) {
  require<Error>(!activities.empty() && steps > 0,
                 "profiling: expected the activities of training steps, got ", activities.size(),
                 " activities in ", steps, " steps");
  const auto per_step = [&](int64_t total) {
    return static_cast<double>(total) / static_cast<double>(steps);
  };
  const auto us_per_step = [&](int64_t ns) { return per_step(ns) / 1000; };

  StepTrace trace;
  trace.steps = steps;
  std::vector<Interval> all;
  std::array<std::vector<Interval>, kStages> of_stage;
  std::vector<std::vector<int64_t>> times;  // of the rows' launches, ns
  std::map<std::tuple<Stage, std::string, std::array<int, 3>, std::array<int, 3>, bool>, size_t>
      row_of;
  int64_t sum = 0;
  bool backward = false;  // behind the loss, before the update
  for (const GpuActivity& activity : activities) {
    const std::string kernel = short_name(activity.name);
    const Stage stage = stage_of(kernel, backward);
    if (stage == Stage::kLoss) backward = true;
    if (stage == Stage::kUpdate) backward = false;
    all.emplace_back(activity.start, activity.end);
    of_stage[at(stage)].push_back(all.back());
    sum += activity.end - activity.start;

    const bool in_graph = activity.graph_node != 0;
    const auto [entry, added] =
        row_of.try_emplace({stage, kernel, activity.grid, activity.block, in_graph}, times.size());
    if (added) {
      KernelRow row{stage, kernel, activity.grid, activity.block};
      row.registers = activity.registers;
      row.shared_bytes = activity.shared_bytes;
      row.in_graph = in_graph;
      trace.rows.push_back(std::move(row));
      times.emplace_back();
    }
    times[entry->second].push_back(activity.end - activity.start);
  }
  for (size_t i = 0; i < times.size(); ++i) {
    KernelRow& row = trace.rows[i];
    std::sort(times[i].begin(), times[i].end());
    int64_t total = 0;
    for (const int64_t ns : times[i]) total += ns;
    row.launches = static_cast<int64_t>(times[i].size());
    row.per_step = per_step(row.launches);
    row.step_us = us_per_step(total);
    row.mean_us = static_cast<double>(total) / 1000 / static_cast<double>(row.launches);
    row.median_us = static_cast<double>(times[i][times[i].size() / 2]) / 1000;
  }
  int64_t start = all.front().first, end = all.front().second;
  for (const Interval& interval : all) {
    start = std::min(start, interval.first);
    end = std::max(end, interval.second);
  }
  const int64_t busy = covered(all);
  trace.step_us = us_per_step(end - start);
  trace.gaps_us = us_per_step(end - start - busy);
  trace.overlap_us = us_per_step(sum - busy);
  trace.chain = per_step(longest_chain(all));
  for (size_t s = 0; s < kStages; ++s) trace.stage_us[s] = us_per_step(covered(of_stage[s]));
  return trace;
}

// ---- measuring ----------------------------------------------------------------------------------

double StepProfile::compute_us() const { return work.total().flops / ceilings.fp32_flops_s * 1e6; }
double StepProfile::memory_us() const { return work.total().bytes / ceilings.copy_bytes_s * 1e6; }
double StepProfile::floor_us() const {
  return std::max(compute_us(), memory_us()) +
         static_cast<double>(work.dependent) * ceilings.node_us;
}

Device require_profilable(const std::vector<Device>& devices) {
  const auto found =
      std::find_if(devices.begin(), devices.end(), [](Device d) { return d.is_cuda(); });
  if (found == devices.end()) {
    const std::string why = why_not_cuda();
    if (!why.empty()) throw DeviceError("--profile: expected a CUDA device: " + why);
    throw UsageError("--profile: expected a CUDA device among --devices, got cpu alone");
  }
  if constexpr (cuda_built()) {
    const std::string why = profiler_unavailable();
    require<Error>(why.empty(), "--profile: ", why);
  }
  return *found;
}

// ---- the report ---------------------------------------------------------------------------------

namespace {

std::string triple(const std::array<int, 3>& extents) {
  std::string text = str(extents[0]);
  if (extents[1] > 1 || extents[2] > 1) text += str("·", extents[1]);
  if (extents[2] > 1) text += str("·", extents[2]);
  return text;
}

std::string percent(double part, double whole, int digits = 1) {
  return fixed(whole > 0 ? 100 * part / whole : 0, digits) + " %";
}

// How often in a step: a whole number, or what happens once in several.
std::string count_text(double count) {
  return fixed(count, count == static_cast<double>(static_cast<int64_t>(count)) ? 0 : 3);
}

std::string mebibytes(uint64_t bytes) {
  return fixed(static_cast<double>(bytes) / (1 << 20), 1) + " MiB";
}

std::string kernel_table(const StepTrace& trace) {
  std::vector<std::vector<std::string>> rows = {{"Kernel", "Stage", "Blocks × threads", "Registers",
                                                 "Shared", "A step", "µs each", "median",
                                                 "µs a step", "Share"}};
  for (const KernelRow& row : trace.rows) {
    const bool kernel = row.block[0] > 0;
    rows.push_back({row.name, name(row.stage),
                    kernel ? str(triple(row.grid), " × ", triple(row.block)) : "–",
                    kernel ? str(row.registers) : "–",
                    kernel ? fixed(static_cast<double>(row.shared_bytes) / 1024, 1) + " KiB" : "–",
                    count_text(row.per_step), fixed(row.mean_us, 2), fixed(row.median_us, 2),
                    fixed(row.step_us, 2), percent(row.step_us, trace.step_us)});
  }
  const auto line = [&](const char* what, double us) {
    rows.push_back({what, "", "", "", "", "", "", "", fixed(us, 2), percent(us, trace.step_us)});
  };
  line("gaps: nothing runs", trace.gaps_us);
  if (trace.overlap_us > 0) line("side by side, counted twice above", -trace.overlap_us);
  line("step, while recorded", trace.step_us);
  return table(rows);
}

std::string stage_table(const StepProfile& p) {
  std::vector<std::vector<std::string>> rows = {
      {"Stage", "µs a step", "MFLOP", "TFLOP/s", "of fp32", "MB", "TB/s", "of copy"}};
  const auto add = [&](const std::string& what, double us, const Work& work) {
    const double flops_s = us > 0 ? work.flops / us * 1e6 : 0;
    const double bytes_s = us > 0 ? work.bytes / us * 1e6 : 0;
    const bool computes = work.flops > 0, moves = work.bytes > 0;
    rows.push_back({what, fixed(us, 2), computes ? fixed(work.flops / 1e6, 1) : "–",
                    computes ? fixed(flops_s / 1e12, 2) : "–",
                    computes ? percent(flops_s, p.ceilings.fp32_flops_s) : "–",
                    moves ? fixed(work.bytes / 1e6, 2) : "–",
                    moves ? fixed(bytes_s / 1e12, 3) : "–",
                    moves ? percent(bytes_s, p.ceilings.copy_bytes_s) : "–"});
  };
  for (const Stage stage : kAllStages) {
    if (p.trace.stage_us[at(stage)] > 0 || p.work.stages[at(stage)].flops > 0)
      add(name(stage), p.trace.stage_us[at(stage)], p.work.stages[at(stage)]);
  }
  add("step, while recorded", p.trace.step_us, p.work.total());
  add("step", p.step_us, p.work.total());
  return table(rows);
}

}  // namespace

std::string markdown(const StepProfile& p) {
  const Ceilings& c = p.ceilings;
  std::ostringstream out;
  out << "## Profile of a training step: " << p.device.str() << ", " << p.device_name << ", batch "
      << p.batch_size << "\n\n"
      << "- Step: " << fixed(p.step_us, 2) << " µs, median of " << p.passes << " passes of "
      << p.steps << " steps (" << fixed(p.fastest_us, 2) << " to " << fixed(p.slowest_us, 2)
      << "), "
      << (p.eager ? std::string("eager: operators one by one")
                  : str("compiled, ", p.steps_a_call, p.steps_a_call == 1 ? " step" : " steps",
                        " a launch"))
      << "\n"
      << "- Floor: " << fixed(p.floor_us(), 2)
      << " µs: " << fixed(std::max(p.compute_us(), p.memory_us()), 2) << " µs for "
      << (p.compute_us() >= p.memory_us() ? "the arithmetic" : "the memory traffic") << " and "
      << p.work.dependent << " dependent stages of a graph node each. The step takes "
      << fixed(p.step_us / p.floor_us(), 2) << " times that\n"
      << "- Ceilings measured here: launch " << fixed(c.launch_us, 2) << " µs, graph node "
      << fixed(c.node_us, 2) << " µs, copy " << fixed(c.copy_bytes_s / 1e12, 2)
      << " TB/s read + write, fp32 matrix product " << fixed(c.fp32_flops_s / 1e12, 1)
      << " TFLOP/s (" << c.matrix << "³)\n"
      << "- Peak memory until then: " << mebibytes(p.device_peak_bytes) << " in use on the device, "
      << mebibytes(p.device_reserved_bytes) << " reserved; " << mebibytes(p.host_peak_bytes)
      << " resident on the host\n"
      << "- Launches of a step, one after another: " << fixed(p.trace.chain, 1) << "\n\n"
      << kernel_table(p.trace) << "\n"
      << stage_table(p) << "\n"
      << "Kernels as CUPTI records them, " << p.trace.steps
      << " steps; recording lengthens the gaps, so that a recorded step takes\nlonger. Stages: "
         "time "
         "in which something of the stage ran. MFLOP: multiplications and additions "
         "of\nconvolutions "
         "and linear layers; MB: every array read or written once, each layer in one pass.\nWhat "
         "stays in a cache may move faster than a copy.\n";
  return out.str();
}

nlohmann::ordered_json to_json(const StepProfile& p) {
  using Json = nlohmann::ordered_json;
  Json json = {
      {"device", p.device.str()},
      {"name", p.device_name},
      {"batch_size", p.batch_size},
      {"eager", p.eager},
      {"steps_a_call", p.steps_a_call},
      {"steps", p.steps},
      {"passes", p.passes},
      {"step_us", {{"median", p.step_us}, {"least", p.fastest_us}, {"most", p.slowest_us}}},
      {"floor_us",
       {{"total", p.floor_us()},
        {"compute", p.compute_us()},
        {"memory", p.memory_us()},
        {"dependent_stages", p.work.dependent}}},
      {"ceilings",
       {{"launch_us", p.ceilings.launch_us},
        {"graph_node_us", p.ceilings.node_us},
        {"copy_bytes_per_second", p.ceilings.copy_bytes_s},
        {"fp32_flops_per_second", p.ceilings.fp32_flops_s},
        {"matrix", p.ceilings.matrix}}},
      {"memory",
       {{"device_peak_bytes", p.device_peak_bytes},
        {"device_reserved_bytes", p.device_reserved_bytes},
        {"host_peak_bytes", p.host_peak_bytes}}},
      {"work", {{"flops", p.work.total().flops}, {"bytes", p.work.total().bytes}}},
      {"trace",
       {{"steps", p.trace.steps},
        {"step_us", p.trace.step_us},
        {"gaps_us", p.trace.gaps_us},
        {"overlap_us", p.trace.overlap_us},
        {"chain", p.trace.chain}}},
      {"kernels", Json::array()},
      {"stages", Json::array()}};
  for (const KernelRow& row : p.trace.rows) {
    json["kernels"].push_back({{"name", row.name},
                               {"stage", name(row.stage)},
                               {"grid", row.grid},
                               {"block", row.block},
                               {"registers", row.registers},
                               {"shared_bytes", row.shared_bytes},
                               {"in_graph", row.in_graph},
                               {"launches", row.launches},
                               {"per_step", row.per_step},
                               {"mean_us", row.mean_us},
                               {"median_us", row.median_us},
                               {"step_us", row.step_us}});
  }
  for (const Stage stage : kAllStages) {
    const Work& work = p.work.stages[at(stage)];
    json["stages"].push_back({{"stage", name(stage)},
                              {"step_us", p.trace.stage_us[at(stage)]},
                              {"flops", work.flops},
                              {"bytes", work.bytes}});
  }
  return json;
}

}  // namespace sinter::app
