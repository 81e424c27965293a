// What operators have to do, the profile of a program by operator, and `sinter bench --profile`:
// the arithmetic behind the report, the recorder, and the command.
#include <sinter/program.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/detail.h"
#include "tests/support/values.h"

#ifdef SINTER_APP_PATH
#include "apps/profile.h"
#include "tests/support/process.h"
#endif

namespace sinter::test {
namespace {

template <class T> T operand(const Shape& shape, DType dtype = kFloat32) {
  T x;
  x.buffer = 1;
  x.shape = shape;
  x.dtype = dtype;
  return x;
}
In in_of(const Shape& shape, DType dtype = kFloat32) { return operand<In>(shape, dtype); }
Out out_of(const Shape& shape, DType dtype = kFloat32) { return operand<Out>(shape, dtype); }
OptionalOut optional_of(const Shape& shape) { return operand<OptionalOut>(shape); }
InOut inout_of(const Shape& shape, DType dtype = kFloat32) { return operand<InOut>(shape, dtype); }

template <class Op> void check_work(const Op& op, double flops, double bytes) {
  INFO(Op::name);
  const Work direct = work(op), erased = OperatorOf<Op>(op).work();
  CHECK(direct.flops == flops);
  CHECK(direct.bytes == bytes);
  CHECK(erased.flops == flops);
  CHECK(erased.bytes == bytes);
}

// An operator of one's own, of which half of x is left alone.
struct Half {
  static constexpr const char* name = "half";
  In x;
  Out y;
  void each(auto&& f) { f("x", x), f("y", y); }
};
double flops(const Half& op) { return 3 * static_cast<double>(op.y.numel()); }
double bytes_unread(const Half& op) { return static_cast<double>(op.x.bytes()) / 2; }

}  // namespace

TEST_CASE("profile: the work of operators without products is their operands", "[profile][cpu]") {
  const Shape s{5, 7};  // 140 bytes
  check_work(op::Fill{0, out_of(s)}, 0, 140);
  check_work(op::Cast{in_of(s, kUInt8), out_of(s, kFloat64)}, 0, 35 + 280);
  check_work(op::Copy{in_of(s), out_of(s)}, 0, 280);
  // An operand that is repeated is read once.
  check_work(op::StridedCopy{{2, {5, 7}, {0, 1}}, 0, in_of({7}), out_of(s)}, 0, 28 + 140);
  check_work(op::map(op::Element::kAdd, in_of(s), in_of({1}), out_of(s)), 0, 284);
  check_work(op::scale(2, in_of(s), out_of(s)), 0, 280);
  check_work(op::Accumulate{in_of(s), inout_of(s)}, 0, 3 * 140);
  check_work(op::map(op::Element::kRelu, in_of(s), out_of(s)), 0, 280);
  check_work(op::map(op::Element::kAddRelu, in_of(s), in_of(s), out_of(s)), 0, 420);
  check_work(op::relu_backward(in_of(s), in_of(s), out_of(s)), 0, 420);
  check_work(op::Sum{{}, {}, 1, in_of(s), out_of({})}, 0, 144);
  // Elements 2 to 5 of 4 slices of 9.
  check_work(op::SumSlices{2, in_of({4, 9}), out_of({3})}, 0, 4 * 3 * 4 + 12);

  const op::Pool2dShape pool{.n = 2, .c = 3, .h = 4, .w = 6, .kh = 2, .kw = 2, .oh = 2, .ow = 3};
  const Shape x{2, 3, 4, 6}, y{2, 3, 2, 3};  // 144 and 36 elements
  check_work(op::MaxPool2dForward{pool, in_of(x), out_of(y), out_of(y, kUInt8)}, 0,
             4 * 144 + 5 * 36);
  check_work(op::MaxPool2dBackward{pool, in_of(y), in_of(y, kUInt8), out_of(x)}, 0,
             4 * 144 + 5 * 36);
  check_work(op::AvgPool2dForward{pool, true, 0, in_of(x), out_of(y)}, 0, 4 * (144 + 36));
  check_work(op::AvgPool2dBackward{pool, true, 0, in_of(y), out_of(x)}, 0, 4 * (144 + 36));

  check_work(op::LogSoftmaxForward{{5, 7, 1}, in_of(s), out_of(s)}, 0, 280);
  check_work(op::LogSoftmaxBackward{{5, 7, 1}, in_of(s), in_of(s), out_of(s)}, 0, 420);
  const In labels = in_of({5}, kInt64);
  check_work(op::CrossEntropy{{5, 7}, in_of(s), labels, {}, out_of({}), optional_of(s)}, 0,
             140 + 40 + 4 + 140);
  check_work(op::CrossEntropy{{5, 7}, in_of(s), labels, {}, out_of({}), {}}, 0, 140 + 40 + 4);
  check_work(op::CountCorrect{in_of(s), labels, inout_of({1}, kInt64)}, 0, 140 + 40 + 16);

  const In lr = in_of({}, kFloat64);
  const InOut steps = inout_of({2}, kInt64), p = inout_of(s), b = inout_of({7});
  check_work(
      op::AdamStep{{}, {0, 1}, {}, lr, {in_of(s), in_of({7})}, {p, b}, {p, b}, {p, b}, steps}, 0,
      8 + 32 + 7 * (140 + 28));
  // The gradient of the first as 3 slices of 35 elements in 42, that of the second of the rest.
  check_work(
      op::AdamStep{
          {}, {0, 1}, {0, 35}, lr, {in_of({3, 42}), in_of({3, 42})}, {p, b}, {p, b}, {p, b}, steps},
      0, 8 + 32 + 9 * (140 + 28));
  check_work(op::SgdStep{{}, {0}, lr, {in_of(s)}, {p}, {}, steps}, 0, 8 + 32 + 3 * 140);
  check_work(op::SgdStep{{}, {0}, lr, {in_of(s)}, {p}, {p}, steps}, 0, 8 + 32 + 5 * 140);

  check_work(op::ShuffledIndices{0, 0, 100, 0, out_of({100}, kInt64)}, 0, 800);
  // 4 of 100 images of 3 x 2 x 5 bytes.
  const op::GatherShape batch{.n = 4, .size = 100, .c = 3, .h = 2, .w = 5};
  check_work(op::GatherBatch{batch, in_of({100, 3, 2, 5}, kUInt8), in_of({100}, kUInt8),
                             in_of({100}, kInt64), inout_of({1}, kInt64), out_of({4, 3, 2, 5}),
                             out_of({4}, kInt64)},
             0, 4 * (30 + 1 + 8) + 16 + 4 * (120 + 8));

  check_work(Half{in_of({8}), out_of({4})}, 12, 16 + 16);
}

TEST_CASE("profile: the work of matrix products and convolutions", "[profile][cpu]") {
  const op::GemmShape gemm{.m = 2, .n = 3, .k = 5, .batch = 4, .stride_a = 10};
  check_work(op::Gemm{gemm, in_of({4, 2, 5}), in_of({5, 3}), out_of({4, 2, 3})}, 240,
             4 * (40 + 15 + 24));

  const op::LinearShape linear{.n = 2, .in = 3, .out = 5};
  const Shape lx{2, 3}, lw{5, 3}, ly{2, 5};  // 30 products and sums
  check_work(op::LinearForward{linear, in_of(lx), in_of(lw), in_of({5}), out_of(ly)}, 60,
             4 * (6 + 15 + 5 + 10));
  check_work(op::LinearForward{linear, in_of(lx), in_of(lw), {}, out_of(ly)}, 60,
             4 * (6 + 15 + 10));
  check_work(op::LinearBackwardData{linear, in_of(ly), in_of(lw), out_of(lx)}, 60,
             4 * (10 + 15 + 6));
  check_work(
      op::LinearBackwardWeights{linear, in_of(lx), in_of(ly), optional_of(lw), optional_of({5})},
      60, 4 * (6 + 10 + 15 + 5));
  check_work(op::LinearBackwardWeights{linear, in_of(lx), in_of(ly), {}, optional_of({5})}, 0,
             4 * (6 + 10 + 5));

  // y of 2 * 6 * 4 * 3 elements, each a sum over 2 channels and 3 x 5.
  const op::Conv2dShape g{
      .n = 2, .c = 4, .h = 6, .w = 7, .o = 6, .kh = 3, .kw = 5, .groups = 2, .oh = 4, .ow = 3};
  const Shape x{2, 4, 6, 7}, w{6, 2, 3, 5}, y{2, 6, 4, 3};  // 336, 180 and 144 elements
  const double conv = 2 * 144 * 30;
  check_work(op::Conv2dForward{g, in_of(x), in_of(w), in_of({6}), out_of(y)}, conv,
             4 * (336 + 180 + 6 + 144));
  check_work(op::Conv2dBackwardData{g, in_of(y), in_of(w), out_of(x)}, conv, 4 * (144 + 180 + 336));
  check_work(op::Conv2dBackwardWeights{g, in_of(x), in_of(y), optional_of(w), optional_of({6})},
             conv, 4 * (336 + 144 + 180 + 6));
  check_work(op::Conv2dBackwardWeights{g, in_of(x), in_of(y), {}, optional_of({6})}, 0,
             4 * (336 + 144 + 6));
}

TEST_CASE("profile: the work of fused layers", "[profile][cpu]") {
  // A last column is left out: of 4 x 3 sums over 3 x 3 x 5 elements 4 x 2 are needed, and their
  // gradients come from 2 x 1.
  const op::Conv2dShape g{
      .n = 2, .c = 3, .h = 6, .w = 7, .o = 6, .kh = 3, .kw = 5, .oh = 4, .ow = 3};
  const Shape x{2, 3, 6, 7}, w{6, 3, 3, 5}, y{2, 6, 2, 1};  // 252, 270 and 24 elements
  const In code = in_of(y, kUInt8);
  const double pooled = 2 * 24 * 45;
  check_work(
      op::Conv2dReluPoolForward{g, in_of(x), in_of(w), in_of({6}), out_of(y), out_of(y, kUInt8)},
      4 * pooled, 4 * (252 + 270 + 6 + 24) + 24);
  check_work(op::Conv2dReluPoolBackward{g, in_of(x), in_of(w), in_of(y), code, in_of(y),
                                        optional_of(x), optional_of(w), optional_of({6})},
             2 * pooled, 4 * (252 + 270 + 24 + 24 + 252 + 270 + 6) + 24);
  check_work(
      op::Conv2dReluPoolBackward{
          g, in_of(x), {}, in_of(y), code, in_of(y), {}, optional_of(w), optional_of({6})},
      pooled, 4 * (252 + 24 + 24 + 270 + 6) + 24);
  check_work(op::Conv2dReluPoolBackwardData{g, in_of(w), in_of(y), code, in_of(y), out_of(x)},
             pooled, 4 * (270 + 24 + 24 + 252) + 24);
  check_work(
      op::Conv2dReluPoolBackwardWeights{g, in_of(x), in_of(y), code, in_of(y), out_of({5, 276})},
      pooled, 4 * (252 + 24 + 24 + 5 * 276) + 24);

  // 2 rows through widths 3, 5, 7 and 4: 30, 70 and 56 products.
  op::MlpShape mlp{.n = 2, .layers = 3};
  for (int l = 0; const int64_t width : {3, 5, 7, 4}) mlp.width[l++] = width;
  const Shape h0{2, 3}, h1{2, 5}, h2{2, 7}, h3{2, 4};
  const std::vector<In> weights = {in_of({5, 3}), in_of({7, 5}), in_of({4, 7})};  // 78 elements
  check_work(op::MlpForward{mlp,
                            in_of(h0),
                            weights,
                            {in_of({5}), {}, in_of({4})},
                            {out_of(h1), out_of(h2), out_of(h3)}},
             2 * 156, 4 * (6 + 78 + 9 + 10 + 14 + 8));
  const std::vector<In> hidden = {in_of(h1), in_of(h2), {}};
  check_work(op::MlpBackwardChain{mlp,
                                  {},
                                  in_of(h3),
                                  {},
                                  {},
                                  weights,
                                  hidden,
                                  {out_of(h1), out_of(h2), {}},
                                  optional_of(h0)},
             2 * 156, 4 * (8 + 78 + 24 + 24 + 6));
  check_work(op::MlpBackwardChain{mlp,
                                  {},
                                  in_of(h3),
                                  {},
                                  {},
                                  {{}, weights[1], weights[2]},
                                  hidden,
                                  {out_of(h1), out_of(h2), {}},
                                  {}},
             2 * 126, 4 * (8 + 63 + 24 + 24));
  // From the loss: its gradient is a result more, and no product.
  check_work(op::MlpBackwardChain{mlp,
                                  {2, 4},
                                  {},
                                  in_of(h3),
                                  in_of({2}, kInt64),
                                  weights,
                                  hidden,
                                  {out_of(h1), out_of(h2), out_of(h3)},
                                  optional_of(h0)},
             2 * 156, 4 * (8 + 78 + 24 + 32 + 6) + 16);
  const std::vector<In> dz = {in_of(h1), in_of(h2), in_of(h3)};
  check_work(op::MlpBackwardWeights{mlp,
                                    in_of(h0),
                                    hidden,
                                    dz,
                                    {optional_of({5, 3}), {}, optional_of({4, 7})},
                                    {optional_of({5}), {}, optional_of({4})}},
             2 * (30 + 56), 4 * (6 + 24 + 32 + 15 + 28 + 9));
}

DEVICE_TEST("profile: a compiled function by operator", "[profile]") {
  const Tensor w = ones({3, 4}, {kFloat32, device}), b = ones({3}, {kFloat32, device});
  w.set_requires_grad();
  const Tensor x = ones({2, 4}, {kFloat32, device}), count = zeros({1}, {kFloat32, device});
  const auto f = [&] {
    w.set_grad({});
    const Tensor y = sum(linear(x, w, b) * 2.0);
    y.backward();
    count.copy_(count + 1.0);
    return y.detach();
  };
  auto plain = compile(f);
  CHECK(plain.profile().operators.empty());
  auto timed = compile(f, {.profile = true});
  CHECK(timed.profile().chain == 0);
  for (int i = 1; i <= 5; ++i) {
    CHECK(timed().item<float>() == 60);
    CHECK(count.item<float>() == static_cast<float>(i));  // a call is a call
    const ProgramProfile profile = timed.profile();
    CHECK(profile.calls == i - 1);
    for (const OperatorProfile& op : profile.operators) CHECK((op.us > 0) == (i > 1));
  }
  CHECK(w.grad().to_vector<float>() == std::vector<float>(12, 4));
  const ProgramProfile profile = timed.profile();
  CHECK(profile.device == device);
  CHECK(static_cast<int64_t>(profile.operators.size()) == timed.stats().operators);
  // Forward: linear, times 2, sum.
  CHECK(profile.chain >= 3);
  CHECK(profile.chain < static_cast<int64_t>(profile.operators.size()));
  double flops = 0;
  bool is_found = false;
  for (const OperatorProfile& op : profile.operators) {
    flops += op.work.flops;
    if (op.name != "linear_backward_weights") continue;
    is_found = true;
    CHECK(op.backward_of == "linear");
    CHECK(op.module.empty());
    CHECK(op.work.flops == 48);
    CHECK(op.work.bytes == 4 * (8 + 6 + 12));
  }
  CHECK(is_found);
  CHECK(flops == 96);

  // Without the option a program is described, and nothing timed.
  for (int i = 0; i < 3; ++i) plain();
  CHECK(plain.profile().operators.size() == profile.operators.size());
  CHECK(plain.profile().chain == profile.chain);
  CHECK(plain.profile().calls == 0);
}

TEST_CASE("profile: the operators' times add up to the call", "[profile][cpu]") {
  const Tensor x = ones({300, 300});
  double best = 0;
  for (int attempt = 0; attempt < 10 && best < 0.7; ++attempt) {
    auto timed =
        compile([&] { return relu(matmul(matmul(matmul(x, x), x), x)); }, {.profile = true});
    timed();
    const auto start = std::chrono::steady_clock::now();
    timed();
    const double call =
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
    const ProgramProfile profile = timed.profile();
    CHECK(profile.calls == 1);
    double sum = 0;
    for (const OperatorProfile& op : profile.operators) sum += op.us;
    CHECK(sum <= call);
    best = std::max(best, sum / call);
  }
  CHECK(best >= 0.7);
}

}  // namespace sinter::test

