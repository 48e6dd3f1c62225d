#pragma once

// The micro-kernel: one tile of C, MR rows by nv vectors, in the processor's registers. B stands as a micropanel:
// its rows, one for each k-pack (a number, two bfloat16 or four int8), follow each other, so the tile reads it front
// to back. A is read in place, one broadcast for each k-pack, with any strides.

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "cpu/gemm/prefetch.h"
#include "cpu/gemm/products.h"
#include "cpu/gemm/simd.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

using tuning::kMaxVectors, tuning::kTileVectors;
// MR: rows of the tallest tile of nv vectors.
template <class T>
constexpr int max_mr(int nv) {
  return std::max(1, (kRegisters == 32 ? tuning::kMrWith32 : tuning::kMrWith16)[nv - 1] / kSumRegisters<T>);
}
template <class T>
constexpr int kMaxMr = max_mr<T>(1);
// KC: a sum over k is taken in blocks of this many terms, unless the caller says otherwise. A block of a
// micropanel stays in the first-level cache, and shorter partial sums round less.
template <class T>
constexpr int64_t kc_of(int64_t K) {
  if (kRowsAfter<T> > 0) return INT64_MAX / 2;  // a product ends with what stands behind the k-packs
  return K <= tuning::kUncutK ? tuning::kUncutK : tuning::kKc;
}

// Where a product goes, and what is added to it: C = A B + plus, with rows of plus `plus_stride` apart (0: the
// same row for all). Null: nothing. It is added last, because a sum that begins near zero rounds less.
template <class R>
struct Destination {
  R* C;
  int64_t ldc;
  int64_t last;  // lanes of the last vector that C has
  const R* plus = nullptr;
  int64_t plus_stride = 0;

  Destination rows(int64_t first) const {
    return {C + first * ldc, ldc, last, plus ? plus + first * plus_stride : nullptr, plus_stride};
  }
  Destination columns(int64_t first, int64_t last) const {
    return {C + first, ldc, last, plus ? plus + first : nullptr, plus_stride};
  }
  Destination added() const { return {C, ldc, last, C, ldc}; }
};

// The left factor of a product, A [M, K], where it stands in memory.
template <class T>
struct LeftFactor {
  const Left<T>* data;
  int64_t M, K;
  int64_t row_stride;            // numbers from a row to the next,
  int64_t k_stride = kKPack<T>;  // and from a k-pack of a row to the next
  // Quantized numbers are multiples of these, [M].
  const float* scales = nullptr;
  int64_t scale_stride = 1;
};

// What the micro-kernel computes: a tile of C, all rows of A times some columns of B.
template <class T>
struct Tile {
  const Left<T>* A;
  int64_t a_row_stride, a_k_stride;
  const Real<T>* B;  // k-packs
  int64_t ldb;
  Destination<Real<T>> to;
  int64_t K;
  const char* prefetch = nullptr;  // is fetched into the cache,
  int64_t prefetch_bytes = 0;      // so many bytes for each k-pack
  PrefetchList* prefetch_list = nullptr;
  const float* scales = nullptr;  // as LeftFactor's
  int64_t scale_stride = 1;
};

