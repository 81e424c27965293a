#include "sinter/tensor.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <memory>
#include <mutex>
#include <ostream>
#include <thread>
#include <utility>

#include "arguments.h"
#include "sinter/dispatch.h"
#include "sinter/ops.h"
#include "tensor_impl.h"

namespace sinter {

// ---- shape, dtype, device -----------------------------------------------------------------------

Shape::Shape(std::initializer_list<int64_t> sizes) {
  for (int64_t size : sizes) append(size);
}

Shape::Shape(const std::vector<int64_t>& sizes) {
  for (int64_t size : sizes) append(size);
}

void Shape::append(int64_t size) {
  require<ShapeError>(rank_ < kMaxRank, "shape: expected at most ", kMaxRank, " dimensions");
  sizes_[rank_++] = size;
}

int Shape::index(int d, const char* op) const {
  const int i = d < 0 ? d + rank_ : d;
  if (i < 0 || i >= rank_) {
    throw ShapeError(sinter::str(op, ": no dimension ", d, " in ", *this));
  }
  return i;
}

namespace {

// How many units of `unit` a shape's extents other than 0 make.
int64_t units(const char* op, const Shape& shape, int64_t unit) {
  for (int64_t size : shape) {
    require<ShapeError>(size >= 0, op, ": expected extents of at least 0, got ", shape);
    require<ShapeError>(size == 0 || !__builtin_mul_overflow(unit, size, &unit), op, ": ", shape,
                        " has more elements than memory can hold");
  }
  return unit;
}

bool is_empty(const Shape& shape) { return std::count(shape.begin(), shape.end(), 0) > 0; }

}  // namespace

int64_t Shape::numel(const char* op) const {
  const int64_t n = units(op, *this, 1);
  return is_empty(*this) ? 0 : n;
}

bool Shape::operator==(const Shape& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::string Shape::str() const {
  std::string text = "(";
  for (int d = 0; d < rank_; ++d) text += (d ? ", " : "") + std::to_string(sizes_[d]);
  return text + (rank_ == 1 ? ",)" : ")");
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.str(); }

const char* name(DType dtype) {
  switch (dtype) {
    case kFloat32:
      return "float32";
    case kFloat64:
      return "float64";
    case kInt32:
      return "int32";
    case kInt64:
      return "int64";
    case kUInt8:
      return "uint8";
  }
  return "unknown";
}

size_t size_of(DType dtype) {
  switch (dtype) {
    case kFloat32:
    case kInt32:
      return 4;
    case kFloat64:
    case kInt64:
      return 8;
    case kUInt8:
      return 1;
  }
  return 0;
}

std::ostream& operator<<(std::ostream& out, DType dtype) { return out << name(dtype); }

Device Device::parse(const std::string& text) {
  if (text == "cpu") return kCpu;
  if (text == "cuda") return cuda(0);
  if (text.starts_with("cuda:")) {
    int index = -1;
    const char* end = text.data() + text.size();
    const auto [last, error] = std::from_chars(text.data() + 5, end, index);
    if (error == std::errc() && last == end && index >= 0) return cuda(index);
  }
  throw ValueError(sinter::str("device: expected cpu, cuda or cuda:N, got '", text, "'"));
}

std::string Device::str() const {
  return is_cuda() ? sinter::str("cuda:", index) : std::string("cpu");
}

std::ostream& operator<<(std::ostream& out, Device device) { return out << device.str(); }

void require_usable(Device device) {
  if (!device.is_cuda()) return;
#ifdef SINTER_WITH_CUDA
  if (cuda_device_count() == 0) {
    throw DeviceError(str(device, " requested, but ", cuda_unavailable()));
  }
  const CudaDeviceInfo info = cuda_device_info(device.index);  // throws if there is no such index
  require<DeviceError>(info.usable.empty(), device, " requested, but ", info.usable);
#else
  throw DeviceError(str(device,
                        " requested, but this build has no CUDA backend; reconfigure with "
                        "-DSINTER_CUDA=ON, or use cpu"));
#endif
}

void synchronize([[maybe_unused]] Device device) {
#ifdef SINTER_WITH_CUDA
  if (device.is_cuda()) synchronize(cuda_context(device.index));
#else
  require_usable(device);
#endif
}

// ---- storage ------------------------------------------------------------------------------------

namespace {
std::atomic<int64_t> live_storage_count{0};
}

struct Storage {
  Storage(Device where, size_t size) : bytes(size), device(where) {
    dispatch_device(device, [&](const auto& ctx) {
#ifdef SINTER_WITH_CUDA
      if constexpr (std::is_same_v<std::decay_t<decltype(ctx)>, Cuda>) {
        cuda_ctx = ctx;
        owner = cuda_stream(device.index);
        branch = current_branch();
      }
#endif
      data = allocate(ctx, bytes);
    });
    live_storage_count.fetch_add(1, std::memory_order_relaxed);
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage() {
#ifdef SINTER_WITH_CUDA
    if (device.is_cuda()) deallocate(cuda_ctx, data, bytes, users);
#endif
    if (!device.is_cuda()) deallocate(Cpu{}, data, bytes);
    live_storage_count.fetch_sub(1, std::memory_order_relaxed);
  }

  void* data = nullptr;
  size_t bytes;
  Device device;
  Cuda cuda_ctx;        // where it was allocated: a block goes back to the stream that may reuse it
  uint64_t branch = 0;  // and on which branch of a graph under capture
#ifdef SINTER_WITH_CUDA
  CUstream_st* owner = nullptr;  // the stream of the thread that allocated it
  // Those of the other threads that were given the address: their work may go on when the last
  // tensor is gone.
  std::vector<CUstream_st*> users;
  std::atomic<CUstream_st*> last_user{nullptr};

  void note_user() {
    CUstream_st* const stream = cuda_stream(device.index);
    if (stream == owner || stream == last_user.load(std::memory_order_relaxed)) return;
    const std::lock_guard lock(mutex);
    if (std::find(users.begin(), users.end(), stream) == users.end()) users.push_back(stream);
    last_user.store(stream, std::memory_order_relaxed);
  }
#endif
  std::atomic<uint64_t> version{0};
  std::any origin;
  Shape origin_shape;
  std::atomic<bool> has_origin{false};

  // Values put off, until somebody asks for them.
  std::atomic<bool> is_deferred{false};
  std::mutex mutex;
  std::function<void(void*)> compute;
  std::thread::id thread;

  void compute_now() {
    const std::lock_guard lock(mutex);
    if (!is_deferred.load(std::memory_order_relaxed)) return;
    compute(data);
    // The readers of other threads have other streams.
    if (thread != std::this_thread::get_id()) synchronize(device);
    compute = nullptr;
    is_deferred.store(false, std::memory_order_release);
  }
};

int64_t live_storages() { return live_storage_count.load(std::memory_order_relaxed); }

// ---- making tensors -----------------------------------------------------------------------------

Tensor empty(const Shape& shape, TensorOptions options) {
  const int64_t bytes = units("empty", shape, static_cast<int64_t>(size_of(options.dtype)));
  auto storage =
      std::make_shared<Storage>(options.device, static_cast<size_t>(is_empty(shape) ? 0 : bytes));
  auto* data = static_cast<std::byte*>(storage->data);
  return Tensor(std::make_shared<Tensor::Impl>(std::move(storage), data, shape, options.dtype));
}

Tensor full(const Shape& shape, double value, TensorOptions options) {
  Tensor t = empty(shape, options);
  t.fill_(value);
  return t;
}

template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device) {
  require<ShapeError>(static_cast<int64_t>(values.size()) == shape.numel(),
                      "from_vector: expected ", shape.numel(), " values for shape ", shape,
                      ", got ", values.size());
  Tensor t = empty(shape, {DTypeOf<T>::value, kCpu});
  if (!values.empty()) std::memcpy(t.raw(), values.data(), t.bytes());
  if (device == kCpu) return t;
  require_usable(device);
  Tensor there = empty(shape, {t.dtype(), device});
  there.copy_(t);
  return there;
}
template Tensor from_vector(const std::vector<float>&, const Shape&, Device);
template Tensor from_vector(const std::vector<double>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int32_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int64_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<uint8_t>&, const Shape&, Device);

// ---- tensor -------------------------------------------------------------------------------------

Tensor::Tensor(const Tensor&) = default;
Tensor::Tensor(Tensor&&) noexcept = default;
Tensor& Tensor::operator=(const Tensor&) = default;
Tensor& Tensor::operator=(Tensor&&) noexcept = default;
Tensor::~Tensor() = default;

const Shape& Tensor::shape() const {
  static const Shape none;  // trivially destroyed: there until the end
  return impl_ ? impl_->shape : none;
}

DType Tensor::dtype() const { return impl_ ? impl_->dtype : kFloat32; }

Device Tensor::device() const {
  require<ValueError>(defined(), "tensor: undefined, and so on no device");
  return impl_->storage->device;
}

void Tensor::wrong_dtype(DType wanted) const {
  throw DtypeError(str("tensor: expected ", wanted, ", got ",
                       defined() ? name(dtype()) : "an undefined tensor"));
}

uint64_t Tensor::version() const {
  return impl_ ? impl_->storage->version.load(std::memory_order_relaxed) : 0;
}

void Tensor::bump_version() const {
  if (impl_) impl_->storage->version.fetch_add(1, std::memory_order_relaxed);
}

bool Tensor::shares_storage() const {
  return impl_ && (impl_.use_count() > 1 || impl_->storage.use_count() > 1);
}

void Tensor::set_origin(std::any origin) const {
  Storage& storage = *impl_->storage;
  storage.origin = std::move(origin);
  storage.origin_shape = impl_->shape;
  storage.has_origin.store(true, std::memory_order_relaxed);
}

const std::any* Tensor::current_origin() const {
  if (!impl_) return nullptr;
  const Storage& storage = *impl_->storage;
  if (!storage.has_origin.load(std::memory_order_relaxed)) return nullptr;
  const bool same = impl_->data == storage.data && impl_->shape == storage.origin_shape;
  return same ? &storage.origin : nullptr;
}

namespace {

thread_local bool deferred_gone = false;  // destroyed, before other objects of the thread
struct Deferred {
  std::vector<std::weak_ptr<Storage>> storages;
  ~Deferred() { deferred_gone = true; }
};
thread_local Deferred all_deferred;

}  // namespace

void Tensor::defer(std::function<void(void*)> compute) const {
  if (deferred_gone) return compute(impl_->storage->data);
  auto& deferred = all_deferred.storages;
  constexpr size_t kMany = 64;
  if (deferred.size() >= kMany)
    std::erase_if(deferred, [](const auto& storage) { return storage.expired(); });
  const std::shared_ptr<Storage>& storage = impl_->storage;
  storage->compute = std::move(compute);
  storage->thread = std::this_thread::get_id();
  storage->is_deferred.store(true, std::memory_order_release);
  deferred.push_back(storage);
}

void compute_deferred() {
  if (deferred_gone) return;
  for (const auto& weak : std::exchange(all_deferred.storages, {})) {
    if (const std::shared_ptr<Storage> storage = weak.lock()) storage->compute_now();
  }
}

void* Tensor::raw() const {
  if (impl_ && impl_->storage->has_origin.load(std::memory_order_relaxed))
    impl_->storage->has_origin.store(false, std::memory_order_relaxed);
  return const_cast<void*>(read());
}

const void* Tensor::read() const {
  if (!impl_) return nullptr;
  Storage& storage = *impl_->storage;
  if (storage.is_deferred.load(std::memory_order_acquire)) storage.compute_now();
#ifdef SINTER_WITH_CUDA
  if (storage.device.is_cuda()) storage.note_user();
  if (storage.branch != 0 && capturing()) wait_for_branch(storage.branch);
#endif
  return impl_->data;
}

Tensor Tensor::detach() const {
  if (!impl_) return {};
  return Tensor(std::make_shared<Impl>(impl_->storage, impl_->data, impl_->shape, impl_->dtype));
}

Tensor Tensor::with_node(std::shared_ptr<Node> node) const {
  Tensor t = detach();
  t.impl_->node = std::move(node);
  return t;
}

bool Tensor::is_view() const { return impl_ && impl_->base; }

namespace {

// dst and src: same shape and dtype, any devices.
void copy_bytes(const Tensor& dst, const Tensor& src) {
  const size_t bytes = src.bytes();
  if (bytes == 0) return;
  const Device to = dst.device(), from = src.device();
#ifdef SINTER_WITH_CUDA
  // The context first: a tensor notes whose stream it is read on.
  if (from.is_cuda()) {
    const Cuda source = cuda_context(from.index);
    if (!to.is_cuda()) return copy_to_host(source, dst.raw(), src.read(), bytes);
    if (to == from) return copy_on_device(source, dst.raw(), src.read(), bytes);
    const Cuda target = cuda_context(to.index);
    return copy_across(target, dst.raw(), source, src.read(), bytes);
  }
  if (to.is_cuda()) {
    const Cuda target = cuda_context(to.index);
    return copy_from_host(target, dst.raw(), src.read(), bytes);
  }
#else
  (void)to, (void)from;  // both are the CPU
#endif
  std::memmove(dst.raw(), src.read(), bytes);
}

Tensor converted(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = empty(x.shape(), {dtype, x.device()});
  dispatch_any(x.dtype(), x.device(), [&]<class From>(const auto& ctx) {
    switch (dtype) {
      case kFloat32:
        return cast(ctx, x.numel(), x.data<const From>(), y.data<float>());
      case kFloat64:
        return cast(ctx, x.numel(), x.data<const From>(), y.data<double>());
      case kInt32:
        return cast(ctx, x.numel(), x.data<const From>(), y.data<int32_t>());
      case kInt64:
        return cast(ctx, x.numel(), x.data<const From>(), y.data<int64_t>());
      case kUInt8:
        return cast(ctx, x.numel(), x.data<const From>(), y.data<uint8_t>());
    }
  });
  return y;
}

}  // namespace

Tensor Tensor::to(Device target) const {
  require_defined("to", "x", *this);
  if (device() == target) return *this;
  require_usable(target);
  Tensor y = empty(shape(), {dtype(), target});
  copy_bytes(y, *this);
  return record("to", y, {*this},
                [from = device()](const Tensor& dy) { return Grads{dy.to(from)}; });
}

Tensor Tensor::to(DType target) const {
  require_defined("to", "x", *this);
  if (dtype() == target) return *this;
  const Tensor y = converted(detach(), target);
  if (!is_floating(target)) return y;
  return record("to", y, {*this},
                [from = dtype()](const Tensor& dy) { return Grads{dy.to(from)}; });
}

Tensor Tensor::clone() const {
  require_defined("clone", "x", *this);
  Tensor y = empty(shape(), options());
  copy_bytes(y, *this);
  return record("clone", y, {*this}, [](const Tensor& dy) { return Grads{dy}; });
}

void Tensor::copy_(const Tensor& source) const { overwrite("copy_", source); }

void Tensor::overwrite(const char* op, const Tensor& source) const {
  require<ValueError>(defined() && source.defined(), op,
                      ": expected two tensors, got an undefined ", defined() ? "source" : "target");
  require<ShapeError>(source.shape() == shape(), op, ": expected a source of shape ", shape(),
                      ", got ", source.shape());
  const bool recorded = records_in_place(op, source);
  // Converting where the source is keeps the bytes that travel at the smaller end's choice simple:
  // one cast, one copy.
  copy_bytes(*this, converted(source.detach(), dtype()));
  bump_version();
  if (recorded) record_in_place(op, source);
}

void Tensor::fill_(double value) const {
  require<ValueError>(defined(), "fill_: expected a tensor, got an undefined one");
  const bool recorded = records_in_place("fill_", {});
  if (is_floating(dtype())) {
    dispatch("fill_", *this, [&]<class T>(const auto& ctx) {
      fill(ctx, numel(), static_cast<T>(value), data<T>());
    });
  } else {
    // Integers are rare and small (labels, counters): one value, converted and repeated.
    const Tensor one = converted(full({1}, value, {kFloat64, device()}), dtype());
    Strided repeat{1, {numel()}, {0}};
    dispatch_any(dtype(), device(), [&]<class T>(const auto& ctx) {
      strided_copy(ctx, repeat, static_cast<const T*>(one.data<T>()), data<T>());
    });
  }
  bump_version();
  if (recorded) record_in_place("fill_", {});
}

template <class T> std::vector<T> Tensor::to_vector() const {
  require_defined("to_vector", "x", *this);
  Tensor host = converted(detach(), DTypeOf<T>::value);
  if (host.device().is_cuda()) {  // not by to(): reading is no operator that could be at fault
    const Tensor there = host;
    host = empty(shape(), {there.dtype(), kCpu});
    copy_bytes(host, there);
  }
  const T* first = host.data<const T>();
  return std::vector<T>(first, first + host.numel());
}

template <class T> T Tensor::item() const {
  require_defined("item", "x", *this);
  require<ShapeError>(numel() == 1, "item: expected one element, got shape ", shape());
  return to_vector<T>()[0];
}

#define SINTER_READ(T)                               \
  template std::vector<T> Tensor::to_vector() const; \
  template T Tensor::item() const
SINTER_READ(float);
SINTER_READ(double);
SINTER_READ(int32_t);
SINTER_READ(int64_t);
SINTER_READ(uint8_t);
#undef SINTER_READ

// Through float64, in which no element of another dtype becomes 0.
template <> std::vector<bool> Tensor::to_vector<bool>() const {
  const std::vector<double> values = to_vector<double>();
  std::vector<bool> result(values.size());
  for (size_t i = 0; i < values.size(); ++i) result[i] = values[i] != 0;
  return result;
}
template <> bool Tensor::item<bool>() const { return item<double>() != 0; }

// ---- views and shorthands -----------------------------------------------------------------------

Tensor Tensor::reshape(const Shape& wanted) const {
  require_defined("reshape", "x", *this);
  Shape shape = wanted;
  int inferred = -1;
  bool fits = true;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == -1 && inferred < 0) {
      shape[d] = 1;
      inferred = d;
    }
    fits = fits && shape[d] >= 0;
  }
  if (fits && inferred >= 0) {
    const int64_t known = shape.numel("reshape");
    fits = known > 0 && numel() % known == 0;
    if (fits) shape[inferred] = numel() / known;
  }
  fits = fits && shape.numel("reshape") == numel();
  if (!fits) {
    throw ShapeError(str("reshape: expected a shape of ", numel(), " elements for x of shape ",
                         this->shape(), ", got ", wanted));
  }
  return view("reshape", shape, 0);
}

