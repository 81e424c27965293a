// Reductions over any set of dimensions, in blocks that depend on the geometry alone, and what goes
// along one dimension: cumulative sums and order.
#include "kernels_cpu/reduce.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "core/backend/reductions.h"
#include "kernels_cpu/reduce_lanes.h"
#include "kernels_cpu/runtime/parallel.h"
#include "kernels_cpu/strided.h"

namespace sinter {
using namespace op;
namespace {

// Terms added before their sum goes to a total in double: a sum of any number of terms so loses
// what the additions of a block round away. In blocks of kWays sums, a vector's lanes and additions
// in flight, or of rows of kColumns.
constexpr int64_t kBlock = 256, kRows = 16;
constexpr int kWays = 16;
// Terms a chunk adds when one long sum is cut for several threads.
constexpr int64_t kLong = 32768;
constexpr int64_t kColumns = 64;

// Sum of `count` terms of a run.
template <class T> double sum_run(const T* x, int64_t stride, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count;) {
    const int64_t end = std::min(count, i + kBlock);
    T way[kWays] = {};
    if (stride == 1) {
      for (; i + kWays <= end; i += kWays) {
        for (int k = 0; k < kWays; ++k) way[k] += x[i + k];
      }
    }
    for (int k = 0; i < end; ++i, k = (k + 1) % kWays) way[k] += x[i * stride];
    for (int half = kWays / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) way[k] += way[k + half];
    }
    total += static_cast<double>(way[0]);
  }
  return total;
}

// Terms [begin, end) of the sum at x.
template <class T> double sum_terms(const Loops<1>& terms, const T* x, int64_t begin, int64_t end) {
  double total = 0;
  terms.runs(begin, end, [&](int64_t, const auto& offset, int64_t count) {
    total += sum_run(x + offset[0], terms.inner_stride(0), count);
  });
  return total;
}

// `width` neighbouring sums at once: y[j] = factor * (terms of x + j).
template <class T>
void sum_columns(const Loops<1>& terms, const T* x, int64_t width, double factor, T* y) {
  double total[kColumns] = {};
  T block[kColumns] = {};
  const auto flush = [&] {
    for (int64_t j = 0; j < width; ++j) {
      total[j] += static_cast<double>(block[j]);
      block[j] = 0;
    }
  };
  int64_t in_block = 0;
  terms.runs(0, terms.size(), [&](int64_t, const auto& offset, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const T* row = x + offset[0] + i * terms.inner_stride(0);
      for (int64_t j = 0; j < width; ++j) block[j] += row[j];
      if (++in_block == kRows) {
        flush();
        in_block = 0;
      }
    }
  });
  flush();
  for (int64_t j = 0; j < width; ++j) y[j] = static_cast<T>(factor * total[j]);
}

}  // namespace

template <class T>
void sum(const Strided& kept_by, const Strided& reduced, double factor, const T* x, T* y) {
  const auto kept = make_loops<1>(kept_by.rank, kept_by.shape, {kept_by.stride});
  const auto terms = make_loops<1>(reduced.rank, reduced.shape, {reduced.stride});
  const int64_t sums = kept.size(), count = terms.size();
  if (sums == 0) return;
  if (count == 0) {
    std::fill_n(y, sums, T(0));
    return;
  }

  // Neighbouring sums of strided terms: rows of several sums are read together.
  if (kept.inner() > 1 && kept.inner_stride(0) == 1 && terms.inner_stride(0) != 1) {
    const int64_t tiles = (kept.inner() + kColumns - 1) / kColumns;
    const int64_t rows = sums / kept.inner();
    const int64_t grain = items_per_grain(std::min(kept.inner(), kColumns) * count);
    return parallel_ranges(rows * tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i % tiles * kColumns, at = i / tiles * kept.inner() + column;
        sum_columns(terms, x + kept.offset(at)[0], std::min(kColumns, kept.inner() - column),
                    factor, y + at);
      }
    });
  }

  // Few long sums: chunks of terms, then their partial sums in order.
  const int64_t chunks = (count + kLong - 1) / kLong;
  if (chunks > 1 && sums < 64) {
    const Scratch<double> partial(sums * chunks);
    parallel_for(sums * chunks, [&](int64_t i) {
      const int64_t begin = i % chunks * kLong;
      partial.get()[i] =
          sum_terms(terms, x + kept.offset(i / chunks)[0], begin, std::min(count, begin + kLong));
    });
    for (int64_t i = 0; i < sums; ++i) {
      y[i] = static_cast<T>(factor * sum_run(partial.get() + i * chunks, 1, chunks));
    }
    return;
  }

  parallel_ranges(sums, items_per_grain(count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      y[i] = static_cast<T>(factor * sum_terms(terms, x + kept.offset(i)[0], 0, count));
    }
  });
}

