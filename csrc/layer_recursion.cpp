#include "layer_recursion.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef __GNUC__
// vectors are passed between functions that are all inlined
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

// Written in vectors of a stated width, because compilers leave loops with so many choices scalar: of a choice both sides
// are computed. The constants' errors are relative and were found against mpmath with 60 digits.
namespace nftk {
namespace {

constexpr double pi = 3.14159265358979323846;
constexpr int64_t common = 3;
// pairs of a tile: what a layer hands on, three numbers a pair, stays in a core's L2 cache
constexpr int64_t tile = 64;

template <class T, int bytes> struct Vector;
#define NFTK_VECTOR(T, Int, Unsigned, bytes)                                \
  template <> struct Vector<T, bytes> {                                     \
    typedef T Type __attribute__((vector_size(bytes)));                     \
    typedef Int Mask __attribute__((vector_size(bytes)));                   \
    typedef Unsigned Bits __attribute__((vector_size(bytes)));              \
  };
NFTK_VECTOR(float, int32_t, uint32_t, 16)
NFTK_VECTOR(float, int32_t, uint32_t, 32)
NFTK_VECTOR(float, int32_t, uint32_t, 64)
NFTK_VECTOR(double, int64_t, uint64_t, 16)
NFTK_VECTOR(double, int64_t, uint64_t, 32)
NFTK_VECTOR(double, int64_t, uint64_t, 64)
#undef NFTK_VECTOR

template <class T> struct Format;
template <> struct Format<float> {
  static constexpr int mantissa = 23, bias = 127, exp_terms = 8;
  static constexpr uint32_t sign = 0x80000000u;
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, magic = 12582912.0f;
  static constexpr float lowest = -87.0f;
  // asin(s) / s in t = s^2 <= 1/2, through Chebyshev's nodes: relative error 2.6e-9;
  // the first is 1 and taken apart
  static constexpr float asin_ratio[] = {1.0f, 0.16666614237824285502f,  0.075027573163524040342f,
                         0.044091616733716873477f, 0.035814239284011770615f, -0.0070205791522944753065f,
                         0.10740002130174646693f,  -0.13591627123984387904f, 0.12391349490512974724f};
};
template <> struct Format<double> {
  static constexpr int mantissa = 52, bias = 1023, exp_terms = 14;
  static constexpr uint64_t sign = 0x8000000000000000u;
  static constexpr double log2e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10, magic = 6755399441055744.0;
  static constexpr double lowest = -708.0;
  // relative error 2.0e-17
  static constexpr double asin_ratio[] = {1.0,     0.16666666666664986917, 0.075000000004018160935,
                          0.044642856762615003393,   0.030381963396751828528, 0.022371584779320352979,
                          0.017364281439103528205,   0.013803445895891979809, 0.013191002571753903599,
                          -0.0026015378482996879209, 0.078716113570021266284, -0.29687054306898242672,
                          1.0082016650534187439,     -2.4908808126226116979,  4.6420689099888433638,
                          -6.2292998753979857686,    5.7579408313146987445,   -3.2789331567398122711,
                          0.88929043676386879885};
};

// One layer's numbers, in T.
template <class T> struct Numbers {
  T slope, weight_var, own_weight, own_bias, readout_var, own_readout;
  bool first, tangent;
};

// What a row of a tile works on: its columns, the numbers of their examples, and those of the row's own example.
template <class T> struct Row {
  int64_t n;  // columns; the memory goes on to a whole vector
  T *gap, *kernel, *passed, *value;
  const T* own;  // own[k * own_stride]
  int64_t own_stride;
  const T* columns;  // columns[k * tile + c]
};

template <class T, int bytes> struct Loops {
  using V = typename Vector<T, bytes>::Type;
  using M = typename Vector<T, bytes>::Mask;
  using U = typename Vector<T, bytes>::Bits;
  using F = Format<T>;
  static constexpr int64_t lanes = bytes / sizeof(T);

  static NFTK_INLINE inline V load(const T* from) {
    V x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  static NFTK_INLINE inline void store(T* to, V x) { std::memcpy(to, &x, sizeof x); }
  static NFTK_INLINE inline V all(T x) { return V{} + x; }
  static NFTK_INLINE inline V root(V x) {
    V r;
    for (int64_t k = 0; k < lanes; ++k) r[k] = std::sqrt(x[k]);
    return r;
  }
  static NFTK_INLINE inline V size_of(V x) { return (V)((U)x & ~(U{} + F::sign)); }
  static NFTK_INLINE inline V with_sign(V size, V sign) { return (V)(((U)sign & (U{} + F::sign)) | (U)size); }
  static NFTK_INLINE inline M negative(V x) { return (M)x < 0; }
  static NFTK_INLINE inline V at_least_0(V x) { return x > 0 ? x : V{}; }
  static NFTK_INLINE inline V cosine_of(V gap) { return with_sign(1 - size_of(gap), gap); }
  static NFTK_INLINE inline V gap_of(V cosine) { return with_sign(at_least_0(1 - size_of(cosine)), cosine); }

  // asin(s) / s - 1, s^2 = t; even and odd powers apart: two chains that do not wait for each other
  static NFTK_INLINE inline V asin_ratio_minus1(V t) {
    constexpr int degree = sizeof(F::asin_ratio) / sizeof(T) - 1;  // even
    const V t2 = t * t;
    V even = all(F::asin_ratio[degree]), odd = all(F::asin_ratio[degree - 1]);
    for (int k = degree - 2; k >= 2; k -= 2) {
      even = even * t2 + F::asin_ratio[k];
      odd = odd * t2 + F::asin_ratio[k - 1];
    }
    return t * (odd + t * even);
  }
  static NFTK_INLINE inline V asin_ratio(V t) { return 1 + asin_ratio_minus1(t); }

  struct Angle {
    V angle, sine, cosine;
    V bend;  // sine - angle cosine, to relative precision
  };
  // Acute angle of a gap without its sign; exact to rounding at both ends.
  static NFTK_INLINE inline Angle acute(V size) {
    const V square = size * (2 - size), sine = root(square), cosine = 1 - size, cosine2 = cosine * cosine;
    const M small = square <= cosine2;
    const V rest = asin_ratio_minus1(small ? square : cosine2), side = small ? sine : cosine, arc = side + side * rest;
    const V angle = small ? arc : T(pi / 2) - arc;
    return {angle, sine, cosine, small ? sine * (size + rest * size - rest) : sine - angle * cosine};
  }

  struct Exp {
    V minus1, exp;
  };
  // exp(x) - 1 = 2^k (exp(r) - 1) + (2^k - 1) and exp(x), x <= 0, |r| <= ln(2) / 2; a few roundings, relative. What would
  // not be a normal number is 0.
  static NFTK_INLINE inline Exp exp_of(V x) {
    const M none = x < F::lowest;
    x = none ? all(F::lowest) : x;
    const V shifted = x * F::log2e + F::magic, k = shifted - F::magic;
    const V r = (x - k * F::ln2_high) - k * F::ln2_low;
    // the low bits of `shifted` are k
    const V power = (V)(((U)shifted + F::bias) << F::mantissa);
    V sum = all(1);
    for (int n = F::exp_terms; n >= 2; --n) sum = 1 + sum * r * T(1.0 / n);
    const V p = sum * r;
    return {power * p + (power - 1), none ? V{} : power * p + power};
  }

  // Gap of the pre-activations: weights, then a bias shared by all.
  static NFTK_INLINE inline V into_layer(const Row<T>& row, int64_t c, V gap) {
    const T a1 = row.own[row.own_stride], b1 = row.own[2 * row.own_stride];
    const V a2 = load(row.columns + tile + c), b2 = load(row.columns + 2 * tile + c);
    const V size = size_of(gap), scale = a1 * a2, shared = b1 * b2, da = a1 - a2, db = b1 - b2;
    const M below = negative(gap);
    const V mismatch = T(0.5) * (da * da + db * db);  // 1 - scale - shared
    const V cosine = scale * cosine_of(gap) + shared;
    const V up = mismatch + scale * (below ? 2 - size : size);
    const V down = mismatch + 2 * shared + scale * (below ? size : 2 - size);
    return cosine < 0 ? -down : up;
  }

  struct Out {
    V gap, slopes;
  };
  // The numbers of an activation, k-th of the row's example and of the columns'.
  struct Pair {
    const Row<T>& row;
    int64_t c;
    NFTK_INLINE T own(int64_t k) const { return row.own[(common + k) * row.own_stride]; }
    NFTK_INLINE V of(int64_t k) const { return load(row.columns + (common + k) * tile + c); }
  };

  static NFTK_INLINE inline Out leaky_relu(const Pair& x, const Numbers<T>& p, V gap) {
    const T s = p.slope, own = (1 + s * s) / 2, h = (1 - s) * (1 - s) / T(2 * pi), inverse = 1 / own;
    const T high = (1 + s) * (1 + s) / 2, low = (1 - s) * (1 - s) / 2;
    const V size = size_of(gap), rho2 = load(x.row.columns + x.c);
    const M below = negative(gap);
    const Angle a = acute(size);
    const V bent = h * a.bend;
    const V up = ((below ? high - s * size : own * size) - bent) * inverse, down = (low + s * size + bent) * inverse;
    const M still_below = below & (bent < s * a.cosine);
    const V turned = below ? s + h * a.angle : own - h * a.angle;
    const V least = row_least(x.row.own[0], rho2);
    return {s == 1 ? gap : still_below ? -down : at_least_0(up), least > 0 ? turned : x.own(0) * x.of(0)};
  }
  static NFTK_INLINE inline V row_least(T one, V other) { return other < one ? other : all(one); }

  // Whether both examples are one, or opposite, to the rounding of their numbers `one` and `other`: their gap stays, and
  // where kernels grow apart with depth no rounding may grow in its place.
  static NFTK_INLINE inline M same(V size, T one, V other) {
    constexpr T eps = std::numeric_limits<T>::epsilon();
    return (size <= 64 * eps * eps) & (size_of(other - one) <= 8 * eps * size_of(other));
  }

  static NFTK_INLINE inline Out erf(const Pair& x, const Numbers<T>&, V gap) {
    const V size = size_of(gap), cosine = 1 - size, t2 = x.of(0), k2 = x.of(1);
    const V t = x.own(0) * t2, k = x.own(1) * k2, dt = x.own(0) - t2, dk = x.own(1) - k2;
    const V wide = T(0.5) * (dt * dt + dk * dk) + k + t * size, square = wide * (2 - wide), sine = root(square);
    const V hat = t * cosine, hat2 = hat * hat;
    const M small = hat2 < T(0.5);
    const V ratio = asin_ratio(small ? hat2 : square);
    const V near = ratio * cosine * x.own(2) * x.of(2), far = (T(pi / 2) - sine * ratio) * x.own(3) * x.of(3);
    const V out = at_least_0(1 - (small ? near : far));
    const M kept = same(size, x.own(0), t2) & same(size, x.own(1), k2);
    return {with_sign(kept ? size : out, gap), T(4 / pi) * k / sine};
  }

  static NFTK_INLINE inline Out sin(const Pair& x, const Numbers<T>&, V gap) {
    const V size = size_of(gap), cosine = 1 - size, r2 = x.of(0), both = x.own(0) * r2, dr = x.own(0) - r2;
    const V near = exp_of(T(-0.5) * dr * dr - both * size).exp;
    const V twice = 2 * both * cosine, less = exp_of(-twice).minus1;
    const V ratio = twice < T(1e-30) ? all(1) : -less / twice;
    const V out = at_least_0(1 - near * ratio * cosine * x.own(1) * x.of(1));
    return {with_sign(same(size, x.own(0), r2) ? size : out, gap), near * (1 + T(0.5) * less)};
  }

  static NFTK_INLINE inline Out gelu(const Pair& x, const Numbers<T>&, V gap) {
    const V size = size_of(gap), t2 = x.of(0), k2 = x.of(1), e2 = x.of(2), cosine = cosine_of(gap);
    const V t = x.own(0) * t2, k = x.own(1) * k2, dt = x.own(0) - t2, dk = x.own(1) - k2, scale = x.own(3) * x.of(3);
    const T e1 = x.own(2);
    const M below = negative(gap);
    const V rest = T(0.5) * (dt * dt + dk * dk) + k;  // 1 - t
    const Angle a = acute(rest + t * size);
    const V inverse = 1 / a.sine, square = k * k, extra = t * square * cosine * cosine * inverse;
    const V up = size * (T(pi) - a.angle) + T(pi) * (e1 * e2 + e1 + e2) + (a.angle - a.sine) + rest * a.sine - extra;
    const V down = cosine * a.angle + t * a.sine + extra;
    const V turned = below ? a.angle : T(pi) - a.angle;
    const V slopes = turned + t * cosine * inverse * (rest * (1 + t) + square + square * inverse * inverse);
    return {below ? gap_of(down * scale) : at_least_0(up * scale), slopes * T(0.5 / pi)};
  }

  static NFTK_INLINE inline Out series(const Pair& x, const Numbers<T>&, V gap, int64_t terms) {
    const V cosine = cosine_of(gap);
    V value{}, slopes{};
    for (int64_t k = terms - 1; k >= 0; --k) {
      value = value * cosine + x.own(k) * x.of(k);
      slopes = slopes * cosine + x.own(terms + k) * x.of(terms + k);
    }
    const V out = gap_of(value), turned = size_of(x.of(terms) - x.own(terms));
    constexpr T eps = std::numeric_limits<T>::epsilon();
    const M near = (size_of(out) < 64 * eps) & (turned <= 8 * eps);
    const M kept = near & same(size_of(gap), x.row.own[0], load(x.row.columns + x.c));
    return {kept ? with_sign(size_of(gap), out) : out, slopes};
  }

  // A row of a tile through a layer; step is one of the above.
  template <class Step> static NFTK_INLINE inline void walk(const Row<T>& row, const Numbers<T>& p, bool bias, Step step) {
    const T rho1 = row.own[0];
    for (int64_t c = 0; c < row.n; c += lanes) {
      V gap = load(row.gap + c);
      if (bias) gap = into_layer(row, c, gap);
      const Out out = step(Pair{row, c}, gap);
      const V kernel = rho1 * load(row.columns + c) * cosine_of(out.gap);
      store(row.gap + c, out.gap);
      if (!p.tangent) {
        store(row.value + c, p.readout_var * kernel);
        continue;
      }
      const V own = p.own_weight * load(row.kernel + c) + p.own_bias;
      const V passed = out.slopes * (p.first ? own : own + p.weight_var * load(row.passed + c));
      store(row.kernel + c, kernel), store(row.passed + c, passed);
      store(row.value + c, p.own_readout * kernel + p.readout_var * passed);
    }
  }

  static NFTK_INLINE inline void through(const RecursionLayer& layer, const Row<T>& row, const Numbers<T>& p) {
    const bool bias = layer.bias_var != 0;
    const int64_t terms = layer.order + 2;
    switch (layer.kind) {
      case RecursionKind::leaky_relu:
        return walk(row, p, bias, [&](const Pair& x, V gap) NFTK_INLINE { return leaky_relu(x, p, gap); });
      case RecursionKind::erf:
        return walk(row, p, bias, [&](const Pair& x, V gap) NFTK_INLINE { return erf(x, p, gap); });
      case RecursionKind::sin:
        return walk(row, p, bias, [&](const Pair& x, V gap) NFTK_INLINE { return sin(x, p, gap); });
      case RecursionKind::gelu:
        return walk(row, p, bias, [&](const Pair& x, V gap) NFTK_INLINE { return gelu(x, p, gap); });
      case RecursionKind::series:
        return walk(row, p, bias, [&](const Pair& x, V gap) NFTK_INLINE { return series(x, p, gap, terms); });
    }
  }
};

template <class T> struct Workspace {
  T gap[tile][tile], kernel[tile][tile], passed[tile][tile], value[tile][tile];
  std::vector<T> columns;  // (rows of a layer, tile)
  std::vector<T> sums;     // (outputs, tile, tile)
};

// A matrix of a finished tile: into its place, and into the mirrored one.
template <class T, class S>
NFTK_INLINE inline void write(const LayerRecursion<T, S>& call, const T (*values)[tile], S* out, int64_t top,
                              int64_t left, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    // in a tile on the diagonal the upper triangle is written to both sides
    const int64_t first = call.symmetric && top == left ? r : 0;
    std::copy(values[r] + first, values[r] + cols, out + (top + r) * call.out_row + left + first);
  }
  if (!call.symmetric) return;
  for (int64_t c = 0; c < cols; ++c) {
    S* __restrict target = out + (left + c) * call.out_row + top;
    const int64_t last = top == left ? c : rows;
    for (int64_t r = 0; r < last; ++r) target[r] = S(values[r][c]);
  }
}

template <class T, int bytes, class S>
NFTK_INLINE inline void one_tile(const LayerRecursion<T, S>& call, Workspace<T>& w, int64_t top, int64_t left) {
  const int64_t rows = std::min(tile, call.n1 - top), cols = std::min(tile, call.n2 - left);
  for (int64_t r = 0; r < rows; ++r) {
    const S* gaps = call.gap + (top + r) * call.gap_stride + left;
    std::copy(gaps, gaps + cols, w.gap[r]);
    if (call.symmetric && top == left) w.gap[r][r] = w.gap[r][r] < T(0.5) ? T(0) : w.gap[r][r];
    const T rho1 = call.rows1[top + r];
    for (int64_t c = 0; c < cols; ++c) {
      const T gap = w.gap[r][c], size = gap < 0 ? -gap : gap;
      w.kernel[r][c] = rho1 * call.rows2[left + c] * std::copysign(1 - size, gap);
    }
  }
  if (call.weights) std::fill(w.sums.begin(), w.sums.end(), T(0));
  const int64_t depth = static_cast<int64_t>(call.layers.size());
  int64_t first_row = 1;
  for (int64_t l = 0; l < depth; ++l) {
    const RecursionLayer& layer = call.layers[l];
    const Numbers<T> p{T(layer.slope),    T(layer.weight_var),  T(layer.own_weight),  T(layer.own_bias),
                       T(layer.readout_var), T(layer.own_readout), l == 0, call.tangent};
    const int64_t count = recursion_rows(layer);
    for (int64_t k = 0; k < count; ++k)
      std::memcpy(w.columns.data() + k * tile, call.rows2 + (first_row + k) * call.n2 + left, cols * sizeof(T));
    for (int64_t r = 0; r < rows; ++r) {
      const Row<T> row{cols, w.gap[r], w.kernel[r], w.passed[r], w.value[r], call.rows1 + first_row * call.n1 + top + r,
                       call.n1, w.columns.data()};
      Loops<T, bytes>::through(layer, row, p);
    }
    first_row += count;
    if (!call.weights) {
      write(call, w.value, call.out + l * call.out_stride, top, left, rows, cols);
      continue;
    }
    for (int64_t o = 0; o < call.outputs; ++o) {
      const T weight = T(call.weights[o * depth + l]);
      for (int64_t r = 0; r < rows; ++r) {
        T* __restrict sums = w.sums.data() + (o * tile + r) * tile;
        const T* __restrict value = w.value[r];
        for (int64_t c = 0; c < cols; ++c) sums[c] += weight * value[c];
      }
    }
  }
  if (!call.weights) return;
  for (int64_t o = 0; o < call.outputs; ++o) {
    const auto* sums = reinterpret_cast<const T(*)[tile]>(w.sums.data() + o * tile * tile);
    write(call, sums, call.out + o * call.out_stride, top, left, rows, cols);
  }
}

// New memory comes page by page when it is first written, and that takes longer than the kernels do: ask for large ones.
void ask_for_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  // advice: whether it is taken changes no number
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

int64_t recursion_rows(const RecursionLayer& layer) {
  switch (layer.kind) {
    case RecursionKind::leaky_relu: return common + 1;
    case RecursionKind::sin: return common + 2;
    case RecursionKind::series: return common + 2 * (layer.order + 2);
    default: return common + 4;
  }
}

// Call work, which takes its share of what is left, in so many threads, of which this is one.
template <class Work> void in_threads(int64_t threads, const Work& work) {
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < threads; ++i) others.emplace_back([&] { work(); });
  } catch (const std::system_error&) {
    // fewer threads than were asked for do the same work
  }
  work();
  for (std::thread& other : others) other.join();
}

