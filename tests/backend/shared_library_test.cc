// Libraries opened when needed. Part of the CUDA backend, and of no GPU's business.
#include "kernels_cuda/runtime/shared_library.h"

#include "tests/support/values.h"

namespace sinter::test {

TEST_CASE("shared_library: found by name or by path, or an error that says what to do",
          "[shared_library]") {
  double (*cosine)(double) = nullptr;
  SharedLibrary("libm.so.6", "/nonexistent", "trigonometry", "").find("cos", cosine);
  CHECK(cosine(0) == 1);
  cosine = nullptr;
  SharedLibrary("libnone.so.7", "libm.so.6", "trigonometry", "").find("cos", cosine);
  CHECK(cosine(0) == 1);

  check_throws<Error>(
      [] { SharedLibrary("libnone.so.7", "/nonexistent", "trigonometry", "install libnone"); },
      {"trigonometry unavailable", "libnone.so.7", "install libnone"});
  check_throws<Error>(
      [&] { SharedLibrary("libm.so.6", "/nonexistent", "trigonometry", "").find("cus", cosine); },
      {"trigonometry unavailable", "libm.so.6 has no cus"});
}

}  // namespace sinter::test
