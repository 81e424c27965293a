#include <unistd.h>

#include <cmath>
#include <iostream>

#include "apps/agreement.h"
#include "apps/commands.h"
#include "apps/load.h"
#include "apps/machine.h"
#include "core/base/detail.h"
#include "sinter/runtime.h"

namespace sinter::app {

namespace {

enum class Verdict { kOk, kNote, kWarning, kFailure };

void report(Verdict verdict, const std::string& what, const std::string& text) {
  constexpr const char* kNames[] = {"ok  ", "note", "WARN", "FAIL"};
  std::cout << kNames[static_cast<int>(verdict)] << "  " << what
            << std::string(what.size() < 9 ? 9 - what.size() : 1, ' ') << text << std::endl;
}

void check_threads(const Machine& m) {
  const std::string text = str(m.threads, " for the CPU kernels");
  if (m.threads > m.cores) {
    report(Verdict::kWarning, "threads",
           str(text, ", but this process may run on ", m.cores, " cores only; use --threads ",
               m.cores));
  } else if (m.quota > 0 && m.threads > std::ceil(m.quota)) {
    const int whole = static_cast<int>(std::ceil(m.quota));
    report(Verdict::kWarning, "threads",
           str(text, ", but this container is given the time of ", fixed(m.quota, 1),
               " cores; try --threads ", whole));
  } else {
    report(Verdict::kOk, "threads", str(text, ", ", m.cores, " cores allowed"));
  }
}

void check_gpus(const Machine& m) {
  // Nothing here fails: without a GPU the default `train` runs on the CPU, and says so.
  if (!cuda_built() || m.gpus.empty()) {
    report(Verdict::kNote, "CUDA", why_not_cuda());
    return;
  }
  if constexpr (cuda_built()) {
    report(Verdict::kOk, "CUDA",
           str("driver ", m.driver, ", built with toolkit ", m.toolkit, " for sm ",
               cuda_built_architectures()));
  }
  for (size_t i = 0; i < m.gpus.size(); ++i) {
    const std::string fault = why_not_cuda(static_cast<int>(i));
    report(fault.empty() ? Verdict::kOk : Verdict::kWarning, str("cuda:", i),
           m.gpus[i] + (fault.empty() ? "" : ": " + fault));
  }
}

// Whether the archive's server answers: a download into a temporary folder, left at its first
// bytes.
bool can_download(const std::filesystem::path& data_dir, std::string& reason) {
  const std::filesystem::path dir =
      std::filesystem::temp_directory_path() / str("sinter-doctor-", getpid());
  bool reached = false;
  try {
    download_cifar10(dir, [&](int64_t done, int64_t) {
      reached = done > 0;
      return !reached && !interrupted();
    });
  } catch (const DataError& e) {
    reason = e.what();
    const size_t at = reason.find(dir.string());  // its advice is about the folder that counts
    if (at != std::string::npos) reason.replace(at, dir.string().size(), data_dir.string());
  }
  std::error_code ignored;
  std::filesystem::remove_all(dir, ignored);
  check_interrupt("while trying the download");
  return reached;
}

bool check_data(const Options& options) {
  const std::filesystem::path& dir = options.data_dir;
  std::filesystem::path folder;
  try {
    folder = find_cifar10(dir);
    std::error_code error;
    if (!folder.empty() || options.data_dir_named || std::filesystem::is_regular_file(dir, error)) {
      const Dataset data = read_cifar10(dir);
      report(Verdict::kOk, "data",
             str(data.name, " in ", folder.string(), ": ", grouped(data.train.size()), " + ",
                 grouped(data.test.size()), " images"));
      return true;
    }
  } catch (const DataError& e) {
    report(Verdict::kFailure, "data",
           str(e.what(), "; ", folder.empty() ? "" : str("remove ", folder.string(), ", and "),
               "`sinter train --download` fetches it", folder.empty() ? "" : " anew"));
    return false;
  }
  std::string reason;
  const std::string absent = str("no CIFAR-10 in ", dir.string(), "; ");
  if (can_download(dir, reason)) {
    report(Verdict::kNote, "data", absent + "`sinter train` will download it (170 MB)");
  } else {
    report(Verdict::kWarning, "data",
           str(absent, "it cannot be downloaded, and `sinter train` falls back to ", kSyntheticName,
               ". ", reason));
  }
  return true;
}

bool check_training(Device device, const ImageSet& images, std::optional<Trace>& reference) {
  Job job;
  job.batch_size = images.size();  // the same batch at each step: its loss must fall
  job.shuffle = false;
  try {
    const Trace trace = trace_steps(job, images, device);
    const std::string losses =
        str("training steps lower the loss from ", fixed(trace.losses.front(), 4), " to ",
            fixed(trace.losses.back(), 4));
    if (!(trace.losses.back() < trace.losses.front())) {
      report(Verdict::kFailure, device.str(), "expected that " + losses);
      return false;
    }
    if (!reference) {
      reference = trace;
      report(Verdict::kOk, device.str(), losses);
      return true;
    }
    const Agreement agreement = compare(*reference, trace);
    report(agreement.ok() ? Verdict::kOk : Verdict::kFailure, device.str(), describe(agreement));
    return agreement.ok();
  } catch (const Error& e) {
    report(Verdict::kFailure, device.str(), e.what());
    return false;
  }
}

}  // namespace

bool doctor_command(const Options& options) {
  const Machine m = this_machine();
  std::cout << version_text() << ", " << m.compiler << ", " << m.os << "\n";
  report(Verdict::kOk, "CPU", str(m.cpu, ", SIMD ", m.simd));
  const std::string advice = blas_advice();
  report(advice.empty() ? Verdict::kOk : Verdict::kWarning, "BLAS",
         m.blas + (advice.empty() ? "" : ": " + advice));
  check_threads(m);
  check_gpus(m);
  bool well = check_data(options);
  const ImageSet images = synthetic_dataset(16, 1).train;
  std::optional<Trace> reference;
  for (const Device device : usable_devices())
    well = check_training(device, images, reference) && well;
  std::cout << (well ? "`sinter train` works here, on " + choose_device("").str()
                     : std::string("`sinter train` does not work here: see FAIL above"))
            << "\n";
  return well;
}

}  // namespace sinter::app
