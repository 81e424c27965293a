#include "tests/reference/oracle_attention.h"

#include <cmath>
#include <limits>

#include "core/base/detail.h"

namespace sinter::app {

using oracle::Array;
using oracle::count;
using oracle::filled;
using oracle::noise;
using oracle::offset;
using oracle::Sizes;

namespace {

struct Attended {
  Array y, dq, dk, dv, dmask;
};

Sizes without_last(const Sizes& shape, size_t n) {
  return Sizes(shape.begin(), shape.end() - static_cast<ptrdiff_t>(n));
}
Sizes followed_by(Sizes shape, const Sizes& rest) {
  shape.insert(shape.end(), rest.begin(), rest.end());
  return shape;
}

// One query after another, each with all its weights. mask is added to the scores.
Attended attend(const AttentionCase& c, const Array& q, const Array& k, const Array& v,
                const Array& mask) {
  const auto L = static_cast<size_t>(q.shape[q.shape.size() - 2]);
  const auto S = static_cast<size_t>(k.shape[k.shape.size() - 2]);
  const auto E = static_cast<size_t>(q.shape.back()), Ev = static_cast<size_t>(v.shape.back());
  const Sizes lead_q = without_last(q.shape, 2), lead_k = without_last(k.shape, 2);
  const Sizes lead_v = without_last(v.shape, 2);
  Sizes batch;
  if (c.gqa) {
    batch = followed_by(
        oracle::broadcast(without_last(lead_q, 1),
                          oracle::broadcast(without_last(lead_k, 1), without_last(lead_v, 1))),
        {lead_q.back()});
  } else {
    batch = oracle::broadcast(lead_q, oracle::broadcast(lead_k, lead_v));
  }
  // Of the head of k, or v, that serves the head `at` of q.
  const auto head = [&](const Sizes& lead, Sizes at) {
    if (c.gqa) at.back() = at.back() / (batch.back() / lead.back());
    return offset(lead, at);
  };
  const double scale = c.scale ? *c.scale : E > 0 ? 1 / std::sqrt(static_cast<double>(E)) : 1;
  Attended r{filled(followed_by(batch, {static_cast<int64_t>(L), static_cast<int64_t>(Ev)})),
             filled(q.shape), filled(k.shape), filled(v.shape), filled(mask.shape)};
  const Array dy = noise(r.y.shape, 4);
  oracle::for_each_index(batch, [&](const Sizes& at) {
    const size_t h = offset(batch, at);
    const double* Q = q.v.data() + offset(lead_q, at) * L * E;
    const double* K = k.v.data() + head(lead_k, at) * S * E;
    const double* V = v.v.data() + head(lead_v, at) * S * Ev;
    double* dQ = r.dq.v.data() + offset(lead_q, at) * L * E;
    double* dK = r.dk.v.data() + head(lead_k, at) * S * E;
    double* dV = r.dv.v.data() + head(lead_v, at) * S * Ev;
    for (size_t i = 0; i < L; ++i) {
      const auto mask_at = [&](size_t j) {
        return offset(mask.shape,
                      followed_by(at, {static_cast<int64_t>(i), static_cast<int64_t>(j)}));
      };
      std::vector<double> p(S), dp(S);
      double largest = -std::numeric_limits<double>::infinity();
      for (size_t j = 0; j < S; ++j) {
        double dot = 0;
        for (size_t e = 0; e < E; ++e) dot += Q[i * E + e] * K[j * E + e];
        p[j] = scale * dot + mask.v[mask_at(j)];
        if (c.causal && j > i) p[j] = -std::numeric_limits<double>::infinity();
        largest = std::max(largest, p[j]);
      }
      if (std::isinf(largest)) continue;  // no key to be seen
      double total = 0;
      for (double& x : p) total += x = std::exp(x - largest);
      for (double& x : p) x /= total;
      const double* dY = dy.v.data() + (h * L + i) * Ev;
      double mean = 0;
      for (size_t j = 0; j < S; ++j) {
        for (size_t e = 0; e < Ev; ++e) {
          r.y.v[(h * L + i) * Ev + e] += p[j] * V[j * Ev + e];
          dV[j * Ev + e] += p[j] * dY[e];
          dp[j] += dY[e] * V[j * Ev + e];
        }
        mean += p[j] * dp[j];
      }
      for (size_t j = 0; j < S; ++j) {
        const double ds = p[j] * (dp[j] - mean);
        r.dmask.v[mask_at(j)] += ds;
        for (size_t e = 0; e < E; ++e) {
          dQ[i * E + e] += scale * ds * K[j * E + e];
          dK[j * E + e] += scale * ds * Q[i * E + e];
        }
      }
    }
  });
  return r;
}

}  // namespace

OpCase attention_case(const AttentionCase& c) {
  using Mask = AttentionCase::Mask;
  const Array q = noise(c.q, 1), k = noise(c.k, 2), v = noise(c.v, 3);
  Array mask = c.mask == Mask::kNone ? filled({}) : noise(c.mask_shape, 5);
  const double out = -std::numeric_limits<double>::infinity();
  if (c.mask == Mask::kBool) mask = oracle::map(mask, [&](double x) { return x < -0.5 ? out : 0; });
  if (c.none_seen >= 0) {
    oracle::for_each_index(mask.shape, [&](const Sizes& at) {
      if (at[at.size() - 2] == c.none_seen) mask.v[offset(mask.shape, at)] = out;
    });
  }
  const Attended r = attend(c, q, k, v, mask);
  const bool trained = c.mask == Mask::kNumbers && c.none_seen < 0;
  OpCase result;
  result.what = "scaled_dot_product_attention";
  result.inputs = {q, k, v};
  result.y = r.y;
  result.dy = noise(r.y.shape, 4);
  result.grads = {r.dq, r.dk, r.dv};
  if (trained) {
    result.inputs.push_back(mask);
    result.grads.push_back(r.dmask);
  }
  result.op = [=](const std::vector<Tensor>& in) {
    AttentionOptions o;
    o.is_causal = c.causal;
    o.scale = c.scale;
    o.enable_gqa = c.gqa;
    if (trained) {
      o.attn_mask = in[3];
    } else if (c.mask == Mask::kBool) {
      std::vector<uint8_t> seen;
      for (const double x : mask.v) seen.push_back(x == 0);
      o.attn_mask = from_vector(seen, Shape(mask.shape), in[0].device()).to(kBool);
    } else if (c.mask == Mask::kNumbers) {
      o.attn_mask = tensor(mask, in[0].options());
    }
    return scaled_dot_product_attention(in[0], in[1], in[2], o);
  };
  // Weights carry the roundings of a score; what is summed of them is at most theirs.
  const auto L = static_cast<double>(c.q[c.q.size() - 2]);
  const auto S = static_cast<double>(c.k[c.k.size() - 2]);
  const auto depth = static_cast<double>(c.q.back() + c.v.back());
  const auto shared = [&](const Array& x, double columns) {
    const auto elements = static_cast<double>(x.v.size());
    const auto all = static_cast<double>(r.y.v.size()) / static_cast<double>(c.v.back()) * columns;
    return elements > 0 && c.v.back() > 0 ? all / elements : 1;
  };
  result.y_terms = depth + S;
  result.terms = {(depth + S) * shared(q, static_cast<double>(c.q.back())),
                  depth + L * std::max(1.0, shared(k, S / L * static_cast<double>(c.k.back()))),
                  depth + L * std::max(1.0, shared(v, S / L * static_cast<double>(c.v.back())))};
  if (trained) result.terms.push_back(depth + S + shared(mask, S));
  result.how = str("q ", Shape(c.q), ", k ", Shape(c.k), ", v ", Shape(c.v));
  if (c.mask != Mask::kNone)
    result.how += str(c.mask == Mask::kBool ? ", bool mask " : ", mask ", Shape(c.mask_shape));
  if (c.none_seen >= 0) result.how += str(", query ", c.none_seen, " without a key");
  if (c.causal) result.how += ", causal";
  if (c.scale) result.how += str(", scale ", *c.scale);
  if (c.gqa) result.how += ", shared heads";
  return result;
}

void add_attention_cases(std::vector<VerifyCase>& cases) {
  using Mask = AttentionCase::Mask;
  std::vector<AttentionCase> all = {
      {{5, 4}, {7, 4}, {7, 6}},
      {{2, 3, 5, 4}, {2, 3, 7, 4}, {2, 3, 7, 6}, Mask::kBool, {5, 7}},
      {{2, 3, 5, 4}, {2, 3, 7, 4}, {2, 3, 7, 6}, Mask::kNumbers, {2, 1, 1, 7}},
      {{2, 3, 5, 4}, {2, 3, 7, 4}, {2, 3, 7, 6}, Mask::kNumbers, {2, 3, 5, 7}},
      {{2, 9, 4}, {2, 6, 4}, {2, 6, 5}, Mask::kBool, {9, 6}, false, {}, false, 3},
      {{2, 9, 4}, {2, 6, 4}, {2, 6, 5}, Mask::kNumbers, {9, 6}, false, {}, false, 3},
      {{2, 1, 3, 4}, {3, 5, 4}, {2, 3, 5, 6}},
      {{2, 6, 5, 4}, {2, 2, 7, 4}, {1, 2, 7, 3}, Mask::kNone, {}, true, 0.3, true}};
  for (const int64_t e : {1, 32, 64, 80, 128})
    for (const bool causal : {false, true}) {
      all.push_back({{2, 130, e}, {2, 67, e}, {2, 67, e}, Mask::kNone, {}, causal});
      all.push_back({{1, 65, e}, {1, 257, e}, {1, 257, 64}, Mask::kNone, {}, causal});
    }
  for (const AttentionCase& c : all) {
    cases.push_back({"scaled_dot_product_attention", Reference::kOracle, [c] {
                       auto made = std::make_shared<const OpCase>(attention_case(c));
                       return PreparedCheck{made->how, [made](TensorOptions o, Mode mode) {
                                              return compare_with_oracle(*made, o, mode);
                                            }};
                     }});
  }
}

}  // namespace sinter::app
