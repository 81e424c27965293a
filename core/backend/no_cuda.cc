// What a build without the CUDA backend says of it.
#include "sinter/runtime.h"

namespace sinter {

int cuda_device_count() noexcept { return 0; }

}  // namespace sinter
