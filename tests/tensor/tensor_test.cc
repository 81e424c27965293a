#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "tests/support/values.h"

namespace sinter::test {

TEST_CASE("shape: sizes and indices", "[tensor]") {
  const Shape s{64, 3, 32, 31};
  CHECK(s.rank() == 4);
  CHECK(s[0] == 64);
  CHECK(s[-1] == 31);
  CHECK(s.numel() == int64_t{64} * 3 * 32 * 31);
  CHECK(s.str() == "(64, 3, 32, 31)");
  CHECK(Shape{}.str() == "()");
  CHECK(Shape{5}.str() == "(5,)");
  CHECK(Shape{}.numel() == 1);
  CHECK(Shape{3, 0, 2}.numel() == 0);
  CHECK(s == Shape(std::vector<int64_t>{64, 3, 32, 31}));
  CHECK(!(s == Shape{64, 3, 32}));
  CHECK(!(Shape{1, 2} == Shape{2, 1}));
  Shape grown;
  grown.append(7);
  grown.append(2);
  grown[-1] = 5;
  CHECK(grown == Shape{7, 5});
  CHECK(std::vector<int64_t>(s.begin(), s.end()) == std::vector<int64_t>{64, 3, 32, 31});
  check_throws<ShapeError>([&] { (void)s[4]; }, {"4", "(64, 3, 32, 31)"});
  check_throws<ShapeError>([&] { (void)s[-5]; }, {"-5", "(64, 3, 32, 31)"});
  check_throws<ShapeError>([] { Shape({1, 1, 1, 1, 1, 1, 1, 1, 1}); }, {"8"});
  Shape full{1, 1, 1, 1, 1, 1, 1, 1};
  check_throws<ShapeError>([&] { full.append(1); }, {"8"});
  // Extents whose product overflows are refused before anything is allocated.
  check_throws<Error>([] { empty({int64_t{1} << 32, int64_t{1} << 32}); }, {});
  check_throws<ShapeError>([] { empty({2, -1}); }, {"-1"});
}

TEST_CASE("dtype: names and sizes", "[tensor]") {
  CHECK(std::string(name(kFloat32)) == "float32");
  CHECK(std::string(name(kFloat64)) == "float64");
  CHECK(std::string(name(kInt32)) == "int32");
  CHECK(std::string(name(kInt64)) == "int64");
  CHECK(std::string(name(kUInt8)) == "uint8");
  CHECK(std::string(name(kBool)) == "bool");
  CHECK(size_of(kFloat32) == 4);
  CHECK(size_of(kFloat64) == 8);
  CHECK(size_of(kInt32) == 4);
  CHECK(size_of(kInt64) == 8);
  CHECK(size_of(kUInt8) == 1);
  CHECK(size_of(kBool) == 1);
  CHECK(is_floating(kFloat64));
  CHECK(!is_floating(kInt64));
  std::ostringstream out;
  out << kUInt8 << ' ' << cuda(2) << ' ' << Shape{1, 2};
  CHECK(out.str() == "uint8 cuda:2 (1, 2)");
}

TEST_CASE("device: parsing", "[tensor]") {
  CHECK(Device::parse("cpu") == kCpu);
  CHECK(Device::parse("cuda") == cuda(0));
  CHECK(Device::parse("cuda:0") == cuda(0));
  CHECK(Device::parse("cuda:13") == cuda(13));
  CHECK(Device::parse(cuda(3).str()) == cuda(3));
  CHECK(Device::parse(kCpu.str()) == kCpu);
  for (const std::string wrong :
       {"", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:1:2", "cpu ", "cpu:1",
        "cuda:99999999999999999999", "cuda: 1"})
    check_throws<ValueError>([&] { Device::parse(wrong); }, {"cpu", "cuda", wrong});
}

TEST_CASE("device: one that is absent is an error and never the CPU", "[tensor]") {
  if (!cuda_built()) {
    check_throws<DeviceError>([] { require_usable(cuda()); }, {"-DSINTER_CUDA=ON"});
    check_throws<DeviceError>([] { zeros({2}, {kFloat32, cuda()}); }, {"-DSINTER_CUDA=ON"});
    check_throws<DeviceError>([] { zeros({2}).to(cuda()); }, {"-DSINTER_CUDA=ON"});
    check_throws<DeviceError>([] { from_vector<float>({1, 2}, {2}, cuda()); }, {});
  } else {
    const int absent = cuda_device_count();
    check_throws<DeviceError>([&] { require_usable(cuda(absent)); }, {"cuda"});
    check_throws<DeviceError>([&] { zeros({2}, {kFloat32, cuda(absent)}); }, {"cuda"});
    check_throws<DeviceError>([&] { zeros({2}).to(cuda(absent)); }, {"cuda"});
  }
  check_throws<DeviceError>([] { require_usable(cuda(-1)); }, {});
  require_usable(kCpu);
}

DEVICE_TEST("tensor: making and reading", "[tensor]") {
  for (DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8}) {
    const TensorOptions options{dtype, device};
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{7}, Shape{2, 3}, Shape{1031, 3}}) {
      const Tensor t = full(shape, 3, options);
      CHECK(t.shape() == shape);
      CHECK(t.dtype() == dtype);
      CHECK(t.device() == device);
      CHECK(t.bytes() == static_cast<size_t>(shape.numel()) * size_of(dtype));
      CHECK(t.to_vector<double>() == std::vector<double>(static_cast<size_t>(shape.numel()), 3.0));
    }
    CHECK(zeros({2}, options).to_vector<int64_t>() == std::vector<int64_t>{0, 0});
    CHECK(ones({2}, options).to_vector<float>() == std::vector<float>{1, 1});
    CHECK(full({1}, 5, options).item<uint8_t>() == 5);
    CHECK(full({}, 5, options).item<double>() == 5);
    CHECK(empty({4, 0}, options).numel() == 0);
  }
  const Tensor t = from_vector(std::vector<int64_t>{1, -2, 3, int64_t{1} << 60}, {2, 2}, device);
  CHECK(t.dtype() == kInt64);
  CHECK(t.to_vector<int64_t>() == std::vector<int64_t>{1, -2, 3, int64_t{1} << 60});
  CHECK(from_vector(std::vector<uint8_t>{255}, {}, device).item<int>() == 255);
  CHECK(from_vector(std::vector<float>{}, {0}, device).to_vector<float>().empty());
}

