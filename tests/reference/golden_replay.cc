#include "tests/reference/golden_replay.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/detail.h"
#include "sinter/data.h"
#include "sinter/models.h"
#include "sinter/ops.h"
#include "sinter/optim.h"
#include "sinter/program.h"
#include "sinter/safetensors.h"
#include "tests/reference/drawn_replay.h"

namespace sinter::app {

namespace {

using nlohmann::json;

double tolerance(DType dtype) { return dtype == kFloat64 ? kRecordedDouble : kRecordedSingle; }

// A recorded file whose tensors are all to be asked for: what is left over would not be compared.
class Golden {
 public:
  Golden(const std::filesystem::path& dir, const char* file)
      : path_(dir / file), file_(load_safetensors(path_)) {
    if (file_.metadata.count("torch")) torch_ = file_.metadata.at("torch");
    file_.metadata.erase("torch");
    for (const auto& [name, tensor] : file_.tensors) tensors_[name] = tensor;
  }

  const std::string& torch() const { return torch_; }  // the version it came from
  const std::map<std::string, std::string>& cases() const { return file_.metadata; }

  // The attributes of a case.
  json attributes(const std::string& name) const {
    const json parsed = json::parse(cases().at(name), nullptr, false);
    expect(parsed.is_object(), "the attributes of ", name, " are no JSON object");
    return parsed;
  }

  // All tensors called "<prefix><role>", by role.
  Recorded group(const std::string& prefix) {
    Recorded result;
    for (auto it = tensors_.lower_bound(prefix);
         it != tensors_.end() && it->first.rfind(prefix, 0) == 0; ++it) {
      result[it->first.substr(prefix.size())] = it->second;
      used_.insert(it->first);
    }
    return result;
  }

  template <class... Args> void expect(bool ok, const Args&... message) const {
    require<DataError>(ok, path_.string(), ": ", message...);
  }
  void expect_all_used() const {
    for (const auto& [name, tensor] : tensors_)
      expect(used_.count(name) == 1, "tensor ", name, " belongs to no case");
  }

