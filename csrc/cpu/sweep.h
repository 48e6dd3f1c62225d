#pragma once

// What the forward and the backward sweep over time share: how a layer is cut up among threads and into
// chunks of steps.

#include <algorithm>

#include "core/params.h"
#include "cpu/cache.h"
#include "cpu/distance.h"
#include "cpu/gemm.h"
#include "cpu/team.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Up to this many rows in all, packing the weights costs more than it saves.
constexpr int64_t kUnpackedRows = 8;
// Rows of a step that are multiplied before their cells are computed.
constexpr int64_t kRowBlock = 48;

// Two ways to share a step among threads. By units: each thread keeps its part of W_hh in its own cache, and
// all meet at a barrier every step. By batch: each thread runs its own sequences through all of W_hh, and no
// barrier is needed.
//
// By batch the sequences form groups, some for each thread, so that whoever is quicker can take more of them.
struct Plan {
  int threads;
  int64_t groups;  // 0: by units

  bool by_batch() const { return groups > 0; }
  Range group(int64_t i, int64_t B) const { return {B * i / groups, B * (i + 1) / groups}; }
  // The threads that share a step's products, and the rows of these.
  int step_threads() const { return by_batch() ? 1 : threads; }
  int64_t step_rows(int64_t B) const { return by_batch() ? ceil_div(B, groups) : B; }
};

constexpr int64_t kThreadWork = 192 * 1024;  // multiply-adds that pay for waking a thread

// Multiply-adds of a direction.
template <class Cell, class T>
int64_t work_of(const LayerParams<T>& p) {
  return p.rows.total() * Cell::gates * p.H * (p.I + p.P);
}

template <class Cell, class T>
Plan make_plan(const LayerParams<T>& p, int most_threads) {
  // Multiply-adds a step that pay for a barrier a step: for each nanosecond from core to core, or at any distance.
  constexpr int64_t kBarrierWorkOfNanosecond = 110, kBarrierWork = 64 * 1024;
  const int64_t cache_bytes = second_level_cache() / 2;  // weights that every thread can keep beside the rest
  constexpr int64_t kManyRows = 24;  // sequences a thread that pay for fetching all of W_hh every step,
  constexpr int64_t kSharedCacheBytes = 4 << 20;  // if it comes from the cache that threads share
  // Sequences of a group, more where tiles are low and the last of them wastes more; groups of a thread.
  constexpr int64_t kGroupRows = kRegisters == 32 ? 16 : 24, kMostGroups = 4;
  constexpr int64_t kOwnCacheBytes = 1 << 20;  // of a core; weights beyond it are fetched for each group anew
  const int64_t B = p.rows.B, GH = Cell::gates * p.H;
  const int threads = static_cast<int>(std::clamp<int64_t>(work_of<Cell>(p) / kThreadWork, 1, most_threads));
  if (threads == 1) return {1, 0};
  // By batch each group goes through the chunks at its own pace, so its rows must have the same place in each:
  // not so in a packed batch, whose later steps have fewer sequences.
  const bool enough_rows = B >= 4 * threads && !p.rows.packed();
  const int64_t bytes = GH * p.P * static_cast<int64_t>(sizeof(T));
  const bool fits = bytes <= cache_bytes || (bytes <= kSharedCacheBytes && B >= kManyRows * threads);
  // A single step uses each weight once, so it is best packed by the thread that multiplies it.
  if (p.rows.T == 1) return {threads, 0};
  const int64_t step_work = B * GH * p.P;
  const int64_t group_rows = bytes <= kOwnCacheBytes ? kGroupRows : kManyRows;
  const Plan by_batch{threads, threads * std::clamp<int64_t>(B / (threads * group_rows), 1, kMostGroups)};
  if (enough_rows && fits) return by_batch;
  const bool barrier_pays =
      step_work >= kBarrierWork || step_work / kBarrierWorkOfNanosecond >= recent_round_trip();
  if (barrier_pays) return {threads, 0};
  return enough_rows ? by_batch : Plan{1, 0};
}

// Tasks of fewer rows are not worth moving to another core, where their weights are not in cache.
constexpr int64_t kStolenRows = 8;

// Are `count` rows of so many units worth fetching ahead? Rows of 32 units and single sequences were not.
inline bool fetches_rows(int64_t units, int64_t count) { return units >= 64 && count > 1; }

// Fetches what other threads have just written: all lines at once, where the product that reads them would
// wait for each in turn. No more than a first-level cache has room for beside a panel.
template <class S>
void fetch_written(const S* from, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(S), kMost = (16 << 10) / sizeof(S);
  for (int64_t i = 0; i < std::min(n, kMost); i += kLine) __builtin_prefetch(from + i);
}

// The steps of a direction in the order of its sweep.
struct Direction {
  int64_t T;
  bool reverse;
  int64_t time(int64_t i) const { return reverse ? T - 1 - i : i; }
};

// Sequences of a single step beyond which a chunk has no more of them: they do not depend on each other, and
// scratch memory is for those of one chunk.
constexpr int64_t kStepRows = 2048;

// The sequences that chunks have: all, or of a single step so many at a time.
inline int64_t sequences_in_chunk(const Rows& rows) {
  return rows.T == 1 ? std::min(rows.B, kStepRows) : rows.B;
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

  // Calls f(row, step, chunk_row, chunk_step, count) for runs of evenly spaced rows of sequences
  // [batch.begin, batch.end), as few and long as they come.
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
// sweep.
inline int64_t steps_in_chunk(const Rows& rows, int64_t target) {
  return std::clamp<int64_t>(target / std::max<int64_t>(rows.B, 1), 1, rows.T);
}
inline Chunk chunk_of(const Rows& rows, const Direction& direction, int64_t i0, int64_t i1, Range sequences) {
  return direction.reverse ? Chunk{rows, rows.T - i1, rows.T - i0, sequences}
                           : Chunk{rows, i0, i1, sequences};
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
