// Measuring a training step.
#include <sys/resource.h>

#include <algorithm>
#include <optional>

#include "apps/machine.h"
#include "apps/profile.h"
#include "apps/train.h"
#include "core/base/detail.h"
#include "sinter/emit.h"
#include "sinter/operators.h"
#include "sinter/ops.h"
#include "sinter/profile.h"
#include "sinter/random.h"

namespace sinter::app {

namespace {

// The training loop's steps without its bookkeeping.
class Steps {
 public:
  static constexpr int64_t kMost = 400;

  Steps(const Job& job, const ImageSet& images)
      : job_(job),
        model_(initial_model(job)),
        optimizer_(make_optimizer(job, *model_)),
        batches_(images.to(job.device),
                 {.batch_size = job.batch_size, .shuffle = job.shuffle, .seed = job.seed}) {
    const int64_t full = images.size() / job.batch_size;
    const bool are_launched = job.device.is_cuda() && !job.eager;
    at_once_ = are_launched && full >= TrainSteps::kMost ? TrainSteps::kMost : 1;
    count_ = std::clamp<int64_t>(full, 1, kMost);
    count_ -= count_ % at_once_;
    losses_ = empty({count_}, {kFloat32, job.device});
  }

  int64_t count() const { return count_; }      // in a pass
  int64_t at_once() const { return at_once_; }  // in a call

  // What comes before the steps of a pass and is not theirs: the epoch's order, recording the
  // program and capturing it.
  void prepare() {
    batches_.start_epoch(epoch_++);
    if (!steps_) {
      steps_.emplace(*model_, *optimizer_, batches_, TensorOptions{kFloat32, job_.device},
                     job_.eager);
      for (int i = 0; i < 2; ++i) call(0);
      synchronize(job_.device);
      const Stopwatch clock;
      call(0);
      synchronize(job_.device);
      // Those of a large network take long.
      const auto calls = static_cast<int64_t>(kPassSeconds / clock.seconds());
      count_ = std::min(count_, std::max<int64_t>(calls, 1) * at_once_);
    }
    synchronize(job_.device);
  }
  // The pass; waits for it.
  void run() {
    for (int64_t i = 0; i < count_; i += at_once_) call(i);
    synchronize(job_.device);
  }
  // So that the next prepare captures anew.
  void drop_graph() { steps_.reset(); }

  // The operators of at_once() compiled steps.
  ProgramProfile operators() {
    batches_.start_epoch(epoch_++);
    const Tensor losses = empty({at_once_}, {kFloat32, job_.device});
    auto steps = compile(
        [&] {
          for (int64_t i = 0; i < at_once_; ++i)
            train_step(*model_, *optimizer_, batches_.next(job_.batch_size),
                       losses.narrow(0, i, 1));
        },
        {.profile = true});
    constexpr int kCalls = 50;
    const Stopwatch clock;
    for (int i = 0; i < 4 || (i < kCalls && clock.seconds() < 2 * kPassSeconds); ++i) {
      check_interrupt("while profiling");
      batches_.seek(0);
      steps();
    }
    return steps.profile();
  }

 private:
  static constexpr double kPassSeconds = 2;

  void call(int64_t first) {
    steps_->run(first, at_once_, job_.batch_size, losses_.narrow(0, first, at_once_));
  }

