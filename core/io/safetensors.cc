#include "sinter/safetensors.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <tuple>

#include "core/base/detail.h"
#include "core/io/file.h"

namespace sinter {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian and tensors are copied byte by byte");

namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr const char* kMetadata = "__metadata__";

// Copies what nothing aligns: n elements as they are in the file, to those of a tensor.
using Convert = void (*)(const std::byte* from, int64_t n, void* to);

template <class From, class To, To (*convert)(From)>
void each(const std::byte* from, int64_t n, void* to) {
  for (int64_t i = 0; i < n; ++i) {
    From stored;
    std::memcpy(&stored, from + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    const To value = convert(stored);
    std::memcpy(static_cast<std::byte*>(to) + i * static_cast<int64_t>(sizeof(To)), &value,
                sizeof(To));
  }
}

// The bits of the float of the same value: half precision is 1 bit of sign, 5 of exponent (bias 15)
// and 10 of mantissa. As bits, so that a NaN keeps its own.
uint32_t half_bits(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31, exponent = half >> 10 & 31;
  const uint32_t mantissa = half & 1023;
  if (exponent == 31) return sign | 0x7F800000 | mantissa << 13;  // infinity, NaN
  if (exponent > 0) return sign | (exponent + 127 - 15) << 23 | mantissa << 13;
  return sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24F);  // subnormal, 0
}
// bfloat16 is a float's upper half.
uint32_t bfloat_bits(uint16_t bfloat) { return uint32_t{bfloat} << 16; }
uint8_t truth(uint8_t byte) { return byte != 0 ? 1 : 0; }  // as PyTorch takes it

struct Format {
  const char* name;
  DType dtype;
  int64_t bytes;              // of an element in the file
  Convert convert = nullptr;  // where that is not the dtype's own form
};
// Those that are written first, in the order in which the reference implementation lays tensors
// out. Since wider ones come first, each tensor is aligned to its element size.
constexpr std::array<Format, 8> kFormats = {
    {{"I64", kInt64, 8},
     {"F64", kFloat64, 8},
     {"F32", kFloat32, 4},
     {"I32", kInt32, 4},
     {"U8", kUInt8, 1},
     {"F16", kFloat32, 2, each<uint16_t, uint32_t, half_bits>},
     {"BF16", kFloat32, 2, each<uint16_t, uint32_t, bfloat_bits>},
     {"BOOL", kBool, 1, each<uint8_t, uint8_t, truth>}}};

int rank_of(DType dtype) {
  for (size_t i = 0; i < kFormats.size(); ++i)
    if (kFormats[i].dtype == dtype) return static_cast<int>(i);
  throw DtypeError(str("safetensors: no name for ", dtype));
}

template <class... Args> [[noreturn]] void fail(const std::string& file, const Args&... message) {
  throw DataError(str(file, ": ", message...));
}

// ---- reading ------------------------------------------------------------------------------------

// Refuses what JSON allows and a header must not have: duplicate keys, which a JSON library
// resolves silently, and what is nested deeper or is a longer list than any tensor's entry, so that
// memory stays within a small multiple of the header's size.
class HeaderCheck : public json::json_sax_t {
 public:
  explicit HeaderCheck(const std::string& file) : file_(file) {}
  bool start_object(size_t) override {
    if (depth_ > 1) fail(file_, "header: an object nested deeper than a tensor's entry");
    keys_[depth_++].clear();
    return true;
  }
  bool key(std::string& key) override {
    if (!keys_[depth_ - 1].insert(key).second)
      fail(file_, "header: duplicate key ", in_quotes(key));
    return true;
  }
  bool end_object() override { return leave(); }
  bool start_array(size_t) override {
    if (depth_ > 2) fail(file_, "header: a list nested deeper than a tensor's shape");
    ++depth_;
    elements_ = 0;
    return true;
  }
  bool end_array() override { return leave(); }
  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(int64_t) override { return value(); }
  bool number_unsigned(uint64_t) override { return value(); }
  bool number_float(double, const std::string&) override { return value(); }
  bool string(std::string&) override { return value(); }
  bool binary(json::binary_t&) override { return value(); }
  bool parse_error(size_t, const std::string&, const json::exception& e) override {
    fail(file_, "header: ", printable(e.what(), 200));  // it quotes what it could not read
  }

 private:
  bool leave() {
    --depth_;
    return true;
  }
  bool value() {
    if (depth_ > 2 && ++elements_ > kMaxRank)
      fail(file_, "header: a list of more than ", kMaxRank,
           " numbers, expected at most that many dimensions");
    return true;
  }

