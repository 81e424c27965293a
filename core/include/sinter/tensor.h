// Tensor: a cheap value that shares its storage.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "sinter/check.h"
#include "sinter/hook.h"
#include "sinter/operand.h"

namespace sinter {

constexpr Device cuda(int index = 0) { return {Device::Kind::kCuda, index}; }

struct TensorOptions {
  DType dtype = kFloat32;
  Device device = kCpu;
};

// ---- tensor -------------------------------------------------------------------------------------

// Dimensions of a tensor, negative from the end: sum(x, 1), sum(x, {0, -1}).
struct Dims {
  Dims() = default;
  // NOLINTBEGIN: implicit, so that the calls read as above
  Dims(int dim) : list{dim} {}
  Dims(std::initializer_list<int> dims) : list(dims) {}
  Dims(std::vector<int> dims) : list(std::move(dims)) {}
  template <std::same_as<bool> T> Dims(T) = delete;  // a keepdim in the wrong place
  // NOLINTEND
  std::vector<int> list;
};

// A number that remembers whether it is an integer.
struct Number {
  // NOLINTBEGIN: implicit, so that functions take both
  template <std::integral T> Number(T n)
      : Number(static_cast<double>(n), static_cast<int64_t>(n), std::in_range<int64_t>(n)) {}
  template <std::floating_point T> Number(T x) : Number(static_cast<double>(x), 0, false) {}
  // NOLINTEND
  double real;
  int64_t integer;
  bool is_integer;

 private:
  Number(double x, int64_t n, bool is_n) : real(x), integer(n), is_integer(is_n) {}
};

class Term;  // a tensor or a number, below
class Node;  // a step of the autograd graph (autograd.h)

// A contiguous, row-major array on one device. Copies are the same tensor: what one is told
// (set_requires_grad, fill_, backward) holds for all; views (reshape, narrow) and detach() are
// tensors of their own that share storage. Work on a CUDA device is asynchronous; item, to_vector
// and copies to the CPU wait for it. A tensor may be read from several threads at once; on a CUDA
// device each thread has its own stream, so hand one over only after synchronize(). The last one
// may go at any time: its memory is kept until the work of every thread that read it is done.
class Tensor {
 public:
  Tensor() = default;  // undefined: stands for 'no tensor' (no bias, no gradient)
  // Not inline: GCC 12 warns of a vector of tensors that grows if they are.
  Tensor(const Tensor&);
  Tensor(Tensor&&) noexcept;
  Tensor& operator=(const Tensor&);
  Tensor& operator=(Tensor&&) noexcept;
  ~Tensor();
  bool defined() const { return impl_ != nullptr; }
  // Whether both are the same tensor, not only equal ones.
  bool is(const Tensor& other) const { return impl_ == other.impl_; }
  const void* identity() const { return impl_.get(); }  // equal where is() holds

  const Shape& shape() const;
  int rank() const { return shape().rank(); }
  int64_t size(int dim) const { return shape()[dim]; }
  int64_t numel() const { return shape().numel(); }
  DType dtype() const;
  Device device() const;
  TensorOptions options() const { return {dtype(), device()}; }

