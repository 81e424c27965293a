// docs/from-pytorch.md beside the headers.
#include <sinter/sinter.h>

#include <filesystem>
#include <regex>
#include <set>

#include "tests/support/catch.h"
#include "tests/support/temp_dir.h"

namespace sinter::test {

TEST_CASE("from PyTorch: the page names what the headers have and all of it", "[docs]") {
  const std::filesystem::path root = std::filesystem::path(SINTER_GOLDEN_DIR) / "../..";
  std::set<std::string> declared;
#define SINTER_NAME(kind, name, ...) declared.insert(#name);
  SINTER_ELEMENTWISE(SINTER_NAME, SINTER_NAME, SINTER_NAME)
#undef SINTER_NAME
  const auto find = [&](const std::filesystem::path& header, const char* pattern) {
    const std::string text = read_file(header);
    const std::regex declaration(pattern);
    for (std::sregex_iterator it(text.begin(), text.end(), declaration), end; it != end; ++it)
      declared.insert((*it)[1]);
  };
  const std::filesystem::path headers = root / "core/include/sinter";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(headers)) {
    const std::string in = entry.path().parent_path().filename().string();
    const std::string file = entry.path().filename().string();
    if (in == "ops" || file == "ops.h")
      find(entry.path(),
           "\n(?:inline )?(?:[A-Z]\\w*|std::vector<Tensor>) ([a-z]\\w*)\\(const "
           "(?:Tensor|std::vector<Tensor>)&");
    if (file == "autograd.h") find(entry.path(), "\nstd::vector<Tensor> ([a-z]\\w*)\\(const");
    if (in == "nn" || file == "nn.h" || file == "optim.h")
      find(entry.path(), "\nclass (\\w+) (?:final )?: public \\w+");
  }
  REQUIRE(declared.size() >= 120);

  const std::string page = read_file(root / "docs/from-pytorch.md");
  std::set<std::string> named;
  const std::regex row("\n\\| `[^`]+` \\| `(\\w+)` \\|(?=\n)");
  for (std::sregex_iterator it(page.begin(), page.end(), row), end; it != end; ++it) {
    INFO(std::string((*it)[1]));
    CHECK(declared.count((*it)[1]) == 1);
    named.insert((*it)[1]);
  }
  // What the lines of the table are made of, and forms of what is named.
  for (const char* part : {"gelu_tanh", "add_scaled", "add_relu", "trunc_div", "floor_div",
                           "clamp_min", "clamp_max", "BatchNorm"})
    CHECK(declared.erase(part) == 1);
  for (const std::string& name : declared) {
    INFO(name);
    CHECK(named.count(name) == 1);
  }
  // What is called missing is.
  const size_t begin = page.find("\nMissing: "), end = page.find("\n\nDifferent:");
  REQUIRE((begin != std::string::npos && end != std::string::npos));
  const std::string missing = page.substr(begin, page.find(". Of `conv2d`") - begin);
  const std::regex name("`[a-zA-Z.]+\\.(\\w+)`");
  for (std::sregex_iterator it(missing.begin(), missing.end(), name), last; it != last; ++it) {
    INFO(std::string((*it)[1]));
    CHECK(declared.count((*it)[1]) == 0);
  }
}

}  // namespace sinter::test