DEVICE_TEST("tensor: of truth values", "[tensor]") {
  const std::vector<bool> some{true, false, false, true, true};
  const Tensor t = from_vector<bool>(some, {5}, device);
  CHECK(t.dtype() == kBool);
  CHECK(t.bytes() == 5);
  CHECK(t.to_vector<bool>() == some);
  CHECK(t.to_vector<double>() == std::vector<double>{1, 0, 0, 1, 1});
  CHECK(t.clone().to_vector<bool>() == some);
  CHECK(t.narrow(0, 2, 2).to_vector<bool>() == std::vector<bool>{false, true});
  CHECK(from_vector<bool>({}, {0}, device).to_vector<bool>().empty());
  const TensorOptions options{kBool, device};
  CHECK(full({2}, -0.5, options).to_vector<int>() == std::vector<int>{1, 1});
  CHECK(ones({}, options).item<bool>());
  CHECK(!zeros({}, options).item<bool>());
  CHECK(zeros({0, 3}, options).numel() == 0);
  // What is not 0 is true, a NaN and what is less than any normal number included.
  const Tensor x = from_vector<float>({0, -0.0F, 0.25F, 1e-45F, std::nanf("")}, {5}, device);
  const Tensor truth = x.to(kBool);
  CHECK(truth.dtype() == kBool);
  CHECK(truth.to_vector<int>() == std::vector<int>{0, 0, 1, 1, 1});
  CHECK(truth.to(kFloat32).to_vector<float>() == std::vector<float>{0, 0, 1, 1, 1});
  CHECK(from_vector<int64_t>({int64_t{1} << 32, 0}, {2}, device).to(kBool).to_vector<int>() ==
        std::vector<int>{1, 0});
  const Tensor to = zeros({5}, options);
  to.copy_(x);
  CHECK(to.to_vector<int>() == std::vector<int>{0, 0, 1, 1, 1});
  CHECK(permute(t.reshape({1, 5}), {1, 0}).to_vector<bool>() == some);
  check_throws<DtypeError>([&] { t.set_requires_grad(); }, {"bool"});
}

