#pragma once

// The threads that work on one sweep, and how they share it.

#include <omp.h>

#include <cstdint>

#include "cpu/barrier.h"

namespace fastrnn::cpu::FASTRNN_ISA {

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
