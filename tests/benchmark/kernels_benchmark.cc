// Times of single kernels: convolution layers by pass and algorithm, and the other operators.
//
//   kernels_benchmark --benchmark_filter='cuda/conv/512x64x32x32.*forward'
//
// A case is checked before it is timed: its output is filled with NaN, computed, looked through for
// NaN and infinities, and compared at sampled elements with float64 sums on the host. A case that
// fails prints an error in place of a time, and the program ends with 1.
//
// The time is the median of 20. On a GPU each is taken by events around a compiled function of
// several launches, so that what the host needs for a launch does not count.
#include <benchmark/benchmark.h>
#include <sinter/sinter.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/detail.h"

#ifdef SINTER_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace sinter {
namespace {

constexpr int kTimes = 20;
bool any_failed = false;

// ---- values and checks --------------------------------------------------------------------------

// Uniform in [-1, 1): splitmix64 of a seed and an index.
uint64_t mix(uint64_t seed, uint64_t i) {
  uint64_t z = (seed << 40) + (i + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
std::vector<float> noise(int64_t n, uint64_t seed) {
  std::vector<float> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i)
    v[i] = static_cast<float>(static_cast<double>(mix(seed, i) >> 40) * 0x1p-23 - 1);
  return v;
}

Tensor on(Device device, const std::vector<float>& v) {
  return from_vector(v, Shape{static_cast<int64_t>(v.size())}, device);
}
Tensor poisoned(Device device, int64_t n) {
  return full({n}, std::numeric_limits<double>::quiet_NaN(), {kFloat32, device});
}

// What is wrong with `actual`; empty if nothing is: every element is finite, and `samples` of them
// are within `tolerance` * max(1, |expected|) of expected(i).
std::string compare(const Tensor& actual, int64_t samples,
                    const std::function<double(int64_t)>& expected, double tolerance) {
  const std::vector<float> values = actual.to_vector<float>();
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i])) return str("wrong: element ", i, " is ", values[i]);
  const auto n = static_cast<int64_t>(values.size());
  for (int64_t s = 0; s < std::min(samples, n); ++s) {
    const auto i =
        samples >= n
            ? s
            : static_cast<int64_t>(mix(9, static_cast<uint64_t>(s)) % static_cast<uint64_t>(n));
    const double e = expected(i), a = values[static_cast<size_t>(i)];
    if (!(std::abs(a - e) <= tolerance * std::max(1.0, std::abs(e))))
      return str("wrong: element ", i, " is ", a, ", expected ", e, " within ", tolerance);
  }
  return {};
}

// Of a float32 sum of `terms` products of numbers in [-1, 1].
double tolerance_of(double terms) { return (terms + 4) * 0x1p-23; }

// ---- timing -------------------------------------------------------------------------------------

struct Work {
  std::function<void()> run;           // once; what it writes is there before, so that several
                                       // in one function run one after another
  std::function<std::string()> check;  // of what run left; empty if it is right
  double flops = 0, bytes = 0;         // of one run
};

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

double seconds_on_cpu(const std::function<void()>& run) {
  std::vector<double> times;
  for (int i = 0; i < kTimes; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    run();
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return median(times);
}

#ifdef SINTER_WITH_CUDA
void check_cuda(cudaError_t error) {
  require<CudaError>(error == cudaSuccess, cudaGetErrorString(error));
}

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(const Cuda& ctx) { check_cuda(cudaEventRecord(event_, ctx.stream)); }
  double seconds_since(const Event& begin) const {
    check_cuda(cudaEventSynchronize(event_));
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin.event_, event_));
    return ms * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

double seconds_on_cuda(Device device, const std::function<void()>& run) {
  const Cuda ctx = cuda_context(device.index);
  Event begin, end;
  const auto timed = [&](const std::function<void()>& work) {
    begin.record(ctx);
    work();
    end.record(ctx);
    return end.seconds_since(begin);
  };
  run();
  const double once = timed(run);
  const int launches = static_cast<int>(std::clamp(2e-3 / once, 1.0, 50.0));
  auto several = compile([&] {
    for (int i = 0; i < launches; ++i) run();
  });
  const auto call = [&] { several(); };
  for (int i = 0; i < 5; ++i) timed(call);  // two to record it
  std::vector<double> times;
  for (int i = 0; i < kTimes; ++i) times.push_back(timed(call) / launches);
  return median(times);
}
#endif

void time_case(benchmark::State& state, Device device, const std::function<Work()>& make) {
  try {
    Work work = make();
    work.run();
    const std::string wrong = work.check();
    if (!wrong.empty()) {
      any_failed = true;
      state.SkipWithError(wrong.c_str());
      return;
    }
    double seconds = 0;
#ifdef SINTER_WITH_CUDA
    seconds = device.is_cuda() ? seconds_on_cuda(device, work.run) : seconds_on_cpu(work.run);
#else
    (void)device;
    seconds = seconds_on_cpu(work.run);
#endif
    for (auto _ : state) state.SetIterationTime(seconds);
    if (work.flops > 0) state.counters["GFLOP/s"] = work.flops / seconds * 1e-9;
    if (work.bytes > 0) state.counters["GB/s"] = work.bytes / seconds * 1e-9;
  } catch (const std::exception& e) {
    any_failed = true;
    state.SkipWithError(e.what());
  }
}

