#include "sinter/shape.h"

#include <algorithm>
#include <charconv>
#include <ostream>

#include "core/base/detail.h"
#include "core/program/recorder.h"
#include "sinter/emit.h"

namespace sinter {

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

int64_t Shape::bytes(const char* op, int64_t size) const {
  bool is_empty = false;
  for (int64_t extent : *this) {
    require<ShapeError>(extent >= 0, op, ": expected extents of at least 0, got ", *this);
    is_empty = is_empty || extent == 0;
    require<ShapeError>(extent == 0 || !__builtin_mul_overflow(size, extent, &size), op, ": ",
                        *this, " has more elements than memory can hold");
  }
  return is_empty ? 0 : size;
}

int64_t Shape::numel(const char* op) const { return bytes(op, 1); }

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
    case kBool:
      return "bool";
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
    case kBool:
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
  if constexpr (cuda_built()) {
    if (cuda_device_count() == 0) {
      throw DeviceError(str(device, " requested, but ", cuda_unavailable()));
    }
    const CudaDeviceInfo info = cuda_device_info(device.index);  // throws if there is no such index
    require<DeviceError>(info.usable.empty(), device, " requested, but ", info.usable);
  } else {
    throw DeviceError(str(device,
                          " requested, but this build has no CUDA backend; reconfigure with "
                          "-DSINTER_CUDA=ON, or use cpu"));
  }
}

void synchronize(Device device) {
  if (recording_program()) Recorder::refuse("waiting for the device");
  require_usable(device);
  if constexpr (cuda_built()) {
    if (device.is_cuda()) synchronize(cuda_context(device.index));
  }
}

}  // namespace sinter
