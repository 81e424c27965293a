#include "apps/agreement.h"

#include <algorithm>
#include <cmath>

#include "core/base/detail.h"

namespace sinter::app {

Trace trace_steps(Job job, ImageSet set, Device device) {
  job.device = device;
  const std::unique_ptr<Module> model = initial_model(job, kFloat64);
  const std::unique_ptr<Optimizer> optimizer = make_optimizer(job, *model);
  const int64_t images = std::min(set.size(), kAgreementSteps * job.batch_size);
  set.images = set.images.narrow(0, 0, images);
  set.labels = set.labels.narrow(0, 0, images);
  Batches batches(
      set.to(device),
      {.batch_size = job.batch_size, .shuffle = job.shuffle, .seed = job.seed, .dtype = kFloat64});
  const Tensor losses = empty({kAgreementSteps}, {kFloat64, device});
  TrainSteps steps(*model, *optimizer, batches, losses.options(), job.eager);
  for (int64_t step = 0; step < kAgreementSteps; ++step) {
    // A set of fewer images goes round again.
    const int64_t i = step % batches.size();
    if (i == 0) batches.start_epoch(static_cast<uint64_t>(step / batches.size()));
    check_interrupt("while comparing devices");
    const int64_t in_batch = std::min(job.batch_size, images - i * job.batch_size);
    steps.run(i, 1, in_batch, losses.narrow(0, step, 1));
  }
  Trace trace{device, losses.to_vector<double>(), {}};
  for (const auto& [name, tensor] : model->state_dict())
    trace.weights.emplace_back(name, tensor.to(kCpu));
  return trace;
}

namespace {

// max |a - b| / max |a|; NaN if an element is.
double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    if (!(d <= difference)) difference = d;
    if (std::isnan(difference)) return difference;
    scale = std::max(scale, std::abs(a[i]));
  }
  return difference == 0 ? 0 : difference / scale;
}

}  // namespace

Agreement compare(const Trace& reference, const Trace& other) {
  Agreement result{other.device, "loss", relative_difference(reference.losses, other.losses)};
  for (size_t i = 0; i < reference.weights.size() && !std::isnan(result.difference); ++i) {
    const auto& [name, a] = reference.weights[i];
    const double difference =
        relative_difference(a.to_vector<double>(), other.weights.at(i).second.to_vector<double>());
    if (!(difference <= result.difference)) {
      result.worst = name;
      result.difference = difference;
    }
  }
  return result;
}

std::string describe(const Agreement& agreement) {
  return str(agreement.device.str(), agreement.ok() ? " agrees" : " disagrees",
             " with cpu in float64 over ", kAgreementSteps, " training steps: ", agreement.worst,
             " differs by ", agreement.difference, " of its largest element (tolerance ",
             kAgreementTolerance, ")");
}

}  // namespace sinter::app
