#pragma once

#include "cuda/persistent/elements.h"
#include "cuda/recurrence.h"

// The order of the steps, and where their numbers are in memory.

namespace fastrnn::cuda {

// The order of the steps. Iteration i = 0 .. T - 1 of a recurrence computes the step at time(i).
struct StepOrder {
  int T;
  bool ascending;
  FASTRNN_INLINE int time(int i) const { return ascending ? i : T - 1 - i; }
  // For a sequence of `length` steps: the last of its steps that comes before iteration i, or -1.
  FASTRNN_INLINE int before(int i, int length) const {
    const int t = ascending ? time(i) - 1 : time(i) + 1;
    if (ascending) return t < length ? t : length - 1;
    return t < length ? t : -1;
  }
  // Whether iteration i computes the last step of a sequence of `length` steps, in this order.
  FASTRNN_INLINE bool ends(int i, int length) const {
    return ascending ? time(i) == length - 1 : time(i) == 0;
  }
};

FASTRNN_INLINE int64_t length_of(const DeviceRows& rows, int64_t b) {
  return rows.lengths ? rows.lengths[b] : rows.T;
}
// The row of sequence 0 at step t.
FASTRNN_INLINE int64_t first_row(const DeviceRows& rows, int64_t t) {
  return rows.offsets ? rows.offsets[t] : t * rows.stride_t;
}
FASTRNN_INLINE int64_t row_of(const DeviceRows& rows, int64_t t, int64_t b) {
  return first_row(rows, t) + b * rows.stride_b;
}
// The number of all rows.
FASTRNN_INLINE int64_t total_rows(const DeviceRows& rows) {
  return rows.offsets ? rows.offsets[rows.T] : rows.T * rows.B;
}

// Unit u of sequence b in iteration i, and the rows of the sequence in iterations i and i + 1. All numbers but rows fit
// 32 bits: csrc/cuda/plan.cpp gives larger problems another plan. Longer numbers take more instructions and registers.
struct Place {
  int i, u, b, length;
  int64_t row, next_row;
};

// The places in memory of the numbers of direction d.
template <class T>
class Addresses {
 public:
  template <class Params>
  FASTRNN_DEVICE Addresses(const Params& p, int d)
      : H_(static_cast<int>(p.H)),
        B_(static_cast<int>(p.rows.B)),
        D_(p.D),
        d_(d),
        first_saved_(d == 0 ? 0 : total_rows(p.rows)) {}

  FASTRNN_DEVICE int64_t state(int b, int u) const { return int64_t{d_ * B_ + b} * H_ + u; }  // [D, B, H]
  FASTRNN_DEVICE int64_t output(int64_t row, int u) const {                                   // [R, D*H]
    return row * (D_ * H_) + d_ * H_ + u;
  }
  FASTRNN_DEVICE int64_t gate(int64_t row, int G, int u) const {  // [R, D*G*H]: of the first gate
    return row * (D_ * G * H_) + d_ * G * H_ + u;
  }
  FASTRNN_DEVICE int64_t saved(int64_t row, int S, int u) const {  // [D, R, S*H]
    return (first_saved_ + row) * (S * H_) + u;
  }

 private:
  const int H_, B_, D_, d_;
  const int64_t first_saved_;
};

}  // namespace fastrnn::cuda
