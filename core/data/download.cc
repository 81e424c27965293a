// Fetching CIFAR-10: libcurl for the transfer, OpenSSL for the checksum, libarchive for unpacking.
#include "core/base/detail.h"
#include "sinter/data.h"

#ifdef SINTER_WITH_DOWNLOAD
#include <archive.h>
#include <archive_entry.h>
#include <curl/curl.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>

#include "core/io/file.h"
#endif

namespace sinter {

DownloadSource cifar10_source() {
  return {"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
          "c32a1d4ab5d03f1284b67883e8d87530", 170'052'171};
}

namespace fs = std::filesystem;

namespace {

std::string other_ways(const fs::path& dir) {
  return str(
      " Without the download: put data_batch_1.bin to data_batch_5.bin and test_batch.bin in ",
      (dir / kCifar10Folder).string(), " by hand, or use --dataset synthetic.");
}

#ifdef SINTER_WITH_DOWNLOAD

// A transfer that breaks off but has added bytes is resumed this often before the user is asked to.
constexpr int kResumes = 8;
constexpr long kConnectSeconds = 10;
constexpr long kStalledSeconds = 60, kStalledBytesPerSecond = 100;

void check_cancelled(const DownloadProgress& progress, int64_t done, int64_t total) {
  if (progress && !progress(done, total))
    throw DataError("download_cifar10: cancelled; what is complete so far is kept for resuming");
}

// ---- transfer -----------------------------------------------------------------------------------

// One request: appends what the server sends to `file`.
struct Transfer {
  File& file;
  int64_t have;  // the bytes in `file`
  const DownloadSource& source;
  const DownloadProgress& progress;

  // The outcome.
  bool too_long = false;
  std::exception_ptr error = nullptr;  // thrown in a callback: it must not unwind through C
  CURLcode code = CURLE_OK;
  long status = 0;  // of HTTP
  std::string message = {};

  void run();