#ifdef SINTER_APP_PATH

using namespace sinter;
using namespace sinter::app;
using nlohmann::json;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

// A kernel as CUPTI names it, in a step that lasts from 0 to 100 microseconds.
GpuActivity kernel(const std::string& function, int64_t start, int64_t end, uint64_t node = 1) {
  GpuActivity activity;
  activity.name = "void sinter::cuda::(anonymous namespace)::" + function +
                  "<float>(sinter::Conv2dShape, float const*)";
  activity.start = start;
  activity.end = end;
  activity.grid = {132, 2, 1};
  activity.block = {256, 1, 1};
  activity.registers = 40;
  activity.graph_node = node;
  return activity;
}

}  // namespace

TEST_CASE("profile: the union of intervals", "[profile]") {
  CHECK(covered({}) == 0);
  CHECK(covered({{5, 9}}) == 4);
  CHECK(covered({{0, 10}, {20, 30}}) == 20);
  CHECK(covered({{20, 30}, {0, 10}}) == 20);
  CHECK(covered({{0, 10}, {10, 15}}) == 15);
  CHECK(covered({{0, 10}, {5, 15}, {6, 7}}) == 15);
  CHECK(covered({{0, 100}, {10, 20}, {30, 40}, {90, 110}, {200, 200}}) == 110);
}

