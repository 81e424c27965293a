#include "tests/reference/comparison.h"

#include <algorithm>

#include "core/base/detail.h"
#include "sinter/program.h"

namespace sinter::app {

using oracle::Array;
using oracle::Sizes;

Tensor tensor(const Array& a, TensorOptions options) {
  if (options.dtype == kFloat64) return from_vector(a.v, Shape(a.shape), options.device);
  return from_vector(std::vector<float>(a.v.begin(), a.v.end()), Shape(a.shape), options.device);
}

Tensor leaf(const Array& a, TensorOptions options) {
  Tensor t = tensor(a, options);
  t.set_requires_grad();
  return t;
}

Array array(const Tensor& t) {
  return {Sizes(t.shape().begin(), t.shape().end()), t.to_vector<double>()};
}

double epsilon(DType dtype) {
  return dtype == kFloat64 ? std::numeric_limits<double>::epsilon()
                           : std::numeric_limits<float>::epsilon();
}

const char* name(Mode mode) { return mode == Mode::kEager ? "eager" : "compiled"; }

std::vector<Tensor> results(Mode mode, const std::function<std::vector<Tensor>()>& f) {
  if (mode == Mode::kEager) return f();
  auto program = compile(f);
  for (int i = 0; i < 2; ++i) program();
  const std::vector<Tensor> all = program();
  require<Error>(program.stats().recordings == 2, "compile: recorded ", program.stats().recordings,
                 " times, expected 2, and then a replay");
  return all;
}

namespace {

Comparison failed(const std::string& what, const std::string& wrong) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return {what, 0, kInfinity, kInfinity, wrong};
}

// scale(|expected|) is what an error is relative to, and `allowed` how much of it is let pass.
template <class Scale> Comparison compare_elements(const std::string& what, const Tensor& actual,
                                                   const Shape& shape,
                                                   const std::vector<double>& expected,
                                                   double allowed, const Scale& scale) {
  if (!actual.defined()) return failed(what, "there is none");
  if (!(actual.shape() == shape))
    return failed(what, str("its shape is ", actual.shape(), ", expected ", shape));
  const std::vector<double> values = actual.to_vector<double>();
  Comparison c{what, static_cast<int64_t>(values.size())};
  int64_t wrong = 0;
  size_t first = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double unit = scale(std::abs(expected[i]));
    const double difference = std::abs(values[i] - expected[i]);
    if (!(difference <= allowed * unit) && wrong++ == 0) first = i;  // NaN is wrong
    if (difference == 0) continue;
    const auto raise = [](double& largest, double value) {
      if (!(value <= largest))
        largest = std::isnan(value) ? std::numeric_limits<double>::infinity() : value;
    };
    raise(c.error, difference / unit);
    raise(c.share, difference / unit / allowed);
  }
  if (wrong > 0) {
    std::ostringstream out;
    out.precision(std::numeric_limits<double>::max_digits10);
    out << wrong << " of " << values.size() << (values.size() == 1 ? " element" : " elements")
        << " wrong; the first, [" << first << "], is " << values[first] << ", expected "
        << expected[first];
    out.precision(3);
    out << " +- " << allowed * scale(std::abs(expected[first]));
    c.wrong = out.str();
  }
  return c;
}

}  // namespace

Comparison compare(const std::string& what, const Tensor& actual, const Array& expected,
                   double terms) {
  const double allowed =
      terms == 0 || !actual.defined() ? 0 : (terms + 4) * epsilon(actual.dtype());
  return compare_elements(what, actual, Shape(expected.shape), expected.v, allowed,
                          [](double magnitude) { return std::max(1.0, magnitude); });
}

Comparison compare_recorded(const std::string& what, const Tensor& actual, const Tensor& expected,
                            double allowed) {
  const std::vector<double> values = expected.to_vector<double>();
  double largest = 0;
  for (const double v : values) largest = std::max(largest, std::abs(v));
  return compare_elements(what, actual, expected.shape(), values, allowed,
                          [=](double) { return largest; });
}

}  // namespace sinter::app
