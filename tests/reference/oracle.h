// What the operators must compute, as plainly as it can be written: float64 loops over the
// definition, sharing nothing with the library.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace sinter::app::oracle {

// ---- arrays -------------------------------------------------------------------------------------

using Sizes = std::vector<int64_t>;

// What oracles compute with: float64 on the host, row-major, knowing nothing of Tensor.
struct Array {
  Sizes shape;
  std::vector<double> v;
};

inline int64_t count(const Sizes& shape) {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

inline Array filled(const Sizes& shape, double value = 0) {
  return {shape, std::vector<double>(static_cast<size_t>(count(shape)), value)};
}

// Random numbers of its own (splitmix64), so that no input depends on the code under test.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

// Uniform in [-1, 1], representable in float32, so that both dtypes and the oracle see one input.
inline Array noise(const Sizes& shape, uint64_t seed) {
  Array a = filled(shape);
  Random random(seed);
  for (double& x : a.v) x = static_cast<float>(2 * random.uniform() - 1);
  return a;
}

// Integers from -largest to largest. Sums of products of small ones are exact in float32, in any
// order: whoever adds them up sees the same signs, the same ties and the same result to the bit.
inline Array integers(const Sizes& shape, uint64_t seed, int64_t largest) {
  Array a = filled(shape);
  Random random(seed);
  for (double& x : a.v) x = static_cast<double>(random.below(2 * largest + 1) - largest);
  return a;
}

// Distinct values in [-1, 1], evenly spaced, none of them 0, shuffled: every element keeps its
// distance from the kinks of ReLU and of max-pooling, so that a small change crosses none.
inline Array ramp(const Sizes& shape, uint64_t seed) {
  Array a = filled(shape);
  const int64_t n = count(shape);
  Random random(seed);
  for (int64_t i = 0; i < n; ++i) {
    const auto k = static_cast<size_t>(i);
    const auto value =
        static_cast<float>((static_cast<double>(i - n / 2) + 0.25) * 2 / static_cast<double>(n));
    const auto other = static_cast<size_t>(random.below(i + 1));  // Fisher-Yates, inside out
    a.v[k] = a.v[other];
    a.v[other] = value;
  }
  return a;
}

// Calls visit(index) for every index below `shape`, in row-major order.
inline void for_each_index(const Sizes& shape, const std::function<void(const Sizes&)>& visit) {
  Sizes index(shape.size(), 0);
  for (int64_t left = count(shape); left > 0; --left) {
    visit(index);
    for (size_t d = shape.size(); d-- > 0;) {
      if (++index[d] < shape[d]) break;
      index[d] = 0;
    }
  }
}

// Row-major offset of `index`, aligned at the end, in `shape`; extents of 1 are repeated and
// leading dimensions that `shape` lacks are dropped.
inline size_t offset(const Sizes& shape, const Sizes& index) {
  int64_t at = 0;
  const size_t missing = index.size() - shape.size();
  for (size_t d = 0; d < shape.size(); ++d)
    at = at * shape[d] + (shape[d] == 1 ? 0 : index[d + missing]);
  return static_cast<size_t>(at);
}

inline Array map(const Array& x, const std::function<double(double)>& f) {
  Array y = x;
  for (double& value : y.v) value = f(value);
  return y;
}

// ---- convolution and pooling --------------------------------------------------------------------

struct Conv {
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1, groups = 1;
};

// Calls visit(x offset, weight offset, y offset) for every product in the definition.
template <class Visit>
Sizes conv2d_products(const Sizes& x, const Sizes& w, const Conv& p, const Visit& visit) {
  const int64_t OH = (x[2] + 2 * p.pad_h - p.dil_h * (w[2] - 1) - 1) / p.stride_h + 1;
  const int64_t OW = (x[3] + 2 * p.pad_w - p.dil_w * (w[3] - 1) - 1) / p.stride_w + 1;
  const int64_t per_group = w[0] / p.groups;
  const Sizes y = {x[0], w[0], OH, OW};
  for (int64_t n = 0; n < x[0]; ++n)
    for (int64_t o = 0; o < w[0]; ++o)
      for (int64_t i = 0; i < OH; ++i)
        for (int64_t j = 0; j < OW; ++j)
          for (int64_t c = 0; c < w[1]; ++c)
            for (int64_t r = 0; r < w[2]; ++r)
              for (int64_t s = 0; s < w[3]; ++s) {
                const int64_t row = i * p.stride_h - p.pad_h + r * p.dil_h;
                const int64_t col = j * p.stride_w - p.pad_w + s * p.dil_w;
                if (row < 0 || row >= x[2] || col < 0 || col >= x[3]) continue;
                const int64_t channel = (o / per_group) * w[1] + c;
                visit(static_cast<size_t>(((n * x[1] + channel) * x[2] + row) * x[3] + col),
                      static_cast<size_t>(((o * w[1] + c) * w[2] + r) * w[3] + s),
                      static_cast<size_t>(((n * w[0] + o) * OH + i) * OW + j));
              }
  return y;
}

// A sum over everything but the channel.
inline Array per_channel(const Array& y) {
  Array b = filled({y.shape[1]});
  for_each_index(y.shape, [&](const Sizes& at) {
    b.v[static_cast<size_t>(at[1])] += y.v[offset(y.shape, at)];
  });
  return b;
}

inline Array conv2d(const Array& x, const Array& w, const Array* b, const Conv& p) {
  Array y = filled(conv2d_products(x.shape, Sizes{w.shape[0], 0, w.shape[2], w.shape[3]}, p,
                                   [](size_t, size_t, size_t) {}));
  conv2d_products(x.shape, w.shape, p,
                  [&](size_t xi, size_t wi, size_t yi) { y.v[yi] += x.v[xi] * w.v[wi]; });
  if (b != nullptr)
    for_each_index(y.shape, [&](const Sizes& at) {
      y.v[offset(y.shape, at)] += b->v[static_cast<size_t>(at[1])];
    });
  return y;
}

// Gradients of x, w and b.
inline std::vector<Array> conv2d_gradients(const Array& x, const Array& w, const Array& dy,
                                           const Conv& p) {
  Array dx = filled(x.shape), dw = filled(w.shape);
  conv2d_products(x.shape, w.shape, p, [&](size_t xi, size_t wi, size_t yi) {
    dx.v[xi] += dy.v[yi] * w.v[wi];
    dw.v[wi] += dy.v[yi] * x.v[xi];
  });
  return {dx, dw, per_channel(dy)};
}

struct Pool {
  int64_t kh, kw, stride_h, stride_w, pad_h = 0, pad_w = 0;
};

// The offsets in x of each window's elements, windows in y's row-major order.
inline std::pair<Sizes, std::vector<std::vector<size_t>>> windows(const Sizes& x, const Pool& p) {
  const int64_t OH = (x[2] + 2 * p.pad_h - p.kh) / p.stride_h + 1;
  const int64_t OW = (x[3] + 2 * p.pad_w - p.kw) / p.stride_w + 1;
  std::vector<std::vector<size_t>> all;
  const Sizes y = {x[0], x[1], OH, OW};
  for_each_index(y, [&](const Sizes& at) {
    std::vector<size_t> window;
    for (int64_t r = 0; r < p.kh; ++r)
      for (int64_t s = 0; s < p.kw; ++s) {
        const int64_t row = at[2] * p.stride_h - p.pad_h + r;
        const int64_t col = at[3] * p.stride_w - p.pad_w + s;
        if (row >= 0 && row < x[2] && col >= 0 && col < x[3])
          window.push_back(offset(x, {at[0], at[1], row, col}));
      }
    all.push_back(window);
  });
  return {y, all};
}

// y and the gradient of x: to the first NaN, else to the first maximum, of each window.
inline std::pair<Array, Array> max_pool2d(const Array& x, const Pool& p, const Array& dy) {
  const auto [shape, all] = windows(x.shape, p);
  Array y = filled(shape), dx = filled(x.shape);
  for (size_t i = 0; i < all.size(); ++i) {
    size_t best = all[i].front();
    for (size_t at : all[i])
      if (x.v[at] > x.v[best] || (std::isnan(x.v[at]) && !std::isnan(x.v[best]))) best = at;
    y.v[i] = x.v[best];
    dx.v[best] += dy.v[i];
  }
  return {y, dx};
}

inline std::pair<Array, Array> avg_pool2d(const Array& x, const Pool& p, const Array& dy) {
  const auto [shape, all] = windows(x.shape, p);
  Array y = filled(shape), dx = filled(x.shape);
  const auto area = static_cast<double>(p.kh * p.kw);
  for (size_t i = 0; i < all.size(); ++i)
    for (size_t at : all[i]) {
      y.v[i] += x.v[at] / area;
      dx.v[at] += dy.v[i] / area;
    }
  return {y, dx};
}

// ---- matrix products ----------------------------------------------------------------------------

// (rows, K) x (K, columns).
inline Array product(const Array& a, const Array& b) {
  const int64_t M = a.shape[0], K = a.shape[1], N = b.shape[1];
  Array c = filled({M, N});
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j)
      for (int64_t k = 0; k < K; ++k)
        c.v[static_cast<size_t>(i * N + j)] +=
            a.v[static_cast<size_t>(i * K + k)] * b.v[static_cast<size_t>(k * N + j)];
  return c;
}

