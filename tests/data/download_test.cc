// download_cifar10 against file URLs and a server of this process: no network is needed.
#include <sinter/data.h>

#include "core/base/detail.h"
#include "tests/support/catch.h"
#include "tests/support/temp_dir.h"

using namespace sinter;
using sinter::test::check_throws;
using sinter::test::TempDir;

TEST_CASE("download: the official archive", "[data]") {
  const DownloadSource source = cifar10_source();
  CHECK(source.url == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz");
  CHECK(source.md5 == "c32a1d4ab5d03f1284b67883e8d87530");
  CHECK(source.bytes == 170052171);
}

#ifndef SINTER_WITH_DOWNLOAD

TEST_CASE("download: a build without it says so", "[data]") {
  const TempDir dir;
  check_throws<DataError>([&] { download_cifar10(dir.path()); },
                          {"no download", "-DSINTER_DOWNLOAD=ON", "--dataset synthetic"});
  CHECK(dir.entries() == 0);
}

#else

#include <archive.h>
#include <archive_entry.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

using sinter::test::read_file;
using sinter::test::write_file;

namespace {

// ---- archives -----------------------------------------------------------------------------------

struct ArchiveEntry {
  std::string path, contents = {};
  unsigned type = AE_IFREG;
  std::string link = {};
};

std::string make_archive(const std::vector<ArchiveEntry>& entries) {
  const TempDir dir;
  struct archive* out = archive_write_new();
  archive_write_add_filter_gzip(out);
  archive_write_set_options(out, "gzip:compression-level=1");
  archive_write_set_format_ustar(out);
  REQUIRE(archive_write_open_filename(out, (dir / "a").c_str()) == ARCHIVE_OK);
  for (const ArchiveEntry& e : entries) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, e.path.c_str());
    archive_entry_set_filetype(entry, e.type);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, static_cast<la_int64_t>(e.contents.size()));
    if (e.type == AE_IFLNK) archive_entry_set_symlink(entry, e.link.c_str());
    REQUIRE(archive_write_header(out, entry) == ARCHIVE_OK);
    if (!e.contents.empty())
      REQUIRE(archive_write_data(out, e.contents.data(), e.contents.size()) ==
              static_cast<la_ssize_t>(e.contents.size()));
    archive_entry_free(entry);
  }
  REQUIRE(archive_write_close(out) == ARCHIVE_OK);
  archive_write_free(out);
  return read_file(dir / "a");
}

// The layout of the official archive, all zeros: 0.8 MB for 184 MB.
const std::string& whole_archive() {
  static const std::string bytes = [] {
    std::vector<ArchiveEntry> entries = {{"cifar-10-batches-bin/", "", AE_IFDIR, ""}};
    const std::string zeros(kCifar10FileBytes, '\0');
    for (const char* name : kCifar10Files)
      entries.push_back({std::string("cifar-10-batches-bin/") + name, zeros, AE_IFREG, ""});
    entries.push_back({"cifar-10-batches-bin/batches.meta.txt", "airplane\n", AE_IFREG, ""});
    entries.push_back({"cifar-10-batches-bin/readme.html", "<html>", AE_IFREG, ""});
    return make_archive(entries);
  }();
  return bytes;
}

std::string md5(const std::string& bytes) {
  unsigned char sum[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  REQUIRE(EVP_Digest(bytes.data(), bytes.size(), sum, &length, EVP_md5(), nullptr) == 1);
  std::string hex;
  for (unsigned int i = 0; i < length; ++i) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", sum[i]);
    hex += digits;
  }
  return hex;
}

