#pragma once

// The threads that work on one recurrence, and how they share it.

#include <omp.h>

#include <atomic>
#include <cstdint>

#include "cpu/range.h"
#include "cpu/threads/task_queue.h"
#include "cpu/threads/throttle.h"

namespace fastrnn::cpu::FASTRNN_ISA {

// When a thread that has done its own tasks takes others': at once, or only if the others take long, because they may
// not run at all.
enum class Steal { at_once, if_late };

// One thread's view of its team. All threads make the same calls in the same order.
class Team {
 public:
  Team(int rank, int size, TaskQueue& queue) : rank(rank), size(size), queue_(queue) {}

  const int rank, size;

  // Calls f(i) for every i < count, each on one of the threads, and returns when all are done. A thread has
  // the same share of the same count every time.
  template <class F>
  void for_each(int64_t count, Steal steal, Order order, const F& f) {
    const bool descending = order == Order::descending;
    if (size == 1) {
      for (int64_t i = 0; i < count; ++i) f(descending ? count - 1 - i : i);
      return;
    }
    goal_ += static_cast<uint32_t>(count);
    uint32_t done = 0;
    const auto call = [&](int owner, int64_t position) {
      const Range of_owner = share_of(owner, count);
      f(descending ? of_owner.end - 1 - position : of_owner.begin + position);
      ++done;
    };
    ++phase_;
    for (bool others = steal == Steal::at_once;; others = true) {
      const auto from = others ? TaskQueue::From::any : TaskQueue::From::own;
      for (TaskQueue::Task task; (task = queue_.take(rank, size, phase_, count, from)).owner >= 0;) {
        call(task.owner, task.position);
      }
      const auto wait = others ? TaskQueue::Wait::patient : TaskQueue::Wait::impatient;
      if (queue_.finish(done, goal_, wait, waited_)) return;
      done = 0;
    }
  }

  // Calls f(chain, number) for every number < length of every chain, those of a chain in order.
  template <class F>
  void for_each_chain(int64_t chains, int64_t length, const F& f) {
    if (size == 1) {
      for (int64_t number = 0; number < length; ++number) {
        for (int64_t chain = 0; chain < chains; ++chain) f(chain, number);
      }
      return;
    }
    goal_ += static_cast<uint32_t>(chains * length);
    uint32_t done = 0;
    for (TaskQueue::DependentTask task;
         (task = queue_.take_dependent(rank, size, chains, chain_length_, length)).chain >= 0; ++done) {
      f(task.chain, task.number);
      queue_.finish_dependent(task.chain);
    }
    chain_length_ += length;
    queue_.finish(done, goal_, TaskQueue::Wait::patient, waited_);
  }

  // Calls f with a share of `count` things for each thread.
  template <class F>
  void for_each_share(int64_t count, const F& f) {
    for_each(size, Steal::if_late, Order::ascending,
             [&](int64_t i) { f(share_of(static_cast<int>(i), count)); });
  }

  // Nanoseconds that this thread has waited for others, beyond what a barrier takes.
  int64_t waited() const { return waited_; }

  // This thread's share of `count` things that nobody waits for before the team parts.
  Range own_share(int64_t count) const { return share_of(rank, count); }

 private:
  Range share_of(int owner, int64_t count) const {
    return {TaskQueue::share_begin(owner, size, count), TaskQueue::share_begin(owner + 1, size, count)};
  }

  TaskQueue& queue_;
  uint32_t phase_ = 0, goal_ = 0;
  int64_t chain_length_ = 0;  // tasks of each chain in the phases before
  int64_t waited_ = 0;
};

// Each caller has a team of its own.
inline thread_local ThreadThrottle throttle;

// Of the threads that a caller has been given, how many to share a call among.
inline int usable_threads(int given) { return given == 1 ? 1 : throttle.threads(given, TaskQueue::now); }

// Runs f(rank, size), which returns how long this thread has waited in it, on up to `threads` threads of the
// OpenMP team.
template <class F>
void parallel(int threads, const F& f) {
  if (threads == 1) {  // also keeps a forked child, whose parent had a team, away from OpenMP
    f(0, 1);
    return;
  }
  const int64_t start = TaskQueue::now();
  std::atomic<int64_t> worked = 0;  // by all threads, which begin late and wait for each other at the end
#pragma omp parallel num_threads(threads)
  {
    const int64_t begin = TaskQueue::now(), waited = f(omp_get_thread_num(), omp_get_num_threads());
    worked.fetch_add(TaskQueue::now() - begin - waited, std::memory_order_relaxed);
  }
  const int64_t end = TaskQueue::now();
  throttle.record(end, threads * (end - start) - worked, worked);
}

}  // namespace fastrnn::cpu::FASTRNN_ISA
