// `sinter bench --profile`: the arithmetic behind the report, the recorder, and the command.
#ifdef SINTER_APP_PATH

#include "profile.h"

#include <sinter/program.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "catch.h"
#include "process.h"

using namespace sinter;
using namespace sinter::app;
using nlohmann::json;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

const Work& of(const StepWork& work, Stage stage) {
  return work.stages[static_cast<size_t>(stage)];
}

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

TEST_CASE("profile: kernels' names and stages", "[profile]") {
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

  CHECK(stage_of("gather_batch_kernel", true) == Stage::kBatch);
  CHECK(stage_of("direct_conv", false) == Stage::kConvForward);
  CHECK(stage_of("direct_conv", true) == Stage::kConvBackward);
  CHECK(stage_of("implicit_gemm", true) == Stage::kConvBackward);
  CHECK(stage_of("sum_slices_kernel", false) == Stage::kConvBackward);
  CHECK(stage_of("max_backward_kernel", true) == Stage::kConvBackward);
  CHECK(stage_of("cutlass_80_simt_sgemm_64x64_8x5_nn_align1", false) == Stage::kLinearForward);
  CHECK(stage_of("add_bias_kernel", false) == Stage::kLinearForward);
  CHECK(stage_of("mlp_forward_kernel", true) == Stage::kLinearForward);
  CHECK(stage_of("mlp_backward_kernel", false) == Stage::kLinearBackward);
  CHECK(stage_of("mlp_dweight_kernel", false) == Stage::kLinearBackward);
  CHECK(stage_of("cross_entropy_rows", false) == Stage::kLoss);
  CHECK(stage_of("adam_kernel", true) == Stage::kUpdate);
  CHECK(stage_of("map_kernel", true) == Stage::kOther);
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

  // The same kernel before and behind the loss is two rows, in the order of the step.
  REQUIRE(trace.rows.size() == 6);
  CHECK(trace.rows[0].name == "direct_conv");
  CHECK(trace.rows[0].stage == Stage::kConvForward);
  CHECK(near(trace.rows[0].mean_us, 3, 1e-12));
  CHECK(trace.rows[1].stage == Stage::kLoss);
  CHECK(trace.rows[2].name == "direct_conv");
  CHECK(trace.rows[2].stage == Stage::kConvBackward);
  CHECK(near(trace.rows[2].step_us, 2, 1e-12));
  CHECK(trace.rows[3].stage == Stage::kBatch);
  CHECK(trace.rows[4].stage == Stage::kUpdate);
  CHECK(trace.rows[4].per_step == 1);
  CHECK(trace.rows[4].in_graph);
  CHECK(trace.rows[5].stage == Stage::kOther);
  CHECK(trace.rows[5].per_step == 0.5);
  CHECK(!trace.rows[5].in_graph);
  CHECK(near(trace.stage_us[static_cast<size_t>(Stage::kConvForward)], 3, 1e-12));
  CHECK(near(trace.stage_us[static_cast<size_t>(Stage::kOther)], 0.5, 1e-12));

  test::check_throws<Error>([] { summarize({}, 20); }, {"profiling", "0 activities", "20 steps"});
}

