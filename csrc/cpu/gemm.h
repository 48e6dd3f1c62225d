#pragma once

// The matrix product under every sweep: C[m, n] (+)= sum_k A[m, k] B[k, n].
//
// B stands in panels, most of one part: a part is nv vectors wide and its rows, one for each group along k (a
// number, or two bfloat16), follow each other, so the register tile of up to max_rows(nv) x nv vectors reads
// it front to back. A is read in place, one broadcast a group, with any strides. The order of the sum over k
// depends on K alone: not on the tile, the panel or the thread that an element falls to.

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "cpu/rows_ahead.h"
#include "cpu/simd.h"
#include "cpu/team.h"

namespace fastrnn::cpu::FASTRNN_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Widest panel: with a single row the accumulators must cover the latency of the multiply-add by themselves.
constexpr int kMaxVectors = 8;
// Widest tile of several rows, widest panel of them, and the parts that such a panel is cut into: where there
// are 16 registers, tiles of 4 rows and 3 vectors read least for each multiply-add.
constexpr int kTileVectors = 4;
constexpr int kPanelVectors = kRegisters == 32 ? 4 : 8;
constexpr int kPartVectors = kRegisters == 32 ? 4 : 3;
constexpr int max_rows(int nv) {
  constexpr int rows_32[] = {12, 12, 8, 6, 1, 1, 1, 1};
  constexpr int rows_16[] = {8, 6, 4, 3, 1, 1, 1, 1};
  return (kRegisters == 32 ? rows_32 : rows_16)[nv - 1];
}
constexpr int kMaxRows = max_rows(1);
// A sum over k is taken in blocks of this many terms, unless the caller says otherwise: a block of a panel
// stays in the first-level cache, and shorter partial sums round less. To cut up to 256 terms costs more than
// it saves.
constexpr int64_t block_of_k(int64_t K) { return K <= 256 ? 256 : 128; }

// Where a product goes, and what is added to it: C = A B + plus, rows of plus `plus_row` apart (0: the same to
// each). Null: nothing. It is added last, as a sum that begins near zero rounds less.
template <class R>
struct Result {
  R* C;
  int64_t ldc;
  int64_t last;  // lanes of the last vector that C has
  const R* plus = nullptr;
  int64_t plus_row = 0;

  Result rows(int64_t first) const {
    return {C + first * ldc, ldc, last, plus ? plus + first * plus_row : nullptr, plus_row};
  }
  Result columns(int64_t first, int64_t last) const {
    return {C + first, ldc, last, plus ? plus + first : nullptr, plus_row};
  }
  Result added() const { return {C, ldc, last, C, ldc}; }
};

// Widest part of a panel for products of so many rows and terms. 7 or 8 rows would be two tiles of a part of 4
// vectors. With 3 rows a tile computes too little for what it fetches, and a block of a part that is larger than
// the first-level cache would be fetched twice; one tile of fewer vectors does neither.
template <class T>
constexpr int widest_part(int64_t rows, int64_t K) {
  if (rows == 1) return kMaxVectors;
  constexpr int64_t kFirstLevel = 32 << 10;
  const int64_t block = groups<T>(std::min(K, block_of_k(K))) * kPartVectors * kVectorBytes;
  return kPartVectors == 4 && (rows == 7 || (rows == 8 && block > kFirstLevel)) ? 3 : kPartVectors;
}

template <class T>
struct Tile {
  const T* A;
  int64_t a_row, a_k;  // strides of A: to the next row, and to the next group along k
  const Real<T>* B;    // groups
  int64_t ldb;
  Result<Real<T>> to;
  int64_t K;
  const char* ahead;  // prefetched, and
  int64_t ahead_k;    // bytes of that for each group along k
  RowsAhead* rows_ahead;
};

