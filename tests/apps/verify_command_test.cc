// `sinter verify`, and the comparisons behind it.
#ifdef SINTER_APP_PATH

#include <regex>
#include <set>
#include <sstream>

#include "apps/verify.h"
#include "core/base/detail.h"
#include "tests/reference/gradcheck_cases.h"
#include "tests/support/process.h"
#include "tests/support/values.h"

using namespace sinter;
using namespace sinter::test;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::set<std::string> operators_of(const std::vector<app::VerifyCase>& cases,
                                   app::Reference reference) {
  std::set<std::string> ops;
  for (const app::VerifyCase& c : cases)
    if (c.reference == reference) ops.insert(c.op);
  return ops;
}

// One case whose results are given.
app::VerifyCase given(const std::string& op, std::function<std::vector<Comparison>()> results) {
  return {
      op, app::Reference::kOracle, [=] {
        return app::PreparedCheck{"x (2, 3)", [=](TensorOptions, app::Mode) { return results(); }};
      }};
}

}  // namespace

TEST_CASE("compare: what is right and what is wrong", "[verify]") {
  const Tensor x = from_vector(std::vector<double>{1, -2, 256, 0}, {2, 2});
  const Array same{{2, 2}, {1, -2, 256, 0}};
  const Comparison equal = app::compare("y", x, same, 0);
  CHECK(equal.wrong.empty());
  CHECK(equal.compared == 4);
  CHECK(equal.error == 0);
  CHECK(equal.share == 0);

  // Relative to the magnitude above 1, absolute below: ten units of 6 + 4 allowed.
  const double e = epsilon(kFloat64);
  const Comparison close = app::compare("y", x, {{2, 2}, {1, -2 - 8 * e, 256, -5 * e}}, 6);
  CHECK(close.wrong.empty());
  CHECK(close.error == 5 * e);
  CHECK(close.share == 0.5);
  const Comparison apart = app::compare("y", x, {{2, 2}, {1, -2, 256 * (1 + 16 * e), 16 * e}}, 6);
  CHECK(contains(apart.wrong, "2 of 4 elements wrong; the first, [2], is 256, expected 256.0000"));
  CHECK(contains(apart.wrong, " +- 5.68e-13"));
  CHECK(apart.share == 1.6);
  CHECK(contains(app::compare("y", x, {{2, 2}, {1, -2, 256, e}}, 0).wrong, "1 of 4"));

  // NaN on either side, another shape and no result at all.
  for (const Comparison& c :
       {app::compare("y", x, {{2, 2}, {std::nan(""), -2, 256, 0}}, 1e9),
        app::compare("y", full({2, 2}, std::nan(""), {kFloat64, kCpu}), same, 1e9),
        app::compare("y", x.reshape({4}), same, 1e9), app::compare("y", Tensor(), same, 1e9)}) {
    INFO(c.wrong);
    CHECK_FALSE(c.wrong.empty());
    CHECK(c.share == INFINITY);
    CHECK(c.error == INFINITY);
  }

  // Relative to the tensor's largest element.
  const Tensor recorded = from_vector(std::vector<double>{1, -2, 256, 2e-8}, {2, 2});
  CHECK(app::compare_recorded("y", x, recorded, 1e-10).wrong.empty());
  CHECK(contains(app::compare_recorded("y", x, recorded, 1e-11).wrong, "first, [3], is 0"));
  CHECK_FALSE(app::compare_recorded("y", x, zeros({2, 2}), 1).wrong.empty());
}

