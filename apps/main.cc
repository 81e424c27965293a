// The `sinter` command.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <new>

#include "apps/commands.h"
#include "apps/machine.h"
#include "core/base/detail.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

// Sets what is not set in the environment yet; returns whether it did.
bool set_if_unset(const char* name, const std::string& value) {
  return !value.empty() && std::getenv(name) == nullptr && setenv(name, value.c_str(), 0) == 0;
}

// Settings that OpenBLAS reads while it is loaded, before main can speak to it, so that the command
// starts itself anew with them: the kernels where it chose some that do not suit the CPU, and under
// a limit on address space or data no threads, of which each takes 128 MB, or waits for them for
// ever. What the user has set stays.
void settle_environment(char** argv) {
  bool limited = false;
  for (const auto resource : {RLIMIT_AS, RLIMIT_DATA}) {
    rlimit space{};
    limited |= getrlimit(resource, &space) == 0 && space.rlim_cur != RLIM_INFINITY;
  }
  bool anew = set_if_unset("OPENBLAS_CORETYPE", better_blas_kernels());
  anew |= set_if_unset("OPENBLAS_NUM_THREADS", limited ? "1" : "");
  if (anew) execv("/proc/self/exe", argv);  // fails where there is no /proc: go on as we are
}

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  bool well = true;
  if (options.threads > 0) set_num_threads(options.threads);
  set_conv_algo(conv_algo_named(options.job.conv_algo));
  set_allow_tf32(options.job.tf32);
  if (options.command == "print") std::cout << options.text;
  if (options.command == "train") train_command(options);
  if (options.command == "bench") bench_command(options);
  if (options.command == "eval") eval_command(options);
  if (options.command == "doctor") well = doctor_command(options);
  if (options.command == "gradcheck") well = gradcheck_command(options);
  if (options.command == "verify") well = verify_command(options);
  std::cout.flush();
  require<Error>(std::cout.good(), "cannot write to standard output");
  return well ? 0 : 1;
}

int failed(const std::string& message, int code) {
  std::cout.flush();
  std::cerr << "sinter: " << message << std::endl;
  return code;
}

}  // namespace
}  // namespace sinter::app

int main(int argc, char** argv) {
  using namespace sinter::app;
  occupy_standard_descriptors();
  settle_environment(argv);
  command_clock();
  handle_signals();
  try {
    return run(argc, argv);
  } catch (const UsageError& e) {
    return failed(std::string("error: ") + e.what(), 2);
  } catch (const Interrupted& e) {
    return failed(std::string("interrupted: ") + e.what(), 128 + interrupt_signal());
  } catch (const std::bad_alloc&) {
    return failed("error: out of memory; try a smaller --batch-size", 1);
  } catch (const std::exception& e) {
    return failed(std::string("error: ") + e.what(), 1);
  }
}
