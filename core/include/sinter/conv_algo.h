// How convolutions are computed.
#pragma once

namespace sinter {

// How a convolution is computed, forward and backward.
//   naive          the definition, one output after another: to read, and to check the others by
//   direct         CPU: images in the lanes of a vector; CUDA: small windows, few input channels
//   im2col         patches written out as a matrix, and a matrix product
//   implicit-gemm  the same with the patches gathered while they are multiplied
//   tensor-core    CUDA, float32: the same on tensor cores
//   winograd       windows of 3 x 3 and stride 1: a quarter of the multiplications, and some more
//                  rounding; a NaN spreads to results some pixels away
// They differ in the order of additions; each gives the same bits from run to run. kAuto chooses by
// geometry, dtype and device; any other computes every convolution or throws ValueError saying why
// it cannot and which can.
enum class ConvAlgo { kAuto, kNaive, kDirect, kIm2col, kImplicitGemm, kTensorCore, kWinograd };
const char* name(ConvAlgo algo);  // "auto", "naive", …, as above

}  // namespace sinter
