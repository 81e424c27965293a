// Operators of the table on float64.
#include "kernels_cuda/elementwise_map.cuh"

namespace sinter::cuda {

template void run_map<double>(LaunchSite, const op::Map&);
template void accumulate(LaunchSite, int64_t, const double*, double*);

}  // namespace sinter::cuda
