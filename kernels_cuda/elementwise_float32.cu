// Operators of the table on float32.
#include "kernels_cuda/elementwise_map.cuh"

namespace sinter::cuda {

template void run_map<float>(LaunchSite, const op::Map&);
template void accumulate(LaunchSite, int64_t, const float*, float*);

}  // namespace sinter::cuda
