// What a thread notes while it records a program (program.h). Private to core.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/base/detail.h"
#include "core/program/list.h"
#include "core/tensor/storage.h"
#include "sinter/emit.h"
#include "sinter/tensor.h"

namespace sinter {

class Node;

// ---- questions ----------------------------------------------------------------------------------

// What was asked while a program was recorded, with the answers: another answer, another program.
struct Guards {
  // An outside tensor: where it lies, whether it requires grad, and its hooks.
  struct Leaf {
    std::weak_ptr<void> impl;
    std::pair<uint64_t, int64_t> place;
    bool requires_grad;
    uint64_t hooks;
  };
  // A leaf's gradient, asked for before the recording gave it one.
  struct Gradient {
    std::weak_ptr<Node> leaf;
    std::pair<uint64_t, int64_t> place;
  };
  struct Mode {
    std::shared_ptr<const bool> mode;  // of a module
    bool answer;
  };
  std::vector<Leaf> leaves;
  std::vector<Gradient> gradients;
  struct Version {
    std::shared_ptr<const uint64_t> version;  // of a module
    uint64_t answer;
  };
  std::vector<Mode> modes;
  std::vector<Version> versions;
  bool hold() const;
};

// ---- recording ----------------------------------------------------------------------------------

// On whose behalf operators are emitted.
struct Origin {
  std::shared_ptr<const std::string> module;  // its path; null: none
  const char* forward = nullptr;              // in a backward pass: the operator it is that of
};

class Recorder {
 public:
  // Records this thread's operators until it is destroyed.
  Recorder();
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Null if this thread records nothing.
  static Recorder* of_this_thread();
  // Throws GraphError: `what` cannot be part of a program.
  [[noreturn]] static void refuse(const char* what);

  // Memory for a tensor that the recorded function makes; none yet.
  std::shared_ptr<Storage> make_virtual(Device device, size_t bytes);
  // A tensor of values that the host gives. Programs that differ in them differ.
  Tensor constant(const void* values, const Shape& shape, TensorOptions options);
  void note(std::unique_ptr<Operator> op);
  // Tells that this storage receives an argument of the call.
  void add_input(const std::shared_ptr<Storage>& storage);

  // Questions that become guards.
  void asked(const Tensor& tensor);
  void asked_gradient(const std::shared_ptr<Node>& leaf, const Tensor& gradient);
  void asked_mode(const std::shared_ptr<const bool>& mode);
  void sets_mode(const std::shared_ptr<const bool>& mode);  // which is no question from then on
  void asked_version(const std::shared_ptr<const uint64_t>& version);
  // Before a leaf's gradient is set.
  void sets_gradient(const std::shared_ptr<Node>& leaf, const Tensor& before);
  void made_node(const std::shared_ptr<Node>& node);
  bool made(const Node* node) const { return nodes_.contains(node); }

  // At the end of the recorded function: gives what is still held memory of its own, and hands over
  // the list. Gradients that leaves have now are theirs after every call. Without a commit() they
  // have the earlier ones again when this is destroyed.
  struct Result {
    List list;
    Guards guards;
    std::unordered_set<uint64_t> untouched;  // made, and held, but of no operator: by number
    std::vector<std::pair<std::shared_ptr<Node>, Tensor>> gradients;
  };
  Result finish();
  // Frees the graph that was made.
  void release_nodes();
  void stop();                             // records no more
  void commit() { is_committed_ = true; }  // leaves keep the gradients that they have

  static const Tensor::Impl& impl_of(const Tensor& tensor);
  static Tensor tensor_of(std::shared_ptr<Tensor::Impl> impl);

  Origin origin;

 private:
  // The storage's number in the list; of one that was not made here and is new, `kind` says what
  // it is.
  uint64_t buffer_of(Storage& storage, Buffer::Kind kind);

  Recorder* outer_;
  bool is_committed_ = false;
  List list_;
  bool has_device_ = false;
  std::unordered_map<uint64_t, std::weak_ptr<Storage>> made_;
  std::unordered_map<uint64_t, uint64_t> numbers_;  // of buffers, by their storages'
  Guards guards_;
  std::unordered_set<const void*> asked_;
  struct Gradient {
    std::shared_ptr<Node> leaf;
    Tensor before;
  };
  std::unordered_map<const Node*, Gradient> set_;
  std::unordered_map<const Node*, std::weak_ptr<Node>> nodes_;
};

// Sets this thread's origin while it lives and a program is recorded.
class OriginScope {
 public:
  explicit OriginScope(Origin origin) : recorder_(Recorder::of_this_thread()) {
    if (recorder_ != nullptr) before_ = std::exchange(recorder_->origin, std::move(origin));
  }
  ~OriginScope() {
    if (recorder_ != nullptr) recorder_->origin = std::move(before_);
  }
  OriginScope(const OriginScope&) = delete;
  OriginScope& operator=(const OriginScope&) = delete;

 private:
  Recorder* recorder_;
  Origin before_;
};

// Of autograd.cc, for the recorder.
void release_node(Node& node);  // its derivative and its inputs
Tensor gradient_of(const Node& leaf);
void set_gradient_of(Node& leaf, const Tensor& gradient);
uint64_t hooks_version(const Node& node);
bool collects_gradient(const Tensor& tensor);  // requires_grad, without a question

}  // namespace sinter