TEST_CASE("profile: the longest chain of intervals", "[profile]") {
  CHECK(longest_chain({}) == 0);
  CHECK(longest_chain({{0, 10}, {10, 20}, {25, 30}}) == 3);
  // A long one beside three short ones: the short ones.
  CHECK(longest_chain({{0, 100}, {1, 2}, {3, 4}, {5, 6}}) == 3);
  CHECK(longest_chain({{0, 10}, {5, 15}, {9, 12}}) == 1);
}

TEST_CASE("profile: kernels' names", "[profile]") {
  CHECK(short_name("void sinter::cuda::(anonymous namespace)::adam_kernel<float>("
                   "sinter::cuda::(anonymous namespace)::Table<float>, double const*)") ==
        "adam_kernel");
  CHECK(short_name("sinter::cuda::(anonymous namespace)::shuffled_indices_kernel(long, unsigned "
                   "long)") == "shuffled_indices_kernel");
  CHECK(short_name("void map_kernel<float, sinter::relu(float)::{lambda(float)#1}>(long, float)") ==
        "map_kernel");
  CHECK(short_name("sm90_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8") ==
        "sm90_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8");
  CHECK(short_name("void cutlass::Kernel2<cutlass_80_simt_sgemm_64x64_8x5_nn_align1>("
                   "cutlass_80_simt_sgemm_64x64_8x5_nn_align1::Params)") ==
        "cutlass_80_simt_sgemm_64x64_8x5_nn_align1");
  CHECK(short_name("copy") == "copy");
}

