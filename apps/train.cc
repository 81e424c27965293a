#include "apps/train.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "apps/train_checkpoint.h"
#include "core/base/detail.h"
#include "core/io/file.h"
#include "sinter/checkpoint.h"
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
  if (job.eager) out << ", eager";
  if (job.conv_algo != "auto") out << ", conv-algo " << job.conv_algo;
  if (job.tf32) out << ", TF32";
  if (job.detect_anomaly) out << ", anomalies looked for";
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
  if (job.conv_algo != "auto") json["conv_algo"] = job.conv_algo;
  if (job.tf32) json["tf32"] = true;
  if (job.eager) json["eager"] = true;
  if (job.detect_anomaly) json["detect_anomaly"] = true;
  if (job.initial) json["init"] = state_hash(*job.initial);
  return json;
}

std::unique_ptr<Module> initial_model(const Job& job, DType dtype) {
  manual_seed(job.seed);
  std::unique_ptr<Module> model = make_model(job.model);
  if (job.initial) model->load_state_dict(*job.initial);
  model->to(dtype);
  model->to(job.device);
  return model;
}

std::unique_ptr<Optimizer> make_optimizer(const Job& job, Module& model) {
  const double decay = weight_decay(job);
  if (job.optimizer == "sgd") {
    const SGDOptions options{.lr = job.lr, .momentum = job.momentum, .weight_decay = decay};
    return std::make_unique<SGD>(model.parameters(), options);
  }
  const AdamOptions options{
      .lr = job.lr, .weight_decay = decay, .decoupled = job.optimizer == "adamw"};
  return std::make_unique<Adam>(model.parameters(), options);
}

double weight_decay(const Job& job) {
  return job.weight_decay.value_or(job.optimizer == "adamw" ? 0.01 : 0);
}

int64_t epoch_steps(const Job& job, const Dataset& data) {
  return (data.train.size() - 1) / job.batch_size + 1;
}

int64_t total_steps(const Job& job, const Dataset& data) {
  const int64_t steps = job.epochs * epoch_steps(job, data);
  return job.max_steps > 0 ? std::min(steps, job.max_steps) : steps;
}

void train_step(Module& model, Optimizer& optimizer, const Batch& batch, const Tensor& loss_slot) {
  const Tensor loss = cross_entropy(model(batch.x), batch.y);
  loss.backward();
  optimizer.step();
  // Last: gradients that are still there would be results of a compiled step.
  optimizer.zero_grad();
  loss_slot.reshape({}).copy_(loss.detach());
}

Evaluator::Evaluator(Module& model, const ImageSet& set, bool eager)
    : model_(model),
      batches_(set, {.batch_size = 1000, .shuffle = false}),
      images_(set.size()),
      correct_(zeros({1}, {kInt64, set.images.device()})),
      loss_(zeros({}, {kFloat64, set.images.device()})),
      eager_(eager),
      compiled_(Body{this}, {}) {}

Tensor Evaluator::batch(int64_t images) {
  const Batch batch = batches_.next(images);
  const Tensor y = model_(batch.x);
  add_correct(correct_, y, batch.y);
  loss_ += cross_entropy(y, batch.y, {.reduction = Reduction::kSum}).to(kFloat64);
  return y;
}

Evaluation Evaluator::operator()(const Tensor& logits) {
  const no_grad guard;
  const bool was_training = model_.is_training();
  model_.eval();
  batches_.seek(0);
  correct_.fill_(0);
  loss_.fill_(0);
  // Results stay on the device until all batches are through: one wait, not one a batch.
  for (int64_t first = 0; first < images_;) {
    check_interrupt("during evaluation");
    const int64_t images = std::min<int64_t>(1000, images_ - first);
    const Tensor y = eager_ ? batch(images) : compiled_(images);
    if (logits.defined()) logits.narrow(0, first, images).copy_(y);
    first += images;
  }
  model_.train(was_training);
  return {correct_.item<int64_t>(), images_, loss_.item<double>() / static_cast<double>(images_)};
}

// ---- metrics ------------------------------------------------------------------------------------

