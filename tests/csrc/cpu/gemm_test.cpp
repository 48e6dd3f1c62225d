// Run by test_gemm.py, once for each instruction set: matrix products of all forms against double.
//
// Each check also covers the memory around the result, which must stay as it is. Products with panels are compared
// bit by bit, too: the bits may depend on K and on the factors, but not on the tile or the panel of an element.

#include "cpu/gemm/gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "cpu/frozen_panels.h"
#include "cpu/gemm/gemv.h"
#include "cpu/weight_gradients.h"

namespace {

using namespace fastrnn;
using namespace fastrnn::cpu::FASTRNN_ISA;

// ---- numbers ----

uint32_t random_state = 1;

uint32_t random_bits() {
  random_state = random_state * 1664525 + 1013904223;
  return random_state >> 8;
}
int64_t random_below(int64_t n) { return random_bits() % n; }

double exact(double number) { return number; }
double exact(bf16 number) {
  const uint32_t bits = static_cast<uint32_t>(number.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(bits));
  return result;
}

// In [-1, 1).
template <class T>
T random_number() {
  const float number = static_cast<float>(random_bits()) / (1 << 23) - 1;
  if constexpr (std::is_same_v<T, bf16>) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    return {static_cast<uint16_t>(bits >> 16)};
  } else {
    return number;
  }
}

template <class T>
std::vector<T> random_numbers(int64_t n) {
  std::vector<T> result(n);
  for (T& number : result) number = random_number<T>();
  return result;
}

template <class T>
const char* name_of() {
  return std::is_same_v<T, bf16>               ? "bfloat16"
         : std::is_same_v<T, float>            ? "float"
         : std::is_same_v<T, double>           ? "double"
         : std::is_same_v<T, bf16_weight>      ? "float times bfloat16"
         : std::is_same_v<T, int8_wide_weight> ? "float times int8"
                                               : "int8";
}

// ---- a product and its result ----

// C [M, N] = A B, where A is [M, K] and B [K, N], in double; and the sum of the absolute values of the terms.
struct Expected {
  int64_t M, N, K;
  std::vector<double> value, absolute;

  template <class AtA, class AtB>
  Expected(int64_t M, int64_t N, int64_t K, const AtA& a, const AtB& b)
      : M(M), N(N), K(K), value(M * N), absolute(M * N) {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t k = 0; k < K; ++k) {
        const double a_mk = a(m, k);
        for (int64_t n = 0; n < N; ++n) {
          const double term = a_mk * b(k, n);
          value[m * N + n] += term;
          absolute[m * N + n] += std::abs(term);
        }
      }
    }
  }
};

enum class Plus { none, rows, one_row, result };

// Memory for C, filled with numbers. A product may change `columns` columns of the first M rows of it.
template <class T>
class Output {
  using R = Real<T>;

 public:
  Output(int64_t rows, int64_t ldc, Plus plus)
      : ldc_(ldc), mode_(plus), before_(random_numbers<R>(rows * ldc + kMargin)), C_(before_) {
    if (plus == Plus::rows) plus_ = random_numbers<R>(rows * (ldc + 3) + kMargin);
    if (plus == Plus::one_row) plus_ = random_numbers<R>(ldc + kMargin);
  }

  // Columns from `first` on. `last`: lanes of the last vector.
  Destination<R> destination(int64_t first, int64_t last) {
    Destination<R> to{C_.data() + first, ldc_, last};
    if (mode_ == Plus::rows) to.plus = plus_.data() + first, to.plus_stride = ldc_ + 3;
    if (mode_ == Plus::one_row) to.plus = plus_.data() + first;
    return mode_ == Plus::result ? to.added() : to;
  }