DEVICE_TEST("verify: a wrong operator is found forward and backward", "[verify]") {
  // Right but for one element of the result or of the gradient, by a thousandth.
  const auto spoilt = [](const Tensor& x, double by) {
    std::vector<double> factor(static_cast<size_t>(x.numel()), 1);
    factor[5] += by;
    return x * from_vector(factor, x.shape(), x.device()).to(x.dtype());
  };
  for (const bool forward : {true, false}) {
    app::OpCase c = app::relu_case({2, 4});
    c.op = [=](const std::vector<Tensor>& in) {
      const Tensor y = relu(in[0].detach());
      return record("relu", forward ? spoilt(y, 0.001).detach() : y, in,
                    [=, mask = y](const Tensor& dy) {
                      const Tensor dx = dy * (mask / (mask + 1e-300));
                      return Grads{forward ? dx : spoilt(dx, 0.001)};
                    });
    };
    // Element 5 has to be one that ReLU lets through.
    for (Array* a : {&c.inputs[0], &c.y}) a->v[5] = 0.5;
    c.dy.v[5] = c.grads[0].v[5] = 0.25;
    for (const app::Mode mode : app::kModes) {
      INFO(app::name(mode));
      const std::vector<Comparison> results = app::compare_with_oracle(c, {kFloat64, device}, mode);
      REQUIRE(results.size() == (forward ? 1 : 2));
      CHECK(contains(results.back().wrong, "1 of 8 elements wrong; the first, [5], is "));
      CHECK(results.back().what == (forward ? "y" : "gradient 0"));
    }
  }
}

TEST_CASE("verify: what is wrong is told, counted and fails", "[verify]") {
  const Comparison right{"y", 6, 1e-7, 0.25, ""};
  const Comparison off{"gradient 1", 6, 0.5, 40, "1 of 6 elements wrong; the first, [4], is 1"};
  const std::vector<app::VerifyCase> cases = {
      given("fine", [=] { return std::vector<Comparison>{right}; }),
      given("broken",
            [=] {
              return std::vector<Comparison>{right, off};
            }),
      given("fine",
            [=] {
              return std::vector<Comparison>{right, right};
            }),
      given("refused", []() -> std::vector<Comparison> { throw ShapeError("refused: rank 9"); })};
  app::Progress progress(true);
  const app::Proof proof = app::verify(cases, {kCpu}, progress);
  REQUIRE(proof.rows.size() == 12);  // three operators in two dtypes, eager and compiled
  for (const size_t row : {0, 1}) {
    CHECK(proof.rows[row].op == "fine");
    CHECK(proof.rows[row].mode == app::kModes[row]);
    CHECK(proof.rows[row].columns[0].cases == 2);
    CHECK(proof.rows[row].columns[0].compared == 18);
    CHECK(proof.rows[row].columns[0].share == 0.25);
    CHECK(proof.rows[row].columns[1].cases == 0);
  }
  REQUIRE(proof.wrong.size() == 8);
  CHECK(proof.wrong[0] ==
        "broken, eager, on cpu in float32 beside the oracle, x (2, 3): gradient 1: 1 of 6 elements "
        "wrong; the first, [4], is 1");
  CHECK(contains(proof.wrong[1], "broken, compiled, on cpu in float32"));
  CHECK(contains(proof.wrong[7], "refused, compiled, on cpu in float64"));
  CHECK(contains(proof.wrong[7], "threw: refused: rank 9"));
  const std::string table = app::table_of(proof);
  CHECK(contains(table, "| cpu    | float32 | compiled | 2 + 0 + 0 |"));
  CHECK(contains(table, "| 1e-07 (25 %) "));
  CHECK(contains(table, "| **1 WRONG**: 0.5 (4e+03 %) "));
  CHECK(contains(app::verdict(proof), "8 WRONG\n"));
  CHECK(contains(app::verdict(proof), proof.wrong[0]));

  const app::Proof good = app::verify({cases[0], cases[2]}, {kCpu}, progress);
  CHECK(good.wrong.empty());
  CHECK(contains(app::verdict(good), "all right; the largest error takes 25 % of its tolerance"));
}

