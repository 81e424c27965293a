#include <algorithm>
#include <cmath>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/agreement.h"
#include "apps/commands.h"
#include "apps/load.h"
#include "apps/machine.h"
#include "apps/profile.h"
#include "core/base/detail.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

using Json = nlohmann::ordered_json;

struct Spread {
  double mean = 0, deviation = 0;  // standard deviation of a sample; 0 for one run
};

struct DeviceResult {
  Device device;
  std::string name;
  struct Run {
    uint64_t seed;
    double seconds, whole_seconds, accuracy, train_loss;
    int64_t images;
  };
  std::vector<Run> runs;

  template <class F> Spread over_runs(F&& value) const {
    const auto n = static_cast<double>(runs.size());
    Spread s;
    for (const Run& run : runs) s.mean += value(run) / n;
    for (const Run& run : runs) s.deviation += std::pow(value(run) - s.mean, 2);
    s.deviation = runs.size() > 1 ? std::sqrt(s.deviation / (n - 1)) : 0;
    return s;
  }
  Spread seconds() const {
    return over_runs([](const Run& run) { return run.seconds; });
  }
  Spread whole_seconds() const {
    return over_runs([](const Run& run) { return run.whole_seconds; });
  }
  Spread accuracy() const {
    return over_runs([](const Run& run) { return run.accuracy; });
  }
  Spread images_per_second() const {
    return over_runs([](const Run& run) { return static_cast<double>(run.images) / run.seconds; });
  }
};

// The convolution algorithm while one lives.
class ConvAlgoDuring {
 public:
  explicit ConvAlgoDuring(ConvAlgo algo) : before_(conv_algo()) { set_conv_algo(algo); }
  ~ConvAlgoDuring() { set_conv_algo(before_); }
  ConvAlgoDuring(const ConvAlgoDuring&) = delete;
  ConvAlgoDuring& operator=(const ConvAlgoDuring&) = delete;

 private:
  ConvAlgo before_;
};

// Times of devices that compute different things cannot be compared: refuses to. The CPU, to which
// the others are compared, chooses its algorithms; and since the check is in float64, so does a GPU
// that is to use its tensor cores.
std::vector<Agreement> require_agreement(const Job& job, const ImageSet& images,
                                         const std::vector<Device>& devices, Progress& progress) {
  std::vector<Agreement> agreements;
  std::optional<Trace> reference;
  for (const Device device : devices) {
    if (device == kCpu) continue;
    if (!reference) {
      const ConvAlgoDuring guard(ConvAlgo::kAuto);
      reference = trace_steps(job, images, kCpu);
    }
    const ConvAlgo algo = conv_algo();
    const ConvAlgoDuring guard(algo == ConvAlgo::kTensorCore ? ConvAlgo::kAuto : algo);
    agreements.push_back(compare(*reference, trace_steps(job, images, device)));
    require<Error>(agreements.back().ok(), "not benchmarked: ", describe(agreements.back()));
    progress.line(describe(agreements.back()));
  }
  return agreements;
}

DeviceResult::Run run_once(const Job& job, const Dataset& data, Progress& progress,
                           Metrics* metrics) {
  const Stopwatch clock;
  const TrainResult result = train(job, data, progress, metrics);
  return {job.seed,          result.seconds, clock.seconds(), result.test.accuracy(),
          result.train_loss, result.images};
}

// ---- the report ---------------------------------------------------------------------------------

std::string text_of(const Spread& s, int digits, const std::string& unit, size_t runs) {
  std::string text = fixed(s.mean, digits);
  if (runs > 1) text += str(" ± ", fixed(s.deviation, digits));
  return str(text, " ", unit);
}

