#include "sinter/random.h"

#include <cmath>
#include <numbers>

#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/program/recorder.h"
#include "core/tensor/tensor_impl.h"
#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"
#include "sinter/philox.h"

namespace sinter {

uint64_t Generator::next() {
  // A Philox block is 128 bits: two draws.
  const Philox4 block = philox(seed_, position_ >> 1, 0);
  const int half = static_cast<int>(position_++ & 1) * 2;
  return block.v[half] | (uint64_t{block.v[half + 1]} << 32);
}

double Generator::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

double Generator::normal() {
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));  // 1 - u is never 0
  return radius * std::cos(2 * std::numbers::pi * uniform());
}

Generator::Generator(const Generator& other) : seed_(other.seed_), position_(other.position_) {
  for (const Tensor& state : other.states_) states_.push_back(state.clone());
}

Generator& Generator::operator=(const Generator& other) {
  if (this == &other) return *this;
  seed_ = other.seed_;
  position_ = other.position_;
  // In place: programs have these storages.
  for (const Tensor& state : states_) {
    const Tensor* const theirs = other.find(state.device());
    if (theirs != nullptr)
      state.copy_(*theirs);
    else
      set_draws(state.device(), 0);
  }
  for (const Tensor& theirs : other.states_)
    if (find(theirs.device()) == nullptr) states_.push_back(theirs.clone());
  return *this;
}

const Tensor* Generator::find(Device device) const {
  for (const Tensor& state : states_)
    if (state.device() == device) return &state;
  return nullptr;
}

int64_t Generator::draws(Device device) const {
  const Tensor* const state = find(device);
  return state == nullptr ? 0 : state->to_vector<int64_t>()[1];
}

void Generator::set_draws(Device device, int64_t n) {
  require<ValueError>(n >= 0, "set_draws: expected n >= 0, got ", n);
  device_state(device).copy_(
      from_vector(std::vector<int64_t>{static_cast<int64_t>(seed_), n}, {2}, device));
}

Tensor Generator::device_state(Device device) {
  if (const Tensor* const state = find(device)) return *state;
  // Not by from_vector: a function that is recorded may be the first to ask, and the state must
  // outlive it, with the values of now rather than at the beginning of every call.
  const int64_t values[] = {static_cast<int64_t>(seed_), 0};
  const auto storage = std::make_shared<Storage>(device, sizeof(values));
  with_context(device, [&](const auto& ctx) {
    detail::copy_from_host(ctx, storage->use(), values, sizeof(values));
  });
  states_.push_back(
      Recorder::tensor_of(std::make_shared<Tensor::Impl>(storage, 0, Shape{2}, kInt64)));
  return states_.back();
}

Generator& default_generator() {
  thread_local Generator generator;
  return generator;
}

void manual_seed(uint64_t seed) { default_generator() = Generator(seed); }

namespace {

// draw(T()): the next element, T being x's.
template <class Draw> void fill_with(const char* op, const Tensor& x, Draw draw) {
  require_defined(op, "x", x);
  require_floating(op, x);
  const Tensor drawn = with_floating(x.dtype(), [&]<class T>() {
    std::vector<T> values = host_values<T>(x.numel());
    for (T& value : values) value = draw(T());
    return from_vector(values, x.shape(), x.device());
  });
  // A leaf may be a parameter that gets its first values, which nothing was computed from.
  (x.is_leaf() ? x.detach() : x).overwrite(op, drawn);
}

}  // namespace

void uniform_(const Tensor& x, double low, double high, Generator& generator) {
  require<ValueError>(low <= high && std::isfinite(high - low),
                      "uniform_: expected low <= high at a finite distance, got ", low, " and ",
                      high);
  fill_with("uniform_", x, [&]<class T>(T) {
    const T value = static_cast<T>(low + (high - low) * generator.uniform());
    if (value < high) return value;
    // Rounded up to high, which is not to be drawn.
    const T before = std::nextafter(value, static_cast<T>(low));
    return before >= low ? before : value;
  });
}

void normal_(const Tensor& x, double mean, double stddev, Generator& generator) {
  require<ValueError>(stddev >= 0, "normal_: expected stddev >= 0, got ", stddev);
  fill_with("normal_", x,
            [&]<class T>(T) { return static_cast<T>(mean + stddev * generator.normal()); });
}

Tensor rand(const Shape& shape, TensorOptions options, Generator& generator) {
  const Tensor x = empty(shape, options);
  uniform_(x, 0, 1, generator);
  return x;
}

Tensor randn(const Shape& shape, TensorOptions options, Generator& generator) {
  const Tensor x = empty(shape, options);
  normal_(x, 0, 1, generator);
  return x;
}

}  // namespace sinter