  Job job_;
  std::unique_ptr<Module> model_;
  std::unique_ptr<Optimizer> optimizer_;
  Batches batches_;
  Tensor losses_;
  std::optional<TrainSteps> steps_;
  int64_t count_ = 0, at_once_ = 1;
  uint64_t epoch_ = 0;
};

// Seconds that a call takes when `calls` of them follow each other: the best of five rounds.
template <class F> double seconds_a_call(Device device, int64_t calls, F&& f) {
  f();
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    synchronize(device);
    const Stopwatch clock;
    for (int64_t i = 0; i < calls; ++i) f();
    synchronize(device);
    const double seconds = clock.seconds() / static_cast<double>(calls);
    best = round == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

// A copy of so many bytes, read and written, and a product of square matrices of that size.
void measure_rates(Ceilings& ceilings, Device device, double copy_bytes, int64_t matrix) {
  const TensorOptions floats{kFloat32, device};
  {
    const Tensor from = zeros({static_cast<int64_t>(copy_bytes / 2 / sizeof(float))}, floats);
    Tensor to = empty_like(from);
    const double seconds = seconds_a_call(device, 10, [&] {
      // A CPU's own copy takes one thread, y = 1 * x all.
      if (device.is_cuda())
        to.copy_(from);
      else
        emit(op::scale(1, in(from), out(to)));
    });
    ceilings.copy_bytes = 2 * static_cast<double>(from.bytes());
    ceilings.copy_bytes_s = ceilings.copy_bytes / seconds;
  }
  {
    // Of many values: arithmetic on a constant takes less power, and so runs at higher clocks.
    const Tensor row = empty({1, matrix}, floats);
    uniform_(row, -1, 1);
    const Tensor a = mul(row.reshape({matrix, 1}), row);
    const double seconds = seconds_a_call(device, 4, [&] { matmul(a, a); });
    const auto m = static_cast<double>(matrix);
    ceilings.matrix = matrix;
    ceilings.fp32_flops_s = 2 * m * m * m / seconds;
  }
}

Ceilings cuda_ceilings(Device device) {
  Ceilings ceilings;
  if constexpr (cuda_built()) {
    const CudaDeviceInfo info = cuda_device_info(device.index);
    {
      // A block for each multiprocessor, about.
      Tensor x = empty({int64_t{256} * info.multiprocessors}, {kFloat32, device});
      const auto small_kernel = [&] { x.fill_(0); };
      ceilings.launch_us = 1e6 * seconds_a_call(device, 5000, small_kernel);
      constexpr int kNodes = 100;
      // Each changes what the one before made: of others only the last would be in the program.
      const Tensor nothing = zeros(x.shape(), x.options());
      x.fill_(0);
      auto chain = compile([&] {
        for (int i = 0; i < kNodes; ++i) emit(op::Accumulate{in(nothing), inout(x)});
      });
      for (int i = 0; i < 2; ++i) chain();
      ceilings.node_us = 1e6 / kNodes * seconds_a_call(device, 200, [&] { chain(); });
    }
    // The copy far larger than any cache.
    const auto bytes = std::min<size_t>(size_t{2} << 30, info.free_bytes / 2);
    measure_rates(ceilings, device, static_cast<double>(bytes),
                  info.free_bytes > size_t{4} << 30 ? 8192 : 2048);
    release_cached_memory(device.index);
  }
  return ceilings;
}

// What one operator of a step on a CPU writes the next one often finds in a cache: the copy is as
// large as the operator that moves most.
Ceilings cpu_ceilings(const std::vector<OperatorRow>& operators) {
  double most = 1 << 20;
  for (const OperatorRow& row : operators)
    most = std::max(most, row.work.bytes / std::max(row.per_step, 1.));
  Ceilings ceilings;
  measure_rates(ceilings, kCpu, std::min<double>(most, 1 << 30), 512);
  return ceilings;
}

uint64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace

StepProfile profile_steps(const Job& job, const Dataset& data, Progress& progress) {
  require_usable(job.device);
  progress.line(str("profile: ", job.device.str(), ", ", describe(job)));
  StepProfile profile;
  profile.device = job.device;
  profile.device_name = describe(job.device);
  profile.batch_size = job.batch_size;
  Steps steps(job, data.train);

  // All that is timed comes before the profiler, which slows down what follows.
  constexpr int kPasses = 7;
  constexpr double kEnoughSeconds = 10;
  std::vector<double> passes;
  steps.prepare();
  steps.run();  // clocks rise, caches fill
  profile.steps = steps.count();
  for (double spent = 0; passes.size() < kPasses && (passes.empty() || spent < kEnoughSeconds);) {
    check_interrupt("while profiling");
    steps.prepare();
    const Stopwatch clock;
    steps.run();
    const double seconds = clock.seconds();
    spent += seconds;
    passes.push_back(1e6 * seconds / static_cast<double>(profile.steps));
  }
  std::sort(passes.begin(), passes.end());
  profile.passes = static_cast<int64_t>(passes.size());
  profile.fastest_us = passes.front();
  profile.step_us = passes[passes.size() / 2];
  profile.slowest_us = passes.back();
  // Before the ceilings, which take large arrays.
  if constexpr (cuda_built()) {
    if (job.device.is_cuda()) {
      const CudaMemory memory = cuda_memory(job.device.index);
      profile.device_peak_bytes = memory.peak_in_use;
      profile.device_reserved_bytes = memory.reserved;
    }
  }
  profile.host_peak_bytes = peak_resident_bytes();

  const ProgramProfile program = steps.operators();
  profile.operators = operator_rows(program, steps.at_once());
  profile.operator_calls = program.calls;
  profile.chain = static_cast<double>(program.chain) / static_cast<double>(steps.at_once());
  profile.ceilings =
      job.device.is_cuda() ? cuda_ceilings(job.device) : cpu_ceilings(profile.operators);

  steps.drop_graph();
  if constexpr (cuda_built()) {
    if (job.device.is_cuda()) {
      Profiler profiler;
      steps.prepare();
      steps.run();
      steps.prepare();
      profiler.take();  // what was not yet a step
      steps.run();
      profile.trace = summarize(profiler.take(), steps.count());
      steps.drop_graph();
    }
  }
  profile.eager = job.eager;
  profile.steps_a_call = steps.at_once();
  return profile;
}

}  // namespace sinter::app