namespace {

using Json = nlohmann::ordered_json;

// As text of a file may be shown, and with what is no UTF-8 replaced.
std::string dump(const Json& value, bool ascii = false) {
  return value.dump(-1, ' ', ascii, Json::error_handler_t::replace);
}

std::vector<std::string> whole_lines(const std::filesystem::path& path) {
  File file(path, O_RDONLY);
  std::string text(static_cast<size_t>(file.size()), '\0');
  text.resize(file.read(text.data(), text.size()));
  std::vector<std::string> lines;
  for (size_t first = 0, end; (end = text.find('\n', first)) != text.npos; first = end + 1)
    lines.push_back(text.substr(first, end - first));
  return lines;
}

constexpr const char* kAdvice = "; name the file of the run that made the checkpoint, or a new one";

// That `theirs`, the first record of a file, tells of a run whose losses are those of `ours`. How
// far it was to go, and on what, does not matter.
void require_same_run(const std::filesystem::path& path, Json theirs, Json ours,
                      double weight_decay) {
  require<DataError>(theirs.is_object() && theirs.contains("sinter"), "--metrics: ", path.string(),
                     " does not begin with the configuration of a run", kAdvice);
  for (Json* record : {&theirs, &ours}) {
    for (const char* any : {"sinter", "device", "epochs", "max_steps"}) record->erase(any);
    Json& decay = (*record)["weight_decay"];
    if (decay.is_null()) decay = weight_decay;
  }
  for (const auto& [one, other] : {std::pair(&theirs, &ours), std::pair(&ours, &theirs)}) {
    for (const auto& [key, value] : one->items()) {
      const auto it = other->find(key);
      if (it != other->end() && *it == value) continue;
      const auto text = [&key = key](const Json& record) {
        return record.contains(key) ? printable(dump(record[key], true), 80) : "not given";
      };
      throw DataError(str("--metrics: ", path.string(), " is of another run: its ",
                          printable(key, 80), " is ", text(theirs), ", that of this one ",
                          text(ours), kAdvice));
    }
  }
}

// The length of the file at `path` up to and including the line of `step`. The run's losses up to
// there end with `losses`.
int64_t length_to_step(const std::filesystem::path& path, int64_t step,
                       const std::vector<double>& losses, const Json& configuration,
                       double weight_decay) {
  const int64_t known = step - static_cast<int64_t>(losses.size());
  int64_t length = 0, differing = 0;
  Json first;
  for (const std::string& line : whole_lines(path)) {
    const Json record = Json::parse(line, nullptr, false);
    if (length == 0) first = record;
    length += static_cast<int64_t>(line.size()) + 1;
    if (!record.is_object() || !record.contains("step") || !record["step"].is_number_integer())
      continue;
    const auto at = record["step"].get<int64_t>();
    if (differing == 0 && known < at && at <= step &&
        record.value("loss", Json()) != Json(losses[static_cast<size_t>(at - known - 1)]))
      differing = at;
    if (at != step) continue;
    require_same_run(path, first, configuration, weight_decay);
    require<DataError>(differing == 0, "--metrics: ", path.string(), " is of another run: its ",
                       "loss of step ", differing, " is not that in the checkpoint", kAdvice);
    return length;
  }
  throw DataError(str("--metrics: ", path.string(), " has no line of step ", step,
                      ", after which the checkpoint goes on", kAdvice));
}

}  // namespace

Metrics::Metrics(const std::filesystem::path& path) try : file_(open_in_place(path)) {
  if (file_) return;
  keep_ = 0;
  std::error_code error;
  made_ = !std::filesystem::exists(path, error) && !error;
  file_ = std::make_unique<File>(path, O_WRONLY | O_CREAT | O_APPEND);
  require<DataError>(file_->lock(), path.string(),
                     ": another process is writing it; name another file");
} catch (const DataError& e) {
  throw DataError(str("--metrics: ", e.what()));
}

Metrics::~Metrics() {
  // As it was before, which is not there.
  if (made_ && keep_ && file_->is_at_path()) ::unlink(link_target(file_->path()).c_str());
}

void Metrics::start_run(const Job& job, const Dataset& data, int64_t resume_after,
                        const std::vector<double>& losses) {
  Json record = {{"sinter", SINTER_VERSION},
                 {"dataset", data.name},
                 {"train_images", data.train.size()},
                 {"test_images", data.test.size()},
                 {"device", job.device.str()}};
  record.update(to_json(job));
  if (resume_after > 0 && keep_ && file_->size() > 0)
    keep_ = length_to_step(file_->path(), resume_after, losses, record, weight_decay(job));
  else
    write(record);
}

void Metrics::write(const Json& record) { buffer_ += dump(record) + '\n'; }

