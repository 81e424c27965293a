#include "tests/reference/oracle_attention.h"
#include "tests/support/compiled.h"
#include "tests/support/gradient_check.h"

namespace sinter::test {
namespace {

using app::AttentionCase;
using Mask = AttentionCase::Mask;

void check(Device device, const AttentionCase& c) { check_op(app::attention_case(c), device); }

}  // namespace

DEVICE_TEST("attention: hand-computed case", "[attention]") {
  // Scores log 3 and 0: weights 3/4 and 1/4.
  const double third = std::log(3.0);
  const Array q{{1, 1}, {third}}, k{{2, 1}, {1, 0}}, v{{2, 2}, {4, 0, 0, 8}};
  const Array y{{1, 2}, {3, 2}}, dy{{1, 2}, {1, -1}};
  // dp = (4, -8), its mean 1: ds = (3/4 * 3, 1/4 * -9).
  check_op({"attention",
            {q, k, v},
            [](const std::vector<Tensor>& in) {
              return scaled_dot_product_attention(in[0], in[1], in[2]);
            },
            y,
            dy,
            {{{1, 1}, {2.25}},
             {{2, 1}, {2.25 * third, -2.25 * third}},
             {{2, 2}, {0.75, -0.75, 0.25, -0.25}}},
            8,
            {8, 8, 8}},
           device);
}

DEVICE_TEST("attention: lengths and depths", "[attention]") {
  for (const int64_t e : {1, 3, 32, 64, 80, 128, 200})
    for (const bool causal : {false, true}) {
      check(device, {{2, 130, e}, {2, 67, e}, {2, 67, e}, Mask::kNone, {}, causal});
      check(device, {{1, 65, e}, {1, 257, e}, {1, 257, 64}, Mask::kNone, {}, causal});
      check(device, {{1, 33, 64}, {1, 31, 64}, {1, 31, e}, Mask::kNone, {}, causal});
    }
  for (const int64_t l : {1, 2, 15, 16, 17, 63, 64, 65, 129})
    for (const int64_t s : {1, 2, 31, 32, 33, 64, 65, 300})
      for (const bool causal : {false, true})
        check(device, {{3, l, 8}, {3, s, 8}, {3, s, 5}, Mask::kNone, {}, causal});
}

DEVICE_TEST("attention: dimensions that broadcast", "[attention]") {
  check(device, {{5, 4}, {7, 4}, {7, 6}});
  check(device, {{5, 4}, {2, 7, 4}, {2, 7, 6}});
  check(device, {{2, 1, 5, 4}, {3, 7, 4}, {2, 3, 7, 6}});
  check(device, {{2, 3, 5, 4}, {7, 4}, {1, 3, 7, 6}});
  check(device, {{2, 1, 2, 3, 5, 4}, {1, 3, 2, 3, 7, 4}, {7, 6}});
}

DEVICE_TEST("attention: masks", "[attention]") {
  const Sizes q{2, 3, 70, 16}, k{2, 3, 90, 16}, v{2, 3, 90, 8};
  for (const Mask mask : {Mask::kBool, Mask::kNumbers})
    for (const Sizes& shape : {Sizes{70, 90},
                               {90},
                               {1, 90},
                               {70, 1},
                               {2, 1, 1, 90},
                               {3, 70, 90},
                               {2, 3, 70, 90},
                               {2, 3, 1, 1}}) {
      if (mask == Mask::kBool && shape.back() == 1) continue;  // of whole rows: below
      check(device, {q, k, v, mask, shape});
    }
  check(device, {q, k, v, Mask::kNumbers, {}});
  // More dimensions than a mask's own.
  check(device, {{2, 2, 3, 5, 4}, {2, 2, 3, 6, 4}, {2, 2, 3, 6, 4}, Mask::kBool, {2, 1, 3, 1, 6}});
  check(device, {{2, 6, 40, 16},
                 {2, 2, 50, 16},
                 {2, 2, 50, 8},
                 Mask::kBool,
                 {2, 6, 40, 50},
                 false,
                 {},
                 true});
}

DEVICE_TEST("attention: a query that sees no key gets zeros", "[attention]") {
  for (const Mask mask : {Mask::kBool, Mask::kNumbers}) {
    check(device, {{2, 9, 4}, {2, 6, 4}, {2, 6, 5}, mask, {9, 6}, false, {}, false, 3});
    check(device,
          {{2, 70, 64}, {2, 300, 64}, {2, 300, 64}, mask, {2, 70, 300}, false, {}, false, 66});
  }
}

DEVICE_TEST("attention: scale", "[attention]") {
  for (const double scale : {0.0, 2.5, -0.7})
    check(device, {{2, 40, 6}, {2, 50, 6}, {2, 50, 7}, Mask::kNone, {}, true, scale});
}

DEVICE_TEST("attention: heads that are shared", "[attention]") {
  for (const bool causal : {false, true}) {
    check(device, {{2, 6, 40, 8}, {2, 2, 50, 8}, {2, 2, 50, 7}, Mask::kNone, {}, causal, {}, true});
    check(device, {{4, 40, 64}, {1, 70, 64}, {1, 70, 64}, Mask::kNone, {}, causal, {}, true});
    check(device, {{2, 8, 9, 8}, {2, 2, 5, 8}, {2, 4, 5, 7}, Mask::kNone, {}, causal, {}, true});
    check(device, {{2, 4, 9, 8}, {1, 2, 5, 8}, {2, 2, 5, 7}, Mask::kNone, {}, causal, {}, true});
    check(device, {{2, 4, 9, 8}, {2, 4, 5, 8}, {2, 4, 5, 7}, Mask::kNone, {}, causal, {}, true});
  }
}

DEVICE_TEST("attention: extents of 0", "[attention]") {
  check(device, {{2, 0, 4}, {2, 5, 4}, {2, 5, 6}});
  check(device, {{2, 3, 4}, {2, 0, 4}, {2, 0, 6}});
  check(device, {{2, 3, 0}, {2, 5, 0}, {2, 5, 6}});
  check(device, {{2, 3, 4}, {2, 5, 4}, {2, 5, 0}});
  check(device, {{0, 3, 4}, {0, 5, 4}, {0, 5, 6}});
}

DEVICE_TEST("attention: gradient check", "[attention]") {
  check_gradient(device, {noise({2, 5, 3}, 1), noise({2, 4, 3}, 2), noise({2, 4, 2}, 3)},
                 [](const std::vector<Tensor>& in) {
                   return scaled_dot_product_attention(in[0], in[1], in[2], {.is_causal = true});
                 });
  // One tensor as all three, and a mask.
  check_gradient(device, {noise({2, 4, 3}, 1), noise({4, 4}, 2)},
                 [](const std::vector<Tensor>& in) {
                   return scaled_dot_product_attention(in[0], in[0], in[0], {.attn_mask = in[1]});
                 });
}

DEVICE_TEST("attention: only the gradients asked for", "[attention]") {
  const TensorOptions options{kFloat64, device};
  const Array arrays[] = {noise({2, 5, 4}, 1), noise({2, 6, 4}, 2), noise({2, 6, 3}, 3),
                          noise({5, 6}, 4)};
  const auto run = [&](int which) {
    std::vector<Tensor> in;
    for (int i = 0; i < 4; ++i)
      in.push_back(tensor(arrays[i], options).set_requires_grad((which >> i & 1) != 0));
    scaled_dot_product_attention(in[0], in[1], in[2], {.attn_mask = in[3]})
        .backward(tensor(noise({2, 5, 3}, 5), options));
    return gradients_of(in);
  };
  const Results all = run(15);
  for (int which = 1; which < 15; ++which) {
    const Results some = run(which);
    for (size_t i = 0; i < 4; ++i) {
      REQUIRE(some[i].defined() == ((which >> i & 1) != 0));
      if (some[i].defined()) CHECK(same_bits(some[i], all[i]));
    }
  }
}

DEVICE_TEST("attention: large scores do not overflow and a NaN stays in its query", "[attention]") {
  for (const DType dtype : {kFloat32, kFloat64}) {
    const TensorOptions options{dtype, device};
    Array q = filled({40, 2}, 1e4), k = filled({70, 2}, 0);
    k.v[2 * 40] = 1e4;  // key 40 outweighs all others
    const Array v = noise({70, 3}, 1);
    const Tensor y = scaled_dot_product_attention(tensor(q, options), tensor(k, options),
                                                  tensor(v, options), {.scale = 1});
    Array expected = filled({40, 3});
    for (size_t i = 0; i < expected.v.size(); ++i) expected.v[i] = v.v[40 * 3 + i % 3];
    check_close("attention: y", y, expected, 0);
    q.v[2 * 17] = std::nan("");
    const std::vector<double> z =
        scaled_dot_product_attention(tensor(q, options), tensor(k, options), tensor(v, options))
            .to_vector<double>();
    for (size_t i = 0; i < z.size(); ++i) CHECK(std::isnan(z[i]) == (i / 3 == 17));
  }
}

DEVICE_TEST("attention: dropout of the weights", "[attention]") {
  // v = 1 gives the sum of the weights that are kept; all weights are equal.
  const int64_t n = 200;
  const TensorOptions options{kFloat64, device};
  const Tensor q = zeros({4, n, 3}, options).set_requires_grad();
  const Tensor v = eye(n, options).set_requires_grad();
  Generator generator(7), same(7);
  const AttentionOptions o{.dropout_p = 0.25};
  const Tensor y = scaled_dot_product_attention(q, zeros({n, 3}, options), v, o, generator);
  int64_t dropped = 0;
  for (const double p : y.to_vector<double>()) {
    const bool kept = std::abs(p * static_cast<double>(n) - 4.0 / 3) < 1e-12;
    CHECK((kept || p == 0));
    dropped += !kept;
  }
  const double share = static_cast<double>(dropped) / static_cast<double>(4 * n * n);
  CHECK(std::abs(share - 0.25) < 5 * std::sqrt(0.25 * 0.75 / static_cast<double>(4 * n * n)));
  // The same mask from the same state, another one from the next.
  CHECK(same_bits(scaled_dot_product_attention(q, zeros({n, 3}, options), v, o, same), y));
  CHECK(!same_bits(scaled_dot_product_attention(q, zeros({n, 3}, options), v, o, same), y));
  // The gradient goes where the weights went.
  y.backward(ones({4, n, n}, options));
  const std::vector<double> weights = y.to_vector<double>(), dv = v.grad().to_vector<double>();
  for (int64_t j = 0; j < n; ++j) {
    double sum = 0;
    for (int64_t i = 0; i < 4 * n; ++i) sum += weights[static_cast<size_t>(i * n + j)];
    CHECK(std::abs(dv[static_cast<size_t>(j * n)] - sum) < 1e-12);
  }
  CHECK(scaled_dot_product_attention(q, zeros({n, 3}, options), v, {.dropout_p = 1})
            .to_vector<double>() == std::vector<double>(static_cast<size_t>(4 * n * n), 0));
}

DEVICE_TEST("attention: gradient check with dropout", "[attention]") {
  // The same mask at every call: the draws are set back.
  const auto masks = std::make_shared<Generator>(2);
  check_gradient(device, {noise({2, 5, 3}, 1), noise({2, 6, 3}, 2), noise({2, 6, 2}, 3)},
                 [masks, device](const std::vector<Tensor>& in) {
                   masks->set_draws(device, 3);
                   return scaled_dot_product_attention(in[0], in[1], in[2], {.dropout_p = 0.3},
                                                       *masks);
                 });
}

DEVICE_TEST("attention: memory grows with the lengths and not with their product", "[attention]") {
  // Forward and backward, beside what the operands take: less than one number a score.
  const int64_t n = 4096, e = 16;
  const TensorOptions options{kFloat32, device};
  const Tensor x = tensor(noise({1, n, e}, 1), options).set_requires_grad();
  const auto step = [&] {
    x.set_grad({});
    const Tensor y = scaled_dot_product_attention(x, x, x, {.is_causal = true});
    y.backward(y.detach());
  };
  int64_t most = 0;
  const List list = program_of([&] {
    step();
    return Results{x.grad()};
  });
  for (const Entry& entry : list.entries)
    for (const detail::OperandRef& ref : entry.op->operands())
      most = std::max(most, ref.operand->bytes());
  CHECK(most == n * e * 4);
  if constexpr (cuda_built()) {
    if (!device.is_cuda()) return;
    release_cached_memory(device.index);
    step();
    synchronize(device);
    CHECK(static_cast<int64_t>(cuda_memory(device.index).reserved) < n * n * 4);
  }
}

TEST_CASE("attention: the same bits with any number of threads", "[attention]") {
  const auto run = [](int threads, DType dtype) {
    const Threads set(threads);
    const TensorOptions options{dtype, kCpu};
    const Tensor q = leaf(noise({2, 3, 130, 20}, 1), options);
    const Tensor k = leaf(noise({2, 3, 300, 20}, 2), options);
    const Tensor v = leaf(noise({2, 3, 300, 20}, 3), options);
    const Tensor y = scaled_dot_product_attention(q, k, v, {.dropout_p = 0.1});
    y.backward(tensor(noise({2, 3, 130, 20}, 4), options));
    return Results{y.detach(), q.grad(), k.grad(), v.grad()};
  };
  for (const DType dtype : {kFloat32, kFloat64}) {
    manual_seed(1);
    const Results one = run(1, dtype);
    for (const int threads : {2, 5}) {
      manual_seed(1);
      check_same_bits(run(threads, dtype), one);
    }
  }
}

DEVICE_TEST("attention: errors say what was expected and what came", "[attention]") {
  const TensorOptions options{kFloat32, device};
  const auto of = [&](const Shape& shape) { return zeros(shape, options); };
  const Tensor q = of({2, 3, 4}), k = of({2, 5, 4}), v = of({2, 5, 6});
  const auto attend = [](const Tensor& q, const Tensor& k, const Tensor& v,
                         const AttentionOptions& o = {}) {
    return [=] { scaled_dot_product_attention(q, k, v, o); };
  };
  const std::string name = "scaled_dot_product_attention";
  check_throws<ValueError>(attend({}, k, v), {name, "q", "undefined"});
  check_throws<ValueError>(attend(q, {}, v), {name, "k", "undefined"});
  check_throws<DtypeError>(attend(q, k.to(kFloat64), v), {name, "k", "float64"});
  check_throws<DtypeError>(attend(q.to(kInt64), k, v), {name, "int64"});
  check_throws<ShapeError>(attend(of({4}), k, v), {name, "(4,)"});
  check_throws<ShapeError>(attend(q, of({2, 5, 3}), v), {name, "(2, 3, 4)", "(2, 5, 3)"});
  check_throws<ShapeError>(attend(q, k, of({2, 6, 6})), {name, "(2, 5, 4)", "(2, 6, 6)"});
  check_throws<ShapeError>(attend(q, of({3, 5, 4}), of({3, 5, 6})), {name, "2", "3"});
  check_throws<ShapeError>(attend(q, k, v, {.attn_mask = of({5, 3})}), {"attn_mask", "(5, 3)"});
  check_throws<ShapeError>(
      attend(of({1, 3, 4}), of({1, 5, 4}), of({1, 5, 6}), {.attn_mask = of({4, 3, 5})}),
      {"attn_mask", "(1, 3, 5)", "(4, 3, 5)"});
  check_throws<DtypeError>(attend(q, k, v, {.attn_mask = of({3, 5}).to(kInt64)}),
                           {"attn_mask", "int64"});
  check_throws<DtypeError>(attend(q, k, v, {.attn_mask = of({3, 5}).to(kFloat64)}),
                           {"attn_mask", "float64"});
  check_throws<ValueError>(attend(q, k, v, {.attn_mask = of({3, 5}), .is_causal = true}),
                           {"attn_mask", "is_causal"});
  check_throws<ValueError>(attend(q, k, v, {.dropout_p = 1.5}), {"dropout_p", "1.5"});
  check_throws<ShapeError>(attend(of({3, 4}), of({5, 4}), of({5, 6}), {.enable_gqa = true}),
                           {"heads", "(3, 4)"});
  check_throws<ShapeError>(
      attend(of({8, 3, 4}), of({3, 5, 4}), of({3, 5, 6}), {.enable_gqa = true}),
      {"heads", "(3, 5, 4)"});
  if (device.is_cuda()) check_throws<DeviceError>(attend(q, k.to(kCpu), v), {name, "cuda", "cpu"});
}

}  // namespace sinter::test