template <class T, class S> void layer_recursion(const LayerRecursion<T, S>& call, VectorWidth width) {
  const int64_t down = (call.n1 + tile - 1) / tile, across = (call.n2 + tile - 1) / tile;
  const int64_t matrices = call.weights ? call.outputs : static_cast<int64_t>(call.layers.size());
  ask_for_large_pages(call.out, ((matrices - 1) * call.out_stride + (call.n1 - 1) * call.out_row + call.n2) * sizeof(S));
  int64_t most_rows = 0;
  for (const RecursionLayer& layer : call.layers) most_rows = std::max(most_rows, recursion_rows(layer));
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  // takes tiles until there are none left
  const auto all_tiles = [&](Workspace<T>& w, auto bytes) NFTK_INLINE {
    for (int64_t at; (at = next.fetch_add(1)) < down * across;) {
      const int64_t i = at / across, j = at % across;
      if (!call.symmetric || i <= j) one_tile<T, decltype(bytes)::value>(call, w, i * tile, j * tile);
    }
  };
  const auto work = [&] {
    try {
      // zeros: what is behind the last column is computed on too
      std::vector<Workspace<T>> own(1);
      Workspace<T>& w = own[0];
      w.columns.resize(most_rows * tile);
      if (call.weights) w.sums.resize(call.outputs * tile * tile);
#if NFTK_X86
      if (width == VectorWidth::avx512)
        return run_avx512([&]() NFTK_INLINE { all_tiles(w, std::integral_constant<int, 64>()); });
      if (width == VectorWidth::avx2)
        return run_avx2([&]() NFTK_INLINE { all_tiles(w, std::integral_constant<int, 32>()); });
#endif
      all_tiles(w, std::integral_constant<int, 16>());
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      error = std::current_exception();
    }
  };
  if (width > widest_vectors()) throw std::invalid_argument(std::string("this CPU has no ") + name(width));
  // a thread for every two tiles at most: to start one takes as long as a small tile
  const int64_t useful = std::min<int64_t>(call.threads, (down * across + 1) / 2);
  in_threads(useful, work);
  if (error) std::rethrow_exception(error);
}

