#include "apps/machine.h"

#include <sys/utsname.h>

#include <fstream>
#include <set>
#include <sstream>

#include "apps/console.h"
#include "commit.h"
#include "core/base/detail.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

// What follows `key`, blanks and `separator` on the first line of `file` that starts with key.
std::string value_in(const char* file, const std::string& key, char separator) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t at = line.find(separator);
    if (line.rfind(key, 0) != 0 || at == std::string::npos) continue;
    const size_t first = line.find_first_not_of(" \t\"", at + 1);
    const size_t last = line.find_last_not_of(" \t\"");
    return first == std::string::npos ? "" : line.substr(first, last - first + 1);
  }
  return "";
}

std::string cpu_name() {
  std::string name = value_in("/proc/cpuinfo", "model name", ':');
  if (name.empty()) {  // not given on most ARM machines
    utsname system{};
    uname(&system);
    name = str("unknown ", system.machine, " CPU");
  }
  return name;
}

std::string cuda_version(int version) {  // 13000
  return str(version / 1000, ".", version % 1000 / 10);
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul …": the first word that is a
// version.
std::string kernel_driver() {
  std::ifstream in("/proc/driver/nvidia/version");
  std::string word;
  while (in >> word) {
    if (word.find('.') != std::string::npos &&
        word.find_first_not_of("0123456789.") == std::string::npos)
      return word;
  }
  return "";
}

std::string driver_text() {
  const std::string kernel = kernel_driver();
  if constexpr (cuda_built()) {
    const int supported = cuda_driver_version();
    if (supported != 0) {
      return str(kernel.empty() ? "unknown version" : kernel, " (CUDA ", cuda_version(supported),
                 ")");
    }
  }
  return kernel.empty() ? "none" : kernel;
}

std::string toolkit_text() {
  if constexpr (cuda_built()) return cuda_version(cuda_toolkit_version());
  return "none (CPU-only build)";
}

}  // namespace

std::string version_text() {
  std::string text = str("sinter ", SINTER_VERSION, " (", SINTER_COMMIT, "), CPU");
  if constexpr (cuda_built())
    text += str(" and CUDA ", toolkit_text(), " for sm ", cuda_built_architectures());
  return text;
}

std::string why_not_cuda(int index) {
  if constexpr (cuda_built()) {
    if (cuda_device_count() == 0) return cuda_unavailable();
    return cuda_device_info(index).usable;
  }
  if (!kernel_driver().empty()) {
    return "this machine has an NVIDIA driver, but this build has no CUDA backend; reconfigure "
           "with -DSINTER_CUDA=ON";
  }
  return "this build has no CUDA backend, and this machine no NVIDIA driver";
}

std::vector<Device> usable_devices() {
  std::vector<Device> devices = {kCpu};
  for (int i = 0; i < cuda_device_count(); ++i) {
    if (why_not_cuda(i).empty()) devices.push_back(cuda(i));
  }
  return devices;
}

Device choose_device(const std::string& name) {
  if (name.empty()) return why_not_cuda().empty() ? cuda(0) : kCpu;
  const Device device = Device::parse(name);
  require_usable(device);
  return device;
}

std::vector<Device> devices_asked_for(const char* option, const std::vector<std::string>& names) {
  if (names.empty()) return usable_devices();
  std::vector<Device> devices;
  for (const std::string& name : names) {
    const Device device = choose_device(name);
    if (std::find(devices.begin(), devices.end(), device) != devices.end())
      throw UsageError(str(option, ": expected each device once, got ", device.str(), " twice"));
    devices.push_back(device);
  }
  return devices;
}

std::string describe(Device device) {
  if constexpr (cuda_built()) {
    if (device.is_cuda()) return cuda_device_info(device.index).name;
  }
  return str(cpu_name(), ", ", num_threads(), num_threads() == 1 ? " thread" : " threads");
}

Machine this_machine() {
  Machine m;
  m.cpu = cpu_name();
  const CpuLimits limits = cpu_limits();
  m.cores = limits.cores;
  m.quota = limits.quota;
  m.threads = num_threads();
  m.simd = simd_target();
  const BlasInfo blas = blas_info();
  m.blas = blas.name + (blas.kernels.empty() ? "" : ", " + blas.kernels + " kernels");
  if constexpr (cuda_built()) {
    for (int i = 0; i < cuda_device_count(); ++i) {
      const CudaDeviceInfo info = cuda_device_info(i);
      m.gpus.push_back(str(info.name, " (sm_", info.major, info.minor, ", ", info.multiprocessors,
                           " multiprocessors, ", info.total_bytes >> 20, " MiB)"));
    }
  }
  m.driver = driver_text();
  m.toolkit = toolkit_text();
#ifdef __clang__
  m.compiler = str("clang ", __clang_version__);
#else
  m.compiler = str("g++ ", __VERSION__);
#endif
  utsname system{};
  uname(&system);
  const std::string distribution = value_in("/etc/os-release", "PRETTY_NAME", '=');
  m.os = str(distribution, distribution.empty() ? "" : ", ", system.sysname, " ", system.release);
  m.commit = SINTER_COMMIT;
  return m;
}

std::string markdown(const Machine& m) {
  std::ostringstream out;
  out << "- CPU: " << m.cpu << ", " << m.cores << " cores allowed, threads: " << m.threads << "\n"
      << "- SIMD: " << m.simd << "; BLAS: " << m.blas << "\n";
  for (size_t i = 0; i < m.gpus.size(); ++i) out << "- cuda:" << i << ": " << m.gpus[i] << "\n";
  out << "- Driver: " << m.driver << "; CUDA toolkit: " << m.toolkit << "\n"
      << "- Build: sinter " << SINTER_VERSION << ", commit " << m.commit << ", " << m.compiler
      << "; " << m.os << "\n";
  return out.str();
}

std::string better_blas_kernels() {
#if defined(__x86_64__)
  static const std::set<std::string> kWithoutAvx2 = {
      "Katmai",      "Coppermine", "Northwood",    "Prescott",    "Banias",    "Atom",
      "Core2",       "Penryn",     "Dunnington",   "Nehalem",     "Athlon",    "Opteron",
      "Barcelona",   "Bobcat",     "Opteron_SSE3", "Sandybridge", "Bulldozer", "Piledriver",
      "Steamroller", "Nano",       "Generic"};
  if (!__builtin_cpu_supports("avx2") || kWithoutAvx2.count(blas_info().kernels) == 0) return "";
  const bool amd = value_in("/proc/cpuinfo", "vendor_id", ':') == "AuthenticAMD";
  return amd ? "Zen" : __builtin_cpu_supports("avx512f") ? "SkylakeX" : "Haswell";
#else
  return "";
#endif
}

std::string blas_advice() {
  const std::string better = better_blas_kernels();
  if (better.empty()) return "";
  return str("OpenBLAS took its ", blas_info().kernels, " kernels, which leave most of this CPU ",
             "unused; set OPENBLAS_CORETYPE=", better, " in the environment");
}

}  // namespace sinter::app
