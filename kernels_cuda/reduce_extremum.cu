// Largest and smallest elements, of every element type.
#include "kernels_cuda/fold.cuh"
#include "sinter/operators/reduce.h"

namespace sinter {

void run(const Cuda& ctx, const op::Extremum& o) { cuda::fold(ctx, o); }
void run(const Cuda& ctx, const op::ExtremumBackward& o) { cuda::each(ctx, o); }

}  // namespace sinter
