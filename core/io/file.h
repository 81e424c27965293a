// POSIX files whose failures are DataErrors naming the path and the system's reason, and what a
// file holds put into words. Not among the installed headers.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/base/detail.h"
#include "sinter/check.h"

namespace sinter {

// "data/test_batch.bin: cannot open: No such file or directory". Straight after the call that
// failed: whatever runs in between, the making of a path or a message too, may change errno.
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
  // flags and mode as for open(2). Messages call it `shown`, or its path if that is empty.
  File(std::filesystem::path path, int flags, mode_t mode = 0666, std::filesystem::path shown = {})
      : path_(std::move(path)), shown_(shown.empty() ? path_ : std::move(shown)) {
    do {
      // Not to wait, perhaps forever, for the other end of a pipe.
      fd_ = ::open(path_.c_str(), flags | O_CLOEXEC | O_NONBLOCK, mode);
    } while (fd_ < 0 && errno == EINTR);
    if (fd_ < 0 && errno == ENXIO)
      throw DataError(shown_.string() +
                      ": cannot open: a pipe that no process reads, or no device");
    if (fd_ < 0) throw_errno(shown_, (flags & O_CREAT) != 0 ? "create" : "open");
    ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) & ~O_NONBLOCK);
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // For the file behind a descriptor of this process; the two share their position.
  static std::unique_ptr<File> duplicate(std::filesystem::path path, int descriptor) {
    const int fd = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) throw_errno(path, "open");
    return std::unique_ptr<File>(new File(std::move(path), Descriptor{fd}));
  }

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return fd_; }

  // Throws also for what is no regular file: a directory or a pipe has no length to validate.
  int64_t size() const {
    const struct stat status = look_up();
    require<DataError>(S_ISREG(status.st_mode), shown_.string(), ": expected a regular file");
    return status.st_size;
  }
  // Whether its path still leads to this file.
  bool is_at_path() const {
    const struct stat here = look_up();
    struct stat there {};
    return ::stat(path_.c_str(), &there) == 0 && here.st_dev == there.st_dev &&
           here.st_ino == there.st_ino;
  }
  // Takes the file for this process until it is closed, which the end of the process does too,
  // whatever ends it. False if another one has it. Where a file system has no locks, true.
  bool lock() const {
    while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EINTR) return errno != EWOULDBLOCK;
    }
    return true;
  }
  // Up to `bytes` bytes; 0 at the end of the file.
  size_t read_some(void* to, size_t bytes) {
    for (;;) {
      const ssize_t n = ::read(fd_, to, bytes);
      if (n >= 0) return static_cast<size_t>(n);
      if (errno != EINTR) throw_errno(shown_, "read");
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
      if (n < 0) throw_errno(shown_, "write");
      p += n;
      bytes -= static_cast<size_t>(n);
    }
  }
  void rewind() {
    if (::lseek(fd_, 0, SEEK_SET) != 0) throw_errno(shown_, "rewind");
  }
  void truncate(int64_t bytes = 0) {
    if (::ftruncate(fd_, bytes) != 0) throw_errno(shown_, "truncate");
  }
  // On the disk, not only in the cache. A pipe or a device has no disk to be on.
  void sync() {
    if (::fsync(fd_) != 0 && errno != EINVAL && errno != EROFS) throw_errno(shown_, "sync");
  }
  // Gives it the permissions of another file, its owner and its group, as far as is permitted.
  void make_like(const struct stat& other) {
    const struct stat here = look_up();
    if ((here.st_uid != other.st_uid || here.st_gid != other.st_gid) &&
        ::fchown(fd_, other.st_uid, other.st_gid) != 0)
      (void)!::fchown(fd_, static_cast<uid_t>(-1), other.st_gid);
    (void)!::fchmod(fd_, other.st_mode & 0777);
  }
  // Some file systems report a failed write only now.
  void close() {
    if (::close(std::exchange(fd_, -1)) != 0) throw_errno(shown_, "close");
  }

 private:
  struct Descriptor {
    int fd;
  };
  File(std::filesystem::path path, Descriptor descriptor)
      : path_(std::move(path)), shown_(path_), fd_(descriptor.fd) {}

  struct stat look_up() const {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) throw_errno(shown_, "look up");
    return status;
  }

  std::filesystem::path path_, shown_;
  int fd_ = -1;
};

inline void rename_file(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_errno(to, "put in place");
}

// Where a file written to `path` comes to lie: what symbolic links lead to, there or not.
inline std::filesystem::path link_target(std::filesystem::path path) {
  for (int links = 0; links < 40; ++links) {
    std::error_code error;
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) return path;  // no link, or nothing
    path = path.parent_path() / target;
  }
  throw_errno(path, "follow", ELOOP);
}

