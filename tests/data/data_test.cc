#include <sinter/data.h>

#include <fstream>
#include <iterator>
#include <set>

#include "tests/support/catch.h"
#include "tests/support/temp_dir.h"
#include "tests/support/values.h"

using namespace sinter;
using sinter::test::check_throws;
using sinter::test::read_file;
using sinter::test::same_bits;
using sinter::test::TempDir;
using sinter::test::write_file;

namespace {

// A record of a CIFAR file whose byte at (channel, row, column) is 100 channel + 3 row + column.
std::string record(int label) {
  std::string bytes(1, static_cast<char>(label));
  for (int c = 0; c < 3; ++c)
    for (int h = 0; h < 32; ++h)
      for (int w = 0; w < 32; ++w) bytes += static_cast<char>(100 * c + 3 * h + w);
  return bytes;
}

// A whole file of zeros, in which record `at` carries `label`. Sparse: it takes no room on the
// disk.
void write_zeros(const std::filesystem::path& path, int64_t at, int label,
                 int64_t bytes = kCifar10FileBytes) {
  write_file(path, "");
  std::filesystem::resize_file(path, static_cast<uintmax_t>(bytes));
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(at * 3073);
  file.put(static_cast<char>(label));
  REQUIRE(file.flush());
}

void write_cifar10(const std::filesystem::path& dir) {
  std::filesystem::create_directories(dir);
  for (size_t i = 0; i < kCifar10Files.size(); ++i)
    write_zeros(dir / kCifar10Files[i], 17, static_cast<int>(i) + 1);
}

// Image i is 2 x 3 pixels in 2 channels, filled with the number i; its label is i % 10.
ImageSet numbered(int64_t n, Device device) {
  std::vector<uint8_t> images, labels;
  for (int64_t i = 0; i < n; ++i) {
    images.insert(images.end(), 12, static_cast<uint8_t>(i));
    labels.push_back(static_cast<uint8_t>(i % 10));
  }
  ImageSet set;
  set.images = from_vector(images, {n, 2, 2, 3});
  set.labels = from_vector(labels, {n});
  set.mean = {0, 0, 0, 0};
  set.std = {1, 1, 1, 1};
  return set.to(device);
}

// The numbers of the images of an epoch of `numbered`, in the order in which they come.
std::vector<int64_t> order(const Batches& batches) {
  std::vector<int64_t> seen;
  for (int64_t i = 0; i < batches.size(); ++i) {
    const Batch batch = batches.get(i);
    const std::vector<double> x = batch.x.to_vector<double>();
    const std::vector<int64_t> y = batch.y.to_vector<int64_t>();
    REQUIRE(x.size() == y.size() * 12);
    for (size_t k = 0; k < y.size(); ++k) {
      seen.push_back(static_cast<int64_t>(std::lround(x[12 * k] * 255)));
      CHECK(y[k] == seen.back() % 10);  // the label came with its image
      for (size_t j = 1; j < 12; ++j) CHECK(x[12 * k + j] == x[12 * k]);
    }
  }
  return seen;
}

std::vector<int64_t> ascending(int64_t n) {
  std::vector<int64_t> numbers(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) numbers[static_cast<size_t>(i)] = i;
  return numbers;
}

uint64_t fnv1a(const Tensor& bytes) {
  uint64_t hash = 0xCBF29CE484222325;
  for (size_t i = 0; i < bytes.bytes(); ++i)
    hash = (hash ^ bytes.data<uint8_t>()[i]) * 0x100000001B3;
  return hash;
}

}  // namespace

// ---- CIFAR-10 -----------------------------------------------------------------------------------

TEST_CASE("cifar10: the records of a file", "[data]") {
  const TempDir dir;
  write_file(dir / "f.bin", record(3) + record(9) + record(0));
  const ImageSet set = read_cifar10_file(dir / "f.bin");
  CHECK(set.size() == 3);
  CHECK(set.classes == 10);
  CHECK(set.images.shape() == Shape({3, 3, 32, 32}));
  CHECK(set.images.dtype() == kUInt8);
  CHECK(set.labels.dtype() == kUInt8);
  CHECK(set.labels.to_vector<int>() == std::vector<int>{3, 9, 0});
  const std::vector<int> pixels = set.images.to_vector<int>();
  for (int c = 0; c < 3; ++c)
    for (int h = 0; h < 32; ++h)
      for (int w = 0; w < 32; ++w)
        REQUIRE(pixels[static_cast<size_t>(3072 + (c * 32 + h) * 32 + w)] ==
                (100 * c + 3 * h + w) % 256);
}

