// The checkpoints of `sinter train`: a training that was stopped, killed or lost its power goes on
// and ends with the bits it would have had.
#pragma once

#include <filesystem>
#include <vector>

#include "sinter/checkpoint.h"
#include "train.h"

namespace sinter::app {

// Where a training stands. The order of an epoch is a function of the seed and the epoch, so that
// this, the weights and the optimizer's state are all there is to keep.
struct Position {
  int64_t epoch = 0;           // 0, 1, …
  std::vector<double> losses;  // of this epoch's updates so far
  double seconds = 0;          // of training before this epoch
  double epoch_seconds = 0;    // of training in this epoch
};

// Throws DataError if it cannot be made or written.
void make_checkpoint_folder(const std::filesystem::path& dir);

class Checkpoints {
 public:
  // Reads the checkpoint in the folder `dir` if there is one, and says from where the training
  // starts. `every`: also after so many updates; 0: at the ends of epochs only. Throws UsageError
  // if there is one and not `resume`, or one of a job whose weights would differ; DataError for a
  // damaged one.
  Checkpoints(const std::filesystem::path& dir, int64_t every, bool resume, const Job& job,
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
