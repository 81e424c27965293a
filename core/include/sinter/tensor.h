// Tensor: a cheap value that shares its storage.
#pragma once

#include <any>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "sinter/check.h"
#include "sinter/kernels.h"

namespace sinter {

// ---- shape, dtype, device -----------------------------------------------------------------------

// Extents, outermost first; at most kMaxRank of them. A scalar has rank 0 and one element.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  explicit Shape(const std::vector<int64_t>& sizes);

  int rank() const { return rank_; }
  // Negative d counts from the end. Throws ShapeError, in the name of `op`, if there is no such
  // dimension.
  int64_t operator[](int d) const { return sizes_[index(d)]; }
  int64_t& operator[](int d) { return sizes_[index(d)]; }
  int index(int d, const char* op = "shape") const;
  int64_t numel() const;
  void append(int64_t size);
  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + rank_; }
  bool operator==(const Shape& other) const;
  std::string str() const;  // "(64, 3, 32, 32)"

 private:
  int rank_ = 0;
  int64_t sizes_[kMaxRank] = {};
};
std::ostream& operator<<(std::ostream& out, const Shape& shape);

enum class DType : uint8_t { kFloat32, kFloat64, kInt32, kInt64, kUInt8 };
inline constexpr DType kFloat32 = DType::kFloat32, kFloat64 = DType::kFloat64;
inline constexpr DType kInt32 = DType::kInt32, kInt64 = DType::kInt64, kUInt8 = DType::kUInt8;

const char* name(DType dtype);  // "float32"
size_t size_of(DType dtype);
inline bool is_floating(DType dtype) { return dtype == kFloat32 || dtype == kFloat64; }
std::ostream& operator<<(std::ostream& out, DType dtype);

template <class T> struct DTypeOf;
template <> struct DTypeOf<float> { static constexpr DType value = kFloat32; };
template <> struct DTypeOf<double> { static constexpr DType value = kFloat64; };
template <> struct DTypeOf<int32_t> { static constexpr DType value = kInt32; };
template <> struct DTypeOf<int64_t> { static constexpr DType value = kInt64; };
template <> struct DTypeOf<uint8_t> { static constexpr DType value = kUInt8; };

struct Device {
  enum class Kind : uint8_t { kCpu, kCuda };
  Kind kind = Kind::kCpu;
  int index = 0;

  // "cpu", "cuda" (the first GPU) or "cuda:N". Throws ValueError for anything else; does not look
  // whether the device is there (require_usable does).
  static Device parse(const std::string& text);
  std::string str() const;
  bool is_cuda() const { return kind == Kind::kCuda; }
  bool operator==(const Device&) const = default;
};
inline constexpr Device kCpu{Device::Kind::kCpu, 0};
constexpr Device cuda(int index = 0) { return {Device::Kind::kCuda, index}; }
std::ostream& operator<<(std::ostream& out, Device device);
// Throws DeviceError, saying what is missing and how to mend it, unless kernels run on `device`.
void require_usable(Device device);
// Waits until the calling thread's work on `device` is done and throws what went wrong in it.
void synchronize(Device device);

struct TensorOptions {
  DType dtype = kFloat32;
  Device device = kCpu;
};

// ---- tensor -------------------------------------------------------------------------------------

struct Storage;  // a block of device memory, freed with its last owner
class Node;      // a step of the autograd graph (autograd.h)

// A contiguous, row-major array on one device. Copies share storage, gradient and place in the
// autograd graph; views (reshape, narrow, detach) share storage. Work on a CUDA device is
// asynchronous; item, to_vector and copies to the CPU wait for it. A tensor may be read from
// several threads at once; on a CUDA device each thread has its own stream, so hand one over only
// after synchronize(). The last one may go at any time: its memory is kept until the work of every
// thread that read it is done.
class Tensor {
 public:
  Tensor() = default;  // undefined: stands for 'no tensor' (no bias, no gradient)
  bool defined() const { return storage_ != nullptr; }

  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t numel() const { return shape_.numel(); }
  DType dtype() const { return dtype_; }
  Device device() const;
  TensorOptions options() const { return {dtype_, device()}; }