void add(const std::string& name, Device device, std::function<Work()> make) {
  benchmark::RegisterBenchmark(
      (std::string(device.is_cuda() ? "cuda" : "cpu") + "/" + name).c_str(),
      [device, make = std::move(make)](benchmark::State& state) { time_case(state, device, make); })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

// ---- convolution --------------------------------------------------------------------------------

struct Layer {
  int n, c, size, o, k, pad;
  op::Conv2dShape shape() const {
    op::Conv2dShape g;
    g.n = n;
    g.c = c;
    g.h = g.w = size;
    g.o = o;
    g.kh = g.kw = k;
    g.pad_h = g.pad_w = pad;
    g.oh = g.ow = size + 2 * pad - k + 1;
    return g;
  }
};

// A layer's arrays on the host, and on the device; those of the last layer timed are kept.
struct LayerArrays {
  op::Conv2dShape g;
  std::vector<float> x, w, dy;
  Tensor device_x, device_w, device_dy;

  LayerArrays(const Layer& layer, Device device) : g(layer.shape()) {
    x = noise(int64_t{g.n} * g.c * g.h * g.w, 1);
    w = noise(int64_t{g.o} * g.c * g.kh * g.kw, 2);
    dy = noise(int64_t{g.n} * g.o * g.oh * g.ow, 3);
    device_x = on(device, x);
    device_w = on(device, w);
    device_dy = on(device, dy);
  }

  double product(int64_t n, int64_t o, int64_t oy, int64_t ox, int64_t c, int64_t i, int64_t j,
                 const std::vector<float>* a, const std::vector<float>* b) const {
    const int64_t iy = oy - g.pad_h + i, ix = ox - g.pad_w + j;
    if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) return 0;
    const auto at = [&](const std::vector<float>* v) -> double {
      if (v == &x) return x[static_cast<size_t>(((n * g.c + c) * g.h + iy) * g.w + ix)];
      if (v == &w) return w[static_cast<size_t>(((o * g.c + c) * g.kh + i) * g.kw + j)];
      return dy[static_cast<size_t>(((n * g.o + o) * g.oh + oy) * g.ow + ox)];
    };
    return at(a) * at(b);
  }
  double y_at(int64_t e) const {
    const int64_t ox = e % g.ow, oy = e / g.ow % g.oh, o = e / g.ow / g.oh % g.o;
    const int64_t n = e / g.ow / g.oh / g.o;
    double sum = 0;
    for (int c = 0; c < g.c; ++c)
      for (int i = 0; i < g.kh; ++i)
        for (int j = 0; j < g.kw; ++j) sum += product(n, o, oy, ox, c, i, j, &x, &w);
    return sum;
  }
  double dx_at(int64_t e) const {
    const int64_t ix = e % g.w, iy = e / g.w % g.h, c = e / g.w / g.h % g.c;
    const int64_t n = e / g.w / g.h / g.c;
    double sum = 0;
    for (int o = 0; o < g.o; ++o)
      for (int i = 0; i < g.kh; ++i)
        for (int j = 0; j < g.kw; ++j) {
          const int64_t oy = iy + g.pad_h - i, ox = ix + g.pad_w - j;
          if (oy < 0 || oy >= g.oh || ox < 0 || ox >= g.ow) continue;
          sum += product(n, o, oy, ox, c, i, j, &dy, &w);
        }
    return sum;
  }
  double dw_at(int64_t e) const {
    const int64_t j = e % g.kw, i = e / g.kw % g.kh, c = e / g.kw / g.kh % g.c;
    const int64_t o = e / g.kw / g.kh / g.c;
    double sum = 0;
    for (int n = 0; n < g.n; ++n)
      for (int oy = 0; oy < g.oh; ++oy)
        for (int ox = 0; ox < g.ow; ++ox) sum += product(n, o, oy, ox, c, i, j, &x, &dy);
    return sum;
  }
};

std::shared_ptr<const LayerArrays> arrays_of(const Layer& layer, Device device) {
  static std::shared_ptr<const LayerArrays> last;
  static std::string last_key;
  const std::string key =
      str(layer.n, ",", layer.c, ",", layer.size, ",", layer.o, ",", layer.k, ",", device);
  if (key != last_key) {
    last.reset();
    last = std::make_shared<LayerArrays>(layer, device);
    last_key = key;
  }
  return last;
}

struct Algorithm {
  const char* name;
  ConvAlgo algo;
  bool tf32;
};

enum class Pass { kForward, kBackwardData, kBackwardWeights };
const char* name(Pass pass) {
  return pass == Pass::kForward ? "forward" : pass == Pass::kBackwardData ? "data" : "weights";
}

