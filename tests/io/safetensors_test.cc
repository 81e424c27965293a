#include <sinter/safetensors.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <limits>
#include <numeric>
#include <thread>

#include "core/base/detail.h"
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

std::string little_endian(uint64_t n) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> (8 * i));
  return bytes;
}

// A file of this header and `data` bytes 0, 1, 2, …
std::string file_of(const std::string& header, size_t data = 0) {
  std::string bytes = little_endian(header.size()) + header;
  for (size_t i = 0; i < data; ++i) bytes += static_cast<char>(i);
  return bytes;
}

SafetensorsFile parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), "m.safetensors");
}

// Tensors of every dtype, a scalar, an empty one, the largest rank and an awkward name.
NamedTensors samples() {
  const auto inf = std::numeric_limits<double>::infinity();
  return {{"conv.weight", from_vector<float>({1.5F, -2, 0, 3e-39F, 1e38F, -0.0F}, {2, 3})},
          {"wide", from_vector<double>({inf, -inf, std::nan(""), 1e-310}, {4})},
          {"step", from_vector<int64_t>({std::numeric_limits<int64_t>::min()}, {})},
          {"ints", from_vector<int32_t>({1, -2, 3}, {3, 1})},
          {"bytes", from_vector<uint8_t>({0, 127, 255}, {1, 1, 1, 1, 1, 1, 1, 3})},
          {"empty", from_vector<float>({}, {3, 0, 2})},
          {"quote \" slash \\ newline \n \xC3\xA9 \xE2\x82\xAC", from_vector<float>({7}, {1})},
          {"", from_vector<uint8_t>({9}, {})}};
}

}  // namespace

TEST_CASE("safetensors: a file that becomes shorter while it is read is an error",
          "[safetensors]") {
  const TempDir dir;
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[33554432],"data_offsets":[0,33554432]}})";
  const std::string begin = file_of(header);
  bool noticed = false;
  for (int attempt = 0; attempt < 100 && !noticed; ++attempt) {
    write_file(dir / "w", begin);
    std::filesystem::resize_file(dir / "w", begin.size() + 33554432);  // a hole, quick to make
    std::atomic<bool> started = false;
    std::thread shorten([&] {
      while (!started) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::microseconds(100 * attempt));
      std::filesystem::resize_file(dir / "w", begin.size() + 5);
    });
    started = true;
    try {
      load_safetensors(dir / "w");
    } catch (const DataError& e) {
      noticed = std::string(e.what()).find("became shorter while it was read") != std::string::npos;
    }
    shorten.join();
  }
  CHECK(noticed);
}

