// Errors. Every failure in Sinter is an exception derived from sinter::Error whose message says
// what was called, what it expected, what it got and, where there is one, what to do about it.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace sinter {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct ShapeError : Error {
  using Error::Error;
};  // a rank, an extent or a geometry
struct DtypeError : Error {
  using Error::Error;
};  // an element type
struct DeviceError : Error {
  using Error::Error;
};  // a device that is absent, or two that differ
struct ValueError : Error {
  using Error::Error;
};  // an argument or a label out of its range
struct GradError : Error {
  using Error::Error;
};  // misuse of autograd
struct DataError : Error {
  using Error::Error;
};  // a missing, corrupt or unreadable file
struct CudaError : Error {
  using Error::Error;
};  // a failing CUDA or cuBLAS call
struct OutOfMemoryError : Error {
  using Error::Error;
};  // host or device memory exhausted

// The arguments written one after another, as a stream would.
template <class... Args> std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// Throws E with the arguments as its message unless `ok`. The arguments are evaluated either way,
// so a message that is expensive to build belongs behind an `if`.
template <class E, class... Args> void require(bool ok, const Args&... message) {
  if (!ok) throw E(str(message...));
}

}  // namespace sinter
