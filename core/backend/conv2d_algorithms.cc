#include "core/backend/conv2d_algorithms.h"

#include "core/base/detail.h"
#include "sinter/check.h"

namespace sinter {

const char* name(ConvPass pass) {
  constexpr const char* kNames[] = {"conv2d_forward", "conv2d_backward_data",
                                    "conv2d_backward_weights"};
  return kNames[static_cast<int>(pass)];
}

void refuse_algorithm(const ConvTask& task, const std::string& needs, const char* device,
                      const std::vector<ConvAlgo>& can) {
  const op::Conv2dShape& g = task.g;
  std::string choice;
  for (size_t i = 0; i < can.size(); ++i)
    choice += str(i == 0 ? "" : i + 1 == can.size() ? " or " : ", ", name(can[i]));
  const std::string why = needs.empty() ? str(device, " has no algorithm ", name(g.algo))
                                        : str("algorithm ", name(g.algo), " needs ", needs);
  throw ValueError(str(name(task.pass), ": ", why, "; this is ", task.dtype, " x (", g.n, ", ", g.c,
                       ", ", g.h, ", ", g.w, "), weight (", g.o, ", ", g.c / g.groups, ", ", g.kh,
                       ", ", g.kw, "), stride (", g.stride_h, ", ", g.stride_w, "), dilation (",
                       g.dil_h, ", ", g.dil_w, "), groups ", g.groups, ", on ", device, ". Choose ",
                       choice, ", with --conv-algo or set_conv_algo"));
}

}  // namespace sinter
