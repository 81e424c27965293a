// Which element of x an element of a padded dimension is, for both backends.
#pragma once

#include <cstdint>

#include "sinter/operators/move.h"
#include "sinter/philox.h"  // SINTER_HD

namespace sinter::op {

// Of the n elements of x the one at place i, which may lie before or behind them; -1: none.
SINTER_HD inline int64_t pad_source(PadMode mode, int64_t n, int64_t i) {
  if (i >= 0 && i < n) return i;
  switch (mode) {
    case PadMode::kReflect:
      return i < 0 ? -i : 2 * (n - 1) - i;
    case PadMode::kReplicate:
      return i < 0 ? 0 : n - 1;
    case PadMode::kCircular:
      return i < 0 ? i + n : i - n;
    case PadMode::kConstant:
      break;
  }
  return -1;
}

// The elements of the result that read element j of x: up to three ranges, in ascending order.
struct PadReaders {
  int64_t begin[3] = {}, end[3] = {};

  SINTER_HD PadReaders(PadMode mode, int64_t n, int64_t before, int64_t out, int64_t j) {
    const int64_t own = j + before;
    if (mode == PadMode::kReplicate) {
      set(0, out, j == 0 ? 0 : own, j == n - 1 ? out : own + 1);
      return;
    }
    set(1, out, own, own + 1);
    if (mode == PadMode::kReflect) {
      if (j > 0) set(0, out, before - j, before - j + 1);
      const int64_t mirrored = own + 2 * (n - 1 - j);
      if (j < n - 1) set(2, out, mirrored, mirrored + 1);
    } else if (mode == PadMode::kCircular) {
      set(0, out, own - n, own - n + 1);
      set(2, out, own + n, own + n + 1);
    }
  }

 private:
  SINTER_HD void set(int k, int64_t out, int64_t first, int64_t last) {
    begin[k] = first < 0 ? 0 : first;
    end[k] = last > out ? out : last;
  }
};

}  // namespace sinter::op
