#pragma once

// Packed weights: the columns of B in panels, and these in micropanels, as the micro-kernel reads them.

#include <algorithm>
#include <cstring>

#include "cpu/cache_sizes.h"
#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/simd.h"
#include "cpu/range.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Widest panel of products of several rows, and the widest micropanels that it is cut into.
constexpr int kPanelVectors = tuning::kPanelVectors.of(kRegisters);
constexpr int kMicropanelVectors = tuning::kMicropanelVectors.of(kRegisters);
// Columns of the widest panel of all: of a unit's vector, at least, there are all gates.
constexpr int64_t kPanelColumns = std::max<int64_t>(kPanelVectors * kLanes<float>, cells::kMostGates * 16);

// Rows of the tallest tile of the widest tiles. With so few rows a narrower tile has too few sums to cover the latency of the
// multiply-adds.
constexpr int kMrOfWidestTile = kRegisters == 16 ? tuning::kMrWith16[kTileVectors - 1] : 0;

// Widest micropanel for products of so many rows and terms. 7 or 8 rows would be two tiles of 4 vectors. With 3
// rows a tile computes too little for what it fetches, and a block of a micropanel that is larger than the
// first-level cache would be fetched twice; one tile of fewer vectors does neither. stride: vectors from a row of the
// weights to the next.
template <class T>
constexpr int widest_micropanel(int64_t rows, int64_t K, int64_t stride = kMicropanelVectors) {
  if (rows == 1) return kMaxVectors;
  if (rows <= kMrOfWidestTile) return kTileVectors;
  const int64_t block = k_packs<T>(std::min(K, kc_of<T>(K))) * stride * kVectorBytes;
  const bool narrow = rows == 7 || (rows == 8 && block > tuning::kNarrowBlockBytes);
  return kMicropanelVectors == 4 && narrow ? 3 : kMicropanelVectors;
}

// A micropanel that is wider than the widest tile is cut into parts of nearly equal width. Returns that of the first part.
template <class T>
constexpr int first_part(int nv, int64_t rows, int64_t K, int64_t stride) {
  if (nv <= (rows > 1 ? kTileVectors : kMaxVectors)) return nv;
  return static_cast<int>(ceil_div(nv, ceil_div(nv, widest_micropanel<T>(rows, K, stride))));
}

// Some vectors of a panel's columns.
struct Micropanel {
  int first, nv;
};

// How `units` hidden units with G gates each are cut into panels of U vectors of units. Within a panel the
// columns are gate after gate, without gaps: column g * size(p) + unit holds gate g of the panel's unit. So
// the gates of a last panel that is not full share vectors; a vector of units read from it has others'
// columns in the lanes that are none of its units, and may reach up to a vector past the last row. What is
// packed stands in micropanels of up to `widest` vectors, one after the other; a panel whose gates share vectors
// is one micropanel.
template <class T>
struct Panels {
  static constexpr int64_t lanes = kLanes<Real<T>>;
  int64_t units;
  int G, U, widest;
  int vectors_at_once = 1;  // a panel has a multiple of so many vectors

  int64_t vectors() const { return ceil_div(units, lanes); }
  int64_t count() const { return ceil_div(vectors(), U); }
  int64_t first(int64_t p) const { return p * U * lanes; }                                  // its first unit
  int64_t size(int64_t p) const { return std::min<int64_t>(U * lanes, units - first(p)); }  // in units
  int u(int64_t p) const { return static_cast<int>(ceil_div(size(p), lanes)); }  // in vectors of units
  int nv(int64_t p) const {                                                      // in vectors of columns
    return static_cast<int>(ceil_div(G * size(p), lanes * vectors_at_once)) * vectors_at_once;
  }
  int64_t width(int64_t p) const { return static_cast<int64_t>(nv(p)) * lanes; }  // in columns
  int64_t offset(int64_t p) const { return first(p) * G; }                        // columns before panel p
  int64_t padded_width() const { return offset(count() - 1) + width(count() - 1); }
  // The panel that comes after panel p, all taken in turn.
  int64_t after(int64_t p, Order order) const {
    return (p + (order == Order::descending ? count() - 1 : 1)) % count();
  }
  // Lanes of the panel's last vector of units that are units.
  int64_t last(int64_t p) const { return size(p) - (u(p) - 1) * lanes; }

  int micropanels(int64_t p) const {
    if (kPanelVectors <= widest || (G > 1 && last(p) < lanes)) return 1;
    return (nv(p) + widest - 1) / widest;
  }
  Micropanel micropanel(int64_t p, int number) const {
    const int first = nv(p) * number / micropanels(p);
    return {first, nv(p) * (number + 1) / micropanels(p) - first};
  }
  // Of a panel packed in `rows` rows: where a column begins, and how far it is to its next row.
  struct Position {
    int64_t at, stride;
  };
  Position position(int64_t p, int64_t column, int64_t rows) const {
    const int v = static_cast<int>(column / lanes);
    const Micropanel in = micropanel(p, ((v + 1) * micropanels(p) + nv(p) - 1) / nv(p) - 1);
    return {in.first * lanes * (rows - 1) + column, in.nv * lanes};
  }
};

// A matrix B [K, columns] that is packed: its panels one after the other, or a single one of them.
template <class T>
struct PackedMatrix {
  Panels<T> panels;
  int64_t K;
  Real<T>* data = nullptr;  // null: not packed
  bool single_panel = false;

