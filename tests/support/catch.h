// Catch2, whichever major version is installed, and test cases that run on each device.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <sinter/tensor.h>

#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

namespace sinter::test {

// Why kernels cannot run on the first GPU; empty when they can.
inline const std::string& cuda_missing() {
  static const std::string reason = [] {
    try {
      require_usable(cuda());
      return std::string();
    } catch (const Error& e) {
      return std::string(e.what());
    }
  }();
  return reason;
}

// CUDA cases that did not run: main reports them, so that a machine without a GPU never looks as if
// it had tested one.
inline int& skipped_cases() {
  static int count = 0;
  return count;
}

// Whether the CUDA case `name` can run. If not it says so, in a line that CTest turns into
// "Skipped"; with SINTER_REQUIRE_CUDA in the environment it fails instead.
inline bool cuda_or_skip(const char* name) {
  if (cuda_missing().empty()) return true;
  if (std::getenv("SINTER_REQUIRE_CUDA") != nullptr)
    FAIL("SINTER_REQUIRE_CUDA: " << cuda_missing());
  ++skipped_cases();
  std::cout << "SKIPPED: no CUDA device: " << name << std::endl;
#ifdef SKIP
  SKIP(cuda_missing());  // Catch2 3.3 and later count it too
#endif
  return false;
}

// Whether a tool that makes kernels a hundred times as slow runs the tests: SINTER_TEST_SANITIZER
// in the environment, as the test presets for compute-sanitizer set it. What only repeats is
// repeated less then.
inline bool under_sanitizer() {
  static const bool set = std::getenv("SINTER_TEST_SANITIZER") != nullptr;
  return set;
}

// Passes that programs are made without while one lives: "-fuse,-dead". Without the fuse pass they
// round as operators one by one do.
class PassesOff {
 public:
  explicit PassesOff(const std::string& names) {
    setenv(kName, before_ ? (*before_ + "," + names).c_str() : names.c_str(), 1);
  }
  ~PassesOff() {
    if (before_)
      setenv(kName, before_->c_str(), 1);
    else
      unsetenv(kName);
  }
  PassesOff(const PassesOff&) = delete;
  PassesOff& operator=(const PassesOff&) = delete;

 private:
  static constexpr const char* kName = "SINTER_PASSES";
  const std::optional<std::string> before_ =
      std::getenv(kName) ? std::optional<std::string>(std::getenv(kName)) : std::nullopt;
};

// Expects f() to throw E with all of `parts` in its message.
template <class E, class F> void check_throws(F&& f, const std::vector<std::string>& parts) {
  try {
    f();
  } catch (const E& e) {
    const std::string message = e.what();
    for (const std::string& part : parts) {
      INFO("message: " << message);
      INFO("expected in it: " << part);
      CHECK(message.find(part) != std::string::npos);
    }
    return;
  } catch (const std::exception& e) {
    FAIL_CHECK("another exception than expected: " << e.what());
    return;
  }
  FAIL_CHECK("nothing was thrown");
}

}  // namespace sinter::test

#define SINTER_TEST_JOIN_(a, b) a##b
#define SINTER_TEST_JOIN(a, b) SINTER_TEST_JOIN_(a, b)

#define SINTER_CUDA_CASE(function, title, tags)                                       \
  TEST_CASE(title " (cuda)", tags "[cuda]") {                                         \
    if (!sinter::test::cuda_or_skip(title " (cuda)")) return;                         \
    function(sinter::cuda());                                                         \
    sinter::synchronize(sinter::cuda()); /* a late fault belongs to this test case */ \
  }

#define SINTER_DEVICE_TEST(function, title, tags)                     \
  static void function(sinter::Device device);                        \
  TEST_CASE(title " (cpu)", tags "[cpu]") { function(sinter::kCpu); } \
  SINTER_CUDA_CASE(function, title, tags)                             \
  static void function([[maybe_unused]] sinter::Device device)

#define SINTER_CUDA_TEST(function, title, tags) \
  static void function(sinter::Device device);  \
  SINTER_CUDA_CASE(function, title, tags)       \
  static void function([[maybe_unused]] sinter::Device device)

// A body with a parameter `device`, registered as two test cases: on the CPU and on the first GPU.
#define DEVICE_TEST(title, tags) \
  SINTER_DEVICE_TEST(SINTER_TEST_JOIN(device_test_, __LINE__), title, tags)
// On the first GPU only.
#define CUDA_TEST(title, tags) SINTER_CUDA_TEST(SINTER_TEST_JOIN(cuda_test_, __LINE__), title, tags)