std::string result_table(const std::vector<DeviceResult>& results) {
  const auto cpu = std::find_if(results.begin(), results.end(),
                                [](const DeviceResult& r) { return r.device == kCpu; });
  std::vector<std::vector<std::string>> rows = {
      {"Setup", "Device", "Time taken", "Accuracy", "Images/s", "Speed-up", "With evaluation"}};
  for (const DeviceResult& r : results) {
    const size_t runs = r.runs.size();
    const double seconds = r.seconds().mean;
    const int digits = seconds < 10 ? 3 : 1;
    rows.push_back({str("Sinter, ", r.device.str()), r.name,
                    text_of(r.seconds(), digits, "s", runs), text_of(r.accuracy(), 2, "%", runs),
                    grouped(static_cast<int64_t>(r.images_per_second().mean)),
                    cpu == results.end() ? "–" : fixed(cpu->seconds().mean / seconds, 1) + " x",
                    text_of(r.whole_seconds(), digits, "s", runs)});
  }
  return table(rows);
}

struct Report {
  const Options& options;
  const Dataset& data;
  const std::vector<Agreement>& agreements;
  const std::vector<DeviceResult>& results;
  const std::optional<StepProfile>& profile;
  Machine machine;
  double command_seconds;
};

std::string markdown(const Report& r) {
  std::ostringstream out;
  const int64_t runs = r.options.runs;
  if (r.data.synthetic) out << "**" << r.data.name << "**\n\n";
  out << result_table(r.results) << "\n";
  out << "Time taken: the training loop, first batch to last update, devices waited for; with "
         "evaluation: the\nsame and model set-up, data transfer and evaluation after each epoch.";
  if (runs > 1) {
    out << " Mean ± standard deviation\nof " << runs << " runs, seeds " << r.options.job.seed
        << " to " << r.options.job.seed + static_cast<uint64_t>(runs) - 1 << ".";
  }
  out << "\n\n- Dataset: " << r.data.name << ", " << grouped(r.data.train.size()) << " + "
      << grouped(r.data.test.size()) << " images (" << r.data.source << ")\n"
      << "- Job: " << describe(r.options.job) << "\n";
  for (const Agreement& a : r.agreements) out << "- Check: " << describe(a) << "\n";
  if (r.agreements.empty()) out << "- Check: none, the CPU is the only device\n";
  out << markdown(r.machine) << "- Whole command: " << duration(r.command_seconds) << "\n";
  if (r.profile) out << "\n" << markdown(*r.profile);
  return out.str();
}

Json to_json(const Spread& s, size_t runs) {
  Json json = {{"mean", s.mean}, {"standard_deviation", nullptr}};
  if (runs > 1) json["standard_deviation"] = s.deviation;
  return json;
}

Json to_json(const Report& r) {
  const Machine& m = r.machine;
  Json json = {
      {"dataset", r.data.name},
      {"synthetic", r.data.synthetic},
      {"source", r.data.source},
      {"train_images", r.data.train.size()},
      {"test_images", r.data.test.size()},
      {"job", app::to_json(r.options.job)},
      {"agreement",
       {{"steps", kAgreementSteps},
        {"dtype", "float64"},
        {"tolerance", kAgreementTolerance},
        {"devices", Json::array()}}},
      {"results", Json::array()},
      {"machine",
       {{"cpu", m.cpu},
        {"cores", m.cores},
        {"threads", m.threads},
        {"simd", m.simd},
        {"blas", m.blas},
        {"gpus", m.gpus},
        {"driver", m.driver},
        {"toolkit", m.toolkit},
        {"os", m.os}}},
      {"build", {{"version", SINTER_VERSION}, {"commit", m.commit}, {"compiler", m.compiler}}},
      {"command_seconds", r.command_seconds}};
  for (const Agreement& a : r.agreements) {
    json["agreement"]["devices"].push_back(
        {{"device", a.device.str()}, {"worst", a.worst}, {"difference", a.difference}});
  }
  for (const DeviceResult& d : r.results) {
    const size_t runs = d.runs.size();
    Json result = {{"device", d.device.str()},
                   {"name", d.name},
                   {"seconds", to_json(d.seconds(), runs)},
                   {"accuracy", to_json(d.accuracy(), runs)},
                   {"images_per_second", to_json(d.images_per_second(), runs)},
                   {"whole_seconds", to_json(d.whole_seconds(), runs)},
                   {"runs", Json::array()}};
    for (const auto& run : d.runs) {
      result["runs"].push_back({{"seed", run.seed},
                                {"seconds", run.seconds},
                                {"whole_seconds", run.whole_seconds},
                                {"accuracy", run.accuracy},
                                {"train_loss", run.train_loss},
                                {"images", run.images}});
    }
    json["results"].push_back(std::move(result));
  }
  if (r.profile) json["profile"] = app::to_json(*r.profile);
  return json;
}

}  // namespace

