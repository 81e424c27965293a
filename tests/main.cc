// Runs the tests; then says what was not run and, with SINTER_TEST_ERRORS in the environment, the
// largest error seen of each operator, device and dtype.
#define CATCH_CONFIG_RUNNER
#include "catch.h"
#include "values.h"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define SINTER_TEST_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SINTER_TEST_ASAN
#endif
#ifdef SINTER_TEST_ASAN
// Tests ask for more memory than there is, which must be refused instead of ending the process.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
#endif

int main(int argc, char** argv) {
  const int result = Catch::Session().run(argc, argv);
  if (const int skipped = sinter::test::skipped_cases(); skipped > 0)
    std::cout << "SKIPPED: no CUDA device: " << skipped
              << " test cases: " << sinter::test::cuda_missing() << std::endl;
  if (std::getenv("SINTER_TEST_ERRORS") != nullptr) sinter::test::print_largest_errors();
  return result;
}