  // The first element, in the device's memory. Throws DtypeError unless T is the element type.
  template <class T> T* data() const {
    if (DTypeOf<std::remove_const_t<T>>::value != dtype_)
      wrong_dtype(DTypeOf<std::remove_const_t<T>>::value);
    if constexpr (std::is_const_v<T>)
      return static_cast<T*>(read());
    else
      return static_cast<T*>(raw());
  }
  // As data(), for copies of bytes: to write to, and only to be read.
  void* raw() const;
  const void* read() const;
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }

  // The only element, converted to T. Waits for the device. Throws ShapeError unless numel() == 1.
  template <class T> T item() const;
  // All elements, row-major, converted to T. Waits for the device.
  template <class T> std::vector<T> to_vector() const;

  // A tensor of the same values there, itself if it is there already. Differentiable.
  Tensor to(Device device) const;
  Tensor to(DType dtype) const;
  Tensor clone() const;  // a copy with storage of its own. Differentiable.

  // In place; on the storage, so every sharer sees it, and a backward pass that saved the old
  // values throws. copy_ converts dtype and device; shapes must match.
  void copy_(const Tensor& source);
  void fill_(double value);

  // ---- autograd ----
  // Whether operators on this tensor are recorded for a backward pass.
  bool requires_grad() const { return node_ != nullptr; }
  // Makes this tensor, and copies made from now on, a leaf that collects a gradient (or stops it).
  // Throws GradError on the result of a recorded operator, DtypeError unless floating.
  Tensor& set_requires_grad(bool value = true);
  bool is_leaf() const;
  // Gradient of a leaf, undefined before the first backward pass; it adds up until set_grad({}).
  Tensor grad() const;
  void set_grad(const Tensor& grad) const;
  // Adds d(this)/d(leaf), weighted by `gradient` (default 1, for which this must have one element),
  // into every leaf's grad. Frees the graph unless retain_graph; a second pass then throws
  // GradError.
  void backward(const Tensor& gradient, bool retain_graph = false) const;
  void backward(bool retain_graph = false) const;
  // The same storage, outside the graph.
  Tensor detach() const;

  // ---- views and shorthands (ops.h) ----
  Tensor reshape(const Shape& shape) const;
  Tensor flatten(int first = 0, int last = -1) const;
  Tensor permute(const std::vector<int>& dims) const;
  // Rows [first, first + count) of dimension 0, sharing storage.
  Tensor narrow(int64_t first, int64_t count) const;

  // ---- for operators ----
  const std::shared_ptr<Node>& node() const { return node_; }
  Tensor with_node(std::shared_ptr<Node> node) const;
  uint64_t version() const;  // counts in-place changes of the storage
  void bump_version() const;
  bool shares_storage() const { return storage_.use_count() > 1; }
  // How else the values can be had, kept with the storage until somebody may write to it: for an
  // operator that can make them from that on its way, instead of reading them. Null if there is
  // none of this kind or this is another view of the storage.
  void set_origin(std::any origin) const;
  // Puts off computing the values until somebody asks for data(): `compute` gets the address of the
  // first. What it reads must be its own, as nobody tells it of changes. For results that a
  // consumer may make from their origin instead.
  void defer(std::function<void(void* to)> compute) const;
  template <class Origin> const Origin* origin() const {
    return std::any_cast<Origin>(current_origin());
  }

 private:
  friend Tensor empty(const Shape&, TensorOptions);
  const std::any* current_origin() const;
  [[noreturn]] void wrong_dtype(DType wanted) const;
  Tensor view(const Shape& shape, int64_t offset) const;
  void check_differentiable() const;
  // gradient undefined: 1, through the node's backward_one.
  void run_backward(const Tensor& gradient, bool retain_graph) const;

  std::shared_ptr<Storage> storage_;
  std::byte* data_ = nullptr;
  Shape shape_;
  DType dtype_ = kFloat32;
  std::shared_ptr<Node> node_;
};

// ---- making tensors -----------------------------------------------------------------------------

Tensor empty(const Shape& shape, TensorOptions options = {});  // uninitialized
Tensor full(const Shape& shape, double value, TensorOptions options = {});
inline Tensor zeros(const Shape& shape, TensorOptions options = {}) {
  return full(shape, 0, options);
}
inline Tensor ones(const Shape& shape, TensorOptions options = {}) {
  return full(shape, 1, options);
}
// A copy of `values` with T's dtype. Throws ShapeError unless there are shape.numel() of them.
template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device = kCpu);

// Computes what this thread has put off (Tensor::defer) and what is still wanted of it.
void compute_deferred();

// A state: tensors by name, in a fixed order.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
// Copies `from` into `to` by name, converting dtype and device. Throws, and copies nothing, if they
// do not fit: ValueError naming every missing and every unexpected key, ShapeError naming a key
// whose shape differs.
void copy_state(const char* op, const NamedTensors& to, const NamedTensors& from);

// Blocks of tensor memory alive in this process: a leak test's yardstick, with live_nodes().
int64_t live_storages();

}  // namespace sinter
