#pragma once

// The gradients of weights and biases: sums over the rows of a chunk.

#include <algorithm>
#include <type_traits>

#include "cpu/gemm/gemm.h"
#include "cpu/range.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// KC of a sum over rows. There may be thousands of rows, and one long sum would round more than torch.nn's, which
// go step by step.
constexpr int64_t kSummedRows = 128;
// For a bias, which is only a sum, partial sums of fewer rows cost little; and as many of them form a longer one.
constexpr int64_t kBiasRows = 16;

// A gradient of weights while chunks are added to it: the result itself, or numbers not yet rounded to it.
template <class T>
struct GradientSum {
  T* result;  // null: not wanted
  Real<T>* sum;
  int64_t size;
};

// Rows of a chunk, [K, panels.units], as a factor of weight gradients. Its panels are one micropanel each.
template <class T>
struct ChunkFactor {
  Panels<T> panels;
  const T* first;  // one row after the other, or
  const T* const* listed;
  Real<T>* packed;  // null: not to be packed

  // Row after row, not panel after panel: rows that another core has written come quickest as a stream.
  void pack(int64_t K, Range rows) const {
    const auto row = [&](int64_t k) { return listed ? listed[k] : first + k * panels.units; };
    const int64_t count = panels.count();
    for (int64_t k = rows.begin; k < rows.end; k += kKPack<T>) {
      for (int64_t i = 0; i < count; ++i) {
        pack_micropanel_row(panels, i, Micropanel{0, panels.nv(i)}, K, k, row,
                            packed + panels.offset(i) * k_packs<T>(K));
      }
    }
  }
};

// to (+)= left^T right. A task is a block of left's columns and a panel of right's.
template <class T>
struct WeightProduct {
  const ChunkFactor<T>&left, &right;
  const GradientSum<T>& to;

  int64_t tasks() const { return to.result ? left.panels.count() * right.panels.count() : 0; }
  void multiply(int64_t K, int64_t task, bool add) const {
    const int64_t block = task / right.panels.count(), i = task % right.panels.count();
    const int64_t m = left.panels.first(block), N = right.panels.units;
    const T* A = left.first + m;
    int64_t a_k_stride = left.panels.units;
    if (left.packed) {
      A = reinterpret_cast<const T*>(left.packed + left.panels.offset(block) * k_packs<T>(K));
      a_k_stride = left.panels.width(block) * kKPack<T>;
    }
    const Destination<Real<T>> result{to.sum + m * N + right.panels.first(i), N, right.panels.last(i)};
    multiply_packed(right.panels, i, false, left.panels.size(block), K, A, kKPack<T>, a_k_stride,
                    right.packed, false, add ? result.added() : result, kSummedRows);
  }
};

// db[m] (+)= sum_k gradient[k, m] for m in `share`; `stride` is the distance from one row of the gradient to the
// next.
template <class T>
void sum_rows(int64_t K, const T* gradient, int64_t stride, Range share, Real<T>* db, bool add) {
  using V = Vector<Real<T>>;
  constexpr int L = kLanes<Real<T>>;
  const auto sum_vectors = [&](auto count, int64_t m, int64_t lanes) __attribute__((always_inline)) {
    constexpr int N = decltype(count)::value;
    V sum[N] = {};
    for (int j = 0; add && j < N; ++j) sum[j] = load_upto(db + m + j * L, lanes);
    for (int64_t k0 = 0; k0 < K; k0 += kBiasRows * kBiasRows) {
      V partial[N] = {};
      for (int64_t k1 = k0; k1 < std::min(k0 + kBiasRows * kBiasRows, K); k1 += kBiasRows) {
        V shorter[N] = {};
        for (int64_t k = k1; k < std::min(k1 + kBiasRows, K); ++k) {
          for (int j = 0; j < N; ++j) shorter[j] += load_upto(gradient + k * stride + m + j * L, lanes);
        }
        for (int j = 0; j < N; ++j) partial[j] += shorter[j];
      }
      for (int j = 0; j < N; ++j) sum[j] += partial[j];
    }
    for (int j = 0; j < N; ++j) store_upto(db + m + j * L, sum[j], lanes);
  };
  constexpr int kTogether = 4;  // lines of a row, which lies far from the next
  int64_t m = share.begin;
  for (; m + kTogether * L <= share.end; m += kTogether * L) {
    sum_vectors(std::integral_constant<int, kTogether>{}, m, L);
  }
  for (; m < share.end; m += L) sum_vectors(std::integral_constant<int, 1>{}, m, share.end - m);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
