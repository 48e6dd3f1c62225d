#pragma once

// Products with few rows, as dot products with the weights where they stand.

#include <algorithm>

#include "cpu/gemm/micro_kernel.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/simd.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Lane i of the result is the dot product of `a` [K] with row(i).
template <class T, class Row>
FASTRNN_INLINE Vector<Real<T>> dot_products(const T* a, int64_t K, const Row& row) {
  constexpr int L = kLanes<Real<T>>;
  constexpr int kStreams = std::min(L, tuning::kStreams);  // rows at a time
  Vector<Real<T>> products[L];
#pragma GCC unroll 2
  for (int i0 = 0; i0 < L; i0 += kStreams) {
    Vector<Real<T>> acc[kStreams] = {};
    int64_t k = 0;
    for (; k + L * kKPack<T> <= K; k += L * kKPack<T>) {
      const Vector<Real<T>> a_k = load_k_packs(a + k);
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) acc[i] = multiply_add<T>(acc[i], a_k, load_k_packs(row(i0 + i) + k));
    }
    if (k < K) {
      const Vector<Real<T>> a_k = load_k_packs_first(a + k, K - k);
#pragma GCC unroll 8
      for (int i = 0; i < kStreams; ++i) {
        acc[i] = multiply_add<T>(acc[i], a_k, load_k_packs_first(row(i0 + i) + k, K - k));
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) products[i0 + i] = acc[i];
  }
  return sum_each<Real<T>>(products);
}

// The product of A with panel p of W [G * units, K] as it stands: where W would not be read often enough to pay for
// packing it.
template <class T>
void multiply_unpacked(const LeftFactor<T>& A, const T* W, const Panels<T>& panels, int64_t p,
                       const Destination<Real<T>>& to) {
  constexpr int L = kLanes<Real<T>>;
  const int64_t size = panels.size(p), K = A.K;
  for (int g = 0; g < panels.G; ++g) {
    for (int64_t unit = 0; unit < size; unit += L) {
      const int64_t n = std::min<int64_t>(L, size - unit);
      const T* W_unit = W + (g * panels.units + panels.first(p) + unit) * K;
      const auto row = [&](int64_t i) __attribute__((always_inline)) { return W_unit + i * K; };
      const auto row_or_last = [&](int64_t i)
                                   __attribute__((always_inline)) { return row(std::min(i, n - 1)); };
      for (int64_t m = 0; m < A.M; ++m) {
        const T* a = A.data + m * A.row_stride;
        const int64_t column = g * size + unit;
        auto sums = n == L ? dot_products(a, K, row) : dot_products(a, K, row_or_last);
        if (to.plus) sums += load_upto(to.plus + m * to.plus_stride + column, n);
        store_upto(to.C + m * to.ldc + column, sums, n);
      }
    }
  }
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
