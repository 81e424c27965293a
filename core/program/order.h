// Which of a list's operators are over when another begins. Private to core.
#pragma once

#include <cstdint>
#include <vector>

namespace sinter {

// A partial order of 0 … n - 1, each greater than what precedes it, as one row of bits each.
class Order {
 public:
  explicit Order(size_t n) : words_((n + 63) / 64), bits_(n * words_) {}
  // `before`, whose own predecessors are known, and what precedes it, precede i.
  void add(int before, int i) {
    uint64_t* row = &bits_[static_cast<size_t>(i) * words_];
    const uint64_t* of_before = &bits_[static_cast<size_t>(before) * words_];
    for (size_t w = 0; w <= static_cast<size_t>(before) / 64; ++w) row[w] |= of_before[w];
    row[before / 64] |= uint64_t{1} << (before % 64);
  }
  bool precedes(int before, int i) const {
    return bits_[static_cast<size_t>(i) * words_ + static_cast<size_t>(before) / 64] >>
               (before % 64) &
           1;
  }

 private:
  size_t words_;
  std::vector<uint64_t> bits_;
};

}  // namespace sinter
