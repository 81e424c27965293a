// Sums over any set of dimensions, in blocks that depend on the geometry alone.
#include "kernels_cpu/reduce.h"

#include <algorithm>

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

}  // namespace sinter
