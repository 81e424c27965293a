// A recorded program, ready to run. Private to core.
#pragma once

#include <functional>
#include <iosfwd>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "core/program/passes.h"
#include "core/program/recorder.h"
#include "sinter/program.h"

namespace sinter {

class Program {
 public:
  // Returned tensors, of the recording and of what was there before.
  Program(Recorder::Result recorded, const std::vector<Tensor>& returned,
          const std::vector<std::shared_ptr<Storage>>& inputs, const CompileOptions& options);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Whether a newer recording with the same list returns the same, and gives the same leaves the
  // same gradients.
  bool gives_the_same(const Recorder::Result& newer, const std::vector<Tensor>& returned,
                      const Matching& matching) const;
  // Of a newer recording, in which nothing differs: what is held outside now are its results.
  void take_over(Recorder::Result newer, const Matching& matching);

  const List& recorded() const { return recorded_; }
  const Guards& guards() const { return guards_; }
  bool is_of_this_thread() const { return thread_ == std::this_thread::get_id(); }
  // Whether an outside array is owned by programs alone: the function would now read another.
  bool lost_an_array() const;

  // Reads the arguments where they lie, or copies them.
  void take_arguments(const std::vector<Tensor>& arguments);
  // Runs the list, on a GPU operator by operator, with arguments in `inputs`.
  void run(bool is_timed = false);
  // The same as one launch, where there is such a thing.
  void replay(const std::vector<Tensor>& arguments);
  // The returned tensors of the call that was made last, in memory of their own.
  std::vector<Tensor> results() const;

  int64_t operators() const { return static_cast<int64_t>(list_.entries.size()); }
  int64_t memory_bytes() const { return memory_bytes_; }
  int64_t lanes() const { return schedule_.lanes; }
  ProgramProfile profile() const;
  void print(std::ostream& out) const;

 private:
  void bind();
  void check_finite(size_t i) const;  // what entry i wrote
  void add_time(size_t i, double us);
  bool is_returned(const std::shared_ptr<Storage>& storage) const;
  void capture();

  CompileOptions options_;
  std::thread::id thread_ = std::this_thread::get_id();
  List recorded_, list_;
  Guards guards_;
  std::unordered_set<uint64_t> untouched_;  // as the recording says
  std::vector<std::pair<std::shared_ptr<Node>, Tensor>> gradients_;
  std::vector<std::shared_ptr<Storage>> inputs_;    // what the list reads in the arguments' place
  std::vector<std::vector<Operand*>> reads_input_;  // operands of list_, by argument
  Schedule schedule_;
  int64_t memory_bytes_ = 0;
  std::shared_ptr<Storage> memory_;
  std::vector<Storage*> written_;  // outside of the program's memory

  struct Returned {
    Tensor tensor;                    // one that was there before
    uint64_t buffer = 0;              // else that of the recorded list which it is made of
    std::shared_ptr<Storage> memory;  // and where the program writes it
    int64_t start = 0;
    Shape shape;
    DType dtype = kFloat32;
  };
  bool is_same(const Tensor& a, const Tensor& b, const Recorder::Result& newer) const;
  // `tensor` as part of what `list` gives, without memory.
  static Returned described(const Tensor& tensor, const List& list);
  std::vector<Returned> returned_;
  std::function<void()> launch_;  // on a GPU, once it is captured
  int64_t timed_calls_ = 0;
  std::vector<std::vector<double>> times_;  // of each operator, in microseconds
};

}  // namespace sinter