TEST_CASE("profile: times of a step add up", "[profile]") {
  // Two steps of 10 us, the second 1 us behind the first; in each a gap of 2 us, and 1 us in which
  // two kernels run side by side.
  std::vector<GpuActivity> activities;
  for (const int64_t t : {0, 11000}) {
    activities.push_back(kernel("direct_conv", t, t + 3000));
    activities.push_back(kernel("cross_entropy_rows", t + 5000, t + 6000));
    activities.push_back(kernel("direct_conv", t + 6000, t + 8000));
    activities.push_back(kernel("gather_batch_kernel", t + 7000, t + 8000));
    activities.push_back(kernel("adam_kernel", t + 8000, t + 10000));
  }
  activities.push_back(kernel("fill_kernel", 21000, 22000, 0));
  const StepTrace trace = summarize(activities, 2);
  CHECK(trace.steps == 2);
  CHECK(near(trace.step_us, 11, 1e-12));
  CHECK(near(trace.gaps_us, 2.5, 1e-12));
  CHECK(near(trace.overlap_us, 1, 1e-12));
  CHECK(near(trace.chain, 4.5, 1e-12));
  double rows = 0;
  for (const KernelRow& row : trace.rows) rows += row.step_us;
  CHECK(near(rows - trace.overlap_us + trace.gaps_us, trace.step_us, 1e-9));

  // Launches of one kernel are one row, those outside of a graph another.
  REQUIRE(trace.rows.size() == 5);
  CHECK(trace.rows[0].name == "direct_conv");
  CHECK(trace.rows[0].launches == 4);
  CHECK(near(trace.rows[0].mean_us, 2.5, 1e-12));
  CHECK(near(trace.rows[0].step_us, 5, 1e-12));
  CHECK(trace.rows[1].name == "cross_entropy_rows");
  CHECK(trace.rows[3].name == "adam_kernel");
  CHECK(trace.rows[3].per_step == 1);
  CHECK(trace.rows[3].in_graph);
  CHECK(trace.rows[4].per_step == 0.5);
  CHECK(!trace.rows[4].in_graph);

  test::check_throws<Error>([] { summarize({}, 20); }, {"profiling", "0 activities", "20 steps"});
}

