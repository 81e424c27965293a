#include "sinter/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "core/base/detail.h"
#include "sinter/data.h"
#include "sinter/nn.h"
#include "sinter/optim.h"
#include "sinter/random.h"
#include "sinter/safetensors.h"
#include "tests/support/catch.h"
#include "tests/support/temp_dir.h"

using namespace sinter;
using namespace sinter::test;

namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

bool same_bits(const NamedTensors& a, const NamedTensors& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    const Tensor s = x.second.to(kCpu), t = y.second.to(kCpu);
    return x.first == y.first && s.dtype() == t.dtype() && s.shape() == t.shape() &&
           std::memcmp(s.raw(), t.raw(), s.bytes()) == 0;
  });
}

std::string fnv1a(const std::string& bytes) {
  uint64_t hash = 14695981039346656037U;
  for (const char byte : bytes) {
    hash ^= static_cast<unsigned char>(byte);
    hash *= 1099511628211U;
  }
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << hash;
  return out.str();
}

template <class T> std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

// ---- the library --------------------------------------------------------------------------------

DEVICE_TEST("checkpoint: the hash of a state is FNV-1a of what the header says", "[checkpoint]") {
  REQUIRE(fnv1a("") == "cbf29ce484222325");  // published vectors
  REQUIRE(fnv1a("a") == "af63dc4c8601ec8c");
  REQUIRE(fnv1a("foobar") == "85944171f73967e8");
  CHECK(state_hash({}) == fnv1a(""));

  const Tensor w = from_vector<float>({1, -2, 0.5F, 3, 4, -0.F}, {2, 3}, device);
  const Tensor n = from_vector<int64_t>({7}, {}, device);
  const auto number = [](int64_t x) { return bytes_of(std::vector<int64_t>{x}); };
  const std::string expected =
      fnv1a(number(1) + "n" + number(5) + "int64" + number(0) + number(7) + number(6) + "weight" +
            number(7) + "float32" + number(2) + number(2) + number(3) +
            bytes_of(std::vector<float>{1, -2, 0.5F, 3, 4, -0.F}));
  CHECK(state_hash({{"weight", w}, {"n", n}}) == expected);
  CHECK(state_hash({{"n", n}, {"weight", w}}) == expected);

  CHECK(state_hash({{"n", n}, {"weights", w}}) != expected);
  CHECK(state_hash({{"n", n}, {"weight", w.reshape({3, 2})}}) != expected);
  CHECK(state_hash({{"n", n}, {"weight", w.to(kFloat64)}}) != expected);
  CHECK(state_hash({{"n", n}, {"weight", w + 0.F}}) != expected);  // -0 became 0
  CHECK(state_hash({{"n", n}}) != expected);
}

DEVICE_TEST("checkpoint: a training continued from a file ends with the same bits",
            "[checkpoint]") {
  const TempDir dir;
  const auto file = dir / "c";
  manual_seed(3);
  const Tensor x = empty({5, 4}, {kFloat32, device});
  normal_(x, 0, 1);
  const Tensor y = from_vector<int64_t>({0, 2, 1, 1, 0}, {5}, device);
  const auto make = [](const std::string& name, Module& model) -> std::unique_ptr<Optimizer> {
    if (name == "sgd")
      return std::make_unique<SGD>(model.parameters(), SGDOptions{.lr = 0.1, .momentum = 0.9});
    if (name == "adamw") return std::make_unique<AdamW>(model.parameters());
    return std::make_unique<Adam>(model.parameters());
  };
  const auto step = [&](Module& model, Optimizer& optimizer) {
    optimizer.zero_grad();
    cross_entropy(model(x), y).backward();
    optimizer.step();
  };
  for (const std::string name : {"sgd", "adam", "adamw"}) {
    INFO(name);
    manual_seed(4);
    Linear through(4, 3), first(4, 3), second(4, 3);
    first.load_state_dict(through.state_dict());
    for (Module* model : {&through, &first, &second}) model->to(device);
    const auto optimizer = make(name, through), before = make(name, first),
               after = make(name, second);
    for (int i = 0; i < 3; ++i) step(first, *before);
    save_checkpoint(file, {first.state_dict(),
                           before->state_dict(),
                           {{"losses", from_vector<double>({1, 2}, {2})}},
                           {{"step", "3"}, {"model.name", "é \"quoted\"\n"}}});
    const Checkpoint loaded = load_checkpoint(file);
    CHECK(loaded.metadata ==
          std::map<std::string, std::string>{{"step", "3"}, {"model.name", "é \"quoted\"\n"}});
    REQUIRE(loaded.extra.size() == 1);
    CHECK(loaded.extra[0].first == "losses");
    CHECK(loaded.extra[0].second.to_vector<double>() == std::vector<double>{1, 2});
    second.load_state_dict(loaded.model);
    after->load_state_dict(loaded.optimizer);
    CHECK(after->steps() == 3);
    for (int i = 0; i < 3; ++i) step(second, *after);
    for (int i = 0; i < 6; ++i) step(through, *optimizer);
    CHECK(same_bits(second.state_dict(), through.state_dict()));
    CHECK(same_bits(after->state_dict(), optimizer->state_dict()));
    CHECK(state_hash(second.state_dict()) == state_hash(through.state_dict()));
    CHECK(state_hash(second.state_dict()) != state_hash(first.state_dict()));
  }
  CHECK(dir.entries() == 1);
}