TEST_CASE("verify: every operator has every reference that applies", "[verify]") {
  const std::vector<app::VerifyCase> cases = app::verify_cases(SINTER_GOLDEN_DIR);
  const auto oracle = operators_of(cases, app::Reference::kOracle);
  const auto pytorch = operators_of(cases, app::Reference::kPyTorch);
  const auto derivatives = operators_of(cases, app::Reference::kDerivatives);
  for (const app::GradcheckCase& c : app::gradcheck_cases()) CHECK(derivatives.count(c.op) == 1);

  // The operators, as their headers and the table of element-wise ones declare them.
  std::set<std::string> declared;
#define SINTER_NAME(kind, name, ...) declared.insert(#name);
  SINTER_ELEMENTWISE(SINTER_NAME, SINTER_NAME, SINTER_NAME)
#undef SINTER_NAME
  const std::filesystem::path headers =
      std::filesystem::path(SINTER_GOLDEN_DIR) / "../.." / "core/include/sinter";
  std::vector<std::filesystem::path> files{headers / "ops.h"};
  for (const auto& entry : std::filesystem::directory_iterator(headers / "ops"))
    files.push_back(entry.path());
  const std::regex declaration("\n(?:inline )?[A-Z]\\w* ([a-z]\\w*)\\(const Tensor&");
  for (const std::filesystem::path& file : files) {
    const std::string header = read_file(file);
    for (std::sregex_iterator it(header.begin(), header.end(), declaration), end; it != end; ++it)
      declared.insert((*it)[1]);
  }
  CHECK(declared.size() >= 100);
  // Results of no derivative, and names for what others compute: tested beside the operators.
  for (const char* op :
       {"argmax",    "argmin",    "argsort",      "all",         "any",        "isnan",
        "isinf",     "isfinite",  "eq",           "ne",          "lt",         "le",
        "gt",        "ge",        "logical_not",  "logical_and", "logical_or", "logical_xor",
        "trunc_div", "floor_div", "floor_divide", "add_scaled",  "add_relu",   "one_hot"})
    CHECK(declared.erase(op) == 1);
  // Compositions or samples: their values depend on a random stream, or are those of another's.
  for (const char* op : {"dropout", "dropout1d", "dropout2d"}) CHECK(declared.erase(op) == 1);
  const std::set<std::string> without_oracle = {"batch_norm", "layer_norm", "group_norm",
                                                "instance_norm", "rms_norm", "var_mean", "std_mean",
                                                // Names of permute and of views.
                                                "transpose", "squeeze", "unsqueeze",
                                                // Names of matmul at their ranks.
                                                "mm", "bmm", "mv", "dot", "addmm", "baddbmm"};
  const std::set<std::string> without_recording = {
      "instance_norm",          "gelu_tanh", "clamp_min", "clamp_max", "std_mean", "var_mean",
      "max_pool2d_with_indices"};
  for (const std::string& op : declared) {
    INFO(op);
    CHECK(oracle.count(op) == 1 - without_oracle.count(op));
    CHECK(pytorch.count(op) == 1 - without_recording.count(op));
    CHECK(derivatives.count(op) == 1);
  }
  // What programs run as one operator. PyTorch's parts are recorded, and a training run that goes
  // through both.
  for (const char* layers : {"conv2d_relu_pool", "mlp"}) {
    INFO(layers);
    CHECK(oracle.count(layers) == 1);
    CHECK(derivatives.count(layers) == 1);
  }
  for (const char* optimizer : {"Adam", "AdamW", "SGD"}) {
    INFO(optimizer);
    CHECK(oracle.count(optimizer) == 1);
    CHECK(pytorch.count(optimizer) == 1);
  }
  for (const char* other : {"clone", "to", "add_correct", "Batches"})
    CHECK(oracle.count(other) == 1);
  CHECK(pytorch.count("cifar_cnn") == 1);
}

