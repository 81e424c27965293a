#include "sinter/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/detail.h"
#include "sinter/autograd.h"
#include "sinter/program.h"
#include "sinter/random.h"

namespace sinter {
namespace {

using Values = std::vector<double>;
using Function = std::function<Tensor(const std::vector<Tensor>&)>;

constexpr double kRoundings = 8;  // units in the last place by which a value may be off
constexpr int kAttempts = 4;      // at a kink, each with a quarter of the step before

// Either sign, never near zero: what it multiplies always weighs in.
double weight(Generator& generator) {
  const double magnitude = 0.5 + generator.uniform();
  return generator.uniform() < 0.5 ? -magnitude : magnitude;
}

struct Comparison {
  bool smooth = false;  // else at a kink, and the rest means nothing
  double analytic = 0, numeric = 0, share = 0;
  double error() const { return std::abs(analytic - numeric); }
  bool within() const { return share <= 1; }
};

// L as a function of one input alone, with its analytic gradient.
class Slice {
 public:
  Slice(const Function& f, const std::vector<Tensor>& inputs, size_t input, const Values& weights,
        const Tensor& y, const Tensor& grad, const GradcheckOptions& options)
      : f_(f),
        at_(inputs),
        input_(input),
        x_(inputs[input].to_vector<double>()),
        grad_(grad.defined() ? grad.to_vector<double>() : Values(x_.size())),
        weights_(weights),
        shape_(y.shape()),
        y_(y.to_vector<double>()),
        options_(options) {
    for (double x : x_) largest_ = std::max(largest_, std::abs(x));
  }

  size_t size() const { return x_.size(); }
  double step() const { return options_.step * largest_; }

  // The derivative along `direction`, from the gradient and from differences of step h and h / 2.
  Comparison compare(const Values& direction, double h) {
    const Values above = moved(direction, h), below = moved(direction, -h);
    const Values near_above = moved(direction, h / 2), near_below = moved(direction, -h / 2);
    // Differences are taken element by element of y before they are summed: what a move leaves
    // alone then cancels exactly, and adds no rounding.
    double wide = 0, narrow = 0;            // central differences
    double wide_bend = 0, narrow_bend = 0;  // slope above minus slope below
    double magnitude = 0;
    for (size_t i = 0; i < y_.size(); ++i) {
      const double w = weights_[i], y = y_[i];
      wide += w * (above[i] - below[i]) / (2 * h);
      narrow += w * (near_above[i] - near_below[i]) / h;
      wide_bend += w * ((above[i] - y) - (y - below[i])) / h;
      narrow_bend += w * ((near_above[i] - y) - (y - near_below[i])) / (h / 2);
      if (above[i] != y || below[i] != y)
        magnitude += std::abs(w) * std::max(std::abs(above[i]), std::abs(below[i]));
    }
    Comparison c;
    c.numeric = narrow;
    for (size_t j = 0; j < x_.size(); ++j) {
      if (direction[j] == 0) continue;  // a gradient that is not finite elsewhere says nothing here
      c.analytic += grad_[j] * direction[j];
      magnitude += std::abs(x_[j] * grad_[j]);
    }
    const double rounding = kRoundings * std::numeric_limits<double>::epsilon() / h * magnitude;
    const auto tolerance = [&](double a, double b) {
      return options_.atol + options_.rtol * std::max(std::abs(a), std::abs(b)) + rounding;
    };
    // Where L is smooth, the central differences differ by O(h^2), and the slopes on both sides by
    // h L'', which halves with h. A kink away from x upsets the first. One at x, of which central
    // differences of every step see the same half, upsets the second. The latter's rounding is ten
    // times larger: more terms, divided by less.
    const double allowed = 2 * tolerance(wide, narrow);
    c.smooth = !(std::abs(wide - narrow) > allowed ||
                 std::abs(2 * narrow_bend - wide_bend) > allowed + 10 * rounding);
    const double agreed = tolerance(c.analytic, c.numeric);
    if (std::isfinite(c.error()) && std::isfinite(agreed))
      c.share = c.error() == 0 ? 0 : c.error() / agreed;  // 0 / 0 is agreement
    else
      c.share = std::numeric_limits<double>::infinity();
    return c;
  }

