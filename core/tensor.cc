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

#include "sinter/dispatch.h"
#include "sinter/ops.h"

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

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int64_t size : *this) n *= size;
  return n;
}

bool Shape::operator==(const Shape& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::string Shape::str() const {
  std::ostringstream out;
  out << '(';
  for (int d = 0; d < rank_; ++d) out << (d ? ", " : "") << sizes_[d];
  out << (rank_ == 1 ? ",)" : ")");
  return out.str();
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
  int64_t bytes = static_cast<int64_t>(size_of(options.dtype));
  for (int64_t size : shape) {
    require<ShapeError>(size >= 0, "empty: expected extents of at least 0, got ", shape);
    require<ShapeError>(!__builtin_mul_overflow(bytes, size, &bytes), "empty: ", shape,
                        " has more elements than memory can hold");
  }
  Tensor t;
  t.storage_ = std::make_shared<Storage>(options.device, static_cast<size_t>(bytes));
  t.data_ = static_cast<std::byte*>(t.storage_->data);
  t.shape_ = shape;
  t.dtype_ = options.dtype;
  return t;
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

Device Tensor::device() const {
  require<ValueError>(defined(), "tensor: undefined, and so on no device");
  return storage_->device;
}

void Tensor::wrong_dtype(DType wanted) const {
  throw DtypeError(
      str("tensor: expected ", wanted, ", got ", defined() ? name(dtype_) : "an undefined tensor"));
}

uint64_t Tensor::version() const {
  return storage_ ? storage_->version.load(std::memory_order_relaxed) : 0;
}

void Tensor::bump_version() const {
  if (storage_) storage_->version.fetch_add(1, std::memory_order_relaxed);
}

void Tensor::set_origin(std::any origin) const {
  storage_->origin = std::move(origin);
  storage_->origin_shape = shape_;
  storage_->has_origin.store(true, std::memory_order_relaxed);
}

const std::any* Tensor::current_origin() const {
  if (!storage_ || !storage_->has_origin.load(std::memory_order_relaxed)) return nullptr;
  const bool same = data_ == storage_->data && shape_ == storage_->origin_shape;
  return same ? &storage_->origin : nullptr;
}

namespace {
thread_local std::vector<std::weak_ptr<Storage>> deferred;
}

void Tensor::defer(std::function<void(void*)> compute) const {
  constexpr size_t kMany = 64;
  if (deferred.size() >= kMany)
    std::erase_if(deferred, [](const auto& storage) { return storage.expired(); });
  storage_->compute = std::move(compute);
  storage_->thread = std::this_thread::get_id();
  storage_->is_deferred.store(true, std::memory_order_release);
  deferred.push_back(storage_);
}

void compute_deferred() {
  for (const auto& weak : std::exchange(deferred, {})) {
    if (const std::shared_ptr<Storage> storage = weak.lock()) storage->compute_now();
  }
}

void* Tensor::raw() const {
  if (storage_ && storage_->has_origin.load(std::memory_order_relaxed))
    storage_->has_origin.store(false, std::memory_order_relaxed);
  return const_cast<void*>(read());
}

const void* Tensor::read() const {
  if (!storage_) return nullptr;
  if (storage_->is_deferred.load(std::memory_order_acquire)) storage_->compute_now();
#ifdef SINTER_WITH_CUDA
  if (storage_->device.is_cuda()) storage_->note_user();
  if (storage_->branch != 0 && capturing()) wait_for_branch(storage_->branch);
#endif
  return data_;
}

Tensor Tensor::detach() const { return with_node(nullptr); }

Tensor Tensor::with_node(std::shared_ptr<Node> node) const {
  Tensor t = *this;
  t.node_ = std::move(node);
  return t;
}

Tensor Tensor::view(const Shape& shape, int64_t offset) const {
  Tensor t = detach();
  t.shape_ = shape;
  t.data_ += offset * static_cast<int64_t>(size_of(dtype_));
  return t;
}

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
  if (device() == target) return *this;
  require_usable(target);
  Tensor y = empty(shape_, {dtype_, target});
  copy_bytes(y, *this);
  return record("to", y, {*this},
                [from = device()](const Tensor& dy) { return Grads{dy.to(from)}; });
}

Tensor Tensor::to(DType target) const {
  if (dtype_ == target) return *this;
  const Tensor y = converted(detach(), target);
  if (!is_floating(target)) return y;
  return record("to", y, {*this}, [from = dtype_](const Tensor& dy) { return Grads{dy.to(from)}; });
}

Tensor Tensor::clone() const {
  Tensor y = empty(shape_, options());
  copy_bytes(y, *this);
  return record("clone", y, {*this}, [](const Tensor& dy) { return Grads{dy}; });
}

void Tensor::copy_(const Tensor& source) {
  require<ShapeError>(defined() && source.defined() && source.shape() == shape_,
                      "copy_: expected a source of shape ", shape_, ", got ", source.shape());
  // Converting where the source is keeps the bytes that travel at the smaller end's choice simple:
  // one cast, one copy.
  copy_bytes(*this, converted(source.detach(), dtype_));
  bump_version();
}

void Tensor::fill_(double value) {
  if (is_floating(dtype_)) {
    dispatch("fill_", *this, [&]<class T>(const auto& ctx) {
      fill(ctx, numel(), static_cast<T>(value), data<T>());
    });
    bump_version();
    return;
  }
  // Integers are rare and small (labels, counters): one value, converted and repeated.
  const Tensor one = converted(full({1}, value, {kFloat64, device()}), dtype_);
  Strided repeat{1, {numel()}, {0}};
  dispatch_any(dtype_, device(), [&]<class T>(const auto& ctx) {
    strided_copy(ctx, repeat, static_cast<const T*>(one.data<T>()), data<T>());
  });
  bump_version();
}

template <class T> std::vector<T> Tensor::to_vector() const {
  const Tensor host = converted(detach(), DTypeOf<T>::value).to(kCpu);
  const T* first = host.data<const T>();
  return std::vector<T>(first, first + host.numel());
}

template <class T> T Tensor::item() const {
  require<ShapeError>(defined() && numel() == 1, "item: expected one element, got shape ", shape_);
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

// ---- views and shorthands -----------------------------------------------------------------------

Tensor Tensor::reshape(const Shape& wanted) const {
  Shape shape = wanted;
  int inferred = -1;
  int64_t known = 1;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == -1 && inferred < 0) {
      inferred = d;
    } else {
      known *= shape[d];
    }
  }
  if (inferred >= 0 && known > 0 && numel() % known == 0) shape[inferred] = numel() / known;
  bool fits = defined() && shape.numel() == numel();
  for (int64_t size : shape) fits = fits && size >= 0;
  if (!fits) {
    throw ShapeError(str("reshape: expected a shape of ", numel(), " elements for x of shape ",
                         shape_, ", got ", wanted));
  }
  return record("reshape", view(shape, 0), {*this},
                [from = shape_](const Tensor& dy) { return Grads{dy.reshape(from)}; });
}

