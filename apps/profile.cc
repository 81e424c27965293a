#include "apps/profile.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "apps/machine.h"
#include "core/base/detail.h"

namespace sinter::app {

// ---- the operators of a step --------------------------------------------------------------------

std::vector<OperatorRow> operator_rows(const ProgramProfile& program, int64_t steps) {
  std::vector<OperatorRow> rows;
  std::map<std::tuple<std::string, std::string, std::string, double, double>, size_t> row_of;
  for (const OperatorProfile& op : program.operators) {
    const auto [found, is_new] = row_of.emplace(
        std::tuple(op.name, op.module, op.backward_of, op.work.flops, op.work.bytes), rows.size());
    if (is_new) rows.push_back({op.name, op.module, op.backward_of, 0, 0, {}});
    OperatorRow& row = rows[found->second];
    row.per_step += 1;
    row.step_us += op.us;
    row.work.flops += op.work.flops;
    row.work.bytes += op.work.bytes;
  }
  for (OperatorRow& row : rows) {
    for (double* sum : {&row.per_step, &row.step_us, &row.work.flops, &row.work.bytes})
      *sum /= static_cast<double>(steps);
  }
  return rows;
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
  std::vector<std::vector<int64_t>> times;  // of the rows' launches, ns
  std::map<std::tuple<std::string, std::array<int, 3>, std::array<int, 3>, bool>, size_t> row_of;
  int64_t sum = 0;
  for (const GpuActivity& activity : activities) {
    const std::string kernel = short_name(activity.name);
    all.emplace_back(activity.start, activity.end);
    sum += activity.end - activity.start;

    const bool in_graph = activity.graph_node != 0;
    const auto [entry, added] =
        row_of.try_emplace({kernel, activity.grid, activity.block, in_graph}, times.size());
    if (added) {
      KernelRow row{kernel, activity.grid, activity.block};
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
  return trace;
}

// ---- measuring ----------------------------------------------------------------------------------

Work StepProfile::work() const {
  Work sum;
  for (const OperatorRow& row : operators) {
    sum.flops += row.work.flops;
    sum.bytes += row.work.bytes;
  }
  return sum;
}
double StepProfile::operators_us() const {
  double sum = 0;
  for (const OperatorRow& row : operators) sum += row.step_us;
  return sum;
}
double StepProfile::compute_us() const { return work().flops / ceilings.fp32_flops_s * 1e6; }
double StepProfile::memory_us() const { return work().bytes / ceilings.copy_bytes_s * 1e6; }
double StepProfile::floor_us() const {
  return std::max(compute_us(), memory_us()) + chain * ceilings.node_us;
}

Device require_profilable(const std::vector<Device>& devices) {
  const auto found =
      std::find_if(devices.begin(), devices.end(), [](Device d) { return d.is_cuda(); });
  if (found == devices.end()) return kCpu;
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

std::string operator_table(const StepProfile& p) {
  std::vector<std::vector<std::string>> rows = {{"Operator", "Module", "Backward of", "A step",
                                                 "µs a step", "Share", "MFLOP", "GFLOP/s", "MB",
                                                 "GB/s"}};
  const double whole = p.operators_us();
  const auto add = [&](std::vector<std::string> row, double us, const Work& work) {
    const auto rate = [&](double amount) { return us > 0 ? fixed(amount / us / 1e3, 1) : "–"; };
    const bool computes = work.flops > 0;
    for (std::string cell :
         {fixed(us, 2), percent(us, whole), computes ? fixed(work.flops / 1e6, 2) : "–",
          computes ? rate(work.flops) : "–", fixed(work.bytes / 1e6, 3), rate(work.bytes)})
      row.push_back(std::move(cell));
    rows.push_back(std::move(row));
  };
  for (const OperatorRow& row : p.operators)
    add({row.name, row.module, row.backward_of, count_text(row.per_step)}, row.step_us, row.work);
  add({"operators, one by one", "", "", ""}, whole, p.work());
  add({"step", "", "", ""}, p.step_us, p.work());
  return table(rows);
}

std::string kernel_table(const StepTrace& trace) {
  std::vector<std::vector<std::string>> rows = {{"Kernel", "Blocks × threads", "Registers",
                                                 "Shared", "A step", "µs each", "median",
                                                 "µs a step", "Share"}};
  for (const KernelRow& row : trace.rows) {
    const bool kernel = row.block[0] > 0;
    rows.push_back({row.name, kernel ? str(triple(row.grid), " × ", triple(row.block)) : "–",
                    kernel ? str(row.registers) : "–",
                    kernel ? fixed(static_cast<double>(row.shared_bytes) / 1024, 1) + " KiB" : "–",
                    count_text(row.per_step), fixed(row.mean_us, 2), fixed(row.median_us, 2),
                    fixed(row.step_us, 2), percent(row.step_us, trace.step_us)});
  }
  const auto line = [&](const char* what, double us) {
    rows.push_back({what, "", "", "", "", "", "", fixed(us, 2), percent(us, trace.step_us)});
  };
  line("gaps: nothing runs", trace.gaps_us);
  if (trace.overlap_us > 0) line("side by side, counted twice above", -trace.overlap_us);
  line("step, while recorded", trace.step_us);
  return table(rows);
}

}  // namespace

std::string markdown(const StepProfile& p) {
  const Ceilings& c = p.ceilings;
  const bool on_gpu = p.device.is_cuda();
  std::ostringstream out;
  out << "## Profile of a training step: " << p.device.str() << ", " << p.device_name << ", batch "
      << p.batch_size << "\n\n"
      << "- Step: " << fixed(p.step_us, 2) << " µs, median of " << p.passes << " passes of "
      << p.steps << " steps (" << fixed(p.fastest_us, 2) << " to " << fixed(p.slowest_us, 2)
      << "), "
      << (p.eager ? std::string("eager: operators one by one")
                  : str("compiled, ", p.steps_a_call, p.steps_a_call == 1 ? " step" : " steps",
                        on_gpu ? " a launch" : " a call"))
      << "\n"
      << "- Floor: " << fixed(p.floor_us(), 2) << " µs: ";
  if (on_gpu) out << fixed(std::max(p.compute_us(), p.memory_us()), 2) << " µs for ";
  out << (p.compute_us() >= p.memory_us() ? "the arithmetic" : "the memory traffic");
  if (on_gpu) out << " and " << count_text(p.chain) << " dependent operators of a graph node each";
  out << ". The step takes " << fixed(p.step_us / p.floor_us(), 2) << " times that\n"
      << "- Ceilings measured here: ";
  if (on_gpu) {
    out << "launch " << fixed(c.launch_us, 2) << " µs, graph node " << fixed(c.node_us, 2)
        << " µs, ";
  }
  out << "copy " << fixed(c.copy_bytes_s / 1e9, 1) << " GB/s read + write (of "
      << mebibytes(static_cast<uint64_t>(c.copy_bytes)) << "), fp32 matrix product "
      << fixed(c.fp32_flops_s / 1e9, 1) << " GFLOP/s (" << c.matrix << "³)\n"
      << "- Peak memory until then: ";
  if (on_gpu) {
    out << mebibytes(p.device_peak_bytes) << " in use on the device, "
        << mebibytes(p.device_reserved_bytes) << " reserved; ";
  }
  out << mebibytes(p.host_peak_bytes) << " resident on the host\n";
  if (p.trace)
    out << "- Launches of a step, one after another: " << fixed(p.trace->chain, 1) << "\n";
  out << "\n"
      << operator_table(p) << "\n"
      << "Operators of the compiled step, medians of " << p.operator_calls << " calls, each "
      << (on_gpu ? "alone on the GPU, with some\nmicrosecond before and behind it: what runs side "
                   "by side and what is launched early does not show. "
                 : "with all\nthreads. ")
      << "Share: of their sum.\nMFLOP: multiplications and additions of convolutions and matrix "
         "products as they are defined; MB: every operand\nread or written once. What stays in a "
         "cache may move faster than a copy.\n";
  if (p.trace) {
    out << "\n"
        << kernel_table(*p.trace) << "\n"
        << "Kernels as CUPTI records them, " << p.trace->steps
        << " steps; recording lengthens the gaps, so that a recorded step takes\nlonger.\n";
  }
  return out.str();
}

nlohmann::ordered_json to_json(const StepProfile& p) {
  using Json = nlohmann::ordered_json;
  const Work work = p.work();
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
        {"dependent_operators", p.chain}}},
      {"ceilings",
       {{"copy_bytes_per_second", p.ceilings.copy_bytes_s},
        {"copy_bytes", p.ceilings.copy_bytes},
        {"fp32_flops_per_second", p.ceilings.fp32_flops_s},
        {"matrix", p.ceilings.matrix}}},
      {"memory", {{"host_peak_bytes", p.host_peak_bytes}}},
      {"work", {{"flops", work.flops}, {"bytes", work.bytes}}},
      {"operator_calls", p.operator_calls},
      {"operators", Json::array()}};
  if (p.device.is_cuda()) {
    json["ceilings"]["launch_us"] = p.ceilings.launch_us;
    json["ceilings"]["graph_node_us"] = p.ceilings.node_us;
    json["memory"]["device_peak_bytes"] = p.device_peak_bytes;
    json["memory"]["device_reserved_bytes"] = p.device_reserved_bytes;
  }
  for (const OperatorRow& row : p.operators) {
    json["operators"].push_back({{"name", row.name},
                                 {"module", row.module},
                                 {"backward_of", row.backward_of},
                                 {"per_step", row.per_step},
                                 {"step_us", row.step_us},
                                 {"flops", row.work.flops},
                                 {"bytes", row.work.bytes}});
  }
  if (!p.trace) return json;
  json["trace"] = {{"steps", p.trace->steps},
                   {"step_us", p.trace->step_us},
                   {"gaps_us", p.trace->gaps_us},
                   {"overlap_us", p.trace->overlap_us},
                   {"chain", p.trace->chain}};
  json["kernels"] = Json::array();
  for (const KernelRow& row : p.trace->rows) {
    json["kernels"].push_back({{"name", row.name},
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
  return json;
}

}  // namespace sinter::app