TEST_CASE("cifar10: faulty files", "[data]") {
  const TempDir dir;
  const auto path = dir / "f.bin";
  const auto fails = [&](const std::string& bytes, std::vector<std::string> message) {
    write_file(path, bytes);
    message.push_back(path.string());
    check_throws<DataError>([&] { read_cifar10_file(path); }, message);
  };
  fails("", {"ends at byte 0", "multiple of 3073"});
  fails(record(1).substr(0, 3072), {"ends at byte 3072", "multiple of 3073"});
  fails(record(1) + "x", {"ends at byte 3074", "multiple of 3073"});
  fails(record(1) + record(10), {"byte 3073", "label 10 of record 1", "expected 0 to 9"});
  fails(record(1) + record(1) + record(255), {"byte 6146", "label 255 of record 2"});
  check_throws<DataError>([&] { read_cifar10_file(dir / "absent"); },
                          {"absent", "cannot open", "No such file"});
  check_throws<DataError>([&] { read_cifar10_file(dir.path()); }, {"expected a regular file"});
}

TEST_CASE("cifar10: a folder", "[data]") {
  const TempDir dir;
  CHECK(find_cifar10(dir.path()).empty());
  CHECK(find_cifar10(dir / "absent").empty());
  check_throws<DataError>([&] { read_cifar10(dir.path()); },
                          {dir.path().string(), "data_batch_1.bin", "cifar-10-batches-bin"});
  check_throws<DataError>([&] { read_cifar10(dir / "absent"); }, {"absent", "No such file"});

  const std::string subfolder = GENERATE(std::string(), std::string("cifar-10-batches-bin"));
  const auto folder = subfolder.empty() ? dir.path() : dir / subfolder;
  write_cifar10(folder);
  CHECK(find_cifar10(dir.path()) == folder);

  SECTION("whole") {
    const Dataset data = read_cifar10(dir.path());
    CHECK(data.name == "CIFAR-10");
    CHECK_FALSE(data.synthetic);
    CHECK(data.source == folder.string());
    REQUIRE(data.class_names.size() == 10);
    CHECK(data.class_names[0] == "airplane");
    CHECK(data.class_names[9] == "truck");
    CHECK(data.train.size() == 50000);
    CHECK(data.test.size() == 10000);
    const std::vector<int> labels = data.train.labels.to_vector<int>();
    for (size_t file = 0; file < 5; ++file)
      CHECK(labels[10000 * file + 17] == static_cast<int>(file) + 1);
    CHECK(data.test.labels.to_vector<int>()[17] == 6);
  }
  SECTION("a file too short") {
    write_zeros(folder / "data_batch_3.bin", 0, 0, kCifar10FileBytes - 1);
    check_throws<DataError>(
        [&] { read_cifar10(dir.path()); },
        {(folder / "data_batch_3.bin").string(), "ends at byte 30729999", "expected 30730000"});
  }
  SECTION("a file too long, by whole records") {
    write_zeros(folder / "test_batch.bin", 0, 0, kCifar10FileBytes + 3073);
    check_throws<DataError>([&] { read_cifar10(dir.path()); },
                            {"test_batch.bin", "ends at byte 30733073", "expected 30730000"});
  }
  SECTION("a wrong label") {
    write_zeros(folder / "data_batch_5.bin", 9999, 10);
    check_throws<DataError>([&] { read_cifar10(dir.path()); },
                            {"data_batch_5.bin", "byte 30726927", "label 10", "expected 0 to 9"});
  }
  SECTION("a file missing") {
    std::filesystem::remove(folder / "data_batch_2.bin");
    CHECK(find_cifar10(dir.path()) == folder);
    check_throws<DataError>([&] { read_cifar10(dir.path()); },
                            {(folder / "data_batch_2.bin").string(), "No such file"});
  }
}

