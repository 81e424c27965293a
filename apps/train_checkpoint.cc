#include "train_checkpoint.h"

#include <unistd.h>

#include <charconv>
#include <cstring>

#include "machine.h"
#include "sinter/random.h"

namespace sinter::app {

namespace {

constexpr const char* kFileName = "checkpoint.safetensors";

// The shortest digits that read back as the same number.
template <class T> std::string exact(T value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
}

// The options that the weights depend on, and what else they do; not how far the training goes.
std::map<std::string, std::string> configuration(const Job& job, const Dataset& data) {
  return {{"--model", job.model},
          {"--dataset", data.name},
          {data.synthetic ? "--synthetic-size" : "training images", exact(data.train.size())},
          {"--batch-size", exact(job.batch_size)},
          {"--no-shuffle", job.shuffle ? "off" : "on"},
          {"--optimizer", job.optimizer},
          {"--lr", exact(job.lr)},
          {"--momentum", exact(job.momentum)},
          {"--weight-decay", exact(weight_decay(job))},
          {"--seed", exact(job.seed)},
          {"--conv-algo", job.conv_algo},
          {"--tf32", job.tf32 ? "on" : "off"},
          {"--init", job.initial.empty() ? "none" : "weights " + state_hash(job.initial)},
          {"dtype", name(kFloat32)}};
}

const std::string& lookup(const Checkpoint& checkpoint, const std::string& key,
                          const std::filesystem::path& file) {
  const auto it = checkpoint.metadata.find(key);
  require<DataError>(it != checkpoint.metadata.end(), file.string(),
                     ": not a checkpoint of sinter train: it has no '", key, "'");
  return it->second;
}

template <class T>
T number(const Checkpoint& checkpoint, const std::string& key, const std::filesystem::path& file) {
  const std::string& text = lookup(checkpoint, key, file);
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  require<DataError>(error == std::errc() && stop == end && value >= 0, file.string(), ": ", key,
                     ": expected a number >= 0, got '", text, "'");
  return value;
}

// What a process that was killed while it wrote a checkpoint left beside it.
void remove_leftovers(const std::filesystem::path& dir) {
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (name.rfind(str(kFileName, "."), 0) == 0 && entry.path().extension() == ".tmp")
      std::filesystem::remove(entry.path(), ignored);
  }
}

}  // namespace

void make_checkpoint_folder(const std::filesystem::path& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  require<DataError>(!error, "--checkpoint: cannot make the folder ", dir.string(), ": ",
                     error.message());
  require<DataError>(access(dir.c_str(), W_OK) == 0, "--checkpoint: the folder ", dir.string(),
                     " cannot be written: ", std::strerror(errno));
}

Checkpoints::Checkpoints(const std::filesystem::path& dir, int64_t every, bool resume,
                         const Job& job, const Dataset& data, Progress& progress)
    : file_(dir / kFileName),
      every_(every),
      epoch_steps_(epoch_steps(job, data)),
      metadata_(configuration(job, data)) {
  if (!std::filesystem::exists(file_)) {
    remove_leftovers(dir);
    if (resume)
      progress.line(str("no checkpoint in ", dir.string(), ": starting from the beginning"));
  } else {
    if (!resume)
      throw UsageError(str("--checkpoint: ", file_.string(),
                           " is there already; continue it with --resume, or name another folder"));
    loaded_ = load_checkpoint(file_);
    for (const auto& [key, value] : metadata_) {
      const std::string& theirs = lookup(loaded_, key, file_);
      if (theirs != value)
        throw UsageError(str("--resume: ", file_.string(), " was made with ", key, " ", theirs,
                             ", got ", value, "; give the same, or name another folder"));
    }
    step_ = number<int64_t>(loaded_, "step", file_);
    const int64_t total = total_steps(job, data);
    if (step_ > total)
      throw UsageError(str("--resume: ", file_.string(), " holds ", grouped(step_),
                           " updates already, more than the ", grouped(total),
                           " asked for; raise --epochs or --max-steps"));
    remove_leftovers(dir);
    progress.line(str("resuming after ", grouped(step_), " of ", grouped(total), " steps, from ",
                      file_.string()));
  }
  metadata_["device"] = job.device.str();
  metadata_["build"] = version_text();
  if (step_ == 0) return;
  for (const std::string key : {"device", "build"}) {
    const std::string& theirs = lookup(loaded_, key, file_);
    if (theirs != metadata_[key])
      progress.line(str("note: the checkpoint's ", key, " is ", theirs, ", now ", metadata_[key],
                        ": the weights may end up rounded differently"));
  }
}

Position Checkpoints::restore(Module& model, Optimizer& optimizer) {
  if (step_ == 0) return {};
  model.load_state_dict(loaded_.model);
  optimizer.load_state_dict(loaded_.optimizer);
  default_generator() = Generator(number<uint64_t>(loaded_, "generator seed", file_));
  default_generator().set_position(number<uint64_t>(loaded_, "generator position", file_));
  Position position;
  position.epoch = number<int64_t>(loaded_, "epoch", file_);
  position.seconds = number<double>(loaded_, "seconds", file_);
  position.epoch_seconds = number<double>(loaded_, "epoch seconds", file_);
  require<DataError>(loaded_.extra.size() == 1 && loaded_.extra[0].first == "losses",
                     file_.string(), ": not a checkpoint of sinter train: it has no losses");
  position.losses = loaded_.extra[0].second.to_vector<double>();
  const auto losses = static_cast<int64_t>(position.losses.size());
  require<DataError>(losses <= epoch_steps_ &&
                         position.epoch <= step_ / epoch_steps_ &&  // the product fits
                         step_ - losses == position.epoch * epoch_steps_,
                     file_.string(), ": step ", step_, " with ", losses, " losses in epoch ",
                     position.epoch, " of ", epoch_steps_, " steps");
  loaded_ = {};
  return position;
}

void Checkpoints::save(Module& model, const Optimizer& optimizer, const Position& position) {
  const auto done = static_cast<int64_t>(position.losses.size());
  const int64_t step = position.epoch * epoch_steps_ + done;
  if (step == step_) return;
  std::map<std::string, std::string> metadata = metadata_;
  metadata["step"] = exact(step);
  metadata["epoch"] = exact(position.epoch);
  metadata["seconds"] = exact(position.seconds);
  metadata["epoch seconds"] = exact(position.epoch_seconds);
  metadata["generator seed"] = exact(default_generator().seed());
  metadata["generator position"] = exact(default_generator().position());
  save_checkpoint(file_, {model.state_dict(),
                          optimizer.state_dict(),
                          {{"losses", from_vector(position.losses, {done})}},
                          metadata});
  step_ = step;
}

}  // namespace sinter::app
