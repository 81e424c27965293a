// What operators have to do, in numbers, to be set beside the time they take. work(op) in emit.h
// gives both for any operator.
#pragma once

#include "sinter/operators.h"

namespace sinter {

struct Work {
  // Multiplications and additions of matrix products and convolutions as they are defined, whatever
  // the algorithm: padding counts, biases and activations do not. Of other operators 0.
  double flops = 0;
  // What is read and what is written of the operands, each once.
  double bytes = 0;
};

// Of the operators that have any. A gradient through pooling is that of the chosen elements alone.
double flops(const op::Gemm& op);
double flops(const op::LinearForward& op);
double flops(const op::LinearBackwardData& op);
double flops(const op::LinearBackwardWeights& op);
double flops(const op::Conv2dForward& op);
double flops(const op::Conv2dBackwardData& op);
double flops(const op::Conv2dBackwardWeights& op);
double flops(const op::Conv2dReluPoolForward& op);
double flops(const op::Conv2dReluPoolBackward& op);
double flops(const op::Conv2dReluPoolBackwardData& op);
double flops(const op::Conv2dReluPoolBackwardWeights& op);
double flops(const op::MlpForward& op);
double flops(const op::MlpBackwardChain& op);
double flops(const op::MlpBackwardWeights& op);

// Bytes of operands that the operator leaves alone, of those that read only a part.
double bytes_unread(const op::GatherBatch& op);
double bytes_unread(const op::SumSlices& op);
double bytes_unread(const op::AdamStep& op);

}  // namespace sinter
