#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace fastrnn::cpu {

// Where the threads of a team take their tasks from. Each has its share of a phase's tasks and takes it front to
// back, so that what it keeps in its cache is used again. A thread that has done its own may take others' tasks
// from the back. So a thread that is slow, because another program has its core or another core is faster, holds
// up the others for one task at most.
class TaskQueue {
 public:
  // For a single thread nothing is kept: it takes no tasks from here.
  TaskQueue(int threads = 1, int64_t chains = 0);
  // Not inline: its code would be compiled for each instruction set under one name.
  ~TaskQueue();

  struct Task {
    int owner;         // the thread whose share it belongs to; -1: none is left for this thread
    int64_t position;  // in that share
  };

  // From whose share a thread takes: its own, or when that is empty also others'.
  enum class From { own, any };

  // All threads go through the same phases, numbered from 1, in order; count: tasks of this phase.
  Task take(int rank, int threads, uint32_t phase, int64_t count, From from);

  // A chain is `length` tasks, each of which needs the one before it. Several phases may add tasks to the chains.
  // take_dependent gives a task that can begin now. It looks for chains that nobody works on, in the thread's own
  // share first and then in others', and takes the one that has come least far. before: tasks of each chain in
  // earlier phases.
  struct DependentTask {
    int64_t chain;   // -1: none is left, or all that are left are being worked on
    int64_t number;  // its place in the chain, below length
  };
  DependentTask take_dependent(int rank, int threads, int64_t chains, int64_t before, int64_t length);
  void finish_dependent(int64_t chain);

  // The barrier at the end of a phase. `done` tasks more are complete. Returns true when `goal` are, counted over
  // all phases; if impatient, false after a short while. What a wait takes beyond that while is added to `waited`.
  enum class Wait { patient, impatient };
  bool finish(uint32_t done, uint32_t goal, Wait wait, int64_t& waited);

  // One task more is complete, and this thread waits for none.
  void add_done();

  // Nanoseconds, of a clock that never goes back.
  static int64_t now();

  // The share of one thread is tasks [share_begin(owner), share_begin(owner + 1)).
  static int64_t share_begin(int owner, int threads, int64_t count) { return count * owner / threads; }

 private:
  // phase (24 bits), front, back (20 bits each): positions [front, back) of a share are left.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };
  enum class End { front, back };
  int64_t take_from(int owner, int threads, uint32_t phase, int64_t count, End end);

  std::unique_ptr<Share[]> shares_;
  std::unique_ptr<std::atomic<uint64_t>[]> chains_;  // each: 2 * tasks finished + being worked on
  alignas(64) std::atomic<uint32_t> completed_{0};
};

}  // namespace fastrnn::cpu