TEST_CASE("checkpoint: no damage goes unnoticed", "[checkpoint]") {
  const TempDir dir;
  const auto file = dir / "c";
  manual_seed(0);
  Linear model(2, 2);
  const SGD optimizer(model.parameters(), {.momentum = 0.5});
  const auto save = [&] {
    save_checkpoint(file, {model.state_dict(), optimizer.state_dict(), {}, {{"epoch", "7"}}});
  };
  save();
  const std::string whole = read_file(file);
  CHECK(load_checkpoint(file).metadata.at("epoch") == "7");
  save();
  CHECK((read_file(file) == whole));

  const auto refused = [&](const std::string& bytes) {
    // A new file each time: one that is mapped elsewhere must not change.
    write_file(dir / "damaged", bytes);
    try {
      load_checkpoint(dir / "damaged");
    } catch (const DataError& e) {
      return contains(e.what(), (dir / "damaged").string());
    }
    return false;
  };
  CHECK(!refused(whole));
  int accepted = 0;
  for (size_t i = 0; i < whole.size(); ++i) {
    accepted += !refused(whole.substr(0, i));
    for (const char mask : {'\x01', '\x80'}) {
      std::string flipped = whole;
      flipped[i] = static_cast<char>(flipped[i] ^ mask);
      accepted += !refused(flipped);
    }
  }
  CHECK(accepted == 0);
  CHECK(refused(whole + '\0'));
}

TEST_CASE("checkpoint: other files are refused, saying what they are", "[checkpoint]") {
  const TempDir dir;
  const std::string file = (dir / "c").string();
  const Tensor one = ones({2});
  const auto load = [&] { load_checkpoint(file); };
  check_throws<DataError>(load, {file, "No such file"});
  write_file(file, "{\"weights\": 1}");
  check_throws<DataError>(load, {file, "header"});
  save_safetensors(file, {{"weight", one}}, {{"format", "pt"}});
  check_throws<DataError>(load, {file, "not a checkpoint"});
  save_safetensors(file, {{"model.weight", one}}, {{"sinter_checkpoint", "9"}});
  check_throws<DataError>(load, {file, "version \"9\"", "expected version 1"});
  save_safetensors(file, {}, {{"sinter_checkpoint", "\x1b[31m" + std::string(1000, 'x')}});
  check_throws<DataError>(load, {file, R"(version "\x1b[31mxxx)", "xxx...\""});
  save_safetensors(file, {{"model.weight", one}}, {{"sinter_checkpoint", "1"}});
  check_throws<DataError>(load, {file, "hash"});
  // Of a later version, which may mean something by it. Whole but for that.
  std::map<std::string, std::string> metadata = {{"sinter_checkpoint", "1"}, {"sinter_new", "x"}};
  std::string hashed;
  for (const auto& [key, value] : metadata)
    for (const std::string& text : {key, value})
      hashed += bytes_of(std::vector<int64_t>{static_cast<int64_t>(text.size())}) + text;
  metadata["sinter_hash"] = fnv1a(hashed);
  save_safetensors(file, {}, metadata);
  check_throws<DataError>(load, {file, "\"sinter_new\""});

  check_throws<ValueError>(
      [&] {
        save_checkpoint(file, {{{"a\x1b", Tensor()}}, {}, {}, {}});
      },
      {R"("model.a\x1b")", "undefined"});
  check_throws<ValueError>(
      [&] {
        save_checkpoint(file, {{}, {}, {}, {{"sinter_hash\x07", "0"}}});
      },
      {R"("sinter_hash\x07")"});
  CHECK_THROWS_AS(save_checkpoint(file, {{}, {{"a", one}, {"a", one}}, {}, {}}), ValueError);
  check_throws<DataError>(load, {"sinter_new"});  // what was there is still there
}

// ---- the command --------------------------------------------------------------------------------

#ifdef SINTER_APP_PATH

#include "tests/support/process.h"

