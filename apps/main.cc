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

// Settings that libraries read while they are loaded, before main can speak to them: where one is
// missing, it is set and the command starts itself anew. What the user has set stays.
//   GOMP_SPINCOUNT: GCC's OpenMP threads wait for each other by spinning, by default for so long
//   that a busy
// machine slows training down by a factor of sixty; 10,000 turns (a fraction of a millisecond) cost
// an idle one nothing.
//   OPENBLAS_CORETYPE: where OpenBLAS chose kernels that do not suit the CPU.
void settle_environment(char** argv) {
  bool changed = false;
  const auto set = [&](const char* name, const std::string& value) {
    if (!value.empty() && std::getenv(name) == nullptr) {
      changed |= setenv(name, value.c_str(), 0) == 0;
    }
  };
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) set("GOMP_SPINCOUNT", "10000");
  set("OPENBLAS_CORETYPE", better_blas_kernels());
  if (changed) execv("/proc/self/exe", argv);  // fails where there is no /proc: go on as we are
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
  settle_environment(argv);
  command_clock();
  catch_interrupts();
  try {
    return run(argc, argv);
  } catch (const UsageError& e) {
    return failed(std::string("error: ") + e.what(), 2);
  } catch (const Interrupted& e) {
    return failed(std::string("interrupted: ") + e.what(), 130);
  } catch (const std::bad_alloc&) {
    return failed("error: out of memory; try a smaller --batch-size", 1);
  } catch (const std::exception& e) {
    return failed(std::string("error: ") + e.what(), 1);
  }
}