 private:
  static size_t on_data(const char* data, size_t, size_t bytes, void* self) noexcept {
    Transfer& t = *static_cast<Transfer*>(self);
    try {
      // The checksum could only fail; and a wrong server must not fill the disk.
      t.too_long = static_cast<int64_t>(bytes) > t.source.bytes - t.have;
      if (t.too_long) return 0;
      t.file.write(data, bytes);
      t.have += static_cast<int64_t>(bytes);
      return bytes;
    } catch (...) {
      t.error = std::current_exception();
      return 0;
    }
  }
  // Called by libcurl about once a second even when nothing arrives.
  static int on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) noexcept {
    Transfer& t = *static_cast<Transfer*>(self);
    try {
      check_cancelled(t.progress, t.have, t.source.bytes);
      return 0;
    } catch (...) {
      t.error = std::current_exception();
      return 1;
    }
  }
};

void Transfer::run() {
  static const CURLcode initialized = curl_global_init(CURL_GLOBAL_DEFAULT);  // once a process
  char reason[CURL_ERROR_SIZE] = "";  // outlives the handle that may write to it
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(
      initialized == CURLE_OK ? curl_easy_init() : nullptr, &curl_easy_cleanup);
  require<DataError>(curl != nullptr, "download_cifar10: cannot initialize libcurl");
  const auto set = [&](CURLoption option, auto value) {
    const CURLcode result = curl_easy_setopt(curl.get(), option, value);
    require<DataError>(result == CURLE_OK, "download_cifar10: libcurl option ", int{option}, ": ",
                       curl_easy_strerror(result));
  };
  set(CURLOPT_URL, source.url.c_str());
  set(CURLOPT_USERAGENT, "sinter");
  set(CURLOPT_ERRORBUFFER, &reason[0]);
  set(CURLOPT_NOSIGNAL, 1L);  // the caller may have threads
  set(CURLOPT_FOLLOWLOCATION, 1L);
  set(CURLOPT_MAXREDIRS, 10L);
  set(CURLOPT_FAILONERROR, 1L);  // an error page is not the archive
  set(CURLOPT_SSL_VERIFYPEER, 1L);
  set(CURLOPT_SSL_VERIFYHOST, 2L);
  set(CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  set(CURLOPT_LOW_SPEED_TIME, kStalledSeconds);
  set(CURLOPT_LOW_SPEED_LIMIT, kStalledBytesPerSecond);
  set(CURLOPT_RESUME_FROM_LARGE, static_cast<curl_off_t>(have));
  set(CURLOPT_WRITEFUNCTION, &Transfer::on_data);
  set(CURLOPT_WRITEDATA, this);
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, &Transfer::on_progress);
  set(CURLOPT_XFERINFODATA, this);
  code = curl_easy_perform(curl.get());
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  message = reason[0] != '\0' ? reason : curl_easy_strerror(code);
}

// Brings `partial` to source.bytes bytes, going on from those it has.
void fetch(File& partial, const fs::path& dir, const DownloadSource& source,
           const DownloadProgress& progress) {
  if (partial.size() > source.bytes) partial.truncate();
  for (int attempt = 0; partial.size() < source.bytes; ++attempt) {
    const int64_t had = partial.size();
    Transfer transfer{partial, had, source, progress};
    transfer.run();
    if (transfer.error) std::rethrow_exception(transfer.error);

    // A server that cannot go on from here (libcurl checks that a 206 answer starts where asked):
    // from the start, then.
    const bool cannot_resume = transfer.code == CURLE_RANGE_ERROR ||
                               transfer.code == CURLE_BAD_DOWNLOAD_RESUME || transfer.status == 416;
    if (had > 0 && cannot_resume) {
      partial.truncate();
      continue;
    }
    const int64_t have = transfer.have;
    if (transfer.too_long || (transfer.code == CURLE_OK && have < source.bytes)) {
      fs::remove(partial.path());
      throw DataError(str("download_cifar10: ", source.url, ": the server's file has ",
                          transfer.too_long ? "more than " : "", have, " bytes, expected ",
                          source.bytes, "; it was removed.", other_ways(dir)));
    }
    if (transfer.code == CURLE_OK || (have > had && attempt < kResumes)) continue;
    if (have == 0) fs::remove(partial.path());
    throw DataError(str("download_cifar10: ", source.url, ": ", transfer.message, " (after ", have,
                        " of ", source.bytes, " bytes",
                        have > 0 ? ", kept: run it again to resume)." : ").", other_ways(dir)));
  }
}

// ---- checksum -----------------------------------------------------------------------------------

std::string md5(File& file, const DownloadProgress& progress) {
  const int64_t bytes = file.size();
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> digest(EVP_MD_CTX_new(),
                                                                       &EVP_MD_CTX_free);
  bool ok = digest != nullptr && EVP_DigestInit_ex(digest.get(), EVP_md5(), nullptr) == 1;
  std::vector<unsigned char> block(1 << 20);
  file.rewind();
  while (const size_t n = file.read_some(block.data(), block.size())) {
    check_cancelled(progress, bytes, bytes);
    ok = ok && EVP_DigestUpdate(digest.get(), block.data(), n) == 1;
  }
  unsigned char sum[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  ok = ok && EVP_DigestFinal_ex(digest.get(), sum, &length) == 1;
  require<DataError>(ok, file.path().string(), ": OpenSSL cannot compute MD5 (FIPS mode?)");
  std::string hex;
  for (unsigned int i = 0; i < length; ++i)
    for (const int digit : {sum[i] >> 4, sum[i] & 15}) hex += "0123456789abcdef"[digit];
  return hex;
}

// Whether `archive` is there and is what `source` describes.
bool is_whole(const fs::path& archive, const DownloadSource& source,
              const DownloadProgress& progress) {
  if (!fs::is_regular_file(archive)) return false;
  File file(archive, O_RDONLY);
  return file.size() == source.bytes && md5(file, progress) == source.md5;
}

// ---- unpacking ----------------------------------------------------------------------------------

// A new empty folder with a name of its own beside `path`, removed with what is left in it.
class ScratchFolder {
 public:
  explicit ScratchFolder(const fs::path& path) : name_(path.string() + ".XXXXXX") {
    if (::mkdtemp(name_.data()) != nullptr) return;
    const int error = errno;
    throw_errno(name_, "create", error);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(name_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  fs::path path() const { return name_; }

 private:
  std::string name_;
};

// The files of `archive` that belong in `folder`. Whatever else it holds (links, devices, other
// names, "../") is passed over: names of the archive never reach the file system.
void unpack(const fs::path& archive, const fs::path& folder, const DownloadSource& source,
            const DownloadProgress& progress) {
  std::vector<std::string> names(kCifar10Files.begin(), kCifar10Files.end());
  names.emplace_back("batches.meta.txt");
  const ScratchFolder scratch(folder);

  const std::unique_ptr<struct archive, decltype(&archive_read_free)> reader(archive_read_new(),
                                                                             &archive_read_free);
  const auto check = [&](la_ssize_t result, la_ssize_t worst = ARCHIVE_WARN) {
    if (result >= worst) return result;
    const char* why = reader != nullptr ? archive_error_string(reader.get()) : "out of memory";
    throw DataError(
        str(archive.string(), ": cannot unpack: ", why != nullptr ? why : "malformed archive"));
  };
  if (reader == nullptr) check(ARCHIVE_FATAL);
  check(archive_read_support_filter_gzip(reader.get()));
  check(archive_read_support_format_tar(reader.get()));
  constexpr size_t kBlock = 1 << 18;
  check(archive_read_open_filename(reader.get(), archive.c_str(), kBlock));
  std::vector<char> block(kBlock);
  archive_entry* entry = nullptr;
  while (check(archive_read_next_header(reader.get(), &entry)) != ARCHIVE_EOF) {
    check_cancelled(progress, source.bytes, source.bytes);
    const char* path = archive_entry_pathname(entry);
    const auto name = std::find_if(names.begin(), names.end(), [&](const std::string& candidate) {
      return path != nullptr &&
             fs::path(path).lexically_normal() == fs::path(kCifar10Folder) / candidate;
    });
    if (name == names.end() || archive_entry_filetype(entry) != AE_IFREG ||
        archive_entry_hardlink(entry) != nullptr)
      continue;
    // Sizes are checked before bytes are written: a small archive can unpack to a full disk.
    require<DataError>(archive_entry_size(entry) <= kCifar10FileBytes, archive.string(), ": ",
                       *name, " has ", archive_entry_size(entry), " bytes, expected at most ",
                       kCifar10FileBytes);
    File file(scratch.path() / *name, O_WRONLY | O_CREAT | O_TRUNC);
    while (const la_ssize_t n =
               check(archive_read_data(reader.get(), block.data(), kBlock), ARCHIVE_OK)) {
      check_cancelled(progress, source.bytes, source.bytes);
      file.write(block.data(), static_cast<size_t>(n));
    }
    file.sync();
    file.close();
  }
  try {
    read_cifar10(scratch.path());
  } catch (const DataError& e) {
    throw DataError(str(archive.string(), ": does not hold CIFAR-10, binary version: ", e.what()));
  }
  // One at a time and over those there: each name stands for a whole file at every moment.
  fs::create_directories(folder);
  for (const std::string& name : names)
    if (fs::exists(scratch.path() / name)) rename_file(scratch.path() / name, folder / name);
}

bool holds_cifar10(const fs::path& folder) {
  try {
    read_cifar10(folder);
    return true;
  } catch (const DataError&) {
    return false;
  }
}

#endif  // SINTER_WITH_DOWNLOAD

}  // namespace

#ifdef SINTER_WITH_DOWNLOAD

fs::path download_cifar10(const fs::path& dir, const DownloadProgress& progress,
                          const DownloadSource& source) try {
  const fs::path folder = dir / kCifar10Folder;
  if (holds_cifar10(folder)) return folder;
  fs::create_directories(dir);
  const fs::path archive = dir / "cifar-10-binary.tar.gz";
  if (!is_whole(archive, source, progress)) {
    fs::path name = archive;
    name += ".partial";
    File partial(name, O_RDWR | O_CREAT | O_APPEND);
    // One that has just finished has moved the file away.
    if (!partial.lock() || !partial.is_at_path())
      throw DataError(str(name.string(), ": another process is downloading to it"));
    fetch(partial, dir, source, progress);
    const std::string sum = md5(partial, progress);
    if (sum != source.md5) {
      fs::remove(name);
      throw DataError(str("download_cifar10: ", source.url, ": MD5 of the ", source.bytes,
                          " bytes is ", sum, ", expected ", source.md5,
                          "; the file was removed, nothing was unpacked. Run it again."));
    }
    partial.sync();
    rename_file(name, archive);
  }
  unpack(archive, folder, source, progress);
  fs::remove(archive);
  return folder;
} catch (const fs::filesystem_error& e) {
  throw DataError(str("download_cifar10: ", e.what()));
}

#else

fs::path download_cifar10(const fs::path& dir, const DownloadProgress&, const DownloadSource&) {
  throw DataError(
      str("download_cifar10: this build has no download; reconfigure with "
          "-DSINTER_DOWNLOAD=ON where libcurl, OpenSSL and libarchive are installed.",
          other_ways(dir)));
}

#endif

}  // namespace sinter