TEST_CASE("safetensors: half precision is converted in blocks", "[safetensors]") {
  constexpr int64_t kCount = 3 * 65536 + 7;
  std::string bytes =
      file_of(R"({"h":{"dtype":"F16","shape":[196615],"data_offsets":[0,393230]}})");
  for (int64_t i = 0; i < kCount; ++i) {
    const auto half = static_cast<uint16_t>(i % 2048 + 1024);  // that many times 2^-24
    bytes += {static_cast<char>(half & 255), static_cast<char>(half >> 8)};
  }
  const TempDir dir;
  write_file(dir / "h", bytes);
  for (const SafetensorsFile& file : {parse(bytes), load_safetensors(dir / "h")}) {
    const std::vector<double> values = file.tensors.at(0).second.to_vector<double>();
    REQUIRE(values.size() == kCount);
    int64_t wrong = 0;
    for (int64_t i = 0; i < kCount; ++i) {
      const int64_t half = i % 2048 + 1024;  // exponents 1 and 2
      const double expected =
          half < 2048 ? half * 0x1p-24 : (1024 + half % 1024) * (half < 3072 ? 0x1p-23 : 0x1p-22);
      wrong += values[static_cast<size_t>(i)] != expected;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("safetensors: what is saved is what is loaded", "[safetensors]") {
  const TempDir dir;
  const NamedTensors saved = samples();
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"", "\"quoted\"\n"}};
  save_safetensors(dir / "m.safetensors", saved, metadata);
  const SafetensorsFile loaded = load_safetensors(dir / "m.safetensors");
  CHECK(loaded.metadata == metadata);
  REQUIRE(loaded.tensors.size() == saved.size());
  for (const auto& [name, tensor] : saved) {
    INFO(name);
    const auto it = std::find_if(loaded.tensors.begin(), loaded.tensors.end(),
                                 [&, &wanted = name](const auto& t) { return t.first == wanted; });
    REQUIRE(it != loaded.tensors.end());
    CHECK(same_bits(it->second, tensor));
    CHECK(it->second.device() == kCpu);
  }
  CHECK(dir.entries() == 1);  // no temporary file is left

  SECTION("tensors follow each other from the widest element to the narrowest, aligned") {
    const std::string bytes = read_file(dir / "m.safetensors");
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), 8);
    CHECK(header % 8 == 0);
    std::vector<std::string> names;
    for (const auto& [name, tensor] : loaded.tensors) names.push_back(name);
    const std::vector<std::string> expected = {
        "step", "wide", "conv.weight", "empty", saved[6].first, "ints", "", "bytes"};
    // An empty tensor shares its offset with the next one, so these two have no order.
    CHECK(std::is_permutation(names.begin(), names.end(), expected.begin(), expected.end()));
    CHECK(names.front() == "step");
    CHECK(names.back() == "bytes");
  }
  SECTION("the same tensors in another order give the same bytes") {
    save_safetensors(dir / "again.safetensors", {saved.rbegin(), saved.rend()}, metadata);
    CHECK(read_file(dir / "again.safetensors") == read_file(dir / "m.safetensors"));
  }
  SECTION("nothing but a header") {
    save_safetensors(dir / "none.safetensors", {});
    const SafetensorsFile none = load_safetensors(dir / "none.safetensors");
    CHECK(none.tensors.empty());
    CHECK(none.metadata.empty());
  }
}

TEST_CASE("safetensors: the reference implementation's bytes", "[safetensors]") {
  // Recorded from the Python package, version 0.8.0:
  //   safetensors.numpy.save({"b": float32 [[1, 2]], "a": uint8 [5, 6, 7], "n": int64 -1 (scalar)},
  //                          metadata={"k": "v"})
  const std::string recorded =
      little_endian(192) +
      R"({"__metadata__":{"k":"v"},)"
      R"("n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},)"
      R"("a":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}    )" +
      std::string("\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x80\x3f\x00\x00\x00\x40\x05\x06\x07",
                  19);
  const NamedTensors tensors = {{"b", from_vector<float>({1, 2}, {1, 2})},
                                {"a", from_vector<uint8_t>({5, 6, 7}, {3})},
                                {"n", from_vector<int64_t>({-1}, {})}};
  const TempDir dir;
  save_safetensors(dir / "m", tensors, {{"k", "v"}});
  CHECK(read_file(dir / "m") == recorded);
  const SafetensorsFile loaded = parse(recorded);
  REQUIRE(loaded.tensors.size() == 3);
  CHECK(loaded.tensors[0].first == "n");
  CHECK(loaded.tensors[1].first == "b");
  CHECK(loaded.tensors[2].first == "a");
  CHECK(same_bits(loaded.tensors[0].second, tensors[2].second));
  CHECK(same_bits(loaded.tensors[1].second, tensors[0].second));
  CHECK(same_bits(loaded.tensors[2].second, tensors[1].second));
}

