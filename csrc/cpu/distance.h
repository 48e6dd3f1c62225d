#pragma once

#include <atomic>
#include <cstdint>

namespace fastrnn::cpu {

// How far apart the cores of a caller's team are: how long a cache line takes from one to another and back,
// 0.1 us in one part of a processor, 0.4 us between two parts. It decides whether a short step is worth sharing.
// Threads move, and the cores of a virtual machine do, so it is measured again from time to time.
class Distance {
 public:
  static constexpr int64_t kPeriod = 250'000'000;  // all times are in nanoseconds

  // The caller begins; then it and another thread play, at about the same time. If the other one does not show
  // up, what was measured before holds.
  bool outdated(int64_t now) const { return measured_ == 0 || now - measured_ > kPeriod; }
  void begin(int64_t now);
  void play(int rank);

  int64_t round_trip() const { return round_trip_; }  // the largest number if it was never measured

 private:
  static constexpr int kBatches = 4, kRounds = 8;
  static constexpr int kGone = -1;
  bool wait_for(int count, int looks) const;

  int64_t measured_ = 0;
  int64_t round_trip_ = INT64_MAX;
  alignas(64) std::atomic<int> passes_{0};
};

// The round trip between two of the caller's threads now; the largest number if the second one does not show up.
int64_t core_round_trip();

// The same, not older than a period. Only for a caller that may use several threads.
int64_t recent_round_trip();

}  // namespace fastrnn::cpu