template void sum(const Strided&, const Strided&, double, const float*, float*);
template void sum(const Strided&, const Strided&, double, const double*, double*);

void run(const Cpu&, const Sum& o) {
  with_floating(o.x,
                [&]<class T>() { sum(o.kept, o.reduced, o.factor, o.x.data<T>(), o.y.data<T>()); });
}

void run(const Cpu&, const SumSlices& o) {
  with_floating(o.y, [&]<class T>() {
    const int64_t slices = o.partial.shape[0], stride = o.partial.shape[1];
    const T* partial = o.partial.data<T>() + o.first;
    T* y = o.y.data<T>();
    parallel_ranges(o.y.numel(), items_per_grain(slices), [&](int64_t begin, int64_t end) {
      std::fill(y + begin, y + end, T(0));
      for (int64_t s = 0; s < slices; ++s) {
        for (int64_t i = begin; i < end; ++i) y[i] += partial[s * stride + i];
      }
    });
  });
}

// ---- reductions of any kind ---------------------------------------------------------------------

namespace {

// Columns that are read together: enough of a row for the memory to stream, and rows of them at a
// time, while the accumulators stay in registers.
constexpr int64_t kWide = 256, kTogether = 16;

// kWide accumulators beside each other; their parts lie apart where that lets loops over them
// become vectors.
template <class R> struct Lanes {
  static constexpr int64_t kVectorized = 0;  // lanes that rows() would take at a time
  typename R::Acc acc[kWide];
  void start(const R& r, int64_t k, typename R::Term first) { acc[k] = r.start(first); }
  void add(const R& r, int64_t k, typename R::Term v, int64_t j) { r.add(acc[k], v, j); }
  typename R::Acc get(int64_t k) const { return acc[k]; }
};

template <class T, bool kLargest> struct Lanes<reductions::BestAndPlace<T, kLargest>> {
  using R = reductions::BestAndPlace<T, kLargest>;
  static constexpr int64_t kVectorized = 0;
  T best[kWide];
  int64_t place[kWide];
  void start(const R& r, int64_t k, T first) {
    const typename R::Acc none = r.start(first);
    best[k] = none.best;
    place[k] = none.place;
  }
  void add(const R& r, int64_t k, T v, int64_t j) {
    // In ascending order: an equal one does not come first, unless nothing came before.
    const int better = reductions::beats<kLargest>(v, best[k]),
              first = place[k] == r.start(v).place;
    best[k] = (better | first) != 0 ? v : best[k];
    place[k] = (better | first) != 0 ? j : place[k];
  }
  typename R::Acc get(int64_t k) const { return {best[k], place[k]}; }
};

template <class T, bool kLargest> struct Lanes<reductions::Best<T, kLargest>> {
  using R = reductions::Best<T, kLargest>;
  static constexpr int64_t kVectorized = std::is_floating_point_v<T> ? kLaneGroup : 0;
  T best[kWide];
  void start(const R& r, int64_t k, T first) { best[k] = r.start(first); }
  void add(const R& r, int64_t k, T v, int64_t j) { r.add(best[k], v, j); }
  // Lanes k … k + kVectorized - 1 take x[i * stride], … for i < count.
  void rows(int64_t k, const T* x, int64_t stride, int64_t count) {
    best_of_rows(kLargest, x, stride, count, best + k);
  }
  typename R::Acc get(int64_t k) const { return best[k]; }
};

template <class T> struct Lanes<reductions::Moments<T>> {
  using R = reductions::Moments<T>;
  static constexpr int64_t kVectorized = kLaneGroup;
  double shift[kWide], sum[kWide], squares[kWide];
  void start(const R&, int64_t k, T first) {
    shift[k] = static_cast<double>(first);
    sum[k] = squares[k] = 0;
  }
  void add(const R&, int64_t k, T v, int64_t) {
    const double d = static_cast<double>(v) - shift[k];
    sum[k] += d;
    squares[k] += d * d;
  }
  void rows(int64_t k, const T* x, int64_t stride, int64_t count) {
    moments_of_rows(x, stride, count, shift + k, sum + k, squares + k);
  }
  typename R::Acc get(int64_t k) const { return {shift[k], sum[k], squares[k]}; }
};

template <class T> struct Lanes<reductions::PowerNorm<T, reductions::Power::kTwo>> {
  using R = reductions::PowerNorm<T, reductions::Power::kTwo>;
  static constexpr int64_t kVectorized = kLaneGroup;
  double zero[kWide], sum[kWide], squares[kWide];  // the sum costs nothing
  void start(const R&, int64_t k, T) { zero[k] = sum[k] = squares[k] = 0; }
  void add(const R& r, int64_t k, T v, int64_t j) { r.add(squares[k], v, j); }
  void rows(int64_t k, const T* x, int64_t stride, int64_t count) {
    moments_of_rows(x, stride, count, zero + k, sum + k, squares + k);
  }
  typename R::Acc get(int64_t k) const { return squares[k]; }
};

template <class T> struct Lanes<reductions::LogOfSum<T>> {
  using R = reductions::LogOfSum<T>;
  static constexpr int64_t kVectorized = kLaneGroup;
  T largest[kWide];
  double sum[kWide];
  void start(const R& r, int64_t k, T first) {
    largest[k] = r.start(first).largest;
    sum[k] = 0;
  }
  void add(const R& r, int64_t k, T v, int64_t j) {
    typename R::Acc acc = get(k);
    r.add(acc, v, j);
    largest[k] = acc.largest;
    sum[k] = acc.sum;
  }
  void rows(int64_t k, const T* x, int64_t stride, int64_t count) {
    powers_of_rows(x, stride, count, largest + k, sum + k);
  }
  typename R::Acc get(int64_t k) const { return {largest[k], sum[k]}; }
};

// Terms [begin, end) of the result at x. kTurns accumulators take turns, by a term's place alone.
constexpr int64_t kTurns = kLaneGroup;
template <class R> typename R::Acc fold_terms(const Loops<1>& terms, const typename R::Term* x,
                                              int64_t begin, int64_t end, const R& r) {
  Lanes<R> turn;
  for (int64_t k = 0; k < kTurns; ++k) turn.start(r, k, x[terms.offset(0)[0]]);
  const int64_t stride = terms.inner_stride(0);
  int64_t j = begin;
  terms.runs(begin, end, [&](int64_t, const auto& offset, int64_t count) {
    const typename R::Term* at = x + offset[0];
    int64_t i = 0;
    for (; i < count && j % kTurns != 0; ++i, ++j) turn.add(r, j % kTurns, at[i * stride], j);
    if (stride == 1) {
      const int64_t rounds = (count - i) / kTurns;
      if constexpr (Lanes<R>::kVectorized == kTurns) {
        turn.rows(0, at + i, kTurns, rounds);
      } else {
        for (int64_t n = 0; n < rounds; ++n) {
          for (int64_t k = 0; k < kTurns; ++k) {
            turn.add(r, k, at[i + n * kTurns + k], j + n * kTurns + k);
          }
        }
      }
      i += rounds * kTurns;
      j += rounds * kTurns;
    }
    for (; i < count; ++i, ++j) turn.add(r, j % kTurns, at[i * stride], j);
  });
  typename R::Acc acc[kTurns];
  for (int64_t k = 0; k < kTurns; ++k) acc[k] = turn.get(k);
  for (int64_t half = kTurns / 2; half > 0; half /= 2) {
    for (int64_t k = 0; k < half; ++k) r.merge(acc[k], acc[k + half]);
  }
  return acc[0];
}

// Terms [begin, end) of `width` neighbouring results, the first of them at x, in blocks of kBlock
// rows: what is added up in one go stays short.
template <class R> void fold_columns(const Loops<1>& terms, const typename R::Term* x,
                                     int64_t width, int64_t begin, int64_t end, const R& r,
                                     typename R::Acc* total) {
  const typename R::Term* first = x + terms.offset(0)[0];
  for (int64_t c = 0; c < width; ++c) total[c] = r.start(first[c]);
  const int64_t stride = terms.inner_stride(0);
  Lanes<R> lanes;
  for (int64_t j = begin; j < end;) {
    for (int64_t c = 0; c < width; ++c) lanes.start(r, c, first[c]);
    terms.runs(j, std::min(end, j + kBlock), [&](int64_t, const auto& offset, int64_t count) {
      const typename R::Term* rows = x + offset[0];
      int64_t vectors = 0;  // columns that are done
      if constexpr (Lanes<R>::kVectorized > 0) {
        vectors = width / Lanes<R>::kVectorized * Lanes<R>::kVectorized;
        for (int64_t k = 0; k < count; k += kTogether) {
          for (int64_t c = 0; c < vectors; c += Lanes<R>::kVectorized) {
            lanes.rows(c, rows + k * stride + c, stride, std::min(kTogether, count - k));
          }
        }
      }
      for (int64_t k = 0; k < count; ++k, ++j) {
        for (int64_t c = vectors; c < width; ++c) lanes.add(r, c, rows[k * stride + c], j);
      }
    });
    for (int64_t c = 0; c < width; ++c) r.merge(total[c], lanes.get(c));
  }
}

// As sum: along rows, down columns, or in chunks of few long ones.
template <class R>
void fold(const Strided& kept_by, const Strided& reduced, const typename R::Term* x, const R& r) {
  using Term = typename R::Term;
  using Acc = typename R::Acc;
  const auto kept = make_loops<1>(kept_by.rank, kept_by.shape, {kept_by.stride});
  const auto terms = make_loops<1>(reduced.rank, reduced.shape, {reduced.stride});
  const int64_t results = kept.size(), count = terms.size();
  if (results == 0) return;
  if (count == 0) {
    for (int64_t i = 0; i < results; ++i) r.finish(i, r.start(Term(0)));
    return;
  }

  if (kept.inner() > 1 && kept.inner_stride(0) == 1 && terms.inner_stride(0) != 1) {
    const int64_t tiles = (kept.inner() + kWide - 1) / kWide;
    const int64_t all_tiles = results / kept.inner() * tiles;
    // Few tall columns are cut for several threads.
    const int64_t tall = all_tiles < 64 ? kLong / std::min(kept.inner(), kWide) : count;
    const int64_t chunks = (count + tall - 1) / tall;
    const Scratch<Acc> partial(chunks > 1 ? all_tiles * chunks * kWide : 0);
    const auto tile_at = [&](int64_t tile, const auto& f) {  // f(first result, width)
      const int64_t column = tile % tiles * kWide;
      f(tile / tiles * kept.inner() + column, std::min(kWide, kept.inner() - column));
    };
    const int64_t grain = items_per_grain(std::min(kept.inner(), kWide) * tall);
    parallel_ranges(all_tiles * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        tile_at(i / chunks, [&](int64_t at, int64_t width) {
          const int64_t from = i % chunks * tall;
          Acc acc[kWide];
          fold_columns(terms, x + kept.offset(at)[0], width, from, std::min(count, from + tall), r,
                       acc);
          if (chunks > 1) {
            std::copy_n(acc, width, partial.get() + i * kWide);
          } else {
            for (int64_t c = 0; c < width; ++c) r.finish(at + c, acc[c]);
          }
        });
      }
    });
    if (chunks == 1) return;
    for (int64_t tile = 0; tile < all_tiles; ++tile) {
      tile_at(tile, [&](int64_t at, int64_t width) {
        Acc* const acc = partial.get() + tile * chunks * kWide;
        for (int64_t c = 0; c < width; ++c) {
          for (int64_t k = 1; k < chunks; ++k) r.merge(acc[c], acc[k * kWide + c]);
          r.finish(at + c, acc[c]);
        }
      });
    }
    return;
  }

  const int64_t chunks = (count + kLong - 1) / kLong;
  if (chunks > 1 && results < 64) {
    const Scratch<Acc> partial(results * chunks);
    parallel_for(results * chunks, [&](int64_t i) {
      const int64_t begin = i % chunks * kLong;
      partial.get()[i] = fold_terms(terms, x + kept.offset(i / chunks)[0], begin,
                                    std::min(count, begin + kLong), r);
    });
    for (int64_t i = 0; i < results; ++i) {
      Acc acc = partial.get()[i * chunks];
      for (int64_t c = 1; c < chunks; ++c) r.merge(acc, partial.get()[i * chunks + c]);
      r.finish(i, acc);
    }
    return;
  }

  parallel_ranges(results, items_per_grain(count), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      r.finish(i, fold_terms(terms, x + kept.offset(i)[0], 0, count, r));
    }
  });
}

