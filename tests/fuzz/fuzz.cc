#include "tests/fuzz/fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/base/detail.h"
#include "tests/support/temp_dir.h"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define SINTER_FUZZ_ASAN
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SINTER_FUZZ_ASAN
#endif
#ifdef SINTER_FUZZ_ASAN
// As in <sanitizer/allocator_interface.h>: GCC brings the functions, but not that header.
extern "C" {
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, size_t),
                                              void (*on_free)(const volatile void*));
size_t __sanitizer_get_allocated_size(const volatile void* p);
}
#endif

namespace sinter::fuzz {

void expect(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "FINDING: %s\n", what.c_str());
  std::abort();
}

MemoryFile::MemoryFile(Bytes bytes) : descriptor_(::memfd_create("sinter-fuzz", MFD_CLOEXEC)) {
  expect(descriptor_ >= 0, "memfd_create failed");
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::write(descriptor_, bytes.data() + done, bytes.size() - done);
    expect(n > 0, "cannot write to a file in memory");
    done += static_cast<size_t>(n);
  }
}

MemoryFile::~MemoryFile() { ::close(descriptor_); }

std::filesystem::path MemoryFile::path() const { return str("/proc/self/fd/", descriptor_); }

std::filesystem::path scratch_file() {
  // In memory where there is such a folder: saving waits for the disk.
  static const test::TempDir dir = [] {
    if (std::filesystem::is_directory("/dev/shm")) ::setenv("TMPDIR", "/dev/shm", 0);
    return test::TempDir();
  }();
  return dir / "written";
}

// ---- memory -------------------------------------------------------------------------------------

#ifdef SINTER_FUZZ_ASAN
namespace {

std::atomic<bool> watching = false;
std::atomic<int64_t> in_use = 0, peak = 0;

void on_malloc(const volatile void*, size_t bytes) {
  if (!watching) return;
  const int64_t now = in_use += static_cast<int64_t>(bytes);
  int64_t most = peak;
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
}

void on_free(const volatile void* p) {
  if (!watching || p == nullptr) return;
  in_use -= static_cast<int64_t>(__sanitizer_get_allocated_size(p));
}

}  // namespace

PeakMemory::PeakMemory() {
  static const int installed = __sanitizer_install_malloc_and_free_hooks(&on_malloc, &on_free);
  expect(installed > 0, "cannot watch the allocator");
  in_use = peak = 0;
  watching = true;
}
PeakMemory::~PeakMemory() { watching = false; }
size_t PeakMemory::bytes() const { return static_cast<size_t>(peak.load()); }
#else
PeakMemory::PeakMemory() = default;
PeakMemory::~PeakMemory() = default;
size_t PeakMemory::bytes() const { return 0; }
#endif

// ---- properties ---------------------------------------------------------------------------------

void expect_clear(const std::string& message, const std::string& file) {
  expect(message.rfind(file + ": ", 0) == 0,
         "the message does not begin with the file: " + message);
  expect(message.size() > file.size() + 10, "the message says nothing: " + message);
  expect(message.size() < file.size() + 700,
         str("a message of ", message.size(), " bytes: ", message.substr(0, 300)));
  // Nothing a terminal would obey, nor half a character.
  expect(std::all_of(message.begin(), message.end(), [](char c) { return ' ' <= c && c <= '~'; }),
         "not only printable ASCII: " + message);
}

void expect_same(NamedTensors a, NamedTensors b) {
  expect(a.size() == b.size(), str(a.size(), " tensors, then ", b.size()));
  const auto by_name = [](const auto& x, const auto& y) { return x.first < y.first; };
  std::sort(a.begin(), a.end(), by_name);
  std::sort(b.begin(), b.end(), by_name);
  for (size_t i = 0; i < a.size(); ++i) {
    const auto& [name, x] = a[i];
    const Tensor& y = b[i].second;
    expect(name == b[i].first, "a name changed: " + name);
    expect(x.dtype() == y.dtype() && x.shape() == y.shape(), "dtype or shape changed: " + name);
    expect(x.bytes() == 0 || std::memcmp(x.raw(), y.raw(), x.bytes()) == 0,
           "elements changed: " + name);
  }
}

}  // namespace sinter::fuzz