  Comparison compare_element(int64_t index, double h) {
    Values direction(size());
    direction[static_cast<size_t>(index)] = 1;
    return compare(direction, h);
  }

  // The element that is most to blame for a direction's error: the errors of two halves add up to
  // that of the whole, so one half has at least half of it.
  int64_t locate(const Values& direction, double h) {
    size_t first = 0, last = size();
    while (last - first > 1) {
      const size_t middle = first + (last - first) / 2;
      Values left(size()), right(size());
      std::copy(direction.begin() + first, direction.begin() + middle, left.begin() + first);
      std::copy(direction.begin() + middle, direction.begin() + last, right.begin() + middle);
      const double error = compare(left, h).error(), other = compare(right, h).error();
      // The gradient's own NaN is found as an error is.
      (std::isnan(error) || error >= other ? last : first) = middle;
    }
    return static_cast<int64_t>(first);
  }

 private:
  // f's result with the input at x + t direction.
  Values moved(const Values& direction, double t) {
    Values x(x_);
    for (size_t j = 0; j < x.size(); ++j) x[j] += t * direction[j];
    const no_grad guard;
    std::vector<Tensor> at = at_;
    at[input_] = from_vector(x, at_[input_].shape(), at_[input_].device());
    const Tensor y = f_(at);
    require<ShapeError>(y.defined() && y.shape() == shape_,
                        "gradcheck: expected f to return one shape at every call, got first ",
                        shape_, ", then ", y.defined() ? y.shape().str() : "an undefined tensor");
    return y.to_vector<double>();
  }

  const Function& f_;
  const std::vector<Tensor>& at_;
  const size_t input_;
  const Values x_, grad_;
  const Values& weights_;
  const Shape shape_;
  const Values y_;
  const GradcheckOptions& options_;
  double largest_ = 1;
};

// f twice at the same place must give the same: else differences are of something else.
void check_deterministic(const Tensor& y, const Tensor& again) {
  require<ShapeError>(again.defined() && again.shape() == y.shape(),
                      "gradcheck: expected f to return one shape at every call, got first ",
                      y.shape(), ", then ",
                      again.defined() ? again.shape().str() : "an undefined tensor");
  const Values a = y.to_vector<double>(), b = again.to_vector<double>();
  for (size_t i = 0; i < a.size(); ++i) {
    require<ValueError>(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])),
                        "gradcheck: expected f to be a deterministic function of its arguments, "
                        "got ",
                        a[i], " and ", b[i], " for element ", i,
                        " of its result at the same inputs; fix its random seed");
  }
}

// f and the way back through it as one compiled function: a replay leaves its gradients in
// `leaves`. `y` is f's result.
void replay_backward(const Function& f, const std::vector<Tensor>& leaves, const Tensor& y,
                     const Tensor& weights, const GradcheckOptions& options) {
  auto program = compile([&] {
    for (const Tensor& x : leaves) x.set_grad({});
    const Tensor result = f(leaves);
    result.backward(weights);
    return result;
  });
  for (int i = 0; i < 2; ++i) program();
  const Values a = y.to_vector<double>(), b = program().to_vector<double>();
  double largest = 1;
  for (const double value : a)
    if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < a.size(); ++i) {
    require<ValueError>(std::abs(a[i] - b[i]) <= options.atol + options.rtol * largest ||
                            a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])),
                        "gradcheck: compiled, f gives ", b[i], " instead of ", a[i],
                        " for element ", i, " of its result");
  }
  require<GraphError>(program.stats().recordings == 2, "gradcheck: f was recorded ",
                      program.stats().recordings, " times, expected 2, and then a replay");
}

}  // namespace

std::string GradcheckResult::str() const {
  std::string text =
      sinter::str(ok ? "ok" : "WRONG", ", ", checked, " compared, ", kinks, " set aside at kinks");
  if (unchecked >= 0) {
    text += sinter::str("; nothing of input ", unchecked,
                        " could be compared: move it away from its kinks");
  }
  if (input >= 0) {
    text += sinter::str(
        "; worst: input ", input,
        index >= 0 ? sinter::str(" element ", index) : std::string(" in a random direction"),
        ", analytic ", analytic, ", numeric ", numeric, ", ", share, " of the tolerance");
  }
  return text;
}

