// Matrix products.
#pragma once

#include "sinter/operators/operator.h"

namespace sinter {
namespace op {

// C[i] = op(A[i]) op(B[i]) for i < batch: op(A) is (m, k), op(B) is (k, n), C is (m, n), row-major
// and tight. ta: A is stored (k, m); tb: B is stored (n, k). stride_* is the distance, in elements,
// from one matrix of the batch to the next; 0 shares one matrix. k == 0 gives zeros. tf32: on Cuda
// float32 operands may be rounded to TF32 (set_allow_tf32).
struct GemmShape {
  bool ta = false, tb = false;
  int64_t m = 0, n = 0, k = 0;
  int64_t batch = 1, stride_a = 0, stride_b = 0;
  bool tf32 = false;
  bool operator==(const GemmShape&) const = default;
  void each(auto&& f) const {
    f("ta", ta), f("tb", tb), f("m", m), f("n", n), f("k", k), f("batch", batch);
    f("stride_a", stride_a), f("stride_b", stride_b), f("tf32", tf32);
  }
};
struct Gemm {
  static constexpr const char* name = "gemm";
  GemmShape g;
  In a, b;
  Out c;
  void each(auto&& f) { f("g", g), f("a", a), f("b", b), f("c", c); }
};

// x: (n, in)  w: (out, in)  b: (out)  y: (n, out). tf32: as GemmShape's.
struct LinearShape {
  int64_t n = 0, in = 0, out = 0;
  bool tf32 = false;
  bool operator==(const LinearShape&) const = default;
  void each(auto&& f) const { f("n", n), f("in", in), f("out", out), f("tf32", tf32); }
};
// y = x w^T + b, with `relu` the ReLU of it, to the bit what the operator relu makes of it. b
// optional.
struct LinearForward {
  static constexpr const char* name = "linear_forward";
  LinearShape g;
  In x, w, b;
  Out y;
  bool relu = false;
  void each(auto&& f) { f("g", g), f("relu", relu), f("x", x), f("w", w), f("b", b), f("y", y); }
};
// dx = dy w.
struct LinearBackwardData {
  static constexpr const char* name = "linear_backward_data";
  LinearShape g;
  In dy, w;
  Out dx;
  void each(auto&& f) { f("g", g), f("dy", dy), f("w", w), f("dx", dx); }
};
// dw = dy^T x, db = column sums of dy.
struct LinearBackwardWeights {
  static constexpr const char* name = "linear_backward_weights";
  LinearShape g;
  In x, dy;
  OptionalOut dw, db;
  void each(auto&& f) { f("g", g), f("x", x), f("dy", dy), f("dw", dw), f("db", db); }
};

// See work.h.
double flops(const Gemm& op);
double flops(const LinearForward& op);
double flops(const LinearBackwardData& op);
double flops(const LinearBackwardWeights& op);

}  // namespace op

SINTER_OPERATOR(Gemm);
SINTER_OPERATOR(LinearForward);
SINTER_OPERATOR(LinearBackwardData);
SINTER_OPERATOR(LinearBackwardWeights);

}  // namespace sinter