void Metrics::flush() {
  if (keep_) file_->truncate(*keep_);
  keep_.reset();
  file_->write(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void Metrics::sync() {
  flush();
  file_->sync();
}

// ---- the loop -----------------------------------------------------------------------------------

TrainSteps::TrainSteps(Module& model, Optimizer& optimizer, Batches& batches,
                       TensorOptions of_losses, bool eager)
    : model_(model),
      optimizer_(optimizer),
      batches_(batches),
      losses_(empty({kMost}, of_losses)),
      eager_(eager),
      compiled_(Body{this}, {}) {}

void TrainSteps::steps(int64_t count, int64_t images) {
  for (int64_t i = 0; i < count; ++i)
    train_step(model_, optimizer_, batches_.next(images), losses_.narrow(0, i, 1));
}

void TrainSteps::run(int64_t first, int64_t count, int64_t images, const Tensor& losses) {
  if (at_ != first) batches_.seek(first);
  at_ = -1;  // should this throw
  if (eager_)
    steps(count, images);
  else
    compiled_(count, images);
  losses.copy_(losses_.narrow(0, 0, count));
  at_ = first + count;
}

namespace {

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.) / static_cast<double>(values.size());
}

[[noreturn]] void diverged(const std::string& what, double value, const Job& job) {
  throw Error(str("training diverged: ", what, " is ", value, ", expected a finite number; try ",
                  "--lr below ", job.lr,
                  ". Weights and checkpoints saved before are as they were"));
}

void require_finite(const std::vector<double>& losses, int64_t first_step, const Job& job) {
  const auto bad =
      std::find_if(losses.begin(), losses.end(), [](double x) { return !std::isfinite(x); });
  if (bad != losses.end())
    diverged(str("the loss of step ", first_step + (bad - losses.begin()) + 1), *bad, job);
}

// A loss tells of the weights before its step, not of those after it.
void require_finite(Module& model, int64_t step, const Job& job) {
  for (const auto& [key, tensor] : model.state_dict()) {
    for (const float value : tensor.to_vector<float>()) {
      if (!std::isfinite(value))
        diverged(str("an element of ", key, " after step ", step), value, job);
    }
  }
}

}  // namespace