  R at(int64_t m, int64_t column) const { return C_[m * ldc_ + column]; }
  R added(int64_t m, int64_t column) const {
    if (mode_ == Plus::rows) return plus_[m * (ldc_ + 3) + column];
    if (mode_ == Plus::one_row) return plus_[column];
    return mode_ == Plus::result ? before_[m * ldc_ + column] : 0;
  }
  // Is all memory as it was, but for columns [first, end) of rows [0, M)?
  bool untouched_around(int64_t M, int64_t first, int64_t end) const {
    for (size_t i = 0; i < C_.size(); ++i) {
      const int64_t row = i / ldc_, column = i % ldc_;
      if (row < M && column >= first && column < end) continue;
      if (std::memcmp(&C_[i], &before_[i], sizeof(R)) != 0) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kMargin = 64;
  const int64_t ldc_;
  const Plus mode_;
  const std::vector<R> before_;
  std::vector<R> plus_, C_;
};

int64_t checks = 0;

// What is being checked, for the message.
struct Case {
  const char* form;
  const char* dtype;
  int64_t M, N, K, detail;
};

[[noreturn]] void fail(const Case& c, const char* what, int64_t m, int64_t n) {
  std::fprintf(stderr, "%s of %s, M %ld, N %ld, K %ld, detail %ld: %s at row %ld, column %ld\n", c.form,
               c.dtype, static_cast<long>(c.M), static_cast<long>(c.N), static_cast<long>(c.K),
               static_cast<long>(c.detail), what, static_cast<long>(m), static_cast<long>(n));
  std::exit(1);
}

// Element (m, column) of the output must be element (m, n) of the product.
template <class T>
void expect_element(const Case& c, const Expected& expected, int64_t n, const Output<T>& output, int64_t m,
                    int64_t column) {
  constexpr double kEpsilon = std::numeric_limits<Real<T>>::epsilon();
  const double plus = output.added(m, column), value = expected.value[m * expected.N + n] + plus;
  const double bound = kEpsilon * (static_cast<double>(expected.K) + 2) *
                       (expected.absolute[m * expected.N + n] + std::abs(plus));
  if (!(std::abs(output.at(m, column) - value) <= bound)) fail(c, "wrong number", m, column);
  ++checks;
}

// The bits of a product without plus. The first result of an element says what the others must be.
template <class T>
class SameBits {
 public:
  SameBits(int64_t M, int64_t N) : N_(N), known_(M * N), bits_(M * N) {}

  void expect(const Case& c, int64_t m, int64_t n, Real<T> value) {
    const int64_t i = m * N_ + n;
    if (known_[i] && std::memcmp(&bits_[i], &value, sizeof(value)) != 0) fail(c, "other bits", m, n);
    known_[i] = true;
    bits_[i] = value;
  }

 private:
  const int64_t N_;
  std::vector<char> known_;
  std::vector<Real<T>> bits_;
};

// Numbers [rows, columns], stored row after row, or k-pack after k-pack of all rows.
template <class T>
struct LeftMatrix {
  int64_t rows, columns;
  bool transposed;
  std::vector<T> data;

  LeftMatrix(int64_t rows, int64_t columns, bool transposed)
      : rows(rows),
        columns(columns),
        transposed(transposed),
        data(random_numbers<T>(rows * (transposed ? k_packs<T>(columns) * kKPack<T> : columns))) {}

  int64_t row_stride() const { return transposed ? kKPack<T> : columns; }
  int64_t k_stride() const { return transposed ? rows * kKPack<T> : kKPack<T>; }
  LeftFactor<T> first_rows(int64_t M) const { return {data.data(), M, columns, row_stride(), k_stride()}; }
  double operator()(int64_t m, int64_t k) const {
    return exact(data[m * row_stride() + k / kKPack<T> * k_stride() + k % kKPack<T>]);
  }
};

// ---- the micro-kernel: every height and width, with every tail ----

template <class T>
void test_tiles() {
  constexpr int L = kLanes<Real<T>>;
  for (int nv = 1; nv <= kMaxVectors; ++nv) {
    for (int rows = 1; rows <= max_mr<T>(nv); ++rows) {
      for (const int64_t K : {1, 2, 3, 8, 33}) {
        for (int last = 1; last <= L; ++last) {
          const LeftMatrix<T> A(rows, K, random_below(2));
          const int64_t ldb = nv * L + L * random_below(2);
          auto B = random_numbers<T>(k_packs<T>(K) * ldb * kKPack<T>);
          const auto at_b = [&](int64_t k, int64_t n) {
            return exact(B[(k / kKPack<T> * ldb + n) * kKPack<T> + k % kKPack<T>]);
          };
          const int64_t N = (nv - 1) * L + last;
          const Expected expected(rows, N, K, A, at_b);
          Output<T> output(rows, N + random_below(5), static_cast<Plus>(random_below(4)));
          const auto lines = random_numbers<T>(64 * 64);
          PrefetchList prefetch_list(rows);
          if (random_below(2)) prefetch_list.add(lines.data(), 64, 64);
          const bool ahead = random_below(2);
          kTiles<T>[nv - 1][rows - 1](
              {.A = A.data.data(),
               .a_row_stride = A.row_stride(),
               .a_k_stride = A.k_stride(),
               .B = reinterpret_cast<const Real<T>*>(B.data()),
               .ldb = ldb,
               .to = output.destination(0, last),
               .K = K,
               .prefetch = ahead ? reinterpret_cast<const char*>(lines.data()) : nullptr,
               .prefetch_bytes = ahead ? 32 : 0,
               .prefetch_list = &prefetch_list});
          const Case c{"a tile", name_of<T>(), rows, N, K, last};
          for (int64_t m = 0; m < rows; ++m) {
            for (int64_t n = 0; n < N; ++n) expect_element(c, expected, n, output, m, n);
          }
          if (!output.untouched_around(rows, 0, N)) fail(c, "changed memory outside", 0, 0);
        }
      }
    }
  }
}

// ---- products with packed weights W [G * units, K] ----

// A panel of a product: the columns of its units, gate after gate. The output has room for the panel alone.
template <class T, class Multiply>
void expect_panel(const Case& c, const Panels<T>& panels, int64_t p, const Expected& expected,
                  SameBits<T>* bits, const Multiply& multiply) {
  constexpr int L = kLanes<Real<T>>;
  const int64_t width = panels.width(p), size = panels.size(p);
  // Most products of layers write whole vectors.
  const bool whole = panels.G > 1 || random_below(2);
  const auto plus = static_cast<Plus>(random_below(2) ? 0 : random_below(4));
  Output<T> output(c.M, width + random_below(3), plus);
  multiply(output.destination(0, whole ? L : panels.last(p)));
  for (int64_t m = 0; m < c.M; ++m) {
    for (int g = 0; g < panels.G; ++g) {
      for (int64_t unit = 0; unit < size; ++unit) {
        const int64_t n = g * panels.units + panels.first(p) + unit, column = g * size + unit;
        expect_element(c, expected, n, output, m, column);
        if (bits && plus == Plus::none) bits->expect(c, m, n, output.at(m, column));
      }
    }
  }
  if (!output.untouched_around(c.M, 0, whole ? width : size)) fail(c, "changed memory outside", 0, 0);
}

Order random_order() { return random_below(2) ? Order::ascending : Order::descending; }

constexpr int64_t kHeights[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 100};
constexpr int64_t kMostRows = 100;

// All ways in which layers cut their units into panels and these into micropanels.
template <class T, class F>
void for_each_panels(int64_t units, int G, int64_t K, const F& f) {
  std::vector<Panels<T>> known;
  for (const int64_t rows : {1, 3, 7, 8, 48}) {
    for (const int threads : {1, 2, 5}) {
      const Panels<T> panels = make_panels<T>(units, G, rows, K, threads);
      const bool is_new = std::none_of(known.begin(), known.end(), [&](const Panels<T>& other) {
        return other.U == panels.U && other.widest == panels.widest;
      });
      if (is_new) known.push_back(panels), f(panels);
    }
  }
}

template <class T>
void test_packed(int64_t units, int G, int64_t K) {
  const int64_t N = G * units;
  const bool transposed = random_below(3) == 0;
  const LeftMatrix<T> A(kMostRows, K, transposed);
  const auto W = random_numbers<T>(N * K);
  const Expected expected(kMostRows, N, K, A, [&](int64_t k, int64_t n) { return exact(W[n * K + k]); });
  SameBits<T> bits(kMostRows, N);
  for_each_panels<T>(units, G, K, [&](const Panels<T>& panels) {
    PackedMatrix<T> all{panels, K}, one{.panels = panels, .K = K, .single_panel = true};
    std::vector<Real<T>> all_data(all.size()), one_data(panels.width(0) * one.rows());
    all.data = all_data.data(), one.data = one_data.data();
    for (int64_t p = 0; p < panels.count(); ++p) pack_transposed(all, p, W.data());
    for (const int64_t M : kHeights) {
      const int64_t p = random_below(panels.count());
      const bool single = random_below(4) == 0;
      if (single) pack_transposed(one, p, W.data());
      PrefetchList prefetch_list(M);
      if (random_below(2)) prefetch_list.add(A.data.data(), std::min(K, A.columns), A.row_stride());
      const Case c{"packed weights", name_of<T>(), M, N, K, panels.U};
      expect_panel(c, panels, p, expected, &bits, [&](const Destination<Real<T>>& to) {
        multiply_packed<T>({.A = A.first_rows(M),
                            .B = single ? one : all,
                            .panel = p,
                            .order = random_order(),
                            .to = to,
                            .kc = kc_of<T>(K),
                            .prefetch_list = random_below(2) ? &prefetch_list : nullptr});
      });
    }
  });
}

// W as it stands. The order of its sums is another one.
template <class T>
void test_unpacked(int64_t units, int G, int64_t K) {
  const int64_t N = G * units, rows = 8;
  const LeftMatrix<T> A(rows, K, false);
  const auto W = random_numbers<T>(N * K);
  const Expected expected(rows, N, K, A, [&](int64_t k, int64_t n) { return exact(W[n * K + k]); });
  for_each_panels<T>(units, G, K, [&](const Panels<T>& panels) {
    const int64_t M = 1 + random_below(rows), p = random_below(panels.count());
    const auto plus = static_cast<Plus>(random_below(3));
    Output<T> output(M, panels.width(p), plus);
    multiply_unpacked(A.first_rows(M), W.data(), panels, p, output.destination(0, kLanes<Real<T>>));
    const Case c{"weights as they stand", name_of<T>(), M, N, K, panels.U};
    const int64_t size = panels.size(p);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t i = 0; i < G * size; ++i) {
        expect_element(c, expected, i / size * units + panels.first(p) + i % size, output, m, i);
      }
    }
    if (!output.untouched_around(M, 0, G * size)) fail(c, "changed memory outside", 0, 0);
  });
}