template <class T, int rows, int nv>
void multiply_tile(const Tile<T>& t) {
  using V = Vector<Real<T>>;
  constexpr int L = kLanes<Real<T>>;
  Sum<T> sums[rows][nv];
  const Left<T>* A = t.A;
  const Real<T>* B = t.B;
  const int64_t a_row_stride = t.a_row_stride, a_k_stride = t.a_k_stride, ldb = t.ldb;
  const auto add_products = [&](auto splat_a) __attribute__((always_inline)) {
    V b[nv];
#pragma GCC unroll 8
    for (int v = 0; v < nv; ++v) b[v] = load(B + v * L);
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m) {
      const auto a = splat_a(A + m * a_row_stride);
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) sums[m][v].add(a, b[v]);
    }
  };
  const auto add_next = [&](int64_t count, auto fetch) __attribute__((always_inline)) {
    for (int64_t k_pack = 0; k_pack < count; ++k_pack, A += a_k_stride, B += ldb) {
      fetch();
      add_products([](const Left<T>* a) __attribute__((always_inline)) { return Sum<T>::splat(a); });
    }
  };
  int64_t left = t.K / kKPack<T>;
  if (rows > 1 && t.prefetch != nullptr) {
    const char* prefetch = t.prefetch;
    const int64_t prefetch_bytes = t.prefetch_bytes;
    add_next(std::exchange(left, 0), [&]() __attribute__((always_inline)) {
      // Two tiles together must reach all of what is as wide as this one.
      constexpr int lines = (nv * kVectorBytes + 2 * tuning::kLine - 1) / (2 * tuning::kLine);
      for (int line = 0; line < lines; ++line) __builtin_prefetch(prefetch + line * tuning::kLine);
      prefetch += prefetch_bytes;
    });
  } else if (rows > 1 && t.prefetch_list != nullptr) {
    PrefetchList& prefetch_list = *t.prefetch_list;
    const int64_t fetched = std::min(left, prefetch_list.left());
    add_next(fetched, [&]() __attribute__((always_inline)) { prefetch_list.fetch(); });
    left -= fetched;
  }
  if (rows > 1 && a_k_stride > kKPack<T>) {
    // Each k-pack of A is in another line, and the processor sees no stream.
    add_next(left, [&]() __attribute__((always_inline)) {
      __builtin_prefetch(A + tuning::kFarRowsAhead * a_k_stride);
    });
  } else {
    add_next(left, []() {});
  }
  if constexpr (kKPack<T> > 1 && !std::is_same_v<T, int8_weight>) {  // whose left factor has whole k-packs
    if (const int64_t rest = t.K % kKPack<T>; rest != 0) {
      add_products([&](const Left<T>* a)
                       __attribute__((always_inline)) { return Sum<T>::splat_first(a, rest); });
      B += ldb;
    }
  }
  // Copies: a store might change what stands in memory, as far as the compiler knows.
  const Destination<Real<T>> to = t.to;
  const float* const scales = t.scales;
  const int64_t scale_stride = t.scale_stride;
  const auto write = [&](auto plus) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < nv; ++v) {
        const int64_t n = v == nv - 1 ? to.last : L;
        V sum, added{};
        if constexpr (decltype(plus)::value) added = load_upto(to.plus + m * to.plus_stride + v * L, n);
        if constexpr (kRowsAfter<T> > 0) {
          // In every tile with the same roundings.
          const V multiples = sums[m][v].multiples(B + v * L);
          const V scale = Sum<T>::scale(B + v * L, ldb, scales ? scales[m * scale_stride] : 1);
          sum = decltype(plus)::value ? fused(multiples, scale, added) : multiples * scale;
        } else {
          sum = sums[m][v].v;
          if constexpr (decltype(plus)::value) sum += added;
        }
        store_upto(to.C + m * to.ldc + v * L, sum, n);
      }
    }
  };
  if (to.plus) {
    write(std::true_type{});
  } else {
    write(std::false_type{});
  }
}

template <class T>
using TileFunction = void (*)(const Tile<T>&);

template <class T, int nv, size_t... M>
constexpr std::array<TileFunction<T>, kMaxMr<T>> tiles_of_width(std::index_sequence<M...>) {
  return {(static_cast<int>(M) < max_mr<T>(nv) ? multiply_tile<T, std::min<int>(M + 1, max_mr<T>(nv)), nv>
                                               : nullptr)...};
}
template <class T, size_t... N>
constexpr std::array<std::array<TileFunction<T>, kMaxMr<T>>, kMaxVectors> all_tiles(
    std::index_sequence<N...>) {
  return {tiles_of_width<T, N + 1>(std::make_index_sequence<kMaxMr<T>>{})...};
}
// [nv - 1][rows - 1]
template <class T>
constexpr auto kTiles = all_tiles<T>(std::make_index_sequence<kMaxVectors>{});

}  // namespace fastrnn::cpu::FASTRNN_ISA