TEST_CASE("profile: the work of a step of the reference network", "[profile]") {
  Job job;
  const StepWork work = step_work(job, {3, 32, 32});
  // Multiply-adds an image: 6 * 28 * 28 * 75 and 16 * 10 * 10 * 150; 400 * 120 + 120 * 84 + 84
  // * 10.
  const double conv1 = 352800, conv2 = 240000, linear = 58920, n = 64;
  CHECK(of(work, Stage::kConvForward).flops == 2 * n * (conv1 + conv2));
  CHECK(of(work, Stage::kLinearForward).flops == 2 * n * linear);
  CHECK(of(work, Stage::kLinearBackward).flops == 4 * n * linear);
  // The images need no gradient.
  CHECK(of(work, Stage::kConvBackward).flops == 2 * n * (conv1 + 2 * conv2));
  CHECK(work.total().flops == 205102080);
  // With it, the usual three times forward: 3.9 MFLOP an image.
  CHECK(near((work.total().flops + 2 * n * conv1) / n, 3.91e6, 5e3));
  CHECK(work.dependent == 8);

  // conv1: images, 456 weights, (6, 14, 14); conv2: that, 2416 weights, (16, 5, 5).
  CHECK(of(work, Stage::kConvForward).bytes == 4 * (n * (3072 + 1176 + 1176 + 400) + 456 + 2416));
  CHECK(of(work, Stage::kUpdate).bytes == 62006 * 7 * 4.);
  job.optimizer = "sgd";
  CHECK(of(step_work(job, {3, 32, 32}), Stage::kUpdate).bytes == 62006 * 3 * 4.);
  job.momentum = 0.9;
  CHECK(of(step_work(job, {3, 32, 32}), Stage::kUpdate).bytes == 62006 * 5 * 4.);
  job.batch_size = 1024;
  CHECK(step_work(job, {3, 32, 32}).total().flops == 16 * 205102080.);
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
  profile.work = step_work({}, {3, 32, 32});
  profile.ceilings = {4, 0.75, 4e12, 50e12, 8192};
  profile.trace = summarize({kernel("direct_conv", 0, 3000), kernel("adam_kernel", 8000, 9000)}, 1);
  // 205.1 MFLOP at 50 TFLOP/s, and eight nodes.
  CHECK(near(profile.compute_us(), 4.10204, 1e-5));
  CHECK(profile.memory_us() < profile.compute_us());
  CHECK(near(profile.floor_us(), 4.10204 + 8 * 0.75, 1e-5));

  const std::string page = markdown(profile);
  INFO(page);
  for (const char* part : {"Step: 40.00 µs", "(39.00 to 45.00)", "Floor: 10.10 µs",
                           "8 dependent stages", "3.96 times", "graph node 0.75 µs", "50.0 TFLOP/s",
                           "| direct_conv ", "132·2 × 256", "| gaps: nothing runs", "55.6 %"})
    CHECK(contains(page, part));
  const json report = to_json(profile);
  CHECK(report.at("kernels").size() == 2);
  CHECK(report.at("floor_us").at("dependent_stages") == 8);
  CHECK(report.at("eager") == false);
  CHECK(report.at("steps_a_call") == 20);
  CHECK(contains(page, "compiled, 20 steps a launch"));
  profile.steps_a_call = 1;
  CHECK(contains(markdown(profile), "compiled, 1 step a launch"));
  profile.eager = true;
  CHECK(contains(markdown(profile), "eager: operators one by one"));
  CHECK(to_json(profile).at("eager") == true);
}

TEST_CASE("profile: without a GPU among the devices it is refused before any work", "[profile]") {
  const test::TempDir folder;
  const test::Result result =
      test::run(folder, {"bench", "--profile", "--devices", "cpu", "--dataset", "synthetic",
                         "--synthetic-size", "50", "--json", folder / "b.json", "--markdown",
                         folder / "b.md"});
  INFO(result.err);
  CHECK(result.code != 0);
  CHECK(contains(result.err, "--profile: expected a CUDA device"));
  CHECK(result.out.empty());
  CHECK(!std::filesystem::exists(folder / "b.json"));
}

#ifdef SINTER_WITH_CUDA

CUDA_TEST("profile: the recorder sees every kernel and those in a graph", "[profile]") {
  if (!profiler_unavailable().empty()) FAIL(profiler_unavailable());
  Tensor x = zeros({1000}, {kFloat32, device});
  for (int round = 0; round < 2; ++round) {  // a second profiler works as the first
    Profiler profiler;
    auto fills = compile([&] {
      for (int i = 0; i < 5; ++i) x.fill_(i);
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
    double losses = 0, updates = 0;
    for (const json& row : profile.at("kernels")) {
      sum += row.at("step_us").get<double>();
      CHECK(row.at("mean_us").get<double>() > 0);
      const bool in_graph = row.at("in_graph");
      any_in_graph = any_in_graph || in_graph;
      // What a graph launches, it launches in every step; so does an eager step, but for the copies
      // that move the position before the first.
      if (in_graph || (eager && row.at("name") != "copy"))
        CHECK(row.at("launches").get<int64_t>() % steps == 0);
      if (row.at("stage") == "loss") losses += row.at("per_step").get<double>();
      if (row.at("stage") == "update") updates += row.at("per_step").get<double>();
    }
    CHECK(any_in_graph == !eager);
    CHECK(losses == 1);
    CHECK(updates == 1);
    const double step = trace.at("step_us"), gaps = trace.at("gaps_us");
    const double overlap = trace.at("overlap_us");
    CHECK(gaps >= 0);
    CHECK(overlap >= 0);
    CHECK(near(sum - overlap + gaps, step, 1e-6 * step));
    // No stage of the step hides among the others.
    for (const json& stage : profile.at("stages")) {
      INFO(stage.dump());
      CHECK((stage.at("stage") == "other" || stage.at("step_us").get<double>() > 0));
    }
    CHECK(profile.at("work").at("flops") == 205102080 / 4);

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
