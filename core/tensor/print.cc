// Tensors as text. Layout and format of the numbers are PyTorch's with its default options
// (torch/_tensor_str.py).
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <ostream>

#include "core/base/detail.h"
#include "sinter/autograd.h"
#include "sinter/emit.h"

namespace sinter {
namespace {

constexpr int kPrecision = 4;         // digits after the point
constexpr int64_t kThreshold = 1000;  // elements, above which a tensor is summarized
constexpr int64_t kEdge = 3;          // of them at either end of a dimension then
constexpr size_t kLine = 80;          // characters

// Unlike a stream or printf, std::to_chars does not ask for the locale.
template <class... Format> std::string digits(Format... format) {
  char text[400];  // the largest double has 309 digits before the point
  return {text, std::to_chars(text, text + sizeof text, format...).ptr};
}

template <class T> class Printer {
 public:
  Printer(const T* data, const Shape& shape)
      : data_(data), shape_(shape), summarized_(shape.numel() > kThreshold) {
    if constexpr (std::is_floating_point_v<T>) choose_format();
    for_each_shown(0, 0, [&](T value) {
      // As PyTorch does: what is not finite, and 0, may stick out.
      if (!std::is_floating_point_v<T> || is_ordinary(value))
        width_ = std::max(width_, number(value).size());
    });
  }

  // Dimensions d… at `row`, as if the tensor began at them; `indent`: columns before it.
  std::string text(size_t indent, int d = 0, int64_t row = 0) const {
    if (d == shape_.rank()) return padded(data_[row]);
    const bool innermost = d == shape_.rank() - 1;
    std::vector<std::string> parts;
    for (const int64_t i : shown(d)) {
      if (i < 0)
        parts.emplace_back(innermost ? " ..." : "...");
      else
        parts.push_back(text(indent + 1, d + 1, row * shape_[d] + i));
    }
    const size_t rank = static_cast<size_t>(shape_.rank() - d);
    const size_t a_line = innermost ? std::max<size_t>(1, (kLine - indent) / (width_ + 2)) : 1;
    const std::string new_line =
        ',' + std::string(innermost ? 1 : rank - 1, '\n') + std::string(indent + 1, ' ');
    std::string result = "[";
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0) result += i % a_line == 0 ? new_line : ", ";
      result += parts[i];
    }
    return result + ']';
  }

 private:
  static bool is_ordinary(T value) { return std::isfinite(value) && value != 0; }

  // The indices along dimension d that are printed, -1 for those left out.
  std::vector<int64_t> shown(int d) const {
    const int64_t n = shape_[d];
    std::vector<int64_t> indices;
    for (int64_t i = 0; i < n; ++i) {
      if (summarized_ && n > 2 * kEdge && i == kEdge) {
        indices.push_back(-1);
        i = n - kEdge;
      }
      indices.push_back(i);
    }
    return indices;
  }

  template <class F> void for_each_shown(int d, int64_t row, F&& f) const {
    if (d == shape_.rank()) return f(data_[row]);
    for (const int64_t i : shown(d))
      if (i >= 0) for_each_shown(d + 1, row * shape_[d] + i, f);
  }

  void choose_format() {
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for_each_shown(0, 0, [&](T value) {
      if (!is_ordinary(value)) return;
      const double size = std::abs(static_cast<double>(value));
      least = std::min(least, size);
      most = std::max(most, size);
      integers_ = integers_ && value == std::ceil(value);
    });
    scientific_ = most > 0 && (most / least > 1000 || most > 1e8 || least < 1e-4);
  }

  std::string number(T value) const {
    if constexpr (std::is_floating_point_v<T>) {
      const auto x = static_cast<double>(value);
      if (std::isnan(x)) return "nan";
      if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
      if (scientific_) return digits(x, std::chars_format::scientific, kPrecision);
      if (integers_) return digits(x, std::chars_format::fixed, 0) + '.';
      return digits(x, std::chars_format::fixed, kPrecision);
    } else if constexpr (std::is_same_v<T, bool>) {
      return value ? "True" : "False";
    } else {
      return digits(static_cast<int64_t>(value));
    }
  }
  std::string padded(T value) const {
    const std::string text = number(value);
    return std::string(width_ - std::min(width_, text.size()), ' ') + text;
  }

  const T* data_;
  const Shape& shape_;
  const bool summarized_;
  bool integers_ = true, scientific_ = false;
  size_t width_ = 1;
};

}  // namespace

std::ostream& operator<<(std::ostream& out, const Tensor& tensor) {
  if (!tensor.defined()) return out << "undefined tensor";
  std::string text = "tensor(";
  const size_t indent = text.size();
  std::vector<std::string> suffixes;
  if (tensor.device() != kCpu) suffixes.push_back(str("device='", tensor.device(), "'"));
  if (tensor.numel() == 0) {
    text += "[]";
    if (tensor.rank() != 1) suffixes.push_back(str("size=", tensor.shape()));
  } else {
    Tensor host = tensor.detach();
    if (tensor.device() != kCpu) {
      // Not to(): anomaly_guard would refuse to print a NaN.
      host = empty(tensor.shape(), {tensor.dtype(), kCpu});
      host.copy_(tensor.detach());
    }
    with_any(host.dtype(), [&]<class T>() {
      text += Printer<T>(host.data<const T>(), host.shape()).text(indent);
    });
  }
  // Without elements int64 and bool cannot be told from float32.
  const bool shows = tensor.dtype() == kInt64 || tensor.dtype() == kBool;
  if (tensor.dtype() != kFloat32 && (!shows || tensor.numel() == 0))
    suffixes.push_back(str("dtype=", tensor.dtype()));
  if (tensor.requires_grad()) {
    suffixes.push_back(tensor.is_leaf() ? "requires_grad=True"
                                        : str("grad_fn=<", recorded_ops(tensor).back().op, ">"));
  }

  // PyTorch counts two columns too many in the first place.
  size_t column = text.size() - text.rfind('\n') + 1;
  for (const std::string& suffix : suffixes) {
    if (column + suffix.size() + 2 > kLine) {
      text += ",\n" + std::string(indent, ' ') + suffix;
      column = indent + suffix.size();
    } else {
      text += ", " + suffix;
      column += suffix.size() + 2;
    }
  }
  return out << text + ")";
}

}  // namespace sinter
