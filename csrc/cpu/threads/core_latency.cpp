#include "cpu/threads/core_latency.h"

#include <omp.h>

#include <algorithm>

#include "cpu/threads/task_queue.h"

namespace fastrnn::cpu {

void CoreLatency::begin(int64_t now) {
  measured_at_ = now;
  passes_ = 0;
}

// The shortest of several batches: interruptions make the others longer. For the first pass there is a
// millisecond, since the other thread may have to wake up; the end of the parallel region waits for it anyway.
void CoreLatency::measure(int rank) {
  int64_t best = INT64_MAX;
  int count = 0;
  for (int batch = 0; batch < tuning::kLatencyBatches; ++batch) {
    const int64_t start = TaskQueue::now();
    for (int round = 0; round < tuning::kLatencyRounds; ++round, count += 2) {
      if (rank == 0) passes_.store(count + 1, std::memory_order_release);
      if (!wait_for(count + 1 + (rank == 0), count == 0 ? tuning::kFirstPolls : tuning::kPolls)) {
        passes_.store(kGone, std::memory_order_release);
        return;
      }
      if (rank == 1) passes_.store(count + 2, std::memory_order_release);
    }
    best = std::min(best, (TaskQueue::now() - start) / tuning::kLatencyRounds);
  }
  if (rank == 0) round_trip_ = best;
}

bool CoreLatency::wait_for(int count, int polls) const {
  for (int i = 0; i < polls; ++i) {
    const int now = passes_.load(std::memory_order_acquire);
    if (now == count) return true;
    if (now == kGone) return false;
  }
  return false;
}

namespace {

void measure(CoreLatency& latency, int64_t now) {
  latency.begin(now);
#pragma omp parallel num_threads(2)
  if (omp_get_num_threads() == 2) latency.measure(omp_get_thread_num());
}

}  // namespace

int64_t core_round_trip() {
  CoreLatency latency;
  measure(latency, TaskQueue::now());
  return latency.round_trip();
}

int64_t recent_round_trip() {
  thread_local CoreLatency latency;
  const int64_t now = TaskQueue::now();
  if (latency.outdated(now)) measure(latency, now);
  return latency.round_trip();
}

}  // namespace fastrnn::cpu
