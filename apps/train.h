// Training a network on a data set: the loop behind `sinter train` and `sinter bench`.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/console.h"
#include "sinter/data.h"
#include "sinter/nn.h"
#include "sinter/optim.h"
#include "sinter/program.h"

namespace sinter {
class File;
}

namespace sinter::app {

// What is trained, and how.
struct Job {
  std::string model = "cifar_cnn";
  std::string optimizer = "adam";  // adam, adamw, sgd
  double lr = 1e-3;
  double momentum = 0;                 // sgd
  std::optional<double> weight_decay;  // unset: the optimizer's own default
  int64_t epochs = 10, batch_size = 64;
  int64_t max_steps = 0;  // stop after so many updates; 0: no limit
  bool shuffle = true;
  std::string conv_algo = "auto";  // see ConvAlgo; set for the process by main, like tf32
  bool tf32 = false;
  bool detect_anomaly = false;          // which runs fused operators apart: other bits
  bool print_program = false;           // into the result: the compiled step that ran last
  bool eager = false;                   // operators one by one; the weights may differ by rounding
  uint64_t seed = 0;                    // of the initial weights and the shuffling
  std::optional<NamedTensors> initial;  // weights to start from; unset: drawn from seed
  Device device;
};
std::string describe(const Job& job);  // "cifar_cnn, 10 epochs, batch 64, adam, lr 0.001, seed 0"
nlohmann::ordered_json to_json(const Job& job);

// The model on job.device in `dtype`. Drawn on the CPU, so that every device starts alike.
std::unique_ptr<Module> initial_model(const Job& job, DType dtype = kFloat32);
std::unique_ptr<Optimizer> make_optimizer(const Job& job, Module& model);
double weight_decay(const Job& job);  // the job's, or its optimizer's default
// Updates in an epoch, the last perhaps of a smaller batch; and in the whole job.
int64_t epoch_steps(const Job& job, const Dataset& data);
int64_t total_steps(const Job& job, const Dataset& data);
// Forward, backward and update; loss_slot (one element, the model's device) receives the loss.
// Does not wait for the device; can be compiled.
void train_step(Module& model, Optimizer& optimizer, const Batch& batch, const Tensor& loss_slot);

// Training steps as compiled functions, of one step or several: on a GPU the kernels of a small
// network are over before the host has launched the next, so several are one launch.
class TrainSteps {
 public:
  static constexpr int64_t kMost = 20;  // steps of a call

  // From wherever `batches` stands; losses are as `of_losses`. eager: not compiled.
  TrainSteps(Module& model, Optimizer& optimizer, Batches& batches, TensorOptions of_losses,
             bool eager);
  // `count` steps, each on `images` images, from batch `first` of the epoch on; losses (count)
  // receives theirs.
  void run(int64_t first, int64_t count, int64_t images, const Tensor& losses);
  ProgramStats stats() const { return compiled_.stats(); }
  void print(std::ostream& out) const { compiled_.print(out); }

 private:
  void steps(int64_t count, int64_t images);

  struct Body {
    TrainSteps* self;
    void operator()(int64_t count, int64_t images) const { self->steps(count, images); }
  };
  Module& model_;
  Optimizer& optimizer_;
  Batches& batches_;
  Tensor losses_;
  bool eager_;
  Compiled<Body> compiled_;
  int64_t at_ = -1;  // the batch that `batches` stands at; -1: unknown
};

struct Evaluation {
  int64_t correct = 0, images = 0;
  double loss = 0;                                             // mean over the images
  double accuracy() const { return 100. * correct / images; }  // percent
};
// What a model makes of a set, on the device that holds both. Compiled: made once, it evaluates
// again and again.
class Evaluator {
 public:
  Evaluator(Module& model, const ImageSet& set, bool eager);
  // Over all images. `logits`, if defined, is (N, classes) and receives the model's outputs in the
  // set's order. Throws Interrupted after Ctrl-C.
  Evaluation operator()(const Tensor& logits = {});

 private:
  Tensor batch(int64_t images);  // the next ones; the logits

  struct Body {
    Evaluator* self;
    Tensor operator()(int64_t images) const { return self->batch(images); }
  };
  Module& model_;
  Batches batches_;
  int64_t images_;
  Tensor correct_, loss_;  // so far
  bool eager_;
  Compiled<Body> compiled_;
};

// One JSON object a line: the run's configuration, each step's loss, each epoch's result. Written
// through at the end of every epoch, so that it can be followed while the run goes on.
class Metrics {
 public:
  // Opens the file; what it holds stays until the first flush, so that a run which cannot begin
  // costs nothing. Throws DataError, also for one that another process writes.
  explicit Metrics(const std::filesystem::path& path);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;
  // The run's configuration, to take the place of all there is. A run that resumes after step
  // `resume_after`, the last of whose losses are `losses`, instead drops what follows that step's
  // line and appends; if the file is new or empty, it begins it. A pipe or a device only takes what
  // is written now. Throws DataError for a file without that line, or one of another run.
  void start_run(const Job& job, const Dataset& data, int64_t resume_after = 0,
                 const std::vector<double>& losses = {});
  void write(const nlohmann::ordered_json& record);
  void flush();  // throws DataError
  void sync();   // flush, and on to the disk; throws DataError

 private:
  std::unique_ptr<File> file_;
  std::string buffer_;
  std::optional<int64_t> keep_;  // bytes that the first flush leaves; unset: it has been
  bool made_ = false;            // the file
};

class Checkpoints;  // train_checkpoint.h

// Of a resumed training: of all its parts, without the updates that were lost and made again.
struct TrainResult {
  std::unique_ptr<Module> model;
  int64_t steps = 0, images = 0;  // updates, and images they were made from
  double seconds = 0;             // training: first batch to last update, without evaluation
  double first_step = 0;          // the end of this process's first update, on command_clock()
  double train_loss = 0;          // mean over the last epoch
  Evaluation test;                // after the last epoch
  std::string program;            // if the job asks for it
};
// Trains and, after each epoch, evaluates. Takes the data set by value so that, moved in, the
// host's copy is gone once the device has its own. metrics and checkpoints may be null; with
// checkpoints, goes on from the one there is. Throws Error when a loss or a weight is no longer
// finite, and keeps the checkpoint from before; Interrupted after Ctrl-C, with metrics and
// checkpoint written.
TrainResult train(const Job& job, Dataset data, Progress& progress, Metrics* metrics,
                  Checkpoints* checkpoints = nullptr);

}  // namespace sinter::app
