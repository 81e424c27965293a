// Checks derivatives against central differences, the library's own or a user's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

struct GradcheckOptions {
  // Every element of every input by itself, four evaluations of f an element. Otherwise (fast)
  // random directions, four evaluations each, along which every element of an input moves: a wrong
  // element shows in each of them, unless errors happen to cancel.
  bool full = false;
  int directions = 3;  // of the fast mode, an input; inputs of no more elements are checked in full
  double step = 1e-5;  // times the input's largest magnitude where that is above 1
  // analytic and numeric agree where
  //   |analytic - numeric| <= atol + rtol max(|analytic|, |numeric|) + rounding.
  // rounding = 8 * 2^-52 / step * (sum |w y| over the elements of f's result that moved + sum
  // |x dL/dx| over the elements of the input that moved) is what float64 leaves in a difference:
  // every y is off by some units in its last place, and so is every moved x. rtol and atol have to
  // cover only the cut-off error, step^2 / 24 of the third derivative.
  double rtol = 1e-7, atol = 1e-10;
  uint64_t seed = 0;  // of the directions, and of the weights of f's result
  // The derivative is that of a compiled function (program.h) which calls f and goes back through
  // it, as a replay computes it; differences are those of f called as it is.
  bool compiled = false;
};

struct GradcheckResult {
  // Everything compared agrees, and of every input that has elements something was compared.
  bool ok = false;
  int64_t checked = 0;  // derivatives compared
  // Derivatives set aside because differences with two step sizes disagree, down to 1/64 of the
  // step: f has a kink there (ReLU at 0, a tie of a max-pool), or is too rough. They are neither
  // right nor wrong.
  int64_t kinks = 0;
  int unchecked = -1;  // the first input of which all derivatives were set aside
  // The comparison that used the largest share of its tolerance (more than 1: wrong; infinity for a
  // value that is not finite).
  int input = -1;
  int64_t index = -1;  // in the input, row-major; -1 for a random direction
  double analytic = 0, numeric = 0, share = 0;
  std::string str() const;  // one line of all that
};

// f: from tensors like `inputs` to a tensor of any shape, made of recorded operators; it must be a
// deterministic function of its arguments. inputs: float64, on any device; neither their values nor
// their gradients are touched. The scalar L that is differentiated is the sum of f's result y times
// fixed random weights w, of magnitude 0.5 to 1.5 and either sign, so that no element of y goes
// unseen. A gradient that is undefined counts as zero; an input without elements has no
// derivatives and passes. When a random direction fails it is halved until one wrong element
// remains, and that is reported.
//   Throws DtypeError unless inputs and result are float64, GradError if the result depends on no
// input (a broken graph), ShapeError if the result's shape changes between calls, ValueError if its
// values do or, compiled, are others than those of f, for no inputs and for options out of range.
GradcheckResult gradcheck(const std::function<Tensor(const std::vector<Tensor>&)>& f,
                          const std::vector<Tensor>& inputs, const GradcheckOptions& options = {});

}  // namespace sinter
