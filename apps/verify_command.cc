#include <algorithm>
#include <cmath>
#include <ctime>
#include <iomanip>
#include <iostream>
#include <map>

#include "apps/commands.h"
#include "apps/machine.h"
#include "apps/verify.h"
#include "core/base/detail.h"
#include "sinter/gradcheck.h"
#include "tests/reference/golden_replay.h"
#include "tests/reference/gradcheck_cases.h"
#include "tests/reference/oracle_cases.h"

namespace sinter::app {

namespace {

// Every derivative by itself, but for whole networks: there along random directions.
std::vector<VerifyCase> derivative_cases() {
  std::vector<VerifyCase> all;
  for (const GradcheckCase& c : gradcheck_cases()) {
    all.push_back(
        {c.op, Reference::kDerivatives, [c] {
           return PreparedCheck{
               c.what, [c](TensorOptions options, Mode mode) {
                 std::vector<Tensor> inputs;
                 for (const Tensor& x : c.inputs) inputs.push_back(x.to(options.device));
                 const GradcheckResult r =
                     gradcheck(c.f, inputs,
                               {.full = !c.directions_only, .compiled = mode == Mode::kCompiled});
                 const double scale = std::max({1.0, std::abs(r.analytic), std::abs(r.numeric)});
                 return std::vector<Comparison>{{"derivatives", r.checked,
                                                 std::abs(r.analytic - r.numeric) / scale, r.share,
                                                 r.ok ? std::string() : r.str()}};
               }};
         }});
  }
  return all;
}

const char* name(Reference reference) {
  switch (reference) {
    case Reference::kOracle:
      return "the oracle";
    case Reference::kPyTorch:
      return "PyTorch";
    case Reference::kDerivatives:
      return "differences";
  }
  return "";
}

std::string rounded(double value, int digits) {
  std::ostringstream out;
  out << std::setprecision(digits) << value;
  return out.str();
}

std::string cell(const ProofColumn& c) {
  if (c.cases == 0) return "–";
  const std::string text =
      c.error == 0 ? "0" : str(rounded(c.error, 2), " (", rounded(100 * c.share, 2), " %)");
  return c.wrong == 0 ? text : str("**", c.wrong, " WRONG**: ", text);
}

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  std::ostringstream out;
  out << std::put_time(&utc, "%Y-%m-%d %H:%M UTC");
  return out.str();
}

std::string page(const Proof& proof, const std::vector<Device>& devices, const std::string& torch,
                 double seconds) {
  std::string names;
  for (const Device device : devices) names += str(names.empty() ? "" : ",", device.str());
  return str(
      "# Proof\n\n"
      "What every operator, module and optimizer of Sinter computes, forward and backward, beside "
      "three references.\nWritten by `sinter verify`, which ends with an error if one result is "
      "off by more than its tolerance; not edited by\nhand. To write it anew:\n\n"
      "```sh\n"
      "sinter verify --device ",
      names,
      " --out docs/proof.md\n"
      "```\n\n",
      verdict(proof), "\n- Date: ", now(), "\n", markdown(this_machine()),
      "- Time taken: ", duration(seconds), "\n\n", table_of(proof),
      R"(
A cell holds the largest error over all cases, results and elements and, in parentheses, the largest share of its tolerance
that an error took; the two need not be of the same element. 0: equal to the last bit. –: there is no such reference.
Cases: how many with each of the three references. Run: eager is operator by operator; compiled, the case's forward and
backward pass are one function given to `sinter::compile`, and what its third call computes, the first that only replays
the program, is compared: there passes have put fused operators in the place of several.

**(a) The oracle** is `tests/reference/oracle*.h`: the definitions as plain loops in float64, sharing no code with the library. The result
and the gradient of every input are compared; for optimizers, whose equations are in `tests/reference/oracle_cases.cc`, the parameters
after steps 1, 2 and 12. Inputs are random float32 numbers, so that both dtypes and the oracle see the same; many sums of
them are exact in float64.

- Shapes (`tests/reference/oracle_*.cc`): extents of 1, odd ones, ones beside the widths of vectors, more than a block of 1,024
  threads in each extent and more than a grid's 65,535; batches of none, 1, 19 and 1,025; images and windows that are not
  square; 192 combinations of stride, dilation, padding and groups, depthwise too; windows of every size up to 8 x 8, as
  large as the image and all in the padding; every subset of four dimensions, every permutation of them, broadcasting in up
  to eight.
- Error: |result - oracle| / max(1, |oracle|), element by element.
- Tolerance: (terms + 4) ε, with ε = 2^-23 in float32 and 2^-52 in float64. Terms are the roundings that meet in an element,
  for a sum of K products K; an element that is copied must be equal.
- `conv2d_relu_pool` (convolution, ReLU and 2 x 2 max-pooling) and `mlp` (linear layers with ReLUs between them), which programs run
  as one operator, beside the composition of their parts' oracles: on small integers, whose sums are exact and full of ties, where they
  must be equal; and on random numbers no two of which are so close that rounding could make another element of a window the
  largest or switch a ReLU.

**(b) PyTorch** )",
      torch,
      R"( in float64, recorded by `tests/golden/generate.py` in `tests/golden` and replayed: operators forward and
backward, six steps of each optimizer, and in the row cifar_cnn fifty training steps with Adam.

- Error: |result - PyTorch| / the largest |PyTorch| of the tensor.
- Tolerance: )",
      rounded(kRecordedDouble, 2), " in float64; ", rounded(kRecordedSingle, 2),
      " in float32, and after the fifty training steps ", rounded(kRecordedSingleLosses, 2),
      " of the losses and\n  ", rounded(kRecordedSingleWeights, 2), " of the weights.",
      R"(

**(c) Differences**: derivatives beside central differences of the operator's own forward pass (`sinter gradcheck --full`),
in float64 only, where a difference still has digits. Each derivative by itself; whole networks along random directions.

- Error: |derivative - difference| / max(1, |derivative|, |difference|), of the comparison of each case that took the
  largest share of its tolerance.
- Tolerance: 1e-10 + 1e-7 of the larger one, and what float64 rounding leaves in a difference (`sinter/gradcheck.h`).

Where there is no reference: modules only call operators, which have all three. Of `conv2d_relu_pool` and `mlp` PyTorch's parts are
recorded, and the fifty training steps of the row cifar_cnn run through both. `clone`, `to`, `add_correct`
and `Batches` (bytes to normalized batches) are not recorded from PyTorch. `to`, `add_correct`, `Batches` and the optimizers have no
derivative to compare with differences: the oracle has that of `to`.

What is not a matter of digits is shown by tests: equal bits from run to run and for any number of threads, trainings killed and
resumed, replayed graphs, exchange with PyTorch, memory checkers. [Checks on the GPU](benchmarks.md#checks-on-the-gpu) records
their runs there.
)");
}

}  // namespace