inline Array transposed(const Array& a) {
  Array t = filled({a.shape[1], a.shape[0]});
  for (int64_t i = 0; i < a.shape[0]; ++i)
    for (int64_t j = 0; j < a.shape[1]; ++j)
      t.v[static_cast<size_t>(j * a.shape[0] + i)] = a.v[static_cast<size_t>(i * a.shape[1] + j)];
  return t;
}

// x: (rows, in), w: (out, in).
inline Array linear(const Array& x, const Array& w, const Array* b) {
  Array y = product(x, transposed(w));
  for (size_t i = 0; b != nullptr && i < y.v.size(); ++i) y.v[i] += b->v[i % b->v.size()];
  return y;
}

// Gradients of x, w and b.
inline std::vector<Array> linear_gradients(const Array& x, const Array& w, const Array& dy) {
  Array db = filled({w.shape[0]});
  for (size_t i = 0; i < dy.v.size(); ++i) db.v[i % db.v.size()] += dy.v[i];
  return {product(dy, w), product(transposed(dy), x), db};
}

// The shape both broadcast to; extents are known to agree.
inline Sizes broadcast(const Sizes& a, const Sizes& b) {
  Sizes y(std::max(a.size(), b.size()), 1);
  for (const Sizes& s : {a, b})
    for (size_t d = 0; d < s.size(); ++d)
      if (s[s.size() - 1 - d] != 1) y[y.size() - 1 - d] = s[s.size() - 1 - d];
  return y;
}

