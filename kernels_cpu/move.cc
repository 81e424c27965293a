// Movement of data: in runs of memory, as long as there are.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/backend/pad.h"
#include "kernels_cpu/runtime/parallel.h"

namespace sinter {
using namespace op;
namespace {

// f(row, first, last) for pieces [first, last) of rows of `columns` elements that make up all of
// `rows` of them, on several threads.
template <class F> void pieces_of_rows(int64_t rows, int64_t columns, const F& f) {
  parallel_ranges(rows * columns, kGrain, [&](int64_t begin, int64_t end) {
    int64_t row = begin / columns, first = begin % columns;
    for (; begin < end; ++row, first = 0) {
      const int64_t last = std::min(columns, first + end - begin);
      f(row, first, last);
      begin += last - first;
    }
  });
}

// ---- pad ----------------------------------------------------------------------------------------

// All dimensions but the last.
struct Outer {
  explicit Outer(const PadShape& g) : g(g) {}
  const PadShape& g;

  // The row of x that row `row` of y is made of; -1: none.
  int64_t source(int64_t row) const {
    int64_t from = 0, stride = 1;
    for (int d = g.rank - 2; d >= 0; --d) {
      const int64_t outer = row / g.out[d];
      const int64_t i = pad_source(g.mode, g.n[d], row - outer * g.out[d] - g.before[d]);
      if (i < 0) return -1;
      from += i * stride;
      stride *= g.n[d];
      row = outer;
    }
    return from;
  }

  // f(row of y) for those that are made of row `row` of x.
  template <class F> void readers(int64_t row, const F& f) const {
    int64_t index[kMaxRank];
    for (int d = g.rank - 2; d >= 0; --d) {
      index[d] = row % g.n[d];
      row /= g.n[d];
    }
    walk(0, index, 0, f);
  }

 private:
  template <class F> void walk(int d, const int64_t* index, int64_t row, const F& f) const {
    if (d == g.rank - 1) return f(row);
    const PadReaders readers(g.mode, g.n[d], g.before[d], g.out[d], index[d]);
    for (int k = 0; k < 3; ++k)
      for (int64_t i = readers.begin[k]; i < readers.end[k]; ++i)
        walk(d + 1, index, row * g.out[d] + i, f);
  }
};

template <class T> void pad(const PadShape& g, int64_t rows, T value, const T* x, T* y) {
  const Outer outer(g);
  const int last = g.rank - 1;
  const int64_t n = g.n[last], before = g.before[last], columns = g.out[last];
  pieces_of_rows(rows, columns, [&](int64_t row, int64_t begin, int64_t end) {
    T* to = y + row * columns;
    const int64_t source = outer.source(row);
    if (source < 0) {
      std::fill(to + begin, to + end, value);
      return;
    }
    const T* from = x + source * n;
    const auto around = [&](int64_t first, int64_t behind) {
      for (int64_t i = first; i < behind; ++i) {
        const int64_t at = pad_source(g.mode, n, i - before);
        to[i] = at < 0 ? value : from[at];
      }
    };
    const int64_t first = std::clamp(before, begin, end);
    const int64_t behind = std::clamp(before + n, first, end);
    around(begin, first);
    if (behind > first) std::copy_n(from + (first - before), behind - first, to + first);
    around(behind, end);
  });
}

template <class T> void pad_backward(const PadShape& g, int64_t rows, const T* dy, T* dx) {
  const Outer outer(g);
  const int last = g.rank - 1;
  const int64_t n = g.n[last], before = g.before[last], columns = g.out[last];
  parallel_ranges(rows, items_per_grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* to = dx + row * n;
      std::fill_n(to, n, T(0));
      outer.readers(row, [&](int64_t from_row) {
        const T* from = dy + from_row * columns;
        const int64_t first = std::clamp<int64_t>(before, 0, columns);
        const int64_t behind = std::clamp<int64_t>(before + n, first, columns);
        for (int64_t i = 0; i < first; ++i) to[pad_source(g.mode, n, i - before)] += from[i];
        for (int64_t i = first; i < behind; ++i) to[i - before] += from[i];
        for (int64_t i = behind; i < columns; ++i) to[pad_source(g.mode, n, i - before)] += from[i];
      });
    }
  });
}

int64_t rows_of(const Operand& x, int64_t columns) { return columns > 0 ? x.numel() / columns : 0; }

}  // namespace

void run(const Cpu&, const Concatenate& o) {
  std::vector<int64_t> first{0};  // of each x, in y's rows; then the end
  for (const In& x : o.x) first.push_back(first.back() + x.bytes() / o.outer);
  char* const y = o.y.data<char>();
  pieces_of_rows(o.outer, first.back(), [&](int64_t row, int64_t begin, int64_t end) {
    auto k = static_cast<size_t>(std::upper_bound(first.begin(), first.end(), begin) -
                                 first.begin() - 1);
    for (; begin < end; ++k) {
      const int64_t width = first[k + 1] - first[k], at = begin - first[k];
      const int64_t count = std::min(width - at, end - begin);
      std::memcpy(y + row * first.back() + begin, o.x[k].data<char>() + row * width + at,
                  static_cast<size_t>(count));
      begin += count;
    }
  });
}

void run(const Cpu&, const Pad& o) {
  with_any(o.y.dtype, [&]<class T>() {
    if (o.g.rank == 0) return void(*o.y.data<T>() = *o.x.data<T>());
    pad(o.g, rows_of(o.y, o.g.out[o.g.rank - 1]), element::number<T>(o.value), o.x.data<T>(),
        o.y.data<T>());
  });
}

void run(const Cpu&, const PadBackward& o) {
  with_floating(o.dy, [&]<class T>() {
    if (o.g.rank == 0) return void(*o.dx.data<T>() = *o.dy.data<T>());
    pad_backward(o.g, rows_of(o.dx, o.g.n[o.g.rank - 1]), o.dy.data<T>(), o.dx.data<T>());
  });
}

void run(const Cpu&, const Triangle& o) {
  with_any(o.x.dtype, [&]<class T>() {
    const T* x = o.x.data<T>();
    T* y = o.y.data<T>();
    pieces_of_rows(rows_of(o.y, o.columns), o.columns,
                   [&](int64_t row, int64_t begin, int64_t end) {
                     const T* from = x + row * o.columns;
                     T* to = y + row * o.columns;
                     // The diagonal's column, beyond any sum of two extents.
                     const int64_t far = std::clamp(o.diagonal, -o.rows, o.columns);
                     const int64_t at = row % o.rows + far + (o.upper ? 0 : 1);
                     const int64_t middle = std::clamp(at, begin, end);
                     if (o.upper) {
                       std::fill(to + begin, to + middle, T(0));
                       std::copy(from + middle, from + end, to + middle);
                     } else {
                       std::copy(from + begin, from + middle, to + begin);
                       std::fill(to + middle, to + end, T(0));
                     }
                   });
  });
}

}  // namespace sinter