TEST_CASE("verify command: proves everything on the CPU and writes the page", "[verify][app]") {
  const TempDir dir;
  const std::filesystem::path file = dir / "proof.md";
  write_file(file, "old");
  const Result all = run(
      dir, {"verify", "--device", "cpu", "--golden", SINTER_GOLDEN_DIR, "--out", file.string()});
  INFO(all.out << all.err);
  CHECK(all.code == 0);
  CHECK(dir.entries() == 3);  // stdout, stderr and the page: no temporary file is left
  const std::string page = read_file(file);
  CHECK(page.rfind("# Proof\n", 0) == 0);
  for (const char* part :
       {"sinter verify --device cpu --out docs/proof.md", "- Date: 20", " UTC\n",
        "- CPU: ", "- Driver: ", ", commit ", "- Result: all right; ", "**(b) PyTorch** 2."})
    CHECK(contains(page, part));
  CHECK_FALSE(contains(page, "WRONG"));
  std::set<std::string> rows;  // derivatives are in float64 only
  for (const app::VerifyCase& c : app::verify_cases(SINTER_GOLDEN_DIR)) {
    for (const app::Mode mode : app::kModes) {
      const std::string run = str(" +\\| ", app::name(mode), " ");
      rows.insert(c.op + " +\\| cpu +\\| float64" + run);
      if (c.reference != app::Reference::kDerivatives)
        rows.insert(c.op + " +\\| cpu +\\| float32" + run);
    }
  }
  CHECK(rows.size() >= 100);
  for (const std::string& row : rows) {
    INFO(row);
    CHECK(std::regex_search(page, std::regex("\n\\| " + row)));
    CHECK(std::regex_search(all.out, std::regex("(^|\n)\\| " + row)));
  }
}

TEST_CASE("verify command: what it prints, refuses and returns", "[verify][app]") {
  const TempDir dir;
  const std::string golden = SINTER_GOLDEN_DIR;
  const Result relu = run(dir, {"verify", "--op", "relu", "--device", "cpu", "--golden", golden});
  INFO(relu.out << relu.err);
  CHECK(relu.code == 0);
  CHECK(contains(relu.out, "\n| relu "));
  CHECK_FALSE(contains(relu.out, "conv2d"));

  // A recorded result that is changed: exit code 1, and the case by name.
  for (const char* name : {"operators", "optimizers", "training"}) {
    SafetensorsFile file = load_safetensors(golden + "/" + name + ".safetensors");
    for (auto& [tensor_name, tensor] : file.tensors)
      if (tensor_name == "relu.0.y") tensor.data<double>()[7] += 0.01;
    save_safetensors(dir / (std::string(name) + ".safetensors"), file.tensors, file.metadata);
  }
  const Result wrong =
      run(dir, {"verify", "--op", "relu", "--device", "cpu", "--golden", dir.path().string()});
  INFO(wrong.out << wrong.err);
  CHECK(wrong.code == 1);
  CHECK(contains(wrong.out, "**1 WRONG**"));
  CHECK(contains(wrong.out,
                 "relu, compiled, on cpu in float32 beside PyTorch, recorded relu.0 {}: y: 1 of "
                 "105 elements wrong; the first, [7], is "));

  struct Case {
    std::vector<std::string> args;
    int code;
    std::vector<std::string> message;
  };
  const std::vector<Case> cases = {
      {{"--op", "conv3d", "--golden", golden}, 2, {"--op", "conv2d, max_pool2d, ", "'conv3d'"}},
      {{"--op", "relu", "--out", "x.md"}, 2, {"--op", "--out"}},
      {{"--device", "cpu,tpu"}, 2, {"--device", "'tpu'"}},
      {{"--device", "cpu,cuda:99"}, 1, {"cuda"}},
      {{"--golden", (dir / "none").string()}, 1, {"--golden", "none", "tests/golden"}},
      {{"--out", (dir / "none" / "proof.md").string()}, 1, {"--out", "none"}}};
  for (const Case& c : cases) {
    std::vector<std::string> args = {"verify"};
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
