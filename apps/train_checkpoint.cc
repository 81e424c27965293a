#include "apps/train_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <set>

#include "apps/machine.h"
#include "core/base/detail.h"
#include "core/io/file.h"
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
// what leaves every bit alone: --threads.
std::map<std::string, std::string> configuration(const Job& job, const Dataset& data) {
  return {{"--model", job.model},
          {"--dataset", data.name},
          {data.synthetic ? "--synthetic-size" : "training images", exact(data.train.size())},
          {"--batch-size", exact(job.batch_size)},
          {"--no-shuffle", job.shuffle ? "off" : "on"},
          {"--eager", job.eager ? "on" : "off"},
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
                     ": not a checkpoint of sinter train: it has no '", printable(key, 80), "'");
  return it->second;
}

template <class T>
T number(const Checkpoint& checkpoint, const std::string& key, const std::filesystem::path& file) {
  const std::string& text = lookup(checkpoint, key, file);
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  require<DataError>(error == std::errc() && stop == end && value >= 0, file.string(), ": ", key,
                     ": expected a number >= 0, got ", in_quotes(text));
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

constexpr const char* kOn = " on ";  // "PROCESS on HOST"

// Locked and holding this process's number; throws DataError with that of another which has it, or
// if what is there is no such lock, which it leaves alone.
std::unique_ptr<File> locked(const std::filesystem::path& path) {
  for (;;) {
    std::error_code error;
    require<DataError>(!std::filesystem::is_symlink(path, error), path.string(),
                       ": a symbolic link in place of a training's lock; remove it");
    auto file = std::make_unique<File>(path, O_RDWR | O_CREAT | O_NOFOLLOW);
    const bool empty = file->size() == 0;
    const bool free = file->lock();
    char buffer[64];
    const std::string owner(buffer, file->read(buffer, sizeof buffer));
    if (!free)
      throw DataError(str(path.parent_path().string(), " is in use by another training (process ",
                          owner.empty() ? "unknown" : printable(owner, sizeof buffer),
                          "); wait for its end, or name another folder"));
    if (!file->is_at_path()) continue;  // its owner removed it in the meantime
    const size_t digits = owner.find_first_not_of("0123456789");
    require<DataError>(empty || (digits > 0 && digits == owner.find(kOn)), path.string(),
                       ": not a training's lock, in whose place it lies; move it elsewhere");
    char host[32] = "";
    gethostname(host, sizeof host - 1);
    const std::string text = str(getpid(), kOn, host);
    file->truncate();
    file->rewind();
    file->write(text.data(), text.size());
    return file;
  }
}

}  // namespace

CheckpointFolder::NewFolders::NewFolders(const std::filesystem::path& dir) {
  std::error_code error;
  for (std::filesystem::path at = dir; !at.empty() && !std::filesystem::exists(at, error) && !error;
       at = at.parent_path())
    made_.push_back(at);
  std::filesystem::create_directories(dir, error);
  require<DataError>(!error, "cannot make the folder ", dir.string(), ": ", error.message());
}

CheckpointFolder::NewFolders::~NewFolders() {
  for (const std::filesystem::path& dir : made_) ::rmdir(dir.c_str());
}

CheckpointFolder::CheckpointFolder(const std::filesystem::path& dir) try : made_(dir) {
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
  if (lock_->is_at_path()) ::unlink(lock_->path().c_str());
}

const std::filesystem::path& CheckpointFolder::lock() const { return lock_->path(); }

bool CheckpointFolder::holds_one() const { return std::filesystem::exists(file_); }

bool CheckpointFolder::is_leftover(const std::filesystem::path& path) const {
  const std::filesystem::path target = link_target(path);
  if (!AtomicFile::is_temporary(target.filename().string(), file_)) return false;
  std::error_code error;
  return std::filesystem::equivalent(std::filesystem::absolute(target).parent_path(),
                                     std::filesystem::absolute(file_).parent_path(), error);
}

void CheckpointFolder::remove_leftovers() const {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(file_.parent_path(), error)) {
    std::error_code ignored;
    if (is_leftover(entry.path())) std::filesystem::remove(entry.path(), ignored);
  }
  if (error) throw_errno(file_.parent_path(), "list", error.value());
}

Checkpoints::Checkpoints(const CheckpointFolder& folder, int64_t every, bool resume, const Job& job,
                         const Dataset& data, Progress& progress) try
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
        throw UsageError(str("--resume: ", file_.string(), " was made with ", key, " ",
                             printable(*theirs, 200), ", got ", value,
                             "; give the same, or name another folder"));
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
      progress.warning(str("the checkpoint's ", key, " is ", printable(*theirs, 200), ", now ",
                           metadata_[key], ": the weights may end up rounded differently"));
  }
} catch (const DataError& e) {
  throw DataError(str("--resume: ", e.what()));
}

Position Checkpoints::restore(Module& model, Optimizer& optimizer) try {
  if (step_ == 0) return {};
  try {
    model.load_state_dict(loaded_.model);
    optimizer.load_state_dict(loaded_.optimizer);
  } catch (const Error& e) {
    throw DataError(str(file_.string(), ": ", e.what()));
  }
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
} catch (const DataError& e) {
  throw DataError(str("--resume: ", e.what()));
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
