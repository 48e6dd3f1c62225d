#include "cpu/barrier.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastrnn::cpu {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

// Spins at first, since a step is short. Then sleeps: with more threads than cores the one waited for may
// need this core.
void Barrier::wait(int size) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    phase_.notify_all();
    return;
  }
  // A hypervisor may take the core from a guest that pauses in a tight loop, so a pause comes once in many
  // looks.
  constexpr int kSpins = 20000, kSpinsPerPause = 64;
  for (int spins = 1; spins <= kSpins; ++spins) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    if (spins % kSpinsPerPause == 0) pause();
  }
  phase_.wait(phase, std::memory_order_acquire);
}

}  // namespace fastrnn::cpu