Work conv_work(const Layer& layer, Pass pass, const Algorithm& algorithm, Device device) {
  const auto a = arrays_of(layer, device);
  op::Conv2dShape g = a->g;
  g.algo = algorithm.algo;
  g.tf32 = algorithm.tf32;
  const double window = g.kh * g.kw, places = double(g.n) * g.oh * g.ow;
  const int64_t size = static_cast<int64_t>(pass == Pass::kForward        ? a->dy.size()
                                            : pass == Pass::kBackwardData ? a->x.size()
                                                                          : a->w.size());
  const Tensor result = poisoned(device, size);
  const double terms = pass == Pass::kForward        ? g.c * window
                       : pass == Pass::kBackwardData ? g.o * window
                                                     : places;
  Work work;
  work.flops = 2 * places * g.o * g.c * window;
  work.run = [a, g, result, pass] {
    const In x = in(a->device_x), w = in(a->device_w), dy = in(a->device_dy);
    if (pass == Pass::kForward)
      emit(op::Conv2dForward{g, x, w, {}, out(result)});
    else if (pass == Pass::kBackwardData)
      emit(op::Conv2dBackwardData{g, dy, w, out(result)});
    else
      emit(op::Conv2dBackwardWeights{g, x, dy, optional_out(result), {}});
  };
  // TF32: each product is off by up to 2^-10 of itself, in a random direction.
  const double tolerance = tolerance_of(terms) + (algorithm.tf32 ? std::sqrt(terms) * 0x1p-10 : 0);
  work.check = [a, result, pass, tolerance] {
    const int64_t samples = pass == Pass::kBackwardWeights ? 24 : 512;
    return compare(
        result, samples,
        [&](int64_t e) {
          return pass == Pass::kForward        ? a->y_at(e)
                 : pass == Pass::kBackwardData ? a->dx_at(e)
                                               : a->dw_at(e);
        },
        tolerance);
  };
  return work;
}

void add_conv_cases(Device device) {
  const bool gpu = device.is_cuda();
  std::vector<Layer> layers = {{64, 3, 32, 6, 5, 0},     {64, 6, 14, 16, 5, 0},
                               {64, 3, 32, 64, 3, 1},    {64, 64, 32, 64, 3, 1},
                               {64, 128, 16, 128, 3, 1}, {64, 256, 8, 256, 3, 1},
                               {64, 512, 4, 512, 3, 1}};
  if (gpu) {
    layers.insert(layers.end(), {{1024, 3, 32, 6, 5, 0},
                                 {1024, 6, 14, 16, 5, 0},
                                 {512, 3, 32, 64, 3, 1},
                                 {512, 64, 32, 64, 3, 1},
                                 {512, 64, 16, 128, 3, 1},
                                 {512, 128, 16, 128, 3, 1},
                                 {512, 256, 8, 256, 3, 1},
                                 {512, 512, 4, 512, 3, 1}});
  }
  const std::vector<Algorithm> of_cpu = {{"auto", ConvAlgo::kAuto, false},
                                         {"direct", ConvAlgo::kDirect, false},
                                         {"im2col", ConvAlgo::kIm2col, false},
                                         {"implicit-gemm", ConvAlgo::kImplicitGemm, false},
                                         {"winograd", ConvAlgo::kWinograd, false}};
  const std::vector<Algorithm> of_gpu = {{"auto", ConvAlgo::kAuto, false},
                                         {"auto-tf32", ConvAlgo::kAuto, true},
                                         {"direct", ConvAlgo::kDirect, false},
                                         {"im2col", ConvAlgo::kIm2col, false},
                                         {"implicit-gemm", ConvAlgo::kImplicitGemm, false},
                                         {"tensor-core", ConvAlgo::kTensorCore, false},
                                         {"tensor-core-tf32", ConvAlgo::kTensorCore, true},
                                         {"winograd", ConvAlgo::kWinograd, false}};
  for (const Layer& l : layers)
    for (Pass pass : {Pass::kForward, Pass::kBackwardData, Pass::kBackwardWeights})
      for (const Algorithm& a : gpu ? of_gpu : of_cpu) {
        // It declines more. Winograd's declines other windows, and few channels are not for it.
        const int channels = pass == Pass::kBackwardData ? l.o : l.c;
        if (gpu && a.algo == ConvAlgo::kDirect && channels > 16) continue;
        if (a.algo == ConvAlgo::kWinograd && (l.k != 3 || l.c <= 16)) continue;
        add(str("conv/", l.n, "x", l.c, "x", l.size, "x", l.size, "_", l.o, "k", l.k, "p", l.pad,
                "/", name(pass), "/", a.name),
            device, [=] { return conv_work(l, pass, a, device); });
      }
}

// ---- the other operators ------------------------------------------------------------------------

