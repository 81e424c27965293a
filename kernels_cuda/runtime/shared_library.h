// Libraries that are opened when they are first needed, not when the program starts: loading cuBLAS
// takes a tenth of a second and 220 MB, which a program that stays on the CPU, or whose layers all
// have kernels of their own, can do without.
#pragma once

#include <dlfcn.h>

#include <string>
#include <utility>

#include "core/base/detail.h"
#include "sinter/check.h"

namespace sinter {

class SharedLibrary {
 public:
  // Opens `name` where the loader finds it, else the file `path`, and keeps it open. Throws Error
  // if neither works: "<purpose> unavailable: <the loader's reason>; <help>".
  SharedLibrary(std::string name, const char* path, const char* purpose, const char* help)
      : name_(std::move(name)), purpose_(purpose), handle_(dlopen(name_.c_str(), RTLD_NOW)) {
    const char* why = handle_ == nullptr ? dlerror() : nullptr;
    const std::string reason = why == nullptr ? "" : why;
    if (handle_ == nullptr) handle_ = dlopen(path, RTLD_NOW);
    require<Error>(handle_ != nullptr, purpose_, " unavailable: ", reason, "; ", help);
  }

  // Sets `function` to that of the library; throws Error if there is none.
  template <class F> void find(const char* symbol, F*& function) const {
    function = reinterpret_cast<F*>(dlsym(handle_, symbol));
    require<Error>(function != nullptr, purpose_, " unavailable: ", name_, " has no ", symbol);
  }

 private:
  std::string name_;
  const char* purpose_;
  void* handle_;
};

}  // namespace sinter
