// Everything a backend computes: operators as data, each with the attributes and operands that it
// has, and run(ctx, op), once for each context.
//
// The framework above validates shapes, dtypes and devices, allocates outputs and emits operators
// (emit.h), which run at once or are noted in a program (program.h); a kernel trusts its operator.
// `each` lists attributes and operands by name: it is all that printing, comparing and binding a
// program knows of an operator.
//
//   run(Cpu)   returns when the work is done.
//   run(Cuda)  enqueues on ctx.stream and returns; ctx.device is current. It never synchronizes,
//   and
//              takes scratch memory from the caching allocator (runtime.h), not from the driver.
//
// Operands are float32 or float64, all of one dtype, unless the comment says otherwise. Results are
// bit-identical from run to run and, on the CPU, for any number of threads: reductions follow an
// order that depends on the geometry alone, and gradients gather instead of scattering with
// atomics. Images are NCHW. Operands marked optional may be absent; an OptionalOut may be left out.
#pragma once

#include "sinter/operators/attention.h"
#include "sinter/operators/conv2d.h"
#include "sinter/operators/conv2d_relu_pool.h"
#include "sinter/operators/data.h"
#include "sinter/operators/dropout.h"
#include "sinter/operators/elementwise.h"
#include "sinter/operators/indexing.h"
#include "sinter/operators/linear.h"
#include "sinter/operators/loss.h"
#include "sinter/operators/mlp.h"
#include "sinter/operators/move.h"
#include "sinter/operators/norm.h"
#include "sinter/operators/operator.h"
#include "sinter/operators/optim.h"
#include "sinter/operators/pointwise_loss.h"
#include "sinter/operators/pool2d.h"
#include "sinter/operators/reduce.h"
#include "sinter/operators/softmax.h"
