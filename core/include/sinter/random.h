// Random draws. Initial weights and the like are drawn on the host: deterministic in the seed, and
// the same for every backend because the device is not asked. What operators draw themselves
// (dropout) they draw on their device, from numbers that are the same on all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// Streams of Philox numbers (philox.h): one on the host, and one on each device for operators.
// The state is seed(), position() and the draws() of the devices in use.
//   A device's seed and count of draws live in its memory, where compiled functions read and
//   advance
// them at every call, and where assignment, manual_seed among it, writes. So a generator's draws
// are its own wherever they are asked for, but it must not be used by two threads at once.
class Generator {
 public:
  explicit Generator(uint64_t seed = 0) : seed_(seed) {}
  Generator(const Generator& other);
  Generator& operator=(const Generator& other);
  uint64_t seed() const { return seed_; }
  uint64_t next();   // 64 random bits
  double uniform();  // [0, 1), 53 random bits
  double normal();   // mean 0, variance 1 (Box-Muller; two draws a number)
  uint64_t position() const { return position_; }  // draws so far
  void set_position(uint64_t n) { position_ = n; }

  // How often operators on `device` drew so far; waits for it.
  int64_t draws(Device device) const;
  void set_draws(Device device, int64_t n);
  // Seed and draws as they lie on the device: int64 (2). For operators (op::NextDraw).
  Tensor device_state(Device device);

 private:
  const Tensor* find(Device device) const;
  uint64_t seed_;
  uint64_t position_ = 0;
  std::vector<Tensor> states_;  // of devices that were asked for
};

// The calling thread's generator, from which modules draw their initial weights. Each thread has
// its own, so that trainings in several threads do not disturb each other; it begins at seed 0, so
// give each a seed.
Generator& default_generator();
void manual_seed(uint64_t seed);

// Fills x, on whatever device, with draws: a leaf as torch.nn.init does, whether or not it requires
// grad, anything else as a change in place (Tensor::copy_); float32 gets the float64 draws rounded.
// uniform_ draws from [low, high); where these are so close that x's dtype has no number in
// between, low or high. Throws DtypeError unless x is floating, ValueError unless low <= high, both
// and their difference finite, and stddev >= 0.
void uniform_(const Tensor& x, double low, double high, Generator& generator = default_generator());
void normal_(const Tensor& x, double mean, double stddev,
             Generator& generator = default_generator());

// New tensors of draws from [0, 1) and of normal ones with mean 0 and variance 1; the same numbers
// on every device.
Tensor rand(const Shape& shape, TensorOptions options = {},
            Generator& generator = default_generator());
Tensor randn(const Shape& shape, TensorOptions options = {},
             Generator& generator = default_generator());

}  // namespace sinter