// ---- synthetic ----------------------------------------------------------------------------------

TEST_CASE("synthetic: balanced, reproducible and told apart from CIFAR-10", "[data]") {
  const Dataset data = synthetic_dataset(1003, 200, 5);
  CHECK(data.name == kSyntheticName);
  CHECK(data.synthetic);
  CHECK(data.source == "drawn from seed 5");
  CHECK(data.class_names.size() == 10);
  CHECK(data.train.images.shape() == Shape({1003, 3, 32, 32}));
  CHECK(data.test.images.shape() == Shape({200, 3, 32, 32}));

  std::vector<int> count(10);
  const std::vector<int> labels = data.train.labels.to_vector<int>();
  for (int label : labels) ++count.at(static_cast<size_t>(label));
  for (int n : count) CHECK((n == 100 || n == 101));
  CHECK(std::set<int>(labels.begin(), labels.begin() + 64).size() == 10);  // not sorted

  const Dataset again = synthetic_dataset(1003, 200, 5);
  CHECK(same_bits(again.train.images, data.train.images));
  CHECK(same_bits(again.train.labels, data.train.labels));
  CHECK(same_bits(again.test.images, data.test.images));
  CHECK_FALSE(same_bits(synthetic_dataset(1003, 0, 6).train.images, data.train.images));
  CHECK(synthetic_dataset(0, 0).train.size() == 0);
  check_throws<ValueError>([] { synthetic_dataset(-1, 5); }, {"-1 and 5"});
  std::vector<std::pair<int64_t, int64_t>> calls;
  const auto stop = [&](int64_t done, int64_t total) {
    calls.emplace_back(done, total);
    if (done >= 1003) throw Error("enough");
  };
  CHECK_THROWS_AS(synthetic_dataset(1003, 200, 5, stop), Error);
  CHECK(calls == decltype(calls){{0, 1203}, {1000, 1203}, {1003, 1203}});
}

TEST_CASE("synthetic: the same bytes on every machine", "[data]") {
  const Dataset data = synthetic_dataset(100, 100, 0);
  CHECK(fnv1a(data.train.images) == 0xAA101E1BDAEFD235);
  CHECK(fnv1a(data.train.labels) == 0x5FCC7643F70EA207);
  CHECK(fnv1a(data.test.images) == 0xD313A6C94A4F607C);
}

TEST_CASE("synthetic: no image comes twice, neither in train nor in test", "[data]") {
  const Dataset data = synthetic_dataset(5000, 2000, 1);
  std::set<std::string> images;
  for (const ImageSet* set : {&data.train, &data.test})
    for (int64_t i = 0; i < set->size(); ++i) {
      const char* first = reinterpret_cast<const char*>(set->images.data<uint8_t>()) + 3072 * i;
      images.emplace(first, first + 3072);
    }
  CHECK(images.size() == 7000);
}

// ---- batches ------------------------------------------------------------------------------------

DEVICE_TEST("batches: each image once an epoch in another order each time", "[data]") {
  const ImageSet set = numbered(103, device);
  Batches batches(set, {.batch_size = 10, .seed = 7});
  REQUIRE(batches.size() == 11);
  CHECK(batches.get(0).x.shape() == Shape({10, 2, 2, 3}));
  CHECK(batches.get(0).x.device() == device);
  CHECK(batches.get(0).y.dtype() == kInt64);
  CHECK(batches.get(10).x.shape() == Shape({3, 2, 2, 3}));
  CHECK(batches.get(10).y.shape() == Shape({3}));

  std::set<std::vector<int64_t>> orders;
  for (uint64_t epoch = 0; epoch < 20; ++epoch) {
    batches.start_epoch(epoch);
    std::vector<int64_t> seen = order(batches);
    orders.insert(seen);
    std::sort(seen.begin(), seen.end());
    CHECK(seen == ascending(103));
  }
  CHECK(orders.size() == 20);

  SECTION("seed and epoch fix the order; it begins with epoch 0") {
    Batches same(set, {.batch_size = 10, .seed = 7});
    batches.start_epoch(0);
    CHECK(order(same) == order(batches));
    same.start_epoch(3);
    batches.start_epoch(3);
    CHECK(order(same) == order(batches));
    Batches other(set, {.batch_size = 10, .seed = 8});
    other.start_epoch(3);
    CHECK(order(other) != order(batches));
  }
  SECTION("the batch size does not change the order") {
    Batches other(set, {.batch_size = 64, .seed = 7});
    other.start_epoch(5);
    batches.start_epoch(5);
    CHECK(order(other) == order(batches));
  }
  SECTION("a copy goes its own way") {
    batches.start_epoch(1);
    const std::vector<int64_t> before = order(batches);
    Batches copy = batches;
    copy.start_epoch(2);
    CHECK(order(batches) == before);
    CHECK(order(copy) != before);
  }
  SECTION("as on the CPU") {
    Batches cpu(numbered(103, kCpu), {.batch_size = 10, .seed = 7});
    cpu.start_epoch(4);
    batches.start_epoch(4);
    for (int64_t i = 0; i < cpu.size(); ++i) {
      CHECK(same_bits(batches.get(i).x, cpu.get(i).x));
      CHECK(same_bits(batches.get(i).y, cpu.get(i).y));
    }
  }
}

