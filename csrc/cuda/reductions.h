#pragma once

#include "cuda/numbers.h"
#include "cuda/recurrence.h"

// Column sums and gathers for the gradients of the weights and biases: bodies of kernels, as in
// csrc/cuda/stepwise/cell_kernels.h.

namespace fastrnn::cuda {

// What W_hh multiplied in each step, for (t, b, column) with column < D*P: y of the step before, in the order of the
// direction, or h0; times the dropout mask.
template <class T>
struct GatherPrevious {
  DeviceRows rows;
  int64_t P;
  int D;
  const T* y;     // [R, D*P]
  const T* h0;    // [D, B, P] or null (zeros)
  const T* mask;  // [D, B, P] or null
  T* to;          // [R, D*P]

  FASTRNN_INLINE int64_t n(int64_t t) const {
    return rows.offsets ? rows.offsets[t + 1] - rows.offsets[t] : rows.B;
  }
  FASTRNN_INLINE int64_t row(int64_t t, int64_t b) const {
    return (rows.offsets ? rows.offsets[t] : t * rows.stride_t) + b * rows.stride_b;
  }

  FASTRNN_INLINE void operator()(int64_t t, int64_t b, int64_t column) const {
    if (b >= n(t)) return;
    const bool reverse = column >= P;
    const int64_t width = D * P, before = reverse ? t + 1 : t - 1;
    const int64_t state = ((reverse ? rows.B : 0) + b) * P + (reverse ? column - P : column);
    T& h = to[row(t, b) * width + column];
    if (before >= 0 && before < rows.T && b < n(before)) {
      h = y[row(before, b) * width + column];
    } else {
      h = h0 ? h0[state] : from_real<T>(0);
    }
    if (mask) h = from_real<T>(to_real(h) * to_real(mask[state]));
  }
};

// Column sums of a matrix [R, width] in two passes. Each sum is in the order of the rows.
// The first pass, for (0, i, column): the sums of strip i of the rows.
template <class T>
struct PartialColumnSums {
  const T* from;  // [R, width]
  int64_t R, width, strip;
  Real<T>* sums;  // [strips, width]

  FASTRNN_INLINE void operator()(int64_t, int64_t i, int64_t column) const {
    const int64_t end = (i + 1) * strip < R ? (i + 1) * strip : R;
    Real<T> sum = 0;
    for (int64_t row = i * strip; row < end; ++row) sum += to_real(from[row * width + column]);
    sums[i * width + column] = sum;
  }
};
// The second pass, for (block, 0, column): the sums over all strips, for the columns of a column block. The column
// blocks are the directions, or their unit vectors.
template <class T>
struct TotalColumnSums {
  // [columns]: up to two places for each column block, null if not wanted. No std::array: device code cannot read it.
  struct Places {
    T *first, *second;
  };
  struct Targets {
    Places of_block[2 * kMostUnitVectors];
  };

  const Real<T>* sums;  // [strips, blocks*columns]
  int64_t strips, width, columns;
  Targets to;

  FASTRNN_INLINE void operator()(int64_t block, int64_t, int64_t column) const {
    Real<T> sum = 0;
    for (int64_t i = 0; i < strips; ++i) sum += sums[i * width + block * columns + column];
    const Places& places = to.of_block[block];
    if (places.first) places.first[column] = from_real<T>(sum);
    if (places.second) places.second[column] = from_real<T>(sum);
  }
};

}  // namespace fastrnn::cuda