TEST_CASE("safetensors: valid files that look odd", "[safetensors]") {
  CHECK(parse(file_of("{}")).tensors.empty());
  CHECK(parse(file_of("{}      ")).tensors.empty());
  CHECK(parse(file_of(R"({"__metadata__":{}})")).metadata.empty());
  SECTION("offsets in another order than the names, not aligned") {
    const SafetensorsFile f =
        parse(file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},)"
                      R"("b":{"data_offsets":[0,1],"shape":[],"dtype":"U8"}})",
                      5));
    REQUIRE(f.tensors.size() == 2);
    CHECK(f.tensors[0].first == "b");
    CHECK(f.tensors[0].second.item<int>() == 0);
    float expected = 0;
    std::memcpy(&expected, "\1\2\3\4", 4);
    CHECK(f.tensors[1].second.item<float>() == expected);
  }
  SECTION("empty tensors anywhere") {
    const SafetensorsFile f =
        parse(file_of(R"({"a":{"dtype":"F64","shape":[0],"data_offsets":[0,0]},)"
                      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                      R"("c":{"dtype":"U8","shape":[4,0],"data_offsets":[2,2]}})",
                      2));
    REQUIRE(f.tensors.size() == 3);
    CHECK(f.tensors[2].second.shape() == Shape({4, 0}));
  }
  SECTION("a name repeated on another level is no duplicate") {
    CHECK(parse(file_of(R"({"__metadata__":{"dtype":"x"},)"
                        R"("dtype":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                        1))
              .tensors.size() == 1);
  }
}

TEST_CASE("safetensors: half precision becomes float32 of the same value", "[safetensors]") {
  // Every one of them, at an odd address.
  std::string halves = "x";
  for (int i = 0; i < 1 << 16; ++i) halves += {static_cast<char>(i), static_cast<char>(i >> 8)};
  const auto read = [&](const std::string& dtype) {
    const SafetensorsFile f =
        parse(file_of(R"({"b":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
                      R"("w":{"dtype":")" +
                      dtype + R"(","shape":[256,256],"data_offsets":[1,131073]}})") +
              halves);
    REQUIRE(f.tensors.size() == 2);
    const Tensor& w = f.tensors[1].second;
    CHECK(w.dtype() == kFloat32);
    CHECK(w.shape() == Shape{256, 256});
    return std::vector<float>(w.data<const float>(), w.data<const float>() + w.numel());
  };
  const auto wrong = [](const std::vector<float>& values, int exponent_bits) {
    const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int count = 0;
    for (int i = 0; i < 1 << 16; ++i) {
      const double sign = i >> 15 != 0 ? -1 : 1;
      const int exponent = i >> mantissa_bits & ((1 << exponent_bits) - 1);
      const double mantissa = (i & ((1 << mantissa_bits) - 1)) * std::exp2(-mantissa_bits);
      const float value = values[static_cast<size_t>(i)];
      if (exponent == (1 << exponent_bits) - 1 && mantissa > 0) {
        count += !std::isnan(value);
        continue;
      }
      const double expected =
          sign * (exponent == (1 << exponent_bits) - 1 ? std::numeric_limits<double>::infinity()
                  : exponent > 0                       ? std::ldexp(1 + mantissa, exponent - bias)
                                                       : std::ldexp(mantissa, 1 - bias));
      count += !(value == expected && std::signbit(value) == std::signbit(expected));
    }
    return count;
  };
  const std::vector<float> half = read("F16"), bfloat = read("BF16");
  CHECK(wrong(half, 5) == 0);
  CHECK(wrong(bfloat, 8) == 0);
  CHECK(half[0x3C01] == 1 + 0x1p-10F);
  CHECK(half[0x0001] == 0x1p-24F);
  CHECK(half[0xFBFF] == -65504);
  CHECK(bfloat[0x3F81] == 1 + 0x1p-7F);
  CHECK(std::bit_cast<uint32_t>(half[0x7C01]) == 0x7F802000);  // NaNs keep their bits
  CHECK(std::bit_cast<uint32_t>(bfloat[0xFF81]) == 0xFF810000);
}

TEST_CASE("safetensors: what is converted on the way in", "[safetensors]") {
  const SafetensorsFile f =
      parse(file_of(R"({"truth":{"dtype":"BOOL","shape":[2,2],"data_offsets":[0,4]},)"
                    R"("none":{"dtype":"BOOL","shape":[0],"data_offsets":[4,4]},)"
                    R"("half":{"dtype":"F16","shape":[],"data_offsets":[4,6]},)"
                    R"("no half":{"dtype":"F16","shape":[3,0],"data_offsets":[6,6]}})") +
            std::string("\0\1\2\xFF\0\xC0", 6));
  REQUIRE(f.tensors.size() == 4);
  for (const auto& [name, tensor] : f.tensors) {
    INFO(name);
    if (name == "truth") {
      CHECK(tensor.dtype() == kBool);
      CHECK(tensor.shape() == Shape{2, 2});
      CHECK(tensor.to_vector<int>() == std::vector<int>{0, 1, 1, 1});
    } else if (name == "none") {
      CHECK(tensor.dtype() == kBool);
      CHECK(tensor.shape() == Shape{0});
    } else if (name == "half") {
      CHECK(tensor.item<float>() == -2);
    } else {
      CHECK(tensor.dtype() == kFloat32);
      CHECK(tensor.shape() == Shape{3, 0});
    }
  }
}