template <class T, int rows, int nv>
void multiply_tile(const Tile<T>& t) {
  using V = Vector<Real<T>>;
  constexpr int L = kLanes<Real<T>>;
  V acc[rows][nv] = {};
  const T* A = t.A;
  const Real<T>* B = t.B;
  const int64_t a_row = t.a_row, a_k = t.a_k, ldb = t.ldb;
  const auto add_products = [&](auto splat_a) __attribute__((always_inline)) {
    V b[nv];
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) b[v] = load(B + v * L);
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m) {
      const V a = splat_a(A + m * a_row);
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) acc[m][v] = multiply_add<T>(acc[m][v], a, b[v]);
    }
  };
  const auto add_next = [&](int64_t count, auto fetch) __attribute__((always_inline)) {
    for (int64_t k = 0; k < count; ++k, A += a_k, B += ldb) {
      fetch();
      add_products([](const T* a) __attribute__((always_inline)) { return splat_group(a); });
    }
  };
  int64_t left = t.K / kGroup<T>;
  if (rows > 1 && t.ahead != nullptr) {
    const char* ahead = t.ahead;
    const int64_t ahead_k = t.ahead_k;
    add_next(std::exchange(left, 0), [&]() __attribute__((always_inline)) {
      // Two tiles together must reach all of what is as wide as this one.
      constexpr int kLine = 64, lines = (nv * kVectorBytes + 2 * kLine - 1) / (2 * kLine);
      for (int i = 0; i < lines; ++i) __builtin_prefetch(ahead + i * kLine);
      ahead += ahead_k;
    });
  } else if (rows > 1 && t.rows_ahead != nullptr) {
    RowsAhead& rows_ahead = *t.rows_ahead;
    const int64_t fetched = std::min(left, rows_ahead.left());
    add_next(fetched, [&]() __attribute__((always_inline)) { rows_ahead.fetch(); });
    left -= fetched;
  }
  if (rows > 1 && a_k > kGroup<T>) {
    // Each group of A is in another line, and the processor sees no stream.
    add_next(left, [&]() __attribute__((always_inline)) { __builtin_prefetch(A + 16 * a_k); });
  } else {
    add_next(left, []() {});
  }
  if (kGroup<T> > 1 && t.K % kGroup<T> != 0) {
    add_products([](const T* a) __attribute__((always_inline)) { return splat_group<T, 1>(a); });
  }
#pragma GCC unroll 12
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) {
      const int64_t n = v == nv - 1 ? t.to.last : L;
      if (t.to.plus) acc[m][v] += load_upto(t.to.plus + m * t.to.plus_row + v * L, n);
      store_upto(t.to.C + m * t.to.ldc + v * L, acc[m][v], n);
    }
  }
}

template <class T>
using TileFunction = void (*)(const Tile<T>&);

template <class T, int nv, size_t... M>
constexpr std::array<TileFunction<T>, kMaxRows> tiles_of_width(std::index_sequence<M...>) {
  return {(static_cast<int>(M) < max_rows(nv) ? multiply_tile<T, std::min<int>(M + 1, max_rows(nv)), nv>
                                              : nullptr)...};
}
template <class T, size_t... N>
constexpr std::array<std::array<TileFunction<T>, kMaxRows>, kMaxVectors> all_tiles(
    std::index_sequence<N...>) {
  return {tiles_of_width<T, N + 1>(std::make_index_sequence<kMaxRows>{})...};
}
// [nv - 1][rows - 1]
template <class T>
constexpr auto kTiles = all_tiles<T>(std::make_index_sequence<kMaxVectors>{});

// Rows [0, M) of one panel, in tiles of nearly equal height. A block of rows keeps its part of C in the
// first-level cache while the blocks of K go by. The tiles of a block fetch the panel's next block, each a
// share, or the first tile would wait for all of it and the others for nothing; after the last block they
// fetch `next`. Null: there is nothing to be fetched, all is near.
template <class T>
void multiply_panel(int64_t M, int64_t K, const T* A, int64_t a_row, int64_t a_k, const Real<T>* B,
                    int64_t ldb, int nv, const Result<Real<T>>& to, int64_t block_k, const Real<T>* next,
                    RowsAhead* rows_ahead) {
  constexpr int L = kLanes<Real<T>>;
  if (M > 1 && nv > kTileVectors) {
    const int left = nv / 2;
    multiply_panel(M, K, A, a_row, a_k, B, ldb, left, to.columns(0, L), block_k, next, rows_ahead);
    multiply_panel(M, K, A, a_row, a_k, B + left * L, ldb, nv - left, to.columns(left * L, to.last), block_k,
                   next, rows_ahead);
    return;
  }
  constexpr int64_t kTilesInBlock = 8;
  const int64_t tiles = ceil_div(M, max_rows(nv));
  for (int64_t i0 = 0; i0 < tiles; i0 += kTilesInBlock) {
    const int64_t i1 = std::min(i0 + kTilesInBlock, tiles);
    for (int64_t k = 0; k < K; k += block_k) {
      const Result<Real<T>> block = k == 0 ? to : to.added();
      Tile<T> tile{nullptr, a_row, a_k,       B + k / kGroup<T> * ldb, ldb, block, std::min(block_k, K - k),
                   nullptr, 0,     rows_ahead};
      const Real<T>* ahead = k + block_k < K ? tile.B + block_k / kGroup<T> * ldb : next;
      // A single tile is a stream, which the processor sees coming.
      const bool fetch = next != nullptr && i1 - i0 > 1;
      if (fetch) tile.ahead_k = nv * kVectorBytes / (i1 - i0);
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t m = ceil_div(M * i, tiles), rows = ceil_div(M * (i + 1), tiles) - m;
        tile.A = A + m * a_row + k / kGroup<T> * a_k;
        tile.to = block.rows(m);
        if (fetch) {
          tile.ahead = reinterpret_cast<const char*>(ahead) + (i - i0) * groups<T>(tile.K) * tile.ahead_k;
        }
        kTiles<T>[nv - 1][rows - 1](tile);
      }
    }
  }
}