Tensor Tensor::flatten(int first, int last) const {
  if (rank() == 0) return reshape({1});
  const int a = shape_.index(first, "flatten"), b = shape_.index(last, "flatten");
  require<ShapeError>(a <= b, "flatten: expected first <= last, got ", first, " and ", last,
                      " for x of shape ", shape_);
  Shape shape;
  for (int d = 0; d < a; ++d) shape.append(shape_[d]);
  shape.append(1);
  for (int d = a; d <= b; ++d) shape[a] *= shape_[d];
  for (int d = b + 1; d < rank(); ++d) shape.append(shape_[d]);
  return reshape(shape);
}

Tensor Tensor::narrow(int64_t first, int64_t count) const {
  require<ShapeError>(rank() >= 1 && first >= 0 && count >= 0 && first <= size(0) - count,
                      "narrow: no rows [", first, ", ", first, " + ", count, ") in x of shape ",
                      shape_);
  Shape shape = shape_;
  shape[0] = count;
  const int64_t row = size(0) ? numel() / size(0) : 0;
  return record("narrow", view(shape, first * row), {*this},
                [from = shape_, first, count](const Tensor& dy) {
                  const Tensor dx = zeros(from, dy.options());
                  dx.narrow(first, count).copy_(dy);
                  return Grads{dx};
                });
}

Tensor reshape(const Tensor& x, const Shape& shape) { return x.reshape(shape); }
Tensor flatten(const Tensor& x, int first, int last) { return x.flatten(first, last); }
Tensor narrow(const Tensor& x, int64_t first, int64_t count) { return x.narrow(first, count); }
Tensor Tensor::permute(const std::vector<int>& dims) const { return sinter::permute(*this, dims); }

// ---- states -------------------------------------------------------------------------------------

void copy_state(const char* op, const NamedTensors& to, const NamedTensors& from) {
  auto find = [](const NamedTensors& in, const std::string& name) {
    return std::find_if(in.begin(), in.end(),
                        [&](const auto& entry) { return entry.first == name; });
  };
  std::string missing, unexpected, twice;
  for (const auto& [name, tensor] : to) {
    if (find(from, name) == from.end()) missing += (missing.empty() ? "" : ", ") + name;
  }
  for (const auto& entry : from) {
    const std::string& name = entry.first;
    if (find(to, name) == to.end()) unexpected += (unexpected.empty() ? "" : ", ") + name;
    if (&*find(from, name) != &entry) twice += (twice.empty() ? "" : ", ") + name;
  }
  require<ValueError>(missing.empty() && unexpected.empty(), op,
                      ": missing keys: ", missing.empty() ? "none" : missing,
                      "; unexpected keys: ", unexpected.empty() ? "none" : unexpected);
  require<ValueError>(twice.empty(), op, ": keys given more than once: ", twice);
  for (const auto& [name, tensor] : to) {
    const Tensor& source = find(from, name)->second;
    require<ValueError>(source.defined(), op, ": ", name, " is an undefined tensor");
    if (source.shape() != tensor.shape()) {
      throw ShapeError(
          str(op, ": expected ", name, " of shape ", tensor.shape(), ", got ", source.shape()));
    }
  }
  for (const auto& [name, tensor] : to) Tensor(tensor).copy_(find(from, name)->second);
}

}  // namespace sinter
