#include "core/program/recorder.h"

#include <utility>

#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "core/tensor/tensor_impl.h"
#include "sinter/check.h"
#include "sinter/operators/elementwise.h"

namespace sinter {

namespace {
thread_local Recorder* recorder = nullptr;
}  // namespace

Recorder* Recorder::of_this_thread() { return recorder; }
bool detail::recording_program() { return recorder != nullptr; }

Recorder::Recorder() : outer_(std::exchange(recorder, this)) {}

void Recorder::stop() { recorder = outer_; }

Recorder::~Recorder() {
  stop();
  if (is_committed_) return;
  // As if nothing had happened: leaves have the gradients from before.
  for (auto& [node, gradient] : set_) set_gradient_of(*gradient.leaf, gradient.before);
  // What was made has no values.
  for (auto& [number, weak] : made_)
    if (const std::shared_ptr<Storage> storage = weak.lock()) storage->point_to(nullptr, nullptr);
}

void Recorder::refuse(const char* what) {
  throw GraphError(
      str(what,
          " while a program is recorded: there are no values yet, and the program would "
          "not do it again; move it out of the compiled function, or return what is to "
          "be read"));
}

std::shared_ptr<Storage> Recorder::make_virtual(Device device, size_t bytes) {
  if (!has_device_) require_usable(device);
  if (!std::exchange(has_device_, true)) list_.device = device;
  require<GraphError>(device == list_.device, "a compiled function works on one device: on ",
                      list_.device, " so far, and now on ", device,
                      "; move this out of it, or make what it needs there before");
  auto storage = std::make_shared<Storage>(device, bytes, Storage::Virtual());
  made_.emplace(storage->number, storage);
  return storage;
}

Tensor Recorder::constant(const void* values, const Shape& shape, TensorOptions options) {
  const Tensor y = empty(shape, options);
  const auto bytes = static_cast<size_t>(y.numel()) * size_of(options.dtype);
  if (bytes == 0) return y;
  auto storage = std::make_shared<Storage>(options.device, bytes);
  with_context(options.device, [&](const auto& ctx) {
    detail::copy_from_host(ctx, storage->use(), values, bytes);
  });
  const Tensor source(std::make_shared<Tensor::Impl>(storage, 0, shape, options.dtype));
  note(std::make_unique<OperatorOf<op::Copy>>(op::Copy{in(source), out(y)}));
  const auto* first = static_cast<const std::byte*>(values);
  list_.entries.back().values.assign(first, first + bytes);
  list_.buffers[numbers_.at(storage->number)].kind = Buffer::Kind::kConstant;
  return y;
}

uint64_t Recorder::buffer_of(Storage& storage, Buffer::Kind kind) {
  const auto [found, is_new] = numbers_.emplace(storage.number, list_.buffers.size());
  if (!is_new) return found->second;
  Buffer buffer;
  buffer.bytes = storage.bytes;
  buffer.storage_number = storage.number;
  if (!made_.contains(storage.number)) {
    // Throws if it is left from a recording that failed.
    if (kind == Buffer::Kind::kOutside) storage.use();
    buffer.kind = kind;
    buffer.storage = storage.shared_from_this();
  }
  list_.buffers.push_back(std::move(buffer));
  return found->second;
}

void Recorder::note(std::unique_ptr<Operator> op) {
  Entry entry(std::move(op));
  entry.module = origin.module;
  entry.forward = origin.forward;
  for (const OperandRef& ref : entry.operands) {
    Storage& storage = *ref.operand->storage;
    if (!std::exchange(has_device_, true)) list_.device = storage.device;
    require<GraphError>(storage.device == list_.device, entry.op->name(),
                        ": a compiled function works on one device: on ", list_.device,
                        " so far, and now on ", storage.device);
    ref.operand->buffer = buffer_of(storage, Buffer::Kind::kOutside);
    if (ref.writes()) storage.version.fetch_add(1, std::memory_order_relaxed);
    ref.operand->storage = nullptr;
  }
  list_.entries.push_back(std::move(entry));
}

void detail::note_operator(std::unique_ptr<Operator> op) { recorder->note(std::move(op)); }

void Recorder::add_input(const std::shared_ptr<Storage>& storage) {
  buffer_of(*storage, Buffer::Kind::kInput);
}

// ---- questions ----------------------------------------------------------------------------------

void Recorder::asked(const Tensor& tensor) {
  const std::shared_ptr<Tensor::Impl>& impl = tensor.impl_;
  if (made_.contains(impl->storage->number) || !asked_.insert(impl.get()).second) return;
  guards_.leaves.push_back({impl, tensor.place(), collects_gradient(tensor),
                            impl->node ? hooks_version(*impl->node) : 0});
}

void Recorder::asked_gradient(const std::shared_ptr<Node>& leaf, const Tensor& gradient) {
  if (set_.contains(leaf.get()) || !asked_.insert(leaf.get()).second) return;
  guards_.gradients.push_back({leaf, gradient.place()});
}

void Recorder::asked_mode(const std::shared_ptr<const bool>& mode) {
  if (asked_.insert(mode.get()).second) guards_.modes.push_back({mode, *mode});
}

void Recorder::sets_mode(const std::shared_ptr<const bool>& mode) { asked_.insert(mode.get()); }

void Recorder::asked_version(const std::shared_ptr<const uint64_t>& version) {
  if (asked_.insert(version.get()).second) guards_.versions.push_back({version, *version});
}

void Recorder::sets_gradient(const std::shared_ptr<Node>& leaf, const Tensor& before) {
  set_.try_emplace(leaf.get(), Gradient{leaf, before});
}

void Recorder::made_node(const std::shared_ptr<Node>& node) { nodes_.emplace(node.get(), node); }

bool Guards::hold() const {
  for (const Leaf& leaf : leaves) {
    const auto impl = std::static_pointer_cast<Tensor::Impl>(leaf.impl.lock());
    if (impl == nullptr) continue;  // nobody can change it
    const Tensor tensor = Recorder::tensor_of(impl);
    if (tensor.place() != leaf.place || collects_gradient(tensor) != leaf.requires_grad ||
        (impl->node ? hooks_version(*impl->node) : 0) != leaf.hooks)
      return false;
  }
  for (const Gradient& gradient : gradients) {
    const std::shared_ptr<Node> leaf = gradient.leaf.lock();
    if (leaf != nullptr && gradient_of(*leaf).place() != gradient.place) return false;
  }
  for (const Mode& mode : modes)
    if (*mode.mode != mode.answer) return false;
  for (const Version& version : versions)
    if (*version.version != version.answer) return false;
  return true;
}

const Tensor::Impl& Recorder::impl_of(const Tensor& tensor) { return *tensor.impl_; }

Tensor Recorder::tensor_of(std::shared_ptr<Tensor::Impl> impl) { return Tensor(std::move(impl)); }

// ---- the end ------------------------------------------------------------------------------------

void Recorder::release_nodes() {
  for (auto& [key, weak] : nodes_)
    if (const std::shared_ptr<Node> node = weak.lock()) release_node(*node);
}

Recorder::Result Recorder::finish() {
  std::unordered_set<uint64_t> untouched;
  for (auto& [number, weak] : made_) {
    const std::shared_ptr<Storage> storage = weak.lock();
    if (storage == nullptr) continue;
    if (const auto found = numbers_.find(number); found != numbers_.end()) {
      Buffer& buffer = list_.buffers[found->second];
      buffer.kind = Buffer::Kind::kResult;
      buffer.storage = storage;
    } else {
      untouched.insert(number);
    }
    storage->allocate_own();
  }
  Result result{std::move(list_), std::move(guards_), std::move(untouched), {}};
  for (auto& [key, gradient] : set_)
    result.gradients.emplace_back(gradient.leaf, gradient_of(*gradient.leaf));
  return result;
}

}  // namespace sinter
