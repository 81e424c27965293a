// The `sinter` command.
#include <iostream>
#include <new>

#include "commands.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

int run(int argc, char** argv) {
  const Options options = parse_options(argc, argv);
  bool well = true;
  if (options.threads > 0) set_num_threads(options.threads);
  if (options.command == "print") std::cout << options.text;
  if (options.command == "train") train_command(options);
  if (options.command == "bench") bench_command(options);
  if (options.command == "eval") eval_command(options);
  if (options.command == "doctor") well = doctor_command(options);
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
