#include "console.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "sinter/check.h"

namespace sinter::app {

namespace {
std::atomic<bool> interrupt_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only touch such");
}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupt_flag = true; };
  // A second Ctrl-C finds the default action; system calls under way are resumed.
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  sigaction(SIGINT, &action, nullptr);
}

bool interrupted() { return interrupt_flag; }

void check_interrupt(const char* message) {
  if (interrupted()) throw Interrupted(message);
}

const Stopwatch& command_clock() {
  static const Stopwatch clock;
  return clock;
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string grouped(int64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && digits[i - 1] != '-') text += ',';
    text += digits[i];
  }
  return text;
}

std::string duration(double seconds) {
  if (seconds < 100) return fixed(seconds, 2) + " s";
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  return str(whole / 60, " min ", whole % 60 < 10 ? "0" : "", whole % 60, " s");
}

namespace {
// Characters, not bytes: continuation bytes of UTF-8 take no room.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}
}  // namespace

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width(row[c]));
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t c = 0; c < widths.size(); ++c)
      text += str("| ", rows[r][c], std::string(widths[c] - width(rows[r][c]) + 1, ' '));
    text += "|\n";
    if (r > 0) continue;
    for (const size_t w : widths) text += str("|", std::string(w + 2, '-'));
    text += "|\n";
  }
  return text;
}

Progress::Progress(bool quiet) : quiet_(quiet) {
  const char* term = std::getenv("TERM");
  live_ = !quiet && isatty(STDERR_FILENO) && term != nullptr && std::strcmp(term, "dumb") != 0;
}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
  drawn_ = false;
}

void Progress::line(const std::string& text) {
  clear();
  if (!quiet_) std::fprintf(stderr, "%s\n", text.c_str());
}

void Progress::warning(const std::string& text) {
  clear();
  std::fprintf(stderr, "sinter: warning: %s\n", text.c_str());
}

void Progress::bar(const std::string& what, double fraction, const std::string& state) {
  if (!live_) return;
  constexpr int kWidth = 24;
  const double filled = std::clamp(fraction, 0.0, 1.0) * kWidth;
  std::string cells(static_cast<size_t>(filled), '#');
  cells.resize(kWidth, '.');
  // One write for the whole line: anything less flickers.
  std::fprintf(stderr, "\r%s [%s] %s\x1b[K", what.c_str(), cells.c_str(), state.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void require_parent(const char* option, const std::filesystem::path& path) {
  if (path.empty()) return;
  std::error_code error;
  const std::filesystem::path parent =
      path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  require<DataError>(std::filesystem::is_directory(parent, error), option, ": the folder ",
                     parent.string(), " does not exist; make it first");
  require<DataError>(access(parent.c_str(), W_OK) == 0, option, ": the folder ", parent.string(),
                     " cannot be written: ", std::strerror(errno));
  require<DataError>(!std::filesystem::is_directory(path, error), option, ": ", path.string(),
                     " is a folder, expected a file name");
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::path temporary = path;
  temporary += str(".", getpid(), ".tmp");
  std::ofstream file(temporary, std::ios::binary);
  file << text;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    const std::string reason = error ? error.message() : std::strerror(errno);
    std::filesystem::remove(temporary, error);
    throw DataError(str("cannot write ", path.string(), ": ", reason));
  }
}

}  // namespace sinter::app
