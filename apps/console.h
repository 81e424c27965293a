// What a command line needs around the work: Ctrl-C, the clock, a progress bar, whole files.
#pragma once

#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace sinter::app {

// The user asked for something there is no sense in. Exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Ctrl-C. The message says what was done and what was not. Exit code 130.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// From now on the first Ctrl-C only sets a flag, which long work asks for between its steps; a
// second one ends the process as usual.
void catch_interrupts();
bool interrupted();
// Throws Interrupted with `message` if the flag is set.
void check_interrupt(const char* message);

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};
const Stopwatch& command_clock();  // runs since its first use, which main makes its first act

std::string fixed(double value, int digits);  // "3.14"
std::string grouped(int64_t value);           // "50,000"
std::string duration(double seconds);         // "4.21 s", "12 min 05 s"
// A Markdown table that also reads well on a terminal. The first row is its head.
std::string table(const std::vector<std::vector<std::string>>& rows);

// Messages on stderr: plain lines, and on a terminal a bar that is redrawn in place below them.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  bool live() const { return live_; }  // a terminal: bars are shown
  void line(const std::string& text);
  void warning(const std::string& text);  // a line that --quiet does not silence
  // `what`, a bar filled to `fraction`, `state`. Does nothing unless live().
  void bar(const std::string& what, double fraction, const std::string& state);
  void clear();  // takes the bar away

 private:
  bool quiet_, live_, drawn_ = false;
};

// Throws DataError unless a file can be made at `path`: asked before long work, not after it.
void require_parent(const char* option, const std::filesystem::path& path);
// Writes beside `path` and renames, so that a failure leaves the old file. Throws DataError.
void write_file(const std::filesystem::path& path, const std::string& text);

}  // namespace sinter::app
