// The machine a command runs on: its devices, and what a benchmark's reader has to know.
#pragma once

#include <string>
#include <vector>

#include "sinter/tensor.h"

namespace sinter::app {

std::string version_text();  // "sinter 0.1.0 (b58d72c), CPU and CUDA 13.0"

// Why kernels cannot run on GPU `index`, and what to do; empty if they can.
std::string why_not_cuda(int index = 0);
std::vector<Device> usable_devices();  // the CPU first
// The device named, or where `name` is empty cuda if it is usable, else cpu. Throws DeviceError for
// a named device that cannot run.
Device choose_device(const std::string& name);
// The devices named, or where there are no names every usable one. Throws UsageError, naming
// `option`, if one is named twice, DeviceError for one that cannot run.
std::vector<Device> devices_asked_for(const char* option, const std::vector<std::string>& names);
// "AMD EPYC 9B14, 2 threads", "NVIDIA H200".
std::string describe(Device device);

struct Machine {
  std::string cpu;         // "AMD EPYC 9B14"
  int cores = 0;           // that this process may run on
  double quota = 0;        // cores' worth of time its container may use; 0: no limit
  int threads = 0;         // of the CPU kernels
  std::string simd, blas;  // "AVX2"; "OpenBLAS 0.3.21, Zen kernels"
  std::vector<std::string> gpus;
  std::string driver, toolkit;  // "580.65.06 (CUDA 13.0)"; "13.0"; "none"
  std::string compiler;         // "g++ 12.2.0"
  std::string os;               // "Debian GNU/Linux 12 (bookworm), Linux 6.1"
  std::string commit;           // of this build
};
Machine this_machine();
// All of it as the lines of a Markdown list.
std::string markdown(const Machine& m);

// The OPENBLAS_CORETYPE that suits this CPU where OpenBLAS chose kernels that do not (0.3.21 takes
// Prescott's on newer Intel CPUs, at a sixth of the speed); else empty.
std::string better_blas_kernels();

// OpenBLAS picks its kernels by the CPU's model number, and takes kernels without AVX2 for one it
// does not know. What to do then; empty if it chose well.
std::string blas_advice();

}  // namespace sinter::app
