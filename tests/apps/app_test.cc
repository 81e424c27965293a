// The `sinter` command, run as its users run it.
#ifdef SINTER_APP_PATH

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "apps/agreement.h"
#include "apps/options.h"
#include "core/base/detail.h"
#include "sinter/checkpoint.h"
#include "sinter/data.h"
#include "sinter/safetensors.h"
#include "tests/support/catch.h"
#include "tests/support/process.h"

using namespace sinter;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

using Folder = test::TempDir;
using test::Process;
using test::Result;
using test::run;

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

// A job small enough for a test. One thread: cases run side by side and must not wait for cores.
std::vector<std::string> job(const std::string& command, const std::vector<std::string>& more) {
  std::vector<std::string> args = {command, "--dataset", "synthetic", "--synthetic-size",
                                   "1000",  "--threads", "1"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// The command in a shell, with `redirections` such as "2>&-"; its exit code.
int run_in_shell(const std::vector<std::string>& args, const std::string& redirections) {
  std::string command = SINTER_APP_PATH;
  for (const std::string& arg : args) command += " '" + arg + "'";
  const int status = std::system((command + " " + redirections).c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

// What the command line is refused with; empty if it is taken.
std::string refusal(std::vector<std::string> args) {
  args.insert(args.begin(), "sinter");
  std::vector<const char*> argv;
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  try {
    app::parse_options(static_cast<int>(argv.size()), argv.data());
  } catch (const app::UsageError& e) {
    return e.what();
  }
  return "";
}

std::vector<json> json_lines(const fs::path& path) {
  std::ifstream in(path);
  std::vector<json> records;
  for (std::string line; std::getline(in, line);) records.push_back(json::parse(line));
  return records;
}

}  // namespace

TEST_CASE("app: help and version are answers, not errors", "[app]") {
  const Folder folder;
  for (const char* command : {"train", "bench", "eval", "doctor"}) {
    const Result help = run(folder, {command, "--help"});
    CHECK(help.code == 0);
    CHECK(contains(help.out, "--data-dir"));
    CHECK(!contains(help.out, "{"));  // CLI11's note of what a flag sets
    CHECK(contains(run(folder, {"--help"}).out, command));
  }
  const Result version = run(folder, {"--version"});
  CHECK(version.code == 0);
  CHECK(contains(version.out, "sinter "));
}

TEST_CASE("app: a command line that makes no sense is refused with exit code 2", "[app]") {
  struct Case {
    std::vector<std::string> args;
    std::vector<std::string> message;
  };
  const std::vector<Case> cases = {
      {{}, {"expected a command", "train", "doctor"}},
      {{"traim"}, {"traim", "--help"}},
      {{"train", "--epoch", "3"}, {"--epoch", "sinter train --help"}},
      {{"train", "--epochs", "0"}, {"--epochs", "from 1", "'0'"}},
      {{"train", "--epochs", "2x"}, {"--epochs", "whole number", "'2x'"}},
      {{"train", "--epochs"}, {"--epochs"}},
      {{"train", "--batch-size", "-64"}, {"--batch-size", "from 1", "'-64'"}},
      {{"train", "--lr", "fast"}, {"--lr", "number", "'fast'"}},
      {{"train", "--lr", "nan"}, {"--lr", "'nan'"}},
      {{"train", "--optimizer", "lion"}, {"--optimizer", "adamw", "'lion'"}},
      {{"train", "--momentum", "0.9"}, {"--momentum", "sgd", "adam"}},
      {{"train", "--model", "alexnet"}, {"--model", "cifar_cnn", "'alexnet'"}},
      {{"train", "--conv-algo", "fft"}, {"--conv-algo", "winograd", "'fft'"}},
      {{"train", "--device", "tpu"}, {"--device", "cuda:N", "'tpu'"}},
      {{"train", "--dataset", "mnist"}, {"--dataset", "synthetic", "'mnist'"}},
      {{"train", "--threads", "0"}, {"--threads", "'0'"}},
      {{"train", "--threads", "100000"}, {"--threads", "1024", "'100000'"}},
      {{"bench", "--devices", "cpu,gpu"}, {"--devices", "'gpu'"}},
      {{"bench", "--devices", "cpu,cpu"}, {"--devices", "twice"}},
      {{"train", "--save", ""}, {"--save", "empty"}},
      {{"train", "--dataset", "synthetic", "--download"}, {"--download", "cifar10"}},
      {{"train", "--save", "w", "--metrics", "./w"}, {"--metrics", "--save", "./w"}},
      {{"bench", "--json", "b", "--markdown", "b"}, {"--markdown", "--json"}},
      {{"train", "--no-shuffle=abc"}, {"--no-shuffle", "'abc'"}},
      {{"bench", "--profile=99999999999999999999"}, {"--profile", "'99999999999999999999'"}},
      {{"train", "--lr", "1", "--lr=2"}, {"--lr: given 2 times, expected once"}},
      {{"eval"}, {"--weights"}},
      {{"eval", "--weights", "w", "--logits", "w"}, {"--logits", "--weights"}}};
  const Folder folder;
  for (const Case& c : cases) {
    const Result result = run(folder, c.args);
    INFO(result.err);
    CHECK(result.code == 2);
    CHECK(result.err.rfind("sinter: error: ", 0) == 0);
    for (const std::string& part : c.message) {
      INFO("expected in it: " << part);
      CHECK(contains(result.err, part));
    }
  }
}

TEST_CASE("app: a missing value is refused wherever one is expected", "[app]") {
  const std::vector<std::pair<std::string, std::string>> commands = {
      {"train",
       "--save --init --metrics --checkpoint --data-dir --device --model --dataset "
       "--optimizer --conv-algo --lr --epochs --seed"},
      {"bench", "--json --markdown --metrics --data-dir --devices --runs"},
      {"eval", "--weights --logits --data-dir --device"},
      {"doctor", "--data-dir --threads"},
      {"gradcheck", "--op --device"},
      {"verify", "--op --out --golden --device"}};
  for (const auto& [command, options] : commands) {
    std::istringstream list(options);
    for (std::string option; list >> option;) {
      for (const std::vector<std::string>& given :
           {std::vector<std::string>{option, ""}, {option + "="}, {option, "--quiet"}}) {
        std::vector<std::string> args = {command};
        args.insert(args.end(), given.begin(), given.end());
        INFO(command << " " << given.front() << " " << given.back());
        CHECK(refusal(args).rfind(option + ": ", 0) == 0);
      }
    }
  }
  CHECK(contains(refusal({"train", "--save", "", "--quiet"}), "an empty one"));
  CHECK(contains(refusal({"train", "--save=", "w"}), "an empty one"));
  CHECK(contains(refusal({"train", "--save", "--quiet"}), "got the option --quiet"));
  CHECK(refusal({"train", "--save=w", "--lr=1e-3", "--quiet"}).empty());
  for (const char* list : {"cpu,", ",cpu", "cpu,,cpu"})
    CHECK(contains(refusal({"bench", "--devices", list}), "--devices: expected cpu"));
}

TEST_CASE("app: flags and numbers mean what they say", "[app]") {
  const auto parse = [](std::vector<const char*> args) {
    args.insert(args.begin(), "sinter");
    return app::parse_options(static_cast<int>(args.size()), args.data());
  };
  CHECK(!parse({"train"}).job.eager);
  CHECK(parse({"train"}).job.shuffle);
  CHECK(parse({"train", "--eager"}).job.eager);
  CHECK(!parse({"bench", "--no-shuffle"}).job.shuffle);
  CHECK(parse({"bench", "--no-shuffle=false", "--quiet=true", "--quiet"}).job.shuffle);
  CHECK(!std::signbit(*parse({"train", "--weight-decay", "-0"}).job.weight_decay));
  CHECK(!std::signbit(parse({"train", "--lr", "-0"}).job.lr));
  CHECK(parse({"train", "--seed", "010"}).job.seed == 10);  // not octal
  CHECK(parse({"train", "--epochs", "08"}).job.epochs == 8);
  CHECK(parse({"bench", "--devices", "cpu,cuda"}).devices ==
        std::vector<std::string>{"cpu", "cuda"});
}

TEST_CASE("app: a device that cannot run is an error, never another device", "[app]") {
  const Folder folder;
  for (const auto& args : {job("train", {"--device", "cuda:99", "--max-steps", "1"}),
                           job("bench", {"--devices", "cpu,cuda:99", "--max-steps", "1"})}) {
    const Result result = run(folder, args);
    INFO(result.err);
    CHECK(result.code == 1);
    CHECK(contains(result.err, "sinter: error: "));
    CHECK(contains(result.err, "cuda"));
    CHECK(result.out.empty());
  }
}

TEST_CASE("app: damaged CIFAR-10 files are an error, not a reason for synthetic data", "[app]") {
  const Folder folder;
  write(folder / "data_batch_1.bin", std::string(100, '\0'));
  const Result result =
      run(folder, {"train", "--device", "cpu", "--data-dir", folder.path().string()});
  INFO(result.err);
  CHECK(result.code == 1);
  CHECK(contains(result.err, "data_batch_1.bin"));
  CHECK(!contains(result.err, "synthetic"));
  const Result doctor = run(folder, {"doctor", "--data-dir", folder.path().string()});
  INFO(doctor.out);
  CHECK(doctor.code == 1);
  CHECK(contains(doctor.out, "FAIL  data"));
}

TEST_CASE("app: a folder named for CIFAR-10 has to hold it", "[app]") {
  const Folder folder;
  fs::create_directory(folder / "empty");
  write(folder / "file", "");
  fs::create_symlink("loop", folder / "loop");  // cannot be looked into, as without permission
  const auto fails = [&](const std::vector<std::string>& args, const std::string& part) {
    const Result result = run(folder, args);
    INFO(result.out << result.err);
    CHECK(result.code == 1);
    CHECK(contains(result.out + result.err, part));
    CHECK(!contains(result.out + result.err, kSyntheticName));
  };
  for (const char* name : {"mistyped", "empty", "file", "loop"}) {
    fails({"train", "--device", "cpu", "--max-steps", "1", "--data-dir", folder / name}, name);
    fails({"bench", "--devices", "cpu", "--max-steps", "1", "--data-dir", folder / name}, name);
    fails({"doctor", "--data-dir", folder / name}, "FAIL  data");
  }
  fails({"train", "--device", "cpu", "--data-dir", folder / "empty"}, "--download");
  save_safetensors(folder / "w", app::initial_model({})->state_dict());
  fails({"eval", "--device", "cpu", "--weights", folder / "w", "--data-dir", folder / "mistyped"},
        "mistyped");
  CHECK(!fs::exists(folder / "mistyped"));
  // What was asked for is not replaced either.
  fails({"train", "--device", "cpu", "--download", "--data-dir", folder / "file"}, "file");
}

TEST_CASE("app: files that cannot be written are noticed before the training", "[app]") {
  const Folder folder;
  fs::create_directory(folder / "folder");
  write(folder / "file", "");
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  // Would a training begin, it would not end in a test's time.
  for (const char* option : {"--save", "--metrics", "--checkpoint"}) {
    for (const std::string name : {"absent/file", "folder", "file/file", "pipe", "file"}) {
      const bool checkpoint = option == std::string("--checkpoint");
      if (checkpoint ? name == "absent/file" || name == "folder" : name == "file") continue;
      const Result result = run(
          folder, job("train", {"--device", "cpu", "--epochs", "1000000", option, folder / name}));
      INFO(result.err);
      CHECK(result.code == 1);
      CHECK(contains(result.err, option));
      CHECK(contains(result.err, (folder / name).string()));
    }
  }
  for (const char* option : {"--json", "--markdown", "--metrics"}) {
    const Result result = run(folder, job("bench", {"--devices", "cpu", "--epochs", "1000000",
                                                    option, folder / "absent/file"}));
    CHECK(result.code == 1);
    CHECK(contains(result.err, option));
  }
  const std::string name(240, 'n');  // leaves no room for what a temporary file is told by
  CHECK(run(folder, job("train", {"--device", "cpu", "--max-steps", "1", "--save", folder / name}))
            .code == 0);
  CHECK(fs::exists(folder / name));
}

TEST_CASE("app: what is replaced keeps its place and its permissions", "[app]") {
  const Folder folder;
  const auto train = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {"--device", "cpu", "--max-steps", "1"};
    args.insert(args.end(), more.begin(), more.end());
    const Result result = run(folder, job("train", args));
    INFO(result.err);
    CHECK(result.code == 0);
  };
  train({"--save", folder / "w"});
  const std::string weights = test::read_file(folder / "w");

  write(folder / "private", "old");
  fs::permissions(folder / "private", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("private", folder / "link");
  fs::create_symlink("new", folder / "dangling");
  fs::create_symlink("/dev/null", folder / "null");
  for (const char* name : {"link", "dangling", "null"}) {
    train({"--save", folder / name, "--metrics", folder / "m"});
    CHECK(fs::is_symlink(folder / name));
  }
  CHECK(fs::is_character_file(folder / "null"));
  CHECK(test::read_file(folder / "private") == weights);
  CHECK(test::read_file(folder / "new") == weights);
  CHECK(fs::status(folder / "private").permissions() ==
        (fs::perms::owner_read | fs::perms::owner_write));

  // A pipe that is read: it stays one, and gets all there is.
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  const int reader = open((folder / "pipe").c_str(), O_RDONLY | O_NONBLOCK);
  REQUIRE(reader >= 0);
  train({"--metrics", folder / "pipe"});
  std::string got(1 << 16, '\0');
  got.resize(static_cast<size_t>(std::max<ssize_t>(read(reader, got.data(), got.size()), 0)));
  close(reader);
  CHECK(contains(got, "\"step\":1,"));
  CHECK(fs::is_fifo(folder / "pipe"));

  // A device that is full.
  for (const char* option : {"--save", "--metrics"}) {
    const Result full =
        run(folder, job("train", {"--device", "cpu", "--max-steps", "1", option, "/dev/full"}));
    INFO(full.err);
    CHECK(full.code == 1);
    CHECK(contains(full.err, "/dev/full: cannot write: No space left on device"));
  }
  if (geteuid() != 0) {  // who may do anything
    fs::permissions(folder / "private", fs::perms::owner_read);
    const Result kept =
        run(folder,
            job("train", {"--device", "cpu", "--max-steps", "1", "--save", folder / "private"}));
    CHECK(kept.code == 1);
    CHECK(contains(kept.err, "Permission denied"));
    CHECK(test::read_file(folder / "private") == weights);
  }
}

TEST_CASE("app: a file that cannot be written does not cost the results", "[app]") {
  const Folder folder;
  const Result bench =
      run(folder, job("bench", {"--devices", "cpu", "--max-steps", "1", "--markdown", "/dev/full",
                                "--json", folder / "b.json"}));
  INFO(bench.err);
  CHECK(bench.code == 1);
  CHECK(contains(bench.err, "/dev/full: cannot write"));
  CHECK(json::parse(test::read_file(folder / "b.json")).contains("results"));
  CHECK(contains(bench.out, "Written: " + (folder / "b.json").string()));
  CHECK(!contains(bench.out, "/dev/full"));

  const Result train =
      run(folder, job("train", {"--device", "cpu", "--max-steps", "1", "--save", "/dev/full"}));
  INFO(train.err);
  CHECK(train.code == 1);
  CHECK(contains(train.err, "/dev/full: cannot write"));
  CHECK(contains(train.out, "test accuracy "));
  CHECK(contains(train.out, "weights' hash "));
  CHECK(!contains(train.out, "weights saved"));

  save_safetensors(folder / "w", app::initial_model({})->state_dict());
  const Result eval = run(
      folder, job("eval", {"--device", "cpu", "--weights", folder / "w", "--logits", "/dev/full"}));
  CHECK(eval.code == 1);
  CHECK(contains(eval.out, "test accuracy "));
}

namespace {
// Who may not do anything, as root may. Nothing for others.
class AsNobody {
 public:
  AsNobody() {
    if (root_) REQUIRE(seteuid(kNobody) == 0);
  }
  ~AsNobody() {
    if (root_ && seteuid(0) != 0) std::abort();
  }
  AsNobody(const AsNobody&) = delete;
  AsNobody& operator=(const AsNobody&) = delete;
  static constexpr uid_t kNobody = 65534;

 private:
  bool root_ = geteuid() == 0;
};
}  // namespace

TEST_CASE("app: what permissions allow and forbid is known at the start", "[app]") {
  const Folder folder;
  fs::permissions(folder.path(), fs::perms(0755));
  // Metrics are written where they are: their folder need not be writable.
  fs::create_directory(folder / "closed");
  write(folder / "closed/m", "old\n");
  fs::permissions(folder / "closed/m", fs::perms(0666));
  fs::permissions(folder / "closed", fs::perms(0555));
  {
    const AsNobody nobody;
    app::Metrics metrics(folder / "closed/m");
    metrics.write({{"step", 1}});
    metrics.flush();
    CHECK_THROWS_AS(app::Metrics(folder / "closed/new"), DataError);
  }
  CHECK(test::read_file(folder / "closed/m") == "{\"step\":1}\n");
  fs::permissions(folder / "closed", fs::perms(0755));
  // Someone else's file in a folder like /tmp: writable, not replaceable.
  if (geteuid() != 0) return;
  fs::create_directory(folder / "sticky");
  write(folder / "sticky/theirs", "old");
  write(folder / "sticky/own", "old");
  REQUIRE(chown((folder / "sticky/own").c_str(), AsNobody::kNobody, 0) == 0);
  fs::permissions(folder / "sticky/theirs", fs::perms(0666));
  fs::permissions(folder / "sticky", fs::perms(01777));
  {
    const AsNobody nobody;
    CHECK_THROWS_AS(app::Output("--save", folder / "sticky/theirs"), DataError);
    app::write_file(folder / "sticky/own", "new");
  }
  CHECK(test::read_file(folder / "sticky/own") == "new");
}

TEST_CASE("app: metrics that cannot be read tell the reason", "[app]") {
  const Folder folder;
  write(folder / "m", "{}\n");
  app::Metrics metrics(folder / "m");
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 0;
  const Dataset data = synthetic_dataset(1, 1);
  std::string message;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
  try {
    metrics.start_run({}, data, 3);
  } catch (const DataError& e) {
    message = e.what();
  }
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(contains(message, "Too many open files"));
}

TEST_CASE("app: bench's JSON holds a path that is no UTF-8", "[app]") {
  const Folder folder;
  const fs::path data = folder / "d\xff";
  fs::create_directory(data);
  for (const char* name : kCifar10Files) {
    write(data / name, "");
    fs::resize_file(data / name, kCifar10FileBytes);
  }
  const Result result =
      run(folder, {"bench", "--devices", "cpu", "--threads", "1", "--max-steps", "1", "--data-dir",
                   data, "--json", folder / "b.json", "--markdown", folder / "b.md"});
  INFO(result.err);
  CHECK(result.code == 0);
  CHECK(contains(json::parse(test::read_file(folder / "b.json")).at("source"), "d\uFFFD"));
}

TEST_CASE("app: a dangling link is not a reason for synthetic data", "[app]") {
  const Folder folder;
  fs::create_symlink("gone", folder / "data");
  fs::create_directory(folder / "d");
  fs::create_symlink("gone", folder / "d/cifar-10-batches-bin");
  for (const char* args :
       {"train --device cpu", "doctor", "train --device cpu --download",
        "train --device cpu --data-dir d", "train --device cpu --data-dir data"}) {
    const int status = std::system(str("cd '", folder.path().string(), "' && timeout 60 ",
                                       SINTER_APP_PATH, " ", args, " >out 2>&1")
                                       .c_str());
    const std::string out = test::read_file(folder / "out");
    INFO(args << ": " << out);
    CHECK(WEXITSTATUS(status) == 1);
    CHECK(contains(out, "a dangling link, to gone, which does not exist"));
    CHECK(!contains(out, kSyntheticName));
  }
}

TEST_CASE("app: descriptors that are closed are not taken by files", "[app]") {
  const Folder folder;
  const auto args = job("train", {"--device", "cpu", "--max-steps", "2", "--metrics", folder / "m",
                                  "--save", folder / "w"});
  CHECK(run_in_shell(args, ">/dev/null 2>&- <&-") == 0);
  CHECK(json_lines(folder / "m").size() == 4);  // throws at what is no JSON
  fs::remove(folder / "w");
  CHECK(run_in_shell(args, ">&- 2>&-") == 1);  // as it cannot print its results
  CHECK(json_lines(folder / "m").size() == 4);
  CHECK(!load_safetensors(folder / "w").tensors.empty());
}

TEST_CASE("app: train writes losses that fall, weights that repeat, and eval agrees", "[app]") {
  const Folder folder;
  const auto train = [&](const std::string& name, const std::string& seed,
                         const std::string& steps) {
    const Result result =
        run(folder,
            job("train", {"--device", "cpu", "--lr", "3e-3", "--batch-size", "48", "--max-steps",
                          steps, "--seed", seed, "--metrics", folder / (name + ".jsonl"), "--save",
                          folder / (name + ".safetensors")}));
    INFO(result.err);
    REQUIRE(result.code == 0);
    return result;
  };
  const Result first = train("a", "1", "94");
  CHECK(contains(first.out, kSyntheticName));
  CHECK(contains(first.out, "whole command"));
  CHECK(contains(first.out, "first step finished 0."));

  const std::vector<json> records = json_lines(folder / "a.jsonl");
  CHECK(records.at(0).at("dataset") == kSyntheticName);
  CHECK(records.at(0).at("train_images") == 1000);
  CHECK(records.at(0).at("seed") == 1);
  std::vector<double> losses;
  std::vector<json> epochs;
  for (size_t i = 1; i < records.size(); ++i) {
    if (records[i].contains("step")) {
      losses.push_back(records[i].at("loss"));
      CHECK(records[i].at("step") == losses.size());
    } else {
      epochs.push_back(records[i]);
      CHECK(epochs.back().at("epoch") == epochs.size());
    }
  }
  CHECK(losses.size() == 94);
  REQUIRE(epochs.size() == 5);  // 21 batches an epoch, the last of 40; the fifth cut short
  const double last_loss = epochs.back().at("train_loss");
  CHECK(near(losses.front(), std::log(10.), 0.1));  // ten classes, untrained
  CHECK(last_loss < 0.9 * losses.front());
  CHECK(epochs.back().at("seconds") > 0);
  double sum = 0;
  for (size_t i = 84; i < 94; ++i) sum += losses[i];
  CHECK(near(last_loss, sum / 10, 1e-6));

  train("b", "1", "94");
  CHECK(test::read_file(folder / "a.safetensors") == test::read_file(folder / "b.safetensors"));
  train("c", "2", "94");
  CHECK(test::read_file(folder / "a.safetensors") != test::read_file(folder / "c.safetensors"));

  const Result eval =
      run(folder, job("eval", {"--device", "cpu", "--weights", folder / "a.safetensors", "--logits",
                               folder / "logits.safetensors"}));
  INFO(eval.err);
  REQUIRE(eval.code == 0);
  CHECK(eval.out == first.out.substr(0, first.out.find('\n') + 1));

  // The accuracy counted once more, from the logits and the images' labels.
  const SafetensorsFile file = load_safetensors(folder / "logits.safetensors");
  REQUIRE(file.tensors.size() == 1);
  CHECK(file.tensors[0].first == "logits");
  REQUIRE(file.tensors[0].second.shape() == Shape({200, 10}));
  const std::vector<double> logits = file.tensors[0].second.to_vector<double>();
  const std::vector<int> labels = synthetic_dataset(1000, 200).test.labels.to_vector<int>();
  int correct = 0;
  for (size_t i = 0; i < 200; ++i) {
    const auto row = logits.begin() + static_cast<std::ptrdiff_t>(10 * i);
    correct += std::max_element(row, row + 10) - row == labels[i];
  }
  CHECK(100. * correct / 200 == epochs.back().at("test_accuracy").get<double>());

  const Result again =
      run(folder, job("train", {"--device", "cpu", "--max-steps", "1", "--lr", "0", "--init",
                                folder / "a.safetensors", "--save", folder / "d.safetensors"}));
  INFO(again.err);
  REQUIRE(again.code == 0);  // a rate of 0 changes nothing, whatever the start
  CHECK(test::read_file(folder / "d.safetensors") == test::read_file(folder / "a.safetensors"));
}

TEST_CASE("app: a loss that is no longer finite stops the training", "[app]") {
  const Folder folder;
  const Result result =
      run(folder, job("train", {"--device", "cpu", "--optimizer", "sgd", "--lr", "1e6", "--epochs",
                                "3", "--save", folder / "w.safetensors"}));
  INFO(result.err);
  CHECK(result.code == 1);
  CHECK(contains(result.err, "diverged"));
  CHECK(contains(result.err, "--lr"));
  CHECK(!fs::exists(folder / "w.safetensors"));

  // The same job, asked where it begins.
  const Result traced = run(folder, job("train", {"--device", "cpu", "--optimizer", "sgd", "--lr",
                                                  "1e6", "--epochs", "3", "--detect-anomaly"}));
  INFO(traced.err);
  CHECK(traced.code == 1);
  CHECK(contains(traced.err, "anomaly: "));
  CHECK(contains(traced.err, "at step "));
}

TEST_CASE("app: a test loss that is not finite is a failure", "[app]") {
  const Folder folder;
  // Adam's steps are as long as its rate: weights stay finite, what they compute does not.
  const Result result =
      run(folder, job("train", {"--device", "cpu", "--lr", "1e6", "--epochs", "2", "--save",
                                folder / "w", "--checkpoint", folder / "c"}));
  INFO(result.err);
  CHECK(result.code == 1);
  CHECK(contains(result.err, "diverged"));
  CHECK(contains(result.err, "after step 16 "));
  CHECK(contains(result.err, "--lr"));
  CHECK(result.out.empty());
  CHECK(!fs::exists(folder / "w"));
  CHECK(!fs::exists(folder / "c"));
}

TEST_CASE("app: a file without the model's weights is refused, by option and name", "[app]") {
  const Folder folder;
  NamedTensors weights = app::initial_model({})->state_dict();
  save_safetensors(folder / "empty", {});
  save_checkpoint(folder / "stateless", {{}, {}, {{"losses", zeros({1})}}, {}});
  save_safetensors(folder / "other", {{"fc.weight", zeros({2, 2})}});
  NamedTensors changed = weights;
  changed[0].second = zeros({2, 2});
  save_safetensors(folder / "shape", changed);
  for (const double value : {std::nan(""), -HUGE_VAL, 1e300}) {  // the last one's float is infinite
    changed[0].second = full(weights[0].second.shape(), value, {.dtype = kFloat64});
    save_safetensors(folder / str("value", value), changed);
  }
  for (const auto& [name, part] :
       {std::pair("empty", "missing keys"), std::pair("stateless", "missing keys"),
        std::pair("other", "missing keys"), std::pair("shape", "of shape"),
        std::pair("valuenan", "conv1.weight is nan"), std::pair("value-inf", "is -inf"),
        std::pair("value1e+300", "is inf")}) {
    const std::string file = folder / name;
    for (const auto& args : {job("eval", {"--device", "cpu", "--weights", file}),
                             job("train", {"--device", "cpu", "--max-steps", "1", "--init", file,
                                           "--save", folder / "w", "--quiet"})}) {
      const Result result = run(folder, args);
      INFO(result.err);
      CHECK(result.code == 1);
      CHECK(result.out.empty());
      CHECK(contains(result.err, (args[0] == "eval" ? "--weights: " : "--init: ") + file + ": "));
      CHECK(contains(result.err, part));
    }
  }
  CHECK(!fs::exists(folder / "w"));
  app::Job empty;
  empty.initial.emplace();
  CHECK_THROWS_AS(app::initial_model(empty), ValueError);

  // Finite weights whose outputs are not.
  for (auto& [key, tensor] : weights) tensor = full(tensor.shape(), 1e30);
  save_safetensors(folder / "far", weights);
  const Result far = run(folder, job("eval", {"--device", "cpu", "--weights", folder / "far"}));
  INFO(far.err);
  CHECK(far.code == 1);
  CHECK(far.out.empty());
  CHECK(contains(far.err, "far: the test loss is "));
}

TEST_CASE("app: weights are taken out of a checkpoint", "[app]") {
  const Folder folder;
  const Result trained =
      run(folder, job("train", {"--device", "cpu", "--epochs", "1", "--checkpoint", folder / "c"}));
  REQUIRE(trained.code == 0);
  const std::string checkpoint = folder / "c/checkpoint.safetensors";
  const Result eval = run(folder, job("eval", {"--device", "cpu", "--weights", checkpoint}));
  INFO(eval.err);
  CHECK(eval.code == 0);
  CHECK(eval.out == trained.out.substr(0, trained.out.find('\n') + 1));
  const Result again = run(folder, job("train", {"--device", "cpu", "--max-steps", "1", "--lr", "0",
                                                 "--init", checkpoint, "--save", folder / "w"}));
  INFO(again.err);
  REQUIRE(again.code == 0);
  CHECK(state_hash(load_safetensors(folder / "w").tensors) ==
        state_hash(load_checkpoint(checkpoint).model));
  CHECK(state_hash(load_weights(folder / "w")) == state_hash(load_weights(checkpoint)));
}

TEST_CASE("app: bench tabulates, labels synthetic data, and writes JSON and Markdown", "[app]") {
  const Folder folder;
  const Result result =
      run(folder, job("bench", {"--devices", "cpu", "--runs", "2", "--epochs", "1", "--json",
                                folder / "b.json", "--markdown", folder / "b.md"}));
  INFO(result.err);
  REQUIRE(result.code == 0);
  const std::string page = test::read_file(folder / "b.md");
  for (const std::string& text : {result.out, page}) {
    CHECK(contains(text, "| Setup "));
    CHECK(contains(text, "| Time taken "));
    CHECK(contains(text, "±"));
    CHECK(contains(text, kSyntheticName));
  }
  const json report = json::parse(test::read_file(folder / "b.json"));
  CHECK(report.at("dataset") == kSyntheticName);
  CHECK(report.at("synthetic") == true);
  CHECK(report.at("machine").at("threads") >= 1);
  const json& runs = report.at("results").at(0).at("runs");
  REQUIRE(runs.size() == 2);
  CHECK(runs[0].at("seed") == 0);
  CHECK(runs[1].at("seed") == 1);
  const double a = runs[0].at("seconds"), b = runs[1].at("seconds");
  const json& seconds = report.at("results").at(0).at("seconds");
  CHECK(a > 0);
  CHECK(near(seconds.at("mean"), (a + b) / 2, 1e-9));
  CHECK(near(seconds.at("standard_deviation"), std::abs(a - b) / std::sqrt(2.), 1e-9));
}

DEVICE_TEST("app: bench records how convolutions were computed", "[app]") {
  const Folder folder;
  const Result result =
      run(folder, job("bench", {"--devices", device.str(), "--conv-algo", "im2col", "--tf32",
                                "--epochs", "1", "--max-steps", "20", "--json", folder / "b.json",
                                "--markdown", folder / "b.md"}));
  INFO(result.err);
  REQUIRE(result.code == 0);
  CHECK(contains(result.out, "conv-algo im2col, TF32"));
  const json report = json::parse(test::read_file(folder / "b.json"));
  CHECK(report.at("job").at("conv_algo") == "im2col");
  CHECK(report.at("job").at("tf32") == true);
  if (device.is_cuda()) return;
  const Result refused =
      run(folder, job("train", {"--device", "cpu", "--conv-algo", "tensor-core"}));
  CHECK(refused.code == 1);
  CHECK(contains(refused.err, "the CPU has no algorithm tensor-core"));
}

DEVICE_TEST("app: every usable device trains and agrees with the CPU", "[app]") {
  const Folder folder;
  const Result trained =
      run(folder, job("train", {"--device", device.str(), "--epochs", "1", "--quiet"}));
  INFO(trained.err);
  CHECK(trained.code == 0);
  CHECK(contains(trained.out, "on " + device.str()));
  CHECK(trained.err.empty());
  const Result bench = run(
      folder,
      job("bench", {"--devices", "cpu" + std::string(device.is_cuda() ? ",cuda" : ""), "--epochs",
                    "1", "--json", folder / "b.json", "--markdown", folder / "b.md"}));
  INFO(bench.err);
  REQUIRE(bench.code == 0);
  const json report = json::parse(test::read_file(folder / "b.json"));
  CHECK(report.at("results").size() == (device.is_cuda() ? 2 : 1));
  const json& agreement = report.at("agreement");
  for (const json& other : agreement.at("devices"))
    CHECK(other.at("difference").get<double>() <= agreement.at("tolerance").get<double>());
  CHECK(agreement.at("devices").size() == (device.is_cuda() ? 1 : 0));
}

DEVICE_TEST("app: compiled steps and eager ones train to the same weights", "[app][program]") {
  const Folder folder;
  const test::PassesOff exact("-fuse");
  // 64 steps an epoch: on a GPU three calls of 20, and the last ones, of which one is a smaller
  // batch. Under a sanitizer 24.
  const char* const size = test::under_sanitizer() ? "750" : "2030";
  const std::vector<std::string> train = {
      "train", "--device",     device.str(), "--dataset", "synthetic", "--synthetic-size",
      size,    "--batch-size", "32",         "--epochs",  "2",         "--quiet"};
  std::vector<std::string> one_by_one = train;
  one_by_one.emplace_back("--eager");
  const auto hash = [](const Result& result) {
    INFO(result.err);
    REQUIRE(result.code == 0);
    CHECK(result.err.empty());
    const size_t at = result.out.find("weights' hash ");
    REQUIRE(at != std::string::npos);
    return result.out.substr(at, 30);
  };
  CHECK(hash(run(folder, train)) == hash(run(folder, one_by_one)));
}

TEST_CASE("app: bench's check finds a device that computes something else", "[app]") {
  app::Job job;
  job.batch_size = 8;
  const ImageSet images = synthetic_dataset(24, 10).train;
  const app::Trace trace = app::trace_steps(job, images, kCpu);
  REQUIRE(trace.losses.size() == 3);
  CHECK(app::compare(trace, app::trace_steps(job, images, kCpu)).difference == 0);

  job.seed = 1;
  CHECK(!app::compare(trace, app::trace_steps(job, images, kCpu)).ok());

  // One element of one weight, by the smallest amounts that have to be let pass and found.
  for (const auto& [change, ok] : {std::pair(0.5e-9, true), std::pair(2e-9, false)}) {
    app::Trace other = trace;
    Tensor& weight = other.weights.at(3).second;
    std::vector<double> values = weight.to_vector<double>();
    double largest = 0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    values[5] += change * largest;
    weight = from_vector(values, weight.shape());
    const app::Agreement agreement = app::compare(trace, other);
    CHECK(agreement.ok() == ok);
    CHECK(agreement.worst == "conv2.bias");
    CHECK(near(agreement.difference, change, 1e-12));
    CHECK(contains(app::describe(agreement), ok ? " agrees " : " disagrees "));
  }
  for (const bool in_loss : {true, false}) {
    app::Trace other = trace;
    const double nan = std::nan("");
    if (in_loss) {
      other.losses[1] = nan;
    } else {
      other.weights[0].second = full(other.weights[0].second.shape(), nan, {.dtype = kFloat64});
    }
    CHECK(!app::compare(trace, other).ok());
    CHECK(app::compare(trace, other).worst == (in_loss ? "loss" : "conv1.weight"));
  }
}

TEST_CASE("app: numbers as people read them", "[app]") {
  CHECK(app::grouped(0) == "0");
  CHECK(app::grouped(999) == "999");
  CHECK(app::grouped(1000) == "1,000");
  CHECK(app::grouped(-1234567) == "-1,234,567");
  CHECK(app::grouped(-123) == "-123");
  CHECK(app::duration(4.214) == "4.21 s");
  CHECK(app::duration(725.4) == "12 min 05 s");
}

TEST_CASE("app: progress stays within the terminal's line", "[app]") {
  const std::string what = "epoch 10/10",
                    state = "loss 0.1234  1,234,567 images/s  12 min 05 s left";
  const std::string wide = app::progress_text(what, 0.5, state, 200);
  CHECK(wide == what + " [############............] " + state);
  CHECK(app::progress_text(what, 0.5, state, 79) == what + " [#######........] " + state);
  CHECK(app::progress_text(what, 0.5, state, 60) == what + " " + state.substr(0, 48));
  for (int width = 0; width <= 100; ++width)
    CHECK(app::progress_text(what, 1, state, width).size() <= static_cast<size_t>(width));
  CHECK(app::progress_text("é", 1, "éé", 3) == "é é");  // characters, not bytes
  CHECK(app::progress_text("x", 2, "y", 30).size() == 30);
}

TEST_CASE("app: the program of a training step is printed", "[app]") {
  const Folder folder;
  const std::string text =
      run(folder, job("train", {"--device", "cpu", "--max-steps", "1", "--print-program"})).out;
  for (const char* part :
       {"recorded: ", "gather_batch", "module conv1", "after dead: ", "adam_step"})
    CHECK(contains(text, part));
}

TEST_CASE("app: being told to end is like Ctrl-C", "[app]") {
  const Folder folder;
  for (const int signal : {SIGTERM, SIGHUP}) {
    Process process(folder, job("train", {"--device", "cpu", "--epochs", "100000", "--metrics",
                                          folder / "m", "--checkpoint", folder / "c", "--resume"}));
    const fs::path file = folder / "c/checkpoint.safetensors";
    while (process.running() && !fs::exists(file))
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (signal == SIGHUP)  // the second of them: once it trains
      while (process.running() && !contains(process.err(), "resuming"))
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    process.send(signal);
    CHECK(process.wait() == 128 + signal);
    INFO(process.err());
    CHECK(contains(process.err(), "sinter: interrupted: "));
    CHECK(contains(process.err(), "--resume goes on from there"));
    CHECK(std::distance(fs::directory_iterator(folder / "c"), {}) == 1);
  }
}

TEST_CASE("app: drawing images can be stopped", "[app]") {
  const Folder folder;
  Process process(folder, {"train", "--device", "cpu", "--dataset", "synthetic", "--threads", "1",
                           "--synthetic-size", "1000000"});
  while (process.running() && !contains(process.err(), "device: "))
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto start = std::chrono::steady_clock::now();
  process.send(SIGINT);
  CHECK(process.wait() == 130);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
  CHECK(contains(process.err(), "interrupted: while drawing images"));
}

TEST_CASE("app: a signal that was ignored stays so", "[app]") {
  const Folder folder;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    const auto before = signal(number, SIG_IGN);
    Process process(folder, job("train", {"--device", "cpu", "--epochs", "2", "--metrics",
                                          folder / str("m", number)}));
    signal(number, before);
    while (process.running() && !fs::exists(folder / str("m", number)))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    process.send(number);
    CHECK(process.wait() == 0);
    INFO(process.err());
  }
}

TEST_CASE("app: limits of the shell are errors and not the end", "[app]") {
  const Folder folder;
  const std::string save = folder / "w";
  const auto limited = [&](const std::string& limit, std::vector<std::string> args) {
    std::string command = "ulimit " + limit + "; exec timeout -s KILL 60 " SINTER_APP_PATH;
    for (const std::string& arg : args) command += " '" + arg + "'";
    const int status = std::system(
        (command + " >'" + (folder / "out").string() + "' 2>'" + (folder / "err").string() + "'")
            .c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
  };
  // More than fits: the file that was there stays, and nothing half-written.
  write(save, "old");
  CHECK(limited("-f 100", job("train", {"--device", "cpu", "--max-steps", "1", "--save", save,
                                        "--checkpoint", folder / "c"})) == 1);
  INFO(test::read_file(folder / "err"));
  CHECK(contains(test::read_file(folder / "err"), "File too large"));
  CHECK(test::read_file(save) == "old");
  CHECK(folder.entries() == 3);         // w, out, err
  if (test::under_sanitizer()) return;  // whose memory is beyond any limit
  for (const char* limit : {"-d 50000", "-v 800000"}) {
    CHECK(limited(limit, {"--version"}) == 0);
    CHECK(contains(test::read_file(folder / "out"), "sinter "));
  }
}

TEST_CASE("app: Ctrl-C stops cleanly and leaves the old weights alone", "[app]") {
  const Folder folder;
  write(folder / "w.safetensors", "as it was");
  Process process(folder, job("train", {"--device", "cpu", "--epochs", "100000", "--metrics",
                                        folder / "m.jsonl", "--save", folder / "w.safetensors"}));
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!(fs::exists(folder / "m.jsonl") &&
           contains(test::read_file(folder / "m.jsonl"), "\"epoch\":1,")) &&
         std::chrono::steady_clock::now() < give_up)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  process.send(SIGINT);
  CHECK(process.wait() == 130);
  INFO(process.err());
  CHECK(contains(process.err(), "sinter: interrupted: "));
  CHECK(test::read_file(folder / "w.safetensors") == "as it was");
  CHECK(json_lines(folder / "m.jsonl").size() > 17);  // throws if the last line is cut short
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder.path())) ++files;
  CHECK(files == 4);  // stdout, stderr, m.jsonl, w.safetensors: nothing half-written
}

#endif  // SINTER_APP_PATH
