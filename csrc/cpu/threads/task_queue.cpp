#include "cpu/threads/task_queue.h"

#include <chrono>

#include "cpu/tuning.h"

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

TaskQueue::TaskQueue(int threads, int64_t chains) {
  if (threads == 1) return;
  shares_ = std::make_unique<Share[]>(threads);
  chains_ = std::make_unique<std::atomic<uint64_t>[]>(chains);
}

TaskQueue::~TaskQueue() = default;

TaskQueue::Task TaskQueue::take(int rank, int threads, uint32_t phase, int64_t count, From from) {
  for (int i = 0; i < (from == From::any ? threads : 1); ++i) {
    const int owner = (rank + i) % threads;
    const int64_t position = take_from(owner, threads, phase, count, i == 0 ? End::front : End::back);
    if (position >= 0) return {owner, position};
  }
  return {-1, 0};
}

int64_t TaskQueue::take_from(int owner, int threads, uint32_t phase, int64_t count, End end) {
  constexpr int kBits = 20;
  constexpr uint64_t kMask = (1 << kBits) - 1;
  const bool front = end == End::front;
  const int64_t size = share_begin(owner + 1, threads, count) - share_begin(owner, threads, count);
  std::atomic<uint64_t>& left = shares_[owner].left;
  uint64_t now = left.load(std::memory_order_relaxed);
  while (true) {
    // Phase numbers wrap, so their difference tells which is later.
    const auto later = static_cast<int32_t>((static_cast<uint32_t>(now >> 2 * kBits) - phase) << 8);
    if (later > 0) return -1;  // a later phase has begun: this one is complete
    const uint64_t first = later < 0 ? 0 : now >> kBits & kMask, last = later < 0 ? size : now & kMask;
    if (first == last) return -1;
    const uint64_t next =
        static_cast<uint64_t>(phase) << 2 * kBits | (first + front) << kBits | (last - !front);
    if (left.compare_exchange_weak(now, next, std::memory_order_relaxed)) {
      return static_cast<int64_t>(front ? first : last - 1);
    }
  }
}

TaskQueue::DependentTask TaskQueue::take_dependent(int rank, int threads, int64_t chains, int64_t before,
                                                   int64_t length) {
  const int64_t own = share_begin(rank, threads, chains), own_end = share_begin(rank + 1, threads, chains);
  const uint64_t end = 2 * static_cast<uint64_t>(before + length);
  while (true) {
    int64_t shortest = -1;
    uint64_t least = end;
    const auto look_at = [&](int64_t chain) {
      const uint64_t now = chains_[chain].load(std::memory_order_relaxed);
      if (now % 2 == 0 && now < least) {
        shortest = chain;
        least = now;
      }
    };
    for (int64_t chain = own; chain < own_end; ++chain) look_at(chain);
    if (shortest < 0) {
      for (int64_t chain = 0; chain < chains; ++chain) look_at(chain);
    }
    if (shortest < 0) return {-1, 0};
    if (chains_[shortest].compare_exchange_strong(least, least + 1, std::memory_order_acquire)) {
      return {shortest, static_cast<int64_t>(least / 2) - before};
    }
  }
}

void TaskQueue::finish_dependent(int64_t chain) { chains_[chain].fetch_add(1, std::memory_order_release); }

// Spins at first, since a phase is short. Then sleeps: with more threads than cores the one waited for may
// need this core.
bool TaskQueue::finish(uint32_t done, uint32_t goal, Wait wait, int64_t& waited) {
  uint32_t now = done > 0 ? completed_.fetch_add(done, std::memory_order_acq_rel) + done
                          : completed_.load(std::memory_order_acquire);
  if (done > 0 && now == goal) {
    completed_.notify_all();
    return true;
  }
  int64_t since = 0;
  for (int spins = 1; static_cast<int32_t>(now - goal) < 0; ++spins) {
    if (spins == tuning::kImpatientSpins) {
      if (wait == Wait::impatient) return false;
      since = TaskQueue::now();
    }
    if (spins > tuning::kSpins) completed_.wait(now, std::memory_order_acquire);
    pause();
    now = completed_.load(std::memory_order_acquire);
  }
  if (since > 0) waited += TaskQueue::now() - since;
  return true;
}

void TaskQueue::add_done() {
  completed_.fetch_add(1, std::memory_order_release);
  completed_.notify_all();
}

int64_t TaskQueue::now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

}  // namespace fastrnn::cpu
