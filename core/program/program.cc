#include "core/program/program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <ostream>
#include <set>

#include "core/backend/cuda_graph.h"
#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "core/tensor/tensor_impl.h"
#include "sinter/profile.h"

namespace sinter {

namespace {

constexpr int64_t kMostTimes = 100;  // of an operator that are kept
constexpr int kMostLanes = 5;        // on a GPU: the main one, and as many as a small step fills

// Programs of a thread run one after another, so that they may share the memory of what they
// compute in between. One that needs more begins a new one.
std::shared_ptr<Storage> shared_memory(Device device, int64_t bytes) {
  thread_local std::vector<std::weak_ptr<Storage>> blocks;
  for (const std::weak_ptr<Storage>& weak : blocks) {
    const std::shared_ptr<Storage> block = weak.lock();
    if (block != nullptr && block->device == device && static_cast<int64_t>(block->bytes) >= bytes)
      return block;
  }
  auto block = std::make_shared<Storage>(device, static_cast<size_t>(bytes));
  std::erase_if(blocks, [](const auto& weak) { return weak.expired(); });
  blocks.push_back(block);
  return block;
}

// The time of work on a context, as GpuTimer gives it.
class CpuTimer {
 public:
  explicit CpuTimer(const Cpu&) {}
  void start() { start_ = std::chrono::steady_clock::now(); }
  double stop() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point start_;
};
template <class Ctx> struct TimerOf { using Type = GpuTimer; };
template <> struct TimerOf<Cpu> { using Type = CpuTimer; };

// The most operators of which each depends on the one before it.
int64_t longest_chain(const List& list) {
  const std::vector<std::vector<int>> before = dependencies(list);
  std::vector<int64_t> depth(before.size(), 1);
  int64_t longest = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    for (const int p : before[i]) depth[i] = std::max(depth[i], depth[static_cast<size_t>(p)] + 1);
    longest = std::max(longest, depth[i]);
  }
  return longest;
}

}  // namespace

Program::Program(Recorder::Result recorded, const std::vector<Tensor>& returned,
                 const std::vector<std::shared_ptr<Storage>>& inputs, const CompileOptions& options)
    : options_(options),
      recorded_(std::move(recorded.list)),
      guards_(std::move(recorded.guards)),
      untouched_(std::move(recorded.untouched)),
      gradients_(std::move(recorded.gradients)),
      inputs_(inputs) {
  for (const Tensor& tensor : returned) {
    Returned r = described(tensor, recorded_);
    if (r.buffer != 0) {
      std::shared_ptr<Storage>& storage = recorded_.buffers[r.buffer].storage;
      // Not the returned tensors' own, which are copies. Several may be views of one.
      if (!is_returned(storage))
        storage = std::make_shared<Storage>(storage->device, storage->bytes);
      r.memory = storage;
    }
    returned_.push_back(std::move(r));
  }
  for (const Buffer& buffer : recorded_.buffers) {
    if (buffer.kind == Buffer::Kind::kOutside) ++buffer.storage->programs;
  }
  const Passes passes = Passes::from_environment();
  list_ = recorded_.copy();
  rewrite(list_, passes, [](const char*) {});
  schedule_ = schedule(list_, list_.device.is_cuda() && passes.schedule ? kMostLanes : 1);
  memory_bytes_ = passes.memory ? memory(list_, schedule_) : memory_without_sharing(list_);
  memory_ = shared_memory(list_.device, memory_bytes_);
  bind();
}

void Program::take_over(Recorder::Result newer, const Matching& matching) {
  for (List* list : {&recorded_, &list_}) {
    for (uint64_t b = 1; b < list->buffers.size(); ++b) {
      Buffer& buffer = list->buffers[b];
      if (buffer.kind != Buffer::Kind::kResult || is_returned(buffer.storage)) continue;
      const Buffer& partner = newer.list.buffers[matching.partner(b)];
      buffer.storage = partner.storage;
      buffer.storage_number = partner.storage_number;
    }
  }
  guards_ = std::move(newer.guards);
  untouched_.merge(newer.untouched);
  gradients_ = std::move(newer.gradients);
  bind();
  launch_ = nullptr;  // it knows the addresses from before
}

bool Program::is_returned(const std::shared_ptr<Storage>& storage) const {
  return std::any_of(returned_.begin(), returned_.end(),
                     [&](const Returned& r) { return r.memory == storage; });
}