// Some vectors of a panel's columns.
struct Part {
  int first, nv;
};

// How `units` hidden units with G gates each are cut into panels of U vectors of units. Within a panel the
// columns are gate after gate, without gaps: column g * size(p) + k holds gate g of the panel's unit k. So
// the gates of a last panel that is not full share vectors; a vector of units read from it has others'
// columns in the lanes that are none of its units, and may reach up to a vector past the last row. What is
// packed stands in parts of up to `widest` vectors, one after the other; a panel whose gates share vectors is
// one part.
template <class T>
struct Panels {
  static constexpr int64_t lanes = kLanes<Real<T>>;
  int64_t units;
  int G, U, widest;

  int64_t vectors() const { return ceil_div(units, lanes); }
  int64_t count() const { return ceil_div(vectors(), U); }
  int64_t first(int64_t p) const { return p * U * lanes; }                                  // its first unit
  int64_t size(int64_t p) const { return std::min<int64_t>(U * lanes, units - first(p)); }  // in units
  int u(int64_t p) const { return static_cast<int>(ceil_div(size(p), lanes)); }       // in vectors of units
  int nv(int64_t p) const { return static_cast<int>(ceil_div(G * size(p), lanes)); }  // in vectors of columns
  int64_t width(int64_t p) const { return static_cast<int64_t>(nv(p)) * lanes; }      // in columns
  int64_t offset(int64_t p) const { return first(p) * G; }  // columns before panel p
  int64_t padded_width() const { return offset(count() - 1) + width(count() - 1); }
  // The panel that comes after panel p, all taken in turn.
  int64_t after(int64_t p, bool descending) const { return (p + (descending ? count() - 1 : 1)) % count(); }
  // Lanes of the panel's last vector of units that are units.
  int64_t last(int64_t p) const { return size(p) - (u(p) - 1) * lanes; }

  int parts(int64_t p) const {
    if (kPanelVectors <= widest || (G > 1 && last(p) < lanes)) return 1;
    return (nv(p) + widest - 1) / widest;
  }
  Part part(int64_t p, int i) const {
    const int first = nv(p) * i / parts(p);
    return {first, nv(p) * (i + 1) / parts(p) - first};
  }
  // Of a panel packed in `rows` rows: where a column begins, and how far it is to its next row.
  struct Place {
    int64_t at, row;
  };
  Place place(int64_t p, int64_t column, int64_t rows) const {
    const int v = static_cast<int>(column / lanes);
    const Part in = part(p, ((v + 1) * parts(p) + nv(p) - 1) / nv(p) - 1);
    return {in.first * lanes * (rows - 1) + column, in.nv * lanes};
  }
};

