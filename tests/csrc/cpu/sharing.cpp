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

#include "cpu/backoff.h"
#include "cpu/board.h"
#include "cpu/distance.h"

using fastrnn::cpu::Board;
using fastrnn::cpu::Distance;
using fastrnn::cpu::FASTRNN_ISA::Backoff;

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
void test_board_tasks() {
  constexpr int kThreads = 4, kPhases = 2000;
  constexpr int64_t kCount = 7;
  Board board(kThreads, 0);
  std::vector<std::atomic<int>> taken(kPhases + 1);
  run_threads(kThreads, [&](int rank) {
    int64_t waited = 0;
    for (uint32_t phase = 1; phase <= kPhases; ++phase) {
      uint32_t done = 0;
      for (Board::Task task; (task = board.take(rank, kThreads, phase, kCount, rank == 0)).owner >= 0;
           ++done) {
        EXPECT(phase == 1 || taken[phase - 1] == kCount);
        EXPECT(rank == 0 || task.owner == rank);
        taken[phase].fetch_add(1);
      }
      EXPECT(board.finish(done, phase * kCount, /*patient=*/true, waited));
      EXPECT(taken[phase] == kCount);
    }
    EXPECT(waited >= 0);
  });
}

// Links of a chain are taken in order, each once, one at a time.
void test_board_links() {
  constexpr int kThreads = 3;
  constexpr int64_t kChains = 5, kLength = 300;
  Board board(kThreads, kChains);
  std::vector<std::atomic<int64_t>> next(kChains);
  std::vector<std::atomic<int>> working(kChains);
  run_threads(kThreads, [&](int rank) {
    int64_t waited = 0;
    for (int64_t phase = 0; phase < 2; ++phase) {
      uint32_t done = 0;
      const int64_t before = phase * kLength;
      for (Board::Link link; (link = board.take_link(rank, kThreads, kChains, before, kLength)).chain >= 0;
           ++done) {
        EXPECT(working[link.chain].fetch_add(1) == 0);
        EXPECT(next[link.chain].fetch_add(1) == before + link.number);
        working[link.chain].fetch_sub(1);
        board.finish_link(link.chain);
      }
      board.finish(done, static_cast<uint32_t>((phase + 1) * kChains * kLength), true, waited);
    }
  });
  for (const auto& n : next) EXPECT(n == 2 * kLength);
}

// A wait is counted as long as it is, but for its first moment, and an impatient one ends by itself.
void test_board_wait() {
  Board board(2, 0);
  int64_t waited = 0;
  EXPECT(!board.finish(1, 2, /*patient=*/false, waited));
  EXPECT(waited == 0);
  run_threads(2, [&](int rank) {
    if (rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      int64_t none = 0;
      EXPECT(board.finish(1, 2, true, none));
      EXPECT(none == 0);
    } else {
      const int64_t start = Board::now();
      EXPECT(board.finish(0, 2, true, waited));
      EXPECT(waited > 0 && waited <= Board::now() - start);
    }
  });
}

// Two threads that play find their distance; one that waits in vain gives up, and so does one that comes later,
// and neither changes what is known.
void test_distance() {
  Distance distance;
  EXPECT(distance.outdated(1) && distance.round_trip() == INT64_MAX);
  distance.begin(1);
  distance.play(0);
  distance.play(1);
  EXPECT(distance.round_trip() == INT64_MAX && !distance.outdated(1 + Distance::kPeriod));
  EXPECT(distance.outdated(2 + Distance::kPeriod));
  int64_t now = Board::now();
  const int64_t end = now + 2'000'000'000;
  // Some tries, since the machine may keep one of both off its core.
  while (distance.round_trip() == INT64_MAX && now < end) {
    distance.begin(now);
    run_threads(2, [&](int rank) { distance.play(rank); });
    now = Board::now();
  }
  const int64_t found = distance.round_trip();
  EXPECT(found > 0 && found < 100'000);
  distance.begin(now);
  distance.play(0);
  EXPECT(distance.round_trip() == found);
}

constexpr int64_t kMs = 1'000'000;

// Calls that lose nothing, little, or much for a moment only, keep all threads.
void test_backoff_keeps_threads() {
  Backoff backoff;
  int64_t now = 0;
  const auto clock = [&] { return now; };
  for (int call = 0; call < 1000; ++call, now += kMs / 10) {
    EXPECT(backoff.threads(4, clock) == 4);
    // Uneven cores, one twice as fast as the other: a quarter of the time of both is idle.
    backoff.record(now, 5 * kMs / 100, 15 * kMs / 100);
    if (call % 50 == 0) backoff.record(now, 9 * kMs / 10, 0);
  }
}

// Half the threads after a loss, all of them again after a rest, and longer rests where that fails.
void test_backoff_rests() {
  Backoff backoff;
  int64_t now = 5 * kMs;
  const auto clock = [&] { return now; };
  std::vector<int64_t> tries;  // when all threads were used
  for (; now < 8000 * kMs; now += kMs) {
    const int threads = backoff.threads(2, clock);
    EXPECT(threads == 1 || threads == 2);
    if (threads == 1) continue;  // such a call is not recorded
    tries.push_back(now);
    backoff.record(now, 6 * kMs, 2 * kMs);
  }
  EXPECT(tries[1] - tries[0] == Backoff::kFirstRest);
  for (size_t i = 2; i < tries.size(); ++i) {
    EXPECT(tries[i] - tries[i - 1] == std::min(2 * (tries[i - 1] - tries[i - 2]), Backoff::kLongestRest));
  }
  EXPECT(tries.back() - tries[tries.size() - 2] == Backoff::kLongestRest);

  // The other program has ended.
  now += Backoff::kLongestRest;
  for (int call = 0; call < 5000; ++call, now += kMs) {
    EXPECT(backoff.threads(2, clock) == 2);
    backoff.record(now, 0, 2 * kMs);
  }
  // So the next loss costs a short rest.
  backoff.record(now, 6 * kMs, 2 * kMs);
  EXPECT(backoff.threads(2, clock) == 1);
  now += Backoff::kFirstRest;
  EXPECT(backoff.threads(2, clock) == 2);
}

// Twice as many threads as cores: half of them, not fewer. Another number of threads starts afresh.
void test_backoff_oversubscribed() {
  Backoff backoff;
  int64_t now = 0;
  const auto clock = [&] { return now; };
  int fewest = 8;
  for (; now < 500 * kMs; now += kMs) {
    const int threads = backoff.threads(8, clock);
    fewest = std::min(fewest, threads);
    backoff.record(now, threads > 4 ? 6 * kMs : 0, 2 * kMs);
  }
  EXPECT(fewest == 4);
  backoff.record(now, 9 * kMs, 0);
  EXPECT(backoff.threads(8, clock) < 8);
  EXPECT(backoff.threads(6, clock) == 6);
}

}  // namespace

int main() {
  test_board_tasks();
  test_board_links();
  test_board_wait();
  test_distance();
  test_backoff_keeps_threads();
  test_backoff_rests();
  test_backoff_oversubscribed();
}
