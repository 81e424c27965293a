// The profiler: CUPTI's activity records, collected.
//
// CUPTI is opened when the first profile is asked for, not linked: programs that use the library
// run where it is not installed.
#include "core/base/detail.h"
#include "kernels_cuda/runtime/check.cuh"
#include "kernels_cuda/runtime/shared_library.h"
#include "sinter/profile.h"

#ifdef SINTER_WITH_CUPTI
#include <cupti.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <utility>
#endif

namespace sinter {

#ifdef SINTER_WITH_CUPTI
namespace cuda {
namespace {

// CUPTI may be of a later release than the headers: records only ever grow at their end, so the
// oldest struct that has the fields reads those of every release from CUDA 11.8 on.
using KernelRecord = CUpti_ActivityKernel8;
using CopyRecord = CUpti_ActivityMemcpy5;
using FillRecord = CUpti_ActivityMemset4;

constexpr CUpti_ActivityKind kKinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                                         CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET};

// The functions of the loaded library.
struct Cupti {
  decltype(&cuptiGetResultString) result_string = nullptr;
  decltype(&cuptiActivityRegisterCallbacks) register_callbacks = nullptr;
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityDisable) disable = nullptr;
  decltype(&cuptiActivityFlushAll) flush = nullptr;
  decltype(&cuptiActivityGetNextRecord) next_record = nullptr;
  decltype(&cuptiActivityGetNumDroppedRecords) dropped_records = nullptr;
};

// What the callbacks, which run on threads of CUPTI's, have collected. Never destroyed: they may
// still come while the process ends.
struct Collected {
  std::mutex mutex;
  std::vector<GpuActivity> activities;
  bool failed = false;  // a record could not be kept
  bool recording = false;
};
Collected& collected() {
  static auto& all = *new Collected;
  return all;
}

Cupti load_cupti() {
  const SharedLibrary library(
      str("libcupti.so.", CUDART_VERSION / 1000), SINTER_CUPTI_LIBRARY, "profiling",
      "install CUPTI (part of the CUDA toolkit) or add its folder to LD_LIBRARY_PATH");
  Cupti cupti;
  library.find("cuptiGetResultString", cupti.result_string);
  library.find("cuptiActivityRegisterCallbacks", cupti.register_callbacks);
  library.find("cuptiActivityEnable", cupti.enable);
  library.find("cuptiActivityDisable", cupti.disable);
  library.find("cuptiActivityFlushAll", cupti.flush);
  library.find("cuptiActivityGetNextRecord", cupti.next_record);
  library.find("cuptiActivityGetNumDroppedRecords", cupti.dropped_records);
  return cupti;
}

// Throws Error if the library cannot be had; a later call tries again.
const Cupti& cupti() {
  static const Cupti functions = load_cupti();
  return functions;
}

// Throws E with what `doing` failed of, and how to help it.
template <class E> void check_cupti(CUptiResult result, const char* doing) {
  if (result == CUPTI_SUCCESS) return;
  const char* name = nullptr;
  if (cupti().result_string(result, &name) != CUPTI_SUCCESS) name = nullptr;
  std::string message = str("profiling: ", doing, ": ", name == nullptr ? "CUPTI error" : name,
                            " (", static_cast<int>(result), ")");
  if (result == CUPTI_ERROR_INSUFFICIENT_PRIVILEGES ||
      result == CUPTI_ERROR_VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES) {
    message +=
        "; the driver keeps profiling to administrators: run as root (a container also needs "
        "CAP_SYS_ADMIN), or load the driver's module with NVreg_RestrictProfilingToAdminUsers=0";
  }
  if (result == CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED ||
      result == CUPTI_ERROR_OLD_PROFILER_API_INITIALIZED) {
    message += "; another profiler is active: run without nsys, ncu or a debugger";
  }
  throw E(message);
}

std::string demangled(const char* name) {
  if (name == nullptr) return "(unnamed kernel)";
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 && text != nullptr ? text : name;
  std::free(text);
  return result;
}

// Records are packed structs: a copy of one may be read field by field.
template <class Record> GpuActivity common_part(const Record& r) {
  GpuActivity activity;
  activity.start = static_cast<int64_t>(r.start);
  activity.end = static_cast<int64_t>(r.end);
  activity.stream = r.streamId;
  activity.graph_node = r.graphNodeId;
  return activity;
}

void keep(Collected& all, const CUpti_Activity* record) {
  GpuActivity activity;
  switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_KERNEL:
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      const auto& r = *reinterpret_cast<const KernelRecord*>(record);
      activity = common_part(r);
      activity.name = demangled(r.name);
      activity.grid = {r.gridX, r.gridY, r.gridZ};
      activity.block = {r.blockX, r.blockY, r.blockZ};
      activity.registers = r.registersPerThread;
      activity.shared_bytes = int64_t{r.staticSharedMemory} + r.dynamicSharedMemory;
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto& r = *reinterpret_cast<const CopyRecord*>(record);
      activity = common_part(r);
      activity.name = "copy";
      activity.bytes = static_cast<int64_t>(r.bytes);
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto& r = *reinterpret_cast<const FillRecord*>(record);
      activity = common_part(r);
      activity.name = "fill";
      activity.bytes = static_cast<int64_t>(r.bytes);
      break;
    }
    default:
      return;
  }
  // 0: CUPTI could not tell when it ran.
  if (activity.start == 0 || activity.end < activity.start) all.failed = true;
  all.activities.push_back(std::move(activity));
}

