#include <cmath>
#include <iostream>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/machine.h"
#include "core/base/detail.h"
#include "sinter/safetensors.h"

namespace sinter::app {

void eval_command(const Options& options) {
  require_distinct({{"--weights", options.weights}, {"--logits", options.logits}});
  const Output logits_output("--logits", options.logits);
  Job job = options.job;
  job.device = choose_device(options.device);
  job.initial = load_weights("--weights", options.weights, job.model);
  const std::unique_ptr<Module> model = initial_model(job);

  Progress progress(options.quiet);
  progress.line(str("sinter eval: ", job.model, " with ", options.weights.string(), " on ",
                    job.device.str(), ", ", describe(job.device)));
  Dataset data = load_dataset(options, progress);
  data.train = {};  // not needed, and the larger part
  data.test = data.test.to(job.device);

  Tensor logits;
  if (!options.logits.empty())
    logits = empty({data.test.size(), data.test.classes}, {kFloat32, job.device});
  const Evaluation result = Evaluator(*model, data.test, options.job.eager)(logits);
  // Finite weights can be far out too.
  require<Error>(std::isfinite(result.loss), "--weights: ", options.weights.string(),
                 ": the test loss is ", result.loss, ", expected a finite number");
  std::cout << "test accuracy " << fixed(result.accuracy(), 2) << " % (" << result.correct << " of "
            << result.images << "), loss " << fixed(result.loss, 4) << ", " << data.name << "\n";
  if (!options.logits.empty())
    save_safetensors(options.logits, {{"logits", logits.to(kCpu)}}, {{"dataset", data.name}});
}

}  // namespace sinter::app
