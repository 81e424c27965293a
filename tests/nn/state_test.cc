// copy_state: values from one state into another, by name.
#include <numeric>

#include "core/base/detail.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

NamedTensors named(const std::vector<std::string>& names, const Shape& shape = {2},
                   TensorOptions options = {}) {
  NamedTensors state;
  for (const std::string& name : names)
    state.emplace_back(name, full(shape, static_cast<double>(state.size() + 1), options));
  return state;
}

std::vector<double> values(const NamedTensors& state) {
  std::vector<double> all;
  for (const auto& [name, tensor] : state)
    for (const double value : tensor.to_vector<double>()) all.push_back(value);
  return all;
}

using Names = std::vector<std::string>;
using Values = std::vector<double>;

}  // namespace

DEVICE_TEST("copy_state: by name whatever the order dtype and device", "[state]") {
  const NamedTensors to = named({"a", "b", "c"}, {1}, {kFloat32, device});
  const StateKeys keys = copy_state("load", to, named({"c", "a", "b"}, {1}, {kFloat64, kCpu}));
  CHECK(keys.missing.empty());
  CHECK(keys.unexpected.empty());
  CHECK(values(to) == Values{2, 3, 1});
  CHECK(to[0].second.dtype() == kFloat32);
  CHECK(to[0].second.device() == device);
  // A target may hold one name several times: tied weights.
  const NamedTensors tied = named({"a", "a"}, {1}, {kFloat32, device});
  copy_state("load", tied, {{"a", full({1}, 7)}});
  CHECK(values(tied) == Values{7, 7});
  copy_state("load", {}, {});
}

TEST_CASE("copy_state: what does not fit changes nothing", "[state]") {
  const NamedTensors to = named({"a", "b"});
  const auto refuses = [&](const NamedTensors& from, bool strict, const Names& parts) {
    check_throws<Error>([&] { copy_state("load", to, from, strict); }, parts);
    CHECK(values(to) == Values{1, 1, 2, 2});
  };
  refuses(named({"a"}), true, {R"(load: missing keys: "b"; unexpected keys: none)"});
  refuses(named({"z", "a", "b", "y"}), true,
          {R"(load: missing keys: none; unexpected keys: "z", "y")"});
  refuses(named({"c"}), true, {R"(missing keys: "a", "b"; unexpected keys: "c")"});
  for (const bool strict : {true, false}) {
    refuses(named({"a", "b", "a"}), strict, {R"(given more than once: "a")"});
    refuses(named({"a", "b"}, {3}), strict, {R"(expected "a" of shape (2,), got (3,))"});
    refuses({{"a", zeros({2})}, {"b", zeros({2, 1})}}, strict, {R"("b" of shape (2,))", "(2, 1)"});
    refuses({{"a", zeros({2})}, {"b", Tensor()}}, strict, {R"("b" is an undefined tensor)"});
  }
  check_throws<ValueError>([&] { copy_state("load", to, {}); }, {});
  check_throws<ShapeError>([&] { copy_state("load", to, named({"a", "b"}, {1})); }, {});
}

TEST_CASE("copy_state: not strict it says what the states do not share", "[state]") {
  const NamedTensors to = named({"a", "b", "c", "d"}, {1});
  const StateKeys keys = copy_state("load", to, named({"z", "d", "y", "b"}, {1}), false);
  CHECK(keys.missing == Names{"a", "c"});
  CHECK(keys.unexpected == Names{"z", "y"});
  CHECK(values(to) == Values{1, 4, 3, 2});
  CHECK(copy_state("load", to, {}, false).missing == Names{"a", "b", "c", "d"});
  CHECK(values(to) == Values{1, 4, 3, 2});
}

TEST_CASE("copy_state: messages are short and harmless whatever the names", "[state]") {
  Names names = {"\x1b[31mred\n", std::string(5000, 'x')};
  for (int i = 0; i < 40'000; ++i) names.push_back(str("layer.", i));
  const NamedTensors none, many = named(names, {0});
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const ValueError& e) {
      return e.what();
    }
    return "nothing was thrown";
  };
  for (const std::string& text : {message([&] { copy_state("load", none, many); }),
                                  message([&] { copy_state("load", many, none); })}) {
    INFO(text);
    CHECK(text.size() < 400);
    CHECK(text.find(R"("\x1b[31mred\x0a")") != std::string::npos);
    CHECK(text.find(R"("layer.7", … and 39992 more)") != std::string::npos);
    CHECK(text.find("layer.8") == std::string::npos);
  }
  const NamedTensors awkward = named({names[0]});
  check_throws<ShapeError>(
      [&] {
        copy_state("load", awkward, {{names[0], zeros({3})}});
      },
      {R"("\x1b[31mred\x0a")"});
  CHECK(message([&] {
          copy_state("load", many, {{names[0], zeros({0})}, {names[0], zeros({0})}}, false);
        }).find(R"(more than once: "\x1b[31mred\x0a")") != std::string::npos);
}

}  // namespace sinter::test