  int64_t rows() const { return k_packs<T>(K) + kRowsAfter<T>; }
  int64_t size() const { return panels.padded_width() * rows(); }  // numbers of all panels
  Real<T>* panel(int64_t p) const { return data + (single_panel ? 0 : panels.offset(p) * rows()); }
  // What a product with panel p fetches for the next one: the panel after p, all taken in turn. Null if the cache
  // has it anyway.
  const Real<T>* next_panel(int64_t p, Order order) const {
    static const int64_t near = tuning::near_weight_bytes(cache_sizes().second_level) / sizeof(Real<T>);
    if (single_panel || panels.G * panels.units * rows() <= near) return nullptr;
    return panel(panels.after(p, order));
  }
};

// The panels with which the busiest thread has least to do: vectors, and micropanels, each of which has a cost of its own.
// rows, K: of most of their products.
template <class T>
Panels<T> make_panels(int64_t units, int G, int64_t rows, int64_t K, int threads) {
  const int most = rows == 1 ? kMaxVectors : kPanelVectors, widest = widest_micropanel<T>(rows, K);
  Panels<T> best{units, G, 1, widest};
  int64_t best_cost = 0;
  for (int U = 1; U * G <= most; ++U) {
    const Panels<T> panels{units, G, U, widest};
    const int64_t last = panels.count() - 1, most_of_thread = ceil_div(panels.count(), threads);
    const auto cost_of = [&](int64_t p) {
      return 10 * panels.nv(p) + panels.micropanels(p) * tuning::kMicropanelTenths.of(kRegisters);
    };
    // Of several threads the busiest has full panels alone.
    const int64_t cost = (most_of_thread - 1) * cost_of(0) + (threads == 1 ? cost_of(last) : cost_of(0));
    if (U == 1 || cost <= best_cost) {
      best = panels;
      best_cost = cost;
    }
  }
  return best;
}

// out[j][i] = in[i][j], one vector square of k-packs.
template <class T>
FASTRNN_INLINE void transpose_block(const T* in, int64_t in_stride, Real<T>* out, int64_t out_stride) {
  constexpr int L = kLanes<Real<T>>;
  Vector<Real<T>> v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) v[i] = load_k_packs(in + i * in_stride);
  transpose<Real<T>>(v);
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) store(out + i * out_stride, v[i]);
}

// Zeros the columns of panel p that are none of a unit.
template <class T>
void clear_rest(const PackedMatrix<T>& B, int64_t p) {
  const Panels<T>& panels = B.panels;
  for (int64_t column = panels.G * panels.size(p); column < panels.width(p); ++column) {
    const auto position = panels.position(p, column, B.rows());
    for (int64_t row = 0; row < B.rows(); ++row) B.panel(p)[position.at + row * position.stride] = 0;
  }
}

// Packs panel p of W [G * units, K] so that B[k, n] = W[n, k].
template <class T>
void pack_transposed(const PackedMatrix<T>& B, int64_t p, const T* W) {
  constexpr int L = kLanes<Real<T>>;
  const Panels<T>& panels = B.panels;
  Real<T>* const panel = B.panel(p);
  const int64_t size = panels.size(p), K = B.K;
  clear_rest(B, p);
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += L) {
      const int64_t n = std::min<int64_t>(L, size - unit);
      const T* rows = W + (g * panels.units + panels.first(p) + unit) * K;
      const auto position = panels.position(p, g * size + unit, B.rows());
      Real<T>* out = panel + position.at;
      int64_t k = 0;
      if (n == L) {
        for (; k + L * kKPack<T> <= K; k += L * kKPack<T>) {
          transpose_block(rows + k, K, out + k / kKPack<T> * position.stride, position.stride);
        }
      }
      for (; k < K; k += kKPack<T>) {
        for (int64_t i = 0; i < n; ++i) {
          Real<T> k_pack{};
          std::memcpy(&k_pack, rows + i * K + k, std::min<int64_t>(kKPack<T>, K - k) * sizeof(T));
          out[k / kKPack<T> * position.stride + i] = k_pack;
        }
      }
    }
  }
}

// Packs row k of a matrix [K, units], and with bfloat16 row k + 1 too: what a micropanel of panel p has of it,
// tails with zeros. row(k) is where row k stands.
template <class T, class Row>
FASTRNN_INLINE void pack_micropanel_row(const PackedMatrix<T>& B, int64_t p, Micropanel micropanel, int64_t k,
                                        const Row& row) {
  constexpr int L = kLanes<Real<T>>;
  const Panels<T>& panels = B.panels;
  const int64_t unit = panels.first(p) + micropanel.first * L;
  const T* row_0 = row(k) + unit;
  const T* row_1 = kKPack<T> > 1 && k + 1 < B.K ? row(k + 1) + unit : nullptr;
  Real<T>* out = B.panel(p) + micropanel.first * L * B.rows() + k / kKPack<T> * micropanel.nv * L;
  for (int j = 0; j < micropanel.nv; ++j) {
    const int64_t n = micropanel.first + j < panels.u(p) - 1 ? L : panels.last(p);
    store(out + j * L, k_pack_of_rows(row_0 + j * L, row_1 ? row_1 + j * L : nullptr, n));
  }
}

// Packs the biases [G * units] (null: zeros) as rows of panels: what is added to the input's product, for the
// first `whole` gates both of them, and to the hidden state's, for the others. Either row is followed by a vector.
template <class T>
void pack_biases(const Panels<T>& panels, int64_t p, const T* b_ih, const T* b_hh, int whole, Real<T>* b_x,
                 Real<T>* b_h) {
  const int64_t size = panels.size(p);
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += kLanes<Real<T>>) {
      const int64_t n = size - unit, from = g * panels.units + panels.first(p) + unit;
      const int64_t to = panels.offset(p) + g * size + unit;
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

}  // namespace fastrnn::cpu::FASTRNN_ISA
