#include "core/base/detail.h"
#include "tests/support/compiled.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

std::vector<std::string> keys(Module&& module) {
  std::vector<std::string> result;
  for (const auto& entry : module.state_dict()) result.push_back(entry.first);
  return result;
}
using Keys = std::vector<std::string>;

struct Net : Module {
  Conv2d conv{3, 6, 3};
  BatchNorm2d norm{6};
  Dropout2d channels{0.25};
  Linear fc{6 * 6 * 6, 12};
  BatchNorm1d norm1{12, {.momentum = {}}};
  LayerNorm layer{12};
  Dropout drop;
  Linear out{12, 4};
  Tensor forward(const Tensor& x) override {
    const Tensor y = flatten(channels(relu(norm(conv(x)))), 1);
    return out(drop(layer(norm1(fc(y)))));
  }
  void visit(Visitor& v) override {
    v.module("conv", conv);
    v.module("norm", norm);
    v.module("channels", channels);
    v.module("fc", fc);
    v.module("norm1", norm1);
    v.module("layer", layer);
    v.module("drop", drop);
    v.module("out", out);
  }
};

}  // namespace

TEST_CASE("nn: keys of layers that normalize are PyTorch's", "[nn]") {
  const Keys all = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"};
  CHECK(keys(BatchNorm1d(3)) == all);
  CHECK(keys(BatchNorm2d(3)) == all);
  CHECK(keys(BatchNorm2d(3, {.affine = false})) == Keys(all.begin() + 2, all.end()));
  CHECK(keys(BatchNorm2d(3, {.track_running_stats = false})) == Keys{"weight", "bias"});
  CHECK(keys(BatchNorm1d(3, {.bias = false}))[1] == "running_mean");
  CHECK(keys(LayerNorm(3)) == Keys{"weight", "bias"});
  CHECK(keys(LayerNorm(3, {.bias = false})) == Keys{"weight"});
  CHECK(keys(LayerNorm(3, {.elementwise_affine = false})).empty());
  CHECK(keys(GroupNorm(2, 4)) == Keys{"weight", "bias"});
  CHECK(keys(GroupNorm(2, 4, {.affine = false})).empty());
  CHECK(keys(Dropout()).empty());

  BatchNorm2d norm(3);
  CHECK(norm.num_batches_tracked.dtype() == kInt64);
  CHECK(norm.num_batches_tracked.shape() == Shape{});
  CHECK(norm.weight.to_vector<double>() == std::vector<double>(3, 1));
  CHECK(norm.bias.to_vector<double>() == std::vector<double>(3, 0));
  CHECK(norm.running_mean.to_vector<double>() == std::vector<double>(3, 0));
  CHECK(norm.running_var.to_vector<double>() == std::vector<double>(3, 1));
  CHECK(norm.parameters().size() == 2);
  CHECK(LayerNorm(Shape{2, 3}).weight.shape() == Shape{2, 3});
}

TEST_CASE("nn: layers that normalize print as PyTorch's", "[nn]") {
  CHECK(str(BatchNorm1d(3)) ==
        "BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
        "track_running_stats=True)");
  CHECK(str(BatchNorm2d(3, {.eps = 1e-3, .momentum = {}, .affine = false})) ==
        "BatchNorm2d(3, eps=0.001, momentum=None, affine=False, bias=False, "
        "track_running_stats=True)");
  CHECK(str(LayerNorm(4)) == "LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)");
  CHECK(str(LayerNorm(Shape{4, 5}, {.eps = 1, .bias = false})) ==
        "LayerNorm((4, 5), eps=1.0, elementwise_affine=True, bias=False)");
  CHECK(str(GroupNorm(2, 4)) == "GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)");
  CHECK(str(Dropout()) == "Dropout(p=0.5, inplace=False)");
  CHECK(str(Dropout2d(0.25)) == "Dropout2d(p=0.25, inplace=False)");
}

