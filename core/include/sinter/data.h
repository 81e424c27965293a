// Image data sets kept as bytes, and batches made from them on the training device.
#pragma once

#include <array>
#include <atomic>
#include <filesystem>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "sinter/tensor.h"

namespace sinter {

// Labelled images. A value; copies share storage.
struct ImageSet {
  Tensor images;  // (N, C, H, W) uint8
  Tensor labels;  // (N) uint8, each below classes
  int classes = 10;
  std::array<float, 4> mean = {0.5F, 0.5F, 0.5F, 0.5F};  // of pixel / 255, by channel
  std::array<float, 4> std = {0.5F, 0.5F, 0.5F, 0.5F};
  int64_t size() const { return labels.defined() ? labels.size(0) : 0; }
  ImageSet to(Device device) const;
};

struct Dataset {
  std::string name;  // "CIFAR-10", or kSyntheticName
  bool synthetic = false;
  std::string source;  // where it came from: a folder, or how it was drawn
  std::vector<std::string> class_names;
  ImageSet train, test;
};
inline constexpr const char* kSyntheticName = "synthetic data: not CIFAR-10";

// ---- CIFAR-10 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009) -------

// The folder of the official archive and its files: five of training images, one of test images.
inline constexpr const char* kCifar10Folder = "cifar-10-batches-bin";
inline constexpr std::array<const char*, 6> kCifar10Files = {"data_batch_1.bin", "data_batch_2.bin",
                                                             "data_batch_3.bin", "data_batch_4.bin",
                                                             "data_batch_5.bin", "test_batch.bin"};
inline constexpr int64_t kCifar10FileBytes = 30'730'000;  // 10,000 records

// The images of one file of the binary version: records of a label byte and 3,072 pixel bytes
// (planes R, G, B of 32 rows of 32). Throws DataError, naming the file, the offset and what was
// expected, if it is missing, empty, not a whole number of records, or holds a label above 9.
ImageSet read_cifar10_file(const std::filesystem::path& file);
// data_batch_1..5.bin and test_batch.bin of 10,000 records each, in `dir` or its subfolder
// cifar-10-batches-bin. Throws DataError also for a file of another length.
Dataset read_cifar10(const std::filesystem::path& dir);
// The folder read_cifar10 would read, or an empty path if no CIFAR-10 files are in either. Throws
// DataError where that cannot be told, as in a folder without permission to search it.
std::filesystem::path find_cifar10(const std::filesystem::path& dir);

// Bytes done, bytes in all (0 if unknown). Returning false cancels.
using DownloadProgress = std::function<bool(int64_t done, int64_t total)>;
struct DownloadSource {
  std::string url, md5;
  int64_t bytes;
};
// The official archive.
DownloadSource cifar10_source();
// Fetches the archive into dir (created), resuming a partial one, verifies length and MD5 before
// anything is unpacked, unpacks it to dir/cifar-10-batches-bin, removes the archive and returns
// that folder; returns at once if the folder holds whole files already. Files appear under their
// final names only when whole. Throws DataError: no network, a checksum that differs (the partial
// file is removed), a download that broke or was cancelled (kept for resuming), or a build without
// SINTER_DOWNLOAD.
std::filesystem::path download_cifar10(const std::filesystem::path& dir,
                                       const DownloadProgress& progress = {},
                                       const DownloadSource& source = cifar10_source());

// ---- synthetic ----------------------------------------------------------------------------------

// Ten classes of drawn 32 x 32 RGB images (shapes and textures with random colour, place, size,
// occlusion and noise), as many as asked for, classes balanced. Deterministic in the seed.
// Learnable, not trivial: for trying things out where CIFAR-10 cannot be had. `progress`, if given,
// is called every 1000 images with those drawn and those there will be; what it throws ends the
// drawing.
Dataset synthetic_dataset(int64_t train_size = 50000, int64_t test_size = 10000, uint64_t seed = 0,
                          const std::function<void(int64_t, int64_t)>& progress = {});

// ---- batches ------------------------------------------------------------------------------------

struct Batch {
  Tensor x;  // (B, C, H, W), (pixel / 255 - mean) / std
  Tensor y;  // (B) int64
};

// Cuts an ImageSet into batches on the device that holds it: shuffling, gathering and normalizing
// run there. The same seed and epoch give the same batches on every device.
class Batches {
 public:
  struct Options {
    int64_t batch_size = 64;
    bool shuffle = true;
    bool drop_last = false;  // leave out a last batch that is not full
    uint64_t seed = 0;
    DType dtype = kFloat32;
  };
  // Throws ValueError unless batch_size >= 1 and every label is below set.classes, for which it
  // waits for the device; ShapeError, DtypeError or DeviceError for tensors that are not an
  // ImageSet's.
  Batches(const ImageSet& set, const Options& options);
  // A copy is at the same place, and goes on by itself.
  Batches(const Batches& other);
  Batches(Batches&&) noexcept = default;
  Batches& operator=(const Batches& other) { return *this = Batches(other); }
  Batches& operator=(Batches&&) noexcept = default;
  int64_t size() const;  // batches an epoch
  // Draws the order of `epoch` (0, 1, …). Without shuffle the order of the set.
  void start_epoch(uint64_t epoch);
  // Batch i of the current epoch, 0 <= i < size().
  Batch get(int64_t i) const;

  // for (const auto& [x, y] : batches): get(0), get(1), … of the current epoch; the next time those
  // of the next one, unless start_epoch came between. A const Batches stays at its epoch.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Batch;
    using difference_type = int64_t;
    using pointer = void;
    using reference = Batch;
    Iterator() = default;
    Iterator(const Batches& batches, int64_t i) : batches_(&batches), i_(i) {}
    Batch operator*() const { return batches_->get(i_); }
    Iterator& operator++() {
      ++i_;
      return *this;
    }
    Iterator operator++(int) { return {*batches_, i_++}; }
    bool operator==(const Iterator&) const = default;

   private:
    const Batches* batches_ = nullptr;
    int64_t i_ = 0;
  };
  Iterator begin();
  Iterator begin() const { return {*this, 0}; }
  Iterator end() const { return {*this, size()}; }

  // The next `count` images (none: batch_size) from a position that is kept on the device, at first
  // 0: a compiled function takes other images at every call. seek moves the position to the
  // beginning of batch i; behind the end of the order it goes on at the beginning.
  void seek(int64_t i);
  Batch next(std::optional<int64_t> count = {});

 private:
  Batch gather(int64_t first, int64_t count, const Tensor& position) const;
  ImageSet set_;
  Options options_;
  Tensor index_;     // (N) int64: the order of this epoch
  Tensor position_;  // one int64
  uint64_t epoch_ = 0;
  bool begun_ = false;  // a loop over the current epoch
};

}  // namespace sinter
