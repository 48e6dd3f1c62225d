#pragma once

// How the steps of a layer are cut into chunks.

#include <algorithm>

#include "core/params.h"
#include "cpu/range.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu::FASTRNN_ISA {

using tuning::kRowBlock;

// The steps of a direction in the order of its recurrence.
struct Direction {
  int64_t T;
  bool reverse;
  int64_t time(int64_t i) const { return reverse ? T - 1 - i : i; }
};

// The sequences that chunks have: all, or of a single step so many at a time, because they do not depend on each
// other.
inline int64_t sequences_in_chunk(const Rows& rows) {
  return rows.T == 1 ? std::min(rows.B, tuning::kStepSequences) : rows.B;
}

// Steps [begin, end) in time, of all sequences, or one step of some. Buffers that hold one chunk are time-major,
// without gaps.
struct Chunk {
  const Rows& rows;
  int64_t begin, end;
  Range sequences;

  // Where sequence 0 of step t stands, or would.
  int64_t row(int64_t t) const {
    return (rows.packed() ? rows.first(t) - rows.first(begin) : (t - begin) * rows.B) - sequences.begin;
  }
  int64_t count() const { return std::min(row(end), (end - begin) * (sequences.end - sequences.begin)); }

  // Calls f(row, stride, chunk_row, chunk_stride, count) for runs of evenly spaced rows of sequences
  // [batch.begin, batch.end): `count` rows from `row` on, `stride` rows apart, and where the chunk has them. The
  // runs are as few and as long as possible.
  template <class F>
  void for_each_run(Range batch, const F& f) const {
    if (rows.stride_b == 1 && batch.begin == 0 && batch.end == rows.B) {
      f(rows.first(begin), 1, 0, 1, count());
    } else if (rows.stride_b == 1 || batch.end - batch.begin >= end - begin) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t n = std::min(batch.end, rows.n(t)) - batch.begin;
        if (n > 0) f(rows.row(t, batch.begin), rows.stride_b, row(t) + batch.begin, 1, n);
      }
    } else {
      for (int64_t b = batch.begin; b < batch.end; ++b) {
        f(rows.row(begin, b), rows.stride_t, row(begin) + b, rows.B, end - begin);
      }
    }
  }
};

// A sequence of B rows a step, cut so that a chunk has about `target` rows: steps [i, i + steps) of the
// recurrence.
inline int64_t steps_in_chunk(const Rows& rows, int64_t target) {
  return std::clamp<int64_t>(target / std::max<int64_t>(rows.B, 1), 1, rows.T);
}
inline Chunk chunk_of(const Rows& rows, const Direction& direction, int64_t i0, int64_t i1, Range sequences) {
  return direction.reverse ? Chunk{rows, rows.T - i1, rows.T - i0, sequences}
                           : Chunk{rows, i0, i1, sequences};
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
