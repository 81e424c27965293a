// Functions called as they are and compiled, and what their programs consist of.
#pragma once

#include <sinter/program.h>

#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <vector>

#include "core/program/program.h"
#include "tests/support/values.h"

namespace sinter::test {

// What a function computes, undefined tensors among it. It does the same at every call: gradients
// that it makes it drops first.
using Results = std::vector<Tensor>;
using Work = std::function<Results()>;

inline Results copies(const Results& results) {
  Results all;
  for (const Tensor& t : results) all.push_back(t.defined() ? t.detach().clone() : Tensor());
  return all;
}

inline Results gradients_of(const std::vector<Tensor>& leaves) {
  Results all;
  for (const Tensor& t : leaves) all.push_back(t.grad());
  return all;
}

inline void drop_gradients(const std::vector<Tensor>& leaves) {
  for (const Tensor& t : leaves) t.set_grad({});
}

inline void check_same_bits(const Results& a, const Results& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    INFO("result " << i);
    REQUIRE(a[i].defined() == b[i].defined());
    if (a[i].defined()) CHECK(same_numbers(a[i], b[i]));
  }
}

// f compiled: the first two calls record, the third replays, and all give the same bits.
inline Results compiled(const Work& f) {
  auto program = compile(f);
  std::array<Results, 3> calls;
  for (Results& call : calls) call = program();
  CHECK(program.stats().recordings == 2);
  check_same_bits(calls[0], calls[1]);
  check_same_bits(calls[1], calls[2]);
  return calls[2];
}

inline Results run_as(app::Mode mode, const Work& f) {
  return mode == app::Mode::kEager ? f() : compiled(f);
}

// The largest difference of two results, as a share of the largest magnitude.
inline double relative_difference(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  REQUIRE(a.dtype() == b.dtype());
  const std::vector<double> left = a.to_vector<double>(), right = b.to_vector<double>();
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < left.size(); ++i) {
    const double off = std::abs(left[i] - right[i]);
    if (!(off <= worst)) worst = off;  // NaN stays
    largest = std::max(largest, std::abs(right[i]));
  }
  return worst / largest;
}

inline void check_close_results(const Results& actual, const Results& expected) {
  REQUIRE(actual.size() == expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    INFO("result " << i);
    REQUIRE(actual[i].defined() == expected[i].defined());
    if (!actual[i].defined()) continue;
    const double tolerance = actual[i].dtype() == kFloat64 ? 1e-12 : 2e-5;
    CHECK(relative_difference(actual[i], expected[i]) <= tolerance);
  }
}

// Compiled, f computes what it computes eagerly: to the bit without the fuse pass, up to rounding
// with it; and the other passes change no bit. Returns the results of the compiled function.
inline Results check_compiled(const Work& f) {
  const Results eager = copies(f());
  Results with_all = copies(compiled(f));
  check_close_results(with_all, eager);
  for (const char* off : {"-dead", "-schedule", "-memory", "-dead,-schedule,-memory"}) {
    INFO("SINTER_PASSES=" << off);
    const PassesOff without(off);
    check_same_bits(compiled(f), with_all);
  }
  for (const char* off : {"-fuse", "-fuse,-dead,-schedule,-memory"}) {
    INFO("SINTER_PASSES=" << off);
    const PassesOff without(off);
    check_same_bits(compiled(f), eager);
  }
  return with_all;
}

// f's program after the passes that rewrite it; what f returns is held.
inline List program_of(const Work& f) {
  Recorder recorder;
  Results held = f();
  for (Tensor& t : held)
    if (t.defined()) t = t.detach();
  List list = recorder.finish().list;
  recorder.stop();
  rewrite(list, Passes::from_environment(), [](const char*) {});
  return list;
}

inline std::vector<std::string> operators_of(const List& list) {
  std::vector<std::string> names;
  for (const Entry& entry : list.entries) names.emplace_back(entry.op->name());
  return names;
}
inline std::vector<std::string> operators_of(const Work& f) { return operators_of(program_of(f)); }

inline int64_t count(const std::vector<std::string>& operators, const std::string& name) {
  return std::count(operators.begin(), operators.end(), name);
}

inline std::string text(const std::vector<std::string>& operators) {
  std::string all;
  for (const std::string& name : operators) all += (all.empty() ? "" : " ") + name;
  return all;
}

}  // namespace sinter::test