Program::~Program() {
  for (const Buffer& buffer : recorded_.buffers) {
    if (buffer.kind == Buffer::Kind::kOutside) --buffer.storage->programs;
  }
}

bool Program::lost_an_array() const {
  return std::any_of(recorded_.buffers.begin(), recorded_.buffers.end(), [&](const Buffer& buffer) {
    // A program holds it twice, in the list as recorded and in the other.
    if (buffer.kind == Buffer::Kind::kOutside)
      return buffer.storage.use_count() <= 2 * buffer.storage->programs.load();
    // A member that is another tensor now, of another program perhaps.
    return buffer.kind == Buffer::Kind::kResult && !is_returned(buffer.storage) &&
           buffer.storage.use_count() <= 2;
  });
}

void Program::bind() {
  std::unordered_map<const Storage*, size_t> argument;
  for (size_t i = 0; i < inputs_.size(); ++i) argument.emplace(inputs_[i].get(), i);
  reads_input_.assign(inputs_.size(), {});
  std::set<Storage*> written;
  for (Entry& entry : list_.entries) {
    for (const OperandRef& ref : entry.operands) {
      Operand& x = *ref.operand;
      const Buffer& buffer = list_.buffer(x);
      const auto input = argument.find(buffer.storage.get());
      if (buffer.is_virtual()) {
        x.address = static_cast<std::byte*>(memory_->data) + buffer.offset + x.offset;
      } else if (input != argument.end()) {
        reads_input_[input->second].push_back(&x);  // its address comes with the argument
      } else {
        x.address = static_cast<std::byte*>(buffer.storage->data) + x.offset;
        if (ref.writes()) written.insert(buffer.storage.get());
      }
    }
  }
  written_.assign(written.begin(), written.end());
}

void Program::run(bool is_timed) {
  with_context(list_.device, [&]<class Ctx>(const Ctx& ctx) {
    std::optional<typename TimerOf<Ctx>::Type> timer;
    if (is_timed) timer.emplace(ctx);
    for (size_t i = 0; i < list_.entries.size(); ++i) {
      if (timer) timer->start();
      list_.entries[i].op->run(ctx);
      if (timer) add_time(i, timer->stop());
      if (options_.check_finite) check_finite(i);
    }
  });
  timed_calls_ += is_timed;
}

void Program::add_time(size_t i, double us) {
  times_.resize(list_.entries.size());
  std::vector<double>& times = times_[i];
  const auto at = static_cast<size_t>(timed_calls_ % kMostTimes);
  if (at < times.size())
    times[at] = us;
  else
    times.push_back(us);
}

void Program::check_finite(size_t i) const {
  const Entry& entry = list_.entries[i];
  for (const OperandRef& ref : entry.operands) {
    const Operand& x = *ref.operand;
    if (!ref.writes() || !is_floating(x.dtype)) continue;
    std::vector<std::byte> bytes(static_cast<size_t>(x.bytes()));
    with_context(list_.device, [&](const auto& ctx) {
      detail::copy_to_host(ctx, bytes.data(), x.address, bytes.size());
    });
    with_floating(x, [&]<class T>() {
      for (int64_t k = 0; k < x.numel(); ++k) {
        T value;
        std::memcpy(&value, bytes.data() + static_cast<size_t>(k) * sizeof(T), sizeof(T));
        if (std::isfinite(value)) continue;
        throw AnomalyError(
            str("compile: operator ", i, ", ", entry.op->name(),
                entry.module != nullptr && !entry.module->empty() ? " of " + *entry.module : "",
                entry.forward != nullptr ? str(" (backward of ", entry.forward, ")") : "", ": ",
                ref.name, " of shape ", x.shape, " has ", value, " at element ", k));
      }
    });
  }
}

Program::Returned Program::described(const Tensor& tensor, const List& list) {
  Returned r;
  r.tensor = tensor;
  if (!tensor.defined()) return r;
  const auto [number, start] = tensor.place();
  r.start = start;
  r.shape = tensor.shape();
  r.dtype = tensor.dtype();
  for (uint64_t b = 1; b < list.buffers.size(); ++b) {
    const Buffer& buffer = list.buffers[b];
    if (buffer.kind != Buffer::Kind::kResult || buffer.storage_number != number) continue;
    r.buffer = b;
    r.tensor = Tensor();
  }
  return r;
}

