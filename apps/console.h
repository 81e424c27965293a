// What a command line needs around the work: signals, the clock, a progress bar, whole files.
#pragma once

#include <chrono>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sinter {
class AtomicFile;
}

namespace sinter::app {

// The user asked for something there is no sense in. Exit code 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// Ctrl-C and what else asks a process to end. The message says what was done and what was not. Exit
// code 128 + the signal: 130 after Ctrl-C.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Standard input, output and error that are closed become such that reading and writing fail, lest
// the next file to be opened be taken for one of them.
void occupy_standard_descriptors();

// From now on the first Ctrl-C (SIGINT), SIGTERM or SIGHUP only sets a flag, which long work asks
// for between its steps; a second one ends the process as usual. One that was ignored stays so.
// Writing to a pipe that nobody reads any more, or past the limit on a file's size, is an error
// like others, not the end of a training.
void handle_signals();
bool interrupted();
int interrupt_signal();  // the one that came; 0: none
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
  // A line of progress_text, as wide as the terminal lets it be. Does nothing unless live().
  void bar(const std::string& what, double fraction, const std::string& state);
  void clear();  // takes the bar away

 private:
  bool quiet_, live_, drawn_ = false;
};

// `what`, a bar filled to `fraction`, `state`: at most `width` characters, for which the bar gives
// way first.
std::string progress_text(const std::string& what, double fraction, const std::string& state,
                          int width);

// What `option` is to write, tried before long work, not after it. Throws DataError if a file
// cannot be made there. An empty path asks nothing. A pipe is kept open as long as this lives, lest
// its reader take the trial for all there is.
class Output {
 public:
  Output(const char* option, const std::filesystem::path& path);
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

 private:
  std::unique_ptr<AtomicFile> held_;
};
// Options and the files they name. Throws UsageError if two of them name one file, which would keep
// only what is written last. Empty paths and devices do not count.
void require_distinct(
    std::initializer_list<std::pair<const char*, std::filesystem::path>> options_and_files);
// Writes beside `path` and renames, so that a failure leaves the old file. Throws DataError.
void write_file(const std::filesystem::path& path, const std::string& text);

}  // namespace sinter::app
