// Matrix products. What ops.h says of all operators holds here.
#pragma once

#include "sinter/tensor.h"

namespace sinter {

// x w^T + b. x: (…, in)  weight: (out, in)  bias: (out) or undefined. Returns (…, out); for in = 0
// the bias. With a weight (in) and no bias: (…).
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

// Matrix product of the last two dimensions, (…, M, K) x (…, K, N) -> (…, M, N); the dimensions
// before them broadcast. A vector counts as a row on the left and as a column on the right, and its
// extent of 1 is left out of the result: (K) x (K) -> (), (…, M, K) x (K) -> (…, M), (K) x (…, K,
// N) -> (…, N).
Tensor matmul(const Tensor& a, const Tensor& b);
// matmul of exactly these ranks.
Tensor mm(const Tensor& a, const Tensor& b);   // (M, K) x (K, N) -> (M, N)
Tensor bmm(const Tensor& a, const Tensor& b);  // (B, M, K) x (B, K, N) -> (B, M, N)
Tensor mv(const Tensor& a, const Tensor& b);   // (M, K) x (K) -> (M)
Tensor dot(const Tensor& a, const Tensor& b);  // (K) x (K) -> ()

struct AddProductOptions {
  double beta = 1, alpha = 1;
};
// beta x + alpha a b with the products mm and bmm, to whose result x broadcasts. For beta = 0 no x
// is read: neither a NaN nor an infinity of it comes through.
Tensor addmm(const Tensor& x, const Tensor& a, const Tensor& b,
             const AddProductOptions& options = {});
Tensor baddbmm(const Tensor& x, const Tensor& a, const Tensor& b,
               const AddProductOptions& options = {});

}  // namespace sinter
