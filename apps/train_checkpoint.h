// The checkpoints of `sinter train`: a training that was stopped, killed or lost its power goes on
// and ends with the bits it would have had.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "apps/train.h"
#include "sinter/checkpoint.h"

namespace sinter::app {

// Where a training stands. The order of an epoch is a function of the seed and the epoch, so that
// this, the weights and the optimizer's state are all there is to keep.
struct Position {
  int64_t epoch = 0;           // 0, 1, …
  std::vector<double> losses;  // of this epoch's updates so far
  double seconds = 0;          // of training before this epoch
  double epoch_seconds = 0;    // of training in this epoch
};

// The folder of a training's checkpoint, which no other process has while this lives.
class CheckpointFolder {
 public:
  // Makes it, if need be; gone again if it ends up empty. Throws DataError if it cannot be made or
  // written, or if another process has it.
  explicit CheckpointFolder(const std::filesystem::path& dir);
  ~CheckpointFolder();
  CheckpointFolder(const CheckpointFolder&) = delete;
  CheckpointFolder& operator=(const CheckpointFolder&) = delete;

  const std::filesystem::path& file() const { return file_; }  // where the checkpoint lies
  const std::filesystem::path& lock() const;
  bool holds_one() const;
  // Whether `path` is what a process that was killed while it wrote a checkpoint left beside it, or
  // could be by its name.
  bool is_leftover(const std::filesystem::path& path) const;
  void remove_leftovers() const;

 private:
  // The folders of a path that were not there, made; on destruction those that are empty are
  // removed.
  class NewFolders {
   public:
    explicit NewFolders(const std::filesystem::path& dir);
    ~NewFolders();
    NewFolders(const NewFolders&) = delete;
    NewFolders& operator=(const NewFolders&) = delete;

   private:
    std::vector<std::filesystem::path> made_;  // the innermost first
  };

  NewFolders made_;
  std::filesystem::path file_;
  std::unique_ptr<File> lock_;
};

class Checkpoints {
 public:
  // Reads the checkpoint in `folder`, which has to outlive this, if there is one, and says from
  // where the training starts. `every`: also after so many updates; 0: at the ends of epochs only.
  // Throws UsageError if there is one and not `resume`, or one of a job or of images whose weights
  // would differ; DataError for a damaged one. Reads all of data's training images.
  Checkpoints(const CheckpointFolder& folder, int64_t every, bool resume, const Job& job,
              const Dataset& data, Progress& progress);

  int64_t step() const { return step_; }  // updates in the checkpoint; 0: there is none
  bool due(int64_t step) const { return every_ > 0 && step % every_ == 0; }
  // Puts the checkpoint's state into both, if there is one.
  Position restore(Module& model, Optimizer& optimizer);
  // Does nothing if the checkpoint holds this position already. Waits for the device.
  void save(Module& model, const Optimizer& optimizer, const Position& position);

 private:
  std::filesystem::path file_;
  int64_t every_, epoch_steps_, step_ = 0;
  std::map<std::string, std::string> metadata_;  // what every checkpoint of this job says
  Checkpoint loaded_;
};

}  // namespace sinter::app