void add_linear_cases(Device device) {
  for (const op::LinearShape& g :
       {op::LinearShape{64, 400, 120}, op::LinearShape{1024, 1024, 1024}}) {
    const std::string size = str(g.n, "x", g.in, "_", g.out);
    const double flops = 2. * static_cast<double>(g.n * g.in * g.out);
    const auto x = [g] { return noise(g.n * g.in, 1); };
    const auto w = [g] { return noise(g.out * g.in, 2); };
    const auto dy = [g] { return noise(g.n * g.out, 3); };
    add("linear/" + size + "/forward", device, [=] {
      const std::vector<float> hx = x(), hw = w(), hb = noise(g.out, 4);
      const Tensor tx = on(device, hx), tw = on(device, hw), tb = on(device, hb);
      const Tensor y = poisoned(device, g.n * g.out);
      Work work;
      work.flops = flops;
      work.run = [=] { emit(op::LinearForward{g, in(tx), in(tw), in(tb), out(y)}); };
      work.check = [=] {
        return compare(
            y, 512,
            [&](int64_t e) {
              double sum = hb[static_cast<size_t>(e % g.out)];
              for (int64_t i = 0; i < g.in; ++i)
                sum += double(hx[static_cast<size_t>(e / g.out * g.in + i)]) *
                       hw[static_cast<size_t>(e % g.out * g.in + i)];
              return sum;
            },
            tolerance_of(static_cast<double>(g.in)));
      };
      return work;
    });
    add("linear/" + size + "/data", device, [=] {
      const std::vector<float> hw = w(), hdy = dy();
      const Tensor tw = on(device, hw), tdy = on(device, hdy);
      const Tensor dx = poisoned(device, g.n * g.in);
      Work work;
      work.flops = flops;
      work.run = [=] { emit(op::LinearBackwardData{g, in(tdy), in(tw), out(dx)}); };
      work.check = [=] {
        return compare(
            dx, 512,
            [&](int64_t e) {
              double sum = 0;
              for (int64_t o = 0; o < g.out; ++o)
                sum += double(hdy[static_cast<size_t>(e / g.in * g.out + o)]) *
                       hw[static_cast<size_t>(o * g.in + e % g.in)];
              return sum;
            },
            tolerance_of(static_cast<double>(g.out)));
      };
      return work;
    });
    add("linear/" + size + "/weights", device, [=] {
      const std::vector<float> hx = x(), hdy = dy();
      const Tensor tx = on(device, hx), tdy = on(device, hdy);
      const Tensor dw = poisoned(device, g.out * g.in), db = poisoned(device, g.out);
      Work work;
      work.flops = flops;
      work.run = [=] {
        emit(op::LinearBackwardWeights{g, in(tx), in(tdy), optional_out(dw), optional_out(db)});
      };
      work.check = [=] {
        const double tolerance = tolerance_of(static_cast<double>(g.n));
        const std::string wrong = compare(
            dw, 512,
            [&](int64_t e) {
              double sum = 0;
              for (int64_t n = 0; n < g.n; ++n)
                sum += double(hdy[static_cast<size_t>(n * g.out + e / g.in)]) *
                       hx[static_cast<size_t>(n * g.in + e % g.in)];
              return sum;
            },
            tolerance);
        if (!wrong.empty()) return wrong;
        return compare(
            db, 512,
            [&](int64_t o) {
              double sum = 0;
              for (int64_t n = 0; n < g.n; ++n) sum += hdy[static_cast<size_t>(n * g.out + o)];
              return sum;
            },
            tolerance);
      };
      return work;
    });
  }
}

void add_pool_cases(Device device) {
  for (const auto& [n, c, size] : {std::tuple{64, 6, 28}, std::tuple{512, 64, 32}}) {
    op::Pool2dShape g;
    g.n = n;
    g.c = c;
    g.h = g.w = size;
    g.kh = g.kw = g.stride_h = g.stride_w = 2;
    g.oh = g.ow = size / 2;
    const int64_t inputs = int64_t{n} * c * size * size, outputs = inputs / 4;
    // Where window e's first maximum is, in x.
    const auto first_maximum = [g](const std::vector<float>& x, int64_t e) {
      const int64_t plane = e / g.ow / g.oh;
      int64_t best = -1;
      for (int64_t i = 0; i < 2; ++i)
        for (int64_t j = 0; j < 2; ++j) {
          const int64_t at = (plane * g.h + e / g.ow % g.oh * 2 + i) * g.w + e % g.ow * 2 + j;
          if (best < 0 || x[static_cast<size_t>(at)] > x[static_cast<size_t>(best)]) best = at;
        }
      return best;
    };
    const std::string size_name = str(n, "x", c, "x", size, "x", size, "k2");
    add("max_pool2d/" + size_name + "/forward", device, [=] {
      const std::vector<float> hx = noise(inputs, 1);
      const Tensor x = on(device, hx), y = poisoned(device, outputs);
      const Tensor choice = empty({outputs}, {kUInt8, device});
      Work work;
      work.bytes = static_cast<double>(4 * (inputs + outputs) + outputs);
      work.run = [=] { emit(op::MaxPool2dForward{g, in(x), out(y), out(choice)}); };
      work.check = [=] {
        return compare(
            y, 512,
            [&](int64_t e) -> double { return hx[static_cast<size_t>(first_maximum(hx, e))]; }, 0);
      };
      return work;
    });
    add("max_pool2d/" + size_name + "/data", device, [=] {
      const std::vector<float> hx = noise(inputs, 1), hdy = noise(outputs, 2);
      const Tensor x = on(device, hx), dy = on(device, hdy), y = poisoned(device, outputs);
      const Tensor dx = poisoned(device, inputs), choice = empty({outputs}, {kUInt8, device});
      emit(op::MaxPool2dForward{g, in(x), out(y), out(choice)});
      Work work;
      work.bytes = static_cast<double>(4 * (inputs + outputs) + outputs);
      work.run = [=] { emit(op::MaxPool2dBackward{g, in(dy), in(choice), out(dx)}); };
      work.check = [=] {
        return compare(
            dx, 512,
            [&](int64_t e) -> double {
              const int64_t plane = e / g.w / g.h;
              const int64_t window = (plane * g.oh + e / g.w % g.h / 2) * g.ow + e % g.w / 2;
              return first_maximum(hx, window) == e ? hdy[static_cast<size_t>(window)] : 0;
            },
            0);
      };
      return work;
    });
  }
}