// Whether a tensor that is none of the list's is that of a newer recording: the same, or both made
// there without values.
bool Program::is_same(const Tensor& a, const Tensor& b, const Recorder::Result& newer) const {
  if (a.defined() != b.defined()) return false;
  if (!a.defined() || a.place() == b.place()) return true;
  return untouched_.contains(a.place().first) && newer.untouched.contains(b.place().first) &&
         a.shape() == b.shape();
}

bool Program::gives_the_same(const Recorder::Result& newer, const std::vector<Tensor>& returned,
                             const Matching& matching) const {
  if (returned.size() != returned_.size()) return false;
  for (size_t i = 0; i < returned.size(); ++i) {
    const Returned &a = returned_[i], b = described(returned[i], newer.list);
    const uint64_t partner = a.buffer != 0 ? matching.partner(a.buffer) : 0;
    if (partner != b.buffer || a.start != b.start || !(a.shape == b.shape) || a.dtype != b.dtype ||
        !is_same(a.tensor, b.tensor, newer))
      return false;
  }
  // Leaves with the gradients that the same operators made.
  if (newer.gradients.size() != gradients_.size()) return false;
  for (const auto& [leaf, gradient] : gradients_) {
    const auto same =
        std::find_if(newer.gradients.begin(), newer.gradients.end(),
                     [&, &leaf = leaf](const auto& pair) { return pair.first == leaf; });
    if (same == newer.gradients.end()) return false;
    const Returned a = described(gradient, recorded_), b = described(same->second, newer.list);
    const uint64_t partner = a.buffer != 0 ? matching.partner(a.buffer) : 0;
    if (partner != b.buffer || a.start != b.start || !is_same(a.tensor, b.tensor, newer))
      return false;
  }
  return true;
}

void Program::take_arguments(const std::vector<Tensor>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Tensor::Impl& impl = Recorder::impl_of(arguments[i]);
    Storage& input = *inputs_[i];
    std::byte* const address = impl.storage->use() + impl.start;
    // What the program itself reads or writes is an argument as it is now: a copy.
    const bool is_known =
        std::any_of(recorded_.buffers.begin(), recorded_.buffers.end(),
                    [&](const Buffer& buffer) { return buffer.storage == impl.storage; });
    if (list_.device.is_cuda() || is_known) {
      if (input.data == nullptr || input.owner != nullptr) input.allocate_own();
      with_context(list_.device, [&](const auto& ctx) {
        detail::copy_on_device(ctx, input.data, address, input.bytes);
      });
    } else {
      input.point_to(address, impl.storage);
    }
    for (Operand* x : reads_input_[i]) x->address = static_cast<std::byte*>(input.data) + x->offset;
  }
}

void Program::replay(const std::vector<Tensor>& arguments) {
  const bool on_gpu = list_.device.is_cuda();
  for (const Buffer& buffer : recorded_.buffers)
    if (buffer.kind == Buffer::Kind::kOutside && on_gpu) buffer.storage->use();
  // First, since a call that throws has changed some.
  for (Storage* storage : written_) storage->version.fetch_add(1, std::memory_order_relaxed);
  take_arguments(arguments);
  if (on_gpu && !options_.check_finite && !options_.profile) {
    if (!launch_) capture();
    launch_();
  } else {
    run(options_.profile);
  }
  for (const auto& [leaf, gradient] : gradients_) set_gradient_of(*leaf, gradient);
}

void Program::capture() {
  if constexpr (cuda_built()) {
    std::vector<detail::GraphTask> tasks(list_.entries.size());
    for (size_t i = 0; i < tasks.size(); ++i) {
      const Schedule::Place& place = schedule_.places[i];
      const Entry& entry = list_.entries[i];
      detail::GraphTask& task = tasks[i];
      task.lane = place.lane;
      task.after = place.after;
      task.work = [op = entry.op.get()](const Cuda& ctx) { op->run(ctx); };
      for (const OperandRef& ref : entry.operands) {
        if (!ref.writes()) continue;
        // All of the buffer: who reads it asks by its first element.
        const auto* address = static_cast<const std::byte*>(ref.operand->address);
        task.writes.emplace_back(address - ref.operand->offset, list_.buffer(*ref.operand).bytes);
      }
    }
    const auto graph =
        std::make_shared<detail::CudaGraph>(detail::CudaGraph::capture(list_.device.index, tasks));
    launch_ = [graph] { graph->replay(); };
  }
}

