#pragma once

// The matrix product under everything: C[m, n] (+)= sum_k A[m, k] B[k, n], with B in panels. The order of the sum
// over k depends on K alone: not on the tile, the panel or the thread that an element falls to.

#include <algorithm>

#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/prefetch.h"
#include "cpu/gemm/simd.h"
#include "cpu/range.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Rows [0, M) of one panel, in tiles of nearly equal height. A block of rows keeps its part of C in the
// first-level cache while the blocks of K go by. The tiles of a block fetch the panel's next block, each a
// share, or the first tile would wait for all of it and the others for nothing; after the last block they
// fetch `next`. Null: there is nothing to fetch, all is near.
template <class T>
void multiply_panel(int64_t M, int64_t K, const T* A, int64_t a_row_stride, int64_t a_k_stride,
                    const Real<T>* B, int64_t ldb, int nv, const Destination<Real<T>>& to, int64_t kc,
                    const Real<T>* next, PrefetchList* prefetch_list) {
  constexpr int L = kLanes<Real<T>>;
  if (M > 1 && nv > kTileVectors) {
    const int left = nv / 2;
    multiply_panel(M, K, A, a_row_stride, a_k_stride, B, ldb, left, to.columns(0, L), kc, next,
                   prefetch_list);
    multiply_panel(M, K, A, a_row_stride, a_k_stride, B + left * L, ldb, nv - left,
                   to.columns(left * L, to.last), kc, next, prefetch_list);
    return;
  }
  constexpr int64_t kTilesInBlock = 8;
  const int64_t tiles = ceil_div(M, max_mr(nv));
  for (int64_t i0 = 0; i0 < tiles; i0 += kTilesInBlock) {
    const int64_t i1 = std::min(i0 + kTilesInBlock, tiles);
    for (int64_t k = 0; k < K; k += kc) {
      const Destination<Real<T>> block = k == 0 ? to : to.added();
      Tile<T> tile{nullptr, a_row_stride, a_k_stride,          B + k / kKPack<T> * ldb,
                   ldb,     block,        std::min(kc, K - k), nullptr,
                   0,       prefetch_list};
      const Real<T>* after = k + kc < K ? tile.B + kc / kKPack<T> * ldb : next;
      // A single tile is a stream, which the processor sees coming.
      const bool fetch = next != nullptr && i1 - i0 > 1;
      if (fetch) tile.prefetch_bytes = nv * kVectorBytes / (i1 - i0);
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t m = ceil_div(M * i, tiles), rows = ceil_div(M * (i + 1), tiles) - m;
        tile.A = A + m * a_row_stride + k / kKPack<T> * a_k_stride;
        tile.to = block.rows(m);
        if (fetch) {
          tile.prefetch =
              reinterpret_cast<const char*>(after) + (i - i0) * k_packs<T>(tile.K) * tile.prefetch_bytes;
        }
        kTiles<T>[nv - 1][rows - 1](tile);
      }
    }
  }
}

// Rows [0, M) of panel p. B: all panels one after the other, taken in ascending or descending order; or if
// `alone` only this one, just packed.
template <class T>
FASTRNN_INLINE void multiply_packed(const Panels<T>& panels, int64_t p, bool descending, int64_t M, int64_t K,
                                    const T* A, int64_t a_row_stride, int64_t a_k_stride, const Real<T>* B,
                                    bool alone, const Destination<Real<T>>& to, int64_t kc,
                                    PrefetchList* prefetch_list = nullptr) {
  constexpr int L = kLanes<Real<T>>;
  constexpr int64_t kNear = (768 << 10) / sizeof(Real<T>);  // stays in a core's second-level cache
  const int64_t rows = k_packs<T>(K);
  const Real<T>* next = nullptr;
  if (!alone) {
    if (panels.G * panels.units * rows > kNear) next = B + panels.offset(panels.after(p, descending)) * rows;
    B += panels.offset(p) * rows;
  }
  const int micropanels = panels.micropanels(p);
  for (int i = 0; i < micropanels; ++i) {
    const Micropanel micropanel = panels.micropanel(p, i);
    const Real<T>*at = B + micropanel.first * L * rows,
          *at_next = i + 1 < micropanels ? at + micropanel.nv * L * rows : next;
    multiply_panel(M, K, A, a_row_stride, a_k_stride, at, micropanel.nv * L, micropanel.nv,
                   to.columns(micropanel.first * L, i + 1 < micropanels ? L : to.last), kc,
                   next ? at_next : nullptr, prefetch_list);
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
