// What operators have to do, in numbers, to be set beside the time they take. work(op) in emit.h
// gives both for any operator.
#pragma once

namespace sinter {

struct Work {
  // Multiplications and additions of matrix products and convolutions as they are defined, whatever
  // the algorithm: padding counts, biases and activations do not. Of other operators 0.
  double flops = 0;
  // What is read and what is written of the operands, each once.
  double bytes = 0;
};

// An operator says what it does beside its declaration, where the default is not true of it:
//   double flops(const Op& op);         by default 0. A gradient through pooling is that of the
//                                       chosen elements alone.
//   double bytes_unread(const Op& op);  bytes of operands that it leaves alone; by default 0

}  // namespace sinter