DEVICE_TEST("tensor: as truth values", "[tensor]") {
  for (const DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8}) {
    const TensorOptions options{dtype, device};
    CHECK(!zeros({}, options).item<bool>());
    CHECK(full({1, 1}, 5, options).item<bool>());
    const Tensor x = from_vector(std::vector<double>{0, 1, 200, 0}, {4}, device).to(dtype);
    CHECK(x.to_vector<bool>() == std::vector<bool>{false, true, true, false});
  }
  const double nan = std::nan("");
  CHECK(full({}, nan, {kFloat32, device}).item<bool>());  // as in PyTorch
  CHECK(full({}, -0.25, {kFloat32, device}).item<bool>());
  CHECK(full({}, 1e-45, {kFloat32, device}).item<bool>());
  CHECK(!full({}, -0.0, {kFloat64, device}).item<bool>());
  CHECK(from_vector<int64_t>({int64_t{1} << 62}, {}, device).item<bool>());
  CHECK(zeros({0}, {kFloat32, device}).to_vector<bool>().empty());
  check_throws<ShapeError>([&] { zeros({2}, {kFloat32, device}).item<bool>(); }, {"(2,)"});
  check_throws<Error>([] { Tensor().item<bool>(); }, {});
}

DEVICE_TEST("tensor: reading errors", "[tensor]") {
  const Tensor t = zeros({2, 3}, {kFloat32, device});
  check_throws<ShapeError>([&] { t.item<float>(); }, {"item", "(2, 3)"});
  check_throws<DtypeError>([&] { t.data<double>(); }, {"float32", "float64"});
  check_throws<ShapeError>([&] { from_vector<float>({1, 2, 3}, {2, 2}, device); }, {"3", "(2, 2)"});
  CHECK(t.data<float>() == t.raw());
  CHECK(t.data<const float>() == t.raw());
  const Tensor none;
  CHECK(!none.defined());
  check_throws<Error>([&] { none.item<float>(); }, {});
  check_throws<Error>([&] { none.to_vector<float>(); }, {});
  check_throws<Error>([&] { none.to(kFloat64); }, {});
  check_throws<Error>([&] { none.device(); }, {});
}

DEVICE_TEST("tensor: conversion between all dtypes", "[tensor]") {
  const std::vector<double> small = {0, 1, 2, 100, 127, 200, 255};  // every dtype holds them
  const DType all[] = {kFloat32, kFloat64, kInt32, kInt64, kUInt8};
  std::vector<double> many;
  for (int i = 0; i < 1031; ++i) many.push_back(i % 251);
  for (DType from : all)
    for (DType to : all) {
      INFO(from << " to " << to);
      CHECK(from_vector(small, {7}, device).to(from).to(to).to_vector<double>() == small);
      CHECK(from_vector(many, {1031}, device).to(from).to(to).to_vector<double>() == many);
      CHECK(from_vector(small, {7}, device).to(from).to(to).dtype() == to);
    }
  // Fractions are cut off towards zero, signs kept, float64 rounded to float32.
  const Tensor t = from_vector(std::vector<double>{-1.75, 2.5, 0.1, -0.0}, {4}, device);
  CHECK(t.to(kInt32).to_vector<int32_t>() == std::vector<int32_t>{-1, 2, 0, 0});
  CHECK(t.to(kInt64).to_vector<int64_t>() == std::vector<int64_t>{-1, 2, 0, 0});
  CHECK(t.to(kFloat32).to_vector<float>() == std::vector<float>{-1.75F, 2.5F, 0.1F, -0.0F});
  CHECK(std::signbit(t.to(kFloat32).to_vector<float>()[3]));
  const std::vector<int64_t> wide = {(int64_t{1} << 53) + 1, -5};  // float64 cannot hold the first
  CHECK(from_vector(wide, {2}, device).clone().to_vector<int64_t>() == wide);
  CHECK(t.to(kFloat64).raw() == t.raw());  // itself
  CHECK(t.to(device).raw() == t.raw());
}

DEVICE_TEST("tensor: conversion passes gradients through", "[tensor]") {
  Tensor x = tensor({{3}, {1, 2, 3}}, {kFloat32, kCpu});
  x.set_requires_grad();
  const Tensor y = x.to(device).to(kFloat64).clone() * 2.0;
  CHECK(y.dtype() == kFloat64);
  CHECK(y.device() == device);
  y.backward(tensor({{3}, {1, 10, 100}}, {kFloat64, device}));
  CHECK(x.grad().dtype() == kFloat32);
  CHECK(x.grad().device() == kCpu);
  check_close("to: gradient 0", x.grad(), {{3}, {2, 20, 200}}, 0);
  CHECK(!x.to(kInt32).requires_grad());
}

