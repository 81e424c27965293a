// What PyTorch computed, replayed: operators, optimizers and a training run recorded in float64 by
// golden/generate.py.
#include <sinter/models.h>
#include <sinter/sinter.h>

#include <nlohmann/json.hpp>
#include <set>

#include "values.h"

using namespace sinter;
using namespace sinter::test;
using nlohmann::json;

namespace {

// Largest difference let pass, relative to the largest element of the recorded tensor. Summation
// orders differ, so float64 leaves about 1e-15. In float32 the inputs are rounded too: a few 2^-24,
// times up to ten where a quotient or a logarithm enlarges them.
constexpr double kDouble = 1e-10, kSingle = 2e-6;
// After fifty steps of Adam. PyTorch's own float32 run is 4e-7 and 2e-5 from its float64 run; a
// gradient element that is small against its rounding is amplified by Adam's division, so another
// order of summation may land at some times that.
constexpr double kSingleLosses = 1e-5, kSingleWeights = 1e-3;
double tolerance(DType dtype) { return dtype == kFloat64 ? kDouble : kSingle; }

// A recorded file whose tensors are all to be asked for: what is left over was not tested.
class Golden {
 public:
  explicit Golden(const std::string& file)
      : file_(load_safetensors(std::string(SINTER_GOLDEN_DIR "/") + file)) {
    file_.metadata.erase("torch");  // the version it came from
    for (const auto& [name, tensor] : file_.tensors) tensors_[name] = tensor;
  }

  const std::map<std::string, std::string>& cases() const { return file_.metadata; }
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  Tensor get(const std::string& name) {
    INFO("recorded tensor " << name);
    REQUIRE(has(name));
    used_.insert(name);
    return tensors_.at(name);
  }
  // All tensors called "<prefix><role>", by role.
  std::map<std::string, Tensor> group(const std::string& prefix) {
    std::map<std::string, Tensor> result;
    for (auto it = tensors_.lower_bound(prefix);
         it != tensors_.end() && it->first.rfind(prefix, 0) == 0; ++it) {
      result[it->first.substr(prefix.size())] = get(it->first);
    }
    return result;
  }
  void check_all_used() const {
    for (const auto& [name, tensor] : tensors_) {
      INFO("recorded tensor " << name << " was not compared");
      CHECK(used_.count(name) == 1);
    }
  }