TEST_CASE("safetensors: the reference implementation's half precision and booleans",
          "[safetensors]") {
  // Recorded from the Python package, version 0.8.0, safetensors.torch.save of
  //   {"h": float16 [1.5, -0.1, 6e-8], "b": bfloat16 [[3.140625]], "t": bool [True, False]}
  const std::string recorded = little_endian(168) +
                               R"({"b":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]},)"
                               R"("h":{"dtype":"F16","shape":[3],"data_offsets":[2,8]},)"
                               R"("t":{"dtype":"BOOL","shape":[2],"data_offsets":[8,10]}}   )" +
                               std::string("\x49\x40\x00\x3e\x66\xae\x01\x00\x01\x00", 10);
  const SafetensorsFile f = parse(recorded);
  REQUIRE(f.tensors.size() == 3);
  const auto values = [&](const std::string& wanted) {
    for (const auto& [name, tensor] : f.tensors)
      if (name == wanted) return tensor.to_vector<double>();
    return std::vector<double>();
  };
  CHECK(values("h") == std::vector<double>{1.5, -0.0999755859375, 0x1p-24});
  CHECK(values("b") == std::vector<double>{3.140625});
  CHECK(values("t") == std::vector<double>{1, 0});
}

TEST_CASE("safetensors: booleans are written", "[safetensors]") {
  const TempDir dir;
  const auto path = dir.path() / "b.safetensors";
  save_safetensors(path, {{"t", from_vector<bool>({true, false, true}, {3})},
                          {"b", from_vector<uint8_t>({7}, {1})}});
  const SafetensorsFile f = load_safetensors(path);
  REQUIRE(f.tensors.size() == 2);
  CHECK(f.tensors[0].second.dtype() == kUInt8);
  CHECK(f.tensors[1].second.dtype() == kBool);
  CHECK(f.tensors[1].second.to_vector<bool>() == std::vector<bool>{true, false, true});
}