Tensor Tensor::flatten(int first, int last) const {
  require_defined("flatten", "x", *this);
  if (rank() == 0) return reshape({1});
  const Shape& from = shape();
  const int a = from.index(first, "flatten"), b = from.index(last, "flatten");
  require<ShapeError>(a <= b, "flatten: expected first <= last, got ", first, " and ", last,
                      " for x of shape ", from);
  Shape to;
  for (int d = 0; d < a; ++d) to.append(from[d]);
  to.append(1);
  for (int d = a; d <= b; ++d) to[a] *= from[d];
  for (int d = b + 1; d < rank(); ++d) to.append(from[d]);
  return reshape(to);
}

Tensor Tensor::narrow(int64_t first, int64_t count) const {
  require_defined("narrow", "x", *this);
  require<ShapeError>(rank() >= 1 && first >= 0 && count >= 0 && first <= size(0) - count,
                      "narrow: no rows [", first, ", ", first, " + ", count, ") in x of shape ",
                      shape());
  Shape rows = shape();
  rows[0] = count;
  const int64_t row = size(0) ? numel() / size(0) : 0;
  return view("narrow", rows, first * row);
}

Tensor reshape(const Tensor& x, const Shape& shape) { return x.reshape(shape); }
Tensor flatten(const Tensor& x, int first, int last) { return x.flatten(first, last); }
Tensor narrow(const Tensor& x, int64_t first, int64_t count) { return x.narrow(first, count); }
Tensor Tensor::permute(const std::vector<int>& dims) const { return sinter::permute(*this, dims); }
Tensor Tensor::sum(const Dims& dims, bool keepdim) const {
  return sinter::sum(*this, dims, keepdim);
}
Tensor Tensor::mean(const Dims& dims, bool keepdim) const {
  return sinter::mean(*this, dims, keepdim);
}

}  // namespace sinter