// ---- products with W [K, units], as in the backward ----

template <class T>
void test_rows(int64_t units, int64_t K) {
  const LeftMatrix<T> A(kMostRows, K, false);
  const auto W = random_numbers<T>(K * units);
  const Expected expected(kMostRows, units, K, A,
                          [&](int64_t k, int64_t n) { return exact(W[k * units + n]); });
  SameBits<T> bits(kMostRows, units);
  for_each_panels<T>(units, 1, K, [&](const Panels<T>& panels) {
    PackedMatrix<T> packed{panels, K};
    std::vector<Real<T>> packed_data(packed.size());
    packed.data = packed_data.data();
    const auto row = [&](int64_t k) { return W.data() + k * units; };
    for (int64_t p = 0; p < panels.count(); ++p) {
      for (int i = 0; i < panels.micropanels(p); ++i) {
        for (int64_t k = 0; k < K; k += kKPack<T>) {
          pack_micropanel_row(packed, p, panels.micropanel(p, i), k, row);
        }
      }
    }
    for (const int64_t M : kHeights) {
      const int64_t p = random_below(panels.count());
      const Case c{"packed rows", name_of<T>(), M, units, K, panels.U};
      expect_panel(c, panels, p, expected, &bits, [&](const Destination<Real<T>>& to) {
        multiply_packed<T>({.A = A.first_rows(M),
                            .B = packed,
                            .panel = p,
                            .order = random_order(),
                            .to = to,
                            .kc = kc_of<T>(K)});
      });
      if constexpr (kKPack<T> == 1) {
        if (panels.last(p) < kLanes<T>) continue;
        const Case in_place{"rows as they stand", name_of<T>(), M, units, K, panels.U};
        expect_panel(in_place, panels, p, expected, &bits, [&](const Destination<Real<T>>& to) {
          multiply_micropanel<T>({.A = A.first_rows(M),
                                  .B = W.data() + panels.first(p),
                                  .ldb = units,
                                  .nv = panels.nv(p),
                                  .to = to,
                                  .kc = kc_of<T>(K)});
        });
      }
    }
  });
}

