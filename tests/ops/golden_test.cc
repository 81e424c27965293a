// What PyTorch computed, replayed (golden_replay.h): operators, optimizers and a training run.
#include <sinter/sinter.h>

#include <algorithm>

#include "tests/reference/golden_replay.h"
#include "tests/support/temp_dir.h"
#include "tests/support/values.h"

using namespace sinter;
using namespace sinter::test;

namespace {

const std::filesystem::path kGolden = SINTER_GOLDEN_DIR;

void check_cases(const std::vector<app::VerifyCase>& cases, Device device,
                 const std::vector<DType>& dtypes = {kFloat64, kFloat32}) {
  for (const app::VerifyCase& c : cases) {
    CHECK(c.reference == app::Reference::kPyTorch);
    const app::PreparedCheck prepared = c.prepare();
    INFO(prepared.what);
    for (const DType dtype : dtypes)
      for (const app::Mode mode : app::kModes) {
        INFO(app::name(mode));
        const std::vector<Comparison> results = prepared.check({dtype, device}, mode);
        CHECK(results.size() >= 2);
        for (const Comparison& r : results) {
          INFO(r.what);
          CHECK(r.compared > 0);
          check_comparison("golden " + c.op, r, {dtype, device});
        }
      }
  }
}

// A folder with a changed copy of one recorded file.
template <class Change> void change(const TempDir& dir, const std::string& file, Change&& f) {
  const SafetensorsFile original = load_safetensors(kGolden / file);
  NamedTensors tensors = original.tensors;
  std::map<std::string, std::string> metadata = original.metadata;
  f(tensors, metadata);
  save_safetensors(dir / file, tensors, metadata);
}

void remove(NamedTensors& tensors, const std::string& name) {
  REQUIRE(std::erase_if(tensors, [&](const auto& t) { return t.first == name; }) == 1);
}

}  // namespace

// That none of our operators and optimizers went without a record, and no tensor without a
// comparison, is what making the cases checks.
DEVICE_TEST("golden: every recorded operator", "[golden]") {
  const std::vector<app::VerifyCase> cases = app::golden_operators(kGolden);
  CHECK(cases.size() >= 84);
  check_cases(cases, device);
}

DEVICE_TEST("golden: every recorded optimizer trajectory", "[golden]") {
  const std::vector<app::VerifyCase> cases = app::golden_optimizers(kGolden);
  CHECK(cases.size() >= 8);
  check_cases(cases, device);
}

DEVICE_TEST("golden: fifty training steps follow PyTorch's", "[golden]") {
  const std::vector<app::VerifyCase> cases = app::golden_training(kGolden);
  CHECK(cases.size() == 1);
  if (under_sanitizer())
    check_cases(cases, device, {kFloat32});
  else
    check_cases(cases, device);
}

TEST_CASE("golden: a record that is changed is noticed", "[golden]") {
  const TempDir dir;
  change(dir, "operators.safetensors", [](NamedTensors& tensors, auto&) {
    for (auto& [name, tensor] : tensors)
      if (name == "conv2d.1.dw") tensor.template data<double>()[5] += 1e-5;
  });
  change(dir, "optimizers.safetensors", [](NamedTensors& tensors, auto&) {
    for (auto& [name, tensor] : tensors)
      if (name == "0.p6") tensor.template data<double>()[0] = std::nan("");
  });
  int wrong = 0;
  for (const auto& cases : {app::golden_operators(dir.path()), app::golden_optimizers(dir.path())})
    for (const app::VerifyCase& c : cases) {
      const app::PreparedCheck prepared = c.prepare();
      for (const app::Mode mode : app::kModes)
        for (const Comparison& r : prepared.check({kFloat64, kCpu}, mode)) {
          if (r.wrong.empty()) continue;
          ++wrong;
          INFO(app::name(mode) << ", " << prepared.what << ": " << r.what << ": " << r.wrong);
          const bool is_conv =
              r.what == "dw" && prepared.what.find("conv2d.1") != std::string::npos;
          CHECK((is_conv || (c.op == "Adam" && r.what == "step 6")));
          CHECK(r.wrong.find(is_conv ? "1 of 300 elements wrong; the first, [5], is "
                                     : "1 of 20 elements wrong; the first, [0], is ") == 0);
          CHECK(r.share > 1);
        }
    }
  CHECK(wrong == 4);
}

TEST_CASE("golden: a record that would go unused is refused", "[golden]") {
  const auto refused = [](const std::string& file, auto&& f, const std::vector<std::string>& parts,
                          std::vector<app::VerifyCase> (*load)(const std::filesystem::path&)) {
    const TempDir dir;
    change(dir, file, f);
    check_throws<DataError>([&] { load(dir.path()); }, parts);
  };
  const std::string ops = "operators.safetensors", optimizers = "optimizers.safetensors";
  refused(
      ops, [](auto& tensors, auto&) { tensors.emplace_back("stray", zeros({1})); },
      {ops, "stray", "no case"}, app::golden_operators);
  refused(
      ops, [](auto&, auto& metadata) { metadata["conv3d.0"] = "{}"; }, {"conv3d"},
      app::golden_operators);
  refused(
      ops, [](auto&, auto& metadata) { metadata["conv2d.0"] = "{"; }, {"conv2d.0", "JSON"},
      app::golden_operators);
  refused(
      ops, [](auto& tensors, auto&) { remove(tensors, "linear.0.y"); }, {"linear.0"},
      app::golden_operators);
  refused(
      ops,
      [](auto& tensors, auto& metadata) {
        metadata.erase("flatten.0");
        std::erase_if(tensors, [](const auto& t) { return t.first.rfind("flatten.", 0) == 0; });
      },
      {"no record", "flatten"}, app::golden_operators);
  refused(
      optimizers, [](auto& tensors, auto&) { remove(tensors, "0.p2"); }, {"optimizer 0"},
      app::golden_optimizers);
  refused(
      "training.safetensors", [](auto& tensors, auto&) { remove(tensors, "last.fc3.bias"); },
      {"same weights"}, app::golden_training);
  check_throws<DataError>([] { app::golden_operators("no-such-folder"); }, {"no-such-folder"});
}
