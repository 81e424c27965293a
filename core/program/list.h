// A program as data: operators in an order, and the buffers that they read and write. Passes
// (passes.h) turn one list into another. Private to core.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/detail.h"
#include "core/tensor/storage.h"
#include "sinter/emit.h"

namespace sinter {

struct Buffer {
  enum class Kind {
    kVirtual,   // memory of the program, of nobody's concern outside
    kResult,    // held outside when the recording ended
    kOutside,   // was there before
    kConstant,  // values that the host gave
    kInput,     // receives an argument
  };
  Kind kind = Kind::kVirtual;
  size_t bytes = 0;
  uint64_t storage_number = 0;       // of the storage that it was recorded from
  std::shared_ptr<Storage> storage;  // null for a virtual one
  int64_t offset = 0;                // of a virtual one in the program's memory

  bool is_virtual() const { return kind == Kind::kVirtual; }
};

struct Entry {
  std::unique_ptr<Operator> op;
  std::vector<OperandRef> operands;           // of op
  std::shared_ptr<const std::string> module;  // the path of the module it was emitted in; or null
  const char* forward = nullptr;              // of a backward operator: the one it derives from
  std::vector<std::byte> values;              // of one that copies a constant

  Entry() = default;
  explicit Entry(std::unique_ptr<Operator> op) { set(std::move(op)); }
  void set(std::unique_ptr<Operator> new_op) {
    op = std::move(new_op);
    operands = op->operands();
  }
  Entry copy() const;
};

struct List {
  Device device;
  std::vector<Entry> entries;
  std::vector<Buffer> buffers{1};  // by number; there is none of number 0, which is no operand

  List copy() const;
  const Buffer& buffer(const Operand& x) const { return buffers[x.buffer]; }
};

// Bytes [begin, end) of a buffer.
struct Range {
  uint64_t buffer = 0;
  int64_t begin = 0, end = 0;
  bool operator==(const Range&) const = default;
  bool overlaps(const Range& other) const {
    return buffer == other.buffer && begin < other.end && other.begin < end;
  }
  bool covers(const Range& other) const {
    return buffer == other.buffer && begin <= other.begin && other.end <= end;
  }
};
inline Range range_of(const Operand& x) { return {x.buffer, x.offset, x.offset + x.bytes()}; }

// Which buffers of one list are which of another: those that were made while each was recorded are
// the same if they come up at the same time, others if they are.
class Matching {
 public:
  Matching(const List& a, const List& b)
      : a_(a), b_(b), pairs_(a.buffers.size()), reverse_(b.buffers.size()) {}
  bool same(const Operand& x, const Operand& y);
  // Of a buffer of a, the one of b; 0 if it did not come up.
  uint64_t partner(uint64_t buffer) const { return pairs_[buffer]; }

 private:
  const List &a_, &b_;
  std::vector<uint64_t> pairs_, reverse_;
};

// What is the first difference between two lists, as "operator 3, adam_step: …"; empty if they do
// the same with the same outside arrays.
std::string difference(const List& a, const List& b, Matching& matching);

}  // namespace sinter