// What has to be written where it is, open for that: a device or a pipe, whose place a regular file
// must not take, or the file that standard output or error goes to. Null for any other regular file
// and if there is nothing at `path`. Throws DataError for a folder or a pipe that nobody reads.
inline std::unique_ptr<File> open_in_place(const std::filesystem::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return nullptr;
    throw_errno(path, "look up");
  }
  require<DataError>(!S_ISDIR(status.st_mode), path.string(),
                     ": is a directory, expected the name of a file");
  if (!S_ISREG(status.st_mode)) return std::make_unique<File>(path, O_WRONLY);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    struct stat open {};
    if (::fstat(fd, &open) == 0 && open.st_dev == status.st_dev && open.st_ino == status.st_ino &&
        (::fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
      return File::duplicate(path, fd);
  }
  return nullptr;
}

// A file written beside the one it is to replace and renamed over it by commit(), once its bytes
// are on the disk, so that neither a failure nor a power cut leaves half a file under that name.
// Dropped without commit, it leaves nothing. A symbolic link stays, and what it leads to is
// replaced; permissions and, where permitted, owner and group stay too. What is no regular file is
// written where it is.
class AtomicFile {
 public:
  // Throws DataError if it cannot be written, or could not be put in place.
  explicit AtomicFile(const std::filesystem::path& path) : file_(open_in_place(path)) {
    if (file_) return;
    target_ = link_target(path);
    struct stat old {};
    const bool replaces = ::stat(target_.c_str(), &old) == 0;
    if (replaces && ::access(target_.c_str(), W_OK) != 0) throw_errno(path, "replace");
    struct stat folder {};
    if (::stat(folder_of(target_).c_str(), &folder) != 0 && errno == ENOENT)
      throw DataError(str(path.string(), ": cannot create: No such file or directory; make the ",
                          "folder ", folder_of(target_).string(), " first"));
    if (replaces) require_replaceable(path, old, folder);
    file_ = std::make_unique<File>(unused_name(target_), O_WRONLY | O_CREAT | O_EXCL,
                                   replaces ? 0600 : 0666, path);
    if (replaces) file_->make_like(old);
  }
  ~AtomicFile() {
    if (!target_.empty() && !committed_) ::unlink(file_->path().c_str());
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Whether it is written where it is: a device or a pipe.
  bool in_place() const { return target_.empty(); }
  // Whether a file of this name beside `target` is one that was to replace it.
  static bool is_temporary(std::string_view name, const std::filesystem::path& target) {
    const std::string before = first_part(target) + ".";
    if (name.substr(0, before.size()) != before) return false;
    name.remove_prefix(before.size());
    for (const std::string_view after : {".", ".tmp"}) {  // each behind a number
      const size_t digits = name.find_first_not_of("0123456789");
      if (digits == 0 || digits == name.npos || name.substr(digits, after.size()) != after)
        return false;
      name.remove_prefix(digits + after.size());
    }
    return name.empty();
  }
  void write(const void* from, size_t bytes) { file_->write(from, bytes); }
  void commit() {
    if (in_place()) return file_->close();
    file_->sync();
    file_->close();
    committed_ = true;
    if (::rename(file_->path().c_str(), target_.c_str()) != 0) {
      const int error = errno;
      throw DataError(str(target_.string(),
                          ": cannot put in place: ", std::generic_category().message(error),
                          "; it is kept, whole, as ", file_->path().string()));
    }
    // The new name lives in the folder. Best effort: not every file system lets a folder be synced.
    const int folder = ::open(folder_of(target_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder >= 0) {
      (void)::fsync(folder);
      ::close(folder);
    }
  }

 private:
  static std::filesystem::path folder_of(const std::filesystem::path& path) {
    return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  }
  // What only rename would find out, when the work is done: someone else's file in a folder like
  // /tmp, a mount point, a file that may only be appended to.
  void require_replaceable(const std::filesystem::path& path, const struct stat& old,
                           const struct stat& folder) const {
    const uid_t user = ::geteuid();
    if ((folder.st_mode & S_ISVTX) != 0 && user != 0 && user != old.st_uid && user != folder.st_uid)
      throw_errno(path, "replace", EPERM);
#ifdef STATX_ATTR_MOUNT_ROOT
    struct statx more {};
    if (::statx(AT_FDCWD, target_.c_str(), 0, 0, &more) != 0) return;
    if ((more.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0) throw_errno(path, "replace", EBUSY);
    if ((more.stx_attributes & STATX_ATTR_APPEND) != 0) throw_errno(path, "replace", EPERM);
#endif
  }
  // Of the 255 bytes of a name; the rest is for the numbers.
  static std::string first_part(const std::filesystem::path& target) {
    return target.filename().string().substr(0, 200);
  }
  // Not mkstemp, whose files only their owner may read, whatever the umask.
  static std::filesystem::path unused_name(const std::filesystem::path& path) {
    static std::atomic<int> counter = 0;
    std::filesystem::path name;
    do {
      name = path.parent_path() / first_part(path);
      name += str(".", ::getpid(), ".", counter++, ".tmp");
    } while (::access(name.c_str(), F_OK) == 0);
    return name;
  }

  std::filesystem::path target_;  // empty: written in place
  std::unique_ptr<File> file_;
  bool committed_ = false;
};

}  // namespace sinter
