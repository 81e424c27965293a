// All of Sinter.
#pragma once

#include "sinter/autograd.h"
#include "sinter/check.h"
#include "sinter/checkpoint.h"
#include "sinter/data.h"
#include "sinter/fused.h"
#include "sinter/gradcheck.h"
#include "sinter/graph.h"
#include "sinter/nn.h"
#include "sinter/ops.h"
#include "sinter/optim.h"
#include "sinter/profile.h"
#include "sinter/random.h"
#include "sinter/runtime.h"
#include "sinter/safetensors.h"
#include "sinter/tensor.h"
