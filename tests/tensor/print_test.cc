// Tensors as text. The expected strings are what PyTorch 2 prints, but for "torch." before a dtype
// and the names of operators.
#include <locale>
#include <sstream>

#include "core/base/detail.h"
#include "tests/support/values.h"

namespace sinter::test {
namespace {

const double inf = std::numeric_limits<double>::infinity();

Tensor floats(const std::vector<double>& values, const Shape& shape, TensorOptions options = {}) {
  return from_vector(values, shape).to(options.dtype).to(options.device);
}
Tensor row(const std::vector<double>& values) {
  return floats(values, {static_cast<int64_t>(values.size())});
}

}  // namespace

TEST_CASE("print: numbers", "[print]") {
  CHECK(str(row({1, 2})) == "tensor([1., 2.])");
  CHECK(str(row({1.5, 2})) == "tensor([1.5000, 2.0000])");
  CHECK(str(row({-1.5, 2.25, 1000})) == "tensor([  -1.5000,    2.2500, 1000.0000])");
  CHECK(str(row({0.1F})) == "tensor([0.1000])");
  CHECK(str(row({0, -0.0})) == "tensor([0., -0.])");
  CHECK(str(row({1.5, std::nan(""), -inf})) == "tensor([1.5000,    nan,   -inf])");
  CHECK(str(row({1, inf})) == "tensor([1., inf])");
  CHECK(str(row({std::nan(""), -std::nan("")})) == "tensor([nan, nan])");
  CHECK(str(row({-12, 3})) == "tensor([-12.,   3.])");
  // Scientific: beyond 1e8, below 1e-4, or further apart than 1,000 times.
  CHECK(str(row({1e10, 1})) == "tensor([1.0000e+10, 1.0000e+00])");
  CHECK(str(row({2e8, 1e6})) == "tensor([2.0000e+08, 1.0000e+06])");
  CHECK(str(row({1e8, 1e5})) == "tensor([100000000.,    100000.])");
  CHECK(str(row({1, 1000})) == "tensor([   1., 1000.])");
  CHECK(str(row({1, 1001})) == "tensor([1.0000e+00, 1.0010e+03])");
  CHECK(str(row({0.0001, 0.05})) == "tensor([1.0000e-04, 5.0000e-02])");
  CHECK(str(row({0, 9e-5, -inf})) == "tensor([0.0000e+00, 9.0000e-05,       -inf])");
  CHECK(str(floats({5e-324, -1e308}, {2}, {kFloat64})) ==
        "tensor([ 4.9407e-324, -1.0000e+308], dtype=float64)");
  // A scalar.
  CHECK(str(floats({3.5}, {})) == "tensor(3.5000)");
  CHECK(str(floats({7}, {}, {kInt64})) == "tensor(7)");
  CHECK(str(floats({7}, {}, {kUInt8})) == "tensor(7, dtype=uint8)");
  // Integers.
  CHECK(str(floats({1, -20, 300}, {3}, {kInt64})) == "tensor([  1, -20, 300])");
  CHECK(str(floats({0, 65, 255}, {3}, {kUInt8})) == "tensor([  0,  65, 255], dtype=uint8)");
  CHECK(str(from_vector<int64_t>({std::numeric_limits<int64_t>::min()}, {1})) ==
        "tensor([-9223372036854775808])");
  CHECK(str(from_vector<int32_t>({-5}, {1})) == "tensor([-5], dtype=int32)");
  // Truth values.
  CHECK(str(from_vector<bool>({true, false}, {2})) == "tensor([ True, False])");
  CHECK(str(from_vector<bool>({true}, {})) == "tensor(True)");
  CHECK(str(zeros({0}, {kBool})) == "tensor([], dtype=bool)");
}

TEST_CASE("print: layout", "[print]") {
  CHECK(str(floats({1, 2, 3, 4}, {2, 2})) ==
        "tensor([[1., 2.],\n"
        "        [3., 4.]])");
  CHECK(str(arange(24, {kFloat32}).reshape({2, 3, 4})) ==
        "tensor([[[ 0.,  1.,  2.,  3.],\n"
        "         [ 4.,  5.,  6.,  7.],\n"
        "         [ 8.,  9., 10., 11.]],\n"
        "\n"
        "        [[12., 13., 14., 15.],\n"
        "         [16., 17., 18., 19.],\n"
        "         [20., 21., 22., 23.]]])");
  CHECK(str(arange(4).reshape({2, 1, 2, 1})) ==
        "tensor([[[[0],\n"
        "          [1]]],\n"
        "\n"
        "\n"
        "        [[[2],\n"
        "          [3]]]])");
  // Lines of 80 characters.
  CHECK(str(arange(30, {kFloat32})) ==
        "tensor([ 0.,  1.,  2.,  3.,  4.,  5.,  6.,  7.,  8.,  9., 10., 11., 12., 13.,\n"
        "        14., 15., 16., 17., 18., 19., 20., 21., 22., 23., 24., 25., 26., 27.,\n"
        "        28., 29.])");
  // Nothing.
  CHECK(str(Tensor()) == "undefined tensor");
  CHECK(str(zeros({0})) == "tensor([])");
  CHECK(str(zeros({0, 3})) == "tensor([], size=(0, 3))");
  CHECK(str(zeros({0}, {kInt64})) == "tensor([], dtype=int64)");
  CHECK(str(zeros({2, 0, 3}, {kFloat64})) == "tensor([], size=(2, 0, 3), dtype=float64)");
}

TEST_CASE("print: more than 1000 elements are summarized", "[print]") {
  CHECK(str(arange(1001)) == "tensor([   0,    1,    2,  ...,  998,  999, 1000])");
  CHECK(str(arange(1000)).find("...") == std::string::npos);
  CHECK(str(arange(2000, {kFloat32}).reshape({20, 100})) ==
        "tensor([[0.0000e+00, 1.0000e+00, 2.0000e+00,  ..., 9.7000e+01, 9.8000e+01,\n"
        "         9.9000e+01],\n"
        "        [1.0000e+02, 1.0100e+02, 1.0200e+02,  ..., 1.9700e+02, 1.9800e+02,\n"
        "         1.9900e+02],\n"
        "        [2.0000e+02, 2.0100e+02, 2.0200e+02,  ..., 2.9700e+02, 2.9800e+02,\n"
        "         2.9900e+02],\n"
        "        ...,\n"
        "        [1.7000e+03, 1.7010e+03, 1.7020e+03,  ..., 1.7970e+03, 1.7980e+03,\n"
        "         1.7990e+03],\n"
        "        [1.8000e+03, 1.8010e+03, 1.8020e+03,  ..., 1.8970e+03, 1.8980e+03,\n"
        "         1.8990e+03],\n"
        "        [1.9000e+03, 1.9010e+03, 1.9020e+03,  ..., 1.9970e+03, 1.9980e+03,\n"
        "         1.9990e+03]])");
  // Six of a dimension are all shown; what is left out has no say in the format.
  Tensor x = ones({2, 1500});
  x.narrow(0, 1, 1).reshape({1500}).narrow(0, 700, 1).fill_(1e-9);
  CHECK(str(x) ==
        "tensor([[1., 1., 1.,  ..., 1., 1., 1.],\n"
        "        [1., 1., 1.,  ..., 1., 1., 1.]])");
  CHECK(str(ones({501, 2}, {kInt64})) ==
        "tensor([[1, 1],\n"
        "        [1, 1],\n"
        "        [1, 1],\n"
        "        ...,\n"
        "        [1, 1],\n"
        "        [1, 1],\n"
        "        [1, 1]])");
}

DEVICE_TEST("print: what kind of tensor it is", "[print]") {
  const std::string where = device == kCpu ? "" : ", device='cuda:0'";
  const TensorOptions here{kFloat32, device};
  Tensor x = floats({1, 2, 3}, {3}, here);
  CHECK(str(x) == "tensor([1., 2., 3.]" + where + ")");
  CHECK(str(x.to(kFloat64)) == "tensor([1., 2., 3.]" + where + ", dtype=float64)");
  CHECK(str(zeros({0, 3}, here)) == "tensor([]" + where + ", size=(0, 3))");
  x.set_requires_grad();
  CHECK(str(x) == "tensor([1., 2., 3.]" + where + ", requires_grad=True)");
  CHECK(str(x.detach()) == "tensor([1., 2., 3.]" + where + ")");
  const Tensor y = x * 2.0;
  CHECK(str(y) == "tensor([2., 4., 6.]" + where + ", grad_fn=<mul>)");
  const Tensor loss = sum(relu(y));
  CHECK(str(loss) == "tensor(12." + where + ", grad_fn=<sum>)");
  loss.backward();
  CHECK(str(loss) == "tensor(12." + where + ", grad_fn=<sum>)");
  CHECK(str(x.grad()) == "tensor([2., 2., 2.]" + where + ")");
  // What has no room begins a new line.
  const std::string wide = str(full({10}, 0.5, {kFloat64, device}).set_requires_grad());
  CHECK(wide == (device == kCpu ? "tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, "
                                  "0.5000, 0.5000,\n"
                                  "        0.5000], dtype=float64, requires_grad=True)"
                                : "tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, "
                                  "0.5000, 0.5000,\n"
                                  "        0.5000], device='cuda:0', dtype=float64, "
                                  "requires_grad=True)"));
  CHECK(str(arange(18, {kFloat64}).set_requires_grad()) ==
        "tensor([ 0.,  1.,  2.,  3.,  4.,  5.,  6.,  7.,  8.,  9., 10., 11., 12., 13.,\n"
        "        14., 15., 16., 17.], dtype=float64, requires_grad=True)");
  CHECK(str(arange(13, {kFloat64}).set_requires_grad()) ==
        "tensor([ 0.,  1.,  2.,  3.,  4.,  5.,  6.,  7.,  8.,  9., 10., 11., 12.],\n"
        "       dtype=float64, requires_grad=True)");
}

DEVICE_TEST("print: a NaN is printed under anomaly_guard too", "[print]") {
  const Tensor x = full({1}, std::nan(""), {kFloat32, device});
  const anomaly_guard guard;
  CHECK(str(x).find("tensor([nan]") == 0);
}

TEST_CASE("print: whatever the stream is set to", "[print]") {
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  std::ostringstream out;
  out.imbue(std::locale(std::locale::classic(), new Comma));
  out << std::hex << std::scientific;
  out.precision(1);
  out << row({0.5, 1234.5}) << " and " << arange(1234, 1236);
  CHECK(out.str() == "tensor([5.0000e-01, 1.2345e+03]) and tensor([1234, 1235])");
}

}  // namespace sinter::test
