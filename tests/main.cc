// Runs the tests; then says what was not run and, with SINTER_TEST_ERRORS in the environment, the
// largest error seen of each operator, device and dtype.
#define CATCH_CONFIG_RUNNER
#include "catch.h"
#include "values.h"

int main(int argc, char** argv) {
  const int result = Catch::Session().run(argc, argv);
  if (const int skipped = sinter::test::skipped_cases(); skipped > 0)
    std::cout << "SKIPPED: no CUDA device: " << skipped
              << " test cases: " << sinter::test::cuda_missing() << std::endl;
  if (std::getenv("SINTER_TEST_ERRORS") != nullptr) sinter::test::print_largest_errors();
  return result;
}
