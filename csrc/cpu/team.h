#pragma once

// The threads that work on one sweep, and how they share it.

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cells/inline.h"

namespace fastrnn::cpu::FASTRNN_ISA {

class Barrier {
 public:
  // Spins for a short while, since a step is short, then lets another thread have the core: with more threads than
  // cores the one waited for may not be running.
  void wait(int size) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 4000;
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

struct Range {
  int64_t begin, end;
};

struct Team {
  int rank, size;
  Barrier* barrier;  // of these threads

  void wait() const {
    if (size > 1) barrier->wait(size);
  }
  // This thread's share of `count` things.
  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }
};

// Runs f(rank, size) on up to `threads` threads of the OpenMP team.
template <class F>
void parallel(int threads, const F& f) {
  if (threads == 1) {  // also keeps a forked child, whose parent had a team, away from OpenMP
    f(0, 1);
    return;
  }
#pragma omp parallel num_threads(threads)
  f(omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
