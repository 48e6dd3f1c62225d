#pragma once

// How the steps of a layer are shared among threads.

#include <algorithm>

#include "core/params.h"
#include "cpu/cache_sizes.h"
#include "cpu/gemm/simd.h"
#include "cpu/range.h"
#include "cpu/threads/core_latency.h"
#include "cpu/tuning.h"

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

// Multiply-adds of a direction.
template <class Cell, class T>
int64_t work_of(const LayerParams<T>& p) {
  return p.rows.total() * Cell::gates * p.H * (p.I + p.P);
}

template <class Cell, class T>
Plan make_plan(const LayerParams<T>& p, int most_threads) {
  using namespace tuning;
  const int64_t B = p.rows.B, GH = Cell::gates * p.H;
  const int threads = static_cast<int>(std::clamp<int64_t>(work_of<Cell>(p) / kThreadWork, 1, most_threads));
  if (threads == 1) return {1, 0};
  // By batch each batch group goes through the chunks at its own pace, so its rows must have the same place in each
  // chunk: not so in a packed batch, whose later steps have fewer sequences.
  const bool enough_rows = B >= kLeastSequences * threads && !p.rows.packed();
  const int64_t bytes = GH * p.P * static_cast<int64_t>(sizeof(T));
  const bool fits = bytes <= cache_sizes().second_level / kWeightsPartOfCache ||
                    (bytes <= kSharedWeightBytes && B >= kManySequences * threads);
  // A single step uses each weight once, so it is best packed by the thread that multiplies it.
  if (p.rows.T == 1) return {threads, 0};
  const int64_t step_work = B * GH * p.P;
  const int64_t batch_group_rows = bytes <= kOwnWeightBytes ? tuned(kBatchGroupSequences) : kManySequences;
  const Plan by_batch{threads,
                      threads * std::clamp<int64_t>(B / (threads * batch_group_rows), 1, kMostBatchGroups)};
  if (enough_rows && fits) return by_batch;
  const bool barrier_pays =
      step_work >= kBarrierWork || step_work / kBarrierWorkOfNanosecond >= recent_round_trip();
  if (barrier_pays) return {threads, 0};
  return enough_rows ? by_batch : Plan{1, 0};
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
