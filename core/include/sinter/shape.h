// What every part of Sinter speaks of: shapes, element types, devices, and the contexts in which a
// device's kernels run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <string>
#include <vector>

struct CUstream_st;  // cudaStream_t without CUDA's headers

namespace sinter {

inline constexpr int kMaxRank = 8;

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
  // The product of the extents. Throws ShapeError, in the name of `op`, if an extent is negative or
  // the product of those other than 0 is beyond 2^63 - 1: so the strides of any shape that passed,
  // and the elements of any part of it, can be counted.
  int64_t numel(const char* op = "shape") const;
  // numel() times `size`, likewise.
  int64_t bytes(const char* op, int64_t size) const;
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

enum class DType : uint8_t { kFloat32, kFloat64, kInt32, kInt64, kUInt8, kBool };
inline constexpr DType kFloat32 = DType::kFloat32, kFloat64 = DType::kFloat64;
inline constexpr DType kInt32 = DType::kInt32, kInt64 = DType::kInt64, kUInt8 = DType::kUInt8;
inline constexpr DType kBool = DType::kBool;

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
template <> struct DTypeOf<bool> { static constexpr DType value = kBool; };

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
std::ostream& operator<<(std::ostream& out, Device device);
// Throws DeviceError, saying what is missing and how to mend it, unless kernels run on `device`.
void require_usable(Device device);
// Waits until the calling thread's work on `device` is done and throws what went wrong in it.
void synchronize(Device device);

// Where a kernel runs: it is picked by this argument's type.
struct Cpu {};
struct Cuda {
  int device = 0;
  CUstream_st* stream = nullptr;
};

}  // namespace sinter