 private:
  SafetensorsFile file_;
  std::map<std::string, Tensor> tensors_;
  std::set<std::string> used_;
};

void check_golden(const std::string& what, const Tensor& actual, const Tensor& expected,
                  double allowed) {
  INFO(what << ", " << actual.dtype() << ", " << actual.device());
  REQUIRE(actual.defined());
  REQUIRE(actual.shape() == expected.shape());
  const std::vector<double> a = actual.to_vector<double>(), e = expected.to_vector<double>();
  double largest = 0, difference = 0;
  for (size_t i = 0; i < e.size(); ++i) {
    largest = std::max(largest, std::abs(e[i]));
    const double d = std::abs(a[i] - e[i]);
    if (!(d <= difference)) difference = std::isnan(d) ? INFINITY : d;  // NaN is wrong
  }
  INFO("off by " << difference << ", largest element " << largest);
  CHECK(difference <= allowed * largest);
  const double relative = difference == 0 ? 0 : difference / largest;
  LargestError& record = largest_errors()["golden " + what.substr(0, what.find('.')) + ", " +
                                          actual.device().str() + ", " + name(actual.dtype())];
  record.relative = std::max(record.relative, relative);
  record.used = std::max(record.used, relative / allowed);
}

// ---- operators ----------------------------------------------------------------------------------

using Inputs = std::map<std::string, Tensor>;
Tensor optional(const Inputs& in, const std::string& role) {
  return in.count(role) ? in.at(role) : Tensor();
}
Pair pair(const json& j) { return {j.at(0).get<int>(), j.at(1).get<int>()}; }
std::vector<int> ints(const json& j) { return j.get<std::vector<int>>(); }
Pool2dOptions pooling(const json& a) { return {pair(a.at("stride")), pair(a.at("padding"))}; }

using Replay = std::function<Tensor(const Inputs&, const json&)>;

const std::map<std::string, Replay>& operators() {
  static const std::map<std::string, Replay> table = {
      {"conv2d",
       [](const Inputs& in, const json& a) {
         return conv2d(in.at("x"), in.at("w"), optional(in, "b"),
                       {pair(a.at("stride")), pair(a.at("padding")), pair(a.at("dilation")),
                        a.at("groups").get<int>()});
       }},
      {"max_pool2d",
       [](const Inputs& in, const json& a) {
         return max_pool2d(in.at("x"), pair(a.at("kernel")), pooling(a));
       }},
      {"avg_pool2d",
       [](const Inputs& in, const json& a) {
         return avg_pool2d(in.at("x"), pair(a.at("kernel")), pooling(a));
       }},
      {"linear", [](const Inputs& in,
                    const json&) { return linear(in.at("x"), in.at("w"), optional(in, "b")); }},
      {"matmul", [](const Inputs& in, const json&) { return matmul(in.at("a"), in.at("b")); }},
      {"relu", [](const Inputs& in, const json&) { return relu(in.at("x")); }},
      {"add", [](const Inputs& in, const json&) { return in.at("a") + in.at("b"); }},
      {"sub", [](const Inputs& in, const json&) { return in.at("a") - in.at("b"); }},
      {"mul", [](const Inputs& in, const json&) { return in.at("a") * in.at("b"); }},
      {"div", [](const Inputs& in, const json&) { return in.at("a") / in.at("b"); }},
      {"sum",
       [](const Inputs& in, const json& a) {
         return sum(in.at("x"), ints(a.at("dims")), a.at("keepdim").get<bool>());
       }},
      {"mean",
       [](const Inputs& in, const json& a) {
         return mean(in.at("x"), ints(a.at("dims")), a.at("keepdim").get<bool>());
       }},
      {"permute",
       [](const Inputs& in, const json& a) { return permute(in.at("x"), ints(a.at("dims"))); }},
      {"reshape",
       [](const Inputs& in, const json& a) {
         return reshape(in.at("x"), Shape(a.at("shape").get<std::vector<int64_t>>()));
       }},
      {"flatten",
       [](const Inputs& in, const json& a) {
         return flatten(in.at("x"), a.at("first").get<int>(), a.at("last").get<int>());
       }},
      {"narrow",
       [](const Inputs& in, const json& a) {
         return narrow(in.at("x"), a.at("first").get<int64_t>(), a.at("count").get<int64_t>());
       }},
      {"log_softmax",
       [](const Inputs& in, const json& a) {
         return log_softmax(in.at("x"), a.at("dim").get<int>());
       }},
      {"cross_entropy", [](const Inputs& in, const json& a) {
         const std::string reduction = a.at("reduction").get<std::string>();
         REQUIRE((reduction == "mean" || reduction == "sum"));
         return cross_entropy(in.at("x"), in.at("labels"),
                              {reduction == "sum" ? Reduction::kSum : Reduction::kMean,
                               a.at("label_smoothing").get<double>()});
       }}};
  return table;
}

// One recorded case, forward and backward.
void replay(const std::string& name, const std::string& op, const json& attributes,
            const std::map<std::string, Tensor>& recorded, TensorOptions options) {
  Inputs inputs;
  int gradients = 0;
  for (const auto& [role, tensor] : recorded) {
    if (role == "y" || role == "dy" || recorded.count(role.substr(1))) continue;
    const bool differentiable = recorded.count("d" + role) > 0;
    Tensor x = tensor.to(options.device);
    if (differentiable) x = x.to(options.dtype).set_requires_grad();
    gradients += differentiable;
    inputs[role] = x;
  }
  REQUIRE(gradients > 0);
  const Tensor y = operators().at(op)(inputs, attributes);
  check_golden(name + ": y", y, recorded.at("y"), tolerance(options.dtype));
  y.backward(recorded.at("dy").to(options.device).to(options.dtype));
  for (const auto& [role, x] : inputs) {
    if (recorded.count("d" + role))
      check_golden(name + ": d" + role, x.grad(), recorded.at("d" + role),
                   tolerance(options.dtype));
  }
}

// ---- optimizers ---------------------------------------------------------------------------------

std::unique_ptr<Optimizer> make_optimizer(const std::vector<Tensor>& params, json options) {
  const std::string kind = options.at("kind").get<std::string>();
  options.erase("kind");
  AdamOptions adam;
  if (kind == "adamw") adam.weight_decay = 0.01;
  SGDOptions sgd;
  for (const auto& [key, value] : options.items()) {
    INFO("option " << key);
    if (key == "lr") {
      adam.lr = sgd.lr = value.get<double>();
    } else if (key == "weight_decay") {
      adam.weight_decay = sgd.weight_decay = value.get<double>();
    } else if (kind == "sgd") {
      REQUIRE((key == "momentum" || key == "dampening" || key == "nesterov"));
      if (key == "momentum") sgd.momentum = value.get<double>();
      if (key == "dampening") sgd.dampening = value.get<double>();
      if (key == "nesterov") sgd.nesterov = value.get<bool>();
    } else {
      REQUIRE((key == "betas" || key == "eps"));
      if (key == "eps") adam.eps = value.get<double>();
      if (key == "betas") {
        adam.beta1 = value.at(0).get<double>();
        adam.beta2 = value.at(1).get<double>();
      }
    }
  }
  if (kind == "adam") return std::make_unique<Adam>(params, adam);
  if (kind == "adamw") return std::make_unique<AdamW>(params, adam);
  REQUIRE(kind == "sgd");
  return std::make_unique<SGD>(params, sgd);
}

// ---- training -----------------------------------------------------------------------------------

// generate.py's images(step): pixels in [-1, 1] and labels from a linear congruential generator.
Batch batch_of(int step, int size, TensorOptions options) {
  uint64_t state = static_cast<uint64_t>(step) + 1;
  const auto draw = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  };
  std::vector<double> pixels;
  std::vector<int64_t> labels;
  for (int n = 0; n < size; ++n) {
    labels.push_back(static_cast<int64_t>(draw() % 10));
    for (int i = 0; i < 3072; ++i) {
      const int band = i % 1024 / 32 * 10 / 32;  // the label brightens one band of rows
      pixels.push_back((static_cast<double>(draw() % 256) / 255 - 0.5) / 0.5 +
                       (band == labels.back() ? 1.0 : 0.0));
    }
  }
  return {from_vector(pixels, {size, 3, 32, 32}, options.device).to(options.dtype),
          from_vector(labels, {size}, options.device)};
}

