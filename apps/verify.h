// The proof: every operator on every device in every dtype beside three references.
#pragma once

#include <array>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "apps/console.h"
#include "core/base/detail.h"
#include "tests/reference/comparison.h"

namespace sinter::app {

// Everything `sinter verify` compares: the naive oracle, what PyTorch recorded in the folder
// `golden`, and central differences. Throws DataError as the functions of golden_replay.h do.
std::vector<VerifyCase> verify_cases(const std::filesystem::path& golden);

// The cases of one operator. Throws UsageError, listing them all, if there is none of that name.
template <class Case> std::vector<Case> cases_of(const std::string& op, std::vector<Case> cases) {
  std::string known;
  std::set<std::string> seen;
  for (const Case& c : cases)
    if (seen.insert(c.op).second) known += str(known.empty() ? "" : ", ", c.op);
  if (seen.count(op) == 0)
    throw UsageError(str("--op: expected one of ", known, ", got '", op, "'"));
  std::erase_if(cases, [&](const Case& c) { return c.op != op; });
  return cases;
}

// Beside one reference.
struct ProofColumn {
  int64_t cases = 0, wrong = 0;  // wrong: of the cases
  int64_t compared = 0;          // elements or derivatives
  double error = 0, share = 0;   // the largest of each, as in Comparison
};

struct ProofRow {
  std::string op;
  Device device;
  DType dtype;
  Mode mode;
  std::array<ProofColumn, 3> columns;  // by Reference
};

struct Proof {
  std::vector<ProofRow> rows;      // an operator's beside each other
  std::vector<std::string> wrong;  // a line about each wrong result; empty: all is right
};

// Runs every case on every device in float32 and float64 (derivatives in float64 only), eagerly and
// compiled. What an
// operator throws makes its case wrong. Throws Interrupted.
Proof verify(const std::vector<VerifyCase>& cases, const std::vector<Device>& devices,
             Progress& progress);

// As a Markdown table that also reads well on a terminal.
std::string table_of(const Proof& proof);
// "1,234 runs of 567 cases, …: all right, the largest error takes 16 % …", or what is wrong.
std::string verdict(const Proof& proof);

}  // namespace sinter::app