DEVICE_TEST("nn: batch normalization in either mode", "[nn]") {
  BatchNorm1d norm(3);
  norm.to(device);
  const Tensor x = tensor(noise({4, 3, 5}, 1), {kFloat32, device});
  const Tensor of_batch = batch_norm(x, {}, {}, norm.weight, norm.bias, {.training = true});
  CHECK(same_bits(norm(x), of_batch));
  CHECK(norm.num_batches_tracked.item<int64_t>() == 1);
  CHECK(norm.num_batches_tracked.device() == device);
  norm.eval();
  const Tensor mean = norm.running_mean.clone();
  CHECK(same_bits(norm(x), batch_norm(x, mean, norm.running_var, norm.weight, norm.bias)));
  CHECK(same_bits(norm.running_mean, mean));
  CHECK(norm.num_batches_tracked.item<int64_t>() == 1);

  // Without running statistics the batch's in either mode.
  BatchNorm1d untracked(3, {.track_running_stats = false});
  untracked.to(device);
  CHECK(same_bits(untracked(x), of_batch));
  untracked.eval();
  CHECK(same_bits(untracked(x), of_batch));

  // A clone and a module that a state is loaded into go on alike, on their own.
  norm.train();
  BatchNorm1d twin = clone(norm), loaded(3);
  loaded.to(device);
  loaded.load_state_dict(norm.state_dict());
  norm(x);
  CHECK(twin.num_batches_tracked.item<int64_t>() == 1);
  CHECK(!same_bits(twin.running_mean, norm.running_mean));
  twin(x);
  loaded(x);
  for (BatchNorm1d* other : {&twin, &loaded}) {
    CHECK(same_bits(other->running_mean, norm.running_mean));
    CHECK(same_bits(other->running_var, norm.running_var));
    CHECK(other->num_batches_tracked.item<int64_t>() == 2);
  }
  check_throws<ShapeError>([&] { norm(zeros({2, 4}, x.options())); }, {"BatchNorm1d", "(2, 4)"});
  check_throws<ShapeError>([&] { norm(zeros({2, 3, 4, 4}, x.options())); }, {"BatchNorm1d"});
  check_throws<ShapeError>([&] { BatchNorm2d(3)(zeros({2, 3, 4})); }, {"BatchNorm2d"});
  check_throws<ValueError>([&] { BatchNorm2d layer(0); }, {"BatchNorm2d", "0"});
  check_throws<ValueError>([&] { GroupNorm layer(2, 3); }, {"GroupNorm", "2", "3"});
  check_throws<ValueError>([&] { LayerNorm layer(Shape{}); }, {"LayerNorm"});
}

DEVICE_TEST("nn: dropout in either mode", "[nn]") {
  const Tensor x = ones({4, 8, 3, 3}, {kFloat32, device});
  manual_seed(3);
  Dropout drop;
  Dropout2d channels;
  Generator generator(3);
  CHECK(same_bits(drop(x), dropout(x, 0.5, true, generator)));
  CHECK(same_bits(channels(x), dropout2d(x, 0.5, true, generator)));
  drop.eval();
  channels.eval();
  CHECK(drop(x).is(x));
  CHECK(channels(x).is(x));
}

DEVICE_TEST("nn: a training step with batch normalization and dropout compiled", "[nn]") {
  // The same numbers as eagerly, to the bit, at every call: statistics, masks and weights.
  const PassesOff without("-fuse");
  const auto train = [&](bool compiled) {
    manual_seed(2);
    Net net;
    net.to(device);
    Adam optimizer(net.parameters());
    const Tensor x = zeros({8, 3, 8, 8}, {kFloat32, device});
    const Tensor labels = from_vector(std::vector<int64_t>{0, 1, 2, 3, 0, 1, 2, 3}, {8}, device);
    const auto step = [&] {
      optimizer.zero_grad();
      const Tensor loss = cross_entropy(net(x), labels);
      loss.backward();
      optimizer.step();
      return Results{loss.detach()};
    };
    auto program = compile(step);
    Results all;
    for (uint64_t i = 0; i < 6; ++i) {
      x.copy_(tensor(noise({8, 3, 8, 8}, i), x.options()));
      all.push_back((compiled ? program() : step())[0].clone());
    }
    for (const auto& entry : net.state_dict()) all.push_back(entry.second.clone());
    net.eval();
    all.push_back(net(x).detach());
    return all;
  };
  const Results eager = train(false);
  check_same_bits(train(true), eager);
  CHECK(eager[0].item<double>() != eager[1].item<double>());
}

}  // namespace sinter::test