NamedTensors named(const std::map<std::string, Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

}  // namespace

DEVICE_TEST("golden: every recorded operator", "[golden]") {
  for (const DType dtype : {kFloat64, kFloat32}) {
    Golden golden("operators.safetensors");
    std::set<std::string> replayed, ops;
    for (const auto& [name, attributes] : golden.cases()) {
      const std::string op = name.substr(0, name.find('.'));
      INFO(name << " " << attributes);
      if (operators().count(op) == 0) {
        FAIL_CHECK("no operator " << op << " here");
        continue;
      }
      replay(name, op, json::parse(attributes), golden.group(name + "."), {dtype, device});
      replayed.insert(name);
      ops.insert(op);
    }
    CHECK(replayed.size() == golden.cases().size());
    CHECK(ops.size() == operators().size());  // none of ours went without a record
    golden.check_all_used();
  }
}

DEVICE_TEST("golden: every recorded optimizer trajectory", "[golden]") {
  for (const DType dtype : {kFloat64, kFloat32}) {
    Golden golden("optimizers.safetensors");
    size_t replayed = 0;
    std::set<std::string> kinds;
    for (const auto& [name, attributes] : golden.cases()) {
      INFO(name << " " << attributes);
      const json options = json::parse(attributes);
      const auto recorded = [&, prefix = name + "."](const std::string& role, int step) {
        return golden.get(prefix + role + std::to_string(step));
      };
      Tensor p = recorded("p", 0).clone().to(device).to(dtype).set_requires_grad();
      const auto optimizer = make_optimizer({p}, options);
      const std::string kind = options.at("kind").get<std::string>();
      int step = 1;
      for (; golden.has(name + ".g" + std::to_string(step)); ++step) {
        if (step == 4) optimizer->set_lr(options.at("lr").get<double>() / 2);
        p.set_grad(recorded("g", step).to(device).to(dtype));
        optimizer->step();
        check_golden(kind + "." + name + ": step " + std::to_string(step), p, recorded("p", step),
                     tolerance(dtype));
      }
      CHECK(step > 4);  // the learning rate did change
      kinds.insert(kind);
      ++replayed;
    }
    CHECK(replayed == golden.cases().size());
    CHECK(kinds == std::set<std::string>{"adam", "adamw", "sgd"});
    golden.check_all_used();
  }
}

DEVICE_TEST("golden: fifty training steps follow PyTorch's", "[golden]") {
  for (const DType dtype : {kFloat64, kFloat32}) {
    Golden golden("training.safetensors");
    const json job = json::parse(golden.cases().at("training"));
    CifarCnn net;
    net.load_state_dict(named(golden.group("first.")));
    net.to(dtype).to(device);
    net.load_state_dict(named(golden.group("first.")));  // again: not through float32
    Adam adam(net.parameters(), {.lr = job.at("lr").get<double>()});
    std::vector<double> losses;
    for (int step = 0; step < job.at("steps").get<int>(); ++step) {
      const Batch batch = batch_of(step, job.at("batch").get<int>(), {dtype, device});
      adam.zero_grad();
      const Tensor loss = cross_entropy(net(batch.x), batch.y);
      loss.backward();
      adam.step();
      losses.push_back(loss.item<double>());
    }
    REQUIRE(losses.size() >= 50);
    CHECK(losses.back() < losses.front());
    const Tensor curve =
        from_vector(losses, {static_cast<int64_t>(losses.size())}, device).to(dtype);
    check_golden("training losses", curve, golden.get("losses"),
                 dtype == kFloat64 ? kDouble : kSingleLosses);
    const NamedTensors last = named(golden.group("last."));
    std::map<std::string, Tensor> state;
    for (const auto& [name, tensor] : net.state_dict()) state[name] = tensor;
    REQUIRE(state.size() == last.size());
    for (const auto& [name, expected] : last) {
      REQUIRE(state.count(name) == 1);
      check_golden("training weights." + name, state[name], expected,
                   dtype == kFloat64 ? kDouble : kSingleWeights);
    }
    golden.check_all_used();
  }
}