DEVICE_TEST("batches: sizes", "[data]") {
  const ImageSet set = numbered(20, device);
  const auto sizes = [&](int64_t batch_size, bool drop_last) {
    const Batches batches(set, {.batch_size = batch_size, .drop_last = drop_last});
    std::vector<int64_t> result;
    for (int64_t i = 0; i < batches.size(); ++i) result.push_back(batches.get(i).y.size(0));
    return result;
  };
  using Sizes = std::vector<int64_t>;
  CHECK(sizes(8, false) == Sizes{8, 8, 4});
  CHECK(sizes(8, true) == Sizes{8, 8});
  CHECK(sizes(10, false) == Sizes{10, 10});
  CHECK(sizes(10, true) == Sizes{10, 10});
  CHECK(sizes(21, false) == Sizes{20});
  CHECK(sizes(21, true).empty());
  CHECK(sizes(1, false).size() == 20);
  CHECK(sizes(std::numeric_limits<int64_t>::max(), false) == Sizes{20});
  CHECK(Batches(numbered(0, device), {}).size() == 0);
}

DEVICE_TEST("batches: without shuffle the order of the set", "[data]") {
  Batches batches(numbered(23, device), {.batch_size = 5, .shuffle = false});
  CHECK(order(batches) == ascending(23));
  batches.start_epoch(1);
  CHECK(order(batches) == ascending(23));
}

DEVICE_TEST("batches: next goes through the epoch as get does", "[data]") {
  Batches batches(synthetic_dataset(40, 10).train.to(device), {.batch_size = 16, .seed = 2});
  batches.start_epoch(3);
  const auto equal = [](const Batch& a, const Batch& b) {
    return same_bits(a.x, b.x) && same_bits(a.y, b.y);
  };
  CHECK(equal(batches.next(), batches.get(0)));
  CHECK(equal(batches.next(), batches.get(1)));
  const Batch wrapped = batches.next();  // 8 images are left: 8 from the beginning follow
  CHECK(equal({wrapped.x.narrow(0, 0, 8), wrapped.y.narrow(0, 0, 8)}, batches.get(2)));
  CHECK(same_bits(wrapped.x.narrow(0, 8, 8), batches.get(0).x.narrow(0, 0, 8)));
  batches.seek(1);
  CHECK(equal(batches.next(), batches.get(1)));
  check_throws<ValueError>([&] { batches.seek(3); }, {"seek", "3"});
  check_throws<ValueError>([&] { batches.seek(-1); }, {"seek", "-1"});
}

DEVICE_TEST("batches: next takes as many images as it is told to", "[data]") {
  Batches batches(numbered(10, device), {.batch_size = 4, .seed = 3});
  const std::vector<int64_t> all = order(batches);
  std::vector<int64_t> expected, taken;
  for (int64_t count : {1, 5, 4, 7, 10, 23}) {
    const Batch batch = batches.next(count);
    CHECK(batch.x.size(0) == count);
    for (int64_t label : batch.y.to_vector<int64_t>()) taken.push_back(label);
    while (expected.size() < taken.size()) expected.push_back(all[expected.size() % 10]);
  }
  CHECK(taken == expected);
  CHECK(batches.next().y.size(0) == 4);
  check_throws<ValueError>([&] { batches.next(0); }, {"next", "0"});
  check_throws<ValueError>([&] { batches.next(-2); }, {"next", "-2"});
}