std::vector<VerifyCase> verify_cases(const std::filesystem::path& golden) {
  std::error_code error;
  if (!std::filesystem::is_directory(golden, error))
    throw DataError(str("--golden: no folder ", golden.string(), " (",
                        error ? error.message() : "it is something else",
                        "); run in Sinter's source folder, or say where its tests/golden is"));
  std::vector<VerifyCase> all = oracle_cases();
  for (std::vector<VerifyCase> more : {golden_operators(golden), golden_optimizers(golden),
                                       golden_training(golden), derivative_cases()})
    std::move(more.begin(), more.end(), std::back_inserter(all));
  return all;
}

Proof verify(const std::vector<VerifyCase>& cases, const std::vector<Device>& devices,
             Progress& progress) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<ProofRow>> rows;  // of each operator: device by dtype
  for (const VerifyCase& c : cases) {
    std::vector<ProofRow>& of_op = rows[c.op];
    if (!of_op.empty()) continue;
    order.push_back(c.op);
    for (const Device device : devices)
      for (const DType dtype : {kFloat32, kFloat64})
        for (const Mode mode : kModes) of_op.push_back({c.op, device, dtype, mode, {}});
  }

  Proof proof;
  for (size_t i = 0; i < cases.size(); ++i) {
    const VerifyCase& c = cases[i];
    progress.bar("verifying", static_cast<double>(i) / static_cast<double>(cases.size()), c.op);
    const PreparedCheck prepared = c.prepare();
    for (ProofRow& row : rows[c.op]) {
      if (c.reference == Reference::kDerivatives && row.dtype != kFloat64) continue;
      check_interrupt("during the comparisons");
      ProofColumn& column = row.columns[static_cast<size_t>(c.reference)];
      ++column.cases;
      const size_t wrong_before = proof.wrong.size();
      const auto wrong = [&](const std::string& what) {
        proof.wrong.push_back(str(c.op, ", ", app::name(row.mode), ", on ", row.device, " in ",
                                  row.dtype, " beside ", name(c.reference), ", ", prepared.what,
                                  ": ", what));
      };
      try {
        for (const Comparison& r : prepared.check({row.dtype, row.device}, row.mode)) {
          column.compared += r.compared;
          column.error = std::max(column.error, r.error);
          column.share = std::max(column.share, r.share);
          if (!r.wrong.empty()) wrong(str(r.what, ": ", r.wrong));
        }
      } catch (const Error& e) {
        wrong(str("threw: ", e.what()));
      }
      column.wrong += proof.wrong.size() > wrong_before;
    }
  }
  progress.clear();
  for (const std::string& op : order)
    for (const ProofRow& row : rows[op])
      if (std::any_of(row.columns.begin(), row.columns.end(),
                      [](const ProofColumn& c) { return c.cases > 0; }))
        proof.rows.push_back(row);
  return proof;
}

