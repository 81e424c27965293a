// The transforms of Winograd's algorithm (winograd.h) along one direction, for numbers and for
// vectors of them.
//
// No include guard: kernels include it inside the namespace that they are compiled in, on a CPU
// once for each instruction set, with SINTER_TRANSFORM in front of functions. V is a number or a
// vector; `o` computes with it:
//   o.add(x, y), o.sub(x, y)   o.times(f, x) = f x   o.plus(s, f, x) = s + f x, rounded once
// f being a double that is exact in V's type, or is rounded to it.

// B^T: row p holds the coefficients of the product of all (t - point) but t - p.
struct PatchToPoints {
  static constexpr int kFrom = winograd::kPatch, kTo = winograd::kPatch;
  template <class O, class V>
  static SINTER_TRANSFORM void apply(const O& o, const V (&x)[kFrom], V (&v)[kTo]) {
    using namespace winograd;
    v[0] = o.plus(o.plus(x[4], -(kA2 + kB2), x[2]), kA2 * kB2, x[0]);
    const V even_a = o.plus(x[4], -kB2, x[2]), odd_a = o.plus(x[3], -kB2, x[1]);
    v[1] = o.plus(even_a, kA, odd_a);
    v[2] = o.plus(even_a, -kA, odd_a);
    const V even_b = o.plus(x[4], -kA2, x[2]), odd_b = o.plus(x[3], -kA2, x[1]);
    v[3] = o.plus(even_b, kB, odd_b);
    v[4] = o.plus(even_b, -kB, odd_b);
    v[5] = o.plus(o.plus(x[5], -(kA2 + kB2), x[3]), kA2 * kB2, x[1]);
  }
};

// A: row p holds the powers of p.
struct TileToPoints {
  static constexpr int kFrom = winograd::kTile, kTo = winograd::kPatch;
  template <class O, class V>
  static SINTER_TRANSFORM void apply(const O& o, const V (&y)[kFrom], V (&v)[kTo]) {
    using namespace winograd;
    v[0] = y[0];
    const V even_a = o.plus(y[0], kA2, y[2]), odd_a = o.plus(y[1], kA2, y[3]);
    v[1] = o.plus(even_a, kA, odd_a);
    v[2] = o.plus(even_a, -kA, odd_a);
    const V even_b = o.plus(y[0], kB2, y[2]), odd_b = o.plus(y[1], kB2, y[3]);
    v[3] = o.plus(even_b, kB, odd_b);
    v[4] = o.plus(even_b, -kB, odd_b);
    v[5] = y[3];
  }
};

struct PointsToTile {  // A^T
  static constexpr int kFrom = winograd::kPatch, kTo = winograd::kTile;
  template <class O, class V>
  static SINTER_TRANSFORM void apply(const O& o, const V (&m)[kFrom], V (&y)[kTo]) {
    using namespace winograd;
    const V even_a = o.add(m[1], m[2]), odd_a = o.sub(m[1], m[2]);
    const V even_b = o.add(m[3], m[4]), odd_b = o.sub(m[3], m[4]);
    y[0] = o.add(m[0], o.add(even_a, even_b));
    y[1] = o.plus(o.times(kB, odd_b), kA, odd_a);
    y[2] = o.plus(o.times(kB2, even_b), kA2, even_a);
    y[3] = o.add(o.plus(o.times(kB * kB2, odd_b), kA * kA2, odd_a), m[5]);
  }
};

// G: row p holds the powers of p, divided by the product of p's distances from the other points.
struct WindowToPoints {
  static constexpr int kFrom = winograd::kWindow, kTo = winograd::kPatch;
  template <class O, class V>
  static SINTER_TRANSFORM void apply(const O& o, const V (&w)[kFrom], V (&u)[kTo]) {
    using namespace winograd;
    u[0] = o.times(kAt0, w[0]);
    const V even_a = o.times(kAtA, o.plus(w[0], kA2, w[2]));
    u[1] = o.plus(even_a, kAtA * kA, w[1]);
    u[2] = o.plus(even_a, -kAtA * kA, w[1]);
    const V even_b = o.times(kAtB, o.plus(w[0], kB2, w[2]));
    u[3] = o.plus(even_b, kAtB * kB, w[1]);
    u[4] = o.plus(even_b, -kAtB * kB, w[1]);
    u[5] = w[2];
  }
};

struct PointsToWindow {  // G^T
  static constexpr int kFrom = winograd::kPatch, kTo = winograd::kWindow;
  template <class O, class V>
  static SINTER_TRANSFORM void apply(const O& o, const V (&m)[kFrom], V (&w)[kTo]) {
    using namespace winograd;
    const V even_a = o.times(kAtA, o.add(m[1], m[2])), even_b = o.times(kAtB, o.add(m[3], m[4]));
    const V odd_a = o.sub(m[1], m[2]), odd_b = o.sub(m[3], m[4]);
    w[0] = o.plus(o.add(even_a, even_b), kAt0, m[0]);
    w[1] = o.plus(o.times(kAtB * kB, odd_b), kAtA * kA, odd_a);
    w[2] = o.add(o.plus(o.times(kB2, even_b), kA2, even_a), m[5]);
  }
};