constexpr auto kFold = [](const Strided& kept, const Strided& reduced, const auto* x,
                          const auto& r) { fold(kept, reduced, x, r); };

// dx[i] = gradient(i, the result that element i is a term of).
constexpr auto kEach = [](const Strided& rows, const Out& out, const auto& gradient) {
  using T = decltype(gradient(0, 0));
  T* dx = out.data<T>();
  const auto loops = make_loops<1>(rows.rank, rows.shape, {rows.stride});
  parallel_ranges(out.numel(), kGrain, [&](int64_t begin, int64_t end) {
    loops.runs(begin, end, [&](int64_t i, const auto& row, int64_t count) {
      const int64_t step = loops.inner_stride(0);
      if (step == 0) {
        for (int64_t k = 0; k < count; ++k) dx[i + k] = gradient(i + k, row[0]);
      } else {
        for (int64_t k = 0; k < count; ++k) dx[i + k] = gradient(i + k, row[0] + k * step);
      }
    });
  });
};

}  // namespace

void run(const Cpu&, const SumIntegers& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const Prod& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const ProdBackward& o) { reductions::visit(o, kEach); }
void run(const Cpu&, const Extremum& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const ExtremumBackward& o) { reductions::visit(o, kEach); }
void run(const Cpu&, const ArgExtremum& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const Variance& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const VarianceBackward& o) { reductions::visit(o, kEach); }
void run(const Cpu&, const Norm& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const NormBackward& o) { reductions::visit(o, kEach); }
void run(const Cpu&, const LogSumExp& o) { reductions::visit(o, kFold); }
void run(const Cpu&, const LogSumExpBackward& o) { reductions::visit(o, kEach); }
void run(const Cpu&, const AllOrAny& o) { reductions::visit(o, kFold); }