std::string table_of(const Proof& proof) {
  std::vector<std::vector<std::string>> lines = {{"Operator", "Device", "Dtype", "Run", "Cases",
                                                  "(a) the oracle", "(b) PyTorch",
                                                  "(c) differences"}};
  for (const ProofRow& row : proof.rows) {
    std::string cases;
    for (const ProofColumn& c : row.columns) cases += str(cases.empty() ? "" : " + ", c.cases);
    lines.push_back({row.op, row.device.str(), sinter::name(row.dtype), app::name(row.mode), cases,
                     cell(row.columns[0]), cell(row.columns[1]), cell(row.columns[2])});
  }
  return table(lines);
}

std::string verdict(const Proof& proof) {
  int64_t cases = 0, compared = 0;
  const ProofRow* worst = nullptr;
  double share = -1;
  for (const ProofRow& row : proof.rows)
    for (const ProofColumn& column : row.columns) {
      cases += column.cases;
      compared += column.compared;
      if (column.share > share) {
        share = column.share;
        worst = &row;
      }
    }
  std::string text = str("- Compared: ", grouped(compared), " numbers in ", grouped(cases),
                         " runs of cases\n- Result: ");
  if (!proof.wrong.empty()) {
    text += str(proof.wrong.size(), " WRONG\n");
    for (const std::string& line : proof.wrong) text += str("  - ", line, "\n");
    return text.substr(0, text.size() - 1);
  }
  text += "all right";
  if (worst != nullptr)
    text += str("; the largest error takes ", rounded(100 * share, 2), " % of its tolerance (",
                worst->op, ", ", worst->device, ", ", sinter::name(worst->dtype), ", ",
                app::name(worst->mode), ")");
  return text;
}

bool verify_command(const Options& options) {
  const Output output("--out", options.out);
  const std::vector<Device> devices = devices_asked_for("--device", options.devices);
  std::vector<VerifyCase> cases = verify_cases(options.golden);
  if (!options.op.empty()) cases = cases_of(options.op, std::move(cases));
  const Stopwatch clock;
  Progress progress(options.quiet);
  const Proof proof = verify(cases, devices, progress);
  std::cout << table_of(proof) << "\n" << verdict(proof) << "\n";
  if (!options.out.empty()) {
    write_file(options.out, page(proof, devices, golden_version(options.golden), clock.seconds()));
    std::cout << "- Written: " << options.out.string() << "\n";
  }
  return proof.wrong.empty();
}

}  // namespace sinter::app