void bench_command(const Options& options) {
  require_distinct(
      {{"--json", options.json}, {"--markdown", options.markdown}, {"--metrics", options.metrics}});
  const Output json("--json", options.json), page_output("--markdown", options.markdown);
  std::optional<Metrics> metrics;
  if (!options.metrics.empty()) metrics.emplace(options.metrics);
  const std::vector<Device> devices = devices_asked_for("--devices", options.devices);
  std::optional<Device> profiled;
  if (options.profile) profiled = require_profilable(devices);
  Progress progress(options.quiet);
  progress.line(str("sinter bench: ", describe(options.job), ", ", options.runs,
                    options.runs == 1 ? " run" : " runs", " on each device"));
  for (const Device device : devices)
    progress.line(str("device: ", device.str(), ", ", describe(device)));
  if (options.devices.empty() && devices.size() == 1) progress.line("no CUDA: " + why_not_cuda());
  const std::string advice = blas_advice();
  if (!advice.empty()) progress.warning(advice);

  const Dataset data = load_dataset(options, progress);
  progress.line(str("data: ", data.name, ", ", grouped(data.train.size()), " + ",
                    grouped(data.test.size()), " images (", data.source, ")"));
  const std::vector<Agreement> agreements =
      require_agreement(options.job, data.train, devices, progress);

  std::vector<DeviceResult> results;
  for (const Device device : devices) {
    DeviceResult result{device, describe(device), {}};
    for (int64_t run = 0; run < options.runs; ++run) {
      Job job = options.job;
      job.device = device;
      job.seed += static_cast<uint64_t>(run);
      progress.line(
          str(device.str(), ", run ", run + 1, " of ", options.runs, ", seed ", job.seed));
      result.runs.push_back(run_once(job, data, progress, metrics ? &*metrics : nullptr));
    }
    results.push_back(std::move(result));
  }
  // Last, as a profiler slows down what follows; and its failure must not cost the results.
  std::optional<StepProfile> profile;
  std::exception_ptr profile_error;
  if (profiled) {
    Job job = options.job;
    job.device = *profiled;
    try {
      profile = profile_steps(job, data, progress);
    } catch (const Error&) {
      profile_error = std::current_exception();
    }
  }
  progress.clear();

  const Report report{
      options, data, agreements, results, profile, this_machine(), command_clock().seconds()};
  const std::string page = markdown(report);
  std::cout << page;
  // Nor must that of one file cost the other.
  std::string written;
  std::exception_ptr write_error;
  const auto write = [&](const std::filesystem::path& path, const std::string& text) {
    try {
      write_file(path, text);
      written += (written.empty() ? "" : ", ") + path.string();
    } catch (const DataError& e) {
      if (write_error)
        progress.warning(e.what());
      else
        write_error = std::current_exception();
    }
  };
  write(options.markdown, "# Sinter benchmark\n\n" + page);
  // A path, which is among them, need not be UTF-8.
  write(options.json, to_json(report).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  if (!written.empty()) std::cout << "Written: " << written << "\n";
  if (profile_error && write_error) {
    try {
      std::rethrow_exception(profile_error);
    } catch (const Error& e) {
      progress.warning(e.what());
    }
  }
  if (write_error) std::rethrow_exception(write_error);
  if (profile_error) std::rethrow_exception(profile_error);
}

}  // namespace sinter::app