// ---- along one dimension ------------------------------------------------------------------------

namespace {

// f(at, width) for neighbouring rows along the middle dimension, the first of them at element `at`
// of the tensor's first slice, so that no more than kColumns go side by side.
template <class F> void side_by_side(const AlongShape& g, const F& f) {
  const int64_t tiles = (g.inner + kColumns - 1) / kColumns;
  const int64_t grain = items_per_grain(g.n * std::min(g.inner, kColumns));
  parallel_ranges(g.outer * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = i % tiles * kColumns;
      f(i / tiles * g.n * g.inner + column, std::min(kColumns, g.inner - column));
    }
  });
}

template <class T, class R> void cumsum(const AlongShape& g, bool reverse, const T* x, R* y) {
  if (g.inner == 1) {  // the total stays in a register
    return parallel_ranges(g.outer, items_per_grain(g.n), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        reductions::Total<T> total = 0;
        int64_t at = reverse ? (row + 1) * g.n - 1 : row * g.n;
        for (int64_t j = 0; j < g.n; ++j, at += reverse ? -1 : 1) {
          total += static_cast<reductions::Total<T>>(x[at]);
          y[at] = static_cast<R>(total);
        }
      }
    });
  }
  side_by_side(g, [&](int64_t at, int64_t width) {
    reductions::Total<T> total[kColumns] = {};
    for (int64_t j = 0; j < g.n; ++j) {
      const int64_t row = at + (reverse ? g.n - 1 - j : j) * g.inner;
      for (int64_t c = 0; c < width; ++c) {
        total[c] += static_cast<reductions::Total<T>>(x[row + c]);
        y[row + c] = static_cast<R>(total[c]);
      }
    }
  });
}

