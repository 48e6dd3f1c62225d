#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace fastrnn::cpu {

// Where the threads of a team take their tasks from. Each has its share of a phase's tasks, taken front to
// back, so that what it keeps in its cache is used again; a thread that has done its own may take others'
// from the back. Whoever is slow, because another program has its core or another core is faster, holds up
// the others for a task at most.
class Board {
 public:
  // For a single thread nothing is kept: it does not ask.
  Board(int threads, int64_t chains);
  // Not inline: its code would be compiled for each instruction set under one name.
  ~Board();

  struct Task {
    int owner;         // whose share it is of; -1: none is left for this thread
    int64_t position;  // in that share
  };

  // All threads go through the same phases, numbered from 1, in order; count: tasks of this phase.
  Task take(int rank, int threads, uint32_t phase, int64_t count, bool others);

  // A chain is `length` links, of which each needs the one before; several phases may add links to the
  // chains.
  // take_link gives one that does not wait for another: of the shortest chain of the thread's own share that
  // nobody works on, or else of others'. before: links of each chain in earlier phases.
  struct Link {
    int64_t chain;   // -1: none is left, or all that are left are being worked on
    int64_t number;  // below length
  };
  Link take_link(int rank, int threads, int64_t chains, int64_t before, int64_t length);
  void finish_link(int64_t chain);

  // `done` tasks more are complete. Returns true when `goal` are, all phases together; if not patient, false
  // after a short while. What a wait takes beyond that while is added to `waited`.
  bool finish(uint32_t done, uint32_t goal, bool patient, int64_t& waited);

  // Nanoseconds, of a clock that never goes back.
  static int64_t now();

  // The share of one thread is tasks [share_begin(owner), share_begin(owner + 1)).
  static int64_t share_begin(int owner, int threads, int64_t count) { return count * owner / threads; }

 private:
  // phase (24 bits), front, back (20 bits each): positions [front, back) of a share are left.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };
  int64_t take_from(int owner, int threads, uint32_t phase, int64_t count, bool front);

  std::unique_ptr<Share[]> shares_;
  std::unique_ptr<std::atomic<uint64_t>[]> links_;  // of each chain: 2 * links finished + being worked on
  alignas(64) std::atomic<uint32_t> completed_{0};
};

}  // namespace fastrnn::cpu
