#pragma once

// How the steps of a layer are shared among threads.

#include <algorithm>

#include "core/params.h"
#include "cpu/cache.h"
#include "cpu/gemm/simd.h"
#include "cpu/range.h"
#include "cpu/threads/core_latency.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Two ways to share a step among threads. By units: each thread keeps its panels of W_hh in its own cache, and
// all threads meet at a barrier after every step. By batch: each thread runs its own sequences through all of W_hh,
// and no barrier is needed.
//
// By batch the sequences form batch groups, several for each thread, so that a quick thread can take more of them.
struct Plan {
  int threads;
  int64_t batch_groups;  // 0: by units

  bool by_batch() const { return batch_groups > 0; }
  Range batch_group(int64_t i, int64_t B) const { return {B * i / batch_groups, B * (i + 1) / batch_groups}; }
  // The threads that share a step's products, and the rows of these.
  int step_threads() const { return by_batch() ? 1 : threads; }
  int64_t step_rows(int64_t B) const { return by_batch() ? ceil_div(B, batch_groups) : B; }
};

constexpr int64_t kThreadWork = 192 * 1024;  // multiply-adds that pay for waking a thread

// Multiply-adds of a direction.
template <class Cell, class T>
int64_t work_of(const LayerParams<T>& p) {
  return p.rows.total() * Cell::gates * p.H * (p.I + p.P);
}

template <class Cell, class T>
Plan make_plan(const LayerParams<T>& p, int most_threads) {
  // Multiply-adds of a step that pay for a barrier after it: for each nanosecond of core latency, or at any latency.
  constexpr int64_t kBarrierWorkOfNanosecond = 110, kBarrierWork = 64 * 1024;
  const int64_t cache_bytes = second_level_cache() / 2;  // weights that every thread can keep beside the rest
  constexpr int64_t kManyRows = 24;  // sequences a thread that pay for fetching all of W_hh every step,
  constexpr int64_t kSharedCacheBytes = 4 << 20;  // if it comes from the cache that threads share
  // Sequences of a batch group, more where tiles are low and the last of them wastes more; batch groups of a thread.
  constexpr int64_t kBatchGroupRows = kRegisters == 32 ? 16 : 24, kMostBatchGroups = 4;
  constexpr int64_t kOwnCacheBytes = 1 << 20;  // of a core; each batch group fetches larger weights anew
  const int64_t B = p.rows.B, GH = Cell::gates * p.H;
  const int threads = static_cast<int>(std::clamp<int64_t>(work_of<Cell>(p) / kThreadWork, 1, most_threads));
  if (threads == 1) return {1, 0};
  // By batch each batch group goes through the chunks at its own pace, so its rows must have the same place in each
  // chunk: not so in a packed batch, whose later steps have fewer sequences.
  const bool enough_rows = B >= 4 * threads && !p.rows.packed();
  const int64_t bytes = GH * p.P * static_cast<int64_t>(sizeof(T));
  const bool fits = bytes <= cache_bytes || (bytes <= kSharedCacheBytes && B >= kManyRows * threads);
  // A single step uses each weight once, so it is best packed by the thread that multiplies it.
  if (p.rows.T == 1) return {threads, 0};
  const int64_t step_work = B * GH * p.P;
  const int64_t batch_group_rows = bytes <= kOwnCacheBytes ? kBatchGroupRows : kManyRows;
  const Plan by_batch{threads,
                      threads * std::clamp<int64_t>(B / (threads * batch_group_rows), 1, kMostBatchGroups)};
  if (enough_rows && fits) return by_batch;
  const bool barrier_pays =
      step_work >= kBarrierWork || step_work / kBarrierWorkOfNanosecond >= recent_round_trip();
  if (barrier_pays) return {threads, 0};
  return enough_rows ? by_batch : Plan{1, 0};
}

// Tasks of fewer rows are not worth moving to another core, where their weights are not in cache.
constexpr int64_t kStolenRows = 8;

}  // namespace fastrnn::cpu::FASTRNN_ISA
