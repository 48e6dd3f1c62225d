#pragma once

#include <type_traits>

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
FASTRNN_INLINE int first_row(const DeviceRows& rows, int t) {
  return rows.offsets ? static_cast<int>(rows.offsets[t]) : t * static_cast<int>(rows.stride_t);
}
FASTRNN_INLINE int row_of(const DeviceRows& rows, int t, int b) {
  return first_row(rows, t) + b * static_cast<int>(rows.stride_b);
}
// The number of all rows.
FASTRNN_INLINE int64_t total_rows(const DeviceRows& rows) {
  return rows.offsets ? rows.offsets[rows.T] : rows.T * rows.B;
}

// Unit u of sequence b in iteration i, and the rows of the sequence in iterations i and i + 1. All numbers fit 32 bits:
// csrc/cuda/plan.cpp gives larger problems another plan. Longer numbers take more instructions and registers.
// offset: of u from the first unit of the lane
struct Place {
  int i, u, offset, b, length;
  int row, next_row;
};

// The numbers of a lane's first unit in all rows of an array. An address is one multiply-add away.
template <class V>
class Column {
 public:
  Column() = default;
  FASTRNN_DEVICE Column(V* first, int row_elements)
      : first_(first), row_bytes_(row_elements * static_cast<int>(sizeof(V))) {}

  FASTRNN_DEVICE V* at(int row) const {
    using Byte = std::conditional_t<std::is_const_v<V>, const char, char>;
    return reinterpret_cast<V*>(reinterpret_cast<Byte*>(first_) + int64_t{row} * row_bytes_);
  }
  FASTRNN_DEVICE V* at(const Place& place) const { return at(place.row) + place.offset; }
  FASTRNN_DEVICE explicit operator bool() const { return first_ != nullptr; }
  template <class Ctx>
  FASTRNN_DEVICE void keep_in_registers(Ctx& ctx) {
    ctx.keep(first_);
  }

 private:
  V* first_ = nullptr;
  int row_bytes_ = 0;
};

// The places in memory of the numbers of direction d.
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

  // Unit u of an array [R, D*H], [R, D*G*H] (its first gate) or [D, R, S*H] (its first number); of no array if `array`
  // is null.
  template <class V>
  FASTRNN_DEVICE Column<V> output(V* array, int u) const {
    return column(array, d_ * H_ + u, D_ * H_);
  }
  template <class V>
  FASTRNN_DEVICE Column<V> gate(V* array, int G, int u) const {
    return column(array, d_ * G * H_ + u, D_ * G * H_);
  }
  template <class V>
  FASTRNN_DEVICE Column<V> saved(V* array, int S, int u) const {
    return column(array, first_saved_ * (S * H_) + u, S * H_);
  }

 private:
  template <class V>
  FASTRNN_DEVICE static Column<V> column(V* array, int64_t first, int row_elements) {
    return {array ? array + first : nullptr, row_elements};
  }

  const int H_, B_, D_, d_;
  const int64_t first_saved_;
};

}  // namespace fastrnn::cuda
