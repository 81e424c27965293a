#include "sinter/data.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/detail.h"
#include "core/io/file.h"
#include "sinter/emit.h"
#include "sinter/operators/data.h"

namespace sinter {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kPixels = 3 * 32 * 32;
constexpr int64_t kRecord = 1 + kPixels;
constexpr int64_t kRecordsPerFile = kCifar10FileBytes / kRecord;
static_assert(kRecordsPerFile * kRecord == kCifar10FileBytes);
constexpr int kClasses = 10;

ImageSet empty_set(int64_t count) {
  ImageSet set;
  set.images = empty({count, 3, 32, 32}, {kUInt8, kCpu});
  set.labels = empty({count}, {kUInt8, kCpu});
  set.classes = kClasses;
  return set;
}

// Fills rows [first, first + count) of `set` with the records of `file`.
void read_records(File& file, int64_t count, const ImageSet& set, int64_t first) {
  uint8_t* labels = set.labels.data<uint8_t>() + first;
  uint8_t* images = set.images.data<uint8_t>() + first * kPixels;
  std::array<uint8_t, kRecord> record;
  for (int64_t i = 0; i < count; ++i) {
    const size_t got = file.read(record.data(), record.size());
    if (got != record.size())
      throw DataError(str(file.path().string(), ": ends at byte ",
                          i * kRecord + static_cast<int64_t>(got), ", expected ", count * kRecord,
                          " bytes; it became shorter while it was read"));
    if (record[0] >= kClasses)
      throw DataError(str(file.path().string(), ": byte ", i * kRecord, ": label ", int{record[0]},
                          " of record ", i, ", expected 0 to ", kClasses - 1));
    labels[i] = record[0];
    std::memcpy(images + i * kPixels, record.data() + 1, kPixels);
  }
}

// Extents and dtypes that the kernels take for granted.
void check_set(const ImageSet& set) {
  require<ShapeError>(set.images.defined() && set.labels.defined(),
                      "Batches: the set has no images or no labels");
  const Shape& images = set.images.shape();
  const Shape& labels = set.labels.shape();
  require<ShapeError>(images.rank() == 4 && images[1] <= static_cast<int64_t>(set.mean.size()),
                      "Batches: expected images (N, C, H, W) with C <= ", set.mean.size(), ", got ",
                      images);
  require<ShapeError>(images[1] * images[2] * images[3] <= std::numeric_limits<int>::max(),
                      "Batches: expected images of fewer than 2^31 bytes, got ", images);
  require<ShapeError>(labels.rank() == 1 && labels[0] == images[0],
                      "Batches: expected labels (N) for images (N, C, H, W), got ", labels, " for ",
                      images);
  require<DtypeError>(set.images.dtype() == kUInt8 && set.labels.dtype() == kUInt8,
                      "Batches: expected uint8 images and labels, got ", set.images.dtype(),
                      " and ", set.labels.dtype());
  require<DeviceError>(set.images.device() == set.labels.device(), "Batches: images are on ",
                       set.images.device(), ", labels on ", set.labels.device());
  for (int c = 0; c < images[1]; ++c)
    require<ValueError>(std::isfinite(set.mean[c]) && std::isfinite(set.std[c]) && set.std[c] > 0,
                        "Batches: channel ", c, ": mean ", set.mean[c], ", std ", set.std[c],
                        "; expected a finite mean and a std > 0");
  const Tensor here = set.labels.to(kCpu);
  const uint8_t* label = here.data<const uint8_t>();
  for (int64_t i = 0; i < labels[0]; ++i)
    if (label[i] >= set.classes)
      throw ValueError(str("Batches: labels[", i, "] = ", int{label[i]}, ", expected 0 <= label < ",
                           set.classes));
}

}  // namespace

ImageSet ImageSet::to(Device device) const {
  ImageSet set = *this;
  if (images.defined()) set.images = images.to(device);
  if (labels.defined()) set.labels = labels.to(device);
  return set;
}

// ---- CIFAR-10 -----------------------------------------------------------------------------------

ImageSet read_cifar10_file(const fs::path& path) {
  File file(path, O_RDONLY);
  const int64_t bytes = file.size();
  require<DataError>(bytes > 0 && bytes % kRecord == 0, path.string(), ": ends at byte ", bytes,
                     ", expected a positive multiple of ", kRecord,
                     " (records of a label byte and ", kPixels, " pixel bytes)");
  const ImageSet set = empty_set(bytes / kRecord);
  read_records(file, set.size(), set, 0);
  return set;
}

fs::path find_cifar10(const fs::path& dir) {
  for (const fs::path& folder : {dir, dir / kCifar10Folder}) {
    std::error_code error;
    // Something was meant to be there.
    if (fs::is_symlink(folder, error) && !fs::exists(folder, error) && !error)
      throw DataError(str(folder.string(), ": a dangling link, to ",
                          fs::read_symlink(folder, error).string(), ", which does not exist"));
    for (const char* name : kCifar10Files) {
      if (fs::exists(folder / name, error)) return folder;
      // A folder that cannot be searched must not pass for an empty one.
      if (error) throw_errno(folder / name, "look up", error.value());
    }
  }
  return {};
}

