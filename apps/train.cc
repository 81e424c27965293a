#include "train.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "sinter/models.h"
#include "sinter/random.h"

namespace sinter::app {

std::string describe(const Job& job) {
  std::ostringstream out;
  out << job.model << ", " << job.epochs << (job.epochs == 1 ? " epoch" : " epochs") << ", batch "
      << job.batch_size << ", " << job.optimizer << ", lr " << job.lr;
  if (job.momentum > 0) out << ", momentum " << job.momentum;
  if (job.weight_decay) out << ", weight decay " << *job.weight_decay;
  if (job.max_steps > 0) out << ", at most " << job.max_steps << " steps";
  if (!job.shuffle) out << ", not shuffled";
  out << ", seed " << job.seed;
  return out.str();
}

nlohmann::ordered_json to_json(const Job& job) {
  nlohmann::ordered_json json = {{"model", job.model},
                                 {"epochs", job.epochs},
                                 {"batch_size", job.batch_size},
                                 {"optimizer", job.optimizer},
                                 {"lr", job.lr},
                                 {"momentum", job.momentum},
                                 {"weight_decay", nullptr},
                                 {"max_steps", nullptr},
                                 {"shuffle", job.shuffle},
                                 {"seed", job.seed}};
  if (job.weight_decay) json["weight_decay"] = *job.weight_decay;
  if (job.max_steps > 0) json["max_steps"] = job.max_steps;
  return json;
}

std::unique_ptr<Module> initial_model(const Job& job, DType dtype) {
  manual_seed(job.seed);
  std::unique_ptr<Module> model = make_model(job.model);
  if (!job.initial.empty()) model->load_state_dict(job.initial);
  model->to(dtype);
  model->to(job.device);
  return model;
}

std::unique_ptr<Optimizer> make_optimizer(const Job& job, Module& model) {
  if (job.optimizer == "sgd") {
    SGDOptions options{.lr = job.lr, .momentum = job.momentum};
    options.weight_decay = job.weight_decay.value_or(options.weight_decay);
    return std::make_unique<SGD>(model.parameters(), options);
  }
  AdamOptions options{.lr = job.lr, .decoupled = job.optimizer == "adamw"};
  options.weight_decay = job.weight_decay.value_or(options.decoupled ? 0.01 : 0);
  return std::make_unique<Adam>(model.parameters(), options);
}

void train_step(Module& model, Optimizer& optimizer, const Batch& batch, const Tensor& loss_slot) {
  const Tensor loss = cross_entropy(model(batch.x), batch.y);
  optimizer.zero_grad();
  loss.backward();
  optimizer.step();
  loss_slot.reshape({}).copy_(loss.detach());
}

Evaluation evaluate(Module& model, const ImageSet& set, const Tensor& logits) {
  const no_grad guard;
  const bool was_training = model.is_training();
  model.eval();
  const Device device = set.images.device();
  const Batches batches(set, {.batch_size = 1000, .shuffle = false});
  // Results stay on the device until all batches are through: one wait, not one a batch.
  const Tensor correct = zeros({1}, {kInt64, device});
  const Tensor losses = empty({batches.size()}, {kFloat32, device});
  int64_t first = 0;
  for (int64_t i = 0; i < batches.size(); ++i) {
    check_interrupt("during evaluation");
    const Batch batch = batches.get(i);
    const Tensor y = model(batch.x);
    add_correct(correct, y, batch.y);
    losses.narrow(i, 1).reshape({}).copy_(
        cross_entropy(y, batch.y, {.reduction = Reduction::kSum}));
    if (logits.defined()) logits.narrow(first, y.size(0)).copy_(y);
    first += y.size(0);
  }
  model.train(was_training);
  const std::vector<double> sums = losses.to_vector<double>();
  return {correct.item<int64_t>(), set.size(),
          std::accumulate(sums.begin(), sums.end(), 0.) / static_cast<double>(set.size())};
}

// ---- metrics ------------------------------------------------------------------------------------

Metrics::Metrics(const std::filesystem::path& path) : path_(path), file_(path) {
  require<DataError>(file_.is_open(), "--metrics: cannot write ", path.string(), ": ",
                     std::strerror(errno));
}

void Metrics::start_run(const Job& job, const Dataset& data) {
  nlohmann::ordered_json record = {{"sinter", SINTER_VERSION},
                                   {"dataset", data.name},
                                   {"train_images", data.train.size()},
                                   {"test_images", data.test.size()},
                                   {"device", job.device.str()}};
  record.update(to_json(job));
  write(record);
  flush();
}

void Metrics::write(const nlohmann::ordered_json& record) { file_ << record.dump() << '\n'; }

void Metrics::flush() {
  file_.flush();
  require<DataError>(file_.good(), "--metrics: cannot write ", path_.string(), ": ",
                     std::strerror(errno));
}

// ---- the loop -----------------------------------------------------------------------------------

namespace {

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.) / static_cast<double>(values.size());
}