template <class T>
void sort(const AlongShape& g, int64_t k, bool descending, const T* x, T* values, int64_t* index) {
  const int64_t rows = g.outer * g.inner;
  const int64_t work = g.n * (1 + static_cast<int64_t>(std::log2(1.0 + static_cast<double>(g.n))));
  parallel_ranges(rows, items_per_grain(work), [&](int64_t begin, int64_t end) {
    const LocalScratch<int64_t> order(g.n);
    int64_t* const first = order.get();
    for (int64_t i = begin; i < end; ++i) {
      const T* row = x + i / g.inner * g.n * g.inner + i % g.inner;
      std::iota(first, first + g.n, int64_t{0});
      const auto before = [&](int64_t a, int64_t b) {
        return reductions::precedes(descending, row[a * g.inner], a, row[b * g.inner], b);
      };
      // A heap of k is the faster way while it is small.
      if (k < g.n / 16)
        std::partial_sort(first, first + k, first + g.n, before);
      else
        std::sort(first, first + g.n, before);
      int64_t out = i / g.inner * k * g.inner + i % g.inner;
      for (int64_t j = 0; j < k; ++j, out += g.inner) {
        values[out] = row[first[j] * g.inner];
        index[out] = first[j];
      }
    }
  });
}

template <class T>
void scatter_along(const AlongShape& g, int64_t k, const T* dy, const int64_t* index, T* dx) {
  parallel_ranges(g.outer, items_per_grain(g.n * g.inner), [&](int64_t begin, int64_t end) {
    std::fill(dx + begin * g.n * g.inner, dx + end * g.n * g.inner, T(0));
    for (int64_t o = begin; o < end; ++o) {
      const int64_t from = o * k * g.inner, to = o * g.n * g.inner;
      for (int64_t i = 0; i < k * g.inner; ++i) {
        dx[to + index[from + i] * g.inner + i % g.inner] = dy[from + i];
      }
    }
  });
}

}  // namespace

void run(const Cpu&, const CumSum& o) {
  with_any(o.x.dtype, [&]<class T>() {
    cumsum(o.g, o.reverse, o.x.data<T>(), o.y.data<reductions::Result<T>>());
  });
}

void run(const Cpu&, const Sort& o) {
  with_any(o.x.dtype, [&]<class T>() {
    sort(o.g, o.k, o.descending, o.x.data<T>(), o.values.data<T>(), o.index.data<int64_t>());
  });
}

void run(const Cpu&, const ScatterAlong& o) {
  with_floating(o.dy, [&]<class T>() {
    scatter_along(o.g, o.k, o.dy.data<T>(), o.index.data<int64_t>(), o.dx.data<T>());
  });
}

}  // namespace sinter