Dataset read_cifar10(const fs::path& dir) {
  const fs::path folder = find_cifar10(dir);
  if (folder.empty()) {
    std::error_code error;
    const bool there = fs::is_directory(dir, error);
    throw DataError(str(dir.string(), ": ",
                        error    ? error.message()
                        : !there ? std::string("not a folder")
                                 : str("neither here nor in ", kCifar10Folder,
                                       " is there any of data_batch_1.bin to data_batch_5.bin and "
                                       "test_batch.bin"),
                        "; expected CIFAR-10, binary version"));
  }
  // Every length before any large allocation.
  for (const char* name : kCifar10Files) {
    const int64_t bytes = File(folder / name, O_RDONLY).size();
    require<DataError>(bytes == kCifar10FileBytes, (folder / name).string(), ": ends at byte ",
                       bytes, ", expected ", kCifar10FileBytes, " bytes (", kRecordsPerFile,
                       " records of ", kRecord, ")");
  }
  Dataset data;
  data.name = "CIFAR-10";
  data.source = folder.string();
  data.class_names = {"airplane", "automobile", "bird",  "cat",  "deer",
                      "dog",      "frog",       "horse", "ship", "truck"};
  const int64_t train_files = kCifar10Files.size() - 1;
  data.train = empty_set(train_files * kRecordsPerFile);
  data.test = empty_set(kRecordsPerFile);
  for (int64_t i = 0; i <= train_files; ++i) {
    File file(folder / kCifar10Files[i], O_RDONLY);
    if (i < train_files)
      read_records(file, kRecordsPerFile, data.train, i * kRecordsPerFile);
    else
      read_records(file, kRecordsPerFile, data.test, 0);
  }
  return data;
}

// ---- batches ------------------------------------------------------------------------------------

Batches::Batches(const ImageSet& set, const Options& options) : set_(set), options_(options) {
  require<ValueError>(options.batch_size >= 1, "Batches: batch_size = ", options.batch_size,
                      ", expected at least 1");
  require<DtypeError>(is_floating(options.dtype), "Batches: expected float32 or float64, got ",
                      options.dtype);
  check_set(set);
  start_epoch(0);
  position_ = zeros({1}, {kInt64, set.labels.device()});
}

int64_t Batches::size() const {
  const int64_t n = set_.size(), b = options_.batch_size;
  // Not (n + b - 1) / b, which overflows for the largest b.
  return n / b + (!options_.drop_last && n % b != 0 ? 1 : 0);
}

Batches::Iterator Batches::begin() {
  if (begun_) start_epoch(epoch_ + 1);
  begun_ = true;
  return {*this, 0};
}

void Batches::start_epoch(uint64_t epoch) {
  epoch_ = epoch;
  begun_ = false;
  const int64_t n = set_.size();
  const Device device = set_.labels.device();
  if (!options_.shuffle) {
    if (!index_.defined()) index_ = arange(n, {kInt64, device});
    return;
  }
  // In place, since a compiled function may read it.
  if (!index_.defined()) index_ = empty({n}, {kInt64, device});
  emit(op::ShuffledIndices{options_.seed, epoch, n, 0, out(index_)});
}

Batches::Batches(const Batches& other)
    : set_(other.set_),
      options_(other.options_),
      index_(other.index_.clone()),
      position_(other.position_.clone()),
      epoch_(other.epoch_),
      begun_(other.begun_) {}

Batch Batches::get(int64_t i) const {
  require<ValueError>(0 <= i && i < size(), "Batches::get: batch ", i, ", expected 0 <= i < ",
                      size());
  const int64_t first = i * options_.batch_size;
  return gather(first, std::min(options_.batch_size, set_.size() - first), {});
}

void Batches::seek(int64_t i) {
  require<ValueError>(0 <= i && i < size(), "Batches::seek: batch ", i, ", expected 0 <= i < ",
                      size());
  position_.copy_(
      from_vector(std::vector<int64_t>{i * options_.batch_size}, {1}, position_.device()));
}

Batch Batches::next(std::optional<int64_t> count) {
  require<ValueError>(set_.size() > 0, "Batches::next: the set has no images");
  const int64_t n = count.value_or(options_.batch_size);
  require<ValueError>(n >= 1, "Batches::next: expected at least one image, got ", n);
  return gather(0, n, position_);
}

Batch Batches::gather(int64_t first, int64_t count, const Tensor& position) const {
  const Shape& images = set_.images.shape();
  op::GatherShape g;
  g.n = count;
  g.size = set_.size();
  g.first = first;
  g.c = static_cast<int>(images[1]);
  g.h = static_cast<int>(images[2]);
  g.w = static_cast<int>(images[3]);
  std::copy(set_.mean.begin(), set_.mean.end(), g.mean);
  std::copy(set_.std.begin(), set_.std.end(), g.std);

  Batch batch;
  batch.x = empty({g.n, g.c, g.h, g.w}, {options_.dtype, set_.images.device()});
  batch.y = empty({g.n}, {kInt64, set_.images.device()});
  emit(op::GatherBatch{g, in(set_.images), in(set_.labels), in(index_), inout(position),
                       out(batch.x), out(batch.y)});
  return batch;
}

}  // namespace sinter