constexpr size_t kBufferBytes = size_t{4} << 20;

void CUPTIAPI buffer_requested(uint8_t** buffer, size_t* bytes, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::malloc(kBufferBytes));  // null: CUPTI counts lost records
  *bytes = *buffer == nullptr ? 0 : kBufferBytes;
  *most_records = 0;  // as many as it holds
}

void CUPTIAPI buffer_completed(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid_bytes) {
  Collected& all = collected();
  {
    const std::lock_guard lock(all.mutex);
    try {
      CUpti_Activity* record = nullptr;
      CUptiResult result = CUPTI_SUCCESS;
      while (valid_bytes > 0 &&
             (result = cupti().next_record(buffer, valid_bytes, &record)) == CUPTI_SUCCESS)
        keep(all, record);
      if (result != CUPTI_SUCCESS && result != CUPTI_ERROR_MAX_LIMIT_REACHED) all.failed = true;
    } catch (...) {  // nothing may be thrown into CUPTI
      all.failed = true;
    }
  }
  std::free(buffer);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

std::string profiler_unavailable() {
  try {
    cupti();
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

Profiler::Profiler() {
  const Cupti& api = cupti();
  Collected& all = collected();
  {
    const std::lock_guard lock(all.mutex);
    require<Error>(!all.recording, "profiling: another Profiler of this process is recording");
    all.recording = true;
    all.failed = false;
    all.activities.clear();
  }
  try {
    check_cupti<Error>(api.register_callbacks(buffer_requested, buffer_completed),
                       "registering for records");
    for (const CUpti_ActivityKind kind : kKinds)
      check_cupti<Error>(api.enable(kind), "switching the recording on");
  } catch (...) {
    for (const CUpti_ActivityKind kind : kKinds) api.disable(kind);
    const std::lock_guard lock(all.mutex);
    all.recording = false;
    throw;
  }
}

Profiler::~Profiler() {
  const Cupti& api = cupti();
  for (const CUpti_ActivityKind kind : kKinds) api.disable(kind);
  api.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  const std::lock_guard lock(collected().mutex);
  collected().recording = false;
  collected().activities.clear();
}

std::vector<GpuActivity> Profiler::take() {
  const Cupti& api = cupti();
  SINTER_CUDA_CHECK(cudaDeviceSynchronize());
  // Forced, as a buffer that is not full stays with CUPTI otherwise. All its records are complete.
  check_cupti<CudaError>(api.flush(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED), "collecting the records");
  size_t dropped = 0;
  check_cupti<CudaError>(api.dropped_records(nullptr, 0, &dropped), "counting lost records");
  std::vector<GpuActivity> result;
  bool failed = false;
  {
    Collected& all = collected();
    const std::lock_guard lock(all.mutex);
    result = std::exchange(all.activities, {});
    failed = std::exchange(all.failed, false);
  }
  require<CudaError>(dropped == 0 && !failed, "profiling: activities were lost (", dropped,
                     " dropped by CUPTI); profile fewer steps at a time");
  std::stable_sort(result.begin(), result.end(),
                   [](const auto& a, const auto& b) { return a.start < b.start; });
  return result;
}

#else  // without CUPTI

std::string profiler_unavailable() {
  return "profiling unavailable: built without CUPTI; install it (part of the CUDA toolkit) and "
         "reconfigure";
}
Profiler::Profiler() { throw Error(profiler_unavailable()); }
Profiler::~Profiler() = default;
std::vector<GpuActivity> Profiler::take() { return {}; }  // there is no profiler to ask

#endif

}  // namespace sinter
