// Drawn images. Integers only, so that every compiler and machine draws the same bytes: coordinates
// are fixed-point, directions are integer vectors, and the one square root is of an integer.
#include <algorithm>
#include <array>
#include <cstdlib>

#include "core/base/detail.h"
#include "sinter/data.h"
#include "sinter/philox.h"

namespace sinter {

namespace {

constexpr int kSide = 32;
constexpr int kPlane = kSide * kSide;

// The random numbers of one image.
class Draws {
 public:
  Draws(uint64_t seed, uint64_t image) : seed_(seed), image_(image) {}
  Philox4 four() { return philox(seed_, counter_++, image_); }
  // In [low, high]. Multiplying and shifting favours no number by more than 1 in 2^32 / (high -
  // low).
  int between(int low, int high) {
    if (used_ == 4) {
      words_ = four();
      used_ = 0;
    }
    const uint64_t count = static_cast<uint64_t>(high - low) + 1;
    return low + static_cast<int>((count * words_.v[used_++]) >> 32);
  }

 private:
  uint64_t seed_, image_, counter_ = 0;
  Philox4 words_ = {};
  int used_ = 4;
};

// ---- figures ------------------------------------------------------------------------------------

// A figure's own coordinates: the origin is its centre, kOne its radius.
constexpr int kOne = 1 << 10;
constexpr int kCell = kOne * 2 / 5;  // of textures

constexpr int square(int x) { return x * x; }
// Whether x lies in an even cell of a line divided into cells.
constexpr bool even_cell(int x) { return (((x + 16 * kCell) / kCell) & 1) == 0; }

constexpr std::array<const char*, 10> kClassNames = {"disc",  "ring",     "square",  "triangle",
                                                     "cross", "crescent", "stripes", "checks",
                                                     "dots",  "target"};
constexpr int kFirstTexture = 6;  // from here on: a disc filled with a pattern

// Whether the point (u, v) belongs to the figure. kOne is 1 in the comments.
bool inside(int figure, int u, int v) {
  const int r2 = square(u) + square(v);
  if (figure >= kFirstTexture && r2 > square(kOne)) return false;
  switch (figure) {
    case 0:
      return r2 <= square(kOne);
    case 1:  // radii 0.56 to 1
      return r2 <= square(kOne) && r2 >= square(kOne * 9 / 16);
    case 2:
      return std::max(std::abs(u), std::abs(v)) <= kOne * 7 / 8;
    case 3:  // equilateral: below the sides y = 1.15 - 1.73 |x|, above y = -0.58
      return v >= -kOne * 37 / 64 && 64 * v <= 74 * kOne - 111 * std::abs(u);
    case 4:  // arms 0.58 wide
      return std::min(std::abs(u), std::abs(v)) <= kOne * 37 / 128 &&
             std::max(std::abs(u), std::abs(v)) <= kOne;
    case 5:  // a disc without another one, 0.55 off its centre
      return r2 <= square(kOne) && square(u - kOne * 35 / 64) + square(v) >= square(kOne * 13 / 16);
    case 6:
      return even_cell(u);
    case 7:
      return even_cell(u) == even_cell(v);
    case 8: {  // radius 0.3, in the cells' corners
      const int period = 2 * kCell;
      const int du = (u + 8 * period) % period - kCell, dv = (v + 8 * period) % period - kCell;
      return square(du) + square(dv) <= square(kOne * 19 / 64);
    }
    default:  // a disc of radius 0.3 in a ring from 0.6 to 1
      return r2 <= square(kOne * 19 / 64) || r2 >= square(kOne * 39 / 64);
  }
}

// From pixels to a figure's coordinates, in steps of half a pixel: u = (u0 + du_dx x + du_dy y) /
// 2^8.
struct Placement {
  int u0, v0, du_dx, du_dy, dv_dx, dv_dy;
  int u(int x, int y) const { return (u0 + du_dx * x + du_dy * y) >> 8; }
  int v(int x, int y) const { return (v0 + dv_dx * x + dv_dy * y) >> 8; }
};

int64_t integer_sqrt(int64_t n) {
  int64_t root = 0;
  while (square(static_cast<int>(root + 1)) <= n) ++root;
  return root;
}

// A place, a size (radius in sixteenths of a pixel), a direction and a slight stretch.
Placement draw_placement(Draws& draws, int min_radius, int max_radius) {
  const int radius = draws.between(min_radius, max_radius);
  const int reach = 16 * kSide / 2 - radius * 7 / 8;  // an eighth of the radius may be cut off
  const int x = 16 * kSide / 2 + draws.between(-reach, reach);
  const int y = 16 * kSide / 2 + draws.between(-reach, reach);
  int a = 0, b = 0;  // uniform in a ring, hence in direction
  do {
    a = draws.between(-64, 64);
    b = draws.between(-64, 64);
  } while (a * a + b * b < 32 * 32 || a * a + b * b > 64 * 64);
  const int64_t length = integer_sqrt(a * a + b * b);
  const int stretch = draws.between(-2, 2);
  // (u, v) = rotation of the offset from (x, y), in units of the radius; samples are 8 / 16 pixel
  // apart, the first at 4 / 16.
  const auto coefficient = [&](int64_t component, int64_t sixteenths, int scale) {
    return static_cast<int>(component * sixteenths * kOne * 256 * scale / (16 * length * radius));
  };
  const int su = 16 + stretch, sv = 16 - stretch;
  return {coefficient(1, int64_t{a} * (4 - x) + int64_t{b} * (4 - y), su),
          coefficient(1, int64_t{a} * (4 - y) - int64_t{b} * (4 - x), sv),
          coefficient(a, 8, su),
          coefficient(b, 8, su),
          coefficient(-b, 8, sv),
          coefficient(a, 8, sv)};
}

// ---- images -------------------------------------------------------------------------------------

using Colour = std::array<int, 3>;
Colour draw_colour(Draws& draws) {
  return {draws.between(0, 255), draws.between(0, 255), draws.between(0, 255)};
}

// Writes planes R, G, B.
void draw_image(uint64_t seed, uint64_t image, int figure, uint8_t* pixels) {
  Draws draws(seed, image);
  const Placement place = figure < kFirstTexture
                              ? draw_placement(draws, 9 * 16, 13 * 16)
                              : draw_placement(draws, 11 * 16, 15 * 16);  // their details are finer

  // Dark on bright as often as bright on dark, so that no pixel by itself tells anything about the
  // class: a linear classifier finds little.
  const Colour back = draw_colour(draws);
  Colour front;
  int contrast = 0;
  do {
    front = draw_colour(draws);
    contrast = 0;
    for (int c = 0; c < 3; ++c) contrast += std::abs(front[c] - back[c]);
  } while (contrast < 200);
  // The background changes across the image.
  Colour slope_x, slope_y;
  for (int c = 0; c < 3; ++c) {
    slope_x[c] = draws.between(-64, 64);
    slope_y[c] = draws.between(-64, 64);
  }
  // Two bars in front of it all.
  struct Bar {
    int x0, x1, y0, y1;
    Colour colour;
  };
  std::array<Bar, 2> bars;
  for (Bar& bar : bars) {
    const int w = draws.between(2, 10), h = draws.between(2, 10);
    bar.x0 = draws.between(-w, kSide);
    bar.y0 = draws.between(-h, kSide);
    bar.x1 = bar.x0 + w;
    bar.y1 = bar.y0 + h;
    bar.colour = draw_colour(draws);
  }
  const int noise = draws.between(4, 48);

  Philox4 words = {};
  for (int y = 0; y < kSide; ++y) {
    for (int x = 0; x < kSide; ++x) {
      // Four samples a pixel smooth the edges.
      int covered = 0;
      for (int sample = 0; sample < 4; ++sample) {
        const int sx = 2 * x + (sample & 1), sy = 2 * y + (sample >> 1);
        covered += inside(figure, place.u(sx, sy), place.v(sx, sy)) ? 1 : 0;
      }
      const Bar* bar = nullptr;
      for (const Bar& b : bars)
        if (b.x0 <= x && x < b.x1 && b.y0 <= y && y < b.y1) bar = &b;

      const int pixel = y * kSide + x;
      if (pixel % 4 == 0) words = draws.four();  // a word a pixel
      uint32_t word = words.v[pixel % 4];
      for (int c = 0; c < 3; ++c) {
        const int behind =
            back[c] + (slope_x[c] * (x - kSide / 2) + slope_y[c] * (y - kSide / 2)) / kSide;
        const int painted =
            bar != nullptr ? bar->colour[c] : (covered * front[c] + (4 - covered) * behind) / 4;
        const int byte = static_cast<int>(word & 255) - 128;
        word >>= 8;
        pixels[c * kPlane + pixel] =
            static_cast<uint8_t>(std::clamp(painted + byte * noise / 128, 0, 255));
      }
    }
  }
}

// `split` keeps the random numbers of train and test apart.
ImageSet draw_set(uint64_t seed, uint64_t split, int64_t count,
                  const std::function<void(int64_t)>& progress) {
  constexpr int kClasses = kClassNames.size();
  ImageSet set;
  set.classes = kClasses;
  set.images = empty({count, 3, kSide, kSide}, {kUInt8, kCpu});
  set.labels = empty({count}, {kUInt8, kCpu});
  uint8_t* images = set.images.data<uint8_t>();
  uint8_t* labels = set.labels.data<uint8_t>();
  for (int64_t i = 0; i < count; ++i) {
    if (i % 1000 == 0) progress(i);
    // A shuffled 0, 1, …, 9, 0, 1, …: balanced, yet in no order a batch could depend on.
    const auto n = static_cast<uint64_t>(count), k = static_cast<uint64_t>(i);
    labels[i] = static_cast<uint8_t>(permute_index(seed, split, n, k) % kClasses);
    draw_image(seed, split << 62 | k, labels[i], images + i * 3 * kPlane);
  }
  return set;
}

}  // namespace

Dataset synthetic_dataset(int64_t train_size, int64_t test_size, uint64_t seed,
                          const std::function<void(int64_t, int64_t)>& progress) {
  require<ValueError>(train_size >= 0 && test_size >= 0, "synthetic_dataset: sizes ", train_size,
                      " and ", test_size, ", expected none below 0");
  Dataset data;
  data.name = kSyntheticName;
  data.synthetic = true;
  data.source = str("drawn from seed ", seed);
  data.class_names.assign(kClassNames.begin(), kClassNames.end());
  const auto draw = [&](uint64_t split, int64_t count, int64_t before) {
    return draw_set(seed, split, count, [&](int64_t done) {
      if (progress) progress(before + done, train_size + test_size);
    });
  };
  data.train = draw(1, train_size, 0);
  data.test = draw(2, test_size, train_size);
  return data;
}

}  // namespace sinter