// Calls visit(a offset, b offset, c offset) for every product of a batched, broadcast matmul.
template <class Visit> Sizes matmul_products(const Sizes& a, const Sizes& b, const Visit& visit) {
  const Sizes batch_a(a.begin(), a.end() - 2), batch_b(b.begin(), b.end() - 2);
  const Sizes batch = broadcast(batch_a, batch_b);
  const auto M = static_cast<size_t>(a[a.size() - 2]), K = static_cast<size_t>(a.back());
  const auto N = static_cast<size_t>(b.back());
  for_each_index(batch, [&](const Sizes& at) {
    const size_t A = offset(batch_a, at) * M * K, B = offset(batch_b, at) * K * N;
    const size_t C = offset(batch, at) * M * N;
    for (size_t i = 0; i < M; ++i)
      for (size_t j = 0; j < N; ++j)
        for (size_t k = 0; k < K; ++k) visit(A + i * K + k, B + k * N + j, C + i * N + j);
  });
  Sizes y = batch;
  y.push_back(static_cast<int64_t>(M));
  y.push_back(static_cast<int64_t>(N));
  return y;
}

// ---- element by element -------------------------------------------------------------------------

inline Array relu(const Array& x) {
  return map(x, [](double v) { return v <= 0 ? 0 : v; });
}

inline Array relu_gradient(const Array& x, const Array& dy) {
  Array dx = dy;
  for (size_t i = 0; i < dx.v.size(); ++i) dx.v[i] = x.v[i] <= 0 ? 0 : dy.v[i];
  return dx;
}

// ---- reductions and softmax ---------------------------------------------------------------------

// The extents of `shape` with those of `dims` replaced by 1.
inline Sizes reduced(Sizes shape, const std::vector<int>& dims) {
  for (int d : dims) shape[static_cast<size_t>(d)] = 1;
  return shape;
}

// Sum over `dims` (non-negative), which stay as extents of 1.
inline Array sum(const Array& x, const std::vector<int>& dims) {
  Array y = filled(reduced(x.shape, dims));
  for_each_index(x.shape,
                 [&](const Sizes& at) { y.v[offset(y.shape, at)] += x.v[offset(x.shape, at)]; });
  return y;
}

// y and the gradient of x: log(exp(x_k) / sum exp(x)) over dimension d.
inline std::pair<Array, Array> log_softmax(const Array& x, int d, const Array& dy) {
  Array largest = filled(reduced(x.shape, {d}), -std::numeric_limits<double>::infinity());
  for_each_index(x.shape, [&](const Sizes& at) {
    double& m = largest.v[offset(largest.shape, at)];
    m = std::max(m, x.v[offset(x.shape, at)]);
  });
  Array total = filled(largest.shape);
  for_each_index(x.shape, [&](const Sizes& at) {
    const size_t k = offset(largest.shape, at);
    total.v[k] += std::exp(x.v[offset(x.shape, at)] - largest.v[k]);
  });
  Array y = x, dx = dy;
  const Array dy_total = sum(dy, {d});
  for_each_index(x.shape, [&](const Sizes& at) {
    const size_t i = offset(x.shape, at), k = offset(largest.shape, at);
    y.v[i] = x.v[i] - largest.v[k] - std::log(total.v[k]);
    dx.v[i] = dy.v[i] - std::exp(y.v[i]) * dy_total.v[k];
  });
  return {y, dx};
}

}  // namespace sinter::app::oracle
