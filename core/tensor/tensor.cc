#include "sinter/tensor.h"

#include <memory>
#include <utility>

#include "core/backend/memory.h"
#include "core/base/detail.h"
#include "core/ops/arguments.h"
#include "core/ops/move.h"
#include "core/program/recorder.h"
#include "core/tensor/tensor_impl.h"
#include "sinter/emit.h"
#include "sinter/operators/elementwise.h"
#include "sinter/ops.h"

namespace sinter {

// ---- making tensors -----------------------------------------------------------------------------

Tensor empty(const Shape& shape, TensorOptions options) {
  const int64_t bytes = shape.bytes("empty", static_cast<int64_t>(size_of(options.dtype)));
  Recorder* const recorder = Recorder::of_this_thread();
  auto storage = recorder != nullptr
                     ? recorder->make_virtual(options.device, static_cast<size_t>(bytes))
                     : std::make_shared<Storage>(options.device, static_cast<size_t>(bytes));
  return Tensor(std::make_shared<Tensor::Impl>(std::move(storage), 0, shape, options.dtype));
}

Tensor full(const Shape& shape, double value, TensorOptions options) {
  Tensor t = empty(shape, options);
  t.fill_(value);
  return t;
}

namespace {

Tensor from_host(const void* values, const Shape& shape, TensorOptions options) {
  if (Recorder* const recorder = Recorder::of_this_thread())
    return recorder->constant(values, shape, options);
  Tensor t = empty(shape, options);
  with_context(options.device, [&](const auto& ctx) {
    if (t.bytes() > 0) detail::copy_from_host(ctx, t.raw(), values, t.bytes());
  });
  return t;
}

}  // namespace

template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device) {
  require<ShapeError>(static_cast<int64_t>(values.size()) == shape.numel(),
                      "from_vector: expected ", shape.numel(), " values for shape ", shape,
                      ", got ", values.size());
  require_usable(device);
  const TensorOptions options{DTypeOf<T>::value, device};
  if constexpr (std::is_same_v<T, bool>) {  // of which a vector holds eight in a byte
    return from_host(std::vector<uint8_t>(values.begin(), values.end()).data(), shape, options);
  } else {
    return from_host(values.data(), shape, options);
  }
}
template Tensor from_vector(const std::vector<float>&, const Shape&, Device);
template Tensor from_vector(const std::vector<double>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int32_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int64_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<uint8_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<bool>&, const Shape&, Device);

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

std::pair<uint64_t, int64_t> Tensor::place() const {
  return impl_ ? std::pair(impl_->storage->number, impl_->start) : std::pair<uint64_t, int64_t>();
}

void* Tensor::raw() const { return const_cast<void*>(read()); }

const void* Tensor::read() const {
  if (!impl_) return nullptr;
  if (recording_program())
    Recorder::refuse("reading the values of a tensor (item, to_vector, data)");
  return impl_->storage->use() + impl_->start;
}

Tensor Tensor::detach() const {
  if (!impl_) return {};
  return Tensor(std::make_shared<Impl>(impl_->storage, impl_->start, impl_->shape, impl_->dtype));
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
  if (to == from) return emit(op::Copy{in(src), out(dst)});
  if (recording_program()) Recorder::refuse("a copy between devices");
  // The contexts first: a tensor notes whose stream it is read on.
  with_context(from, [&](const auto& source) {
    with_context(to, [&](const auto& target) {
      if constexpr (std::is_same_v<decltype(source), const Cpu&>)
        detail::copy_from_host(target, dst.raw(), src.read(), bytes);
      else if constexpr (std::is_same_v<decltype(target), const Cpu&>)
        detail::copy_to_host(source, dst.raw(), src.read(), bytes);
      else
        detail::copy_across(target, dst.raw(), source, src.read(), bytes);
    });
  });
  dst.bump_version();
}

Tensor converted(const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  const Tensor y = empty(x.shape(), {dtype, x.device()});
  emit(op::Cast{in(x), out(y)});
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
  if (recorded) record_in_place(op, source);
}

void Tensor::fill_(double value) const {
  require<ValueError>(defined(), "fill_: expected a tensor, got an undefined one");
  const bool recorded = records_in_place("fill_", {});
  emit(op::Fill{value, out(*this)});
  if (recorded) record_in_place("fill_", {});
}

template <class T> std::vector<T> Tensor::to_vector() const {
  require_defined("to_vector", "x", *this);
  if (recording_program()) Recorder::refuse("reading the values of a tensor (item, to_vector)");
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
SINTER_READ(bool);
#undef SINTER_READ

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

Tensor Tensor::narrow(int dim, int64_t start, int64_t length) const {
  require_defined("narrow", "x", *this);
  require<ShapeError>(rank() >= 1, "narrow: expected at least 1 dimension, got a scalar");
  const int d = shape().index(dim, "narrow");
  const int64_t n = size(d), first = start < 0 ? start + n : start;
  require<ShapeError>(start >= -n && start <= n && length >= 0 && first <= n - length,
                      "narrow: no elements [", start, ", ", start, " + ", length,
                      ") along dimension ", dim, " of x ", shape());
  if (d > 0) return part_of(*this, d, first, length);
  Shape rows = shape();
  rows[0] = length;
  return view("narrow", rows, n > 0 ? first * (numel() / n) : 0);
}

Tensor reshape(const Tensor& x, const Shape& shape) { return x.reshape(shape); }
Tensor flatten(const Tensor& x, int first, int last) { return x.flatten(first, last); }
Tensor Tensor::permute(const std::vector<int>& dims) const { return sinter::permute(*this, dims); }
Tensor Tensor::transpose(int dim0, int dim1) const { return sinter::transpose(*this, dim0, dim1); }
Tensor Tensor::squeeze() const { return sinter::squeeze(*this); }
Tensor Tensor::squeeze(const Dims& dims) const { return sinter::squeeze(*this, dims); }
Tensor Tensor::unsqueeze(int dim) const { return sinter::unsqueeze(*this, dim); }
Tensor Tensor::select(int dim, int64_t index) const { return sinter::select(*this, dim, index); }
Tensor Tensor::expand(const Shape& shape) const { return sinter::expand(*this, shape); }
Tensor Tensor::flip(const Dims& dims) const { return sinter::flip(*this, dims); }
Tensor Tensor::gather(int dim, const Tensor& index) const {
  return sinter::gather(*this, dim, index);
}
Tensor Tensor::index_select(int dim, const Tensor& index) const {
  return sinter::index_select(*this, dim, index);
}
Tensor Tensor::tril(int64_t diagonal) const { return sinter::tril(*this, diagonal); }
Tensor Tensor::triu(int64_t diagonal) const { return sinter::triu(*this, diagonal); }
std::vector<Tensor> Tensor::split(int64_t size, int dim) const {
  return sinter::split(*this, size, dim);
}
std::vector<Tensor> Tensor::split(const std::vector<int64_t>& sizes, int dim) const {
  return sinter::split(*this, sizes, dim);
}
std::vector<Tensor> Tensor::chunk(int64_t chunks, int dim) const {
  return sinter::chunk(*this, chunks, dim);
}
Tensor Tensor::sum(const Dims& dims, bool keepdim) const {
  return sinter::sum(*this, dims, keepdim);
}
Tensor Tensor::mean(const Dims& dims, bool keepdim) const {
  return sinter::mean(*this, dims, keepdim);
}

}  // namespace sinter