void require_finite(const std::vector<double>& losses, int64_t first_step, const Job& job) {
  const auto bad =
      std::find_if(losses.begin(), losses.end(), [](double x) { return !std::isfinite(x); });
  if (bad == losses.end()) return;
  throw Error(str("training diverged: the loss of step ", first_step + (bad - losses.begin()) + 1,
                  " is ", *bad, ", expected a finite number; try --lr below ", job.lr));
}

}  // namespace

TrainResult train(const Job& job, Dataset data, Progress& progress, Metrics* metrics) {
  require_usable(job.device);
  if (metrics != nullptr) metrics->start_run(job, data);
  TrainResult result;
  result.model = initial_model(job);
  const std::unique_ptr<Optimizer> optimizer = make_optimizer(job, *result.model);
  // The whole set lives on the device as bytes; nothing but losses crosses over while training.
  data.train = data.train.to(job.device);
  data.test = data.test.to(job.device);
  Batches batches(data.train,
                  {.batch_size = job.batch_size, .shuffle = job.shuffle, .seed = job.seed});

  int64_t total_steps = job.epochs * batches.size();
  if (job.max_steps > 0) total_steps = std::min(total_steps, job.max_steps);
  const int64_t epochs = (total_steps + batches.size() - 1) / batches.size();
  // Redrawing the bar reads losses. On the CPU that is free; a GPU has to be waited for, and its
  // queue runs dry meanwhile.
  const double redraw_seconds = job.device.is_cuda() ? 0.5 : 0.1;

  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    const int64_t steps = std::min(batches.size(), total_steps - result.steps);
    const Tensor losses = empty({steps}, {kFloat32, job.device});
    const std::string title = str("epoch ", epoch + 1, "/", epochs);
    synchronize(job.device);
    const Stopwatch clock;
    double redrawn = 0;
    int64_t done = 0, images = 0;
    batches.start_epoch(static_cast<uint64_t>(epoch));
    while (done < steps && !interrupted()) {
      const Batch batch = batches.get(done);
      train_step(*result.model, *optimizer, batch, losses.narrow(done, 1));
      ++done;
      images += batch.y.size(0);
      if (progress.live() && clock.seconds() - redrawn >= redraw_seconds) {
        const double loss = mean_of(losses.narrow(0, done).to_vector<double>());
        const double seconds = result.seconds + clock.seconds();
        const int64_t all_done = result.steps + done;
        progress.bar(
            title, static_cast<double>(done) / static_cast<double>(steps),
            str("loss ", fixed(loss, 4), "  ",
                grouped(static_cast<int64_t>((result.images + images) / seconds)), " images/s  ",
                duration(seconds / all_done * (total_steps - all_done)), " left"));
        redrawn = clock.seconds();
      }
    }
    synchronize(job.device);
    const double seconds = clock.seconds();

    std::vector<double> values;
    if (done > 0) values = losses.narrow(0, done).to_vector<double>();
    if (metrics != nullptr) {
      for (int64_t i = 0; i < done; ++i)
        metrics->write({{"step", result.steps + i + 1}, {"loss", values[static_cast<size_t>(i)]}});
      metrics->flush();
    }
    require_finite(values, result.steps, job);
    result.steps += done;
    result.images += images;
    result.seconds += seconds;
    if (done < steps) {
      throw Interrupted(str("stopped in epoch ", epoch + 1, " of ", epochs, " after ",
                            grouped(result.steps), " of ", grouped(total_steps), " steps"));
    }

    result.train_loss = mean_of(values);
    progress.bar(title, 1, "evaluating");
    result.test = evaluate(*result.model, data.test);
    progress.line(str(title, "  loss ", fixed(result.train_loss, 4), "  test accuracy ",
                      fixed(result.test.accuracy(), 2), " %  ", duration(seconds), "  ",
                      grouped(static_cast<int64_t>(static_cast<double>(images) / seconds)),
                      " images/s"));
    if (metrics != nullptr) {
      metrics->write({{"epoch", epoch + 1},
                      {"train_loss", result.train_loss},
                      {"test_loss", result.test.loss},
                      {"test_accuracy", result.test.accuracy()},
                      {"seconds", seconds}});
      metrics->flush();
    }
  }
  return result;
}

}  // namespace sinter::app
