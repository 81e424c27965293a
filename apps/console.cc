#include "apps/console.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/base/detail.h"
#include "core/io/file.h"

namespace sinter::app {

void occupy_standard_descriptors() {
  // open takes the lowest number that is free. The wrong mode makes their use fail.
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
      (void)!open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

namespace {
std::atomic<int> signal_that_came{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch such");
}  // namespace

void handle_signals() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { signal_that_came = signal; };
  // The second one finds the default action; system calls under way are resumed.
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};  // nohup has one ignored, a shell's & another
    if (sigaction(number, nullptr, &before) == 0 && before.sa_handler != SIG_IGN)
      sigaction(number, &action, nullptr);
  }
  for (const int number : {SIGPIPE, SIGXFSZ}) signal(number, SIG_IGN);
}

int interrupt_signal() { return signal_that_came; }
bool interrupted() { return interrupt_signal() != 0; }

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

namespace {

// As far as the cursor of standard error may go without wrapping. COLUMNS may be set where the
// terminal does not tell, or be out of date: the smaller one counts.
int terminal_width() {
  int columns = 0;
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0) columns = size.ws_col;
  if (const char* text = std::getenv("COLUMNS")) {
    int named = 0;
    std::from_chars(text, text + std::strlen(text), named);
    if (named > 0 && (columns == 0 || named < columns)) columns = named;
  }
  return (columns > 0 ? columns : 80) - 1;
}

}  // namespace

std::string progress_text(const std::string& what, double fraction, const std::string& state,
                          int width) {
  constexpr int kWidest = 24, kNarrowest = 6;
  const auto others = static_cast<int>(app::width(what) + app::width(state)) + 4;
  const int cells = std::min(kWidest, width - others);
  std::string text = what + " ";
  if (cells >= kNarrowest) {
    std::string bar(static_cast<size_t>(std::clamp(fraction, 0.0, 1.0) * cells), '#');
    bar.resize(static_cast<size_t>(cells), '.');
    text += "[" + bar + "] ";
  }
  text += state;
  size_t end = 0;
  for (int characters = 0; end < text.size(); ++end) {
    if ((text[end] & 0xC0) != 0x80 && ++characters > width) break;
  }
  return text.substr(0, end);
}

void Progress::bar(const std::string& what, double fraction, const std::string& state) {
  if (!live_) return;
  // One write for the whole line: anything less flickers.
  std::fprintf(stderr, "\r%s\x1b[K",
               progress_text(what, fraction, state, terminal_width()).c_str());
  std::fflush(stderr);
  drawn_ = true;
}

Output::Output(const char* option, const std::filesystem::path& path) {
  if (path.empty()) return;
  try {
    held_ = std::make_unique<AtomicFile>(path);
  } catch (const DataError& e) {
    throw DataError(str(option, ": ", e.what()));
  }
  if (!held_->in_place()) held_.reset();
}

Output::~Output() = default;

void require_distinct(
    std::initializer_list<std::pair<const char*, std::filesystem::path>> options_and_files) {
  namespace fs = std::filesystem;
  const auto same = [](const fs::path& a, const fs::path& b) {
    std::error_code error;
    if (fs::exists(a, error) && fs::exists(b, error))
      return fs::is_regular_file(a, error) && fs::equivalent(a, b, error);
    const fs::path x = fs::weakly_canonical(fs::absolute(link_target(a)), error);
    return !error && x == fs::weakly_canonical(fs::absolute(link_target(b)), error) && !error;
  };
  for (auto a = options_and_files.begin(); a != options_and_files.end(); ++a) {
    for (auto b = options_and_files.begin(); b != a; ++b) {
      if (!a->second.empty() && !b->second.empty() && same(a->second, b->second))
        throw UsageError(str(a->first, ": ", a->second.string(), " is the file of ", b->first,
                             " too; name another one"));
    }
  }
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  AtomicFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace sinter::app
