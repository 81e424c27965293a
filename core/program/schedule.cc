#include <algorithm>
#include <utility>

#include "core/program/order.h"
#include "core/program/passes.h"

namespace sinter {

namespace {

// How many operators before its place in the recorded list one may begin: far enough for a training
// step's batch to be gathered beside the step before, and no further, since what is made early
// fills memory and caches.
constexpr int kMostAhead = 12;

// Moves operators that wait for nothing near them forward.
void move_forward(List& list) {
  const std::vector<std::vector<int>> before = dependencies(list);
  const auto n = static_cast<int>(list.entries.size());
  std::vector<std::pair<int, int>> keys;  // behind which operator, and the operator itself
  for (int i = 0; i < n; ++i) {
    const std::vector<int>& waits = before[static_cast<size_t>(i)];
    const int last = waits.empty() ? -1 : waits.back();
    // Those that wait for something near stay, and so most do.
    const bool moves = last < i - kMostAhead / 2;
    keys.emplace_back(moves ? std::max({i - kMostAhead, last, 0}) : i, i);
  }
  std::stable_sort(keys.begin(), keys.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Entry> entries;
  entries.reserve(list.entries.size());
  for (const auto& [behind, i] : keys)
    entries.push_back(std::move(list.entries[static_cast<size_t>(i)]));
  list.entries = std::move(entries);
}

}  // namespace

Schedule schedule(List& list, int most_lanes) {
  const auto n = static_cast<int>(list.entries.size());
  Schedule result;
  result.places.resize(list.entries.size());
  if (most_lanes == 1) {
    for (int i = 1; i < n; ++i) result.places[static_cast<size_t>(i)].after.push_back(i - 1);
    return result;
  }
  move_forward(list);
  const std::vector<std::vector<int>> before = dependencies(list);
  // The longest ways to the end and from the beginning; of each operator's successors, the one
  // whose way to the end is longest.
  std::vector<int> urgency(list.entries.size(), 1), depth(list.entries.size(), 1);
  std::vector<int> heir(list.entries.size(), -1);
  for (int i = n; i-- > 0;) {
    for (const int p : before[i]) {
      urgency[p] = std::max(urgency[p], urgency[i] + 1);
      if (heir[p] < 0 || urgency[i] >= urgency[heir[p]]) heir[p] = i;
    }
  }
  std::vector<int> last{-1};         // of each lane
  Order order(list.entries.size());  // of what was placed
  for (int i = 0; i < n; ++i) {
    Schedule::Place& place = result.places[i];
    for (const int p : before[i]) depth[i] = std::max(depth[i], depth[p] + 1);
    // It goes on where it is waited for most; where several wait for it, with what comes last.
    int parent = -1;
    for (const int p : before[i]) {
      const bool ends_lane = last[static_cast<size_t>(result.places[p].lane)] == p;
      if (heir[p] == i && ends_lane && (parent < 0 || depth[p] > depth[parent])) parent = p;
    }
    std::vector<int> waits = before[i];
    if (parent >= 0) {
      place.lane = result.places[parent].lane;
    } else if (last[0] >= 0) {
      // The side lane that is nearest to being free.
      int lane = -1;
      for (int l = 1; l < static_cast<int>(last.size()); ++l)
        if (lane < 0 || last[static_cast<size_t>(l)] < last[static_cast<size_t>(lane)]) lane = l;
      const bool is_free = lane > 0 && std::any_of(waits.begin(), waits.end(), [&](int p) {
                             return order.precedes(last[static_cast<size_t>(lane)], p) ||
                                    last[static_cast<size_t>(lane)] == p;
                           });
      if (!is_free && static_cast<int>(last.size()) < most_lanes) {
        lane = static_cast<int>(last.size());
        last.push_back(-1);
      }
      place.lane = lane;
      // What was moved forward begins where it stands now, no earlier.
      if (last[0] >= 0 && (waits.empty() || depth[waits.back()] < depth[last[0]] - 2))
        waits.push_back(last[0]);
    }
    const int earlier = std::exchange(last[static_cast<size_t>(place.lane)], i);
    if (earlier >= 0) waits.push_back(earlier);
    // The last first: they imply most of the others.
    std::sort(waits.rbegin(), waits.rend());
    for (const int p : waits) {
      if (order.precedes(p, i)) continue;
      // An operator that waits for its lane alone is placed while the one before it still runs: so
      // who is over anyway by then is waited for by one that waits for others already.
      if (place.lane == 0 && earlier > p && result.places[earlier].after.size() > 1 &&
          depth[p] < depth[earlier] - 1) {
        order.add(p, earlier);
        order.add(p, i);
        result.places[earlier].after.push_back(p);
        continue;
      }
      order.add(p, i);
      place.after.push_back(p);
    }
  }
  result.lanes = static_cast<int>(last.size());
  return result;
}

}  // namespace sinter
