#include "sinter/operators/indexing.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/base/detail.h"
#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/strided.h"
#include "sinter/check.h"

namespace sinter {
using namespace op;
namespace {

// Throws ValueError for the first index that is not below `limit`.
void check(Indexing by, const In& index, int64_t limit) {
  const int64_t* const i = index.data<int64_t>();
  const int64_t n = index.numel();
  std::atomic<int64_t> first{n};
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (i[k] >= 0 && i[k] < limit) continue;
      int64_t known = first.load();
      while (k < known && !first.compare_exchange_weak(known, k)) {
      }
      return;
    }
  });
  if (const int64_t k = first.load(); k < n)
    throw ValueError(str(name(by), ": index[", k, "] = ", i[k], ", expected 0 <= index < ", limit));
}

template <class T> void copy_row(int64_t n, const T* x, T* y) {
  if (n < 16)
    for (int64_t i = 0; i < n; ++i) y[i] = x[i];
  else
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(T));
}

template <class T>
void index_select(const AlongShape& g, int64_t k, const int64_t* index, const T* x, T* y) {
  parallel_ranges(g.outer * k, items_per_grain(g.inner), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      copy_row(g.inner, x + (row / k * g.n + index[row % k]) * g.inner, y + row * g.inner);
  });
}

template <class T> void index_select_backward(const AlongShape& g, int64_t k, int64_t skip,
                                              const int64_t* index, const T* dy, T* dx) {
  // Where each index stands, by counting: index by index, in ascending order.
  const Scratch<int64_t> places(k), begin_of(g.n + 2);
  int64_t *const place = places.get(), *const begin = begin_of.get();
  std::fill_n(begin, g.n + 2, int64_t{0});
  for (int64_t i = 0; i < k; ++i) ++begin[index[i] + 2];
  for (int64_t j = 1; j < g.n; ++j) begin[j + 2] += begin[j + 1];
  for (int64_t i = 0; i < k; ++i)
    place[begin[index[i] + 1]++] = i;  // now the ends of the one before
  parallel_ranges(g.outer * g.n, items_per_grain(g.inner), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t outer = row / g.n, j = row - outer * g.n;
      T* to = dx + row * g.inner;
      const int64_t end = begin[j + 1];
      int64_t p = begin[j];
      if (p == end || j == skip) {
        std::fill_n(to, g.inner, T(0));
        continue;
      }
      copy_row(g.inner, dy + (outer * k + place[p]) * g.inner, to);
      while (++p < end) {
        const T* from = dy + (outer * k + place[p]) * g.inner;
        for (int64_t c = 0; c < g.inner; ++c) to[c] += from[c];
      }
    }
  });
}

// f(place of an index, offset of its line) for all, those of a line in ascending order by one
// thread.
template <class F> void each_index(const GatherLines& g, const F& f) {
  constexpr int64_t kLines = 64;  // beside each other, taken together
  const auto lines = make_loops<1>(g.lines.rank, g.lines.shape, {g.lines.stride});
  const int64_t n = g.index.n, inner = g.index.inner, blocks = (inner + kLines - 1) / kLines;
  const int64_t work = n * std::min(inner, kLines);
  parallel_ranges(g.index.outer * blocks, items_per_grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t outer = block / blocks, first = block % blocks * kLines;
      const int64_t count = std::min(kLines, inner - first);
      int64_t at[kLines];
      for (int64_t i = 0; i < count; ++i) at[i] = lines.offset(outer * inner + first + i)[0];
      for (int64_t k = 0; k < n; ++k)
        for (int64_t i = 0; i < count; ++i) f((outer * n + k) * inner + first + i, at[i]);
    }
  });
}

}  // namespace

void run(const Cpu&, const IndexSelect& o) {
  check(o.by, o.index, o.g.n);
  if (o.y.numel() == 0) return;
  with_any(o.x.dtype, [&]<class T>() {
    index_select(o.g, o.index.numel(), o.index.data<int64_t>(), o.x.data<T>(), o.y.data<T>());
  });
}

void run(const Cpu&, const IndexSelectBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    index_select_backward(o.g, o.index.numel(), o.skip, o.index.data<int64_t>(), o.dy.data<T>(),
                          o.dx.data<T>());
  });
}

void run(const Cpu&, const Gather& o) {
  check(Indexing::kGather, o.index, o.g.limit);
  with_any(o.x.dtype, [&]<class T>() {
    const int64_t* const index = o.index.data<int64_t>();
    const T* x = o.x.data<T>();
    T* y = o.y.data<T>();
    each_index(o.g, [&](int64_t i, int64_t line) { y[i] = x[line + index[i] * o.g.step]; });
  });
}

void run(const Cpu& ctx, const GatherBackward& o) {
  run(ctx, Fill{0, o.dx});
  with_floating(o.dy, [&]<class T>() {
    const int64_t* const index = o.index.data<int64_t>();
    const T* dy = o.dy.data<T>();
    T* dx = o.dx.data<T>();
    each_index(o.g, [&](int64_t i, int64_t line) { dx[line + index[i] * o.g.step] += dy[i]; });
  });
}

void run(const Cpu& ctx, const OneHot& o) {
  check(Indexing::kOneHot, o.index, o.classes);
  run(ctx, Fill{0, o.y});
  const int64_t* const index = o.index.data<int64_t>();
  int64_t* const y = o.y.data<int64_t>();
  for (int64_t i = 0; i < o.index.numel(); ++i) y[i * o.classes + index[i]] = 1;
}

}  // namespace sinter
