#include "tests/reference/oracle_shape.h"

#include <functional>
#include <memory>
#include <tuple>
#include <utility>

#include "core/base/detail.h"
#include "sinter/ops.h"

namespace sinter::app {
namespace {

using oracle::Array;
using oracle::filled;
using oracle::noise;
using oracle::Sizes;
using Inputs = std::vector<Tensor>;

// An element of an input; input -1: a constant.
struct Place {
  int input = 0;
  Sizes at;
};

// y[at] = the element at source(at), which takes its gradient from there. `sums`: how many of dy at
// most meet in an element.
OpCase moved(const std::string& name, std::vector<Array> x, const Op& op, const Sizes& shape,
             const std::function<Place(const Sizes&)>& source, const std::string& how,
             double constant = 0, double sums = 0) {
  Array y = filled(shape);
  const Array dy = noise(shape, 9);
  std::vector<Array> dx;
  for (const Array& a : x) dx.push_back(filled(a.shape));
  oracle::for_each_index(shape, [&](const Sizes& at) {
    const Place from = source(at);
    const size_t k = oracle::offset(shape, at);
    if (from.input < 0) {
      y.v[k] = constant;
      return;
    }
    const auto i = static_cast<size_t>(from.input);
    const size_t place = oracle::offset(x[i].shape, from.at);
    y.v[k] = x[i].v[place];
    dx[i].v[place] += dy.v[k];
  });
  const std::vector<double> terms(x.size(), sums);
  return {name, std::move(x), op, y, dy, dx, 0, terms, how};
}

std::string text(const std::vector<int64_t>& list) {
  std::string all;
  for (const int64_t n : list) all += str(all.empty() ? "" : ", ", n);
  return "(" + all + ")";
}

size_t place(const Sizes& shape, int dim) {
  return static_cast<size_t>(dim < 0 ? dim + static_cast<int>(shape.size()) : dim);
}

OpCase select_case(const Sizes& shape, int dim, int64_t index) {
  const size_t d = place(shape, dim);
  Sizes rest = shape;
  rest.erase(rest.begin() + static_cast<ptrdiff_t>(d));
  const int64_t i = index < 0 ? index + shape[d] : index;
  return moved(
      "select", {noise(shape, 1)}, [=](const Inputs& in) { return select(in[0], dim, index); },
      rest,
      [=](Sizes at) {
        at.insert(at.begin() + static_cast<ptrdiff_t>(d), i);
        return Place{0, at};
      },
      str("x ", Shape(shape), ", dim ", dim, ", index ", index));
}

OpCase expand_case(const Sizes& shape, const Sizes& to) {
  Sizes full = to;
  const size_t added = to.size() - shape.size();
  for (size_t d = added; d < to.size(); ++d)
    if (full[d] == -1) full[d] = shape[d - added];
  return moved(
      "expand", {noise(shape, 1)}, [=](const Inputs& in) { return expand(in[0], Shape(to)); }, full,
      [=](const Sizes& at) {
        Sizes from(at.begin() + static_cast<ptrdiff_t>(added), at.end());
        for (size_t d = 0; d < from.size(); ++d)
          if (shape[d] == 1) from[d] = 0;
        return Place{0, from};
      },
      str("x ", Shape(shape), " to ", text(to)), 0, static_cast<double>(oracle::count(full)));
}

OpCase flip_case(const Sizes& shape, const std::vector<int>& dims) {
  return moved(
      "flip", {noise(shape, 1)}, [=](const Inputs& in) { return flip(in[0], dims); }, shape,
      [=](Sizes at) {
        for (const int dim : dims) {
          const size_t d = place(shape, dim);
          at[d] = shape[d] - 1 - at[d];
        }
        return Place{0, at};
      },
      str("x ", Shape(shape)));
}

OpCase stack_case(const Sizes& shape, int count, int dim) {
  Sizes full = shape;
  const size_t d = static_cast<size_t>(dim < 0 ? dim + static_cast<int>(shape.size()) + 1 : dim);
  full.insert(full.begin() + static_cast<ptrdiff_t>(d), count);
  std::vector<Array> x;
  for (int k = 0; k < count; ++k) x.push_back(noise(shape, static_cast<uint64_t>(k) + 1));
  return moved(
      "stack", x, [=](const Inputs& in) { return stack(in, dim); }, full,
      [=](Sizes at) {
        const auto k = static_cast<int>(at[d]);
        at.erase(at.begin() + static_cast<ptrdiff_t>(d));
        return Place{k, at};
      },
      str(count, " of ", Shape(shape), ", dim ", dim));
}

// Parts weighted by their places, which a wrong order would show.
OpCase parts_case(const std::string& name, const Sizes& shape, int dim,
                  const std::vector<int64_t>& sizes,
                  const std::function<std::vector<Tensor>(const Tensor&)>& parts) {
  const size_t d = place(shape, dim);
  const Array x = noise(shape, 1), dy = noise(shape, 9);
  Array y = x, dx = dy;
  oracle::for_each_index(shape, [&](const Sizes& at) {
    int64_t part = 0, left = at[d];
    while (left >= sizes[static_cast<size_t>(part)]) left -= sizes[static_cast<size_t>(part++)];
    const size_t k = oracle::offset(shape, at);
    y.v[k] *= static_cast<double>(part + 1);
    dx.v[k] *= static_cast<double>(part + 1);
  });
  return {name,
          {x},
          [=](const Inputs& in) {
            std::vector<Tensor> weighted;
            for (const Tensor& part : parts(in[0]))
              weighted.push_back(part * static_cast<double>(weighted.size() + 1));
            return cat(weighted, dim);
          },
          y,
          dy,
          {dx},
          1,
          {1},
          str("x ", Shape(shape), ", dim ", dim, ", parts of ", text(sizes))};
}

}  // namespace

OpCase narrow_case(const Sizes& shape, int dim, int64_t start, int64_t length) {
  const size_t d = place(shape, dim);
  Sizes y = shape;
  y[d] = length;
  return moved(
      "narrow", {noise(shape, 1)},
      [=](const Inputs& in) { return narrow(in[0], dim, start, length); }, y,
      [=](Sizes at) {
        at[d] += start;
        return Place{0, at};
      },
      str("x ", Shape(shape), ", dim ", dim, ", ", length, " from ", start));
}

OpCase pad_case(const Sizes& shape, const std::vector<int64_t>& padding, const std::string& mode) {
  constexpr double kValue = 0.375;
  Sizes y = shape, before(shape.size(), 0);
  for (size_t k = 0; 2 * k < padding.size(); ++k) {
    const size_t d = shape.size() - 1 - k;
    before[d] = padding[2 * k];
    y[d] += padding[2 * k] + padding[2 * k + 1];
  }
  return moved(
      "pad", {noise(shape, 1)},
      [=](const Inputs& in) { return pad(in[0], padding, mode, mode == "constant" ? kValue : 0); },
      y,
      [=](Sizes at) {
        for (size_t d = 0; d < at.size(); ++d) {
          const int64_t n = shape[d];
          int64_t& i = at[d] -= before[d];
          if (i >= 0 && i < n) continue;
          if (mode == "constant") return Place{-1, {}};
          if (mode == "reflect") i = i < 0 ? -i : 2 * n - 2 - i;
          if (mode == "replicate") i = i < 0 ? 0 : n - 1;
          if (mode == "circular") i = (i + n) % n;
        }
        return Place{0, at};
      },
      str("x ", Shape(shape), ", ", text(padding), ", ", mode), kValue,
      static_cast<double>(oracle::count(y)));
}

OpCase cat_case(const std::vector<Sizes>& shapes, int dim) {
  const size_t d = place(shapes[0], dim);
  Sizes y = shapes[0];
  y[d] = 0;
  std::vector<Array> x;
  std::string how;
  for (const Sizes& shape : shapes) {
    x.push_back(noise(shape, x.size() + 1));
    y[d] += shape[d];
    how += str(how.empty() ? "" : " and ", Shape(shape));
  }
  return moved(
      "cat", x, [=](const Inputs& in) { return cat(in, dim); }, y,
      [=](Sizes at) {
        int k = 0;
        while (at[d] >= shapes[static_cast<size_t>(k)][d])
          at[d] -= shapes[static_cast<size_t>(k++)][d];
        return Place{k, at};
      },
      how + str(", dim ", dim));
}

OpCase triangle_case(const Sizes& shape, int64_t diagonal, bool upper) {
  return moved(
      upper ? "triu" : "tril", {noise(shape, 1)},
      [=](const Inputs& in) { return upper ? triu(in[0], diagonal) : tril(in[0], diagonal); },
      shape,
      [=](const Sizes& at) {
        const int64_t right = at[at.size() - 1] - at[at.size() - 2] - diagonal;
        return Place{(upper ? right >= 0 : right <= 0) ? 0 : -1, at};
      },
      str("x ", Shape(shape), ", diagonal ", diagonal));
}

OpCase gather_case(const Sizes& shape, int dim, const Sizes& of) {
  const size_t d = place(shape, dim);
  const std::vector<int64_t> index = random_labels(oracle::count(of), shape[d], 3);
  return moved(
      "gather", {noise(shape, 1)},
      [=](const Inputs& in) {
        return gather(in[0], dim, from_vector(index, Shape(of), in[0].device()));
      },
      of,
      [=](Sizes at) {
        at[d] = index[oracle::offset(of, at)];
        return Place{0, at};
      },
      str("x ", Shape(shape), ", dim ", dim, ", index ", Shape(of)), 0, static_cast<double>(of[d]));
}

OpCase index_select_case(const Sizes& shape, int dim, int64_t count) {
  const size_t d = place(shape, dim);
  const std::vector<int64_t> index = random_labels(count, shape[d], 4);
  Sizes y = shape;
  y[d] = count;
  return moved(
      "index_select", {noise(shape, 1)},
      [=](const Inputs& in) {
        return index_select(in[0], dim, from_vector(index, {count}, in[0].device()));
      },
      y,
      [=](Sizes at) {
        at[d] = index[static_cast<size_t>(at[d])];
        return Place{0, at};
      },
      str("x ", Shape(shape), ", dim ", dim, ", ", count, " indices"), 0,
      static_cast<double>(count));
}

OpCase embedding_case(const Sizes& of, const Sizes& weight, int64_t padding_idx) {
  const std::vector<int64_t> index = random_labels(oracle::count(of), weight[0], 5);
  Sizes y = of;
  y.insert(y.end(), weight.begin() + 1, weight.end());
  OpCase c = moved(
      "embedding", {noise(weight, 1)},
      [=](const Inputs& in) {
        return embedding(from_vector(index, Shape(of), in[0].device()), in[0], padding_idx);
      },
      y,
      [=](const Sizes& at) {
        const Sizes row(at.begin(), at.begin() + static_cast<ptrdiff_t>(of.size()));
        Sizes from(at.begin() + static_cast<ptrdiff_t>(of.size()), at.end());
        from.insert(from.begin(), index[oracle::offset(of, row)]);
        return Place{0, from};
      },
      str("index ", Shape(of), ", weight ", Shape(weight), ", padding_idx ", padding_idx), 0,
      static_cast<double>(oracle::count(of)));
  const int64_t width = oracle::count(weight) / weight[0];
  for (int64_t i = 0; i < width; ++i)
    c.grads[0].v[static_cast<size_t>(padding_idx * width + i)] = 0;
  return c;
}

void add_shape_cases(std::vector<VerifyCase>& cases) {
  const auto add = [&](const char* name, const std::function<OpCase()>& make) {
    cases.push_back({name, Reference::kOracle, [make] {
                       auto made = std::make_shared<const OpCase>(make());
                       return PreparedCheck{made->how, [made](TensorOptions o, Mode mode) {
                                              return compare_with_oracle(*made, o, mode);
                                            }};
                     }});
  };
  for (const auto& [shape, dim, start, length] :
       {std::tuple<Sizes, int, int64_t, int64_t>{{5, 3, 2}, 0, 1, 3},
        {{5, 3, 2}, 1, 1, 2},
        {{5, 7}, 1, 2, 3},
        {{3, 4, 37}, -1, 5, 31},
        {{3, 70, 64}, 1, 3, 40},
        {{2, 4}, 1, 4, 0}})
    add("narrow",
        [=, s = shape, d = dim, b = start, n = length] { return narrow_case(s, d, b, n); });
  for (const auto& [dim, index] : {std::pair{0, 2}, {1, -1}, {2, 0}})
    add("select", [d = dim, i = index] { return select_case({4, 5, 3}, d, i); });
  for (const auto& [from, to] : {std::pair<Sizes, Sizes>{{3, 1}, {-1, 4}},
                                 {{1, 5}, {2, 3, -1}},
                                 {{2, 3}, {2, 3}},
                                 {{1}, {33, 70}}})
    add("expand", [f = from, t = to] { return expand_case(f, t); });
  for (const auto& [shape, dims] : {std::pair<Sizes, std::vector<int>>{{7}, {0}},
                                    {{3, 5}, {1}},
                                    {{3, 5, 2}, {0, -1}},
                                    {{4, 3, 37}, {2}},
                                    {{4, 33, 8}, {1}},
                                    {{2, 3}, {}}})
    add("flip", [s = shape, d = dims] { return flip_case(s, d); });
  add("split", [] {
    return parts_case("split", {5, 3}, 0, {2, 2, 1}, [](const Tensor& x) { return split(x, 2); });
  });
  add("split", [] {
    return parts_case("split", {3, 7, 2}, 1, {3, 0, 4}, [](const Tensor& x) {
      return split(x, {3, 0, 4}, 1);
    });
  });
  add("chunk", [] {
    return parts_case("chunk", {3, 7}, -1, {3, 3, 1},
                      [](const Tensor& x) { return chunk(x, 3, -1); });
  });
  add("cat", [] { return cat_case({{2, 3}, {1, 3}, {4, 3}}, 0); });
  add("cat", [] { return cat_case({{2, 3, 2}, {2, 0, 2}, {2, 5, 2}}, 1); });
  add("cat", [] { return cat_case({{33, 17}, {33, 1}, {33, 4}}, -1); });
  add("cat", [] { return cat_case(std::vector<Sizes>(70, {3, 2}), 1); });
  for (const int dim : {0, 1, -1}) add("stack", [=] { return stack_case({3, 4}, 3, dim); });
  for (const std::string mode : {"constant", "reflect", "replicate", "circular"}) {
    add("pad", [=] { return pad_case({2, 3, 5, 4}, {3, 2, 1, 4}, mode); });
    add("pad", [=] { return pad_case({2, 6, 3, 5}, {2, 0, 2, 1, 5, 3}, mode); });
    add("pad", [=] { return pad_case({2, 5, 9}, {0, 0, 4, 1}, mode); });
  }
  for (const std::string mode : {"constant", "reflect", "replicate"})
    add("pad", [=] { return pad_case({2, 5, 9}, {-2, 3, 1, -3}, mode); });
  for (const bool upper : {false, true})
    for (const int64_t diagonal : {-40, -2, 0, 1, 40})
      add(upper ? "triu" : "tril", [=] { return triangle_case({2, 9, 35}, diagonal, upper); });
  add("gather", [] { return gather_case({5, 3}, 0, {7, 3}); });
  add("gather", [] { return gather_case({4, 6, 3}, 1, {2, 9, 2}); });
  add("gather", [] { return gather_case({4, 6}, -1, {3, 1}); });
  add("gather", [] { return gather_case({3, 50, 70}, 1, {2, 300, 67}); });
  add("index_select", [] { return index_select_case({5, 3}, 0, 8); });
  add("index_select", [] { return index_select_case({4, 6, 33}, 1, 300); });
  add("index_select", [] { return index_select_case({3, 3}, -1, 500); });
  add("embedding", [] { return embedding_case({3, 4}, {6, 5}, 2); });
  add("embedding", [] { return embedding_case({500}, {3, 40}, 0); });
}

}  // namespace sinter::app
