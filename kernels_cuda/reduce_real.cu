// Products, variances, norms and logarithms of sums of exponentials.
#include "kernels_cuda/fold.cuh"
#include "sinter/operators/reduce.h"

namespace sinter {

void run(const Cuda& ctx, const op::Prod& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::ProdBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::Variance& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::VarianceBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::Norm& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::NormBackward& o) { cuda::each(ctx, o); }
void run(const Cuda& ctx, const op::LogSumExp& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::LogSumExpBackward& o) { cuda::each(ctx, o); }

}  // namespace sinter
