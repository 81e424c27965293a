// Runs the tests; then says what was not run and, with SINTER_TEST_ERRORS in the environment, the
// largest error seen of each operator, device and dtype.
#define CATCH_CONFIG_RUNNER
#include <unistd.h>

#include <filesystem>

#include "tests/support/catch.h"
#include "tests/support/values.h"

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

namespace {

// Runs the tests anew under the command SINTER_TEST_LAUNCHER, "compute-sanitizer --tool memcheck".
// Here and not in CTest's commands: those also list the tests at build time, where there need be
// neither launcher nor GPU; and one build serves several launchers.
[[noreturn]] void relaunch(int argc, char** argv) {
  std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  std::string shell = "sh", option = "-c", script = R"(set -- $SINTER_TEST_LAUNCHER "$@"
unset SINTER_TEST_LAUNCHER
exec "$@")";
  std::vector<char*> command = {shell.data(), option.data(), script.data(), shell.data(),
                                self.data()};
  command.insert(command.end(), argv + 1, argv + argc);
  command.push_back(nullptr);
  ::execv("/bin/sh", command.data());
  std::perror("SINTER_TEST_LAUNCHER: /bin/sh");
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (std::getenv("SINTER_TEST_LAUNCHER") != nullptr) relaunch(argc, argv);
  const int result = Catch::Session().run(argc, argv);
  if (const int skipped = sinter::test::skipped_cases(); skipped > 0)
    std::cout << "SKIPPED: no CUDA device: " << skipped
              << " test cases: " << sinter::test::cuda_missing() << std::endl;
  if (std::getenv("SINTER_TEST_ERRORS") != nullptr) sinter::test::print_largest_errors();
  return result;
}