std::vector<Tensor> Program::results() const {
  std::vector<Tensor> results;
  std::vector<std::pair<const Storage*, std::shared_ptr<Storage>>> copies;
  for (const Returned& r : returned_) {
    if (r.memory == nullptr) {
      results.push_back(r.tensor.detach());
      continue;
    }
    auto copy = std::find_if(copies.begin(), copies.end(),
                             [&](const auto& pair) { return pair.first == r.memory.get(); });
    if (copy == copies.end()) {
      auto fresh = std::make_shared<Storage>(r.memory->device, r.memory->bytes);
      with_context(fresh->device, [&](const auto& ctx) {
        detail::copy_on_device(ctx, fresh->data, r.memory->data, fresh->bytes);
      });
      copy = copies.insert(copies.end(), {r.memory.get(), std::move(fresh)});
    }
    results.push_back(Recorder::tensor_of(
        std::make_shared<Tensor::Impl>(copy->second, r.start, r.shape, r.dtype)));
  }
  return results;
}

ProgramProfile Program::profile() const {
  ProgramProfile profile;
  profile.device = list_.device;
  profile.calls = timed_calls_;
  profile.chain = longest_chain(list_);
  for (size_t i = 0; i < list_.entries.size(); ++i) {
    const Entry& entry = list_.entries[i];
    OperatorProfile row;
    row.name = entry.op->name();
    if (entry.module != nullptr) row.module = *entry.module;
    if (entry.forward != nullptr) row.backward_of = entry.forward;
    row.lane = schedule_.places[i].lane;
    row.work = entry.op->work();
    if (timed_calls_ > 0) {
      std::vector<double> times = times_[i];
      const auto middle = times.begin() + static_cast<ptrdiff_t>(times.size() / 2);
      std::nth_element(times.begin(), middle, times.end());
      row.us = *middle;
    }
    profile.operators.push_back(std::move(row));
  }
  return profile;
}

// ---- printing -----------------------------------------------------------------------------------

namespace {

void print_list(std::ostream& out, const List& list, const Schedule* schedule) {
  for (size_t i = 0; i < list.entries.size(); ++i) {
    const Entry& entry = list.entries[i];
    out << "  " << i;
    if (schedule != nullptr) {
      const Schedule::Place& place = schedule->places[i];
      out << " lane " << place.lane;
      for (size_t k = 0; k < place.after.size(); ++k)
        out << (k == 0 ? " after " : " ") << place.after[k];
    }
    out << "  " << entry.op->name() << '(';
    entry.op->print_attributes(out);
    out << ')';
    for (const OperandRef& ref : entry.operands) {
      const Operand& x = *ref.operand;
      const Buffer& buffer = list.buffer(x);
      out << "  "
          << (ref.access == Access::kInOut ? "in-out "
              : ref.writes()               ? "out "
                                           : "")
          << ref.name;
      if (ref.index >= 0) out << '[' << ref.index << ']';
      out << "=" << (buffer.is_virtual() ? "%" : "@") << x.buffer << ' ' << x.dtype << x.shape;
    }
    int64_t bytes = 0;
    for (const OperandRef& ref : entry.operands) bytes += ref.operand->bytes();
    out << "  " << bytes << " bytes";
    if (entry.module != nullptr && !entry.module->empty()) out << "  module " << *entry.module;
    if (entry.forward != nullptr) out << "  backward of " << entry.forward;
    out << '\n';
  }
}

}  // namespace

void Program::print(std::ostream& out) const {
  const Passes passes = Passes::from_environment();
  List list = recorded_.copy();
  const auto show = [&](const char* title, const Schedule* schedule) {
    out << title << ": " << list.entries.size() << " operators\n";
    print_list(out, list, schedule);
  };
  out << "program on " << list.device << ", " << memory_bytes_ << " bytes in between\n";
  show("recorded", nullptr);
  rewrite(list, passes, [&](const char* title) { show(title, nullptr); });
  if (schedule_.lanes > 1) {
    const Schedule schedule = sinter::schedule(list, kMostLanes);
    show("after schedule", &schedule);
  }
}

}  // namespace sinter