void add_elementwise_cases(Device device) {
  for (const int64_t n : {int64_t{64} * 6 * 28 * 28, int64_t{512} * 64 * 32 * 32}) {
    add(str("relu/", n, "/forward"), device, [=] {
      const std::vector<float> hx = noise(n, 1);
      const Tensor x = on(device, hx), y = poisoned(device, n);
      Work work;
      work.bytes = 8. * static_cast<double>(n);
      work.run = [=] { emit(op::map(op::Element::kRelu, in(x), out(y))); };
      work.check = [=] {
        return compare(
            y, 512, [&](int64_t e) { return std::max(0.0, double(hx[static_cast<size_t>(e)])); },
            0);
      };
      return work;
    });
    add(str("relu/", n, "/data"), device, [=] {
      const std::vector<float> hy = noise(n, 1), hdy = noise(n, 2);
      const Tensor y = on(device, hy), dy = on(device, hdy), dx = poisoned(device, n);
      Work work;
      work.bytes = 12. * static_cast<double>(n);
      work.run = [=] { emit(op::relu_backward(in(y), in(dy), out(dx))); };
      work.check = [=] {
        return compare(
            dx, 512,
            [&](int64_t e) -> double {
              return hy[static_cast<size_t>(e)] > 0 ? hdy[static_cast<size_t>(e)] : 0;
            },
            0);
      };
      return work;
    });
  }
}

void add_loss_cases(Device device) {
  for (const int64_t n : {64, 1024}) {
    constexpr int64_t kClasses = 10;
    // exp(x_k) / sum exp(x) of a row.
    const auto probability = [](const std::vector<float>& x, int64_t e) {
      double total = 0;
      for (int64_t k = 0; k < kClasses; ++k)
        total += std::exp(double(x[static_cast<size_t>(e / kClasses * kClasses + k)]));
      return std::exp(double(x[static_cast<size_t>(e)])) / total;
    };
    add(str("log_softmax/", n, "x", kClasses, "/forward"), device, [=] {
      const std::vector<float> hx = noise(n * kClasses, 1);
      const Tensor x = on(device, hx), y = poisoned(device, n * kClasses);
      Work work;
      work.run = [=] { emit(op::LogSoftmaxForward{{n, kClasses, 1}, in(x), out(y)}); };
      work.check = [=] {
        return compare(
            y, 512, [&](int64_t e) { return std::log(probability(hx, e)); }, tolerance_of(16));
      };
      return work;
    });
    add(str("cross_entropy/", n, "x", kClasses), device, [=] {
      const std::vector<float> hx = noise(n * kClasses, 1);
      std::vector<int64_t> labels(static_cast<size_t>(n));
      for (size_t i = 0; i < labels.size(); ++i)
        labels[i] = static_cast<int64_t>(mix(2, i) % static_cast<uint64_t>(kClasses));
      const Tensor x = on(device, hx), dx = poisoned(device, n * kClasses);
      const Tensor loss = poisoned(device, 1), tl = from_vector(labels, Shape{n}, device);
      Work work;
      work.run = [=] {
        emit(op::CrossEntropy{{n, kClasses}, in(x), in(tl), out(loss), optional_out(dx)});
      };
      work.check = [=] {
        const auto is_label = [&](int64_t e) {
          return labels[static_cast<size_t>(e / kClasses)] == e % kClasses;
        };
        const std::string wrong = compare(
            loss, 1,
            [&](int64_t) {
              double total = 0;
              for (int64_t e = 0; e < n * kClasses; ++e)
                if (is_label(e)) total -= std::log(probability(hx, e));
              return total / static_cast<double>(n);
            },
            tolerance_of(static_cast<double>(n)));
        if (!wrong.empty()) return wrong;
        return compare(
            dx, 512,
            [&](int64_t e) {
              return (probability(hx, e) - (is_label(e) ? 1 : 0)) / static_cast<double>(n);
            },
            tolerance_of(16));
      };
      return work;
    });
  }
}

// ---- fused layers -------------------------------------------------------------------------------

