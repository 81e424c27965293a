#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <ostream>
#include <set>

#include "../tensor_impl.h"
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
      gradients_(std::move(recorded.gradients)),
      inputs_(inputs) {
  for (const Tensor& tensor : returned) {
    Returned kept{tensor, nullptr, nullptr, 0, {}, kFloat32};
    const uint64_t number = tensor.place().first;
    const auto found =
        std::find_if(recorded_.buffers.begin(), recorded_.buffers.end(), [&](const Buffer& buffer) {
          return buffer.kind == Buffer::Kind::kResult && buffer.storage_number == number;
        });
    // Several may be views of one.
    const auto same = std::find_if(returned_.begin(), returned_.end(), [&](const Returned& r) {
      return r.storage != nullptr && r.storage->number == number;
    });
    const bool is_first = same == returned_.end() && found != recorded_.buffers.end();
    if (is_first || same != returned_.end()) {
      if (is_first) {
        // From now on the program writes to memory behind what is returned.
        std::shared_ptr<Storage>& storage = found->storage;
        kept.storage = storage;
        kept.memory = std::make_shared<Storage>(storage->device, storage->bytes);
        storage->adopt(kept.memory);
        storage = kept.memory;
      } else {
        kept.storage = same->storage;
        kept.memory = same->memory;
      }
      kept.start = tensor.place().second;
      kept.shape = tensor.shape();
      kept.dtype = tensor.dtype();
      kept.tensor = Tensor();
    }
    returned_.push_back(std::move(kept));
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
      buffer.storage = newer.list.buffers[matching.partner(b)].storage;
    }
  }
  guards_ = std::move(newer.guards);
  gradients_ = std::move(newer.gradients);
  bind();
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
  return std::any_of(recorded_.buffers.begin(), recorded_.buffers.end(), [](const Buffer& buffer) {
    // A program holds it twice, in the list as recorded and in the other.
    return buffer.kind == Buffer::Kind::kOutside &&
           buffer.storage.use_count() <= 2 * buffer.storage->programs.load();
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
      } else {
        x.address = static_cast<std::byte*>(buffer.storage->data) + x.offset;
        if (input != argument.end()) reads_input_[input->second].push_back(&x);
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
      copy_to_host(ctx, bytes.data(), x.address, bytes.size());
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

// Values that the last call returned, and that somebody still holds, move out of the way.
void Program::keep_returned() {
  for (size_t i = 0; i < returned_.size(); ++i) {
    Returned& r = returned_[i];
    if (r.memory == nullptr) continue;
    const auto mine = std::count_if(returned_.begin(), returned_.end(), [&](const Returned& other) {
      return other.storage == r.storage;
    });
    if (r.storage.use_count() <= mine) continue;
    const std::shared_ptr<Storage> theirs = r.storage;
    theirs->allocate_own();
    with_context(theirs->device, [&](const auto& ctx) {
      copy_on_device(ctx, theirs->data, r.memory->data, theirs->bytes);
    });
    auto fresh = std::make_shared<Storage>(theirs->device, theirs->bytes, Storage::Virtual());
    fresh->adopt(r.memory);
    for (Returned& other : returned_)
      if (other.storage == theirs) other.storage = fresh;
  }
}

void Program::replay(const std::vector<Tensor>& arguments) {
  keep_returned();
  const bool on_gpu = list_.device.is_cuda();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& impl = Recorder::impl_of(arguments[i]);
    std::byte* const address = impl.storage->use() + impl.start;
    if (on_gpu) {
      with_context(list_.device, [&](const auto& ctx) {
        copy_on_device(ctx, inputs_[i]->data, address, inputs_[i]->bytes);
      });
    } else {
      const auto* before = static_cast<std::byte*>(inputs_[i]->data);
      for (Operand* x : reads_input_[i])
        x->address = address + (static_cast<std::byte*>(x->address) - before);
      inputs_[i]->point_to(address, impl.storage);
    }
  }
  for (const Buffer& buffer : recorded_.buffers)
    if (buffer.kind == Buffer::Kind::kOutside && on_gpu) buffer.storage->use();
  if (on_gpu && !options_.check_finite && !options_.profile) {
    if (!launch_) capture();
    launch_();
  } else {
    run(options_.profile);
  }
  after_call();
}

void Program::capture() {
  if constexpr (cuda_built()) {
    std::vector<GraphTask> tasks(list_.entries.size());
    for (size_t i = 0; i < tasks.size(); ++i) {
      const Schedule::Place& place = schedule_.places[i];
      const Entry& entry = list_.entries[i];
      GraphTask& task = tasks[i];
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
    const auto graph = std::make_shared<CudaGraph>(CudaGraph::capture(list_.device.index, tasks));
    launch_ = [graph] { graph->replay(); };
  }
}

void Program::after_call() {
  for (Storage* storage : written_) storage->version.fetch_add(1, std::memory_order_relaxed);
  for (const auto& [leaf, gradient] : gradients_) set_gradient_of(*leaf, gradient);
}

std::vector<Tensor> Program::results() const {
  std::vector<Tensor> results;
  for (const Returned& r : returned_) {
    results.push_back(r.memory == nullptr ? r.tensor
                                          : Recorder::tensor_of(std::make_shared<Tensor::Impl>(
                                                r.storage, r.start, r.shape, r.dtype)));
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
