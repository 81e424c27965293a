#include <algorithm>

#include "order.h"
#include "passes.h"

namespace sinter {

namespace {

// A side lane has no reason of its own to wait: without this it would run as far ahead as its
// inputs allow, and fill memory and caches with what is needed much later.
constexpr int kMostAhead = 16;

}  // namespace

Schedule schedule(const List& list, int most_lanes) {
  const auto n = static_cast<int>(list.entries.size());
  Schedule result;
  result.places.resize(list.entries.size());
  if (most_lanes == 1) return result;
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
      for (int p = i - kMostAhead; p >= 0; --p) {
        if (result.places[p].lane != 0) continue;
        waits.push_back(p);
        break;
      }
    }
    int& lane_last = last[static_cast<size_t>(place.lane)];
    if (lane_last >= 0) order.add(lane_last, i);
    std::sort(waits.rbegin(), waits.rend());
    for (const int p : waits) {
      if (order.precedes(p, i)) continue;
      order.add(p, i);
      place.after.push_back(p);
    }
    lane_last = i;
  }
  result.lanes = static_cast<int>(last.size());
  return result;
}

}  // namespace sinter