  const std::string& file_;
  int depth_ = 0;                  // objects and lists that are open
  std::set<std::string> keys_[2];  // of the objects that are open
  int elements_ = 0;               // of the list that is open
};

json parse_header(const std::string& file, const char* begin, const char* end) {
  // The parser takes a NUL for the end of its input and would ignore what follows.
  if (const void* nul = std::memchr(begin, 0, static_cast<size_t>(end - begin)))
    fail(file, "header: NUL at byte ", 8 + (static_cast<const char*>(nul) - begin));
  if (begin == end || *begin != '{') fail(file, "header: expected it to begin with '{'");
  // Read twice, since a parser that asks for approval while it builds the tree walks an object's
  // members anew at each of them.
  HeaderCheck check(file);
  json::sax_parse(begin, end, &check);
  return json::parse(begin, end);
}

// A tensor's entry, checked by itself and against the buffer.
struct Entry {
  std::string name;
  const Format* format = nullptr;
  Shape shape;
  uint64_t begin = 0, end = 0;
};

Entry read_entry(const std::string& file, const std::string& name, const json& fields,
                 uint64_t buffer_bytes) {
  const auto bad = [&](const auto&... message) {
    fail(file, "tensor ", in_quotes(name), ": ", message...);
  };
  if (!fields.is_object()) bad("expected an object, got ", fields.type_name());
  for (const auto& [key, value] : fields.items())
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      bad("unexpected field ", in_quotes(key));
  const auto field = [&](const char* key) -> const json& {
    const auto it = fields.find(key);
    if (it == fields.end()) bad("no ", key);
    return *it;
  };
  // A list of integers >= 0: a tensor's shape or its offsets.
  const auto numbers = [&](const char* key) {
    const json& list = field(key);
    if (!list.is_array()) bad(key, ": expected a list, got ", list.type_name());
    for (const json& number : list)
      if (!number.is_number_unsigned())
        bad(key, ": expected integers >= 0 below 2^64, got ",
            number.is_number() ? number.dump() : number.type_name());
    return list.get<std::vector<uint64_t>>();
  };

  Entry entry;
  entry.name = name;
  const json& dtype = field("dtype");
  if (!dtype.is_string()) bad("dtype: expected a string, got ", dtype.type_name());
  for (const Format& format : kFormats)
    if (dtype == format.name) entry.format = &format;
  if (entry.format == nullptr)
    bad("dtype ", in_quotes(dtype.get<std::string>()),
        ", expected F64, F32, F16, BF16, I64, I32, U8 or BOOL");

  // The product of the extents other than 0 must fit too: strides are made of such products.
  int64_t product = static_cast<int64_t>(size_of(entry.format->dtype));
  for (const uint64_t extent : numbers("shape")) {
    if (extent > uint64_t{std::numeric_limits<int64_t>::max()} ||
        (extent != 0 && __builtin_mul_overflow(product, static_cast<int64_t>(extent), &product)))
      bad("shape ", field("shape").dump(), " overflows 2^63 bytes");
    entry.shape.append(static_cast<int64_t>(extent));
  }
  const auto bytes = static_cast<uint64_t>(entry.shape.numel() * entry.format->bytes);

  const std::vector<uint64_t> offsets = numbers("data_offsets");
  if (offsets.size() != 2) bad("data_offsets: expected 2 numbers, got ", offsets.size());
  entry.begin = offsets[0];
  entry.end = offsets[1];
  if (entry.begin > entry.end || entry.end > buffer_bytes)
    bad("data_offsets ", field("data_offsets").dump(), ", expected begin <= end <= ", buffer_bytes,
        ", the bytes after the header");
  if (entry.end - entry.begin != bytes)
    bad("data_offsets ", field("data_offsets").dump(), " span ", entry.end - entry.begin,
        " bytes, expected ", bytes, " for ", entry.format->name, " ", entry.shape);
  return entry;
}

// The next bytes of a file, all of them; throws DataError if there are fewer.
using Read = std::function<void(void* to, size_t bytes)>;

// Of the `bytes` bytes that `read` gives.
SafetensorsFile read_safetensors(uint64_t bytes, const Read& read, const std::string& name) {
  uint64_t header_bytes = 0;
  if (bytes < sizeof(header_bytes))
    fail(name, bytes, " bytes, expected at least 8: the length of the header");
  read(&header_bytes, sizeof(header_bytes));
  if (header_bytes > kMaxHeader)
    fail(name, "header of ", header_bytes, " bytes, expected at most ", kMaxHeader);
  if (header_bytes > bytes - sizeof(header_bytes))
    fail(name, "header of ", header_bytes, " bytes, but only ", bytes - sizeof(header_bytes),
         " bytes follow its length; is the file truncated?");
  std::string text(header_bytes, '\0');
  read(text.data(), text.size());
  const uint64_t buffer_bytes = bytes - sizeof(header_bytes) - header_bytes;
  const json header = parse_header(name, text.data(), text.data() + text.size());

  SafetensorsFile file;
  std::vector<Entry> entries;
  for (const auto& [key, value] : header.items()) {
    if (key != kMetadata) {
      entries.push_back(read_entry(name, key, value, buffer_bytes));
      continue;
    }
    if (!value.is_object())
      fail(name, kMetadata, ": expected an object of strings, got ", value.type_name());
    for (const auto& [word, meaning] : value.items()) {
      if (!meaning.is_string())
        fail(name, kMetadata, ": ", in_quotes(word), ": expected a string, got ",
             meaning.type_name());
      file.metadata[word] = meaning;
    }
  }

  // Every byte of the buffer belongs to one tensor, so that nothing can hide in a file and no write
  // to one tensor could ever show in another. Checked for all before any is allocated.
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered)
      fail(name, "tensor ", in_quotes(entry.name), " begins at offset ", entry.begin, ", expected ",
           covered, entry.begin < covered ? ": tensors overlap" : ": there is a gap before it");
    covered = entry.end;
  }
  if (covered != buffer_bytes)
    fail(name, "the tensors end at offset ", covered, ", expected ", buffer_bytes,
         ", the end of the file");

  // In the order of the file, of which no byte is left out.
  std::vector<std::byte> block;
  for (const Entry& entry : entries) {
    const Tensor tensor = empty(entry.shape, {entry.format->dtype, kCpu});
    if (entry.format->convert == nullptr) {
      read(tensor.raw(), tensor.bytes());
    } else {
      constexpr int64_t kBlock = 1 << 16;
      auto* to = static_cast<std::byte*>(tensor.raw());
      for (int64_t left = tensor.numel(), n; left > 0; left -= n) {
        n = std::min(left, kBlock);
        block.resize(static_cast<size_t>(n * entry.format->bytes));
        read(block.data(), block.size());
        entry.format->convert(block.data(), n, to);
        to += n * static_cast<int64_t>(size_of(entry.format->dtype));
      }
    }
    file.tensors.emplace_back(entry.name, tensor);
  }
  return file;
}

}  // namespace

SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, const std::string& name) {
  const Read read = [rest = bytes](void* to, size_t n) mutable {
    if (n > 0) std::memcpy(to, rest.data(), n);
    rest = rest.subspan(n);
  };
  return read_safetensors(bytes.size(), read, name);
}

// Not mapped into memory: a file that becomes shorter meanwhile would end the process.
SafetensorsFile load_safetensors(const std::filesystem::path& path) {
  File file(path, O_RDONLY);
  const auto bytes = static_cast<uint64_t>(file.size());
  uint64_t done = 0;
  const Read read = [&](void* to, size_t n) {
    const size_t got = file.read(to, n);
    done += got;
    if (got < n)
      fail(path.string(), "ends at byte ", done, ", expected ", bytes,
           " bytes; it became shorter while it was read");
  };
  return read_safetensors(bytes, read, path.string());
}

// ---- writing ------------------------------------------------------------------------------------

void save_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::set<std::string> names;
  for (const auto& [name, tensor] : tensors) {
    require<ValueError>(tensor.defined(), "save_safetensors: tensor ", in_quotes(name),
                        " is undefined");
    require<ValueError>(name != kMetadata, "save_safetensors: a tensor cannot be called ", name);
    require<ValueError>(names.insert(name).second, "save_safetensors: duplicate name ",
                        in_quotes(name));
  }
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(rank_of(tensors[a].second.dtype()), tensors[a].first) <
           std::pair(rank_of(tensors[b].second.dtype()), tensors[b].first);
  });

  // Not one tree of JSON: one that keeps the order looks a key up by walking all the others.
  std::string text = "{";
  const auto add = [&](const std::string& key, const nlohmann::ordered_json& value) {
    try {
      text += str(text.size() > 1 ? "," : "", json(key).dump(), ":", value.dump());
    } catch (const json::exception& e) {
      throw ValueError(
          str("save_safetensors: ", path.string(), ": a name or the metadata: ", e.what()));
    }
  };
  if (!metadata.empty()) add(kMetadata, metadata);
  size_t offset = 0;
  for (const size_t i : order) {
    const auto& [name, tensor] = tensors[i];
    nlohmann::ordered_json entry;
    entry["dtype"] = kFormats[rank_of(tensor.dtype())].name;
    entry["shape"] = std::vector<int64_t>(tensor.shape().begin(), tensor.shape().end());
    entry["data_offsets"] = {offset, offset + tensor.bytes()};
    add(name, entry);
    offset += tensor.bytes();
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors begin at a multiple of 8
  const uint64_t header_bytes = text.size();
  require<ValueError>(header_bytes <= kMaxHeader, "save_safetensors: ", path.string(),
                      ": header of ", header_bytes, " bytes, expected at most ", kMaxHeader);

  AtomicFile file(path);
  file.write(&header_bytes, sizeof(header_bytes));
  file.write(text.data(), text.size());
  for (const size_t i : order) {
    // One at a time: the whole model need not fit twice.
    const Tensor tensor = tensors[i].second.detach().to(kCpu);
    file.write(tensor.read(), tensor.bytes());
  }
  file.commit();
}

}  // namespace sinter
