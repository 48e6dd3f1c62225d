// Run by test_sharing.py: how threads share work, without the kernels.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/threads/core_latency.h"
#include "cpu/threads/task_queue.h"
#include "cpu/threads/throttle.h"
#include "cpu/tuning.h"

using fastrnn::cpu::CoreLatency;
using fastrnn::cpu::TaskQueue;
using fastrnn::cpu::FASTRNN_ISA::ThreadThrottle;
using Wait = TaskQueue::Wait;

namespace tuning = fastrnn::cpu::tuning;

namespace {

void expect(bool condition, const char* what, int line) {
  if (condition) return;
  std::fprintf(stderr, "line %d: %s\n", line, what);
  std::exit(1);
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

void run_threads(int threads, const std::function<void(int)>& f) {
  std::vector<std::thread> running;
  for (int rank = 0; rank < threads; ++rank) running.emplace_back(f, rank);
  for (std::thread& thread : running) thread.join();
}

// Every task of every phase is taken once, and none before the phase before is complete; thread 0 takes others'
// tasks at once, the rest are patient.
void test_queue_tasks() {
  constexpr int kThreads = 4, kPhases = 2000;
  constexpr int64_t kCount = 7;
  TaskQueue queue(kThreads, 0);
  std::vector<std::atomic<int>> taken(kPhases + 1);
  run_threads(kThreads, [&](int rank) {
    const auto from = rank == 0 ? TaskQueue::From::any : TaskQueue::From::own;
    int64_t waited = 0;
    for (uint32_t phase = 1; phase <= kPhases; ++phase) {
      uint32_t done = 0;
      for (TaskQueue::Task task; (task = queue.take(rank, kThreads, phase, kCount, from)).owner >= 0;
           ++done) {
        EXPECT(phase == 1 || taken[phase - 1] == kCount);
        EXPECT(rank == 0 || task.owner == rank);
        taken[phase].fetch_add(1);
      }
      EXPECT(queue.finish(done, phase * kCount, Wait::patient, waited));
      EXPECT(taken[phase] == kCount);
    }
    EXPECT(waited >= 0);
  });
}

// The tasks of a chain are taken in order, each once, one at a time.
void test_queue_chains() {
  constexpr int kThreads = 3;
  constexpr int64_t kChains = 5, kLength = 300;
  TaskQueue queue(kThreads, kChains);
  std::vector<std::atomic<int64_t>> next(kChains);
  std::vector<std::atomic<int>> working(kChains);
  run_threads(kThreads, [&](int rank) {
    int64_t waited = 0;
    for (int64_t phase = 0; phase < 2; ++phase) {
      uint32_t done = 0;
      const int64_t before = phase * kLength;
      for (TaskQueue::DependentTask task;
           (task = queue.take_dependent(rank, kThreads, kChains, before, kLength)).chain >= 0; ++done) {
        EXPECT(working[task.chain].fetch_add(1) == 0);
        EXPECT(next[task.chain].fetch_add(1) == before + task.number);
        working[task.chain].fetch_sub(1);
        queue.finish_dependent(task.chain);
      }
      queue.finish(done, static_cast<uint32_t>((phase + 1) * kChains * kLength), Wait::patient, waited);
    }
  });
  for (const auto& n : next) EXPECT(n == 2 * kLength);
}

// A wait is counted as long as it is, but for its first moment, and an impatient one ends by itself.
void test_queue_wait() {
  TaskQueue queue(2, 0);
  int64_t waited = 0;
  EXPECT(!queue.finish(1, 2, Wait::impatient, waited));
  EXPECT(waited == 0);
  run_threads(2, [&](int rank) {
    if (rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      int64_t none = 0;
      EXPECT(queue.finish(1, 2, Wait::patient, none));
      EXPECT(none == 0);
    } else {
      const int64_t start = TaskQueue::now();
      EXPECT(queue.finish(0, 2, Wait::patient, waited));
      EXPECT(waited > 0 && waited <= TaskQueue::now() - start);
    }
  });
}

// Two threads that measure together find the latency. A thread that waits in vain gives up, and so does one that
// comes later, and neither changes what is known.
void test_core_latency() {
  CoreLatency latency;
  EXPECT(latency.outdated(1) && latency.round_trip() == INT64_MAX);
  latency.begin(1);
  latency.measure(0);
  latency.measure(1);
  EXPECT(latency.round_trip() == INT64_MAX && !latency.outdated(1 + tuning::kLatencyPeriod));
  EXPECT(latency.outdated(2 + tuning::kLatencyPeriod));
  int64_t now = TaskQueue::now();
  const int64_t end = now + 2'000'000'000;
  // Some tries, since the machine may keep one of both off its core.
  while (latency.round_trip() == INT64_MAX && now < end) {
    latency.begin(now);
    run_threads(2, [&](int rank) { latency.measure(rank); });
    now = TaskQueue::now();
  }
  const int64_t found = latency.round_trip();
  EXPECT(found > 0 && found < 100'000);
  latency.begin(now);
  latency.measure(0);
  EXPECT(latency.round_trip() == found);
}

constexpr int64_t kMs = 1'000'000;

// Calls that lose nothing, little, or much for a moment only, keep all threads.
void test_throttle_keeps_threads() {
  ThreadThrottle throttle;
  int64_t now = 0;
  const auto clock = [&] { return now; };
  for (int call = 0; call < 1000; ++call, now += kMs / 10) {
    EXPECT(throttle.threads(4, clock) == 4);
    // Uneven cores, one twice as fast as the other: a quarter of the time of both is idle.
    throttle.record(now, 5 * kMs / 100, 15 * kMs / 100);
    if (call % 50 == 0) throttle.record(now, 9 * kMs / 10, 0);
  }
}

// Half the threads after a loss, all of them again after a rest, and longer rests where that fails.
void test_throttle_rests() {
  ThreadThrottle throttle;
  int64_t now = 5 * kMs;
  const auto clock = [&] { return now; };
  std::vector<int64_t> tries;  // when all threads were used
  for (; now < 8000 * kMs; now += kMs) {
    const int threads = throttle.threads(2, clock);
    EXPECT(threads == 1 || threads == 2);
    if (threads == 1) continue;  // such a call is not recorded
    tries.push_back(now);
    throttle.record(now, 6 * kMs, 2 * kMs);
  }
  EXPECT(tries[1] - tries[0] == tuning::kFirstRest);
  for (size_t i = 2; i < tries.size(); ++i) {
    EXPECT(tries[i] - tries[i - 1] == std::min(2 * (tries[i - 1] - tries[i - 2]), tuning::kLongestRest));
  }
  EXPECT(tries.back() - tries[tries.size() - 2] == tuning::kLongestRest);

  // The other program has ended.
  now += tuning::kLongestRest;
  for (int call = 0; call < 5000; ++call, now += kMs) {
    EXPECT(throttle.threads(2, clock) == 2);
    throttle.record(now, 0, 2 * kMs);
  }
  // So the next loss costs a short rest.
  throttle.record(now, 6 * kMs, 2 * kMs);
  EXPECT(throttle.threads(2, clock) == 1);
  now += tuning::kFirstRest;
  EXPECT(throttle.threads(2, clock) == 2);
}

// Twice as many threads as cores: half of them, not fewer. Another number of threads starts afresh.
void test_throttle_oversubscribed() {
  ThreadThrottle throttle;
  int64_t now = 0;
  const auto clock = [&] { return now; };
  int fewest = 8;
  for (; now < 500 * kMs; now += kMs) {
    const int threads = throttle.threads(8, clock);
    fewest = std::min(fewest, threads);
    throttle.record(now, threads > 4 ? 6 * kMs : 0, 2 * kMs);
  }
  EXPECT(fewest == 4);
  throttle.record(now, 9 * kMs, 0);
  EXPECT(throttle.threads(8, clock) < 8);
  EXPECT(throttle.threads(6, clock) == 6);
}

}  // namespace

int main() {
  test_queue_tasks();
  test_queue_chains();
  test_queue_wait();
  test_core_latency();
  test_throttle_keeps_threads();
  test_throttle_rests();
  test_throttle_oversubscribed();
}