// Rows [0, M) of panel p. B: all panels one after the other, taken in ascending or descending order; or if
// `alone` only this one, just packed.
template <class T>
FASTRNN_INLINE void multiply_packed(const Panels<T>& panels, int64_t p, bool descending, int64_t M, int64_t K,
                                    const T* A, int64_t a_row, int64_t a_k, const Real<T>* B, bool alone,
                                    const Result<Real<T>>& to, int64_t block_k,
                                    RowsAhead* rows_ahead = nullptr) {
  constexpr int L = kLanes<Real<T>>;
  constexpr int64_t kNear = (768 << 10) / sizeof(Real<T>);  // stays in a core's second-level cache
  const int64_t rows = groups<T>(K);
  const Real<T>* next = nullptr;
  if (!alone) {
    if (panels.G * panels.units * rows > kNear) next = B + panels.offset(panels.after(p, descending)) * rows;
    B += panels.offset(p) * rows;
  }
  const int parts = panels.parts(p);
  for (int i = 0; i < parts; ++i) {
    const Part part = panels.part(p, i);
    const Real<T>*at = B + part.first * L * rows, *at_next = i + 1 < parts ? at + part.nv * L * rows : next;
    multiply_panel(M, K, A, a_row, a_k, at, part.nv * L, part.nv,
                   to.columns(part.first * L, i + 1 < parts ? L : to.last), block_k, next ? at_next : nullptr,
                   rows_ahead);
  }
}

// The widest panels that still share out evenly: a thread's time goes with the vectors it holds, and narrow
// panels reuse a broadcast of A less often. rows, K: of most of their products.
template <class T>
Panels<T> make_panels(int64_t units, int G, int64_t rows, int64_t K, int threads) {
  const int most = rows == 1 ? kMaxVectors : kPanelVectors, widest = widest_part<T>(rows, K);
  Panels<T> best{units, G, 1, widest};
  double best_cost = 0;
  for (int U = 1; U * G <= most; ++U) {
    const Panels<T> panels{units, G, U, widest};
    const double slowdown = 1 + 0.1 * static_cast<double>(ceil_div(U * G, widest)) / (U * G);
    const double cost = slowdown * static_cast<double>(ceil_div(panels.count(), threads) * U);
    if (U == 1 || cost <= best_cost) {
      best = panels;
      best_cost = cost;
    }
  }
  return best;
}

// out[j][i] = in[i][j], one vector square of groups.
template <class T>
FASTRNN_INLINE void transpose_block(const T* in, int64_t in_row, Real<T>* out, int64_t out_row) {
  constexpr int L = kLanes<Real<T>>;
  Vector<Real<T>> v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) v[i] = load_groups(in + i * in_row);
  transpose<Real<T>>(v);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) store(out + i * out_row, v[i]);
}

// Packs panel p of W [G * units, K] so that B[k, n] = W[n, k]. It has groups(K) rows.
template <class T>
void pack_transposed(const Panels<T>& panels, int64_t p, const T* W, int64_t K, Real<T>* panel) {
  constexpr int L = kLanes<Real<T>>;
  const int64_t size = panels.size(p), in_all = groups<T>(K);
  for (int64_t column = panels.G * size; column < panels.width(p); ++column) {
    const auto place = panels.place(p, column, in_all);
    for (int64_t k = 0; k < in_all; ++k) panel[place.at + k * place.row] = 0;
  }
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += L) {
      const int64_t n = std::min<int64_t>(L, size - unit);
      const T* rows = W + (g * panels.units + panels.first(p) + unit) * K;
      const auto place = panels.place(p, g * size + unit, in_all);
      Real<T>* out = panel + place.at;
      int64_t k = 0;
      if (n == L) {
        for (; k + L * kGroup<T> <= K; k += L * kGroup<T>) {
          transpose_block(rows + k, K, out + k / kGroup<T> * place.row, place.row);
        }
      }
      for (; k < K; k += kGroup<T>) {
        for (int64_t i = 0; i < n; ++i) {
          Real<T> group{};
          std::memcpy(&group, rows + i * K + k, std::min<int64_t>(kGroup<T>, K - k) * sizeof(T));
          out[k / kGroup<T> * place.row + i] = group;
        }
      }
    }
  }
}

// Packs row k of B [K, units], and with bfloat16 row k + 1 too: what a part of panel p has of it, tails with
// zeros.
template <class T, class Row>
FASTRNN_INLINE void pack_group(const Panels<T>& panels, int64_t p, Part part, int64_t K, int64_t k,
                               const Row& row, Real<T>* panel) {
  constexpr int L = kLanes<Real<T>>;
  const int64_t unit = panels.first(p) + part.first * L;
  const T* row_0 = row(k) + unit;
  const T* row_1 = kGroup<T> > 1 && k + 1 < K ? row(k + 1) + unit : nullptr;
  Real<T>* out = panel + part.first * L * groups<T>(K) + k / kGroup<T> * part.nv * L;
  for (int j = 0; j < part.nv; ++j) {
    const int64_t n = part.first + j < panels.u(p) - 1 ? L : panels.last(p);
    store(out + j * L, group_rows(row_0 + j * L, row_1 ? row_1 + j * L : nullptr, n));
  }
}