// Some bytes that do not compress and are no archive: enough for everything before unpacking.
std::string noise(size_t size) {
  std::string bytes(size, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

DownloadSource source_of(const std::string& url, const std::string& bytes) {
  return {url, md5(bytes), static_cast<int64_t>(bytes.size())};
}

// ---- server -------------------------------------------------------------------------------------

// Serves one body over HTTP on the loopback interface, one connection after another.
class Server {
 public:
  struct Behaviour {
    bool ranges = true;          // 206 from where the client asks, else 200 and all of it
    int status = 0;              // another status than 200 or 206, with no body
    bool unsatisfiable = false;  // 416 whenever a range is asked for
    int64_t break_after = -1;    // body bytes after which the connection is dropped
    int64_t wrong_start = 0;     // added to the first byte of a range
    std::string location = {};   // of a redirection, for the path "/from"
    bool stall = false;          // answer nothing until the client goes away
  };

  explicit Server(std::string body) : body_(std::move(body)) {
    // A proxy of the environment would not find this server.
    setenv("no_proxy", "127.0.0.1", 1);
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        listen(listener_, 8) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0)
      throw std::runtime_error("cannot listen on the loopback interface");
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~Server() {
    stop_ = true;
    thread_.join();
    close(listener_);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  std::string url(const std::string& path = "/archive") const {
    return str("http://127.0.0.1:", port_, path);
  }
  // From the next request on.
  void behave(Behaviour behaviour) {
    const std::lock_guard lock(mutex_);
    behaviour_ = std::move(behaviour);
  }
  // Where the requests since the last call asked to begin, in order; -1: they named no range.
  std::vector<int64_t> requests() {
    const std::lock_guard lock(mutex_);
    return std::exchange(requests_, {});
  }

 private:
  void serve() {
    while (!stop_) {
      pollfd wait{listener_, POLLIN, 0};
      if (poll(&wait, 1, 20) <= 0) continue;
      const int client = accept(listener_, nullptr, nullptr);
      if (client < 0) continue;
      answer(client);
      close(client);
    }
  }
  void answer(int client) {
    std::string request;
    char buffer[4096];
    while (request.find("\r\n\r\n") == std::string::npos) {
      const ssize_t n = recv(client, buffer, sizeof(buffer), 0);
      if (n <= 0) return;
      request.append(buffer, static_cast<size_t>(n));
    }
    const size_t range = request.find("Range: bytes=");
    const int64_t asked = range == std::string::npos ? -1 : std::atoll(&request[range + 13]);
    Behaviour b;
    {
      const std::lock_guard lock(mutex_);
      b = behaviour_;
      requests_.push_back(asked);
    }
    const auto size = static_cast<int64_t>(body_.size());
    if (b.stall) {
      pollfd gone{client, POLLIN, 0};
      while (!stop_ && poll(&gone, 1, 20) == 0) {
      }
      return;
    }
    if (!b.location.empty() && request.rfind("GET /from ", 0) == 0)
      return send_all(client, str("HTTP/1.1 302 Found\r\nLocation: ", b.location,
                                  "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    if (b.status != 0)
      return send_all(client, str("HTTP/1.1 ", b.status,
                                  " No\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry"));
    if (asked >= 0 && (b.unsatisfiable || (b.ranges && asked >= size)))
      return send_all(client, str("HTTP/1.1 416 No\r\nContent-Range: bytes */", size,
                                  "\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry"));
    const bool part = asked >= 0 && b.ranges;
    const int64_t first = part ? asked + b.wrong_start : 0;
    std::string head =
        part ? str("HTTP/1.1 206 Part\r\nContent-Range: bytes ", first, "-", size - 1, "/", size)
             : std::string("HTTP/1.1 200 OK");
    head += str("\r\nContent-Length: ", size - first, "\r\nConnection: close\r\n\r\n");
    std::string body = body_.substr(static_cast<size_t>(first));
    if (b.break_after >= 0) body.resize(std::min<size_t>(body.size(), b.break_after));
    send_all(client, head + body);
  }
  static void send_all(int client, const std::string& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = send(client, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return;  // the client cancelled
      done += static_cast<size_t>(n);
    }
    shutdown(client, SHUT_WR);
  }

  std::string body_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  Behaviour behaviour_;
  std::vector<int64_t> requests_;
  std::thread thread_;
};

constexpr const char* kArchive = "cifar-10-binary.tar.gz";
constexpr const char* kPartial = "cifar-10-binary.tar.gz.partial";

// The message with which a download fails; what it left is for the caller to look at.
std::string failure(const std::filesystem::path& dir, const DownloadSource& source,
                    const DownloadProgress& progress = {}) {
  try {
    download_cifar10(dir, progress, source);
  } catch (const DataError& e) {
    return e.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) {
  INFO(text);
  INFO("expected in it: " << part);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

// ---- from the request to the files --------------------------------------------------------------

TEST_CASE("download: interrupted, resumed and unpacked", "[data]") {
  const TempDir dir;
  const auto data = dir / "data";  // created
  const std::string& archive = whole_archive();
  Server server(archive);
  const DownloadSource source = source_of(server.url("/from"), archive);
  const auto half = static_cast<int64_t>(archive.size() / 2);
  std::filesystem::create_directories(data);
  write_file(data / kPartial, archive.substr(0, static_cast<size_t>(half)));
  server.behave({.location = "/archive"});

  int64_t first = -1, last = -1;
  bool ascending = true;
  const auto folder = download_cifar10(
      data,
      [&](int64_t done, int64_t total) {
        if (first < 0) first = done;
        ascending = ascending && done >= last && total == source.bytes;
        last = done;
        return true;
      },
      source);
  CHECK(folder == data / kCifar10Folder);
  CHECK(server.requests() == std::vector<int64_t>{half, half});  // before and after redirection
  CHECK(first == half);
  CHECK(last == source.bytes);
  CHECK(ascending);
  const Dataset set = read_cifar10(data);
  CHECK(set.train.size() == 50000);
  CHECK(set.test.size() == 10000);
  CHECK(read_file(folder / "batches.meta.txt") == "airplane\n");
  CHECK(dir.entries() == 1 + 1 + 7);  // the two folders and their files, nothing else

  SECTION("whole files are not fetched again") {
    CHECK(download_cifar10(data, {}, source) == folder);
    CHECK(server.requests().empty());
  }
  SECTION("a damaged file is replaced, from an archive that lies there") {
    std::filesystem::resize_file(folder / "data_batch_4.bin", 1000);
    write_file(folder / "mine.txt", "kept");
    write_file(data / kArchive, archive);
    CHECK(download_cifar10(data, {}, source) == folder);
    CHECK(server.requests().empty());
    CHECK(read_cifar10(data).train.size() == 50000);
    CHECK(read_file(folder / "mine.txt") == "kept");
    CHECK(dir.entries() == 1 + 1 + 8);
  }
}

TEST_CASE("download: from a file", "[data]") {
  const TempDir dir;
  write_file(dir / "source", whole_archive());
  const DownloadSource source = source_of("file://" + (dir / "source").string(), whole_archive());
  write_file(dir / kPartial, whole_archive().substr(0, 1000));
  SECTION("cancelled while unpacking, then again") {
    // All is there when unpacking begins; it reports more than once.
    int complete = 0;
    const std::string message = failure(dir.path(), source, [&](int64_t done, int64_t total) {
      return done < total || ++complete < 12;
    });
    contains(message, "cancelled");
    CHECK(dir.entries() == 2);  // the source and the archive: nothing half unpacked
    CHECK(read_file(dir / kArchive) == whole_archive());
  }
  const auto folder = download_cifar10(dir.path(), {}, source);
  CHECK(read_cifar10(folder).train.size() == 50000);
  CHECK(dir.entries() == 1 + 1 + 7);
}

// ---- transfers, up to the checksum --------------------------------------------------------------

TEST_CASE("download: transfers that go wrong", "[data]") {
  const TempDir dir;
  const std::string body = noise(400'000);
  Server server(body);
  const DownloadSource source = source_of(server.url(), body);
  const auto have = [&](size_t bytes) { write_file(dir / kPartial, body.substr(0, bytes)); };
  // This body is no archive: the transfer and the checksum succeeded if unpacking is what failed.
  const auto fetched = [&](const std::string& message) {
    contains(message, "cannot unpack");
    CHECK(read_file(dir / kArchive) == body);
    CHECK(dir.entries() == 1);
  };

  SECTION("nothing there yet") {
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{-1});
  }
  SECTION("resumed: 206") {
    have(150'000);
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{150'000});
  }
  SECTION("all of it there: nothing is asked for") {
    have(body.size());
    fetched(failure(dir.path(), source));
    CHECK(server.requests().empty());
  }
  SECTION("more than all of it there: from the start") {
    write_file(dir / kPartial, body + "more");
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{-1});
  }
  SECTION("a server that ignores the range: 200, from the start") {
    have(150'000);
    server.behave({.ranges = false});
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{150'000, -1});
  }
  SECTION("a server that refuses the range: 416, from the start") {
    have(150'000);
    server.behave({.unsatisfiable = true});
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{150'000, -1});
  }
  SECTION("a server that answers another range: from the start") {
    have(150'000);
    server.behave({.wrong_start = 7});
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{150'000, -1});
  }
  SECTION("connections that break are resumed") {
    server.behave({.break_after = 150'000});
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{-1, 150'000, 300'000});
  }
  SECTION("a connection that always breaks: what came is kept") {
    server.behave({.break_after = 1000});
    const std::string message = failure(dir.path(), source);
    contains(message, "of 400000 bytes, kept");
    contains(message, "by hand");
    const std::string partial = read_file(dir / kPartial);
    CHECK(partial.size() >= 1000);
    CHECK(partial == body.substr(0, partial.size()));
    server.behave({});
    server.requests();
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{static_cast<int64_t>(partial.size())});
  }
  SECTION("a wrong checksum") {
    have(1000);
    const DownloadSource wrong = {source.url, md5("something else"), source.bytes};
    const std::string message = failure(dir.path(), wrong);
    contains(message, "MD5 of the 400000 bytes is " + source.md5 + ", expected " + wrong.md5);
    contains(message, "removed");
    CHECK(dir.entries() == 0);
  }
  SECTION("a damaged partial file") {
    write_file(dir / kPartial, std::string(1000, 'x'));
    contains(failure(dir.path(), source), "MD5");
    CHECK(dir.entries() == 0);
    fetched(failure(dir.path(), source));
  }
  SECTION("a file that is too short") {
    const DownloadSource longer = {source.url, source.md5, source.bytes + 1};
    contains(failure(dir.path(), longer), "has 400000 bytes, expected 400001");
    CHECK(dir.entries() == 0);
  }
  SECTION("a file that is too long") {
    const DownloadSource shorter = {source.url, source.md5, source.bytes - 1};
    contains(failure(dir.path(), shorter), "bytes, expected 399999");
    CHECK(dir.entries() == 0);
  }
  SECTION("404") {
    server.behave({.status = 404});
    const std::string message = failure(dir.path(), source);
    contains(message, source.url);
    contains(message, "404");
    contains(message, "--dataset synthetic");
    CHECK(dir.entries() == 0);
  }
  SECTION("503 does not spoil what is there") {
    have(1000);
    server.behave({.status = 503});
    contains(failure(dir.path(), source), "after 1000 of 400000 bytes, kept");
    CHECK(read_file(dir / kPartial) == body.substr(0, 1000));
  }
  SECTION("cancelled, then resumed") {
    have(1000);
    server.behave({.stall = true});
    const std::string message = failure(dir.path(), source, [](int64_t, int64_t) { return false; });
    contains(message, "cancelled");
    CHECK(read_file(dir / kPartial) == body.substr(0, 1000));
    server.behave({});
    server.requests();
    fetched(failure(dir.path(), source));
    CHECK(server.requests() == std::vector<int64_t>{1000});
  }
  SECTION("what the callback throws reaches the caller") {
    CHECK_THROWS_AS(
        download_cifar10(
            dir.path(), [](int64_t, int64_t) -> bool { throw std::domain_error("x"); }, source),
        std::domain_error);
  }
  SECTION("another process is at it") {
    have(1000);
    const int other = open((dir / kPartial).c_str(), O_RDONLY | O_CLOEXEC);
    REQUIRE(flock(other, LOCK_EX) == 0);
    contains(failure(dir.path(), source), "another process");
    close(other);
    CHECK(read_file(dir / kPartial) == body.substr(0, 1000));
  }
}

TEST_CASE("download: no network, no file, no folder", "[data]") {
  const TempDir dir;
  const DownloadSource nowhere = {"http://127.0.0.1:1/archive", "", 100};
  const std::string message = failure(dir.path(), nowhere);
  contains(message, "http://127.0.0.1:1/archive");
  contains(message, (dir / kCifar10Folder).string() + " by hand");
  contains(message, "--dataset synthetic");
  contains(failure(dir.path(), {"file://" + (dir / "absent").string(), "", 100}), "absent");
  contains(failure(dir.path(), {"nonsense://x", "", 100}), "nonsense");
  CHECK(dir.entries() == 0);
  write_file(dir / "file", "");
  contains(failure(dir / "file", nowhere), "Not a directory");
}

// ---- archives -----------------------------------------------------------------------------------

TEST_CASE("download: archives that hold something else", "[data]") {
  const TempDir dir;
  const auto data = dir / "data", folder = data / kCifar10Folder;
  const std::string name = "cifar-10-batches-bin/data_batch_1.bin";
  std::string message = "neither here nor in";
  std::string archive;

  SECTION("no CIFAR-10") { archive = make_archive({{"x", "y"}}); }
  SECTION("paths that lead out") {
    const std::string above = "../" + name, absolute = (dir / "data_batch_1.bin").string();
    archive = make_archive({{above, "evil"},
                            {absolute, "evil"},
                            {"cifar-10-batches-bin/../../data_batch_1.bin", "evil"},
                            {"cifar-10-batches-bin/../../mine", "evil"}});
  }
  SECTION("a link under an expected name") {
    write_file(dir / "target", "mine");
    archive = make_archive({{name, "", AE_IFLNK, (dir / "target").string()}, {name, ""}});
    message = "ends at byte 0";
  }
  SECTION("a file that is too short") {
    archive = make_archive({{name, std::string(3073, '\0')}});
    message = "ends at byte 3073, expected 30730000";
  }
  SECTION("a file that is too long") {
    archive = make_archive({{name, std::string(kCifar10FileBytes + 1, '\0')}});
    message = "data_batch_1.bin has 30730001 bytes, expected at most 30730000";
  }
  SECTION("cut off, though with that checksum") {
    archive = make_archive({{name, noise(100'000)}});
    archive.resize(archive.size() / 2);
    message = "cannot unpack";
  }
  std::filesystem::create_directories(folder);
  write_file(folder / "data_batch_1.bin", "mine");
  write_file(folder / "data_batch_2.bin", "mine too");
  write_file(dir / "source", archive);
  const std::string got = failure(data, source_of("file://" + (dir / "source").string(), archive));
  contains(got, kArchive);
  contains(got, message);
  // What was there is as it was, and nothing was added but the archive.
  CHECK(read_file(folder / "data_batch_1.bin") == "mine");
  CHECK(read_file(folder / "data_batch_2.bin") == "mine too");
  std::filesystem::remove(data / kArchive);
  std::filesystem::remove(dir / "source");
  std::filesystem::remove(dir / "target");
  CHECK(dir.entries() == 4);
}

#endif
