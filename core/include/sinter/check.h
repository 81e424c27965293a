// Errors. Every failure in Sinter is an exception derived from sinter::Error whose message says
// what was called, what it expected, what it got and, where there is one, what to do about it.
#pragma once

#include <cstdint>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

namespace sinter {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  // The message; thrown inside a network it begins with the path of the module: "features.3.conv2:
  // conv2d: …".
  const char* what() const noexcept override {
    return located_.empty() ? std::runtime_error::what() : located_.c_str();
  }

  // For Module: how the path grows while the error passes through the modules that called each
  // other. origin: the module it passed through last, null before the first.
  const void* origin() const { return origin_; }
  void set_origin(const void* module) { origin_ = module; }
  void prepend(const std::string& name) {
    path_ = path_.empty() ? name : name + "." + path_;
    located_ = path_ + ": " + std::runtime_error::what();
  }

 private:
  std::string path_, located_;
  const void* origin_ = nullptr;
};

// clang-format off
struct ShapeError : Error { using Error::Error; };        // a rank, an extent or a geometry
struct DtypeError : Error { using Error::Error; };        // an element type
struct DeviceError : Error { using Error::Error; };       // a device that is absent, or two that differ
struct ValueError : Error { using Error::Error; };        // an argument or a label out of its range
struct GradError : Error { using Error::Error; };         // misuse of autograd
struct AnomalyError : Error { using Error::Error; };      // a NaN or an infinity, under anomaly_guard
struct GraphError : Error { using Error::Error; };        // what cannot be captured or replayed
struct DataError : Error { using Error::Error; };         // a missing, corrupt or unreadable file
struct CudaError : Error { using Error::Error; };         // a failing CUDA or cuBLAS call
struct OutOfMemoryError : Error { using Error::Error; };  // host or device memory exhausted
// clang-format on

// For messages: helpers of the library, not part of its interface.
namespace detail {

// The arguments written one after another, as a stream would in the classic locale: names are made
// of numbers with this, and must not change with the program's std::locale::global.
template <class... Args> std::string str(const Args&... args) {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  (out << ... << args);
  return out.str();
}

// Throws E with the arguments as its message unless `ok`. The arguments are evaluated either way,
// so a message that is expensive to build belongs behind an `if`.
template <class E, class... Args> void require(bool ok, const Args&... message) {
  if (!ok) throw E(str(message...));
}

}  // namespace detail
}  // namespace sinter