// Packs the biases [G * units] (null: zeros) as rows of panels: what is added to the input's product, for the
// first `whole` gates both of them, and to the hidden state's, for the others. Either row is followed by a vector.
template <class T>
void pack_biases(const Panels<T>& panels, int64_t p, const T* b_ih, const T* b_hh, int whole, Real<T>* b_x,
                 Real<T>* b_h) {
  const int64_t size = panels.size(p);
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t k = 0; k < size; k += kLanes<Real<T>>) {
      const int64_t n = size - k, from = g * panels.units + panels.first(p) + k;
      const int64_t to = panels.offset(p) + g * size + k;
      Vector<Real<T>> x{}, h{};
      if (b_ih) x = load_upto(b_ih + from, n);
      if (b_hh) h = load_upto(b_hh + from, n);
      store_upto(b_x + to, g < whole ? x + h : x, n);
      if (g >= whole) store_upto(b_h + to, h, n);
    }
  }
  if (p < panels.count() - 1) return;
  // What stands past the last gate is added too, to columns that nobody uses. If it happened to be subnormal
  // numbers, each of these additions would take a hundred times as long.
  const int64_t end = panels.offset(p) + panels.G * size;
  const size_t rest = (panels.padded_width() + kLanes<Real<T>> - end) * sizeof(Real<T>);
  for (Real<T>* b : {b_x, b_h}) {
    if (b) std::memset(b + end, 0, rest);
  }
}

// Lane i of the result is the dot product of `a` with row min(i, last) of W [., K].
template <class T, bool whole>
FASTRNN_INLINE Vector<Real<T>> dot_products(const T* a, const T* W, int64_t K, int64_t last) {
  constexpr int L = kLanes<Real<T>>;
  // Rows at a time. Each is a stream of its own for the caches, and 16 would be too many.
  constexpr int kStreams = std::min(L, 8);
  Vector<Real<T>> products[L];
#pragma GCC unroll 2
  for (int i0 = 0; i0 < L; i0 += kStreams) {
    Vector<Real<T>> acc[kStreams] = {};
    const auto row = [&](int i) __attribute__((always_inline)) {
      return W + (whole ? i0 + i : std::min<int64_t>(i0 + i, last)) * K;
    };
    int64_t k = 0;
    for (; k + L * kGroup<T> <= K; k += L * kGroup<T>) {
      const Vector<Real<T>> a_k = load_groups(a + k);
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) acc[i] = multiply_add<T>(acc[i], a_k, load_groups(row(i) + k));
    }
    if (k < K) {
      const Vector<Real<T>> a_k = load_groups_first(a + k, K - k);
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) {
        acc[i] = multiply_add<T>(acc[i], a_k, load_groups_first(row(i) + k, K - k));
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) products[i0 + i] = acc[i];
  }
  return sum_each<Real<T>>(products);
}

// Rows [0, M) of panel p with W [G * units, K] as it stands: where W would not be read often enough to pay for
// packing it.
template <class T>
void multiply_unpacked(const Panels<T>& panels, int64_t p, int64_t M, int64_t K, const T* A, int64_t a_row,
                       const T* W, const Result<Real<T>>& to) {
  constexpr int L = kLanes<Real<T>>;
  const int64_t size = panels.size(p);
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += L) {
      const int64_t n = std::min<int64_t>(L, size - unit);
      const T* W_unit = W + (g * panels.units + panels.first(p) + unit) * K;
      for (int64_t m = 0; m < M; ++m) {
        const T* a = A + m * a_row;
        const int64_t column = g * size + unit;
        auto sums =
            n == L ? dot_products<T, true>(a, W_unit, K, n - 1) : dot_products<T, false>(a, W_unit, K, n - 1);
        if (to.plus) sums += load_upto(to.plus + m * to.plus_row + column, n);
        store_upto(to.C + m * to.ldc + column, sums, n);
      }
    }
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
