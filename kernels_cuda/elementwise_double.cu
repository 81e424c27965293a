// Element-wise operators on float64; see elementwise_map.cuh.
#include "kernels_cuda/elementwise_map.cuh"

namespace sinter::cuda {

template void map<double>(LaunchSite, const op::Map&);

}  // namespace sinter::cuda