namespace {

using nlohmann::json;
using Args = std::vector<std::string>;

// 75 updates of 8 images an epoch.
Args job(const Args& more) {
  Args args = {"train", "--dataset",    "synthetic", "--synthetic-size", "600", "--threads",
               "1",     "--batch-size", "8",         "--epochs",         "3"};
  for (const std::string& arg : more) {
    // An option given again takes the place of the first.
    const auto old = std::find(args.begin(), args.end(), arg);
    if (arg.rfind("--", 0) == 0 && old != args.end()) args.erase(old, old + 2);
    args.push_back(arg);
  }
  return args;
}

Args operator+(Args a, const Args& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Result finish(const TempDir& dir, const Args& args) {
  Result result = run(dir, args);
  INFO(result.err);
  REQUIRE(result.code == 0);
  return result;
}

std::string printed_hash(const Result& result) {
  const std::string before = "weights' hash ";
  const size_t at = result.out.find(before);
  return at == std::string::npos ? "" : result.out.substr(at + before.size(), 16);
}

// The lines of a metrics file, without what time it took.
std::vector<json> metrics_of(const std::filesystem::path& path) {
  std::istringstream in(read_file(path));
  std::vector<json> records;
  for (std::string line; std::getline(in, line);) {
    records.push_back(json::parse(line));
    records.back().erase("seconds");
  }
  return records;
}

// A failure says so without printing what is in them.
bool same_files(const std::filesystem::path& a, const std::filesystem::path& b) {
  return read_file(a) == read_file(b);
}

void sleep(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

std::filesystem::file_time_type written(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::last_write_time(path, error);
}

void wait_for_checkpoint(const Process& process, const std::filesystem::path& file) {
  for (const auto before = written(file); process.running() && written(file) == before;)
    sleep(0.0005);
}

constexpr const char* kFile = "checkpoint.safetensors";

}  // namespace

DEVICE_TEST("checkpoint: a training killed again and again ends as one left alone",
            "[checkpoint][app]") {
  const TempDir dir;
  // Long enough to be killed in. On a GPU the whole run makes twenty steps a launch, and those that
  // save every third step one.
  const int epochs = device.is_cuda() ? 13 : 3, steps = 75 * epochs;
  const Args train = job({"--device", device.str(), "--epochs", std::to_string(epochs)});
  const auto timed = [&](const Args& more) {
    const auto start = std::chrono::steady_clock::now();
    finish(dir, train + more);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const double whole = timed({"--save", (dir / "a").string(), "--metrics", (dir / "a.m").string()});
  const double startup = timed({"--max-steps", "1"});

  const Args resume =
      train + Args{"--save",       (dir / "b").string(), "--metrics", (dir / "b.m").string(),
                   "--checkpoint", (dir / "c").string(), "--every",   "3",
                   "--resume"};
  std::mt19937 random(1);
  const auto up_to = [&](double x) { return std::uniform_real_distribution<>(0, x)(random); };
  int killed = 0, resumed = 0;
  for (int i = 0; i < 8; ++i) {
    Process process(dir, resume);
    if (i % 2 == 0) {
      // While it trains and saves; short enough that eight of these do not reach the end.
      wait_for_checkpoint(process, dir / "c" / kFile);
      sleep(up_to(std::max(whole - startup, 0.) / 8));
    } else {
      sleep(up_to(startup));  // while it starts or reads the checkpoint
    }
    process.send(SIGKILL);
    killed += process.wait() == 1000 + SIGKILL;
    resumed += contains(process.err(), "resuming after ");
  }
  CHECK(killed >= 6);
  CHECK(resumed >= 3);
  CHECK(!std::filesystem::exists(dir / "b"));
  const Result last = finish(dir, resume);
  CHECK(contains(last.err, "resuming after "));
  CHECK(same_files(dir / "b", dir / "a"));
  CHECK(printed_hash(last) == state_hash(load_safetensors(dir / "a").tensors));

  // One line for each step, with the same loss to the last bit.
  const std::vector<json> expected = metrics_of(dir / "a.m"), records = metrics_of(dir / "b.m");
  CHECK(expected.size() == static_cast<size_t>(1 + steps + epochs));
  CHECK(records == expected);
  int64_t step = 0;
  for (const json& record : records)
    if (record.contains("step")) CHECK(record["step"] == ++step);
  CHECK(step == steps);
  // Nothing half-written is left.
  CHECK(std::distance(std::filesystem::directory_iterator(dir / "c"), {}) == 1);

  // What is complete can be resumed: nothing is trained, all is as it was.
  const std::string checkpoint = read_file(dir / "c" / kFile);
  const Result again = finish(dir, resume);
  CHECK(contains(again.err, str("resuming after ", steps, " of ", steps, " steps")));
  CHECK(again.out.substr(0, again.out.find('\n')) == last.out.substr(0, last.out.find('\n')));
  CHECK(printed_hash(again) == printed_hash(last));
  CHECK((read_file(dir / "c" / kFile) == checkpoint));
  CHECK(same_files(dir / "b", dir / "a"));
  CHECK(metrics_of(dir / "b.m") == expected);
}

TEST_CASE("checkpoint: Ctrl-C saves one, also within an epoch", "[checkpoint][app]") {
  const TempDir dir;
  const Args train = job({"--device", "cpu", "--optimizer", "sgd", "--momentum", "0.9"});
  finish(dir, train + Args{"--save", (dir / "a").string()});
  const Args resume =
      train + Args{"--save",       (dir / "b").string(), "--metrics", (dir / "m").string(),
                   "--checkpoint", (dir / "c").string(), "--resume"};
  // Whether the signal comes within an epoch is chance: tried until it does.
  int64_t steps = 0;
  for (int attempt = 0; attempt < 20 && steps % 75 == 0; ++attempt) {
    std::filesystem::remove_all(dir / "c");
    Process process(dir, resume);
    wait_for_checkpoint(process, dir / "c" / kFile);  // of the first epoch
    sleep(0.002 * (attempt + 1));
    process.send(SIGINT);
    if (process.wait() == 0) continue;
    INFO(process.err());
    CHECK(contains(process.err(), "sinter: interrupted: "));
    steps = std::stoll(load_checkpoint(dir / "c" / kFile).metadata.at("step"));
    if (steps % 75 != 0) CHECK(contains(process.err(), "--resume goes on from there"));
  }
  REQUIRE(steps % 75 != 0);
  CHECK(metrics_of(dir / "m").back().at("step") == steps);
  CHECK(contains(finish(dir, resume).err, str("resuming after ", steps, " of 225")));
  CHECK(same_files(dir / "b", dir / "a"));
}

TEST_CASE("checkpoint: the weights' hash is that of the seed, whatever the threads",
          "[checkpoint][app]") {
  const TempDir dir;
  const auto hash = [&](const Args& more) {
    // Batches large enough to be worth sharing among threads, and one that is not full.
    return printed_hash(
        finish(dir, job({"--device", "cpu", "--epochs", "2", "--batch-size", "128"}) + more));
  };
  const std::string one = hash({});
  CHECK(one.size() == 16);
  CHECK(hash({}) == one);
  for (const char* threads : {"2", "3"}) {
    const Result result = finish(dir, job({"--device", "cpu", "--epochs", "2", "--batch-size",
                                           "128", "--threads", threads}));
    CHECK(printed_hash(result) == one);
  }
  CHECK(hash({"--seed", "1"}) != one);
}

TEST_CASE("checkpoint: a job with other weights is refused, a longer one is not",
          "[checkpoint][app]") {
  const TempDir dir;
  const Args keep = {"--checkpoint", (dir / "c").string()};
  const Args metrics = {"--metrics", (dir / "m").string()};
  const Result first = finish(dir, job({"--device", "cpu", "--max-steps", "100"}) + keep + metrics +
                                       Args{"--resume"} + Args{"--save", (dir / "w").string()});
  CHECK(contains(first.err, "starting from the beginning"));
  const std::string checkpoint = read_file(dir / "c" / kFile), lines = read_file(dir / "m");

  struct Case {
    Args change, message;
  };
  const std::vector<Case> cases = {
      {{"--lr", "0.01"}, {"--lr 0.001", "got 0.01"}},
      {{"--batch-size", "9"}, {"--batch-size 8", "got 9"}},
      {{"--seed", "1"}, {"--seed 0", "got 1"}},
      {{"--no-shuffle"}, {"--no-shuffle off", "got on"}},
      {{"--conv-algo", "im2col"}, {"--conv-algo auto", "got im2col"}},
      {{"--tf32"}, {"--tf32 off", "got on"}},
      {{"--optimizer", "adamw"}, {"--optimizer adam", "got adamw"}},
      {{"--weight-decay", "0.1"}, {"--weight-decay 0", "got 0.1"}},
      {{"--synthetic-size", "601"}, {"--synthetic-size 600", "got 601"}},
      {{"--init", (dir / "w").string()}, {"--init none", printed_hash(first)}},
      {{"--epochs", "1"}, {"100 updates", "75", "--epochs"}},
      {{"--max-steps", "99"}, {"100 updates", "99", "--max-steps"}}};
  for (const Case& c : cases) {
    const Result result =
        run(dir, job(Args{"--device", "cpu"} + c.change) + keep + metrics + Args{"--resume"});
    INFO(result.err);
    CHECK(result.code == 2);
    CHECK(contains(result.err, (dir / "c" / kFile).string()));
    for (const std::string& part : c.message) {
      INFO("expected in it: " << part);
      CHECK(contains(result.err, part));
    }
  }
  const Result anomaly =
      run(dir, job({"--device", "cpu", "--detect-anomaly"}) + keep + metrics + Args{"--resume"});
  CHECK(anomaly.code == 2);  // it runs fused operators apart
  CHECK(contains(anomaly.err, "--detect-anomaly off, got on"));
  const Result fresh = run(dir, job({"--device", "cpu"}) + keep + metrics);
  CHECK(fresh.code == 2);  // rather than lose what was trained
  CHECK(contains(fresh.err, "--resume"));
  CHECK((read_file(dir / "c" / kFile) == checkpoint));
  CHECK(read_file(dir / "m") == lines);

  finish(dir, job({"--device", "cpu"}) +
                  Args{"--save", (dir / "a").string(), "--metrics", (dir / "a.m").string()});
  finish(dir, job({"--device", "cpu", "--weight-decay", "0"}) + keep + metrics +
                  Args{"--resume", "--save", (dir / "b").string()});
  CHECK(same_files(dir / "a", dir / "b"));
  std::vector<json> expected = metrics_of(dir / "a.m"), records = metrics_of(dir / "m");
  expected.erase(expected.begin());  // the first line names --max-steps
  records.erase(records.begin());
  CHECK(records == expected);

  for (const Args& alone : {Args{"--resume"}, Args{"--every", "3"}}) {
    const Result result = run(dir, job(alone));
    CHECK(result.code == 2);
    CHECK(contains(result.err, "--checkpoint"));
  }
}

TEST_CASE("checkpoint: a training does not go on with other images", "[checkpoint][app]") {
  const TempDir dir;
  for (const char* name : kCifar10Files) {
    write_file(dir / name, "");
    std::filesystem::resize_file(dir / name, kCifar10FileBytes);
  }
  const auto set_byte = [&](const char* name, std::streamoff at, char value) {
    std::fstream file(dir / name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at).put(value);
  };
  const auto train = [&](const std::string& steps) {
    return run(dir,
               {"train", "--device", "cpu", "--threads", "1", "--max-steps", steps, "--data-dir",
                dir.path().string(), "--checkpoint", (dir / "c").string(), "--resume"});
  };
  REQUIRE(train("1").code == 0);
  const std::string whole = read_file(dir / "c" / kFile);
  // The last pixel of the last record of training; a label. Back again each time.
  for (const auto& [name, at] : {std::pair("data_batch_5.bin", kCifar10FileBytes - 1),
                                 std::pair("data_batch_2.bin", int64_t{3073} * 5)}) {
    set_byte(name, at, 1);
    const Result other = train("2");
    INFO(other.err);
    CHECK(other.code == 2);
    CHECK(contains(other.err, "made with hash of the training images "));
    CHECK((read_file(dir / "c" / kFile) == whole));
    set_byte(name, at, 0);
  }
  const Result same = train("2");
  INFO(same.err);
  CHECK(same.code == 0);
  CHECK(!contains(same.err, "warning"));
}

TEST_CASE("checkpoint: what an old one does not say is not compared and is added",
          "[checkpoint][app]") {
  const TempDir dir;
  const Args train =
      job({"--device", "cpu", "--checkpoint", (dir / "c").string(), "--resume", "--quiet"});
  finish(dir, train + Args{"--max-steps", "5"});
  Checkpoint old = load_checkpoint(dir / "c" / kFile);
  old.metadata["hardware"] = "an abacus";
  save_checkpoint(dir / "c" / kFile, old);
  CHECK(contains(finish(dir, train + Args{"--max-steps", "6"}).err,
                 "warning: the checkpoint's hardware is an abacus, now "));
  for (const char* key : {"--detect-anomaly", "hash of the training images", "hardware"})
    CHECK(old.metadata.erase(key) == 1);
  save_checkpoint(dir / "c" / kFile, old);
  const Result first = finish(dir, train + Args{"--max-steps", "10"});
  for (const char* key : {"--detect-anomaly", "hash of the training images", "hardware"})
    CHECK(contains(first.err, str("did not record '", key, "'")));
  CHECK(finish(dir, train + Args{"--max-steps", "15"}).err.empty());
}

TEST_CASE("checkpoint: one training at a time has its folder", "[checkpoint][app]") {
  const TempDir dir, elsewhere;
  const auto train = [&](const std::string& epochs) {
    return job(
        {"--device", "cpu", "--epochs", epochs, "--checkpoint", (dir / "c").string(), "--resume"});
  };
  Process first(elsewhere, train("100000") + Args{"--metrics", (dir / "m").string()});
  wait_for_checkpoint(first, dir / "c" / kFile);
  const Result second = run(dir, train("3"));
  INFO(second.err);
  CHECK(second.code == 1);
  CHECK(contains(second.err, "in use by another training (process " + std::to_string(first.pid())));
  const Result metrics = run(dir, job({"--device", "cpu", "--metrics", (dir / "m").string()}));
  CHECK(metrics.code == 1);
  CHECK(contains(metrics.err, "another process is writing it"));
  CHECK(first.running());
  // The lock of one that was killed holds nobody up.
  first.send(SIGKILL);
  first.wait();
  const int64_t steps = std::stoll(load_checkpoint(dir / "c" / kFile).metadata.at("step"));
  finish(dir, train(std::to_string(steps / 75 + 1)));
  CHECK(std::distance(std::filesystem::directory_iterator(dir / "c"), {}) == 1);
}

TEST_CASE("checkpoint: what is not its own is not touched", "[checkpoint][app]") {
  namespace fs = std::filesystem;
  const TempDir dir;
  const auto keep = [&](const std::string& name) {
    return job({"--device", "cpu", "--max-steps", "2", "--checkpoint", (dir / name).string()});
  };
  // Other options that name one of its files, there or not yet.
  for (const char* name : {"checkpoint.safetensors", "checkpoint.safetensors.lock",
                           "checkpoint.safetensors.12.0.tmp"}) {
    for (const char* option : {"--save", "--metrics"}) {
      const Result result = run(dir, keep("new") + Args{option, (dir / "new" / name).string()});
      INFO(result.err);
      CHECK(result.code == 2);
      CHECK(contains(result.err, option));
      CHECK(contains(result.err, "--checkpoint"));
      CHECK(!fs::exists(dir / "new"));  // the folder was its own, and is empty
    }
  }
  // A user's files in the folder.
  fs::create_directory(dir / "c");
  const std::string before = "checkpoint.safetensors.";
  for (const char* name : {"best.tmp", "1.tmp", "1.2.3.tmp", "x1.2.tmp", "1.2.tmp2", ".2.tmp"})
    write_file(dir / "c" / (before + name), "kept");
  write_file(dir / "c" / (before + "17.3.tmp"), "left by one that was killed");
  finish(dir, keep("c"));
  CHECK(!fs::exists(dir / "c" / (before + "17.3.tmp")));
  CHECK(std::distance(fs::directory_iterator(dir / "c"), {}) == 7);
  // What lies in the place of its lock.
  write_file(dir / "mine", "mine");
  fs::create_directories(dir / "file");
  fs::create_directories(dir / "link");
  fs::create_directories(dir / "pipe");
  write_file(dir / "file" / (before + "lock"), "mine");
  fs::create_symlink(dir / "mine", dir / "link" / (before + "lock"));
  REQUIRE(mkfifo((dir / "pipe" / (before + "lock")).c_str(), 0600) == 0);
  for (const char* name : {"file", "link", "pipe"}) {
    const Result result = run(dir, keep(name));
    INFO(result.err);
    CHECK(result.code == 1);
    CHECK(contains(result.err, (dir / name / (before + "lock")).string()));
    CHECK(fs::symlink_status(dir / name / (before + "lock")).type() != fs::file_type::not_found);
  }
  CHECK(read_file(dir / "file" / (before + "lock")) == "mine");
  CHECK(read_file(dir / "mine") == "mine");
  // A start that fails takes back the folders it made, and only those.
  const Result failed = run(dir, {"train", "--device", "cpu", "--data-dir", (dir / "no").string(),
                                  "--checkpoint", (dir / "a" / "b").string()});
  CHECK(failed.code == 1);
  CHECK(!fs::exists(dir / "a"));
  fs::create_directory(dir / "a");
  CHECK(run(dir, {"train", "--device", "cpu", "--data-dir", (dir / "no").string(), "--checkpoint",
                  (dir / "a" / "b").string()})
            .code == 1);
  CHECK(fs::is_empty(dir / "a"));
}

TEST_CASE("checkpoint: metrics of another run are not cut and mixed", "[checkpoint][app]") {
  const TempDir dir;
  const Args train = job({"--device", "cpu", "--max-steps", "80"});
  const auto metrics = [&](const char* name) { return Args{"--metrics", (dir / name).string()}; };
  const Args resume = train + Args{"--checkpoint", (dir / "c").string(), "--resume"};
  finish(dir, resume + metrics("own") + Args{"--save", (dir / "w").string()});
  finish(dir, train + metrics("seed") + Args{"--seed", "1"});
  finish(dir, train + metrics("init") + Args{"--init", (dir / "w").string()});
  std::string lines = read_file(dir / "own");
  const size_t at = lines.find(R"("step":78,"loss":)");
  REQUIRE(at != std::string::npos);
  write_file(dir / "loss", std::string(lines).replace(at + 17, 1, "7"));
  write_file(dir / "headless", lines.substr(lines.find('\n') + 1));
  std::string escape = lines;
  escape.replace(escape.find("adam"), 4, "\\u001b[2J");
  write_file(dir / "escape", escape);
  for (const auto& [name, part] :
       {std::pair("seed", "its seed is 1, that of this one 0"), std::pair("init", "its init is \""),
        std::pair("loss", "loss of step 78"), std::pair("headless", "does not begin with"),
        std::pair("escape", R"(its optimizer is "\u001b[2J")")}) {
    const std::string before = read_file(dir / name);
    const Result result = run(dir, resume + metrics(name));
    INFO(result.err);
    CHECK(result.code == 1);
    CHECK(contains(result.err, "--metrics: " + (dir / name).string()));
    CHECK(contains(result.err, part));
    CHECK((read_file(dir / name) == before));
  }
  // The same job in other words.
  finish(dir, resume + metrics("own") + Args{"--weight-decay", "-0", "--momentum", "-0"});
}

TEST_CASE("checkpoint: a start that fails leaves metrics as they were", "[checkpoint][app]") {
  const TempDir dir;
  const Args train = job({"--device", "cpu", "--max-steps", "3"});
  finish(dir, train + Args{"--checkpoint", (dir / "c").string()});
  Checkpoint other = load_checkpoint(dir / "c" / kFile);
  other.model[0].second = zeros({1});
  save_checkpoint(dir / "c" / kFile, other);
  save_safetensors(dir / "empty", {});
  write_file(dir / "old", "of an earlier run\n");
  const Args bad_resume = {"--checkpoint", (dir / "c").string(), "--resume"};
  for (const Args& bad :
       {Args{"--init", (dir / "empty").string()}, Args{"--conv-algo", "tensor-core"}, bad_resume,
        Args{"--checkpoint", (dir / "c").string()}, Args{"--device", "cuda:99"}}) {
    for (const char* name : {"old", "new"}) {
      if (bad == bad_resume && name == std::string("old")) continue;  // it has to go on from there
      const Result result = run(dir, job(Args{"--device", "cpu", "--max-steps", "3"} + bad) +
                                         Args{"--metrics", (dir / name).string()});
      INFO(result.err);
      CHECK(result.code != 0);
      CHECK(read_file(dir / "old") == "of an earlier run\n");
      CHECK(!std::filesystem::exists(dir / "new"));
    }
  }
  const Result resumed = run(dir, train + bad_resume);
  INFO(resumed.err);
  CHECK(resumed.code == 1);
  CHECK(contains(resumed.err, "--resume: " + (dir / "c" / kFile).string() + ": load_state_dict"));
  finish(dir, train + Args{"--metrics", (dir / "old").string()});
  CHECK(metrics_of(dir / "old").size() == 5);
}

TEST_CASE("checkpoint: its text is shown without what a terminal obeys", "[checkpoint][app]") {
  const TempDir dir;
  const Args resume =
      job({"--device", "cpu", "--max-steps", "3", "--checkpoint", (dir / "c").string()}) +
      Args{"--resume"};
  finish(dir, resume);
  const Checkpoint whole = load_checkpoint(dir / "c" / kFile);
  for (const auto& [key, value] : whole.metadata) {
    Checkpoint forged = whole;
    forged.metadata[key] = "\x1b[2J";
    save_checkpoint(dir / "c" / kFile, forged);
    const Result result = run(dir, resume);
    INFO(key << ": " << result.err);
    CHECK(contains(result.err, R"(\x1b[2J)"));
    CHECK(!contains(result.err, "\x1b"));
  }
}

TEST_CASE("checkpoint: weights that diverged do not take its place", "[checkpoint][app]") {
  const TempDir dir;
  const Args train = job({"--device", "cpu", "--optimizer", "sgd", "--lr", "1e6", "--checkpoint",
                          (dir / "c").string(), "--resume"});
  finish(dir, train + Args{"--max-steps", "1"});
  const std::string good = read_file(dir / "c" / kFile);
  const Result result = run(dir, train);
  INFO(result.err);
  CHECK(result.code == 1);
  CHECK(contains(result.err, "training diverged: the loss of step "));
  CHECK((read_file(dir / "c" / kFile) == good));
}

TEST_CASE("checkpoint: pipes and links are left what they are", "[checkpoint][app]") {
  const TempDir dir;
  const Args train = job({"--device", "cpu", "--checkpoint", (dir / "c").string(), "--resume"});
  finish(dir, train + Args{"--max-steps", "3"});
  // Metrics into a pipe: nothing is read back from it.
  REQUIRE(mkfifo((dir / "pipe").c_str(), 0600) == 0);
  const Args more = {"--max-steps", "5", "--metrics", (dir / "pipe").string()};
  CHECK(run(dir, train + more).code == 1);  // nobody reads it
  const int reader = open((dir / "pipe").c_str(), O_RDONLY | O_NONBLOCK);
  REQUIRE(reader >= 0);
  finish(dir, train + more);
  std::string got(1 << 16, '\0');
  got.resize(static_cast<size_t>(std::max<ssize_t>(read(reader, got.data(), got.size()), 0)));
  close(reader);
  CHECK(contains(got, "{\"step\":4,"));
  CHECK(!contains(got, "{\"step\":3,"));
  // A checkpoint kept elsewhere.
  std::filesystem::create_directory(dir / "disk");
  std::filesystem::rename(dir / "c" / kFile, dir / "disk" / "kept");
  std::filesystem::create_symlink(dir / "disk" / "kept", dir / "c" / kFile);
  finish(dir, train + Args{"--max-steps", "7"});
  CHECK(std::filesystem::is_symlink(dir / "c" / kFile));
  CHECK(load_checkpoint(dir / "disk" / "kept").metadata.at("step") == "7");
  CHECK(std::distance(std::filesystem::directory_iterator(dir / "disk"), {}) == 1);
  // What cannot hold one.
  std::filesystem::remove(dir / "c" / kFile);
  REQUIRE(mkfifo((dir / "c" / kFile).c_str(), 0600) == 0);
  const Result pipe = run(dir, train);
  CHECK(pipe.code == 1);
  CHECK(contains(pipe.err, "--checkpoint"));
  CHECK(std::filesystem::is_fifo(dir / "c" / kFile));
}

TEST_CASE("checkpoint: resuming from a damaged one, or with other metrics, is refused",
          "[checkpoint][app]") {
  const TempDir dir;
  const Args train = job({"--device", "cpu", "--max-steps", "5"});
  const Args resume = train + Args{"--checkpoint", (dir / "c").string(), "--resume"};
  finish(dir, resume + Args{"--metrics", (dir / "m").string()});
  const std::string whole = read_file(dir / "c" / kFile), lines = read_file(dir / "m");

  const auto refused = [&](const Args& args, const std::string& part) {
    const Result result = run(dir, args);
    INFO(result.err);
    CHECK(result.code == 1);
    CHECK(contains(result.err, part));
  };
  const std::string cut = lines.substr(0, lines.find("\n{\"epoch\"") - 3);  // within step 5's line
  for (const std::string& other : {cut, cut.substr(0, cut.rfind('\n') + 1), std::string("text")}) {
    write_file(dir / "other", other);
    refused(resume + Args{"--metrics", (dir / "other").string()}, "no line of step 5");
    CHECK(read_file(dir / "other") == other);
  }
  finish(dir, resume + Args{"--metrics", (dir / "new").string()});
  CHECK(metrics_of(dir / "new").size() == 2);  // configuration and epoch
  write_file(dir / "m", lines + "{\"step\":6,\"lo");
  finish(dir, resume + Args{"--metrics", (dir / "m").string()});
  const std::string mended = read_file(dir / "m");
  CHECK(mended.substr(0, mended.find("\"seconds\"")) == lines.substr(0, lines.find("\"seconds\"")));

  Checkpoint forged = load_checkpoint(dir / "c" / kFile);
  forged.metadata["epoch"] = "9223372036854775807";
  save_checkpoint(dir / "c" / kFile, forged);
  refused(resume, "in epoch 9223372036854775807");

  std::string flipped = whole;
  flipped[whole.size() / 2] ^= 1;
  for (const std::string& damaged : {whole.substr(0, whole.size() - 1), flipped, std::string()}) {
    write_file(dir / "c" / kFile, damaged);
    refused(resume, (dir / "c" / kFile).string());
    CHECK((read_file(dir / "c" / kFile) == damaged));
  }
  save_checkpoint(dir / "c" / kFile, {{}, {}, {}, {{"step", "5"}}});
  refused(resume, "not a checkpoint of sinter train");
  refused(train + Args{"--checkpoint", (dir / "m" / "c").string()}, "cannot make the folder");
}

#endif  // SINTER_APP_PATH