  // The first element, in the device's memory. Throws DtypeError unless T is the element type,
  // GraphError while a program is recorded, which has no values yet (program.h).
  template <class T> T* data() const {
    if (!defined() || DTypeOf<std::remove_const_t<T>>::value != dtype())
      wrong_dtype(DTypeOf<std::remove_const_t<T>>::value);
    if constexpr (std::is_const_v<T>)
      return static_cast<T*>(read());
    else
      return static_cast<T*>(raw());
  }
  // As data(), for copies of bytes: to write to, and only to be read.
  void* raw() const;
  const void* read() const;
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype()); }

  // The only element, converted to T; to bool: whether it is not 0. Waits for the device. Throws
  // ShapeError unless numel() == 1.
  template <class T> T item() const;
  // All elements, row-major, converted to T as item does. Waits for the device.
  template <class T> std::vector<T> to_vector() const;

  // A tensor of the same values there, itself if it is there already. Differentiable.
  Tensor to(Device device) const;
  Tensor to(DType dtype) const;
  Tensor clone() const;  // a copy with storage of its own. Differentiable.

  // In place; on the storage, so every sharer sees it, and a backward pass that saved the old
  // values throws. copy_ converts dtype and device; shapes must match. While grad_enabled() they
  // are recorded as operators are, through views too: the overwritten values get no gradient, the
  // source of copy_ gets its part. Throw GradError for a leaf that requires grad and views of one,
  // whose gradient would be another tensor's: change it under no_grad, or through detach().
  void copy_(const Tensor& source) const;
  void fill_(double value) const;
  void zero_() const { fill_(0); }
  // this = this + alpha y, …, recorded as copy_ is. y broadcasts to this tensor's shape; its shape
  // and dtype stay. Throw what the operators throw (ops.h); ShapeError for a y that would make it
  // larger, DtypeError for a result that is floating where this is not, or no bool where it is one.
  const Tensor& add_(const Term& y, Number alpha = 1) const;
  const Tensor& sub_(const Term& y, Number alpha = 1) const;
  const Tensor& mul_(const Term& y) const;
  const Tensor& div_(const Term& y) const;
  const Tensor& pow_(const Term& y) const;
  const Tensor& clamp_(const Term& min, const Term& max) const;
  const Tensor& masked_fill_(const Tensor& mask, const Term& value) const;

  // ---- autograd ----
  // Whether operators on this tensor are recorded for a backward pass.
  bool requires_grad() const { return node() != nullptr; }
  // Makes this tensor a leaf that collects a gradient, or stops it: a frozen leaf keeps the
  // gradient it has. Throws GradError on the result of a recorded operator, DtypeError unless
  // floating.
  const Tensor& set_requires_grad(bool value = true) const;
  bool is_leaf() const;
  // Gradient of a leaf, undefined before the first backward pass; it adds up until set_grad({}).
  // set_grad of anything else throws GradError for a tensor that does not require grad.
  Tensor grad() const;
  void set_grad(const Tensor& grad) const;
  // Adds d(this)/d(leaf), weighted by `gradient` (default 1, for which this must have one element),
  // into every leaf's grad. Frees the graph unless retain_graph; a second pass then throws
  // GradError.
  void backward(const Tensor& gradient, bool retain_graph = false) const;
  void backward(bool retain_graph = false) const;
  // Calls hook(gradient) whenever a backward pass has the whole gradient of this tensor, before a
  // leaf adds it up or grad() returns it; what it returns, unless undefined, takes the gradient's
  // place. It must not change its argument. Hooks run in their order, outside the graph. In a
  // compiled step the operators of a hook are part of the program. Throws GradError for a tensor
  // that does not require grad, and in the pass for a gradient of another shape, dtype or device.
  HookHandle register_hook(std::function<Tensor(const Tensor&)> hook) const;
  // The same storage, outside the graph.
  Tensor detach() const;

  // ---- views and shorthands (ops.h) ----
  Tensor reshape(const Shape& shape) const;
  Tensor flatten(int first = 0, int last = -1) const;
  Tensor permute(const std::vector<int>& dims) const;
  Tensor transpose(int dim0, int dim1) const;
  Tensor squeeze() const;
  Tensor squeeze(const Dims& dims) const;
  Tensor unsqueeze(int dim) const;
  Tensor narrow(int dim, int64_t start, int64_t length) const;
  Tensor select(int dim, int64_t index) const;
  Tensor expand(const Shape& shape) const;
  Tensor flip(const Dims& dims) const;
  Tensor gather(int dim, const Tensor& index) const;
  Tensor index_select(int dim, const Tensor& index) const;
  Tensor tril(int64_t diagonal = 0) const;
  Tensor triu(int64_t diagonal = 0) const;
  std::vector<Tensor> split(int64_t size, int dim = 0) const;
  std::vector<Tensor> split(const std::vector<int64_t>& sizes, int dim = 0) const;
  std::vector<Tensor> chunk(int64_t chunks, int dim = 0) const;
  Tensor sum(const Dims& dims = {}, bool keepdim = false) const;
  Tensor mean(const Dims& dims = {}, bool keepdim = false) const;

  // ---- for operators ----
  const std::shared_ptr<Node>& node() const;
  Tensor with_node(std::shared_ptr<Node> node) const;  // a detach() with a place in the graph
  bool is_view() const;                                // made by reshape, flatten or narrow
  // Puts `data`'s storage, dtype and device in the place of this tensor's: every copy of a leaf
  // follows, stays a leaf, and loses its gradient; views stay what they were, on their own. Throws
  // GradError unless it is a leaf, ShapeError unless `data` has its shape.
  void set_data(const Tensor& data) const;
  uint64_t version() const;   // counts changes of the storage's values
  void bump_version() const;  // after a change through data()
  // copy_, for an operator in place of that name.
  void overwrite(const char* op, const Tensor& source) const;
  // Whether it was ever set whether this leaf requires grad.
  bool requires_grad_is_set() const;
  // Whether a module is known to list this leaf as its parameter (nn.h).
  bool listed() const;
  void set_listed() const;
  struct Impl;
  bool shares_storage() const;  // with another tensor or a copy of this one
  // Where the first element lies: the number of its storage, never used again, and bytes from the
  // storage's beginning.
  std::pair<uint64_t, int64_t> place() const;

 private:
  explicit Tensor(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  friend Tensor empty(const Shape&, TensorOptions);
  friend class Recorder;
  friend bool collects_gradient(const Tensor&);
  bool collects_gradient() const;
  friend Operand operand_of(const Tensor& t);
  [[noreturn]] void wrong_dtype(DType wanted) const;
  Tensor view(const char* op, const Shape& shape, int64_t offset) const;
  // An in-place change by `op` from `source` (undefined: from nothing that has a gradient): whether
  // it is to be recorded, or GradError; and, once it is made, the record.
  Tensor in_place_base() const;
  bool records_in_place(const char* op, const Tensor& source) const;
  void record_in_place(const char* op, const Tensor& source) const;
  void check_differentiable() const;

  std::shared_ptr<Impl> impl_;
};

