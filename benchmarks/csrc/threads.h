#pragma once

// What threads pay for working together.

#include <algorithm>
#include <string>

#include "cpu/threads/core_latency.h"
#include "cpu/threads/task_queue.h"
#include "cpu/threads/team.h"
#include "harness.h"

namespace benchmarks {

// A phase of a team without work: one task for each thread, and the barrier.
inline void run_barrier(const Runner& runner, int threads) {
  using namespace fastrnn::cpu;
  using namespace FASTRNN_ISA;
  const std::string name = "barrier/threads:" + std::to_string(threads);
  if (!runner.wants(name)) return;
  constexpr int kPhases = 1000;
  const auto call = [&] {
    TaskQueue queue(threads, 0);
    parallel(threads, [&](int rank, int size) {
      Team team(rank, size, queue);
      for (int i = 0; i < kPhases; ++i) {
        team.for_each(size, Steal::if_late, Order::ascending, [](int64_t task) { keep(task); });
      }
      return team.waited();
    });
  };
  const double seconds = runner.time(call, Clock::world);
  runner.print(name, seconds / kPhases);
}

// A cache line, from one core to another and back.
inline void run_round_trip(const Runner& runner) {
  const std::string name = "round_trip/cores:2";
  if (!runner.wants(name)) return;
  int64_t best = INT64_MAX;
  runner.time([&] { best = std::min(best, fastrnn::cpu::core_round_trip()); }, Clock::world);
  if (best < INT64_MAX) {
    runner.print(name, static_cast<double>(best) * 1e-9);
  } else {
    std::printf("%-44s the other thread did not come\n", name.c_str());
  }
}

inline void run_threads(const Runner& runner) {
  const int most = omp_get_max_threads();
  for (int threads = 2; threads <= most; threads *= 2) run_barrier(runner, threads);
  if (most > 1) run_round_trip(runner);
}

}  // namespace benchmarks