// ---- gradients of weights: left^T right, sums over rows ----

Update random_update() { return random_below(2) ? Update::replace : Update::add; }
Plus plus_of(Update update) { return update == Update::add ? Plus::result : Plus::none; }

template <class T>
void test_weight_product(int64_t left_units, int64_t right_units, int64_t K) {
  constexpr int L = kLanes<Real<T>>;
  const auto left_rows = random_numbers<T>(K * left_units), right_rows = random_numbers<T>(K * right_units);
  std::vector<const T*> listed;
  for (int64_t k = 0; k < K; ++k) listed.push_back(right_rows.data() + k * right_units);
  const Expected expected(
      left_units, right_units, K, [&](int64_t m, int64_t k) { return exact(left_rows[k * left_units + m]); },
      [&](int64_t k, int64_t n) { return exact(right_rows[k * right_units + n]); });
  SameBits<T> bits(left_units, right_units);
  for (const int block_vectors : {1, 3, 7}) {
    for (const bool packs : {true, false}) {
      if (!packs && kKPack<T> > 1) continue;
      const Panels<T> blocks{left_units, 1, block_vectors, block_vectors};
      const Panels<T> panels{right_units, 1, kTileVectors, kTileVectors};
      std::vector<Real<T>> left_packed(blocks.padded_width() * k_packs<T>(K)),
          right_packed(panels.padded_width() * k_packs<T>(K));
      const ChunkFactor<T> left{blocks, left_rows.data(), nullptr, packs ? left_packed.data() : nullptr};
      const bool by_list = random_below(2);
      const ChunkFactor<T> right{panels, by_list ? nullptr : right_rows.data(),
                                 by_list ? listed.data() : nullptr, right_packed.data()};
      const int64_t middle = K / 2 / kKPack<T> * kKPack<T>;  // tasks of several threads pack the rows
      for (const ChunkFactor<T>* factor : {&left, &right}) {
        if (factor->packed) factor->pack(K, {0, middle}), factor->pack(K, {middle, K});
      }
      const Update update = random_update();
      Output<T> output(left_units, right_units, plus_of(update));
      const GradientSum<T> sum{const_cast<T*>(left_rows.data()), output.destination(0, L).C,
                               left_units * right_units};
      const WeightProduct<T> product{left, right, sum};
      for (int64_t task = 0; task < product.tasks(); ++task) product.multiply(K, task, update);
      const Case c{"a gradient of weights", name_of<T>(), left_units, right_units, K, block_vectors};
      for (int64_t m = 0; m < left_units; ++m) {
        for (int64_t n = 0; n < right_units; ++n) {
          expect_element(c, expected, n, output, m, n);
          if (update == Update::replace) bits.expect(c, m, n, output.at(m, n));
        }
      }
      if (!output.untouched_around(left_units, 0, right_units)) fail(c, "changed memory outside", 0, 0);
    }
  }
}

