// Element-wise operators on integers and truth values; see elementwise_map.cuh.
#include "kernels_cuda/elementwise_map.cuh"

namespace sinter::cuda {

template void map<int32_t>(LaunchSite, const op::Map&);
template void map<int64_t>(LaunchSite, const op::Map&);
template void map<uint8_t>(LaunchSite, const op::Map&);
template void map<bool>(LaunchSite, const op::Map&);

}  // namespace sinter::cuda
