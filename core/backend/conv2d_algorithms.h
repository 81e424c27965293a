// Which algorithm computes a convolution. Each backend has a table of what it has; how it is chosen
// from, and what is said where it cannot be, is the same for both.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "sinter/operators/conv2d.h"

namespace sinter {

enum class ConvPass { kForward, kBackwardData, kBackwardWeights };
const char* name(ConvPass pass);  // "conv2d_forward", …

// A pass over a layer in float32 or float64.
struct ConvTask {
  const op::Conv2dShape& g;
  ConvPass pass;
  DType dtype;
};

// An entry of a table. Forward, Data and Weights are the backend's function types of the passes.
template <class Ctx, class Forward, class Data, class Weights> struct ConvAlgorithm {
  ConvAlgo name;
  // What the task has not that the algorithm needs: "one group"; empty if it can compute it.
  std::string (*lacks)(const Ctx&, const ConvTask&);
  // Whether it is the fastest of those from here on in the table, as measured.
  bool (*pays)(const Ctx&, const ConvTask&);
  Forward* forward;
  Data* backward_data;
  Weights* backward_weights;
};

// For the entries of algorithms that compute anything, and of those that are only there by name.
template <class Ctx> std::string lacks_nothing(const Ctx&, const ConvTask&) { return {}; }
template <class Ctx> bool always_pays(const Ctx&, const ConvTask&) { return true; }
template <class Ctx> bool never_pays(const Ctx&, const ConvTask&) { return false; }

// Throws ValueError: the algorithm that task.g names needs what the task has not, or the backend
// (`device`: "the CPU") has no such algorithm, if `needs` is empty. can: those that could.
[[noreturn]] void refuse_algorithm(const ConvTask& task, const std::string& needs,
                                   const char* device, const std::vector<ConvAlgo>& can);

// The algorithm that task.g names, or for kAuto the first that can and pays. The last entry of a
// table is one that always does.
template <class Ctx, class Algorithm, size_t kCount>
const Algorithm& choose_algorithm(const Ctx& ctx, const char* device,
                                  const std::array<Algorithm, kCount>& table,
                                  const ConvTask& task) {
  std::string needs;
  for (const Algorithm& a : table) {
    if (task.g.algo == ConvAlgo::kAuto) {
      if (a.pays(ctx, task) && a.lacks(ctx, task).empty()) return a;
    } else if (a.name == task.g.algo) {
      needs = a.lacks(ctx, task);
      if (needs.empty()) return a;
      break;
    }
  }
  std::vector<ConvAlgo> can{ConvAlgo::kAuto};
  for (const Algorithm& a : table)
    if (a.lacks(ctx, task).empty()) can.push_back(a.name);
  refuse_algorithm(task, needs, device, can);
}

}  // namespace sinter
