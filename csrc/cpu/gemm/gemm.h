#pragma once

// The matrix product under everything: C[m, n] (+)= sum_k A[m, k] B[k, n], with B in panels. The order of the sum
// over k depends on K alone: not on the tile, the panel or the thread that an element falls to.

#include <algorithm>

#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/prefetch.h"
#include "cpu/gemm/simd.h"
#include "cpu/range.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// The product of A with a micropanel of B.
template <class T>
struct MicropanelProduct {
  LeftFactor<T> A;
  const Real<T>* B;
  int64_t ldb;
  int nv;
  Destination<Real<T>> to;
  int64_t kc;
  const Real<T>* next =
      nullptr;  // what is fetched while B is read. Null: there is nothing to fetch, all is near
  PrefetchList* prefetch_list = nullptr;
};

// In tiles of nearly equal height. A block of rows keeps its part of C in the first-level cache while the blocks
// of K go by. The tiles of a block fetch the micropanel's next block, each a share, or the first tile would wait
// for all of it and the others for nothing; after the last block they fetch `next`.
template <class T>
void multiply_micropanel(const MicropanelProduct<T>& product) {
  constexpr int L = kLanes<Real<T>>;
  const LeftFactor<T>& A = product.A;
  const int64_t M = A.M, K = A.K, kc = product.kc, ldb = product.ldb;
  const int nv = product.nv;
  if (const int first = first_part<T>(nv, M, K, ldb / L); first < nv) {
    MicropanelProduct<T> part = product;
    part.nv = first;
    part.to = product.to.columns(0, L);
    multiply_micropanel(part);
    part.B += part.nv * L;
    part.to = product.to.columns(part.nv * L, product.to.last);
    part.nv = nv - part.nv;
    multiply_micropanel(part);
    return;
  }
  // The first `taller` tiles have a row more than the others.
  const int64_t tiles = ceil_div(M, max_mr<T>(nv)), height = M / tiles, taller = M % tiles;
  for (int64_t i0 = 0; i0 < tiles; i0 += tuning::kTilesInBlock) {
    const int64_t i1 = std::min(i0 + tuning::kTilesInBlock, tiles);
    for (int64_t k = 0; k < K; k += kc) {
      const Destination<Real<T>> block = k == 0 ? product.to : product.to.added();
      Tile<T> tile{.A = nullptr,
                   .a_row_stride = A.row_stride,
                   .a_k_stride = A.k_stride,
                   .B = product.B + k / kKPack<T> * ldb,
                   .ldb = ldb,
                   .to = block,
                   .K = std::min(kc, K - k),
                   .prefetch_list = product.prefetch_list,
                   .scale_stride = A.scale_stride};
      const Real<T>* after = k + kc < K ? tile.B + kc / kKPack<T> * ldb : product.next;
      // A single tile is a stream, which the processor sees coming.
      const bool fetch = product.next != nullptr && i1 - i0 > 1;
      if (fetch) tile.prefetch_bytes = nv * kVectorBytes / (i1 - i0);
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t m = height * i + std::min(i, taller), rows = height + (i < taller);
        tile.A = A.data + m * A.row_stride + k / kKPack<T> * A.k_stride;
        tile.to = block.rows(m);
        if (A.scales != nullptr) tile.scales = A.scales + m * A.scale_stride;
        if (fetch) {
          tile.prefetch =
              reinterpret_cast<const char*>(after) + (i - i0) * k_packs<T>(tile.K) * tile.prefetch_bytes;
        }
        kTiles<T>[nv - 1][rows - 1](tile);
      }
    }
  }
}

// The product of A with a panel of B.
template <class T>
struct PanelProduct {
  LeftFactor<T> A;
  const PackedMatrix<T>& B;
  int64_t panel;
  Order order = Order::ascending;  // in which the panels of B are multiplied
  Destination<Real<T>> to;
  int64_t kc;
  PrefetchList* prefetch_list = nullptr;
};

template <class T>
FASTRNN_INLINE void multiply_packed(const PanelProduct<T>& product) {
  constexpr int L = kLanes<Real<T>>;
  const Panels<T>& panels = product.B.panels;
  const int64_t p = product.panel, rows = product.B.rows();
  const Real<T>* next = product.B.next_panel(p, product.order);
  const Real<T>* B = product.B.panel(p);
  const int micropanels = panels.micropanels(p);
  for (int number = 0; number < micropanels; ++number) {
    const Micropanel micropanel = panels.micropanel(p, number);
    const bool last = number + 1 == micropanels;
    const Real<T>* at = B + micropanel.first * L * rows;
    multiply_micropanel<T>({.A = product.A,
                            .B = at,
                            .ldb = micropanel.nv * L,
                            .nv = micropanel.nv,
                            .to = product.to.columns(micropanel.first * L, last ? product.to.last : L),
                            .kc = product.kc,
                            .next = next && !last ? at + micropanel.nv * L * rows : next,
                            .prefetch_list = product.prefetch_list});
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