 private:
  std::filesystem::path path_;
  SafetensorsFile file_;
  std::string torch_ = "of an unknown version";
  Recorded tensors_;
  std::set<std::string> used_;
};

// ---- operators ----------------------------------------------------------------------------------

Tensor optional(const Recorded& in, const std::string& role) {
  return in.count(role) ? in.at(role) : Tensor();
}
Pair pair(const json& j) { return {j.at(0).get<int>(), j.at(1).get<int>()}; }
std::vector<int> ints(const json& j) { return j.get<std::vector<int>>(); }
Reduction reduction(const std::string& name) {
  require<DataError>(name == "sum" || name == "mean", "reduction: expected sum or mean, got ",
                     name);
  return name == "sum" ? Reduction::kSum : Reduction::kMean;
}

const std::map<std::string, Replay>& operators() {
  static const std::map<std::string, Replay> table = {
      {"conv2d",
       [](const Recorded& in, const json& a) {
         return conv2d(in.at("x"), in.at("w"), optional(in, "b"),
                       {pair(a.at("stride")), pair(a.at("padding")), pair(a.at("dilation")),
                        a.at("groups").get<int>()});
       }},
      {"max_pool2d",
       [](const Recorded& in, const json& a) {
         return max_pool2d(in.at("x"), pair(a.at("kernel")),
                           {.stride = pair(a.at("stride")), .padding = pair(a.at("padding"))});
       }},
      {"avg_pool2d",
       [](const Recorded& in, const json& a) {
         return avg_pool2d(in.at("x"), pair(a.at("kernel")),
                           {.stride = pair(a.at("stride")), .padding = pair(a.at("padding"))});
       }},
      {"linear", [](const Recorded& in,
                    const json&) { return linear(in.at("x"), in.at("w"), optional(in, "b")); }},
      {"matmul", [](const Recorded& in, const json&) { return matmul(in.at("a"), in.at("b")); }},
      {"relu", [](const Recorded& in, const json&) { return relu(in.at("x")); }},
      {"add", [](const Recorded& in, const json&) { return in.at("a") + in.at("b"); }},
      {"sub", [](const Recorded& in, const json&) { return in.at("a") - in.at("b"); }},
      {"mul", [](const Recorded& in, const json&) { return in.at("a") * in.at("b"); }},
      {"div", [](const Recorded& in, const json&) { return in.at("a") / in.at("b"); }},
      {"sum",
       [](const Recorded& in, const json& a) {
         return sum(in.at("x"), ints(a.at("dims")), a.at("keepdim").get<bool>());
       }},
      {"mean",
       [](const Recorded& in, const json& a) {
         return mean(in.at("x"), ints(a.at("dims")), a.at("keepdim").get<bool>());
       }},
      {"permute",
       [](const Recorded& in, const json& a) { return permute(in.at("x"), ints(a.at("dims"))); }},
      {"reshape",
       [](const Recorded& in, const json& a) {
         return reshape(in.at("x"), Shape(a.at("shape").get<std::vector<int64_t>>()));
       }},
      {"flatten",
       [](const Recorded& in, const json& a) {
         return flatten(in.at("x"), a.at("first").get<int>(), a.at("last").get<int>());
       }},
      {"log_softmax",
       [](const Recorded& in, const json& a) {
         return log_softmax(in.at("x"), a.at("dim").get<int>());
       }},
      {"cross_entropy", [](const Recorded& in, const json& a) {
         return cross_entropy(in.at("x"), in.at("labels"),
                              {reduction(a.at("reduction").get<std::string>()),
                               a.at("label_smoothing").get<double>()});
       }}};
  return table;
}

// One recorded case, forward and backward. Roles: the inputs' names, "y", "dy", and "d<input>" for
// inputs that have a gradient.
std::vector<Comparison> replay(const Replay& op, const json& attributes, const Recorded& recorded,
                               TensorOptions options, Mode mode) {
  Recorded inputs;
  for (const auto& [role, tensor] : recorded) {
    if (role == "y" || role == "dy" || recorded.count(role.substr(1))) continue;
    Tensor x = tensor.to(options.device);
    if (is_floating(x.dtype())) x = x.to(options.dtype);
    if (recorded.count("d" + role)) x = x.detach().set_requires_grad();
    inputs[role] = x;
  }
  const double allowed = tolerance(options.dtype);
  const Tensor dy = recorded.at("dy").to(options.device).to(options.dtype);
  const std::vector<Tensor> computed = results(mode, [&] {
    for (const auto& [role, x] : inputs) x.set_grad({});
    const Tensor y = op(inputs, attributes);
    std::vector<Tensor> all = {y};
    if (!(y.shape() == dy.shape())) return all;
    y.backward(dy);
    for (const auto& [role, x] : inputs)
      if (recorded.count("d" + role)) all.push_back(x.grad());
    return all;
  });
  std::vector<Comparison> all = {compare_recorded("y", computed[0], recorded.at("y"), allowed)};
  if (!all.back().wrong.empty()) return all;
  for (const auto& [role, x] : inputs)
    if (recorded.count("d" + role))
      all.push_back(
          compare_recorded("d" + role, computed.at(all.size()), recorded.at("d" + role), allowed));
  return all;
}

// ---- optimizers ---------------------------------------------------------------------------------

std::unique_ptr<Optimizer> make_optimizer(const std::vector<Tensor>& params, json options) {
  const std::string kind = options.at("kind").get<std::string>();
  options.erase("kind");
  AdamOptions adam;
  if (kind == "adamw") adam.weight_decay = 0.01;
  SGDOptions sgd;
  for (const auto& [key, value] : options.items()) {
    const bool is_sgd = kind == "sgd";
    if (key == "lr")
      adam.lr = sgd.lr = value.get<double>();
    else if (key == "weight_decay")
      adam.weight_decay = sgd.weight_decay = value.get<double>();
    else if (is_sgd && key == "momentum")
      sgd.momentum = value.get<double>();
    else if (is_sgd && key == "dampening")
      sgd.dampening = value.get<double>();
    else if (is_sgd && key == "nesterov")
      sgd.nesterov = value.get<bool>();
    else if (!is_sgd && key == "eps")
      adam.eps = value.get<double>();
    else if (!is_sgd && key == "betas")
      std::tie(adam.beta1, adam.beta2) = value.get<std::pair<double, double>>();
    else
      throw DataError(str("recorded optimizer ", kind, ": option ", key, " is not known here"));
  }
  if (kind == "adam") return std::make_unique<Adam>(params, adam);
  if (kind == "adamw") return std::make_unique<AdamW>(params, adam);
  return std::make_unique<SGD>(params, sgd);
}

// p after each step with the recorded gradients; the learning rate is halved before the fourth.
std::vector<Comparison> replay_steps(const json& job, const Recorded& recorded,
                                     TensorOptions options, Mode mode) {
  const auto at = [&](const char* role, int step) { return recorded.at(str(role, step)); };
  Tensor p = at("p", 0).clone().to(options.device).to(options.dtype).set_requires_grad();
  p.set_grad(zeros_like(p));
  const std::unique_ptr<Optimizer> optimizer = make_optimizer({p}, job);
  auto compiled_step = compile([&] { optimizer->step(); });
  std::vector<Comparison> all;
  for (int step = 1; recorded.count(str("g", step)); ++step) {
    if (step == 4) optimizer->set_lr(job.at("lr").get<double>() / 2);
    p.grad().copy_(at("g", step).to(options.device));
    if (mode == Mode::kCompiled)
      compiled_step();
    else
      optimizer->step();
    all.push_back(compare_recorded(str("step ", step), p, at("p", step), tolerance(options.dtype)));
  }
  return all;
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

NamedTensors named(const Recorded& tensors) { return {tensors.begin(), tensors.end()}; }

std::vector<Comparison> replay_training(const json& job, const Recorded& first,
                                        const Recorded& last, const Tensor& losses,
                                        TensorOptions options, Mode mode) {
  CifarCnn net;
  net.to(options.dtype).to(options.device);
  net.load_state_dict(named(first));
  Adam adam(net.parameters(), {.lr = job.at("lr").get<double>()});
  const auto train = [&](const Tensor& x, const Tensor& y) {
    const Tensor loss = cross_entropy(net(x), y);
    loss.backward();
    adam.step();
    adam.zero_grad();
    return loss;
  };
  auto compiled_train = compile(train);
  std::vector<double> curve;
  for (int step = 0; step < job.at("steps").get<int>(); ++step) {
    const Batch batch = batch_of(step, job.at("batch").get<int>(), options);
    const Tensor loss =
        mode == Mode::kCompiled ? compiled_train(batch.x, batch.y) : train(batch.x, batch.y);
    curve.push_back(loss.item<double>());
  }
  const bool exact = options.dtype == kFloat64;
  std::vector<Comparison> all = {
      compare_recorded("losses", from_vector(curve, {static_cast<int64_t>(curve.size())}), losses,
                       exact ? kRecordedDouble : kRecordedSingleLosses)};
  for (const auto& [name, tensor] : net.state_dict())
    all.push_back(compare_recorded(name, tensor, last.at(name),
                                   exact ? kRecordedDouble : kRecordedSingleWeights));
  return all;
}

}  // namespace

// ---- cases --------------------------------------------------------------------------------------

std::vector<VerifyCase> golden_operators(const std::filesystem::path& dir) {
  Golden golden(dir, "operators.safetensors");
  std::vector<VerifyCase> all;
  std::set<std::string> ops;
  for (const auto& [name, attributes] : golden.cases()) {
    const std::string op = name.substr(0, name.find('.'));
    const json a = golden.attributes(name);
    const std::map<std::string, Replay>& table =
        a.contains("args") ? drawn_operators() : operators();
    golden.expect(table.count(op) == 1, "no operator ", op, " here");
    const Recorded recorded = golden.group(name + ".");
    const bool gradients = std::any_of(recorded.begin(), recorded.end(), [&](const auto& entry) {
      return entry.first != "y" && recorded.count("d" + entry.first) > 0;
    });
    golden.expect(recorded.count("y") && recorded.count("dy") && gradients, name,
                  " has no result or no gradient");
    const std::string what = str("recorded ", name, " ", attributes);
    all.push_back({op, Reference::kPyTorch, [=, f = table.at(op)] {
                     return PreparedCheck{what, [=](TensorOptions o, Mode mode) {
                                            return replay(f, a, recorded, o, mode);
                                          }};
                   }});
    ops.insert(op);
  }
  for (const auto* table : {&operators(), &drawn_operators()})
    for (const auto& [op, f] : *table)
      golden.expect(ops.count(op) == 1, "no record of operator ", op);
  golden.expect_all_used();
  return all;
}

std::vector<VerifyCase> golden_optimizers(const std::filesystem::path& dir) {
  static const std::map<std::string, std::string> kNames = {
      {"adam", "Adam"}, {"adamw", "AdamW"}, {"sgd", "SGD"}};
  Golden golden(dir, "optimizers.safetensors");
  std::vector<VerifyCase> all;
  std::set<std::string> kinds;
  for (const auto& [name, attributes] : golden.cases()) {
    const json job = golden.attributes(name);
    const std::string kind = job.at("kind").get<std::string>();
    golden.expect(kNames.count(kind) == 1, "no optimizer ", kind, " here");
    const Recorded recorded = golden.group(name + ".");
    int steps = 0;
    while (recorded.count(str("g", steps + 1)) && recorded.count(str("p", steps + 1))) ++steps;
    golden.expect(
        recorded.count("p0") && steps >= 4 && recorded.size() == 1 + 2 * static_cast<size_t>(steps),
        "optimizer ", name, " has not p and g of four steps or more");
    const std::string what = str("recorded optimizer ", name, " ", attributes);
    all.push_back({kNames.at(kind), Reference::kPyTorch, [=] {
                     return PreparedCheck{what, [=](TensorOptions o, Mode mode) {
                                            return replay_steps(job, recorded, o, mode);
                                          }};
                   }});
    kinds.insert(kind);
  }
  golden.expect(kinds.size() == kNames.size(), "an optimizer has no record");
  golden.expect_all_used();
  return all;
}

std::vector<VerifyCase> golden_training(const std::filesystem::path& dir) {
  Golden golden(dir, "training.safetensors");
  golden.expect(golden.cases().size() == 1 && golden.cases().count("training"),
                "expected one case, training");
  const std::string attributes = golden.cases().at("training");
  const json job = golden.attributes("training");
  const Recorded first = golden.group("first."), last = golden.group("last.");
  const Recorded rest = golden.group("losses");
  golden.expect(rest.size() == 1, "expected one tensor of losses");
  const Tensor losses = rest.begin()->second;
  const std::vector<double> curve = losses.to_vector<double>();
  golden.expect(curve.size() >= 50 && curve.back() < curve.front(), "the losses do not fall");
  const bool same_names =
      std::equal(first.begin(), first.end(), last.begin(), last.end(),
                 [](const auto& a, const auto& b) { return a.first == b.first; });
  golden.expect(!first.empty() && same_names, "expected the same weights before and after");
  golden.expect_all_used();
  return {{"cifar_cnn", Reference::kPyTorch, [=] {
             return PreparedCheck{str("recorded training ", attributes),
                                  [=](TensorOptions o, Mode mode) {
                                    return replay_training(job, first, last, losses, o, mode);
                                  }};
           }}};
}

std::string golden_version(const std::filesystem::path& dir) {
  return Golden(dir, "operators.safetensors").torch();
}

}  // namespace sinter::app