// conv2d_relu_pool forward, and backward with or without dx.
Work fused_conv_work(const Layer& layer, bool forward, bool wants_dx, Device device) {
  const auto a = arrays_of(layer, device);
  const op::Conv2dShape g = a->g;
  const int ph = g.oh / 2, pw = g.ow / 2;
  const int64_t size = int64_t{g.n} * g.o * ph * pw;
  const std::vector<float> hdy = noise(size, 5), hb = noise(g.o, 6);
  const Tensor y = poisoned(device, size), choice = zeros({size}, {kUInt8, device});
  const Tensor dy = on(device, hdy), b = on(device, hb);
  const Tensor dx = poisoned(device, static_cast<int64_t>(a->x.size()));
  const Tensor dw = poisoned(device, static_cast<int64_t>(a->w.size()));
  const Tensor db = poisoned(device, g.o);
  const auto run_forward = [=] {
    emit(
        op::Conv2dReluPoolForward{g, in(a->device_x), in(a->device_w), in(b), out(y), out(choice)});
  };
  // The sums over slices, which the optimizer reads, and here the check.
  Tensor partial;
  if constexpr (cuda_built()) {
    if (device.is_cuda()) {
      const int64_t slices = conv2d_relu_pool_slices(cuda_context(device.index), g, kFloat32);
      partial = empty({slices, dw.numel() + g.o}, {kFloat32, device});
    }
  }
  const auto run_backward = [=] {
    const In x = in(a->device_x), w = in(a->device_w);
    if (!device.is_cuda()) {
      emit(op::Conv2dReluPoolBackward{g, x, w, in(y), in(choice), in(dy),
                                      optional_out(wants_dx ? dx : Tensor()), optional_out(dw),
                                      optional_out(db)});
      return;
    }
    if (wants_dx) emit(op::Conv2dReluPoolBackwardData{g, w, in(y), in(choice), in(dy), out(dx)});
    emit(op::Conv2dReluPoolBackwardWeights{g, x, in(y), in(choice), in(dy), out(partial)});
    emit(op::SumSlices{0, in(partial), out(dw)});
    emit(op::SumSlices{dw.numel(), in(partial), out(db)});
  };
  Work work;
  const double window = g.c * g.kh * g.kw;
  // Of the parts: what a backward pass saves by leaving zeros out shows as a higher rate.
  work.flops = 2. * g.n * g.oh * g.ow * g.o * window * (!forward && wants_dx ? 2 : 1);
  if (forward) {
    work.run = run_forward;
    work.check = [=] {
      return compare(
          y, 512,
          [&](int64_t e) {
            const int64_t plane = e / pw / ph, i = e / pw % ph, j = e % pw;
            double best = 0;
            for (int k = 0; k < 4; ++k)
              best = std::max(best,
                              hb[static_cast<size_t>(plane % g.o)] +
                                  a->y_at((plane * g.oh + 2 * i + k / 2) * g.ow + 2 * j + k % 2));
            return best;
          },
          tolerance_of(window + 1));
    };
    return work;
  }
  run_forward();
  work.run = run_backward;
  work.check = [=] {
    // The gradient before pooling, from the device's own choices, in place of the layer's dy.
    LayerArrays sparse = *a;
    std::fill(sparse.dy.begin(), sparse.dy.end(), 0.f);
    const std::vector<float> hy = y.to_vector<float>();
    const std::vector<uint8_t> taken = choice.to_vector<uint8_t>();
    std::vector<double> sums(static_cast<size_t>(g.o));
    for (int64_t e = 0; e < size; ++e) {
      const auto at = static_cast<size_t>(e);
      if (!(hy[at] > 0)) continue;
      const int64_t plane = e / pw / ph, i = 2 * (e / pw % ph) + taken[at] / 2;
      sparse.dy[static_cast<size_t>((plane * g.oh + i) * g.ow + 2 * (e % pw) + taken[at] % 2)] =
          hdy[at];
      sums[static_cast<size_t>(plane % g.o)] += hdy[at];
    }
    const double terms = double(g.n) * ph * pw;
    std::string wrong = compare(
        dw, 24, [&](int64_t e) { return sparse.dw_at(e); }, tolerance_of(terms));
    if (wrong.empty())
      wrong = compare(
          db, g.o, [&](int64_t e) { return sums[static_cast<size_t>(e)]; }, tolerance_of(terms));
    if (wrong.empty() && wants_dx)
      wrong = compare(
          dx, 512, [&](int64_t e) { return sparse.dx_at(e); },
          tolerance_of(double(g.o) * g.kh * g.kw));
    return wrong;
  };
  return work;
}

void add_fused_conv_cases(Device device) {
  for (const Layer& l : {Layer{64, 3, 32, 6, 5, 0}, Layer{64, 6, 14, 16, 5, 0},
                         Layer{1024, 3, 32, 6, 5, 0}, Layer{1024, 6, 14, 16, 5, 0}}) {
    if (!with_context(device, [&](const auto& ctx) {
          return conv2d_relu_pool_fits(ctx, l.shape(), kFloat32);
        }))
      continue;
    const std::string name = str("conv2d_relu_pool/", l.n, "x", l.c, "x", l.size, "x", l.size, "_",
                                 l.o, "k", l.k, "p", l.pad, "/");
    add(name + "forward", device, [=] { return fused_conv_work(l, true, false, device); });
    add(name + "weights", device, [=] { return fused_conv_work(l, false, false, device); });
    add(name + "data_weights", device, [=] { return fused_conv_work(l, false, true, device); });
  }
}