TrainResult train(const Job& job, Dataset data, Progress& progress, Metrics* metrics,
                  Checkpoints* checkpoints) {
  require_usable(job.device);
  TrainResult result;
  result.model = initial_model(job);
  const std::unique_ptr<Optimizer> optimizer = make_optimizer(job, *result.model);
  Position at;
  if (checkpoints != nullptr) at = checkpoints->restore(*result.model, *optimizer);
  if (metrics != nullptr)
    metrics->start_run(job, data, checkpoints != nullptr ? checkpoints->step() : 0, at.losses);
  // The whole set lives on the device as bytes; nothing but losses crosses over while training.
  data.train = data.train.to(job.device);
  data.test = data.test.to(job.device);
  Batches batches(data.train,
                  {.batch_size = job.batch_size, .shuffle = job.shuffle, .seed = job.seed});

  const int64_t full_epoch = epoch_steps(job, data), total = total_steps(job, data);
  const int64_t epochs = (total - 1) / full_epoch + 1;
  TrainSteps run_steps(*result.model, *optimizer, batches, {kFloat32, job.device}, job.eager);
  Evaluator evaluate(*result.model, data.test, job.eager);
  bool ran = false;  // a step of this process

  // Redrawing the bar reads losses. On the CPU that is free; a GPU has to be waited for, and its
  // queue runs dry meanwhile.
  const double redraw_seconds = job.device.is_cuda() ? 0.5 : 0.1;

  for (int64_t epoch = at.epoch; epoch < epochs; ++epoch) {
    const int64_t first = epoch * full_epoch, steps = std::min(full_epoch, total - first);
    auto done = static_cast<int64_t>(at.losses.size());  // none, except in a resumed epoch
    const auto images = [&] { return std::min(done * job.batch_size, data.train.size()); };
    const Tensor losses = empty({steps}, {kFloat32, job.device});
    losses.narrow(0, 0, done).copy_(from_vector(at.losses, {done}));
    const std::string title = str("epoch ", epoch + 1, "/", epochs);
    synchronize(job.device);
    const Stopwatch clock;
    const double earlier = at.epoch_seconds;
    const auto seconds = [&] { return earlier + clock.seconds(); };

    // Takes over the losses since the last time.
    const auto record = [&] {
      const auto known = static_cast<int64_t>(at.losses.size());
      if (done == known) return;
      const std::vector<double> values = losses.narrow(0, known, done - known).to_vector<double>();
      at.losses.insert(at.losses.end(), values.begin(), values.end());
      if (metrics != nullptr) {
        for (int64_t i = known; i < done; ++i)
          metrics->write({{"step", first + i + 1}, {"loss", at.losses[static_cast<size_t>(i)]}});
        metrics->flush();
      }
      require_finite(values, first + known, job);
    };
    // What a checkpoint says, apart from the state of model and optimizer. Nothing that has
    // diverged gets past here, and into one.
    const auto take_stock = [&] {
      record();
      at.epoch_seconds = seconds();  // looking for what diverged is no training
      require_finite(*result.model, first + done, job);
    };
    const auto checkpoint = [&] {
      if (checkpoints == nullptr) return;
      // The metrics first: a checkpoint must not be ahead of them.
      if (metrics != nullptr) metrics->sync();
      checkpoints->save(*result.model, *optimizer, at);
    };

    const int64_t full_batches = data.train.size() / job.batch_size;
    // The steps of the next call: on a GPU several, of full batches, with no checkpoint in between.
    const auto next_steps = [&]() -> int64_t {
      constexpr int64_t kMost = TrainSteps::kMost;
      if (!job.device.is_cuda() || job.eager || anomaly_enabled() ||
          done + kMost > std::min(steps, full_batches))
        return 1;
      for (int64_t i = 1; checkpoints != nullptr && i < kMost; ++i) {
        if (checkpoints->due(first + done + i)) return 1;
      }
      return kMost;
    };

    double redrawn = 0;
    batches.start_epoch(static_cast<uint64_t>(epoch));
    while (done < steps && !interrupted()) {
      const int64_t count = next_steps();
      const int64_t in_batch = std::min(job.batch_size, data.train.size() - done * job.batch_size);
      try {
        run_steps.run(done, count, in_batch, losses.narrow(0, done, count));
      } catch (const AnomalyError& e) {
        throw AnomalyError(str(e.what(), ", at step ", first + done + 1));
      }
      done += count;
      if (!std::exchange(ran, true)) {
        synchronize(job.device);
        result.first_step = command_clock().seconds();
        if (metrics != nullptr) metrics->flush();  // it runs: what was there may go
      }
      if (checkpoints != nullptr && done < steps && checkpoints->due(first + done)) {
        take_stock();
        checkpoint();
      }
      if (progress.live() && clock.seconds() - redrawn >= redraw_seconds) {
        const double loss = mean_of(losses.narrow(0, 0, done).to_vector<double>());
        if (!std::isfinite(loss)) record();  // says which
        const double all_seconds = at.seconds + seconds();
        const int64_t all_done = first + done;
        const auto all_images = static_cast<double>(epoch * data.train.size() + images());
        progress.bar(title, static_cast<double>(done) / static_cast<double>(steps),
                     str("loss ", fixed(loss, 4), "  ",
                         grouped(static_cast<int64_t>(all_images / all_seconds)), " images/s  ",
                         duration(all_seconds / all_done * (total - all_done)), " left"));
        redrawn = clock.seconds();
      }
    }
    synchronize(job.device);
    take_stock();
    result.steps = first + done;
    result.images = epoch * data.train.size() + images();
    result.seconds = at.seconds + at.epoch_seconds;
    if (done < steps) {
      checkpoint();
      throw Interrupted(str("stopped in epoch ", epoch + 1, " of ", epochs, " after ",
                            grouped(result.steps), " of ", grouped(total), " steps",
                            checkpoints == nullptr ? "" : "; --resume goes on from there"));
    }

    result.train_loss = mean_of(at.losses);
    progress.bar(title, 1, "evaluating");
    try {
      result.test = evaluate();
    } catch (const Interrupted& e) {
      checkpoint();
      throw Interrupted(
          str(e.what(), checkpoints == nullptr ? "" : "; --resume goes on from there"));
    }
    // Finite weights can be far out too.
    if (!std::isfinite(result.test.loss))
      diverged(str("the test loss after step ", first + done), result.test.loss, job);
    checkpoint();
    const auto images_per_second =
        static_cast<int64_t>(static_cast<double>(images()) / at.epoch_seconds);
    progress.line(str(title, "  loss ", fixed(result.train_loss, 4), "  test accuracy ",
                      fixed(result.test.accuracy(), 2), " %  ", duration(at.epoch_seconds), "  ",
                      grouped(images_per_second), " images/s"));
    if (metrics != nullptr) {
      metrics->write({{"epoch", epoch + 1},
                      {"train_loss", result.train_loss},
                      {"test_loss", result.test.loss},
                      {"test_accuracy", result.test.accuracy()},
                      {"seconds", at.epoch_seconds}});
      metrics->flush();
    }
    at = {.epoch = epoch + 1, .losses = {}, .seconds = result.seconds};
  }
  if (job.print_program) {
    std::ostringstream program;
    run_steps.print(program);
    result.program = program.str();
  }
  return result;
}

}  // namespace sinter::app