template <class T> void gaps_from_gram(const GapsFromGram<T>& call) {
  constexpr int64_t rows = 16;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t top; (top = next.fetch_add(rows)) < call.n1;) {
      for (int64_t i = top; i < std::min(top + rows, call.n1); ++i) {
        T* row = call.gram + i * call.stride;
        for (int64_t j = call.upper ? i + 1 : 0; j < call.n2; ++j) {
          const T cosine = row[j];
          const bool below = std::signbit(cosine);
          T size = 1 - std::fabs(cosine);
          if (size < call.near) {
            const double *u = call.u1 + i * call.m, *v = call.u2 + j * call.m, sign = below ? -1 : 1;
            double sums[4] = {};
            int64_t k = 0;
            for (; k + 4 <= call.m; k += 4) {
              for (int64_t s = 0; s < 4; ++s) {
                const double d = u[k + s] - sign * v[k + s];
                sums[s] += d * d;
              }
            }
            for (; k < call.m; ++k) {
              const double d = u[k] - sign * v[k];
              sums[0] += d * d;
            }
            size = T(0.5 * ((sums[0] + sums[1]) + (sums[2] + sums[3])));
          }
          row[j] = std::copysign(size, cosine);
        }
        if (call.upper) row[i] = row[i] > T(0.5) ? T(0) : T(1);
      }
    }
  };
  // to start a thread takes as long as some ten thousand pairs
  const int64_t useful = std::min<int64_t>(call.threads, call.n1 * call.n2 / 20000);
  in_threads(useful, work);
}

template void gaps_from_gram(const GapsFromGram<float>&);
template void gaps_from_gram(const GapsFromGram<double>&);
template void layer_recursion(const LayerRecursion<float, float>&, VectorWidth);
template void layer_recursion(const LayerRecursion<double, float>&, VectorWidth);
template void layer_recursion(const LayerRecursion<double, double>&, VectorWidth);

}  // namespace nftk