TEST_CASE("safetensors: many tensors take time in proportion", "[safetensors]") {
  const TempDir dir;
  // Seconds of this process's, the least of three tries.
  const auto seconds = [](auto&& f) {
    double least = 1e9;
    for (int i = 0; i < 3; ++i) {
      const std::clock_t begin = std::clock();
      f();
      least = std::min(least, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
    }
    return least;
  };
  const auto times = [&](int count) {
    NamedTensors state;
    for (int i = 0; i < count; ++i) state.emplace_back(str("layer.", i, ".weight"), zeros({0}));
    const std::filesystem::path file = dir / str(count);
    SafetensorsFile loaded;
    return std::vector<double>{seconds([&] { save_safetensors(file, state); }),
                               seconds([&] { loaded = load_safetensors(file); }),
                               seconds([&] { copy_state("load", state, loaded.tensors); }),
                               seconds([&] { state_hash(state); })};
  };
  const std::vector<double> few = times(1000), many = times(32'000);
  for (size_t i = 0; i < few.size(); ++i) {
    INFO("step " << i << ": " << few[i] << " s, then " << many[i] << " s");
    // In proportion, 32 times; in proportion to the square, 1,024 times.
    CHECK(many[i] <= 150 * std::max(few[i], 1e-3));
  }
}

TEST_CASE("safetensors: malformed files", "[safetensors]") {
  struct Case {
    std::string what, bytes;
    std::vector<std::string> message;
  };
  // An entry "w", otherwise whole, of 4 bytes.
  const auto with = [](const std::string& dtype, const std::string& shape,
                       const std::string& offsets, size_t data = 4) {
    return file_of(R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" +
                       offsets + "}}",
                   data);
  };
  const auto two = [](const std::string& a, const std::string& b, size_t data) {
    return file_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":)" + a +
                       R"(},"b":{"dtype":"U8","shape":[2],"data_offsets":)" + b + "}}",
                   data);
  };
  const std::string whole = with(R"("F32")", "[1]", "[0,4]");
  REQUIRE(parse(whole).tensors.size() == 1);

  std::string deep = R"({"w":)";
  for (int i = 0; i < 100000; ++i) deep += '[';
  const std::vector<Case> cases = {
      {"empty file", "", {"0 bytes, expected at least 8"}},
      {"half a length", whole.substr(0, 5), {"5 bytes, expected at least 8"}},
      {"a length only", whole.substr(0, 8), {"only 0 bytes follow", "truncated"}},
      {"half a header", whole.substr(0, 20), {"only 12 bytes follow", "truncated"}},
      {"half the data", whole.substr(0, whole.size() - 2), {"\"w\"", "end <= 2"}},
      {"data left over", whole + "x", {"end at offset 4, expected 5"}},
      {"header too long", little_endian(100'000'001) + "{}", {"100000001", "at most 100000000"}},
      {"header length of 2^64 - 1", little_endian(~uint64_t{0}) + "{}", {"18446744073709551615"}},
      {"empty header", file_of(""), {"begin with '{'"}},
      {"leading space", file_of(" {}"), {"begin with '{'"}},
      {"leading byte order mark", file_of("\xEF\xBB\xBF{}"), {"begin with '{'"}},
      {"a list for a header", file_of("[]"), {"begin with '{'"}},
      {"no JSON", file_of("{w"), {"header: ", "parse error"}},
      {"JSON cut off", file_of(R"({"w":{"dtype")"), {"parse error"}},
      {"text after the JSON", file_of("{} x"), {"parse error"}},
      {"a comment", file_of("{/**/}"), {"parse error"}},
      {"NUL after the JSON", file_of(std::string("{}\0x", 4)), {"NUL at byte 10"}},
      {"not UTF-8", file_of("{\"\xFF\":{}}"), {"parse error", "UTF-8", R"(\xff)"}},
      {"number beyond double", with(R"("F32")", "[1e999]", "[0,4]"), {"header: ", "1e999"}},
      {"nested lists", file_of(deep), {"nested"}},
      {"nested objects", file_of(R"({"w":{"dtype":{}}})"), {"nested deeper"}},
      {"list in a list", with(R"("F32")", "[[1]]", "[0,4]"), {"nested deeper"}},
      {"duplicate tensor",
       file_of(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
               R"("w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
               1),
       {"duplicate key \"w\""}},
      {"duplicate by an escape", file_of(R"({"w":{},"\u0077":{}})"), {"duplicate key \"w\""}},
      {"duplicate field",
       file_of(R"({"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
       {"duplicate key \"dtype\""}},
      {"duplicate metadata", file_of(R"({"__metadata__":{"a":"1","a":"2"}})"), {"duplicate key"}},
      {"metadata twice",
       file_of(R"({"__metadata__":{},"__metadata__":{}})"),
       {"duplicate key \"__metadata__\""}},
      {"metadata no object", file_of(R"({"__metadata__":"pt"})"), {"__metadata__", "got string"}},
      {"metadata not strings",
       file_of(R"({"__metadata__":{"epoch":3}})"),
       {"__metadata__", "\"epoch\"", "got number"}},
      {"entry no object", file_of(R"({"w":[1]})"), {"\"w\"", "expected an object, got array"}},
      {"unknown field",
       file_of(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}})", 1),
       {"\"w\"", "unexpected field \"strides\""}},
      {"no dtype", file_of(R"({"w":{"shape":[1],"data_offsets":[0,1]}})", 1), {"no dtype"}},
      {"no shape", file_of(R"({"w":{"dtype":"U8","data_offsets":[0,1]}})", 1), {"no shape"}},
      {"no offsets", file_of(R"({"w":{"dtype":"U8","shape":[1]}})", 1), {"no data_offsets"}},
      {"int8", with(R"("I8")", "[4]", "[0,4]"), {"\"w\"", "\"I8\"", "BF16, I64"}},
      {"int16", with(R"("I16")", "[2]", "[0,4]"), {"\"w\"", "\"I16\"", "BF16, I64"}},
      {"uint16", with(R"("U16")", "[2]", "[0,4]"), {"\"w\"", "\"U16\"", "BF16, I64"}},
      {"uint32", with(R"("U32")", "[1]", "[0,4]"), {"\"w\"", "\"U32\"", "BF16, I64"}},
      {"uint64", with(R"("U64")", "[0]", "[0,0]", 0), {"\"w\"", "\"U64\"", "BF16, I64"}},
      {"float8", with(R"("F8_E4M3")", "[4]", "[0,4]"), {"\"w\"", "\"F8_E4M3\"", "U8 or BOOL"}},
      {"half as wide as float",
       with(R"("F16")", "[1]", "[0,4]"),
       {"span 4 bytes", "expected 2 for F16"}},
      {"half whose floats overflow",
       with(R"("F16")", "[0,4611686018427387904]", "[0,0]", 0),
       {"overflows"}},
      {"dtype in lower case", with(R"("f32")", "[1]", "[0,4]"), {"\"f32\""}},
      {"dtype a number", with("32", "[1]", "[0,4]"), {"dtype: expected a string, got number"}},
      {"control characters in a name",
       file_of(R"({"\u001b[31m":{"dtype":"\u0007"}})"),
       {R"("\x1b[31m")", R"("\x07")"}},
      {"shape no list", with(R"("F32")", "1", "[0,4]"), {"shape: expected a list, got number"}},
      {"negative extent", with(R"("F32")", "[-1]", "[0,4]"), {"shape: expected integers", "-1"}},
      {"fractional extent", with(R"("F32")", "[1.0]", "[0,4]"), {"integers >= 0", "1.0"}},
      {"extent a string", with(R"("F32")", R"(["1"])", "[0,4]"), {"integers >= 0", "string"}},
      {"extent beyond uint64",
       with(R"("F32")", "[18446744073709551616]", "[0,4]"),
       {"integers >= 0 below 2^64"}},
      {"extent beyond int64", with(R"("U8")", "[9223372036854775808]", "[0,4]"), {"overflows"}},
      {"product overflows to 0",
       with(R"("U8")", "[4294967296,4294967296]", "[0,0]", 0),
       {"[4294967296,4294967296] overflows"}},
      {"product overflows in bytes only",
       with(R"("F64")", "[2305843009213693952]", "[0,0]", 0),
       {"overflows"}},
      {"strides overflow behind a 0",
       with(R"("U8")", "[0,4294967296,4294967296]", "[0,0]", 0),
       {"overflows"}},
      {"rank 9", with(R"("F32")", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), {"more than 8"}},
      {"offsets no list", with(R"("F32")", "[1]", "4"), {"data_offsets: expected a list"}},
      {"one offset", with(R"("F32")", "[1]", "[0]"), {"expected 2 numbers, got 1"}},
      {"three offsets", with(R"("F32")", "[1]", "[0,4,4]"), {"expected 2 numbers, got 3"}},
      {"negative offset", with(R"("F32")", "[1]", "[-4,0]"), {"data_offsets", "-4"}},
      {"begin after end", with(R"("F32")", "[1]", "[4,0]"), {"[4,0], expected begin <= end"}},
      {"end beyond the file", with(R"("F32")", "[2]", "[0,8]"), {"[0,8]", "end <= 4"}},
      {"far beyond the file",
       with(R"("U8")", "[1]", "[18446744073709551614,18446744073709551615]"),
       {"expected begin <= end <= 4"}},
      {"fewer bytes than the shape", with(R"("F32")", "[2]", "[0,4]"), {"span 4", "expected 8"}},
      {"more bytes than the shape", with(R"("U8")", "[3]", "[0,4]"), {"span 4", "expected 3"}},
      {"overlap", two("[0,2]", "[1,3]", 3), {"\"b\" begins at offset 1, expected 2", "overlap"}},
      {"same bytes twice", two("[0,2]", "[0,2]", 2), {"\"b\" begins at offset 0", "overlap"}},
      {"gap", two("[0,2]", "[3,5]", 5), {"\"b\" begins at offset 3, expected 2", "gap"}},
      {"gap at the front", two("[1,3]", "[3,5]", 5), {"\"a\" begins at offset 1", "gap"}},
      {"gap at the end", two("[0,2]", "[2,4]", 5), {"end at offset 4, expected 5"}},
      {"data of no tensor", file_of("{}", 1), {"end at offset 0, expected 1"}},
  };
  for (const Case& c : cases) {
    INFO(c.what);
    std::vector<std::string> message = c.message;
    message.emplace_back("m.safetensors: ");
    check_throws<DataError>([&] { parse(c.bytes); }, message);
  }
  SECTION("no prefix and no changed byte of a file does harm") {
    for (size_t n = 0; n < whole.size(); ++n) CHECK_THROWS_AS(parse(whole.substr(0, n)), DataError);
    for (size_t i = 0; i < whole.size(); ++i)
      for (int bit = 0; bit < 8; ++bit) {
        std::string changed = whole;
        changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
        try {
          parse(changed);  // a changed value or name is still a file
        } catch (const DataError&) {
        }
      }
  }
}

TEST_CASE("safetensors: files that cannot be read or written", "[safetensors]") {
  const TempDir dir;
  const NamedTensors one = {{"w", ones({2})}};
  check_throws<DataError>([&] { load_safetensors(dir / "absent"); },
                          {(dir / "absent").string(), "cannot open", "No such file"});
  check_throws<DataError>([&] { load_safetensors(dir.path()); },
                          {dir.path().string(), "regular file"});
  check_throws<DataError>([&] { save_safetensors(dir / "no" / "m", one); },
                          {"cannot create", "No such file"});
  std::filesystem::create_directory(dir / "folder");
  check_throws<DataError>([&] { save_safetensors(dir / "folder", one); },
                          {(dir / "folder").string(), "directory"});
  CHECK(dir.entries() == 1);  // nor is a temporary file left

  SECTION("a name twice") {
    check_throws<ValueError>(
        [&] {
          save_safetensors(dir / "m", {one[0], one[0]});
        },
        {"duplicate name \"w\""});
  }
  SECTION("the metadata's name") {
    check_throws<ValueError>(
        [&] {
          save_safetensors(dir / "m", {{"__metadata__", one[0].second}});
        },
        {"__metadata__"});
  }
  SECTION("an undefined tensor") {
    check_throws<ValueError>(
        [&] {
          save_safetensors(dir / "m", {{"w", Tensor()}});
        },
        {"\"w\"", "undefined"});
  }
  SECTION("a name that is not UTF-8") {
    check_throws<ValueError>(
        [&] {
          save_safetensors(dir / "m", {{"\xFF", one[0].second}});
        },
        {"UTF-8"});
  }
  SECTION("a disk that fills up leaves the old file and nothing else") {
    save_safetensors(dir / "m", one);
    const std::string before = read_file(dir / "m");
    rlimit limit{}, old{};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
    limit = old;
    limit.rlim_cur = 4096;
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);  // write() then fails with EFBIG
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    std::string message = "nothing was thrown";
    try {
      save_safetensors(dir / "m", {{"w", zeros({10000})}});
    } catch (const DataError& e) {
      message = e.what();
    }
    setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, handler);
    INFO(message);
    CHECK(message.find("cannot write: File too large") != std::string::npos);
    CHECK(read_file(dir / "m") == before);
    CHECK(dir.entries() == 2);
  }
  SECTION("the umask decides who may read") {
    const mode_t old = umask(027);
    save_safetensors(dir / "m", one);
    umask(old);
    struct stat status {};
    REQUIRE(stat((dir / "m").c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0640);
  }
}

DEVICE_TEST("safetensors: a model's weights", "[safetensors]") {
  const TempDir dir;
  manual_seed(1);
  Linear saved(3, 2), loaded(3, 2);
  saved.to(device);
  save_safetensors(dir / "m", saved.state_dict());
  loaded.load_state_dict(load_safetensors(dir / "m").tensors);
  CHECK(same_bits(loaded.weight, saved.weight));
  CHECK(same_bits(loaded.bias, saved.bias));
}