// A tensor, or a number that stands for one without dimensions.
class Term {
 public:
  // NOLINTBEGIN: implicit, so that operators take both
  Term(const Tensor& x) : tensor_(x) {}
  Term(Number x) : number_(x), is_number_(true) {}
  template <class T>
  requires std::is_arithmetic_v<T> Term(T x) : Term(Number(x)) {}
  // NOLINTEND
  bool is_number() const { return is_number_; }
  const Tensor& tensor() const { return tensor_; }
  Number number() const { return number_; }

 private:
  Tensor tensor_;
  Number number_ = 0;
  bool is_number_ = false;
};

// As PyTorch prints it: "tensor([[1., 2.], [3., 4.]], requires_grad=True)", rows below each other,
// four digits after the point, of more than 1,000 elements the first and last three of each
// dimension. Waits for the device.
std::ostream& operator<<(std::ostream& out, const Tensor& tensor);

// ---- making tensors -----------------------------------------------------------------------------

Tensor empty(const Shape& shape, TensorOptions options = {});  // uninitialized
// Of any dtype; a bool is whether `value` is not 0.
Tensor full(const Shape& shape, double value, TensorOptions options = {});
inline Tensor zeros(const Shape& shape, TensorOptions options = {}) {
  return full(shape, 0, options);
}
inline Tensor ones(const Shape& shape, TensorOptions options = {}) {
  return full(shape, 1, options);
}
// Of x's shape, dtype and device.
inline Tensor empty_like(const Tensor& x) { return empty(x.shape(), x.options()); }
inline Tensor full_like(const Tensor& x, double value) {
  return full(x.shape(), value, x.options());
}
inline Tensor zeros_like(const Tensor& x) { return full_like(x, 0); }
inline Tensor ones_like(const Tensor& x) { return full_like(x, 1); }

struct ArangeOptions {
  std::optional<DType> dtype = {};  // none: int64 if all numbers are integers, else float32
  Device device = kCpu;
};
// start, start + step, … as long as they lie before end (behind it, if step < 0). Throws ValueError
// for a step of 0 or one that leads away from end, numbers that are not finite, or elements that
// the dtype cannot hold.
Tensor arange(Number start, Number end, Number step, const ArangeOptions& options = {});
inline Tensor arange(Number start, Number end, const ArangeOptions& options = {}) {
  return arange(start, end, 1, options);
}
inline Tensor arange(Number end, const ArangeOptions& options = {}) {
  return arange(0, end, 1, options);
}
// `steps` numbers at equal distances from start to end, both included; for one step, start. Throws
// ValueError for steps < 0, DtypeError unless floating.
Tensor linspace(double start, double end, int64_t steps, TensorOptions options = {});
Tensor eye(int64_t n, TensorOptions options = {});  // (n, n): ones on the diagonal, else zeros

// A copy of `values` with T's dtype. Throws ShapeError unless there are shape.numel() of them.
template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device = kCpu);

// A state: tensors by name, in a fixed order.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
// What two states do not have in common, in their order.
struct StateKeys {
  std::vector<std::string> missing;     // those of the target that the source has not
  std::vector<std::string> unexpected;  // those of the source that the target has not
};
// Copies `from` into `to` by name, converting dtype and device. Throws, and copies nothing, if they
// do not fit: ValueError naming missing and unexpected keys, unless not strict, which copies what
// both have and returns the others; and in either case ShapeError naming a key whose shape differs,
// ValueError for a key that `from` has twice or an undefined tensor. In time O(n log n).
StateKeys copy_state(const char* op, const NamedTensors& to, const NamedTensors& from,
                     bool strict = true);

// Blocks of tensor memory alive in this process: a leak test's yardstick, with live_nodes().
int64_t live_storages();

}  // namespace sinter