GradcheckResult gradcheck(const Function& f, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& options) {
  require<ValueError>(!inputs.empty(), "gradcheck: expected at least one input, got none");
  require<ValueError>(
      options.step > 0 && std::isfinite(options.step) && options.directions >= 1 &&
          options.rtol >= 0 && options.atol >= 0,
      "gradcheck: expected step > 0, directions >= 1, rtol >= 0 and atol >= 0, got ", options.step,
      ", ", options.directions, ", ", options.rtol, ", ", options.atol);
  std::vector<Tensor> leaves, fixed;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& x = inputs[i];
    require<DtypeError>(x.defined() && x.dtype() == kFloat64,
                        "gradcheck: expected float64 inputs, got ",
                        x.defined() ? name(x.dtype()) : "an undefined tensor", " for input ", i);
    leaves.push_back(x.detach().clone().set_requires_grad());
    fixed.push_back(x.detach().clone());  // f must not reach the caller's storage
  }

  const Tensor y = f(leaves);
  require<DtypeError>(y.defined() && y.dtype() == kFloat64,
                      "gradcheck: expected a float64 result of f, got ",
                      y.defined() ? name(y.dtype()) : "an undefined tensor");
  require<GradError>(y.requires_grad(),
                     "gradcheck: the result of f depends on none of its inputs as far as autograd "
                     "knows; make it of recorded operators, or record() it");
  {
    const no_grad guard;
    check_deterministic(y, f(fixed));
  }
  Generator generator(options.seed);
  Values weights(static_cast<size_t>(y.numel()));
  for (double& w : weights) w = weight(generator);
  const Tensor upstream = from_vector(weights, y.shape(), y.device());
  if (options.compiled)
    replay_backward(f, leaves, y, upstream, options);
  else
    y.backward(upstream);
  // y may require grad for the sake of something else, such as a network's parameters.
  require<GradError>(
      std::any_of(leaves.begin(), leaves.end(), [](const Tensor& x) { return x.grad().defined(); }),
      "gradcheck: the result of f depends on none of its inputs; f must use its arguments, not "
      "tensors that they are copies of");

  GradcheckResult result;
  result.ok = true;
  for (size_t input = 0; input < inputs.size(); ++input) {
    Slice slice(f, fixed, input, weights, y, leaves[input].grad(), options);
    const auto size = static_cast<int64_t>(slice.size());
    const bool full = options.full || size <= options.directions;
    const int64_t probes = full ? size : options.directions;
    const int64_t checked_before = result.checked;
    for (int64_t p = 0; p < probes; ++p) {
      Values direction(slice.size());
      Comparison c;
      double h = slice.step();
      for (int attempt = 0; attempt < kAttempts; ++attempt, h /= 4) {
        if (full) {
          direction[static_cast<size_t>(p)] = 1;
        } else {
          // A direction that met a kink is drawn anew with half as many elements, so that a few
          // elements at kinks do not keep all others from being compared.
          const double density = std::ldexp(1, -attempt);
          for (double& d : direction) d = generator.uniform() < density ? weight(generator) : 0;
          direction[generator.next() % slice.size()] = weight(generator);  // never none
        }
        c = slice.compare(direction, h);
        if (c.smooth) break;
      }
      if (!c.smooth) {
        ++result.kinks;
        continue;
      }
      ++result.checked;
      result.ok = result.ok && c.within();
      int64_t index = full ? p : -1;
      if (!full && !c.within()) {
        const int64_t suspect = slice.locate(direction, h);
        const Comparison alone = slice.compare_element(suspect, h);
        if (alone.smooth && !alone.within()) {
          c = alone;
          index = suspect;
        }
      }
      if (result.input < 0 || c.share > result.share) {
        result.input = static_cast<int>(input);
        result.index = index;
        result.analytic = c.analytic;
        result.numeric = c.numeric;
        result.share = c.share;
      }
    }
    if (probes > 0 && result.checked == checked_before) {
      if (result.unchecked < 0) result.unchecked = static_cast<int>(input);
      result.ok = false;
    }
  }
  return result;
}

}  // namespace sinter