DEVICE_TEST("batches: a copy goes on from the same place by itself", "[data]") {
  for (bool shuffle : {true, false}) {
    const auto labels = [](const Batch& batch) { return batch.y.to_vector<int64_t>(); };
    Batches batches(numbered(12, device), {.batch_size = 4, .shuffle = shuffle, .seed = 3});
    batches.start_epoch(2);
    batches.next();
    Batches copy = batches, assigned(numbered(3, device), {});
    assigned = batches;
    const std::vector<int64_t> second = labels(batches.get(1)), third = labels(batches.get(2));
    CHECK(labels(batches.next()) == second);
    CHECK(labels(batches.next()) == third);
    CHECK(labels(copy.next()) == second);
    copy.seek(0);
    CHECK(labels(assigned.next()) == second);
    batches.start_epoch(5);
    CHECK(labels(assigned.next()) == third);
    CHECK(labels(copy.next()) == labels(assigned.get(0)));
  }
}

DEVICE_TEST("batches: pixels are scaled and then normalized by channel", "[data]") {
  ImageSet set;
  set.images = from_vector<uint8_t>({0, 51, 255, 102, 204, 0}, {1, 3, 1, 2});
  set.labels = from_vector<uint8_t>({4}, {1});
  set.mean = {0.5F, 0.25F, 0, 0};
  set.std = {0.5F, 0.25F, 2, 1};
  const Batch batch = Batches(set.to(device), {.shuffle = false, .dtype = kFloat64}).get(0);
  CHECK(batch.x.dtype() == kFloat64);
  CHECK(batch.y.to_vector<int64_t>() == std::vector<int64_t>{4});
  const std::vector<double> expected = {-1, -0.6, 3, 0.6, 0.4, 0};
  const std::vector<double> x = batch.x.to_vector<double>();
  REQUIRE(x.size() == expected.size());
  // mean and std are float32, so that 0.5 and the like are exact: only the arithmetic rounds.
  for (size_t i = 0; i < x.size(); ++i) CHECK(std::abs(x[i] - expected[i]) <= 1e-14);
}

TEST_CASE("batches: every image is as likely in every place", "[data]") {
  // 20 images over 4,000 epochs: 200 visits are expected of each place by each image.
  constexpr int64_t kN = 20, kEpochs = 4000;
  Batches batches(numbered(kN, kCpu), {.batch_size = kN});
  std::vector<double> visits(kN * kN), follows(kN * kN);
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    batches.start_epoch(epoch);
    const std::vector<double> x = batches.get(0).x.to_vector<double>();
    int64_t before = -1;
    for (int64_t place = 0; place < kN; ++place) {
      const int64_t image = std::lround(x[static_cast<size_t>(12 * place)] * 255);
      ++visits[static_cast<size_t>(place * kN + image)];
      if (before >= 0) ++follows[static_cast<size_t>(before * kN + image)];
      before = image;
    }
  }
  // Pearson's statistic has mean k and variance 2k for k degrees of freedom: 19 x 19 of the table
  // of places, and about as many as pairs of neighbours less 20 + 19. Within five deviations.
  double chi2 = 0, chi2_pairs = 0;
  const double pair = kEpochs * (kN - 1.0) / (kN * (kN - 1.0));
  for (int64_t a = 0; a < kN; ++a)
    for (int64_t b = 0; b < kN; ++b) {
      const auto k = static_cast<size_t>(a * kN + b);
      const double expected = static_cast<double>(kEpochs) / kN;
      chi2 += (visits[k] - expected) * (visits[k] - expected) / expected;
      if (a != b) chi2_pairs += (follows[k] - pair) * (follows[k] - pair) / pair;
    }
  INFO("chi2 " << chi2 << ", of pairs " << chi2_pairs);
  CHECK(std::abs(chi2 - 361) <= 5 * std::sqrt(2 * 361.0));
  CHECK(std::abs(chi2_pairs - 361) <= 5 * std::sqrt(2 * 361.0));
}

