#include <algorithm>
#include <ostream>

#include "core/base/detail.h"
#include "core/program/program.h"
#include "core/tensor/tensor_impl.h"
#include "sinter/autograd.h"

namespace sinter {

namespace {

constexpr size_t kMostPrograms = 8;
constexpr int kMostRecordings = 4;

// What rules how operators compute, beside what guards know.
struct Setting {
  bool grad = grad_enabled();
  ConvAlgo algo = conv_algo();
  bool tf32 = allow_tf32();
  bool operator==(const Setting&) const = default;
};

struct Signature {
  Shape shape;
  DType dtype;
  Device device;
  bool operator==(const Signature&) const = default;
};

// A returned tensor that something else holds too, a leaf as its gradient or a member, is
// overwritten with it by the next call: what is returned becomes a copy.
void make_own(std::vector<Tensor>& returned, const std::vector<std::shared_ptr<Storage>>& inputs) {
  for (Tensor& y : returned) {
    if (!y.defined()) continue;
    const uint64_t number = y.place().first;
    const auto mine = std::count_if(returned.begin(), returned.end(), [&](const Tensor& other) {
      return other.place().first == number;
    });
    const Tensor::Impl& impl = Recorder::impl_of(y);
    const bool is_argument = std::find(inputs.begin(), inputs.end(), impl.storage) != inputs.end();
    const bool is_made = impl.storage->data == nullptr;
    if (is_argument || (is_made && impl.storage.use_count() > mine)) y = y.clone();
  }
}

}  // namespace

struct CompiledFunction::Impl {
  struct Slot {
    Key key;
    std::vector<Signature> arguments;
    Setting setting;
    std::vector<std::shared_ptr<Storage>> inputs;  // what the function gets in the arguments' place
    std::shared_ptr<Program> program;
    int recordings = 0;  // in a row that differed
    bool is_stable = false;
  };
  std::vector<Slot> slots;  // the one that ran last at the end
  int64_t recordings = 0;
  CompileOptions options;

  // Of the call that was made last; null if there is none.
  const Program* last() const { return slots.empty() ? nullptr : slots.back().program.get(); }
  // The slot for a call, moved to the end; a new one if there is none.
  Slot& find(const Key& key, const std::vector<Signature>& arguments);
};

CompiledFunction::CompiledFunction(const CompileOptions& options)
    : impl_(std::make_unique<Impl>()) {
  impl_->options = options;
}
CompiledFunction::~CompiledFunction() = default;
CompiledFunction::CompiledFunction(CompiledFunction&&) noexcept = default;
CompiledFunction& CompiledFunction::operator=(CompiledFunction&&) noexcept = default;

CompiledFunction::Impl::Slot& CompiledFunction::Impl::find(
    const Key& key, const std::vector<Signature>& arguments) {
  const Setting setting;
  for (size_t i = slots.size(); i-- > 0;) {
    const Slot& slot = slots[i];
    if (!(slot.setting == setting) || slot.arguments != arguments ||
        !slot.program->is_of_this_thread() || !key.equal(slot.key.value, key.value) ||
        !slot.program->guards().hold())
      continue;
    Slot found = std::move(slots[i]);
    slots.erase(slots.begin() + static_cast<ptrdiff_t>(i));
    slots.push_back(std::move(found));
    if (slots.back().program->lost_an_array()) slots.back().is_stable = false;
    return slots.back();
  }
  if (slots.size() == kMostPrograms) slots.erase(slots.begin());
  slots.push_back({key, arguments, setting, {}, nullptr});
  return slots.back();
}

std::vector<Tensor> CompiledFunction::call(const Key& key, const std::vector<Tensor>& arguments,
                                           const Body& body) {
  if (anomaly_enabled() || recording_program()) return body(arguments);
  std::vector<Signature> signature;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Tensor& x = arguments[i];
    require<ValueError>(x.defined(), "compile: argument ", i, " is an undefined tensor");
    require<GraphError>(!x.requires_grad(), "compile: argument ", i, ", of shape ", x.shape(),
                        ", requires grad, which a copy would not; hold it by reference in the "
                        "compiled function, or detach() it");
    signature.push_back({x.shape(), x.dtype(), x.device()});
  }
  Impl::Slot& slot = impl_->find(key, signature);
  if (slot.is_stable) {
    slot.program->replay(arguments);
    return slot.program->results();
  }

