// POSIX files whose failures are DataErrors naming the path and the system's reason, and what a
// file holds put into words. Private to core.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "sinter/check.h"

namespace sinter {

// "data/test_batch.bin: cannot open: No such file or directory"
[[noreturn]] inline void throw_errno(const std::filesystem::path& path, const char* what,
                                     int error = errno) {
  throw DataError(
      str(path.string(), ": cannot ", what, ": ", std::generic_category().message(error)));
}

// Text out of a file, fit for a message: printable ASCII, the rest as "\x1b", so that a terminal
// has nothing to obey; and not too long.
inline std::string printable(std::string_view text, size_t longest) {
  std::string result;
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (' ' <= c && c <= '~')
      result += c;
    else
      result += {'\\', 'x', "0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
  }
  return text.size() > longest ? result + "..." : result;
}
inline std::string in_quotes(std::string_view text) { return '"' + printable(text, 80) + '"'; }

// An open file. All members throw DataError.
class File {
 public:
  // flags as for open(2).
  File(std::filesystem::path path, int flags) : path_(std::move(path)) {
    do {
      fd_ = ::open(path_.c_str(), flags | O_CLOEXEC, 0666);
    } while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0) throw_errno(path_, (flags & O_CREAT) != 0 ? "create" : "open");
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return fd_; }

  // Throws also for what is no regular file: a directory or a pipe has no length to validate.
  int64_t size() const {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) throw_errno(path_, "look up");
    require<DataError>(S_ISREG(status.st_mode), path_.string(), ": expected a regular file");
    return status.st_size;
  }
  // Up to `bytes` bytes; 0 at the end of the file.
  size_t read_some(void* to, size_t bytes) {
    for (;;) {
      const ssize_t n = ::read(fd_, to, bytes);
      if (n >= 0) return static_cast<size_t>(n);
      if (errno != EINTR) throw_errno(path_, "read");
    }
  }
  // All `bytes` bytes, or as many as there are before the end of the file.
  size_t read(void* to, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
      const size_t n = read_some(static_cast<char*>(to) + done, bytes - done);
      if (n == 0) break;
      done += n;
    }
    return done;
  }
  void write(const void* from, size_t bytes) {
    const char* p = static_cast<const char*>(from);
    while (bytes > 0) {
      const ssize_t n = ::write(fd_, p, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw_errno(path_, "write");
      p += n;
      bytes -= static_cast<size_t>(n);
    }
  }
  void rewind() {
    if (::lseek(fd_, 0, SEEK_SET) != 0) throw_errno(path_, "rewind");
  }
  void truncate() {
    if (::ftruncate(fd_, 0) != 0) throw_errno(path_, "truncate");
  }
  // On the disk, not only in the cache.
  void sync() {
    if (::fsync(fd_) != 0) throw_errno(path_, "sync");
  }
  // Some file systems report a failed write only now.
  void close() {
    if (::close(std::exchange(fd_, -1)) != 0) throw_errno(path_, "close");
  }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

inline void rename_file(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_errno(to, "put in place");
}

// A file written beside `path` and renamed over it by commit(), once its bytes are on the disk, so
// that neither a failure nor a power cut leaves half a file under that name. Dropped without
// commit, it leaves nothing.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path)
      : path_(path), file_(unused_name(path), O_WRONLY | O_CREAT | O_EXCL) {}
  ~AtomicFile() {
    if (!committed_) ::unlink(file_.path().c_str());
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* from, size_t bytes) { file_.write(from, bytes); }
  void commit() {
    file_.sync();
    file_.close();
    rename_file(file_.path(), path_);
    committed_ = true;
    // The new name lives in the folder. Best effort: not every file system lets a folder be synced.
    const int folder = ::open(path_.has_parent_path() ? path_.parent_path().c_str() : ".",
                              O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
      (void)::fsync(folder);
      ::close(folder);
    }
  }

 private:
  // Not mkstemp, whose files only their owner may read, whatever the umask.
  static std::filesystem::path unused_name(const std::filesystem::path& path) {
    static std::atomic<int> counter = 0;
    std::filesystem::path name;
    do {
      name = path;
      name += str(".", ::getpid(), ".", counter++, ".tmp");
    } while (::access(name.c_str(), F_OK) == 0);
    return name;
  }

  std::filesystem::path path_;
  File file_;
  bool committed_ = false;
};

}  // namespace sinter