TEST_CASE("profile: the rows of a step", "[profile]") {
  ProgramProfile program;
  const auto add = [&](const char* name, const char* module, double us, Work work) {
    program.operators.push_back({name, module, "", 0, us, work});
  };
  for (int i = 0; i < 20; ++i) {
    add("conv2d_forward", "conv1", 3 + i % 2, {100, 10});
    add("relu_forward", "relu", 1, {0, 8});
    add("conv2d_forward", "conv2", 5, {200, 10});
    add("relu_forward", "relu", 1, {0, 8});
  }
  add("fill", "", 4, {0, 1});
  const std::vector<OperatorRow> rows = operator_rows(program, 20);
  REQUIRE(rows.size() == 4);
  CHECK(rows[0].name == "conv2d_forward");
  CHECK(rows[0].module == "conv1");
  CHECK(rows[0].per_step == 1);
  CHECK(near(rows[0].step_us, 3.5, 1e-12));
  CHECK(rows[0].work.flops == 100);
  CHECK(rows[1].per_step == 2);
  CHECK(rows[1].work.bytes == 16);
  CHECK(rows[2].module == "conv2");
  CHECK(near(rows[3].per_step, 0.05, 1e-12));
  CHECK(near(rows[3].step_us, 0.2, 1e-12));
}

