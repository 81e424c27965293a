#include <exception>
#include <iostream>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/machine.h"
#include "apps/train_checkpoint.h"
#include "core/base/detail.h"
#include "sinter/safetensors.h"

namespace sinter::app {

void train_command(const Options& options) {
  // What can fail at once does so before the work, not after it.
  std::optional<CheckpointFolder> folder;
  if (!options.checkpoint.empty()) folder.emplace(options.checkpoint);
  const std::filesystem::path checkpoint = folder ? folder->file() : std::filesystem::path();
  const std::filesystem::path lock = folder ? folder->lock() : std::filesystem::path();
  require_distinct({{"--save", options.save},
                    {"--metrics", options.metrics},
                    {"--checkpoint", checkpoint},
                    {"--checkpoint", lock}});
  require_distinct(
      {{"--init", options.init}, {"--metrics", options.metrics}, {"--checkpoint", lock}});
  for (const auto& [option, path] :
       {std::pair("--save", options.save), std::pair("--metrics", options.metrics)}) {
    if (folder && folder->is_leftover(path))
      throw UsageError(str(option, ": ", path.string(),
                           " is a name of --checkpoint's temporary files; choose another one"));
  }
  const Output save_output("--save", options.save);
  std::optional<Metrics> metrics;
  if (!options.metrics.empty()) metrics.emplace(options.metrics);
  Job job = options.job;
  const Stopwatch context_clock;
  job.device = choose_device(options.device);
  synchronize(job.device);  // makes a GPU's context, which is the driver's work
  const double context_seconds = context_clock.seconds();
  if (!options.init.empty()) job.initial = load_weights("--init", options.init, job.model);

  Progress progress(options.quiet);
  progress.line(str("sinter train: ", describe(job)));
  const bool fallback = options.device.empty() && !job.device.is_cuda();
  progress.line(str("device: ", job.device.str(), ", ", describe(job.device),
                    fallback ? " (no CUDA: " + why_not_cuda() + ")" : ""));
  const std::string advice = job.device.is_cuda() ? "" : blas_advice();
  if (!advice.empty()) progress.warning(advice);
  const Stopwatch data_clock;
  Dataset data = load_dataset(options, progress);
  const double data_seconds = data_clock.seconds();
  progress.line(str("data: ", data.name, ", ", grouped(data.train.size()), " + ",
                    grouped(data.test.size()), " images (", data.source, ")"));

  std::optional<Checkpoints> checkpoints;
  if (folder) checkpoints.emplace(*folder, options.every, options.resume, job, data, progress);
  const bool resumed = checkpoints && checkpoints->step() > 0;
  const std::string name = data.name;
  std::optional<anomaly_guard> guard;
  if (job.detect_anomaly) guard.emplace();
  const TrainResult result = train(job, std::move(data), progress, metrics ? &*metrics : nullptr,
                                   checkpoints ? &*checkpoints : nullptr);

  std::exception_ptr save_error;  // which must not cost the result
  if (!options.save.empty()) {
    try {
      // Nothing that differs from run to run: equal trainings give equal files.
      save_safetensors(options.save, result.model->state_dict(),
                       {{"format", "pt"}, {"model", job.model}, {"dataset", name}});
    } catch (const Error&) {
      save_error = std::current_exception();
    }
  }
  std::string first_step;
  if (result.first_step > 0)  // not if a resumed training had nothing left to do
    first_step =
        str("first step finished ", duration(result.first_step - context_seconds - data_seconds),
            " after the start, apart from ", duration(context_seconds), " for the device and ",
            duration(data_seconds), " for the data\n");
  progress.clear();
  std::cout << result.program << "test accuracy " << fixed(result.test.accuracy(), 2) << " % ("
            << result.test.correct << " of " << result.test.images << "), loss "
            << fixed(result.test.loss, 4) << ", " << name << "\n"
            << "training time " << duration(result.seconds)
            << (resumed ? ", with that before resuming," : "") << " on " << job.device << ", "
            << grouped(result.steps) << " steps, "
            << grouped(static_cast<int64_t>(static_cast<double>(result.images) / result.seconds))
            << " images/s; whole command " << duration(command_clock().seconds()) << "\n"
            << first_step << "weights' hash " << state_hash(result.model->state_dict()) << "\n";
  if (save_error) std::rethrow_exception(save_error);
  if (!options.save.empty()) std::cout << "weights saved to " << options.save.string() << "\n";
}

}  // namespace sinter::app
