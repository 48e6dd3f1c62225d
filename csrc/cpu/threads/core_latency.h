#pragma once

#include <atomic>
#include <cstdint>

#include "cpu/tuning.h"

namespace fastrnn::cpu {

// How long a cache line takes from one core of a caller's team to another and back: 0.1 us within one part of a
// processor, 0.4 us between two parts. It decides whether a short step is worth sharing among threads. Threads
// move, and so do the cores of a virtual machine, so it is measured again from time to time.
class CoreLatency {
 public:
  // All times are in nanoseconds. The caller calls begin; then it and another thread call measure at about the same time, with ranks 0 and 1. If
  // the other thread does not come, what was measured before holds.
  bool outdated(int64_t now) const {
    return measured_at_ == 0 || now - measured_at_ > tuning::kLatencyPeriod;
  }
  void begin(int64_t now);
  void measure(int rank);

  int64_t round_trip() const { return round_trip_; }  // the largest number if it was never measured

 private:
  static constexpr int kGone = -1;
  bool wait_for(int count, int polls) const;

  int64_t measured_at_ = 0;
  int64_t round_trip_ = INT64_MAX;
  alignas(64) std::atomic<int> passes_{0};
};

// The round trip between two of the caller's threads now; the largest number if the second one does not come.
int64_t core_round_trip();

// The same, not older than a period. Only for a caller that may use several threads.
int64_t recent_round_trip();

}  // namespace fastrnn::cpu
