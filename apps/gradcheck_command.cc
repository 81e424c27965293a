#include <algorithm>
#include <iomanip>
#include <iostream>

#include "apps/commands.h"
#include "apps/machine.h"
#include "apps/verify.h"
#include "core/base/detail.h"
#include "sinter/gradcheck.h"
#include "tests/reference/comparison.h"
#include "tests/reference/gradcheck_cases.h"

namespace sinter::app {

namespace {

std::string percent(double share) {
  std::ostringstream out;
  out << std::setprecision(2) << 100 * share << " %";
  return out.str();
}

// "input 1[3]", or "input 1" for a direction in it: where the tolerance was used most.
std::string place(const GradcheckResult& r) {
  if (r.unchecked >= 0) return str("nothing of input ", r.unchecked, " compared");
  if (r.input < 0) return "no elements";
  return str("input ", r.input, r.index >= 0 ? str("[", r.index, "]") : std::string());
}

}  // namespace

bool check_gradients(const std::vector<GradcheckCase>& cases, const std::vector<Device>& devices,
                     bool full, std::ostream& out) {
  int64_t checked = 0;
  int failures = 0;
  double worst = 0;
  size_t longest = 16;
  for (const GradcheckCase& c : cases) longest = std::max(longest, c.op.size());
  const int width = static_cast<int>(longest) + 2;
  out << std::left << std::setw(width) << "operator" << std::setw(8) << "device" << std::setw(9)
      << "run" << std::right << std::setw(8) << "compared" << std::setw(7) << "kinks"
      << std::setw(12) << "tolerance"
      << "  at\n";
  for (const GradcheckCase& c : cases) {
    for (const Device device : devices) {
      check_interrupt("during the gradient checks");
      std::vector<Tensor> inputs;
      for (const Tensor& x : c.inputs) inputs.push_back(x.to(device));
      for (const Mode mode : kModes) {
        const GradcheckResult r = gradcheck(
            c.f, inputs, {.full = full && !c.directions_only, .compiled = mode == Mode::kCompiled});
        out << std::left << std::setw(width) << c.op << std::setw(8) << device.str() << std::setw(9)
            << name(mode) << std::right << std::setw(8) << r.checked << std::setw(7) << r.kinks
            << std::setw(12) << percent(r.share) << "  " << (r.ok ? "" : "WRONG ") << place(r)
            << " of " << c.what << "\n";
        if (!r.ok) out << "  " << r.str() << "\n";
        out.flush();
        checked += r.checked;
        failures += r.ok ? 0 : 1;
        worst = std::max(worst, r.share);
      }
    }
  }
  const auto counted = [](size_t n, const std::string& what) {
    return str(n, " ", what, n == 1 ? "" : "s");
  };
  out << counted(cases.size(), "case") << " on " << counted(devices.size(), "device")
      << ", eager and compiled, " << grouped(checked) << " derivatives compared in float64: ";
  if (failures == 0)
    out << "all right, the largest error takes " << percent(worst) << " of its tolerance\n";
  else
    out << failures << " WRONG\n";
  return failures == 0;
}

bool gradcheck_command(const Options& options) {
  std::vector<GradcheckCase> cases = gradcheck_cases();
  if (!options.op.empty()) cases = cases_of(options.op, std::move(cases));
  return check_gradients(cases, devices_asked_for("--device", options.devices), options.full,
                         std::cout);
}

}  // namespace sinter::app