// The three linear layers of the reference network.
constexpr int kLayers = 3;
op::MlpShape mlp_shape(int64_t n) {
  op::MlpShape g;
  g.n = n;
  g.layers = kLayers;
  const std::array<int64_t, kLayers + 1> width = {400, 120, 84, 10};
  std::copy(width.begin(), width.end(), g.width);
  return g;
}

Work mlp_work(int64_t n, bool forward, Device device) {
  const op::MlpShape g = mlp_shape(n);
  const std::vector<int64_t> width(g.width, g.width + kLayers + 1);
  const std::vector<float> hx = noise(n * width[0], 1), hdy = noise(n * width[kLayers], 2);
  const Tensor x = on(device, hx), dy = on(device, hdy), dx = poisoned(device, n * width[0]);
  std::vector<std::vector<float>> hw, hb;
  std::vector<Tensor> w, b, y, dz, dw, db;
  Work work;
  for (size_t l = 0; l < kLayers; ++l) {
    hw.push_back(noise(width[l] * width[l + 1], 3 + l));
    // Sums of about the same size in all layers.
    for (float& v : hw.back()) v /= std::sqrt(static_cast<float>(width[l]));
    hb.push_back(noise(width[l + 1], 6 + l));
    w.push_back(on(device, hw[l]));
    b.push_back(on(device, hb[l]));
    y.push_back(poisoned(device, n * width[l + 1]));
    dw.push_back(poisoned(device, width[l] * width[l + 1]));
    db.push_back(poisoned(device, width[l + 1]));
    // The last layer's is dy.
    if (l + 1 < kLayers) dz.push_back(poisoned(device, n * width[l + 1]));
    work.flops += 2. * static_cast<double>(n * width[l] * width[l + 1]) * (forward ? 1 : 2);
  }
  const auto run_forward = [=] {
    op::MlpForward op;
    op.g = g;
    op.x = in(x);
    for (size_t l = 0; l < kLayers; ++l) {
      op.w.push_back(in(w[l]));
      op.b.push_back(in(b[l]));
      op.y.push_back(out(y[l]));
    }
    emit(std::move(op));
  };
  const auto run_backward = [=] {
    op::MlpBackwardChain chain;
    op::MlpBackwardWeights sums;
    chain.g = sums.g = g;
    chain.dy = in(dy);
    chain.dx = optional_out(dx);
    sums.x = in(x);
    for (size_t l = 0; l < kLayers; ++l) {
      const bool is_last = l + 1 == kLayers;
      const Tensor h = is_last ? Tensor() : y[l];
      chain.w.push_back(in(w[l]));
      chain.y.push_back(in(h));
      chain.dz.push_back(is_last ? Out() : out(dz[l]));
      sums.y.push_back(in(h));
      sums.dz.push_back(in(is_last ? dy : dz[l]));
      sums.dw.push_back(optional_out(dw[l]));
      sums.db.push_back(optional_out(db[l]));
    }
    emit(std::move(chain));
    emit(std::move(sums));
  };
  if (!forward) run_forward();
  work.run = forward ? std::function<void()>(run_forward) : run_backward;
  work.check = [=] {
    // Layer by layer from the device's own activations.
    std::vector<std::vector<float>> h = {hx};
    for (const Tensor& t : y) h.push_back(t.to_vector<float>());
    std::string wrong;
    for (size_t l = 0; forward && l < kLayers && wrong.empty(); ++l) {
      const int64_t in = width[l], out = width[l + 1];
      wrong = compare(
          y[l], 512,
          [&](int64_t e) {
            double sum = hb[l][static_cast<size_t>(e % out)];
            for (int64_t i = 0; i < in; ++i)
              sum += double(h[l][static_cast<size_t>(e / out * in + i)]) *
                     hw[l][static_cast<size_t>(e % out * in + i)];
            return l + 1 < kLayers ? std::max(0., sum) : sum;
          },
          tolerance_of(static_cast<double>(in)));
    }
    std::vector<double> dz(hdy.begin(), hdy.end());
    for (size_t l = kLayers; !forward && l-- > 0 && wrong.empty();) {
      const int64_t in = width[l], out = width[l + 1];
      const double tolerance = tolerance_of(static_cast<double>(n + out));
      wrong = compare(
          dw[l], 512,
          [&](int64_t e) {
            double sum = 0;
            for (int64_t i = 0; i < n; ++i)
              sum += dz[static_cast<size_t>(i * out + e / in)] *
                     h[l][static_cast<size_t>(i * in + e % in)];
            return sum;
          },
          tolerance);
      if (wrong.empty())
        wrong = compare(
            db[l], out,
            [&](int64_t e) {
              double sum = 0;
              for (int64_t i = 0; i < n; ++i) sum += dz[static_cast<size_t>(i * out + e)];
              return sum;
            },
            tolerance);
      std::vector<double> below(static_cast<size_t>(n * in));
      for (int64_t i = 0; i < n; ++i)
        for (int64_t o = 0; o < out; ++o)
          for (int64_t j = 0; j < in; ++j)
            below[static_cast<size_t>(i * in + j)] +=
                dz[static_cast<size_t>(i * out + o)] * hw[l][static_cast<size_t>(o * in + j)];
      for (size_t i = 0; l > 0 && i < below.size(); ++i)
        if (!(h[l][i] > 0)) below[i] = 0;
      dz = std::move(below);
    }
    if (!forward && wrong.empty())
      wrong = compare(
          dx, 512, [&](int64_t e) { return dz[static_cast<size_t>(e)]; },
          tolerance_of(static_cast<double>(width[1] + width[2] + width[3])));
    return wrong;
  };
  return work;
}