  const auto forget = [&] {
    if (slot.program == nullptr) impl_->slots.pop_back();
  };
  ++impl_->recordings;
  try {
    std::vector<Tensor> stand_ins;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const Tensor& x = arguments[i];
      // Without values until the program takes the arguments.
      if (slot.inputs.size() == i) {
        slot.inputs.push_back(std::make_shared<Storage>(x.device(), x.bytes(), Storage::Virtual()));
      }
      stand_ins.push_back(Recorder::tensor_of(
          std::make_shared<Tensor::Impl>(slot.inputs[i], 0, x.shape(), x.dtype())));
    }
    {
      Recorder recorder;
      for (const std::shared_ptr<Storage>& input : slot.inputs) recorder.add_input(input);
      std::vector<Tensor> returned = body(stand_ins);
      // Without the graph, which would keep all it was made from.
      for (Tensor& y : returned) y = y.detach();
      recorder.release_nodes();
      make_own(returned, slot.inputs);
      stand_ins.clear();
      Recorder::Result result = recorder.finish();
      recorder.stop();
      for (const Entry& entry : result.list.entries) {
        for (const OperandRef& ref : entry.operands) {
          require<GraphError>(
              !ref.writes() || result.list.buffer(*ref.operand).kind != Buffer::Kind::kInput,
              entry.op->name(), ": a compiled function cannot change its argument, of shape ",
              ref.operand->shape, ", which may be a copy; hold it by reference");
        }
      }
      if (slot.program != nullptr) {
        Matching matching(slot.program->recorded(), result.list);
        const std::string changed = difference(slot.program->recorded(), result.list, matching);
        const bool same_results =
            changed.empty() && slot.program->gives_the_same(result, returned, matching);
        if (same_results) {
          slot.recordings = 1;
          slot.program->take_over(std::move(result), matching);
          returned.clear();
          slot.program->replay(arguments);
          recorder.commit();
          slot.is_stable = true;
          return slot.program->results();
        }
        if (++slot.recordings >= kMostRecordings) slot.program = nullptr;
        require<GraphError>(slot.program != nullptr,
                            "compile: the function is another one at every call, ",
                            changed.empty() ? "it returns or keeps something else" : changed,
                            "; what changes from call to call must be an argument, or values of a "
                            "tensor");
      } else {
        slot.recordings = 1;
      }
      const auto program =
          std::make_shared<Program>(std::move(result), returned, slot.inputs, impl_->options);
      returned.clear();
      program->take_arguments(arguments);
      program->run();
      recorder.commit();
      slot.program = program;
    }
  } catch (...) {
    slot.is_stable = false;
    forget();
    throw;
  }
  return slot.program->results();
}

ProgramStats CompiledFunction::stats() const {
  ProgramStats stats;
  stats.recordings = impl_->recordings;
  stats.programs = static_cast<int64_t>(impl_->slots.size());
  if (const Program* const last = impl_->last()) {
    stats.operators = last->operators();
    stats.memory_bytes = last->memory_bytes();
    stats.lanes = last->lanes();
  }
  return stats;
}

ProgramProfile CompiledFunction::profile() const {
  const Program* const last = impl_->last();
  return last == nullptr ? ProgramProfile() : last->profile();
}

void CompiledFunction::print(std::ostream& out) const {
  if (const Program* const last = impl_->last())
    last->print(out);
  else
    out << "no program yet\n";
}

}  // namespace sinter
