#pragma once

// What products with frozen weights take: their panels, and left factors that are quantized.

#include <type_traits>

#include "core/params.h"
#include "cpu/frozen.h"
#include "cpu/gemm/packing.h"

namespace fastrnn::cpu::FASTRNN_ISA {

template <class T, class W>
Panels<W> frozen_panels(int64_t units, int gates) {
  constexpr int vectors = FrozenMatrix<W>::kLine / kVectorBytes;
  const auto U = static_cast<int>(FrozenLayout<T, W>::blocks_of(gates)) * vectors;
  return {units, gates, U, U * gates, vectors};
}

// Weights of a frozen layer, or its biases as a row: where they stand, and column blocks of a panel.
struct FrozenAt {
  const char* data;
  int64_t blocks;
};

// Packs panel p of B from frozen weights, as numbers of B. Neither cuts a vector of B's units in two.
template <class T, class W>
void pack_again(const PackedMatrix<T>& B, int64_t p, const FrozenAt& frozen) {
  constexpr int L = kLanes<T>, kPack = kKPack<W>;
  const Panels<T>& panels = B.panels;
  const FrozenMatrix<W> from{panels.units, panels.G, frozen.blocks, B.K};
  const int64_t size = panels.size(p);
  clear_rest(B, p);
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += L) {
      const int64_t n = std::min<int64_t>(L, size - unit), at = panels.first(p) + unit;
      const int64_t first = at / from.panel_units() * from.panel_units();
      const int64_t from_size = std::min(from.panel_units(), panels.units - first);
      const auto* k_packs = reinterpret_cast<const Real<W>*>(frozen.data) + first * panels.G * from.rows() +
                            g * from_size + at - first;
      const auto position = panels.position(p, g * size + unit, B.rows());
      T* out = B.panel(p) + position.at;
      for (int64_t k = 0; k < B.K; k += kPack, k_packs += from.columns_of(from_size)) {
        const Vector<T> k_pack = load_upto(k_packs, n);
        for (int64_t j = 0; j < std::min<int64_t>(kPack, B.K - k); ++j, out += position.stride) {
          Vector<T> v = k_pack;
          if constexpr (kPack == 2) v = j == 0 ? narrow::first_of_two(k_pack) : narrow::second_of_two(k_pack);
          store_upto(out, v, n);
        }
      }
    }
  }
}

// A frozen layer whose weights a call packs again.
template <class T>
struct FrozenWeights {
  using Pack = void (*)(const PackedMatrix<T>&, int64_t p, const FrozenAt&);
  Pack pack, pack_bias;
  FrozenAt W_ih, W_hh, W_late, W_hr, b_x, b_h;
};
template <class T, class W>
FrozenWeights<T> frozen_weights(const FrozenLayout<T, W>& layout, const char* packed) {
  const int64_t gates = layout.W_ih.blocks;
  return {.pack = pack_again<T, W>,
          .pack_bias = pack_again<T, T>,
          .W_ih = {packed + layout.at_W_ih, gates},
          .W_hh = {packed + layout.at_W_hh, gates},
          .W_late = {packed + layout.at_W_late, gates},
          .W_hr = {packed + layout.at_W_hr, layout.W_hr.blocks},
          .b_x = {packed + layout.at_b_x, gates},
          .b_h = {packed + layout.at_b_h, gates}};
}

// Frozen weights stand in rows that suit wide vectors. Tiles of narrow ones read a part of each row, and the rows share
// few sets of the first-level cache; a call of many rows gains more from packing them again than that takes.
template <class T, class W>
constexpr bool kPacksAgain = kRegisters == 16 && std::is_same_v<T, Real<T>> &&
                             (std::is_same_v<T, W> || std::is_same_v<W, bf16_weight>);

// A quantized row ends with zeros: it has whole k-packs, and is as long as whole vectors of what it is made of.
template <class W>
int64_t whole_packs(int64_t K) {
  return k_packs<W>(K) * kKPack<W>;
}
inline int64_t quantized_stride(int64_t K) { return ceil_div(K, kLanes<float>) * kLanes<float>; }

}  // namespace fastrnn::cpu::FASTRNN_ISA