TEST_CASE("profile: the floor, and the report in words and as JSON", "[profile]") {
  StepProfile profile;
  profile.device = cuda();
  profile.device_name = "a GPU";
  profile.batch_size = 64;
  profile.steps_a_call = 20;
  profile.steps = 1;
  profile.passes = 7;
  profile.step_us = 40;
  profile.fastest_us = 39;
  profile.slowest_us = 45;
  profile.operators = {{"conv2d_forward", "conv1", "", 1, 12, {2e8, 2e6}},
                       {"adam_step", "", "", 1, 4, {0, 4e6}},
                       {"conv2d_backward_data", "conv1", "conv2d", 1, 4, {5e6, 2e6}}};
  profile.operator_calls = 49;
  profile.chain = 8;
  profile.ceilings = {4, 0.75, 4e12, 2e9, 50e12, 8192};
  profile.trace = summarize({kernel("direct_conv", 0, 3000), kernel("adam_kernel", 8000, 9000)}, 1);
  CHECK(profile.work().flops == 2.05e8);
  CHECK(profile.work().bytes == 8e6);
  CHECK(profile.operators_us() == 20);
  // 205 MFLOP at 50 TFLOP/s, and eight nodes.
  CHECK(near(profile.compute_us(), 4.1, 1e-9));
  CHECK(near(profile.memory_us(), 2, 1e-9));
  CHECK(near(profile.floor_us(), 4.1 + 8 * 0.75, 1e-9));

  const std::string page = markdown(profile);
  INFO(page);
  for (const char* part :
       {"Step: 40.00 µs", "(39.00 to 45.00)", "Floor: 10.10 µs: 4.10 µs for the arithmetic",
        "8 dependent operators", "3.96 times", "graph node 0.75 µs", "50000.0 GFLOP/s",
        "| conv2d_forward ", "| 60.0 % ", "| 16666.7 ", "| 1000.0 ", "medians of 49 calls",
        "| direct_conv ", "132·2 × 256", "| gaps: nothing runs", "55.6 %",
        "compiled, 20 steps a launch"})
    CHECK(contains(page, part));
  json report = to_json(profile);
  CHECK(report.at("kernels").size() == 2);
  CHECK(report.at("operators").size() == 3);
  CHECK(report.at("operators")[2].at("backward_of") == "conv2d");
  CHECK(report.at("operators")[1].at("bytes") == 4e6);
  CHECK(report.at("floor_us").at("dependent_operators") == 8);
  CHECK(report.at("ceilings").at("graph_node_us") == 0.75);
  CHECK(report.at("eager") == false);
  CHECK(report.at("steps_a_call") == 20);
  profile.steps_a_call = 1;
  CHECK(contains(markdown(profile), "compiled, 1 step a launch"));
  profile.eager = true;
  CHECK(contains(markdown(profile), "eager: operators one by one"));
  CHECK(to_json(profile).at("eager") == true);

  // A CPU has no kernels, launches and memory of its own.
  profile.device = kCpu;
  profile.device_name = "a processor";
  profile.eager = false;
  profile.trace.reset();
  profile.ceilings = {0, 0, 4e10, 2e6, 50e9, 512};
  CHECK(near(profile.floor_us(), 4100, 1e-9));
  const std::string cpu_page = markdown(profile);
  INFO(cpu_page);
  for (const char* part : {"Floor: 4100.00 µs: the arithmetic. ", "compiled, 1 step a call",
                           "copy 40.0 GB/s", "| conv2d_forward "})
    CHECK(contains(cpu_page, part));
  for (const char* part : {"launch", "node", "GPU", "on the device", "Kernel", "CUPTI"})
    CHECK(!contains(cpu_page, part));
  report = to_json(profile);
  CHECK(!report.contains("kernels"));
  CHECK(!report.at("ceilings").contains("launch_us"));
}

