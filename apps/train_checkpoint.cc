#include "train_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <set>

#include "core/file.h"
#include "machine.h"
#include "sinter/random.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

constexpr const char* kFileName = "checkpoint.safetensors";
constexpr const char* kAnomalyKey = "--detect-anomaly";
constexpr const char* kDataKey = "hash of the training images";
constexpr const char* kHardwareKey = "hardware";
// What the first checkpoints did not say.
const std::set<std::string> kLaterKeys = {kAnomalyKey, kDataKey, kHardwareKey};

// The shortest digits that read back as the same number.
template <class T> std::string exact(T value) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
}

// A hash of bytes, eight at a time in lanes that do not wait for each other: about as fast as
// memory is read, some 50 ms for the 154 MB of CIFAR-10. Each step is a bijection of its lane's
// state, so that no single changed word goes unnoticed.
class Fingerprint {
 public:
  void add(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    std::array<uint64_t, kLanes> lanes = lanes_, words;  // in registers
    lanes[0] = mixed(lanes[0], bytes);
    const auto add_words = [&] {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = mixed(lanes[lane], words[lane]);
    };
    for (; bytes >= sizeof words; bytes -= sizeof words, p += sizeof words) {
      std::memcpy(words.data(), p, sizeof words);
      add_words();
    }
    words = {};
    if (bytes > 0) std::memcpy(words.data(), p, bytes);
    add_words();
    lanes_ = lanes;
  }
  void add(const Tensor& tensor) {
    const Tensor here = tensor.to(kCpu);
    add(here.read(), here.bytes());
  }
  std::string digits() const {
    uint64_t hash = 0;
    for (const uint64_t lane : lanes_) hash = mixed(hash, lane);
    hash = mixed(mixed(hash, 0), 0);
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
    return text;
  }

 private:
  static constexpr size_t kLanes = 4;
  static uint64_t mixed(uint64_t hash, uint64_t word) {
    return std::rotl((hash ^ word) * 0x9E3779B97F4A7C15, 29);
  }

  std::array<uint64_t, kLanes> lanes_ = {1, 2, 3, 4};
};

std::string fingerprint(const ImageSet& set) {
  Fingerprint hash;
  hash.add(set.images);
  hash.add(set.labels);
  hash.add(set.mean.data(), sizeof set.mean);
  hash.add(set.std.data(), sizeof set.std);
  return hash.digits();
}

// The options that the weights depend on, and what else they do; not how far the training goes, nor
// what leaves every bit alone: --threads, --no-graph.
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
          {kAnomalyKey, job.detect_anomaly ? "on" : "off"},
          {kDataKey, fingerprint(data.train)},
          {"--init", job.initial ? "weights " + state_hash(*job.initial) : "none"},
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

// The checkpoint's value of `key`; null, with a warning, if it is older than that key.
const std::string* recorded(const Checkpoint& checkpoint, const std::string& key,
                            const std::filesystem::path& file, Progress& progress) {
  if (checkpoint.metadata.count(key) == 0 && kLaterKeys.count(key) > 0) {
    progress.warning(str(file.string(), ": of an earlier version, which did not record '", key,
                         "': going on without comparing it"));
    return nullptr;
  }
  return &lookup(checkpoint, key, file);
}

// What rounds, beside the build: the GPU, or on the CPU the instruction set and BLAS kernels.
std::string hardware(Device device) {
  if (device.is_cuda()) return describe(device);
  const BlasInfo blas = blas_info();
  return str(simd_target(), ", ", blas.name, blas.kernels.empty() ? "" : " " + blas.kernels);
}

// Locked and holding this process's number; throws DataError with that of another which has it.
std::unique_ptr<File> locked(const std::filesystem::path& path) {
  for (;;) {
    auto file = std::make_unique<File>(path, O_RDWR | O_CREAT);
    if (!file->lock()) {
      char owner[64];
      const std::string text(owner, file->read(owner, sizeof owner));
      throw DataError(str(path.parent_path().string(), " is in use by another training (process ",
                          text.empty() ? "unknown" : printable(text, sizeof owner),
                          "); wait for its end, or name another folder"));
    }
    if (!file->is_at_path()) continue;  // its owner removed it in the meantime
    char host[32] = "";
    gethostname(host, sizeof host - 1);
    const std::string text = str(getpid(), " on ", host);
    file->truncate();
    file->write(text.data(), text.size());
    return file;
  }
}

}  // namespace

CheckpointFolder::CheckpointFolder(const std::filesystem::path& dir) try {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  require<DataError>(!error, "cannot make the folder ", dir.string(), ": ", error.message());
  file_ = link_target(dir / kFileName);
  require<DataError>(!AtomicFile(file_).in_place(), file_.string(), ": expected a regular file");
  std::filesystem::path lock = file_;
  lock += ".lock";
  lock_ = locked(lock);
} catch (const DataError& e) {
  throw DataError(str("--checkpoint: ", e.what()));
}

CheckpointFolder::~CheckpointFolder() {
  // While it is still locked.
  ::unlink(lock_->path().c_str());
}

bool CheckpointFolder::holds_one() const { return std::filesystem::exists(file_); }

void CheckpointFolder::remove_leftovers() const {
  const std::string before = file_.filename().string() + ".";
  for (const auto& entry : std::filesystem::directory_iterator(file_.parent_path())) {
    const std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (name.rfind(before, 0) == 0 && entry.path().extension() == ".tmp")
      std::filesystem::remove(entry.path(), ignored);
  }
}

Checkpoints::Checkpoints(const CheckpointFolder& folder, int64_t every, bool resume, const Job& job,
                         const Dataset& data, Progress& progress)
    : file_(folder.file()),
      every_(every),
      epoch_steps_(epoch_steps(job, data)),
      metadata_(configuration(job, data)) {
  if (!folder.holds_one()) {
    folder.remove_leftovers();
    if (resume)
      progress.line(
          str("no checkpoint in ", file_.parent_path().string(), ": starting from the beginning"));
  } else {
    if (!resume)
      throw UsageError(str("--checkpoint: ", file_.string(),
                           " is there already; continue it with --resume, or name another folder"));
    loaded_ = load_checkpoint(file_);
    for (const auto& [key, value] : metadata_) {
      const std::string* theirs = recorded(loaded_, key, file_, progress);
      if (theirs != nullptr && *theirs != value)
        throw UsageError(str("--resume: ", file_.string(), " was made with ", key, " ", *theirs,
                             ", got ", value, "; give the same, or name another folder"));
    }
    step_ = number<int64_t>(loaded_, "step", file_);
    const int64_t total = total_steps(job, data);
    if (step_ > total)
      throw UsageError(str("--resume: ", file_.string(), " holds ", grouped(step_),
                           " updates already, more than the ", grouped(total),
                           " asked for; raise --epochs or --max-steps"));
    folder.remove_leftovers();
    progress.line(str("resuming after ", grouped(step_), " of ", grouped(total), " steps, from ",
                      file_.string()));
  }
  metadata_["device"] = job.device.str();
  metadata_["build"] = version_text();
  metadata_[kHardwareKey] = hardware(job.device);
  if (step_ == 0) return;
  for (const std::string key : {"device", "build", kHardwareKey}) {
    const std::string* theirs = recorded(loaded_, key, file_, progress);
    if (theirs != nullptr && *theirs != metadata_[key])
      progress.warning(str("the checkpoint's ", key, " is ", *theirs, ", now ", metadata_[key],
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
