// Operators of the table on integers and bools.
#include "kernels_cuda/elementwise_map.cuh"

namespace sinter::cuda {

template void run_map<int32_t>(LaunchSite, const op::Map&);
template void run_map<int64_t>(LaunchSite, const op::Map&);
template void run_map<uint8_t>(LaunchSite, const op::Map&);
template void run_map<bool>(LaunchSite, const op::Map&);

}  // namespace sinter::cuda