DEVICE_TEST("tensor: copies share storage and clones do not", "[tensor]") {
  Tensor a = zeros({4}, {kFloat32, device});
  Tensor b = a;
  const Tensor c = a.clone();
  const Tensor d = a.detach();
  b.fill_(2);
  CHECK(a.to_vector<double>() == std::vector<double>{2, 2, 2, 2});
  CHECK(d.to_vector<double>() == std::vector<double>{2, 2, 2, 2});
  CHECK(c.to_vector<double>() == std::vector<double>{0, 0, 0, 0});
  CHECK(!c.shares_storage());
  CHECK(a.shares_storage());
}

DEVICE_TEST("tensor: changes in place", "[tensor]") {
  Tensor t = zeros({2, 3}, {kFloat32, device});
  const uint64_t before = t.version();
  t.fill_(1.5);
  CHECK(t.to_vector<double>() == std::vector<double>(6, 1.5));
  t.copy_(from_vector(std::vector<int32_t>{1, 2, 3, 4, 5, 6}, {2, 3}));  // dtype and device differ
  CHECK(t.to_vector<double>() == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(t.version() >= before + 2);
  CHECK(t.detach().version() == t.version());
  CHECK(t.reshape({3, 2}).version() == t.version());
  check_throws<ShapeError>([&] { t.copy_(zeros({3, 2})); }, {"copy_", "(2, 3)", "(3, 2)"});
  check_throws<Error>([&] { t.copy_(Tensor()); }, {"copy_"});
  Tensor bytes = zeros({3}, {kUInt8, device});
  bytes.fill_(200);
  CHECK(bytes.to_vector<int>() == std::vector<int>{200, 200, 200});
  Tensor none = zeros({0, 3}, {kFloat32, device});
  none.fill_(1);
  none.copy_(zeros({0, 3}));
  // Rows of a view.
  t.narrow(0, 1, 1).copy_(full({1, 3}, 9, {kFloat64, kCpu}));
  CHECK(t.to_vector<double>() == std::vector<double>{1, 2, 3, 9, 9, 9});
}

CUDA_TEST("tensor: copies between host and device", "[tensor]") {
  for (DType dtype : {kFloat32, kFloat64, kInt32, kInt64, kUInt8})
    for (int64_t n : {int64_t{0}, int64_t{1}, int64_t{1027}, int64_t{3} << 20}) {
      std::vector<double> values(static_cast<size_t>(n));
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i % 253);
      const Tensor host = from_vector(values, {n}).to(dtype);
      const Tensor there = host.to(device);
      CHECK(there.device() == device);
      CHECK(same_bits(there, host));
      CHECK(same_bits(there.to(kCpu), host));
      CHECK(same_bits(there.clone(), host));
    }
}

CUDA_TEST("tensor: copies between devices", "[tensor]") {
  if (cuda_device_count() < 2) {
    WARN("one GPU only: nothing to copy between");
    return;
  }
  const Tensor x = tensor(noise({1031, 3}, 1), {kFloat32, device});
  const Tensor y = (x * 2.0).to(cuda(1)) * 0.5;
  CHECK(y.device() == cuda(1));
  CHECK(same_bits(y, x));
  CHECK(same_bits(y.to(device), x));
}

TEST_CASE("sinter.h: includes every header that is installed", "[tensor]") {
  const std::filesystem::path root = std::filesystem::path(SINTER_GOLDEN_DIR) / "../..";
  std::map<std::string, std::filesystem::path> installed;
  for (const char* room : {"core", "models"}) {
    const std::filesystem::path include = root / room / "include";
    for (const auto& entry : std::filesystem::recursive_directory_iterator(include))
      if (entry.is_regular_file()) {
        // "build.h.in" is the source of one that CMake writes.
        const auto name =
            entry.path().extension() == ".in" ? entry.path().stem() : entry.path().filename();
        const auto header = entry.path().parent_path() / name;
        installed[header.lexically_relative(include).generic_string()] = entry.path();
      }
  }
  // By itself or through others that it includes.
  std::set<std::string> included;
  std::vector<std::string> left{"sinter/sinter.h"};
  while (!left.empty()) {
    const std::string header = left.back();
    left.pop_back();
    if (!included.insert(header).second) continue;
    REQUIRE(installed.contains(header));
    std::ifstream text(installed[header]);
    const std::string before = "#include \"";
    for (std::string line; std::getline(text, line);)
      if (line.starts_with(before))
        left.push_back(line.substr(before.size(), line.find('"', before.size()) - before.size()));
  }
  for (const auto& [header, path] : installed)
    CHECK((included.contains(header) ? "" : header) == "");
  CHECK(included.size() >= 30);
}

}  // namespace sinter::test
