#pragma once

// Layers on top of each other, all at once, each a chunk of steps behind the one below it (a wavefront). Threads that
// share a layer wait for each other in every step; these do in every chunk.

#include <algorithm>
#include <memory>

#include "cpu/cache_sizes.h"
#include "cpu/forward.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// Whether that is quicker than layer after layer: threads do not share a layer's steps, or its weights stay in the cache
// of a core, so that sharing them saves no reading.
template <class T, class W>
bool stack_pays(const EngineCell<T>& cell, const ForwardParams<T>* layers, int count, int threads) {
  const ForwardParams<T>& p = layers[0];
  if (count < 2 || count > tuning::kMostLayers || threads < 2 || p.D > 1 || p.rows.packed()) return false;
  if (p.rows.T < 2 * tuning::kWavefrontSteps) return false;
  const Problem problem = problem_of<T, W>(cell.info, p);
  const Plan plan = make_plan(problem, Pass::forward, threads);
  if (plan.by_batch() || !pays_for_threads(problem)) return false;
  const int64_t bytes = problem.gates * p.H * p.P * problem.number_bytes;
  return plan.threads == 1 ||
         (plan.threads <= count && bytes <= cache_sizes().second_level / tuning::kWeightsPartOfCache);
}

// layers: their x is the y of the one before. False: nothing was done, for it does not pay.
template <class T, class W>
bool forward_stack(const EngineCell<T>& cell, const ForwardParams<T>* layers, int count,
                   const Resources& resources) {
  const int most = usable_threads(resources.threads);
  if (!stack_pays<T, W>(cell, layers, count, most)) return false;
  const Plan plan{1, 1, "a thread for each layer"};
  const int64_t steps = std::max(ceil_div(layers[0].rows.T, tuning::kLeastChunks), tuning::kWavefrontSteps);
  std::unique_ptr<Forward<T, W>> forwards[tuning::kMostLayers];
  TaskQueue queue{1, 1};
  Team alone(0, 1, queue);
  for (int layer = 0; layer < count; ++layer) {
    forwards[layer] = std::make_unique<Forward<T, W>>(cell, layers[layer], 0, plan, resources, steps);
    forwards[layer]->begin(alone);
  }
  TaskQueue done[tuning::kMostLayers] = {};  // the chunks of each layer
  parallel(std::min(most, count), [&](int rank, int size) {
    int64_t waited = 0;
    const int first = count * rank / size, end = count * (rank + 1) / size;
    const int64_t chunks = forwards[0]->chunks();
    for (int64_t number = 0; number < chunks; ++number) {
      for (int layer = first; layer < end; ++layer) {
        if (layer > 0 && layer == first) {
          done[layer - 1].finish(0, static_cast<uint32_t>(number + 1), TaskQueue::Wait::patient, waited);
        }
        forwards[layer]->run_chunk(0, number);
        done[layer].add_done();
      }
    }
    return waited;
  });
  for (int layer = 0; layer < count; ++layer) forwards[layer]->end(alone);
  return true;
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
