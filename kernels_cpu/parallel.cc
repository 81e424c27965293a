#include "parallel.h"

#include <atomic>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace sinter {

void run_chunks(int64_t count, void (*f)(const void*, int64_t), const void* context) {
#ifdef _OPENMP
  const int threads = num_threads();
  if (threads > 1 && count > 1 && !omp_in_parallel()) {
    // Always the whole team, also for fewer chunks: GCC's OpenMP ends the threads that a smaller
    // team leaves over, and makes them anew for the next larger one.
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    // Dynamic: chunks differ in cost, and a thread that has lost its core then holds up one chunk,
    // not its share of them.
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < count; ++i) {
      if (failed.load(std::memory_order_relaxed)) continue;
      try {
        f(context, i);
      } catch (...) {  // must not leave the region
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) f(context, i);
}

}  // namespace sinter
