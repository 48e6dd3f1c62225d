#pragma once

#include <cstdint>

namespace fastrnn {

// Where the rows of a sequence buffer [R, width] lie: row(t, b) belongs to step t and sequence b.
//   time-major  [T, B, .]: first(t) = t B,                stride_b = 1
//   batch-major [B, T, .]: first(t) = t,                  stride_b = T
//   packed      [R, .]:    first(t) = sum of earlier n,   stride_b = 1;  step t has n(t) <= B sequences
struct Rows {
  int64_t T, B;
  int64_t stride_t, stride_b;
  const int64_t* batch_sizes;  // [T], null unless packed
  const int64_t* offsets;      // [T + 1], null unless packed

  bool packed() const { return batch_sizes != nullptr; }
  int64_t n(int64_t t) const { return packed() ? batch_sizes[t] : B; }
  int64_t first(int64_t t) const { return packed() ? offsets[t] : t * stride_t; }
  int64_t row(int64_t t, int64_t b) const { return first(t) + b * stride_b; }
  int64_t total() const { return packed() ? offsets[T] : T * B; }
};

}  // namespace fastrnn
