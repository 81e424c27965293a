// What every operator's declaration needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sinter/operand.h"

// Declares an operator's kernels, one a backend.
#define SINTER_OPERATOR(Op)            \
  void run(const Cpu&, const op::Op&); \
  void run(const Cuda&, const op::Op&)