TEST_CASE("profile: bench --profile of a step on a CPU", "[profile]") {
  const test::TempDir folder;
  for (const bool eager : {false, true}) {
    std::vector<std::string> args = {"bench",
                                     "--profile",
                                     "--devices",
                                     "cpu",
                                     "--threads",
                                     "1",
                                     "--dataset",
                                     "synthetic",
                                     "--synthetic-size",
                                     "400",
                                     "--batch-size",
                                     "16",
                                     "--epochs",
                                     "1",
                                     "--json",
                                     folder / "b.json",
                                     "--markdown",
                                     folder / "b.md"};
    if (eager) args.emplace_back("--eager");
    const test::Result result = test::run(folder, args);
    INFO(result.err);
    REQUIRE(result.code == 0);
    CHECK(contains(result.out, "Profile of a training step: cpu"));
    CHECK(contains(test::read_file(folder / "b.md"), "operators, one by one"));
    const json profile = json::parse(test::read_file(folder / "b.json")).at("profile");
    INFO(profile.dump(2));
    CHECK(profile.at("device") == "cpu");
    CHECK(profile.at("eager") == eager);
    CHECK(profile.at("steps_a_call") == 1);
    CHECK(profile.at("steps") > 0);
    CHECK(profile.at("operator_calls") > 2);

    // Operator, module, what it is the backward of, a step's flops. An image's products: 352,800 of
    // conv1 and 240,000 of conv2, a quarter of them for each gradient, of which the images need
    // none; 58,920 of the linear layers.
    const std::vector<std::tuple<std::string, std::string, std::string, double>> expected = {
        {"gather_batch", "", "", 0},
        {"conv2d_relu_pool_forward", "pool", "", 32 * 352800},
        {"conv2d_relu_pool_forward", "pool", "", 32 * 240000},
        {"mlp_forward", "fc3", "", 32 * 58920},
        {"cross_entropy", "", "", 0},
        {"mlp_backward_chain", "fc1", "linear", 32 * 58920},
        {"mlp_backward_weights", "fc1", "linear", 32 * 58920},
        {"conv2d_relu_pool_backward", "conv2", "conv2d", 16 * 240000},
        {"conv2d_relu_pool_backward", "conv1", "conv2d", 8 * 352800},
        {"adam_step", "", "", 0}};
    REQUIRE(profile.at("operators").size() == expected.size());
    double sum = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const json& row = profile.at("operators")[i];
      CHECK(std::tuple(row.at("name").get<std::string>(), row.at("module").get<std::string>(),
                       row.at("backward_of").get<std::string>(),
                       row.at("flops").get<double>()) == expected[i]);
      CHECK(row.at("per_step") == 1);
      CHECK(row.at("bytes").get<double>() > 0);
      CHECK(row.at("step_us").get<double>() > 0);
      sum += row.at("step_us").get<double>();
    }
    // Measured at different times, on a machine that may have other work.
    const double step = profile.at("step_us").at("median");
    CHECK(sum > 0.05 * step);
    CHECK(sum < 10 * step);
    CHECK(profile.at("work").at("flops") == 125153280 / 4);
    // All but the weights' gradients of linear layers.
    CHECK(profile.at("floor_us").at("dependent_operators") == 9);
    CHECK(profile.at("ceilings").at("copy_bytes_per_second").get<double>() > 1e8);
    CHECK(profile.at("ceilings").at("fp32_flops_per_second").get<double>() > 1e8);
    CHECK(profile.at("memory").at("host_peak_bytes") > 62006 * 4 * 4);
    CHECK(!profile.contains("kernels"));
  }
}

#ifdef SINTER_WITH_CUDA

CUDA_TEST("profile: the recorder sees every kernel and those in a graph", "[profile]") {
  if (!profiler_unavailable().empty()) FAIL(profiler_unavailable());
  const Tensor x = zeros({1000}, {kFloat32, device}), rows = zeros({5, 1000}, {kFloat32, device});
  for (int round = 0; round < 2; ++round) {  // a second profiler works as the first
    Profiler profiler;
    auto fills = compile([&] {
      for (int i = 0; i < 5; ++i) rows.narrow(0, i, 1).fill_(i);
    });
    for (int i = 0; i < 3; ++i) fills();  // a graph from the second call on
    profiler.take();
    x.fill_(1);
    fills();
    fills();
    const std::vector<GpuActivity> activities = profiler.take();
    REQUIRE(activities.size() == 11);
    std::set<uint64_t> nodes;
    int64_t before = 0;
    for (const GpuActivity& activity : activities) {
      CHECK(short_name(activity.name) == "fill_kernel");
      CHECK(activity.start >= before);
      CHECK(activity.end > activity.start);
      CHECK(activity.grid == std::array{4, 1, 1});
      CHECK(activity.block == std::array{256, 1, 1});
      CHECK(activity.registers > 0);
      before = activity.start;
      nodes.insert(activity.graph_node);
    }
    CHECK(nodes.size() == 6);  // five, and none
    CHECK(activities[0].graph_node == 0);
    CHECK(profiler.take().empty());
    test::check_throws<Error>([] { Profiler second; }, {"another Profiler"});
  }
}