template <class T>
void test_bias_gradient(int64_t units, int64_t K) {
  const auto gradient = random_numbers<T>(K * units);
  const Expected expected(
      1, units, K, [](int64_t, int64_t) { return 1.0; },
      [&](int64_t k, int64_t n) { return exact(gradient[k * units + n]); });
  const Update update = random_update();
  Output<T> output(1, units, plus_of(update));
  const int64_t first = random_below(units), end = first + 1 + random_below(units - first);
  sum_rows<T>({gradient.data(), K, units, {first, end}, output.destination(0, 1).C, update});
  const Case c{"a gradient of biases", name_of<T>(), 1, units, K, first};
  for (int64_t n = first; n < end; ++n) expect_element(c, expected, n, output, 0, n);
  if (!output.untouched_around(1, first, end)) fail(c, "changed memory outside", 0, first);
}

// ---- products with frozen weights, for every instruction set the same in memory ----

// Left factors in [-1, 1), quantized for int8 weights.
template <class T, class W>
struct FrozenLeft {
  int64_t K, stride;
  std::vector<T> data;
  std::vector<Left<int8_weight>> quantized;
  std::vector<float> scales;

  explicit FrozenLeft(int64_t K) : K(K), stride(quantized_stride(K)), data(random_numbers<T>(kMostRows * K)) {
    if constexpr (std::is_same_v<W, int8_weight>) {
      quantized.resize(kMostRows * stride), scales.resize(kMostRows);
      for (int64_t m = 0; m < kMostRows; ++m) {
        scales[m] = quantize(data.data() + m * K, K, quantized.data() + m * stride);
        // No number is more than half of a scale away.
        for (int64_t k = 0; k < K; ++k) {
          const double error = std::abs((*this)(m, k) - data[m * K + k]);
          if (!(error <= 0.5001 * scales[m]))
            fail({"quantized rows", "int8", m, 0, K, 0}, "wrong number", m, k);
        }
      }
    }
  }
  LeftFactor<W> first_rows(int64_t M) const {
    if constexpr (std::is_same_v<W, int8_weight>) {
      return {.data = quantized.data(),
              .M = M,
              .K = whole_packs<W>(K),
              .row_stride = stride,
              .scales = scales.data()};
    } else {
      return {.data = data.data(), .M = M, .K = K, .row_stride = K};
    }
  }
  double operator()(int64_t m, int64_t k) const {
    if constexpr (std::is_same_v<W, int8_weight>) {
      return (quantized[m * stride + k] - (kHasVnni ? cpu::kQuantizedZero : 0)) *
             static_cast<double>(scales[m]);
    } else {
      return exact(data[m * K + k]);
    }
  }
};

