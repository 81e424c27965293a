// What is done to a recorded list before it runs. Each pass is a function of a list, in a file of
// its own; which run is chosen by name (SINTER_PASSES). Private to core.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/program/list.h"

namespace sinter {

// ---- fuse ---------------------------------------------------------------------------------------

// Rewrites operators that one kernel can do, or that another makes unnecessary: fuse.cc lists them.
// Each looks at one operator and, through what it reads, at their producers, and lets an operator
// write what others wrote before; what is then written in vain dead removes. Who else reads a value
// changes at most what a rewrite costs: what is computed, to the bit, does not depend on it. First
// come whole layers, each way, then what stands between them.
void fuse_layers(List& list);
void fuse_between(List& list);
// Chains of element-wise operators, when all others are where they stay.
void fuse_elementwise(List& list);

// ---- dead ---------------------------------------------------------------------------------------

// Removes operators whose results nobody reads or holds, and leaves out optional ones.
void dead(List& list);

// ---- both -------------------------------------------------------------------------------------

// Which passes run: all, but for those that SINTER_PASSES names as "-fuse,-dead,…". Without fuse
// there is no elementwise either.
struct Passes {
  bool fuse = true, elementwise = true, dead = true, schedule = true, memory = true;
  // Throws ValueError for other names.
  static Passes from_environment();
};
// The passes that rewrite a list, each followed by dead; show(title) is called after each.
void rewrite(List& list, const Passes& passes, const std::function<void(const char*)>& show);

// ---- schedule -----------------------------------------------------------------------------------

// When operators run: an order in lanes. Those of one lane run one after another, those of
// different lanes side by side, unless one waits for the other.
struct Schedule {
  struct Place {
    int lane = 0;
    std::vector<int> after;  // what it waits for directly
  };
  std::vector<Place> places;  // one an operator of the list
  int lanes = 1;
};
// With several lanes, what could begin much earlier than it stands in the list is moved forward.
Schedule schedule(List& list, int most_lanes);

// ---- memory -------------------------------------------------------------------------------------

// Gives virtual buffers offsets in one block, whose size in bytes it returns. Two share bytes only
// if the schedule has one's last use over before the other's first begins.
int64_t memory(List& list, const Schedule& schedule);
int64_t memory_without_sharing(List& list);

// ---- for passes ---------------------------------------------------------------------------------

// For each operator, those that must be over before it begins, without those that these imply in
// turn where that is easy to see: writers of what it reads, and readers and writers of what it
// overwrites.
std::vector<std::vector<int>> dependencies(const List& list);

}  // namespace sinter