CUDA_TEST("profile: bench --profile accounts for a training step", "[profile][app]") {
  const test::TempDir folder;
  for (const bool eager : {false, true}) {
    std::vector<std::string> args = {"bench",
                                     "--profile",
                                     "--devices",
                                     device.str(),
                                     "--dataset",
                                     "synthetic",
                                     "--synthetic-size",
                                     "2000",
                                     "--batch-size",
                                     "16",
                                     "--epochs",
                                     "1",
                                     "--json",
                                     folder / "b.json",
                                     "--markdown",
                                     folder / "b.md"};
    if (eager) args.emplace_back("--eager");
    const test::Result result = test::run(folder, args);
    INFO(result.err);
    REQUIRE(result.code == 0);
    CHECK(contains(result.out, "Profile of a training step"));
    CHECK(contains(test::read_file(folder / "b.md"), "Profile of a training step"));
    const json profile = json::parse(test::read_file(folder / "b.json")).at("profile");
    INFO(profile.dump(2));
    CHECK(profile.at("eager") == eager);
    CHECK(profile.at("steps_a_call") == (eager ? 1 : 20));
    const int64_t steps = profile.at("steps");
    CHECK(steps == (eager ? 125 : 120));

    const json& trace = profile.at("trace");
    CHECK(trace.at("steps") == steps);
    double sum = 0;
    bool any_in_graph = false;
    for (const json& row : profile.at("kernels")) {
      sum += row.at("step_us").get<double>();
      CHECK(row.at("mean_us").get<double>() > 0);
      const bool in_graph = row.at("in_graph");
      any_in_graph = any_in_graph || in_graph;
      // What a graph launches, it launches in every step; so does an eager step, but for the copies
      // that move the position before the first.
      if (in_graph || (eager && row.at("name") != "copy" && row.at("name") != "unpack_kernel"))
        CHECK(row.at("launches").get<int64_t>() % steps == 0);
    }
    CHECK(any_in_graph == !eager);
    const double step = trace.at("step_us"), gaps = trace.at("gaps_us");
    const double overlap = trace.at("overlap_us");
    CHECK(gaps >= 0);
    CHECK(overlap >= 0);
    CHECK(near(sum - overlap + gaps, step, 1e-6 * step));
    // 16 images through the layers, as counted on a CPU.
    CHECK(profile.at("work").at("flops") == 125153280 / 4);
    double losses = 0, updates = 0;
    for (const json& row : profile.at("operators")) {
      CHECK(row.at("step_us").get<double>() > 0);
      const std::string name = row.at("name");
      losses += name == "cross_entropy" ? row.at("per_step").get<double>() : 0;
      updates += name == "adam_step" ? row.at("per_step").get<double>() : 0;
    }
    CHECK(losses == 1);
    CHECK(updates == 1);
    const double dependent = profile.at("floor_us").at("dependent_operators");
    CHECK(dependent >= 7);
    CHECK(dependent <= 16);  // nine where the linear layers are a chain

    const json& ceilings = profile.at("ceilings");
    CHECK(ceilings.at("launch_us").get<double>() > 0);
    CHECK(ceilings.at("graph_node_us").get<double>() < ceilings.at("launch_us").get<double>());
    CHECK(ceilings.at("copy_bytes_per_second").get<double>() > 1e10);
    CHECK(ceilings.at("fp32_flops_per_second").get<double>() > 1e11);
    CHECK(profile.at("floor_us").at("total").get<double>() <
          profile.at("step_us").at("median").get<double>());
    // Parameters, gradients and Adam's two moments at the least.
    CHECK(profile.at("memory").at("device_peak_bytes").get<int64_t>() > 62006 * 4 * 4);
    CHECK(profile.at("memory").at("host_peak_bytes").get<int64_t>() > 0);
  }
}

#endif

#endif