void add_mlp_cases(Device device) {
  for (const int64_t n : {64, 1024}) {
    if (!with_context(device,
                      [&](const auto& ctx) { return mlp_fits(ctx, mlp_shape(n), kFloat32); }))
      continue;
    const std::string name = str("mlp/", n, "x400_120_84_10/");
    add(name + "forward", device, [=] { return mlp_work(n, true, device); });
    add(name + "backward", device, [=] { return mlp_work(n, false, device); });
  }
}

void add_adam_case(Device device, int64_t n) {
  add(str("adam/", n), device, [=] {
    const std::vector<float> hp = noise(n, 1), hg = noise(n, 2);
    const Tensor p = on(device, hp), g = on(device, hg);
    const Tensor m = zeros({n}, {kFloat32, device}), v = zeros({n}, {kFloat32, device});
    const Tensor lr = full({1}, 1e-3, {kFloat64, device}), step = zeros({1}, {kInt64, device});
    Work work;
    work.bytes = 28. * static_cast<double>(n);
    work.run = [=] {
      emit(op::AdamStep{
          {}, {0}, {}, in(lr), {in(g)}, {inout(p)}, {inout(m)}, {inout(v)}, inout(step)});
    };
    // After the first step m / (1 - beta1) = g and v / (1 - beta2) = g^2.
    work.check = [=] {
      return compare(
          p, 512,
          [&](int64_t e) {
            const double grad = hg[static_cast<size_t>(e)];
            return hp[static_cast<size_t>(e)] - 1e-3 * grad / (std::abs(grad) + 1e-8);
          },
          tolerance_of(4));
    };
    return work;
  });
}

void add_gather_case(Device device, int64_t n) {
  add(str("gather_batch/", n, "x3x32x32"), device, [=] {
    constexpr int64_t kSize = 10000, kPixels = 3 * 32 * 32;
    std::vector<uint8_t> images(kSize * kPixels), labels(kSize);
    for (size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(mix(1, i));
    for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<uint8_t>(mix(2, i) % 10);
    std::vector<int64_t> index(kSize);
    for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int64_t>(mix(3, i) % kSize);
    op::GatherShape g;
    g.n = n;
    g.size = kSize;
    g.c = 3;
    g.h = g.w = 32;
    for (int c = 0; c < 3; ++c) g.mean[c] = g.std[c] = 0.5f;
    const Tensor ti = from_vector(images, Shape{kSize * kPixels}, device);
    const Tensor tl = from_vector(labels, Shape{kSize}, device);
    const Tensor tx = from_vector(index, Shape{kSize}, device);
    const Tensor x = poisoned(device, n * kPixels), y = empty({n}, {kInt64, device});
    Work work;
    work.bytes = 5. * static_cast<double>(n) * kPixels;
    work.run = [=] { emit(op::GatherBatch{g, in(ti), in(tl), in(tx), {}, out(x), out(y)}); };
    work.check = [=] {
      const std::vector<int64_t> got = y.to_vector<int64_t>();
      for (size_t i = 0; i < got.size(); ++i)
        if (got[i] != labels[static_cast<size_t>(index[i])]) return str("wrong: label ", i);
      return compare(
          x, 512,
          [&](int64_t e) {
            const int64_t image = index[static_cast<size_t>(e / kPixels)];
            return images[static_cast<size_t>(image * kPixels + e % kPixels)] / 127.5 - 1;
          },
          tolerance_of(4));
    };
    return work;
  });
}

void add_cases(Device device) {
  add_conv_cases(device);
  add_linear_cases(device);
  add_pool_cases(device);
  add_elementwise_cases(device);
  add_loss_cases(device);
  add_fused_conv_cases(device);
  add_mlp_cases(device);
  for (const int64_t n : {62'006, 10'000'000}) add_adam_case(device, n);
  for (const int64_t n : {64, 1024}) add_gather_case(device, n);
}

}  // namespace
}  // namespace sinter

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  sinter::add_cases(sinter::kCpu);
  if (sinter::cuda_device_count() > 0) sinter::add_cases(sinter::cuda());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return sinter::any_failed ? 1 : 0;
}
