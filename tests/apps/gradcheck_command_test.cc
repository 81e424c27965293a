// `sinter gradcheck`, and the table of cases behind it.
#ifdef SINTER_APP_PATH

#include <sinter/ops.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "tests/reference/gradcheck_cases.h"
#include "tests/support/catch.h"
#include "tests/support/process.h"

using namespace sinter;
using namespace sinter::test;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

size_t lines(const std::string& text) {
  return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
}

Tensor values(const std::vector<double>& v) {
  return from_vector(v, {static_cast<int64_t>(v.size())});
}

}  // namespace

DEVICE_TEST("gradcheck command: every operator's derivative is right", "[gradcheck][app]") {
  const std::vector<app::GradcheckCase> cases = app::gradcheck_cases();
  for (const bool full : {false, true}) {
    std::ostringstream out;
    const bool right = app::check_gradients(cases, {device}, full, out);
    INFO(out.str());
    CHECK(right);
    CHECK(lines(out.str()) == 2 * cases.size() + 2);
    CHECK(contains(out.str(), ": all right, the largest error takes "));
  }
}

TEST_CASE("gradcheck command: the table is complete, ordered and repeatable", "[gradcheck][cpu]") {
  const std::vector<app::GradcheckCase> cases = app::gradcheck_cases();
  std::vector<std::string> ops;
  for (const app::GradcheckCase& c : cases) {
    if (ops.empty() || ops.back() != c.op) ops.push_back(c.op);
    for (const Tensor& x : c.inputs) CHECK(x.dtype() == kFloat64);
  }
  const std::set<std::string> names(ops.begin(), ops.end());
  CHECK(names.size() == ops.size());  // an operator's cases lie together
  for (const char* op :
       {"conv2d",  "max_pool2d", "avg_pool2d", "linear", "matmul",      "relu",
        "add",     "sub",        "mul",        "div",    "sum",         "mean",
        "reshape", "flatten",    "permute",    "narrow", "log_softmax", "cross_entropy",
        "clone",   "Conv2d",     "Linear",     "ReLU",   "MaxPool2d",   "AvgPool2d",
        "Flatten", "Sequential", "cifar_cnn"}) {
    INFO(op);
    CHECK(names.count(op) == 1);
  }
  const std::vector<app::GradcheckCase> again = app::gradcheck_cases();
  REQUIRE(again.size() == cases.size());
  for (size_t i = 0; i < cases.size(); ++i) {
    for (size_t k = 0; k < cases[i].inputs.size(); ++k)
      CHECK(again[i].inputs[k].to_vector<double>() == cases[i].inputs[k].to_vector<double>());
  }
}

DEVICE_TEST("gradcheck command: a wrong derivative is shown and fails", "[gradcheck][app]") {
  const auto halved = [](const std::vector<Tensor>& in) {
    return record("halved", in[0].detach() * 2.0, in,
                  [](const Tensor& dy) { return Grads{dy * 1.0}; });
  };
  const std::vector<app::GradcheckCase> cases = {
      {"doubled",
       "(4,)",
       {values({1, 2, 3, 4})},
       [](const std::vector<Tensor>& in) { return in[0] * 2.0; }},
      {"halved", "(4,)", {values({1, 2, 3, 4})}, halved},
      {"kinked", "(2,)", {values({0, 0})}, [](const std::vector<Tensor>& in) {
         return relu(in[0]);
       }}};
  for (const bool full : {false, true}) {
    std::ostringstream out;
    const bool right = app::check_gradients(cases, {device}, full, out);
    INFO(out.str());
    CHECK_FALSE(right);
    CHECK(contains(out.str(), "WRONG input 0["));
    CHECK(contains(out.str(), "  WRONG, "));
    CHECK(contains(out.str(), "input 0 element "));
    CHECK(contains(out.str(), "WRONG nothing of input 0 compared of (2,)"));
    CHECK(contains(out.str(), "3 cases on 1 device, eager and compiled, "));
    CHECK(contains(out.str(), ": 4 WRONG\n"));
    CHECK(contains(out.str(), "\nhalved            " + device.str()));
    CHECK(contains(out.str(), " compiled "));
    CHECK(contains(out.str(), device.str()));
  }
}

TEST_CASE("gradcheck command: what it prints, refuses and returns", "[gradcheck][app]") {
  const TempDir dir;
  const Result linear = run(dir, {"gradcheck", "--op", "linear", "--device", "cpu", "--full"});
  INFO(linear.out << linear.err);
  CHECK(linear.code == 0);
  CHECK(linear.out.rfind("operator", 0) == 0);
  CHECK(contains(linear.out, "\nlinear            cpu     eager "));
  CHECK(contains(linear.out, "\nlinear            cpu     compiled "));
  CHECK_FALSE(contains(linear.out, "conv2d"));
  const Result all = run(dir, {"gradcheck", "--all", "--device", "cpu", "--threads", "1"});
  INFO(all.out << all.err);
  CHECK(all.code == 0);
  for (const app::GradcheckCase& c : app::gradcheck_cases())
    CHECK(contains(all.out, "\n" + c.op + " "));

  struct Case {
    std::vector<std::string> args;
    int code;
    std::vector<std::string> message;
  };
  const std::vector<Case> cases = {
      {{"--op", "conv3d"}, 2, {"--op", "conv2d, max_pool2d, ", "cross_entropy", "'conv3d'"}},
      {{"--op", "relu", "--all"}, 2, {"--op", "--all"}},
      {{"--device", "cpu,tpu"}, 2, {"--device", "'tpu'"}},
      {{"--device", "cpu,cpu"}, 2, {"--device", "cpu twice"}},
      {{"--device", "cpu,cuda:99"}, 1, {"cuda"}},
      {{"relu"}, 2, {"relu", "sinter gradcheck --help"}}};
  for (const Case& c : cases) {
    std::vector<std::string> args = {"gradcheck"};
    args.insert(args.end(), c.args.begin(), c.args.end());
    const Result result = run(dir, args);
    INFO(result.err);
    CHECK(result.code == c.code);
    CHECK(result.out.empty());
    for (const std::string& part : c.message) {
      INFO("expected in it: " << part);
      CHECK(contains(result.err, part));
    }
  }
}

#endif  // SINTER_APP_PATH
