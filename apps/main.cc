// The `sinter` command.
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <new>

#include "commands.h"
#include "machine.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

// A setting that OpenBLAS reads while it is loaded, before main can speak to it: where it chose
// kernels that do not suit the CPU, OPENBLAS_CORETYPE is set and the command starts itself anew.
// What the user has set stays.
void settle_environment(char** argv) {
  const std::string kernels = better_blas_kernels();
  if (kernels.empty() || std::getenv("OPENBLAS_CORETYPE") != nullptr) return;
  if (setenv("OPENBLAS_CORETYPE", kernels.c_str(), 0) != 0) return;
  execv("/proc/self/exe", argv);  // fails where there is no /proc: go on as we are
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
