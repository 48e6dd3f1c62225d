#include "cpu/plan.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/cache_sizes.h"
#include "cpu/threads/core_latency.h"
#include "cpu/tuning.h"

namespace fastrnn::cpu {
namespace {

// Sharing::none: nothing is forced.
Sharing read_forced() {
  const char* value = std::getenv("FASTRNN_CPU_PLAN");
  if (value == nullptr || *value == '\0') return Sharing::none;
  for (const Sharing sharing : {Sharing::units, Sharing::batch}) {
    if (std::string(value) == name_of(sharing)) return sharing;
  }
  throw std::runtime_error("FASTRNN_CPU_PLAN: expected units or batch, got '" + std::string(value) + "'");
}
Sharing forced() {
  static const Sharing sharing = read_forced();
  return sharing;
}

// Multiply-adds of a direction, as many as take the same time with floats.
int64_t work_of(const Problem& p) {
  return p.sizes.rows * p.gates * p.sizes.H * (p.sizes.I + p.sizes.P) / p.speed;
}

Plan plan_direction(const Problem& p, int most_threads) {
  using namespace tuning;
  const Sharing only = forced();
  const int64_t B = p.sizes.B, GH = p.gates * p.sizes.H, P = p.sizes.P;
  const int threads = static_cast<int>(std::clamp<int64_t>(work_of(p) / kThreadWork, 1, most_threads));
  if (threads == 1) {
    return {1, 0,
            most_threads == 1 ? "there is no second thread" : "it is too little work for a second thread"};
  }
  // A single step uses each weight once, so it is best packed by the thread that multiplies it.
  if (p.sizes.T == 1) return {threads, 0, "a single step reads each weight once"};
  // By batch each batch group goes through the chunks at its own pace, so its rows must have the same place in each
  // chunk: not so in a packed batch, whose later steps have fewer sequences.
  const bool can_be_by_batch = !p.sizes.packed;
  const bool enough_rows = B >= kLeastSequences * threads && can_be_by_batch;
  const int64_t bytes = GH * P * p.number_bytes;
  const bool own_cache = bytes <= cache_sizes().second_level / kWeightsPartOfCache;
  const bool shared_cache = bytes <= kSharedWeightBytes && B >= kManySequences * threads;
  const int64_t sequences = bytes <= kOwnWeightBytes ? kBatchGroupSequences.of(p.registers) : kManySequences;
  const int64_t batch_groups = threads * std::clamp<int64_t>(B / (threads * sequences), 1, kMostBatchGroups);
  if (only == Sharing::units) return {threads, 0, "FASTRNN_CPU_PLAN forces it"};
  if (only == Sharing::batch && can_be_by_batch) return {threads, batch_groups, "FASTRNN_CPU_PLAN forces it"};
  if (enough_rows && own_cache) return {threads, batch_groups, "W_hh stays in each core's cache"};
  if (enough_rows && shared_cache)
    return {threads, batch_groups, "many sequences pay for fetching W_hh in every step"};
  const int64_t step_work = B * GH * P / p.speed;
  if (step_work >= kBarrierWork) return {threads, 0, "a step is enough work for a barrier"};
  if (step_work / kBarrierWorkOfNanosecond >= recent_round_trip()) {
    return {threads, 0, "a step is enough work for a barrier between cores so near"};
  }
  if (enough_rows) return {threads, batch_groups, "a step is too little work for a barrier"};
  return {1, 0, "a step is too little work to share"};
}

}  // namespace

const char* name_of(Sharing sharing) {
  return sharing == Sharing::units ? "units" : sharing == Sharing::batch ? "batch" : "none";
}

bool pays_for_threads(const Problem& problem) { return work_of(problem) >= 2 * tuning::kThreadWork; }

Plan make_plan(const Problem& problem, Pass pass, int most_threads) {
  // Two directions of a forward run side by side, each with half of the threads.
  const bool side_by_side = pass == Pass::forward && problem.sizes.D == 2 && most_threads >= 2 &&
                            work_of(problem) >= tuning::kThreadWork;
  Plan plan = plan_direction(problem, side_by_side ? most_threads / 2 : most_threads);
  plan.side_by_side = side_by_side;
  return plan;
}

}  // namespace fastrnn::cpu