template <class W>
W random_weight() {
  if constexpr (sizeof(W) == 1) {
    return {static_cast<int8_t>(random_below(255) - 127)};
  } else if constexpr (std::is_same_v<W, bf16_weight>) {
    return {random_number<bf16>().bits};
  } else {
    return random_number<W>();
  }
}
double exact(bf16_weight number) { return exact(bf16{number.bits}); }
double exact(int8_weight number) { return number.value; }
double exact(int8_wide_weight number) { return number.value; }

template <class T, class W>
void test_frozen(int64_t units, int G, int64_t K) {
  const int64_t N = G * units;
  const FrozenLeft<T, W> A(K);
  std::vector<W> weights(N * K);
  for (W& weight : weights) weight = random_weight<W>();
  const auto scales = random_numbers<float>(N);
  const auto scale_of = [&](int64_t n) { return sizeof(W) == 1 ? scales[n] : 1.0; };
  const Expected expected(kMostRows, N, K, A,
                          [&](int64_t k, int64_t n) { return exact(weights[n * K + k]) * scale_of(n); });
  const Panels<W> panels = frozen_panels<T, W>(units, G);
  const cpu::FrozenMatrix<W> matrix{units, G, cpu::FrozenLayout<T, W>::blocks_of(G), K};
  std::vector<Real<W>> packed(matrix.bytes() / sizeof(Real<W>));
  matrix.pack(weights.data(), scales.data(), reinterpret_cast<char*>(packed.data()));
  const PackedMatrix<W> B{panels, K, packed.data()};
  const Case layout{"frozen weights", name_of<W>(), 0, N, K, panels.U};
  if (B.size() != static_cast<int64_t>(packed.size())) fail(layout, "another size", 0, 0);
  SameBits<W> bits(kMostRows, N);
  for (const int64_t M : kHeights) {
    const Case c{"frozen weights", name_of<W>(), M, N, K, panels.U};
    const int64_t p = random_below(panels.count()), size = panels.size(p);
    const auto plus = static_cast<Plus>(random_below(3));
    Output<W> output(M, panels.width(p), plus);
    multiply_packed<W>({.A = A.first_rows(M),
                        .B = B,
                        .panel = p,
                        .order = random_order(),
                        .to = output.destination(0, kLanes<Real<T>>),
                        .kc = kc_of<W>(K)});
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t column = 0; column < G * size; ++column) {
        const int64_t n = column / size * units + panels.first(p) + column % size;
        expect_element(c, expected, n, output, m, column);
        if (plus == Plus::none) bits.expect(c, m, n, output.at(m, column));
      }
    }
    if (!output.untouched_around(M, 0, panels.width(p))) fail(c, "changed memory outside", 0, 0);
  }
}

template <class T, class W>
void test_all_frozen() {
  for (const int64_t units : {1, 7, 16, 33, 150}) {
    for (const int64_t K : {1, 2, 3, 7, 64, 257}) {
      for (const int G : {1, 2, 3, 4, 5, 8}) test_frozen<T, W>(units, G, K);
    }
  }
  test_frozen<T, W>(150, 4, 3000);
}

template <class T>
void test_all() {
  constexpr int64_t L = kLanes<Real<T>>;
  test_tiles<T>();
  const int64_t sizes[] = {1, L - 1, L, L + 1, 3 * L + 2, 9 * L};
  const int64_t depths[] = {1, 2, 3, L * kKPack<T>, 2 * L * kKPack<T> + 1, 128, 256, 257, 300};
  for (const int64_t units : sizes) {
    for (const int64_t K : depths) {
      for (const int G : {1, 3, 4}) {
        test_packed<T>(units, G, K);
        test_unpacked<T>(units, G, K);
      }
      test_rows<T>(units, K);
      test_weight_product<T>(units, sizes[random_below(std::size(sizes))], K);
      test_bias_gradient<T>(units, K);
    }
  }
  // Weights that are too many for a core's cache: tiles fetch the next micropanel.
  test_packed<T>(9 * L, 4, 3000 * kKPack<T>);
}

}  // namespace

int main() {
  if constexpr (kHasOwnCode<float>) {
    test_all<float>();
    test_all<double>();
    test_all_frozen<float, float>();
    test_all_frozen<double, double>();
    test_all_frozen<float, bf16_weight>();
    test_all_frozen<float, int8_wide_weight>();
  }
  if constexpr (kHasOwnCode<bf16>) {
    test_all<bf16>();
    test_all_frozen<bf16, bf16>();
  }
  if constexpr (kHasOwnCode<int8_weight>) test_all_frozen<float, int8_weight>();
  std::printf("%ld numbers are right\n", static_cast<long>(checks));
}
