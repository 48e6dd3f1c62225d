#pragma once

// Products with few rows, as dot products with the weights as they stand.

#include <algorithm>

#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

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
    for (; k + L * kKPack<T> <= K; k += L * kKPack<T>) {
      const Vector<Real<T>> a_k = load_k_packs(a + k);
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) acc[i] = multiply_add<T>(acc[i], a_k, load_k_packs(row(i) + k));
    }
    if (k < K) {
      const Vector<Real<T>> a_k = load_k_packs_first(a + k, K - k);
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) {
        acc[i] = multiply_add<T>(acc[i], a_k, load_k_packs_first(row(i) + k, K - k));
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
void multiply_unpacked(const Panels<T>& panels, int64_t p, int64_t M, int64_t K, const T* A,
                       int64_t a_row_stride, const T* W, const Destination<Real<T>>& to) {
  constexpr int L = kLanes<Real<T>>;
  const int64_t size = panels.size(p);
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += L) {
      const int64_t n = std::min<int64_t>(L, size - unit);
      const T* W_unit = W + (g * panels.units + panels.first(p) + unit) * K;
      for (int64_t m = 0; m < M; ++m) {
        const T* a = A + m * a_row_stride;
        const int64_t column = g * size + unit;
        auto sums =
            n == L ? dot_products<T, true>(a, W_unit, K, n - 1) : dot_products<T, false>(a, W_unit, K, n - 1);
        if (to.plus) sums += load_upto(to.plus + m * to.plus_stride + column, n);
        store_upto(to.C + m * to.ldc + column, sums, n);
      }
    }
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
