// Places of extrema, truth and sums of integers: of every element type.
#include "kernels_cuda/fold.cuh"
#include "sinter/operators/reduce.h"

namespace sinter {

void run(const Cuda& ctx, const op::SumIntegers& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::ArgExtremum& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::AllOrAny& o) { cuda::fold(ctx, o); }

}  // namespace sinter
