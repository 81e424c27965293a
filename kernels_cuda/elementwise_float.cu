// Element-wise operators on float32; see elementwise_map.cuh.
#include "kernels_cuda/elementwise_map.cuh"

namespace sinter::cuda {

template void map<float>(LaunchSite, const op::Map&);

}  // namespace sinter::cuda