DEVICE_TEST("batches: a loop over them", "[data]") {
  Batches batches(numbered(23, device), {.batch_size = 5, .seed = 3});
  for (const uint64_t epoch : {0, 1}) {
    batches.start_epoch(epoch);
    int64_t i = 0;
    for (const auto& [x, y] : batches) {
      CHECK(same_bits(x, batches.get(i).x));
      CHECK(same_bits(y, batches.get(i).y));
      ++i;
    }
    CHECK(i == batches.size());
  }
  // Without start_epoch each loop is an epoch.
  Batches loops(numbered(23, device), {.batch_size = 5, .seed = 3});
  for (const uint64_t epoch : {0, 1, 2}) {
    Batches expected(numbered(23, device), {.batch_size = 5, .seed = 3});
    expected.start_epoch(epoch);
    int64_t i = 0;
    for (const Batch& batch : loops) CHECK(same_bits(batch.x, expected.get(i++).x));
  }
  int64_t images = 0;
  const Batches& unchanging = batches;
  for (const Batch& batch : unchanging) images += batch.y.size(0);
  CHECK(images == 23);
  for (const Batch& batch : Batches(numbered(0, device), {})) FAIL_CHECK(batch.y.shape());
  static_assert(std::input_iterator<Batches::Iterator>);
  CHECK(std::distance(batches.begin(), batches.end()) == 5);
  auto it = batches.begin();
  CHECK(same_bits((*it++).x, batches.get(0).x));
  CHECK(same_bits((*it).x, batches.get(1).x));
}

DEVICE_TEST("batches: a label that is no class is refused", "[data]") {
  ImageSet set = numbered(40, kCpu);
  set.labels.narrow(0, 17, 1).fill_(12);
  set = set.to(device);
  check_throws<ValueError>([&] { Batches(set, {}); },
                           {"labels[17] = 12, expected 0 <= label < 10"});
  set.classes = 13;
  CHECK(Batches(set, {}).size() == 1);
  set.labels.narrow(0, 39, 1).fill_(255);
  check_throws<ValueError>([&] { Batches(set, {}); }, {"labels[39] = 255", "label < 13"});
  set.classes = 256;
  CHECK(Batches(set, {}).size() == 1);
  set.classes = 0;
  check_throws<ValueError>([&] { Batches(set, {}); }, {"labels[0] = 0", "label < 0"});
}

TEST_CASE("batches: misuse", "[data]") {
  const ImageSet set = numbered(20, kCpu);
  const Batches batches(set, {.batch_size = 8});
  check_throws<ValueError>([&] { batches.get(3); }, {"batch 3, expected 0 <= i < 3"});
  check_throws<ValueError>([&] { batches.get(-1); }, {"batch -1"});
  check_throws<ValueError>([&] { Batches(set, {.batch_size = 0}); }, {"batch_size = 0"});
  check_throws<DtypeError>([&] { Batches(set, {.dtype = kInt32}); }, {"int32"});
  check_throws<ShapeError>([] { Batches(ImageSet(), {}); }, {"no images"});
  ImageSet wrong = set;
  wrong.labels = set.labels.narrow(0, 0, 19);
  check_throws<ShapeError>([&] { Batches(wrong, {}); }, {"(19,)", "(20, 2, 2, 3)"});
  wrong = set;
  wrong.images = set.images.reshape({20, 12});
  check_throws<ShapeError>([&] { Batches(wrong, {}); }, {"(N, C, H, W)", "(20, 12)"});
  wrong.images = set.images.reshape({20, 12, 1, 1});
  check_throws<ShapeError>([&] { Batches(wrong, {}); }, {"C <= 4", "(20, 12, 1, 1)"});
  wrong = set;
  wrong.labels = set.labels.to(kInt64);
  check_throws<DtypeError>([&] { Batches(wrong, {}); }, {"uint8", "int64"});
  wrong = set;
  wrong.std[1] = 0;
  check_throws<ValueError>([&] { Batches(wrong, {}); }, {"channel 1", "std > 0"});
}
